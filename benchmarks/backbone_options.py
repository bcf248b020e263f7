"""Speed and effect of the options of the backbone: memory layout, precision, torch.compile, Adam.

\b
  OMP_NUM_THREADS=2 python -m benchmarks.backbone_options --out benchmarks/results/backbone_options
  python -m benchmarks.backbone_options --quick                      # seconds, without compiling
  python -m benchmarks.backbone_options --configs cifar10 --device cuda --batch 64

All variants have the same weights. "Codes changed" and "image difference" are against contiguous fp32, for codes of the
nearest candidates and for images of random codes. Candidates of a trained network are farther apart than those of a new
one, so the first is a worst case.
"""

import itertools

import click
import torch

from benchmarks import common, contestants
from cli.options import script
from ddn_networks import DDN, samplers
from torch_utils import misc
from training.loss import layer_losses, total_loss

REFERENCE = 'contiguous, fp32'


def variants(config: str, num_nodes: int, compiled: bool, device: str) -> dict[str, tuple[DDN, str]]:
    """{name: (network, precision)}, all with the same weights."""
    made = {}
    for layout, precision, compile_ in itertools.product(
        ('contiguous', 'channels last'), ('fp32', 'bf16'), (False, True) if compiled else (False,)
    ):
        torch.manual_seed(0)
        net = DDN(**contestants.configuration(config, num_nodes))
        with torch.no_grad():
            for block in net.blocks:
                block.conv1.weight.mul_(1e4)  # a new block is the identity; these are not
        formats = {'contiguous': torch.contiguous_format, 'channels last': torch.channels_last}
        net.to(device, memory_format=formats[layout])
        if compile_:
            misc.compile_(net.blocks, dynamic=False)
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
    """Speed and effect of layout, precision and compilation."""
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
    """Milliseconds of PyTorch's implementations of Adam for the same parameters and gradients."""
    backward(net, images, 'fp32')
    ways = {'default': {}, 'loop': {'foreach': False}, 'foreach': {'foreach': True}, 'fused': {'fused': True}}
    steps = {name: torch.optim.Adam(net.parameters(), lr=1e-6, **kwargs).step for name, kwargs in ways.items()}
    seconds = common.interleaved(steps, **timing)
    return [
        {'Adam': n, 'ms': s * 1e3, 'times faster': common.ratio(seconds, 'default', n)}
        for n, s in common.medians(seconds).items()
    ]


@script(__file__)
@click.option('--configs', metavar='LIST', help=f'Networks: {", ".join(contestants.CONFIGURATIONS)}',
              default='cpu,cifar10')  # fmt: skip
@click.option('--nodes', help='Largest K of a layer', default=64)
@click.option('--batch', help='Images at a time  [default: as many as two cores can bear]', type=click.IntRange(min=1))
@click.option('--repeats', help='Rounds, of which the medians are taken', type=click.IntRange(min=1), default=5)
@common.CLOCK
@click.option('--compile/--no-compile', 'compiled', help='Also use torch.compile', default=True)
@click.option('--quick', help='Smallest network, batch 2, two rounds, no torch.compile', is_flag=True)
@click.option('--device', metavar='NAME', help='cpu or cuda', default='cpu')
@common.OUT
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
    common.report('Options of the backbone', facts, tables, out)


if __name__ == '__main__':
    main()
