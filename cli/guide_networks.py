"""Networks and functions that guides load from files: TorchScript, open_clip, Python."""

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from types import ModuleType

import torch

from cli.guide_options import Options
from ddn_networks import black_boxes, pixel_maps
from ddn_networks.guides import Guide


def torchscript(path: str, options: Options, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """A TorchScript file as a function of pictures in [-1, 1]; options mean, std (of [0, 1]) and size are its own."""
    if not os.path.isfile(path):
        raise ValueError(f'{path}: no such file; a network for guiding is a TorchScript file (torch.jit.save)')
    try:
        with warnings.catch_warnings():
            # Deprecated, but what classifiers on disk are.
            warnings.filterwarnings('ignore', message='.*torch.jit', category=DeprecationWarning)
            warnings.filterwarnings('ignore', message='.*torch.jit', category=FutureWarning)
            net = torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f'{path} is not a TorchScript file: {str(error).splitlines()[0]}') from error
    mean, std = (
        torch.tensor([Options({key: x}).number(key) for x in options.get(key, '0.5').split('/')], device=device)
        for key in ('mean', 'std')
    )
    mean, std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
    if not std.all():
        raise ValueError(f'std={options["std"]}: pixels are divided by it')
    side = options.whole('size', 0, 1)

    def fn(images: torch.Tensor) -> torch.Tensor:
        images = ((images + 1) / 2 - mean) / std
        return net(pixel_maps.fit(images, (side, side)) if side else images)

    return fn


def python_module(path: str) -> ModuleType:
    """A Python file as a module of its own; it may import its neighbours."""
    spec = importlib.util.spec_from_file_location(path, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path] = module  # where dataclasses look for it
    if os.path.dirname(path) not in sys.path:
        sys.path.append(os.path.dirname(path))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # anything may happen in a user's file
        raise ValueError(f'{path} does not load: {type(error).__name__}: {error}') from error
    return module


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
