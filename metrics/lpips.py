"""LPIPS v0.1 with the AlexNet backbone (Zhang et al. 2018, arXiv:1801.03924), as a distance and as an embedding.

The distance is  sum_l mean_hw sum_c w_lc (a_lchw - b_lchw)^2  with unit-length features a, b of layer l and w >= 0. So
it is a squared Euclidean distance between the vectors  sqrt(w_lc / (H_l W_l)) a_lchw,  which ``embed`` returns. Nearest
neighbours by LPIPS then take one pass of the network per picture, instead of one per pair.
"""

import torch
import torch.nn.functional as F
from torch import nn

SHIFT = (-0.030, -0.088, -0.188)  # ImageNet's mean and deviation, for pixels in [-1, 1]
SCALE = (0.458, 0.448, 0.450)
LAYERS = {  # place in AlexNet: channels in, out, kernel, stride, padding
    0: (3, 64, 11, 4, 2),
    3: (64, 192, 5, 1, 2),
    6: (192, 384, 3, 1, 1),
    8: (384, 256, 3, 1, 1),
    10: (256, 256, 3, 1, 1),
}
POOL_BEFORE = (3, 6)
POOLED_SIZE = 64  # pixels a side that PooledAlexNet looks at
MIN_SIZE = 31  # below that, the second pool of AlexNet has nothing left


def convolutions() -> nn.ModuleDict:
    """The convolutions of AlexNet by their places in torchvision's, untrained."""
    found = nn.ModuleDict(
        {str(i): nn.Conv2d(a, b, kernel, stride, padding) for i, (a, b, kernel, stride, padding) in LAYERS.items()}
    )
    return found.to(memory_format=torch.channels_last)  # 1.3 times as fast on a CPU: benchmarks/features.py


def activations(features: nn.ModuleDict, images: torch.Tensor) -> list[torch.Tensor]:
    """What each convolution gives after its ReLU; images [B, 1 or 3, H, W] in [-1, 1]."""
    x = (images.float() - images.new_tensor(SHIFT).view(1, 3, 1, 1)) / images.new_tensor(SCALE).view(1, 3, 1, 1)
    layers = []
    for i in LAYERS:
        x = F.max_pool2d(x, 3, 2) if i in POOL_BEFORE else x
        x = F.relu(features[str(i)](x))
        layers.append(x)
    return layers


class PooledAlexNet(nn.Module):
    """A detector: the means of AlexNet's fourth and fifth convolution (after ReLU) over a picture of 64x64 pixels.

    A hundred times faster than Inception on a CPU. Distances are not comparable to FID.
    """

    dim = 512
    resize = f'bilinear, antialiased, to {POOLED_SIZE}x{POOLED_SIZE}'

    def __init__(self):
        super().__init__()
        self.features = convolutions()
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features [B, 512], float32, of images [B, 1 or 3, H, W], float in [-1, 1]."""
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise ValueError(f'AlexNet wants float images [B, 1 or 3, H, W], not {images.dtype} {[*images.shape]}')
        size = (POOLED_SIZE, POOLED_SIZE)
        x = F.interpolate(images.float(), size, mode='bilinear', align_corners=False, antialias=True)
        return torch.cat([layer.mean((2, 3)) for layer in activations(self.features, x)[3:]], 1)


class LPIPS(nn.Module):
    """``forward(a, b)`` returns the distance of each pair, ``embed(a)`` vectors whose squared distances these are."""

    def __init__(self):
        super().__init__()
        self.features = convolutions()
        for i, (_, width, *_) in enumerate(LAYERS.values()):
            self.register_buffer(f'lin{i}', torch.ones(width))
        self.eval().requires_grad_(False)

    def activations(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The five layers' features after ReLU, scaled to length 1 at each pixel; images as in ``forward``."""
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise ValueError(f'LPIPS wants float images [B, 1 or 3, H, W], not {images.dtype} {[*images.shape]}')
        if min(images.shape[2:]) < MIN_SIZE:
            raise ValueError(f'LPIPS needs pictures of at least {MIN_SIZE}x{MIN_SIZE}, not {[*images.shape[2:]]}')
        layers = activations(self.features, images)
        return [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in layers]

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Vectors [B, D], float32: |embed(a) - embed(b)|^2 = LPIPS(a, b). At 32x32 D = 5760, at 64x64 D = 31872."""
        parts = []
        for i, x in enumerate(self.activations(images)):
            weight = getattr(self, f'lin{i}').view(1, -1, 1, 1) / (x.shape[2] * x.shape[3])
            parts.append((x * weight.sqrt()).flatten(1))
        return torch.cat(parts, 1)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """LPIPS [B], float32, 0 where equal, of images [B, 1 or 3, H, W], float in [-1, 1], at least 31x31."""
        if a.shape != b.shape:
            raise ValueError(f'LPIPS compares pictures of one shape, not {[*a.shape]} with {[*b.shape]}')
        total = a.new_zeros(len(a), dtype=torch.float32)
        for i, (x, y) in enumerate(zip(self.activations(a), self.activations(b), strict=True)):
            total = total + ((x - y).square().mean((2, 3)) * getattr(self, f'lin{i}')).sum(1)
        return total
