"""Files of the codec against JPEG, WebP, AVIF and PNG: PSNR, SSIM and LPIPS over bytes, on held-out images.

    python -m experiments.rate_distortion --network=NET --data=faces64-test.zip --results=out/rate_distortion/faces64

The codec's files are cut after each layer; their bytes are the header (8) and what the entropy model says, rounded up,
which the coder reaches to a byte. Peers are Pillow's, at each quality (or every --step-th one). LPIPS needs its weights
(docs/metrics.md); without them the column is left out. A network with a finisher has rows of the same files without and
with it. --sheet adds the pictures of a folder as whole files of 24 to 1,000 bytes.
"""

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np
import torch
from PIL import Image, ImageDraw

from cli.networks import load_network
from cli.options import script
from cli.tables import markdown, write_results
from ddn_networks import codec, snapshots
from ddn_networks.code_rates import Rate, cuts, trial
from ddn_networks.code_streams import HEADER, Codec
from dnnlib.images import to_array, to_float, to_image, to_uint8
from dnnlib.sheets import draw_sheet, save_png
from experiments.common import PORTRAITS, as_saved, pictures, portraits, spread
from metrics.detectors import load_lpips
from metrics.reconstruction import psnr, ssim

SIZES = (24, 48, 144, 400, 1000)  # bytes of the files of the sheet
PEERS: dict[str, dict[str, Any]] = {
    'JPEG': {'format': 'JPEG', 'optimize': True}, 'WebP': {'format': 'WEBP', 'method': 6}, 'AVIF': {'format': 'AVIF'},
}  # fmt: skip
FINISHED = 'codec, finisher'
COLOURS = {
    'codec': '#c02020', FINISHED: '#9467bd', 'JPEG': '#7f7f7f', 'WebP': '#1f77b4', 'AVIF': '#2ca02c', 'PNG': '#000000',
}  # fmt: skip
WIDTH, HEIGHT, MARGIN = 560, 380, 48


def compared(images: torch.Tensor, made: torch.Tensor, lpips: Callable | None) -> dict[str, float]:
    """Mean PSNR, SSIM and LPIPS of images [B, C, H, W] in [-1, 1], both of 8 bits."""
    a, b = to_uint8(images), to_uint8(made)
    found = {'PSNR': psnr(a, b).clamp(max=99).mean().item(), 'SSIM': ssim(a, b).mean().item()}
    return found if lpips is None else found | {'LPIPS': lpips(images, made).mean().item()}


@torch.no_grad()
def of_codec(made: Codec, images: torch.Tensor, lpips: Callable | None) -> Iterator[dict[str, Any]]:
    """A row for each number of layers, and with a finisher another one of the same codes."""
    tries = [t for part in images.split(16) for t in trial(made, part, 0.0)]
    for layer, num in enumerate(made.starts[1:], 1):
        found = [c for i, part in enumerate(images.split(16))
                 for c in cuts(made, part, tries[16 * i : 16 * i + 16], [num] * len(part))]  # fmt: skip
        coded = sum(math.ceil(cut.bits / 8) for cut in found) / len(found)
        for name in ('codec', FINISHED)[: 1 + (made.net.finisher is not None)]:
            pictures = [cut.picture for cut in found]
            drawn = torch.stack(made.draw(pictures, finish=name == FINISHED)).clamp(-1, 1)
            yield {'codec': name, 'setting': f'{layer} layers', 'bytes': HEADER.size + coded,
                   'without header': coded, **compared(images, as_saved(drawn), lpips)}  # fmt: skip


def of_peers(images: torch.Tensor, step: int, lpips: Callable | None) -> Iterator[dict[str, Any]]:
    """A row for each format and quality."""
    originals = [to_image(x) for x in to_uint8(images).numpy()]
    settings = [(name, q, {**how, 'quality': q}) for name, how in PEERS.items() for q in range(0, 101, step)]
    for name, quality, how in [*settings, ('PNG', '', {'format': 'PNG', 'optimize': True})]:
        files = []
        for original in originals:
            file = io.BytesIO()
            original.save(file, **how)
            files.append(file)
        decoded = [to_array(Image.open(file).convert(originals[0].mode)) for file in files]
        made = to_float(torch.from_numpy(np.stack(decoded)))
        length = sum(len(file.getvalue()) for file in files) / len(files)
        setting = f'quality {quality}' if how.keys() >= {'quality'} else ''
        yield {'codec': name, 'setting': setting, 'bytes': length, **compared(images, made, lpips)}


def at_bytes(rows: list[dict[str, Any]], name: str, num: float, value: str) -> float | None:
    """A curve's value at a number of bytes, interpolated over log bytes; None outside of it."""
    points = sorted((row['bytes'], row[value]) for row in rows if row['codec'] == name)
    if not points or not points[0][0] <= num <= points[-1][0]:
        return None
    x, y = zip(*points, strict=True)
    return float(np.interp(math.log(num), np.log(x), y))


def names(rows: list[dict[str, Any]]) -> list[str]:
    """The curves that there are, in the order of ``COLOURS``."""
    return [name for name in COLOURS if any(row['codec'] == name for row in rows)]


def plot(rows: list[dict[str, Any]], value: str) -> Image.Image:
    """Curves of a value over bytes, logarithmic."""
    image = Image.new('RGB', (WIDTH, HEIGHT), 'white')
    draw = ImageDraw.Draw(image)
    lengths, values = [row['bytes'] for row in rows], [row[value] for row in rows if row['codec'] != 'PNG']
    low, high = math.log(min(lengths) * 0.9), math.log(max(lengths) * 1.1)
    bottom, top = min(values), max(values)

    def at(length: float, y: float) -> tuple[float, float]:
        across = (math.log(length) - low) / (high - low)
        up = (min(y, top) - bottom) / (top - bottom)
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    for length in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000):
        if low <= math.log(length) <= high:
            x, y = at(length, bottom)
            draw.line([(x, MARGIN), (x, y)], '#e0e0e0')
            draw.text((x, y + 6), str(length), 'black', anchor='ma')
    for y in np.linspace(bottom, top, 6):
        place = at(math.exp(low), y)
        draw.text((place[0] - 4, place[1]), f'{y:.3g}', 'black', anchor='rm')
    curves = {name: [at(row['bytes'], row[value]) for row in rows if row['codec'] == name] for name in names(rows)}
    height = 14 * len(curves)
    legend = min((MARGIN, HEIGHT - MARGIN - height - 6), key=lambda top: sum(  # where fewer points are
        x > WIDTH - MARGIN - 90 and top <= y <= top + height for points in curves.values() for x, y in points
    ))  # fmt: skip
    for i, (name, points) in enumerate(curves.items()):
        colour = COLOURS[name]
        draw.line(points, colour, width=2)
        for x, y in points:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), colour)
        draw.text((WIDTH - MARGIN - 90, legend + 14 * i), name, colour)
    draw.text((WIDTH / 2, HEIGHT - 14), 'bytes of a file, header included', 'black', anchor='mm')
    draw.text((MARGIN, MARGIN - 20), value, 'black')
    return image


def sheet(made: Codec, folder: str) -> Image.Image:
    """Pictures of a folder as whole files of SIZES bytes."""
    images = portraits(folder, made.net)
    rows = []
    for size in SIZES:
        files = [codec.encode(made.net, image[None], model=made.model, rate=Rate(bits=8 * size)) for image in images]
        rows.append([codec.decode(made.net, file)[0] for file in files])
    return draw_sheet([*rows, list(images)], names=[*(f'{size} bytes' for size in SIZES), 'original'])


def report(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Tables: where the codec stands at some numbers of bytes, and all rows."""
    values = [v for v in ('PSNR', 'SSIM', 'LPIPS') if v in rows[0]]
    own = [row['bytes'] for row in rows if row['codec'] == 'codec']
    at = [size for size in (12, 14, 16, 20, 50, 100, 150, 200, 300, 400, 500, 700) if min(own) <= size <= max(own)]
    compared_at = [
        {'bytes': size, **{f'{v}, {name}': at_bytes(rows, name, size, v) for v in values for name in names(rows)}}
        for size in at
    ]
    smallest = {name: min(row['bytes'] for row in rows if row['codec'] == name) for name in names(rows)}
    return (
        f'# Rate and distortion\n\n{facts["num"]} held-out images; network of {facts["network_bytes"]:,} bytes; '
        f'entropy model: {facts["model"]}.\nMean bytes of the smallest file: '
        + ', '.join(f'{name} {length:.0f}' for name, length in smallest.items())
        + '.\n\n' + '\n\n'.join(markdown(table) for table in (compared_at, rows) if table)
    )


@script(__file__)
@click.option('--network', metavar='FILE|URL', required=True, help='Snapshot, run folder or shipped name')
@click.option('--data', metavar='ZIP|DIR', required=True, help="Held-out images of the network's shape")
@click.option('--num', type=click.IntRange(min=1), default=500, help='Images, spread evenly over them')
@click.option('--step', type=click.IntRange(1, 100), default=1, help='Every so many qualities of the peers')
@click.option('--sheet/--no-sheet', 'with_sheet', default=False, help='Also draw the shipped portraits as files')
@click.option('--results', metavar='PATH', required=True, help='Files to write: PATH.md, .json, -psnr.png, ...')
def main(network, data, num, step, with_sheet, results):
    net = load_network(network)
    made = Codec(net)
    images = pictures(data, net, spread(data, num))
    try:
        lpips = load_lpips()
    except (ValueError, OSError) as error:
        click.echo(f'Without LPIPS: {error}')
        lpips = None
    rows = [*of_codec(made, images, lpips), *of_peers(images, step, lpips)]
    file = snapshots.network_path(network)
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    facts = {'num': num, 'network_bytes': weights, 'network': file.name, 'model': made.model, 'step': step}
    facts['rows'] = rows
    write_results(results, report(rows, facts), facts)
    for value in ('PSNR', 'SSIM', 'LPIPS'):
        if value in rows[0]:
            save_png(plot(rows, value), f'{results}-{value.lower()}.png')
    if with_sheet:
        save_png(sheet(made, PORTRAITS), f'{results}-sheet.png')
    click.echo(report(rows, facts).split('\n\n')[2])


if __name__ == '__main__':
    main()
