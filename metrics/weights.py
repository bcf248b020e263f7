"""Files of weights, read as data and checked against the network that they are for."""

import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from dnnlib.readers import one_line, printable


def read_state(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Read the tensors of a weight file by name: safetensors, or a state dict of ``torch.save``, also one that lies
    under the key 'state_dict'. Runs nothing that is in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a file of weights; in one line.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no such file: {printable(path)}')
    complaint = f'{path} is not a file of weights'
    with one_line(complaint), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if Path(path).suffix == '.safetensors':
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = _torch_load(path)
    if isinstance(state, Mapping) and isinstance(state.get('state_dict'), Mapping):
        state = state['state_dict']
    named = isinstance(state, Mapping) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f'{printable(complaint)} (it does not hold tensors by name)')
    for name, value in state.items():  # a view may claim any number of elements
        if value.layout != torch.strided or value.is_quantized or value.device.type != 'cpu':
            raise ValueError(f'{printable(complaint)} ({printable(name)} is not a dense tensor)')
        if value.numel() * value.element_size() > Path(path).stat().st_size:
            raise ValueError(f'{printable(complaint)} ({printable(name)} has more numbers than the file)')
    return dict(state)


def _torch_load(path: str | os.PathLike) -> object:
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        if 'weights_only' in str(error):  # PyTorch advises to run the file
            raise ValueError('it holds more than tensors, or is damaged') from None
        raise


@torch.no_grad()
def load_(net: torch.nn.Module, state: Mapping[str, torch.Tensor], source: str | os.PathLike) -> None:
    """Copy weights into the parameters and buffers of ``net`` of the same names; others are ignored, and so are the
    counters of batch norms.

    Raises:
        ValueError: ``source`` lacks a tensor, or has one of another shape, not of floats, or not finite; in one line.
    """
    for name, own in net.state_dict().items():
        if name.endswith('num_batches_tracked'):
            continue
        with one_line(f'{source} does not fit {type(net).__name__}'):
            if name not in state:
                raise ValueError(f'the tensor {name} is missing')
            found = state[name]
            if found.shape != own.shape:
                raise ValueError(f'{name} is {tuple(found.shape)}, wanted {tuple(own.shape)}')
            if not found.dtype.is_floating_point:
                raise ValueError(f'{name} holds {found.dtype}, wanted floats')
            own.copy_(found)
            if not own.isfinite().all():
                raise ValueError(f'{name} holds numbers that are not finite')


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names and values in the order of the names: the same for the same weights in any file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
