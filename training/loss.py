"""The loss of a DDN: the L2 of every layer's selected image (Eq. 2 and 4).

Legend: B images, L layers, C image channels, H x W pixels.
"""

from collections.abc import Sequence

import torch

from ddn_networks.samplers import target_pyramid


def layer_losses(selected: Sequence[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each layer's selected images against ``images``, area-resized to the layer: [L] float32.

    Args:
        selected: L tensors [B, C, h, w], ``Output.selected``.
        images: [B, C, H, W] in [-1, 1].
    """
    target = target_pyramid(images)
    return torch.stack([(image - target(image.shape[2:])).square().mean() for image in selected])


def total_loss(layers: torch.Tensor, image_shape: Sequence[int]) -> torch.Tensor:
    """Eq. 4, times C H W: a sum over the image as in EDM, so that EDM's learning rates and loss scales fit."""
    scale = 1
    for size in image_shape:
        scale *= size
    return layers.mean() * scale
