"""Guides weighed against the network's own prior, by Bayes' rule.

Legend: B images, K nodes, L layers, n cells of a layer, N values that a guide compares.

    log p(k | condition, choices before) = log p(k | choices before) + log p(condition | k) + const
    log p(condition | k) = -N d_k / (2 s^2)

d_k is the mean squared difference of a quadratic guide, s^2 the mean square of the layer's residual after the guide's
map (means over blocks of pixels have less of it). It was measured on training images and is in the snapshot
(``sampling.Sampling.residuals``). Residuals are correlated, so N values say less than N independent ones would: a
weight scales the second term (``prior_weight``).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from ddn_networks.candidates import Candidates
from ddn_networks.guides import Comparison, Guide

LEAST = 1e-8  # of mean squares: a residual of 0 would leave nothing to the prior

# What ``prior_weight`` is by default, by the name of the guide; 1 for others, such as superres and blur. The likeliest
# one given held-out faces (``experiments.guided_cells --fit``): denoise (its noise is not in s^2) at a deviation of
# 0.5; l2, which no weight makes too certain of the nearest code, the largest that was tried.
PRIOR_WEIGHTS: Mapping[str, float] = {
    'l2': 4.0, 'inpaint': 2.0, 'colorization': 2.0, 'strokes': 0.25, 'denoise': 1 / 16,
}  # fmt: skip


class OwnPrior(NamedTuple):
    """What guides need of a network with a prior.

    temperatures: one, or one per layer; log p(k | condition) is divided by it.
    residuals: see ``sampling.Sampling``.
    """

    temperatures: Sequence[float]
    residuals: Mapping[str, Sequence[float]]

    def temperature(self, layer: int) -> float:
        return self.temperatures[layer] if len(self.temperatures) > 1 else self.temperatures[0]

    def nats(
        self, guide: Guide, comparison: Comparison, candidates: Candidates, layer: int, weight: float | None
    ) -> float | torch.Tensor:
        """The log-likelihood that a distance of 1 costs: a number, [B, 1] or [B, 1, n]. ``weight``: the
        ``prior_weight``, None for the guide's default."""
        weight = PRIOR_WEIGHTS.get(guide.name, 1.0) if weight is None else weight
        square = mean_square(self.residuals, layer, comparison.channels is not None, comparison.pooling)
        return comparison.num_values(candidates) * (weight / (2 * square))


def mean_square(residuals: Mapping[str, Sequence[float]], layer: int, luma: bool, pooling: float) -> float:
    """s^2 of a layer's residual after a mean over blocks of ``pooling`` pixels a side (at least 1), geometrically
    interpolated between the powers of two that were measured. ValueError where nothing was."""
    kind = 'luma' if luma else 'rgb'
    measured = {int(name.split('/')[1]): values for name, values in residuals.items() if name.startswith(f'{kind}/')}
    if not measured:
        raise ValueError(
            f'this network has a prior but no measured {kind} residuals, which weigh it against a guide: '
            'measure them with train.py --fit-prior, or leave the prior out (--uniform)'
        )
    sizes = sorted(measured)
    below = max((p for p in sizes if p <= pooling), default=sizes[0])
    above = min((p for p in sizes if p >= pooling), default=sizes[-1])
    logs = [math.log(max(LEAST, measured[p][min(layer, len(measured[p]) - 1)])) for p in (below, above)]
    share = math.log(pooling / below) / math.log(above / below) if above > below else 0.0
    return math.exp(logs[0] + share * (logs[1] - logs[0]))
