"""What the zscg_*.py scripts share: a task guided, against unguided samples, a baseline and the best of n samples.

B images. The best of n: n unguided samples of the same network, of which the guide itself picks one per target, n being
as many as the guide judged candidates for one guided image (or what --pool allows, which is then said).
"""

import glob
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import click
import numpy as np
import torch
from PIL import Image

from ddn_networks import DDN, Candidates, guided_sampling, pixel_maps
from ddn_networks.guides import Guide
from dnnlib.archives import ImageArchive
from dnnlib.images import to_float, to_uint8
from dnnlib.sheets import draw_sheet, save_png
from dnnlib.util import atomic_write
from metrics.reconstruction import psnr

PORTRAITS = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'assets', 'faces')
LARGE = 400_000  # pixels of a sheet above which it gets a palette: a third of the bytes


class Task(NamedTuple):
    """guide: originals [B, C, H, W] -> guide that knows the condition only. condition: what it holds, to look at.
    baseline: originals -> images from the condition alone by the obvious means, or None."""

    name: str
    guide: Callable[[torch.Tensor], Guide]
    condition: Callable[[torch.Tensor], torch.Tensor]
    baseline: Callable[[torch.Tensor], torch.Tensor] | None = None


def trained(preset: str, data: str, outdir: str, more: Sequence[str] = ()) -> str:
    """The last snapshot of a network that train.py trains now; minutes on a CPU with the presets that end in -cpu."""
    if not os.path.exists(data):
        raise click.ClickException(f'{data}: no such data to train on; give --network, or --train-data')
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
    command = [sys.executable, os.path.join(root, 'train.py'), f'--preset={preset}', f'--outdir={outdir}',
               f'--data={data}', *more]  # fmt: skip
    if subprocess.run(command).returncode:
        raise click.ClickException('training failed: ' + ' '.join(command))
    return sorted(glob.glob(os.path.join(outdir, '*', 'network-snapshot-*.safetensors')))[-1]


def in_words(net: DDN, path: str) -> str:
    """A network and its snapshot's name."""
    return f'{os.path.basename(path)}, L = {net.num_layers}, K = {max(net.num_nodes)}, {net.num_bits:.0f} bits'


def pictures(path: str, num: int, net: DDN, spread: bool = False) -> torch.Tensor:
    """[num, C, H, W] in [-1, 1] of a zip or folder of pictures that have the network's shape: the first ones, or with
    ``spread`` those at ``places``."""
    archive = ImageArchive(path)
    if num > len(archive):
        raise click.ClickException(f'{path} holds {len(archive)} images, {num} are needed')
    chosen = places(num, len(archive)) if spread else range(num)
    images = to_float(torch.from_numpy(np.stack([archive.image(i) for i in chosen])))
    if list(images.shape[1:]) != [net.img_channels, *net.img_resolution]:
        made = [net.img_channels, *net.img_resolution]
        raise click.ClickException(f'{path} holds images {list(images.shape[1:])}, the network makes {made}')
    return images


def portraits(path: str, net: DDN) -> torch.Tensor:
    """[n, C, H, W] of all pictures of a folder, fitted to the network: for sheets, which only what may be published
    should be on."""
    archive = ImageArchive(path)
    images = [to_float(torch.from_numpy(archive.image(i)))[None] for i in range(len(archive))]
    fitted = [pixel_maps.to_channels(pixel_maps.fit(x, net.img_resolution), net.img_channels) for x in images]
    return torch.cat(fitted)


def places(num: int, of: int) -> list[int]:
    """``num`` indices evenly over ``of``: of a dataset in the order of its classes, all classes alike."""
    return [i * of // num for i in range(num)]


def finished(guide: Guide, images: torch.Tensor) -> torch.Tensor:
    """[B] the guide's distance of finished images."""
    B, C, H, W = images.shape
    return guide(Candidates(images.new_zeros(1, C, 1), images.new_zeros(B, 1, H, W), images), -1)[:, 0]


def best_of(guide_of: Callable[[int], Guide], pool: torch.Tensor, num: int) -> torch.Tensor:
    """[num, C, H, W]: for each target the picture of the pool that its guide likes best."""
    chosen = []
    for i in range(num):
        distances = torch.cat([finished(guide_of(i), part) for part in pool.split(256)])
        chosen.append(pool[distances.argmin()])
    return torch.stack(chosen)


def unguided(net: DDN, num: int, seed: int, batch: int = 64) -> torch.Tensor:
    """[num, C, H, W] as they would be saved."""
    return torch.cat([as_saved(net.sample(min(batch, num - i), seed=seed + i)[0]) for i in range(0, num, batch)])


def as_saved(images: torch.Tensor) -> torch.Tensor:
    return to_float(to_uint8(images))


def ways(net: DDN, task: Task, originals: torch.Tensor, guidances: dict[str, guided_sampling.Guidance]) -> dict:
    """Way -> images [B, C, H, W] guided for the originals. Beams are left out where a guide is a costly black box."""
    guide = task.guide(originals)
    asked = {name: g for name, g in guidances.items() if g.beam == 1 or not guide.full_size}
    made = {name: net.sample(len(originals), guide=g._replace(guides=[guide]))[0] for name, g in asked.items()}
    return {name: as_saved(images) for name, images in made.items()}


def compare(
    net: DDN,
    task: Task,
    originals: torch.Tensor,
    pool: torch.Tensor,
    guidances: dict[str, guided_sampling.Guidance],
    perceptual: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Rows of figures, and the images [B, C, H, W] of every way."""
    B = len(originals)
    guide = task.guide(originals)
    made = ways(net, task, originals, guidances)
    made['unguided'] = pool[:B]
    if task.baseline is not None:
        made['baseline'] = as_saved(task.baseline(originals))
    made[f'best of {len(pool)}'] = best_of(lambda i: task.guide(originals[i : i + 1]), pool, B)
    rows = []
    for name, images in made.items():
        row = {'task': task.name, 'way': name, 'consistency': finished(guide, images).mean().item(),
               'psnr': psnr(images, originals, peak=2.0).mean().item()}
        if perceptual is not None:
            row['lpips'] = perceptual(images, originals).mean().item()
        rows.append(row)
    return rows, made


class Sheet(NamedTuple):
    """A picture: rows of as many images [n, C, H, W], by their names."""

    rows: dict[str, torch.Tensor]

    def draw(self) -> Image.Image:
        """The grid of all rows, each with its name at its left."""
        return draw_sheet(list(self.rows.values()), names=list(self.rows))


def compared(task: Task, originals: torch.Tensor, made: dict[str, torch.Tensor], shown: int = 8) -> Sheet:
    """Originals, what the guide knew of them, one row per way."""
    rows = {'original': originals, 'known': pixels_of(task.condition(originals), originals), **made}
    return Sheet({name: images[:shown] for name, images in rows.items()})


def pixels_of(condition: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The condition as a picture of the originals' shape, its pixels as blocks."""
    condition = torch.nn.functional.interpolate(condition, size=like.shape[2:], mode='nearest')
    return condition.expand(-1, like.shape[1], -1, -1)


def table(rows: Sequence[dict]) -> str:
    """Rows of figures, all with the same keys, as Markdown."""
    lines = [' | '.join(rows[0]), ' | '.join(['---'] * len(rows[0]))]
    for row in rows:
        lines.append(' | '.join(f'{cell:.4g}' if isinstance(cell, float) else str(cell) for cell in row.values()))
    return '\n'.join(f'| {line} |' for line in lines)


def write(outdir: str, name: str, facts: dict, rows: list[dict], sheets: dict[str, Sheet]) -> None:
    """outdir/name.json, .md and one PNG per sheet."""
    os.makedirs(outdir, exist_ok=True)
    for which, sheet in sheets.items():
        path = os.path.join(outdir, f'{name}-{which}.png')
        page = sheet.draw()
        save_png(page.quantize(256) if page.width * page.height > LARGE else page, path)
        print(path)
    with atomic_write(os.path.join(outdir, f'{name}.json'), 'w') as f:
        json.dump({'facts': facts, 'rows': rows}, f, indent=2)
    tables = [table([row for row in rows if list(row) == keys]) for keys in _unlike(list(row) for row in rows)]
    text = '\n'.join([f'# {name}', '', *(f'* {key}: {value}' for key, value in facts.items())])
    text = '\n\n'.join([text, *tables]) + '\n'
    with atomic_write(os.path.join(outdir, f'{name}.md'), 'w') as f:
        f.write(text)
    print(text)


def _unlike(items: Iterable) -> list:
    """Items without repetitions, in order."""
    seen = []
    for item in items:
        if item not in seen:
            seen.append(item)
    return seen
