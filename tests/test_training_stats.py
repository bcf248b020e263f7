"""Statistics of one rank against torch's own; over ranks see test_distributed."""

import math

import pytest
import torch

from torch_utils.training_stats import Collector


def test_mean_and_deviation():
    values = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) * 2 + 5 for n in (1, 4, 7)]
    collector = Collector()
    for v in values:
        collector.report('loss', v)
    flat = torch.cat(values).double()
    stat = collector.update()['loss']
    assert stat.num == 36
    assert stat.mean == pytest.approx(flat.mean().item(), rel=1e-12)
    assert stat.std == pytest.approx(flat.std(correction=0).item(), rel=1e-9)


def test_update_starts_anew_and_leaves_out_what_is_silent():
    collector = Collector()
    collector.report('b', 2.0)
    collector.report('a', torch.tensor([1, 2, 3]))
    stats = collector.update()
    assert list(stats) == ['a', 'b'] and stats['a'][0] == 2 and stats['b'] == (2.0, 0.0, 1)
    assert collector.update() == {}
    collector.report('c', torch.tensor(True))
    collector.report('a', torch.ones(2, dtype=torch.bfloat16, requires_grad=True))
    assert collector.update() == {'a': (1.0, 0.0, 2), 'c': (1.0, 0.0, 1)}
    collector.report('empty', torch.zeros(0))
    assert collector.update() == {}


def test_many_steps_lose_nothing():
    """float32 would stop counting at 2^24."""
    collector = Collector()
    collector.report('x', torch.zeros(1).expand(2**24))
    for _ in range(3):
        collector.report('x', 1.0)
    stat = collector.update()['x']
    assert stat.num == 2**24 + 3 and stat.mean == 3 / (2**24 + 3)


def test_not_finite_shows():
    collector = Collector()
    collector.report('x', torch.tensor([1.0, math.nan]))
    collector.report('y', math.inf)
    stats = collector.update()
    assert math.isnan(stats['x'].mean) and math.isnan(stats['x'].std) and stats['y'].mean == math.inf
    collector.report('x', 1.0)
    assert collector.update() == {'x': (1.0, 0.0, 1)}


def test_collectors_do_not_share():
    one, two = Collector(), Collector()
    one.report('x', 1.0)
    assert two.update() == {} and one.update() == {'x': (1.0, 0.0, 1)}
