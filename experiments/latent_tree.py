"""Figs 6 and 18: all images that a small network can generate, as a recursive grid.

    python -m experiments.latent_tree --network=NET --out=tree.png
    python -m experiments.latent_tree --run=runs/00000-mnist-recurrent-batch256-mnist-tree --film=tree.gif

The mean of all images is in the middle, around it the K images of the first layer (blue), around each of them its K
children in the second layer (green), and so on; the smallest pictures, without a border, are those of the last layer.
For K = 8 the grids are 3x3; for other K the smallest square that holds the K pictures and their parent. The film shows
the snapshots of a training run one after the other.
"""

import math
import os
import re

import click
import imageio.v3 as imageio
import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from cli.networks import load_network
from cli.options import script
from ddn_networks import Network
from dnnlib.images import to_image, to_uint8
from dnnlib.sheets import save_png
from dnnlib.util import atomic_write

COLORS = ('white', (40, 90, 220), (40, 160, 60), (230, 120, 20), (150, 50, 170))  # by depth; the root has no border
MAX_LEAVES = 20_000


def grow(net: Network, depth: int, batch: int = 64) -> list[np.ndarray]:
    """The mean of all images at ``depth``, uint8 [1, C, h, w], and then the images of all nodes, depth by depth,
    [K^d, C, h, w] for d = 1 .. depth, in the order of their codes. Raises ValueError for a bad depth."""
    leaves = math.prod(net.num_nodes[:depth])
    if not 1 <= depth <= net.num_layers:
        raise ValueError(f'this network has {net.num_layers} layers, which --depth={depth} exceeds')
    if leaves > MAX_LEAVES:
        raise ValueError(f'{leaves:,} images at depth {depth}: give a smaller --depth (at most {MAX_LEAVES:,} images)')
    levels, prefixes = [], torch.zeros(1, 0, dtype=torch.int64)
    for l in range(depth):
        K = net.num_nodes[l]
        levels.append(torch.cat([net.branches(part).flatten(0, 1) for part in prefixes.split(batch)]))
        codes = torch.arange(K).repeat(len(prefixes))[:, None]
        prefixes = torch.cat([prefixes.repeat_interleave(K, 0), codes], 1)  # [K^(l+1), l + 1]
    mean = levels[-1].mean(0, keepdim=True)
    return [to_uint8(level).cpu().numpy() for level in (mean, *levels)]


def side(num_nodes: int) -> int:
    """Cells along a side of a grid: the smallest square for K pictures and their parent."""
    return math.isqrt(num_nodes) + 1


def block_size(num_nodes: list[int], leaf: tuple[int, int], depth: int) -> tuple[int, int]:
    """(height, width) in pixels of a node at ``depth`` with its subtree; ``leaf`` is the size of the smallest."""
    if depth == len(num_nodes):
        return leaf[0] + 2, leaf[1] + 2
    h, w = block_size(num_nodes, leaf, depth + 1)
    border = 2 * border_width(num_nodes, depth)
    return side(num_nodes[depth]) * h + border, side(num_nodes[depth]) * w + border


def border_width(num_nodes: list[int], depth: int) -> int:
    return max(1, 2 * (len(num_nodes) - depth) - 1)


def cells(num_nodes: int) -> list[tuple[int, int]]:
    """(row, column) of each child, row by row around the middle."""
    n = side(num_nodes)
    around = [(i // n, i % n) for i in range(n * n) if i != (n // 2) * n + n // 2]
    return around[:num_nodes]


def draw_tree(levels: list[np.ndarray], num_nodes: list[int], leaf: tuple[int, int]) -> Image.Image:
    """Draw the images that ``grow`` returns as a recursive grid."""

    def framed(pixels: np.ndarray, size: tuple[int, int], width: int, depth: int) -> Image.Image:
        h, w = size
        tile = Image.new('RGB', (w, h), COLORS[min(depth, len(COLORS) - 1)] if width else 'white')
        edge = width or 1
        smooth = Image.BICUBIC if h > leaf[0] + 2 else Image.LANCZOS
        tile.paste(to_image(pixels).resize((w - 2 * edge, h - 2 * edge), smooth), (edge, edge))
        return tile

    def block(depth: int, index: int) -> Image.Image:
        h, w = block_size(num_nodes, leaf, depth)
        if depth == len(num_nodes):
            return framed(levels[depth][index], (h, w), 0, depth)
        K, edge = num_nodes[depth], border_width(num_nodes, depth)
        picture = Image.new('RGB', (w, h), COLORS[min(depth, len(COLORS) - 1)])
        picture.paste('white', (edge, edge, w - edge, h - edge))
        cell = block_size(num_nodes, leaf, depth + 1)
        n = side(K)
        middle = framed(levels[depth][index], cell, edge, depth)
        picture.paste(middle, (edge + n // 2 * cell[1], edge + n // 2 * cell[0]))
        for k, (row, column) in enumerate(cells(K)):
            picture.paste(block(depth + 1, index * K + k), (edge + column * cell[1], edge + row * cell[0]))
        return picture

    return block(0, 0)


def tree_of(path: str, depth: int | None, ema: str | None, leaf: int) -> tuple[Image.Image, Network]:
    net = load_network(path, ema=ema)
    depth = depth or net.num_layers
    levels = grow(net, depth)
    H, W = net.img_resolution
    return draw_tree(levels, net.num_nodes[:depth], (max(1, leaf * H // max(H, W)), max(1, leaf * W // max(H, W)))), net


def snapshots(run: str | os.PathLike) -> list[str]:
    """The network snapshots of a run folder, oldest first. Raises ValueError where there are none."""
    names = sorted(n for n in os.listdir(run) if re.fullmatch(r'network-snapshot-\d+\.safetensors', n))
    if not names:
        raise ValueError(f'{run} holds no network-snapshot-*.safetensors')
    return [os.path.join(run, name) for name in names]


@script(__file__)
@click.option('--network', metavar='FILE|URL', help='Network snapshot')
@click.option('--out', metavar='PNG', help='Picture to write')
@click.option('--run', metavar='DIR', help='Run folder whose snapshots to film (train with a small --snap)')
@click.option('--film', metavar='GIF|MP4', help='Film to write')
@click.option('--depth', metavar='INT', type=click.IntRange(min=1), help='Layers to show  [default: all]')
@click.option('--leaf', metavar='INT', type=click.IntRange(min=2), default=24, help='Side of the smallest, pixels')
@click.option('--width', metavar='INT', type=click.IntRange(min=16), default=720, help='Width of the film, pixels')
@click.option('--seconds', metavar='FLOAT', default=0.25, help='Duration of a frame of the film')
@click.option('--ema', metavar='LABEL', help="Averaged weights by half-life, or 'none'  [default: the first]")
def main(network, out, run, film, depth, leaf, width, seconds, ema) -> None:
    if bool(network) != bool(out) or bool(run) != bool(film) or not (network or run):
        raise click.UsageError('give --network with --out, or --run with --film')
    if network:
        picture, net = tree_of(network, depth, ema, leaf)
        save_png(picture, out)
        click.echo(f'{out}: {picture.width}x{picture.height}, K = {net.num_nodes[0]}, L = {net.num_layers}')
    if run:
        frames = []
        for path in tqdm(snapshots(run), desc='film', unit='snapshot'):
            picture, net = tree_of(path, depth, ema, leaf)
            picture = picture.resize((width, round(width * picture.height / picture.width)), Image.LANCZOS)
            text = f'{net.snapshot_meta.get("cur_nimg", 0):,} images'
            ImageDraw.Draw(picture).text((4, 2), text, fill='red')
            frames.append(np.asarray(picture))
        gif = film.endswith('.gif')
        pace = {'duration': round(seconds * 1000), 'loop': 0} if gif else {'fps': 1 / seconds}
        with atomic_write(film) as f:
            imageio.imwrite(f.name, np.stack(frames), extension=os.path.splitext(film)[1], **pace)
        click.echo(f'{film}: {len(frames)} frames')


if __name__ == '__main__':
    main()
