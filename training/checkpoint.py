"""Training states: everything a run needs to go on as if it had never stopped.

A state is a safetensors file ``training-state-NNNNNNNNN.safetensors`` (N images seen) in the run folder, with the
weights, every EMA, the optimizer's moments and the counters of Split-and-Prune. All randomness and the data position
are functions of (seed, images seen), so nothing else has to be kept.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

import torch

from torch_utils import persistence
from training.ema import EMA

_STATE = re.compile(r'training-state-(\d+)\.safetensors')
_OF_IMAGES = re.compile(
    r'(?:training-state|network-snapshot|samples|reconstructions|layers)-(\d+)\.(?:safetensors|png)'
)
KEEP = 2  # newest states that are kept


def state_path(run_dir: str, cur_nimg: int) -> str:
    return os.path.join(run_dir, f'training-state-{cur_nimg:09d}.safetensors')


def _tensors(net: torch.nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, balance: Any) -> Iterator:
    """(name, tensor) of everything that a state holds; the tensors are the live ones."""
    names = {p: n for n, p in net.named_parameters()}
    for name, tensor in net.state_dict().items():
        yield f'net/{name}', tensor
    for label, copy in ema.copies.items():
        for name, tensor in copy.items():
            yield f'ema/{label}/{name}', tensor
    for param, state in optimizer.state.items():
        for key, value in state.items():
            yield f'opt/{key}/{names[param]}', value
    for name, tensor in balance.state_dict().items():
        yield f'balance/{name}', tensor


def save_state(path: str, net, ema: EMA, optimizer, balance, meta: dict[str, Any]) -> None:
    """Write a state, then remove all but the newest ``KEEP`` of the folder."""
    persistence.save_tensors(path, dict(_tensors(net, ema, optimizer, balance)), {**meta, 'kind': 'training-state'})
    for old in find_states(os.path.dirname(path))[KEEP:]:
        os.remove(old)


@torch.no_grad()
def load_state(path: str, net, ema: EMA, optimizer, balance) -> dict[str, Any]:
    """Copy a state into the given objects; returns its meta data. ValueError names what does not fit."""
    try:
        tensors, meta = persistence.load_tensors(path)
    except ValueError as e:
        others = [state for state in find_states(os.path.dirname(path) or '.') if not os.path.samefile(state, path)]
        raise ValueError(f'{e}; there is also --resume={others[0]}' if others else str(e)) from None
    if meta.get('kind') != 'training-state':
        raise ValueError(f'{path} is no training state; give --resume a run folder or a training-state-*.safetensors')
    for name, param in net.named_parameters():  # moments exist after the first step only: make room for them
        keys = [key for key in tensors if key.startswith('opt/') and key.split('/', 2)[2] == name]
        for key in keys:
            moment = tensors[key]
            like = torch.zeros_like(param if moment.shape == param.shape else moment, device=param.device)
            optimizer.state[param][key.split('/', 2)[1]] = like
    for name, tensor in _tensors(net, ema, optimizer, balance):
        if name not in tensors:
            raise ValueError(f'{path} does not hold {name}: it is of a run with other options')
        if tensors[name].shape != tensor.shape:
            raise ValueError(f'{path}: {name} is {list(tensors[name].shape)}, this run needs {list(tensor.shape)}')
        tensor.copy_(tensors[name])
    return meta


def set_newer_aside(run_dir: str, cur_nimg: int, unchanged: bool) -> int:
    """Rename states, snapshots and pictures of more than ``cur_nimg`` images to ``*.old``; how many. A run that goes on
    ``unchanged`` from its newest state makes the same ones again: then they stay, and none is renamed."""
    names = [name for name in sorted(os.listdir(run_dir)) if (m := _OF_IMAGES.fullmatch(name)) and int(m[1]) > cur_nimg]
    if unchanged and not any(map(_STATE.fullmatch, names)):
        return 0
    for name in names:
        os.replace(os.path.join(run_dir, name), os.path.join(run_dir, f'{name}.old'))
    return len(names)


def find_states(run_dir: str) -> list[str]:
    """The training states of a run folder, newest first; none where there is no such folder."""
    names = filter(_STATE.fullmatch, os.listdir(run_dir) if os.path.isdir(run_dir) else [])
    return sorted((os.path.join(run_dir, name) for name in names), key=_images, reverse=True)


def _images(path: str) -> int:
    return int(_STATE.fullmatch(os.path.basename(path))[1])
