"""What the benchmarks share: timing that is fair under noise, peak memory, the machine in words, tables.

All contestants of a comparison run in turn, round after round, so that whatever else the machine does hits everybody
alike. A time is the median over rounds; a ratio is the median of the ratios within a round. On a machine that others
use, two threads that wait for each other measure the others: take one thread (OMP_NUM_THREADS=1) and its own CPU
seconds (--clock=cpu). MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_THRESHOLD_=4000000000 keep glibc from giving memory
back to the system after each block and asking for it anew. That costs most who allocate most: a layer of 128 channels,
64x64, K 512, took 1.6 times as long without them, sddn's 3.4 times, discrete-distribution-network's 4.1 times (CPU
seconds of one thread). A table says whether they were set; docs/results.md says how each was made.
"""

import gc
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import torch

from torch_utils import misc

Call = Callable[[], Any]
CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


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
        cases: name -> what to time; each round runs them all, every other round in the opposite order.
        repeats: rounds.
        burst: calls shorter than this many seconds are repeated until they fill it; the number is their mean.
        warmup: calls of each case before the clock runs.
        clock: 'wall', or 'cpu' for the seconds that this process was running.
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
    """How many times longer ``name`` takes than ``to``: the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Name -> median over the rounds."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def in_fresh_process(fn: Callable, *args: Any) -> Any:
    """``fn(*args)`` in a Python process of its own, with nothing of ours in its memory. Both must pickle."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        return pool.submit(fn, *args).result()


def extra_memory(call: Call, device: str = 'cpu', calls: int = 2) -> int:
    """Bytes that ``call`` needs at its peak over what lies in memory before: resident memory on the CPU (run it in a
    fresh process), allocated memory on CUDA."""
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


def machine(device: str = 'cpu', clock: str = 'wall') -> dict[str, Any]:
    """Where and with what something was measured."""
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


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; the keys of the first row are its columns."""
    columns = list(rows[0])
    cells = [columns, *([_cell(row.get(c)) for c in columns] for row in rows)]
    width = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ['| ' + ' | '.join(text.ljust(w) for text, w in zip(line, width, strict=True)) + ' |' for line in cells]
    return '\n'.join([lines[0], '| ' + ' | '.join('-' * w for w in width) + ' |', *lines[1:]])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f'{value:.3g}' if abs(value) < 100 else f'{value:.0f}'
    return '' if value is None else str(value)


def report(title: str, facts: Mapping[str, Any], tables: Mapping[str, Sequence[Mapping[str, Any]]], out: str | None):
    """Print the tables; with ``out`` ('results/ddl'), also write ``out``.md and ``out``.json."""
    parts = [f'# {title}', in_words(facts)]
    for caption, rows in tables.items():
        parts += [caption, table(rows)] if rows else []
    text = '\n\n'.join(parts) + '\n'
    print(text)
    if out:
        os.makedirs(os.path.dirname(out) or '.', exist_ok=True)
        Path(f'{out}.md').write_text(text)
        Path(f'{out}.json').write_text(json.dumps({'machine': facts, 'tables': tables}, indent=2) + '\n')
