"""A LeNet-5 for MNIST (99 % accuracy; Khushbu Patel, MIT): features and class probabilities of digits.

It replaces Inception for digits: Frechet distances on its 84 features take seconds on a CPU and, unlike Inception's,
are meaningful there. Its probabilities can also guide a sampler.
"""

import torch
import torch.nn.functional as F
from torch import nn

MEAN, STD = 0.1307, 0.3081  # of MNIST's pixels in [0, 1]
SIZE = 32  # pixels a side


class LeNet(nn.Module):
    """``forward`` gives 84 features, ``probabilities`` the 10 digits'. Parameters as in the published file."""

    dim = 84
    resize = f'none; below {SIZE}x{SIZE} zero-padded'

    def __init__(self):
        super().__init__()
        self.convnet = nn.ModuleDict({'c1': nn.Conv2d(1, 6, 5), 'c3': nn.Conv2d(6, 16, 5), 'c5': nn.Conv2d(16, 120, 5)})
        self.fc = nn.ModuleDict({'f6': nn.Linear(120, 84), 'f7': nn.Linear(84, 10)})
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features [B, 84], float32: the last hidden layer after its ReLU.

        Args:
            images: [B, 1 or 3, H, W], float in [-1, 1], white digits on black. Up to 32x32; smaller ones are padded
                with black on all sides (MNIST's 28 to 32). Of three channels the mean counts.

        Raises:
            ValueError: another shape or an integer type.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise ValueError(f'LeNet wants float images [B, 1 or 3, H, W], not {images.dtype} {[*images.shape]}')
        height, width = images.shape[2:]
        if max(height, width) > SIZE:
            raise ValueError(f'LeNet reads pictures up to {SIZE}x{SIZE}, not {width}x{height}')
        x = (images.float().mean(1, keepdim=True) + 1) / 2  # [B, 1, H, W]
        top, left = (SIZE - height) // 2, (SIZE - width) // 2
        x = F.pad(x, (left, SIZE - width - left, top, SIZE - height - top))  # [B, 1, 32, 32]
        x = (x - MEAN) / STD
        x = F.max_pool2d(F.relu(self.convnet['c1'](x)), 2)  # [B, 6, 14, 14]
        x = F.max_pool2d(F.relu(self.convnet['c3'](x)), 2)  # [B, 16, 5, 5]
        x = F.relu(self.convnet['c5'](x)).flatten(1)  # [B, 120]
        return F.relu(self.fc['f6'](x))  # [B, 84]

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 10] logits of the digits, differentiable with respect to the images."""
        return self.fc['f7'](self(images))

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 10], probabilities of the digits 0, 1, ... 9, which sum to 1."""
        return self.logits(images).softmax(1)
