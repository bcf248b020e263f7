"""What runs on a CUDA device, and the same on the CPU, so that these tests are tried where there is none.

On a CUDA machine: python -m pytest -m gpu tests/test_gpu.py
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from conftest import TINY_RUN, invoke

import ddn_networks
import train
from benchmarks import gpu_check, gpu_train
from ddn_networks import samplers
from ddn_networks.finisher import code_noise
from ddn_networks.tensor_files import load_tensors
from metrics.lenet import LeNet
from torch_utils import misc
from training import training_loop

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
DEVICES = ['cpu', pytest.param('cuda', marks=[pytest.mark.gpu, NO_CUDA])]


@pytest.mark.gpu
@NO_CUDA
def test_host_syncs():
    tensor = torch.ones(1, device='cuda')
    with misc.host_syncs() as places:
        tensor.add_(1)
    assert places == []
    with misc.host_syncs() as places:
        tensor.item()
        tensor.item()
    assert len(places) == 2 and all('test_gpu.py' in p for p in places)


@pytest.mark.parametrize('device', DEVICES)
def test_codes_name_the_same_images_as_on_the_cpu(device):
    net = ddn_networks.Network.from_pretrained('mnist')
    codes = samplers.uniform_codes(net.num_nodes, range(8))
    wanted = net.decode(codes)
    nearest = net.encode(wanted)
    net.to(device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        images = net.decode(codes.to(device))
        again = net.encode(wanted.to(device)).cpu()
    assert images.device.type == device
    torch.testing.assert_close(images.cpu(), wanted, rtol=0, atol=1e-4)
    assert (again == nearest).double().mean() > 0.9  # ties may be decided by a rounding


@pytest.mark.parametrize('device', DEVICES)
def test_the_noise_of_the_finisher_is_that_of_the_cpu_to_the_bit(device):
    codes = torch.randint(0, 64, [3, 5], generator=torch.Generator().manual_seed(0))
    grids = [(1, 1), (2, 2)]
    assert torch.equal(code_noise(codes.to(device), grids, (8, 8)).cpu(), code_noise(codes, grids, (8, 8)))


@pytest.mark.parametrize('device', DEVICES)
def test_training_runs_in_every_precision(device, tiny_zip, tmp_path):
    for precision in ('fp32', 'bf16', 'fp16')[: 3 if device == 'cuda' else 2]:
        run = tmp_path / precision
        invoke(train.main, f'--data={tiny_zip}', f'--outdir={run}', *TINY_RUN, '--nosubdir', f'--device={device}',
               '--duration=0.000064', '--tick=0.032', f'--precision={precision}')  # fmt: skip
        stats = [json.loads(line) for line in (run / 'stats.jsonl').read_text().splitlines()]
        assert stats[-1]['nimg'] == 64 and stats[-1]['loss'] < 10


@pytest.mark.parametrize('device', DEVICES)
def test_a_training_step_never_waits_for_the_device(device):
    net, loop = gpu_check.made(gpu_check.Shape('mnist-cpu', 8, 4), torch.device(device))
    step = gpu_check.training_step(net, loop, torch.rand(4, 3, 8, 8, device=device))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for _ in range(3):
        step()
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    with misc.host_syncs() as places:
        step()
    assert places == []


def test_the_step_moves_averages_and_heads_with_their_nodes_as_training_does(monkeypatch):
    net, loop = gpu_check.made(gpu_check.Shape('mnist-cpu', 8, 4), torch.device('cpu'))
    kind, followed = training_loop.BALANCERS[loop['balance']], []
    monkeypatch.setattr(kind, 'follow', lambda self, copies: followed.append(len(copies)))
    monkeypatch.setattr(kind, 'follow_prior', lambda self, heads, copies: followed.append((len(heads), len(copies))))
    gpu_check.training_step(net, loop, torch.rand(4, 3, 8, 8))
    assert followed == [len(net.node_weights), (len(net.prior_heads), 1)]


# ----------------------------------------------------------------------------------------------- benchmarks/gpu.sh


BASH = pytest.mark.skipif(not shutil.which('bash') or not shutil.which('timeout'), reason='needs bash and timeout')


def gpu_sh(tmp_path, *args, **env):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folders = {'OUT': str(tmp_path / 'out'), 'RUN': str(tmp_path / 'run')}
    env = {**os.environ, **folders, 'DEVICE': 'cpu', 'PYTHON': sys.executable, **env}
    command = ['bash', os.path.join(root, 'benchmarks', 'gpu.sh'), *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)


@BASH
def test_gpu_sh_checks_a_machine_and_writes_as_it_goes(tmp_path):
    (tmp_path / 'test_none.py').write_text('import pytest\n\n@pytest.mark.gpu\ndef test_nothing():\n    pass\n')
    more = '--shapes=mnist-cpu:8:4,cifar10-cpu:8:2 --no-compile'
    done = gpu_sh(tmp_path, 'check', MORE=more, TESTS=str(tmp_path / 'test_none.py'))
    assert done.returncode == 0, done.stdout + done.stderr
    assert torch.__version__ in (tmp_path / 'out' / 'environment.txt').read_text()
    assert '1 passed' in (tmp_path / 'out' / 'tests.txt').read_text()
    facts = json.loads((tmp_path / 'out' / 'check.json').read_text())['tables']
    rows = facts['Networks of presets, RGB:']
    assert [(row['preset'], row['what']) for row in rows] == [('mnist-cpu', 'training'), ('mnist-cpu', 'generation')]
    assert all(row['images/s'] > 0 and row['waits'] == 0 for row in rows)
    assert 'does not divide a layer' in facts['Rows that failed:'][0]['error']  # and the others followed


def test_shapes_that_do_not_exist_are_named():
    for text in ('nothing:8:4', 'mnist-cpu', 'mnist-cpu:8:0', 'mnist-cpu:x:4'):
        assert f'{text}: give a preset' in invoke(gpu_check.main, '--device=cpu', f'--shapes={text}', expect=2)
    assert gpu_check.shapes(gpu_check.SHAPES)


@pytest.fixture
def tiny_training(tmp_path, monkeypatch, tiny_zip):
    """A call of gpu_train on the CPU with tiny sizes: (its exit code, the phases that it trained)."""
    torch.manual_seed(0)
    torch.save(LeNet().state_dict(), tmp_path / 'lenet.pth')
    monkeypatch.setattr(gpu_train, 'TRIAL', 6)
    monkeypatch.setattr(gpu_train, 'PART', 100_000)
    small = {'batch': 4, 'lr': 1e-3, 'ema': '0.0001', 'finisher_width': 8, 'lpips': 'none'}
    monkeypatch.setattr(gpu_train, 'FINISHING', small)
    monkeypatch.setattr(gpu_train, 'read_stats', lambda folder: [{}, {'images_per_sec': 320.0}])  # not the clock's
    phases, real = [], gpu_train.train
    monkeypatch.setattr(gpu_train, 'train', lambda options: phases.append(options) or real(options))

    def call(*more):
        phases.clear()
        options = [f'--data={tiny_zip}', '--preset=mnist-cpu', '--seconds=1', '--workers=0', '--device=cpu', '--num=40']
        folders = [f'--run={tmp_path / "run"}', f'--out={tmp_path / "out"}', f'--detector={tmp_path / "lenet.pth"}']
        result = CliRunner().invoke(gpu_train.main, [*options, *folders, '--precision=fp32', *more])
        return result, list(phases)

    return call


def test_training_for_minutes_leaves_a_network_and_resumes(tiny_training, tmp_path, monkeypatch):
    steps, loss = [], training_loop.total_loss

    def stopping_loss(*args):
        steps.append(args)
        if len(steps) == 8:  # the trial takes 6
            signal.raise_signal(signal.SIGINT)
        return loss(*args)

    monkeypatch.setattr(training_loop, 'total_loss', stopping_loss)
    stopped, phases = tiny_training()
    assert stopped.exit_code == 128 + signal.SIGINT, stopped.output
    assert len(phases) == 2 and not (tmp_path / 'run' / 'mnist-cpu' / 'network.json').exists()
    done, phases = tiny_training()
    assert done.exit_code == 0, done.output
    assert 'resume' in phases[0] and len(phases) == 3 and all('fit_finisher' in phase for phase in phases[1:])
    kept = (tmp_path / 'run' / 'mnist-cpu' / 'mnist-cpu.safetensors').read_bytes()
    parts = sorted((tmp_path / 'out').glob('*.part-*'))
    assert len(parts) > 1 and b''.join(part.read_bytes() for part in parts) == kept
    assert max(part.stat().st_size for part in parts) <= 100_000
    facts = json.loads((tmp_path / 'out' / 'mnist-cpu.json').read_text())
    assert facts['sha256'] == hashlib.sha256(kept).hexdigest() and 'FID-40' in facts['numbers']
    (tmp_path / 'joined.safetensors').write_bytes(kept)
    net = ddn_networks.Network.from_pretrained(tmp_path / 'joined.safetensors')
    assert net.prior and net.finisher is not None and net.snapshot_meta['cur_nimg'] == facts['images']
    assert facts['images'] == 160 and {x.dtype for x in load_tensors(tmp_path / 'joined.safetensors')[0].values()} == {
        torch.float16
    }  # fmt: skip
    assert (tmp_path / 'out' / 'samples.png').is_file()
    again, phases = tiny_training()
    assert again.exit_code == 0 and phases == []
    other, phases = tiny_training('--seconds=2')  # what was trained in one second must not pass for that
    assert other.exit_code == 1 and phases == [] and "trained with {'seconds': 1.0}: give another" in other.output
    (tmp_path / 'lenet.pth').unlink()
    shutil.rmtree(tmp_path / 'out')
    unscored, phases = tiny_training()
    assert unscored.exit_code == 0 and phases == [] and 'not scored: no such file' in unscored.output
    assert b''.join(part.read_bytes() for part in sorted((tmp_path / 'out').glob('*.part-*'))) == kept
