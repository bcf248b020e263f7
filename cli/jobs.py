"""The images that a command is to make: one for each class, picture and seed."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dnnlib.images import png_names

if TYPE_CHECKING:
    from cli.pictures import Pictures

MAX_IMAGES = 1_000_000  # of one run

Label = int | tuple[float, ...]


class Job(NamedTuple):
    """One image to make: its file name, its seed, which of the given pictures it is made by, its class or label
    vector."""

    name: str
    seed: int
    target: int = 0
    label: Label | None = None


def jobs(
    seeds: Sequence[int],
    seeds_given: bool = True,
    pictures: Sequence['Pictures'] = (),
    labels: Sequence[Label | None] = (None,),
) -> list[Job]:
    """One image per seed, or with a folder of pictures one per picture (and per seed, where seeds are given); the same
    for each of several classes, in a folder per class.

    Images are named after their picture where there are several, else after their seed. ValueError for more than
    ``MAX_IMAGES``.
    """
    several = len(labels) > 1
    if several and not seeds_given:
        seeds = seeds[:10]
    names = common_names(pictures)
    stems = [os.path.splitext(name)[0] for name in png_names(names)] if len(names) > 1 else []
    if stems and not seeds_given:
        seeds = [0]
    count = len(labels) * max(len(stems), 1) * len(seeds)
    if count > MAX_IMAGES:
        raise ValueError(f'these options make {count:,} images; at most {MAX_IMAGES:,} per run: give fewer --seeds')
    made = []
    for label in labels:
        folder = f'class{label}/' if several else ''
        for target, stem in enumerate(stems or ['']):
            for seed in seeds:
                end = f'{seed:06d}' if seeds_given or not stems else ''
                made.append(Job(f'{folder}{"-".join(filter(None, (stem, end)))}.png', seed, target, label))
    return made


def common_names(several: Sequence['Pictures']) -> list[str]:
    """The names of the pictures that results are made for, [] without pictures. ValueError where two folders hold
    different numbers of them."""
    folders = [pictures for pictures in several if len(pictures) > 1] or list(several)
    for other in folders[1:]:
        if len(other) != len(folders[0]):
            raise ValueError(
                f'{folders[0].option} has {len(folders[0])} pictures and {other.option} {len(other)}; give as many, or '
                'one'
            )
    return folders[0].names if folders else []
