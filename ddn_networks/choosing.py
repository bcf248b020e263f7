"""How the distances of guides become a choice (Section 3.2, Appendix B).

Legend: B rows, images or cells of images; K candidates.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ddn_networks.guides import Guide

Combine = Callable[[Sequence[torch.Tensor], Sequence[float]], torch.Tensor]
Rule = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (scores [B, K], chance [B] in [0, 1)) -> codes [B]


# How several guides become one score.


def by_rank(distances: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weighted mean of each guide's ranks, [B, K] (Appendix B): 0 for its best candidate, ties share the better.

    Units do not matter, so anything goes with anything.
    """
    return by_distance([ranks(d) for d in distances], weights)


def by_distance(distances: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weighted mean of distances, [B, K]: for guides whose units agree, such as two squared errors."""
    total = sum(abs(weight) for weight in weights)
    return sum(d * (weight / total) for d, weight in zip(distances, weights, strict=True))


def by_likelihood(distances: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weighted sum of distances in nats, [B, K]: of quadratic guides and the network's own prior (``bayes``)."""
    return sum(d * weight for d, weight in zip(distances, weights, strict=True))


def ranks(distances: torch.Tensor) -> torch.Tensor:
    """How many candidates of its row are strictly nearer, [B, K] in the dtype of ``distances``."""
    return torch.searchsorted(distances.sort(1).values, distances).to(distances.dtype)


# How a score becomes a choice.


def top_k(k: int = 2) -> Rule:
    """One of the k best at random, or of all where fewer are finite; 2 is the paper's choice, 1 is argmax."""
    if k < 1:
        raise ValueError(f'top-k takes at least the best one, not {k}')

    def rule(scores: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
        best = (scores < math.inf).sum(1).clamp(1, k)  # [B]
        pick = torch.minimum((chance * best).long(), best - 1)
        return scores.sort(dim=1, stable=True).indices.gather(1, pick[:, None])[:, 0]

    return rule


def temperature(t: float) -> Rule:
    """Candidate k with probability proportional to exp(-score_k / t); the score's unit is the unit of t."""
    if not t > 0:
        raise ValueError(f'a temperature is positive, not {t}; top_k(1) always takes the best')

    def rule(scores: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
        ordered, order = scores.sort(dim=1, stable=True)
        upto = torch.exp((ordered[:, :1] - ordered) / t).cumsum(1)  # [B, K]
        pick = (upto <= chance[:, None] * upto[:, -1:]).sum(1).clamp(max=scores.shape[1] - 1)
        return order.gather(1, pick[:, None])[:, 0]

    return rule


PAPERS = top_k(2)


class Guidance(NamedTuple):
    """What to generate by.

    guides: one or more conditions.
    choose: ``top_k(k)`` or ``temperature(t)``; not asked where beam > 1. None for ``top_k(2)``, or by the network's own
        prior, if it has one, for sampling p(k | condition). Where guides must see whole pictures, it is how they choose
        among the proposals.
    combine: ``by_rank`` or ``by_distance``; one guide alone keeps its distances, unless its weight is negative. Beside
        an own prior, quadratic guides are log-likelihoods and are summed; this combines the others.
    beam: partial pictures kept per image; each layer keeps the best of the beam * K continuations, whatever the prior.
    every, layers: only each ``every``-th of the layers ``layers`` = (first, last), both included, counted from first,
        asks the guides. Chance answers at the others, with the code of the unguided image of the same seed.
    proposals: M, how many whole pictures at a time are shown to a guide that must see them, at layers with cells and,
        with an own prior, at all layers.
    sweeps: how often each cell chooses where a guide's comparison crosses cells.
    prior_weight: scales the log-likelihoods of quadratic guides against the own prior: one number, or one for each of
        ``guides``; None for ``bayes.PRIOR_WEIGHTS``.
    """

    guides: Sequence[Guide]
    choose: Rule | None = None
    combine: Combine = by_rank
    beam: int = 1
    every: int = 1
    layers: tuple[int, int] | None = None
    proposals: int = 16
    sweeps: int = 2
    prior_weight: float | Sequence[float] | None = None

    def asks(self, layer: int) -> bool:
        """Whether this layer asks the guides."""
        first, last = self.layers or (0, layer)
        return first <= layer <= last and (layer - first) % self.every == 0

    def prior_weights(self) -> list[float | None]:
        """``prior_weight`` of each guide."""
        several = isinstance(self.prior_weight, Sequence)
        return list(self.prior_weight) if several else [self.prior_weight] * len(self.guides)

    def scores(
        self, distances: Sequence[torch.Tensor], weights: Sequence[float], never: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The score [B, K] that distances [B, K] of guides with these weights combine to, +inf for what is never
        chosen; and that [B, K] bool, ``never`` and what guides rule out."""
        distances, never = _forbidden(distances, never)
        if len(distances) > 1 or weights[0] < 0:
            return self.combine(distances, weights).masked_fill(never, math.inf), never
        return distances[0], never

    def pick(self, scores: torch.Tensor, ties: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
        """What ``choose`` takes of scores [B, K]: [B]. ``ties`` and ``chance`` [B] in [0, 1): the best of equal scores,
        and of the best."""
        order = turned((ties * scores.shape[1]).long(), scores.shape[1])  # equal scores are taken in a random order
        at = (self.choose or PAPERS)(scores.gather(1, order), chance)  # [B]
        return order.gather(1, at[:, None])[:, 0]


def _forbidden(distances: Sequence[torch.Tensor], never: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What a guide gives +inf is never chosen, whatever its weight and whatever others say of it; but a guide that
    leaves nothing of what ``never`` [B, K] and the guides before it leave is ignored. Returns the distances [B, K],
    +inf exactly where a candidate is never chosen, and that [B, K] bool."""
    infinite = [d == math.inf for d in distances]
    for one in infinite:
        both = never | one
        never = torch.where(both.all(1, keepdim=True), never, both)
    pairs = zip(distances, infinite, strict=True)
    return [d.masked_fill(one, 0).masked_fill(never, math.inf) for d, one in pairs], never


def others(kept: torch.Tensor, num_nodes: int) -> torch.Tensor:
    """Which of the nodes are not the one that is kept: codes [B] -> [B, K] bool, none where a code is -1."""
    return (kept[:, None] >= 0) & (kept[:, None] != torch.arange(num_nodes, device=kept.device))


def turned(by: torch.Tensor, length: int) -> torch.Tensor:
    """[B, length]: 0 .. length - 1, turned by ``by`` [B]."""
    return (torch.arange(length, device=by.device) + by[:, None]) % length
