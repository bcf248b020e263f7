"""Split-and-Prune (Section 3.1, Algorithm 1): nodes matched too often split, nodes matched too seldom die.

Legend: W node weights (one per DDL; the layers of a recurrent network share one), K nodes (the largest of them).

Counts of all weights live in one [W, K] tensor, so that a step is one addition, one reduction over ranks, one plan and
a few row copies, with no wait for the device. Every rank computes the same plan from the same counts.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch


class Plan(NamedTuple):
    """Which rows move, per weight: where ``active``, row ``split`` is copied over row ``prune``. All [W]."""

    split: torch.Tensor
    prune: torch.Tensor
    active: torch.Tensor


def make_plan(counts: torch.Tensor, num_nodes: torch.Tensor, split_at: float = 2.0, prune_at: float = 0.5) -> Plan:
    """Lines 11 and 12 of Algorithm 1 for every weight.

    Args:
        counts: [W, K] how often each node was matched; entries at or beyond ``num_nodes`` are ignored.
        num_nodes: [W] int64, K of each weight.
        split_at, prune_at: thresholds in units of 1/K; 2 and 0.5 in the paper.
    """
    exists = torch.arange(counts.shape[1], device=counts.device) < num_nodes[:, None]  # [W, K]
    most, split = counts.where(exists, -1).max(1)
    least, prune = counts.where(exists, torch.inf).min(1)
    share = counts.where(exists, 0).sum(1) / num_nodes  # n / K: the count of a node that has its due
    return Plan(split, prune, (most > split_at * share) | (least < prune_at * share))


def apply_to_counts_(counts: torch.Tensor, plan: Plan) -> None:
    """Lines 13 to 18: both halves of a split node get half its count; the count of a pruned node leaves the total."""
    rows = torch.arange(len(counts), device=counts.device)
    half = counts[rows, plan.split] / 2
    counts[rows, plan.split] = torch.where(plan.active, half, counts[rows, plan.split])
    counts[rows, plan.prune] = torch.where(plan.active, half, counts[rows, plan.prune])


@torch.no_grad()
def apply_to_rows_(tensors: Iterable[torch.Tensor], plan: Plan, weight: int) -> None:
    """Copy row ``split`` over row ``prune`` in tensors [K, ...] that belong to weight number ``weight``."""
    split, prune = plan.split[weight : weight + 1], plan.prune[weight : weight + 1]
    source = torch.where(plan.active[weight], split, prune)  # [1]; an inactive plan copies a row onto itself
    for tensor in tensors:
        tensor.index_copy_(0, prune, tensor.index_select(0, source))


class SplitAndPrune:
    """Counts, plans and moves rows for all node weights of a network, once per optimizer step.

    ``observe`` the codes of every round, then let the optimizer step: ``attach`` makes it call ``step_`` afterwards.

    Args:
        weights: the [K, C, F] parameters whose rows are nodes (``net.node_weights``).
        layer_weights: which weight each layer uses, [L]; by default layer l uses weight l.
        split_at, prune_at: thresholds in units of 1/K (P_split and P_prune of Algorithm 1).
        reduce_fn: adds a tensor over ranks in place, returning nothing; None for one rank.
        dtype: of the counts; float64 halves exactly for ever, float32 is for devices without it.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        layer_weights: Sequence[int] | None = None,
        split_at: float = 2.0,
        prune_at: float = 0.5,
        reduce_fn: Callable[[torch.Tensor], None] | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        device = weights[0].device
        self.weights = list(weights)
        self.split_at, self.prune_at = split_at, prune_at
        self.reduce_fn = reduce_fn
        self.num_nodes = torch.tensor([len(w) for w in weights], device=device)  # [W]
        layer_weights = range(len(weights)) if layer_weights is None else layer_weights
        self.layer_weights = torch.tensor(layer_weights, device=device)  # [L]
        K = max(len(w) for w in weights)
        self.counts = torch.zeros(len(weights), K, dtype=dtype, device=device)  # evidence of Algorithm 1
        self.seen = torch.zeros_like(self.counts)  # matches since the last step
        self.num_splits = torch.zeros(len(weights), dtype=torch.int64, device=device)
        self.copies: list[Sequence[torch.Tensor]] = []

    def observe(self, codes: torch.Tensor, dropped: torch.Tensor | None = None) -> None:
        """Count codes [B, L]; where ``dropped`` [B, L], chance chose and there is no match to count."""
        hits = torch.ones_like(codes, dtype=self.seen.dtype) if dropped is None else (~dropped).to(self.seen.dtype)
        self.seen.index_put_((self.layer_weights.expand_as(codes), codes), hits, accumulate=True)

    def follow(self, copies: Sequence[torch.Tensor]) -> None:
        """Move the rows of these tensors too: one per weight, of its shape (an EMA's copies of ``weights``)."""
        for weight, copy in zip(self.weights, copies, strict=True):
            if copy.shape != weight.shape:
                raise ValueError(f'a copy of node weights {list(weight.shape)} has the shape {list(copy.shape)}')
        self.copies.append(copies)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on every ``optimizer.step()`` ends with a Split-and-Prune step."""
        optimizer.register_step_post_hook(lambda optimizer, args, kwargs: self.step_(optimizer))

    @torch.no_grad()
    def step_(self, optimizer: torch.optim.Optimizer | None = None) -> Plan:
        """Take in what was observed, then split and prune at most one pair of nodes per weight (Algorithm 1).

        Moves the rows of the weights, of every optimizer state that has the weight's shape, of the followed copies and
        of the counters by one plan.
        """
        if self.reduce_fn is not None:
            self.reduce_fn(self.seen)
        self.counts += self.seen
        self.seen.zero_()
        plan = make_plan(self.counts, self.num_nodes, self.split_at, self.prune_at)
        apply_to_counts_(self.counts, plan)
        self.num_splits += plan.active
        for i, weight in enumerate(self.weights):
            states = optimizer.state.get(weight, {}).values() if optimizer is not None else ()
            moved = [s for s in states if torch.is_tensor(s) and s.shape == weight.shape]
            apply_to_rows_([weight, *moved, *(copy[i] for copy in self.copies)], plan, i)
        return plan

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The counters: part of a training state."""
        return {'counts': self.counts, 'seen': self.seen, 'num_splits': self.num_splits}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            if state[name].shape != tensor.shape:
                raise ValueError(f'{name} of a training state is {list(state[name].shape)}, not {list(tensor.shape)}')
            tensor.copy_(state[name])
