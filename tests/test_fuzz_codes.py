"""Damaged files of codes, and arguments of guides and conditions: each is read as it was or is one line."""

import functools
import io
import random
import warnings
import zipfile
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import invoke
from mutations import mutations, outcome
from PIL import Image

import generate
import latents
from cli import guide_arguments
from cli.code_files import CodeFile, read_code_file, write_code_file, write_codes
from cli.condition_arguments import ConditionArguments
from cli.options import Classes, Ints, Layers, Numbers
from cli.regions import Region
from ddn_networks import DDN, Candidates, snapshots

FILE = CodeFile(
    np.arange(40).reshape(10, 4) % 7,
    np.array([f'a/{i}.png' for i in range(10)]),
    np.arange(10) % 3,
    np.array([7] * 4),
    'data.zip',
    np.linspace(-1, 1, 20, dtype=np.float32).reshape(10, 2),
)


def same(a: CodeFile, b: CodeFile) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize('ending', ['npz', 'stored.npz', 'npy', 'txt'])
def test_damaged_files_of_codes(tmp_path, ending):
    path = tmp_path / f'codes.{ending}'
    if ending == 'npz':
        write_code_file(str(path), FILE)
    elif ending == 'stored.npz':
        arrays = {key: value for key, value in FILE._asdict().items()}
        np.savez(path, **arrays)
    else:
        write_codes(str(path), FILE.codes)
    data, whole = path.read_bytes(), read_code_file(str(path))
    errors = 0
    for damaged in mutations(data, 150):
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            found = outcome(lambda: read_code_file(str(path)))
        if isinstance(found, Exception):
            errors += 1
            assert str(path) in str(found)
        elif ending.endswith('npz'):  # a zip has checksums: what is read is what was written, or an array less
            assert all(x is None or np.array_equal(x, y) for x, y in zip(found, whole, strict=True))
        else:
            assert found.codes.dtype == np.int64 and found.codes.ndim == 2 and found.codes.size
    assert errors > 20


def arrays_of(**changes) -> bytes:
    file = io.BytesIO()
    np.savez(file, **{key: value for key, value in {**FILE._asdict(), **changes}.items() if value is not None})
    return file.getvalue()


SCHEMA = {
    'garbage.npy': (b'garbage', 'is not a .npy file'),
    'garbage.npz': (b'garbage', 'is not an .npz file'),
    'garbage.txt': (b'garbage', 'holds no codes'),
    'binary.txt': (bytes(range(256)), 'holds no codes'),
    'huge.txt': (b'9' * 10_000, 'holds no codes'),
    'no.npz': (arrays_of(codes=None), "no array named 'codes'"),
    'floats.npz': (arrays_of(codes=FILE.codes / 2), 'holds float64, not integers'),
    'flat.npz': (arrays_of(codes=np.arange(3)), 'not [images, codes]'),
    'empty.npz': (arrays_of(codes=np.zeros((0, 4), int)), 'holds no codes'),
    'negative.npz': (arrays_of(codes=-FILE.codes), "'codes' holds -6 to 0"),
    'large.npz': (arrays_of(codes=np.full((10, 4), 2**63, np.uint64)), "'codes' holds 9223372036854775808"),
    'names.npz': (arrays_of(names=FILE.names[:9]), "'names' is <U7 [9], not names [N] of its 10 codes"),
    'labels.npz': (arrays_of(labels=np.full(10, 2**64 - 1, np.uint64)), "'labels' holds 18446744073709551615"),
    'nodes.npz': (arrays_of(num_nodes=np.array(['7'] * 4)), "'num_nodes' is <U1 [4]"),
    'data.npz': (arrays_of(data=np.array(['a', 'b'])), "'data' is <U1 [2]"),
    'vectors.npz': (arrays_of(vectors=np.full((10, 2), 1e300)), "'vectors' holds NaN, or numbers too large"),
    'nan.npz': (arrays_of(vectors=np.full((10, 2), np.nan)), "'vectors' holds NaN"),
    'objects.npz': (arrays_of(labels=np.array([{}] * 10)), "'labels'"),
}


@pytest.mark.parametrize('name', SCHEMA)
def test_arrays_that_do_not_belong_to_codes(tmp_path, name):
    data, words = SCHEMA[name]
    (tmp_path / name).write_bytes(data)
    found = outcome(lambda: read_code_file(str(tmp_path / name)))
    assert isinstance(found, ValueError) and words in str(found) and name in str(found)


def test_a_bomb_takes_no_memory(tmp_path):
    """A header that claims 2^40 codes, and 1 GB of zeros in 1 MB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {'descr': '<i8', 'fortran_order': False, 'shape': (2**38, 4)})
    (tmp_path / 'claims.npy').write_bytes(header.getvalue() + bytes(64))
    with zipfile.ZipFile(tmp_path / 'claims.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('codes.npy', header.getvalue() + bytes(1 << 20))
    for name in ('claims.npy', 'claims.npz'):
        found = outcome(lambda name=name: read_code_file(str(tmp_path / name)))
        assert isinstance(found, ValueError) and name in str(found) and 'claims' in str(found)


WORDS = ['', '0', '-1', '1e400', 'nan', '9' * 30, '9' * 5000, '0-99999999999', '5-1', '٣', 'all', ',', '\0', '1e300',
         '=', ':', '--', 'x' * 100, '.', '*', '\udc80', '0.5', '2', 'help']  # fmt: skip


def scrambled(texts: list[str], num: int):
    """Arguments with pieces lost, repeated and replaced."""
    rng = random.Random(0)
    for i in range(num):
        text = texts[i % len(texts)]
        for _ in range(rng.randint(1, 2)):
            a = rng.randint(0, len(text))
            b = a + rng.randint(0, 3)
            text = text[:a] + rng.choice([*WORDS, text[a:b] * 2]) + text[b:]
        yield text


class Squares(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


class Sums(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum((2, 3))


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """face.png, RGBA, net.pt, a network of features, class.pt, a classifier, and mine.py."""
    folder = tmp_path_factory.mktemp('arguments')
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 4), np.uint8)).save(folder / 'face.png')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(Squares()), str(folder / 'net.pt'))
        torch.jit.save(torch.jit.script(Sums()), str(folder / 'class.pt'))
    (folder / 'mine.py').write_text('def f(images):\n    return images.mean((1, 2, 3))\n')
    return folder


OPTIONS = {'mask': 'face.png', 'network': 'net.pt', 'mean': '0.5/0.4/0.3', 'std': '0.5', 'size': '4'}
VALUES = {'classifier': 'class.pt', 'python': 'mine.py:f'}


def test_scrambled_guides(folder, monkeypatch):
    monkeypatch.chdir(folder)
    texts = [
        f'{name}:{VALUES.get(name, "face.png")},' + ','.join(f'{key}={OPTIONS.get(key, 1)}' for key in kind.options)
        for name, kind in guide_arguments.GUIDES.items() if name != 'clip'
    ]  # fmt: skip
    candidates = Candidates(torch.randn(3, 3, 4), torch.randn(1, 4, 8, 8))
    for text in texts:
        assert guide_arguments.parse(text.rstrip(',')).build([0], (8, 8))(candidates, 0).shape == (1, 3)
    built = 0
    for text in scrambled(texts, 400):
        found = outcome(lambda text=text: guide_arguments.parse(text).build([0], (8, 8))(candidates, 0))
        built += not isinstance(found, Exception)
    assert built


def condition_of(net: DDN, classes: list[int] | None, pictures: list[str]) -> torch.Tensor:
    return ConditionArguments(net, classes, None, pictures).of_rows([0])


def test_scrambled_conditions(folder, monkeypatch):
    monkeypatch.chdir(folder)
    nets = [DDN(8, 3, [16, 16], [1, 1], [3, 3], conditions=names.split('+'))
            for names in ('class:3+color', 'edge', 'image:1+mask', 'lowres:4')]  # fmt: skip
    keys = ('', 'color:', 'edge:', 'drawn:', 'mask:', 'image:', 'lowres:')
    texts = [f'{key}{"./" * 20}face.png' for key in keys]
    made = 0
    for i, text in enumerate(scrambled(texts, 400)):
        net = nets[i % 4]
        classes = [1] if net.conditions.labels else None
        given = ['face.png', text] if i % 5 == 0 else [text]
        found = outcome(functools.partial(condition_of, net, classes, given))
        made += not isinstance(found, Exception)
    assert made


@pytest.mark.parametrize('kind', [Ints(), Classes(), Numbers(), Layers(), Region()])
def test_scrambled_lists(kind):
    for text in scrambled(['0-63', '1,5,9-12', '0.5,-1', '3-60', '0,16,32,8'], 200):
        try:
            found = kind.convert(text, None, None)
        except click.BadParameter as error:
            assert '\n' not in error.message
        else:
            assert found == 'all' or 0 < len(found) <= 1_000_000


EXTREMES = [
    ('generate', '--seeds=0-99999999999', '--seeds'),
    ('generate', '--seeds=0-999999,0-999999', '--seeds'),
    ('generate', '--class=0-99999999999', '--class'),
    ('generate', '--batch=1000000000000', '--batch'),
    ('generate', '--columns=1000000000', '--columns'),
    ('generate', '--steps=1000000000', '--steps'),
    ('generate', '--guide=l2:FACE --beam=1000000000', '--beam'),
    ('generate', f'--guide=l2:FACE --guide-layers=0-{"9" * 5000}', '--guide-layers'),
    ('generate', '--guide=l2:FACE --guide-layers=0-999999999', 'layers 0-2'),
    ('generate', '--guide=l2:FACE --temperature=nan', 'temperature'),
    ('generate', '--guide=classifier:FACE,class=1e300', 'TorchScript'),
    ('generate', '--guide=l2:FACE,weight=1e400', 'weight'),
    ('nearest', '--rows=0-99999999999', '--rows'),
    ('nearest', '--rows=10', 'rows 0 to 9'),
    ('swap', '--coarse=0-99999999999', '--coarse'),
    ('walk', '--frames=1000000000000', '--frames'),
    ('tree', '--node=99999999999', 'layer 0'),
    ('encode', '--beam=1000000000000', '--beam'),
    ('encode', '--batch=1000000000000', '--batch'),
    ('encode', '--refine=1000000000000', '--refine'),
    ('generate', '--keep=seed:0-99999999999 --keep-layers=0', '--keep=seed:0-99999999999'),
    ('generate', '--keep=seed:0 --keep-layers=0-99999999999', '--keep-layers'),
    ('generate', f'--keep=seed:0 --keep-region=0,0,{"9" * 5000},1', '--keep-region'),
    ('swap', '--coarse=0 --fine=1 --region=0,0,999999,1', '--region=0,0,999999,1'),
]


@pytest.mark.parametrize('command, args, words', EXTREMES)
def test_extreme_numbers_are_one_line(folder, tmp_path, command, args, words):
    torch.manual_seed(0)
    snapshots.save_network(str(tmp_path / 'net.safetensors'), DDN(8, 1, [8], [3], [7]))
    write_code_file(str(tmp_path / 'codes.npz'), FILE._replace(codes=FILE.codes[:, :3] % 7, num_nodes=None))
    network, codes = f'--network={tmp_path}/net.safetensors', f'--codes={tmp_path}/codes.npz'
    common = {
        'generate': [network, f'--outdir={tmp_path}/out', '--device=cpu'],
        'nearest': [codes, f'--sheet={tmp_path}/s.png'],
        'encode': [network, f'--data={tmp_path}', f'--dest={tmp_path}/c.npz'],
    }
    common = common.get(command) or [network, codes, f'--sheet={tmp_path}/s.png']
    args = [a.replace('FACE', str(folder / 'face.png')) for a in args.split()]
    if command == 'generate':
        out = refused(generate.main, *common, *args)
    else:
        out = refused(latents.main, command, *common, *args)
    assert words in out and not (tmp_path / 'out').exists()


def refused(command, *args) -> str:
    """The one line of error of a command that must end with 1 or, by click, with 2."""
    result = CliRunner().invoke(command, [str(a) for a in args])
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit), repr(result.exception)
    (line,) = [line for line in result.output.splitlines() if line.startswith('Error:')]
    assert len(line) < 6000
    return line


def test_more_neighbours_than_images(tmp_path):
    data = tmp_path / 'data'
    data.mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8), 50 * i, np.uint8)).save(data / f'{i}.png')
    file = CodeFile(FILE.codes[:3], np.array([f'{i}.png' for i in range(3)]), np.array([0, 1, 2**40]), data=str(data))
    write_code_file(str(tmp_path / 'codes.npz'), file)
    of = [f'--codes={tmp_path}/codes.npz', f'--sheet={tmp_path}/s.png']
    invoke(latents.main, 'nearest', *of, '--num=1000000000000', '--rows=0-2')
    invoke(latents.main, 'cluster', *of, '--clusters=1000000000000', '--shown=1000000000000')
