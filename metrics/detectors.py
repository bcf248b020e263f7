"""The networks that look at pictures for a metric: where their weights lie, which file that is, how they are run.

A file of weights is data: `torch.load(weights_only=True)` or safetensors, nothing in it is run. Its tensors tell which
network it is for.
"""

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from dnnlib.downloads import Limits, cache_path, local_path
from metrics.inception import Inception
from metrics.lenet import LeNet
from metrics.lpips import LPIPS

NETWORKS = {'inception': Inception, 'lenet': LeNet}
MARKS = {'inception': 'Mixed_7c.branch_pool.conv.weight', 'lenet': 'convnet.c1.weight'}  # a tensor that only it has
FILES = {  # what they are called where they lie in the cache or in ../shared/weights
    'inception': ('pt_inception-2015-12-05-6726825d.pth', 'inception.pth'),
    'lenet': ('khushbujpatel_lenet_mnist_cnn.pt',),
    'lpips-alex': ('alex_torchvision_features_names.pth',),
    'lpips-lin': ('alex_lin_v0.1.pth',),
}
VARIABLES = {
    'inception': 'DDN_INCEPTION',
    'lenet': 'DDN_LENET',
    'lpips-alex': 'DDN_LPIPS_ALEX',
    'lpips-lin': 'DDN_LPIPS_LIN',
}
INCEPTION_URL = 'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/' + FILES['inception'][0]
PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


class Detector(NamedTuple):
    """A network that turns images `[B, 1 or 3, H, W]`, float in [-1, 1], into features `[B, dim]`, float32."""

    name: str
    net: torch.nn.Module
    dim: int
    resize: str
    precision: str
    path: str
    sha256: str  # of the file
    digest: str  # of the weights in it, whatever the file's format

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features, on the detector's device, of images on any device. For numbers, not for gradients."""
        # By default cuDNN rounds the factors of a convolution to 10 bits (TF32); FID is float32.
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            return self.net(images.to(next(self.net.parameters()).device))

    def describe(self) -> dict:
        """What a result must say of it, as JSON values."""
        return {key: value for key, value in self._asdict().items() if key != 'net'}


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_state(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a weight file by name. Raises ValueError in one line if it is not one, FileNotFoundError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f'no such file: {path}')
    try:
        if Path(path).suffix == '.safetensors':
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location='cpu', weights_only=True)
    except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, AttributeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f'{path} is no file of weights (a state dict or safetensors): {reason[0][:120]}') from None
    except Exception as error:
        if type(error).__name__ != 'SafetensorError':
            raise
        raise ValueError(f'{path} is no whole safetensors file: {error}') from None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f'{path} is no file of weights: it does not hold tensors by name')
    return dict(state)


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names and values in the order of the names: the same for the same weights in any file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def weights_path(kind: str, given: str | os.PathLike | None = None) -> Path:
    """Where the weights of `kind` (a key of FILES) lie on this machine.

    Looks at `given` (path or URL), the kind's environment variable, the download cache, `../shared/weights` beside the
    checkout; Inception's are downloaded if they are nowhere.

    Raises:
        FileNotFoundError: nowhere; the one line says where which file may be put.
    """
    variable = VARIABLES[kind]
    if given is not None or os.environ.get(variable):
        return local_path(given if given is not None else os.environ[variable])
    cache = cache_path(INCEPTION_URL).parent
    places = [cache, Path(__file__).resolve().parents[2] / 'shared' / 'weights']
    for path in [cache_path(INCEPTION_URL)] * (kind == 'inception') + [p / f for p in places for f in FILES[kind]]:
        if path.is_file():
            return path
    advice = f'put {FILES[kind][0]} at {cache / FILES[kind][0]}, or name a file'
    if kind != 'inception':
        raise FileNotFoundError(f'no weights of {kind} on this machine: {advice} in ${variable}')
    try:
        return local_path(INCEPTION_URL, limits=Limits(retries=1))
    except OSError as error:
        raise FileNotFoundError(
            f'no Inception weights on this machine, and no download: {advice} with --detector-weights or ${variable} '
            f'(pytorch-fid publishes it: {INCEPTION_URL})'
        ) from error


def load_detector(
    name: str = 'inception',
    weights: str | os.PathLike | None = None,
    device: str | torch.device = 'cpu',
    precision: str = 'float32',
) -> Detector:
    """A detector that is ready to use.

    Args:
        name: `inception`, `lenet`, or a path or URL of a file of weights, whose tensors tell which of them it is.
        weights: path or URL of the weights; None looks where `weights_path` says.
        device: where it runs.
        precision: `float32` or, for Inception, `bfloat16`: faster, features off by a few per cent.

    Raises:
        ValueError: not a file of weights, or of another network.
        FileNotFoundError: no weights; the line says where to put them.
    """
    if precision not in PRECISIONS:
        raise ValueError(f'precision is {" or ".join(PRECISIONS)}, not {precision!r}')
    if name not in NETWORKS and weights is not None:
        raise ValueError(f'the detector {name} is a file of weights already: it takes no --detector-weights')
    path = weights_path(name, weights) if name in NETWORKS else local_path(name)
    state = read_state(path)
    kinds = [kind for kind, mark in MARKS.items() if mark in state]
    if not kinds or (name in NETWORKS and name != kinds[0]):
        wanted = name if name in NETWORKS else ' or '.join(NETWORKS)
        raise ValueError(f'{path} does not hold the weights of a detector ({wanted})')
    kind = kinds[0]
    net = NETWORKS[kind]().load_weights_(state)
    digest = state_digest({k: v for k, v in net.state_dict().items() if not k.endswith('num_batches_tracked')})
    if kind == 'inception':
        net.fast_(PRECISIONS[precision])
    elif precision != 'float32':
        raise ValueError(f'{kind} runs in float32 alone')
    return Detector(kind, net.to(device), net.dim, net.resize, precision, str(path), file_sha256(path), digest)


def load_lpips(device: str | torch.device = 'cpu') -> LPIPS:
    """LPIPS v0.1 (AlexNet) with the weights that `weights_path` finds. Raises as `load_detector`."""
    alex, lin = weights_path('lpips-alex'), weights_path('lpips-lin')
    return LPIPS().load_weights_(read_state(alex), read_state(lin)).to(device)
