"""What a network is told in training: classes, grey pictures, edges, small pictures, holes, or any picture.

Legend: B images, C image channels, c condition channels, H x W pixels, N classes.

A network names its conditions in plain words, which its snapshot keeps; together they make one image-like tensor
[B, c, H, W], the first's channels first. A condition has no parameters of its own: it is added to channels of the
features, once per scale (see ``DDN``).

    class:N    a class number of N, in base 4: two bits a constant plane, most significant first, digits at
               linspace(-1, 1, 4); class 0 is all zeros, as published. Where the condition is optional, zeros say
               "no condition", so class n is written as n + 1.
    onehot:N   the same with a plane for each class, 1 for its own and 0 elsewhere: more channels, which small networks
               learn from much faster (docs/conditions.md).
    vector:D   D numbers, each a constant plane as it is: bring them to about [-1, 1] yourself.
    color      the picture in grey: the plain mean of its colours, in training with random weights that sum to 1.
    edge       where the Sobel magnitude of the grey picture is above 0.75 (in training 0.5 to 1), 1, elsewhere -1.
    lowres:N   the picture area-resized so that its longer side has N pixels, and bilinearly back.
    mask       the picture, zero where it is hidden, and a plane that is 1 where it is known and -1 elsewhere.
    image:C'   another picture of C' channels, as it is: any image-to-image task.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ddn_networks import pixel_maps

NEEDS_SIZE = ('class', 'onehot', 'vector', 'lowres', 'image')
CLASSES = ('class', 'onehot')  # two ways to write a class number
LABELS = (*CLASSES, 'vector')
OF_THE_IMAGE = ('color', 'edge', 'lowres', 'mask')  # made of the training image itself
DRAWN = 'drawn'  # key of ``make``'s images: an edge map itself, in place of a picture whose edges are sought

Images = torch.Tensor | Mapping[str, torch.Tensor]
Labels = torch.Tensor | Sequence[int] | int


class Part(NamedTuple):
    """One condition of a network: its name, what that says, and how many channels it takes."""

    name: str
    kind: str
    size: int
    channels: int


def parse(names: Sequence[str], img_channels: int, optional: bool = False) -> list[Part]:
    """The conditions that ``names`` name, for images of C channels. ValueError names the first that makes no sense."""
    parts = []
    for name in names:
        match = re.fullmatch(r'(\w+)(?::(\d+))?', name)
        kind, size = (match[1], int(match[2] or 0)) if match else (name, 0)
        if kind not in (*LABELS, *OF_THE_IMAGE, 'image') or (kind in NEEDS_SIZE) != bool(size):
            known = ', '.join(k + (':N' if k in NEEDS_SIZE else '') for k in (*LABELS, *OF_THE_IMAGE, 'image'))
            raise ValueError(f'{name!r} is no condition of a network; there are {known}, with N of at least 1')
        if kind == 'color' and img_channels == 1:
            raise ValueError("condition 'color': the images are grey already, nothing would be left to draw")
        channels = {
            'class': _num_digits(size + optional),
            'color': 1,
            'edge': 1,
            'lowres': img_channels,
            'mask': img_channels + 1,
        }.get(kind, size)
        parts.append(Part(name, kind, size, channels))
    kinds = [part.kind for part in parts]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValueError(f'condition {kind!r} is given twice')
    return parts


def classes_alone(parts: Sequence[Part]) -> int | None:
    """How many classes there are, where a class is all that a network is told; None where it is not."""
    return parts[0].size if len(parts) == 1 and parts[0].kind in CLASSES else None


# What chance decides of a condition in training.


class ConditionDraw(NamedTuple):
    """Columns of a row that says how the condition of one image is made."""

    red: float = 1 / 3
    green: float = 1 / 3
    blue: float = 1 / 3
    threshold: float = 0.75
    top: float = 0.25  # of the hidden box, in parts of the side
    left: float = 0.25
    height: float = 0.5
    width: float = 0.5
    kept: float = 1.0  # 0: this image gets no condition at all


PLAIN = ConditionDraw()


def draw(batch_size: int, dropout: float, generator: torch.Generator) -> torch.Tensor:
    """A row of ``ConditionDraw`` for each image of a training step, [B, 9] float32. Grey weights and threshold are
    drawn once for the batch, as published; boxes, and with probability ``dropout`` "no condition", per image.

    The whole table is drawn at once, so that the ranks and rounds of one step can each take their rows of it.
    """
    once = torch.rand(4, generator=generator, dtype=torch.float64)
    each = torch.rand(batch_size, 5, generator=generator, dtype=torch.float64)
    grey = once[:3] / once[:3].sum()
    size = 0.25 + 0.5 * each[:, :2]
    place = each[:, 2:4] * (1 - size)
    shared = torch.cat([grey, 0.5 + 0.5 * once[3:]]).expand(batch_size, -1)
    kept = (each[:, 4:] >= dropout).double()
    return torch.cat([shared, place, size, kept], 1).float()


# Making conditions.


def make(
    parts: Sequence[Part],
    img_channels: int,
    size: tuple[int, int],
    labels: Labels | None = None,
    images: Images | None = None,
    chance: torch.Tensor | None = None,
    optional: bool = False,
) -> torch.Tensor | None:
    """The condition [B, c, H, W] of labels and pictures; B of 1 serves any batch.

    Args:
        parts: what ``parse`` gave for the network.
        img_channels, size: C and (H, W) of the network's images.
        labels: class numbers, an int or [B]; or vectors [D] or [B, D] float.
        images: pictures [B, c', h, w] float in [-1, 1] of any size, from which every picture condition is made; or
            several by the kind of condition, {'color': grey, 'edge': picture}; {'drawn': edges} is an edge map itself.
            A picture for 'mask' with a channel more than the images says by it where it is known (above 0).
        chance: rows of ``draw`` [B, 9]; None makes conditions as they are outside of training.
        optional: the network works without: then neither labels nor images give None.

    Raises:
        ValueError: something missing, out of range or misshapen, in one line.
    """
    if optional and labels is None and images is None:
        return None
    for given, wanted, words in ((labels, needs_labels(parts), 'labels'), (images, needs_images(parts), 'pictures')):
        if given is not None and not wanted:
            raise ValueError(f'this network is conditioned on {listed(parts)}: {words} say nothing to it')
    rows = torch.tensor([PLAIN]) if chance is None else chance
    made = []
    for part in parts:
        if part.kind in LABELS:
            made.append(_of_labels(part, labels, optional)[:, :, None, None])
            continue
        source = images
        if isinstance(images, Mapping):
            drawn = part.kind == 'edge' and DRAWN in images
            source = images.get(DRAWN if drawn else part.kind)
            if drawn:
                made.append(_drawn_edges(source, size))
                continue
        if source is None:
            raise ValueError(f'this network is conditioned on {listed(parts)}: there is no picture for {part.kind!r}')
        made.append(_of_picture(part, pixel_maps.checked(source), img_channels, size, rows))
    device = next((x.device for x in made if x.device.type != 'cpu'), torch.device('cpu'))
    B = max(len(x) for x in made)
    for part, x in zip(parts, made, strict=True):
        if len(x) not in (1, B):
            raise ValueError(f'{len(x)} conditions {part.name!r} for {B} images: give one, or one each')
    condition = torch.cat([x.to(device).expand(B, -1, *size) for x in made], 1)  # [B, c, H, W]
    return condition if chance is None else condition * rows[:, -1].to(device)[:, None, None, None]


def needs_labels(parts: Sequence[Part]) -> bool:
    return any(part.kind in LABELS for part in parts)


def needs_images(parts: Sequence[Part]) -> bool:
    return any(part.kind not in LABELS for part in parts)


def listed(parts: Sequence[Part]) -> str:
    """The conditions in words."""
    return ' and '.join(part.name for part in parts) or 'nothing'


def check_labels(part: Part, labels: Labels | None) -> torch.Tensor:
    """Labels as int64 [B] or, for 'vector', float32 [B, D]. ValueError where they are missing, out of range, or of
    another width."""
    if part.kind in CLASSES:
        wanted = f'this network is conditioned on {part.size} classes: its labels are numbers 0..{part.size - 1}'
        values = None if labels is None else torch.as_tensor(labels)
        if values is None or values.is_floating_point() or values.ndim > 1:
            got = 'there are none' if values is None else f'not {_words(values)}'
            raise ValueError(f'{wanted}, {got}')
        values = values.reshape(-1)
        wrong = ((values < 0) | (values >= part.size)).nonzero()
        if len(wrong):
            raise ValueError(f'{wanted}, not {int(values[wrong[0, 0]])} (label {int(wrong[0, 0])} of {len(values)})')
        return values.long()
    wanted = f'this network is conditioned on vectors: its labels are {part.size} numbers each'
    if labels is None:
        raise ValueError(f'{wanted}, there are none')
    values = torch.as_tensor(labels)
    if values.ndim not in (1, 2) or values.shape[-1] != part.size or not values.is_floating_point():
        raise ValueError(f'{wanted}, not {_words(values)}')
    if not values.isfinite().all():
        raise ValueError(f'{wanted}, and these hold NaN or infinite ones')
    return values.reshape(-1, part.size).float()


def _words(values: torch.Tensor) -> str:
    if values.ndim == 2:
        return f'vectors of {values.shape[1]}'
    kind = 'numbers with a fraction' if values.is_floating_point() else 'class numbers'
    return f'{kind} {list(values.shape)}'


def _num_digits(num_classes: int) -> int:
    """Base-4 digits that tell so many classes apart."""
    return max(1, math.ceil((num_classes - 1).bit_length() / 2))


def _of_labels(part: Part, labels: Labels | None, optional: bool) -> torch.Tensor:
    """[B, c] the planes' values."""
    values = check_labels(part, labels)
    if part.kind == 'vector':
        return values
    if part.kind == 'onehot':
        return F.one_hot(values, part.size).float()
    values = values[:, None] + int(optional)  # [B, 1]
    shifts = 2 * torch.arange(part.channels - 1, -1, -1, device=values.device)
    digits = (values >> shifts) & 3  # [B, c]
    return torch.where(values == 0, 0.0, digits / 1.5 - 1)


def _of_picture(
    part: Part, picture: torch.Tensor, img_channels: int, size: tuple[int, int], rows: torch.Tensor
) -> torch.Tensor:
    """[B, c, H, W] of a picture [B, c', h, w]."""
    rows = rows.to(picture.device)
    if part.kind == 'lowres':
        low = tuple(max(1, min(side, round(part.size * side / max(size)))) for side in size)
        return pixel_maps.upsample(pixel_maps.fit(_colours(picture, img_channels), low), size)
    if part.kind == 'mask':
        known = _known(picture, img_channels, size, rows)
        masked = picture.shape[1] == img_channels + 1
        visible = pixel_maps.fit(_colours(picture[:, :-1] if masked else picture, img_channels), size) * known
        return torch.cat([visible, (2 * known - 1).expand(len(visible), -1, -1, -1)], 1)
    if part.kind == 'image':
        if picture.shape[1] != part.channels:
            raise ValueError(f'this network is told a picture of {part.channels} channels, not {picture.shape[1]}')
        return pixel_maps.fit(picture, size)
    grey = pixel_maps.fit(_grey(picture, rows[:, :3] if part.kind == 'color' else None), size)
    if part.kind == 'color':
        return grey
    return torch.where(sobel(grey) > rows[:, 3, None, None, None], 1.0, -1.0)


def _colours(picture: torch.Tensor, img_channels: int) -> torch.Tensor:
    if picture.shape[1] == 4 and img_channels == 3:
        picture = picture[:, :3]
    return pixel_maps.to_channels(picture, img_channels)


def _grey(picture: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """[B, 1, h, w]: the plain mean of the colours, or weighted by [1 or B, 3]; alpha does not count."""
    picture = picture[:, :3] if picture.shape[1] == 4 else picture
    if picture.shape[1] == 1 or weights is None:
        return picture.mean(1, keepdim=True)
    if picture.shape[1] != 3:
        raise ValueError(f'a picture of {picture.shape[1]} channels has no grey; give 1, 3 or 4')
    return (picture * weights[:, :, None, None]).sum(1, keepdim=True)


def sobel(grey: torch.Tensor) -> torch.Tensor:
    """[B, 1, H, W] the magnitude of its Sobel gradient; borders are repeated."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).to(grey)
    padded = F.pad(grey, (1, 1, 1, 1), mode='replicate')
    return F.conv2d(padded, torch.stack([kernel, kernel.t()])[:, None]).norm(dim=1, keepdim=True)


def _drawn_edges(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """An edge map in -1 and 1 at ``size``: where a line passes through a pixel, its largest value counts."""
    grey = _grey(pixel_maps.checked(picture), None)
    shrinks = any(a > b for a, b in zip(grey.shape[2:], size, strict=True))
    grey = F.adaptive_max_pool2d(grey, size) if shrinks else pixel_maps.upsample(grey, size)
    return torch.where(grey > 0, 1.0, -1.0)


def _known(picture: torch.Tensor, img_channels: int, size: tuple[int, int], rows: torch.Tensor) -> torch.Tensor:
    """[1 or B, 1, H, W]: 1 where the picture is known, 0 where it is hidden."""
    if picture.shape[1] == img_channels + 1:
        return (pixel_maps.fit(picture[:, -1:], size) > 0).to(picture)
    y, x = ((torch.arange(n, device=rows.device) + 0.5) / n for n in size)
    top, left, height, width = (rows[:, i, None] for i in range(4, 8))
    inside_y, inside_x = (y >= top) & (y < top + height), (x >= left) & (x < left + width)  # [B, H], [B, W]
    return 1.0 - (inside_y[:, None, :, None] & inside_x[:, None, None, :]).to(picture)


def as_picture(parts: Sequence[Part], condition: torch.Tensor, img_channels: int) -> torch.Tensor | None:
    """The first picture among the conditions [B, c, H, W], to look at: [B, C, H, W]; None where all are labels."""
    first = 0
    for part in parts:
        if part.kind not in LABELS:
            picture = condition[:, first : first + part.channels]
            picture = picture[:, :img_channels] if part.kind == 'mask' else picture
            if part.channels == 4 and img_channels == 3:
                picture = picture[:, :3]
            known = picture.shape[1] in (1, 3) or picture.shape[1] == img_channels
            return pixel_maps.to_channels(picture if known else picture[:, :1], img_channels)
        first += part.channels
    return None
