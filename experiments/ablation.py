"""Train several networks and compare them: shared by the experiments whose tables have a row per network.

A row is a name and options of train.py. Each network is trained and scored as train.py and fid.py do it. Its run folder
keeps ``row.json`` (the options, CPU seconds, whether training is finished) and the scores, so that the same command
continues where it was stopped. With torchrun all ranks train each network together.
"""

import contextlib
import functools
import io
import itertools
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from cli.networks import load_network
from cli.options import Ints, one_line_errors, script_help
from cli.tables import write_json
from cli.training_runs import train as train_network
from ddn_networks import Network, snapshots
from dnnlib.archives import ImageArchive
from dnnlib.util import file_sha256, format_time
from experiments import digits
from experiments.common import on_rank_0, read_record, reference
from metrics import evaluate
from metrics.detectors import load_detector
from metrics.image_sets import Files, Samples
from torch_utils import distributed as dist
from training.report import mean_or_none, read_stats

# A network for digits that one CPU core trains in minutes; experiments change single options of it.
DIGITS_OPTIONS = {
    'channels': '32,32,32,32,24,16', 'batch': 32, 'lr': 0.002, 'lr-ramp': 0.002, 'lr-decay': 'cosine', 'beta2': 0.99,
    'ema': 0.002, 'workers': 0,
}  # fmt: skip


class Row(NamedTuple):
    """A network to train. options: of train.py, by their names there: {'chain-dropout': 0}."""

    name: str
    options: dict[str, Any]


class Scoring(NamedTuple):
    """How networks are scored.

    data, held_out: training images and others (or None), zips or folders.
    detector: as load_detector takes it. num: samples of the FID; num_reconstructed: images of each rFID.
    """

    data: str
    held_out: str | None
    detector: str
    num: int
    num_reconstructed: int


class Study(NamedTuple):
    """Where and how an experiment runs.

    folder: of the run folders. into: of tables and pictures. more: options of train.py for all rows.
    """

    folder: Path
    into: Path
    device: torch.device
    more: dict[str, str]


class Result(NamedTuple):
    """A row with one seed: numbers by name, or the line that says why there are none."""

    row: str
    seed: int
    options: dict[str, Any]
    numbers: dict[str, float]
    facts: dict[str, Any]
    network: str | None
    error: str | None = None


# ------------------------------------------------------------------------------------------------------------ training


class Progress(io.TextIOBase):
    """Where training prints to: passes lines of progress on, each after a title."""

    def __init__(self, title: str):
        self.title, self.out, self.line = title, sys.stdout, ''

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split('\n')
        for line in lines:
            if ' kimg ' in line:
                self.out.write(f'{self.title}: {line.strip()}\n')
        return len(text)

    def flush(self) -> None:
        self.out.flush()


def train(options: dict[str, Any], run_dir: Path, title: str, device: torch.device) -> bool:
    """Train a network in ``run_dir``, or resume it. False if it is finished already.

    Raises ValueError where other options were used before, or training fails; SystemExit after a signal.
    """
    path = run_dir / 'row.json'
    options = {name: str(value) for name, value in options.items()}
    record = {'options': options, 'cpu_seconds': 0.0, 'finished': False}
    keys = ('options', 'cpu_seconds', 'finished')
    record = on_rank_0(lambda: read_record(path, *keys) if path.is_file() else record)
    before = record['options']
    changed = sorted(k for k in {**before, **options} if before.get(k) != options.get(k))
    if changed:
        old, new = ({k: x[k] for k in changed if k in x} for x in (before, options))
        raise ValueError(f'{run_dir} was trained with {old}, not with {new}: give another --outdir')
    if record['finished']:
        return False
    how = {'outdir': str(run_dir), 'nosubdir': True, **options}
    if on_rank_0(lambda: any(run_dir.glob('training-state-*.safetensors'))):
        how = {'resume': str(run_dir)}
    started = time.process_time()
    try:
        with contextlib.redirect_stdout(Progress(title)):
            train_network({**how, 'device': device.type})
        record['finished'] = True
    except click.ClickException as error:
        raise ValueError(error.format_message()) from None
    finally:  # if it was stopped, the next call adds its seconds
        record['cpu_seconds'] += sum(dist.all_gather_object(time.process_time() - started))
        if dist.get_rank() == 0:
            write_json(path, record)
    return True


def training_facts(run_dir: Path) -> dict[str, Any]:
    """Facts from the logs of a run."""
    ticks = read_stats(str(run_dir))
    stored = read_record(run_dir / 'training_options.json', 'git_revision')
    steps = zip([0, *(t['nimg'] for t in ticks)], ticks, strict=False)
    return {
        'nimg': ticks[-1]['nimg'],
        'dead share': mean_or_none(ticks[-1]['dead']),
        'usage entropy': float(np.mean(ticks[-1]['usage_entropy'])),
        'training loss': ticks[-1]['loss'],
        'training seconds': sum((tick['nimg'] - before) / tick['images_per_sec'] for before, tick in steps),
        'training CPU seconds': read_record(run_dir / 'row.json', 'cpu_seconds')['cpu_seconds'],
        'git_revision': stored['git_revision'],
    }


def shape(net: Network) -> dict[str, Any]:
    """Layers, nodes, bits and parameters of a network."""
    return {
        'layers': net.num_layers,
        'nodes': max(net.num_nodes),
        'bits': net.num_bits,
        'parameters': sum(p.numel() for p in net.parameters()),
    }


# ------------------------------------------------------------------------------------------------------------- scoring


def kept(path: Path, key: dict[str, Any], make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The numbers that ``make`` returns, kept in the file ``path`` and computed once for each ``key``."""
    record = on_rank_0(lambda: read_record(path, 'key', 'numbers') if path.is_file() else {})
    if record.get('key') != key:
        record = {'key': key, 'numbers': make()}
        if dist.get_rank() == 0:
            write_json(path, record)
    return record['numbers']


def starting(numbers: dict[str, float | None], start: str) -> float | None:
    """The number whose name starts so: the ends of names are sample counts."""
    return next((value for name, value in numbers.items() if name.startswith(start)), None)


def score(
    network: str, scoring: Scoring, folder: Path, device: torch.device, keep_in: Path | None = None
) -> dict[str, float]:
    """FID of a network's samples, rFID and PSNR of training and held-out images.

    The numbers are kept in ``keep_in``, or in the folder of the network; the reference in ``folder``.
    """
    keep_in = keep_in or Path(network).parent
    net, detector = load_network(network, device=device), load_detector(scoring.detector, device=device)
    key = {**scoring._asdict(), 'network': file_sha256(network), 'weights': detector.digest}

    def of_samples() -> dict[str, float]:
        made = evaluate.statistics(Samples(net, scoring.num), detector, keep=0, title='samples')
        return evaluate.compare(reference(scoring.data, detector, folder, keep=0), made)[0]

    def of_reconstructions(path: str) -> dict[str, float]:
        return evaluate.reconstruction(net, Files(path, scoring.num_reconstructed), detector, title='images')[0]

    numbers = {'FID': starting(kept(keep_in / 'score-samples.json', key, of_samples), 'FID')}
    for where, path in (('training', scoring.data), ('held-out', scoring.held_out)):
        if path and scoring.num_reconstructed:
            make = functools.partial(of_reconstructions, path)
            found = kept(keep_in / f'score-{where}.json', key, make)
            numbers |= {f'{what} {where}': starting(found, what) for what in ('rFID', 'PSNR')}
    return {name: value for name, value in numbers.items() if value is not None}


# ---------------------------------------------------------------------------------------------------------------- rows


def work(rows: Sequence[Row], seeds: Sequence[int], study: Study, scoring: Scoring) -> Iterator[Result]:
    """Train and score each row with each seed, all rows of a seed before the next seed; print the time that is left.

    A row that fails is a result with its ``error``, and the others follow (with several ranks the run ends).
    """
    started, trained = time.monotonic(), 0
    jobs = list(itertools.product(seeds, rows))
    for done, (seed, row) in enumerate(jobs):
        run_dir = study.folder / f'{slug(row.name)}-seed{seed}'
        options = {**row.options, 'seed': seed}
        title = f'[{done + 1}/{len(jobs)}] {row.name}' + (f', seed {seed}' if len(seeds) > 1 else '')
        network = None
        try:
            dist.print0(f'{title}: training')
            trained += train(options, run_dir, title, study.device)
            network = str(snapshots.network_path(run_dir))
            dist.print0(f'{title}: scoring')
            numbers = score(network, scoring, study.folder, study.device)
            facts = training_facts(run_dir) | shape(load_network(network))
            yield Result(row.name, seed, options, numbers, facts, network)
        except (ValueError, OSError) as error:
            if dist.get_world_size() > 1:
                raise
            click.echo(f'{title}: failed: {error}', err=True)
            yield Result(row.name, seed, options, {}, {}, network, str(error))
        except (SystemExit, KeyboardInterrupt):
            raise click.ClickException(f'stopped in row {row.name}; the same command continues there') from None
        if trained and done + 1 < len(jobs):
            spent = time.monotonic() - started
            dist.print0(f'About {format_time(spent / trained * (len(jobs) - done - 1))} left.')


def slug(name: str) -> str:
    """A row's name as a part of a folder's."""
    return re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')


def chosen(rows: Sequence[Row], only: str | None) -> list[Row]:
    """The rows whose names contain one of the words of 'K=8,leak'. Raises click.UsageError where none does."""
    words = [word.strip().lower() for word in (only or '').split(',')]
    found = [row for row in rows if any(word in row.name.lower() for word in words)]
    if not found:
        names = ', '.join(row.name for row in rows)
        raise click.UsageError(f'--only={only}: no name of a row contains that; choose from {names}')
    return found


def ticks(duration: float, number: int = 10) -> dict[str, Any]:
    """Options for a number of lines of progress and training states, and one snapshot, at the end."""
    return {'duration': duration, 'tick': f'{duration * 1000 / number:g}', 'snap': number * 10, 'dump': 1}


# ------------------------------------------------------------------------------------------------------- command lines


def absolute(path: str | None) -> str | None:
    """The absolute path of a file or folder; names of other things, such as URLs, unchanged."""
    return str(Path(path).resolve()) if path and Path(path).exists() else path


def parse_options(tokens: Sequence[str]) -> dict[str, str]:
    """The options after ``--``: ('--batch=64', ...) -> {'batch': '64', ...}. Raises click.UsageError."""
    options = {}
    for token in tokens:
        match = re.fullmatch(r'--([a-z0-9][a-z0-9-]*)=(.*)', token)
        if not match:
            raise click.UsageError(f'{token}: give options of train.py as --name=value, after a --')
        options[match[1]] = match[2]
    return options


def check(scoring: Scoring) -> Scoring:
    """The scoring with absolute paths. Raises ValueError, OSError or click.UsageError where it cannot work: before
    hours of training."""
    scoring = scoring._replace(
        data=absolute(scoring.data), held_out=absolute(scoring.held_out), detector=absolute(scoring.detector)
    )
    sizes = [len(ImageArchive(path)) for path in (scoring.data, scoring.held_out) if path]
    load_detector(scoring.detector)
    if scoring.num_reconstructed > min(sizes):
        raise click.UsageError(f'--num-reconstructed={scoring.num_reconstructed}: there are {min(sizes)} images')
    return scoring


def images_or_digits(data: str | None, held_out: str | None, study: Study) -> tuple[str, str]:
    """--data and --held-out, or the built-in digits for neither. Raises click.UsageError for one without the other."""
    if bool(data) != bool(held_out):
        raise click.UsageError('give --data and --held-out, or neither for the built-in digits')
    return (data, held_out) if data else on_rank_0(lambda: digits.datasets(study.folder))


# Options of the experiments that train several rows.
DATA = click.option('--data', metavar='ZIP', help='Training images, of dataset_tool.py  [default: 8,000 digits]')
HELD_OUT = click.option('--held-out', metavar='ZIP', help='Images to reconstruct  [default: 2,000 other digits]')
SEEDS = click.option('--seeds', type=Ints(), default='0', metavar='LIST', help='Random seeds to train each row with')
ONLY = click.option('--only', metavar='LIST', help='Only rows whose names contain one of these words')
NUM = click.option('--num', type=click.IntRange(min=2), default=5000, help='Samples of the FID')


def command(file: str, duration: float | str) -> Callable[[Callable], click.Command]:
    """Decorator: a command with the docstring of ``file`` as --help and the options that all these experiments have.

    It gets them as ``study``, ``detector`` and ``duration``, which is None without --duration; the help then says
    ``duration``.
    """
    name = Path(file).stem
    options = [
        click.option('--outdir', metavar='DIR', default=f'out/{name}',
                     help='Folder of the run folders; rows that are finished in it are not trained again'),
        click.option('--results', metavar='DIR', help='Folder for tables and pictures  [default: --outdir]'),
        click.option('--duration', metavar='MIMG', type=click.FloatRange(min=0, min_open=True),
                     help=f'Training length of each row, millions of images  [default: {duration}]'),
        click.option('--detector', metavar='NAME|FILE', help='inception, lenet for digits, or a file of weights'),
        click.option('--device', metavar='NAME', help='cuda, mps or cpu  [default: the best available]'),
        click.argument('more', nargs=-1, type=click.UNPROCESSED, metavar='[-- TRAIN.PY OPTIONS]'),
    ]  # fmt: skip

    def decorate(function: Callable) -> click.Command:
        @functools.wraps(function)
        def wrapped(outdir, results, device, more, **options):
            folder = Path(outdir).resolve()
            before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: training saves its state
            try:
                with one_line_errors(), dist.session(device) as chosen:
                    folder.mkdir(parents=True, exist_ok=True)
                    into = Path(results).resolve() if results else folder
                    function(study=Study(folder, into, chosen, parse_options(more)), **options)
            finally:
                signal.signal(signal.SIGTERM, before)

        for option in reversed(options):
            wrapped = option(wrapped)
        settings = {'show_default': True, 'max_content_width': 110}
        return click.command(help=script_help(file), context_settings=settings)(wrapped)

    return decorate
