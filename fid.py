"""Numbers that can be believed: FID, KID, precision, recall, density, coverage, reconstruction, nearest neighbours.

    python fid.py ref --data=train.zip --dest=train.npz
    python fid.py calc --images=samples/ --ref=train.npz
    python fid.py calc --network=network-snapshot.safetensors --num=50000 --ref=train.npz
    torchrun --standalone --nproc_per_node=8 -- fid.py calc ...

The numbers go to standard output, the last line being all of it as JSON; progress and warnings go to standard error.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import torch
from tqdm import tqdm

import ddn_networks
from cli.options import one_line_errors, script_help
from dnnlib import util
from dnnlib.downloads import local_path
from dnnlib.images import to_float, to_uint8
from dnnlib.sheets import Tile, draw_sheet, save_png
from dnnlib.util import redacted
from metrics import distances
from metrics.detectors import PRECISIONS, Detector, load_detector, load_lpips
from metrics.lpips import LPIPS, MIN_SIZE
from metrics.reconstruction import WINDOW, psnr, ssim
from metrics.reference import FEW, Collector, Statistics, compare, load_statistics, save_statistics, short_number
from torch_utils import distributed as dist
from torch_utils import persistence
from training.dataset import ImageFolderDataset

NUM = 50_000  # images of an FID, unless said
KEEP = 10_000  # features kept whole, for KID, precision and recall
READERS = 4  # threads that decode images

# ---------------------------------------------------------------------------------------------- where images come from


class Files:
    """Images of a folder or zip: `num` of them, drawn by `seed` where there are more, in the order of their names.

    Raises ValueError where there are fewer than `num`; None takes all.
    """

    def __init__(self, path: str, num: int | None = None, seed: int = 0, dataset: ImageFolderDataset | None = None):
        self.dataset = ImageFolderDataset(path) if dataset is None else dataset
        self.path, self.seed = path, seed
        held = len(self.dataset)
        if num is not None and num > held:
            raise ValueError(f'{path} holds {held} images, fewer than the {num} asked for with --num')
        self.num = held if num is None else num
        self.resolution = self.dataset.resolution
        self.indices = np.sort(np.random.RandomState(seed).permutation(held)[: self.num])
        self.pool = ThreadPoolExecutor(READERS)

    def read(self, positions: list[int]) -> torch.Tensor:
        """uint8 `[B, C, H, W]`."""
        return torch.from_numpy(np.stack(list(self.pool.map(self.dataset.get_image, self.indices[positions]))))

    def describe(self) -> dict:
        local = local_path(self.path)
        of = {'path': str(self.path), 'num': self.num, 'available': len(self.dataset)}
        of |= {'sha256': util.file_sha256(local) if local.is_file() else None}
        return of | ({'drawn with seed': self.seed} if self.num < len(self.dataset) else {})


def at_least(least: int, source: Files) -> Files:
    """The source. Raises ValueError where it has fewer images."""
    if source.num < least:
        raise ValueError(f'{source.path} holds too few images ({source.num}): give {least} or more')
    return source


class Samples:
    """What a network draws with seeds seed .. seed + num - 1, in 8 bits as a PNG would hold it.

    One that is told a class draws all of them alike, class s modulo N with seed s; one that works without its condition
    draws without.
    """

    def __init__(self, net, num: int, seed: int = 0, about: dict | None = None):
        self.net, self.num, self.seed, self.about = net, num, seed, about or {}
        self.resolution = net.img_resolution

    def read(self, positions: list[int]) -> torch.Tensor:
        """uint8 `[B, C, H, W]`."""
        seeds = [self.seed + p for p in positions]
        condition, classes = None, self.net.conditions.num_classes
        if classes is not None:
            condition = self.net.make_condition(torch.tensor(seeds) % classes)
        images, _ = self.net.sample(seeds=seeds, condition=condition)
        return to_uint8(images).cpu()

    def describe(self) -> dict:
        return {**self.about, 'num': self.num, 'seeds': f'{self.seed}-{self.seed + self.num - 1}'}


def load_network(
    path: str, ema: str | None, device: torch.device, classes: bool = True
) -> tuple[ddn_networks.Network, dict]:
    """A network, and what a result says of it. Raises ValueError for one that must be told more than a class, or
    without ``classes``, of anything."""
    file = persistence.network_path(path)
    net = ddn_networks.Network.from_pretrained(file, ema=ema, device=device)
    drawn = classes and net.conditions.num_classes is not None
    if net.condition_channels and not net.condition_optional and not drawn:
        raise ValueError(f'{path} needs a condition: make its pictures with generate.py and give them with --images')
    kept = getattr(net, 'snapshot_meta', {}).get('emas') or ['none']
    about = {'network': str(path), 'sha256': util.file_sha256(file), 'ema': ema or kept[0]}
    return net, about


def shares(source, batch: int, title: str) -> Iterator[tuple[list[int], torch.Tensor]]:
    """This rank's batches of a source: (positions, uint8 images). Files are read one batch ahead."""
    rank, world = dist.get_rank(), dist.get_world_size()
    batches = [list(range(i, min(i + batch, source.num))) for i in range(0, source.num, batch)][rank::world]
    with tqdm(total=sum(map(len, batches)), desc=title, unit='img', delay=3, leave=False, disable=rank > 0) as bar:
        with ThreadPoolExecutor(1) as ahead:
            future = None
            for i, positions in enumerate(batches):
                if not isinstance(source, Files):
                    images = source.read(positions)
                else:
                    future = future or ahead.submit(source.read, positions)
                    images = future.result()
                    future = ahead.submit(source.read, batches[i + 1]) if i + 1 < len(batches) else None
                if images.shape[1] not in (1, 3):
                    raise ValueError(f'pictures have {images.shape[1]} channels; detectors read 1 (grey) or 3 (RGB)')
                yield positions, images
                bar.update(len(positions))


def collect(source, detector: Detector, batch: int, keep: int, title: str) -> Statistics:
    """Statistics of a source's features, the same on every rank."""
    collector = Collector(detector.dim, source.num, keep)
    for positions, images in shares(source, batch, title):
        collector.add_(detector.features(to_float(images)), positions)
    return finish(collector)


def finish(collector: Collector) -> Statistics:
    return collector.finish(dist.all_reduce_, dist.all_gather_object)


# ------------------------------------------------------------------------------------------------------------- results


def report(command: str, numbers: dict, notes: list[str], about: dict, path: str | None) -> None:
    """Print the numbers, the notes as warnings, and all of it as one line of JSON (and into the file `path`)."""
    if dist.get_rank() > 0:
        return
    versions = {name: importlib.metadata.version(name) for name in ('torch', 'numpy', 'pillow')}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions['ddn'] = importlib.metadata.version('ddn')
    versions['python'] = platform.python_version()
    for note in dict.fromkeys(notes):
        click.echo(f'Note: {note}.', err=True)
    finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}  # JSON has no infinity
    width = max(map(len, numbers), default=0)
    for key, value in numbers.items():
        click.echo(f'{key:{width}}  {value:.6g}')
    result = {'command': command, 'numbers': finite, 'notes': notes, **about}
    result = redacted(result | {'ranks': dist.get_world_size(), 'versions': versions})
    click.echo(json.dumps(result))
    if path:
        with util.atomic_write(path, 'w') as file:
            json.dump(result, file, indent=2)


def check_reference(reference: Statistics, path: str, detector: Detector) -> list[str]:
    """Notes on a reference made differently. Raises ValueError where it is of another detector."""
    if len(reference.mu) != detector.dim:
        raise ValueError(f'{path} holds {len(reference.mu)} features, the detector {detector.name} has {detector.dim}')
    made = reference.meta.get('detector', {})
    if made and made.get('digest') != detector.digest:
        raise ValueError(f'{path} was made with another detector ({made.get("path")}) than {detector.path}')
    if made and made.get('precision') != detector.precision:
        return [f'the reference was made in {made["precision"]}, this in {detector.precision}']
    return [] if made else [f'{path} does not say how it was made; its detector is taken to be {detector.name}']


# ------------------------------------------------------------------------------------------------------------ commands


def shared_options(command: Callable) -> Callable:
    """The options of all commands; the command runs among its ranks, and its errors are one line."""

    @click.option('--batch', help='Images at a time, on each rank', metavar='INT', type=click.IntRange(1), default=64)
    @click.option('--seed', help='Draws images where there are more; first seed of samples', metavar='INT',
                  type=click.IntRange(0), default=0)  # fmt: skip
    @click.option('--detector', help='inception, lenet (for digits), or a file of their weights',
                  metavar='NAME|FILE|URL', default='inception')  # fmt: skip
    @click.option('--detector-weights', help='Weights of a detector that is given by name', metavar='FILE|URL')
    @click.option('--precision', help='Of the detector', type=click.Choice(list(PRECISIONS)),
                  default='float32')  # fmt: skip
    @click.option('--device', help='cuda, mps or cpu  [default: the best there is]', metavar='DEVICE')
    @click.option('--json', 'json_path', help='Write the result here as well', metavar='FILE', type=click.Path())
    @functools.wraps(command)
    def run(batch, seed, detector, detector_weights, precision, device, **options):
        with one_line_errors(), dist.session(device) as chosen:
            detector = load_detector(detector, detector_weights, chosen, precision)
            how = {'detector': detector.describe(), 'seed': seed, 'batch': batch, 'device': str(chosen)}
            command(batch=batch, seed=seed, detector=detector, device=chosen, how=how, **options)

    return run


@click.group(help=script_help(__file__), context_settings={'show_default': True, 'max_content_width': 110})
def main() -> None:
    pass


@main.command(help=script_help(__file__, 'calc'))
@click.option('--images', help='Folder or zip of images', metavar='PATH|ZIP')
@click.option('--network', help='Generate the images with this snapshot, without writing any', metavar='FILE|URL')
@click.option('--ema', help='Which averaged weights of the snapshot  [default: the first]', metavar='LABEL|none')
@click.option('--ref', help='Reference statistics, from fid.py ref or EDM', metavar='NPZ|URL', required=True)
@click.option('--num', help=f'How many images  [default: {NUM}, or all if there are fewer]', metavar='INT',
              type=click.IntRange(2))  # fmt: skip
@click.option('--keep', help='Features of how many images serve KID, precision and recall', metavar='INT',
              type=click.IntRange(0), default=KEEP)  # fmt: skip
@shared_options
def calc(images, network, ema, ref, num, keep, batch, seed, detector, device, how, json_path) -> None:
    """Compare images with a reference: FID, KID, precision, recall, density, coverage."""
    if (images is None) == (network is None):
        raise click.UsageError('give either --images or --network')
    if Path(ref).is_dir() or ref.endswith('.zip'):
        raise ValueError(f'{ref} is no file of statistics; make one: fid.py ref --data={ref} --dest=ref.npz')
    ref_path = local_path(ref)
    reference = load_statistics(ref_path)
    notes = check_reference(reference, ref, detector)
    if images is not None:
        source = at_least(2, Files(images, num, seed))
        if num is None and source.num > NUM:
            source = Files(images, NUM, seed, source.dataset)
    else:
        net, about = load_network(network, ema, device)
        source = Samples(net, num or NUM, seed, about)
    made = collect(source, detector, batch, keep, 'features')
    numbers, more = compare(reference, made)
    about = {'images': source.describe(), 'reference': {'path': ref, 'num': reference.num}}
    about['reference'] |= {'sha256': util.file_sha256(ref_path), 'data': reference.meta.get('images')}
    report('calc', numbers, notes + more, about | how, json_path)


@main.command(help=script_help(__file__, 'ref'))
@click.option('--data', help='Folder or zip of images', metavar='PATH|ZIP', required=True)
@click.option('--dest', help='File to write', metavar='NPZ', required=True)
@click.option('--num', help='How many images  [default: all]', metavar='INT', type=click.IntRange(2))
@click.option('--keep', help='Features of how many images to keep whole, for KID, precision and recall; 0 makes a file '
              'like EDM\'s', metavar='INT', type=click.IntRange(0), default=KEEP)  # fmt: skip
@shared_options
def ref(data, dest, num, keep, batch, seed, detector, device, how, json_path) -> None:
    """Write the reference statistics of a dataset."""
    dest = dest if dest.endswith('.npz') else f'{dest}.npz'
    util.require_writable('--dest', dest)
    source = at_least(2, Files(data, num, seed))
    made = collect(source, detector, batch, keep, 'features')
    about = {'images': source.describe()} | how
    if dist.get_rank() == 0:
        save_statistics(dest, made._replace(meta=about))
    numbers = {'images': made.num, 'features kept': 0 if made.features is None else len(made.features)}
    notes = [f'{made.num} images are few for a reference: use all that there are'] * (made.num < FEW)
    about['written'] = {'path': dest, 'sha256': util.file_sha256(dest) if dist.get_rank() == 0 else None}
    report('ref', numbers, notes, about, json_path)


@main.command(help=script_help(__file__, 'selftest'))
@click.option('--data', help='Folder or zip of images', metavar='PATH|ZIP', required=True)
@click.option('--num', help='How many images of it  [default: all]', metavar='INT', type=click.IntRange(4))
@shared_options
def selftest(data, num, batch, seed, detector, device, how, json_path) -> None:
    """Compare one random half of a dataset with the other: the numbers that a perfect generator would have."""
    whole = at_least(4, Files(data, num, seed))
    order = np.random.RandomState(seed).permutation(whole.indices)
    halves = []
    for i, title in enumerate(('first half', 'second half')):
        half = Files(data, dataset=whole.dataset)
        half.indices = np.sort(order[i::2][: whole.num // 2])
        half.num = len(half.indices)
        halves.append(collect(half, detector, batch, KEEP, title))
    numbers, notes = compare(*halves)
    report('selftest', numbers, notes, {'images': whole.describe()} | how, json_path)


@main.command(help=script_help(__file__, 'reconstruct'))
@click.option('--network', help='Snapshot', metavar='FILE|URL', required=True)
@click.option('--ema', help='Which averaged weights of the snapshot  [default: the first]', metavar='LABEL|none')
@click.option('--data', help='Folder or zip of the images that it was trained on', metavar='PATH|ZIP', required=True)
@click.option('--held-out', help='Images that it has never seen', metavar='PATH|ZIP')
@click.option('--num', help='How many images of each  [default: all]', metavar='INT', type=click.IntRange(2))
@shared_options
def reconstruct(network, ema, data, held_out, num, batch, seed, detector, device, how, json_path) -> None:
    """Encode and decode images: rFID, PSNR, SSIM, LPIPS, bits per pixel, on training and on held-out data."""
    net, about = load_network(network, ema, device, classes=False)
    sources = {'training': at_least(2, Files(data, num, seed))}
    if held_out is not None:
        sources['held-out'] = at_least(2, Files(held_out, num, seed))
    for source in sources.values():  # all of its images are of one shape
        source.dataset.archive.images([0], (net.img_channels, *net.img_resolution))
    numbers, notes = {}, []
    for name, source in sources.items():
        lpips, reason = find_lpips([source], device)
        measured, more = score_reconstruction(net, source, detector, lpips, batch, name)
        numbers |= {f'{name} {key}': value for key, value in measured.items()}
        notes += reason + [f'{name}: {note}' for note in more]
    about = {'network': about, 'images': {name: source.describe() for name, source in sources.items()}}
    report('reconstruct', numbers, notes, about | how, json_path)


def score_reconstruction(
    net, source: Files, detector: Detector, lpips: LPIPS | None, batch: int, title: str
) -> tuple[dict[str, float], list[str]]:
    """(numbers, notes) of what is left of a source's images after `net.encode` and `net.decode`, in 8 bits."""
    collectors = [Collector(detector.dim, source.num, KEEP) for _ in range(2)]
    sums = torch.zeros(3, dtype=torch.float64)
    height, width = source.resolution
    for positions, images in shares(source, batch, title):
        again = to_uint8(net.decode(net.encode(to_float(images)))).cpu()
        for collector, pictures in zip(collectors, (images, again), strict=True):
            collector.add_(detector.features(to_float(pictures)), positions)
        sums[0] += psnr(images, again).sum()
        sums[1] += ssim(images, again).sum() if min(height, width) >= WINDOW else math.nan
        if lpips is not None:
            device = lpips.shift.device
            sums[2] += lpips(to_float(images).to(device), to_float(again).to(device)).double().sum().cpu()
    dist.all_reduce_(sums)
    mean = (sums / source.num).tolist()
    numbers, notes = compare(*map(finish, collectors), prefix='r')
    n = short_number(source.num)
    numbers |= {f'PSNR-{n} dB': mean[0], f'SSIM-{n}': mean[1]}
    if lpips is not None:
        numbers[f'LPIPS-{n}'] = mean[2]
    return numbers | {'bits per pixel': net.num_bits / (height * width)}, notes


def find_lpips(sources: list, device: torch.device) -> tuple[LPIPS | None, list[str]]:
    """(LPIPS, []) or (None, [why not]), of sources that are to be compared."""
    sizes = sorted({f'{source.resolution[1]}x{source.resolution[0]}' for source in sources})
    if len(sizes) > 1:
        return None, [f'no LPIPS: it compares pictures of one size, and these are {" and ".join(sizes)}']
    if min(sources[0].resolution) < MIN_SIZE:
        return None, [f'no LPIPS: it needs pictures of at least {MIN_SIZE}x{MIN_SIZE}']
    try:
        return load_lpips(device), []
    except (ValueError, OSError) as error:
        return None, [f'no LPIPS: {error}']


@main.command(help=script_help(__file__, 'neighbours'))
@click.option('--images', help='Folder or zip of samples', metavar='PATH|ZIP')
@click.option('--network', help='Draw the samples from this snapshot', metavar='FILE|URL')
@click.option('--ema', help='Which averaged weights of the snapshot  [default: the first]', metavar='LABEL|none')
@click.option('--data', help='Folder or zip of the training images', metavar='PATH|ZIP', required=True)
@click.option('--held-out', help='Real images that were not trained on', metavar='PATH|ZIP')
@click.option('--num', help='How many samples, and held-out images at most', metavar='INT', type=click.IntRange(1),
              default=1000)  # fmt: skip
@click.option('--sheet', help='Picture to write: samples, and beside each its neighbours', metavar='PNG')
@click.option('--rows', help='Samples on the sheet', metavar='INT', type=click.IntRange(1), default=8)
@click.option('--columns', help='Neighbours of each', metavar='INT', type=click.IntRange(1), default=6)
@shared_options
def neighbours(
    images, network, ema, data, held_out, num, sheet, rows, columns, batch, seed, detector, device, how, json_path
) -> None:
    """Are samples new? Their nearest training images, by LPIPS and by the detector, as a sheet and as a number."""
    if (images is None) == (network is None):
        raise click.UsageError('give either --images or --network')
    if network is not None:
        net, about = load_network(network, ema, device)
        samples = Samples(net, num, seed, about)
    else:
        samples = Files(images)
        samples = Files(images, min(num, samples.num), seed, samples.dataset)
    gallery = Files(data)
    held = None if held_out is None else Files(held_out)
    held = held and Files(held_out, min(num, held.num), seed, held.dataset)
    sets = [samples] if held is None else [samples, held]
    lpips, notes = find_lpips([gallery, *sets], device)
    embeddings = {detector.name: detector.features}
    if lpips is not None:
        embeddings = {'LPIPS': lambda x: lpips.embed(x.to(device))} | embeddings
    numbers, found = {}, {}
    for name, embed in embeddings.items():
        near = nearest(sets, gallery, embed, columns, batch, name)
        found[name] = near[0].indices[:rows]
        # An LPIPS distance is the square of the embedding's.
        first = [n.distances[:, 0].square() if name == 'LPIPS' else n.distances[:, 0] for n in near]
        numbers[f'{name}: median distance of samples to the nearest training image'] = first[0].median().item()
        if held is not None:
            close = distances.closeness(*first)
            numbers[f'{name}: the same of held-out images'] = close.median_held_out
            numbers[f'{name}: share of samples closer than a held-out image (new: 0.5)'] = close.closer
            numbers[f'{name}: share of samples closer than 99 % of held-out images (new: 0.01)'] = close.copies
    if held is None:
        notes.append('without --held-out there is nothing to compare these distances with')
    about = {'samples': samples.describe(), 'data': gallery.describe(), 'held-out': held and held.describe()}
    report('neighbours', numbers, notes, about | {'sheet': sheet} | how, json_path)
    if sheet and dist.get_rank() == 0:
        write_sheet(sheet, samples, gallery, found)


def nearest(sets: list, gallery: Files, embed: Callable, k: int, batch: int, name: str) -> list[distances.Nearest]:
    """For each set the k nearest of the gallery to each of its images, by Euclidean embedding; alike on every rank."""
    searches = []
    for source in sets:
        parts = [(positions, embed(to_float(images)).cpu()) for positions, images in shares(source, batch, name)]
        parts = sorted((p for rank in dist.all_gather_object(parts) for p in rank), key=lambda part: part[0])
        searches.append(distances.Nearest(torch.cat([x for _, x in parts]), k))
    shown: list[int] = []
    waiting: list[torch.Tensor] = []  # a search costs a pass over all queries, so show many at a time

    def show() -> None:
        for search in searches if waiting else []:
            search.add_(torch.cat(waiting))
        waiting.clear()

    for positions, images in shares(gallery, batch, f'{name} of {gallery.path}'):
        waiting.append(embed(to_float(images)).cpu())
        shown += positions
        if sum(map(torch.numel, waiting)) * 4 > distances.TABLE_BYTES:
            show()
    show()
    places = torch.tensor(shown + [-1])  # -1 stays -1
    for search in searches:
        parts = dist.all_gather_object((search.distances, places[search.indices]))
        every, indices = (torch.cat(x, 1) for x in zip(*parts, strict=True))
        order = every.argsort(dim=1, stable=True)[:, :k]
        search.distances, search.indices = every.gather(1, order), indices.gather(1, order)
    return searches


def write_sheet(path: str, samples, gallery: Files, found: dict[str, torch.Tensor]) -> None:
    """Write the sheet: in each row a sample, then its neighbours by each measure, left to right by distance."""
    rows = []
    for i, near in enumerate(zip(*found.values(), strict=True)):
        rows.append([Tile(samples.read([i])[0], 'sample')])
        for measure, indices in zip(found, near, strict=True):
            rows[-1] += [Tile(picture, measure) for picture in gallery.read(indices[indices >= 0].tolist())]
    save_png(draw_sheet(rows), path)


if __name__ == '__main__':
    sys.exit(main())
