"""Guided samples against unguided ones, a baseline and the best of n unguided samples: shared by zscg_*.py.

Legend: B images. "Best of n": of n unguided samples of the same network the guide picks one per target, where n is the
number of candidates that it judged for one guided image (or --pool, which the tables then name).
"""

import os
import time
from collections.abc import Callable, Container, Mapping
from typing import NamedTuple

import click
import torch

from cli.tables import markdown, write_results
from ddn_networks import Network, guided_sampling
from ddn_networks.guides import Guide
from dnnlib.sheets import draw_sheet, save_png
from experiments.common import as_saved
from metrics.reconstruction import psnr

Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # two images [B, C, H, W] -> distances [B]

LARGE = 400_000  # pixels of a sheet above which it gets a palette: a third of the bytes


class Task(NamedTuple):
    """A condition to generate by.

    guide: originals [B, C, H, W] -> a guide that knows the condition only. condition: originals -> what it knows, as a
    picture. baseline: originals -> images made of the condition by simple means, or None.
    """

    name: str
    guide: Callable[[torch.Tensor], Guide]
    condition: Callable[[torch.Tensor], torch.Tensor]
    baseline: Callable[[torch.Tensor], torch.Tensor] | None = None


def in_words(net: Network, path: str) -> str:
    """Describe a network: name of its snapshot, L, K, bits."""
    return f'{os.path.basename(path)}, L = {net.num_layers}, K = {max(net.num_nodes)}, {net.num_bits:.0f} bits'


def finished(guide: Guide, images: torch.Tensor) -> torch.Tensor:
    """[B] the guide's distances of finished images [B, C, H, W]."""
    return guide.of_pictures(images, -1)


def best_of(guide_of: Callable[[int], Guide], pool: torch.Tensor, num: int) -> torch.Tensor:
    """[num, C, H, W]: for each of ``num`` targets the picture of the pool that its guide likes best."""
    chosen = []
    for i in range(num):
        distances = torch.cat([finished(guide_of(i), part) for part in pool.split(256)])
        chosen.append(pool[distances.argmin()])
    return torch.stack(chosen)


def unguided(net: Network, num: int, seed: int, batch: int = 64, uniform: bool = True) -> torch.Tensor:
    """[num, C, H, W]: samples of seeds seed, seed + 1, ..., uniform ones or of the own prior, rounded to 8 bits."""
    parts = [net.sample(min(batch, num - i), seed=seed + i, uniform=uniform)[0] for i in range(0, num, batch)]
    return torch.cat([as_saved(part) for part in parts])


def ways(
    net: Network,
    task: Task,
    originals: torch.Tensor,
    guidances: dict[str, guided_sampling.Guidance],
    uniform: Container[str] = (),
) -> dict[str, torch.Tensor]:
    """{way: images [B, C, H, W] guided for the originals}, without beams where a guide is a costly black box or the
    network has cells. ``uniform``: names of the ways that leave out the network's own prior."""
    guide = task.guide(originals)
    beams = not guide.full_size and net.num_whole_layers == net.num_layers
    made = {}
    for name, guidance in guidances.items():
        if guidance.beam == 1 or beams:
            guidance = guidance._replace(guides=[guide])
            made[name] = as_saved(net.sample(len(originals), guide=guidance, uniform=name in uniform)[0])
    return made


def measured(
    net: Network,
    task: Task,
    originals: torch.Tensor,
    guidances: dict[str, guided_sampling.Guidance],
    perceptual: Perceptual | None = None,
    uniform: Container[str] = (),
) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """(rows of figures, with seconds per image, {way: images [B, C, H, W]}) of ``ways``."""
    rows, made = [], {}
    for name, guidance in guidances.items():
        start = time.perf_counter()
        images = ways(net, task, originals, {name: guidance}, uniform)
        seconds = (time.perf_counter() - start) / len(originals)
        rows += [row | {'seconds': seconds} for row in figures(task, originals, images, perceptual)]
        made |= images
    return rows, made


def figures(
    task: Task, originals: torch.Tensor, made: dict[str, torch.Tensor], perceptual: Perceptual | None = None
) -> list[dict]:
    """A row of figures for each way."""
    guide, rows = task.guide(originals), []
    for name, images in made.items():
        row = {'task': task.name, 'way': name, 'consistency': finished(guide, images).mean().item(),
               'psnr': psnr(images, originals, peak=2.0).mean().item()}  # fmt: skip
        if perceptual is not None:
            row['lpips'] = perceptual(images, originals).mean().item()
        rows.append(row | {'seconds': None})
    return rows


def compare(
    net: Network,
    task: Task,
    originals: torch.Tensor,
    pool: torch.Tensor,
    guidances: dict[str, guided_sampling.Guidance],
    perceptual: Perceptual | None = None,
) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """(rows of figures, {way: images [B, C, H, W]}), all without a prior of the network's own."""
    B = len(originals)
    rows, made = measured(net, task, originals, guidances, perceptual, guidances)
    others = {'unguided': pool[:B]}
    if task.baseline is not None:
        others['baseline'] = as_saved(task.baseline(originals))
    others[f'best of {len(pool)}'] = best_of(lambda i: task.guide(originals[i : i + 1]), pool, B)
    return rows + figures(task, originals, others, perceptual), made | others


Sheet = Mapping[str, torch.Tensor]  # {name: images [n, C, H, W]}, the rows of a picture


def compared(task: Task, originals: torch.Tensor, made: dict[str, torch.Tensor], shown: int = 8) -> Sheet:
    """Rows of originals, what the guide knew of them, and the images of each way."""
    rows = {'original': originals, 'known': pixels_of(task.condition(originals), originals), **made}
    return {name: images[:shown] for name, images in rows.items()}


def pixels_of(condition: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A condition as a picture of the shape of ``like``, its pixels enlarged to blocks."""
    condition = torch.nn.functional.interpolate(condition, size=like.shape[2:], mode='nearest')
    return condition.expand(-1, like.shape[1], -1, -1)


def write(outdir: str, name: str, facts: dict, rows: list[dict], sheets: dict[str, Sheet]) -> None:
    """Write outdir/name.json, .md and a PNG per sheet."""
    for which, sheet in sheets.items():
        path = os.path.join(outdir, f'{name}-{which}.png')
        page = draw_sheet(list(sheet.values()), names=list(sheet))
        save_png(page.quantize(256) if page.width * page.height > LARGE else page, path)
        click.echo(path)
    columns = dict.fromkeys(tuple(row) for row in rows)  # a table for each set of columns
    tables = [markdown([row for row in rows if tuple(row) == keys]) for keys in columns]
    text = '\n'.join([f'# {name}', '', *(f'* {key}: {value}' for key, value in facts.items())])
    text = '\n\n'.join([text, *tables])
    write_results(os.path.join(outdir, name), text, {'facts': facts, 'rows': rows})
    click.echo(text)
