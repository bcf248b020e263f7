"""A training step of the whole network against its limit: the same blocks without any DDL.

\b
  PYTHONPATH=peers OMP_NUM_THREADS=2 python -m benchmarks.train_step --out benchmarks/results/train_step
  python -m benchmarks.train_step --quick                                # seconds: does everything run?
  python -m benchmarks.train_step --configs cifar10 --precisions bf16    # one table
  python -m benchmarks.train_step --device cuda --batch 64               # also memory, host waits, torch.compile

A step is forward, loss, backward, Adam (fused) and, with layers, Split-and-Prune. The backbone gets a plain loss on its
last features. All contestants share the blocks, so the weights are the same; on CUDA there are also tables with
compiled blocks. How to install sddn: benchmarks/contestants.py.
"""

import functools
from collections.abc import Callable

import click
import torch

from benchmarks import common, contestants
from cli.options import script
from ddn_networks import DDN, SplitAndPrune, samplers
from training.loss import layer_losses, total_loss

GOAL, GOAL_FLAT, GOAL_SDDN = 1.15, 0.05, 2.0


def backbone_step(net: contestants.Backbone, images: torch.Tensor, precision: str, optimizer) -> Callable[[], None]:
    """A step of the limit."""
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
    """A step as in the training loop."""
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
    """A step with ``sddn``'s layers and their way to split."""

    def step():
        optimizer.zero_grad(set_to_none=True)
        target = samplers.target_pyramid(images)
        contestants.set_choice_(net, exact, target=target)
        with contestants.blocks_in(precision, images.device):
            output = net(samplers.nearest_to(target), len(images), keep=True)
        total_loss(layer_losses(output.selected, target), images.shape[1:]).backward()
        optimizer.step()
        for ddl in net.ddls:
            ddl.layer.try_split(optimizer)

    return step


def make(name: str, net: torch.nn.Module, images: torch.Tensor, precision: str) -> Callable[[], None]:
    """The step of a contestant, chosen by the first word of its name."""
    sddn = functools.partial(sddn_step, exact=not name.endswith(contestants.INEXACT))
    steps = {'backbone': backbone_step, 'ours': our_step, 'sddn': sddn}
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    return steps[name.split()[0]](net.train(), images, precision, optimizer)


@script(__file__)
@contestants.network_options
def main(out, device, clock, **options):
    facts = common.machine(device, clock)
    tables = contestants.compare(make, device=device, clock=clock, **options)
    common.report('A training step against the backbone alone', facts, tables, out)
    click.echo(contestants.verdict(tables, GOAL, GOAL_FLAT, GOAL_SDDN))


if __name__ == '__main__':
    main()
