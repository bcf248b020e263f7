"""Law 3: two ranks equal one rank at the same total batch. And signals to one of several ranks."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import forks
import pytest
import torch
from conftest import TINY_RUN, final, write_zip

from training.report import read_stats

ROOT = Path(__file__).resolve().parents[1]
HALF = [*TINY_RUN, '--unshuffle=2']

# A run that a signal to rank 1 stops in its third step.
STOPPED = """
import itertools, os, signal, sys
import train
from training import training_loop

steps, real = itertools.count(1), training_loop.layer_losses

def losses(*args):
    if os.environ['RANK'] == '1' and next(steps) == 3:
        signal.raise_signal(signal.SIGTERM)
    return real(*args)

training_loop.layer_losses = losses
train.main()
"""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


def run_ranks(folders: list[Path], *args, code: int = 0) -> list[str]:
    """Run a script with a rank in each folder, as any launcher would; what each rank has printed."""
    env = {'WORLD_SIZE': str(len(folders)), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port()}
    ranks = [
        forks.Process(args, forks.PIPE, forks.STDOUT, env | {'RANK': str(r)}, cwd=folder)
        for r, folder in enumerate(folders)
    ]
    outputs = []
    for rank in ranks:
        with rank:
            outputs.append(rank.communicate()[0])
    assert [rank.returncode for rank in ranks] == [code] * len(ranks), outputs
    return outputs


@pytest.fixture(scope='module')
def folder(tiny_zip, tmp_path_factory) -> Path:
    """20 steps on one rank, the last scale at half its size; on two with accumulation; the same, stopped after 10 and
    resumed. 10 steps with conditions and heads on one rank; on two, stopped after 5 and resumed."""
    folder = tmp_path_factory.mktemp('runs')
    colours = write_zip(folder / 'colours.zip', 40, (3, 8, 8))
    plain = [f'--data={tiny_zip}', *HALF, '--nodes=24', '--lr=0.003', '--nosubdir', '--tick=0.08']
    told = [f'--data={colours}', *TINY_RUN, '--channels=16,16,16,16', '--nodes=24', '--lr=0.003', '--nosubdir',
            '--tick=0.08', '--condition=class,color,mask', '--condition-dropout=0.3', '--grids=1,1,2,2', '--prior=head',
            '--prior-width=4']  # fmt: skip
    train = ROOT / 'train.py'
    for ranks, args in (
        (1, ['--outdir=one', *plain, '--duration=0.000320']),
        (2, ['--outdir=stopped', *plain, '--batch-gpu=4', '--duration=0.000160']),
        (2, ['--resume=stopped', '--duration=0.000320']),
        (1, ['--outdir=told-one', *told, '--duration=0.000160']),
        (2, ['--outdir=told-two', *told, '--batch-gpu=4', '--duration=0.000080']),
        (2, ['--resume=told-two', '--duration=0.000160']),
    ):
        run_ranks([folder] * ranks, train, *args)
    return folder


def test_two_ranks_are_one(folder, tiny_zip):
    """Through torchrun, as users start it on two machines: a rendezvous, one rank each."""
    rendezvous = ['--rdzv-backend=c10d', f'--rdzv-endpoint=127.0.0.1:{free_port()}', '--rdzv-id=test', '--nnodes=2']
    command = [sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run', *rendezvous, '--nproc_per_node=1']
    args = [f'--data={tiny_zip}', *HALF, '--nodes=24', '--lr=0.003', '--nosubdir', '--tick=0.08', '--batch-gpu=4']
    command += ['--local-addr=127.0.0.1', 'train.py', f'--outdir={folder / "rounds"}', *args, '--duration=0.000320']
    gone = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
    env = {k: v for k, v in os.environ.items() if k not in gone} | {'OMP_NUM_THREADS': '1'}
    streams = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
    machines = [subprocess.Popen(command, cwd=ROOT, env=env, text=True, **streams) for _ in range(2)]
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    one, other = final(folder / 'one'), final(folder / 'rounds')
    assert one['balance/num_splits'].sum() >= 60  # 20 steps, 6 layers: half of all that could be
    for key in ('balance/counts', 'balance/num_splits'):
        assert torch.equal(one[key], other[key]), key
    for key in one:
        torch.testing.assert_close(one[key], other[key], atol=1e-5, rtol=1e-4)
    stopped = final(folder / 'stopped')
    different = [key for key in other if not torch.equal(other[key], stopped[key])]
    assert not different, different


def test_conditional_training_on_two_ranks_is_that_on_one_also_after_a_stop(folder):
    """Labels, random grey weights, boxes and dropped conditions come to the rank that has the image."""
    one, two = final(folder / 'told-one'), final(folder / 'told-two')
    assert one['balance/num_splits'].sum() >= 20
    losses, of_two = ([s['loss_layers'] for s in read_stats(str(folder / d))] for d in ('told-one', 'told-two'))
    assert len(losses) == 2
    for mean, other in zip(losses, of_two, strict=True):
        assert mean == pytest.approx(other, rel=1e-4)
    for key in ('balance/counts', 'balance/num_splits'):
        assert torch.equal(one[key], two[key]), key
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-5, rtol=1e-4)


def test_a_signal_to_one_rank_stops_all_within_two_steps(tiny_zip, tmp_path):
    """torchrun kills 30 seconds after it has passed a signal on: with large networks that is a few steps. The ranks are
    where machines without a shared folder are: only rank 0 sees the run's."""
    (tmp_path / 'script.py').write_text(STOPPED)
    zero, one = folders = [tmp_path / str(rank) for rank in range(2)]
    for path in folders:
        path.mkdir()
    args = ['--outdir=run', f'--data={tiny_zip}', *TINY_RUN, '--nosubdir']
    outputs = run_ranks(folders, tmp_path / 'script.py', *args, code=143)
    log = (zero / 'run' / 'log.txt').read_text()
    assert 'Stopped by SIGTERM at' in log and f'train.py --resume={zero / "run"}' in log
    steps = int(re.search(r'at ([\d,]+) images; the state is saved', log)[1].replace(',', '')) // 16
    assert steps == 4  # asked in the third step, agreed in the reduction beside the fourth
    assert os.path.exists(zero / 'run' / f'training-state-{steps * 16:09d}.safetensors')
    assert not list(one.iterdir()) and not outputs[1]
