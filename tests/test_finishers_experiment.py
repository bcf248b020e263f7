"""experiments/finishers.py: what its controls leave out, and what they train."""

import pytest
import torch
from conftest import invoke, unpadded, write_zip

from cli.networks import load_network
from ddn_networks import DDN, snapshots
from experiments import finishers, quality
from experiments.finishers import FromNoise, IntoTheTop, Timed
from metrics.lenet import LeNet
from training.dataset import open_training_data
from training.finisher_fitting import Weights
from training.prior_fitting import Fit


@pytest.fixture
def fit(tiny_zip, monkeypatch):
    monkeypatch.setattr('training.finisher_fitting.ROUND', 16)
    data = open_training_data({'path': tiny_zip, 'xflip': False, 'cache': True}, 8, None, held_out_share=0.1)

    def made(kind: type[Timed], weights: Weights = Weights()) -> Timed:  # noqa: B008
        torch.manual_seed(0)
        C, *size = data.loaded[0][0].shape
        net = DDN(size, C, [8, 8], [2, 2], [4, 4], grids=[1, 1, 2, 4], finisher_width=4)
        found = kind(Fit(net, data, 0), None, 8, 1e-3, 1, 100.0, weights, 4)
        found.seconds = 1e9
        return found

    return made


def test_noise_has_nothing_of_the_networks_picture(fit):
    found = fit(FromNoise, Weights(squared=0.0))
    round_ = found.make_round(0)
    for pictures in (round_.drawn, round_.samples):
        assert not pictures.images.any()
        features = pictures.features.float()
        assert abs(features.mean()) < 0.05 and abs(features.std() - 1) < 0.05
        flat = features.flatten(2)[0]
        assert (torch.corrcoef(flat) - torch.eye(len(flat))).abs().max() < 0.4  # channels of their own
    before = found.samples([0, 1])
    with torch.no_grad():
        for param in (*found.net.blocks.parameters(), *found.net.ddls.parameters()):
            param.mul_(1.5)
    assert torch.equal(found.samples([0, 1]), before)
    first = found.step_()
    assert first['gap'].isfinite() and not torch.equal(found.samples([0, 1]), before)
    last = list(found.finisher.parameters())[-1]  # a bias
    with torch.no_grad():
        last.fill_(-2.0)
    found.step_()
    assert last.grad.abs().max() > 0 and found.samples([0, 1]).abs().max() <= 1  # it finds back from black


def test_the_gradient_reaches_the_last_scale_alone(fit):
    found = fit(IntoTheTop)
    before = {name: x.clone() for name, x in found.net.state_dict().items()}
    for _ in range(3):  # the last convolution of a finisher begins at zero
        found.step_()
    moved = {name for name, x in found.net.state_dict().items() if not torch.equal(x, before[name])}
    own = {name for name in moved if not name.startswith('finisher.')}
    assert own and all(name.startswith(('blocks.2.', 'blocks.3.')) for name in own)
    held_out = found.fit.data.loaded[0][0]
    image = torch.from_numpy(held_out)[None] / 127.5 - 1
    with found.averaged_weights():
        expected = found.net.reconstruct(image).images
    assert torch.equal(found.reconstructions(image), expected)
    assert {name: x for name, x in found.ema.params.items() if name.startswith('2.')}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A call of the script on tiny images of a seed; returns its text."""
    monkeypatch.setattr('training.finisher_fitting.ROUND', 16)
    torch.manual_seed(0)
    torch.save(LeNet().state_dict(), tmp_path / 'lenet.pth')
    snapshots.save_network(tmp_path / 'net.safetensors', DDN(8, 1, [8, 8], [1, 1], [4, 4]), meta={})

    def call(*options, seed=0):
        data = write_zip(tmp_path / 'a.zip', 40, (1, 8, 8), seed=seed)
        given = ['--network', tmp_path / 'net.safetensors', '--data', data, '--held-out', data, '--seconds=0.1']
        more = ['--num=20', '--num-reconstructed=20', '--finisher-width=4', '--detector', tmp_path / 'lenet.pth']
        return invoke(finishers.main, *given, *more, '--outdir', tmp_path / 'out', *options)

    return call


def test_a_row_and_its_network_say_what_it_was_trained_on(tmp_path, table, monkeypatch):
    squared = lambda a, b: (a - b).square().mean((1, 2, 3))  # noqa: E731
    monkeypatch.setattr(finishers, 'perceptual_loss', lambda lpips, *_: (
        (None, 'none') if lpips == 'none' else (squared, 'alex.pth, sha256 1')))  # fmt: skip
    lines = [line.split(' | ') for line in unpadded(table('--only=finisher,without lpips')).splitlines()]
    rows = {line[0]: line[2] for line in lines if len(line) > 2 and '---' not in line[0]}
    assert rows == {'| row': 'trained on', '| before': '-', '| finisher': 'LPIPS (AlexNet)', '| without LPIPS': '-'}
    said = {name: quality.trained_on(load_network(str(tmp_path / 'out' / f'{name}.safetensors')))
            for name in ('finisher', 'without-lpips')}  # fmt: skip
    assert said == {'finisher': 'LPIPS (AlexNet)', 'without-lpips': ''}


def test_rows_are_kept_for_their_images_and_detector(tmp_path, table, monkeypatch):
    made = []
    monkeypatch.setattr(finishers, 'measured', lambda row, *_: made.append(row) or {'images': None})
    for seed, count in [(0, 2), (0, 2), (1, 4)]:  # other images at the same path
        table('--only=without', seed=seed)
        assert len(made) == count
    torch.save(LeNet().state_dict(), tmp_path / 'lenet.pth')
    table('--only=without', seed=1)
    assert len(made) == 6
