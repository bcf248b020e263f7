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

from ddn_networks.candidates import Candidates
from ddn_networks.cells import Grid
from ddn_networks.closed_forms import full_precision
from ddn_networks.samplers import Choice, Sampler, of_layer

POOLED: Grid = (4, 4)  # what the head of a layer of few cells sees of its features
FEW_CELLS = 4
STEP_FREQUENCIES = 8  # sines and cosines that encode the number of a step


class PriorHead(nn.Module):
    """The logits of a layer's choice, from its features averaged to a small map and normalised per image.

    A layer of few cells has an MLP on a map of 4x4, a layer of many cells three convolutions on a map of its grid. The
    last layer begins at zero, so the prior begins uniform.

    Attributes:
        out: the last layer. Seen as [K, ...], row k of its weight and bias belongs to node k, for all cells.

    Args:
        channels: C of the features.
        num_nodes: K.
        grid: cells of the layer.
        width: hidden units or channels.
        steps: the head serves every step of a recurrent network and is given the number of the step.
    """

    def __init__(self, channels: int, num_nodes: int, grid: Grid, width: int, steps: bool = False):
        super().__init__()
        self.num_nodes, self.num_cells = num_nodes, grid[0] * grid[1]
        few = self.num_cells <= FEW_CELLS
        self.pooled = POOLED if few else grid
        if few:
            inputs = channels * POOLED[0] * POOLED[1]
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(inputs, width))
            self.out = nn.Linear(width, num_nodes * self.num_cells)  # node by node
        else:
            convs = [nn.Conv2d(c, width, 3, padding=1) for c in (channels, width)]
            self.body = nn.Sequential(convs[0], nn.SiLU(), convs[1])
            self.out = nn.Conv2d(width, num_nodes, 1)
        self.step = nn.Linear(2 * STEP_FREQUENCIES, width) if steps else None
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: torch.Tensor, step: int = 0) -> torch.Tensor:
        """Features [B, C, H, W] -> logits [B, K], or [B, K, n] with several cells; float32."""
        with full_precision(features):
            x = F.adaptive_avg_pool2d(features.float(), self.pooled)
            x = self.body(F.layer_norm(x, x.shape[1:]))
            if self.step is not None:
                angles = step * 0.5 ** torch.arange(STEP_FREQUENCIES, device=x.device)
                shift = self.step(torch.cat([angles.sin(), angles.cos()]))
                x = x + shift.view(1, -1, *[1] * (x.ndim - 2))
            logits = self.out(F.silu(x))
            return logits if self.num_cells == 1 else logits.view(len(x), self.num_nodes, self.num_cells)


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
        raise ValueError(f'temperatures are one number of at least 0, or {num_layers}, one per layer, not {found}')
    return found
