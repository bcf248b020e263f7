"""Balancing how often the K nodes of a layer are used: the base class, which only counts, and a bias on the distances.

Legend: B images, L layers, W node weights (one per DDL; the layers of a recurrent network share one), K nodes (the
largest of them).

The training loop treats all ways of balancing the same way: ``nearest(images, balance.penalty)`` chooses, ``observe``
counts what was chosen, ``step_`` runs at the end of the optimizer's step. Counts live in one [W, K] tensor, so that a
step is one reduction over ranks without waiting for the device; every rank computes the same from the same counts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ddn_networks import samplers
from ddn_networks.aliases import OldAttribute, old_arguments, old_names
from ddn_networks.candidates import Candidates


class UsageCounter:
    """Counts how often each node is matched; the base of all ways of balancing, and by itself none (gradient descent
    only).

    Args:
        weights: the [K, C, F] parameters whose rows are nodes (``net.node_weights``).
        ddl_of_layer: which weight each layer uses, [L]; by default layer l uses weight l.
        num_cells: codes of each layer, [L]; by default one.
        reduce_fn: adds a tensor over ranks in place, returning nothing; None for one rank.
        dtype: of the counts; float64 stays exact under any number of halvings, float32 is for devices without it.

    Attributes:
        counts: [W, K] matches so far, scaled as the subclass does; zero beyond the K of a weight.
        num_splits: [W] int64, nodes split so far.
        penalty: for ``samplers.nearest``, added to the distances for choosing; None for nothing.
    """

    penalty: samplers.PenaltyFn | None = None
    layer_weights = OldAttribute('layer_weights', 'ddl_of_layer')
    uses = OldAttribute('uses', 'ddl_of_layer')

    @old_arguments(layer_weights='ddl_of_layer')
    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        ddl_of_layer: Sequence[int] | None = None,
        reduce_fn: Callable[[torch.Tensor], None] | None = None,
        dtype: torch.dtype = torch.float64,
        num_cells: Sequence[int] | None = None,
    ):
        device = weights[0].device
        self.weights = list(weights)
        self.reduce_fn = reduce_fn
        self.num_nodes = torch.tensor([len(w) for w in weights], device=device)  # [W]
        self.ddl_of_layer = list(range(len(weights)) if ddl_of_layer is None else ddl_of_layer)
        num_cells = [1] * len(self.ddl_of_layer) if num_cells is None else num_cells
        ddl_of_code = [ddl for ddl, n in zip(self.ddl_of_layer, num_cells, strict=True) for _ in range(n)]
        self.ddl_of_code = torch.tensor(ddl_of_code, device=device)  # [D]
        K = max(len(w) for w in weights)
        self.exists = torch.arange(K, device=device) < self.num_nodes[:, None]  # [W, K]
        self.counts = torch.zeros(len(weights), K, dtype=dtype, device=device)
        self.seen = torch.zeros_like(self.counts)  # matches since the last step
        self.num_splits = torch.zeros(len(weights), dtype=torch.int64, device=device)

    def observe(
        self,
        codes: torch.Tensor,
        dropped: torch.Tensor | None = None,
        distances: Sequence[torch.Tensor] | None = None,
        evidence: Sequence[Any] | None = None,
    ) -> None:
        """Count codes [B, D], but not where ``dropped`` [B, D] says that chance made the choice.

        ``distances``: L tensors [B, K] or [B, K, n], the criterion of the choices; only ``LossFreeBalancing`` reads
        them.
        ``evidence``: L entries, ``Choice.evidence``; only ``PrefixBalancing`` reads them.
        """
        hits = torch.ones_like(codes, dtype=self.seen.dtype) if dropped is None else (~dropped).to(self.seen.dtype)
        self.seen.index_put_((self.ddl_of_code.expand_as(codes), codes), hits, accumulate=True)

    def follow(self, copies: Sequence[torch.Tensor]) -> None:
        """Move the rows of ``copies`` (of an EMA; one per weight, of its shape) with those of the weights."""
        for weight, copy in zip(self.weights, copies, strict=True):
            if copy.shape != weight.shape:
                raise ValueError(f'a copy of node weights {list(weight.shape)} has the shape {list(copy.shape)}')

    def follow_prior(
        self, heads: Sequence[Sequence[nn.Module]], copies: Sequence[Mapping[torch.Tensor, torch.Tensor]] = ()
    ) -> None:
        """Move the rows of the own prior with the nodes; where nodes do not move, nothing does.

        ``heads``: for each weight the ``PriorHead``s whose choices are of its nodes. ``copies``: of each EMA the copies
        {parameter: copy} of their last layers.
        """

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let every ``optimizer.step()`` end with ``step_``."""
        optimizer.register_step_post_hook(lambda optimizer, args, kwargs: self.step_(optimizer))

    @torch.no_grad()
    def step_(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Add up what was observed since the last step."""
        self.counts += self._take_seen_()

    def _take_seen_(self) -> torch.Tensor:
        """Matches of all ranks since the last step, [W, K]; sets them to zero."""
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
                f'this training state was made with another way of balancing: it has {", ".join(sorted(state))}, and '
                f'{type(self).__name__} needs {", ".join(sorted(own))}'
            )
        for name, tensor in own.items():
            if state[name].shape != tensor.shape:
                raise ValueError(f'{name} of a training state is {list(state[name].shape)}, not {list(tensor.shape)}')
            tensor.copy_(state[name])


class LossFreeBalancing(UsageCounter):
    """A bias on each node's distances, moved by its recent load, for choosing only (Appendix E; Wang et al. 2024).

    No node is pruned. The bias makes a node that is matched too often look farther away and a node that is matched too
    rarely look nearer; then the gradient moves it to where it is chosen. With c_k of n matches in a step, the bias
    moves by ``rate * unit * (c_k K / n - 1)``. That is gradient ascent on the dual of the transport of the data to K
    nodes of mass 1/K with the distance as cost, so at rest every node has its share 1/K (the published rule moves by
    the sign of the load error, which does not reach that point for batches smaller than K).

    A bias is a distance, and distances differ by layer and shrink in training. So the unit is the layer's own: the
    standard deviation over the nodes of their distances to an image, averaged over recent steps. Biases are stored in
    units and multiplied by the unit after each step.

    Args:
        rate: units by which the bias of a node that is never matched falls in a step.
        memory: the unit is an average over about this many steps.
        limit: biases stay within this many units.

    Raises:
        ValueError: rate, memory or limit out of range.
    """

    @old_arguments(layer_weights='ddl_of_layer')
    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        ddl_of_layer: Sequence[int] | None = None,
        reduce_fn: Callable[[torch.Tensor], None] | None = None,
        dtype: torch.dtype = torch.float64,
        num_cells: Sequence[int] | None = None,
        rate: float = 0.001,
        memory: float = 100.0,
        limit: float = 10.0,
    ):
        super().__init__(weights, ddl_of_layer, reduce_fn, dtype, num_cells)
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
        self.bias = [self.scaled[w, : len(weights[w])] for w in self.ddl_of_layer]  # views, [K] per layer

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
        """Count codes [B, D], and measure how much ``distances`` (L times [B, K] or [B, K, n]) differ between the
        nodes."""
        if distances is None:
            raise ValueError('balancing by a bias has to observe the distances too (forward with keep=True)')
        super().observe(codes, dropped)
        spreads = torch.cat([d.detach().std(1).view(len(d), -1) for d in distances], 1).to(self.seen.dtype)  # [B, D]
        finite, K = spreads.isfinite(), self.counts.shape[1]  # or one overflow would stay in the unit
        self.seen[:, K].index_add_(0, self.ddl_of_code, spreads.where(finite, 0).sum(0))
        self.seen[:, K + 1].index_add_(0, self.ddl_of_code, finite.sum(0, dtype=self.seen.dtype))

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


__getattr__ = old_names(__name__)
