"""Files of the codec against JPEG, WebP, AVIF and PNG: PSNR, SSIM and LPIPS over bytes, on held-out images.

    python -m experiments.rate_distortion --network=NET --data=faces64-test.zip --results=out/rate_distortion/faces64

The codec's files are cut after each layer; their bytes are the header (8) and what the entropy model says, rounded up,
which the coder reaches to a byte. Peers are Pillow's (which has no JPEG XL), at each quality, or every --step-th one;
without header their bytes are those of the coded pixels (JPEG's scan, WebP's frame, AVIF's mdat, PNG's IDAT). LPIPS
needs its weights (docs/metrics.md); without them the column is left out. A network with a finisher has rows of the same
files without and with it. --sheet adds the shipped portraits as whole files of 24 to 1,000 bytes.

Images are in a random order that is always the same. Results are written after every 16 of them, and a run that was
stopped resumes after those; so does one with a larger --num.
"""

import io
import math
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cli.networks import load_network
from cli.options import script
from cli.tables import markdown, write_results
from ddn_networks import codec
from ddn_networks.code_rates import Rate, cuts, trial
from ddn_networks.code_streams import HEADER, Codec
from dnnlib.archives import ImageArchive
from dnnlib.images import to_array, to_float, to_image, to_uint8
from dnnlib.sheets import draw_sheet, save_png
from experiments.common import PORTRAITS, as_saved, pictures, portraits, read_record
from experiments.curves import draw_curves
from metrics.detectors import load_lpips
from metrics.lpips import LPIPS
from metrics.reconstruction import psnr, ssim

SIZES = (24, 48, 144, 400, 1000)  # bytes of the files of the sheet
PART = 16  # images at a time
PEERS: dict[str, dict[str, Any]] = {
    'JPEG': {'format': 'JPEG', 'optimize': True}, 'WebP': {'format': 'WEBP', 'method': 6}, 'AVIF': {'format': 'AVIF'},
}  # fmt: skip
FINISHED = 'codec, finisher'
COLOURS = {
    'codec': '#c02020', FINISHED: '#9467bd', 'JPEG': '#7f7f7f', 'WebP': '#1f77b4', 'AVIF': '#2ca02c', 'PNG': '#000000',
}  # fmt: skip


class Measure:
    """Mean PSNR, SSIM and LPIPS against images [B, C, H, W] in [-1, 1]; both are rounded to 8 bits."""

    def __init__(self, images: torch.Tensor, lpips: LPIPS | None):
        self.images, self._lpips = to_uint8(images), lpips
        self._embedded = None if lpips is None else lpips.embed(as_saved(images))

    def __call__(self, made: torch.Tensor) -> dict[str, float]:
        pixels = to_uint8(made)
        found = {
            'PSNR': psnr(self.images, pixels).clamp(max=99).mean().item(),
            'SSIM': ssim(self.images, pixels).mean().item(),
        }
        if self._lpips is not None:
            distances = (self._lpips.embed(to_float(pixels)) - self._embedded).square().sum(1)
            found['LPIPS'] = distances.mean().item()
        return found


@torch.no_grad()
def of_codec(made: Codec, images: torch.Tensor, measure: Measure) -> Iterator[dict[str, Any]]:
    """A row for each number of layers, and with a finisher another one of the same codes."""
    tries = trial(made, images, 0.0)
    for layer, num in enumerate(made.starts[1:], 1):
        found = cuts(made, images, tries, [num] * len(images))
        coded = sum(math.ceil(cut.bits / 8) for cut in found) / len(found)
        for name in ('codec', FINISHED)[: 1 + (made.net.finisher is not None)]:
            drawn = made.draw([cut.picture for cut in found], finish=name == FINISHED)
            yield {'codec': name, 'setting': f'{layer} layers', 'bytes': HEADER.size + coded,
                   'without header': coded, **measure(torch.stack(drawn).clamp(-1, 1))}  # fmt: skip


def saved(images: torch.Tensor, how: dict[str, Any]) -> list[bytes]:
    """Files of images [B, C, H, W] of 8 bits by Pillow."""
    files = [io.BytesIO() for _ in images]
    for image, file in zip(images.numpy(), files, strict=True):
        to_image(image).save(file, **how)
    return [file.getvalue() for file in files]


def opened(files: Sequence[bytes], channels: int) -> torch.Tensor:
    """The images [B, C, H, W] in [-1, 1] of Pillow's files."""
    mode = 'L' if channels == 1 else 'RGB'
    return to_float(torch.from_numpy(np.stack([to_array(Image.open(io.BytesIO(f)).convert(mode)) for f in files])))


def of_peers(measure: Measure, step: int) -> Iterator[dict[str, Any]]:
    """A row for each format and quality."""
    settings = [(name, q, {**how, 'quality': q}) for name, how in PEERS.items() for q in range(0, 101, step)]
    files, found = [], {}
    for name, quality, how in [*settings, ('PNG', '', {'format': 'PNG', 'optimize': True})]:
        before, files = files, saved(measure.images, how)
        if files != before:  # AVIF has fewer qualities than numbers for them
            lengths = [sum(map(of, files)) / len(files) for of in (len, coded_bytes)]
            found = {'bytes': lengths[0], 'without header': lengths[1],
                     **measure(opened(files, measure.images.shape[1]))}  # fmt: skip
        setting = {'setting': ''} if name == 'PNG' else {'setting': f'quality {quality}', 'quality': quality}
        yield {'codec': name, **setting, **found}


def coded_bytes(data: bytes) -> int:
    """Of a file of ``PEERS`` or a PNG, the bytes that hold coded pixels."""
    if data[:2] == b'\xff\xd8':  # JPEG: from the end of the header of its only scan to the mark of the end
        at = 2
        while data[at + 1] != 0xDA:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
        return len(data) - 2 - (at + 2 + int.from_bytes(data[at + 2 : at + 4], 'big'))
    if data[:4] == b'RIFF':  # WebP: a frame begins with 10 bytes: its kind, a mark, its size
        return sum(length - 10 for kind, length in chunks(data[12:], '<4sI', 8, 2) if kind == b'VP8 ')
    if data[:4] == b'\x89PNG':
        return sum(length for kind, length in chunks(data[8:], '>I4s', 12, 1) if kind == b'IDAT')
    return sum(length - 8 for kind, length in chunks(data, '>I4s', 0, 1) if kind == b'mdat')


def chunks(data: bytes, form: str, extra: int, multiple: int) -> Iterator[tuple[bytes, int]]:
    """(kind, length) of the chunks of a file: ``extra`` bytes are not in the length, which is filled up to a multiple.
    """
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from(form, data, at)
        if isinstance(kind, int):  # formats differ in which comes first
            kind, length = length, kind
        yield kind, length
        at += extra + -(-length // multiple) * multiple


def added(rows: list[dict[str, Any]], num: int, more: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Rows that are means over ``num`` images, and over ``count`` more."""
    if not rows:
        return more
    return [
        {k: (num * v + count * b[k]) / (num + count) if isinstance(v, float) else v for k, v in a.items()}
        for a, b in zip(rows, more, strict=True)
    ]


def at_bytes(
    rows: list[dict[str, Any]], name: str, num: float, value: str, counted: str = 'bytes'
) -> float | None:
    """A curve's value at a number of bytes, interpolated over log bytes; None outside of it. ``counted``: the column of
    bytes."""
    (found,) = curve(rows, name, np.array([num]), value, counted)
    return None if math.isnan(found) else float(found)


def curve(rows: list[dict[str, Any]], name: str, nums: np.ndarray, value: str, counted: str) -> np.ndarray:
    """``at_bytes`` of several numbers of bytes; NaN outside of the curve."""
    points = sorted((row[counted], row[value]) for row in rows if row['codec'] == name)
    if not points:
        return np.full(len(nums), np.nan)
    x, y = zip(*points, strict=True)
    return np.interp(np.log(nums), np.log(x), y, np.nan, np.nan)


def better(rows: list[dict[str, Any]], name: str, peer: str, value: str, counted: str) -> str:
    """In words, at which of the bytes that both curves have ``name`` is better than ``peer``."""
    lengths = [[row[counted] for row in rows if row['codec'] == of] for of in (name, peer)]
    low, high = math.ceil(max(map(min, lengths))), math.floor(min(map(max, lengths)))
    if low > high:
        return 'no bytes in common'
    nums = np.arange(low, high + 1)
    own, other = (curve(rows, of, nums, value, counted) for of in (name, peer))
    (right,) = np.nonzero(own < other if value == 'LPIPS' else own > other)
    parts = np.split(nums[right], np.nonzero(np.diff(right) > 1)[0] + 1) if len(right) else []
    return (', '.join(f'{p[0]:,} to {p[-1]:,}' for p in parts) or 'nowhere') + f' (of {low:,} to {high:,})'


def crossings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where the codec is better than each of its peers, with the bytes of headers counted and not counted."""
    return [
        {
            'codec': name, 'against': peer, 'header': header,
            **{f'better {value} at bytes': better(rows, name, peer, value, counted) for value in measured(rows)},
        }
        for name in names(rows) if name in ('codec', FINISHED)
        for peer in names(rows) if peer in PEERS
        for header, counted in (('counted', 'bytes'), ('not counted', 'without header'))
    ]  # fmt: skip


def measured(rows: list[dict[str, Any]]) -> list[str]:
    """The columns of similarity that there are."""
    return [value for value in ('PSNR', 'SSIM', 'LPIPS') if value in rows[0]]


def names(rows: list[dict[str, Any]]) -> list[str]:
    """The curves that there are, in the order of ``COLOURS``."""
    return [name for name in COLOURS if any(row['codec'] == name for row in rows)]


def plot(rows: list[dict[str, Any]], value: str) -> Image.Image:
    """Curves of a value over bytes; those of PNG, which loses nothing, may end beyond the others'."""
    curves = {name: [(row['bytes'], row[value]) for row in rows if row['codec'] == name] for name in names(rows)}
    values = [row[value] for row in rows if row['codec'] != 'PNG']
    return draw_curves(curves, COLOURS, ('bytes of a file, header included', value), (min(values), max(values)))


def largest(image: torch.Tensor, how: dict[str, Any], size: int) -> torch.Tensor | None:
    """An image [C, H, W] from Pillow's file of the highest quality of at most ``size`` bytes; None if there is none."""
    for quality in range(100, -1, -1):
        files = saved(to_uint8(image)[None], {**how, 'quality': quality})
        if len(files[0]) <= size:
            return opened(files, len(image))[0]
    return None


def sheet(made: Codec, folder: str) -> Image.Image:
    """Pictures of a folder as whole files of SIZES bytes, and as those of the peers that are not larger."""
    images = portraits(folder, made.net)
    files = {size: [codec.encode(made.net, image[None], model=made.model, rate=Rate(bits=8 * size)) for image in images]
             for size in SIZES}  # fmt: skip
    rows = {f'codec, {size:,} bytes': [codec.decode(made.net, file, finish=False)[0] for file in files[size]]
            for size in SIZES}  # fmt: skip
    if made.net.finisher is not None:
        rows[f'with finisher, {SIZES[-1]:,}'] = [codec.decode(made.net, file)[0] for file in files[SIZES[-1]]]
    for name, how in PEERS.items():
        for size in SIZES:
            found = [largest(image, how, size) for image in images]
            if any(image is not None for image in found):
                rows[f'{name}, {size:,} bytes'] = found
    return draw_sheet([*rows.values(), list(images)], names=[*rows, 'original'])


def report(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Tables: where the codec is better, where it stands at some numbers of bytes, and every fifth quality."""
    own = [row['bytes'] for row in rows if row['codec'] == 'codec']
    at = [size for size in (12, 14, 16, 20, 50, 100, 150, 200, 300, 400, 500, 700) if min(own) <= size <= max(own)]
    compared_at = [
        {'bytes': size, **{f'{v}, {name}': at_bytes(rows, name, size, v)
                           for v in measured(rows) for name in names(rows) if name != 'PNG'}}
        for size in at
    ]  # fmt: skip
    smallest = {name: min(row['bytes'] for row in rows if row['codec'] == name) for name in names(rows)}
    some = [row for row in rows if row.get('quality', 0) % 5 == 0]
    return (
        f'# Rate and distortion\n\n{facts["num"]} held-out images; network {facts["network"]}, '
        f'{facts["network_bytes"]:,} bytes; entropy model: {facts["model"]}.\nMean bytes of the smallest file: '
        + ', '.join(f'{name} {length:.0f}' for name, length in smallest.items())
        + '.\n\n' + '\n\n'.join(markdown(table) for table in (crossings(rows), compared_at, some) if table)
    )


@script(__file__)
@click.option('--network', metavar='FILE|URL', required=True, help='Snapshot, run folder or shipped name')
@click.option('--data', metavar='ZIP|DIR', required=True, help="Held-out images of the network's shape")
@click.option('--num', type=click.IntRange(min=1), default=500, help='Images')
@click.option('--step', type=click.IntRange(1, 100), default=1, help='Every so many qualities of the peers')
@click.option('--sheet/--no-sheet', 'with_sheet', default=False, help='Also draw the shipped portraits as files')
@click.option('--results', metavar='PATH', required=True, help='Files to write: PATH.md, .json, -psnr.png, ...')
def main(network, data, num, step, with_sheet, results):
    net = load_network(network)
    made, held = Codec(net), len(ImageArchive(data))
    if num > held:
        raise ValueError(f'--data={data} holds {held} images, --num={num} are needed')
    order = torch.randperm(held, generator=torch.Generator().manual_seed(0)).tolist()
    try:
        lpips = load_lpips()
    except (ValueError, OSError) as error:
        click.echo(f'Without LPIPS: {error}')
        lpips = None
    facts = {
        'network': os.path.basename(network.rstrip('/')), 'digest': made.digest.hex(), 'model': made.model,
        'network_bytes': sum(p.numel() * p.element_size() for p in net.parameters()),
        'data': ImageArchive(data).digest(), 'step': step, 'lpips': lpips is not None, 'num': 0, 'rows': [],
    }  # fmt: skip
    facts |= resumed(f'{results}.json', facts)
    with tqdm(total=num, initial=facts['num'], desc='images', unit='img', leave=False) as bar:
        while facts['num'] < num:
            chosen = order[facts['num'] : min(num, facts['num'] + PART)]
            images = pictures(data, net, chosen)
            measure = Measure(images, lpips)
            rows = [*of_codec(made, images, measure), *of_peers(measure, step)]
            facts['rows'] = added(facts['rows'], facts['num'], rows, len(chosen))
            facts['num'] += len(chosen)
            write_results(results, report(facts['rows'], facts), facts)
            bar.update(len(chosen))
    text = report(facts['rows'], facts)
    write_results(results, text, facts)
    for value in measured(facts['rows']):
        save_png(plot(facts['rows'], value), f'{results}-{value.lower()}.png')
    if with_sheet:
        save_png(sheet(made, PORTRAITS), f'{results}-sheet.png')
    click.echo(text.split('\n\n')[2])


def resumed(path: str, facts: dict[str, Any]) -> dict[str, Any]:
    """``num`` and ``rows`` of a run of the same facts that was stopped; {} if there is none."""
    if not os.path.exists(path):
        return {}
    before = read_record(path, 'num', 'rows')
    same = all(before.get(key) == value for key, value in facts.items() if key not in ('num', 'rows'))
    return {key: before[key] for key in ('num', 'rows')} if same else {}


if __name__ == '__main__':
    main()
