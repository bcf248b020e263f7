"""Search in the tree of latents: the nearest image by a beam or by trying all, and the children of a node.

Legend: B images, L layers, K nodes, b beams per image.
"""

import itertools
import math
from typing import TYPE_CHECKING

import torch

from ddn_networks import guided_sampling, guides, samplers
from ddn_networks.candidates import Candidates, full_precision

if TYPE_CHECKING:
    from ddn_networks.network import Network, Output


def nearest(
    net: 'Network',
    images: torch.Tensor,
    condition: torch.Tensor | None = None,
    beam: int = 1,
    share_prefixes: bool = False,
) -> 'Output':
    """``Network.reconstruct`` with a beam; exhaustive where the beam is as wide as the last layer's tree."""
    before = net.code_nodes[: net.code_slices[-1].start]  # of all layers but the last
    if beam >= math.prod(before) and (condition is None or len(condition) == 1):
        codes = nearest_leaf(net, images, condition)
        return net(samplers.given(codes), len(codes), condition)
    guidance = guided_sampling.Guidance([guides.l2(images)], beam=beam)
    # The seed breaks ties, in the same way for all images.
    return guided_sampling.sample(net, guidance, [0] * len(images), condition, share_prefixes)


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
    codes = prefixes.to(net.device)
    if codes.shape[1] == net.num_codes:
        raise ValueError(f'codes of all {net.num_layers} layers name a leaf of the tree; it has no children')
    l = next(layer for layer, columns in enumerate(net.code_slices) if columns.start == codes.shape[1])
    cells = net.specs[l].num_cells
    found = []

    def sampler(candidates: Candidates, layer: int, so_far: torch.Tensor) -> samplers.Choice:
        if layer < l:
            return samplers.Choice(samplers.of_layer(codes, candidates, so_far))
        found.append(next(candidates.chunks(net.num_nodes[l]))[1])
        return samplers.Choice(codes.new_zeros(len(codes), cells))

    next(itertools.islice(net.walk(sampler, len(codes), condition), l, None))
    return found[0]
