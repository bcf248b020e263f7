"""Split-and-Prune (Section 3.1, Algorithm 1): nodes matched too often are split, nodes matched too rarely pruned.

Legend: W node weights (one per DDL; the layers of a recurrent network share one), K nodes (the largest of them), P
pairs of nodes that a step may move per weight.

Counts of all weights live in one [W, K] tensor, so that a step is one addition, one reduction over ranks, one plan and
a few row copies, without waiting for the device. Every rank computes the same plan from the same counts.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from ddn_networks.aliases import old_arguments
from ddn_networks.balance import UsageCounter
from ddn_networks.prior import PriorHead


class Plan(NamedTuple):
    """The rows that move, per weight: where ``active``, row ``split`` is copied over row ``prune``. All [W, P]."""

    split: torch.Tensor
    prune: torch.Tensor
    active: torch.Tensor


def make_plan(
    counts: torch.Tensor,
    num_nodes: torch.Tensor,
    split_at: float = 2.0,
    prune_at: float = 0.5,
    pairs: int = 1,
    confidence: float = 0.0,
) -> Plan:
    """Lines 11 and 12 of Algorithm 1 for every weight.

    Args:
        counts: [W, K] how often each node was matched; entries at or beyond ``num_nodes`` are ignored.
        num_nodes: [W] int64, K of each weight.
        split_at, prune_at: thresholds in units of 1/K; 2 and 0.5 in the paper.
        pairs: P, how many pairs may move at once: the j-th most matched splits over the j-th least matched. 1 in the
            paper.
        confidence: standard deviations (of a Poisson count) that a count must be beyond its threshold; 0 in the paper.
    """
    exists = torch.arange(counts.shape[1], device=counts.device) < num_nodes[:, None]  # [W, K]
    P = min(pairs, max(1, counts.shape[1] // 2))
    most, split = counts.where(exists, -1).topk(P, dim=1)  # [W, P]
    least, prune = counts.where(exists, torch.inf).topk(P, dim=1, largest=False)
    share = counts.where(exists, 0).sum(1, keepdim=True) / num_nodes[:, None]  # n / K: the average count of a node
    high, low = split_at * share, prune_at * share
    if confidence:
        high, low = high + confidence * high.sqrt(), low - confidence * low.sqrt()
    # Half of the split node's count is more than the pruned node had. With the paper's thresholds that is always so for
    # the first pair; asked of every pair, no node is split in one and pruned in another, even where counts are equal.
    better = most > 2 * least
    return Plan(split, prune, ((most > high) | (least < low)) & better)


def apply_to_counts_(counts: torch.Tensor, plan: Plan) -> None:
    """Lines 13 to 18: both halves of a split node get half its count; the count of a pruned node leaves the total."""
    half = counts.gather(1, plan.split) / 2  # [W, P]
    for nodes in (plan.split, plan.prune):  # first all splits, then all prunes: an inactive pair keeps what is there
        counts.scatter_(1, nodes, torch.where(plan.active, half, counts.gather(1, nodes)))


class Moves(NamedTuple):
    """A plan as row copies: row ``source`` goes over row ``prune``; both [W, P], in range for every weight."""

    source: torch.Tensor
    prune: torch.Tensor


def row_moves(plan: Plan) -> Moves:
    """Inactive pairs repeat the first pair, and an inactive first pair copies a row onto itself (no pair can be active
    where the first is not), so that a plan is applied without looking at it."""
    first = torch.where(plan.active, plan.split, plan.prune)[:, :1]
    source = torch.where(plan.active, plan.split, first)
    return Moves(source, torch.where(plan.active, plan.prune, plan.prune[:, :1]))


@torch.no_grad()
def apply_to_rows_(tensors: Iterable[torch.Tensor], source: torch.Tensor, prune: torch.Tensor) -> None:
    """Copy rows ``source`` [P] over rows ``prune`` [P] in tensors [K, ...]; all are read before one is written."""
    for tensor in tensors:
        tensor.index_copy_(0, prune, tensor.index_select(0, source))


class SplitAndPrune(UsageCounter):
    """Split-and-Prune for all node weights of a network, once per optimizer step: count, plan, move rows.

    ``observe`` the codes of every round, then let the optimizer step: ``attach`` makes it call ``step_`` afterwards.
    The defaults are Algorithm 1. Rows move whether or not a weight is trained: where node weights are frozen
    (``requires_grad=False``), take ``UsageCounter``.

    Args:
        weights, ddl_of_layer, reduce_fn, dtype, num_cells: see ``UsageCounter``.
        split_at, prune_at, pairs, confidence: see ``make_plan``.
        memory: counts are scaled down to at most this many matches per node, so that old matches are forgotten.
            Infinite in the paper.
    """

    @old_arguments(layer_weights='ddl_of_layer')
    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        ddl_of_layer: Sequence[int] | None = None,
        split_at: float = 2.0,
        prune_at: float = 0.5,
        reduce_fn: Callable[[torch.Tensor], None] | None = None,
        dtype: torch.dtype = torch.float64,
        pairs: int = 1,
        confidence: float = 0.0,
        memory: float = torch.inf,
        num_cells: Sequence[int] | None = None,
    ):
        super().__init__(weights, ddl_of_layer, reduce_fn, dtype, num_cells)
        if pairs < 1 or memory <= 0 or not 0 <= prune_at < split_at or not confidence >= 0:
            raise ValueError(
                'Split-and-Prune needs pairs >= 1, memory > 0, 0 <= prune_at < split_at and confidence >= 0, not '
                f'pairs={pairs}, memory={memory}, prune_at={prune_at}, split_at={split_at}, confidence={confidence}'
            )
        self.split_at, self.prune_at = split_at, prune_at
        self.pairs, self.confidence, self.memory = pairs, confidence, memory
        self.copies: list[Sequence[torch.Tensor]] = []
        self.heads: Sequence[Sequence[PriorHead]] = [[] for _ in weights]
        self.head_copies: Sequence[Mapping[torch.Tensor, torch.Tensor]] = ()

    def follow(self, copies: Sequence[torch.Tensor]) -> None:
        super().follow(copies)
        self.copies.append(copies)

    @torch.no_grad()
    def step_(self, optimizer: torch.optim.Optimizer | None = None) -> Plan:
        """Add up what was observed, then split and prune at most ``pairs`` pairs of nodes per weight (Algorithm 1).

        Moves the rows of the weights, of every optimizer state that has the weight's shape, of the followed copies and
        of the counters by one plan.
        """
        self.counts += self._take_seen_()
        if self.memory != torch.inf:
            evidence = self.counts.sum(1, keepdim=True).clamp(min=1)
            self.counts *= (self.memory * self.num_nodes[:, None] / evidence).clamp(max=1)
        plan = make_plan(self.counts, self.num_nodes, self.split_at, self.prune_at, self.pairs, self.confidence)
        apply_to_counts_(self.counts, plan)
        self.num_splits += plan.active.sum(1)
        moves = row_moves(plan)
        # On the CPU a plan can be read without waiting for a device, and most weights have nothing to move.
        active = plan.active.any(1).nonzero()[:, 0].tolist() if plan.active.is_cpu else range(len(self.weights))
        for i in active:
            states = optimizer.state.get(self.weights[i], {}).values() if optimizer is not None else ()
            shape = self.weights[i].shape
            states = [s for s in states if torch.is_tensor(s) and s.shape == shape]
            tensors = [self.weights[i], *states, *(copy[i] for copy in self.copies)]
            apply_to_rows_(tensors, moves.source[i], moves.prune[i])
            for head in self.heads[i]:
                self._move_head_(head, moves.source[i], moves.prune[i], plan, i, optimizer)
        return plan

    def follow_prior(
        self, heads: Sequence[Sequence[PriorHead]], copies: Sequence[Mapping[torch.Tensor, torch.Tensor]] = ()
    ) -> None:
        self.heads, self.head_copies = heads, copies

    def _move_head_(
        self,
        head: PriorHead,
        source: torch.Tensor,
        prune: torch.Tensor,
        plan: Plan,
        i: int,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        """The rows of a head that belong to nodes which moved, for all cells, in weights, moments and averages. In
        weights and averages, not in moments, the bias of both halves falls by log 2."""
        for param in (head.out.weight, head.out.bias):
            states = optimizer.state.get(param, {}).values() if optimizer is not None else ()
            moments = [s for s in states if torch.is_tensor(s) and s.shape == param.shape]
            averages = [copies[param] for copies in self.head_copies]
            apply_to_rows_([param, *averages, *moments], source, prune)
        halves = torch.cat([plan.split[i], plan.prune[i]]).where(plan.active[i].repeat(2), 0)
        less = plan.active[i].repeat(2).to(head.out.bias.dtype) * -math.log(2)  # [2 P], 0 for pairs that stay
        for bias in (head.out.bias, *(copies[head.out.bias] for copies in self.head_copies)):
            bias.index_add_(0, halves, less)
