"""Ranks on this machine over gloo (by torchrun: test_ranks.py), and devices that are not there."""

import socket
from typing import NamedTuple

import forks
import pytest
import torch

from torch_utils import distributed

SCRIPT = """
import glob, os, sys, time
import torch
from torch_utils import distributed, training_stats
from training.monitor import Health

def rank_of(mode, timeout_s):
    with distributed.session('cpu', timeout_s=timeout_s) as device:
        rank, world = distributed.get_rank(), distributed.get_world_size()
        total, least = torch.tensor([rank + 1.0, 10.0]), torch.tensor(rank + 3)
        distributed.all_reduce_(total)
        distributed.all_reduce_(least, 'min')
        everyone = distributed.all_gather_object({'rank': rank})
        if mode == 'ok':
            collector = training_stats.Collector(device)
            collector.report('loss', torch.arange(3.0) + 3 * rank)
            one = collector.update()
            collector.report('loss', torch.tensor([1.0]))
            collector.report(f'of {rank}', float(rank))
            two = collector.update()
            collector.report('z', 1.0) if rank else None
            three = collector.update()
            health = Health(torch.nn.Linear(1, 1), watch_gradients=False)  # as with fp16
            health.observe(torch.tensor([float('inf') if rank else 1.0]), 0)
            distributed.barrier()
            text = [device, world, total.tolist(), least.item(), everyone, health.step_is_finite(), one, two, three]
            sys.stdout.write(f'RANK{rank} {text}\\n')
            distributed.print0('PRINTED')
            torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
        if rank == 1:
            if mode == 'error':
                raise ValueError('picture 7 is\\nbroken')
            if mode == 'bug':
                [].pop()
            if mode == 'hang':
                time.sleep(60)
            if mode == 'kill':
                os.kill(os.getpid(), 9)
            if mode == 'exit':
                sys.exit(3)
        if mode == 'stop':
            sys.exit(0)
        distributed.all_reduce_(total)
    if mode == 'ok':
        print('THREADS', [open(path).read() for path in glob.glob('/proc/self/task/*/comm')])

rank_of(sys.argv[1], float(sys.argv[2]))
"""

# mode, world size, ranks that come, timeout in seconds
CASES = [
    ('ok', 2, 2, 60),
    ('error', 2, 2, 60),
    ('bug', 2, 2, 60),
    ('hang', 2, 2, 4),
    ('kill', 2, 2, 60),
    ('exit', 2, 2, 60),
    ('stop', 2, 2, 60),
    ('absent', 3, 1, 2),
]


class Result(NamedTuple):
    """How a rank ended."""

    code: int
    output: str

    def only(self, start_of_line: str) -> str:
        (line,) = [line for line in self.output.splitlines() if line.startswith(start_of_line)]
        return line


@pytest.fixture(scope='module')
def ended(tmp_path_factory) -> dict[str, Result]:
    """Every case by any launcher that sets RANK and its kin, all at the same time. Rank 0 serves the store, and nobody
    but the ranks themselves ends them."""
    folder = tmp_path_factory.mktemp('ranks')
    (folder / 'script.py').write_text(SCRIPT)
    processes = {}
    for mode, world, ranks, timeout_s in CASES:
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            env = {'WORLD_SIZE': str(world), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(s.getsockname()[1])}
        for rank in range(ranks):
            with open(folder / f'{mode}{rank}.txt', 'w') as file:
                processes[f'{mode}{rank}'] = forks.Process(
                    [folder / 'script.py', mode, timeout_s], file, forks.STDOUT, env | {'RANK': str(rank)}
                )
    return {name: Result(p.wait(), (folder / f'{name}.txt').read_text()) for name, p in processes.items()}


def check_results(output: str) -> None:
    result = Result(0, output)
    assert output.count('PRINTED') == 1
    assert output.count('THREADS') == 2 and 'gloo' not in output  # no thread of the group is left at the end
    zero, one = result.only('RANK0'), result.only('RANK1')
    assert zero[5:] == one[5:]
    for expected in (
        "2, [3.0, 20.0], 3, [{'rank': 0}, {'rank': 1}], False",
        "{'loss': Stat(mean=2.5, std=1.707825127659933, num=6)}",
        "{'loss': Stat(mean=1.0, std=0.0, num=2), 'of 0': Stat(mean=0.0, std=0.0, num=1), "
        "'of 1': Stat(mean=1.0, std=0.0, num=1)}",
        "{'z': Stat(mean=1.0, std=0.0, num=1)}",
    ):
        assert expected in zero


def test_results_of_collectives(ended):
    assert ended['ok0'].code == ended['ok1'].code == 0
    check_results(ended['ok0'].output + ended['ok1'].output)


@pytest.mark.parametrize(
    'mode, reason',
    [
        ('error', 'ValueError: picture 7 is broken [script.py:'),
        ('bug', 'IndexError: pop from empty list [script.py:'),
        ('exit', 'SystemExit: 3 [script.py:'),
    ],
)
def test_a_rank_that_fails_ends_all_with_its_reason(ended, mode, reason):
    zero, one = ended[f'{mode}0'], ended[f'{mode}1']
    assert zero.code == one.code == 1
    assert f'ends the run: {reason}' in one.only('rank 1 of 2')
    assert ('Traceback' in one.output) == (mode == 'bug')
    line = zero.only('rank 0 of 2')
    assert 'rank 1 ended first (' in line and reason in line and 'Traceback' not in zero.output


def test_a_rank_that_hangs_is_named_and_says_where(ended):
    zero, one = ended['hang0'], ended['hang1']
    assert zero.code == one.code == 1
    assert 'rank 1 blocked others for 4 s at collective 4 (all_reduce)' in zero.only('rank 0 of 2')
    assert 'this rank was at script.py:' in one.only('rank 1 of 2')


def test_a_rank_that_is_killed_is_named(ended):
    """Between machines nobody tells: the others see that it is not heard of any more."""
    assert (ended['kill0'].code, ended['kill1'].code) == (1, -9)
    assert 'rank 1 died' in ended['kill0'].only('rank 0 of 2')


def test_a_rank_that_does_not_come_is_named(ended):
    assert ended['absent0'].code == 1
    assert 'ranks 1, 2 of 3 did not come to 127.0.0.1' in ended['absent0'].only('rank 0 of 3')


def test_a_clean_exit_is_one(ended):
    assert (ended['stop0'].code, ended['stop1'].code) == (0, 0)
    assert ended['stop0'].output == ''


@pytest.fixture
def alone(monkeypatch):
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_rank_makes_no_group(alone, capsys):
    with distributed.session('cpu') as device:
        assert device == torch.device('cpu') and not torch.distributed.is_initialized()
        tensor = torch.tensor([1.0, 2.0])
        distributed.all_reduce_(tensor)
        distributed.barrier()
        assert tensor.tolist() == [1, 2]
        assert distributed.all_gather_object('a') == ['a']
        assert (distributed.get_rank(), distributed.get_world_size(), distributed.get_local_rank()) == (0, 1, 0)
        distributed.print0('once')
    assert capsys.readouterr().out == 'once\n'
    with pytest.raises(ValueError, match="'mean' is not a reduction"):
        distributed.all_reduce_(tensor, 'mean')


def test_one_rank_lets_errors_pass(alone):
    with pytest.raises(KeyError), distributed.session('cpu'):
        raise KeyError('as it is')


def test_print0_is_silent_elsewhere(alone, capsys):
    alone.setenv('RANK', '1')
    alone.setenv('WORLD_SIZE', '2')
    distributed.print0('never')
    assert capsys.readouterr().out == ''
    with pytest.raises(RuntimeError, match='all_reduce among 2 ranks needs distributed.session'):
        distributed.all_reduce_(torch.zeros(1))
    alone.delenv('MASTER_ADDR', raising=False)
    with pytest.raises(ValueError, match='MASTER_ADDR'):
        distributed.init('cpu')
    alone.setenv('RANK', 'one')
    with pytest.raises(ValueError, match="RANK is 'one'"):
        distributed.get_rank()


def test_devices(alone):
    assert distributed.device_for_rank('cpu') == torch.device('cpu')
    with pytest.raises(ValueError, match="unknown device 'gpu'; choose from cuda, mps, cpu"):
        distributed.device_for_rank('gpu')
    with pytest.raises(ValueError, match='meta is not a device for training'):
        distributed.device_for_rank('meta')
    alone.setattr(torch.cuda, 'is_available', lambda: False)
    alone.setattr(torch.backends.mps, 'is_available', lambda: False)
    assert distributed.device_for_rank() == distributed.device_for_rank('auto') == torch.device('cpu')
    with pytest.raises(ValueError, match='finds no GPU'):
        distributed.device_for_rank('cuda')
    with pytest.raises(ValueError, match='mps was asked for'):
        distributed.device_for_rank('mps')
    alone.setattr(torch.cuda, 'is_available', lambda: True)
    alone.setattr(torch.cuda, 'device_count', lambda: 2)
    alone.setenv('WORLD_SIZE', '3')
    alone.setenv('LOCAL_RANK', '1')
    assert distributed.device_for_rank() == distributed.device_for_rank('cuda') == torch.device('cuda', 1)
    with pytest.raises(ValueError, match='cannot share cuda:0'):
        distributed.device_for_rank('cuda:0')
    alone.setenv('LOCAL_RANK', '2')
    with pytest.raises(ValueError, match='local rank 2 needs GPU 2, but there are 2: lower --nproc_per_node'):
        distributed.device_for_rank()
    alone.setattr(torch.cuda, 'is_available', lambda: False)
    alone.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert distributed.device_for_rank() == torch.device('cpu')
    with pytest.raises(ValueError, match='3 ranks cannot share mps'):
        distributed.device_for_rank('mps')
    alone.setenv('WORLD_SIZE', '1')
    assert distributed.device_for_rank() == torch.device('mps')
