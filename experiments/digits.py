"""Digits: the built-in ones as datasets, and what a LeNet and the nearest real digit say of samples.

A sample counts as legible where the LeNet, which saw real digits only, gives its most likely class a probability of at
least 0.9.
"""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddn_networks import Network
from dnnlib.archives import ImageArchive
from dnnlib.images import to_float, to_uint8
from dnnlib.labels import read_labels
from dnnlib.sources import read_idx
from dnnlib.util import atomic_write
from experiments.common import pictures
from metrics.lenet import LeNet
from torch_utils import misc

BUILT_IN = Path(__file__).resolve().parents[1] / 'assets' / 'mnist' / 't10k-images-idx3-ubyte.gz'
HELD_OUT = 2000  # of the 10,000 built-in digits


def datasets(folder: Path) -> tuple[str, str]:
    """(training zip, held-out zip) of the built-in digits, written once: what dataset_tool.py makes with --shuffle and
    --skip-images=2000 or --max-images=2000."""
    paths = folder / 'digits-train.zip', folder / 'digits-held-out.zip'
    if all(path.is_file() for path in paths):
        return str(paths[0]), str(paths[1])
    source = read_idx(str(BUILT_IN))
    order = np.random.RandomState(0).permutation(len(source))
    for path, rows in zip(paths, (order[HELD_OUT:], order[:HELD_OUT]), strict=True):
        names = [f'{i // 1000:05d}/img{i:08d}.png' for i in range(len(rows))]
        with atomic_write(path) as file, zipfile.ZipFile(file, 'w') as archive:
            for name, row in zip(names, rows, strict=True):
                buffer = io.BytesIO()
                source.image(row).save(buffer, 'png')
                archive.writestr(name, buffer.getvalue())
            pairs = [list(pair) for pair in zip(names, source.labels.values[rows].tolist(), strict=True)]
            archive.writestr('dataset.json', json.dumps({'labels': pairs}))
    return str(paths[0]), str(paths[1])


@torch.no_grad()
def probabilities(lenet: LeNet, images: torch.Tensor) -> torch.Tensor:
    """Class probabilities [N, 10] of images [N, C, H, W], rounded to 8 bits as a PNG would be."""
    return torch.cat([lenet.probabilities(to_float(to_uint8(part))) for part in images.split(500)])


def legible(probabilities: torch.Tensor) -> float:
    """Share of images whose most likely class has a probability of at least 0.9."""
    return (probabilities.amax(1) >= 0.9).double().mean().item()


def quality(net: Network, lenet: LeNet, real: str, num: int = 1000, **how: Any) -> dict[str, Any]:
    """What the LeNet says of ``num`` samples and of real digits, and the PSNR of the latter reconstructed. ``how``: of
    ``net.sample``."""
    samples = torch.cat([net.sample(seeds=part.tolist(), **how)[0] for part in torch.arange(num).split(250)])
    digits = pictures(real, net)
    of_samples = probabilities(lenet, samples)
    decoded = torch.cat([net.reconstruct(part).images for part in digits.split(250)]).clamp(-1, 1)
    return {
        'samples_read': legible(of_samples),
        'real_read': legible(probabilities(lenet, digits)),
        'num_samples': num,
        'num_real': len(digits),
        'samples_per_class': of_samples.argmax(1).bincount(minlength=10).tolist(),
        'held_out_psnr': misc.psnr((decoded - digits).square().mean().item()),
        'bits': net.num_bits,
        'network': {k: net.snapshot_meta.get(k) for k in ('preset', 'cur_nimg', 'git_revision')},
    }


def nearest_digit(path: str, net: Network) -> Callable[[torch.Tensor], torch.Tensor]:
    """A judge that shares nothing with a guide: the label of the nearest picture of a labelled zip, by pixels."""
    labels = read_labels(ImageArchive(path))
    if labels is None:
        raise ValueError(f'{path} has no labels')
    values, real = torch.from_numpy(labels.values), pictures(path, net).flatten(1)
    return lambda images: values[torch.cdist(images.flatten(1), real).argmin(1)]
