"""Generation from random codes against its limit: a forward pass of the same blocks without any DDL.

\b
  PYTHONPATH=peers OMP_NUM_THREADS=2 python -m benchmarks.generate --out benchmarks/results/generate
  python -m benchmarks.generate --quick                                  # seconds: does everything run?
  python -m benchmarks.generate --configs 64x64 --precisions fp32        # one table
  python -m benchmarks.generate --device cuda --batch 64                 # also memory, host waits, torch.compile

All contestants share the blocks; on CUDA there are also tables with compiled blocks. How to install sddn:
benchmarks/contestants.py.
"""

from collections.abc import Callable

import click
import torch

from benchmarks import common, contestants
from cli.options import script
from ddn_networks import DDN, samplers

GOAL, GOAL_FLAT, GOAL_SDDN = 1.05, 0.05, 1.0


def make(name: str, net: torch.nn.Module, images: torch.Tensor, precision: str) -> Callable[[], torch.Tensor]:
    """A pass that generates B images of random codes; ``images``: [B, C, H, W]."""
    B = len(images)
    codes = samplers.uniform_codes(net.num_nodes, range(B)).to(images.device) if isinstance(net, DDN) else None

    @torch.no_grad()
    def call():
        net.eval()
        if name.startswith('sddn'):
            contestants.set_choice_(net, not name.endswith(contestants.INEXACT), codes=codes)
        with contestants.blocks_in(precision, images.device):
            return net(B) if codes is None else net(samplers.given(codes), B).images

    return call


@script(__file__)
@contestants.network_options
def main(out, device, clock, **options):
    facts = common.machine(device, clock)
    tables = contestants.compare(make, device=device, clock=clock, **options)
    common.report('Generation against the backbone alone', facts, tables, out)
    click.echo(contestants.verdict(tables, GOAL, GOAL_FLAT, GOAL_SDDN))


if __name__ == '__main__':
    main()
