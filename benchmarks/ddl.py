"""One training step of one Discrete Distribution Layer: ours and the public implementations, in one run.

\b
  PYTHONPATH=peers OMP_NUM_THREADS=2 python -m benchmarks.ddl                # the shapes of the published networks
  python -m benchmarks.ddl --quick                                           # seconds: does everything run?
  python -m benchmarks.ddl --shapes 16,128,64,512 --memory --out results/ddl # one shape: batch,channels,size,K
  python -m benchmarks.ddl --methods                                         # is the cost model's choice the fastest?
  python -m benchmarks.ddl --cells                                           # layers that choose per cell

A step is: distances, choice, selected image, leak, loss, backward to weights, features and the image before, Adam,
Split-and-Prune. Half of the channels are features of the candidates, the other half features of the leak;
discrete-distribution-network has no leak and gets the first half alone. All use the same Adam. How to install the
peers: benchmarks/contestants.py.
"""

from collections.abc import Callable

import click
import torch

from benchmarks import common, contestants
from cli.options import script
from ddn_networks import SplitAndPrune, closed_forms, samplers
from ddn_networks.ddl import DDL
from training.loss import layer_losses

Shape = tuple[int, int, int, int]  # B, channels, H = W, K
C = 3
TINY: Shape = (2, 8, 4, 4)
HEADLINE: Shape = (16, 128, 64, 512)
GOAL_SPEED, GOAL_MEMORY = 35.0, 8.0
GRIDS = (2, 4, 8, 16)
CELL_GOALS = [(16, 256, 16, 64), HEADLINE]  # 8x8 cells: at most 1.5 times the step without, and 2.5 times


def published_shapes(batch: int) -> list[Shape]:
    """Every size of the CIFAR-10 and 64x64 networks with K from 2 to 512."""
    channels = {1: 256, 2: 256, 4: 256, 8: 256, 16: 256, 32: 256, 64: 128}
    return [(batch, c, size, K) for size, c in channels.items() for K in (2, 8, 64, 512)]


def inputs(shape: Shape, device: str) -> tuple[torch.Tensor, ...]:
    """Features and the image before (both with gradient), the target, and gradients for the image and the leak."""
    B, channels, S, _ = shape
    generator = torch.Generator().manual_seed(0)
    x, base, target, *grads = (torch.randn(B, c, S, S, generator=generator).to(device) for c in (channels, C, C, C, C))
    return x.requires_grad_(), base.requires_grad_(), target, *grads


def adam(parameters) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


def ours(shape: Shape, device: str, cells: int = 1, channels_last: bool = False) -> Callable[[], None]:
    """A step of ``ddn_networks``, as in the training loop; ``cells``: rows and columns of the layer's grid."""
    x, base, target, image_grad, leak_grad = inputs(shape, device)
    if channels_last:
        x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    layer = DDL(shape[1], shape[3], C, grid=(cells, cells)).to(device)
    optimizer = adam(layer.parameters())
    balancer = SplitAndPrune([layer.weight], num_cells=[cells**2])
    balancer.attach(optimizer)

    def step():
        x.grad = base.grad = None
        optimizer.zero_grad(set_to_none=True)
        pyramid = samplers.target_pyramid(target)
        made = layer(x, base, samplers.nearest_to(pyramid), 0)
        loss = layer_losses([made.image], pyramid).sum()
        torch.autograd.backward((loss, made.image, made.leak), (None, image_grad, leak_grad))
        balancer.observe(made.codes)
        optimizer.step()

    return step


def sddn(shape: Shape, device: str) -> Callable[[], None]:
    """A step of the authors' core library."""
    x, base, target, image_grad, leak_grad = inputs(shape, device)
    layer = contestants.SddnLayer(shape[1], shape[3], C, shape[2]).to(device).layer.train()
    optimizer = adam(layer.parameters())

    def step():
        x.grad = base.grad = None
        optimizer.zero_grad(set_to_none=True)
        d = layer({'feat_last': x, 'predict': base, 'target': target, f'target_{shape[2]}x{shape[2]}': target})
        torch.autograd.backward((d['loss'].mean(), d['predict'], d['feat_leak']), (None, image_grad, leak_grad))
        optimizer.step()
        layer.try_split(optimizer)

    return step


def guided_sampler(shape: Shape, device: str) -> Callable[[], None]:
    """A step of discrete-distribution-network, without a leak."""
    x, base, target, image_grad, _ = inputs(shape, device)
    dim = shape[1] // 2
    layer = contestants.load_guided_sampler()(dim, C, shape[3], chain_dropout_prob=0.0).to(device).train()
    optimizer = adam(layer.parameters())

    def step():
        x.grad = base.grad = None
        optimizer.zero_grad(set_to_none=True)
        image, _, loss = layer(x[:, :dim], target, residual=base)
        torch.autograd.backward((loss, image), (None, image_grad))
        optimizer.step()
        layer.split_and_prune_()

    return step


def present() -> dict[str, Callable]:
    """{name: function that makes a step} of what is installed."""
    makers = {'ours': ours}
    if contestants.load_sddn() is not None:
        makers['sddn'] = sddn
    if contestants.load_guided_sampler() is not None:
        makers['d-d-n'] = guided_sampler
    return makers


def measure_cells(shape: Shape, repeats: int, memory: bool, device: str, clock: str) -> dict:
    """One row: a layer of whole images, and the same layer with grids relative to it, channels last as in training."""
    sides = [1, *(g for g in GRIDS if shape[2] % g == 0)]
    seconds = common.interleaved({g: ours(shape, device, g, True) for g in sides}, repeats, 0.05, 3, device, clock)
    row = dict(zip(('B', 'channels', 'size', 'K'), shape, strict=True)) | {'whole ms': common.medians(seconds)[1] * 1e3}
    row |= {f'{g}x{g} / whole': common.ratio(seconds, g, 1) if g in sides else None for g in GRIDS}
    if memory:
        peak = {g: common.in_fresh_process(memory_of_cells, shape, device, g) for g in sides}
        row |= {f'memory {g}x{g} / whole': peak[g] / max(peak[1], 1) if g in sides else None for g in GRIDS}
    return row


def memory_of_cells(shape: Shape, device: str, cells: int) -> int:
    """``memory_of`` our step with a grid."""
    ours(TINY, device, 2, True)()
    return common.extra_memory(ours(shape, device, cells, True), device)


def memory_of(name: str, shape: Shape, device: str) -> int:
    """Peak extra bytes of a step; run it in a fresh process."""
    make = present()[name]
    make(TINY, device)()  # loads thread pools and libraries, which are not part of the layer
    return common.extra_memory(make(shape, device), device)


def measure(shape: Shape, repeats: int, memory: bool, device: str, clock: str) -> dict:
    """One row of the table."""
    makers = present()
    steps = {name: make(shape, device) for name, make in makers.items()}
    seconds = common.interleaved(steps, repeats, 0.05, 3, device, clock)
    row = dict(zip(('B', 'channels', 'size', 'K'), shape, strict=True))
    row |= {f'{name} ms': value * 1e3 for name, value in common.medians(seconds).items()}
    row |= {f'{name} / ours': common.ratio(seconds, name, 'ours') for name in makers if name != 'ours'}
    if memory:
        peak = {name: common.in_fresh_process(memory_of, name, shape, device) for name in makers}
        row |= {f'{name} MB': value / 2**20 for name, value in peak.items()}
        row |= {f'memory {name} / ours': peak[name] / max(peak['ours'], 1) for name in makers if name != 'ours'}
    return row


def measure_methods(shape: Shape, repeats: int, device: str, clock: str) -> dict:
    """Milliseconds of the three ways to compute distances, and the choice of ``cheapest_method``."""
    B, channels, S, K = shape
    x, base, target, *_ = (t.detach() for t in inputs(shape, device))
    features, error = x[:, : channels // 2].flatten(2), (base - target).flatten(2)
    weight = torch.randn(K, C, channels // 2, device=device)
    big = B * K * C * S * S > 3e8  # rendering would take too much memory
    ways = {name: fn for name, fn in closed_forms.METHODS.items() if name != 'render' or not big}
    calls = {name: lambda fn=fn: fn(weight, features, error) for name, fn in ways.items()}
    seconds = common.medians(common.interleaved(calls, repeats, 0.02, 2, device, clock))
    chosen = closed_forms.cheapest_method(B, K, C, channels // 2, S * S)
    row = dict(zip(('B', 'channels', 'size', 'K'), shape, strict=True))
    row |= {f'{name} ms': seconds[name] * 1e3 if name in seconds else None for name in closed_forms.METHODS}
    return row | {'chosen': chosen, 'chosen / fastest': seconds[chosen] / min(seconds.values())}


def parse_shape(text: str) -> Shape:
    try:
        B, channels, size, K = (int(part) for part in text.split(','))
    except ValueError:
        raise ValueError(f'--shapes={text}: give batch,channels,size,K, such as 16,128,64,512') from None
    return B, channels, size, K


@script(__file__)
@click.option('--shapes', metavar='B,C,S,K', help='Batch, channels, size, K; may be repeated', multiple=True)
@click.option('--batch', help='Batch of the published shapes', type=click.IntRange(min=1), default=16)
@click.option('--repeats', help='Rounds, of which the medians are taken', type=click.IntRange(min=1), default=7)
@click.option('--memory/--no-memory', help='Also measure the peak extra memory at the shape of the goal', default=True)
@click.option('--methods', help='Time the three ways to compute distances instead', is_flag=True)
@click.option('--cells', help='Time layers that choose per cell instead', is_flag=True)
@click.option('--quick', help='A tiny shape, two rounds: does everything run?', is_flag=True)
@click.option('--device', metavar='NAME', help='cpu or cuda', default='cpu')
@common.CLOCK
@common.OUT
def main(shapes, batch, repeats, memory, methods, cells, quick, device, clock, out):
    torch.manual_seed(0)
    facts = common.machine(device, clock)
    todo = [parse_shape(s) for s in shapes]
    if quick:
        todo, repeats = todo or [TINY], 2
    if methods:
        rows = [measure_methods(s, repeats, device, clock) for s in todo or [HEADLINE, *published_shapes(batch)]]
        common.report('Three ways to compute distances', facts, {'Milliseconds for the distances alone.': rows}, out)
        return
    if cells:
        rows = [measure_cells(s, repeats, memory, device, clock) for s in todo or CELL_GOALS]
        every = [] if todo else [shape for shape in published_shapes(batch) if shape[2] > 1]
        rest = [measure_cells(s, repeats, False, device, clock) for s in every]
        tables = {'The shapes of the goals. g x g / whole: how many times more a grid of g x g cells needs.': rows,
                  'Every layer of the published networks.': rest}  # fmt: skip
        common.report('One training step of one DDL that chooses per cell', facts, tables, out)
        return
    headline = [measure(s, repeats, memory, device, clock) for s in todo or [HEADLINE]]
    rest = [] if todo else [measure(s, repeats, False, device, clock) for s in published_shapes(batch)]
    tables = {'The shapes of the goals. x / ours: how many times more x needs.': headline,
              'Every layer of the published networks, K from 2 to 512.': rest}  # fmt: skip
    common.report('One training step of one DDL', facts, tables, out)
    if 'sddn ms' in headline[0] and not todo:
        verdict(headline[0], rest)


def verdict(headline: dict, rest: list[dict]) -> None:
    """Print which goals are met."""
    slower = [row for row in rest if row['sddn / ours'] < 1]
    print(f'{GOAL_SPEED:.0f} times faster than sddn: {headline["sddn / ours"]:.1f}')
    if 'memory sddn / ours' in headline:
        print(f'{GOAL_MEMORY:.0f} times less extra memory than sddn: {headline["memory sddn / ours"]:.1f}')
    print('slower than sddn at: ' + (', '.join(f'{r["size"]}x{r["size"]} K {r["K"]}' for r in slower) or 'no shape'))


if __name__ == '__main__':
    main()
