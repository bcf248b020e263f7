"""Encode images into latents of a Discrete Distribution Network, L integers each, and explore their tree.

\b
  # the latents of a dataset, with names and labels; the commands below read this file
  python latents.py encode --network=NET --data=datasets/mnist.zip --dest=codes.npz
  python latents.py decode --network=NET --codes=codes.npz --outdir=out
\b
  # a node of the tree: its image, its children, the number of images under each, and some of them
  python latents.py tree --network=NET --codes=codes.npz --node=3,1 --sheet=node.png
\b
  # the images most like images 0 to 7; the groups that the first two layers make
  python latents.py nearest --codes=codes.npz --rows=0-7 --sheet=nearest.png
  python latents.py cluster --codes=codes.npz --depth=2 --sheet=clusters.png
\b
  # coarse layers of some images with fine layers of others; from one image to another, one layer at a time
  python latents.py swap --network=NET --codes=codes.npz --coarse=0-7 --fine=8-15 --layers=4 --sheet=swap.png
  python latents.py walk --network=NET --codes=codes.npz --rows=0,5,9 --sheet=walk.png
\b
  # networks with cells: what one cell of layer 9 chose from; the right half of some images in others
  python latents.py cell --network=NET --codes=codes.npz --row=0 --layer=9 --cell=2,5 --sheet=cell.png
  python latents.py swap --network=NET --codes=codes.npz --region=32,0,32,64 --sheet=swap.png
\b
  # where K is a power of two, a latent is a string of bits (K = 2: one per layer)
  python latents.py encode --network=NET --data=face.zip --dest=codes.npz --bits=bits.txt
  python latents.py decode --network=NET --bits=1101001110 --outdir=out

Each command has a --help. NET is a network-snapshot-*.safetensors, as a path or URL, or a run folder.
"""

import cli.environment  # noqa: F401  # before torch is loaded

# isort: split
import os
from collections.abc import Sequence

import click
import numpy as np
import torch
from tqdm import tqdm

from cli.code_files import MAX_TEXT, CodeFile, write_code_file
from cli.latent_options import (
    CODES,
    DATA,
    REGION,
    SHEET,
    load_codes,
    net_options,
    one_line,
    open_network,
    rows_of,
    write_sheet,
)
from cli.options import BATCH, Ints, command_group, option_group, search_options
from cli.originals import Originals, RowConditions
from cli.regions import inside
from ddn_networks import Network, codes, generate
from ddn_networks.code_rates import payload_bits
from ddn_networks.code_streams import Codec
from ddn_networks.generate import Condition
from dnnlib import readers
from dnnlib.archives import ImageArchive
from dnnlib.downloads import lasting_path
from dnnlib.images import keep_originals, png_names, save_image, to_float, to_uint8
from dnnlib.labels import read_labels
from dnnlib.readers import printable
from dnnlib.sheets import Tile, in_rows
from dnnlib.util import atomic_write, require_writable
from torch_utils import misc

COLUMNS = 16  # of a sheet of images
SHEET_MAX = 1024  # images of a sheet of all


def decode(net: Network, table: torch.Tensor, condition: Condition) -> np.ndarray:
    """uint8 [N, C, H, W], with progress; ``condition`` of some rows of the table."""
    with tqdm(total=len(table), desc='decode', unit='img', delay=2, leave=False) as bar:
        parts = []
        for batch in generate.decodings(net, table, condition=condition):
            parts.append(to_uint8(batch.images).cpu().numpy())
            bar.update(len(batch.images))
    return np.concatenate(parts)


def coded_bits(codec: Codec, table: torch.Tensor, condition: Condition, most: int = 1000, batch: int = 100) -> float:
    """Mean bits of the codes as ``codec.py`` stores them, without the header of a file, of the first ``most`` rows."""
    parts = torch.arange(min(most, len(table))).split(batch)
    return torch.cat([payload_bits(codec, table[part], condition(part.tolist())) for part in parts]).mean().item()


main, command = command_group(__file__)


# ----------------------------------------------------------------------------------------------------- codes and images


@command('encode')
@net_options
@option_group(
    'Images and codes',
    click.option('--data', metavar='ZIP|DIR', required=True, help="Images of the network's shape"),
    click.option('--dest', metavar='NPZ', required=True, help='File to write: codes, names and labels'),
    click.option('--bits', metavar='FILE', help='Also write the codes as strings of bits, one image per line'),
    click.option('--max-images', metavar='INT', type=click.IntRange(min=1), help='Encode only the first images'),
    click.option('--batch', metavar='INT', type=BATCH, default=128, help='Images at a time'),
    *search_options,
)
@one_line
def encode_command(data, dest, bits, max_images, batch, beam, refine, **net_options) -> None:
    """Encode all images of a dataset: at each layer the number of the candidate nearest to the image.

    Greedy choices need not end nearest. --beam=N tracks N partial images: better latents at about N times the cost, or
    less where the images of a batch share their first choices. --refine=N tries N other nodes for every cell, layer by
    layer, in up to 2 L passes each: it gains more where layers have cells.

    The file holds codes [N, D] (one per layer, or per cell of it), names, labels (or vectors) if the dataset has any,
    and K of each code; NumPy reads it.
    """
    if not dest.endswith('.npz'):
        raise ValueError(f'--dest={dest}: the file of codes, names and labels is an .npz')
    net, given = open_network(**net_options)
    if bits:
        codes.bit_widths(net.code_nodes)
        require_writable('--bits', bits, [dest])
    archive = ImageArchive(data)
    labels = read_labels(archive)
    count = min(len(archive), max_images or len(archive))
    given.require_for(count, of=len(archive))

    def read(rows: Sequence[int]) -> torch.Tensor:
        images = torch.from_numpy(archive.images(rows, (net.img_channels, *net.img_resolution)))
        return to_float(images).to(net.device)

    def condition(rows: Sequence[int], images: torch.Tensor) -> torch.Tensor | None:
        return given.of_images(images, None if labels is None else torch.from_numpy(labels.values[list(rows)]), rows)

    found, error = [], 0.0
    with tqdm(total=count, desc='encode', unit='img') as bar:
        how = {'beam': beam, 'refine': refine, 'share_prefixes': True, 'finish': False}
        for b in generate.reconstructions(net, count, read, batch, condition, **how):
            found.append(b.codes.cpu())
            error += (b.images.clamp(-1, 1) - b.originals).square().mean().item() * len(b.images)
            bar.update(len(b.images))
    table = torch.cat(found)
    file = CodeFile(
        table.numpy(),
        np.array(archive.names()[:count]),
        num_nodes=np.array(net.code_nodes),
        data=lasting_path(data),
    )
    if labels is not None:
        file = file._replace(**{'labels' if labels.values.ndim == 1 else 'vectors': labels.values[:count]})
    write_code_file(dest, file)
    if bits:
        with atomic_write(bits, 'w') as f:
            f.write('\n'.join(codes.to_bits(table, net.code_nodes)) + '\n')
    distinct = len(table.unique(dim=0))
    codec = Codec(net)
    coded = coded_bits(codec, table, RowConditions(given, file, data))
    click.echo(printable(
        f'{count} images, {coded:.1f} bits each coded by {codec.model} probabilities (log2 K: {net.num_bits:g}), '
        f'{distinct} distinct latents, '
        f'PSNR {misc.psnr(error / count):.2f} dB: {dest}'
    ))  # fmt: skip


@command('decode')
@net_options
@option_group(
    'Images and codes',
    click.option('--codes', 'codes_file', metavar='FILE', help='Codes: .npz, .npy or text'),
    click.option('--bits', metavar='STRING|FILE', multiple=True, help='Instead: strings of 0 and 1, or a file of them'),
    DATA,
    click.option('--outdir', metavar='DIR', required=True, help='Folder for the images'),
    click.option('--sheet', metavar='FILE', help=f'Also write one picture of the first {SHEET_MAX} images (.png)'),
)
@one_line
def decode_command(codes_file, bits, data, outdir, sheet, **net_options) -> None:
    """Draw the images that latents name, under the names that the file of codes has for them."""
    net, given = open_network(**net_options)
    if bool(codes_file) == bool(bits):
        raise ValueError('give either --codes or --bits')
    if codes_file:
        file, table = load_codes(codes_file, net)
    else:
        table = codes.from_bits(bit_strings(bits), net.code_nodes)
        file = CodeFile(table.numpy())
    names = [f'{i:06d}.png' for i in range(len(table))]
    if file.names is not None:
        names = png_names(file.names.tolist())
        originals = set(names) & set(file.names.tolist())
        for source in filter(None, (data, file.data)):
            keep_originals(sorted(originals), outdir, source)
    require_writable('--outdir', os.path.join(outdir, os.path.basename(names[0])))
    if sheet:
        require_writable('--sheet', sheet, [os.path.join(outdir, name) for name in names])
    images = decode(net, table, RowConditions(given, file, data))
    for name, image in zip(names, images, strict=True):
        save_image(image, outdir, name)
    click.echo(printable(f'{len(images)} images: {outdir}'))
    if sheet:
        write_sheet(in_rows(images[:SHEET_MAX], COLUMNS), sheet, COLUMNS)


def bit_strings(texts: Sequence[str]) -> list[str]:
    """Strings of 0 and 1, and those in files. Raises ValueError."""
    found = []
    for text in texts:
        strings = [text] if text and set(text) <= {'0', '1'} else []
        if os.path.isfile(text):
            strings = readers.read_bytes(text, MAX_TEXT).decode(errors='replace').split()
        if not strings:
            raise ValueError(f'--bits={text}: neither a string of 0 and 1 nor a file of such strings')
        found += strings
    return found


# ------------------------------------------------------------------------------------------------------------- the tree


@command('tree')
@net_options
@option_group(
    'Images and codes',
    CODES,
    DATA,
    SHEET,
    click.option('--node', metavar='CODES', type=Ints(), help='Codes from the root to it: 3,1  [default: the root]'),
    click.option('--shown', metavar='INT', type=click.IntRange(min=0), default=32, help='Images under it to show'),
    click.option('--children', metavar='INT', type=click.IntRange(min=1), default=64, help='Fullest children to show'),
)
@one_line
def tree_command(codes_file, data, sheet, node, shown, children, **net_options) -> None:
    """Show a node of the tree: its image, its children with the number of images under each, and images under it.

    The children come fullest first; the same numbers are printed as a table. The root has no image of its own: the mean
    of its children stands for it.

    A conditional network has a tree for each condition: with --class, that of the images of this class.
    """
    net, given = open_network(**net_options)
    node = node or []
    file, table = load_codes(codes_file, net)
    condition = given.condition(given.labels, [0])
    prefix = net.check_codes(torch.tensor([node], dtype=torch.int64), prefix=True)
    below = codes.under(table, node)
    if net_options['class_'] is not None and file.labels is not None:
        below = below[torch.from_numpy(file.labels)[below] == net_options['class_']]
    name = ','.join(map(str, node)) or 'root'
    if len(node) > net.num_whole_layers:
        raise ValueError(f'--node={name}: the tree is of the first {net.num_whole_layers} layers, which have no cells')
    branches = net.branches(prefix, condition)[0] if len(node) < net.num_whole_layers else None
    image = net.branches(prefix[:, :-1], condition)[0, node[-1]] if node else branches.mean(0)
    H, W = net.img_resolution
    rows = [[Tile(_full_size(image[None], H, W)[0], f'{name}: {len(below)}')], []]
    if branches is not None:
        counts = table[below, len(node)].bincount(minlength=len(branches))
        order = counts.argsort(descending=True, stable=True)[:children]
        pictures = _full_size(branches[order], H, W)
        tiles = [Tile(p, f'{k}: {counts[k]}') for k, p in zip(order.tolist(), pictures, strict=True)]
        rows += [*in_rows(tiles, COLUMNS), []]
        click.echo(f'{"child":>6}  {"images":>7}  {"share":>6}  most of class')
        for k in order.tolist():
            inside = below[table[below, len(node)] == k].numpy()
            share = len(inside) / max(1, len(below))
            click.echo(f'{k:>6}  {len(inside):>7}  {share:>6.1%}  {_majority(file.labels, inside)}')
        click.echo(f'{int((counts == 0).sum())} of {len(branches)} children have no image under them')
    if shown and len(below):
        pictures = Originals(file, data)
        rows += in_rows([Tile(pictures[r], str(r)) for r in below[:shown].tolist()], COLUMNS)
    write_sheet(rows, sheet)


def _full_size(images: torch.Tensor, H: int, W: int) -> np.ndarray:
    images = torch.nn.functional.interpolate(images, size=(H, W), mode='nearest')
    return to_uint8(images).cpu().numpy()


def _majority(labels: np.ndarray | None, rows: np.ndarray) -> str:
    if labels is None or not len(rows):
        return '-'
    classes, counts = np.unique(labels[rows], return_counts=True)
    return f'{classes[counts.argmax()]} ({counts.max() / len(rows):.0%})'


@command('cell')
@net_options
@option_group(
    'Images and codes',
    CODES,
    DATA,
    SHEET,
    click.option('--row', metavar='INT', type=click.IntRange(min=0), default=0, help='Row of codes: the image'),
    click.option('--layer', metavar='INT', type=click.IntRange(min=0), required=True, help='Layer, from 0'),
    click.option('--cell', metavar='ROW,COLUMN', type=Ints(), required=True, help='Cell of its grid, from 0,0'),
)
@one_line
def cell_command(codes_file, data, sheet, row, layer, cell, **net_options) -> None:
    """Show what a cell chose from: the image of a layer, with each of the K candidates in place of that one cell.

    First comes the image with the cell's own choice. The others are sorted by how much they change it, the least first;
    captions give the number of the candidate and the mean squared difference within the cell, of values from -1 to 1.
    """
    net, given = open_network(**net_options)
    file, table = load_codes(codes_file, net)
    latent = rows_of(table, [row], codes_file, '--row')
    if layer >= net.num_layers:
        raise ValueError(f'--layer={layer}: this network has layers 0-{net.num_layers - 1}')
    rows, columns = net.specs[layer].grid
    if len(cell) != 2 or cell[0] >= rows or cell[1] >= columns:
        typed = ','.join(map(str, cell))
        raise ValueError(f'--cell={typed}: layer {layer} has {rows} rows and {columns} columns of cells, from 0,0')
    number = cell[0] * columns + cell[1]
    condition = RowConditions(given, file, data)([row])
    branches = net.cell_branches(latent, layer, number, condition)[0]  # [K, C, h, w]
    own = int(latent[0, net.code_slices[layer].start + number])
    change = (branches - branches[own]).square().mean((1, 2, 3)) * (rows * columns)
    order = [own, *(k for k in change.argsort(stable=True).tolist() if k != own)]
    pictures = _full_size(branches[order], *net.img_resolution)
    tiles = [Tile(p, f'{k}: {change[k]:.3f}') for k, p in zip(order, pictures, strict=True)]
    click.echo(f'cell {cell[0]},{cell[1]} of layer {layer}, {rows}x{columns} cells: node {own} of {len(branches)}')
    write_sheet(in_rows(tiles, COLUMNS), sheet)


@command('nearest')
@option_group(
    'Images and codes',
    CODES,
    DATA,
    SHEET,
    click.option('--rows', metavar='LIST', type=Ints(), default='0-7', help='Rows of codes: the images to compare'),
    click.option('--query-codes', metavar='FILE', help='File of those rows  [default: --codes]'),
    click.option('--query-data', metavar='ZIP|DIR', help='Their images  [default: the archive that the file names]'),
    click.option('--num', metavar='INT', type=click.IntRange(min=1), default=12, help='Neighbours of each image'),
)
@one_line
def nearest_command(codes_file, data, sheet, rows, query_codes, query_data, num) -> None:
    """Find the images with the nearest latents: two rows for each image, which comes first.

    Upper row: the longest common prefix, that is, the deepest node of the tree that both are under. Lower row: the
    fewest layers that differ (Hamming distance). Captions give the number of layers, and the row of the file.
    """
    file, table = load_codes(codes_file)
    query_file, query_table = load_codes(query_codes) if query_codes else (file, table)
    if query_table.shape[1] != table.shape[1]:
        raise ValueError(f'{query_codes} has {query_table.shape[1]} layers, {codes_file} has {table.shape[1]}')
    queries = rows_of(query_table, rows, query_codes or codes_file, '--rows')
    pictures = Originals(file, data)
    asked = Originals(query_file, query_data) if query_codes else pictures
    lines = []
    for row, query in zip(rows, queries, strict=True):
        for by, of in (('prefix', codes.common_prefix), ('hamming', codes.hamming)):
            found = codes.nearest(query[None], table, num + 1, by)[0].tolist()
            found = [r for r in found if query_codes or r != row][:num]
            far = of(query[None], table[found])[0].tolist()
            word = 'same' if by == 'prefix' else 'differ'
            tiles = [Tile(pictures[r], f'{n} {word} #{r}') for r, n in zip(found, far, strict=True)]
            lines.append([Tile(asked[row], f'{by} #{row}'), *tiles])
            click.echo(f'#{row} {by}: ' + ' '.join(f'#{r} ({n} {word})' for r, n in zip(found, far, strict=True)))
        lines.append([])
    write_sheet(lines, sheet)


@command('cluster')
@option_group(
    'Images and codes',
    CODES,
    DATA,
    SHEET,
    click.option('--depth', metavar='INT', type=click.IntRange(min=1), default=1, help='Layers that must agree'),
    click.option('--clusters', metavar='INT', type=click.IntRange(min=1), default=32, help='Fullest groups to show'),
    click.option('--shown', metavar='INT', type=click.IntRange(min=1), default=12, help='Images of each group'),
    click.option('--dest', metavar='NPZ', help='Also write arrays cluster [N], prefixes and counts'),
)
@one_line
def cluster_command(codes_file, data, sheet, depth, clusters, shown, dest) -> None:
    """Group the images that agree in the first layers: nodes of the tree at a depth, one row each, fullest first.

    With class labels, also prints their purity: the share of images of their group's commonest class.
    """
    file, table = load_codes(codes_file)
    if depth > table.shape[1]:
        raise ValueError(f'--depth={depth}: these codes have {table.shape[1]} layers')
    prefixes, counts, at = codes.groups(table, depth)
    pictures = Originals(file, data)
    rows = []
    for g in range(min(clusters, len(prefixes))):
        name = ','.join(map(str, prefixes[g].tolist()))
        inside = (at == g).nonzero()[:, 0]
        captions = [f'{name}: {counts[g]}', *(f'#{r}' for r in inside[1:shown].tolist())]
        rows.append([Tile(pictures[r], c) for r, c in zip(inside[:shown].tolist(), captions, strict=True)])
        click.echo(f'{name:>12}  {counts[g]:>7}  {_majority(file.labels, inside.numpy())}')
    click.echo(f'{len(prefixes)} groups at depth {depth}, the largest holds {counts[0] / len(table):.1%}')
    if file.labels is not None:
        inside = [file.labels[(at == g).numpy()] for g in range(len(prefixes))]
        pure = sum(np.unique(labels, return_counts=True)[1].max() for labels in inside) / len(table)
        click.echo(f'purity {pure:.1%}')
    if dest:
        with atomic_write(dest) as f:
            np.savez_compressed(f, cluster=at.numpy(), prefixes=prefixes.numpy(), counts=counts.numpy())
    write_sheet(rows, sheet)


# -------------------------------------------------------------------------------------------------------------- editing


@command('swap')
@net_options
@option_group(
    'Images and codes',
    CODES,
    DATA,
    SHEET,
    click.option('--coarse', metavar='LIST', type=Ints(), default='0-7', help='Rows of codes: for the coarse layers'),
    click.option('--fine', metavar='LIST', type=Ints(), default='8-15', help='Rows of codes: for the fine layers'),
    click.option('--layers', metavar='INT', type=click.IntRange(min=0),
                 help='Coarse layers  [default: half; with --region none]'),
    REGION,
)  # fmt: skip
@one_line
def swap_command(codes_file, data, sheet, coarse, fine, layers, region, **net_options) -> None:
    """Mix the coarse layers of some images (first column) with the fine layers of others (first row), as a grid.

    Coarse layers decide what is shown and where; the fine layers' choices were made for another picture and mean
    something different under each. A conditional network gets the condition of the image of the coarse layers.

    With --region only cells inside it come from the images of the first row, in layers from --layers on.
    """
    net, given = open_network(**net_options)
    file, table = load_codes(codes_file, net)
    if layers is None:
        layers = 0 if region else net.num_layers // 2
    if layers > net.num_layers:
        raise ValueError(f'--layers={layers}: this network has {net.num_layers} layers')
    a, b = rows_of(table, coarse, codes_file, '--coarse'), rows_of(table, fine, codes_file, '--fine')
    mixed = codes.swap(a, b, net.code_slices[layers - 1].stop if layers else 0)  # [A, B, D]
    if region:
        mixed = torch.where(inside(region, net), mixed, a[:, None])
    rows_of_condition = [*coarse, *fine, *(row for row in coarse for _ in fine)]
    condition = RowConditions(given, file, data)
    table = torch.cat([a, b, mixed.flatten(0, 1)])
    images = decode(net, table, lambda part: condition([rows_of_condition[i] for i in part]))
    firsts, tops, grid = np.split(images, [len(a), len(a) + len(b)])
    blank = Tile(np.full_like(firsts[0], 255), f'{layers}|{net.num_layers - layers}')
    rows = [[blank, *(Tile(p, f'fine #{r}') for p, r in zip(tops, fine, strict=True))]]
    for i, row in enumerate(coarse):
        rows.append([Tile(firsts[i], f'coarse #{row}'), *map(Tile, grid[i * len(b) : (i + 1) * len(b)])])
    write_sheet(rows, sheet)


@command('walk')
@net_options
@option_group(
    'Images and codes',
    CODES,
    DATA,
    SHEET,
    click.option('--rows', metavar='LIST', type=Ints(), default='0,1', help='Rows of codes: from each to the next'),
    click.option('--frames', metavar='INT', type=click.IntRange(2, 1024), default=12, help='Most pictures in a row'),
    REGION,
)
@one_line
def walk_command(codes_file, data, sheet, rows, frames, region, **net_options) -> None:
    """Walk from one image to the next, one code that differs at a time: two rows a pair.

    Upper row: the finest layer changes first, so the picture keeps its layout. Lower row: the coarsest first.
    Captions give the number of codes changed. The condition of a conditional network changes gradually with them.

    With --region only the codes of cells inside it change: the walk ends at the first image with that part of the
    second, and the condition stays that of the first.
    """
    net, given = open_network(**net_options)
    file, table = load_codes(codes_file, net)
    if len(rows) < 2:
        raise ValueError('--rows: a walk needs two images or more')
    stops = rows_of(table, rows, codes_file, '--rows')
    condition = RowConditions(given, file, data)
    lines = []
    changed = inside(region, net) if region else torch.ones(net.num_codes, dtype=torch.bool)
    for first in range(len(rows) - 1):
        start = rows[first]
        ends = condition([start, start if region else rows[first + 1]])  # [2, c, H, W] or None
        end = torch.where(changed, stops[first + 1], stops[first])
        for coarse_first in (False, True):
            steps = codes.path(stops[first], end, coarse_first)
            layers = len(steps) - 1
            if not layers and ends is not None and not torch.equal(*ends):
                steps = steps.expand(frames, -1)  # only the condition changes
            kept = np.unique(np.linspace(0, len(steps) - 1, frames).round().astype(int))
            far = torch.from_numpy(kept / max(1, len(steps) - 1)).float().view(-1, 1, 1, 1).to(net.device)

            def between(part: Sequence[int], ends=ends, far=far) -> torch.Tensor | None:
                return None if ends is None else torch.lerp(ends[0], ends[1], far[part])

            images = decode(net, steps[kept], between)
            lines.append([Tile(p, f'{min(n, layers)} of {layers}') for p, n in zip(images, kept, strict=True)])
        lines.append([])
    write_sheet(lines, sheet)


if __name__ == '__main__':
    main()
