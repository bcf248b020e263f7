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


def prior_loss(
    log_prior: Sequence[torch.Tensor], distances: Sequence[torch.Tensor], softness: float = 0.0
) -> torch.Tensor:
    """Cross entropy of the own prior in nats per code: a sum over all codes of the batch, divided by their number.

    Its target is the plain nearest node of every cell, also where Chain Dropout or a balance chose another.

    Args:
        log_prior, distances: L tensors [B, K] or [B, K, n], of the output of a pass that kept them.
        softness: 0, or targets are softmax(-d / (softness * spread)), spread the deviation of the distances over nodes.
    """
    total, count = 0.0, 0
    for log_p, d in zip(log_prior, distances, strict=True):
        log_p, d = (x.reshape(len(x), x.shape[1], -1) for x in (log_p, d.detach()))  # [B, K, n]
        if softness:
            target = (-d / (softness * d.std(1, keepdim=True)).clamp(min=1e-12)).softmax(1)
            total = total - (target * log_p).sum()
        else:
            total = total - log_p.gather(1, d.argmin(1, keepdim=True)).sum()
        count += len(d) * d.shape[2]
    return total / count


def total_loss(layers: torch.Tensor, image_shape: Sequence[int]) -> torch.Tensor:
    """Eq. 4, times C H W: a sum over the image as in EDM, so that EDM's learning rates and loss scales fit."""
    scale = 1
    for size in image_shape:
        scale *= size
    return layers.mean() * scale
