"""Does everything run on this CUDA device, and how fast? A table that is written row by row.

\b
  bash benchmarks/gpu.sh check
  python -m benchmarks.gpu_check --device=cpu --shapes=mnist-cpu:8:4      # seconds: does it run?

A row is training or generation with the network of a preset of train.py: images per second, peak memory, and how often
the host waited for the device in a step (goal: never; where it did is said below the table). Training is a step as in
the training loop, with Chain Dropout, prior, Split-and-Prune and averages, in bfloat16, without and with torch.compile
of the blocks; generation is as generate.py's, in float32. Rows with torch.compile come last, since compiling takes
longest. A row that fails says why, and the others follow.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from benchmarks import common
from cli.options import script
from cli.presets import PRESETS
from cli.training_arguments import loop_kwargs
from cli.training_options import parsed
from ddn_networks import Network, samplers, snapshots
from torch_utils import misc
from training.dataset import ImageFolderDataset
from training.ema import EMA
from training.loss import layer_losses, prior_loss, total_loss
from training.training_loop import attached_balancer

SHAPES = 'mnist-cpu:32:256,cifar10-gpu:32:256,faces64-gpu:64:128,cifar10:32:256,faces64:64:64'
WARMUP, SECONDS = 3, 2.0  # steps before the clock runs; seconds that the steps of a row fill on a GPU


class Shape(NamedTuple):
    """What is measured: the network of a preset, pixels a side, images of a batch."""

    preset: str
    size: int
    batch: int


def shapes(text: str) -> list[Shape]:
    """'mnist-cpu:32:256,...' as shapes. Raises click.BadParameter."""
    found = []
    for part in text.split(','):
        preset, *numbers = part.split(':')
        if preset not in PRESETS or len(numbers) != 2 or not all(n.isdigit() and int(n) for n in numbers):
            raise click.BadParameter(f'{part}: give a preset of train.py, pixels and batch, as cifar10:32:256')
        found.append(Shape(preset, *map(int, numbers)))
    return found


def made(shape: Shape, device: torch.device) -> tuple[Network, dict[str, Any]]:
    """The network of a preset for RGB pictures, and arguments of the training loop."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'noise.zip'
        common.make_noise(path, 8, shape.size)
        options = {**parsed({}).params, **PRESETS[shape.preset].options, 'data': str(path), 'seed': 0}
        loop = loop_kwargs(options, ImageFolderDataset(str(path)))
    torch.manual_seed(0)
    net = snapshots.rebuild({'class_name': loop['network_class'], 'kwargs': loop['network_kwargs']})
    return net.to(device, memory_format=misc.memory_format(device, 'bf16')), loop


def training_step(net: Network, loop: dict[str, Any], images: torch.Tensor) -> Callable[[], None]:
    """A step of the training loop with images [B, C, H, W]."""
    B, device = len(images), images.device
    optimizer = torch.optim.Adam(net.train().parameters(), lr=1e-4, fused=True)
    ema = EMA(dict(net.named_parameters()), loop['ema_halflives_nimg'])
    balancer = attached_balancer(net, optimizer, ema, loop['balance'], loop['balance_kwargs'])
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        table = samplers.chain_dropout_codes(net.code_nodes, loop['chain_dropout'], B, generator)
        table = table.to(device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        target = samplers.target_pyramid(images)
        sampler = samplers.chain_dropout(samplers.nearest_to(target, balancer.penalty), table)
        sampler = samplers.with_log_prior(sampler) if net.prior else sampler
        with torch.autocast(device.type, dtype=torch.bfloat16):
            output = net(sampler, B, keep=True)
        loss = total_loss(layer_losses(output.selected, target), images.shape[1:])
        if net.prior:
            loss = loss + prior_loss(output.log_prior, output.distances)
        loss.backward()
        balancer.observe(output.codes, output.dropped, output.distances, output.evidence)
        optimizer.step()
        ema.update_(10**6, B)

    return step


def generation(net: Network, batch: int) -> Callable[[], torch.Tensor]:
    """Images of random codes, without a prior's choices where the network has none."""
    net.eval()
    return lambda: net.sample(batch, seed=0)[0]


def measured(call: Callable[[], Any], batch: int, device: str) -> tuple[dict[str, Any], list[str]]:
    """(images/s, peak MB, waits of the host, seconds of the first call), and the places of the waits."""
    started = time.perf_counter()
    call()
    common.synchronize(device)
    first = time.perf_counter() - started
    for _ in range(WARMUP - 1):
        call()
    common.synchronize(device)
    started, calls = time.perf_counter(), 0
    fill = 0 if device == 'cpu' else SECONDS
    while calls < 2 or time.perf_counter() - started < fill:  # the host runs ahead: look at the device's time
        call()
        calls += 1
        common.synchronize(device)
    seconds = time.perf_counter() - started
    with misc.host_syncs() as places:
        call()
    memory = common.extra_memory(call, device) / 2**20
    numbers = {'images/s': batch * calls / seconds, 'peak MB': memory, 'waits': len(places), 'first call, s': first}
    return numbers, places


def row(shape: Shape, what: str, compiled: bool, device: str) -> tuple[dict[str, Any], list[str]]:
    """A row of the table, and the places of the host's waits."""
    net, loop = made(shape, torch.device(device))
    images = torch.rand(shape.batch, 3, shape.size, shape.size, device=device) * 2 - 1
    if compiled:
        misc.compile_(net.blocks)
    call = training_step(net, loop, images) if what == 'training' else generation(net, shape.batch)
    facts = {'preset': shape.preset, 'what': what, 'compiled': 'yes' if compiled else 'no', 'batch': shape.batch}
    numbers, places = measured(call, shape.batch, device)
    return facts | numbers, places


@script(__file__)
@common.OUT
@click.option('--device', metavar='NAME', default='cuda', help='cuda, or cpu to try the script')
@click.option('--shapes', 'text', metavar='LIST', default=SHAPES, help='PRESET:PIXELS:BATCH of each network')
@click.option('--compile/--no-compile', 'with_compile', default=True, help='Also with torch.compile')
def main(out, device, text, with_compile):
    facts, rows, waits, failed = common.machine(device), [], {}, []
    every = shapes(text)
    jobs = [(shape, what, False) for shape in every for what in ('training', 'generation')]
    jobs += [(shape, 'training', True) for shape in every if with_compile]
    for shape, what, compiled in jobs:
        name = f'{shape.preset}, {what}{", compiled" if compiled else ""}'
        try:
            numbers, places = row(shape, what, compiled, device)
            rows.append(numbers)
            waits[name] = sorted(set(places))
        except (RuntimeError, ValueError) as error:  # out of memory, for example
            failed.append({'row': name, 'error': ' '.join(str(error).split())[:300]})
        tables = {'Networks of presets, RGB:': rows, 'Rows that failed:': failed}
        tables['Where the host waited:'] = [{'row': n, 'places': ', '.join(p)} for n, p in waits.items() if p]
        common.report('Check of a CUDA device', facts, tables, out)


if __name__ == '__main__':
    main()
