"""Tables, captions and pictures of the results of an ablation."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from cli.networks import load_network
from cli.tables import markdown, write_results
from dnnlib.archives import ImageArchive
from dnnlib.images import to_float
from dnnlib.sheets import draw_sheet, in_pairs, in_rows, save_png
from dnnlib.util import format_time
from experiments.ablation import Result, Scoring, Study
from torch_utils import distributed as dist
from training.report import mean_or_none

# -------------------------------------------------------------------------------------------------------------- tables


def over_seeds(results: Sequence[Result], row: str, name: str) -> list[float]:
    """A number of a row, for each seed that has it."""
    values = [{**r.facts, **r.numbers}.get(name) for r in results if r.row == row]
    return [value for value in values if value is not None]


def mean_of(results: Sequence[Result], row: str, name: str) -> float | None:
    return mean_or_none(over_seeds(results, row, name))


def cell(values: Sequence[float], digits: int = 1) -> str:
    """The mean and, of several values, ± the standard deviation (over n - 1); '-' for none."""
    if not values:
        return '-'
    text = f'{statistics.mean(values):.{digits}f}'
    return text if len(values) == 1 else f'{text} ± {statistics.stdev(values):.{digits}f}'


def table(results: Sequence[Result], head: str, columns: dict[str, tuple[str, float, int]]) -> str:
    """A line for each row, as Markdown. ``columns``: {title: (name of a number, factor, decimals)}."""
    return markdown([
        {head: row} | {
            title: cell([factor * value for value in over_seeds(results, row, name)], places)
            for title, (name, factor, places) in columns.items()
        }
        for row in dict.fromkeys(r.row for r in results)
    ])  # fmt: skip


class Order(NamedTuple):
    """How two columns order the rows: Spearman's rho, and in how many pairs of rows both agree."""

    rho: float
    agreeing: int
    pairs: int


def order(ours: Sequence[float | None], paper: Sequence[float]) -> Order | None:
    """Compare two columns over the rows that ours has, without pairs that are equal in the paper. None where there are
    fewer than three rows, or all are equal."""
    known = [(a, b) for a, b in zip(ours, paper, strict=True) if a is not None]
    if len(known) < 3 or any(len({pair[side] for pair in known}) == 1 for side in (0, 1)):
        return None
    signs = [((a > c) - (a < c)) * ((b > d) - (b < d)) for (a, b), (c, d) in itertools.combinations(known, 2) if b != d]
    ranks = [[sum(b < a for b in column) + column.count(a) / 2 for a in column] for column in zip(*known, strict=True)]
    rho = float(np.corrcoef(ranks)[0, 1])
    return Order(rho, sum(sign > 0 for sign in signs), len(signs))


def failures(results: Sequence[Result]) -> list[str]:
    return [f'{r.row} (seed {r.seed}): {r.error}' for r in results if r.error]


def budget(results: Sequence[Result]) -> str:
    """The facts for a caption: images, network, seeds, seconds."""
    good = [r for r in results if not r.error]
    if not good:
        return 'No row was trained.'
    seeds = sorted({r.seed for r in good})
    cpu = sum(r.facts['training CPU seconds'] for r in good)
    nimg = sorted({r.facts['nimg'] for r in good})
    layers = sorted({r.facts['layers'] for r in good})
    size = sorted(r.facts['parameters'] for r in good)
    many = f'{size[0]:,}' + (f' to {size[-1]:,}' if size[-1] > size[0] else '')
    return (
        f'{" or ".join(f"{n / 1000:g}" for n in nimg)} thousand images a row, L = {"/".join(map(str, layers))}, '
        f'{many} parameters, seed{"s" if len(seeds) > 1 else ""} {", ".join(map(str, seeds))}'
        f'{" (± is the standard deviation over them)" if len(seeds) > 1 else ""}, '
        f'{format_time(cpu)} of CPU time for the training of all rows.'
    )


# ------------------------------------------------------------------------------------------------------------- pictures


def panel(title: str, network: str, pictures: torch.Tensor, samples: int, columns: int) -> Image.Image:
    """Draw a titled grid: samples of seeds 0, 1, ..., then pictures [N, C, H, W] above their reconstructions."""
    net = load_network(network)
    sheets = [in_rows(net.sample(samples)[0], columns)]
    if len(pictures):
        sheets.append(in_pairs(pictures, net.reconstruct(pictures).images, columns))
    parts = [draw_sheet(rows, columns, scale=1) for rows in sheets]
    top, gap = 26, 8
    height = top + sum(part.height + gap for part in parts)
    page = Image.new(parts[0].mode, (parts[0].width, height), 'white')
    ImageDraw.Draw(page).text((page.width / 2, top / 2), title, 'black', ImageFont.load_default(15), anchor='mm')
    for part in parts:
        page.paste(part, (0, top))
        top += part.height + gap
    return page


def side_by_side(panels: Sequence[Image.Image], columns: int, gap: int = 16) -> Image.Image:
    """Arrange pictures of one size on a page."""
    width, height = panels[0].width + gap, panels[0].height + gap
    rows = -(-len(panels) // columns)
    page = Image.new(panels[0].mode, (gap + width * min(columns, len(panels)), gap + height * rows), 'white')
    for i, picture in enumerate(panels):
        page.paste(picture, (gap + i % columns * width, gap + i // columns * height))
    return page


def sheet(path: Path, results: Sequence[Result], held_out: str | None, columns: int, samples: int, across: int) -> None:
    """Write a page with a panel for each row that has a network, of its first seed."""
    first = {r.row: r for r in reversed(results) if r.network is not None}
    shown = [first[row] for row in dict.fromkeys(r.row for r in results) if row in first]
    if not shown:
        return
    pictures = torch.zeros(0)
    if held_out is not None:
        archive = ImageArchive(held_out)
        indices = range(min(across, len(archive)))
        pictures = to_float(torch.from_numpy(np.stack([archive.image(i) for i in indices])))
    titles = [f'{r.row}: {r.numbers["FID"]:.1f}' if 'FID' in r.numbers else r.row for r in shown]
    panels = [panel(title, r.network, pictures, samples, across) for title, r in zip(titles, shown, strict=True)]
    save_png(side_by_side(panels, columns), str(path))


def finish(
    study: Study, scoring: Scoring, results: Sequence[Result], parts: Sequence[str], settings: dict[str, Any],
    columns: int, samples: int, across: int = 8, names: Callable[[str], str] = str,
) -> None:  # fmt: skip
    """Write ``results.md`` of the parts, ``results.json`` and ``samples.png``, whose panels have ``names`` of the rows.
    Raises click.ClickException at the end if a row failed."""
    failed = failures(results)
    if dist.get_rank() == 0:
        shown = [r._replace(row=names(r.row)) for r in results]
        sheet(study.into / 'samples.png', shown, scoring.held_out, columns, samples, across)
        text = '\n\n'.join([*parts, *(f'Failed: {line}' for line in failed)])
        facts = {**settings, 'scoring': scoring._asdict(), 'rows': [r._asdict() for r in results]}
        write_results(study.into / 'results', text, facts)
        click.echo(f'\n{text}\n\nWritten to {study.into}')
    if failed:
        raise click.ClickException('rows failed: ' + '; '.join(failed))
