"""Timing that is fair under noise, peak memory, a description of the machine, and reports: shared by the benchmarks.

All contestants of a comparison take turns, round after round, so that other load affects all of them the same way.
A time is the median over rounds; a ratio is the median of the ratios within a round. On a machine that others use,
threads that wait for each other measure the others: use one thread (OMP_NUM_THREADS=1) and its CPU seconds
(--clock=cpu).

MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000 keep glibc from returning memory to the system after
each block. That matters most where most is allocated: without them a layer of 128 channels, 64x64, K 512, took 1.6
times as long, sddn's 3.4 times, discrete-distribution-network's 4.1 times (CPU seconds of one thread). Tables say
whether they were set; docs/results.md says how each was made.
"""

import gc
import multiprocessing
import os
import platform
import statistics
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import torch
from PIL import Image

from cli.tables import markdown, write_results
from torch_utils import misc

Call = Callable[[], Any]
CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}

# Options of several benchmarks.
OUT = click.option('--out', metavar='PATH', help='Write PATH.md and PATH.json')
CLOCK = click.option('--clock', help='Clock: wall, or cpu for the CPU seconds of this process',
                     type=click.Choice(list(CLOCKS)), default='wall')  # fmt: skip


def interleaved(
    cases: Mapping[str, Call],
    repeats: int,
    burst: float = 0.0,
    warmup: int = 1,
    device: str = 'cpu',
    clock: str = 'wall',
) -> dict[str, list[float]]:
    """Seconds per call of every case, one number per round.

    Args:
        cases: {name: what to time}; each round runs them all, every other round in the opposite order.
        repeats: rounds.
        burst: calls shorter than this many seconds are repeated until they fill it; the number is their mean.
        warmup: calls of each case before the clock runs.
        clock: 'wall', or 'cpu' for the CPU seconds of this process.
    """
    numbers = {}
    for name, call in cases.items():
        for _ in range(warmup):
            call()
        numbers[name] = max(1, round(burst / max(_seconds(call, 1, device, CLOCKS[clock]), 1e-9))) if burst else 1
    seconds = {name: [] for name in cases}
    for round_ in range(repeats):
        for name in list(cases)[:: -1 if round_ % 2 else 1]:
            gc.collect()
            seconds[name].append(_seconds(cases[name], numbers[name], device, CLOCKS[clock]))
    return seconds


def _seconds(call: Call, number: int, device: str, clock: Callable[[], float]) -> float:
    synchronize(device)
    start = clock()
    for _ in range(number):
        call()
    synchronize(device)
    return (clock() - start) / number


def synchronize(device: str) -> None:
    """Wait for the device, so that the clock sees its work."""
    if device.startswith('cuda'):
        torch.cuda.synchronize(device)


def ratio(seconds: Mapping[str, Sequence[float]], name: str, to: str) -> float:
    """Time of ``name`` over the time of ``to``: the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """{name: median over the rounds}"""
    return {name: statistics.median(values) for name, values in seconds.items()}


def in_fresh_process(fn: Callable, *args: Any) -> Any:
    """``fn(*args)`` in a new Python process. Both must pickle."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        return pool.submit(fn, *args).result()


def extra_memory(call: Call, device: str = 'cpu', calls: int = 2) -> int:
    """Peak bytes of ``call`` over those in use before: resident memory on the CPU (run it in a fresh process),
    allocated memory on CUDA."""
    gc.collect()
    if device.startswith('cuda'):
        torch.cuda.reset_peak_memory_stats(device)
        idle = torch.cuda.memory_allocated(device)
        for _ in range(calls):
            call()
        return torch.cuda.max_memory_allocated(device) - idle
    Path('/proc/self/clear_refs').write_text('5')  # Linux: the peak starts again from here
    idle = psutil.Process().memory_info().rss
    for _ in range(calls):
        call()
    status = Path('/proc/self/status').read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith('VmHWM'))
    return max(0, peak - idle)


def make_noise(path: Path, count: int, size: int) -> None:
    """Write a zip of PNGs that cannot be compressed, the slowest to read."""
    random = np.random.RandomState(0)
    with zipfile.ZipFile(path, 'w') as archive:
        for i in range(count):
            with archive.open(f'00000/img{i:08d}.png', 'w') as file:
                Image.fromarray(random.randint(0, 256, (size, size, 3), dtype=np.uint8)).save(file, 'png')


def machine(device: str = 'cpu', clock: str = 'wall') -> dict[str, Any]:
    """Facts about the machine and the software of a measurement."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        lines = [line.split(':', 1) for line in cpuinfo.read_text().splitlines() if ':' in line]
        facts = {key.strip(): value.strip() for key, value in lines}
        name = facts.get('model name', name)
        if 'cpu family' in facts:
            name += f' (family {facts["cpu family"]} model {facts.get("model")})'
    facts = {
        'cpu': name,
        'isa': torch.backends.cpu.get_cpu_capability(),
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'load': round(os.getloadavg()[0], 2) if hasattr(os, 'getloadavg') else None,
        'clock': clock,
        'malloc': {name: value for name, value in os.environ.items() if name.startswith('MALLOC_')},
        'torch': torch.__version__,
        'python': platform.python_version(),
        'revision': misc.git_revision(),
        'date': time.strftime('%Y-%m-%d', time.gmtime()),
    }
    if device.startswith('cuda'):
        facts['gpu'] = torch.cuda.get_device_name(device)
    return facts


def in_words(facts: Mapping[str, Any]) -> str:
    """``machine`` as one line."""
    gpu = f'{facts["gpu"]}; ' if 'gpu' in facts else ''
    malloc = ''.join(f', {name}={value}' for name, value in facts['malloc'].items())
    return (
        f'{gpu}{facts["cpu"]}, {facts["isa"]}, {facts["threads"]} threads on {facts["cores"]} cores, load '
        f'{facts["load"]} at the start, {facts["clock"]} seconds{malloc}; PyTorch {facts["torch"]}, '
        f'Python {facts["python"]}; {facts["revision"]}, {facts["date"]}'
    )


def report(title: str, facts: Mapping[str, Any], tables: Mapping[str, Sequence[Mapping[str, Any]]], out: str | None):
    """Print the tables; with ``out`` ('benchmarks/results/ddl'), also write ``out``.md and ``out``.json."""
    parts = [f'# {title}', in_words(facts)]
    for caption, rows in tables.items():
        parts += [caption, markdown(rows)] if rows else []
    text = '\n\n'.join(parts)
    click.echo(text)
    if out:
        write_results(out, text, {'machine': facts, 'tables': tables})
