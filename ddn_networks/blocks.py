"""The residual block between two Discrete Distribution Layers ("NN Block" of Fig. 3).

Legend: B images, C feature channels, H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import nn


def num_groups(channels: int) -> int:
    """Groups of a group norm over ``channels``: about channels / 4, at most 32, and a divisor."""
    return next(g for g in range(min(32, max(1, channels // 4)), 0, -1) if channels % g == 0)


class ResBlock(nn.Module):
    """norm, SiLU, conv 3x3, norm, SiLU, dropout, conv 3x3, plus the skip, times sqrt(1/2).

    Args:
        in_channels, out_channels: feature channels before and after; the skip gets a 1x1 conv where they differ.
        up: the block doubles the resolution (each pixel repeated); its skip then has a 1x1 conv as well.
        dropout: probability of zeroing a feature before the second conv.
    """

    def __init__(self, in_channels: int, out_channels: int, up: bool = False, dropout: float = 0.0):
        super().__init__()
        self.up = up
        self.dropout = dropout
        self.norm0 = nn.GroupNorm(num_groups(in_channels), in_channels, eps=1e-6)
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(num_groups(out_channels), out_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if up or in_channels != out_channels else None
        for conv in filter(None, (self.conv0, self.conv1, self.skip)):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        with torch.no_grad():
            self.conv1.weight.mul_(1e-5)  # a new block begins as its skip

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """[B, C_in, h, w] -> [B, C_out, *size]; ``size`` is (h, w), or for ``up`` within one pixel of (2h, 2w)."""
        y = F.silu(self.norm0(x))
        y = self.conv0(_double(y, size) if self.up else y)  # [B, C_out, H, W]
        y = F.dropout(F.silu(self.norm1(y)), self.dropout, self.training)
        if self.skip is not None:
            x = self.skip(x)
        if self.up:  # after the 1x1 conv of the skip, which a repeated pixel does not change
            x = _double(x, size)
        scale = 0.5**0.5
        y = F.conv2d(y, self.conv1.weight * scale, self.conv1.bias * scale, padding=1)  # costs less than y * scale
        return torch.add(y, x, alpha=scale)


def _double(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Repeat each pixel 2x2 and cut to ``size``: sizes that are not powers of two lose the last row or column."""
    if x.is_cpu and not x.is_contiguous(memory_format=torch.channels_last):  # interpolate takes three times as long
        x = torch.stack([x, x], 4).flatten(3)
        x = torch.stack([x, x], 3).flatten(2, 3)
    else:
        x = F.interpolate(x, scale_factor=2, mode='nearest')
    return x[:, :, : size[0], : size[1]]
