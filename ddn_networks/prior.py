"""A network's own prior: how likely each answer of a layer is, given the choices so far.

Legend: B images, L layers, K nodes, n cells of a layer, D codes of a latent, C feature channels, H x W pixels.

The features of a layer are a function of the choices before it, so a small head on them makes the network an
autoregressive model of its own codes, with exact likelihoods, in the same one pass:

    p(code_l | codes before) = softmax(head_l(features_l))        per cell; cells of a layer independent given the rest

Uniform generation, as in the paper, needs no prior; it visits codes that training never saw.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ddn_networks.blocks import ResBlock, num_groups
from ddn_networks.candidates import Candidates
from ddn_networks.cells import Grid
from ddn_networks.closed_forms import full_precision
from ddn_networks.samplers import Choice, Sampler, of_layer

LEAST = 4  # places a side, at least, of the map that a head works on
ATTENTION_HEADS = 4
STEP_FREQUENCIES = 8  # sines and cosines that encode the number of a step


class Attention(nn.Module):
    """Self-attention over the places of a map, added to it; begins as the identity.

    Args:
        channels: of the map, a multiple of ``ATTENTION_HEADS``.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(num_groups(channels), channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w] -> [B, C, h, w]."""
        qkv = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, ATTENTION_HEADS, -1))  # [B, 3, heads, C / heads, h w]
        q, k, v = qkv.transpose(3, 4).unbind(1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape))


class PriorHead(nn.Module):
    """The logits of a layer's choice, from its features, averaged to a small map and normalised per image.

    The map has as many places as the layer has cells, or a multiple of that where these are few. A cell's logits depend
    on the whole map: residual block, attention over all places, residual block. The last layer begins at zero, so the
    prior begins uniform.

    Attributes:
        out: the last layer. Row k of its weight [K, width, ...] and bias [K] belongs to node k, for all cells.

    Args:
        channels: C of the features.
        num_nodes: K.
        size, grid: pixels (H, W) and cells of the layer.
        width: channels of the map, rounded up to a multiple of ``ATTENTION_HEADS``.
        steps: the head serves every step of a recurrent network and is given the number of the step.
    """

    def __init__(self, channels: int, num_nodes: int, size: Grid, grid: Grid, width: int, steps: bool = False):
        super().__init__()
        width += -width % ATTENTION_HEADS
        self.num_nodes, self.num_cells = num_nodes, grid[0] * grid[1]
        places = tuple(min(-(-LEAST // g), side // g) for g, side in zip(grid, size, strict=True))  # for each cell
        self.map = tuple(g * n for g, n in zip(grid, places, strict=True))
        halve = all(side >= 2 * n for side, n in zip(size, self.map, strict=True))
        self.seen = tuple((1 + halve) * n for n in self.map)  # of the features
        self.first = nn.Conv2d(channels, width, *((4, 2, 1) if halve else (3, 1, 1)))
        self.place = nn.Parameter(torch.randn(1, width, *self.map).mul_(0.02))
        self.step = nn.Linear(2 * STEP_FREQUENCIES, width) if steps else None
        self.blocks = nn.ModuleList([ResBlock(width, width), Attention(width), ResBlock(width, width)])
        self.norm = nn.GroupNorm(num_groups(width), width, eps=1e-6)
        self.out = nn.Conv2d(width, num_nodes, places, places)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: torch.Tensor, step: int = 0) -> torch.Tensor:
        """Features [B, C, H, W] -> logits [B, K], or [B, K, n] with several cells; float32,
        or float64 of such features and weights."""
        with full_precision(features):
            dtype = torch.promote_types(features.dtype, torch.float32)
            x = F.adaptive_avg_pool2d(features.to(dtype), self.seen)
            x = self.first(F.layer_norm(x, x.shape[1:])) + self.place  # [B, width, h, w]
            if self.step is not None:
                angles = step * 0.5 ** torch.arange(STEP_FREQUENCIES, dtype=dtype, device=x.device)
                x = x + self.step(torch.cat([angles.sin(), angles.cos()])).view(1, -1, 1, 1)
            before, attention, after = self.blocks
            x = after(attention(before(x, self.map)), self.map)
            logits = self.out(F.silu(self.norm(x)))  # [B, K, g_h, g_w]
            return logits.flatten(1) if self.num_cells == 1 else logits.flatten(2)


def from_prior(
    uniforms: torch.Tensor, temperatures: Sequence[float] = (1.0,), top_p: float = 1.0, cfg: float = 1.0
) -> Sampler:
    """Codes sampled from the network's own prior.

    Args:
        uniforms: [B, D] float64 in [0, 1), one number per choice (``samplers.uniforms``): inverse CDF.
        temperatures: one for all layers, or one per layer: log p is divided by it; 0 takes the likeliest.
        top_p: only the likeliest nodes whose probabilities first add up to it are chosen from.
        cfg: classifier-free guidance: p(k) (p(k | condition) / p(k))^cfg, of a prior that alone is given the condition.
            By Bayes the ratio is p(condition | k) but for a factor that is the same for all k.
    """

    def sampler(candidates: Candidates, layer: int, codes: torch.Tensor) -> Choice:
        log_p = candidates.log_prior()  # [B, K] or [B, K, n]
        u = of_layer(uniforms, candidates, codes).to(log_p.device)
        temperature = temperatures[layer] if len(temperatures) > 1 else temperatures[0]
        wanted = log_p
        if cfg != 1:
            without = candidates.log_prior(conditional=False)
            wanted = (without + cfg * (log_p - without)).log_softmax(1)
        return Choice(inverse_cdf(wanted, u, temperature, top_p), log_prior=log_p)

    return sampler


def inverse_cdf(log_p: torch.Tensor, u: torch.Tensor, temperature: float = 1.0, top_p: float = 1.0) -> torch.Tensor:
    """The codes [B] or [B, n] at the quantiles ``u`` of log p [B, K] or [B, K, n]; see ``from_prior``."""
    if temperature < 1e-300:  # dividing by less overflows
        return log_p.argmax(1)
    p = (log_p.double() / temperature).softmax(1)
    if top_p < 1:
        ordered, order = p.sort(dim=1, descending=True, stable=True)
        kept = ordered.cumsum(1) - ordered < top_p  # the likeliest is always kept
        p = torch.zeros_like(p).scatter_(1, order, ordered.where(kept, 0))
    upto = p.cumsum(1)
    # Above the total by rounding there is no node: the last one that has a probability.
    last = p.shape[1] - 1 - (p > 0).flip(1).int().argmax(1)
    return torch.minimum((upto <= u.unsqueeze(1) * upto[:, -1:]).sum(1), last)


def checked_temperatures(temperature: float | Sequence[float], num_layers: int) -> list[float]:
    """One temperature, or one per layer, as a list; ValueError where there are as many of neither, or one below 0."""
    found = [float(t) for t in (temperature if isinstance(temperature, Sequence) else [temperature])]
    if len(found) not in (1, num_layers) or not all(0 <= t < float('inf') for t in found):
        raise ValueError(f'temperature: give one number of at least 0, or {num_layers}, one per layer, not {found}')
    return found
