"""The package by itself: a wheel of ddn_networks and nothing else, which works beside foreign modules of our names."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from ddn_networks import Network

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = ('.*', 'assets', 'build', 'datasets', 'docs', 'out', 'runs', 'shared', 'tests', '*.egg-info', '__pycache__')
FOREIGN = ('torch_utils', 'dnnlib', 'training', 'metrics', 'cli')  # as in a checkout of EDM


def run(*args, cwd: Path, **env: str) -> str:
    plain = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    env = {**plain, 'OMP_NUM_THREADS': '1', 'PIP_DISABLE_PIP_VERSION_CHECK': '1', **env}
    done = subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """Built offline, from a copy: the checkout stays as it is."""
    folder = tmp_path_factory.mktemp('wheel')
    shutil.copytree(ROOT, folder / 'source', ignore=shutil.ignore_patterns(*LEFT_OUT))
    options = ('-q', '--no-deps', '--no-build-isolation', '--no-index')
    run('-m', 'pip', 'wheel', *options, '-w', folder, '.', cwd=folder / 'source')
    (path,) = folder.glob('*.whl')
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    assert wheel.name.startswith('ddn_networks-')
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if '.dist-info/' not in name}
        (metadata,) = [name for name in archive.namelist() if name.endswith('.dist-info/METADATA')]
        text = archive.read(metadata).decode()
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / 'ddn_networks').rglob('*.py')}
    kept = {p.relative_to(ROOT).as_posix() for p in (ROOT / 'ddn_networks' / 'pretrained').iterdir()}
    assert names == {*sources, *kept, 'ddn_networks/py.typed'}
    assert 'ddn_networks/pretrained/mnist.safetensors' in names
    required = [line.split(':')[1].strip() for line in text.splitlines() if line.startswith('Requires-Dist')]
    core = {line.split('>')[0] for line in required if 'extra ==' not in line}
    assert core == {'torch', 'numpy', 'safetensors'}
    extras = {line.split(': ')[1] for line in text.splitlines() if line.startswith('Provides-Extra')}
    assert extras == {
        'train', 'codec', 'demo', 'browser', 'hub', 'notebook', 'docs', 'clip', 'video', 'tensorboard', 'peers', 'dev',
    }  # fmt: skip


def test_wheel_and_source_are_fit_for_an_index(wheel, tmp_path):
    code = f'from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})'
    run('-c', code, cwd=wheel.parent / 'source')
    (sdist,) = tmp_path.glob('ddn_networks-*.tar.gz')
    with tarfile.open(sdist) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    assert {'README.md', 'LICENSE', 'pyproject.toml', 'ddn_networks/py.typed'} <= names
    assert 'ddn_networks/pretrained/mnist.safetensors' in names
    run('-m', 'twine', 'check', '--strict', wheel, sdist, cwd=tmp_path)


def test_the_wheel_works_alone_and_beside_foreign_modules(wheel, tmp_path):
    run('-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '-t', tmp_path / 'installed', wheel, cwd=tmp_path)
    for name in FOREIGN:
        (tmp_path / 'foreign' / name).mkdir(parents=True)
        (tmp_path / 'foreign' / name / '__init__.py').write_text(f'raise RuntimeError("{name} of somebody else")')
    code = (
        'import json, sys\n'
        'import ddn_networks\n'
        'from ddn_networks import Network\n'
        'images, codes = Network.from_pretrained("mnist").sample(4)\n'
        'print(json.dumps([ddn_networks.__file__, codes.tolist(), images.double().sum().item()]))'
    )
    (tmp_path / 'elsewhere').mkdir()
    path = os.pathsep.join([str(tmp_path / 'foreign'), str(tmp_path / 'installed')])
    file, codes, total = json.loads(run('-c', code, cwd=tmp_path / 'elsewhere', PYTHONPATH=path))
    assert Path(file).is_relative_to(tmp_path / 'installed')
    expected = Network.from_pretrained('mnist').sample(4)
    assert codes == expected[1].tolist() and total == expected[0].double().sum().item()
