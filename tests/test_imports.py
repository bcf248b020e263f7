"""Who may import whom: the directions between the rooms, read from the imports of every file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {'cli', 'ddn_networks', 'dnnlib', 'metrics', 'torch_utils', 'training'}

# What a room may import of ours, beside itself.
ALLOWED = {
    'ddn_networks': (),
    'dnnlib': ('ddn_networks',),
    'torch_utils': ('ddn_networks', 'dnnlib'),
    'training': ('ddn_networks', 'dnnlib', 'torch_utils'),
    'metrics': ('ddn_networks', 'dnnlib', 'torch_utils'),
    'cli': ('ddn_networks', 'dnnlib', 'torch_utils', 'training', 'metrics'),
}
NOT_IN_THE_MODEL = ('click', 'torch.distributed')
PEERS = ('sddn', 'discrete_distribution_network', 'distribution_playground')
PICKLES = ('pickle', 'cPickle', 'cloudpickle', 'dill', 'joblib')
# Files that may import pickle, with the reason.
MAY_PICKLE: dict[str, str] = {
    'dataset_tool.py': "CIFAR-10's archive is made of pickles; its unpickler knows plain data only",
    'metrics/detectors.py': 'for the name of the error that torch.load(weights_only=True) raises; loads nothing itself',
}


def imports(source: str, package: str = '') -> list[str]:
    """Dotted names that a file imports, wherever in it: `from a import b` is a.b; relative ones become absolute."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parents = package.split('.')[: len(package.split('.')) - node.level + 1]
                base = '.'.join([*parents, *filter(None, [base])])
            names += [f'{base}.{alias.name}' for alias in node.names]
    return names


def under(name: str, room: str) -> bool:
    return name == room or name.startswith(room + '.')


def violations(path: str, names: list[str], scripts: set[str]) -> list[str]:
    """What a file may not import; ``path`` relative to the root, with slashes."""
    room = path.split('/')[0]
    found = []
    for name in names:
        ours = name.split('.')[0] in PACKAGES
        allowed = ALLOWED.get(room)
        if allowed is not None and ours and not any(under(name, a) for a in (room, *allowed)):
            found.append(f'{path} imports {name}')
        if room != 'tests' and under(name, 'tests'):
            found.append(f'{path} imports {name}')
        if room == 'ddn_networks' and any(under(name, n) for n in NOT_IN_THE_MODEL):
            found.append(f'{path} imports {name}: the model knows no command line and no ranks')
        if room not in ('tests', 'benchmarks') and name.split('.')[0] in scripts:
            found.append(f'{path} imports the script {name}')
        if room != 'benchmarks' and any(under(name, p) for p in PEERS):
            found.append(f'{path} imports the peer {name}, which is measured in benchmarks/ only')
        if room != 'tests' and any(under(name, p) for p in PICKLES) and path not in MAY_PICKLE:
            found.append(f'{path} imports {name}: what we load runs no code')
    return found


def files() -> list[Path]:
    hidden = ('.', 'build', 'dist', 'runs', 'venv', 'node_modules')
    paths = [p for p in ROOT.rglob('*.py') if not any(x.startswith(hidden) for x in p.relative_to(ROOT).parts[:-1])]
    return sorted(paths)


def test_directions():
    scripts = {p.stem for p in ROOT.glob('*.py') if '__main__' in p.read_text(encoding='utf-8')}
    found = []
    for path in files():
        relative = path.relative_to(ROOT)
        names = imports(path.read_text(encoding='utf-8'), '.'.join(relative.parent.parts))
        found += violations(relative.as_posix(), names, scripts)
    assert not found, '\n'.join(found)


def test_every_package_is_read():
    assert PACKAGES <= {p.relative_to(ROOT).parts[0] for p in files()}
    assert all(reason for reason in MAY_PICKLE.values())


@pytest.mark.parametrize(
    'path, source',
    [
        ('dnnlib/util.py', 'import torch_utils.misc'),
        ('dnnlib/util.py', 'def f():\n    from metrics import inception'),
        ('torch_utils/misc.py', 'from training import loss'),
        ('ddn_networks/ddl.py', 'from torch_utils import distributed'),
        ('ddn_networks/ddl.py', 'from torch_utils import persistence'),
        ('ddn_networks/ddl.py', 'import dnnlib'),
        ('ddn_networks/ddl.py', 'import click'),
        ('ddn_networks/ddl.py', 'from torch import distributed'),
        ('ddn_networks/ddl.py', 'import torch.distributed as dist'),
        ('ddn_networks/ddl.py', 'from ..training import loss'),
        ('metrics/fid.py', 'import cli.options'),
        ('cli/sheets.py', 'import generate'),
        ('training/loss.py', 'from metrics import distances'),
        ('training/loss.py', 'import metrics.inception'),
        ('training/loss.py', 'import train'),
        ('generate.py', 'import fid'),
        ('experiments/tree.py', 'from train import main'),
        ('tests/test_ddl.py', 'import sddn'),
        ('training/dataset.py', 'import pickle'),
        ('metrics/fid.py', 'from pickle import loads'),
    ],
)
def test_a_wrong_import_is_found(path, source):
    package = '.'.join(path.split('/')[:-1])
    assert violations(path, imports(source, package), {'train', 'generate', 'fid', 'dataset_tool'})


@pytest.mark.parametrize(
    'path, source',
    [
        ('ddn_networks/ddl.py', 'import torch\nfrom . import samplers\nfrom ddn_networks import codes'),
        ('training/loop.py', 'from ddn_networks import DDN\nfrom torch_utils import distributed\nimport dnnlib'),
        ('benchmarks/ddl.py', 'import sddn'),
        ('tests/test_generate.py', 'import generate'),
        ('tests/test_persistence.py', 'import pickle'),
        ('cli/jobs.py', 'from training.dataset import ImageFolderDataset'),
        ('torch_utils/misc.py', 'from torch_utils import distributed\nimport torch.distributed'),
    ],
)
def test_a_right_import_is_not(path, source):
    package = '.'.join(path.split('/')[:-1])
    assert not violations(path, imports(source, package), {'train', 'generate', 'fid', 'dataset_tool'})
