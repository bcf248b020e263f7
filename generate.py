"""Generate images with a Discrete Distribution Network.

\b
  # 64 images, one per seed, and one picture of them all
  python generate.py --network=NET --outdir=out --seeds=0-63 --grid=out/grid.png
\b
  # encode images and decode their codes: originals above, reconstructions below
  python generate.py --network=NET --outdir=out --reconstruct=datasets/mnist-test.zip --max-images=64 --grid=out/a.png
\b
  # keep the latents, change some, draw them
  python generate.py --network=NET --outdir=out --seeds=0-9 --save-codes=codes.txt
  python generate.py --network=NET --outdir=out2 --codes=codes.txt
\b
  # of a network that was trained with conditions: ten of each class; grey pictures in colour, each next to its samples
  python generate.py --network=NET --outdir=out --class=all --seeds=0-9 --grid=out/classes.png
  python generate.py --network=NET --outdir=out --condition-image=grey/ --seeds=0-5 --grid=out/coloured.png
\b
  # what no one trained for: 16 faces that look like face.png at 8x8; see --guide help and docs/guiding.md
  python generate.py --network=NET --outdir=out --seeds=0-15 --guide=superres:face.png,size=8

NET is a network-snapshot-*.safetensors, as a path or URL. A seed names the same image at any batch size and on any
number of ranks (torchrun works).
"""

import cli.environment  # noqa: F401  # before torch is loaded

# isort: split
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import click
import numpy as np
import torch
from tqdm import tqdm

from cli import condition_arguments, guide_arguments
from cli.code_files import read_code_file, write_codes
from cli.options import Ints, Numbers, one_line_errors
from ddn_networks import Network, conditions, guided_sampling, samplers
from dnnlib.archives import ImageArchive
from dnnlib.images import keep_originals, png_names, save_image, to_float, to_uint8
from dnnlib.labels import read_labels
from dnnlib.sheets import draw_sheet, in_pairs, in_rows, save_png
from dnnlib.util import require_writable
from torch_utils import distributed as dist

GRID_MAX = 1024  # images that a grid shows
GUIDING = ('top_k', 'temperature', 'beam', 'combine', 'guide_every', 'guide_layers')  # mean nothing without --guide


class Batch(NamedTuple):
    """Images to make: their file names, their codes [B, L], the condition [B, c, H, W] of a conditional network, and
    the originals [B, C, H, W] they reconstruct, if any."""

    names: list[str]
    codes: torch.Tensor
    condition: torch.Tensor | None = None
    originals: torch.Tensor | None = None


class Guides(click.ParamType):
    """Guide specs as they are; 'help' lists the guides and ends."""

    name = 'guide'

    def convert(self, value, param, ctx):
        if value == 'help':
            click.echo(guide_arguments.help_text())
            ctx.exit()
        return value


class Layers(click.ParamType):
    """'3-60' as (3, 60)."""

    name = 'layers'

    def convert(self, value, param, ctx):
        match = re.fullmatch(r'(\d+)-(\d+)', value)
        if match is None:
            self.fail(f'{value!r} is no range of layers; give for example 0-62', param, ctx)
        return int(match[1]), int(match[2])


class Classes(click.ParamType):
    """'3' or '0-4,7' as a list of class numbers; 'all' as it is."""

    name = 'list'

    def convert(self, value, param, ctx):
        return value if value == 'all' else Ints().convert(value, param, ctx)


# ----------------------------------------------------------------------------------------------------------- what to do


def from_seeds(
    net: Network, rows: list[condition_arguments.Row], told: condition_arguments.Told, batch: int
) -> Iterator[Batch]:
    for part in chunks(rows, batch):
        codes = samplers.uniform_codes(net.num_nodes, [row.seed for row in part])
        yield Batch([row.name for row in part], codes, condition_of(told, part))


def condition_of(told: condition_arguments.Told, rows: list[condition_arguments.Row]) -> torch.Tensor | None:
    return told.condition([row.label for row in rows], [row.target for row in rows])


def from_codes(
    codes: torch.Tensor, names: list[str], told: condition_arguments.Told, rows: list[int], batch: int
) -> Iterator[Batch]:
    told.serve(len(codes))
    for part in chunks(rows, batch):
        condition = told.condition([told.label_of(i) for i in part], part)
        yield Batch([names[i] for i in part], codes[part], condition)


def from_images(
    net: Network, archive: ImageArchive, names: list[str], told: condition_arguments.Told, rows: list[int], batch: int
) -> Iterator[Batch]:
    told.serve(len(names), of=len(archive))
    labels = None
    if conditions.needs_labels(net.conditions) and told.labels == [None] and (found := read_labels(archive)):
        labels = torch.from_numpy(found.values)
    shape = (net.img_channels, *net.img_resolution)
    for part in chunks(rows, batch):
        originals = to_float(torch.from_numpy(archive.images(part, shape)))
        condition = told.of_images(originals, None if labels is None else labels[part], part)
        yield Batch([names[i] for i in part], net.encode(originals, condition), condition, originals)


def from_guides(
    net: Network,
    specs: list[guide_arguments.Spec],
    guidance: guided_sampling.Guidance,
    rows: list[condition_arguments.Row],
    told: condition_arguments.Told,
    batch: int,
) -> Iterator[Batch]:
    for part in chunks(rows, batch):
        guides = [spec.build([row.target for row in part], net.img_resolution) for spec in specs]
        condition = condition_of(told, part)
        seeds = [row.seed for row in part]
        codes = guided_sampling.sample(net, guidance._replace(guides=guides), seeds, condition).codes
        yield Batch([row.name for row in part], codes, condition)


def chunks(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def in_order(parts: list[np.ndarray], count: int) -> np.ndarray:
    """What each rank made of its rows, row r, r + world, ..., as one array of the first ``count`` rows."""
    table = np.zeros((sum(map(len, parts)), *parts[0].shape[1:]), dtype=parts[0].dtype)
    for r, part in enumerate(parts):
        table[r :: len(parts)] = part
    return table[:count]


def image_to_image(
    images: np.ndarray, rows: list[condition_arguments.Row], told: condition_arguments.Told, columns: int
) -> list[list]:
    """Rows of a sheet: a condition, up to ``columns`` samples of it, and the picture it was made of, where that says
    more."""
    groups: dict[tuple, list[int]] = {}
    for i, row in enumerate(rows[: len(images)]):
        groups.setdefault((row.label, row.target), []).append(i)
    looks = {target: to_uint8(torch.stack(told.looks(target))).numpy() for _, target in groups}
    more = any((condition != given).any() for condition, given in looks.values())
    columns = min(columns, max(map(len, groups.values())))
    lines = []
    for (_, target), members in groups.items():
        condition, given = looks[target]
        for part in chunks(members, columns):
            empty = [None] * (columns - len(part))
            lines.append([condition, *images[part], *empty, *([given] if more else [])])
    return lines


@click.command(help=__doc__, context_settings={'show_default': True, 'max_content_width': 110})
@click.option('--network', metavar='FILE|URL', required=True, help='Network snapshot (.safetensors)')
@click.option('--outdir', metavar='DIR', required=True, help='Where to write the images')
@click.option('--seeds', metavar='LIST', type=Ints(), default='0-63', help='Seeds, such as 0-63 or 1,5,9-12')
@click.option('--codes', metavar='FILE', help='Draw these latents instead: .npz, .npy or text, [N, L]')
@click.option('--reconstruct', metavar='ZIP|DIR', help='Encode and decode these images instead')
@click.option('--max-images', metavar='INT', type=click.IntRange(min=1), help='Reconstruct the first ones only')
@click.option('--class', 'classes', metavar='LIST', type=Classes(),
              help="Told to it: 3, 0-4, 'all'  [default: seed mod N; --reconstruct: the image's own; needed for "
              "--codes and --guide]")  # fmt: skip
@click.option('--label', metavar='LIST', type=Numbers(), help='Told to a network of vector labels: 0.5,-1')
@click.option('--condition-image', metavar='[KIND:]PATH', multiple=True, help='Picture, folder or zip told to it')
@click.option('--guide', metavar='SPEC', type=Guides(), multiple=True, help="Generate by this condition; 'help'")
@click.option('--top-k', metavar='INT', type=click.IntRange(min=1), default=2, help='Guides: one of the k best')
@click.option('--temperature', metavar='FLOAT', type=float, help='Guides: sample by exp(-distance / t) instead')
@click.option('--beam', metavar='INT', type=click.IntRange(min=1), default=1, help='Guides: partial images kept')
@click.option('--combine', type=click.Choice(['ranks', 'distances']), default='ranks', help='Guides: sum these')
@click.option('--guide-every', metavar='INT', type=click.IntRange(min=1), default=1, help='Guides: ask every n-th')
@click.option('--guide-layers', metavar='A-B', type=Layers(), help='Guides: ask these layers only')
@click.option('--save-codes', metavar='FILE', help='Write the latents of all images: .npz, .npy or text')
@click.option('--grid', metavar='FILE', help='Write one picture of the first 1024 images too (.png)')
@click.option('--columns', metavar='INT', type=click.IntRange(min=1), default=8, help='Images in a row of the grid')
@click.option('--subdirs', is_flag=True, help='A subfolder for every 1000 seeds')
@click.option('--steps', metavar='INT', type=click.IntRange(min=1), help='L, if recurrent  [default: as trained]')
@click.option('--batch', metavar='INT', type=click.IntRange(min=1), default=64, help='Images at once')
@click.option('--ema', metavar='LABEL', help="Averaged weights by half-life, or 'none' for raw  [default: the first]")
@click.option('--device', help='cuda, mps or cpu  [default: the best there is]')
@click.pass_context
def main(
    ctx, network, outdir, seeds, codes, reconstruct, max_images, classes, label, condition_image, guide, top_k,
    temperature, beam, combine, guide_every, guide_layers, save_codes, grid, columns, subdirs, steps, batch, ema,
    device,
) -> None:  # fmt: skip
    if sum(map(bool, (codes, reconstruct, guide))) > 1:
        raise click.ClickException('--codes, --reconstruct and --guide each say what to draw: give one')
    if max_images and not reconstruct:
        raise click.ClickException('--max-images is how many to --reconstruct; to draw fewer give fewer --seeds')
    given = [name for name in GUIDING if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT]
    if given and not guide:
        option = given[0].replace('_', '-')
        raise click.ClickException(f'--{option} says how to guide: give --guide too, or leave it out')
    if len({'top_k', 'temperature', 'beam'} & set(given)) > 1:
        raise click.ClickException('--top-k, --temperature and --beam each say how to choose: give one')
    with one_line_errors(), dist.session(device) as device:
        net = condition_arguments.load_network(network, ema, device, steps).to(memory_format=torch.channels_last)
        rank, world = dist.get_rank(), dist.get_world_size()
        told = condition_arguments.Told(net, classes, label, condition_image)
        specs = [guide_arguments.parse(text, device) for text in guide]
        seeds_given = ctx.get_parameter_source('seeds') is not click.core.ParameterSource.DEFAULT
        rows = condition_arguments.rows(told, specs, seeds, seeds_given)
        if subdirs:
            rows = [row._replace(name=f'{row.seed - row.seed % 1000:06d}/{row.name}') for row in rows]
        names = [row.name for row in rows]
        sources = [source for spec in [*specs, *told.specs()] for source in spec.sources]
        if codes:
            table = net.check_codes(read_code_file(codes).codes)
            names = [f'{i:06d}.png' for i in range(len(table))]
            batches = from_codes(table, names, told, list(range(len(table)))[rank::world], batch)
        elif reconstruct:
            archive = ImageArchive(reconstruct)
            names = png_names(archive.names())[:max_images]
            sources.append(reconstruct)
            batches = from_images(net, archive, names, told, list(range(len(names)))[rank::world], batch)
        elif guide:
            choose = guided_sampling.top_k(top_k) if temperature is None else guided_sampling.temperature(temperature)
            by = {'ranks': guided_sampling.by_rank, 'distances': guided_sampling.by_distance}[combine]
            guidance = guided_sampling.Guidance([], choose, by, beam, guide_every, guide_layers)
            batches = from_guides(net, specs, guidance, rows[rank::world], told, batch)
        else:
            batches = from_seeds(net, rows[rank::world], told, batch)
        for source in sources:
            keep_originals(names, outdir, source)
            if grid:
                keep_originals([os.path.basename(grid)], os.path.dirname(grid), source)
        count = len(names)
        images_at = [os.path.join(outdir, name) for name in names]
        require_writable('--outdir', os.path.join(outdir, os.path.basename(names[0])))
        if save_codes:
            require_writable('--save-codes', save_codes, images_at)
        if grid:
            require_writable('--grid', grid, [*images_at, save_codes or ''])

        kept, kept_originals, tables = [], [], []
        bar = tqdm(total=count, unit='img', disable=None if rank == 0 else True)
        for b in batches:
            images = to_uint8(net.decode(b.codes, b.condition)).cpu().numpy()  # [B, C, H, W]
            for name, image in zip(b.names, images, strict=True):
                save_image(image, outdir, name)
            if save_codes:
                tables.append(b.codes.cpu().numpy())
            if grid and len(kept) * batch < GRID_MAX:
                kept.append(images)
                if b.originals is not None:
                    kept_originals.append(to_uint8(b.originals).numpy())
            bar.update(len(images) * world)
        bar.close()
        dist.print0(f'{count} images from {network} to {outdir}')

        everything = dist.all_gather_object((tables, kept, kept_originals))
        tables, kept, kept_originals = (
            [np.concatenate(part) for part in parts if part] for parts in zip(*everything, strict=True)
        )
        if rank == 0 and save_codes:
            write_codes(save_codes, in_order(tables, count))
        if rank == 0 and grid:
            pictures = in_order(kept, GRID_MAX)
            asked = ctx.get_parameter_source('columns') is not click.core.ParameterSource.DEFAULT
            if told.pictures and not codes and not reconstruct:
                lines, columns = image_to_image(pictures, rows, told, columns), 0
            elif reconstruct:
                lines = in_pairs(in_order(kept_originals, GRID_MAX), pictures, columns)
            else:
                if len(told.labels) > 1 and not asked:
                    columns = len(rows) // len(told.labels)
                lines = in_rows(pictures, columns)
            save_png(draw_sheet(lines, columns), grid)
            dist.print0(f'Grid: {grid}')


if __name__ == '__main__':
    main()
