"""Generating from random codes against its limit: a forward pass of the same blocks without any DDL.

\b
  PYTHONPATH=peers OMP_NUM_THREADS=2 python benchmarks/generate.py --out benchmarks/results/generate
  python benchmarks/generate.py --quick                                  # seconds: does everything still run?
  python benchmarks/generate.py --configs 64x64 --precisions fp32        # one table
  python benchmarks/generate.py --device cuda --batch 64                 # also memory, host waits, torch.compile

All contestants share the blocks; on CUDA the tables come once more with the blocks compiled. How to install sddn:
contestants.py.
"""

import os
import sys
from collections.abc import Callable

import click
import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..'))

from benchmarks import common, contestants
from cli.options import script_help
from ddn_networks import DDN, samplers

GOAL, GOAL_FLAT, GOAL_SDDN = 1.05, 0.05, 1.0


def make(name: str, net: torch.nn.Module, images: torch.Tensor, precision: str) -> Callable[[], torch.Tensor]:
    """A pass that makes as many pictures as ``images`` [B, C, H, W] are, of random codes."""
    B = len(images)
    codes = samplers.uniform_codes(net.num_nodes, range(B)).to(images.device) if isinstance(net, DDN) else None

    @torch.no_grad()
    def call():
        net.eval()
        if name.startswith('sddn'):
            contestants.tell_(net, not name.endswith(contestants.INEXACT), codes=codes)
        with contestants.blocks_in(precision, images.device):
            return net(B) if codes is None else net(samplers.given(codes), B).images

    return call


@click.command(help=script_help(__file__))
@contestants.network_options
def main(out, device, clock, **options):
    facts = common.machine(device, clock)
    tables = contestants.compare(make, device=device, clock=clock, **options)
    common.report('Generating against the backbone alone', facts, tables, out)
    print(contestants.verdict(tables, GOAL, GOAL_FLAT, GOAL_SDDN))


if __name__ == '__main__':
    main()
