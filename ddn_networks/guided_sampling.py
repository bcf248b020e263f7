"""Zero-shot conditional generation (ZSCG): choosing by guides (Section 3.2, Appendix B).

Legend: B images, K nodes, L layers, b beams per image (rows of one image are consecutive: B b rows in all).

    images, codes = net.sample(16, guide=guides.superres(low))
    images, codes = net.sample(16, guide=Guidance([guides.inpaint(face, mask), black_boxes.clip(...)], every=4))
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from ddn_networks import pixel_maps, samplers
from ddn_networks.candidates import Candidates
from ddn_networks.guides import Guide
from ddn_networks.samplers import Choice, Sampler

if TYPE_CHECKING:
    from ddn_networks.network import Network, Output

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


class Guidance(NamedTuple):
    """What to generate by.

    guides: one or more conditions.
    choose: ``top_k(k)`` or ``temperature(t)``; not asked where beam > 1.
    combine: ``by_rank`` or ``by_distance``; one guide alone keeps its distances, unless its weight is negative.
    beam: partial pictures kept per image; each layer keeps the best of the beam * K continuations.
    every, layers: only each ``every``-th of the layers ``layers`` = (first, last), both included, counted from first,
        asks the guides. Chance answers at the others, with the code of the unguided image of the same seed.
    """

    guides: Sequence[Guide]
    choose: Rule = top_k(2)
    combine: Combine = by_rank
    beam: int = 1
    every: int = 1
    layers: tuple[int, int] | None = None

    def asks(self, layer: int) -> bool:
        """Whether this layer asks the guides."""
        first, last = self.layers or (0, layer)
        return first <= layer <= last and (layer - first) % self.every == 0


class Randomness(NamedTuple):
    """All randomness of a batch, drawn up front: a row depends on its seed alone.

    codes: [B, D] int64, the unguided choice. choice, ties: [B, D] float32 in [0, 1).
    partial: [B, D] int64, codes that are kept, whatever the guides say, -1 for free; None where all are free.
    """

    codes: torch.Tensor
    choice: torch.Tensor
    ties: torch.Tensor
    partial: torch.Tensor | None = None


def chance_table(
    num_nodes: list[int], seeds: Sequence[int], partial: torch.Tensor | None = None
) -> Randomness:
    """The randomness of each seed; its codes are those of ``samplers.uniform_codes``, or kept ones. What is free is
    the same whatever is kept."""
    D = len(num_nodes)
    draws = [torch.rand(3, D, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
    draws = torch.stack(draws, 1) if draws else torch.zeros(3, 0, D)  # [3, B, D]
    draws = draws.float().clamp(max=1 - 2**-24)  # rounding could give 1
    codes = samplers.uniform_codes(num_nodes, list(seeds))
    codes = codes if partial is None else torch.where(partial >= 0, partial, codes)
    return Randomness(codes, draws[1], draws[2], partial)


def sampler(guidance: Guidance, chance: Randomness, img_resolution: tuple[int, int]) -> Sampler:
    """The sampler of one pass over B b rows. The best picture of each image is the first of its rows; a row with the
    codes of the first is a spare copy, as before guides are asked and where they leave fewer than b continuations."""
    b = guidance.beam

    def guided(candidates: Candidates, layer: int, codes: torch.Tensor) -> Choice:
        rows, K = candidates.shape[0], candidates.num_nodes
        device = candidates.device
        n = candidates.num_cells

        def own(table: torch.Tensor) -> torch.Tensor:
            return samplers.of_layer(table.to(device), candidates, codes)  # [B] or [B, n]

        kept = None if chance.partial is None else own(chance.partial)
        if not guidance.asks(layer) or b == 1 and kept is not None and bool((kept >= 0).all()):
            return Choice(own(chance.codes).repeat_interleave(b, 0))
        if n > 1 and b > 1:
            raise ValueError(f'a beam of {b} keeps whole images, and layer {layer} chooses per cell: use a beam of 1')
        full = candidates
        if any(guide.full_size for guide in guidance.guides):
            full = candidates.pixels(lambda x: pixel_maps.upsample(x, img_resolution))
        distances = [guide(full if guide.full_size else candidates, layer) for guide in guidance.guides]
        if n > 1:  # cells are images of their own
            distances, rows = [d.transpose(1, 2).flatten(0, 1) for d in distances], rows * n  # [B n, K]
        spare = copies_of_first(codes.repeat_interleave(n, 0).unflatten(0, (rows // b, b)))  # [B, b]
        never = spare[..., None].expand(-1, -1, K).flatten(1)  # [B, b K]
        if kept is not None:
            never = never | _others(kept.flatten(), K).repeat(1, b)
        distances, never = _forbidden([d.reshape(rows // b, b * K) for d in distances], never)
        weights = [guide.weight for guide in guidance.guides]
        if len(distances) > 1 or weights[0] < 0:
            scores = guidance.combine(distances, weights).masked_fill(never, math.inf)
        else:
            scores = distances[0]
        ties = (own(chance.ties).flatten() * K).long()  # [B]
        order = _turned(ties, b * K)  # [B, b K]: equal scores are taken in a random order
        turned = scores.gather(1, order)
        if b == 1:
            pick = guidance.choose(turned, own(chance.choice).flatten())  # [B]
            chosen = order.gather(1, pick[:, None])[:, 0]
            if n == 1:
                return Choice(chosen, scores)
            return Choice(chosen.view(-1, n), scores.unflatten(0, (-1, n)).transpose(1, 2))
        best = turned.sort(dim=1, stable=True).indices[:, :b]  # [B, b], the best first
        best = order.gather(1, best)
        best = torch.where(never.gather(1, best), best[:, :1], best)
        parents = best // K + torch.arange(0, rows, b, device=device)[:, None]  # [B, b] rows
        return Choice((best % K).flatten(), scores.view(rows, K), None, parents.flatten())

    return guided


def copies_of_first(codes: torch.Tensor) -> torch.Tensor:
    """Which rows but the first have the codes of the first row of their image: codes [B, b, l] -> [B, b] bool."""
    copies = (codes == codes[:, :1]).all(2)
    copies[:, 0] = False
    return copies


def _others(kept: torch.Tensor, num_nodes: int) -> torch.Tensor:
    """Which of the nodes are not the one that is kept: codes [B] -> [B, K] bool, nothing where a code is -1."""
    return (kept[:, None] >= 0) & (kept[:, None] != torch.arange(num_nodes, device=kept.device))


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


def _turned(by: torch.Tensor, length: int) -> torch.Tensor:
    """[B, length]: 0 .. length - 1, turned by ``by`` [B]."""
    return (torch.arange(length, device=by.device) + by[:, None]) % length


@torch.no_grad()
def sample(
    net: 'Network',
    guidance: Guidance | Guide | Sequence[Guide],
    seeds: Sequence[int],
    condition: torch.Tensor | None = None,
    share_prefixes: bool = False,
    partial: torch.Tensor | None = None,
) -> 'Output':
    """One guided image per seed: the images [B, C, H, W] and codes [B, D] of one pass. See ``Guidance``. ``partial``
    [B, D] int64: codes that are kept; the guides answer for the free ones, which are -1.

    Raises:
        ValueError: guidance whose numbers do not fit the network; a guide that fails, with its name and the layer.
    """
    guidance = checked(guidance, net.num_layers)
    b = guidance.beam
    if condition is not None and len(condition) > 1:
        condition = condition.repeat_interleave(b, 0)
    chance = chance_table(net.code_nodes, seeds, partial)
    chosen = sampler(guidance, chance, net.img_resolution)
    output = net(chosen, len(seeds) * b, condition, share_prefixes=share_prefixes)
    return output._replace(images=output.images[::b], codes=output.codes[::b])


def checked(guidance: Guidance | Guide | Sequence[Guide], num_layers: int) -> Guidance:
    """A guide or several as a ``Guidance``; ValueError where its numbers make no sense for so many layers."""
    if isinstance(guidance, Guide):
        guidance = [guidance]
    if not isinstance(guidance, Guidance):
        guidance = Guidance(list(guidance))
    if not guidance.guides:
        raise ValueError('guided generation needs at least one guide')
    for guide in guidance.guides:
        if not math.isfinite(guide.weight) or guide.weight == 0:
            raise ValueError(f'guide {guide.name} has weight {guide.weight}; it must be finite and not zero')
    if guidance.beam < 1 or guidance.every < 1:
        raise ValueError(f'beam and every are at least 1, not {guidance.beam} and {guidance.every}')
    first, last = guidance.layers or (0, num_layers - 1)
    if not 0 <= first <= last < num_layers:
        raise ValueError(f'this network has layers 0-{num_layers - 1}; {first}-{last} are not among them')
    return guidance
