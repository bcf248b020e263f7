"""The 2D density toy: its measure against brute force, and a small run of the script."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import unpadded
from PIL import Image

from experiments import points
from experiments import toy_density as toy
from metrics import density as densities


def slow_kl(points, density: np.ndarray) -> float:
    """KL(nodes || density), one point and one bin at a time."""
    S, counts = len(density), {}
    for x, y in points:
        row = min(max(math.floor((1 - y) / 2 * S), 0), S - 1)
        column = min(max(math.floor((x + 1) / 2 * S), 0), S - 1)
        counts[row, column] = counts.get((row, column), 0) + 1
    return sum(c / len(points) * math.log(c / len(points) / density[b]) for b, c in counts.items())


@pytest.mark.parametrize('seed', range(5))
def test_kl_is_the_sum_over_bins(seed):
    rng = np.random.default_rng(seed)
    density = densities.from_array(rng.random((7, 7)) ** 4)
    points = rng.uniform(-1.1, 1.1, (50, 2))  # some outside
    assert densities.kl(points, density) == pytest.approx(slow_kl(points, density), abs=1e-12)
    assert densities.histogram(points, 7).sum() == 50
    assert 0 <= densities.total_variation(points, density) <= 1


@pytest.mark.parametrize('K', [1, 2, 3, 5])
def test_the_floor_is_the_least_of_all_allocations(K):
    for seed in range(10):
        density = densities.from_array(np.random.default_rng(seed).random((2, 2)) ** 3)
        best = min(
            densities.kl_of_counts(np.bincount(bins, minlength=4).reshape(2, 2), density)
            for bins in itertools.combinations_with_replacement(range(4), K)
        )
        assert densities.floor(density, K) == pytest.approx(best, abs=1e-12)
        assert densities.best_counts(density, K).sum() == K


def test_the_floor_of_many_nodes_is_zero():
    density = densities.gaussian(10)
    assert 0 <= densities.floor(density, 20_000) < 1e-4
    assert densities.floor(density, 100) > densities.floor(density, 1000)


@pytest.mark.parametrize('name', densities.BUILT_IN)
def test_densities_and_their_samples(name):
    density = densities.BUILT_IN[name](40)
    assert density.shape == (40, 40) and density.min() > 0 and density.sum() == pytest.approx(1)
    points = densities.sample(density, 200_000, np.random.default_rng(0))
    assert np.abs(points).max() <= 1
    share = densities.histogram(points, 40) / len(points)
    sigma = np.sqrt(density / len(points))
    assert (np.abs(share - density) < 6 * sigma + 1e-5).all()  # a sample lands in the bin that it was drawn from


def test_no_density():
    for bad in (np.zeros((3, 3)), -np.ones((3, 3)), np.ones(3), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match='a density is'):
            densities.from_array(bad)


def test_a_node_goes_to_its_samples_one_after_another():
    nodes = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 2.0], [9.0, 9.0]])
    points.move_(nodes, x, torch.tensor([0, 0, 1, 1]), torch.tensor([True, True, True, False]), 0.5)
    want = torch.tensor([[0.75, 0.0], [1.0, 1.5], [5.0, 5.0]])
    torch.testing.assert_close(nodes, want)


@pytest.mark.parametrize('method', ['split-prune', 'pairs', 'trimmed'])
def test_a_small_run_beats_gradient_and_real_samples(method):
    density = densities.spiral(40)
    rng = np.random.default_rng(0)
    start, data = rng.uniform(-1, 1, (150, 2)), densities.sample(density, 8000, rng)
    before = start.copy()
    end, balance = points.train(start, data, points.METHODS[method])
    gradient, none = points.train(start, data, points.METHODS['gradient'])
    assert np.array_equal(start, before)
    kl = densities.kl(end, density)
    assert kl < densities.kl(densities.sample(density, 150, rng), density) < densities.kl(gradient, density)
    assert kl > densities.floor(density, 150)
    assert balance.num_splits > 10 and none.num_splits == 0
    again, _ = points.train(start, data, points.METHODS[method])
    assert np.array_equal(again, end)


def run(*args: str):
    return CliRunner().invoke(toy.main, [*args, '--nodes=60', '--samples=1000'])


def test_the_script_end_to_end(tmp_path):
    Image.fromarray(np.uint8(np.eye(50) * 255)).save(tmp_path / 'stripe.png')
    np.savez(tmp_path / 'more.npz', corner=np.eye(30)[:10, :10])
    result = run(f'--density={tmp_path}/stripe.png', '--density=gaussian', f'--densities={tmp_path}/more.npz',
                 '--animate=stripe', f'--outdir={tmp_path}/out')
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert [r['density'] for r in report['results']] == ['corner', 'stripe', 'gaussian']
    for r in report['results'][1:]:
        assert set(r['methods']) == set(points.METHODS)
        assert all(r['floor'] < m['kl'] for m in r['methods'].values())
        assert r['methods']['pairs']['kl'] < r['methods']['gradient']['kl']
    assert '| stripe |' in unpadded(result.output)
    for name in ('panels.png', 'line.png', 'nodes.gif'):
        with Image.open(tmp_path / 'out' / name) as picture:
            picture.load()
            assert picture.width > 200 and (getattr(picture, 'n_frames', 1) > 1) == (name == 'nodes.gif')


def test_bad_input_is_named(tmp_path):
    (tmp_path / 'text.png').write_text('no picture')
    Image.new('L', (8, 8)).save(tmp_path / 'black.png')
    (tmp_path / 'file').touch()
    for args, message in [
        (['--density=nowhere.png'], 'nowhere.png is neither a file nor one of gaussian, rings'),
        ([f'--density={tmp_path}/text.png'], 'text.png'),
        ([f'--density={tmp_path}/black.png'], 'not all zero'),
        ([f'--densities={tmp_path}/text.png'], 'text.png'),
        (['--density=gaussian', f'--outdir={tmp_path}/file/out'], f'{tmp_path}/file/out'),
    ]:
        result = run(*args)
        assert result.exit_code == 1 and message in result.output, (args, result.output)
        assert 'Traceback' not in result.output
    assert CliRunner().invoke(toy.main, ['--nodes=1']).exit_code == 2
    assert 'floor' in CliRunner().invoke(toy.main, ['--help']).output
