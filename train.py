"""Train a Discrete Distribution Network.

    # the paper's network for the dataset's resolution, 8 GPUs
    torchrun --standalone --nproc_per_node=8 train.py --outdir=runs --data=ffhq-64x64.zip

    # a small network for digits on a CPU, minutes
    python train.py --preset=mnist-cpu --outdir=runs --data=datasets/mnist.zip

    # the paper's recurrent network for digits, 404 k parameters, K = 64, L = 10
    python train.py --preset=mnist-recurrent --outdir=runs --data=datasets/mnist.zip

    # conditioned on the class; on the grey picture, dropped one time in ten; see docs/conditions.md
    python train.py --condition=class --outdir=runs --data=datasets/cifar10.zip
    python train.py --condition=color --condition-dropout=0.1 --outdir=runs --data=ffhq-64x64.zip

    # a prior for a network that has none, in minutes; see docs/network.md
    python train.py --fit-prior=mnist --prior=head --outdir=runs --data=datasets/mnist.zip

    # resume a run exactly where it stopped
    python train.py --resume=runs/00000-mnist-ddn-batch32-mnist-cpu

Use python for one device, torchrun for several GPUs or machines. docs/training.md describes the run folder.
"""

import cli.environment  # noqa: F401  # before torch is loaded

# isort: split
from typing import Any

import click

from cli.options import GroupedCommand, script_help
from cli.training_options import training_options
from cli.training_runs import run


@click.command(cls=GroupedCommand, help=script_help(__file__), context_settings={'max_content_width': 110})
@training_options
@click.pass_context
def main(ctx: click.Context, **options: Any) -> None:
    run(ctx)


if __name__ == '__main__':
    main()
