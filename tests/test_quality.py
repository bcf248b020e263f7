"""experiments/quality.py, and the models that it compares with."""

import json
import math
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from conftest import invoke, unpadded, write_zip

import ddn_networks
from benchmarks import peer_ddn
from ddn_networks import snapshots
from ddn_networks.sampling import Sampling
from dnnlib.archives import ImageArchive
from experiments import classifier, flow_matching, quality, timed
from experiments.common import reference
from metrics import evaluate
from metrics.detectors import load_detector
from metrics.image_sets import Files, Samples
from metrics.lenet import LeNet

# ------------------------------------------------------------------------------------------------------ flow matching


@pytest.mark.parametrize('evaluations, error', [(1, 0.8), (2, 0.3), (8, 0.03), (35, 0.07)])
def test_samples_take_so_many_evaluations_and_come_to_the_solution(evaluations, error):
    """Of x' = x from 0 to 1, whose solution is e x."""
    times = []

    def velocity(x, t):
        times.append(t[0].item())
        return x

    x = torch.tensor([1.0, -2.0])[:, None, None, None]
    end = flow_matching.follow(velocity, x, evaluations)
    assert len(times) == evaluations and 0 <= min(times) <= max(times) <= 1
    torch.testing.assert_close(end, math.e * x, rtol=error, atol=0)
    constant = flow_matching.follow(lambda x, t: torch.full_like(x, 3.0), x, evaluations)
    torch.testing.assert_close(constant, x + 3)


@pytest.mark.parametrize('patch', [1, 2])
def test_the_unet_begins_at_zero_and_its_loss_is_that_of_the_velocity(patch):
    torch.manual_seed(0)
    net = flow_matching.UNet(3, [8, 16], patch)
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(net(images, torch.tensor([0.0, 1.0])), torch.zeros_like(images))
    value = flow_matching.loss(net, images, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    torch.rand(2, generator=generator)
    assert value == (images - torch.randn(images.shape, generator=generator)).square().mean()
    value.backward()
    assert net.last.weight.grad.abs().max() > 0
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.1)
        early, late = (net(images, torch.full([2], t)) for t in (0.1, 0.9))
    assert not torch.equal(early, late)  # it sees the time


def test_the_learning_rate_rises_and_falls():
    rates = [flow_matching.rate(progress) for progress in np.linspace(0, 1, 101)]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0) and max(rates) < flow_matching.LR
    top = int(np.argmax(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)


def test_training_ends_with_its_cpu_seconds(monkeypatch):
    clock = iter(np.arange(0, 1000, 1.0))
    monkeypatch.setattr(timed.time, 'process_time', lambda: next(clock))
    seen = []
    facts = timed.train(lambda x, progress: seen.append(progress) or 0.5, iter([torch.zeros(4)] * 99), 10)
    assert facts['images'] == 4 * len(seen) and seen == [i / 10 for i in range(1, 10)]
    with pytest.raises(ValueError, match='the loss is nan after 4 images'):
        timed.train(lambda x, progress: math.nan, iter([torch.zeros(4)] * 99), 10)


def test_flow_matching_writes_samples_of_the_average(tiny_zip, tmp_path):
    options = ['--channels=8,8', '--minutes=0.005', '--num=70', '--evaluations=3,1', f'--outdir={tmp_path}']
    assert 'parameters' in invoke(flow_matching.main, tiny_zip, *options)
    for number in (3, 1):
        archive = ImageArchive(tmp_path / f'flow-{number}.zip')
        facts = json.loads((tmp_path / f'flow-{number}.json').read_text())
        assert len(archive) == 70 and archive.image(69).shape == (1, 8, 8) and facts['images'] > 0
    net = flow_matching.UNet(1, [8, 8])
    net.load_state_dict(torch.load(tmp_path / 'flow.pt'))
    noise = torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = flow_matching.follow(net, noise, 1).clamp(-1, 1)
    made = torch.from_numpy(np.stack([archive.image(i) for i in range(50)])).float()
    torch.testing.assert_close(made, (wanted + 1) * 127.5, atol=1, rtol=0)


# ------------------------------------------------------------------------------------------------------------ the peer


class Peer(torch.nn.Module):
    """A stand-in for the peer's network: pictures of 0 to 1 out, whose only weight learns their mean."""

    def __init__(self, dim, image_size, channels, codebook_size):
        super().__init__()
        self.mean, self.num_stages, self.layers = torch.nn.Parameter(torch.tensor(0.0)), 3, [None, None]
        self.shape = channels, image_size, image_size

    def forward(self, images):
        assert 0 <= images.min() and images.max() <= 1
        return (images.mean() - self.mean).square()

    def sample(self, codes):
        return self.mean.clamp(0, 1) + torch.zeros(len(codes), *self.shape) + (codes[:, 0] % 2)[:, None, None, None]

    def guided_sampler_codes_param_names(self):
        return set()

    def split_and_prune_(self):
        pass


def test_the_peer_writes_samples_of_its_own_range(tiny_zip, tmp_path, monkeypatch):
    average = types.SimpleNamespace(EMA=lambda net, **how: types.SimpleNamespace(
        ema_model=net, update=lambda: None, eval=net.eval))  # fmt: skip
    monkeypatch.setattr(peer_ddn, 'load_guided_sampler', lambda: Peer)  # installed
    monkeypatch.setitem(sys.modules, 'discrete_distribution_network', types.SimpleNamespace(DDN=Peer))
    monkeypatch.setitem(sys.modules, 'ema_pytorch', average)
    options = ['--minutes=0.002', '--num=60', f'--outdir={tmp_path}']
    assert '1 parameters, 2 layers' in invoke(peer_ddn.main, tiny_zip, *options)
    archive = ImageArchive(tmp_path / 'peer.zip')
    values = {int(value) for i in range(60) for value in np.unique(archive.image(i))}
    assert len(values) == 2 and max(values) == 255 and min(values) < 60  # of mean, and mean + 1
    assert json.loads((tmp_path / 'peer.json').read_text())['images'] > 0
    odd = write_zip(tmp_path / 'odd.zip', 4, (1, 12, 12))
    assert 'squares of 2^n pixels a side, these pictures are 12x12' in invoke(peer_ddn.main, odd, *options, expect=1)


# ---------------------------------------------------------------------------------------------------------- the table


def test_the_trained_classifier_knows_its_classes(tmp_path, monkeypatch):
    path = write_zip(tmp_path / 'a.zip', 30, (1, 8, 8))
    assert classifier.labelled(path)[1].tolist() == [i % 3 for i in range(30)]
    assert classifier.labelled(path)[0].shape == (30, 1, 8, 8)
    classes = torch.arange(96) % 3
    images = torch.rand(96, 1, 8, 8) * 0.2 + classes[:, None, None, None] * 0.5 - 1
    monkeypatch.setattr(classifier, 'labelled', lambda path: (images, classes))
    monkeypatch.setattr(classifier, 'BATCH', 32)
    monkeypatch.setattr(classifier, 'EPOCHS', 12)
    detector = load_detector(classifier.detector_file('', tmp_path / 'lenet.pth'))
    right = (detector.net.logits(images).argmax(1) == classes).double().mean()
    assert right > 0.95 and classifier.accuracy(detector.net, '') == right
    monkeypatch.setattr(classifier, 'trained', None)
    assert load_detector(classifier.detector_file('', tmp_path / 'lenet.pth')).digest == detector.digest


def small(tmp_path, seed=0, **kwargs):
    """A snapshot of a small network for 8x8 with a prior; its samples differ."""
    torch.manual_seed(seed)
    net = ddn_networks.DDN(8, 1, [8, 8], [1, 2], [4, 4], prior_width=8, **kwargs)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 2:
                parameter.normal_(0, 0.2)
    net.sampling = Sampling((0.5, 0.5, 0.5))
    snapshots.save_network(str(tmp_path / 'net.safetensors'), net.eval(), meta={})
    return tmp_path / 'net.safetensors'


@pytest.fixture
def measured(tmp_path, monkeypatch, tiny_zip):
    """A call of the script with a LeNet of random weights; returns (table, batches of features, networks sampled)."""
    torch.manual_seed(1)
    torch.save(LeNet().state_dict(), tmp_path / 'lenet.pth')
    monkeypatch.setenv('DDN_LENET', str(tmp_path / 'lenet.pth'))
    held_out = write_zip(tmp_path / 'held-out.zip', 40, (1, 8, 8), seed=5)
    work = []
    forward, batches = LeNet.forward, quality.Samples.batches
    monkeypatch.setattr(LeNet, 'forward', lambda self, x: work.append('features') or forward(self, x))
    monkeypatch.setattr(quality.Samples, 'batches', lambda *a: work.append('samples') or batches(*a))

    def call(*options):
        work.clear()
        given = [f'--data={tiny_zip}', f'--held-out={held_out}', '--num=24', '--num-reconstructed=24']
        printed = invoke(quality.main, 'digits', *given, f'--outdir={tmp_path / "out"}', *options)
        text = unpadded((tmp_path / 'out' / 'digits' / 'digits.md').read_text())
        assert text in unpadded(printed)
        return text, work.count('features'), work.count('samples')

    return call


def test_the_table_has_a_row_for_each_way_and_is_kept(tmp_path, measured):
    network = small(tmp_path, finisher_width=8)
    text, features, sampled = measured(f'--network=new={network}')
    ways = ['uniform', 'prior, T 1', 'prior, default T']
    for way in [*ways, *(f'{way}, finisher' for way in ways)]:
        assert f'| new | {way} | 24 |' in text
    assert '| new | without |' in text and '| new | with |' in text
    assert features > 0 and sampled == 6
    sheets = [path.name for path in (tmp_path / 'out' / 'digits').glob('digits-*.png')]
    assert len(sheets) == 6 and 'digits-new-prior-default-t-finisher.png' in sheets
    assert measured(f'--network=new={network}') == (text, 0, 0)
    other = small(tmp_path, 1)  # another network by the same name
    again, features, sampled = measured(f'--network=new={other}')
    assert features > 0 and sampled == 3 and 'finisher' in again and '| new | with |' not in again


def test_the_detector_of_fashion_is_trained_on_it(tmp_path, tiny_zip, monkeypatch):
    monkeypatch.setattr(classifier, 'BATCH', 8)
    options = [f'--data={tiny_zip}', f'--held-out={tiny_zip}', '--num=24', f'--network=new={small(tmp_path)}']
    text = invoke(quality.main, 'fashion', *options, f'--outdir={tmp_path / "out"}')
    assert 'that classifies' in text and '% of the held-out images right' in text
    assert '| new | prior, T 1 | 24 |' in unpadded(text)


@pytest.fixture
def inception(tmp_path, monkeypatch):
    """Another LeNet in place of Inception."""
    torch.manual_seed(2)
    torch.save(LeNet().state_dict(), tmp_path / 'inception.pth')

    def load(name, **how):
        path = str(tmp_path / 'inception.pth') if name == 'inception' else name
        return load_detector(path, **how)._replace(name='inception' if name == 'inception' else 'lenet')

    monkeypatch.setattr(quality, 'load_detector', load)
    return load('inception')


def test_inception_adds_fids_and_calibrates_the_proxy(tmp_path, measured, inception):
    options = [f'--network=new={small(tmp_path)}', '--inception=20', '--reference=30']
    text, features, _ = measured(*options)
    assert 'of 20 samples against 30 training images' in text and 'over 3 rows: Spearman' in text
    facts = json.loads((tmp_path / 'out' / 'digits' / 'digits.json').read_text())
    assert all(row['FID'] > 0 and row['KID'] is not None for row in facts['samples'])
    assert all(row['rFID'] > 0 and row['rFD'] > 0 for row in facts['reconstructions'])
    assert features > 0 and measured(*options) == (text, 0, 0)


def test_chosen_rows_get_fids_of_more_samples(tmp_path, measured, inception, tiny_zip):
    options = [f'--network=new={small(tmp_path)}', '--inception=32', '--fid-of=new=prior, T 1']
    text, _, sampled = measured(*options)
    assert 'of 32 samples against 40 training images' in text and sampled == 4  # 3 of 24, 1 of 32
    rows = json.loads((tmp_path / 'out' / 'digits' / 'digits.json').read_text())['samples']
    assert [row['sampled'] for row in rows if 'FID' in row] == ['prior, T 1']
    net = ddn_networks.Network.from_pretrained(str(tmp_path / 'net.safetensors'))
    made = evaluate.statistics(Samples(net, 32, temperature=1.0), inception)
    wanted = evaluate.compare(evaluate.statistics(Files(tiny_zip), inception), made)[0]['FID-32']
    assert rows[1]['FID'] == pytest.approx(wanted, rel=1e-6)
    assert measured(*options) == (text, 0, 0)
    given = ['digits', f'--outdir={tmp_path / "out"}', *options[:2]]
    wrong = invoke(quality.main, *given, '--fid-of=new=prior', expect=1)
    assert 'no such row; choose from "new=uniform", "new=prior, T 1", "new=prior, default T"' in wrong


def test_a_reference_is_of_its_images_and_detector(tmp_path):
    torch.manual_seed(1)
    torch.save(LeNet().state_dict(), tmp_path / 'lenet.pth')
    detector = load_detector(str(tmp_path / 'lenet.pth'))
    path = write_zip(tmp_path / 'a.zip', 40, (1, 8, 8))
    first = reference(path, detector, tmp_path)
    assert (reference(path, detector._replace(net=None), tmp_path).mu == first.mu).all()  # kept
    write_zip(tmp_path / 'a.zip', 40, (1, 8, 8), seed=3)  # another dataset by the same name
    assert not (reference(path, detector, tmp_path).mu == first.mu).all()
    with pytest.raises(AttributeError):  # another detector computes
        reference(path, detector._replace(net=None, digest='other'), tmp_path)
    with zipfile.ZipFile(path) as file:
        file.extractall(tmp_path / 'folder')
    with pytest.raises(AttributeError):  # files in a folder may change
        for _ in range(2):
            reference(str(tmp_path / 'folder'), detector._replace(net=None), tmp_path)


def test_samples_of_another_model_are_a_row(tmp_path, measured):
    pictures = torch.randint(0, 256, [40, 1, 8, 8], dtype=torch.uint8)
    timed.write_zip(tmp_path / 'flow.zip', pictures)
    facts = {'model': 'flow', 'seconds per image': 0.25, 'parameters': 12345, 'training CPU seconds': 60.0}
    (tmp_path / 'flow.json').write_text(json.dumps(facts))
    text, _, _ = measured(f'--pictures=peer={tmp_path / "flow.zip"}')
    assert '| peer | flow | 24 |' in text and '| 0.25 | 12,345 | 60 | - |' in text


def test_all_rows_are_of_as_many_samples(tmp_path, measured, tiny_zip):
    """Distances fall with the number of images, so an FID of fewer than its caption says would look worse."""
    given = ['digits', f'--data={tiny_zip}', f'--held-out={tiny_zip}', '--num=24', f'--outdir={tmp_path / "out"}']
    assert 'holds 40 images' in invoke(quality.main, *given, '--inception=24', '--reference=49', expect=2)
    timed.write_zip(tmp_path / 'few.zip', torch.zeros(20, 1, 8, 8, dtype=torch.uint8))
    printed = invoke(quality.main, *given, f'--pictures=few={tmp_path / "few.zip"}', expect=1)
    assert 'few.zip holds 20 images, fewer than the 24 asked for with --num' in printed
    timed.write_zip(tmp_path / 'many.zip', torch.randint(0, 256, [40, 1, 8, 8], dtype=torch.uint8))
    facts = {'model': 'm', 'seconds per image': 1.0, 'parameters': 1, 'training CPU seconds': 1.0}
    (tmp_path / 'many.json').write_text(json.dumps(facts))
    text, _, _ = measured(f'--pictures=many={tmp_path / "many.zip"}', '--num=32', '--num-reconstructed=12')
    assert 'The same numbers of 32 held-out images' in text


def test_the_proxy_is_calibrated_by_the_rows_that_have_an_fid():
    rows = [{'FD': 1.0, 'FID': 10.0}, {'FD': 2.0, 'FID': 30.0}, {'FD': 3.0, 'FID': 20.0}, {'FD': 9.0}]
    assert quality.calibration(rows) == (
        'The proxy against FID over 3 rows: Spearman correlation 0.50, the same order in 2 of 3 pairs.'
    )
    assert quality.calibration(rows[:2]) == ''


def test_names_are_given_once():
    assert 'every name once' in invoke(quality.main, 'digits', '--network=a=x', '--network=a=y', expect=2)
