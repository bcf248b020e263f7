"""fid.py as a user runs it, with a LeNet of random weights for a detector, so that no test needs a download."""

import io
import json
import math
import os
import socket
import zipfile
from types import SimpleNamespace

import forks
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import ddn_networks
import fid
from ddn_networks import snapshots
from dnnlib.images import to_uint8
from dnnlib.util import file_sha256
from metrics import detectors, distances, evaluate
from metrics.detectors import load_detector
from metrics.image_sets import Files, Samples, read
from metrics.lenet import LeNet
from metrics.lpips import LPIPS


def save_zip(path, images):
    """uint8 [N, C, H, W] -> a zip of PNGs in their order."""
    with zipfile.ZipFile(path, 'w') as file:
        for i, image in enumerate(images):
            pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            buffer = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, 'png')
            file.writestr(f'00000/img{i:08d}.png', buffer.getvalue())
    return str(path)


def pictures(num, seed, size=16, channels=1, shift=0):
    """Smooth random uint8 images [N, C, size, size]."""
    rng = np.random.RandomState(seed)
    coarse = rng.randint(0, 200, [num, channels, size // 4, size // 4])
    return (coarse.repeat(4, 2).repeat(4, 3) + rng.randint(0, 20, [num, channels, size, size]) + shift).astype(np.uint8)


def make_net(**kwargs):
    torch.manual_seed(0)
    net = ddn_networks.DDN(16, 1, [8, 8, 8], [1, 1, 1], [16, 16, 16], **kwargs)
    with torch.no_grad():
        for weight in net.parameters():  # as initialised, all samples are flat and the same
            if weight.ndim > 2:
                weight.normal_(0, 0.2)
    return net.eval()


@pytest.fixture(scope='module')
def room(tmp_path_factory):
    """Files that the tests share: a detector, two sets of images, a reference of the first, a network."""
    path = tmp_path_factory.mktemp('fid')
    torch.manual_seed(1)
    torch.save(LeNet().state_dict(), path / 'detector.pth')
    save_zip(path / 'a.zip', pictures(120, 0))
    save_zip(path / 'b.zip', pictures(130, 1, shift=30))
    snapshots.save_network(str(path / 'net.safetensors'), make_net(), meta={})
    run(path, 'ref', '--data', path / 'a.zip', '--dest', path / 'a.npz')
    return path


def run(room, command, *options, fails=False, detector='detector.pth'):
    """The result's JSON; or, where it shall fail, its one line."""
    common = ['--detector', room / detector, '--device', 'cpu']
    result = CliRunner().invoke(fid.main, [command, *map(str, options), *map(str, common)])
    if fails:
        assert result.exit_code not in (0, None) and isinstance(result.exception, SystemExit), result.output
        lines = [line for line in result.output.splitlines() if line.startswith('Error')]
        assert len(lines) == 1
        return lines[0]
    assert result.exit_code == 0, result.output
    return json.loads(result.output.splitlines()[-1]) | {'output': result.output}


# ----------------------------------------------------------------------------------------------------- ref and calc


def test_images_against_their_own_reference(room):
    result = run(room, 'calc', '--images', room / 'a.zip', '--ref', room / 'a.npz', '--json', room / 'out.json')
    numbers = result['numbers']
    assert numbers['FID-120'] == pytest.approx(0, abs=1e-6)
    assert numbers['precision-120'] == numbers['recall-120'] == numbers['coverage-120'] == 1
    assert abs(numbers['KID-120']) <= 3 * numbers['KID-120 standard error']
    assert result['images'] | {'path': 0} == {
        'path': 0, 'num': 120, 'available': 120, 'sha256': file_sha256(room / 'a.zip'),
    }  # fmt: skip
    assert result['reference']['sha256'] == file_sha256(room / 'a.npz')
    assert result['reference']['data']['sha256'] == file_sha256(room / 'a.zip')
    assert result['detector']['sha256'] == file_sha256(room / 'detector.pth')
    assert {'seed', 'batch', 'versions', 'ranks', 'device'} < set(result)
    assert json.loads((room / 'out.json').read_text())['numbers'] == numbers


def test_other_images_are_further_off_and_the_note_says_how_few(room):
    result = run(room, 'calc', '--images', room / 'b.zip', '--ref', room / 'a.npz')
    assert result['numbers']['FID-130'] > 0.001
    assert result['numbers']['KID-120'] > 3 * result['numbers']['KID-120 standard error'] > 0
    assert 'fewer than 10000' in result['notes'][0]
    assert f'Note: {result["notes"][0]}' in result['output']
    few = run(room, 'calc', '--images', room / 'b.zip', '--ref', room / 'a.npz', '--num', 50)
    assert 'singular (rank 49 at most)' in few['notes'][0]


def test_fid_does_not_depend_on_the_batch_and_num_draws_by_seed(room):
    def calc(*options):
        return run(room, 'calc', '--images', room / 'b.zip', '--ref', room / 'a.npz', *options)['numbers']

    whole = calc()
    assert calc('--batch', 7)['FID-130'] == pytest.approx(whole['FID-130'], abs=1e-6)
    some = calc('--num', 100)
    assert some == calc('--num', 100)
    assert list(some)[0] == 'FID-100' and some['FID-100'] != calc('--num', 100, '--seed', 1)['FID-100']


def test_a_network_scores_as_its_pngs_do(room):
    images, _ = make_net().sample(110, seed=5)
    save_zip(room / 'samples.zip', to_uint8(images).numpy())
    through_files = run(room, 'calc', '--images', room / 'samples.zip', '--ref', room / 'a.npz', '--batch', 32)
    options = ['--num', 110, '--seed', 5, '--batch', 16]
    direct = run(room, 'calc', '--network', room / 'net.safetensors', '--ref', room / 'a.npz', *options)
    assert len(np.unique(to_uint8(images).numpy().reshape(110, -1), axis=0)) > 90  # there is something to compare
    assert direct['numbers']['FID-110'] == pytest.approx(through_files['numbers']['FID-110'], abs=1e-6)
    for key in ('precision-110', 'recall-110', 'coverage-110'):
        assert direct['numbers'][key] == through_files['numbers'][key]
    assert direct['images']['seeds'] == '5-114'
    assert direct['images']['sha256'] == file_sha256(room / 'net.safetensors')
    assert direct['images']['ema'] == 'none'


def test_edms_own_reference_gives_fid_alone(room):
    with np.load(room / 'a.npz') as ours:
        assert ours['mu'].dtype == ours['sigma'].dtype == np.float64
        np.savez(room / 'edm.npz', mu=ours['mu'], sigma=ours['sigma'])
    bare = run(room, 'calc', '--images', room / 'b.zip', '--ref', room / 'edm.npz')
    full = run(room, 'calc', '--images', room / 'b.zip', '--ref', room / 'a.npz')
    assert bare['numbers'] == {'FID-130': full['numbers']['FID-130']}
    assert any('only FID' in note for note in bare['notes'])


def test_a_folder_reads_like_the_zip(room, tmp_path):
    with zipfile.ZipFile(room / 'a.zip') as file:
        file.extractall(tmp_path / 'a')
    result = run(room, 'calc', '--images', tmp_path / 'a', '--ref', room / 'a.npz')
    assert result['numbers']['FID-120'] == pytest.approx(0, abs=1e-6) and result['images']['sha256'] is None


def test_keep_0_writes_a_file_like_edms(room, tmp_path):
    run(room, 'ref', '--data', room / 'a.zip', '--dest', tmp_path / 'bare', '--keep', 0)
    with np.load(tmp_path / 'bare.npz', allow_pickle=False) as file:
        assert set(file.files) == {'mu', 'sigma', 'meta'}


def test_keep_0_gives_fid_alone(room):
    result = run(room, 'calc', '--images', room / 'b.zip', '--ref', room / 'a.npz', '--keep', 0)
    assert list(result['numbers']) == ['FID-130'] and any('--keep=0' in note for note in result['notes'])


def test_files_may_go_into_a_new_folder(room, tmp_path):
    new = tmp_path / 'new'
    run(room, 'ref', '--data', room / 'a.zip', '--dest', new / 'a' / 'x.npz', '--json', new / 'b' / 'x.json')
    options = ['--images', room / 'a.zip', '--data', room / 'a.zip', '--num', 2, '--sheet', new / 'c' / 'x.png']
    run(room, 'neighbours', *options)
    assert {p.name for p in new.rglob('x.*')} == {'x.npz', 'x.json', 'x.png'}


def test_selftest_compares_disjoint_halves(room):
    result = run(room, 'selftest', '--data', room / 'a.zip')
    other = run(room, 'calc', '--images', room / 'b.zip', '--ref', room / 'a.npz', '--num', 60)
    assert 0 < result['numbers']['FID-60'] < other['numbers']['FID-60']
    assert abs(result['numbers']['KID-60']) < 5 * result['numbers']['KID-60 standard error']


def test_the_same_numbers_from_python(room):
    detector = load_detector(str(room / 'detector.pth'))
    real = evaluate.statistics(Files(room / 'a.zip'), detector)
    fake = evaluate.statistics(Files(room / 'b.zip', 60), detector, batch=64)
    numbers, notes = evaluate.compare(real, fake)
    by_script = run(room, 'calc', '--images', room / 'b.zip', '--ref', room / 'a.npz', '--num', 60)
    assert by_script['numbers'] == numbers and by_script['notes'] == notes
    net = make_net()
    measured, notes = evaluate.reconstruction(net, Files(room / 'a.zip', 50), detector)
    by_script = run(room, 'reconstruct', '--network', room / 'net.safetensors', '--data', room / 'a.zip', '--num', 50)
    assert by_script['numbers'] == {f'training {name}': value for name, value in measured.items()}
    found, indices = evaluate.neighbours(Samples(net, 9), Files(room / 'a.zip'), None, detector, k=2)
    by_script = run(room, 'neighbours', '--network', room / 'net.safetensors', '--data', room / 'a.zip', '--num', 9)
    assert by_script['numbers'] == found and indices['lenet'].shape == (9, 2)


# -------------------------------------------------------------------------------------------------------- resuming


class Counting(LeNet):
    """Counts the batches of all detectors of this kind, and stops in the middle as Ctrl-C would."""

    batches, stop_after = 0, math.inf

    def forward(self, images):
        if Counting.batches >= Counting.stop_after:
            raise KeyboardInterrupt
        Counting.batches += 1
        return super().forward(images)


@pytest.fixture
def counted(monkeypatch):
    """``counted(stop_after, room, command, *options)``: (the numbers, or None if it was stopped; batches computed)."""
    monkeypatch.setitem(detectors.NETWORKS, 'lenet', Counting)

    def call(stop_after, room, *options, detector='detector.pth'):
        monkeypatch.setattr(Counting, 'batches', 0)
        monkeypatch.setattr(Counting, 'stop_after', stop_after)
        common = ['--detector', room / detector, '--device', 'cpu']
        result = CliRunner().invoke(fid.main, [*map(str, options), *map(str, common)])
        if stop_after < math.inf:
            assert result.exit_code != 0
            return None, Counting.batches
        assert result.exit_code == 0, result.output
        return json.loads(result.output.splitlines()[-1])['numbers'], Counting.batches

    return call


def test_a_stopped_calculation_resumes_to_the_bit(room, tmp_path, counted):
    network = ['--network', room / 'net.safetensors', '--num', 70, '--batch', 10]
    for options in (
        ['calc', *network, '--ref', room / 'a.npz'],
        ['ref', '--data', room / 'a.zip', '--dest', tmp_path / 'new.npz', '--batch', 10],
        ['reconstruct', '--network', room / 'net.safetensors', '--data', room / 'a.zip', '--num', 50, '--batch', 10],
    ):
        whole, batches = counted(math.inf, room, *options)
        keep = ['--features', tmp_path / options[0]]
        assert counted(3, room, *options, *keep) == (None, 3)
        assert counted(math.inf, room, *options, *keep) == (whole, batches - 3)
        assert counted(math.inf, room, *options, *keep) == (whole, 0)
    more = ['calc', *network, '--num', 100, '--ref', room / 'a.npz', '--features', tmp_path / 'calc']
    assert counted(math.inf, room, *more)[1] == 3  # the first 70 samples are the same


def test_slow_detectors_come_with_the_advice_to_keep_features(room, tmp_path, monkeypatch):
    load = fid.load_detector
    monkeypatch.setattr(fid, 'load_detector', lambda *args: load(*args)._replace(name='inception'))
    given = ['ref', '--data', room / 'a.zip', '--num', 40, '--dest', tmp_path / 'x.npz']
    common = ['--detector', room / 'detector.pth', '--device', 'cpu']
    for more, said in (([], True), (['--features', tmp_path], False)):
        result = CliRunner().invoke(fid.main, [*map(str, [*given, *common, *more])])
        assert result.exit_code == 0 and (fid.SLOW in result.stderr) == said and fid.SLOW not in result.stdout


def test_other_networks_images_and_detectors_never_find_old_features(room, tmp_path, counted):
    keep, ref = ['--features', tmp_path / 'kept'], ['--ref', room / 'a.npz', '--batch', 10]
    net = make_net()
    with torch.no_grad():
        net.ddls[0].weight.mul_(1.5)
    snapshots.save_network(str(tmp_path / 'net.safetensors'), net, meta={})  # another network by the same name
    changed = pictures(130, 1, shift=30)
    changed[:, :, 8, 8] ^= 16
    save_zip(tmp_path / 'b.zip', changed)
    torch.manual_seed(7)
    torch.save(LeNet().state_dict(), tmp_path / 'detector.pth')
    for options in (['--network', 'net.safetensors', '--num', 40], ['--images', 'b.zip', '--num', 40]):
        for folder in (room, tmp_path):
            given = ['calc', options[0], folder / options[1], *options[2:], *ref]
            assert counted(math.inf, room, *given, *keep) == (counted(math.inf, room, *given)[0], 4)
    given = ['ref', '--data', room / 'b.zip', '--num', 40, '--batch', 10, '--dest', tmp_path / 'other.npz']
    assert counted(math.inf, tmp_path, *given, *keep)[1] == 4


# ------------------------------------------------------------------------------------------------------- bad inputs


def test_bad_inputs_end_in_one_clear_line(room, tmp_path):
    (tmp_path / 'text.npz').write_text('no statistics')
    np.savez(tmp_path / 'other.npz', x=np.zeros(3))
    np.savez(tmp_path / 'shape.npz', mu=np.zeros(84), sigma=np.zeros([3, 3]))
    np.savez(tmp_path / 'wide.npz', mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32))
    np.savez(tmp_path / 'object.npz', mu=np.array([None]), sigma=np.eye(1))
    np.save(tmp_path / 'single.npy', np.zeros(3))
    save_zip(tmp_path / 'rgba.zip', pictures(12, 0, channels=4))
    save_zip(tmp_path / 'big.zip', pictures(12, 0, size=64))
    (tmp_path / 'text.pth').write_text('no weights')
    torch.manual_seed(2)
    torch.save(LeNet().state_dict(), tmp_path / 'other.pth')
    a, ref = ['--images', room / 'a.zip'], ['--ref', room / 'a.npz']
    cases = [
        (['--images', tmp_path / 'none.zip', *ref], 'none.zip'),
        ([*a, '--ref', tmp_path / 'none.npz'], 'none.npz'),
        ([*a, '--ref', tmp_path / 'text.npz'], 'text.npz is not an .npz file that can be read'),
        ([*a, '--ref', tmp_path / 'other.npz'], 'it has no mu and sigma'),
        ([*a, '--ref', tmp_path / 'single.npy'], 'single.npy is not an .npz file that can be read'),
        ([*a, '--ref', tmp_path / 'object.npz'], 'object.npz is not an .npz file that can be read'),
        ([*a, '--ref', tmp_path / 'shape.npz'], 'sigma is (3, 3)'),
        ([*a, '--ref', tmp_path / 'wide.npz'], '2048 features, the detector lenet has 84'),
        ([*a, '--ref', room / 'a.zip'], 'make one: fid.py ref'),
        ([*a, *ref, '--num', '121'], 'holds 120 images, fewer than the 121'),
        ([*ref], 'either --images or --network'),
        ([*a, *ref, '--network', 'x'], 'either --images or --network'),
        (['--images', tmp_path / 'rgba.zip', *ref], '4 channels'),
        (['--images', tmp_path / 'big.zip', *ref], 'up to 32x32'),
        (['--network', room / 'a.npz', *ref], 'a.npz'),
        (['--network', tmp_path / 'none.safetensors', *ref], 'none.safetensors'),
    ]
    for options, expected in cases:
        assert expected in run(room, 'calc', *options, fails=True)
    assert 'text.pth is not a file of weights' in run(tmp_path, 'calc', *a, *ref, fails=True, detector='text.pth')
    assert 'another detector' in run(tmp_path, 'calc', *a, *ref, fails=True, detector='other.pth')
    assert 'no such' in run(tmp_path, 'calc', *a, *ref, fails=True, detector='nowhere.pth')
    for num in (1, 3):
        save_zip(tmp_path / f'{num}.zip', pictures(num, 0))
    net = ['--network', room / 'net.safetensors', '--data']
    cases = [
        (['calc', *ref, '--images', tmp_path / '1.zip'], '1.zip holds too few images (1): give 2'),
        (['ref', '--dest', tmp_path / 'x.npz', '--data', tmp_path / '1.zip'], '1.zip holds too few images (1): give 2'),
        (['selftest', '--data', tmp_path / '3.zip'], '3.zip holds too few images (3): give 4'),
        (['reconstruct', *net, tmp_path / '1.zip'], '1.zip holds too few images (1): give 2'),
        (['reconstruct', *net, tmp_path / 'big.zip'], 'big.zip: 00000/img00000000.png is 64x64 with 1 channels'),
        (['reconstruct', *net, tmp_path / 'rgba.zip'], 'see dataset_tool.py'),
        (['reconstruct', *net, room / 'a.zip', '--held-out', tmp_path / 'big.zip'], 'big.zip: 00000/img'),
    ]
    for options, expected in cases:
        assert expected in run(room, *options, fails=True)


def test_numbers_of_images_are_bounded(room):
    for command in (['calc', '--ref=x', '--network=x'], ['ref', '--data=x', '--dest=x'], ['neighbours', '--data=x']):
        result = CliRunner().invoke(fid.main, [*command, '--num=99999999999'])
        assert result.exit_code == 2 and "Invalid value for '--num'" in result.output


def test_a_network_that_needs_a_condition_is_refused(room, tmp_path):
    snapshots.save_network(str(tmp_path / 'cond.safetensors'), make_net(condition_channels=1), meta={})
    line = run(room, 'calc', '--network', tmp_path / 'cond.safetensors', '--ref', room / 'a.npz', fails=True)
    assert 'needs a condition' in line


def test_a_class_conditional_network_samples_every_class_equally_often(room, tmp_path):
    net = make_net(conditions=['onehot:4']).eval()
    net.start.data.normal_()
    source = Samples(net, 8, seed=2)
    assert not torch.equal(read(source, [0]), to_uint8(net.sample(seeds=[2], condition=net.make_condition(0))[0]))
    for position in range(8):
        seed = 2 + position
        alone = net.sample(seeds=[seed], condition=net.make_condition(seed % 4))[0]
        assert torch.equal(read(source, [position]), to_uint8(alone))
    assert torch.equal(read(source, [1, 5, 3]), torch.cat([read(source, [p]) for p in (1, 5, 3)]))
    snapshots.save_network(str(tmp_path / 'classes.safetensors'), net, meta={})
    options = ['--network', tmp_path / 'classes.safetensors']
    assert run(room, 'calc', *options, '--ref', room / 'a.npz', '--num', '20')['images']['num'] == 20
    line = run(room, 'reconstruct', *options, '--data', room / 'a.zip', fails=True)
    assert 'needs a condition' in line


def test_a_network_with_an_optional_condition_samples_without(room, tmp_path):
    net = make_net(conditions=['edge'], condition_optional=True).eval()
    assert torch.equal(read(Samples(net, 3), [2]), to_uint8(net.sample(seeds=[2])[0]))
    snapshots.save_network(str(tmp_path / 'optional.safetensors'), net, meta={})
    options = ['--network', tmp_path / 'optional.safetensors', '--num', '20']
    assert run(room, 'calc', *options, '--ref', room / 'a.npz')['images']['num'] == 20


# ---------------------------------------------------------------------------------------------------- reconstruction


class Darker:
    """A network whose reconstructions are darker by `steps` of 255."""

    num_bits, img_channels, img_resolution, condition_channels = 512.0, 3, (32, 32), 0

    def __init__(self, steps):
        self.steps = steps

    def reconstruct(self, images, **how):
        return SimpleNamespace(images=images - self.steps / 127.5)


@pytest.fixture
def lpips_weights(tmp_path, monkeypatch):
    torch.manual_seed(3)
    net = LPIPS()
    torch.save(dict(net.named_parameters()), tmp_path / 'alex.pth')
    lin = {f'lin{i}.model.1.weight': getattr(net, f'lin{i}').view(1, -1, 1, 1) for i in range(5)}
    torch.save(lin, tmp_path / 'lin.pth')
    monkeypatch.setenv('DDN_LPIPS_ALEX', str(tmp_path / 'alex.pth'))
    monkeypatch.setenv('DDN_LPIPS_LIN', str(tmp_path / 'lin.pth'))


def test_reconstruct_measures_what_is_lost(room, tmp_path, monkeypatch, lpips_weights):
    train = save_zip(tmp_path / 'train.zip', pictures(90, 3, size=32, channels=3, shift=20))
    held = save_zip(tmp_path / 'held.zip', pictures(20, 4, size=32, channels=3, shift=20))

    def reconstruct(steps):
        monkeypatch.setattr(fid, 'load', lambda *args: (Darker(steps), {'network': 'darker'}))
        return run(room, 'reconstruct', '--network', 'x', '--data', train, '--held-out', held)['numbers']

    perfect, darker = reconstruct(0), reconstruct(10)
    assert perfect['training rFID-90'] == pytest.approx(0, abs=1e-9)
    assert perfect['training SSIM-90'] == pytest.approx(1) and perfect['held-out LPIPS-20'] == 0
    assert perfect['training PSNR-90 dB'] is None  # infinite
    assert darker['training PSNR-90 dB'] == pytest.approx(20 * np.log10(25.5), abs=1e-9)
    assert darker['training rFID-90'] > 0 and darker['held-out LPIPS-20'] > 0
    assert 0.5 < darker['training SSIM-90'] < 1
    assert darker['held-out bits per pixel'] == 0.5


def test_reconstruct_with_a_real_network(room):
    result = run(room, 'reconstruct', '--network', room / 'net.safetensors', '--data', room / 'a.zip', '--num', 100)
    assert result['numbers']['training bits per pixel'] == 12 / 256
    assert result['numbers']['training PSNR-100 dB'] < 60 and (result['beam'], result['refine']) == (1, 0)
    for option, number in (('beam', 4), ('refine', 2)):
        better = run(room, 'reconstruct', '--network', room / 'net.safetensors', '--data', room / 'a.zip', '--num', 100,
                     f'--{option}', number)  # fmt: skip
        assert better['numbers']['training PSNR-100 dB'] > result['numbers']['training PSNR-100 dB']
        assert better[option] == number
    assert any('no LPIPS: it needs pictures of at least 31x31' in note for note in result['notes'])


# -------------------------------------------------------------------------------------------------------- neighbours


def test_copies_are_found_and_new_images_are_not(room, tmp_path):
    data = ['--data', room / 'a.zip', '--held-out', save_zip(tmp_path / 'held.zip', pictures(60, 8))]
    copied = save_zip(tmp_path / 'copied.zip', pictures(120, 0)[40:60])
    new = save_zip(tmp_path / 'new.zip', pictures(60, 9))
    sheet = tmp_path / 'sheet.png'
    copies = run(room, 'neighbours', '--images', copied, *data, '--sheet', sheet, '--rows', 2, '--columns', 3)
    assert copies['numbers']['lenet: share of samples closer than a held-out image (new: 0.5)'] == 1
    assert copies['numbers']['lenet: share of samples closer than 99 % of held-out images (new: 0.01)'] == 1
    assert copies['numbers']['lenet: median distance of samples to the nearest training image'] == pytest.approx(0)
    fresh = run(room, 'neighbours', '--images', new, *data)
    assert 0.35 < fresh['numbers']['lenet: share of samples closer than a held-out image (new: 0.5)'] < 0.65
    # The sheet: 2 rows of a sample and 3 neighbours with a line between them, enlarged by 4, and captions of 12 pixels.
    with Image.open(sheet) as image:
        pixels = np.asarray(image.resize((image.width // 4, image.height // 4), Image.Resampling.NEAREST))
    assert pixels.shape == (2 * 20 + 1, 4 * 17 + 1, 3)
    for row in range(2):
        sample, nearest = (pixels[row * 20 + 4 : row * 20 + 20, x : x + 16, 0] for x in (1, 18))
        np.testing.assert_array_equal(sample, pictures(120, 0)[40 + row, 0])
        np.testing.assert_array_equal(nearest, sample)


def test_neighbours_by_lpips(room, tmp_path, lpips_weights):
    train = pictures(30, 3, size=32)
    data = save_zip(tmp_path / 'train.zip', train)
    held = save_zip(tmp_path / 'held.zip', pictures(10, 4, size=32))
    samples = save_zip(tmp_path / 'samples.zip', train[:5])
    result = run(room, 'neighbours', '--images', samples, '--data', data, '--held-out', held)
    assert result['numbers']['LPIPS: median distance of samples to the nearest training image'] == pytest.approx(0)
    assert result['numbers']['LPIPS: the same of held-out images'] > 0
    assert result['numbers']['LPIPS: share of samples closer than a held-out image (new: 0.5)'] == 1


@pytest.mark.parametrize('images, data, held', [(16, 32, None), (32, 16, None), (32, 32, 16)])
def test_neighbours_of_other_sizes_go_without_lpips(room, tmp_path, lpips_weights, images, data, held):
    options = []
    for option, size in (('--images', images), ('--data', data), ('--held-out', held)):
        if size:
            options += [option, save_zip(tmp_path / f'{option}.zip', pictures(5, size, size=size, channels=3))]
    result = run(room, 'neighbours', *options, '--sheet', tmp_path / 'sheet.png')
    sizes = sorted({f'{size}x{size}' for size in (images, data, held) if size})
    assert f'these are {" and ".join(sizes)}' in result['notes'][0] and (tmp_path / 'sheet.png').exists()


def test_neighbours_are_printed_before_the_sheet_is_drawn(room, tmp_path, monkeypatch):
    def full(*_):
        raise OSError('the disk is full')

    monkeypatch.setattr(fid, 'write_sheet', full)
    sheet = tmp_path / 'sheet.png'
    options = ['neighbours', '--images', room / 'a.zip', '--data', room / 'a.zip', '--num', '3', '--sheet', sheet]
    common = ['--detector', room / 'detector.pth', '--device', 'cpu']
    result = CliRunner().invoke(fid.main, [*map(str, options + common)])
    assert result.exit_code == 1 and '"command": "neighbours"' in result.stdout
    assert result.output.splitlines()[-1] == 'Error: the disk is full'


@pytest.mark.parametrize('option', ['--json', '--sheet'])
@pytest.mark.parametrize('place', ['/dev/null', '/proc/nope/x', 'http://me:secret@host/x'])
def test_a_result_that_cannot_be_written_is_named_before_any_work(room, monkeypatch, option, place):
    monkeypatch.setattr(fid, 'load_detector', None)
    options = ['neighbours', '--images', room / 'a.zip', '--data', room / 'a.zip', option, place]
    result = CliRunner().invoke(fid.main, [*map(str, options), '--device=cpu'])
    assert result.exit_code == 1 and result.output.startswith(f'Error: {option}=') and 'secret' not in result.output


def test_neighbours_without_held_out_images_say_so(room):
    result = run(room, 'neighbours', '--network', room / 'net.safetensors', '--data', room / 'a.zip', '--num', 9)
    assert any('without --held-out' in note for note in result['notes'])
    assert result['samples']['seeds'] == '0-8'


def test_the_search_in_portions_equals_the_search_at_once(room, monkeypatch):
    gallery, samples = Files(room / 'a.zip'), Files(room / 'b.zip', 9)
    embed = lambda x: x.flatten(1)  # noqa: E731
    (whole,) = evaluate.nearest([samples], gallery, embed, 4, 64, '')
    monkeypatch.setattr(distances, 'TABLE_BYTES', 3000)
    (parts,) = evaluate.nearest([samples], gallery, embed, 4, 7, '')
    assert torch.equal(whole.indices, parts.indices)


# ------------------------------------------------------------------------------------------------------------- ranks


def test_two_ranks_find_what_one_finds(room):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    options = ['--images', room / 'b.zip', '--ref', room / 'a.npz', '--batch', 16]
    common = ['--detector', room / 'detector.pth', '--device', 'cpu']
    command = ['fid.py', 'calc', *options, *common]
    env = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    ranks = [forks.Process(command, env=env | {'RANK': str(rank)}, stdout=forks.PIPE) for rank in range(2)]
    outputs = []
    for rank in ranks:
        with rank:
            outputs.append(rank.communicate()[0])
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert outputs[1] == ''
    two, one = json.loads(outputs[0].splitlines()[-1]), run(room, 'calc', *options)
    assert two['ranks'] == 2 and list(two['numbers']) == list(one['numbers'])
    assert two['numbers'] == pytest.approx(one['numbers'], abs=1e-9)


def test_a_reference_that_cannot_be_written_is_refused_before_the_work(room, monkeypatch):
    monkeypatch.setattr(evaluate, 'statistics', lambda *_: pytest.fail('features were made'))
    line = run(room, 'ref', '--data', room / 'a.zip', '--dest', room / 'a.zip' / 'x.npz', fails=True)
    assert str(room / 'a.zip') in line


def test_a_reader_that_has_gone_ends_it_quietly(room):
    read, write = os.pipe()
    os.close(read)
    options = ['--data', room / 'a.zip', '--dest', room / 'gone.npz', '--detector', room / 'detector.pth']
    with open(write, 'wb') as gone:
        done = forks.run('fid.py', 'ref', *options, '--device', 'cpu', stdout=gone)
    assert done.returncode == 1 and 'Note:' in done.stderr and 'Error' not in done.stderr
