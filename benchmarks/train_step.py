"""A training step of the whole network against its limit: the same blocks without any DDL.

\b
  PYTHONPATH=peers OMP_NUM_THREADS=2 python benchmarks/train_step.py --out benchmarks/results/train_step
  python benchmarks/train_step.py --quick                                # seconds: does everything still run?
  python benchmarks/train_step.py --configs cifar10 --precisions bf16    # one table
  python benchmarks/train_step.py --device cuda --batch 64               # also memory, host waits, torch.compile

A step is forward, loss, backward, Adam (fused) and, with layers, Split-and-Prune. The backbone gets a plain loss on its
last features. All contestants share the blocks, so the weights are the same; on CUDA the tables come once more with the
blocks compiled. How to install sddn: contestants.py.
"""

import functools
import os
import sys
from collections.abc import Callable

import click
import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..'))

from benchmarks import common, contestants
from cli.options import script_help
from ddn_networks import DDN, SplitAndPrune, samplers
from training.loss import layer_losses, total_loss

GOAL, GOAL_FLAT, GOAL_SDDN = 1.15, 0.05, 2.0


def backbone_step(net: contestants.Backbone, images: torch.Tensor, precision: str, optimizer) -> Callable[[], None]:
    """The limit."""
    target = samplers.target_pyramid(images)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with contestants.blocks_in(precision, images.device):
            features = net(len(images))
        losses = layer_losses([features[:, : images.shape[1]].float()], target)
        total_loss(losses, images.shape[1:]).backward()
        optimizer.step()

    return step


def our_step(net: DDN, images: torch.Tensor, precision: str, optimizer) -> Callable[[], None]:
    """What the training loop does."""
    balancer = SplitAndPrune(net.node_weights)
    balancer.attach(optimizer)

    def step():
        optimizer.zero_grad(set_to_none=True)
        target = samplers.target_pyramid(images)
        with contestants.blocks_in(precision, images.device):
            output = net(samplers.nearest_to(target), len(images), keep=True)
        total_loss(layer_losses(output.selected, target), images.shape[1:]).backward()
        balancer.observe(output.codes)
        optimizer.step()

    return step


def sddn_step(net: DDN, images: torch.Tensor, precision: str, optimizer, exact: bool) -> Callable[[], None]:
    """The same with ``sddn``'s layers, and its way to split."""

    def step():
        optimizer.zero_grad(set_to_none=True)
        target = samplers.target_pyramid(images)
        contestants.tell_(net, exact, target=target)
        with contestants.blocks_in(precision, images.device):
            output = net(samplers.nearest_to(target), len(images), keep=True)
        total_loss(layer_losses(output.selected, target), images.shape[1:]).backward()
        optimizer.step()
        for ddl in net.ddls:
            ddl.layer.try_split(optimizer)

    return step


def make(name: str, net: torch.nn.Module, images: torch.Tensor, precision: str) -> Callable[[], None]:
    """The step of a contestant, by the first word of its name."""
    sddn = functools.partial(sddn_step, exact=not name.endswith(contestants.INEXACT))
    steps = {'backbone': backbone_step, 'ours': our_step, 'sddn': sddn}
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    return steps[name.split()[0]](net.train(), images, precision, optimizer)


@click.command(help=script_help(__file__))
@contestants.network_options
def main(out, device, clock, **options):
    facts = common.machine(device, clock)
    tables = contestants.compare(make, device=device, clock=clock, **options)
    common.report('A training step against the backbone alone', facts, tables, out)
    print(contestants.verdict(tables, GOAL, GOAL_FLAT, GOAL_SDDN))


if __name__ == '__main__':
    main()
