"""generate.py as its users run it."""

import errno
import io
import os
import pathlib
import subprocess
import sys
import zipfile

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import invoke, write_zip
from PIL import Image

import ddn_networks
import generate
import latents
from ddn_networks import snapshots
from ddn_networks.blocks import ResBlock


@pytest.fixture(scope='module')
def network(tmp_path_factory) -> str:
    torch.manual_seed(0)
    net = ddn_networks.DDN(8, 1, channels=[8, 8, 8], num_blocks=[1, 2, 2], num_nodes=[4, 3, 5])
    path = tmp_path_factory.mktemp('net') / 'network-snapshot-000000001.safetensors'
    ema = {'0.5': {n: p + 0.01 for n, p in net.named_parameters()}}
    snapshots.save_network(str(path), net, ema, {'cur_nimg': 1})
    return str(path)


def run(*args: str, expect: int = 0) -> str:
    result = CliRunner().invoke(generate.main, ['--device=cpu', *(str(a) for a in args)])
    assert result.exit_code == expect, result.output + repr(result.exception)
    return result.output


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_seed_is_the_same_image_at_any_batch_size(network, tmp_path):
    run(f'--network={network}', f'--outdir={tmp_path / "a"}', '--seeds=0-9', '--batch=10')
    run(f'--network={network}', f'--outdir={tmp_path / "b"}', '--seeds=7,3', '--batch=1')
    assert sorted(os.listdir(tmp_path / 'a')) == [f'{s:06d}.png' for s in range(10)]
    for seed in (3, 7):
        assert np.array_equal(pixels(tmp_path / 'a' / f'{seed:06d}.png'), pixels(tmp_path / 'b' / f'{seed:06d}.png'))
    images = {pixels(tmp_path / 'a' / f'{s:06d}.png').tobytes() for s in range(10)}
    assert len(images) == 10


def test_subfolders_of_a_thousand_seeds(network, tmp_path):
    run(f'--network={network}', f'--outdir={tmp_path}', '--seeds=0,1000-1001,2999', '--subdirs')
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*.png'))
    assert found == ['000000/000000.png', '001000/001000.png', '001000/001001.png', '002000/002999.png']


@pytest.mark.parametrize('ending', ['txt', 'npz', 'npy'])
def test_codes_out_and_in_give_the_same_pictures(network, tmp_path, ending):
    file = tmp_path / f'codes.{ending}'
    run(f'--network={network}', f'--outdir={tmp_path / "a"}', '--seeds=0-4', f'--save-codes={file}', '--batch=2')
    run(f'--network={network}', f'--outdir={tmp_path / "b"}', f'--codes={file}', f'--grid={tmp_path / "grid.png"}')
    for i in range(5):
        assert np.array_equal(pixels(tmp_path / 'a' / f'{i:06d}.png'), pixels(tmp_path / 'b' / f'{i:06d}.png'))
    assert generate.read_code_file(str(file)).codes.shape == (5, 5)
    assert pixels(tmp_path / 'grid.png').shape == (8 * (8 + 2), 8 * (8 * 8 + 9))  # one row of 8, 8 times as large


def test_reconstruct_keeps_names_and_draws_pairs(network, tmp_path):
    data = write_zip(tmp_path / 'data.zip', 5, (1, 8, 8))
    run(f'--network={network}', f'--outdir={tmp_path / "r"}', f'--reconstruct={data}', '--batch=2', '--columns=3',
        f'--grid={tmp_path / "grid.png"}', f'--save-codes={tmp_path / "codes.npy"}')  # fmt: skip
    names = sorted(str(p.relative_to(tmp_path / 'r')) for p in (tmp_path / 'r').rglob('*.png'))
    assert names == [f'00000/img{i:08d}.png' for i in range(5)]
    net = ddn_networks.DDN.from_pretrained(network)
    expected = net.decode(torch.from_numpy(np.load(tmp_path / 'codes.npy'))[3:4])[0, 0]
    got = pixels(tmp_path / 'r' / '00000' / 'img00000003.png')
    assert np.abs(got - ((expected.numpy() + 1) * 127.5).round().clip(0, 255)).max() <= 1
    assert pixels(tmp_path / 'grid.png').shape == (8 * (4 * 9 + 1 + 4), 8 * (3 * 9 + 1))


def test_the_first_images_alone_are_reconstructed(network, tmp_path):
    data = write_zip(tmp_path / 'data.zip', 5, (1, 8, 8))
    run(f'--network={network}', f'--outdir={tmp_path / "r"}', f'--reconstruct={data}', '--max-images=3', '--batch=2')
    names = sorted(p.name for p in (tmp_path / 'r').rglob('*.png'))
    assert names == [f'img{i:08d}.png' for i in range(3)]
    out = run(f'--network={network}', f'--outdir={tmp_path / "r"}', '--max-images=3', expect=1)
    assert out.strip().endswith('for fewer samples give fewer --seeds')


def folder_of(path, names: list[str]) -> pathlib.Path:
    """A folder of different pictures of the network's shape."""
    for i, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(path / name)
    return path


def test_reconstruct_draws_images_that_differ_in_their_ending(network, tmp_path):
    data = folder_of(tmp_path / 'data', ['1.png', '1.bmp', 'b/1.png'])
    run(f'--network={network}', f'--outdir={tmp_path / "r"}', f'--reconstruct={data}')
    found = {str(p.relative_to(tmp_path / 'r')) for p in (tmp_path / 'r').rglob('*.*')}
    assert found == {'1.png.png', '1.bmp.png', 'b/1.png.png'}
    run(f'--network={network}', f'--outdir={tmp_path / "g"}', f'--guide=l2:{data}', '--subdirs')
    assert found == {str(p.relative_to(tmp_path / 'g' / '000000')) for p in (tmp_path / 'g').rglob('*.*')}


def test_the_grid_and_the_codes_replace_no_image(network, tmp_path):
    for option, path in (('--grid', 'o/000001.png'), ('--grid', 'o/../o/000000.png'), ('--save-codes', 'o/000001.png'),
                         ('--grid', 'link/000001.png')):  # fmt: skip
        (tmp_path / 'o').mkdir(exist_ok=True)
        (tmp_path / 'link').unlink(missing_ok=True)
        (tmp_path / 'link').symlink_to(tmp_path / 'o')
        given = f'{option}={tmp_path}/{path}'
        out = run(f'--network={network}', f'--outdir={tmp_path}/o', '--seeds=0-3', given, expect=1)
        assert f'{given} would replace another file' in out and not list((tmp_path / 'o').iterdir())
    same = [f'--grid={tmp_path}/x', f'--save-codes={tmp_path}/x']
    assert 'would replace' in run(f'--network={network}', f'--outdir={tmp_path}/o', *same, expect=1)
    run(f'--network={network}', f'--outdir={tmp_path}/o', '--seeds=0-3', f'--grid={tmp_path}/o/grid.png')


@pytest.mark.parametrize('option', ['save-codes', 'grid', 'outdir'])
def test_what_cannot_be_written_is_said_before_the_work(network, tmp_path, monkeypatch, option):
    (tmp_path / 'afile').touch()
    monkeypatch.setattr(ddn_networks.DDN, 'decode', None)
    (tmp_path / 'afolder').mkdir()
    for path in ('afile/c.txt', '/proc/nope/c.txt', 'afile/b/c.txt', *['afolder'] * (option != 'outdir')):
        args = [f'--outdir={tmp_path}/o', f'--{option}={os.path.join(tmp_path, path)}']
        (error,) = [x for x in run(f'--network={network}', *args, expect=1).splitlines() if x.startswith('Error')]
        assert f'--{option}=' in error and 'cannot be written' in error and 'give another place' in error


@pytest.mark.parametrize('source, outdir', [
    ('--reconstruct=a', 'a'), ('--reconstruct=a', 'b/../a'), ('--reconstruct=a', 'link'), ('--reconstruct=.', '.'),
    ('--reconstruct=a', 'a/b'), ('--guide=l2:a', 'a'), ('--guide=l2:b/000002.png', 'b'),
    ('--guide=inpaint:a/1.png,mask=b/000002.png', 'b'), ('--guide=l2:b/000002.png --grid=b/000002.png', 'c'),
])  # fmt: skip
def test_the_pictures_it_reads_are_not_replaced(network, tmp_path, monkeypatch, source, outdir):
    folder_of(tmp_path, ['a/1.png', 'a/b/1.png', 'a/b/b/1.png', 'b/000002.png'])
    (tmp_path / 'link').symlink_to(tmp_path / 'a')
    monkeypatch.chdir(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob('*.png')}
    out = run(f'--network={network}', f'--outdir={outdir}', *source.split(), expect=1)
    assert 'would replace an image of' in out and {p: p.read_bytes() for p in tmp_path.rglob('*.png')} == before


def test_names_in_a_zip_cannot_lead_out_of_the_folder(network, tmp_path):
    folder_of(tmp_path, ['1.png'])
    with zipfile.ZipFile(tmp_path / 'data.zip', 'w') as archive:
        archive.writestr(f'{tmp_path}/out.png', (tmp_path / '1.png').read_bytes())
        archive.writestr('../../up.png', (tmp_path / '1.png').read_bytes())
    run(f'--network={network}', f'--outdir={tmp_path / "r"}', f'--reconstruct={tmp_path / "data.zip"}')
    inside = sorted(str(path.relative_to(tmp_path / 'r')) for path in (tmp_path / 'r').rglob('*.png'))
    assert inside == sorted([f'{tmp_path}/out.png'[1:], 'up.png'])
    assert not (tmp_path / 'out.png').exists() and not (tmp_path.parent / 'up.png').exists()


def test_a_full_disk_is_one_line_with_the_path(network, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, 'save', full)
    out = run(f'--network={network}', f'--outdir={tmp_path}', '--seeds=0', expect=1)
    assert f'disk full: could not write {tmp_path / "000000.png"}' in out and os.listdir(tmp_path) == []


def test_ema_or_raw_weights(network, tmp_path):
    run(f'--network={network}', f'--outdir={tmp_path / "a"}', '--seeds=0')
    run(f'--network={network}', f'--outdir={tmp_path / "b"}', '--seeds=0', '--ema=0.5')
    run(f'--network={network}', f'--outdir={tmp_path / "c"}', '--seeds=0', '--ema=none')
    a, b, c = (pixels(tmp_path / d / '000000.png') for d in 'abc')
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_bad_input_is_one_line(network, tmp_path):
    def error(*args: str, expect: int = 1) -> str:
        out = run(f'--outdir={tmp_path / "out"}', *args, expect=expect)
        lines = [line for line in out.splitlines() if line.startswith('Error:')]
        assert len(lines) == 1, out
        return lines[0]

    net = f'--network={network}'
    for option in ('top-k=1', 'beam=2', 'combine=ranks', 'guide-every=1', 'guide-layers=0-1'):
        assert f'--{option.split("=")[0]} needs --guide' in error(net, f'--{option}')
    for option in ('--temperature=0.5', '--top-p=0.9'):
        assert 'those of the own prior: this network has none' in error(net, option)
    for two in ('--top-k=1 --temperature=0.1', '--beam=4 --temperature=0.1', '--top-k=1 --beam=2'):
        assert 'exclude each other: give one' in error(net, *two.split(), '--guide=l2:x.png')
    assert 'did you mean 1-5' in error(net, '--seeds=5-1', expect=2)
    for option in ('seeds', 'class'):
        out = error(net, f'--{option}=18446744073709551616', expect=2)
        assert f"'--{option}'" in out and 'not a number below 10^18' in out
    assert 'nowhere' in error('--network=nowhere.safetensors')
    assert 'averaged weights' in error(net, '--ema=3')
    (tmp_path / 'bad.txt').write_text('0 0 0 0 0\n0 0 3 0 0\n')
    assert 'code 3 of image 1, layer 2, is outside 0..2' in error(net, f'--codes={tmp_path / "bad.txt"}')
    (tmp_path / 'short.txt').write_text('0 0 0\n')
    assert '[B, 5]' in error(net, f'--codes={tmp_path / "short.txt"}')
    (tmp_path / 'words.txt').write_text('zero one\n')
    assert 'no codes' in error(net, f'--codes={tmp_path / "words.txt"}')
    (tmp_path / 'zip.npz').write_bytes(b'PK\3\4 cut')
    np.save(tmp_path / 'flat.npy', np.zeros(5, int))
    (tmp_path / 'npy.npz').write_bytes((tmp_path / 'flat.npy').read_bytes())
    for name, words in (('empty.txt', 'holds no codes'), ('empty.npz', 'is not an .npz file'),
                        ('empty.npy', 'is not a .npy file'), ('zip.npz', 'is not an .npz file'),
                        ('npy.npz', 'is not an .npz file'), ('flat.npy', 'holds no codes')):  # fmt: skip
        (tmp_path / name).touch()
        assert f'{name} {words}' in error(net, f'--codes={tmp_path / name}')
    larger = write_zip(tmp_path / 'larger.zip', 1, (1, 16, 16))
    assert '16x16' in error(net, f'--reconstruct={larger}')
    data = pathlib.Path(network).read_bytes()
    (tmp_path / 'cut.safetensors').write_bytes(data[: len(data) // 2])
    assert 'not a whole safetensors file' in error(f'--network={tmp_path / "cut.safetensors"}')
    torch.save({'net': torch.zeros(3)}, tmp_path / 'pickle.safetensors')
    assert 'pickle' in error(f'--network={tmp_path / "pickle.safetensors"}')
    (tmp_path / 'file').write_text('in the way')
    assert 'file' in run(net, f'--outdir={tmp_path / "file"}', '--seeds=0', expect=1)


# What a command visits.


def visited(function) -> set[str]:
    """The functions of guides, conditions and their pictures that ``function`` calls, as 'room/file.py:name'."""
    root, seen = pathlib.Path(generate.__file__).parent, set()
    files = {*(f'cli/{name}.py' for name in ('guide_arguments', 'condition_arguments', 'pictures')),
             *(f'ddn_networks/{name}.py' for name in (
                 'guides', 'guided_sampling', 'black_boxes', 'pixel_maps', 'conditions', 'search'))}

    def see(frame, event, argument):
        if event == 'call':
            path = os.path.relpath(frame.f_code.co_filename, root)
            if path in files:
                seen.add(f'{path}:{frame.f_code.co_name}')

    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(None)
    return seen


def test_a_plain_seed_visits_no_guide_and_no_condition(network, tmp_path):
    seen = visited(lambda: run(f'--network={network}', f'--outdir={tmp_path / "a"}', '--seeds=0-3',
                               f'--grid={tmp_path}/grid.png', f'--save-codes={tmp_path}/c.txt'))  # fmt: skip
    plain = {'pixel_maps.py:upsample', *(f'conditions.py:{name}' for name in (
        '__init__', 'channels', 'check', 'condition_channels', '__len__', '<genexpr>', '<listcomp>'))}  # fmt: skip
    assert {name.partition('/')[2] for name in seen} <= plain  # the network's own: it has an empty set of conditions
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / 'black.png')
    seen = visited(lambda: run(f'--network={network}', f'--outdir={tmp_path / "b"}', '--seeds=0-3',
                               f'--guide=l2:{tmp_path}/black.png'))  # fmt: skip
    assert 'cli/guide_arguments.py:parse' in seen and not [name for name in seen if name.startswith('cli/condition')]


def test_a_plain_seed_imports_no_guide_arguments(network, tmp_path):
    script = f"""if True:
        import sys
        sys.argv = ['generate.py', '--network={network}', '--outdir={tmp_path}', '--seeds=0', '--device=cpu']
        import generate
        generate.main(standalone_mode=False)
        generate.load_network('digits')  # with a prior and a finisher
        loaded = {{'cli.guide_arguments', 'cli.condition_arguments', 'cli.pictures', 'ddn_networks.black_boxes'}}
        loaded.add('sympy')  # of PyTorch's shape arithmetic: up to two seconds, which loading a network once took
        assert not loaded & set(sys.modules), loaded & set(sys.modules)
    """
    done = subprocess.run([sys.executable, '-c', script], cwd=os.path.dirname(generate.__file__), text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_one_pass_draws_the_images_it_chose(network, tmp_path, monkeypatch):
    """Guided, reconstructed and decoded images: as many calls of blocks as the network has layers, for each batch."""
    calls = []
    forward = ResBlock.forward
    monkeypatch.setattr(ResBlock, 'forward', lambda self, *args: calls.append(1) or forward(self, *args))
    data = write_zip(tmp_path / 'data.zip', 4, (1, 8, 8))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / 'black.png')
    layers = ddn_networks.Network.from_pretrained(network).num_layers
    for args in (['--seeds=0-3'], [f'--reconstruct={data}'], ['--seeds=0-3', f'--guide=l2:{tmp_path}/black.png'],
                 ['--seeds=0-3', f'--guide=l2:{tmp_path}/black.png', '--beam=2']):  # fmt: skip
        for batch in (4, 2):
            calls.clear()
            run(f'--network={network}', f'--outdir={tmp_path / "out"}', *args, f'--batch={batch}')
            assert len(calls) == layers * 4 // batch, args
    calls.clear()
    invoke(latents.main, 'encode', f'--network={network}', f'--data={data}', f'--dest={tmp_path}/c.npz', '--device=cpu')
    assert len(calls) == layers


def test_names_that_are_not_unicode_on_a_strict_terminal(network, tmp_path, monkeypatch):
    odd = os.fsdecode(os.fsencode(tmp_path) + b'/\xff\xe4')
    os.mkdir(odd)
    for i in range(2):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(os.fsdecode(os.fsencode(odd) + b'/%d\xff.png' % i))
    common = [f'--network={network}', '--device=cpu']
    for command, args, words in (
        (generate.main, [*common, f'--outdir={odd}/a', f'--reconstruct={odd}', f'--grid={odd}/g.png'], 'images from'),
        (generate.main, [*common, f'--outdir={odd}/b', f'--guide=l2:{odd}'], 'images from'),
        (latents.main, ['encode', *common, f'--data={odd}/a', f'--dest={odd}/c.npz'], 'distinct latents'),
        (latents.main, ['decode', *common, f'--codes={odd}/c.npz', f'--outdir={odd}/d'], '2 images'),
        (latents.main, ['nearest', f'--codes={odd}/c.npz', '--rows=0', f'--sheet={odd}/s.png'], 'Sheet'),
    ):
        output = io.TextIOWrapper(io.BytesIO(), 'utf-8', 'strict')
        monkeypatch.setattr(sys, 'stdout', output)
        command(args, standalone_mode=False)
        output.flush()
        assert words.encode() in output.buffer.getvalue()
    for args in ([f'--codes={odd}/none\udcff.npz'], [f'--guide=l2:{odd}/none'], [f'--reconstruct={odd}/none']):
        with pytest.raises(click.ClickException) as error:
            generate.main([*common, f'--outdir={odd}/e', *args], standalone_mode=False)
        error.value.format_message().encode('utf-8', 'strict')
