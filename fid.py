"""Evaluate samples and reconstructions: FID, KID, precision, recall, density, coverage, PSNR, SSIM, LPIPS, neighbours.

    python fid.py ref --data=train.zip --dest=train.npz
    python fid.py calc --images=samples/ --ref=train.npz
    python fid.py calc --network=network-snapshot.safetensors --num=50000 --ref=train.npz --features=out/features
    torchrun --standalone --nproc_per_node=8 -- fid.py calc ...

Prints the numbers, and as the last line all results as JSON; progress and warnings go to standard error. The same from
Python: metrics.evaluate. More: docs/metrics.md.
"""

import cli.environment  # noqa: F401  # before torch is loaded

# isort: split
import contextlib
import functools
import importlib.metadata
import json
import math
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import click
import torch

from cli.networks import load_network
from cli.options import (
    BATCH,
    EMA,
    FINISH,
    Group,
    GroupedCommand,
    one_line_errors,
    option_group,
    script_help,
    search_options,
)
from ddn_networks import Network
from dnnlib import util
from dnnlib.downloads import local_path
from dnnlib.readers import printable
from dnnlib.sheets import Tile, draw_sheet, save_png
from metrics import evaluate
from metrics.detectors import PRECISIONS, load_detector
from metrics.image_sets import Files, ImageSet, Samples, read, require_no_condition
from metrics.reference import FEW, compare, load_statistics, save_statistics
from torch_utils import distributed as dist
from torch_utils import persistence

NUM = 50_000  # images of an FID, unless given
MAX_NUM = 10_000_000
SLOW = 'Inception on a CPU: half an hour of a core for 10,000 images. With --features=DIR, it resumes if stopped.'


def report(command: str, numbers: evaluate.Scores, notes: list[str], about: dict, path: str | None) -> None:
    """Print the numbers, the notes as warnings, and all as a line of JSON, which also goes into the file ``path``.

    Raises ValueError for NaN.
    """
    for key, value in numbers.items():
        if value is not None and math.isnan(value):
            raise ValueError(f'{key} is not a number (NaN): the images or the reference cannot be compared')
    if dist.get_rank() > 0:
        return
    versions = {name: importlib.metadata.version(name) for name in ('torch', 'numpy', 'pillow')}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions['ddn'] = importlib.metadata.version('ddn-networks')
    versions['python'] = platform.python_version()
    for note in dict.fromkeys(notes):
        click.echo(f'Note: {printable(note)}.', err=True)
    width = max(map(len, numbers), default=0)
    for key, value in numbers.items():
        click.echo(f'{key:{width}}  {"-" if value is None else f"{value:.6g}"}')
    finite = {key: None if value is None or math.isinf(value) else value for key, value in numbers.items()}
    result = {'command': command, 'numbers': finite, 'notes': notes, **about}  # JSON has no infinity
    result = util.redacted(result | {'ranks': dist.get_world_size(), 'versions': versions})
    click.echo(json.dumps(result))
    if path:
        with util.atomic_write(path, 'w') as file:
            json.dump(result, file, indent=2)


def load(path: str, ema: str | None, device: torch.device, finish: bool = True) -> tuple[Network, dict]:
    """A network, with or without its finisher, and the facts about it for the result."""
    file = persistence.network_path(path)
    net = load_network(file, ema, device, finish=finish)
    kept = getattr(net, 'snapshot_meta', {}).get('emas') or ['none']
    about = {'network': str(path), 'sha256': util.file_sha256(file), 'ema': ema or kept[0]}
    return net, about | ({} if finish else {'finish': False})


def samples(
    images: str | None, network: str | None, ema: str | None, finish: bool, device: torch.device, num: int | None,
    seed: int, files: Callable[[str], Files],
) -> ImageSet:  # fmt: skip
    """The samples to evaluate: ``files`` of --images, or samples of --network."""
    if (images is None) == (network is None):
        raise click.UsageError('give either --images or --network')
    if images is not None:
        return files(images)
    net, about = load(network, ema, device, finish)
    return Samples(net, num or NUM, seed, about)


@option_group(
    'Detector',
    click.option('--detector', help='inception, alex (fast), lenet (for digits), or a file of weights of one',
                 metavar='NAME|FILE|URL', default='inception'),
    click.option('--detector-weights', help='Weights of a detector given by name', metavar='FILE|URL'),
    click.option('--precision', help='Precision of the detector', type=click.Choice(list(PRECISIONS)),
                 default='float32'),
    click.option('--features', help='Folder to keep features in, batch by batch: a command that was stopped and is '
                 'given again continues there', metavar='DIR', type=click.Path(file_okay=False)),
)
@option_group(
    'Evaluation',
    click.option('--batch', help='Images at a time on each rank', metavar='INT', type=BATCH, default=64),
    click.option('--seed', help='Random seed of the choice of images; first seed of samples', metavar='INT',
                 type=click.IntRange(0), default=0),
    click.option('--device', help='cuda, mps or cpu  [default: the best available]', metavar='DEVICE'),
    click.option('--json', 'json_path', help='Also write the result here', metavar='FILE', type=click.Path()),
)
def in_session(
    function: Callable, batch, seed, detector, detector_weights, precision, features, device, **options
) -> None:  # fmt: skip
    """Run a command with the options that all have, among its ranks, and report errors in one line."""
    with one_line_errors(), dist.session(device) as chosen:
        for option, path in (('--json', options['json_path']), ('--sheet', options.get('sheet'))):
            if path:
                util.require_writable(option, path)
        detector = load_detector(detector, detector_weights, chosen, precision, features)
        if detector.name == 'inception' and chosen.type == 'cpu' and features is None and dist.get_rank() == 0:
            click.echo(SLOW, err=True)
        how = {'detector': detector.describe(), 'seed': seed, 'batch': batch, 'device': str(chosen)}
        function(batch=batch, seed=seed, detector=detector, device=chosen, how=how, **options)


def command(function: Callable) -> click.Command:
    """Decorator: a command of this script, whose options precede those that all commands have."""
    run = functools.update_wrapper(functools.partial(in_session, function), function)
    run.__click_params__ = in_session.__click_params__ + function.__click_params__
    return main.command(function.__name__, cls=GroupedCommand, help=script_help(__file__, function.__name__))(run)


@click.group(cls=Group, help=script_help(__file__), context_settings={'show_default': True, 'max_content_width': 110})
def main() -> None:
    pass


IMAGES = click.option('--images', help='Folder or zip of images', metavar='PATH|ZIP')
NETWORK = click.option('--network', help='Snapshot whose samples to evaluate, without writing them', metavar='FILE|URL')


@command
@option_group(
    'Images',
    IMAGES,
    NETWORK,
    EMA,
    FINISH,
    click.option('--num', help=f'Number of images  [default: {NUM}, or all if there are fewer]', metavar='INT',
                 type=click.IntRange(2, MAX_NUM)),
)
@option_group(
    'Reference',
    click.option('--ref', help='Reference statistics, from fid.py ref or EDM', metavar='NPZ|URL', required=True),
    click.option('--keep', help='Number of images whose features serve KID, precision and recall', metavar='INT',
                 type=click.IntRange(0, MAX_NUM), default=evaluate.KEEP),
)
def calc(images, network, ema, finish, ref, num, keep, batch, seed, detector, device, how, json_path) -> None:
    """Compare images with a reference: FID, KID, precision, recall, density, coverage."""
    if Path(ref).is_dir() or ref.endswith('.zip'):
        raise ValueError(f'--ref={ref} is not a file of statistics; make one: fid.py ref --data={ref} --dest=ref.npz')
    ref_path = local_path(ref)
    reference = load_statistics(ref_path)
    notes = evaluate.require_same_detector(reference, ref, detector)
    files = lambda path: Files(path, num, seed, least=2, most=NUM)  # noqa: E731
    source = samples(images, network, ema, finish, device, num, seed, files)
    made = evaluate.statistics(source, detector, batch, keep)
    numbers, more = compare(reference, made)
    about = {'images': source.describe(), 'reference': {'path': ref, 'num': reference.num}}
    about['reference'] |= {'sha256': util.file_sha256(ref_path), 'data': reference.meta.get('images')}
    report('calc', numbers, notes + source.notes() + more, about | how, json_path)


@command
@option_group(
    'Images',
    click.option('--data', help='Folder or zip of images', metavar='PATH|ZIP', required=True),
    click.option('--num', help='Number of images  [default: all]', metavar='INT', type=click.IntRange(2, MAX_NUM)),
)
@option_group(
    'Reference',
    click.option('--dest', help='File to write', metavar='NPZ', required=True),
    click.option('--keep', help="Number of images whose features are kept for KID, precision and recall; 0: as EDM's",
                 metavar='INT', type=click.IntRange(0, MAX_NUM), default=evaluate.KEEP),
)
def ref(data, dest, num, keep, batch, seed, detector, device, how, json_path) -> None:
    """Write the reference statistics of a dataset."""
    dest = dest if dest.endswith('.npz') else f'{dest}.npz'
    util.require_writable('--dest', dest)
    source = Files(data, num, seed, least=2)
    made = evaluate.statistics(source, detector, batch, keep)
    about = {'images': source.describe()} | how
    if dist.get_rank() == 0:
        save_statistics(dest, made._replace(meta=about))
    numbers = {'images': made.num, 'features kept': 0 if made.features is None else len(made.features)}
    notes = [f'{made.num} images are few for a reference: use all that there are'] * (made.num < FEW)
    about['written'] = {'path': dest, 'sha256': util.file_sha256(dest) if dist.get_rank() == 0 else None}
    report('ref', numbers, source.notes() + notes, about, json_path)


@command
@option_group(
    'Images',
    click.option('--data', help='Folder or zip of images', metavar='PATH|ZIP', required=True),
    click.option('--num', help='Number of images  [default: all]', metavar='INT', type=click.IntRange(4, MAX_NUM)),
)
def selftest(data, num, batch, seed, detector, device, how, json_path) -> None:
    """Compare one random half of a dataset with the other: the numbers of a perfect generator."""
    whole = Files(data, num, seed, least=4)
    titles = ('first half', 'second half')
    halves = [
        evaluate.statistics(half, detector, batch, title=title)
        for half, title in zip(whole.halves(seed), titles, strict=True)
    ]
    numbers, notes = compare(*halves)
    report('selftest', numbers, whole.notes() + notes, {'images': whole.describe()} | how, json_path)


@command
@option_group(
    'Images',
    click.option('--network', help='Snapshot', metavar='FILE|URL', required=True),
    EMA,
    FINISH,
    click.option('--data', help='Folder or zip of its training images', metavar='PATH|ZIP', required=True),
    click.option('--held-out', help='Images that it was not trained on', metavar='PATH|ZIP'),
    click.option('--num', help='Number of images of each  [default: all]', metavar='INT',
                 type=click.IntRange(2, MAX_NUM)),
    *search_options,
)
def reconstruct(
    network, ema, finish, data, held_out, num, beam, refine, batch, seed, detector, device, how, json_path
) -> None:  # fmt: skip
    """Compare images with their reconstructions: rFID, PSNR, SSIM, LPIPS, bits per pixel, on training and held-out
    images."""
    net, about = load(network, ema, device, finish)
    require_no_condition(net, network)
    sources = {'training': Files(data, num, seed, least=2)}
    if held_out is not None:
        sources['held-out'] = Files(held_out, num, seed, least=2)
    for source in sources.values():
        source.require_shape(net)
    numbers, notes = {}, []
    for name, source in sources.items():
        lpips, reason = evaluate.find_lpips([source], device)
        measured, more = evaluate.reconstruction(net, source, detector, lpips, batch, name, beam, refine)
        numbers |= {f'{name} {key}': value for key, value in measured.items()}
        notes += source.notes() + reason + [f'{name}: {note}' for note in more]
    about = {'network': about, 'images': {name: source.describe() for name, source in sources.items()}}
    about |= {'beam': beam, 'refine': refine}
    report('reconstruct', numbers, notes, about | how, json_path)


@command
@option_group(
    'Images',
    IMAGES,
    NETWORK,
    EMA,
    FINISH,
    click.option('--data', help='Folder or zip of the training images', metavar='PATH|ZIP', required=True),
    click.option('--held-out', help='Real images that were not trained on', metavar='PATH|ZIP'),
    click.option('--num', help='Number of samples, and of held-out images at most', metavar='INT',
                 type=click.IntRange(1, MAX_NUM), default=1000),
)
@option_group(
    'Sheet',
    click.option('--sheet', help='Picture to write: in each row a sample and its neighbours', metavar='PNG'),
    click.option('--rows', help='Samples of the sheet', metavar='INT', type=click.IntRange(1, 1000), default=8),
    click.option('--columns', help='Neighbours of each', metavar='INT', type=click.IntRange(1, 1000), default=6),
)
def neighbours(
    images, network, ema, finish, data, held_out, num, sheet, rows, columns, batch, seed, detector, device, how,
    json_path,
) -> None:  # fmt: skip
    """Find the nearest training images of samples, by LPIPS and by the detector: are the samples new?"""
    source = samples(images, network, ema, finish, device, num, seed, lambda path: Files(path, seed=seed, most=num))
    gallery = Files(data)
    held = None if held_out is None else Files(held_out, seed=seed, most=num)
    sources = [gallery, source] + ([] if held is None else [held])
    lpips, notes = evaluate.find_lpips(sources, device)
    notes += [note for one in sources for note in one.notes()]
    numbers, found = evaluate.neighbours(source, gallery, held, detector, lpips, columns, batch)
    if held is None:
        notes.append('without --held-out there is nothing to compare these distances with')
    about = {'samples': source.describe(), 'data': gallery.describe(), 'held-out': held and held.describe()}
    report('neighbours', numbers, notes, about | {'sheet': sheet} | how, json_path)
    if sheet and dist.get_rank() == 0:
        write_sheet(sheet, source, gallery, {name: indices[:rows] for name, indices in found.items()})


def write_sheet(path: str, source: ImageSet, gallery: Files, found: dict[str, torch.Tensor]) -> None:
    """Write the sheet: in each row a sample, then its neighbours by each measure, left to right by distance."""
    rows = []
    for i, near in enumerate(zip(*found.values(), strict=True)):
        rows.append([Tile(read(source, [i])[0], 'sample')])
        for measure, indices in zip(found, near, strict=True):
            rows[-1] += [Tile(picture, measure) for picture in read(gallery, indices[indices >= 0].tolist())]
    save_png(draw_sheet(rows), path)


if __name__ == '__main__':
    sys.exit(main())
