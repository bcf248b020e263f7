"""Guides on the command line: what ``--guide`` of generate.py takes, and the files it reads.

    --guide superres:face.png,size=8 --guide 'clip:a smiling woman,weight=0.5' --guide help

A guide is ``name:value,option=value,...``; commas in the value are kept. A kind of guide is one class in ``GUIDES``;
nothing else needs to know it.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from cli import guide_networks
from cli.guide_options import Options
from cli.pictures import Pictures, Size
from ddn_networks import black_boxes, guided_sampling, guides, pixel_maps
from ddn_networks.guides import Guide

AT_ONCE = {'at_once': 'candidates seen at a time'}
SCRIPT = {'mean': 'of its input, R/G/B in [0, 1] (0.5)', 'std': '(0.5)', 'size': 'pixels a side it wants', **AT_ONCE}
NETWORK = {'network': 'FILE, TorchScript', **SCRIPT}


# One class per kind.


class GuideArgument:
    """One ``--guide``. Base class of all kinds.

    Class attributes:
        value: what follows the colon.
        options: names and help of its options; every guide also has weight.
        example: a guide of this kind.

    Attributes:
        text: what the user typed.
        weight: its influence among several guides.
        pictures: one result is made for each of them; None without pictures.
        sources: files and folders that must not be replaced.
    """

    value: str = 'PICTURE'
    options: Mapping[str, str] = {}
    example: str

    def __init__(self, text: str, value: str, options: Options, device: torch.device):
        self.text, self.device = text, device
        self.weight = options.number('weight', 1.0)
        self.pictures: Pictures | None = None
        self.sources: list[str] = []
        self.load(value, options)

    def load(self, value: str, options: Options) -> None:
        """Read the value, the options and the files. Raises ValueError and OSError."""
        raise NotImplementedError

    def guide(self, index: Sequence[int], shape: Size) -> Guide:
        """The guide of images made by the pictures ``index``, for a network of this (H, W)."""
        raise NotImplementedError

    def build(self, index: Sequence[int], shape: Size) -> Guide:
        """``guide`` with the weight; ValueError with the text of the guide."""
        with _names(self.text):
            return self.guide(index, shape)._replace(weight=self.weight)


class PictureGuide(GuideArgument):
    """Base class of guides that hold pictures at the network's resolution."""

    def load(self, value: str, options: Options) -> None:
        self.pictures, self.given = self.open(value), options

    def open(self, path: str) -> Pictures:
        self.sources.append(path)
        return Pictures(path, f'--guide {self.text}')

    def guide(self, index: Sequence[int], shape: Size) -> Guide:
        return self.of(self.pictures.at(index, shape, shape).to(self.device), self.given)

    def of(self, pictures: torch.Tensor, options: Options) -> Guide:
        raise NotImplementedError


class L2(PictureGuide):
    example = 'l2:face.png'

    def of(self, pictures: torch.Tensor, options: Options) -> Guide:
        return guides.l2(pictures)


class L1(PictureGuide):
    options = AT_ONCE
    example = 'l1:face.png'

    def of(self, pictures: torch.Tensor, options: Options) -> Guide:
        return guides.l1(pictures, **options.at_once())


class Denoise(PictureGuide):
    example = 'denoise:noisy.png'

    def of(self, pictures: torch.Tensor, options: Options) -> Guide:
        return guides.denoise(pictures)


class SuperRes(PictureGuide):
    options = {'size': 'shrink it to this many pixels first (its own size)'}
    example = 'superres:face.png,size=8'

    def load(self, value: str, options: Options) -> None:
        super().load(value, options)
        self.side = options.whole('size', 0, 1)

    def guide(self, index: Sequence[int], shape: Size) -> Guide:
        if self.side > max(shape):
            raise ValueError(f'size={self.side} is more than the {max(shape)} pixels of the network')
        size = tuple(max(1, round(self.side * s / max(shape))) for s in shape) if self.side else None
        return guides.superres(self.pictures.at(index, size, shape, fit=_shrunk).to(self.device))


class Colorization(PictureGuide):
    example = 'colorization:grey.png'

    def of(self, pictures: torch.Tensor, options: Options) -> Guide:
        return guides.colorization(pictures)


class Inpaint(PictureGuide):
    options = {'mask': 'PICTURE, white where to invent'}
    example = 'inpaint:face.png,mask=eyes.png'

    def load(self, value: str, options: Options) -> None:
        if 'mask' not in options:
            raise ValueError('it needs mask=FILE, white where the picture is to be invented')
        super().load(value, options)
        self.masks = self.open(options['mask'])
        if len(self.masks) not in (1, len(self.pictures)):
            raise ValueError(f'{len(self.masks)} masks for {len(self.pictures)} pictures: give one, or one each')

    def guide(self, index: Sequence[int], shape: Size) -> Guide:
        target, covered = self.pictures.at(index, shape, shape), self.masks.at(index, shape, shape, channels=1)
        return guides.inpaint(target.to(self.device), (1 - covered.to(self.device)) / 2)


class Strokes(PictureGuide):
    value = 'RGBA PICTURE'
    example = 'strokes:strokes.png'

    def guide(self, index: Sequence[int], shape: Size) -> Guide:
        rgba = self.pictures.at(index, shape, shape, channels=4)
        if (rgba[:, 3] >= 1).all():
            raise ValueError('it is opaque everywhere: paint strokes on a transparent ground; l2 takes a picture')
        return guides.strokes(rgba.to(self.device))


class Blur(PictureGuide):
    options = {'sigma': 'pixels of the network'}
    example = 'blur:blurred.png,sigma=2'

    def of(self, pictures: torch.Tensor, options: Options) -> Guide:
        return guides.blur(pictures, options.number('sigma'))


class Posterize(PictureGuide):
    options = {'bits': 'per channel', **AT_ONCE}
    example = 'posterize:low.png,bits=2'

    def of(self, pictures: torch.Tensor, options: Options) -> Guide:
        return guides.posterize(pictures, options.whole('bits'), **options.at_once())


class Edges(PictureGuide):
    options = {
        'drawn': '1: an edge map itself',
        'threshold': 'Sobel magnitude (0.75)',
        'softness': '(0.25)',
        **AT_ONCE,
    }
    example = 'edges:face.png'

    def of(self, pictures: torch.Tensor, options: Options) -> Guide:
        threshold, softness = options.number('threshold', 0.75), options.number('softness', 0.25)
        return guides.edges(pictures, options.flag('drawn'), threshold, softness, **options.at_once())


class Perceptual(PictureGuide):
    options = NETWORK
    example = 'perceptual:face.png,network=vgg.pt'
    make = staticmethod(black_boxes.perceptual)

    def load(self, value: str, options: Options) -> None:
        if 'network' not in options:
            raise ValueError('it needs network=FILE, TorchScript: pictures to features')
        super().load(value, options)
        self.features = guide_networks.torchscript(options['network'], options, self.device)

    def of(self, pictures: torch.Tensor, options: Options) -> Guide:
        return self.make(self.features, pictures, **options.at_once())


class Style(Perceptual):
    example = 'style:painting.png,network=vgg.pt'
    make = staticmethod(black_boxes.style)


class FixedGuide(GuideArgument):
    """Base class of guides that are the same for all images."""

    def guide(self, index: Sequence[int], shape: Size) -> Guide:
        return self.fixed


class Classifier(FixedGuide):
    value = 'FILE'
    options = {'class': 'number', **SCRIPT}
    example = 'classifier:resnet.pt,class=3'

    def load(self, value: str, options: Options) -> None:
        network = guide_networks.torchscript(value, options, self.device)
        self.fixed = black_boxes.classifier(network, options.whole('class'), **options.at_once())


class Clip(FixedGuide):
    value = 'TEXT'
    options = {'model': 'of open_clip (ViT-B-32)', 'pretrained': 'tag or file (openai)', **AT_ONCE}
    example = "'clip:a smiling woman,weight=0.5'"

    def load(self, value: str, options: Options) -> None:
        pretrained = options.get('pretrained', 'openai')
        pretrained = None if pretrained == 'none' else pretrained
        model = guide_networks.clip_model(options.get('model', 'ViT-B-32'), pretrained, self.device)
        self.fixed = guide_networks.clip_guide(value, *model, **options.at_once())


class Python(FixedGuide):
    value = 'FILE.py:FUNCTION'
    options = {'numpy': '1: takes uint8 [m, H, W, C]', **AT_ONCE}
    example = 'python:mine.py:redness'

    def load(self, value: str, options: Options) -> None:
        path, _, name = value.rpartition(':')
        if not path.endswith('.py') or not os.path.isfile(path):
            raise ValueError(f'{value}: expected FILE.py:FUNCTION, with a file that exists')
        fn = getattr(guide_networks.python_module(os.path.abspath(path)), name, None)
        if not callable(fn):
            raise ValueError(f'{path} has no function {name}')
        numpy = options.flag('numpy')
        self.fixed = black_boxes.python(fn, numpy=numpy, name=f'python {name}', **options.at_once())


GUIDES: dict[str, type[GuideArgument]] = {
    'l2': L2,
    'l1': L1,
    'denoise': Denoise,
    'superres': SuperRes,
    'colorization': Colorization,
    'inpaint': Inpaint,
    'strokes': Strokes,
    'blur': Blur,
    'posterize': Posterize,
    'edges': Edges,
    'perceptual': Perceptual,
    'style': Style,
    'classifier': Classifier,
    'clip': Clip,
    'python': Python,
}


# The command line.


class GuideArguments:
    """All ``--guide`` of a command and how they choose.

    Attributes: guides; pictures and sources, those of all guides.
    Raises ValueError with the text of the first guide that is wrong.
    """

    def __init__(
        self,
        texts: Sequence[str],
        device: torch.device | str = 'cpu',
        top_k: int | None = None,
        temperature: float | None = None,
        beam: int = 1,
        combine: str = 'ranks',
        every: int = 1,
        layers: tuple[int, int] | None = None,
        proposals: int = 16,
        sweeps: int = 2,
        prior_weight: Sequence[float] | None = None,
    ):
        self.guides = [parse(text, device) for text in texts]
        self.pictures = [guide.pictures for guide in self.guides if guide.pictures is not None]
        self.sources = [source for guide in self.guides for source in guide.sources]
        rule = None if top_k is None else guided_sampling.top_k(top_k)
        rule = rule if temperature is None else guided_sampling.temperature(temperature)
        by = {'ranks': guided_sampling.by_rank, 'distances': guided_sampling.by_distance}[combine]
        weight = prior_weight[0] if prior_weight and len(prior_weight) == 1 else prior_weight
        self._how = guided_sampling.Guidance([], rule, by, beam, every, layers, proposals, sweeps, weight)

    def guidance(self, index: Sequence[int], shape: Size) -> guided_sampling.Guidance:
        """The guidance of images made by the pictures ``index``, for a network of this (H, W)."""
        return self._how._replace(guides=[guide.build(index, shape) for guide in self.guides])


def help_text() -> str:
    """What ``--guide help`` prints."""
    lines = ['A guide is name:value,option=...; give --guide again for more. Every one takes weight= (1).', '']
    for name, kind in GUIDES.items():
        lines.append(f'{name}:{kind.value}')
        lines += [f'    {key:12} {text}' for key, text in kind.options.items()]
        lines.append(f'    for example  --guide {kind.example}')
    return '\n'.join(lines)


def split(text: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The value and the options of what follows the colon; commas belong to the value up to the first option."""
    parts = text.split(',')
    first = next((i for i, part in enumerate(parts) if re.match(rf'\s*({"|".join(known)})=', part)), len(parts))
    options = {}
    for part in parts[first:]:
        key, equals, value = part.partition('=')
        if not equals or key.strip() not in known:
            raise ValueError(f'it does not know {part.strip()!r}; its options are {", ".join(known)}')
        options[key.strip()] = value.strip()
    value = ','.join(parts[:first])
    wrong = re.search(r',\s*(\w+)=', value)
    if wrong:
        raise ValueError(f'it does not know {wrong.group(1)!r}; its options are {", ".join(known)}')
    return value.strip(), options


def parse(text: str, device: torch.device | str = 'cpu') -> GuideArgument:
    """One ``--guide``, its files and networks loaded. Raises ValueError with the text of the guide."""
    name, _, rest = text.partition(':')
    kind = GUIDES.get(name.strip())
    if kind is None:
        raise ValueError(f'unknown guide {name.strip()!r}; choose from {", ".join(GUIDES)}')
    with _names(text):
        value, options = split(rest, [*kind.options, 'weight'])
        if not value:
            raise ValueError(f'it needs {kind.value}: --guide {kind.example}')
        return kind(text, value, Options(options), torch.device(device))


@contextmanager
def _names(text: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f'--guide {text}: {error}') from error


def _shrunk(picture: torch.Tensor, size: Size) -> torch.Tensor:
    """Exact area mean where it shrinks, as ``guides.superres`` pools; bilinear where it is smaller already."""
    shrinks = all(a >= b for a, b in zip(picture.shape[2:], size, strict=True))
    return pixel_maps.box(picture, size) if shrinks else pixel_maps.fit(picture, size)
