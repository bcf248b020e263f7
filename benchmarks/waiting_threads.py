"""Training with threads that soon sleep while they wait, against threads that spin, alone and with busy loops.

    python -m benchmarks.waiting_threads --out=benchmarks/results/waiting_threads     # on a quiet machine, minutes

Each run trains the network of a preset as train.py does, in a fresh process, on temporary images of noise. Rows: what
cli/environment.py sets (threads spin for microseconds, then sleep), threads that sleep at once, that spin for
milliseconds (OpenMP's default), and a single thread. All rows take turns, first alone, then with --busy processes that
compute without end. Images per second are medians over rounds, ratios the medians of the ratios within a round.
"""

import contextlib
import io
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks import common
from cli.environment import BY_THE_USER
from cli.options import Ints, script
from cli.training_runs import train
from training.report import read_stats

OURS, SLEEP, SPIN, ONE = 'as the scripts set it', 'sleep', 'spin', 'one thread'
SHORTER = 8  # runs beside busy loops: threads that spin take up to fifty times as long
# What decides how threads wait. The variable of another library keeps cli/environment.py from setting it.
ENVIRONMENTS = {
    OURS: {},
    SLEEP: {'OMP_WAIT_POLICY': 'passive'},
    SPIN: {'KMP_LIBRARY': 'throughput'},
    ONE: {'OMP_NUM_THREADS': '1'},
}


def images_per_second(options: dict[str, Any]) -> float:
    """Train, and return the median over all ticks but the first."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        ticks = read_stats(train({**options, 'outdir': folder, 'nosubdir': True}))
    return statistics.median(tick['images_per_sec'] for tick in ticks[1:])


@contextlib.contextmanager
def environment(changes: dict[str, str]) -> Iterator[None]:
    """``os.environ`` for fresh processes, without what the user has set for threads."""
    before = dict(os.environ)
    for name in (*BY_THE_USER, 'OMP_NUM_THREADS'):
        os.environ.pop(name, None)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def busy_loop() -> None:
    while True:
        pass


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    context = multiprocessing.get_context('spawn')
    loops = [context.Process(target=busy_loop, daemon=True) for _ in range(count)]
    try:
        for loop in loops:
            loop.start()
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.join()


def ticks(images: int) -> dict[str, float]:
    """Options for eight ticks and no snapshots."""
    return {'tick': images / 8000, 'snap': 1000, 'dump': 1000, 'duration': images / 1e6}


def measure(
    options: dict[str, Any], rounds: int, busy: int, environments: dict[str, dict[str, str]]
) -> dict[str, list[float]]:
    """Images per second of each row, a number per round."""
    found = {name: [] for name in environments}
    with busy_loops(busy):
        for round_ in range(rounds):
            for name in list(environments)[:: -1 if round_ % 2 else 1]:
                with environment(environments[name]):
                    found[name].append(common.in_fresh_process(images_per_second, options))
    return found


@script(__file__)
@click.option('--preset', metavar='NAME', default='mnist-cpu', help='Preset of train.py')
@click.option('--size', metavar='PIXELS', type=click.IntRange(min=4), default=32, help='Side of the images')
@click.option('--images', metavar='INT', type=click.IntRange(min=1), default=1920, help='Images per run')
@click.option('--rounds', metavar='INT', type=click.IntRange(min=1), default=5, help='Runs of each row')
@click.option('--busy', metavar='INT', type=click.IntRange(min=0), default=2, help='Busy loops')
@click.option('--spins', metavar='LIST', type=Ints(), default=(), help='Also GOMP_SPINCOUNT of these values')
@common.OUT
def main(
    preset: str, size: int, images: int, rounds: int, busy: int, spins: list[int], out: str | None
) -> None:
    environments = ENVIRONMENTS | {f'GOMP_SPINCOUNT={n}': {'GOMP_SPINCOUNT': str(n)} for n in spins}
    facts = common.machine()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / 'noise.zip'
        common.make_noise(data, count=256, size=size)
        options = {'preset': preset, 'data': data, 'device': 'cpu'}
        columns = {
            'alone': measure(options | ticks(images), rounds, 0, environments),
            f'beside {busy} busy loops': measure(options | ticks(images // SHORTER), rounds, busy, environments),
        }
    rows = []
    for name in environments:
        row = {'threads that wait': name}
        for title, found in columns.items():
            row[f'img/s {title}'] = statistics.median(found[name])
            for other in (ONE, SPIN):
                row[f'{title} / {other}'] = common.ratio(found, name, other)
        rows.append(row)
    common.report('Waiting threads', facts, {f'Preset {preset}, {images} images per run, {rounds} rounds': rows}, out)


if __name__ == '__main__':
    main()
