"""Objects that remember how they were constructed, and snapshots from which they are rebuilt.

A snapshot is data: one safetensors file with the weights, and in its header a JSON text with the class name and the
constructor arguments. Loading looks the class up in an allow-list and runs no code from the file.

Tensor names: ``net/NAME`` for the weights, ``ema/LABEL/NAME`` for each averaged copy.
"""

import functools
import importlib
import inspect
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dnnlib.downloads import local_path
from dnnlib.util import atomic_write

# What a snapshot may name.
ALLOWED_CLASSES = ('ddn_networks.single_shot.DDN', 'ddn_networks.recurrent.RecurrentDDN')
ALIASES = {'ddn_networks.network.DDN': 'ddn_networks.single_shot.DDN'}  # class paths of earlier revisions' snapshots
PRETRAINED = Path(__file__).resolve().parents[1] / 'ddn_networks' / 'pretrained'  # networks that come with the code


def persistent_class(cls: type) -> type:
    """Decorator: instances remember their constructor arguments (plain JSON values) in ``init_kwargs``."""
    construct = cls.__init__
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def init(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        construct(self, *args, **kwargs)
        self.init_kwargs = {name: _plain(value) for name, value in list(bound.arguments.items())[1:]}

    cls.__init__ = init
    return cls


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def init_spec(obj: Any) -> dict[str, Any]:
    """What ``rebuild`` needs: {'class_name', 'kwargs'} of an instance of a persistent class."""
    return {'class_name': f'{type(obj).__module__}.{type(obj).__qualname__}', 'kwargs': obj.init_kwargs}


def rebuild(spec: Mapping[str, Any]) -> Any:
    """A new object from ``init_spec``'s dict; ValueError if the class is not on the allow-list."""
    name = spec.get('class_name')
    name = ALIASES.get(name, name) if isinstance(name, str) else name
    if name not in ALLOWED_CLASSES:
        raise ValueError(f'{name!r} is no class a snapshot may name; allowed: {", ".join(ALLOWED_CLASSES)}')
    module, cls = name.rsplit('.', 1)
    return getattr(importlib.import_module(module), cls)(**spec['kwargs'])


def save_tensors(path: str, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON-able ``meta`` as one safetensors file: whole under its name, or not at all."""
    whole, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().to('cpu').contiguous()
        storage = tensor.untyped_storage().data_ptr()
        whole[name] = tensor.clone() if storage in storages else tensor  # safetensors refuses shared memory
        storages.add(storage)
    with atomic_write(path) as f:
        mode = os.fstat(f.fileno()).st_mode
        try:
            save_file(whole, f.name, metadata={'ddn': json.dumps(meta)})  # puts a file of its own in the place of f
        except SafetensorError as e:
            raise OSError(f'cannot write {path}: {e}') from None
        os.chmod(f.name, mode)
        with open(f.name, 'rb') as written:
            os.fsync(written.fileno())


def network_path(network: str) -> Path:
    """Where a network is on this machine: a path, a URL's download, or a bare name of one in ``pretrained/``: 'mnist'.

    A file of that name in the current folder comes first. OSError in one line if there is none.
    """
    text = str(network)
    if not re.fullmatch(r'[\w-]+', text) or Path(text).is_file():
        return local_path(text)
    path = PRETRAINED / f'{text}.safetensors'
    if not path.is_file():
        known = ', '.join(sorted(p.stem for p in PRETRAINED.glob('*.safetensors'))) or 'none'
        raise FileNotFoundError(f'no such file: {text}; and no network of that name comes with the code: {known}')
    return path


def load_tensors(path: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What ``save_tensors`` wrote, from what ``network_path`` finds; ValueError or OSError in one line if it is not
    that."""
    local = network_path(path)
    try:
        with safe_open(local, 'pt') as f:
            meta = dict(json.loads((f.metadata() or {})['ddn']))
            return {name: f.get_tensor(name) for name in f.keys()}, meta
    except SafetensorError as e:
        raise ValueError(
            f'{path} is not a whole safetensors file (cut off, or a pickle under another name?): {e}'
        ) from None
    except (KeyError, TypeError, ValueError):  # no entry, no JSON, no object
        raise ValueError(f'{path} is a safetensors file without the header of a DDN snapshot') from None


def save_network(
    path: str,
    net: torch.nn.Module,
    emas: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """A snapshot of ``net`` and its averaged copies {label: state dict} for ``load_network``."""
    tensors = {f'net/{name}': t for name, t in net.state_dict().items()}
    for label, state in (emas or {}).items():
        tensors |= {f'ema/{label}/{name}': t for name, t in state.items()}
    save_tensors(path, tensors, {**(meta or {}), **init_spec(net), 'emas': list(emas or {})})


def load_network(path: str, ema: str | float | None = None) -> torch.nn.Module:
    """The network of a snapshot on the CPU; its ``snapshot_meta`` is the header's JSON.

    ``ema``: label of the averaged copy to take, 'none' for the raw weights; None for the first copy if there is one.
    """
    tensors, meta = load_tensors(path)
    if 'class_name' not in meta:
        raise ValueError(f'{path} is no network snapshot (a training state? those are for train.py --resume)')
    labels = meta.get('emas', [])
    if ema is None:
        ema = labels[0] if labels else 'none'
    ema = str(ema)
    if ema not in (*labels, 'none'):
        raise ValueError(f'{path} has no averaged weights {ema!r}; it has {", ".join((*labels, "none"))}')
    prefix = 'net/' if ema == 'none' else f'ema/{ema}/'
    try:
        net = rebuild(meta)
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f'{path} does not describe a network: {e}') from None
    state = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    try:
        net.load_state_dict(state)
    except RuntimeError as e:
        reason = ' '.join(str(e).split())[:300]
        raise ValueError(f'{path}: the weights do not fit the network that the file describes: {reason}') from None
    net.snapshot_meta = meta
    return net
