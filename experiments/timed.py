"""Generative models that are no DDN of this project, trained for a given time and kept as samples in a zip.

A model is trained for CPU seconds of this process, which other work on the machine does not change, and sampled into
``NAME.zip`` with the facts for a table in ``NAME.json``: ``experiments.quality --pictures`` reads both.
"""

import io
import json
import math
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from cli.tables import write_json
from dnnlib.images import to_float, to_uint8
from dnnlib.sheets import draw_sheet, in_rows, save_png
from dnnlib.util import atomic_write, format_time
from torch_utils import misc
from training.dataset import ImageFolderDataset
from training.loader import BatchStream, Loader

SHEET = 64  # samples

# Options of the scripts that train such a model.
OPTIONS = (
    click.argument('data', metavar='ZIP', type=click.Path(exists=True)),
    click.option('--minutes', type=click.FloatRange(min=0, min_open=True), default=15, help='CPU minutes of training'),
    click.option('--batch', type=click.IntRange(min=1), default=32, help='Images of a step'),
    click.option('--num', type=click.IntRange(min=1), default=2000, help='Samples to write'),
    click.option('--xflip', is_flag=True, help='Mirror every second image'),
    click.option('--seed', type=click.IntRange(min=0), default=0, help='Random seed'),
    click.option('--outdir', metavar='DIR', required=True, help='Folder for network, samples and sheets'),
)


def options(command: Callable) -> Callable:
    """Decorator: the command-line options of such a script."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def images(data: str, batch: int, xflip: bool, seed: int) -> tuple[tuple[int, int, int], Iterator[torch.Tensor]]:
    """((C, H, W), batches [B, C, H, W] in [-1, 1] of an archive, in random order without end)."""
    dataset = ImageFolderDataset(data, xflip=xflip)
    loader = Loader(dataset, BatchStream(len(dataset), seed, 0, batch))
    return dataset.image_shape, (to_float(step[0][0]) for step in loader)


def train(step: Callable[[torch.Tensor, float], float], batches: Iterator[torch.Tensor], seconds: float) -> dict:
    """Call ``step(images, progress)``, which returns a loss, for so many CPU seconds; progress goes from 0 to 1.

    Prints a line each tenth of the time. Returns the facts of the training. Raises ValueError for a loss that is not
    finite.
    """
    started, seen, printed, losses = time.process_time(), 0, 0, []
    while (spent := time.process_time() - started) < seconds:
        x = next(batches)
        losses.append(step(x, spent / seconds))
        seen += len(x)
        if not math.isfinite(losses[-1]):
            raise ValueError(f'the loss is {losses[-1]} after {seen:,} images')
        if spent > printed * seconds / 10:
            printed += 1
            left = format_time(seconds - spent)
            click.echo(f'{seen:,} images, loss {sum(losses) / len(losses):.4f}, {left} of CPU time left')
            losses = []
    return {'images': seen, 'training CPU seconds': time.process_time() - started, 'git_revision': misc.git_revision()}


@torch.no_grad()
def write_samples(
    path: Path, sample: Callable[[torch.Generator, int], torch.Tensor], num: int, seed: int, facts: dict[str, Any]
) -> None:
    """Write ``path``.zip of ``num`` samples, ``path``.json of the facts and the CPU seconds per image, and ``path``.png
    of the first 64.

    Args:
        sample: (generator, B) -> images [B, C, H, W] in about [-1, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    started = time.process_time()
    parts = [to_uint8(sample(generator, min(50, num - first))) for first in range(0, num, 50)]
    pictures, seconds = torch.cat(parts), time.process_time() - started
    write_zip(path.with_suffix('.zip'), pictures)
    write_json(path.with_suffix('.json'), {**facts, 'seconds per image': seconds / num})
    save_png(draw_sheet(in_rows(to_float(pictures[:SHEET]), 16), 16), str(path.with_suffix('.png')))
    click.echo(f'{path.with_suffix(".zip")}: {num:,} samples, {seconds / num:.4g} CPU seconds each')


def write_zip(path: Path, pictures: torch.Tensor) -> None:
    """Write uint8 images [N, C, H, W] as a zip of PNGs, in their order."""
    with atomic_write(path) as file, zipfile.ZipFile(file, 'w') as archive:
        for i, picture in enumerate(pictures.numpy()):
            buffer = io.BytesIO()
            pixels = picture[0] if len(picture) == 1 else np.ascontiguousarray(picture.transpose(1, 2, 0))
            Image.fromarray(pixels).save(buffer, 'png')
            archive.writestr(f'{i // 1000:05d}/img{i:08d}.png', buffer.getvalue())
        archive.writestr('dataset.json', json.dumps({'labels': None}))
