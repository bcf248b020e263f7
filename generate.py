"""Generate images with a Discrete Distribution Network.

\b
  # 64 images, one per seed, and one picture of them all
  python generate.py --network=NET --outdir=out --seeds=0-63 --grid=out/grid.png
\b
  # encode images and decode their codes: originals above, reconstructions below
  python generate.py --network=NET --outdir=out --reconstruct=datasets/test.zip --grid=out/pairs.png
\b
  # keep the latents, change some, draw them
  python generate.py --network=NET --outdir=out --seeds=0-9 --save-codes=codes.txt
  python generate.py --network=NET --outdir=out2 --codes=codes.txt
\b
  # what no one trained for: 16 faces that look like face.png at 8x8; see --guide help and docs/guiding.md
  python generate.py --network=NET --outdir=out --seeds=0-15 --guide=superres:face.png,size=8

NET is a network-snapshot-*.safetensors, as a path or URL. A seed names the same image at any batch size and on any
number of ranks (torchrun works).
"""

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import click
import numpy as np
import torch
from tqdm import tqdm

import guide_specs
from ddn_networks import Network, RecurrentDDN, guided, samplers
from dnnlib.code_files import read_code_file, write_codes
from dnnlib.images import ImageArchive, to_float, to_image, to_uint8
from dnnlib.sheets import comfortable_scale, image_grid, save_png
from torch_utils import distributed as dist

GRID_MAX = 1024  # images that a grid shows


class Batch(NamedTuple):
    """Images to make: their file names, their codes [B, L], and the originals [B, C, H, W] they reconstruct, if any."""

    names: list[str]
    codes: torch.Tensor
    originals: torch.Tensor | None = None


class Guides(click.ParamType):
    """Guide specs as they are; 'help' lists the guides and ends."""

    name = 'guide'

    def convert(self, value, param, ctx):
        if value == 'help':
            click.echo(guide_specs.help_text())
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


class Seeds(click.ParamType):
    """'0-3,7' as [0, 1, 2, 3, 7]."""

    name = 'list'

    def convert(self, value, param, ctx):
        seeds = []
        for part in value.split(','):
            match = re.fullmatch(r'\s*(\d+)(?:-(\d+))?\s*', part)
            if match is None:
                self.fail(f'{part!r} is no seed and no range; give for example 0-63 or 1,5,9-12', param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                self.fail(f'the range {part.strip()} is empty: did you mean {last}-{first}?', param, ctx)
            seeds += range(first, last + 1)
        return seeds


# ----------------------------------------------------------------------------------------------------------- what to do


def from_seeds(net: Network, seeds: list[int], subdirs: bool, batch: int) -> Iterator[Batch]:
    for part in chunks(seeds, batch):
        names = [os.path.join(f'{s - s % 1000:06d}' if subdirs else '', f'{s:06d}.png') for s in part]
        yield Batch(names, samplers.uniform_codes(net.num_nodes, part))


def from_codes(codes: torch.Tensor, rows: list[int], batch: int) -> Iterator[Batch]:
    for part in chunks(rows, batch):
        yield Batch([f'{i:06d}.png' for i in part], codes[part])


def from_images(net: Network, archive: ImageArchive, rows: list[int], batch: int) -> Iterator[Batch]:
    expected = (net.img_channels, *net.img_resolution)
    for part in chunks(rows, batch):
        pixels = [archive.image(i) for i in part]
        for i, image in zip(part, pixels, strict=True):
            if image.shape != expected:
                raise ValueError(
                    f'{archive.title(i)} is {image.shape[2]}x{image.shape[1]} with {image.shape[0]} channels, the '
                    f'network makes {expected[2]}x{expected[1]} with {expected[0]}: see dataset_tool.py --resolution'
                )
        originals = to_float(torch.from_numpy(np.stack(pixels)))
        yield Batch([f'{os.path.splitext(archive.name(i))[0]}.png' for i in part], net.encode(originals), originals)


def from_guides(
    net: Network, specs: list[guide_specs.Spec], guidance: guided.Guidance, jobs: list[guide_specs.Job], batch: int
) -> Iterator[Batch]:
    for part in chunks(jobs, batch):
        guides = [spec.build([job.target for job in part], net.img_resolution) for spec in specs]
        codes = guided.sample(net, guidance._replace(guides=guides), [job.seed for job in part])[1]
        yield Batch([job.name for job in part], codes)


def chunks(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def shown(batches: list[tuple[np.ndarray, np.ndarray | None]], columns: int) -> np.ndarray:
    """The images of a grid; reconstructions stand below their originals, row by row."""
    images = np.concatenate([b[0] for b in batches])[:GRID_MAX]
    if batches[0][1] is None:
        return images
    originals = np.concatenate([b[1] for b in batches])[:GRID_MAX]
    white = np.full((-len(images) % columns, *images.shape[1:]), 255, dtype=np.uint8)
    rows = [np.concatenate([x, white]).reshape(-1, columns, *images.shape[1:]) for x in (originals, images)]
    return np.stack(rows, 1).reshape(-1, *images.shape[1:])


@click.command(help=__doc__, context_settings={'show_default': True, 'max_content_width': 110})
@click.option('--network', metavar='FILE|URL', required=True, help='Network snapshot (.safetensors)')
@click.option('--outdir', metavar='DIR', required=True, help='Where to write the images')
@click.option('--seeds', metavar='LIST', type=Seeds(), default='0-63', help='Seeds, such as 0-63 or 1,5,9-12')
@click.option('--codes', metavar='FILE', help='Draw these latents instead: .npz, .npy or text, [N, L]')
@click.option('--reconstruct', metavar='ZIP|DIR', help='Encode and decode these images instead')
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
    ctx, network, outdir, seeds, codes, reconstruct, guide, top_k, temperature, beam, combine, guide_every,
    guide_layers, save_codes, grid, columns, subdirs, steps, batch, ema, device,
) -> None:  # fmt: skip
    if sum(map(bool, (codes, reconstruct, guide))) > 1:
        raise click.ClickException('--codes, --reconstruct and --guide each say what to draw: give one')
    try:
        with dist.session(device) as device:
            net = Network.from_pretrained(network, ema=ema, device=device).to(memory_format=torch.channels_last)
            if steps is not None:
                if not isinstance(net, RecurrentDDN):
                    raise ValueError(f'--steps: {network} is not recurrent, its {net.num_layers} layers are fixed')
                net.num_layers = steps
            rank, world = dist.get_rank(), dist.get_world_size()
            if codes:
                table = net.check_codes(read_code_file(codes).codes)
                count, batches = len(table), from_codes(table, list(range(len(table)))[rank::world], batch)
            elif reconstruct:
                archive = ImageArchive(reconstruct)
                count = len(archive)
                batches = from_images(net, archive, list(range(count))[rank::world], batch)
            elif guide:
                specs = [guide_specs.parse(text, device) for text in guide]
                seeds_given = ctx.get_parameter_source('seeds') is not click.core.ParameterSource.DEFAULT
                jobs = guide_specs.jobs(specs, seeds, seeds_given)
                choose = guided.top_k(top_k) if temperature is None else guided.temperature(temperature)
                by = {'ranks': guided.by_rank, 'distances': guided.by_distance}[combine]
                guidance = guided.Guidance([], choose, by, beam, guide_every, guide_layers)
                count, batches = len(jobs), from_guides(net, specs, guidance, jobs[rank::world], batch)
            else:
                count, batches = len(seeds), from_seeds(net, seeds[rank::world], subdirs, batch)
            dist.print0(f'{count} images from {network} to {outdir}')

            kept, rows = [], []
            bar = tqdm(total=count, unit='img', disable=None if rank == 0 else True)
            for b in batches:
                images = to_uint8(net.decode(b.codes)).cpu().numpy()  # [B, C, H, W]
                for name, image in zip(b.names, images, strict=True):
                    path = os.path.join(outdir, name)
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                    to_image(image).save(path)
                if save_codes:
                    rows.append(b.codes.cpu().numpy())
                if grid and len(kept) * batch < GRID_MAX:
                    kept.append((images, None if b.originals is None else to_uint8(b.originals).numpy()))
                bar.update(len(images) * world)
            bar.close()

            everything = dist.all_gather_object((rows, kept))
            if rank == 0 and save_codes:
                ranks = [np.concatenate(r) for r, _ in everything if r]
                table = np.zeros((count, ranks[0].shape[1]), dtype=np.int64)
                for r, part in enumerate(ranks):
                    table[r::world] = part
                write_codes(save_codes, table)
            if rank == 0 and grid:
                pictures = shown([b for _, k in everything for b in k], columns)
                os.makedirs(os.path.dirname(grid) or '.', exist_ok=True)
                sheet = image_grid(pictures, columns, rows_apart=2 if reconstruct else 0)
                save_png(sheet, grid, comfortable_scale(net.img_resolution[1]))
                dist.print0(f'Grid: {grid}')
    except (ValueError, OSError) as e:
        raise click.ClickException(' '.join(str(e).split())) from None


if __name__ == '__main__':
    main()
