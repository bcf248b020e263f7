"""Speed of FID's features, and of FID itself.

\b
  OMP_NUM_THREADS=1 python -m benchmarks.features --clock=cpu --out benchmarks/results/features

Compares the network as pytorch-fid runs it (plain modules, evaluation mode, NCHW, ``no_grad``), ours (``fast_``: folded
norms, joined 1x1 convolutions, channels-last, ``inference_mode``), ours with all images at once instead of in parts
that fit the memory which glibc keeps, and, with --bfloat16, ours in that; AlexNet's detector and LPIPS in both memory
layouts; and the 2048-dimensional FID with ``scipy.linalg.sqrtm``. Without Inception's weights random ones are used, as
always for AlexNet: speed is the same, features are not.
"""

import time
from typing import Any

import click
import numpy as np
import scipy.linalg
import torch

from benchmarks import common
from cli.options import script
from metrics.detectors import weights_path
from metrics.distances import frechet_distance
from metrics.inception import DIM, Inception, scaled
from metrics.lpips import LPIPS, PooledAlexNet
from metrics.weights import load_, read_state


def bench_features(batch: int, rounds: int, bfloat16: bool, clock: str) -> list[dict[str, Any]]:
    """A row for each way to compute the features."""
    nets = [Inception() for _ in range(3 if bfloat16 else 2)]
    try:
        path = weights_path('inception')
        state = read_state(path)
    except OSError as error:
        click.echo(f'random weights: {error}')
        path, state = 'random weights', nets[0].state_dict()
    for net in nets:
        load_(net, state, path)
    plain, ours, *half = nets
    ours.fast_()
    images = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    calls = {
        'plain PyTorch': torch.no_grad()(lambda: plain(images)),
        'ours, all at once': torch.inference_mode()(lambda: ours.blocks(ours.stem(scaled(images)))),
        'ours': torch.inference_mode()(lambda: ours(images)),
    }
    if half:
        half[0].fast_(torch.bfloat16)
        calls['ours, bfloat16'] = torch.inference_mode()(lambda: half[0](images))
    seconds = common.interleaved(calls, rounds, clock=clock)
    expected = calls['plain PyTorch']()
    return [
        {
            'features': name,
            'images/s': batch / value,
            'x plain': common.ratio(seconds, 'plain PyTorch', name),
            'off by': f'{float((calls[name]() - expected).norm() / expected.norm()):.1e}',
        }
        for name, value in common.medians(seconds).items()
    ]


def bench_alex(batch: int, rounds: int, clock: str) -> list[dict[str, Any]]:
    """A row for each network on AlexNet: pictures of the detector, pairs of LPIPS."""
    a, b = torch.rand(2, batch, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = []
    for name, kind, given in (('alex', PooledAlexNet, (a,)), ('LPIPS', LPIPS, (a, b))):
        plain, ours = kind().to(memory_format=torch.contiguous_format), kind()
        calls = {'NCHW': lambda net=plain, x=given: net(*x), 'ours': lambda net=ours, x=given: net(*x)}
        with torch.inference_mode():
            seconds = common.interleaved(calls, rounds, clock=clock)
        speed = {f'{key}, images/s': batch / value for key, value in common.medians(seconds).items()}
        rows.append({'network': name, **speed, 'x NCHW': common.ratio(seconds, 'NCHW', 'ours')})
    return rows


def bench_fid(rounds: int, sqrtm: bool, clock: str) -> list[dict[str, Any]]:
    """A row for each number of vectors."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, DIM, dtype=torch.float64)
    rows = []
    for num in (5000, 1000):
        x, y = (torch.randn(num, DIM, generator=generator, dtype=torch.float64) * scale for _ in range(2))
        moments = [part for z in (x, y) for part in (z.mean(0).numpy(), torch.cov(z.T).numpy())]
        seconds = common.interleaved({'': lambda m=moments: frechet_distance(*m)}, rounds, clock=clock)
        ours = common.medians(seconds)['']
        rows.append({'vectors': num, 'FID, s': ours})
        if sqrtm:
            start = time.perf_counter()
            mu1, sigma1, mu2, sigma2 = moments
            trace = np.trace(sigma1 + sigma2 - 2 * scipy.linalg.sqrtm(sigma1 @ sigma2).real)
            spent = time.perf_counter() - start
            off = abs(((mu1 - mu2) ** 2).sum() + trace - frechet_distance(*moments))
            rows[-1] |= {'sqrtm, s': spent, 'sqrtm / ours': spent / ours, 'sqrtm off by': f'{off:.0e}'}
    return rows


@script(__file__)
@common.OUT
@common.CLOCK
@click.option('--batch', type=click.IntRange(min=1), default=64, help='Images at a time')
@click.option('--rounds', type=click.IntRange(min=1), default=5, help='Rounds, of which the medians are taken')
@click.option('--threads', type=click.IntRange(min=1), help="CPU threads  [default: PyTorch's choice]")
@click.option('--bfloat16', is_flag=True, help='Also in bfloat16, for which few CPUs have instructions')
@click.option('--sqrtm', is_flag=True, help='Also time scipy.linalg.sqrtm: a minute and more')
def main(out, clock, batch, rounds, threads, bfloat16, sqrtm):
    if threads:
        torch.set_num_threads(threads)
    facts = common.machine(clock=clock)
    tables = {
        f'Features of {batch} images of 32x32:': bench_features(batch, rounds, bfloat16, clock),
        f'AlexNet, {batch} images of 64x64:': bench_alex(batch, rounds, clock),
        f'FID from the moments of vectors of {DIM}:': bench_fid(3, sqrtm, clock),
    }
    common.report('Features and FID', facts, tables, out)


if __name__ == '__main__':
    main()
