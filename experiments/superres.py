"""Super-resolution of held-out pictures by a guided network, against bicubic interpolation (Fig. 2).

    python -m experiments.superres --network=NET --data=datasets/faces64-test.zip

NET: a snapshot of train.py --preset=faces64-cpu, with its finisher or without. It sees 8x8 pixels of each picture
(--size) and draws the rest: at its default temperatures, at a low one, and by the likeliest choice of each cell. The
table has PSNR, LPIPS, and the Frechet and kernel distances (KID) of the features of --detector to those of the
originals. The sheet shows --portraits, which may be published.
"""

import time
from pathlib import Path

import click
import torch

from cli.networks import load_network
from cli.options import script
from ddn_networks import Network
from ddn_networks.guided_sampling import Guidance, top_k
from dnnlib.archives import ImageArchive
from dnnlib.sheets import Tile, draw_sheet, save_png
from experiments import ablation, zscg
from experiments.common import PORTRAITS_OPTION, as_saved, features_of, pictures, portraits, trained_on
from experiments.face_tasks import low, superres
from metrics import evaluate
from metrics.detectors import load_detector, load_lpips
from metrics.reconstruction import psnr

PART = 50  # pictures at a time
WAYS = {  # name: (temperature, ways to choose)
    'default T': (None, Guidance([])),
    'T 0.1': (0.1, Guidance([])),
    'top 1': (None, Guidance([], top_k(1))),
}


def drawn(net: Network, way: str, task: zscg.Task, originals: torch.Tensor, finish: bool) -> torch.Tensor:
    """[B, C, H, W]: pictures by a way of WAYS, of seeds 0, 1, ..."""
    temperature, guidance = WAYS[way]
    parts = []
    for i in range(0, len(originals), PART):
        given = originals[i : i + PART]
        guided = guidance._replace(guides=[task.guide(given)])
        seeds = list(range(i, i + len(given)))
        parts.append(net.sample(seeds=seeds, guide=guided, temperature=temperature, finish=finish)[0])
    return as_saved(torch.cat(parts))


def ways(net: Network) -> dict[str, tuple[str, bool]]:
    """{row: (way of WAYS, with the finisher)} of a network."""
    finisher = [False] if net.finisher is None else [False, True]
    return {way + (', finisher' if finish else ''): (way, finish) for finish in finisher for way in WAYS}


def sheet(net: Network, task: zscg.Task, shown: torch.Tensor, seeds: int) -> list[list[Tile]]:
    """A row for each picture: itself, what the network sees of it, bicubic, and images of seeds by each way."""
    columns = [
        ('original', shown),
        ('seen', zscg.pixels_of(task.condition(shown), shown)),
        ('bicubic', as_saved(task.baseline(shown))),
    ]
    for way in WAYS:
        many = drawn(net, way, task, shown.repeat_interleave(seeds, 0), net.finisher is not None)
        columns += [('' if i else way, many[i::seeds]) for i in range(1 if way == 'top 1' else seeds)]
    return [[Tile(images[n], '' if n else name) for name, images in columns] for n in range(len(shown))]


@script(__file__)
@click.option('--network', required=True, metavar='FILE|URL|NAME', help='Snapshot of an unconditional network')
@click.option('--data', required=True, metavar='ZIP|DIR', help='Held-out pictures of its resolution')
@PORTRAITS_OPTION
@click.option('--size', type=click.IntRange(min=1), default=8, help='Pixels a side that the network sees')
@click.option('--num', type=click.IntRange(min=2), default=1000, help='Held-out pictures')
@click.option('--detector', default='inception', metavar='NAME|FILE', help='Detector of the distance')
@click.option('--seeds', type=click.IntRange(min=1), default=4, help='Pictures of each portrait on the sheet')
@click.option('--outdir', metavar='DIR', default='out/superres', help='Folder for table, sheet and features')
@torch.no_grad()
def main(network, data, portrait_folder, size, num, detector, seeds, outdir):
    net, lpips = load_network(network), load_lpips()
    if any(side % size for side in net.img_resolution):
        height, width = net.img_resolution
        raise click.UsageError(f'--size={size}: give a size that divides the sides, {height} and {width}')
    task, held = superres(size), len(ImageArchive(data))
    originals, shown = pictures(data, net, range(min(num, held))), portraits(portrait_folder, net)
    made_by = load_detector(detector, folder=Path(outdir) / 'features')
    real = features_of(originals, made_by, keep=num)

    def numbers(images: torch.Tensor) -> dict[str, float]:
        pairs = zip(images.split(PART), originals.split(PART), strict=True)
        apart = low(images, size) - low(originals, size)
        distances, _ = evaluate.compare(real, features_of(images, made_by, keep=num))
        return {
            'PSNR dB': psnr(images, originals, peak=2.0).mean().item(),
            'LPIPS': torch.cat([lpips(a, b) for a, b in pairs]).mean().item(),
            'FD': ablation.starting(distances, 'FID'),
            'KID': ablation.starting(distances, 'KID'),
            'RMSE of the condition': apart.square().mean().sqrt().item(),
        }

    rows = [{'way': 'bicubic', **numbers(as_saved(task.baseline(originals))), 's / image': None, 'trained on': '-'}]
    click.echo(rows[0])
    for name, (way, finish) in ways(net).items():
        started = time.process_time()
        images = drawn(net, way, task, originals, finish)
        seconds = (time.process_time() - started) / len(originals)
        rows.append({'way': name, **numbers(images), 's / image': seconds})
        rows[-1]['trained on'] = (trained_on(net) if finish else '') or '-'
        click.echo(rows[-1])
    facts = {
        'network': zscg.in_words(net, network),
        'pictures': f'{len(originals):,} of {Path(data).name}, held out, from {size}x{size} pixels',
        'FD, KID': f'of the features of {made_by.name} against those of the originals',
        'RMSE of the condition': f'of the {size}x{size} pixels of the picture, of a range of 2',
        'trained on': 'a metric that the finisher was trained on, which says nothing',
    }
    name = ablation.slug(f'superres {Path(network).stem}')
    zscg.write(outdir, name, facts, rows, {})
    save_png(draw_sheet(sheet(net, task, shown, seeds)), str(Path(outdir) / f'{name}.png'))


if __name__ == '__main__':
    main()
