"""Law 3: two ranks equal one rank at the same total batch. Through train.py and torchrun, as users run it."""

import os
import re
import socket
import subprocess
import sys

import pytest
import torch
from conftest import TINY_RUN, final, write_zip

from training.report import read_stats

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def train(ranks: int, *args: str) -> None:
    launch = [sys.executable, '-W', 'ignore']
    if ranks > 1:
        launch += ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={ranks}']
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    command = [*launch, os.path.join(ROOT, 'train.py'), *map(str, args)]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope='module')
def runs(tiny_zip, tmp_path_factory):
    """20 steps on one rank; on two with accumulation; the same, stopped after 10 and resumed."""
    folder = tmp_path_factory.mktemp('runs')
    common = [f'--data={tiny_zip}', *TINY_RUN, '--nodes=24', '--grids=1,1,2,4', '--lr=0.003', '--nosubdir',
              '--tick=0.08']  # fmt: skip
    whole, half = '--duration=0.000320', '--duration=0.000160'
    train(1, f'--outdir={folder / "one"}', *common, whole)
    train(2, f'--outdir={folder / "rounds"}', *common, '--batch-gpu=4', whole)
    train(2, f'--outdir={folder / "stopped"}', *common, '--batch-gpu=4', half)
    train(2, f'--resume={folder / "stopped"}', whole)
    return {path.name: final(path) for path in folder.iterdir()}


def test_two_ranks_are_one(runs):
    one, other = runs['one'], runs['rounds']
    assert one['balance/num_splits'].sum() >= 60  # 20 steps, 6 layers: half of all that could be
    for key in ('balance/counts', 'balance/num_splits'):
        assert torch.equal(one[key], other[key]), key
    for key in one:
        torch.testing.assert_close(one[key], other[key], atol=1e-5, rtol=1e-4)


def test_two_ranks_with_accumulation_resume_bit_for_bit(runs):
    different = [key for key in runs['rounds'] if not torch.equal(runs['rounds'][key], runs['stopped'][key])]
    assert not different, different


def test_conditional_training_on_two_ranks_is_that_on_one_also_after_a_stop(tmp_path):
    """Labels, random grey weights, boxes and dropped conditions come to the rank that has the image."""
    data = write_zip(tmp_path / 'data.zip', 40, (3, 8, 8))
    common = [f'--data={data}', *TINY_RUN, '--channels=16,16,16,16', '--nodes=24', '--lr=0.003', '--nosubdir',
              '--tick=0.08', '--condition=class,color,mask', '--condition-dropout=0.3']  # fmt: skip
    train(1, f'--outdir={tmp_path / "one"}', *common, '--duration=0.000160')
    train(2, f'--outdir={tmp_path / "two"}', *common, '--batch-gpu=4', '--duration=0.000080')
    train(2, f'--resume={tmp_path / "two"}', '--duration=0.000160')
    one, two = final(tmp_path / 'one'), final(tmp_path / 'two')
    assert one['balance/num_splits'].sum() >= 20
    losses, of_two = ([s['loss_layers'] for s in read_stats(str(tmp_path / d))] for d in ('one', 'two'))
    assert len(losses) == 2
    for mean, other in zip(losses, of_two, strict=True):
        assert mean == pytest.approx(other, rel=1e-4)
    for key in ('balance/counts', 'balance/num_splits'):
        assert torch.equal(one[key], two[key]), key
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-5, rtol=1e-4)


STOPPED = """
import itertools, os, signal, sys
import train
from training import training_loop

steps, real = itertools.count(1), training_loop.layer_losses

def losses(*args):
    if next(steps) == 3 and os.environ['RANK'] == '1':
        signal.raise_signal(signal.SIGTERM)
    return real(*args)

training_loop.layer_losses = losses
train.main(sys.argv[1:])
"""


def test_a_signal_to_one_rank_stops_all_within_two_steps(tiny_zip, tmp_path):
    """torchrun kills 30 seconds after it has passed a signal on: with large networks that is a few steps. The ranks are
    where machines without a shared folder are: only rank 0 sees the run's."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    env = os.environ | {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'OMP_NUM_THREADS': '1'}
    env['PYTHONPATH'] = ROOT
    folders = [tmp_path / rank for rank in '01']
    command = [sys.executable, '-c', STOPPED, '--outdir=run', f'--data={tiny_zip}', *TINY_RUN, '--nosubdir']
    for folder in folders:
        folder.mkdir()
    processes = [
        subprocess.Popen(command, cwd=folder, env=env | {'RANK': folder.name}, stdout=subprocess.PIPE, text=True)
        for folder in folders
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [143, 143]
    assert 'Stopped by SIGTERM at' in outputs[0], outputs
    steps = int(re.search(r'at ([\d,]+) images; the state is saved', outputs[0])[1].replace(',', '')) // 16
    assert steps == 4  # asked in the third step, told in the reduction that goes along with the fourth
    assert os.path.exists(folders[0] / 'run' / f'training-state-{steps * 16:09d}.safetensors')
    assert not list(folders[1].iterdir())
