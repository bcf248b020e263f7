"""Images to evaluate: those of a folder or zip, and those that a network samples.

A source has ``num`` images, a ``resolution`` (H, W), and three methods: ``batches`` yields (positions, uint8 images
[B, C, H, W]), ``describe`` returns the facts that belong with a result, ``notes`` what its user should know.
"""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from ddn_networks import Network, generate
from dnnlib.archives import ImageArchive
from dnnlib.downloads import local_path
from dnnlib.images import BadImageError, to_uint8
from dnnlib.readers import printable
from dnnlib.util import file_sha256
from torch_utils import distributed as dist

THREADS = 4  # that decode images


class ImageSet(Protocol):
    num: int
    resolution: tuple[int, int]

    def batches(self, positions: Sequence[int], size: int) -> Iterator[tuple[Sequence[int], torch.Tensor]]: ...
    def describe(self) -> dict[str, Any]: ...
    def notes(self) -> list[str]: ...


class Files:
    """Images of a folder or zip, of one size, in the order of their names.

    Args:
        path: folder, zip, or URL of a zip.
        num: number of images; where there are more, ``seed`` chooses them. None takes all.
        seed: of the choice.
        least: number of images that are needed.
        most: number of images to choose where ``num`` is None and there are more.

    Raises:
        ValueError, OSError: there is no such archive, or fewer images than ``num`` or ``least``.
    """

    def __init__(self, path: str, num: int | None = None, seed: int = 0, least: int = 1, most: int | None = None):
        self.archive = ImageArchive(path)
        self.path, self.seed = path, seed
        held = len(self.archive)
        if num is not None and num > held:
            raise ValueError(f'{path} holds {held} images, fewer than the {num} asked for with --num')
        self.num = num if num is not None else min(held, held if most is None else most)
        if self.num < least:
            raise ValueError(f'{path} holds too few images ({self.num}): give {least} or more')
        self.shape = self.archive.image(0).shape
        self.resolution = self.shape[1:]
        self.indices = np.sort(np.random.RandomState(seed).permutation(held)[: self.num])

    def halves(self, seed: int) -> list['Files']:
        """Two random halves without an image in common."""
        order = np.random.RandomState(seed).permutation(self.indices)
        halves = [copy(self), copy(self)]
        for i, half in enumerate(halves):
            half.indices = np.sort(order[i::2][: self.num // 2])
            half.num = len(half.indices)
        return halves

    def require_shape(self, net: Network) -> None:
        """Raise ValueError where a network takes images of another shape."""
        self.archive.images(self.indices[:1].tolist(), (net.img_channels, *net.img_resolution))

    def image(self, index: int) -> np.ndarray:
        """uint8 [C, H, W] of one image of the archive. Raises BadImageError where it differs in shape."""
        image = self.archive.image(index)
        if image.shape != self.shape:
            (C, H, W), (channels, height, width) = image.shape, self.shape
            raise BadImageError(
                f'{self.archive.title(index)} is {W}x{H} with {C} channels, the first image is {width}x{height} with '
                f'{channels}: give them one size by dataset_tool.py --resolution'
            )
        return image

    def batches(self, positions: Sequence[int], size: int) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yield (positions, uint8 images [B, C, H, W]); reads one batch ahead."""
        parts = [positions[i : i + size] for i in range(0, len(positions), size)]
        with ThreadPoolExecutor(THREADS) as pool:

            def start(part: Sequence[int]) -> list[Future]:
                return [pool.submit(self.image, index) for index in self.indices[list(part)].tolist()]

            parts.append(())
            reading = start(parts[0])
            for part, following in itertools.pairwise(parts):
                current, reading = reading, start(following)
                yield part, torch.from_numpy(np.stack([future.result() for future in current]))

    def describe(self) -> dict[str, Any]:
        local, held = local_path(self.path), len(self.archive)
        of = {'path': str(self.path), 'num': self.num, 'available': held}
        of |= {'sha256': file_sha256(local) if local.is_file() else None}
        return of | ({'drawn with seed': self.seed} if self.num < held else {})

    def notes(self) -> list[str]:
        return [f'{printable(self.path)}: {note[0].lower()}{note[1:]}' for note in self.archive.notes]


class Samples:
    """Samples of a network with the seeds seed .. seed + num - 1, rounded to 8 bits as a PNG would hold them.

    A class-conditional network samples every class equally often (class = seed mod N); one whose condition is optional
    samples without it.

    Args:
        about: facts about the network for ``describe``.
        how: ``temperature``, ``top_p`` or ``uniform`` of ``Network.sample``.

    Raises:
        ValueError: the network needs another condition.
    """

    def __init__(self, net: Network, num: int, seed: int = 0, about: dict[str, Any] | None = None, **how: Any):
        self.net, self.num, self.seed, self.about, self.how = net, num, seed, about or {}, how
        self.resolution = net.img_resolution
        self.classes = net.conditions.num_classes
        if self.classes is None:
            require_no_condition(net, self.about.get('network', 'the network'))

    def condition(self, positions: Sequence[int]) -> torch.Tensor | None:
        """The condition [B, c, H, W] of some samples, or None."""
        if self.classes is None:
            return None
        return self.net.make_condition((self.seed + torch.tensor(list(positions))) % self.classes)

    def batches(self, positions: Sequence[int], size: int) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """Yield (positions, uint8 images [B, C, H, W])."""
        seeds = range(self.seed, self.seed + self.num)
        for batch in generate.samples(self.net, seeds, size, self.condition, positions=positions, **self.how):
            yield batch.positions, rounded(batch.images, 'samples')

    def describe(self) -> dict[str, Any]:
        return {**self.about, **self.how, 'num': self.num, 'seeds': f'{self.seed}-{self.seed + self.num - 1}'}

    def notes(self) -> list[str]:
        return []


def require_no_condition(net: Network, name: str) -> None:
    """Raise ValueError where a network does not work without a condition."""
    if net.condition_channels and not net.condition_optional:
        raise ValueError(f'{name} needs a condition: make its images by generate.py and evaluate them as files')


def rounded(images: torch.Tensor, what: str) -> torch.Tensor:
    """Images in [-1, 1] as uint8 on the CPU. Raises ValueError where they are not finite."""
    if not images.isfinite().all():
        raise ValueError(f'the {what} of this network are not finite (NaN or infinite)')
    return to_uint8(images).cpu()


def shares(source: ImageSet, size: int, title: str) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
    """Yield this rank's batches of a source, (positions, uint8 images [B, 1 or 3, H, W]), and show progress.

    Raises ValueError for other numbers of channels.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    starts = range(rank * size, source.num, world * size)
    mine = [position for start in starts for position in range(start, min(start + size, source.num))]
    with tqdm(total=len(mine), desc=title, unit='img', delay=3, leave=False, disable=rank > 0) as bar:
        for positions, images in source.batches(mine, size):
            if images.shape[1] not in (1, 3):
                raise ValueError(f'pictures have {images.shape[1]} channels; detectors read 1 (grey) or 3 (RGB)')
            yield positions, images
            bar.update(len(positions))


def read(source: ImageSet, positions: Sequence[int]) -> torch.Tensor:
    """uint8 [B, C, H, W] of some images of a source."""
    return torch.cat([images for _, images in source.batches(list(positions), max(1, len(positions)))])
