"""The networks of the metrics: where their weights are searched for, and how they are loaded and run.

A file of detector weights names its network by the tensors in it.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dnnlib.downloads import Limits, cache_path, local_path
from dnnlib.util import atomic_write, file_sha256
from metrics.inception import Inception
from metrics.lenet import LeNet
from metrics.lpips import LPIPS, PooledAlexNet
from metrics.resnet import CifarResNet
from metrics.weights import load_, read_state, state_digest

NETWORKS = {'inception': Inception, 'lenet': LeNet, 'alex': PooledAlexNet}
MARKS = {  # a tensor of this one alone
    'inception': 'Mixed_7c.branch_pool.conv.weight',
    'lenet': 'convnet.c1.weight',
    'alex': 'features.10.weight',
}
FILES = {  # names of the files in the cache and in ../shared/weights
    'inception': ('pt_inception-2015-12-05-6726825d.pth', 'inception.pth'),
    'lenet': ('khushbujpatel_lenet_mnist_cnn.pt',),
    'lpips-alex': ('alex_torchvision_features_names.pth',),
    'lpips-lin': ('alex_lin_v0.1.pth',),
    'resnet20': ('akamaster_resnet20-12fca82f.th',),
    'resnet56': ('akamaster_resnet56-4bfd9763.th',),
}
VARIABLES = {kind: f'DDN_{kind.upper().replace("-", "_")}' for kind in FILES}  # DDN_LPIPS_ALEX
INCEPTION_URL = 'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/' + FILES['inception'][0]
PRECISIONS = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


class Detector(NamedTuple):
    """A network that turns images [B, 1 or 3, H, W], float in [-1, 1], into features [B, dim], float32.

    ``folder``: where features are kept, one file per batch, or None. The name of a file is a digest of the images and
    the detector, so a calculation that was stopped continues behind the last batch, to the bit, and other images or
    another detector never find old features.
    """

    name: str
    net: torch.nn.Module
    dim: int
    resize: str
    precision: str
    path: str
    sha256: str  # of the file
    digest: str  # of the weights in it, the same in any format
    folder: Path | None = None

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features on the detector's device of images on any device, without gradients. Raises ValueError where they
        are not finite, OSError where they cannot be kept."""
        if self.folder is None:
            return self.computed(images)
        path = self.folder / f'{self.key(images)}.npy'
        kept = read_features(path, (len(images), self.dim))
        if kept is not None:
            return kept.to(next(self.net.parameters()).device)
        features = self.computed(images)
        with atomic_write(path) as file:
            np.save(file, features.cpu().numpy())
        return features

    def key(self, images: torch.Tensor) -> str:
        """A digest of all that the features of a batch depend on, to the bit."""
        device = next(self.net.parameters()).device.type
        facts = self.name, self.resize, self.precision, self.digest, device, torch.__version__, [*images.shape]
        pixels = images.float().cpu().contiguous().numpy()
        return hashlib.sha256(repr(facts).encode() + pixels.tobytes()).hexdigest()

    @torch.inference_mode()
    def computed(self, images: torch.Tensor) -> torch.Tensor:
        """``features``, without a look at what is kept."""
        # By default cuDNN rounds the factors of a convolution to 10 bits (TF32); FID is float32.
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            features = self.net(images.to(next(self.net.parameters()).device))
        if not features.isfinite().all():
            raise ValueError(f'{self.path}: features of these weights are not finite (NaN or infinite)')
        return features

    def describe(self) -> dict:
        """The facts that belong with a result, as JSON values."""
        return {key: value for key, value in self._asdict().items() if key not in ('net', 'folder')}


def read_features(path: Path, shape: tuple[int, int]) -> torch.Tensor | None:
    """Kept features [B, dim] of a batch; None where there are none, or the file is damaged."""
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    good = isinstance(features, np.ndarray) and features.shape == shape and features.dtype == np.float32
    return torch.from_numpy(features) if good and np.isfinite(features).all() else None


def weights_path(kind: str, given: str | os.PathLike | None = None) -> Path:
    """Find the weights of ``kind``, a key of FILES, on this machine.

    Looks at ``given`` (path or URL), the kind's environment variable, the download cache and ``../shared/weights`` next
    to the checkout. Inception's are downloaded where none of them has a file.

    Raises:
        FileNotFoundError: there are none; the line names the file and where to put it.
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
    folder: str | os.PathLike | None = None,
) -> Detector:
    """Load a detector.

    Args:
        name: ``inception``, ``lenet``, ``alex``, or a path or URL of a file of the weights of one.
        weights: path or URL of the weights; None looks where ``weights_path`` says.
        device: where it runs.
        precision: ``float32`` or, for Inception, ``float16`` (on CUDA: features off by less than a per cent) or
            ``bfloat16`` (by a few per cent): faster.
        folder: where to keep features (``Detector``); made if there is none.

    Raises:
        ValueError: the file is not one of weights, or of another network, or its numbers are not finite.
        FileNotFoundError: there are no weights; the line says where to put them.
    """
    if precision not in PRECISIONS:
        raise ValueError(f'unknown precision {precision!r}: choose from {", ".join(PRECISIONS)}')
    if name not in NETWORKS and weights is not None:
        raise ValueError(f'--detector-weights: the detector {name} is a file of weights itself')
    path = weights_path('lpips-alex' if name == 'alex' else name, weights) if name in NETWORKS else local_path(name)
    state = read_state(path)
    kinds = [kind for kind, mark in MARKS.items() if mark in state]
    if not kinds or (name in NETWORKS and name != kinds[0]):
        wanted = name if name in NETWORKS else ' or '.join(NETWORKS)
        raise ValueError(f'{path} does not hold the weights of a detector ({wanted})')
    kind = kinds[0]
    net = NETWORKS[kind]()
    load_(net, state, path)
    digest = state_digest({k: v for k, v in net.state_dict().items() if not k.endswith('num_batches_tracked')})
    if kind == 'inception':
        net.fast_(PRECISIONS[precision])
    elif precision != 'float32':
        raise ValueError(f'{kind} runs in float32 only')
    made = Detector(kind, net.to(device), net.dim, net.resize, precision, str(path), file_sha256(path), digest)
    if folder is None:
        return made
    Path(folder).mkdir(parents=True, exist_ok=True)
    return made._replace(folder=Path(folder))


def load_lpips(device: str | torch.device = 'cpu', backbone: str | None = None) -> LPIPS:
    """LPIPS v0.1 (AlexNet) with the weights that ``weights_path`` finds; ``backbone``: path or URL of AlexNet's. Raises
    as ``load_detector``."""
    paths = weights_path('lpips-alex', backbone), weights_path('lpips-lin')
    state = read_state(paths[0]) | {key.split('.')[0]: value.flatten() for key, value in read_state(paths[1]).items()}
    net = LPIPS()
    load_(net, state, ' and '.join(map(str, paths)))
    if min(float(weight.min()) for name, weight in net.state_dict().items() if name.startswith('lin')) < 0:
        raise ValueError(f'{paths[1]}: negative linear weights do not define a distance')
    return net.to(device)


def load_resnet(depth: int) -> CifarResNet:
    """A classifier of CIFAR-10 of depth 20 or 56, with the weights that ``weights_path`` finds. Raises as
    ``load_detector``."""
    path = weights_path(f'resnet{depth}')
    net = CifarResNet(depth)
    load_(net, {name.removeprefix('module.'): tensor for name, tensor in read_state(path).items()}, path)
    return net.to(memory_format=torch.channels_last)  # a fifth faster
