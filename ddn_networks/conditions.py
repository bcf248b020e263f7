"""Conditions of a network: a class, a grey picture, edges, a small picture, a picture with a hole, or another picture.

Legend: B images, C image channels, c condition channels, H x W pixels, N classes.

A network stores the names of its conditions, such as 'class:10' or 'color', in its snapshots. Together they make one
image-like tensor [B, c, H, W], the first's channels first. A condition has no parameters: it is added to channels of
the features, once per scale (see ``DDN``).

A kind of condition is one class in ``CONDITIONS``; nothing else needs to know it. docs/conditions.md compares them.
"""

import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ddn_networks import pixel_maps
from ddn_networks.aliases import old_arguments, old_names

Size = tuple[int, int]
Labels = torch.Tensor | Sequence[int] | int


class ConditionDraw(NamedTuple):
    """Random numbers of one image's condition in training, and their values elsewhere: the columns of a row."""

    red: float = 1 / 3
    green: float = 1 / 3
    blue: float = 1 / 3
    threshold: float = 0.75
    top: float = 0.25  # of the hidden box, in parts of the side
    left: float = 0.25
    height: float = 0.5
    width: float = 0.5
    kept: float = 1.0  # 0: this image gets no condition


PLAIN = ConditionDraw()
LABELS = ('class', 'vector')  # what a condition takes that is not made of a picture
KEPT = ConditionDraw._fields.index('kept')

# One class per kind.


class Condition:
    """Base class of all kinds.

    Class attributes:
        help: one line.
        takes: what it is made of: 'class' number, 'vector' of numbers, 'image' (the training image itself) or 'pair'
            (another picture).
        sized: the name ends in a number, 'lowres:8': classes, numbers, pixels or channels.
        ready: key of pictures that are this condition already (see ``from_ready``), or ''.
        shows_all: a given picture has no details that the condition hides.
        file_channels: channels with which the user's picture is read; None for 1 or 3, as the file has.
        num_random: uniform numbers in [0, 1) of its own that an image draws in training.

    Attributes: name, kind, size (the number, or 0), img_channels, optional (the network also works without), channels.
    """

    help: str
    takes: str = 'image'
    sized: bool = False
    ready: str = ''
    shows_all: bool = False
    file_channels: int | None = None
    num_random: int = 0
    channels: int = 1

    def __init__(self, name: str, img_channels: int, optional: bool = False):
        self.name, self.img_channels, self.optional = name, img_channels, optional
        self.kind, _, number = name.partition(':')
        self.size = int(number or 0)

    def planes(self, source: torch.Tensor, size: Size, draws: torch.Tensor) -> torch.Tensor:
        """[B, c, H, W], or [B, c, 1, 1] of labels; ``draws``: [1 or B, 9 + num_random], the columns of
        ``ConditionDraw`` and the numbers of its own (0.5 outside training)."""
        raise NotImplementedError

    def from_ready(self, picture: torch.Tensor, size: Size) -> torch.Tensor:
        """[B, c, H, W] of pictures given under the key ``ready``."""
        raise NotImplementedError

    def of_file(self, picture: torch.Tensor) -> torch.Tensor:
        """The picture for ``planes`` of one that a user's file holds, [1, c, h, w] with ``file_channels``. ValueError
        where the file does not serve."""
        return picture

    def look(self, planes: torch.Tensor) -> torch.Tensor | None:
        """The condition [B, c, H, W] as a picture [B, C, H, W] to look at; None for labels."""
        if planes.shape[1] == 4 and self.img_channels == 3:
            planes = planes[:, :3]
        known = planes.shape[1] in (1, 3) or planes.shape[1] == self.img_channels
        return pixel_maps.to_channels(planes if known else planes[:, :1], self.img_channels)

    @property
    def takes_labels(self) -> bool:
        return self.takes in LABELS


class Class(Condition):
    """The class number in base 4: two bits a constant plane, most significant first, digits at linspace(-1, 1, 4).

    Class 0 is all zeros, as published. Where the condition is optional, zeros say "no condition", so class n is written
    as n + 1.
    """

    help = 'class number in base 4, a plane for each digit'
    takes = 'class'
    sized = True

    @property
    def channels(self) -> int:
        return max(1, ((self.size + self.optional - 1).bit_length() + 1) // 2)

    def check(self, labels: Labels | None) -> torch.Tensor:
        """Class numbers as int64 [B]. ValueError where they are missing or out of range."""
        wanted = f'this network is conditioned on {self.size} classes: its labels are numbers 0..{self.size - 1}'
        values = None if labels is None else torch.as_tensor(labels)
        if values is None or values.is_floating_point() or values.ndim > 1:
            raise ValueError(f'{wanted}, {_found(values)}')
        values = values.reshape(-1)
        wrong = ((values < 0) | (values >= self.size)).nonzero()
        if len(wrong):
            raise ValueError(f'{wanted}, not {int(values[wrong[0, 0]])} (label {int(wrong[0, 0])} of {len(values)})')
        return values.long()

    def planes(self, source: Labels, size: Size, draws: torch.Tensor) -> torch.Tensor:
        values = self.check(source)[:, None] + int(self.optional)  # [B, 1]
        shifts = 2 * torch.arange(self.channels - 1, -1, -1, device=values.device)
        digits = (values >> shifts) & 3  # [B, c]
        return torch.where(values == 0, 0.0, digits / 1.5 - 1)[:, :, None, None]

    def look(self, planes: torch.Tensor) -> None:
        return None


class OneHot(Class):
    """A plane for each class, 1 for its own and 0 elsewhere: more channels, which small networks learn from faster."""

    help = 'class number, a plane for each class'

    @property
    def channels(self) -> int:
        return self.size

    def planes(self, source: Labels, size: Size, draws: torch.Tensor) -> torch.Tensor:
        return F.one_hot(self.check(source), self.size).float()[:, :, None, None]


class Vector(Class):
    """D numbers, each a constant plane as it is: they should be about in [-1, 1]."""

    help = 'label vector, a plane for each number'
    takes = 'vector'

    @property
    def channels(self) -> int:
        return self.size

    def check(self, labels: Labels | None) -> torch.Tensor:
        """Vectors as float32 [B, D]. ValueError where they are missing or of another width."""
        wanted = f'this network is conditioned on vectors: its labels are {self.size} numbers each'
        values = None if labels is None else torch.as_tensor(labels)
        right = values is not None and values.is_floating_point() and values.ndim in (1, 2)
        if not right or values.shape[-1] != self.size:
            raise ValueError(f'{wanted}, {_found(values)}')
        if not values.isfinite().all():
            raise ValueError(f'{wanted}, and these hold NaN or infinite ones')
        return values.reshape(-1, self.size).float()

    def planes(self, source: Labels, size: Size, draws: torch.Tensor) -> torch.Tensor:
        return self.check(source)[:, :, None, None]


class Color(Condition):
    """The picture in grey: the plain mean of its colours, in training with random weights that sum to 1."""

    help = 'the picture in grey, to be coloured'

    def __init__(self, name: str, img_channels: int, optional: bool = False):
        super().__init__(name, img_channels, optional)
        if img_channels == 1:
            raise ValueError(f'condition {name!r}: the images are grey already, nothing would be left to colour')

    def planes(self, source: torch.Tensor, size: Size, draws: torch.Tensor) -> torch.Tensor:
        return pixel_maps.fit(_grey(source, draws[:, :3]), size)


class Edge(Condition):
    """1 where the Sobel magnitude of the grey picture is above 0.75 (in training 0.5 to 1), -1 elsewhere."""

    help = 'edges of the picture'
    ready = 'drawn'

    def planes(self, source: torch.Tensor, size: Size, draws: torch.Tensor) -> torch.Tensor:
        grey = pixel_maps.fit(_grey(source), size)
        return torch.where(pixel_maps.sobel(grey) > draws[:, 3, None, None, None], 1.0, -1.0)

    def from_ready(self, picture: torch.Tensor, size: Size) -> torch.Tensor:
        """A drawn edge map: where a line passes through a pixel, its largest value counts."""
        grey = _grey(picture)
        shrinks = any(a > b for a, b in zip(grey.shape[2:], size, strict=True))
        grey = F.adaptive_max_pool2d(grey, size) if shrinks else pixel_maps.upsample(grey, size)
        return torch.where(grey > 0, 1.0, -1.0)


class PublishedEdge(Edge):
    """Edges as the published networks have them: of the pixels that have all their neighbours, [B, 1, H - 2, W - 2]."""

    help = 'edges of the picture without its outermost pixels'

    def planes(self, source: torch.Tensor, size: Size, draws: torch.Tensor) -> torch.Tensor:
        return self._inside(super().planes(source, size, draws))

    def from_ready(self, picture: torch.Tensor, size: Size) -> torch.Tensor:
        return self._inside(super().from_ready(picture, size))

    def _inside(self, planes: torch.Tensor) -> torch.Tensor:
        if min(planes.shape[2:]) < 3:
            raise ValueError(f'condition {self.name!r} needs 3 pixels a side, not {list(planes.shape[2:])}')
        return planes[:, :, 1:-1, 1:-1]


class LowRes(Condition):
    """The picture area-resized so that its longer side has N pixels, and bilinearly back."""

    help = 'the picture at N pixels of its longer side'
    sized = True

    @property
    def channels(self) -> int:
        return self.img_channels

    def planes(self, source: torch.Tensor, size: Size, draws: torch.Tensor) -> torch.Tensor:
        low = tuple(max(1, min(side, round(self.size * side / max(size)))) for side in size)
        return pixel_maps.upsample(pixel_maps.fit(_colours(source, self.img_channels), low), size)


class Mask(Condition):
    """The picture, zero where it is hidden, and a plane that is 1 where it is known and -1 elsewhere.

    In training a random box is hidden, elsewhere the middle; a picture with a channel more than the images is known
    where that is above 0.
    """

    help = 'the picture with a hole in it'
    file_channels = 4

    @property
    def channels(self) -> int:
        return self.img_channels + 1

    def planes(self, source: torch.Tensor, size: Size, draws: torch.Tensor) -> torch.Tensor:
        picture = source
        if source.shape[1] == self.channels:
            picture, known = source[:, :-1], (pixel_maps.fit(source[:, -1:], size) > 0).to(source)
        else:
            known = 1 - _box(draws, size).to(source)
        visible = pixel_maps.fit(_colours(picture, self.img_channels), size) * known
        return torch.cat([visible, (2 * known - 1).expand(len(visible), -1, -1, -1)], 1)

    def of_file(self, picture: torch.Tensor) -> torch.Tensor:
        if (picture[:, 3] > 0).all():
            raise ValueError('it hides nothing: make transparent what is to be invented')
        return torch.cat([pixel_maps.to_channels(picture[:, :3], self.img_channels), picture[:, 3:]], 1)

    def look(self, planes: torch.Tensor) -> torch.Tensor:
        return super().look(planes[:, :-1])


class Pair(Condition):
    """Another picture of N channels, as it is: any image-to-image task."""

    help = 'another picture for each image'
    takes = 'pair'
    sized = True
    shows_all = True

    @property
    def channels(self) -> int:
        return self.size

    @property
    def file_channels(self) -> int:
        return self.size

    def planes(self, source: torch.Tensor, size: Size, draws: torch.Tensor) -> torch.Tensor:
        if source.shape[1] != self.channels:
            raise ValueError(
                f'this network is conditioned on a picture of {self.channels} channels, not {source.shape[1]}'
            )
        return pixel_maps.fit(source, size)


CONDITIONS: dict[str, type[Condition]] = {
    'class': Class,
    'onehot': OneHot,
    'vector': Vector,
    'color': Color,
    'edge': Edge,
    'published-edge': PublishedEdge,
    'lowres': LowRes,
    'mask': Mask,
    'image': Pair,
}


@old_arguments(names='name')
def parse(name: str, img_channels: int, optional: bool = False) -> Condition:
    """The condition of a name such as 'class:10', for images of C channels. Raises ValueError."""
    if not isinstance(name, str):
        new = 'ddn_networks.condition_set.ConditionSet'
        warnings.warn(f'ddn_networks.conditions.parse of several names is now {new}', DeprecationWarning, stacklevel=3)
        return [parse(one, img_channels, optional) for one in name]
    match = re.fullmatch(r'([^:]*)(?::([1-9]\d{0,8}))?', name)
    kind = CONDITIONS.get(match[1]) if match else None
    if kind is None or kind.sized != bool(match[2]):
        known = ', '.join(key + ':N' * kind.sized for key, kind in CONDITIONS.items())
        raise ValueError(f'unknown condition {name!r}; choose from {known}, with N of at least 1')
    return kind(name, img_channels, optional)


def _found(values: torch.Tensor | None) -> str:
    if values is None:
        return 'there are none'
    if values.ndim == 2:
        return f'not vectors of {values.shape[1]}'
    kind = 'numbers with a fraction' if values.is_floating_point() else 'class numbers'
    return f'not {kind} {list(values.shape)}'


def _colours(picture: torch.Tensor, img_channels: int) -> torch.Tensor:
    if picture.shape[1] == 4 and img_channels == 3:
        picture = picture[:, :3]
    return pixel_maps.to_channels(picture, img_channels)


def _grey(picture: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """[B, 1, h, w]: the plain mean of the colours, or weighted by [1 or B, 3]; alpha does not count."""
    picture = picture[:, :3] if picture.shape[1] == 4 else picture
    if picture.shape[1] == 1 or weights is None:
        return picture.mean(1, keepdim=True)
    if picture.shape[1] != 3:
        raise ValueError(f'a picture of {picture.shape[1]} channels has no grey; give 1, 3 or 4')
    return (picture * weights[:, :, None, None]).sum(1, keepdim=True)


def _box(draws: torch.Tensor, size: Size) -> torch.Tensor:
    """[1 or B, 1, H, W]: 1 in the hidden box of each row of draws, 0 outside."""
    y, x = ((torch.arange(n, device=draws.device) + 0.5) / n for n in size)
    top, left, height, width = (draws[:, i, None] for i in range(4, 8))
    inside_y, inside_x = (y >= top) & (y < top + height), (x >= left) & (x < left + width)  # [B, H], [B, W]
    return inside_y[:, None, :, None] & inside_x[:, None, None, :]


__getattr__ = old_names(__name__)
