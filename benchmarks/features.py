"""How fast are FID's features, and FID itself?

    python benchmarks/features.py [--batch 16] [--rounds 7] [--threads N]

Compares, in turn and with medians, so that a busy machine hits all alike: the network as pytorch-fid runs it (plain
modules, evaluation mode, NCHW, `no_grad`), ours (`fast_`: norms folded, 1x1 convolutions joined, channels-last,
`inference_mode`), and ours in bfloat16; and times the 2048-dimensional FID against `scipy.linalg.sqrtm`. Weights are
random where none are at hand: speed is the same, the difference of the features is then of random ones.
"""

import argparse
import os
import statistics
import sys
import time

import numpy as np
import scipy.linalg
import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..'))

from cli.options import script_help
from metrics.detectors import read_state, weights_path
from metrics.distances import frechet_distance
from metrics.inception import DIM, Inception


def medians(functions: dict, rounds: int) -> dict[str, float]:
    """Median seconds of each function; they take turns, and a first round is not counted."""
    seconds = {name: [] for name in functions}
    for i in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def bench_features(batch: int, rounds: int) -> None:
    try:
        state = read_state(weights_path('inception'))
    except OSError as error:
        print(f'random weights: {error}')
        state = Inception().state_dict()
    plain, ours, half = (Inception().load_weights_(state) for _ in range(3))
    ours.fast_()
    half.fast_(torch.bfloat16)
    images = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def as_usual():
        with torch.no_grad():
            return plain(images)

    def run(net):
        with torch.inference_mode():
            return net(images)

    functions = {'plain PyTorch': as_usual, 'ours': lambda: run(ours), 'ours, bfloat16': lambda: run(half)}
    found = medians(functions, rounds)
    expected = as_usual()
    for name, seconds in found.items():
        off = float((functions[name]() - expected).norm() / expected.norm())
        speed = found['plain PyTorch'] / seconds
        print(f'{name:16} {batch / seconds:6.1f} img/s  {speed:5.2f} x plain  features off by {off:.1e}')


def bench_fid(rounds: int, sqrtm: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, DIM, dtype=torch.float64)
    for num in (5000, 1000):
        x, y = (torch.randn(num, DIM, generator=generator, dtype=torch.float64) * scale for _ in range(2))
        mu, sigma = [z.mean(0).numpy() for z in (x, y)], [torch.cov(z.T).numpy() for z in (x, y)]
        result = []
        ours = medians({'': lambda: result.append(frechet_distance(mu[0], sigma[0], mu[1], sigma[1]))}, rounds)['']  # noqa: B023
        print(f'FID of {num} vectors of {DIM}: {ours:.2f} s', end='', flush=True)
        if sqrtm:
            start = time.perf_counter()
            root = scipy.linalg.sqrtm(sigma[0] @ sigma[1])
            trace = np.trace(sigma[0] + sigma[1] - 2 * root.real)
            seconds = time.perf_counter() - start
            off = abs(((mu[0] - mu[1]) ** 2).sum() + trace - result[0])
            print(f'; sqrtm: {seconds:.1f} s, {seconds / ours:.1f} times ours, and {off:.0e} away', end='')
        print()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=script_help(__file__).splitlines()[0])
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--threads', type=int, default=0, help='of PyTorch; 0: as many as it takes')
    parser.add_argument('--sqrtm', action='store_true', help='also time scipy.linalg.sqrtm (a minute and more)')
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f'PyTorch {torch.__version__}, {torch.get_num_threads()} threads')
    bench_features(options.batch, options.rounds)
    bench_fid(3, options.sqrtm)
