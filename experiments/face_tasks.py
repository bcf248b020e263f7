"""Conditions to generate faces by, each a ``zscg.Task``: small, grey, hidden, noisy, blurred, stroked.

Legend: B images, C channels, H x W pixels.
"""

import torch
import torch.nn.functional as F

from ddn_networks import black_boxes, guides, pixel_maps
from experiments import zscg


def noisy(x: torch.Tensor) -> torch.Tensor:
    return x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def low(x: torch.Tensor, size: int) -> torch.Tensor:
    return pixel_maps.box(x, (size, size))


def luma(x: torch.Tensor) -> torch.Tensor:
    return pixel_maps.to_channels(x, 1)


def blurred(x: torch.Tensor) -> torch.Tensor:
    return pixel_maps.gaussian_blur(x, (3.0, 3.0))


def one_bit(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x < 0, -1.0, 1.0).to(x)


def box_mask(x: torch.Tensor, top: float, bottom: float, left: float, right: float) -> torch.Tensor:
    """[1, 1, H, W]: 0 inside the box, whose edges are fractions of the side; 1 outside."""
    H, W = x.shape[2:]
    known = torch.ones(1, 1, H, W)
    known[:, :, int(top * H) : int(bottom * H), int(left * W) : int(right * W)] = 0
    return known


def stroked(x: torch.Tensor) -> torch.Tensor:
    """[B, 4, H, W] RGBA: 8 x 8 dabs in the picture's colours, transparent in between, as a user might paint them."""
    H, W = x.shape[2:]
    rows, columns = (torch.arange(side) * 32 // side % 4 == 1 for side in (H, W))
    alpha = (rows[:, None] & columns).float() * 2 - 1
    return torch.cat([x, alpha.expand(len(x), 1, H, W)], 1)


def dabs(x: torch.Tensor) -> torch.Tensor:
    """[B, C, 8, 8]: the mean colours of the dabs of ``stroked``."""
    rgba = stroked(x)
    known = (rgba[:, 3:] + 1) / 2
    return low(x * known, 8) / low(known, 8)


def superres(size: int) -> zscg.Task:
    """From size x size pixels, against bicubic interpolation."""
    return zscg.Task(
        f'SR{size}', lambda x: guides.superres(low(x, size)), lambda x: low(x, size),
        lambda x: F.interpolate(low(x, size), size=x.shape[2:], mode='bicubic').clamp(-1, 1),
    )  # fmt: skip


def tasks(features) -> list[zscg.Task]:
    eyes = lambda x: box_mask(x, 0.38, 0.6, 0.15, 0.85)  # noqa: E731
    below = lambda x: box_mask(x, 0.5, 1.0, 0.0, 1.0)  # noqa: E731

    def filled(x: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """The picture with its hidden part in the mean colour of the known part."""
        mean = (x * known).sum((2, 3), keepdim=True) / known.sum()
        return torch.where(known > 0, x, mean)

    def dots(x: torch.Tensor) -> torch.Tensor:
        rgba = stroked(x)
        return torch.where(rgba[:, 3:] > 0, rgba[:, :3], 1.0)

    return [
        *map(superres, (4, 8, 16)),
        zscg.Task('reconstruction', guides.l2, lambda x: x),
        zscg.Task('colorization', lambda x: guides.colorization(luma(x)), luma,
                  lambda x: luma(x).expand(-1, 3, -1, -1)),
        zscg.Task('inpaint eyes', lambda x: guides.inpaint(x, eyes(x)), lambda x: x * eyes(x),
                  lambda x: filled(x, eyes(x))),
        zscg.Task('inpaint below', lambda x: guides.inpaint(x, below(x)), lambda x: x * below(x),
                  lambda x: filled(x, below(x))),
        zscg.Task('denoise', lambda x: guides.denoise(noisy(x)), noisy,
                  lambda x: pixel_maps.gaussian_blur(noisy(x), (1.0, 1.0))),
        zscg.Task('deblur', lambda x: guides.blur(blurred(x), 3.0), blurred, blurred),
        zscg.Task('1 bit', lambda x: guides.posterize(one_bit(x), 1), one_bit, lambda x: one_bit(x) / 2),
        zscg.Task('edges', guides.edges, lambda x: pixel_maps.soft_edges(luma(x), 0.75, 0.25)),
        zscg.Task('strokes', lambda x: guides.strokes(stroked(x)), dots,
                  lambda x: F.interpolate(dabs(x), size=x.shape[2:], mode='bilinear')),
        zscg.Task('style', lambda x: black_boxes.style(features, x), lambda x: x),
    ]  # fmt: skip
