"""Helpers for modules, tensors and the source checkout."""

import contextlib
import math
import subprocess
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

PRECISIONS = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}  # of a network's blocks: dtype of autocast


def memory_format(device: torch.device, precision: str) -> torch.memory_format:
    """The layout in which convolutions are fastest (measured by benchmarks/backbone_options.py): channels last, but on
    a CPU with bfloat16 blocks, where the norms between the convolutions lose more by it than those gain."""
    contiguous = device.type == 'cpu' and precision == 'bf16'
    return torch.contiguous_format if contiguous else torch.channels_last


def compile_(blocks: Iterable[nn.Module], dynamic: bool | None = None) -> None:
    """torch.compile every block, in place; ``dynamic`` as there.

    The blocks share their code, and each width is a variant of it: with PyTorch's limit of 8 variants the blocks of the
    last scales would silently not be compiled.
    """
    for name in ('recompile_limit', 'cache_size_limit'):  # the name in newer and in older PyTorch
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, 64)
    for block in blocks:
        block.compile(dynamic=dynamic)


def psnr(mse: float | torch.Tensor, peak: float = 2.0) -> float | torch.Tensor:
    """Peak signal-to-noise ratio in dB of a mean squared error, of images whose range is ``peak`` wide.

    Elementwise for a tensor, with inf where the error is zero. An error that is a float is clamped to at least 1e-12,
    so that the result can be logged.
    """
    if isinstance(mse, torch.Tensor):
        return 10 * (peak**2 / mse).log10()
    return 10 * math.log10(peak**2 / max(mse, 1e-12))


@torch.no_grad()
def copy_params_and_buffers_(
    src_state: Mapping[str, torch.Tensor], dst_module: nn.Module, allow_missing: bool = False
) -> list[str]:
    """Overwrite parameters and buffers by those of the same name and shape in ``src_state`` (``--transfer``).

    Returns:
        The entries of ``dst_module`` that were left as they are, each as a text that says why.

    Raises:
        ValueError: nothing fits; or something does not and ``allow_missing`` is false.
    """
    left = []
    own = dst_module.state_dict()
    for name, tensor in own.items():
        if name not in src_state:
            left.append(f'{name} (missing)')
        elif src_state[name].shape != tensor.shape:
            left.append(f'{name} (there {list(src_state[name].shape)}, here {list(tensor.shape)})')
    if left and (not allow_missing or len(left) == len(own)):
        raise ValueError(f'{len(left)} of {len(own)} weights do not fit, the first of them {", ".join(left[:3])}')
    kept = {text.split(' ', 1)[0] for text in left}
    for name, tensor in own.items():
        if name not in kept:
            tensor.copy_(src_state[name])
    return left


def git_revision() -> str | None:
    """Short hash of the commit of this code, with '-dirty' after local changes; None outside a checkout."""
    here = Path(__file__).resolve()

    def git(*args: str) -> str:
        command = ['git', '-C', str(here.parent), *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git('ls-files', '--error-unmatch', here.name)  # else a copy inside another project's checkout
        return git('describe', '--always', '--dirty', '--exclude=*') or None
    except (OSError, subprocess.SubprocessError):
        return None


@contextlib.contextmanager
def global_state_kept() -> Iterator[None]:
    """Restore PyTorch's random state and cuDNN's benchmark setting after the block."""
    benchmark = torch.backends.cudnn.benchmark
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


@contextlib.contextmanager
def host_syncs() -> Iterator[list[str]]:
    """A list that fills with one 'file:line' per time the host waited for a CUDA device inside the block.

    PyTorch reports only waits that it causes itself (``torch.cuda.set_sync_debug_mode``). Stays empty without CUDA.
    """
    places: list[str] = []
    if not torch.cuda.is_available():
        yield places
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)
            places += [f'{w.filename}:{w.lineno}' for w in caught if 'synchronizing CUDA' in str(w.message)]
