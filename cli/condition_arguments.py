"""Conditions from words: what ``--class``, ``--label`` and ``--condition-image`` of a command say, and their files; and
the network they are said to.

Pictures are read as guides read them: from a file, a folder or a zip, cropped to the middle part that has the network's
proportions. A folder of n asks for n results.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from cli import guide_arguments
from ddn_networks import Network, RecurrentDDN, conditions, pixel_maps

KEPT = 256  # conditions that are not made again when they are asked for again
KINDS = (*conditions.OF_THE_IMAGE, 'image', conditions.DRAWN)


def load_network(path: str, ema: str | None, device: str | torch.device, steps: int | None) -> Network:
    """The network of a snapshot; ``steps``: another L for a recurrent one. ValueError where it is none."""
    net = Network.from_pretrained(path, ema=ema, device=device)
    if steps is not None:
        if not isinstance(net, RecurrentDDN):
            raise ValueError(f'--steps: {path} is not recurrent, its {net.num_layers} layers are fixed')
        net.num_layers = steps
    return net


class Row(NamedTuple):
    """One image to make: its file name, which picture tells or guides it, its seed, its class or label vector."""

    name: str
    target: int
    seed: int
    label: int | tuple[float, ...] | None


class Told:
    """What the command line says of a network's condition. ValueError where that is not what the network needs."""

    def __init__(
        self, net: Network, classes: Sequence[int] | str | None, label: Sequence[float] | None, pictures: Sequence[str]
    ):
        self.net, self._made = net, functools.lru_cache(KEPT)(self._make)
        self.parts = {part.kind: part for part in net.conditions}
        of_classes = next((part for part in net.conditions if part.kind in conditions.CLASSES), None)
        needs = conditions.listed(net.conditions)
        if net.condition_channels and not net.conditions:
            raise ValueError(f'this network has {net.condition_channels} condition channels without a name: use Python')
        for option, given, part in (('--class', classes, of_classes), ('--label', label, self.parts.get('vector'))):
            if given is not None and part is None:
                raise ValueError(f'{option}: this network is not conditioned on that but on {needs}')
        if pictures and not conditions.needs_images(net.conditions):
            raise ValueError(f'--condition-image: this network is not conditioned on pictures but on {needs}')
        self.labels: list = [None]
        if label is not None:
            self.labels = [tuple(label)]
        if classes is not None:
            self.labels = list(range(of_classes.size)) if classes == 'all' else list(classes)
        for value in self.labels:
            if value is not None:
                conditions.check_labels(of_classes or self.parts['vector'], torch.tensor(value))
        self.pictures = {}
        for text in pictures:
            kind, colon, path = text.partition(':')
            kind, path = (kind, path) if colon and kind in KINDS else ('', text)
            wanted = 'edge' if kind == conditions.DRAWN else kind
            if kind and wanted not in self.parts:
                raise ValueError(f'--condition-image={text}: this network is conditioned on {needs}')
            if kind in self.pictures or {kind, *self.pictures} >= {'edge', conditions.DRAWN}:
                raise ValueError(f'--condition-image={text}: that is given twice')
            self.pictures[kind] = guide_arguments.Pictures(path)
        for_all = self.pictures.get('')
        if for_all and not any(self._source(kind) is for_all for kind in self.parts if kind not in conditions.LABELS):
            raise ValueError(f'--condition-image={for_all.path}: each condition has a picture already, leave it out')

    @property
    def empty(self) -> bool:
        return self.labels == [None] and not self.pictures

    @property
    def without(self) -> bool:
        """Whether the network gets no condition: it has none, or it does without what nobody said."""
        return not self.net.conditions or self.empty and self.net.condition_optional

    @property
    def needs_originals(self) -> bool:
        """Whether ``of_images`` looks at the images: something is made of pictures, and not of given ones."""
        pictures = [kind for kind in self.parts if kind not in conditions.LABELS]
        return not self.without and any(self._source(kind) is None for kind in pictures)

    def specs(self) -> list[guide_arguments.Spec]:
        """Stand-ins for guides: so many pictures ask for so many results."""
        return [
            guide_arguments.Spec(p.path, p.names, lambda *_: None, [p.path], '--condition-image')
            for p in self.pictures.values()
        ]

    def check(self, labels: Sequence) -> None:
        """ValueError, in terms of the options, where images of these labels need more than was said."""
        if self.without:
            return
        untold = any(label is None for label in labels)
        for kind in self.parts:
            if kind in conditions.CLASSES and untold:
                raise ValueError(f'the network is conditioned on {self.parts[kind].size} classes: give --class=3')
            if kind == 'vector' and untold:
                raise ValueError(f'the network is conditioned on {self.parts[kind].size} numbers: give --label=A,B,...')
            if kind not in conditions.LABELS and self._source(kind) is None:
                raise ValueError(f'the network is conditioned on {kind}: give --condition-image=FILE or a folder')

    def condition(self, labels: Sequence, targets: Sequence[int]) -> torch.Tensor | None:
        """[B, c, H, W] of B images with these labels and pictures, or None."""
        if self.without:
            return None
        self.check(labels)
        return torch.cat([self._one(label, target) for label, target in zip(labels, targets, strict=True)])

    def looks(self, target: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The condition and the given picture [C, H, W] each, to look at; None where there is none."""
        if not self.pictures:
            return None
        condition = self._one(self.labels[0], target)
        shown = conditions.as_picture(self.net.conditions, condition, self.net.img_channels)[0].cpu()
        size = self.net.img_resolution
        first = next(iter(self.pictures.values()))
        given = pixel_maps.to_channels(first.at([target], size, size), self.net.img_channels)[0]
        same = set(self.pictures) <= {'image', conditions.DRAWN} or set(self.parts) <= {*conditions.LABELS, 'image'}
        return shown, shown if same else given

    def serve(self, count: int, of: int | None = None) -> None:
        """ValueError where classes or pictures are neither one nor one for each of ``count`` images, or of the ``of``
        that these are the first of."""
        said = [(f'--condition-image {p.path} has', len(p.names), 'pictures') for p in self.pictures.values()]
        for words, number, things in [*said, ('--class has', len(self.labels), 'classes')]:
            if number not in (1, count, of):
                raise ValueError(f'{words} {number} {things} for {count} images: give one, or one each')

    def label_of(self, target: int):
        """The label that is told of image ``target``: one, or one each (see ``serve``)."""
        return self.labels[target % len(self.labels)]

    def of_images(
        self, images: torch.Tensor, labels: torch.Tensor | None, targets: Sequence[int]
    ) -> torch.Tensor | None:
        """The condition of given images [B, C, H, W] and their labels, to encode them by: what the command line does
        not say is made of the images themselves. ``targets``: which of the pictures and classes that it says are
        theirs."""
        if self.without:
            return None
        if not conditions.needs_labels(self.net.conditions):
            labels = None
        elif self.labels != [None]:
            labels = torch.tensor([self.label_of(i) for i in targets])
        elif labels is None:
            option = '--label' if 'vector' in self.parts else '--class'
            raise ValueError(f'these images have no labels: give {option}')
        if 'image' in self.parts and self._source('image') is None:
            raise ValueError('this network is conditioned on another picture of each image: give --condition-image')
        if not self.pictures:
            needed = conditions.needs_images(self.net.conditions)
            return self.net.make_condition(labels, dict.fromkeys(conditions.OF_THE_IMAGE, images) if needed else None)
        known = [None] * len(targets)
        if labels is not None:
            known = [tuple(label) if isinstance(label, list) else label for label in labels.tolist()]
        if not self.needs_originals:
            return self.condition(known, targets)
        rows = zip(known, targets, images.split(1), strict=True)
        return torch.cat([self._make(label, target, image) for label, target, image in rows])

    def _source(self, kind: str) -> guide_arguments.Pictures | None:
        if kind == 'edge' and conditions.DRAWN in self.pictures:
            return self.pictures[conditions.DRAWN]
        return self.pictures.get(kind, self.pictures.get(''))

    def _one(self, label, target: int) -> torch.Tensor:
        """[1, c, H, W] of a label and picture ``target``, or of the one that is told of all: that is made once."""
        return self._made(label, target % max((len(p.names) for p in self.pictures.values()), default=1))

    def _make(self, label, target: int, image: torch.Tensor | None = None) -> torch.Tensor:
        """[1, c, H, W] of a label and picture ``target``, or of ``image`` [1, C, H, W] where there is none."""
        sources = {}
        for kind in self.parts:
            if kind not in conditions.LABELS:
                key = conditions.DRAWN if kind == 'edge' and conditions.DRAWN in self.pictures else kind
                sources[key] = image if self._source(kind) is None else self._picture(kind, target)
        return self.net.make_condition(None if label is None else torch.tensor(label), sources or None)

    def _picture(self, kind: str, target: int) -> torch.Tensor:
        """[1, c, h, w], of its own size: what is made of it says how it shrinks."""
        pictures, shape = self._source(kind), self.net.img_resolution
        if kind == 'image':
            return pictures.at([target], None, shape, self.parts[kind].size)
        if kind != 'mask':
            return pictures.at([target], None, shape)
        rgba = pictures.at([target], None, shape, 4)
        if (rgba[:, 3] > 0).all():
            raise ValueError(f'{pictures.path} hides nothing: make transparent what is to be invented')
        return torch.cat([pixel_maps.to_channels(rgba[:, :3], self.net.img_channels), rgba[:, 3:]], 1)


def rows(told: Told, specs: Sequence[guide_arguments.Spec], seeds: Sequence[int], seeds_given: bool) -> list[Row]:
    """What to make, class by class: see ``guide_arguments.jobs``. Several classes have a folder each.

    A network that is told a class and nothing else gets class s modulo N with seed s where nobody says one, as in
    ``fid.py``; not beside guides, which ask for something.
    """
    classes = None if told.labels != [None] or told.without or specs else conditions.classes_alone(told.net.conditions)
    if len(told.labels) > 1 and not seeds_given:
        seeds = seeds[:10]
    jobs = guide_arguments.jobs([*specs, *told.specs()], seeds, seeds_given)
    several = len(told.labels) > 1
    return [
        Row(
            f'class{label}/{job.name}' if several else job.name,
            job.target,
            job.seed,
            job.seed % classes if classes else label,
        )
        for label in told.labels
        for job in jobs
    ]
