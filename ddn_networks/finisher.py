"""The finisher: a small network after the last layer that draws what the codes leave open (not in the paper).

Legend: B images, C image channels, F feature channels, L layers, D codes of a latent, H x W pixels.

L2 draws the mean of everything that the codes leave open, which is a blur. With the last selected image x_L and the
features h_L of its layer,

    y = x_L + R(x_L, h_L, z)

where the noise z of a pixel is a function of the codes of all cells that the pixel lies in. So codes still name one
image, on every device, and a late code changes only its place. R is a UNet without normalisation between its
convolutions (that would carry a change everywhere), whose last convolution begins at zero: y is x_L at first.
"""

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from ddn_networks.network import LayerSpec

MULTIPLIERS = (1, 2, 3)  # of the width: channels at full size, a half, a quarter
FOLDED_FROM = 64  # pixels a side from which on the UNet works at half the size, with four times the image channels
MASK = 2**32 - 1
MIX = 0x45D9F3B  # multiplier of a well-known 32-bit mixing function; a product stays below 2^63
NOISE_BITS = 12  # of the hash, which name the quantile of the noise


def mixed(x: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit integers, held in int64, whose output bits each depend on all input bits."""
    for _ in range(2):
        x = ((x ^ (x >> 16)) * MIX) & MASK
    return x ^ (x >> 16)


def spread(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Values of cells [B, g, g'] at finer cells or pixels [B, h, w]: each takes that of the cell it lies in."""
    rows = torch.arange(size[0], device=x.device) * x.shape[1] // size[0]
    columns = torch.arange(size[1], device=x.device) * x.shape[2] // size[1]
    return x[:, rows][:, :, columns]


def code_noise(codes: torch.Tensor, grids: Sequence[tuple[int, int]], size: tuple[int, int]) -> torch.Tensor:
    """Standard normal noise [B, 1, H, W], float32, that is a function of the codes alone.

    The number of a pixel is a hash of its place and of the codes, layer by layer, of the cells that it lies in; the
    inverse normal distribution function of its first bits is the noise, from a table of ``noise_levels``. Only integers
    are computed with, so all devices agree to the bit.

    Args:
        codes: [B, D] int64, the latent; D is the number of cells of all layers.
        grids: the grid of each layer.
        size: (H, W).
    """
    state = torch.zeros(len(codes), 1, 1, dtype=torch.int64, device=codes.device)
    first = 0
    for grid in grids:
        last = first + grid[0] * grid[1]
        common = tuple(math.lcm(a, b) for a, b in zip(state.shape[1:], grid, strict=True))
        chosen = codes[:, first:last].view(-1, *grid)
        state = mixed(spread(state, common) ^ (spread(chosen, common) + 1))  # [B, g, g']
        first = last
    place = torch.arange(size[0] * size[1], device=codes.device).view(1, *size)
    state = mixed(spread(state, size) ^ mixed(place + 1))  # [B, H, W]
    return noise_levels().to(codes.device)[state >> (32 - NOISE_BITS)][:, None]


@functools.cache
def noise_levels() -> torch.Tensor:
    """The normal quantiles of 2^NOISE_BITS equally likely levels, float32 on the CPU."""
    return torch.special.ndtri((torch.arange(2**NOISE_BITS, dtype=torch.float64) + 0.5) / 2**NOISE_BITS).float()


def activation(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, 0.2)


class Residual(nn.Module):
    """Two 3x3 convolutions added to their input; begins as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        return x + self.second(activation(self.first(activation(x))))


class Finisher(nn.Module):
    """y = x_L + R(x_L, h_L, z).

    Args:
        img_channels: C.
        last: the last layer of the network, whose features are seen.
        img_resolution: (H, W).
        width: channels at full size; twice and three times as many at a half and a quarter.
    """

    def __init__(self, img_channels: int, last: 'LayerSpec', img_resolution: tuple[int, int], width: int):
        super().__init__()
        self.size = tuple(img_resolution)
        can_fold = min(self.size) >= FOLDED_FROM and not any(side % 2 for side in self.size)
        self.fold = 2 if can_fold else 1
        features = last.channels * self._fold_of(last.feature_size) ** 2
        widths = [width * m for m in MULTIPLIERS]
        self.enter = nn.Conv2d((img_channels + 1) * self.fold**2 + features, width, 3, padding=1)
        self.down = nn.ModuleList(Residual(w) for w in widths)
        self.shrink = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.up = nn.ModuleList(Residual(w) for w in widths)
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.leave = nn.Conv2d(width, img_channels * self.fold**2, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def _fold_of(self, size: Sequence[int]) -> int:
        """How often features of this size are folded: those of full size as the image."""
        return self.fold if tuple(size) == self.size else 1

    def forward(self, images: torch.Tensor, features: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """y [B, C, H, W] of the network's images x_L [B, C, H, W], the features h_L [B, F, h, w] of its last layer, and
        z [B, 1, H, W] (``code_noise``)."""
        # Scaled at each place, so that nothing is carried from one place to another.
        features = features.to(images.dtype)
        features = features * features.square().mean(1, keepdim=True).add(1e-8).rsqrt()
        features = F.pixel_unshuffle(features, self._fold_of(features.shape[2:]))
        top = F.pixel_unshuffle(torch.cat([images, noise.to(images.dtype)], 1), self.fold)
        if features.shape[2:] != top.shape[2:]:
            features = F.interpolate(features, top.shape[2:], mode='nearest')
        x = self.enter(torch.cat([top, features], 1))
        levels = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.shrink[level - 1](activation(x)))
            levels.append(x)
        x = self.up[-1](x)
        for level in reversed(range(len(levels) - 1)):
            grown = F.interpolate(self.grow[level](activation(x)), levels[level].shape[2:], mode='nearest')
            x = self.up[level](levels[level] + grown)
        return images + F.pixel_shuffle(self.leave(activation(x)), self.fold)
