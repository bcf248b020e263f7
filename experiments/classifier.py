"""A LeNet for pictures of ten classes, trained in a minute: a detector where no published one fits (Fashion-MNIST)."""

from pathlib import Path

import click
import torch
import torch.nn.functional as F

from dnnlib.archives import ImageArchive
from dnnlib.images import to_float
from dnnlib.util import atomic_write
from experiments.common import class_labels
from metrics.lenet import LeNet
from training.loader import batch_indices

BATCH, LR, EPOCHS = 128, 2e-3, 4


def labelled(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(images [N, C, H, W] in [-1, 1], classes [N]) of an archive. Raises ValueError where it has no class labels."""
    archive = ImageArchive(path)
    everything = range(len(archive))
    images = torch.from_numpy(archive.images(everything, archive.image(0).shape))
    return to_float(images), class_labels(path, everything)


def trained(data: str, seed: int = 0) -> LeNet:
    """A LeNet of the classes of an archive."""
    images, classes = labelled(data)
    torch.manual_seed(seed)
    net = LeNet().train().requires_grad_(True)
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    steps = EPOCHS * len(images) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for step in range(steps):
        some = torch.from_numpy(batch_indices(len(images), seed, step * BATCH, BATCH))
        optimizer.zero_grad()
        F.cross_entropy(net.logits(images[some]), classes[some]).backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def accuracy(net: LeNet, path: str) -> float:
    """Share of the images of an archive that a LeNet classifies right."""
    images, classes = labelled(path)
    return (torch.cat([net.logits(part).argmax(1) for part in images.split(500)]) == classes).double().mean().item()


def detector_file(data: str, path: Path) -> str:
    """The file of weights of a LeNet of the classes of ``data``, trained if there is none at ``path`` yet."""
    if not path.is_file():
        click.echo(f'Training a LeNet on {data}')
        state = trained(data).state_dict()
        with atomic_write(path) as file:
            torch.save(state, file)
    return str(path)
