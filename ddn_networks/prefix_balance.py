"""Balancing node usage behind every prefix of choices: Split-and-Prune plus a penalty on predictable choices.

Legend: B images, L layers, W node weights (one per DDL), K nodes, F feature channels, h x w pixels, D what a
forecast reads.

Split-and-Prune balances the nodes of a layer on average over the data. Generation samples uniformly *given the choices
before*, and a node that is never matched behind some prefix has learned nothing there. A linear classifier on the
features of the layer shows where that happens: if it can predict the choice, usage behind this prefix is not uniform.
Its forecast becomes a penalty on the distances, for choosing only: Loss-Free Balancing (Appendix E) with a bias that
depends on the prefix.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ddn_networks.aliases import old_arguments
from ddn_networks.candidates import Candidates
from ddn_networks.samplers import Penalty
from ddn_networks.split_prune import Plan, SplitAndPrune


class Forecast(NamedTuple):
    """A forecast from a layer's features: the classifier's input [B, D + 1] and the probability of each node [B, K]."""

    read: torch.Tensor
    probability: torch.Tensor


class PrefixBalancing(SplitAndPrune):
    """Split-and-Prune, plus a penalty on nodes in proportion to the logarithm of their predicted probability.

    A node k that the features predict with probability q_k looks farther away by
    ``rate * spread * log(K q_k)``, with the spread (standard deviation over the nodes) of the image's own distances as
    the unit. The forecast is multinomial logistic regression on the candidates' features, averaged over a grid and
    normalised per image, trained by Adam with the network. It needs only the gradient of the cross entropy, which has a
    closed form, so nothing of it enters autograd. The rows of a node that splits are copied with the node.

    Args:
        weights, ddl_of_layer, reduce_fn, dtype: see ``UsageCounter``.
        rate: strength of the penalty; 0 is Split-and-Prune.
        limit: log(K q_k) counts within +-limit.
        grid: features are averaged over at most grid x grid cells.
        lr: Adam's rate for the forecast.
        split_prune: further arguments of ``SplitAndPrune``.

    Raises:
        ValueError: rate, limit, grid or lr out of range; layers with several cells.
    """

    @old_arguments(layer_weights='ddl_of_layer')
    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        ddl_of_layer: Sequence[int] | None = None,
        reduce_fn: Callable[[torch.Tensor], None] | None = None,
        dtype: torch.dtype = torch.float64,
        rate: float = 1.0,
        limit: float = 3.0,
        grid: int = 4,
        lr: float = 1e-3,
        num_cells: Sequence[int] | None = None,
        **split_prune: float,
    ):
        if num_cells is not None and max(num_cells) > 1:
            raise ValueError('balancing by prefix is for layers of whole images: with cells use Split-and-Prune')
        super().__init__(weights, ddl_of_layer, reduce_fn=reduce_fn, dtype=dtype, **split_prune)
        if rate < 0 or limit <= 0 or grid < 1 or lr <= 0:
            raise ValueError(
                'balancing by prefix needs rate >= 0, limit > 0, grid >= 1 and lr > 0, not '
                f'rate={rate}, limit={limit}, grid={grid}, lr={lr}'
            )
        self.rate, self.limit, self.grid = rate, limit, grid
        # One flat tensor holds the forecasts of all weights, so that one reduction adds the gradients of the ranks. The
        # first number is not a parameter: its "gradient" counts the images.
        shapes = [(len(w), w.shape[2] * grid**2 + 1) for w in weights]  # [K, D + 1], the last column is the intercept
        self.flat = torch.zeros(1 + sum(K * D for K, D in shapes), device=weights[0].device)
        self.flat.grad = torch.zeros_like(self.flat)
        self.optimizer = torch.optim.Adam([self.flat], lr=lr)
        self.optimizer.state[self.flat] = {
            'step': torch.zeros(()),
            'exp_avg': torch.zeros_like(self.flat),
            'exp_avg_sq': torch.zeros_like(self.flat),
        }

        def views(flat: torch.Tensor) -> list[torch.Tensor]:
            parts = flat[1:].split([K * D for K, D in shapes])
            return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

        self.forecasts, self.gradients = views(self.flat), views(self.flat.grad)
        moments = self.optimizer.state[self.flat]
        self.copies += [self.forecasts, views(moments['exp_avg']), views(moments['exp_avg_sq'])]

    def _read(self, features: torch.Tensor) -> torch.Tensor:
        """[B, F, h, w] -> [B, D + 1]: averages over a grid (cells repeat where there are fewer pixels), zero mean and
        unit variance per image, then a one for the intercept."""
        cells = F.adaptive_avg_pool2d(features.detach().float(), self.grid).flatten(1)  # [B, D]
        return F.pad(F.layer_norm(cells, cells.shape[1:]), (0, 1), value=1.0)

    @torch.no_grad()
    def penalty(self, candidates: Candidates, layer: int, distances: torch.Tensor) -> Penalty:
        """Values [B, K] to add to ``distances`` of a layer for choosing; the evidence is the ``Forecast``."""
        K = distances.shape[1]
        with torch.autocast(distances.device.type, enabled=False):
            read = candidates.of_features(self._read)
            log_q = (read @ self.forecasts[self.ddl_of_layer[layer]].t()).log_softmax(1)  # [B, K]
        spread = distances.std(1, keepdim=True)
        values = self.rate * spread * (log_q + math.log(K)).clamp(-self.limit, self.limit)
        return Penalty(values, Forecast(read, log_q.exp()))

    @torch.no_grad()
    def observe(
        self,
        codes: torch.Tensor,
        dropped: torch.Tensor | None = None,
        distances: Sequence[torch.Tensor] | None = None,
        evidence: Sequence[Forecast | None] | None = None,
    ) -> None:
        """Count codes [B, L] and fit the forecasts to them; ``dropped`` ones [B, L] count for neither.

        ``evidence``: the L forecasts that ``penalty`` made for these choices.
        """
        if evidence is None or len(evidence) != codes.shape[1] or None in evidence:
            raise ValueError('balancing by prefix needs the evidence of choices that its penalty was part of')
        super().observe(codes, dropped, distances)
        for layer, (read, q) in enumerate(evidence):
            error = q - F.one_hot(codes[:, layer], q.shape[1])  # of the cross entropy, with respect to the logits
            if dropped is not None:
                error = error * ~dropped[:, layer, None]
            self.gradients[self.ddl_of_layer[layer]].addmm_(error.t(), read)
        self.flat.grad[0] += len(codes)

    @torch.no_grad()
    def step_(self, optimizer: torch.optim.Optimizer | None = None) -> Plan:
        """Adam's step for the forecasts, then ``SplitAndPrune.step_``, which moves their rows too."""
        gradient = self.flat.grad
        if self.reduce_fn is not None:
            self.reduce_fn(gradient)
        gradient /= gradient[:1].clamp(min=1).clone()
        gradient[0] = 0
        gradient.nan_to_num_(0.0, 0.0, 0.0)  # of a step that was skipped because of non-finite numbers
        self.optimizer.step()
        gradient.zero_()
        plan = super().step_(optimizer)
        for w, (split, prune, active) in enumerate(zip(*plan, strict=True)):  # each half is half as likely
            halves = torch.cat([split, prune]).where(active.repeat(2), 0)  # an inactive pair may be beyond this K
            self.forecasts[w][:, -1].index_add_(0, halves, active.repeat(2) * -math.log(2))
        return plan

    def state_dict(self) -> dict[str, torch.Tensor]:
        moments = {f'forecast_{key}': value for key, value in self.optimizer.state[self.flat].items()}
        return super().state_dict() | {'forecast': self.flat, 'forecast_grad': self.flat.grad, **moments}
