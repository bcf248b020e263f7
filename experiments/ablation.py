"""What the scripts share that train several networks and compare them: rows are trained, scored, shown, never twice.

A row is a name and options of train.py. Each is trained by train.py and scored by fid.py, in processes of their own, so
a table holds what a user would get who typed these commands. Its run folder keeps ``row.json`` (what was asked for, CPU
seconds, whether it is finished) and the scores; a second call goes on where the first one stopped.
"""

import functools
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import spearmanr

from cli.options import one_line_errors
from cli.tables import write_results
from ddn_networks import Network
from dnnlib.archives import ImageArchive
from dnnlib.images import to_float
from dnnlib.sheets import draw_sheet, in_pairs, in_rows
from dnnlib.util import atomic_write, file_sha256, format_time
from metrics.detectors import load_detector
from training.report import mean_or_none, read_stats

ROOT = Path(__file__).resolve().parents[1]
# A network for digits that one CPU core trains in minutes; what a script changes in it, it says.
DIGITS_OPTIONS = {
    'channels': '32,32,32,32,24,16', 'batch': 32, 'lr': 0.002, 'lr-ramp': 0.002, 'lr-decay': 'cosine', 'beta2': 0.99,
    'ema': 0.002, 'workers': 0,
}  # fmt: skip


class Failed(Exception):
    """A program did not end well. The message is its own last line."""


class Row(NamedTuple):
    """A network to train. options: of train.py, by their names there: {'chain-dropout': 0}."""

    name: str
    options: dict[str, Any]


class Scoring(NamedTuple):
    """How networks are judged.

    data, held_out: training images and others (or None), zips or folders.
    detector: of fid.py. num: samples of the FID; num_reconstructed: images of each rFID.
    """

    data: str
    held_out: str | None
    detector: str
    num: int
    num_reconstructed: int


class Result(NamedTuple):
    """What became of a row: numbers by name, or the line that says why there are none."""

    row: str
    seed: int
    options: dict[str, Any]
    numbers: dict[str, float]
    facts: dict[str, Any]
    network: str | None
    error: str | None = None


# ------------------------------------------------------------------------------------------------------ other programs


def run(script: str, args: Sequence[str], show: Callable[[str], None] | None = None, ranks: int = 1) -> None:
    """``python script args`` in the repository's root.

    ``show`` gets each line as it comes. An interrupt is passed on, and waited for. Raises Failed.
    """
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={ranks}', '--'] if ranks > 1 else []
    command = [sys.executable, *launcher, script, *args]
    last = 'it said nothing'
    # In a session of its own, so that Ctrl-C does not reach it twice: train.py saves at the first, ends at the second.
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            for line in process.stdout:
                line = line.strip().rsplit('\r', 1)[-1]  # of a progress bar, what stands at the end
                if line:
                    last = line if line.startswith('Error') or not last.startswith('Error') else last
                    if show is not None:
                        show(line)
        except BaseException:
            process.terminate()
            process.communicate()
            raise
    if process.returncode:
        raise Failed(f'{script}: {last.removeprefix("Error: ")}')


def cpu_of_programs() -> float:
    """CPU seconds of all that ``run`` has run (0 on Windows, which does not say)."""
    times = os.times()
    return times.children_user + times.children_system


def absolute(path: str | None) -> str | None:
    """A file or folder by its whole name; names of other things, such as URLs, as they are."""
    return str(Path(path).resolve()) if path and Path(path).exists() else path


def as_args(options: dict[str, Any]) -> list[str]:
    """{'batch': 32} -> ['--batch=32']"""
    return [f'--{name}={value}' for name, value in options.items()]


def parse_options(tokens: Sequence[str]) -> dict[str, str]:
    """What stood behind ``--``: ('--batch=64', ...) -> {'batch': '64', ...}. Raises click.UsageError."""
    options = {}
    for token in tokens:
        match = re.fullmatch(r'--([a-z0-9][a-z0-9-]*)=(.*)', token)
        if not match:
            raise click.UsageError(f'{token}: options for train.py are given as --name=value, behind a --')
        options[match[1]] = match[2]
    return options


# ------------------------------------------------------------------------------------------------------------ training


def snapshots(run_dir: Path) -> list[Path]:
    """Network snapshots of a run, the newest first."""
    return sorted(run_dir.glob('network-snapshot-*.safetensors'), reverse=True)


def train(options: dict[str, Any], run_dir: Path, show: Callable[[str], None], machine: dict[str, Any]) -> bool:
    """Train a network in ``run_dir``, or go on with it; False if that was done before.

    ``machine`` holds what does not change the result: 'device', 'ranks'. Raises Failed.
    """
    path = run_dir / 'row.json'
    options = {name: str(value) for name, value in options.items()}
    record = {'options': options, 'cpu_seconds': 0.0, 'finished': False}
    if path.is_file():
        record = json.loads(path.read_text(encoding='utf-8'))
        before = record['options']
        changed = [k for k in {**before, **options} if before.get(k) != options.get(k)]
        if changed:
            old, new = ({k: x[k] for k in sorted(changed) if k in x} for x in (before, options))
            raise Failed(f'{run_dir} was trained with {old}, now {new} is asked for: give another --outdir')
        if record['finished'] and snapshots(run_dir):
            return False
    run_dir.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        with atomic_write(path, 'w') as f:
            json.dump(record, f, indent=2)

    save()
    where = [f'--device={machine["device"]}'] if machine.get('device') else []
    going_on = any(run_dir.glob('training-state-*.safetensors'))
    args = [f'--resume={run_dir}'] if going_on else [f'--outdir={run_dir}', '--nosubdir', *as_args(options)]
    before = cpu_of_programs()
    try:
        run('train.py', [*args, *where], show, machine.get('ranks', 1))
        record['finished'] = True
    finally:  # stopped: the next call adds its seconds
        record['cpu_seconds'] += cpu_of_programs() - before
        save()
    return True


def training_facts(run_dir: Path) -> dict[str, Any]:
    """What the logs of a run say of it."""
    ticks = read_stats(str(run_dir))
    stored = json.loads((run_dir / 'training_options.json').read_text(encoding='utf-8'))
    steps = zip([0, *(t['nimg'] for t in ticks)], ticks, strict=False)
    return {
        'nimg': ticks[-1]['nimg'],
        'dead share': mean_or_none(ticks[-1]['dead']),
        'usage entropy': float(np.mean(ticks[-1]['usage_entropy'])),
        'training loss': ticks[-1]['loss'],
        'training seconds': sum((tick['nimg'] - before) / tick['images_per_sec'] for before, tick in steps),
        'training CPU seconds': json.loads((run_dir / 'row.json').read_text(encoding='utf-8'))['cpu_seconds'],
        'git_revision': stored['git_revision'],
    }


# ------------------------------------------------------------------------------------------------------------- scoring


def fid(command: str, path: Path, network: str, args: Sequence[str], machine: dict[str, Any]) -> dict[str, float]:
    """The numbers of ``fid.py command`` for a network, kept in ``path`` and made once. Raises Failed."""
    args = [f'--network={network}', *args]
    key = {'args': args, 'sha256': file_sha256(network)}
    if path.is_file():
        kept = json.loads(path.read_text(encoding='utf-8'))
        if kept['key'] == key:
            return kept['numbers']
    fresh = path.with_suffix('.new.json')
    where = [f'--device={machine["device"]}'] if machine.get('device') else []
    run('fid.py', [command, *args, *where, f'--json={fresh}'], ranks=machine.get('ranks', 1))
    result = json.loads(fresh.read_text(encoding='utf-8'))
    with atomic_write(path, 'w') as f:
        json.dump({'key': key, **result}, f, indent=2)
    fresh.unlink()
    return result['numbers']


def reference(scoring: Scoring, folder: Path, machine: dict[str, Any]) -> Path:
    """Statistics of the training images, made once for all rows. Raises Failed."""
    path = folder / f'reference-{Path(scoring.data).stem}-{Path(scoring.detector).stem}.npz'
    if not path.is_file():
        where = [f'--device={machine["device"]}'] if machine.get('device') else []
        args = [f'--data={scoring.data}', f'--dest={path}', f'--detector={scoring.detector}', '--keep=0', *where]
        run('fid.py', ['ref', *args], ranks=machine.get('ranks', 1))
    return path


def starting(numbers: dict[str, float], start: str) -> float | None:
    """The number whose name starts so: their ends say of how many images they are."""
    return next((value for name, value in numbers.items() if name.startswith(start)), None)


def score(
    network: str, scoring: Scoring, folder: Path, machine: dict[str, Any], keep_in: Path | None = None
) -> dict[str, float]:
    """FID of a network's samples, rFID and PSNR of training and held-out images. Raises Failed.

    fid.py's results are kept in ``keep_in``, else beside the network; the reference in ``folder``.
    """
    kept, judge = keep_in or Path(network).parent, f'--detector={scoring.detector}'
    ref = reference(scoring, folder, machine)
    args = [f'--ref={ref}', f'--num={scoring.num}', '--keep=0', judge]
    drawn = fid('calc', kept / 'score-samples.json', network, args, machine)
    numbers = {'FID': starting(drawn, 'FID')}
    if scoring.num_reconstructed:
        args = [f'--data={scoring.data}', f'--num={scoring.num_reconstructed}', judge]
        args += [f'--held-out={scoring.held_out}'] if scoring.held_out else []
        again = fid('reconstruct', kept / 'score-reconstruction.json', network, args, machine)
        for where in ('training', 'held-out'):
            numbers |= {f'{what} {where}': starting(again, f'{where} {what}') for what in ('rFID', 'PSNR')}
    return {name: value for name, value in numbers.items() if value is not None}


# ---------------------------------------------------------------------------------------------------------- all rows


def work(
    rows: Sequence[Row], seeds: Sequence[int], folder: Path, scoring: Scoring, machine: dict[str, Any]
) -> Iterator[Result]:
    """Train and score each row with each seed, all rows of a seed before the next seed, and say how long it takes.

    A row that fails is a result with its ``error``; the others go on.
    """
    started, trained = time.monotonic(), 0
    jobs = list(itertools.product(seeds, rows))
    for done, (seed, row) in enumerate(jobs):
        run_dir = folder / f'{re.sub(r"[^a-z0-9]+", "-", row.name.lower()).strip("-")}-seed{seed}'
        options = {**row.options, 'seed': seed}
        title = f'[{done + 1}/{len(jobs)}] {row.name}' + (f', seed {seed}' if len(seeds) > 1 else '')
        network = None
        try:
            show = lambda line, title=title: click.echo(f'{title}: {line}') if ' kimg ' in line else None  # noqa: E731
            click.echo(f'{title}: trains' if not snapshots(run_dir) else f'{title}: is here')
            trained += train(options, run_dir, show, machine)
            network = str(snapshots(run_dir)[0])
            click.echo(f'{title}: is judged')
            numbers = score(network, scoring, folder, machine)
            yield Result(row.name, seed, options, numbers, training_facts(run_dir) | shape(network), network)
        except Failed as error:
            click.echo(f'{title}: failed: {error}', err=True)
            yield Result(row.name, seed, options, {}, {}, network, str(error))
        except KeyboardInterrupt:
            raise click.ClickException(f'stopped in row {row.name}; the same command goes on from there') from None
        if trained and done + 1 < len(jobs):
            spent = time.monotonic() - started
            click.echo(f'About {format_time(spent / trained * (len(jobs) - done - 1))} left.')


def shape(network: str) -> dict[str, Any]:
    """Layers, nodes, bits and parameters of a snapshot's network."""
    net = Network.from_pretrained(network)
    return {
        'layers': net.num_layers,
        'nodes': max(net.num_nodes),
        'bits': net.num_bits,
        'parameters': sum(p.numel() for p in net.parameters()),
    }


# -------------------------------------------------------------------------------------------------------- their tables


def over_seeds(results: Sequence[Result], row: str, name: str) -> list[float]:
    """A number of a row, for each seed that has it."""
    values = [{**r.facts, **r.numbers}.get(name) for r in results if r.row == row]
    return [value for value in values if value is not None]


def mean_of(results: Sequence[Result], row: str, name: str) -> float | None:
    return mean_or_none(over_seeds(results, row, name))


def cell(values: Sequence[float], digits: int = 1) -> str:
    """The mean, and behind ± the standard deviation (over n - 1) where there are several; '-' for nothing."""
    if not values:
        return '-'
    text = f'{statistics.mean(values):.{digits}f}'
    return text if len(values) == 1 else f'{text} ± {statistics.stdev(values):.{digits}f}'


class Order(NamedTuple):
    """How two columns order the rows: Spearman's rho, and of how many pairs of rows both say the same."""

    rho: float
    agreeing: int
    pairs: int


def order(ours: Sequence[float | None], paper: Sequence[float]) -> Order | None:
    """Compare two columns, over the rows that ours has. Pairs that are equal in the paper's say nothing and are left
    out. None where there are fewer than three rows, or all are equal."""
    known = [(a, b) for a, b in zip(ours, paper, strict=True) if a is not None]
    if len(known) < 3 or any(len({pair[side] for pair in known}) == 1 for side in (0, 1)):
        return None
    signs = [((a > c) - (a < c)) * ((b > d) - (b < d)) for (a, b), (c, d) in itertools.combinations(known, 2) if b != d]
    rho = spearmanr(*zip(*known, strict=True)).statistic
    return Order(float(rho), sum(sign > 0 for sign in signs), len(signs))


def failures(results: Sequence[Result]) -> list[str]:
    return [f'{r.row} (seed {r.seed}): {r.error}' for r in results if r.error]


def write(folder: Path, text: str, settings: dict[str, Any], results: Sequence[Result]) -> None:
    """``results.md`` and ``results.json``. Raises click.ClickException at the end if a row failed."""
    write_results(folder / 'results', text, {**settings, 'rows': [r._asdict() for r in results]})
    click.echo(f'\n{text}\n\nWritten to {folder}')
    if failures(results):
        raise click.ClickException('rows failed: ' + '; '.join(failures(results)))


# ------------------------------------------------------------------------------------------------------------- pictures


def title_of(result: Result) -> str:
    """The row and its FID."""
    return f'{result.row}: {result.numbers["FID"]:.1f}' if 'FID' in result.numbers else result.row


def panel(title: str, network: str, pictures: torch.Tensor, samples: int, columns: int, scale: int) -> Image.Image:
    """A titled grid: samples of seeds 0, 1, ..., and below them pictures [N, C, H, W] above their reconstructions."""
    net = Network.from_pretrained(network)
    sheets = [in_rows(net.sample(samples)[0], columns)]
    if len(pictures):
        sheets.append(in_pairs(pictures, net.decode(net.encode(pictures)), columns))
    parts = [draw_sheet(rows, columns, scale=scale) for rows in sheets]
    top, gap = 26, 8
    height = top + sum(part.height + gap for part in parts)
    page = Image.new(parts[0].mode, (parts[0].width, height), 'white')
    ImageDraw.Draw(page).text((page.width / 2, top / 2), title, 'black', ImageFont.load_default(15), anchor='mm')
    for part in parts:
        page.paste(part, (0, top))
        top += part.height + gap
    return page


def side_by_side(panels: Sequence[Image.Image], columns: int, gap: int = 16) -> Image.Image:
    """Pictures of one size on one page."""
    width, height = panels[0].width + gap, panels[0].height + gap
    rows = -(-len(panels) // columns)
    page = Image.new(panels[0].mode, (gap + width * min(columns, len(panels)), gap + height * rows), 'white')
    for i, picture in enumerate(panels):
        page.paste(picture, (gap + i % columns * width, gap + i // columns * height))
    return page


def sheet(
    path: Path, results: Sequence[Result], held_out: str | None, columns: int, samples: int = 40, across: int = 8,
    scale: int = 1,
) -> None:  # fmt: skip
    """Write a page with a panel for each row that has a network, of its first seed."""
    first = {r.row: r for r in reversed(results) if r.network is not None}
    chosen = [first[row] for row in dict.fromkeys(r.row for r in results) if row in first]
    if not chosen:
        return
    pictures = torch.zeros(0)
    if held_out is not None:
        archive = ImageArchive(held_out)
        shown = range(min(across, len(archive)))
        pictures = to_float(torch.from_numpy(np.stack([archive.image(i) for i in shown])))
    page = side_by_side([panel(title_of(r), r.network, pictures, samples, across, scale) for r in chosen], columns)
    with atomic_write(path) as f:
        page.save(f, format='png', optimize=True)


# ------------------------------------------------------------------------------------------------------- command lines


def check(scoring: Scoring) -> Scoring:
    """Look at all that scoring needs before hours go into training. Raises click.ClickException in one line."""
    scoring = scoring._replace(
        data=absolute(scoring.data), held_out=absolute(scoring.held_out), detector=absolute(scoring.detector)
    )
    with one_line_errors():
        sizes = [len(ImageArchive(path)) for path in (scoring.data, scoring.held_out) if path]
        load_detector(scoring.detector)
    if scoring.num_reconstructed > min(sizes):
        raise click.ClickException(f'--num-reconstructed={scoring.num_reconstructed}: there are {min(sizes)} images')
    return scoring


def shared_options(name: str, duration: float | str) -> Callable:
    """The options of all these commands. What stands behind ``--`` arrives as a dict, ``more``. Without ``--duration``,
    which then arrives as None, a command takes what the help calls its default, ``duration``."""
    decorators = [
        click.option('--outdir', metavar='DIR', default=f'out/{name}', show_default=True,
                     help='Run folders of the rows; finished ones in it are not trained again'),
        click.option('--results', metavar='DIR', help='Where results.md, .json and pictures go  [default: --outdir]'),
        click.option('--duration', metavar='MIMG', type=click.FloatRange(min=0, min_open=True),
                     help=f'Budget of each row, millions of images, as train.py takes it  [default: {duration}]'),
        click.option('--detector', metavar='NAME|FILE', help='Of fid.py: inception, lenet for digits, or a file'),
        click.option('--device', metavar='NAME', help='cuda, mps or cpu  [default: the best there is]'),
        click.option('--gpus', 'ranks', type=click.IntRange(min=1), default=1, show_default=True,
                     help='Processes of torchrun, one per GPU'),
        click.argument('more', nargs=-1, type=click.UNPROCESSED, metavar='[-- TRAIN.PY OPTIONS]'),
    ]  # fmt: skip

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def wrapped(outdir, results, device, ranks, more, **options):
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what runs is told to stop
            folder = Path(outdir).resolve()
            into = Path(results).resolve() if results else folder
            with one_line_errors(Failed):
                folder.mkdir(parents=True, exist_ok=True)
                machine = {'device': device, 'ranks': ranks}
                return command(folder=folder, into=into, machine=machine, more=parse_options(more), **options)

        for decorator in reversed(decorators):
            wrapped = decorator(wrapped)
        return wrapped

    return decorate


def chosen(rows: Sequence[Row], only: str | None) -> list[Row]:
    """The rows whose names hold one of the words of 'K=8,leak'. Raises click.UsageError where none does."""
    words = [word.strip().lower() for word in (only or '').split(',')]
    found = [row for row in rows if any(word in row.name.lower() for word in words)]
    if not found:
        raise click.UsageError(f'--only={only}: no row is named so; there are {", ".join(row.name for row in rows)}')
    return found


def ticks(duration: float, number: int = 10) -> dict[str, Any]:
    """Options for so many lines of progress and training states, and one snapshot, the last."""
    return {'duration': duration, 'tick': f'{duration * 1000 / number:g}', 'snap': number * 10, 'dump': 1}


def budget(results: Sequence[Result], fields: str = '') -> str:
    """The facts that belong in a caption: images, network, seeds, seconds."""
    good = [r for r in results if not r.error]
    if not good:
        return 'No row was trained.'
    seeds = sorted({r.seed for r in good})
    cpu = sum(r.facts['training CPU seconds'] for r in good)
    nimg = sorted({r.facts['nimg'] for r in good})
    layers = sorted({r.facts['layers'] for r in good})
    size = sorted(r.facts['parameters'] for r in good)
    many = f'{size[0]:,}' + (f' to {size[-1]:,}' if size[-1] > size[0] else '')
    return (
        f'{" or ".join(f"{n / 1000:g}" for n in nimg)} thousand images a row, L = {"/".join(map(str, layers))}, '
        f'{many} parameters, seed{"s" if len(seeds) > 1 else ""} {", ".join(map(str, seeds))}'
        f'{" (± is the standard deviation over them)" if len(seeds) > 1 else ""}, '
        f'{format_time(cpu)} of CPU time for the training of all rows{fields}.'
    )
