"""Keeping the K nodes of a layer equally used: what every way of balancing shares, none, and a bias on the distances.

Legend: B images, L layers, W node weights (one per DDL; the layers of a recurrent network share one), K nodes (the
largest of them).

The training loop treats all ways alike: ``nearest(images, balance.penalty)`` chooses, ``observe`` takes in what was
chosen, ``step_`` runs at the end of the optimizer's step. Everything is counted in one [W, K] tensor, so that a step is
one reduction over ranks and no wait for the device; every rank does the same from the same counts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ddn_networks import samplers
from ddn_networks.candidates import Candidates


class UsageCounter:
    """Counts how often each node is matched, and leaves it at that (gradient descent only). Base of the others.

    Args:
        weights: the [K, C, F] parameters whose rows are nodes (``net.node_weights``).
        ddl_of_layer: which weight each layer uses, [L]; by default layer l uses weight l.
        reduce_fn: adds a tensor over ranks in place, returning nothing; None for one rank.
        dtype: of the counts; float64 halves exactly for ever, float32 is for devices without it.

    Attributes:
        counts: [W, K] matches so far (what a subclass makes of them: its evidence); zero beyond the K of a weight.
        num_splits: [W] int64, how many nodes were split so far.
        penalty: for ``samplers.nearest``, what is added to the distances for choosing; None for nothing.
    """

    penalty: samplers.PenaltyFn | None = None

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        ddl_of_layer: Sequence[int] | None = None,
        reduce_fn: Callable[[torch.Tensor], None] | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        device = weights[0].device
        self.weights = list(weights)
        self.reduce_fn = reduce_fn
        self.num_nodes = torch.tensor([len(w) for w in weights], device=device)  # [W]
        ddl_of_layer = list(range(len(weights)) if ddl_of_layer is None else ddl_of_layer)
        self.ddl_of_layer = torch.tensor(ddl_of_layer, device=device)  # [L]
        K = max(len(w) for w in weights)
        self.exists = torch.arange(K, device=device) < self.num_nodes[:, None]  # [W, K]
        self.counts = torch.zeros(len(weights), K, dtype=dtype, device=device)
        self.seen = torch.zeros_like(self.counts)  # matches since the last step
        self.num_splits = torch.zeros(len(weights), dtype=torch.int64, device=device)
        self.uses = ddl_of_layer

    def observe(
        self,
        codes: torch.Tensor,
        dropped: torch.Tensor | None = None,
        distances: Sequence[torch.Tensor] | None = None,
        evidence: Sequence[Any] | None = None,
    ) -> None:
        """Count codes [B, L]; where ``dropped`` [B, L], chance chose and there is no match to count.

        ``distances``: L tensors [B, K] that the choice was made by; only ``LossFreeBalancing`` looks at them.
        """
        hits = torch.ones_like(codes, dtype=self.seen.dtype) if dropped is None else (~dropped).to(self.seen.dtype)
        self.seen.index_put_((self.ddl_of_layer.expand_as(codes), codes), hits, accumulate=True)

    def follow(self, copies: Sequence[torch.Tensor]) -> None:
        """Tensors one per weight, of its shape (an EMA's copies of ``weights``), whose rows move with the weights'."""
        for weight, copy in zip(self.weights, copies, strict=True):
            if copy.shape != weight.shape:
                raise ValueError(f'a copy of node weights {list(weight.shape)} has the shape {list(copy.shape)}')

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on every ``optimizer.step()`` ends with ``step_``."""
        optimizer.register_step_post_hook(lambda optimizer, args, kwargs: self.step_(optimizer))

    @torch.no_grad()
    def step_(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Take in what was observed since the last step."""
        self.counts += self._take_seen_()

    def _take_seen_(self) -> torch.Tensor:
        """Matches of all ranks since the last step, [W, K]; forgets them."""
        if self.reduce_fn is not None:
            self.reduce_fn(self.seen)
        seen = self.seen.clone()
        self.seen.zero_()
        return seen

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The counters: part of a training state."""
        return {'counts': self.counts, 'seen': self.seen, 'num_splits': self.num_splits}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError(
                f'a training state of another way of balancing: it has {", ".join(sorted(state))}, and '
                f'{type(self).__name__} needs {", ".join(sorted(own))}'
            )
        for name, tensor in own.items():
            if state[name].shape != tensor.shape:
                raise ValueError(f'{name} of a training state is {list(state[name].shape)}, not {list(tensor.shape)}')
            tensor.copy_(state[name])


class LossFreeBalancing(UsageCounter):
    """A bias on each node's distances, moved by its recent load, for choosing only (Appendix E; Wang et al. 2024).

    No node is ever thrown away: one that is matched too often is made to look farther away, one that is matched too
    seldom nearer, and then the gradient moves it to where it is chosen. With c_k of n matches in a step, its bias moves
    by ``rate * unit * (c_k K / n - 1)``. That is gradient ascent on the dual of the transport of the data to K nodes of
    mass 1/K with the distance as cost, so where it comes to rest every node has its due (which for batches smaller than
    K the sign of the load error, as published, would not find).

    A bias is a distance, and distances differ by layer and shrink in training. The unit is the layer's own: the
    standard deviation over the nodes of their distances to an image, on (recent) average. Biases are kept in units and
    multiplied out after each step, so that they keep their worth.

    Args:
        rate: units by which the bias of a node that is never matched falls in a step.
        memory: the unit is an average over about this many steps.
        limit: biases stay within this many units.

    Raises:
        ValueError: rate, memory or limit out of range.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        ddl_of_layer: Sequence[int] | None = None,
        reduce_fn: Callable[[torch.Tensor], None] | None = None,
        dtype: torch.dtype = torch.float64,
        rate: float = 0.001,
        memory: float = 100.0,
        limit: float = 10.0,
    ):
        super().__init__(weights, ddl_of_layer, reduce_fn, dtype)
        if rate < 0 or memory < 1 or limit <= 0:
            raise ValueError(
                'balancing by a bias needs rate >= 0, memory >= 1 and limit > 0, not '
                f'rate={rate}, memory={memory}, limit={limit}'
            )
        self.rate, self.memory, self.limit = rate, memory, limit
        W, K = self.counts.shape
        self.seen = torch.zeros(W, K + 2, dtype=dtype, device=self.counts.device)  # and: sum of spreads, their number
        self.unit = torch.zeros(W, 2, dtype=dtype, device=self.counts.device)  # decayed sum of spreads and their number
        self.units = torch.zeros_like(self.counts)  # [W, K] biases in units
        self.scaled = torch.zeros(W, K, device=self.counts.device)  # [W, K] float32, biases as distances
        self.bias = [self.scaled[w, : len(weights[w])] for w in self.uses]  # views, [K] per layer

    def penalty(self, candidates: Candidates, layer: int, distances: torch.Tensor) -> samplers.Penalty:
        """The bias of the layer's nodes, [K]."""
        return samplers.Penalty(self.bias[layer])

    def observe(
        self,
        codes: torch.Tensor,
        dropped: torch.Tensor | None = None,
        distances: Sequence[torch.Tensor] | None = None,
        evidence: Sequence[Any] | None = None,
    ) -> None:
        """Count codes [B, L], and measure how much ``distances`` (L times [B, K]) differ between the nodes."""
        if distances is None:
            raise ValueError('balancing by a bias has to observe the distances too (forward with keep=True)')
        super().observe(codes, dropped)
        spreads = torch.stack([d.detach().std(1) for d in distances], 1).to(self.seen.dtype)  # [B, L]
        finite, K = spreads.isfinite(), self.counts.shape[1]  # one overflow must not stay in the unit for ever
        self.seen[:, K].index_add_(0, self.ddl_of_layer, spreads.where(finite, 0).sum(0))
        self.seen[:, K + 1].index_add_(0, self.ddl_of_layer, finite.sum(0, dtype=self.seen.dtype))

    @torch.no_grad()
    def step_(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Move the biases by the load of this step."""
        load, spreads = self._take_seen_().split([self.counts.shape[1], 2], 1)  # [W, K], [W, 2]
        self.counts += load
        self.unit.mul_(1 - 1 / self.memory).add_(spreads)
        due = load.sum(1, keepdim=True) / self.num_nodes[:, None]  # n / K
        excess = (load / due.clamp(min=1e-9) - (due > 0).to(load.dtype)).where(self.exists, 0)  # c_k K / n - 1
        self.units.add_(excess, alpha=self.rate).clamp_(-self.limit, self.limit)
        unit = self.unit[:, 0] / self.unit[:, 1].clamp(min=1)
        self.scaled.copy_(self.units * unit[:, None])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return super().state_dict() | {'unit': self.unit, 'units': self.units, 'scaled': self.scaled}
