"""The functions of ``conditions`` at revision 002c5b3, for code that was written against it (see ``aliases``)."""

from collections.abc import Sequence

import torch

from ddn_networks.condition_set import ConditionSet, Images
from ddn_networks.conditions import CONDITIONS, Condition, Edge, Labels, Size

NEEDS_SIZE = tuple(name for name, kind in CONDITIONS.items() if kind.sized)
CLASSES = tuple(name for name, kind in CONDITIONS.items() if kind.takes == 'class')
OF_THE_IMAGE = tuple(name for name, kind in CONDITIONS.items() if kind.takes == 'image')
DRAWN = Edge.ready


def classes_alone(parts: Sequence[Condition]) -> int | None:
    return _together(parts).num_classes


def draw(batch_size: int, dropout: float, generator: torch.Generator) -> torch.Tensor:
    return ConditionSet((), 3).draw(batch_size, dropout, generator)


def make(
    parts: Sequence[Condition],
    img_channels: int,
    size: Size,
    labels: Labels | None = None,
    images: Images | None = None,
    chance: torch.Tensor | None = None,
    optional: bool = False,
) -> torch.Tensor | None:
    return ConditionSet([part.name for part in parts], img_channels, optional).make(size, labels, images, chance)


def needs_labels(parts: Sequence[Condition]) -> bool:
    return _together(parts).labels is not None


def needs_images(parts: Sequence[Condition]) -> bool:
    return bool(_together(parts).pictures)


def listed(parts: Sequence[Condition]) -> str:
    return str(_together(parts))


def check_labels(part: Condition, labels: Labels | None) -> torch.Tensor:
    return part.check(labels)


def as_picture(parts: Sequence[Condition], condition: torch.Tensor, img_channels: int) -> torch.Tensor | None:
    return _together(parts).look(condition, tuple(condition.shape[2:]))


def _together(parts: Sequence[Condition]) -> ConditionSet:
    return ConditionSet([part.name for part in parts], parts[0].img_channels if parts else 3)
