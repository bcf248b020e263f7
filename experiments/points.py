"""K points that fit a density, trained in several ways (Figs 4, 17, 19).

A node is a point of mass 1/K; a sample of the density moves the node nearest to it. The balancing is that of
ddn_networks. The points are trained here and not by a layer (H = W = 1, C = 2, F = 1), whose generality would cost most
of the time.

Legend: K nodes, D dimensions, B samples a step.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from ddn_networks.balance import LossFreeBalancing, UsageCounter
from ddn_networks.split_prune import SplitAndPrune
from metrics import density as densities


class Method(NamedTuple):
    """A way to train points.

    balance: makes the balancing of a list of one weight [K, D].
    batch: samples a step; passes: how often each sample is used.
    lr: fraction of the way to a sample that a node moves, in the first and in the last step (geometric in between).
    trim: samples farther from their nodes than so many times the median of the step are ignored; 0 for none.
    settle: fraction of the steps, at the end, without balancing, in which twins separate.
    """

    balance: Callable[[list[torch.Tensor]], UsageCounter]
    batch: int = 40
    passes: int = 1
    lr: tuple[float, float] = (0.1, 0.1)
    trim: float = 0.0
    settle: float = 0.0


def split_prune_pairs(weights: list[torch.Tensor]) -> SplitAndPrune:
    return SplitAndPrune(weights, pairs=max(1, len(weights[0]) // 32))


def loss_free(weights: list[torch.Tensor]) -> LossFreeBalancing:
    return LossFreeBalancing(weights, rate=6e-4)  # the best of five


METHODS = {
    'gradient': Method(UsageCounter),
    'split-prune': Method(SplitAndPrune),
    'pairs': Method(split_prune_pairs, batch=200, lr=(0.5, 0.05), settle=0.1),
    'trimmed': Method(split_prune_pairs, batch=400, passes=3, lr=(0.5, 0.05), trim=2.0, settle=0.1),
    'bias': Method(loss_free, lr=(0.3, 0.05)),
}


def move_(nodes: torch.Tensor, samples: torch.Tensor, codes: torch.Tensor, counted: torch.Tensor, lr: float) -> None:
    """Gradient descent on the squared distance: move each node towards the mean of its samples.

    The step equals ``lr`` of the way to each of c samples in turn, 1 - (1 - lr)^c.

    Args:
        nodes: [K, D], changed in place; samples: [B, D]; codes: [B] int64.
        counted: [B] bool; the other samples move nothing.
    """
    K, D = nodes.shape
    weight = counted.to(nodes.dtype)[:, None]
    pull = torch.cat([(samples - nodes[codes]) * weight, weight], 1)  # [B, D + 1]
    total = torch.zeros(K, D + 1, dtype=nodes.dtype).index_add_(0, codes, pull)
    c = total[:, D:]
    nodes.add_(total[:, :D] * ((1 - (1 - lr) ** c) / c.clamp(min=1)))


@torch.no_grad()
def train(
    start: np.ndarray,
    samples: np.ndarray,
    method: Method,
    on_step: Callable[[int, int, np.ndarray], None] | None = None,
) -> tuple[np.ndarray, UsageCounter]:
    """Train nodes [K, D] on samples [n, D]. Returns the nodes at the end, and the balancing.

    ``on_step(step, steps, nodes)`` is called before every step and after the last.
    """
    nodes = torch.tensor(start, dtype=torch.float32)
    data = torch.tensor(samples, dtype=torch.float32)
    B = min(method.batch, len(data))
    per_pass = len(data) // B
    steps = per_pass * method.passes
    balance = method.balance([nodes])
    score = torch.empty(B, len(nodes))  # allocated once: large blocks are slow to come from the system
    for step in range(steps):
        if on_step is not None:
            on_step(step, steps, nodes.numpy())
        x = data[step % per_pass * B :][:B]  # [B, D]
        torch.addmm(nodes.square().sum(1), x, nodes.t(), alpha=-2, out=score)  # [B, K], |node - x|^2 - |x|^2
        distances = None
        if isinstance(balance, LossFreeBalancing):
            distances = [score + x.square().sum(1, keepdim=True)]
            score += balance.bias[0]
        codes = torch.from_numpy(score.numpy().argmin(1))  # NumPy's takes a tenth of PyTorch's time
        counted = torch.ones(B, dtype=torch.bool)
        if method.trim:
            distance = (x - nodes[codes]).square().sum(1)
            counted = distance <= method.trim**2 * distance.median()
        lr = method.lr[0] * (method.lr[1] / method.lr[0]) ** (step / steps)
        move_(nodes, x, codes, counted, lr)
        balance.observe(codes[:, None], ~counted[:, None], distances)
        if step < (1 - method.settle) * steps:
            balance.step_()
    if on_step is not None:
        on_step(steps, steps, nodes.numpy())
    return nodes.numpy(), balance


class Problem(NamedTuple):
    """Real samples to compare with [K, 2], training samples [n, 2], first nodes [K, 2]."""

    real: np.ndarray
    data: np.ndarray
    start: np.ndarray


def problem(density: np.ndarray, nodes: int, samples: int, seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    return Problem(
        densities.sample(density, nodes, rng), densities.sample(density, samples, rng), rng.uniform(-1, 1, (nodes, 2))
    )


def measure(name: str, density: np.ndarray, given: Problem, methods: list[str]) -> tuple[dict[str, Any], dict]:
    """Train in several ways: (figures of the floor, of real samples and of each way, {way: nodes [K, 2]})."""
    K = len(given.start)
    train(np.zeros((K, 2)), np.zeros((400, 2)), METHODS['pairs'])  # the first calls cost more
    result = {
        'density': name,
        'floor': densities.floor(density, K),
        'real_samples': {'kl': densities.kl(given.real, density), 'tv': densities.total_variation(given.real, density)},
        'methods': {},
    }
    ends = {}
    for method in methods:
        began, cpu = time.perf_counter(), time.process_time()
        end, balance = train(given.start, given.data, METHODS[method])
        spent = {'seconds': time.perf_counter() - began, 'cpu_seconds': time.process_time() - cpu}
        kl, tv = densities.kl(end, density), densities.total_variation(end, density)
        result['methods'][method] = {'kl': kl, 'tv': tv, **spent, 'splits': int(balance.num_splits)}
        ends[method] = end
    return result, ends
