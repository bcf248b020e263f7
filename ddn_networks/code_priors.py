"""Priors of a network that stays as it is: counts of its codes, and a small causal transformer over them.

Legend: B images, L layers, K nodes (the largest of all layers), n cells of a layer, D codes, W width.

They take the place of the heads of ``prior``: a function of the choices so far that gives the logits of the next one.
Neither reads features, so both are fitted to codes alone; training that moves nodes needs heads.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from ddn_networks.network import LayerSpec

KINDS = ('head', 'counts', 'transformer')
DEPTH, ATTENTION_HEADS = 3, 4  # of the transformer


class Counts(nn.Module):
    """How often each node was the nearest, for each cell of each layer: what came before does not matter.

    Attributes:
        counts: [D, K] int64; 0 everywhere is the uniform prior. Every node counts one more than was seen.
    """

    def __init__(self, specs: Sequence['LayerSpec']):
        super().__init__()
        self.specs = list(specs)
        self.register_buffer('counts', torch.zeros(_num_codes(specs), _most_nodes(specs), dtype=torch.int64))

    @torch.no_grad()
    def add_(self, codes: torch.Tensor) -> None:
        """Count the codes [B, D] of some images."""
        places = torch.arange(codes.shape[1], device=codes.device).expand_as(codes)
        self.counts.index_put_((places, codes), torch.ones_like(codes), accumulate=True)

    def forward(self, codes: torch.Tensor, layer: int) -> torch.Tensor:
        """Codes so far [B, d] -> logits of the next ones [B, K], or [B, K, n] with several cells; float32. More steps
        of a recurrent network than were counted have the counts of the last one."""
        spec = self.specs[min(layer, len(self.specs) - 1)]
        first = min(codes.shape[1], len(self.counts) - spec.num_cells)
        counts = self.counts[first : first + spec.num_cells, : spec.num_nodes].t()  # [K, n]
        logits = (counts.clamp(min=0).double() + 1).log().float().expand(len(codes), -1, -1)
        return logits[:, :, 0] if spec.num_cells == 1 else logits


class Block(nn.Module):
    """Self-attention and an MLP, each after a layer norm and added to its input."""

    def __init__(self, width: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor, dropout: float) -> torch.Tensor:
        """[B, l, W] -> [B, l, W]; place i sees places 0 .. i."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(2, (3, ATTENTION_HEADS, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + F.dropout(self.mix(seen), dropout, self.training)
        return x + F.dropout(self.mlp(self.norms[1](x)), dropout, self.training)


class CodeTransformer(nn.Module):
    """A causal transformer over the codes of a network of whole-image layers; it begins uniform.

    Args:
        specs: of the network's layers.
        width: W, a multiple of ``ATTENTION_HEADS``.

    Raises:
        ValueError: layers with cells, another width.
    """

    DROPOUT = 0.1  # in training

    def __init__(self, specs: Sequence['LayerSpec'], width: int):
        super().__init__()
        if any(spec.num_cells > 1 for spec in specs):
            raise ValueError('a transformer over codes needs a network of whole-image layers: take heads or counts')
        if width < 1 or width % ATTENTION_HEADS:
            raise ValueError(f'the width of a transformer is a multiple of {ATTENTION_HEADS}, not {width}')
        self.num_nodes = [spec.num_nodes for spec in specs]
        self.first = [0, *itertools.accumulate(self.num_nodes)][:-1]  # row of the first node of each layer
        total = sum(self.num_nodes)
        self.start = nn.Parameter(torch.zeros(width))
        self.node = nn.Parameter(0.1 * torch.randn(total, width))  # of all layers, one after the other
        self.place = nn.Parameter(0.02 * torch.randn(len(specs), width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, total)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, codes: torch.Tensor, layer: int) -> torch.Tensor:
        """Codes so far [B, l] -> logits of the next one [B, K], float32. More steps of a recurrent network than it was
        made for have the place and the nodes of the last one."""
        return self._logits(self._features(codes)[:, -1], layer)

    def of_all(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """Codes [B, L] -> L logits [B, K], each given the codes before it, in one pass (training)."""
        x = self._features(codes[:, :-1])  # [B, L, W]
        return [self._logits(x[:, l], l) for l in range(codes.shape[1])]

    def _layer(self, layer: int) -> int:
        return min(layer, len(self.num_nodes) - 1)

    def _features(self, codes: torch.Tensor) -> torch.Tensor:
        layers = [self._layer(l) for l in range(codes.shape[1] + 1)]
        first = torch.tensor([self.first[l] for l in layers[:-1]], dtype=torch.int64, device=codes.device)
        x = torch.cat([self.start.expand(len(codes), 1, -1), self.node[codes + first]], 1) + self.place[layers]
        for block in self.blocks:
            x = block(x, self.DROPOUT)
        return self.norm(x)  # [B, l + 1, W]

    def _logits(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        layer = self._layer(layer)
        rows = slice(self.first[layer], self.first[layer] + self.num_nodes[layer])
        return F.linear(x, self.out.weight[rows], self.out.bias[rows])


def over_codes(kind: str, width: int, specs: Sequence['LayerSpec']) -> list[nn.Module]:
    """The one module of a prior of this kind, for all layers; none where the kind is 'head'. ValueError for others."""
    if kind not in KINDS:
        raise ValueError(f'a prior is one of {", ".join(KINDS)}, not {kind!r}')
    if kind == 'counts':
        return [Counts(specs)]
    return [CodeTransformer(specs, width)] if kind == 'transformer' else []


def _num_codes(specs: Sequence['LayerSpec']) -> int:
    return sum(spec.num_cells for spec in specs)


def _most_nodes(specs: Sequence['LayerSpec']) -> int:
    return max(spec.num_nodes for spec in specs)
