"""Search in the tree of latents: the nearest image by a beam, by refinement or by trying all; the children of a node.

Legend: B images, L layers, K nodes, n cells, D codes, b beams per image.
"""

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ddn_networks import guided_sampling, guides, samplers
from ddn_networks.candidates import Candidates, full_precision

if TYPE_CHECKING:
    from ddn_networks.network import Network, Output


def nearest(
    net: 'Network',
    images: torch.Tensor,
    condition: torch.Tensor | None = None,
    beam: int = 1,
    refine: int = 0,
    share_prefixes: bool = False,
) -> 'Output':
    """``Network.reconstruct``, checked, with a beam, refinement, or both."""
    B = len(images)
    if beam == 1:
        output = net(samplers.nearest(images), B, condition, share_prefixes=share_prefixes)
    elif math.prod(net.code_nodes) <= beam * net.num_nodes[-1] and (condition is None or len(condition) == 1):
        codes = nearest_leaf(net, images, condition)  # the beam is as wide as the last layer's tree
        output = net(samplers.given(codes), B, condition)
    else:
        own = condition is not None and len(condition) > 1
        repeated = condition.repeat_interleave(beam, 0) if own else condition
        found = net(beam_search(net, images, beam), B * beam, repeated, share_prefixes=share_prefixes)
        output = guided_sampling.best_rows(found, beam)
    if refine:
        codes = refined(net, images, output, condition, refine, share_prefixes).codes
        output = net(samplers.given(codes), B, condition, share_prefixes=share_prefixes)
    return output


def likeliest(net: 'Network') -> samplers.Sampler:
    """The likeliest codes: by the prior, else by the counts, else those that change the image least."""

    def sampler(candidates: Candidates, layer: int, codes: torch.Tensor) -> samplers.Choice:
        if net.prior:
            return samplers.Choice(candidates.log_prior().argmax(1))
        if net.sampling.counts:
            counts = net.sampling.counts[min(layer, len(net.sampling.counts) - 1)]
            shape = (candidates.shape[0], *[candidates.num_cells] * (candidates.num_cells > 1))
            return samplers.Choice(torch.full(shape, counts.index(max(counts)), device=candidates.device))
        return samplers.Choice(least_change(candidates))

    return sampler


def least_change(candidates: Candidates) -> torch.Tensor:
    """The codes [B] or [B, n] whose candidates are nearest to the image of the layer before."""
    base = candidates.base
    base = torch.zeros(candidates.shape, device=candidates.device) if base is None else base
    return candidates.distances(base).argmin(1)


def beam_search(net: 'Network', images: torch.Tensor, beam: int) -> samplers.Sampler:
    """The sampler of one pass over B b rows that keeps the b partial images nearest to each image. The best of each
    image is the first of its rows; a row with the codes of the first is a spare copy."""
    # The seed breaks ties, in the same way for all images.
    chance = guided_sampling.chance_table(net.code_nodes, [0] * len(images))
    guidance = guided_sampling.Guidance([guides.l2(images)], beam=beam)
    whole = guided_sampling.sampler(guidance, chance, net.img_resolution)
    target = samplers.target_pyramid(images)

    def sampler(candidates: Candidates, layer: int, codes: torch.Tensor) -> samplers.Choice:
        if candidates.num_cells == 1:
            return whole(candidates, layer, codes)
        distances = candidates.distances(target(candidates.shape[2:]).repeat_interleave(beam, 0))  # [B b, K, n]
        sums, answers = k_best(distances, beam)  # [B b, k], [B b, k, n]
        answers, parents = kept_in_beam(sums, answers, codes, beam)
        return samplers.Choice(answers, distances, None, parents)

    return sampler


def kept_in_beam(
    sums: torch.Tensor, answers: torch.Tensor, codes: torch.Tensor, beam: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The b partial images of least sums of each image, the best first: of sums [B b, k], answers [B b, k, n] and codes
    so far [B b, d], the answers [B b, n] and the rows [B b] that they continue. Spare copies come last."""
    spare = guided_sampling.copies_of_first(codes.unflatten(0, (-1, beam)))  # [B, b]
    sums = sums.unflatten(0, (-1, beam)).masked_fill(spare[..., None], math.inf)
    scores, best = sums.flatten(1).sort(dim=1, stable=True)
    best = torch.where(scores < math.inf, best, best[:, :1])[:, :beam]  # [B, b]
    k = answers.shape[1]
    rows = best + k * torch.arange(0, len(codes), beam, device=best.device)[:, None]
    rows = rows.flatten()  # of [B b k, n]
    return answers.flatten(0, 1)[rows], rows.div(k, rounding_mode='floor')


def k_best(distances: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The joint choices of all cells with the least sums of distances: distances [B, K, n] -> sums [B, k'], the least
    first, and codes [B, k', n], k' the less of k and K^n.

    Exact: only the k nearest nodes of a cell can be in them, and only k - 1 cells can differ from the nearest: those
    whose second nearest node costs least. The lists of cells are merged one by one, k sums at a time.
    """
    near = distances.topk(min(k, distances.shape[1]), dim=1, largest=False)  # [B, r, n]
    r, n = near.values.shape[1:]
    costs = near.values - near.values[:, :1]
    least, nearest = near.values[:, 0].sum(1), near.indices[:, 0]  # [B], [B, n]
    cells = costs[:, :2].amax(1).topk(min(n, k - 1), largest=False).indices  # [B, m]
    costs, nodes = (x.gather(2, cells[:, None].expand(-1, r, -1)) for x in (costs, near.indices))  # [B, r, m]
    sums, ranks = costs.new_zeros(len(costs), 1), nodes.new_zeros(len(costs), 1, 0)
    for c in range(cells.shape[1]):
        i, j = torch.ones(sums.shape[1], r, device=sums.device).nonzero().unbind(1)
        i, j = (x[(i + 1) * (j + 1) <= k] for x in (i, j))  # no others: both lists are sorted
        merged = sums[:, i] + costs[:, j, c]
        best = merged.topk(min(k, len(i)), largest=False)
        sums, i, j = best.values, i[best.indices], j[best.indices]  # [B, k'] each
        ranks = torch.cat([ranks.gather(1, i[..., None].expand(-1, -1, c)), j[..., None]], 2)
    codes = nearest[:, None].repeat(1, ranks.shape[1], 1)
    codes.scatter_(2, cells[:, None].expand(-1, ranks.shape[1], -1), nodes.gather(1, ranks))
    return sums + least[:, None], codes


def refined(
    net: 'Network',
    images: torch.Tensor,
    output: 'Output',
    condition: torch.Tensor | None = None,
    num_others: int = 1,
    share_prefixes: bool = False,
) -> 'Output':
    """``output`` of encoding ``images``, refined: no image is further from its original than before.

    At each layer in turn all cells take the nearest of their other nodes, and the layers after follow greedily. The
    cells where that brought the final image nearer keep it, the others take their own node again, and the layers after
    follow once more. Each image keeps the best of what it had and these two. Then the same with the second nearest of
    the other nodes, up to ``num_others``.
    """
    target = samplers.target_pyramid(images)
    greedy = samplers.nearest_to(target)

    def error(output: 'Output') -> torch.Tensor:
        return (output.images - images).square().mean(1, keepdim=True)  # [B, 1, H, W]

    def better(a: 'Output', b: 'Output') -> 'Output':
        first = error(a).mean((1, 2, 3)) <= error(b).mean((1, 2, 3))  # [B]
        made = torch.where(first[:, None, None, None], a.images, b.images)
        return a._replace(images=made, codes=torch.where(first[:, None], a.codes, b.codes))

    def other(candidates: Candidates, own: torch.Tensor, nth: int) -> torch.Tensor:
        distances = candidates.distances(target(candidates.shape[2:])).scatter(1, own.unsqueeze(1), math.inf)
        return distances.topk(nth, dim=1, largest=False).indices[:, -1]

    def pass_(codes: torch.Tensor, layer: int, nth: int = 0) -> 'Output':
        """With ``codes`` [B, D] up to a layer, there with the ``nth`` nearest other nodes if any, then greedily."""

        def sampler(candidates: Candidates, at: int, so_far: torch.Tensor) -> samplers.Choice:
            if at > layer:
                return greedy(candidates, at, so_far)
            own = samplers.of_layer(codes, candidates, so_far)
            return samplers.Choice(other(candidates, own, nth) if nth and at == layer else own)

        return net(sampler, len(images), condition, share_prefixes=share_prefixes)

    for layer, spec in enumerate(net.specs[:-1]):  # at the last the nearest is the best
        columns = net.code_slices[layer]
        for nth in range(1, min(num_others, spec.num_nodes - 1) + 1):
            tried = pass_(output.codes, layer, nth)
            if spec.num_cells > 1:
                nearer = F.adaptive_avg_pool2d(error(output) - error(tried), spec.grid).flatten(1) > 0  # [B, n]
                mixed = output.codes.clone()
                mixed[:, columns] = torch.where(nearer, tried.codes[:, columns], output.codes[:, columns])
                tried = better(tried, pass_(mixed, layer))
            output = better(output, tried)
    return output


def nearest_leaf(
    net: 'Network', images: torch.Tensor, condition: torch.Tensor | None = None, at_once: int = 1024
) -> torch.Tensor:
    """The codes [B, D] of the nearest of all K^D images, each drawn once for all of ``images``; the condition has one
    row."""
    nodes = net.code_nodes
    bases = torch.tensor([math.prod(nodes[d + 1 :]) for d in range(len(nodes))])
    K = torch.tensor(nodes)
    num_leaves = math.prod(nodes)
    target = images.flatten(1).to(torch.promote_types(net.ddls[0].weight.dtype, torch.float32))  # [B, C H W]
    best = target.new_full((len(target),), math.inf)
    found = torch.zeros(len(target), dtype=torch.int64, device=target.device)
    for first in range(0, num_leaves, at_once):
        leaves = torch.arange(first, min(first + at_once, num_leaves))
        drawn = net.decode(leaves[:, None] // bases % K, condition, share_prefixes=True).flatten(1)  # [n, C H W]
        with full_precision(target):
            nearest = (drawn.square().sum(1) - 2 * target @ drawn.t()).min(1)  # less |target|^2
        found = torch.where(nearest.values < best, nearest.indices + first, found)
        best = torch.minimum(best, nearest.values)
    return found[:, None] // bases.to(found.device) % K.to(found.device)


@torch.no_grad()
def branches(net: 'Network', prefixes: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
    """All K candidates [B, K, C, h, w] of the layer after the codes ``prefixes`` [B, d]; see ``Network.branches``."""
    l = prefixes.shape[1]
    if l == net.num_codes:
        raise ValueError(f'codes of all {net.num_layers} layers name a leaf of the tree; it has no children')
    if l >= net.num_whole_layers:
        raise ValueError(
            f'the tree is of the first {net.num_whole_layers} layers, which have no cells; cell_branches shows the '
            'candidates of a cell'
        )
    codes = F.pad(prefixes, (0, net.num_codes - l))
    return _at_layer(net, codes, l, condition, lambda candidates, own: next(candidates.chunks(net.num_nodes[l]))[1])


@torch.no_grad()
def next_log_prior(net: 'Network', prefixes: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
    """log p of all answers of the layer after the codes ``prefixes`` [B, d]; see ``Network.next_log_prior``."""
    d = prefixes.shape[1]
    if d == net.num_codes:
        raise ValueError(f'codes of all {net.num_layers} layers are given: no layer is left')
    layer = next(l for l, columns in enumerate(net.code_slices) if columns.start == d)
    codes = F.pad(prefixes, (0, net.num_codes - d))
    return _at_layer(net, codes, layer, condition, lambda candidates, own: candidates.log_prior())


@torch.no_grad()
def cell_branches(
    net: 'Network', codes: torch.Tensor, layer: int, cell: int, condition: torch.Tensor | None = None
) -> torch.Tensor:
    """The image of a layer with the K candidates of a cell in its place: [B, K, C, h, w]; see
    ``Network.cell_branches``."""
    if not 0 <= layer < net.num_layers or not 0 <= cell < net.specs[layer].num_cells:
        cells = [spec.num_cells for spec in net.specs]
        raise ValueError(f'layer {layer} has no cell {cell}; the layers have {cells} cells')

    def in_place(candidates: Candidates, own: torch.Tensor) -> torch.Tensor:
        K, gw = candidates.num_nodes, candidates.grid[1]
        h, w = (side // g for side, g in zip(candidates.shape[2:], candidates.grid, strict=True))
        images = candidates.render(own)[:, None].repeat(1, K, 1, 1, 1)
        y, x = cell // gw * h, cell % gw * w
        images[..., y : y + h, x : x + w] = next(candidates.chunks(K))[1][..., y : y + h, x : x + w]
        return images

    return _at_layer(net, codes, layer, condition, in_place)


def _at_layer(
    net: 'Network',
    codes: torch.Tensor,
    layer: int,
    condition: torch.Tensor | None,
    show: Callable[[Candidates, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """What ``show`` makes of the candidates of a layer and its own of ``codes`` [B, D], in the pass with them."""
    given, shown = samplers.given(codes.to(net.device)), []

    def sampler(candidates: Candidates, at: int, so_far: torch.Tensor) -> samplers.Choice:
        choice = given(candidates, at, so_far)
        if at == layer:
            shown.append(show(candidates, choice.codes))
        return choice

    next(itertools.islice(net.walk(sampler, len(codes), condition), layer, None))
    return shown[0]
