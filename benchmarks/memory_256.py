"""Memory and time of one training step of the 256x256 colouring network (preset color256), with and without
--grad-checkpoint, square and not.

    python -m benchmarks.memory_256 --out benchmarks/results/memory_256
    python -m benchmarks.memory_256 --quick                  # seconds: does everything run?
    python -m benchmarks.memory_256 --device cuda --batch 4 --precision bf16

A step is forward, loss and backward of --batch images. Each case runs in a new process; its memory is the peak over
that of the network and the images. It includes the gradients of all weights; Adam's two moments (twice the weights) and
averaged weights (once) are extra.
"""

import os
import time

import click
import torch

from benchmarks import common
from cli.options import script
from ddn_networks import DDN, published_config, samplers
from training.loss import layer_losses, total_loss


def measure(size: tuple[int, int], checkpoint: bool, batch: int, device: str, precision: str, max_blocks: int) -> dict:
    """Measure one case."""
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', torch.get_num_threads())))
    torch.manual_seed(0)
    config = published_config(max(size), max_outputk=64, max_blockn=max_blocks)
    net = DDN(**{**config, 'img_resolution': size}, conditions=['color'])
    net = net.to(device, memory_format=torch.channels_last).train()
    images = (torch.rand(batch, 3, *size) * 2 - 1).to(device)
    condition = net.make_condition(images=images)
    seconds = []

    def step():
        start = time.perf_counter()
        net.zero_grad(set_to_none=True)
        target = samplers.target_pyramid(images)
        with torch.autocast(device.split(':')[0], torch.bfloat16, enabled=precision == 'bf16'):
            output = net(samplers.nearest_to(target), batch, condition, keep=True, grad_checkpoint=checkpoint)
        total_loss(layer_losses(output.selected, target), images.shape[1:]).backward()
        common.synchronize(device)
        seconds.append(time.perf_counter() - start)

    memory = common.extra_memory(step, device, calls=1)
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    return {
        'pixels': f'{size[0]}x{size[1]}',
        'L': net.num_layers,
        'parameters, M': weights / 4e6,
        'batch': batch,
        'grad checkpoint': 'yes' if checkpoint else 'no',
        'memory, GB': memory / 1e9,
        'of which gradients, GB': weights / 1e9,
        'step, s': seconds[-1],
    }


@script(__file__)
@common.OUT
@click.option('--device', metavar='NAME', default='cpu', help='cpu or cuda')
@click.option('--batch', type=click.IntRange(min=1), default=1, help='Images at a time')
@click.option('--precision', type=click.Choice(['fp32', 'bf16']), default='fp32', help='Precision of the blocks')
@click.option('--max-blocks', type=click.IntRange(min=1), default=64, help='Most blocks a scale, as in the preset')
@click.option('--quick', is_flag=True, help='Small networks at 32x32 and 24x32: does everything run?')
def main(out, device, batch, precision, max_blocks, quick):
    facts = common.machine(device)
    sizes = [(32, 32), (24, 32)] if quick else [(256, 256), (192, 256)]
    rows = [
        common.in_fresh_process(measure, size, checkpoint, batch, device, precision, 2 if quick else max_blocks)
        for size in sizes
        for checkpoint in (False, True)
    ]
    common.report('One training step of the 256x256 colouring network', facts, {precision: rows}, out)


if __name__ == '__main__':
    main()
