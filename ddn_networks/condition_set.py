"""The conditions of a network as one object: their channels, side by side, and how they are made and checked.

Legend: B images, C image channels, c condition channels, H x W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch

from ddn_networks import pixel_maps
from ddn_networks.conditions import KEPT, PLAIN, Condition, Labels, Size, parse

Images = torch.Tensor | Mapping[str, torch.Tensor]


class ConditionSet:
    """All conditions of a network, side by side.

    Args:
        names: what they are, in the order of their channels.
        img_channels: C of the network's images.
        optional: the network also works without them.
        unnamed: channels of a condition without a name, which users make themselves; 0 with names.

    Iterates over its ``Condition``s. Attributes: channels, optional. Raises ValueError naming the first wrong name.
    """

    def __init__(self, names: Sequence[str], img_channels: int, optional: bool = False, unnamed: int = 0):
        if names and unnamed:
            raise ValueError(f'conditions {list(names)} say how many channels they take: leave condition_channels out')
        self.parts = [parse(name, img_channels, optional) for name in names]
        kinds = [part.kind for part in self.parts]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ValueError(f'condition {kind!r} is given twice')
        self.channels = unnamed + sum(part.channels for part in self.parts)
        self.optional = bool(optional)

    def __iter__(self) -> Iterator[Condition]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __str__(self) -> str:
        return ' and '.join(part.name for part in self.parts) or 'nothing'

    @property
    def labels(self) -> Condition | None:
        """The first condition that is made of labels, or None."""
        return next((part for part in self.parts if part.takes_labels), None)

    @property
    def pictures(self) -> list[Condition]:
        """The conditions that are made of pictures."""
        return [part for part in self.parts if not part.takes_labels]

    @property
    def num_classes(self) -> int | None:
        """N where a class is the only condition; None elsewhere."""
        return self.parts[0].size if len(self.parts) == 1 and self.parts[0].takes == 'class' else None

    def draw(self, batch_size: int, dropout: float, generator: torch.Generator) -> torch.Tensor:
        """The random numbers of a training step, float32 [B, 9 + those of the conditions' own]: a ``ConditionDraw`` for
        each image. Grey weights and threshold are sampled once for the batch, as published; boxes, and with probability
        ``dropout`` "no condition", per image.

        The whole table is sampled at once, so that the ranks and rounds of one step can each take their rows of it.
        """
        once = torch.rand(4, generator=generator, dtype=torch.float64)
        each = torch.rand(batch_size, 5, generator=generator, dtype=torch.float64)
        own = torch.rand(batch_size, self._num_random, generator=generator, dtype=torch.float64)
        grey = once[:3] / once[:3].sum()
        size = 0.25 + 0.5 * each[:, :2]
        place = each[:, 2:4] * (1 - size)
        shared = torch.cat([grey, 0.5 + 0.5 * once[3:]]).expand(batch_size, -1)
        kept = (each[:, 4:] >= dropout).double()
        return torch.cat([shared, place, size, kept, own], 1).float()

    def sources(self, images: torch.Tensor, pairs: torch.Tensor | None = None) -> dict[str, torch.Tensor] | None:
        """``images`` of ``make``, of which of images [B, C, H, W] and their pairs each condition needs; None for
        labels alone."""
        sources = {part.kind: pairs if part.takes == 'pair' else images for part in self.pictures}
        return {kind: source for kind, source in sources.items() if source is not None} or None

    def make(
        self,
        size: Size,
        labels: Labels | None = None,
        images: Images | None = None,
        draws: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """The condition [B, c, H, W] of labels and pictures; B of 1 serves any batch. None for nothing where the
        condition is optional. A published edge map is smaller, [B, c, H - 2, W - 2], unless there is another picture.

        Args:
            size: (H, W) of the network's images.
            labels: class numbers, an int or [B]; or vectors [D] or [B, D] float.
            images: pictures [B, c', h, w] float in [-1, 1] of any size, from which every picture condition is made; or
                several by the kind of condition, {'color': grey, 'edge': picture}; {'drawn': edges} is an edge map.
            draws: rows of ``draw``; None makes conditions as they are outside training.

        Raises:
            ValueError: something missing, out of range or misshapen, in one line.
        """
        if not self.parts:
            raise ValueError(
                f'this network has {self.channels} condition channels without a name: make their tensor yourself'
                if self.channels
                else 'this network was trained without a condition'
            )
        if self.optional and labels is None and images is None:
            return None
        for given, wanted, words in ((labels, self.labels, 'labels'), (images, self.pictures, 'pictures')):
            if given is not None and not wanted:
                raise ValueError(f'this network is conditioned on {self}: it takes no {words}')
        rows = torch.tensor([[*PLAIN, *[0.5] * self._num_random]]) if draws is None else draws
        made, first = [], len(PLAIN)
        for part in self.parts:
            own = rows[:, first : first + part.num_random]
            made.append(self._made(part, labels, images, size, torch.cat([rows[:, : len(PLAIN)], own], 1)))
            first += part.num_random
        device = next((x.device for x in made if x.device.type != 'cpu'), torch.device('cpu'))
        B = max(len(x) for x in made)
        for part, x in zip(self.parts, made, strict=True):
            if len(x) not in (1, B):
                raise ValueError(f'{len(x)} conditions {part.name!r} for {B} images: give one, or one each')
        sizes = {x.shape[2:] for part, x in zip(self.parts, made, strict=True) if not part.takes_labels}
        if len(sizes) == 1:
            size = sizes.pop()
        made = [x if part.takes_labels else pixel_maps.fit(x, size) for part, x in zip(self.parts, made, strict=True)]
        condition = torch.cat([x.to(device).expand(B, -1, *size) for x in made], 1)  # [B, c, H, W]
        return condition if draws is None else condition * rows[:, KEPT].to(device)[:, None, None, None]

    def check(self, condition: torch.Tensor | None, batch_size: int) -> None:
        """ValueError where a condition is missing, too much or misshapen."""
        if condition is None and (self.optional or not self.channels):
            return
        shape = None if condition is None else tuple(condition.shape)
        if shape is None or not self.channels or len(shape) != 4:
            right = False
        else:
            right = shape[0] in (1, batch_size) and shape[1] == self.channels
        if not right:
            kinds = f' ({self}; see make_condition)' if self.parts else ''
            wanted = f'one [{batch_size} or 1, {self.channels}, H, W]' if self.channels else 'none'
            raise ValueError(
                f'this network has {self.channels} condition channels{kinds} and wants {wanted}; the condition given '
                f'is {shape}'
            )

    def look(self, condition: torch.Tensor, size: Size) -> torch.Tensor | None:
        """The first picture among the conditions [B, c, h, w], to look at: [B, C, *size]; None where all are labels."""
        first = 0
        for part in self.parts:
            picture = part.look(condition[:, first : first + part.channels])
            if picture is not None:
                return pixel_maps.fit(picture, size)
            first += part.channels
        return None

    @property
    def _num_random(self) -> int:
        return sum(part.num_random for part in self.parts)

    def _made(
        self, part: Condition, labels: Labels | None, images: Images | None, size: Size, draws: torch.Tensor
    ) -> torch.Tensor:
        """[B, c, H, W] or [B, c, 1, 1] of one condition."""
        if part.takes_labels:
            return part.planes(labels, size, draws)
        source, ready = images, False
        if isinstance(images, Mapping):
            ready = part.ready in images
            source = images.get(part.ready if ready else part.kind)
        if source is None:
            raise ValueError(f'this network is conditioned on {self}: there is no picture for {part.kind!r}')
        source = pixel_maps.checked(source)
        return part.from_ready(source, size) if ready else part.planes(source, size, draws.to(source.device))
