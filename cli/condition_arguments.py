"""Conditions on the command line: ``--class``, ``--label`` and ``--condition-image`` of a network that has conditions,
and ``--condition`` of a network to be trained.

Kinds of conditions are ``ddn_networks.conditions.CONDITIONS``; nothing here names one.
"""

import functools
from collections.abc import Callable, Sequence

import torch

from cli.jobs import Job, Label
from cli.pictures import Pictures
from ddn_networks import Network, pixel_maps
from ddn_networks.conditions import CONDITIONS, LABELS, Condition

MADE = 256  # conditions that are cached


class ConditionArguments:
    """The classes or label vector and the pictures that a command line gives for a network's condition.

    Attributes: net; labels, one or several, [None] for none; pictures by the key of their condition ('' for all).
    Raises ValueError where they are not what the network takes.
    """

    def __init__(
        self,
        net: Network,
        classes: Sequence[int] | str | None = None,
        label: Sequence[float] | None = None,
        pictures: Sequence[str] = (),
    ):
        self.net, self._made = net, functools.lru_cache(MADE)(self._make)
        given, conditions = classes is not None or label is not None or bool(pictures), net.conditions
        if conditions.channels and not conditions and (given or not conditions.optional):
            raise ValueError(f'this network has {conditions.channels} condition channels without a name: use Python')
        self.labels: Sequence[Label | None] = [None]
        for option, value, takes in (('--class', classes, 'class'), ('--label', label, 'vector')):
            part = next((part for part in conditions if part.takes == takes), None)
            if value is not None and part is None:
                raise ValueError(f'{option}: this network is not conditioned on that but on {conditions}')
            if value == 'all':
                self.labels = range(part.size)
            elif value is not None:
                self.labels = list(value) if takes == 'class' else [tuple(value)]
                part.check(torch.tensor(value))
        if pictures and not conditions.pictures:
            raise ValueError(f'--condition-image: this network is not conditioned on pictures but on {conditions}')
        self.pictures: dict[str, Pictures] = {}
        for text in pictures:
            self._add_pictures(text)
        for_all = self.pictures.get('')
        if for_all and not any(self._source(part)[1] is for_all for part in conditions.pictures):
            raise ValueError(f'--condition-image={for_all.path}: each condition has a picture already, leave it out')

    def _add_pictures(self, text: str) -> None:
        key, colon, path = text.partition(':')
        keys = {k for name, kind in CONDITIONS.items() if kind.takes not in LABELS for k in (name, kind.ready) if k}
        if not colon or key not in keys:
            key, path = '', text
        part = next((part for part in self.net.conditions.pictures if key and key in (part.kind, part.ready)), None)
        if key and part is None:
            raise ValueError(f'--condition-image={text}: this network is conditioned on {self.net.conditions}')
        same = {key} if part is None else {part.kind, part.ready} - {''}
        if same & set(self.pictures):
            raise ValueError(f'--condition-image={text}: that is given twice')
        self.pictures[key] = Pictures(path, f'--condition-image {path}')

    @property
    def sources(self) -> list[str]:
        """The files and folders of the pictures."""
        return [pictures.path for pictures in self.pictures.values()]

    @property
    def absent(self) -> bool:
        """Whether the network gets no condition: it has none, or it is optional and was not given."""
        given = self.labels != [None] or self.pictures
        return not self.net.conditions or not given and self.net.conditions.optional

    @property
    def needs_originals(self) -> bool:
        """Whether ``of_images`` looks at the images: a condition is made of pictures, and none are given for it."""
        return not self.absent and any(self._source(part)[1] is None for part in self.net.conditions.pictures)

    def label_jobs(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs, seed s with class s modulo N where a class is the network's only condition and none is given, as in
        ``fid.py``."""
        num_classes = self.net.conditions.num_classes
        if self.labels != [None] or self.absent or num_classes is None:
            return list(jobs)
        return [job._replace(label=job.seed % num_classes) for job in jobs]

    def of_jobs(self, jobs: Sequence[Job]) -> torch.Tensor | None:
        """[B, c, H, W] of B jobs, or None."""
        return self.condition([job.label for job in jobs], [job.target for job in jobs])

    def condition(self, labels: Sequence[Label | None], targets: Sequence[int]) -> torch.Tensor | None:
        """[B, c, H, W] of B images with these labels and pictures, or None. ValueError, in terms of the options, where
        they need more than was given."""
        if self.absent:
            return None
        for part in self.net.conditions:
            if part.takes_labels and None in labels:
                words, option = {
                    'class': ('classes', '--class=3'),
                    'vector': ('numbers', '--label=A,B,...'),
                }[part.takes]
                raise ValueError(f'the network is conditioned on {part.size} {words}: give {option}')
            if not part.takes_labels and self._source(part)[1] is None:
                option = '--condition-image=FILE or a folder'
                raise ValueError(f'the network is conditioned on {part.kind}: give {option}')
        return torch.cat([self._one(label, target) for label, target in zip(labels, targets, strict=True)])

    def require_for(self, count: int, of: int | None = None) -> None:
        """ValueError where classes or pictures are neither one nor one for each of ``count`` images, or of the ``of``
        that these are the first of."""
        given = [(f'{p.option} has', len(p), 'pictures') for p in self.pictures.values()]
        for words, number, things in [*given, ('--class has', len(self.labels), 'classes')]:
            if number not in (1, count, of):
                raise ValueError(f'{words} {number} {things} for {count} images: give one, or one each')

    def label_of(self, target: int) -> Label | None:
        """The label given for image ``target``: one, or one each (see ``require_for``)."""
        return self.labels[target % len(self.labels)]

    def of_rows(self, targets: Sequence[int]) -> torch.Tensor | None:
        """[B, c, H, W] of the images ``targets`` by what is given for them alone, or None."""
        return self.condition([self.label_of(i) for i in targets], targets)

    def of_images(
        self, images: torch.Tensor, labels: torch.Tensor | None, targets: Sequence[int]
    ) -> torch.Tensor | None:
        """The condition of images [B, C, H, W] and their labels, to encode them by: what the command line does not give
        is made of the images themselves. ``targets``: which of the given pictures and classes are theirs."""
        conditions = self.net.conditions
        if self.absent:
            return None
        if not conditions.labels:
            labels = None
        elif self.labels != [None]:
            labels = torch.tensor([self.label_of(i) for i in targets])
        elif labels is None:
            option = '--label' if conditions.labels.takes == 'vector' else '--class'
            raise ValueError(f'these images have no labels: give {option}')
        if any(part.takes == 'pair' and self._source(part)[1] is None for part in conditions):
            raise ValueError('this network is conditioned on another picture of each image: give --condition-image')
        if not self.pictures:
            return self.net.make_condition(labels, conditions.sources(images))
        known = [None] * len(targets)
        if labels is not None:
            known = [tuple(label) if isinstance(label, list) else label for label in labels.tolist()]
        if not self.needs_originals:
            return self.condition(known, targets)
        rows = zip(known, targets, images.split(1), strict=True)
        return torch.cat([self._make(label, target, image) for label, target, image in rows])

    def look(self, target: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The condition and the picture that was given for it, [C, H, W] each, to look at; the condition twice where
        the picture shows no more."""
        conditions, size, C = self.net.conditions, self.net.img_resolution, self.net.img_channels
        condition = conditions.look(self._one(self.labels[0], target), self.net.img_resolution)[0].cpu()
        if all(part.shows_all or self._source(part)[0] == part.ready for part in conditions.pictures):
            return condition, condition
        first = next(iter(self.pictures.values()))
        return condition, pixel_maps.to_channels(first.at([target], size, size), C)[0]

    def _source(self, part: Condition) -> tuple[str, Pictures | None]:
        """The pictures given for a condition, and their key."""
        key = part.ready if part.ready in self.pictures and part.ready else part.kind
        return key, self.pictures.get(key, self.pictures.get(''))

    def _one(self, label: Label | None, target: int) -> torch.Tensor:
        """[1, c, H, W] of a label and picture ``target``, or of the one that serves all: that is made once."""
        return self._made(label, target % max((len(p) for p in self.pictures.values()), default=1))

    def _make(self, label: Label | None, target: int, image: torch.Tensor | None = None) -> torch.Tensor:
        """[1, c, H, W] of a label and picture ``target``, or of ``image`` [1, C, H, W] where there is none."""
        sources = {}
        for part in self.net.conditions.pictures:
            key, pictures = self._source(part)
            if pictures is None:
                sources[key] = image
            elif key == part.ready:
                sources[key] = pictures.at([target], None, self.net.img_resolution)
            else:  # of its own size: the condition decides how it shrinks
                picture = pictures.at([target], None, self.net.img_resolution, part.file_channels)
                try:
                    sources[key] = part.of_file(picture)
                except ValueError as error:
                    raise ValueError(f'{pictures.option}: {error}') from error
        return self.net.make_condition(None if label is None else torch.tensor(label), sources or None)


# Training.


def training_help() -> str:
    """What ``--condition=help`` prints."""
    lines = [f'  {_usage(name):12} {kind.help}' for name, kind in CONDITIONS.items()]
    return '\n'.join(['Conditions of a network, one or several (class,color); see docs/conditions.md:', *lines])


def training_names(
    texts: Sequence[str], classes: bool, labels: Callable[[], tuple[str, int]], channels: Callable[[str], int]
) -> tuple[list[str], str | None]:
    """The names of the conditions that ``--condition`` asks for, and the folder or zip of pairs, if any.

    Args:
        texts: each 'class,lowres:8' or such.
        classes: 'class' as well, unless they have a condition on labels.
        labels: the dataset's labels: 'class' and their number, or 'vector' and their width.
        channels: of the pairs in a folder or zip.

    Raises:
        ValueError: an unknown condition, with the known ones; labels that the dataset does not have.
    """
    names, pairs, asked = [], None, _split(texts)
    kinds = [CONDITIONS.get(text.partition(':')[0]) for text in asked]
    if classes and not any(kind and kind.takes in LABELS for kind in kinds):
        asked.insert(0, 'class')
    for text in asked:
        kind, _, value = text.partition(':')
        condition = CONDITIONS.get(kind)
        if condition is None or not _fits(condition, value):
            raise ValueError(f'--condition={text}: choose from {", ".join(map(_usage, CONDITIONS))}')
        if condition.takes == 'pair':
            pairs, text = value, f'{kind}:{channels(value)}'
        elif condition.takes in LABELS:
            takes, size = labels()
            if takes != condition.takes and takes == 'class':
                raise ValueError(f'--condition={text}: the labels of these images are class numbers; take class')
            text = f'{kind if takes == condition.takes else takes}:{size}'
        names.append(text)
    return names, pairs


def with_paths(texts: Sequence[str], change: Callable[[str], str]) -> tuple[str, ...]:
    """The texts of ``--condition``, one condition each, the paths of pairs changed by ``change``."""
    found = []
    for text in _split(texts):
        kind, _, value = text.partition(':')
        if value and kind in CONDITIONS and CONDITIONS[kind].takes == 'pair':
            text = f'{kind}:{change(value)}'
        found.append(text)
    return tuple(found)


def _split(texts: Sequence[str]) -> list[str]:
    """'class,image:a,b' as ['class', 'image:a,b']: a comma may belong to the name of a file."""
    found = []
    for text in texts:
        for part in text.split(','):
            if part.split(':')[0].strip() in CONDITIONS or not found:
                found.append(part.strip())
            else:
                found[-1] += f',{part}'
    return found


def _fits(condition: type[Condition], value: str) -> bool:
    if condition.takes == 'pair':
        return bool(value)
    return value.isdigit() if condition.sized and condition.takes == 'image' else not value


def _usage(kind: str) -> str:
    condition = CONDITIONS[kind]
    ends = {'pair': ':PATH', 'image': ':N' * condition.sized}
    return kind + ends.get(condition.takes, '')
