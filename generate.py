"""Generate images with a Discrete Distribution Network.

\b
  # 64 images, one per seed, and one picture of them all
  python generate.py --network=NET --outdir=out --seeds=0-63 --grid=out/grid.png
\b
  # encode images and decode their codes: originals above, reconstructions below
  python generate.py --network=NET --outdir=out --reconstruct=datasets/mnist-test.zip --max-images=64 --grid=out/a.png
\b
  # keep the latents, change some, decode them
  python generate.py --network=NET --outdir=out --seeds=0-9 --save-codes=codes.txt
  python generate.py --network=NET --outdir=out2 --codes=codes.txt
\b
  # keep a part of a latent and draw the rest anew: the first layers of seed 7; face.png but for its upper half
  python generate.py --network=NET --outdir=out --seeds=0-7 --keep=seed:7 --keep-layers=0-3 --grid=out/kept.png
  python generate.py --network=NET --outdir=out --seeds=0-7 --keep=face.png --redraw-region=0,0,64,32
\b
  # networks that were trained with conditions: ten of each class; grey pictures, each next to its colourings
  python generate.py --network=NET --outdir=out --class=all --seeds=0-9 --grid=out/classes.png
  python generate.py --network=NET --outdir=out --condition-image=grey/ --seeds=0-5 --grid=out/coloured.png
\b
  # a condition that the network was not trained for: 16 faces that equal face.png at 8x8 (--guide help lists them all)
  python generate.py --network=NET --outdir=out --seeds=0-15 --guide=superres:face.png,size=8

NET is a network-snapshot-*.safetensors, as a path or URL. A seed names the same image at any batch size and on any
number of ranks (torchrun works).
"""

import cli.environment  # noqa: F401  # before torch is loaded

# isort: split
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np
import torch
from tqdm import tqdm

from cli.code_files import read_code_file, write_codes
from cli.generation_options import check_options, was_given
from cli.jobs import Job, jobs
from cli.networks import load_network
from cli.options import (
    BATCH,
    BEAM,
    REFINE,
    Classes,
    GroupedCommand,
    Ints,
    Layers,
    Numbers,
    Text,
    network_options,
    one_line_errors,
    option_group,
    script_help,
)
from cli.regions import Region
from ddn_networks import Network, generate
from ddn_networks.generate import Batch
from dnnlib.archives import ImageArchive
from dnnlib.images import keep_originals, png_names, save_image, to_float, to_uint8
from dnnlib.labels import read_labels
from dnnlib.readers import printable
from dnnlib.sheets import draw_sheet, in_pairs, in_rows, save_png
from dnnlib.util import require_writable
from torch_utils import distributed as dist

if TYPE_CHECKING:  # a plain seed loads neither
    from cli.condition_arguments import ConditionArguments
    from cli.guide_arguments import GuideArguments
    from cli.kept_codes import KeptCodes

GRID_MAX = 1024  # images that a grid shows
COLUMNS = 8  # of a grid


class Request(NamedTuple):
    """Images to make.

    names: of their files.
    make: positions of some of them -> their batches.
    layout: (images, originals or None, both [n, C, H, W]) -> rows of the grid.
    sources: files and folders of pictures, which must not be replaced.
    columns: places in a row of the grid, at least.
    """

    names: list[str]
    make: Callable[[Sequence[int]], Iterator[Batch]]
    layout: Callable[[np.ndarray, np.ndarray | None], list]
    sources: list[str]
    columns: int = 0


# ------------------------------------------------------------------------------------------------------------ requests


def condition_arguments(
    net: Network, classes: Sequence[int] | str | None, label: Sequence[float] | None, pictures: Sequence[str]
) -> 'ConditionArguments | None':
    """``ConditionArguments`` of the options; None for a network without conditions and nothing given."""
    if not net.condition_channels and classes is None and label is None and not pictures:
        return None
    from cli.condition_arguments import ConditionArguments

    return ConditionArguments(net, classes, label, pictures)


def guide_arguments(texts: Sequence[str], device: torch.device, how: dict[str, Any]) -> 'GuideArguments | None':
    """``GuideArguments`` of --guide and the options that go with it; None without."""
    if not texts:
        return None
    from cli.guide_arguments import GuideArguments

    return GuideArguments(texts, device, **how)


def kept_codes(
    net: Network, source: str | None, parts: dict[str, Any], prior: dict[str, Any], search: dict[str, int]
) -> 'KeptCodes | None':
    """``KeptCodes`` of --keep and the options that go with it; None without."""
    if source is None:
        return None
    from cli.kept_codes import KeptCodes

    return KeptCodes(net, source, **parts, sampling=prior, search=search)


def sampling(
    net: Network,
    seeds: Sequence[int],
    seeds_given: bool,
    conditions: 'ConditionArguments | None',
    guides: 'GuideArguments | None',
    kept: 'KeptCodes | None',
    batch: int,
    subdirs: bool,
    columns: int | None,
    prior: dict[str, Any],
) -> Request:
    """Samples of seeds: by guides, by the network's own prior (``prior``: arguments of ``Network.sample``), or
    uniform; all, or what is not ``kept``."""
    given = [*(guides.pictures if guides else ()), *(conditions.pictures.values() if conditions else ())]
    given += [kept] if kept else []
    labels = conditions.labels if conditions else (None,)
    todo = jobs(seeds, seeds_given, given, labels)
    if conditions and not guides:
        todo = conditions.label_jobs(todo)
    if subdirs:
        todo = [job._replace(name=f'{job.seed - job.seed % 1000:06d}/{job.name}') for job in todo]

    def some(positions: Sequence[int]) -> list[Job]:
        return [todo[i] for i in positions]

    def make(positions: Sequence[int]) -> Iterator[Batch]:
        condition = conditions and (lambda part: conditions.of_jobs(some(part)))
        guidance = guides and (lambda part: guides.guidance([job.target for job in some(part)], net.img_resolution))
        codes = kept and (lambda part: kept.of([job.target for job in some(part)], condition and condition(part)))
        return generate.samples(
            net, [job.seed for job in todo], batch, condition, guidance, positions, codes=codes, **prior
        )

    def kept_look(job: Job) -> list[np.ndarray | None]:
        return [kept.look(job.target, conditions and conditions.of_jobs([job]))]

    def condition_look(job: Job) -> list[np.ndarray]:
        return list(to_uint8(torch.stack(conditions.look(job.target))).numpy())

    def layout(images: np.ndarray, originals: np.ndarray | None) -> list:
        if kept or conditions and conditions.pictures:
            return beside(images, todo, kept_look if kept else condition_look, columns or COLUMNS)
        return in_rows(images, width)

    width = columns or (min(GRID_MAX, len(todo) // len(labels)) if len(labels) > 1 else COLUMNS)
    sources = [path for given_by in (guides, conditions, kept) if given_by for path in given_by.sources]
    least = 0 if kept or conditions and conditions.pictures else width
    return Request([job.name for job in todo], make, layout, sources, least)


def decoding(
    net: Network, path: str, conditions: 'ConditionArguments | None', batch: int, columns: int | None
) -> Request:
    """The images that the latents of a file name."""
    table = net.check_codes(read_code_file(path).codes)
    if conditions:
        conditions.require_for(len(table))
    condition = conditions and conditions.of_rows
    width = columns or COLUMNS
    return Request(
        [f'{i:06d}.png' for i in range(len(table))],
        lambda positions: generate.decodings(net, table, batch, condition, positions),
        lambda images, originals: in_rows(images, width),
        conditions.sources if conditions else [],
        width,
    )


def reconstruction(
    net: Network,
    path: str,
    max_images: int | None,
    conditions: 'ConditionArguments | None',
    batch: int,
    columns: int | None,
    search: dict[str, int],
) -> Request:
    """The images of a folder or zip, encoded (``search``: arguments of ``Network.encode``) and decoded, each by its own
    condition where none is given."""
    archive = ImageArchive(path)
    names = png_names(archive.names())[:max_images]
    labels = None
    if conditions:
        conditions.require_for(len(names), of=len(archive))
        if net.conditions.labels and conditions.labels == [None] and (found := read_labels(archive)):
            labels = torch.from_numpy(found.values)
    width = columns or COLUMNS

    def read(positions: Sequence[int]) -> torch.Tensor:
        return to_float(torch.from_numpy(archive.images(positions, (net.img_channels, *net.img_resolution))))

    def condition(positions: Sequence[int], images: torch.Tensor) -> torch.Tensor | None:
        return conditions.of_images(images, None if labels is None else labels[list(positions)], positions)

    return Request(
        names,
        lambda positions: generate.reconstructions(
            net, len(names), read, batch, conditions and condition, positions, **search
        ),
        lambda images, originals: in_pairs(originals, images, width),
        [path, *(conditions.sources if conditions else [])],
        width,
    )


def beside(
    images: np.ndarray, todo: Sequence[Job], look: Callable[[Job], list[np.ndarray | None]], columns: int
) -> list:
    """Rows of a sheet: what ``look`` shows first of a job (its condition, or the latent of which a part is kept), up to
    ``columns`` samples of it, and the picture that the first was made of, where ``look`` has a second that shows more.
    """
    groups: dict[tuple, list[int]] = {}
    for i, job in enumerate(todo[: len(images)]):
        groups.setdefault((job.label, job.target), []).append(i)
    looks = [look(todo[members[0]]) for members in groups.values()]
    more = any((first != second).any() for first, *rest in looks for second in rest)
    columns = min(columns, max(map(len, groups.values())))
    rows = []
    for (first, *rest), members in zip(looks, groups.values(), strict=True):
        for part in in_rows(members, columns):
            empty = [None] * (columns - len(part))
            rows.append([first, *images[part], *empty, *(rest if more else [])])
    return rows


# ---------------------------------------------------------------------------------------------------------------- files


class Made(NamedTuple):
    """What this rank made: codes [n, L] of all its images, and the first images and originals, uint8 [n, C, H, W]."""

    codes: list[np.ndarray]
    images: list[np.ndarray]
    originals: list[np.ndarray]


def write_images(request: Request, outdir: str, keep_codes: bool, keep_images: bool) -> Made:
    """Make this rank's images and write them."""
    rank, world = dist.get_rank(), dist.get_world_size()
    made = Made([], [], [])
    with tqdm(total=len(request.names), unit='img', disable=None if rank == 0 else True) as bar:
        for batch in request.make(range(len(request.names))[rank::world]):
            images = to_uint8(batch.images).cpu().numpy()  # [B, C, H, W]
            for i, image in zip(batch.positions, images, strict=True):
                save_image(image, outdir, request.names[i])
            if keep_codes:
                made.codes.append(batch.codes.cpu().numpy())
            if keep_images and sum(map(len, made.images)) < GRID_MAX:
                made.images.append(images)
                if batch.originals is not None:
                    made.originals.append(to_uint8(batch.originals).cpu().numpy())
            bar.update(len(images) * world)
    return made


def gather(parts: list[np.ndarray], count: int) -> np.ndarray | None:
    """The first ``count`` rows of all ranks in order: rank r has rows r, r + world, ...; None for none."""
    ranks = [np.concatenate(part) for part in dist.all_gather_object(parts) if part]
    if not ranks:
        return None
    table = np.zeros((sum(map(len, ranks)), *ranks[0].shape[1:]), dtype=ranks[0].dtype)
    for r, part in enumerate(ranks):
        table[r :: len(ranks)] = part
    return table[:count]


def require_outputs(request: Request, outdir: str, save_codes: str | None, grid: str | None) -> None:
    """ValueError where an output cannot be written, or would replace another one or a picture that is read."""
    for source in request.sources:
        keep_originals(request.names, outdir, source)
        if grid:
            keep_originals([os.path.basename(grid)], os.path.dirname(grid), source)
    images_at = [os.path.join(outdir, name) for name in request.names]
    require_writable('--outdir', os.path.join(outdir, os.path.basename(request.names[0])))
    if save_codes:
        require_writable('--save-codes', save_codes, images_at)
    if grid:
        require_writable('--grid', grid, [*images_at, save_codes or ''])


# --------------------------------------------------------------------------------------------------------- command line


def guide_help() -> str:
    from cli.guide_arguments import help_text

    return help_text()


@click.command(
    cls=GroupedCommand, help=script_help(__file__), context_settings={'show_default': True, 'max_content_width': 110}
)
@network_options
@option_group(
    'Images to generate',
    click.option('--seeds', metavar='LIST', type=Ints(), default='0-63', help='Seeds, such as 0-63 or 1,5,9-12'),
    click.option('--codes', metavar='FILE', help='Decode these latents instead: .npz, .npy or text, [N, D]'),
    click.option('--reconstruct', metavar='ZIP|DIR', help='Encode and decode these images instead'),
    click.option('--max-images', metavar='INT', type=click.IntRange(min=1),
                 help='Only the first images of --reconstruct, or latents of --keep'),
    click.option('--refine', metavar='INT', type=REFINE, default=0,
                 help='Other nodes that each cell of an encoded image tries (latents.py encode --help)'),
    click.option('--batch', metavar='INT', type=BATCH, default=64, help='Images at a time'),
)
@option_group(
    'Condition of a network that was trained with one',
    click.option('--class', 'classes', metavar='LIST', type=Classes(),
                 help="Class to generate: 3, 0-4 or 'all'  [default: seed mod N; --reconstruct: the image's own; "
                 "needed for --codes and --guide]"),
    click.option('--label', metavar='LIST', type=Numbers(), help='Label vector: 0.5,-1'),
    click.option('--condition-image', metavar='[KIND:]PATH', multiple=True, help='Picture, folder or zip'),
    click.option('--cfg', metavar='FLOAT', type=float, default=1.0,
                 help='Strength of the condition: classifier-free guidance, for networks of train.py '
                 '--condition-to=heads'),
)  # fmt: skip
@option_group(
    'How to choose',
    click.option('--temperature', metavar='LIST', type=Numbers(),
                 help="Of the network's own prior, one or one per layer  [default: those that the network was saved "
                 'with, else 1]; without a prior, of guides: choose by exp(-distance / t)'),
    click.option('--top-p', metavar='FLOAT', type=float, help='Only the likeliest answers that add up to it'),
    click.option('--uniform', is_flag=True, help='Choose uniformly, although the network has a prior'),
)  # fmt: skip
@option_group(
    'Keep a part of latents and draw the rest anew, by seeds',
    click.option('--keep', metavar='SOURCE',
                 help="seed:7, codes (FILE.npz, .npy or .txt, with ':0-3' for some rows), or a picture, folder or zip"),
    click.option('--keep-layers', metavar='LIST', type=Ints(), help='Keep codes of these layers only: 0-3  '
                 '[default: all]'),
    click.option('--keep-region', metavar='X,Y,W,H', type=Region(), multiple=True,
                 help='Keep cells that reach into this rectangle of pixels only'),
    click.option('--redraw-region', metavar='X,Y,W,H', type=Region(), multiple=True,
                 help='Draw cells inside this rectangle anew'),
)  # fmt: skip
@option_group(
    'Guides (conditions that the network was not trained for)',
    click.option('--guide', metavar='SPEC', type=Text(guide_help), multiple=True,
                 help="Guide the choices by this condition; 'help' lists all"),
    click.option('--top-k', metavar='INT', type=click.IntRange(min=1),
                 help='Choose one of the k best  [default: 2; sample where the network has a prior]'),
    click.option('--beam', metavar='INT', type=BEAM, default=1,
                 help='Track so many partial images instead; also for --reconstruct and --keep=PICTURE'),
    click.option('--combine', type=click.Choice(['ranks', 'distances']), default='ranks',
                 help='What is summed over several guides'),
    click.option('--guide-every', metavar='N', type=click.IntRange(min=1), default=1, help='Guide every n-th layer'),
    click.option('--guide-layers', metavar='A-B', type=Layers(), help='Guide these layers only  [default: all]'),
    click.option('--sweeps', metavar='INT', type=click.IntRange(1, 1000), default=2,
                 help='How often each cell chooses where a guide compares across cells'),
    click.option('--proposals', metavar='INT', type=click.IntRange(1, 10_000), default=16,
                 help='Whole pictures at a time for guides that cannot judge cells (docs/guiding.md)'),
    click.option('--prior-weight', metavar='LIST', type=Numbers(),
                 help="Weight of the guides' likelihood against the network's prior, one or one per guide  "
                 '[default: fitted]'),
)  # fmt: skip
@option_group(
    'Output',
    click.option('--outdir', metavar='DIR', required=True, help='Folder for the images'),
    click.option('--subdirs', is_flag=True, help='A subfolder for every 1000 seeds'),
    click.option('--save-codes', metavar='FILE', help='Also write all latents: .npz, .npy or text'),
    click.option('--grid', metavar='FILE', help=f'Also write one picture of the first {GRID_MAX} images (.png)'),
    click.option('--columns', metavar='INT', type=click.IntRange(1, GRID_MAX),
                 help=f'Images in a row of the grid  [default: {COLUMNS}; with several classes a row each]'),
)  # fmt: skip
@click.pass_context
def main(
    ctx, network, outdir, seeds, codes, reconstruct, max_images, classes, label, condition_image, guide, top_k,
    temperature, top_p, uniform, cfg, beam, refine, combine, guide_every, guide_layers, sweeps, proposals, prior_weight,
    keep, keep_layers, keep_region, redraw_region, save_codes, grid, columns, subdirs, steps, batch, ema, device,
    finish,
) -> None:  # fmt: skip
    check_options(ctx)
    with one_line_errors(), dist.session(device) as device:
        net = load_network(network, ema, device, steps, finish).to(memory_format=torch.channels_last)
        conditions = condition_arguments(net, classes, label, condition_image)
        search = {'beam': beam, 'refine': refine}
        if net.condition_to == 'heads' and (codes or reconstruct):
            conditions = None  # codes name the same images with and without
        if codes:
            request = decoding(net, codes, conditions, batch, columns)
        elif reconstruct:
            request = reconstruction(net, reconstruct, max_images, conditions, batch, columns, search)
        else:
            prior = {'temperature': temperature, 'top_p': top_p, 'uniform': uniform, 'cfg': cfg}
            how = {'top_k': top_k, 'beam': beam, 'combine': combine, 'every': guide_every, 'layers': guide_layers,
                   'sweeps': sweeps, 'proposals': proposals, 'prior_weight': prior_weight}  # fmt: skip
            if guide and temperature and (uniform or not net.prior):  # of the guides' distances, not of the prior
                if len(temperature) > 1:
                    raise click.ClickException('--temperature of guides without a prior is one number')
                how['temperature'], prior['temperature'] = temperature[0], None
            guides = guide_arguments(guide, device, how)
            parts = {'layers': keep_layers, 'regions': keep_region, 'redrawn': redraw_region, 'most': max_images}
            kept = kept_codes(net, keep, parts, prior, search)
            request = sampling(
                net, seeds, was_given(ctx, 'seeds'), conditions, guides, kept, batch, subdirs, columns, prior
            )
        require_outputs(request, outdir, save_codes, grid)
        made = write_images(request, outdir, bool(save_codes), bool(grid))
        dist.print0(printable(f'{len(request.names)} images from {network} to {outdir}'))
        table, images, originals = (
            gather(parts, count) for parts, count in zip(made, (len(request.names), GRID_MAX, GRID_MAX), strict=True)
        )
        if save_codes and dist.get_rank() == 0:
            write_codes(save_codes, table)
        if grid and dist.get_rank() == 0:
            save_png(draw_sheet(request.layout(images, originals), request.columns), grid)
            dist.print0(printable(f'Grid: {grid}'))


if __name__ == '__main__':
    main()
