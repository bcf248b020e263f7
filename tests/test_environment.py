"""Threads that wait do not spin: set before torch is loaded, by every script, unless the user has set it."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = [
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for path in sorted([*ROOT.glob('*.py'), *ROOT.glob('experiments/*.py'), *ROOT.glob('benchmarks/*.py')])
    if '__main__' in path.read_text(encoding='utf-8')
]

# Begins each script until it loads torch, and reads the environment at that moment.
PROBE = """
import json, os, runpy, sys

class Loads(BaseException):
    pass

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == 'torch':
            raise Loads

sys.meta_path.insert(0, Finder())
sys.path.insert(0, os.getcwd())
OURS = ('cli', 'experiments', 'benchmarks', 'dnnlib', 'ddn_networks', 'metrics', 'page', 'training')
started, found = dict(os.environ), {}
for name in sys.argv[1:]:
    for loaded in list(sys.modules):
        if loaded.split('.')[0] in OURS:
            del sys.modules[loaded]
    os.environ.clear()
    os.environ.update(started)
    try:
        runpy.run_module(name, run_name='probe')
    except Loads:
        found[name] = {k: v for k, v in os.environ.items() if k.startswith(('OMP_', 'GOMP_', 'KMP_'))}
print(json.dumps(found))
"""


def at_the_load_of_torch(modules: list[str], **by_the_user: str) -> dict[str, dict[str, str]]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(('OMP_', 'GOMP_', 'KMP_'))} | by_the_user
    command = [sys.executable, '-c', PROBE, *modules]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_every_script_lets_waiting_threads_sleep_soon():
    found = at_the_load_of_torch(MODULES)
    assert {'train', 'generate', 'fid', 'latents'} <= found.keys() and len(found) > 20
    soon = {'GOMP_SPINCOUNT': '10000', 'KMP_BLOCKTIME': '0'}
    assert not [name for name, environment in found.items() if environment != soon]


@pytest.mark.parametrize(
    'name, value', [('OMP_WAIT_POLICY', 'active'), ('GOMP_SPINCOUNT', '1000'), ('KMP_BLOCKTIME', '200')]
)
def test_what_the_user_has_set_stays(name, value):
    assert at_the_load_of_torch(['train'], **{name: value}) == {'train': {name: value}}


@pytest.mark.parametrize('encoding', ['ascii:strict', 'utf-8:strict', 'latin-1:strict'])
def test_any_name_can_be_printed(encoding):
    script = r"import cli.environment, sys; print('\udcff \xff \u2603'); print('\udcff \xff \u2603', file=sys.stderr)"
    env = {**os.environ, 'PYTHONIOENCODING': encoding}
    done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, env=env, capture_output=True)
    assert done.returncode == 0 and rb'\udcff' in done.stdout and rb'\udcff' in done.stderr


@pytest.mark.parametrize('script', ['train', 'generate', 'fid', 'latents', 'dataset_tool'])
def test_ctrl_c_while_modules_are_loaded_shows_no_traceback(script):
    code = f"""
import runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ('torch', 'PIL'):
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module('{script}', run_name='__main__')
"""
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == -signal.SIGINT and result.stderr == 'Aborted!\n'


@pytest.mark.parametrize('closed', ['2>&-', '>&- 2>&-', '<&- >&- 2>&-'])
def test_streams_that_are_closed_do_no_harm(tmp_path, closed):
    (tmp_path / 'a.pgm').write_bytes(b'P5 1 1 255\n0')
    command = [sys.executable, 'dataset_tool.py', f'--source={tmp_path}', f'--dest={tmp_path / "a.zip"}']
    result = subprocess.run(['sh', '-c', f'exec "$@" {closed}', 'sh', *command], cwd=ROOT, timeout=60)
    assert result.returncode == 0 and zipfile.is_zipfile(tmp_path / 'a.zip')
