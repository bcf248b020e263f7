"""Latents as data: codes [N, D] compared, cut, mixed, written as bits, and as the tree of Fig. 1b.

Legend: N, A, B images, D codes of a latent (one per layer, or per cell of it), K nodes, Q queries, n nodes of the tree
at one depth.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

# Comparing.


def common_prefix(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The number of layers, from the first, that agree: codes [A, D] and [B, D] -> [A, B] int64. It is the depth of
    the deepest node of the tree that both are below."""
    same = torch.ones(len(a), len(b), dtype=torch.bool, device=a.device)
    depth = torch.zeros(len(a), len(b), dtype=torch.int64, device=a.device)
    for l in range(a.shape[1]):
        same &= a[:, None, l] == b[None, :, l]
        depth += same
    return depth


def hamming(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The number of layers in which codes [A, D] and [B, D] differ: [A, B] int64."""
    distance = torch.zeros(len(a), len(b), dtype=torch.int64, device=a.device)
    for l in range(a.shape[1]):
        distance += a[:, None, l] != b[None, :, l]
    return distance


def nearest(queries: torch.Tensor, codes: torch.Tensor, num: int, by: str = 'prefix') -> torch.Tensor:
    """The ``num`` rows of ``codes`` [N, D] nearest to each of ``queries`` [Q, D]: [Q, num] int64, the nearest first.

    ``by`` 'prefix': the longest common prefix, and among equals the least Hamming distance; 'hamming': the other way
    round. Rows that are equal in both keep their order.
    """
    L = codes.shape[1]
    order = []
    for part in queries.split(64):
        prefix, differ = common_prefix(part, codes), hamming(part, codes)
        far = {'prefix': (L - prefix) * (L + 1) + differ, 'hamming': differ * (L + 1) + (L - prefix)}[by]
        order.append(far.sort(dim=1, stable=True).indices[:, :num])
    return torch.cat(order)


# Editing.


def touching(pixels: torch.Tensor, grids: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The codes of the cells that reach into a region of the picture: pixels [H, W] bool and the grid of each layer ->
    [D] bool. A layer without cells is one cell."""
    reached = [F.adaptive_max_pool2d(pixels[None].float(), grid).flatten() > 0 for grid in grids]
    return torch.cat(reached)


def swap(coarse: torch.Tensor, fine: torch.Tensor, layers: int) -> torch.Tensor:
    """The first ``layers`` codes of each row of ``coarse`` [A, D], the rest of each row of ``fine`` [B, D]: all pairs,
    [A, B, D]."""
    A, B = len(coarse), len(fine)
    first = coarse[:, None, :layers].expand(A, B, -1)
    return torch.cat([first, fine[None, :, layers:].expand(A, B, -1)], 2)


def path(start: torch.Tensor, end: torch.Tensor, coarse_first: bool = False) -> torch.Tensor:
    """From one latent [D] to another, one code that differs at a time: [d + 1, D] with d their Hamming distance.

    The finest layer changes first, so that the picture changes little at first; ``coarse_first`` is the other way.
    """
    layers = (start != end).nonzero()[:, 0]
    rows = [start]
    for l in layers if coarse_first else layers.flip(0):
        rows.append(rows[-1].clone())
        rows[-1][l] = end[l]
    return torch.stack(rows)


# Bits.


def bit_widths(num_nodes: Sequence[int]) -> list[int]:
    """Bits of each layer's code; ValueError where K is not a power of two."""
    for l, K in enumerate(num_nodes):
        if K & (K - 1):
            raise ValueError(f'codes are bit strings where every K is a power of two; layer {l} has K = {K}')
    return [int(math.log2(K)) for K in num_nodes]


def to_bits(codes: torch.Tensor, num_nodes: Sequence[int]) -> list[str]:
    """Codes [N, D] as N strings of 0 and 1, layer by layer, the most significant bit first. For K = 2 (Taiji-DDN,
    BinDDN) a character is a choice. ValueError naming the first code outside 0..K-1."""
    widths = bit_widths(num_nodes)
    for i, l in ((codes < 0) | (codes >= torch.tensor(num_nodes, device=codes.device))).nonzero()[:1].tolist():
        raise ValueError(f'code {codes[i, l]} of row {i}, layer {l}, is outside 0..{num_nodes[l] - 1}')
    return [''.join(f'{code:0{w}b}' for code, w in zip(row, widths, strict=True)) for row in codes.tolist()]


def from_bits(texts: Sequence[str], num_nodes: Sequence[int]) -> torch.Tensor:
    """The codes [N, D] int64 that ``to_bits`` wrote; ValueError naming the first string that is not one."""
    widths = bit_widths(num_nodes)
    rows = []
    for i, text in enumerate(texts):
        if set(text) - {'0', '1'} or len(text) != sum(widths):
            raise ValueError(f'string {i} should be {sum(widths)} characters 0 and 1, not {text[:80]!r} ({len(text)})')
        ends = [sum(widths[: l + 1]) for l in range(len(widths))]
        rows.append([int(text[end - w : end], 2) for end, w in zip(ends, widths, strict=True)])
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), len(widths))


# The tree.


def groups(codes: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The nodes of the tree at a depth that images are under, the fullest first; depth 0 is the root.

    Returns prefixes [n, depth] int64, counts [n], and which of them each image is under, [N].
    """
    rooted = F.pad(codes[:, :depth], (1, 0))  # unique takes no rows of length 0
    prefixes, at, counts = rooted.unique(dim=0, return_inverse=True, return_counts=True)
    order = counts.argsort(descending=True, stable=True)
    return prefixes[order, 1:], counts[order], order.argsort()[at]


def under(codes: torch.Tensor, prefix: Sequence[int]) -> torch.Tensor:
    """Rows of codes [N, D] below a node of the tree, named by its codes from the root on; all for none."""
    prefix = torch.as_tensor(prefix, dtype=codes.dtype, device=codes.device)
    return (codes[:, : len(prefix)] == prefix).all(1).nonzero()[:, 0]


def vote(
    codes: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, num_classes: int, min_votes: int = 1
) -> torch.Tensor:
    """The latent as a decision tree (Appendix C): classes [Q] int64 of ``queries`` [Q, D].

    Every labelled image, codes [N, D] and labels [N] int64, votes at all nodes it is under. A query takes the majority
    of the deepest node it is under that has ``min_votes`` votes or more: with 1, a node without votes inherits from its
    nearest ancestor with any, as in the paper; with k, those are its k (or more) nearest neighbours by common prefix.
    Between equal numbers of votes the ancestors decide, and after the root the lowest class.

    Raises ValueError where there are no labelled codes.
    """
    if not len(codes):
        raise ValueError('no labelled codes to vote with')

    def ranked(votes: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        """[n, classes]: 0 for the last class of a node, by its votes and then by the rank ``above``."""
        return (votes * num_classes + above).argsort(1).argsort(1)

    K = int(torch.cat([codes, queries]).max()) + 1
    one_hot = F.one_hot(labels, num_classes)  # [N, classes]
    rank = ranked(one_hot.sum(0, keepdim=True), torch.arange(num_classes, device=labels.device).flip(0))  # of the root
    at = torch.zeros_like(codes[:, 0])  # which node of this depth each labelled image is under
    where = torch.zeros_like(queries[:, 0])  # and each query
    alive = torch.ones_like(where, dtype=torch.bool)
    verdict = rank.argmax(1).expand(len(queries))  # [Q]
    for l in range(codes.shape[1]):
        keys, at, counts = torch.unique(at * K + codes[:, l], return_inverse=True, return_counts=True)
        votes = one_hot.new_zeros(len(keys), num_classes).index_add_(0, at, one_hot)
        rank = ranked(votes, rank[keys // K])
        wanted = where * K + queries[:, l]
        where = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        alive = alive & (keys[where] == wanted) & (counts[where] >= min_votes)
        verdict = torch.where(alive, rank.argmax(1)[where], verdict)
    return verdict
