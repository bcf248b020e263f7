"""Training states: everything that a run needs to resume as if it had never stopped.

A state is a safetensors file ``training-state-NNNNNNNNN.safetensors`` (N images seen) in the run folder, with the
weights, every EMA, the optimizer's moments and the counters of Split-and-Prune. All randomness and the data position
are functions of (seed, images seen), so nothing else has to be kept.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import torch

from ddn_networks import snapshots, tensor_files
from training.ema import EMA

_STATE = re.compile(r'training-state-(\d+)\.safetensors')
_OF_IMAGES = re.compile(
    r'(?:training-state|network-snapshot|samples|reconstructions|layers)-(\d+)\.(?:safetensors|png)'
)
KEEP = 2  # newest states that are kept
MOMENTS = ('step', 'exp_avg', 'exp_avg_sq')  # of Adam
# What ``torch.amp.GradScaler`` keeps: type, least and greatest value.
SCALER = {
    'scale': (float, 0, 2.0**128),
    'growth_factor': (float, 1.0, 2.0**16),
    'backoff_factor': (float, 2.0**-16, 1.0),
    'growth_interval': (int, 1, 2**31 - 1),
    '_growth_tracker': (int, 0, 2**31 - 1),
}


def state_path(run_dir: str, cur_nimg: int) -> str:
    return os.path.join(run_dir, f'training-state-{cur_nimg:09d}.safetensors')


Moments = dict[torch.Tensor, dict[str, torch.Tensor]]  # of each parameter, as ``optimizer.state`` has them


def _tensors(net: torch.nn.Module, ema: EMA, moments: Moments, balance: Any) -> dict[str, torch.Tensor]:
    """Everything that a state holds, by name; the tensors are the live ones."""
    names = {param: name for name, param in net.named_parameters()}
    groups = {
        'net': net.state_dict(),
        **{f'ema/{label}': copy for label, copy in ema.copies.items()},
        **{f'opt/{key}': {names[p]: state[key] for p, state in moments.items()} for key in MOMENTS if moments},
        'balance': balance.state_dict(),
    }
    return {f'{group}/{name}': tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


def new_moments(optimizer: torch.optim.Adam) -> Moments:
    """What Adam's first step makes of each parameter."""
    moments = {}
    for group in optimizer.param_groups:
        for param in group['params']:
            step = torch.zeros((), device=param.device if group['fused'] else 'cpu')
            moments[param] = {'step': step, 'exp_avg': torch.zeros_like(param), 'exp_avg_sq': torch.zeros_like(param)}
    return moments


def save_state(path: str, net, ema: EMA, optimizer: torch.optim.Adam, balance, meta: dict[str, Any]) -> None:
    """Write a state, then remove all but the newest ``KEEP`` of the folder. ValueError where weights, averages, moments
    or counters are not finite: then nothing is written or removed."""
    tensors = _tensors(net, ema, dict(optimizer.state), balance)
    tensor_files.save_tensors(path, tensors, {**meta, 'kind': 'training-state'})
    remove_old_states(os.path.dirname(path))


def remove_old_states(run_dir: str) -> None:
    """Remove all but the newest ``KEEP`` states of a folder."""
    for old in find_states(run_dir)[KEEP:]:
        os.remove(old)


def check_network(path: str, spec: dict[str, Any]) -> None:
    """ValueError where a state is not of the network that ``spec`` (see ``snapshots.rebuild``) describes. Nothing of
    the network takes memory: stored options may describe a huge one."""
    with _opened(path) as file:
        with snapshots.WithoutWeights():
            expected = snapshots.rebuild(spec, len(file.described)).state_dict()
        wrong = tensor_files.misfit({f'net/{name}': tensor for name, tensor in expected.items()}, file.described)
        if wrong:
            raise ValueError(f'{path} is of a run with other options: {wrong}')


@torch.no_grad()
def load_state(path: str, net, ema: EMA, optimizer: torch.optim.Adam, balance) -> dict[str, Any]:
    """Copy a state into the given objects; returns its JSON. Names, shapes and types are those of the objects.

    ValueError or OSError in one line where the file is damaged, another one, or of a run with other options; then
    nothing is changed.
    """
    with _opened(path) as file:
        _check_meta(path, file.meta)
        moments = new_moments(optimizer) if any(name.startswith('opt/') for name in file.described) else {}
        live = _tensors(net, ema, moments, balance)
        # Averages that this run does not keep, and counters of another way of balancing, may be there too.
        strange = [n for n in file.described if n not in live and not n.startswith(('ema/', 'balance/'))]
        wrong = tensor_files.misfit(live, file.described, (torch.float64, torch.float32))
        wrong = wrong or (f'{strange[0]} is not in this run' if strange else None)
        if wrong:
            raise ValueError(f'{path} is of a run with other options: {wrong}')
        read = file.read(live)
        read = {name: tensor.to(live[name].dtype) for name, tensor in read.items()}
        tensor_files.require_finite(read, path)
        _require_possible(path, read)
    for name, tensor in read.items():
        live[name].copy_(tensor)
    optimizer.state.update(moments)
    return file.meta


def _require_possible(path: str, read: dict[str, torch.Tensor]) -> None:
    """ValueError where a count or a second moment is negative, or where parameters differ in their number of steps."""
    never_negative = ('opt/exp_avg_sq/', 'balance/counts', 'balance/seen', 'balance/num_splits')
    for name, tensor in read.items():
        if name.startswith(never_negative) and (tensor < 0).any():
            raise ValueError(f'{path} does not hold the state of a run: {name} is negative')
    steps = {float(tensor) for name, tensor in read.items() if name.startswith('opt/step/')}
    if len(steps) > 1 or not all(step >= 0 and step.is_integer() for step in steps):
        raise ValueError(f'{path} does not hold the state of a run: opt/step is {sorted(steps)[:4]}, not one number')


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tensor_files.TensorFile]:
    """The file of a state; errors while it is open name another state of the run, if there is one."""
    try:
        with tensor_files.opened(path) as file:
            yield file
    except (ValueError, OSError) as e:
        others = [s for s in find_states(os.path.dirname(path) or '.') if os.path.basename(s) != os.path.basename(path)]
        kind = OSError if isinstance(e, OSError) else ValueError
        raise kind(f'{e}; there is also --resume={others[0]}' if others else str(e)) from None


def _check_meta(path: str, meta: dict[str, Any]) -> None:
    """ValueError where the JSON of a state does not hold what the training loop takes from it."""
    if meta.get('kind') != 'training-state':
        raise ValueError(f'{path} is not a training state: give a run folder or a training-state-*.safetensors')
    scaler = meta.get('scaler') or {}
    right = {
        'cur_nimg': _in_range(meta.get('cur_nimg'), int, 0, 2**53),
        'loss_scale': meta.get('loss_scale') is None or _in_range(meta['loss_scale'], float, 0, 2.0**128),
        'scaler': isinstance(scaler, dict) and (not scaler or scaler.keys() == SCALER.keys()),
    }
    right['scaler'] = right['scaler'] and all(_in_range(value, *SCALER[key]) for key, value in scaler.items())
    named = _STATE.fullmatch(os.path.basename(path))
    right['cur_nimg'] = right['cur_nimg'] and (named is None or int(named[1]) == meta['cur_nimg'])
    for key, is_right in right.items():
        if not is_right:
            raise ValueError(f'{path} does not hold the state of a run: its {key} is {str(meta.get(key))[:80]}')


def _in_range(value: Any, kind: type, least: float, most: float) -> bool:
    return type(value) in (int, kind) and least <= value <= most


def set_newer_aside(run_dir: str, cur_nimg: int, unchanged: bool) -> int:
    """Rename states, snapshots and pictures of more than ``cur_nimg`` images to ``*.old``; returns how many. A run that
    continues ``unchanged`` from its newest state makes the same ones again: then they stay."""
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
