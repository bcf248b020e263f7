"""Back projection: what a finisher draws is brought back onto the exact conditions that guided the picture.

Legend: B images, C channels, H x W pixels, M measured values of all conditions.

A finisher does not know of guides. Where a condition says exactly what a linear map A of the picture is (a smaller
picture, known pixels, a grey picture), y += A^+ (c - A y), with several conditions stacked, alternating with the clamp
to [-1, 1], until y is as near to the condition as the picture before the finisher was.
"""

import math
from collections.abc import Sequence

import torch

from ddn_networks.closed_forms import full_precision
from ddn_networks.guides import Comparison, Guide

TOLERANCE = 0.001  # root mean squares, in [-1, 1], that a picture may be farther from a condition than before
ROUNDS = 50  # of projection and clamp, at most
STEPS = 8  # of conjugate gradients in a round; one is enough for one condition
HALVINGS = 20  # of the way back to the picture before, where the rounds did not suffice


class Conditions:
    """The exact conditions among guides, as one linear map of pictures.

    Args:
        guides: others than exact ones are passed over, and those that repel (negative weights).
        images: [B, C, H, W], pictures of the size that is compared.
        layer: of these, for errors.
    """

    def __init__(self, guides: Sequence[Guide], images: torch.Tensor, layer: int):
        exact = [guide for guide in guides if guide.exact and guide.weight > 0]
        self.comparisons = [guide.compared(guide.only(images), layer) for guide in exact]

    def measured(self, images: torch.Tensor) -> list[torch.Tensor]:
        """[B, m] of each condition, scaled so that squared differences add up to mean squared ones."""
        return [_scaled(c, _of_pictures(c, images)) for c in self.comparisons]

    def errors(self, images: torch.Tensor) -> torch.Tensor:
        """[B, conditions], root mean squared differences."""
        return torch.stack([missing.norm(dim=1) for missing in self.missing(images)], 1)

    def missing(self, images: torch.Tensor) -> list[torch.Tensor]:
        """c - A y of each condition, scaled as ``measured``."""
        targets = [_scaled(c, c.target) for c in self.comparisons]
        return [target - found for target, found in zip(targets, self.measured(images), strict=True)]

    def projected(self, images: torch.Tensor) -> torch.Tensor:
        """images + A^+ (c - A images), by conjugate gradients on the normal equations from zero, which is the least
        change."""

        def adjoint(values: torch.Tensor) -> torch.Tensor:  # of a linear map: its derivative, at any place
            with torch.enable_grad():
                at = torch.zeros_like(images).requires_grad_()
                return torch.autograd.grad(torch.cat(self.measured(at), 1), at, values)[0]

        missing = torch.cat(self.missing(images), 1)  # [B, M]
        change, gradient = torch.zeros_like(images), adjoint(missing)
        direction, size = gradient, _square(gradient)
        for _ in range(STEPS):
            moved = torch.cat(self.measured(direction), 1)
            step = size / moved.square().sum(1).view_as(size).clamp(min=1e-30)
            change = change + step * direction
            missing = missing - step.flatten(1) * moved
            gradient = adjoint(missing)
            size, before = _square(gradient), size
            direction = gradient + size / before.clamp(min=1e-30) * direction
        return images + change


def _square(images: torch.Tensor) -> torch.Tensor:
    return images.square().sum((1, 2, 3), keepdim=True)  # [B, 1, 1, 1]


def _of_pictures(comparison: Comparison, images: torch.Tensor) -> torch.Tensor:
    """A of pictures."""
    if comparison.channels is not None:
        with full_precision(images):
            images = torch.einsum('dc,bchw->bdhw', comparison.channels.to(images), images)
    return images if comparison.pixels is None else comparison.pixels(images)


def _scaled(comparison: Comparison, values: torch.Tensor) -> torch.Tensor:
    """[B, m] of values [B, C', h', w'] over the root of how many there are."""
    if comparison.known is None:
        return values.flatten(1) / math.sqrt(values[0].numel())
    return values.flatten(1) / (values.shape[1] * comparison.known.sum((1, 2, 3))).sqrt()[:, None]


def projected(images: torch.Tensor, before: torch.Tensor, guides: Sequence[Guide], layer: int) -> torch.Tensor:
    """Finished images [B, C, H, W] brought back onto the exact conditions among ``guides``, within [-1, 1]; as they are
    if there are none.

    Each image is as near to every condition (root mean square) as the image ``before`` the finisher, or at most
    ``TOLERANCE`` farther. ``layer``: the last one, for errors.
    """
    conditions = Conditions(guides, images, layer)
    if not conditions.comparisons:
        return images
    images, shown = images.clamp(-1, 1), before.clamp(-1, 1)
    limit = torch.minimum(conditions.errors(before), conditions.errors(shown)) + TOLERANCE  # [B, conditions]

    def too_far(images: torch.Tensor) -> torch.Tensor:
        return (conditions.errors(images) > limit).any(1).view(-1, 1, 1, 1)

    for _ in range(ROUNDS):
        far = too_far(images)
        if not far.any():
            return images
        images = torch.where(far, conditions.projected(images).clamp(-1, 1), images)
    # Conditions that no picture meets. Errors are convex: some way back to the picture before, they are small enough.
    near, share = torch.zeros_like(limit[:, :1, None, None]), 1.0
    change = images - shown
    whole = ~too_far(images)
    for _ in range(HALVINGS):
        share /= 2
        near = torch.where(too_far(shown + (near + share) * change), near, near + share)
    return torch.where(whole, images, shown + near * change)
