"""Speed of FID's features, and of FID itself.

    python -m benchmarks.features --threads=2

Compares the network as pytorch-fid runs it (plain modules, evaluation mode, NCHW, ``no_grad``), ours (``fast_``: folded
norms, joined 1x1 convolutions, channels-last, ``inference_mode``), and ours in bfloat16; and the 2048-dimensional FID
with ``scipy.linalg.sqrtm``. Without Inception's weights random ones are used: speed is the same, features are not.
"""

import time

import click
import numpy as np
import scipy.linalg
import torch

from benchmarks import common
from cli.options import script
from metrics.detectors import weights_path
from metrics.distances import frechet_distance
from metrics.inception import DIM, Inception
from metrics.weights import load_, read_state


def bench_features(batch: int, rounds: int) -> None:
    plain, ours, half = (Inception() for _ in range(3))
    try:
        path = weights_path('inception')
        state = read_state(path)
    except OSError as error:
        click.echo(f'random weights: {error}')
        path, state = 'random weights', plain.state_dict()
    for net in (plain, ours, half):
        load_(net, state, path)
    ours.fast_()
    half.fast_(torch.bfloat16)
    images = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    calls = {
        'plain PyTorch': torch.no_grad()(lambda: plain(images)),
        'ours': torch.inference_mode()(lambda: ours(images)),
        'ours, bfloat16': torch.inference_mode()(lambda: half(images)),
    }
    seconds = common.interleaved(calls, rounds)
    expected = calls['plain PyTorch']()
    for name, value in common.medians(seconds).items():
        off = float((calls[name]() - expected).norm() / expected.norm())
        speed = common.ratio(seconds, 'plain PyTorch', name)
        click.echo(f'{name:16} {batch / value:6.1f} img/s  {speed:5.2f} x plain  features off by {off:.1e}')


def bench_fid(rounds: int, sqrtm: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, DIM, dtype=torch.float64)
    for num in (5000, 1000):
        x, y = (torch.randn(num, DIM, generator=generator, dtype=torch.float64) * scale for _ in range(2))
        moments = [part for z in (x, y) for part in (z.mean(0).numpy(), torch.cov(z.T).numpy())]
        seconds = common.interleaved({'': lambda m=moments: frechet_distance(*m)}, rounds)
        ours = common.medians(seconds)['']
        line = f'FID of {num} vectors of {DIM}: {ours:.2f} s'
        if sqrtm:
            start = time.perf_counter()
            mu1, sigma1, mu2, sigma2 = moments
            trace = np.trace(sigma1 + sigma2 - 2 * scipy.linalg.sqrtm(sigma1 @ sigma2).real)
            spent = time.perf_counter() - start
            off = abs(((mu1 - mu2) ** 2).sum() + trace - frechet_distance(*moments))
            line += f'; sqrtm: {spent:.1f} s, {spent / ours:.1f} times ours, and {off:.0e} away'
        click.echo(line)


@script(__file__)
@click.option('--batch', type=click.IntRange(min=1), default=16, help='Images at a time')
@click.option('--rounds', type=click.IntRange(min=1), default=7, help='Rounds, of which the medians are taken')
@click.option('--threads', type=click.IntRange(min=1), help="CPU threads  [default: PyTorch's choice]")
@click.option('--sqrtm', is_flag=True, help='Also time scipy.linalg.sqrtm: a minute and more')
def main(batch, rounds, threads, sqrtm):
    if threads:
        torch.set_num_threads(threads)
    click.echo(f'PyTorch {torch.__version__}, {torch.get_num_threads()} threads')
    bench_features(batch, rounds)
    bench_fid(3, sqrtm)


if __name__ == '__main__':
    main()
