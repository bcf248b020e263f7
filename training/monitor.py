"""Watch training without waiting for the device in the step: node usage, losses, speed, numbers that go wrong.

Legend: W node weights, K nodes (the largest), L layers, P parameters.
"""

import math
import time
from typing import Any

import numpy as np
import psutil
import torch

from ddn_networks import UsageCounter
from torch_utils import distributed as dist
from torch_utils import training_stats
from training import checkpoint


class UsageWindow:
    """How often each node was matched lately: over one tick, or several until there are 16 images per node."""

    IMAGES_PER_NODE = 16  # then a node with half its due is missed with a probability of 3e-4

    def __init__(self, balancer: UsageCounter):
        self.num_nodes = balancer.num_nodes  # [W]
        self.ddl_of_code = balancer.ddl_of_code  # [D]
        self.counts = torch.zeros_like(balancer.counts)  # [W, K] of this rank

    def observe(self, codes: torch.Tensor, dropped: torch.Tensor | None) -> None:
        """Count codes [B, D] that were matched, not dropped."""
        hits = torch.ones_like(codes, dtype=self.counts.dtype) if dropped is None else (~dropped).to(self.counts.dtype)
        self.counts.index_put_((self.ddl_of_code.expand_as(codes), codes), hits, accumulate=True)

    def dead_share(self) -> torch.Tensor:
        """[W] share of nodes that were not matched once in the window of this rank."""
        exists = torch.arange(self.counts.shape[1], device=self.counts.device) < self.num_nodes[:, None]
        return ((self.counts == 0) & exists).sum(1) / self.num_nodes

    def ready(self) -> torch.Tensor:
        """[W] bool: the window has enough images for ``dead_share`` to mean something."""
        return self.counts.sum(1) >= self.IMAGES_PER_NODE * self.num_nodes

    def stats(self) -> dict[str, list[float | None]]:
        """Per weight: 'usage_entropy', 1 where all nodes are matched equally, and 'dead', the share never matched."""
        share = self.counts / self.counts.sum(1, keepdim=True).clamp(min=1)
        entropy = torch.special.entr(share).sum(1) / self.num_nodes.log()
        dead = [d if r else None for d, r in zip(self.dead_share().tolist(), self.ready().tolist(), strict=True)]
        return {'usage_entropy': entropy.tolist(), 'dead': dead, 'usage_nimg': int(self.counts.sum(1).max())}

    def reduce_(self) -> None:
        """Add the windows of all ranks into that of rank 0; the others begin again."""
        dist.all_reduce_(self.counts)
        if dist.get_rank() != 0:
            self.counts.zero_()

    def next_tick(self) -> None:
        """Begin again where the window was long enough."""
        self.counts *= ~self.ready()[:, None]


class Meter:
    """The numbers of a tick: losses, node usage, speed, memory.

    Args:
        balancer, health: of the run.
        losses: like those of a step, [L].
        cur_nimg, total_nimg: images seen before, and in the end.
        started: time at which the run began.
    """

    def __init__(
        self,
        balancer: UsageCounter,
        health: 'Health',
        losses: torch.Tensor,
        cur_nimg: int,
        total_nimg: int,
        started: float,
    ):
        self.balancer, self.health, self.usage = balancer, health, UsageWindow(balancer)
        self.collector = training_stats.Collector(losses.device)
        self.loss_sum, self.num_steps = torch.zeros_like(losses), 0  # since the last tick
        self.first_nimg, self.total_nimg, self.started, self.in_ticks = cur_nimg, total_nimg, started, 0.0
        self.next_tick(cur_nimg)

    def observe(self, losses: torch.Tensor, taken: bool) -> None:
        """Count the losses [L] of a step, which was ``taken`` unless they or the gradients are not finite."""
        self.collector.report('loss', losses.mean())
        self.collector.report('grad_norm', self.health.grad_norm)
        if taken:
            self.loss_sum += losses
            self.num_steps += 1

    def collect(self, cur_nimg: int) -> dict[str, Any]:
        """JSON-able numbers of the tick that ends now. All ranks must call it; those of rank 0 count."""
        dist.all_reduce_(self.loss_sum)
        self.usage.reduce_()
        collected = self.collector.update()
        seconds = time.time() - self.tick_time
        self.in_ticks += seconds
        losses = (self.loss_sum / self.num_steps / dist.get_world_size()).tolist()  # NaN where every step was skipped
        device = self.loss_sum.device
        return {
            'nimg': cur_nimg,
            'loss': float(np.mean(losses)),
            'loss_layers': losses,
            'loss_std': collected['loss'].std,
            'grad_norm': collected['grad_norm'].mean,
            **({'prior_nats': collected['prior_nats'].mean} if 'prior_nats' in collected else {}),
            'skipped_steps': self.health.num_skipped,
            **self.usage.stats(),
            'splits': self.balancer.num_splits.tolist(),
            'images_per_sec': (cur_nimg - self.tick_nimg) / seconds,
            'seconds': self.seconds(),
            'seconds_left': (self.total_nimg - cur_nimg) * self.in_ticks / (cur_nimg - self.first_nimg),
            'cpu_mem_gb': psutil.Process().memory_info().rss / 2**30,
            'peak_gpu_mem_gb': torch.cuda.max_memory_allocated(device) / 2**30 if device.type == 'cuda' else None,
        }

    def next_tick(self, cur_nimg: int) -> None:
        """Begin a tick: the time since ``collect`` is not of either."""
        self.loss_sum.zero_()
        self.num_steps = 0
        self.usage.next_tick()
        self.tick_nimg, self.tick_time = cur_nimg, time.time()

    def seconds(self) -> float:
        return time.time() - self.started


class Health:
    """Remembers the first step whose loss or gradient was not finite, on the device; asking is what waits for it."""

    def __init__(self, net: torch.nn.Module, watch_gradients: bool = True):
        self.names, self.params = zip(*net.named_parameters(), strict=True)
        self.watch_gradients = watch_gradients  # not with fp16, whose scaler lets them overflow on purpose
        device = self.params[0].device
        self.first = torch.full((), -1, dtype=torch.int64, device=device)
        self.losses = self.norms = None
        self.grad_norm = torch.zeros((), device=device)
        self.bad = torch.zeros((), dtype=torch.bool, device=device)
        self.num_skipped = 0

    def observe(self, losses: torch.Tensor, cur_nimg: int) -> None:
        """Look at the layer losses [L] and the gradients of the step that began at ``cur_nimg`` images."""
        grads = [p.grad for p in self.params if self.watch_gradients and p.grad is not None]
        norms = torch.stack(torch._foreach_norm(grads)) if grads else losses.new_zeros(1)
        self.grad_norm = norms.square().sum().sqrt()
        self.bad = ~(losses.sum() + norms.sum()).isfinite()
        first = self.bad & (self.first < 0)
        self.losses = losses.clone() if self.losses is None else torch.where(first, losses, self.losses)
        self.norms = norms if self.norms is None else torch.where(first, norms, self.norms)
        self.first = torch.where(first, cur_nimg, self.first)

    def step_is_finite(self) -> bool:
        """Whether the step just observed may be taken on all ranks; counts those that may not. Waits for the device."""
        bad = self.bad.to(torch.int32)
        dist.all_reduce_(bad, 'max')  # with fp16 a rank knows its own losses only
        finite = not bool(bad)
        if not finite:
            self.num_skipped += 1
            self.first.fill_(-1)
        return finite

    def raise_if_bad(self, run_dir: str) -> None:
        """FloatingPointError naming step, layer and the newest state in ``run_dir``. Waits for the device."""
        first = int(self.first)
        if first < 0:
            return
        layer = next((l for l, loss in enumerate(self.losses.tolist()) if not math.isfinite(loss)), None)
        where = f'the loss of layer {layer}'
        if layer is None:
            where = 'the gradient of ' + next(
                n for n, g in zip(self.names, self.norms.tolist(), strict=False) if not math.isfinite(g)
            )
        states = checkpoint.find_states(run_dir)
        last = f'the last good state is {states[0]}' if states else f'{run_dir} has no state'
        raise FloatingPointError(
            f'{where} is not finite in the step after {first:,} images; nothing of it was saved, {last}. '
            'Try a lower --lr or --precision=fp32, or skip such steps with --on-nan=skip.'
        )
