"""What the options of the backbone bring, and what they change: memory layout, precision, torch.compile, Adam.

\b
  OMP_NUM_THREADS=2 python benchmarks/backbone_options.py --out benchmarks/results/backbone_options
  python benchmarks/backbone_options.py --quick                      # seconds, without compiling
  python benchmarks/backbone_options.py --configs cifar10 --device cuda --batch 64

Everyone starts from the same weights; "codes changed" and "image difference" are against contiguous fp32, for codes of
the nearest candidates and for images of random codes. The learned codes of a trained network are farther apart than
those of a fresh one, so the first is a worst case.
"""

import itertools
import os
import sys

import click
import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..'))

from benchmarks import common, contestants
from cli.options import script_help
from ddn_networks import DDN, samplers
from training.loss import layer_losses, total_loss

REFERENCE = 'contiguous, fp32'


def variants(config: str, num_nodes: int, compiled: bool, device: str) -> dict[str, tuple[DDN, str]]:
    """Name -> (network, precision), all with the same weights."""
    made = {}
    for layout, precision, compile_ in itertools.product(
        ('contiguous', 'channels last'), ('fp32', 'bf16'), (False, True) if compiled else (False,)
    ):
        torch.manual_seed(0)
        net = DDN(**contestants.configuration(config, num_nodes))
        with torch.no_grad():
            for block in net.blocks:
                block.conv1.weight.mul_(1e4)  # a new block is its skip; these do something
        formats = {'contiguous': torch.contiguous_format, 'channels last': torch.channels_last}
        net.to(device, memory_format=formats[layout])
        if compile_:
            contestants.compile_(net.blocks)
        made[f'{layout}, {precision}{", compiled" if compile_ else ""}'] = net, precision
    return made


def backward(net: DDN, images: torch.Tensor, precision: str) -> None:
    """Forward, loss and backward of a training step."""
    net.train().zero_grad(set_to_none=True)
    target = samplers.target_pyramid(images)
    with contestants.blocks_in(precision, images.device):
        output = net(samplers.nearest_to(target), len(images), keep=True)
    total_loss(layer_losses(output.selected, target), images.shape[1:]).backward()


def generated(net: DDN, codes: torch.Tensor, precision: str) -> torch.Tensor:
    with contestants.blocks_in(precision, codes.device):
        return net.eval().decode(codes)


def encoded(net: DDN, images: torch.Tensor, precision: str) -> torch.Tensor:
    with contestants.blocks_in(precision, images.device):
        return net.eval().encode(images)


def backbone_rows(nets, images: torch.Tensor, timing: dict) -> list[dict]:
    """What layout, precision and compiling bring."""
    codes = samplers.uniform_codes(next(iter(nets.values()))[0].num_nodes, range(len(images))).to(images.device)
    train = common.interleaved({n: lambda v=v: backward(v[0], images, v[1]) for n, v in nets.items()}, **timing)
    generate = common.interleaved({n: lambda v=v: generated(v[0], codes, v[1]) for n, v in nets.items()}, **timing)
    made = {name: generated(net, codes, precision) for name, (net, precision) in nets.items()}
    latent = {name: encoded(net, images, precision) for name, (net, precision) in nets.items()}
    return [
        {
            'backbone': name,
            'forward + backward s': common.medians(train)[name],
            'times faster': common.ratio(train, REFERENCE, name),
            'generate s': common.medians(generate)[name],
            'times faster ': common.ratio(generate, REFERENCE, name),
            'codes changed': f'{(latent[name] != latent[REFERENCE]).float().mean().item():.1%}',
            'image difference': (made[name] - made[REFERENCE]).abs().max().item(),
        }
        for name in nets
    ]


def adam_rows(net: DDN, images: torch.Tensor, timing: dict) -> list[dict]:
    """What the ways PyTorch has for Adam's step cost, for the same parameters and gradients."""
    backward(net, images, 'fp32')
    ways = {'default': {}, 'loop': {'foreach': False}, 'foreach': {'foreach': True}, 'fused': {'fused': True}}
    steps = {name: torch.optim.Adam(net.parameters(), lr=1e-6, **kwargs).step for name, kwargs in ways.items()}
    seconds = common.interleaved(steps, **timing)
    return [
        {'Adam': n, 'ms': s * 1e3, 'times faster': common.ratio(seconds, 'default', n)}
        for n, s in common.medians(seconds).items()
    ]


@click.command(help=script_help(__file__))
@click.option('--configs', help=f'Of {", ".join(contestants.CONFIGURATIONS)}', default='cpu,cifar10', show_default=True)
@click.option('--nodes', help='K', default=64, show_default=True)
@click.option('--batch', help='Images at a time  [default: what two cores can bear]', type=click.IntRange(min=1))
@click.option('--repeats', help='Rounds; medians count', type=click.IntRange(min=1), default=5, show_default=True)
@click.option('--clock', help='cpu: of this process', type=click.Choice(list(common.CLOCKS)), default='wall',
              show_default=True)  # fmt: skip
@click.option('--compile/--no-compile', 'compiled', help='Also torch.compile', default=True, show_default=True)
@click.option('--quick', help='The smallest network with batch 2, two rounds, no torch.compile', is_flag=True)
@click.option('--device', help='cpu, cuda', default='cpu', show_default=True)
@click.option('--out', help='Write OUT.md and OUT.json')
def main(configs, nodes, batch, repeats, clock, compiled, quick, device, out):
    facts, tables = common.machine(device, clock), {}
    timing = {'repeats': 2 if quick else repeats, 'device': device, 'clock': clock, 'warmup': 2}
    for config in ['cpu'] if quick else configs.split(','):
        B = 2 if quick else batch or contestants.BATCHES[config]
        nets = variants(config, nodes, compiled and not quick, device)
        images = contestants.smooth_images(nets[REFERENCE][0], B).to(device)
        caption = f'{config}, K {nodes}, batch {B}'
        tables[caption] = backbone_rows(nets, images, timing)
        tables[f'{caption}: a step of Adam'] = adam_rows(nets[REFERENCE][0], images, timing)
    common.report('What the options of the backbone bring', facts, tables, out)


if __name__ == '__main__':
    main()
