"""Which files may import and start which others: the directions between the rooms, for every Python file."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ('ddn_networks', 'dnnlib', 'torch_utils', 'training', 'metrics', 'cli', 'page')
LIBRARY = ROOMS[:-1]  # the page is for demo.py alone
PACKAGES = {*ROOMS, 'experiments', 'benchmarks'}

# What a room may import of ours, besides itself.
ALLOWED = {
    'ddn_networks': (),
    'dnnlib': ('ddn_networks',),
    'torch_utils': ('ddn_networks', 'dnnlib'),
    'training': ('ddn_networks', 'dnnlib', 'torch_utils'),
    'metrics': ('ddn_networks', 'dnnlib', 'torch_utils'),
    'cli': ('ddn_networks', 'dnnlib', 'torch_utils', 'training', 'metrics'),
    'page': ('ddn_networks', 'dnnlib', 'torch_utils', 'cli'),
    'experiments': LIBRARY,
    'benchmarks': (*LIBRARY, 'experiments'),
}
PEERS = ('sddn', 'discrete_distribution_network', 'distribution_playground')
PICKLES = ('pickle', 'cPickle', 'cloudpickle', 'dill', 'joblib')
# Files that may import pickle, with the reason.
MAY_PICKLE: dict[str, str] = {
    'dnnlib/sources.py': "CIFAR-10's archive is made of pickles; its unpickler knows plain data only",
}
STARTS = ('subprocess', 'runpy', 'torch.distributed.run', 'torch.distributed.launch', 'torch.distributed.launcher')
# Files that may start other programs, with the reason; never a script of ours.
MAY_START: dict[str, str] = {
    'torch_utils/misc.py': 'asks git for the revision',
}
# Files that may change where Python looks for modules, with the reason.
MAY_EXTEND_PATH: dict[str, str] = {
    'cli/guide_networks.py': "a user's guide may import its neighbours",
}


def imports(source: str, package: str = '') -> list[str]:
    """Dotted names that a file imports, wherever in it: `from a import b` is a.b; relative ones become absolute.

    Also modules that `import_module` gets by name, functions of `os` that start programs, and `sys.path` where its
    methods are called.
    """
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
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called.endswith(('import_module', '__import__')):
                names += [str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)]
            elif called.startswith('sys.path.'):
                names.append('sys.path')
            elif re.fullmatch(r'os\.(system|popen|exec\w+|spawn\w+|posix_spawn\w*)', called):
                names.append(called)
    return names


def under(name: str, room: str) -> bool:
    return name == room or name.startswith(room + '.')


def violations(path: str, names: list[str], scripts: set[str]) -> list[str]:
    """What a file may not import; ``path`` relative to the root, with slashes."""
    room = path.split('/')[0]
    found = []
    for name in names:
        ours = name.split('.')[0] in PACKAGES
        allowed = ALLOWED.get(room, ROOMS if path == 'demo.py' else LIBRARY)
        if room != 'tests' and ours and not any(under(name, a) for a in (room, *allowed)):
            found.append(f'{path} imports {name}')
        if room != 'tests' and under(name, 'tests'):
            found.append(f'{path} imports {name}')
        if room == 'ddn_networks' and under(name, 'torch.distributed'):
            found.append(f'{path} imports {name}: the model knows no ranks')
        if room in ROOMS and room != 'cli' and under(name, 'click'):
            found.append(f'{path} imports {name}: a library has no command line')
        if room != 'tests' and any(under(name, script) for script in scripts):
            found.append(f'{path} imports the script {name}')
        starts = name.startswith('os.') and name != 'os.path' or any(under(name, n) for n in STARTS)
        if room != 'tests' and starts and path not in MAY_START:
            found.append(f'{path} uses {name}: what two scripts need is a function in a room')
        if name == 'sys.path' and path not in MAY_EXTEND_PATH:
            found.append(f'{path} changes sys.path')
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
    sources = {path.relative_to(ROOT): path.read_text(encoding='utf-8') for path in files()}
    scripts = {'.'.join(path.with_suffix('').parts) for path, source in sources.items() if "== '__main__'" in source}
    assert {'train', 'fid', 'experiments.toy_density', 'benchmarks.ddl'} <= scripts
    found = []
    for path, source in sources.items():
        found += violations(path.as_posix(), imports(source, '.'.join(path.parent.parts)), scripts)
    assert not found, '\n'.join(found)


def test_every_package_is_read():
    assert PACKAGES <= {p.relative_to(ROOT).parts[0] for p in files()}
    for exceptions in (MAY_PICKLE, MAY_START, MAY_EXTEND_PATH):
        assert all(reason and (ROOT / path).is_file() for path, reason in exceptions.items())


SCRIPTS = {'demo', 'train', 'generate', 'fid', 'dataset_tool', 'experiments.digit_quality'}


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
        ('metrics/evaluate.py', 'import click'),
        ('cli/sheets.py', 'import generate'),
        ('training/loss.py', 'from metrics import distances'),
        ('training/loss.py', 'import metrics.inception'),
        ('training/loss.py', 'import train'),
        ('generate.py', 'import fid'),
        ('experiments/tree.py', 'from train import main'),
        ('experiments/tree.py', 'from experiments import digit_quality'),
        ('experiments/tree.py', 'from . import digit_quality'),
        ('experiments/tree.py', 'from benchmarks import common'),
        ('experiments/tree.py', 'import importlib\nimportlib.import_module("train")'),
        ('experiments/tree.py', 'import subprocess'),
        ('experiments/tree.py', 'from torch.distributed import run'),
        ('experiments/tree.py', 'import os\nos.system("python train.py")'),
        ('experiments/tree.py', 'import os\nos.execvp("python", ["python", "train.py"])'),
        ('benchmarks/ddl.py', 'import generate'),
        ('benchmarks/ddl.py', 'from runpy import run_path'),
        ('benchmarks/ddl.py', 'from experiments.digit_quality import main'),
        ('tests/test_ddl.py', 'import sys\nsys.path.insert(0, "experiments")'),
        ('cli/jobs.py', 'from experiments import common'),
        ('cli/jobs.py', 'from page import canvas'),
        ('generate.py', 'import page.canvas'),
        ('page/guide.py', 'import training.loss'),
        ('page/guide.py', 'import click'),
        ('page/guide.py', 'import demo'),
        ('generate.py', 'from experiments import common'),
        ('tests/test_ddl.py', 'import sddn'),
        ('training/dataset.py', 'import pickle'),
        ('metrics/fid.py', 'from pickle import loads'),
    ],
)
def test_a_wrong_import_is_found(path, source):
    package = '.'.join(path.split('/')[:-1])
    assert violations(path, imports(source, package), SCRIPTS)


@pytest.mark.parametrize(
    'path, source',
    [
        ('ddn_networks/ddl.py', 'import torch\nfrom . import samplers\nfrom ddn_networks import codes'),
        ('training/loop.py', 'from ddn_networks import DDN\nfrom torch_utils import distributed\nimport dnnlib'),
        ('benchmarks/ddl.py', 'import sddn'),
        ('benchmarks/ddl.py', 'from experiments import points\nfrom benchmarks import generate_data'),
        ('experiments/tree.py', 'from experiments import common\nimport os\nos.path.join("a", "b")'),
        ('tests/test_generate.py', 'import generate\nimport subprocess\nfrom experiments import digit_quality'),
        ('tests/test_persistence.py', 'import pickle'),
        ('cli/jobs.py', 'from training.dataset import ImageFolderDataset'),
        ('page/guide.py', 'from page import canvas\nfrom cli import pictures'),
        ('demo.py', 'from page import app'),
        ('torch_utils/misc.py', 'from torch_utils import distributed\nimport torch.distributed'),
    ],
)
def test_a_right_import_is_not(path, source):
    package = '.'.join(path.split('/')[:-1])
    assert not violations(path, imports(source, package), SCRIPTS)
