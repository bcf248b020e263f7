"""The loss of a DDN: the L2 of every layer's selected image (Eq. 2 and 4).

Legend: B images, L layers, C image channels, H x W pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ddn_networks.samplers import Pyramid


def layer_losses(selected: Sequence[torch.Tensor], target: Pyramid) -> torch.Tensor:
    """Mean squared error of each layer's selected images against the target at the layer's size: [L] float32.

    Args:
        selected: L tensors [B, C, h, w], ``Output.selected``.
        target: ``samplers.target_pyramid`` of the images [B, C, H, W] in [-1, 1].
    """
    return torch.stack([F.mse_loss(image, target(image.shape[2:])) for image in selected])


def total_loss(layers: torch.Tensor, image_shape: Sequence[int]) -> torch.Tensor:
    """Eq. 4, times C H W: a sum over the image as in EDM, so that EDM's learning rates and loss scales fit."""
    scale = 1
    for size in image_shape:
        scale *= size
    return layers.mean() * scale
