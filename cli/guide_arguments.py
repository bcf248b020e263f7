"""Guides from words: what ``--guide`` of generate.py understands, and the files it reads.

    --guide superres:face.png,size=8 --guide 'clip:a smiling woman,weight=0.5' --guide help

A spec is ``name:value,option=value,...``; commas in the value are kept. Pictures come from a file, a folder or a zip: a
folder of n asks for n results. They are cropped to the middle part that has the network's proportions and resized to
its resolution, area-wise down and bilinearly up; grey and colour convert by luma and by repeating.
"""

import importlib.util
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

import dnnlib
from ddn_networks import black_boxes, guides, pixel_maps
from ddn_networks.guides import Guide
from dnnlib.images import png_names

Size = tuple[int, int]
Build = Callable[[Sequence[int], Size], Guide]  # (which pictures, the network's resolution) -> guide


class Spec(NamedTuple):
    """One --guide: its text, the names of its pictures (one, n, or none), what makes the guide of a batch, and the
    files and folders of its pictures. Pictures of another option that ask for results in the same way name it."""

    text: str
    names: list[str]
    build: Build
    sources: Sequence[str] = ()
    option: str = '--guide'


class Kind(NamedTuple):
    """A guide the command line knows. ``make`` takes the value and the options, and gives names and ``Build``."""

    name: str
    value: str
    options: Mapping[str, str]
    example: str
    make: Callable[[str, Mapping[str, str], torch.device], tuple[list[str], Build]]


class Pictures:
    """The pictures of a file, a folder or a zip, read when asked for."""

    def __init__(self, path: str):
        if not os.path.exists(path):
            raise ValueError(f'{path}: no such file or folder')
        self.path = path
        self.archive = dnnlib.ImageArchive(path) if os.path.isdir(path) or path.endswith('.zip') else None
        self.names = self.archive.names() if self.archive else [os.path.basename(path)]

    def read(self, index: Sequence[int], channels: int | None = None) -> list[torch.Tensor]:
        """[C, H, W] float in [-1, 1] each; entry i is picture i modulo their number. C is ``channels``, or 1 or 3 as
        the file says: transparency is flattened onto white unless 4 are asked for."""
        return [dnnlib.to_float(torch.from_numpy(self._pixels(i % len(self.names), channels))) for i in index]

    def at(
        self, index: Sequence[int], size: Size | None, shape: Size, channels: int | None = None, fit=pixel_maps.fit
    ) -> torch.Tensor:
        """[n, C, H, W] cropped to the proportions of ``shape``, at ``size`` by ``fit``; None keeps what the crop
        leaves. Where some are grey, all get the channels of the others. ValueError where sizes that are kept differ."""
        cropped = [crop(picture[None], shape) for picture in self.read(index, channels)]
        cropped = [picture if size is None else fit(picture, size) for picture in cropped]
        sizes = {tuple(picture.shape[2:]) for picture in cropped}
        if len(sizes) > 1:
            words = ' and '.join(f'{W}x{H}' for H, W in sorted(sizes))
            raise ValueError(f'{self.path} holds pictures of different sizes, {words}: give size=, or --batch=1')
        C = max((picture.shape[1] for picture in cropped), default=0)
        return torch.cat([pixel_maps.to_channels(picture, C) for picture in cropped])

    def _pixels(self, index: int, channels: int | None) -> np.ndarray:
        if self.archive:
            data, name = self.archive.read(index), self.archive.title(index)
        else:
            with open(self.path, 'rb') as file:
                data, name = file.read(), self.path
        pixels = dnnlib.decode_image(data, name, channels)
        if channels is None and len(pixels) == 4:  # transparency is asked for by name, never guessed
            pixels = dnnlib.decode_image(data, name, 3)
        return pixels


def crop(picture: torch.Tensor, shape: Size) -> torch.Tensor:
    """The largest middle part of [n, C, H, W] with the proportions of ``shape``."""
    H, W = picture.shape[2:]
    scale = min(H / shape[0], W / shape[1])
    h, w = max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
    top, left = (H - h) // 2, (W - w) // 2
    return picture[:, :, top : top + h, left : left + w]


# Reading options.


def number(options: Mapping[str, str], key: str, default: float | None) -> float:
    """An option as a finite number; ValueError where it is none, or missing without a default."""
    if key not in options:
        if default is None:
            raise ValueError(f'it needs {key}=NUMBER')
        return default
    try:
        value = float(options[key])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f'{key}={options[key]} is no number')
    return value


def whole(options: Mapping[str, str], key: str, default: int | None, least: int = 0) -> int:
    """An option as a whole number of ``least`` or more."""
    value = number(options, key, default)
    if value != int(value):
        raise ValueError(f'{key}={options[key]} is no whole number')
    if key in options and value < least:
        raise ValueError(f'{key}={options[key]} is less than {least}')
    return int(value)


def flag(options: Mapping[str, str], key: str) -> bool:
    """An option that is 1 or 0, 0 without."""
    value = options.get(key, '0')
    if value not in ('0', '1'):
        raise ValueError(f'{key}={value}: 1 or 0')
    return value == '1'


def at_once(options: Mapping[str, str]) -> dict:
    return {'max_candidates': whole(options, 'at_once', None, 1)} if 'at_once' in options else {}


# Making guides.


def pictured(make: Callable[[torch.Tensor, Mapping[str, str]], Guide]) -> Callable:
    """A ``Kind.make`` for guides that hold pictures at the network's resolution."""

    def made(value: str, options: Mapping[str, str], device: torch.device) -> tuple[list[str], Build]:
        pictures = Pictures(value)

        def build(index: Sequence[int], shape: Size) -> Guide:
            return make(pictures.at(index, shape, shape).to(device), options)

        return pictures.names, build

    return made


def _shrunk(picture: torch.Tensor, size: Size) -> torch.Tensor:
    """Exact area mean where it shrinks, as ``guides.superres`` pools; bilinear where it is smaller already."""
    shrinks = all(a >= b for a, b in zip(picture.shape[2:], size, strict=True))
    return pixel_maps.box(picture, size) if shrinks else pixel_maps.fit(picture, size)


def _superres(value: str, options: Mapping[str, str], device: torch.device) -> tuple[list[str], Build]:
    pictures = Pictures(value)
    side = whole(options, 'size', 0, 1)

    def build(index: Sequence[int], shape: Size) -> Guide:
        if side > max(shape):
            raise ValueError(f'size={side} is more than the {max(shape)} pixels of the network')
        size = tuple(max(1, round(side * s / max(shape))) for s in shape) if side else None
        return guides.superres(pictures.at(index, size, shape, fit=_shrunk).to(device))

    return pictures.names, build


def _inpaint(value: str, options: Mapping[str, str], device: torch.device) -> tuple[list[str], Build]:
    if 'mask' not in options:
        raise ValueError('it needs mask=FILE, white where the picture is to be invented')
    pictures, masks = Pictures(value), Pictures(options['mask'])
    if len(masks.names) not in (1, len(pictures.names)):
        raise ValueError(f'{len(masks.names)} masks for {len(pictures.names)} pictures: one, or one each')

    def build(index: Sequence[int], shape: Size) -> Guide:
        target, covered = pictures.at(index, shape, shape), masks.at(index, shape, shape, channels=1)
        return guides.inpaint(target.to(device), (1 - covered.to(device)) / 2)

    return pictures.names, build


def _strokes(value: str, options: Mapping[str, str], device: torch.device) -> tuple[list[str], Build]:
    pictures = Pictures(value)

    def build(index: Sequence[int], shape: Size) -> Guide:
        rgba = pictures.at(index, shape, shape, channels=4)
        if (rgba[:, 3] >= 1).all():
            raise ValueError('it is opaque everywhere: strokes are painted on a transparent ground; l2 takes a picture')
        return guides.strokes(rgba.to(device))

    return pictures.names, build


def _torchscript(path: str, device: torch.device, options: Mapping[str, str]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A TorchScript file as a function of pictures in [-1, 1]; options mean, std (of [0, 1]) and size are its own."""
    if not os.path.exists(path):
        raise ValueError(f'{path}: no such file; a network for guiding is a TorchScript file (torch.jit.save)')
    try:
        with warnings.catch_warnings():
            # TorchScript is what classifiers on disk still are; that it is deprecated helps nobody here.
            warnings.filterwarnings('ignore', message='.*torch.jit', category=DeprecationWarning)
            warnings.filterwarnings('ignore', message='.*torch.jit', category=FutureWarning)
            net = torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f'{path} is no TorchScript file: {str(error).splitlines()[0]}') from error
    mean, std = (
        torch.tensor([number({key: x}, key, None) for x in options.get(key, '0.5').split('/')], device=device)
        for key in ('mean', 'std')
    )
    mean, std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
    if not std.all():
        raise ValueError(f'std={options["std"]}: pixels are divided by it')
    side = whole(options, 'size', 0, 1)

    def fn(images: torch.Tensor) -> torch.Tensor:
        images = ((images + 1) / 2 - mean) / std
        return net(pixel_maps.fit(images, (side, side)) if side else images)

    return fn


def _classifier(value: str, options: Mapping[str, str], device: torch.device) -> tuple[list[str], Build]:
    fn, index = _torchscript(value, device, options), whole(options, 'class', None)
    return [], lambda _, shape: black_boxes.classifier(fn, index, **at_once(options))


def _featured(make: Callable) -> Callable:
    def made(value: str, options: Mapping[str, str], device: torch.device) -> tuple[list[str], Build]:
        if 'network' not in options:
            raise ValueError('it needs network=FILE, TorchScript: pictures to features')
        pictures, fn = Pictures(value), _torchscript(options['network'], device, options)
        return pictures.names, lambda index, shape: make(
            fn, pictures.at(index, shape, shape).to(device), **at_once(options)
        )

    return made


def _python(value: str, options: Mapping[str, str], device: torch.device) -> tuple[list[str], Build]:
    path, _, name = value.rpartition(':')
    if not path.endswith('.py') or not os.path.isfile(path):
        raise ValueError(f'{value}: expected FILE.py:FUNCTION, with a file that exists')
    path = os.path.abspath(path)
    spec = importlib.util.spec_from_file_location(path, path)  # a name of its own among the modules
    module = importlib.util.module_from_spec(spec)
    sys.modules[path] = module  # where dataclasses look for it
    if os.path.dirname(path) not in sys.path:
        sys.path.append(os.path.dirname(path))  # it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises
        raise ValueError(f'{path} does not load: {type(error).__name__}: {error}') from error
    if not callable(getattr(module, name, None)):
        raise ValueError(f'{path} has no function {name}')
    fn = getattr(module, name)
    guide = black_boxes.python(fn, numpy=flag(options, 'numpy'), name=f'python {name}', **at_once(options))
    return [], lambda index, shape: guide


def clip_guide(text: str, net: torch.nn.Module, tokenizer: Callable, **kwargs) -> Guide:
    """The guide of a text by an ``open_clip`` model and its tokenizer."""
    import open_clip

    with torch.no_grad():
        features = net.encode_text(tokenizer([text]).to(next(net.parameters()).device))  # [1, D]
    mean = getattr(net.visual, 'image_mean', None) or open_clip.OPENAI_DATASET_MEAN
    std = getattr(net.visual, 'image_std', None) or open_clip.OPENAI_DATASET_STD
    return black_boxes.clip(net.encode_image, features, net.visual.image_size, mean, std, **kwargs)


def clip_model(
    name: str, pretrained: str | None, device: torch.device | str = 'cpu'
) -> tuple[torch.nn.Module, Callable]:
    """An ``open_clip`` model, with the weights of a tag or file (None: random), and its tokenizer; ValueError where it
    does not load."""
    try:
        import open_clip
    except Exception as error:  # a torchvision that does not fit PyTorch raises RuntimeError
        install = "pip install -c constraints.txt -e '.[clip]'"
        raise ValueError(f'clip needs open_clip, which did not load ({error}): {install}') from error
    if name not in open_clip.list_models():
        raise ValueError(f'open_clip has no model {name}; see open_clip.list_models()')
    try:
        net = open_clip.create_model(name, pretrained=pretrained, device=device).eval().requires_grad_(False)
    except Exception as error:  # of a download, of a file, or of a tag that there is not; of many classes
        raise ValueError(f'clip: model={name},pretrained={pretrained} did not load: {error}') from error
    return net, open_clip.get_tokenizer(name)


def _clip(value: str, options: Mapping[str, str], device: torch.device) -> tuple[list[str], Build]:
    pretrained = options.get('pretrained', 'openai')
    model = clip_model(options.get('model', 'ViT-B-32'), None if pretrained == 'none' else pretrained, device)
    guide = clip_guide(value, *model, **at_once(options))
    return [], lambda index, shape: guide


def kinds() -> list[Kind]:
    """All guides of the command line; every one also takes weight= (1; negative leads away)."""
    shown = {'at_once': 'candidates seen at a time'}
    script = {'mean': 'of its input, R/G/B in [0, 1] (0.5)', 'std': '(0.5)', 'size': 'pixels a side it wants', **shown}
    edge = {'drawn': '1: an edge map itself', 'threshold': 'Sobel magnitude (0.75)', 'softness': '(0.25)', **shown}
    return [
        Kind('l2', 'PICTURE', {}, 'l2:face.png', pictured(lambda p, o: guides.l2(p))),
        Kind('l1', 'PICTURE', shown, 'l1:face.png', pictured(lambda p, o: guides.l1(p, **at_once(o)))),
        Kind('denoise', 'PICTURE', {}, 'denoise:noisy.png', pictured(lambda p, o: guides.denoise(p))),
        Kind('superres', 'PICTURE', {'size': 'shrink it to this many pixels first (its own size)'},
             'superres:face.png,size=8', _superres),
        Kind('colorization', 'PICTURE', {}, 'colorization:grey.png', pictured(lambda p, o: guides.colorization(p))),
        Kind('inpaint', 'PICTURE', {'mask': 'PICTURE, white where to invent'}, 'inpaint:face.png,mask=eyes.png',
             _inpaint),
        Kind('strokes', 'RGBA PICTURE', {}, 'strokes:strokes.png', _strokes),
        Kind('blur', 'PICTURE', {'sigma': 'pixels of the network'}, 'blur:blurred.png,sigma=2',
             pictured(lambda p, o: guides.blur(p, number(o, 'sigma', None)))),
        Kind('posterize', 'PICTURE', {'bits': 'per channel', **shown}, 'posterize:low.png,bits=2',
             pictured(lambda p, o: guides.posterize(p, whole(o, 'bits', None), **at_once(o)))),
        Kind('edges', 'PICTURE', edge, 'edges:face.png', pictured(lambda p, o: guides.edges(
            p, flag(o, 'drawn'), number(o, 'threshold', 0.75), number(o, 'softness', 0.25), **at_once(o)))),
        Kind('perceptual', 'PICTURE', {'network': 'FILE, TorchScript', **script}, 'perceptual:face.png,network=vgg.pt',
             _featured(black_boxes.perceptual)),
        Kind('style', 'PICTURE', {'network': 'FILE, TorchScript', **script}, 'style:painting.png,network=vgg.pt',
             _featured(black_boxes.style)),
        Kind('classifier', 'FILE', {'class': 'number', **script}, 'classifier:resnet.pt,class=3', _classifier),
        Kind('clip', 'TEXT', {'model': 'of open_clip (ViT-B-32)', 'pretrained': 'tag or file (openai)', **shown},
             "'clip:a smiling woman,weight=0.5'", _clip),
        Kind('python', 'FILE.py:FUNCTION', {'numpy': '1: takes uint8 [m, H, W, C]', **shown},
             'python:mine.py:redness', _python),
    ]


# The command line.


def help_text() -> str:
    """What ``--guide help`` prints."""
    lines = ['A guide is name:value,option=...; give --guide again for more. Every one takes weight= (1).', '']
    for kind in kinds():
        lines.append(f'{kind.name}:{kind.value}')
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
            raise ValueError(f'does not know {part.strip()!r}; its options are {", ".join(known)}')
        options[key.strip()] = value.strip()
    value = ','.join(parts[:first])
    wrong = re.search(r',\s*(\w+)=', value)
    if wrong:
        raise ValueError(f'does not know {wrong.group(1)!r}; its options are {", ".join(known)}')
    return value.strip(), options


def parse(text: str, device: torch.device | str = 'cpu') -> Spec:
    """One ``--guide``, its files and networks loaded. Raises ValueError that names the guide and the fix."""
    name, colon, rest = text.partition(':')
    kind = next((kind for kind in kinds() if kind.name == name.strip()), None)
    if kind is None:
        raise ValueError(f'there is no guide {name.strip()!r}; there are {", ".join(k.name for k in kinds())}')
    try:
        value, options = split(rest, [*kind.options, 'weight'])
        if not value:
            raise ValueError(f'needs {kind.value}: --guide {kind.example}')
        weight = number(options, 'weight', 1.0)
        names, build = kind.make(value, options, torch.device(device))
    except (ValueError, OSError) as error:
        raise ValueError(f'--guide {text}: {error}') from error

    def weighted(index: Sequence[int], shape: Size) -> Guide:
        try:
            return build(index, shape)._replace(weight=weight)
        except (ValueError, OSError) as error:
            raise ValueError(f'--guide {text}: {error}') from error

    sources = [path for path in (value, options.get('mask')) if path and names]  # without names it is no picture
    return Spec(text, names, weighted, sources)


def target_names(specs: Sequence[Spec]) -> list[str]:
    """The names of the n pictures that a folder asks for, [] without pictures. ValueError where two differ."""
    several = [spec for spec in specs if len(spec.names) > 1] or [spec for spec in specs if spec.names]
    for spec in several[1:]:
        if len(spec.names) != len(several[0].names):
            raise ValueError(
                f'{several[0].option} {several[0].text} has {len(several[0].names)} pictures and '
                f'{spec.option} {spec.text} {len(spec.names)}; give as many, or one'
            )
    return several[0].names if several else []


class Job(NamedTuple):
    """One image to make: its file name, which picture guides it, its seed."""

    name: str
    target: int
    seed: int


def jobs(specs: Sequence[Spec], seeds: Sequence[int], seeds_given: bool) -> list[Job]:
    """What to make: an image per seed, or with a folder one per picture (and per seed, where those are given).

    Images are named after their picture where there are several, after their seed where there is one.
    """
    names = target_names(specs)
    if len(names) <= 1:
        return [Job(f'{seed:06d}.png', 0, seed) for seed in seeds]
    stems = [os.path.splitext(name)[0] for name in png_names(names)]
    if not seeds_given:
        return [Job(f'{stem}.png', i, 0) for i, stem in enumerate(stems)]
    return [Job(f'{stem}-{seed:06d}.png', i, seed) for i, stem in enumerate(stems) for seed in seeds]
