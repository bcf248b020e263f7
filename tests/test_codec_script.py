"""codec.py: encode, decode, info, verify, count; files that are damaged."""

import os
import random

import pytest
from conftest import invoke, unpadded, write_zip
from mutations import mutations, outcome
from test_codec import images, network

import codec as script
from benchmarks import codec_damage, codec_portability
from cli import codec_files
from ddn_networks import Network, codec, snapshots, tensor_files
from ddn_networks.code_streams import Codec

pytest.importorskip('constriction')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A network with a prior, one without, five pictures."""
    folder = tmp_path_factory.mktemp('codec')
    snapshots.save_network(folder / 'net.safetensors', network('head'))
    snapshots.save_network(folder / 'other.safetensors', network('head', seed=1))
    bare = network('none')
    bare.sampling = type(bare.sampling)()
    snapshots.save_network(folder / 'bare.safetensors', bare)
    write_zip(folder / 'five.zip', 5, (1, 8, 8))
    return folder


def run(*args, expect: int = 0) -> str:
    return invoke(script.main, *args, expect=expect)


def test_an_archive_is_written_described_verified_and_read(folder, tmp_path):
    net, dest = f'--network={folder}/net.safetensors', tmp_path / 'a.ddn'
    assert '5 images' in run('encode', folder / 'five.zip', net, f'--dest={dest}')
    assert 'archive' in (text := run('info', dest)) and 'prior' in text and '5' in text
    assert 'whole: 5 images' in run('verify', dest, net)
    run('decode', dest, net, f'--outdir={tmp_path}/out')
    assert len(list((tmp_path / 'out').rglob('*.png'))) == 5
    assert 'another network' in run('verify', dest, f'--network={folder}/other.safetensors', expect=1)
    cut = tmp_path / 'cut.ddn'
    cut.write_bytes(dest.read_bytes()[:-30])
    assert str(cut) in run('decode', cut, net, f'--outdir={tmp_path}/none', expect=1)
    assert 'before are written' in run('decode', cut, net, f'--outdir={tmp_path}/some', '--recover', expect=1)
    made = Codec(network('head'))
    whole = []
    outcome(lambda: [whole.append(name) for _, name in codec_files.pictures(str(cut), made)])
    written = sorted(path.relative_to(tmp_path / 'some').with_suffix('') for path in (tmp_path / 'some').rglob('*.png'))
    assert [str(path) for path in written] == whole and 0 < len(whole) < 5


def test_one_picture_is_a_file_whose_start_is_a_picture(folder, tmp_path):
    net, dest = f'--network={folder}/net.safetensors', tmp_path / 'one.ddn'
    run('decode', _archive(folder, tmp_path), net, f'--outdir={tmp_path}/pngs')
    picture = next((tmp_path / 'pngs').rglob('*.png'))
    run('encode', picture, net, f'--dest={dest}', '--bits=96')
    assert dest.stat().st_size <= 12
    cut = tmp_path / 'cut.ddn'
    cut.write_bytes(dest.read_bytes()[:9])
    run('decode', cut, net, f'--outdir={tmp_path}/out', '--partial')
    assert (tmp_path / 'out' / 'cut.png').exists()
    assert 'damaged' in run('decode', cut, net, f'--outdir={tmp_path}/other', expect=1)


@pytest.mark.parametrize('num', [1, 5])
def test_decoding_replaces_no_picture_unless_asked_to(num, folder, tmp_path):
    net, dest = f'--network={folder}/net.safetensors', _archive(folder, tmp_path)
    run('decode', dest, net, f'--outdir={tmp_path}/pngs')
    pictures = sorted((tmp_path / 'pngs').rglob('*.png'))
    out, first = pictures[0].parent, int(num > 1)
    run('encode', *pictures[:num], net, f'--dest={dest}', '--layers=1')
    if num == 1:
        dest = dest.rename(dest.with_name(f'{pictures[0].stem}.ddn'))
    else:
        pictures[0].unlink()  # the first of those to be written is not there, the second is
    before = {path: path.read_bytes() for path in pictures[first:]}
    for more in ([], ['--partial' if num == 1 else '--recover']):
        text = run('decode', dest, net, f'--outdir={out}', *more, expect=1)
        assert '--overwrite' in text and str(pictures[first]) in text
        assert {path: path.read_bytes() for path in out.rglob('*.png')} == before
    run('decode', dest, net, f'--outdir={out}', '--overwrite')
    assert [path.read_bytes() != data for path, data in before.items()] == [path in pictures[:num] for path in before]
    assert pictures[0].exists()


def _archive(folder, tmp_path):
    dest = tmp_path / 'a.ddn'
    run('encode', folder / 'five.zip', f'--network={folder}/net.safetensors', f'--dest={dest}')
    return dest


def test_counts_are_added_to_a_network_that_has_none(folder, tmp_path):
    dest = tmp_path / 'counted.safetensors'
    bare, counted = f'--network={folder}/bare.safetensors', f'--network={dest}'
    assert 'codec.py count' in run('encode', folder / 'five.zip', bare, f'--dest={tmp_path}/a.ddn', '--model=counts',
                                   expect=1)  # fmt: skip
    run('count', bare, f'--data={folder}/five.zip', f'--dest={dest}')
    net = Network.from_pretrained(dest)
    assert [sum(row) for row in net.sampling.counts] == [5 * spec.num_cells for spec in net.specs]
    assert 'counts probabilities' in run('encode', folder / 'five.zip', counted, f'--dest={tmp_path}/b.ddn')


@pytest.mark.parametrize('num', [1, 4])
@pytest.mark.parametrize('model', ['counts', 'prior'])
def test_damaged_files_are_one_line(num, model, tmp_path):
    """A sixteenth of the 1,000 files of benchmarks/codec_damage.py."""
    net, path = network('head'), tmp_path / 'file.ddn'
    made, data = Codec(net, model), codec.encode(net, images(num), model=model)
    for wrong in mutations(data, 16, seed=num):
        path.write_bytes(wrong)
        found = outcome(lambda: list(codec_files.pictures(str(path), made)))
        assert wrong == data or isinstance(found, ValueError), 'damage that nobody noticed'


@pytest.mark.parametrize('kind', ['flipped', 'truncated', 'foreign', 'of another network'])
def test_commands_end_at_such_files_with_one_line_and_an_error(kind, folder, tmp_path):
    rng, path = random.Random(0), tmp_path / 'file.ddn'
    other = network('head', seed=int(kind == 'of another network'))
    data = codec.encode(other, images(3))
    wrong = data if kind == 'of another network' else getattr(codec_damage, kind)(data, rng)
    path.write_bytes(wrong)
    out = f'--outdir={tmp_path}/out'
    for command in (['verify'], ['decode', out], ['decode', out, '--recover', '--overwrite']):
        *before, line = run(*command, path, f'--network={folder}/net.safetensors', expect=1).splitlines()
        assert line.startswith('Error: ') and str(path) in line
        assert not before or '--recover' in command and len(before) == 1 and ' image' in before[0]


def test_the_benchmark_of_damage_counts_what_becomes_of_files(folder, tmp_path):
    made, x = Codec(network('head')), images(3)
    codes, path = made.net.encode(x).split(1), tmp_path / 'file.ddn'
    path.write_bytes(codec.encode(made.net, x))
    assert codec_damage.outcome(str(path), made, codes) == 'undamaged'
    assert codec_damage.outcome(str(path), made, codes[::-1]) == 'WRONG PICTURES'
    path.write_bytes(path.read_bytes()[:-20])
    assert codec_damage.outcome(str(path), made, codes) == 'one line'
    assert codec_damage.outcome(str(path), made, codes[::-1]) == 'WRONG PICTURES'  # those before the damage
    text = unpadded(invoke(codec_damage.main, f'--network={folder}/net.safetensors', '--num=10'))
    assert all(f'| {kind} | 2 | 0 | 0 | 0 |' in text for kind in ('flipped bit', 'truncated', 'of another network'))


def test_the_benchmark_of_portability_counts_codes_that_differ(folder, tmp_path):
    net, path = str(folder / 'net.safetensors'), str(tmp_path / 'x.ddn')
    codec_portability.write(net, str(folder / 'five.zip'), path, 5)
    assert codec_portability.read(net, path) == (5, 0, 0.0)
    kept, _ = tensor_files.load_tensors(f'{path}.codes')
    kept['codes'][3, 2] ^= 1
    kept['1'][0] += 0.5
    tensor_files.save_tensors(f'{path}.codes', kept, {})
    num, failed, deviation = codec_portability.read(net, path)
    assert (num, failed) == (5, 1) and deviation >= 0.5
    assert codec_portability.in_processes([{'A_B': '1'}, {'A_B': '2'}], os.getenv, 'A_B') == ['1', '2']
    assert 'A_B' not in os.environ


def test_no_file_replaces_what_it_is_made_of(folder, tmp_path):
    """A picture, one in a folder, a zip, the network."""
    net = f'--network={folder}/net.safetensors'
    run('decode', _archive(folder, tmp_path), net, f'--outdir={tmp_path}/pngs')
    picture = next((tmp_path / 'pngs').rglob('*.png'))
    for source in (picture, tmp_path / 'pngs', folder / 'five.zip'):
        for dest in (picture if source != folder / 'five.zip' else source, folder / 'net.safetensors'):
            before = dest.read_bytes()
            assert 'would replace' in run('encode', source, net, f'--dest={dest}', expect=1)
            assert dest.read_bytes() == before
    (tmp_path / 'empty').mkdir()
    assert str(tmp_path / 'empty') in run('encode', tmp_path / 'empty', net, f'--dest={tmp_path}/x.ddn', expect=1)


def test_pictures_of_one_name_do_not_replace_each_other(folder, tmp_path):
    made, path = Codec(network('head')), tmp_path / 'twice.ddn'
    with open(path, 'wb') as file:
        archive = codec.ArchiveWriter(file, made)
        archive.add(codec.encoded(made, images(3)), ['y', 'x', 'x'])
        archive.close()
    out = run('decode', path, f'--network={folder}/net.safetensors', f'--outdir={tmp_path}/out', expect=1)
    assert "two of its pictures are called 'x'" in out


def test_large_pictures_are_read_a_few_at_a_time(tmp_path):
    write_zip(tmp_path / 'large.zip', 5, (1, 16, 16))
    originals = codec_files.Originals([str(tmp_path / 'large.zip')], 1)
    assert [len(names) for names, _ in originals.batches(64, 8)] == [2, 2, 1]
    assert [len(names) for names, _ in originals.batches(1, 8)] == [1] * 5
    assert [len(names) for names, _ in originals.batches(2, 256)] == [2, 2, 1]


def test_a_picture_that_is_not_of_the_networks_size_is_not_counted(folder, tmp_path):
    write_zip(tmp_path / 'large.zip', 2, (1, 16, 16))
    text = run('count', f'--network={folder}/bare.safetensors', f'--data={tmp_path}/large.zip',
               f'--dest={tmp_path}/n.safetensors', expect=1)  # fmt: skip
    assert '16x16' in text and not (tmp_path / 'n.safetensors').exists()
