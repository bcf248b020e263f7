"""Networks that remember how they were constructed, and the snapshots from which they are rebuilt.

A snapshot is data: one safetensors file with the weights, and in its header a JSON text with the class name and the
constructor arguments. Loading looks the class up in an allow-list and runs no code from the file.

Tensor names: ``net/NAME`` for the weights, ``ema/LABEL/NAME`` for each averaged copy.
"""

import functools
import importlib
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ddn_networks import hub, sampling, tensor_files
from ddn_networks.aliases import RENAMED

DDN, RECURRENT = 'ddn_networks.single_shot.DDN', 'ddn_networks.recurrent.RecurrentDDN'
ALLOWED_CLASSES = (DDN, RECURRENT)  # what a snapshot may name
PRETRAINED = Path(__file__).parent / 'pretrained'  # networks that come with the package

# Greatest values of constructor arguments. What else is huge needs as many weights, which a file has or has not.
LIMITS = {'img_resolution': 2**12, 'num_layers': 10_000, 'num_blocks': 10_000, 'dropout': 1}
LIMIT = 2**20  # of every other number


def _heads(arguments: Mapping[str, Any]) -> bool:
    """Whether a network has a head for each layer."""
    return arguments['prior_width'] > 0 and arguments['prior_kind'] == 'head'


# Constructor arguments -> number of weights that a network has at least, before any of it is built.
_LEAST_WEIGHTS = {
    DDN: lambda a: sum(a['num_blocks']) if _heads(a) or not a['repeat_blocks'] else len(a['num_blocks']),
    RECURRENT: lambda a: a['num_blocks'] * len(a['multipliers']),
}


def persistent_class(cls: type) -> type:
    """Decorator: instances remember their constructor arguments (plain JSON values) in ``init_kwargs``."""
    construct = cls.__init__
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def init(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        construct(self, *args, **kwargs)
        self.init_kwargs = {name: plain(value) for name, value in list(bound.arguments.items())[1:]}

    cls.__init__ = init
    return cls


def plain(value: Any) -> Any:
    """A constructor argument as JSON has it: lists for arrays and tuples."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def init_spec(obj: Any) -> dict[str, Any]:
    """What ``rebuild`` needs: {'class_name', 'kwargs'} of an instance of a persistent class."""
    return {'class_name': f'{type(obj).__module__}.{type(obj).__qualname__}', 'kwargs': obj.init_kwargs}


def upgraded(spec: Mapping[str, Any]) -> dict[str, Any]:
    """``spec`` ('class_name' and 'kwargs', see ``init_spec``) in the terms of this revision.

    Snapshots and runs of earlier revisions name classes by other paths, and lack arguments whose default is another one
    for new networks: they get the value that those revisions imply.
    """
    name, kwargs = spec.get('class_name'), spec.get('kwargs')
    name = RENAMED.get(name, name) if isinstance(name, str) else name
    if name == DDN and isinstance(kwargs, Mapping):
        kwargs = {'condition_placement': 'centred', **kwargs}
    return {**spec, 'class_name': name, 'kwargs': kwargs}


def rebuild(spec: Mapping[str, Any], num_tensors: float = math.inf) -> torch.nn.Module:
    """A new network from ``init_spec``'s dict; ValueError if the class is not on the allow-list, or an argument is
    unknown, missing, of another type or out of range, or they ask for more than ``num_tensors`` weights."""
    cls, kwargs = _checked(spec, num_tensors)
    return cls(**kwargs)


def _checked(spec: Mapping[str, Any], num_tensors: float) -> tuple[type, dict[str, Any]]:
    """Class and arguments of a spec for a network of ``num_tensors`` weights or fewer; nothing is built."""
    name, kwargs = spec.get('class_name'), spec.get('kwargs')
    if name not in ALLOWED_CLASSES:
        raise ValueError(f'{name!r} is not a class that a snapshot may name; allowed: {", ".join(ALLOWED_CLASSES)}')
    module, attribute = name.rsplit('.', 1)
    cls = getattr(importlib.import_module(module), attribute)
    signature = inspect.signature(cls)
    if not isinstance(kwargs, Mapping):
        raise ValueError(f'the arguments of {attribute} are not a JSON object')
    try:
        bound = signature.bind(**kwargs)
    except TypeError as e:
        raise ValueError(f'{attribute}: {e}') from None
    for key, value in kwargs.items():
        if not _has_type(value, signature.parameters[key].annotation):
            kind = inspect.formatannotation(signature.parameters[key].annotation).replace('collections.abc.', '')
            raise ValueError(f'{attribute}: {key} is {str(value)[:80]!r}, not {kind}')
        limit = LIMITS.get(key, LIMIT)
        if not all(0 <= number <= limit for number in _numbers(value)):
            raise ValueError(f'{attribute}: {key}={str(value)[:80]} is out of range: 0 to {limit}')
    bound.apply_defaults()
    layers = bound.arguments['num_blocks']
    if isinstance(layers, Sequence) and sum(layers) > LIMITS['num_layers']:
        raise ValueError(f'{attribute}: {sum(layers)} layers are more than {LIMITS["num_layers"]}')
    if _LEAST_WEIGHTS[name](bound.arguments) > num_tensors:
        raise ValueError(f'{attribute}: the arguments describe more weights than the {num_tensors} in the file')
    return cls, dict(kwargs)


def _has_type(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_has_type(value, part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is Sequence:
        return isinstance(value, (list, tuple)) and all(_has_type(v, typing.get_args(kind)[0]) for v in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


class WithoutWeights(TorchFunctionMode):
    """Constructors make parameters on the ``meta`` device and leave out initial values: they take no memory. (As
    ``torch.device('meta')``, but that loads hundreds of modules, half a second.)"""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.empty, torch.zeros, torch.ones, torch.randn):
            return torch.empty(*args, **{**(kwargs or {}), 'device': 'meta'})
        if func is torch.Tensor.uniform_:
            return args[0]
        is_init = getattr(func, '__module__', None) == 'torch.nn.init'
        return kwargs['tensor'] if is_init else func(*args, **(kwargs or {}))


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in a constructor argument: itself, or those of a list and of the lists in it."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _numbers(part)
    elif not isinstance(value, str):
        yield value


def network_path(network: str | os.PathLike) -> Path:
    """The file of a network: a path, the newest snapshot in a run folder, the file in a folder of
    ``Network.save_pretrained``, a bare name of one in ``pretrained/``, such as 'mnist', or the download of
    'hf:owner/name' (``hub``). A file named like one in ``pretrained/`` in the current folder comes first. OSError or
    ValueError in one line if there is none."""
    text, path = str(network), Path(network)
    if hub.is_hub_name(text):
        return hub.download(text)
    if re.match('https?:', text, re.IGNORECASE):
        raise OSError(f'{text} is a URL: download it, and give the file')
    if re.fullmatch(r'[\w-]+', text) and not path.is_file():
        known = {p.stem: p for p in sorted(PRETRAINED.glob('*.safetensors'))}
        if text in known:
            return known[text]
        if not path.exists():
            names = ', '.join(known) or 'none'
            raise FileNotFoundError(f'no such file: {text}; networks that come with the package: {names}')
    if path.is_dir():
        numbered = [(int(m[1]), p) for p in path.iterdir() if (m := _SNAPSHOT.fullmatch(p.name))]
        if not numbered and (path / hub.WEIGHTS).is_file():
            return path / hub.WEIGHTS
        if not numbered:
            raise FileNotFoundError(f'{path} has no network-snapshot-*.safetensors: give a snapshot or a run folder')
        return max(numbered)[1]
    if not path.exists():
        raise FileNotFoundError(f'no such file or folder: {path}')
    if not path.is_file():
        raise OSError(f'{path} is not a file')
    return path


_SNAPSHOT = re.compile(r'network-snapshot-(\d+)\.safetensors')


def save_network(
    path: str | os.PathLike,
    net: torch.nn.Module,
    emas: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """A snapshot of ``net`` and its averaged copies {label: state dict} for ``load_network``.

    Raises:
        ValueError: weights that are not finite, or arguments or ``sampling`` that ``load_network`` refuses; nothing is
            written.
        OSError: disk full, no permission, in one line.
    """
    spec = init_spec(net)
    _checked(spec, math.inf)
    tensors = {f'net/{name}': t for name, t in net.state_dict().items()}
    for label, state in (emas or {}).items():
        tensors |= {f'ema/{label}/{name}': t for name, t in state.items()}
    header = {**(meta or {}), **spec, 'emas': list(emas or {})}
    if net.sampling != sampling.Sampling():
        header['sampling'] = sampling.to_json(net.sampling)
        sampling.from_json(header['sampling'], _num_nodes(net))
    tensor_files.save_tensors(path, tensors, header)


def _num_nodes(net: torch.nn.Module) -> list[int]:
    """K of each layer that the network was made with: the steps of a recurrent one may be others since."""
    L = net.init_kwargs.get('num_layers', net.num_layers)
    return (net.num_nodes * L)[:L]


def set_sampling(path: str | os.PathLike, facts: sampling.Sampling) -> None:
    """Write ``Network.sampling`` into the snapshot at ``path``; all else stays. Raises as ``load_network``, and OSError
    where it cannot be written."""
    net = load_network(path)
    tensors, meta = tensor_files.load_tensors(path)
    value = sampling.to_json(facts)
    sampling.from_json(value, _num_nodes(net))
    tensor_files.save_tensors(path, tensors, {**meta, 'sampling': value})


def load_network(path: str | os.PathLike, ema: str | float | None = None) -> torch.nn.Module:
    """The network of a snapshot on the CPU; its ``snapshot_meta`` is the header's JSON. ``path``: see ``network_path``.

    The network that the header describes is compared with the tensors of the file before any of it takes memory.

    ``ema``: label of the averaged copy to take, 'none' for the raw weights; None for the first copy if there is one.
    ValueError or OSError in one line where the file is damaged, another one, or has no such copy.
    """
    path = network_path(path)
    with tensor_files.opened(path) as file:
        meta = file.meta
        if 'class_name' not in meta:
            raise ValueError(f'{path} is not a network snapshot (a training state? those are for train.py --resume)')
        labels = meta.get('emas', [])
        if not _has_type(labels, Sequence[str]) or len(set(labels)) < len(labels) or len(labels) > len(file.described):
            raise ValueError(f'{path} does not describe a network: emas is {str(labels)[:80]}, not its list of labels')
        chosen = str(ema) if ema is not None else labels[0] if labels else 'none'
        if chosen not in (*labels, 'none'):
            raise ValueError(f'{path} has no averaged weights {chosen!r}; it has {", ".join((*labels, "none"))}')
        with tensor_files.one_line(f'{path} does not describe a network'):
            cls, kwargs = _checked(upgraded(meta), len(file.described))
            with WithoutWeights():
                net = cls(**kwargs)
            expected = net.state_dict()
            facts = sampling.from_json(meta.get('sampling', {}), net.num_nodes)
        prefixes = ['net/', *(f'ema/{label}/' for label in labels)]
        whole = {prefix + name: tensor for prefix in prefixes for name, tensor in expected.items()}
        stray = next((f'{name} has no place in it' for name in file.described if name not in whole), None)
        if wrong := tensor_files.misfit(whole, file.described) or stray:
            raise ValueError(f'{path}: the weights do not fit the network that the file describes: {wrong}')
        prefix = 'net/' if chosen == 'none' else f'ema/{chosen}/'
        tensors = file.read([prefix + name for name in expected])
        with tensor_files.one_line(f'{path} cannot be loaded'):  # copies, since those of the file are mapped
            state = {name: tensors[prefix + name].to(own.dtype, copy=True) for name, own in expected.items()}
            net.load_state_dict(state, assign=True)
        tensor_files.require_finite(state, str(path))
        if 'sampling' in meta:
            net.sampling = facts
    net.snapshot_meta = meta
    return net
