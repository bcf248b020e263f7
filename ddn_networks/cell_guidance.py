"""Guides at layers that choose per cell, and beside a network's own prior.

Legend: B images, K nodes, n cells of a layer (1 where it asks for the whole image), M proposals, D codes.

Quadratic guides, and the prior, say what each answer of each cell costs, given the other cells (``sweeps``). Guides
that must see whole pictures choose among proposals, which those have chosen (``proposals``).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ddn_networks import pixel_maps, proposals, sweeps
from ddn_networks.bayes import OwnPrior
from ddn_networks.candidates import Candidates
from ddn_networks.choosing import Guidance, by_likelihood, others
from ddn_networks.guides import Guide
from ddn_networks.prior import inverse_cdf
from ddn_networks.samplers import Choice


class CellGuidance:
    """One layer's guides.

    Args:
        guidance, candidates, layer: what chooses, and among what.
        img_resolution: (H, W) of the network.
        own: the own prior, or None to leave it out.
        kept: [B] or [B, n] int64, codes that are kept, -1 for free; None where all are free.
    """

    def __init__(
        self,
        guidance: Guidance,
        candidates: Candidates,
        layer: int,
        img_resolution: tuple[int, int],
        own: OwnPrior | None,
        kept: torch.Tensor | None = None,
    ):
        self.guidance, self.candidates, self.layer, self.own = guidance, candidates, layer, own
        self.img_resolution = img_resolution
        pairs = list(zip(guidance.guides, guidance.prior_weights(), strict=True))
        self.terms = [self._term(guide, weight) for guide, weight in pairs if guide.comparison is not None]
        self.weights = [guide.weight for guide, _ in pairs if guide.comparison is not None]
        self.whole = [guide for guide in guidance.guides if guide.comparison is None]
        shape = candidates.shape[0], candidates.num_nodes, candidates.num_cells
        if own is None:
            self.p = torch.full(shape, 1 / candidates.num_nodes, device=candidates.device)
            self.costs, self.judges = guidance, guidance.guides
        else:
            log_p = candidates.log_prior().view(shape)
            self.p = log_p.exp()
            self.terms.append(sweeps.Fixed(-log_p))
            self.weights.append(1.0)
            # The proposals are samples of prior and quadratic guides, so that the others alone judge them.
            self.costs, self.judges = guidance._replace(combine=by_likelihood), self.whole
        if self.whole:  # among proposals, ``choose`` is for the guides that see them
            self.costs = self.costs._replace(choose=None)
        self.kept = torch.full_like(self.p[:, 0], -1, dtype=torch.int64) if kept is None else kept.view(shape[0], -1)
        kept_p = F.one_hot(self.kept.clamp(min=0), shape[1]).mT.to(self.p)  # [B, K, n]
        self.p = torch.where(self.kept[:, None] >= 0, kept_p, self.p)

    def answer(self, quantiles: torch.Tensor, ties: torch.Tensor, streams: Sequence[int]) -> Choice:
        """The codes, by the random numbers in [0, 1) of each choice, [B] or [B, n], and seeds of further ones."""
        n = self.candidates.num_cells
        draw = _Draws([seed + self.layer for seed in streams], self.candidates.device)
        if self.whole:
            codes = self._among_proposals(draw)
        else:
            tables = [(quantiles.view(-1, n), ties.view(-1, n)), *self._tables(draw, self.num_sweeps - 1)]
            codes = self._swept(None, None, tables).codes
        return Choice(codes if n > 1 else codes[:, 0])

    @property
    def num_sweeps(self) -> int:
        return self.guidance.sweeps if any(isinstance(term, sweeps.Crossing) for term in self.terms) else 1

    def _term(self, guide: Guide, prior_weight: float | None) -> sweeps.Fixed | sweeps.Crossing:
        """The distances of a quadratic guide, in nats beside a prior."""
        candidates = self.candidates
        comparison = guide.compared(candidates, self.layer)
        scale = 1.0 if self.own is None else self.own.nats(guide, comparison, candidates, self.layer, prior_weight)
        if comparison.separable is not None and candidates.num_cells > 1:
            return sweeps.Crossing(candidates, comparison, scale)
        distances = guide(candidates, self.layer) * scale
        return sweeps.Fixed(distances.view(*distances.shape[:2], candidates.num_cells))

    def _tables(self, draw: '_Draws', num: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Random numbers of so many sweeps."""
        return [(draw(self.candidates.num_cells), draw(self.candidates.num_cells)) for _ in range(num)]

    def _swept(
        self,
        begin: sweeps.Picture | None,
        chosen: torch.Tensor | None,
        tables: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> sweeps.Picture:
        """The picture that quadratic guides and prior choose, the last sweep by the first of the tables."""

        def decide(distances: list[torch.Tensor], cells: torch.Tensor, left: int) -> torch.Tensor:
            rows = [d.mT.flatten(0, 1) for d in distances]  # [B m, K]
            never = others(self.kept[:, cells].flatten(), self.candidates.num_nodes)
            scores, _ = self.costs.scores(rows, self.weights, never)
            quantiles, ties = (table[:, cells].flatten() for table in tables[left])
            if self.own is None or self.costs.choose is not None:
                found = self.costs.pick(scores, ties, quantiles)
            else:
                less = scores.min(1, keepdim=True).values - scores  # log p, less that of the likeliest
                found = inverse_cdf(less, quantiles, self.own.temperature(self.layer))
            return found.view(-1, len(cells))

        begin = begin or sweeps.mean(self.candidates, self.p)
        return sweeps.sweep(self.candidates, self.terms, decide, begin, self.num_sweeps, chosen)

    def _among_proposals(self, draw: '_Draws') -> torch.Tensor:
        """[B, n] that the guides choose which must see whole pictures."""
        candidates, M = self.candidates, self.guidance.proposals

        def propose(begin: sweeps.Picture | None, chosen: torch.Tensor | None, number: int) -> sweeps.Picture:
            tables = self._tables(draw, self.num_sweeps)
            if self.terms and (self.own is not None or number % 2 == 0):
                return self._swept(begin, chosen, tables)
            codes = torch.where(self.kept >= 0, self.kept, (tables[0][0] * candidates.num_nodes).long())
            if chosen is not None:
                codes = begin.codes.index_copy(1, chosen, codes[:, chosen])
            return sweeps.of_codes(candidates, codes)

        def judge(images: torch.Tensor) -> torch.Tensor:
            images = images.flatten(0, 1)  # [B M, C, H, W]
            full = images
            if any(guide.full_size for guide in self.judges):
                full = pixel_maps.upsample(images, self.img_resolution)
            found = [guide.of_pictures(full if guide.full_size else images, self.layer) for guide in self.judges]
            found = [d.view(-1, M) for d in found]
            never = torch.zeros_like(found[0], dtype=torch.bool)
            scores, _ = self.guidance.scores(found, [guide.weight for guide in self.judges], never)
            return self.guidance.pick(scores, draw(1)[:, 0], draw(1)[:, 0])

        return proposals.choose(candidates, propose, judge, M)


class _Draws:
    """Random numbers of B images, each from a stream of its own: called with ``num``, [B, num] float64 in [0, 1)."""

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self.streams, self.device = [torch.Generator().manual_seed(seed) for seed in seeds], device

    def __call__(self, num: int) -> torch.Tensor:
        rows = [torch.rand(num, generator=stream, dtype=torch.float64) for stream in self.streams]
        return (torch.stack(rows) if rows else torch.zeros(0, num, dtype=torch.float64)).to(self.device)
