"""What the zscg_*.py scripts share: a task guided, against unguided samples, a baseline and the best of n samples.

B images. The best of n: n unguided samples of the same network, of which the guide itself picks one per target, n being
as many as the guide judged candidates for one guided image (or what --pool allows, which is then said).
"""

import json
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import click
import numpy as np
import torch

from ddn_networks import DDN, Candidates, guided
from ddn_networks.guides import Guide
from dnnlib.images import ImageArchive, to_float, to_uint8
from dnnlib.sheets import comfortable_scale, image_grid, save_png
from dnnlib.util import atomic_write
from metrics.reconstruction import psnr

Judge = Callable[[torch.Tensor], torch.Tensor]


class Task(NamedTuple):
    """guide: originals [B, C, H, W] -> guide that knows the condition only. condition: what it holds, to look at.
    baseline: originals -> images from the condition alone by the obvious means, or None."""

    name: str
    guide: Callable[[torch.Tensor], Guide]
    condition: Callable[[torch.Tensor], torch.Tensor]
    baseline: Callable[[torch.Tensor], torch.Tensor] | None = None


def pictures(path: str, num: int, net: DDN, first: int = 0) -> torch.Tensor:
    """[num, C, H, W] in [-1, 1] of a zip or folder of pictures that have the network's shape."""
    archive = ImageArchive(path)
    if first + num > len(archive):
        raise click.ClickException(f'{path} holds {len(archive)} images, {first + num} are needed')
    images = to_float(torch.from_numpy(np.stack([archive.image(i) for i in range(first, first + num)])))
    if list(images.shape[1:]) != [net.img_channels, *net.img_resolution]:
        made = [net.img_channels, *net.img_resolution]
        raise click.ClickException(f'{path} holds images {list(images.shape[1:])}, the network makes {made}')
    return images


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


def compare(
    net: DDN,
    task: Task,
    originals: torch.Tensor,
    pool: torch.Tensor,
    guidances: dict[str, guided.Guidance],
    perceptual: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    shown: int = 8,
) -> tuple[list[dict], torch.Tensor]:
    """Rows of figures and a sheet [rows * shown, C, H, W]: original, condition, one row per way."""
    B = len(originals)
    guide = task.guide(originals)
    made = {name: as_saved(net.sample(B, guide=g._replace(guides=[guide]))[0]) for name, g in guidances.items()}
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
    sheet = [originals, pixels_of(task.condition(originals), originals), *made.values()]
    return rows, torch.cat([images[:shown] for images in sheet])


def pixels_of(condition: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The condition as a picture of the originals' shape, its pixels as blocks."""
    condition = torch.nn.functional.interpolate(condition, size=like.shape[2:], mode='nearest')
    return condition.expand(-1, like.shape[1], -1, -1)


def table(rows: Sequence[dict]) -> str:
    """Rows of figures as Markdown."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [' | '.join(keys), ' | '.join(['---'] * len(keys))]
    for row in rows:
        cells = (row.get(key, '') for key in keys)
        lines.append(' | '.join(f'{cell:.4g}' if isinstance(cell, float) else str(cell) for cell in cells))
    return '\n'.join(f'| {line} |' for line in lines)


def write(outdir: str, name: str, facts: dict, rows: list[dict], sheets: dict[str, tuple[torch.Tensor, int]]) -> None:
    """outdir/name.json, .md and one PNG per sheet (images, columns)."""
    os.makedirs(outdir, exist_ok=True)
    for sheet, (images, columns) in sheets.items():
        path = os.path.join(outdir, f'{name}-{sheet}.png')
        save_png(image_grid(images, columns), path, comfortable_scale(images.shape[3]))
        print(path)
    with atomic_write(os.path.join(outdir, f'{name}.json'), 'w') as f:
        json.dump({'facts': facts, 'rows': rows}, f, indent=2)
    text = '\n'.join([f'# {name}', '', *(f'* {key}: {value}' for key, value in facts.items()), '', table(rows), ''])
    with atomic_write(os.path.join(outdir, f'{name}.md'), 'w') as f:
        f.write(text)
    print(text)
