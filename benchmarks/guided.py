"""Cost of guiding: the 64x64 network of the paper (K = 512, L = 127), random weights, with and without guides.

    OMP_NUM_THREADS=1 python -m benchmarks.guided --clock=cpu --out=benchmarks/results/guided

Guides that are linear in the pixels never render the K images; the claim is at most 1.5 times the time of unguided
generation. The table also has guides that render.
"""

import statistics

import click
import torch

from benchmarks import common
from cli.options import script
from ddn_networks import DDN, black_boxes, guided_sampling, guides, published_config

BOUND = 1.5


def cases(batch: int, size: int) -> dict[str, guided_sampling.Guidance | None]:
    """{name: guidance, or None for unguided}. Those whose names begin with '*' render, and the claim excludes them."""
    target = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mask = (torch.arange(size) < size // 2).float().expand(batch, 1, size, size)
    strokes = torch.cat([target, 2 * mask - 1], 1)
    low = torch.nn.functional.interpolate(target, size=(8, 8), mode='area')
    odd = torch.nn.functional.interpolate(target, size=(27, 27), mode='area')
    alone = {
        'l2': guides.l2(target),
        'superres 8': guides.superres(low),
        'superres 27': guides.superres(odd),
        'colorization': guides.colorization(target),
        'inpaint': guides.inpaint(target, mask),
        'strokes': guides.strokes(strokes),
        'blur': guides.blur(target, 2.0),
        '* l1': guides.l1(target),
        '* posterize': guides.posterize(target, 2),
        '* edges': guides.edges(target),
        '* python (mean)': black_boxes.python(lambda images: images.mean((1, 2, 3))),
    }
    both = [guides.superres(low), guides.inpaint(target, mask)]
    return {
        'unguided': None,
        **{name: guided_sampling.Guidance([guide]) for name, guide in alone.items()},
        'superres 8 + inpaint, summed': guided_sampling.Guidance(both, combine=guided_sampling.by_distance),
        'superres 8 + inpaint, ranked': guided_sampling.Guidance(both, combine=guided_sampling.by_rank),
        '* python (mean), every 4': guided_sampling.Guidance([alone['* python (mean)']], every=4),
        '* superres 8, beam 2': guided_sampling.Guidance([alone['superres 8']], beam=2),
    }


@script(__file__)
@click.option('--batch', help='Images at a time', type=click.IntRange(min=1), default=2)
@click.option('--repeats', help='Rounds, of which the medians are taken', type=click.IntRange(min=1), default=3)
@click.option('--size', help='Resolution', type=int, default=64)
@click.option('--linear-only', help='Leave out the guides that render', is_flag=True)
@common.CLOCK
@common.OUT
def main(batch, repeats, size, linear_only, clock, out):
    torch.manual_seed(0)
    net = DDN(**published_config(size)).eval()
    calls = {name: lambda g=g: net.sample(batch, guide=g) for name, g in cases(batch, size).items()}
    facts = common.machine(clock=clock)
    if linear_only:
        calls = {name: call for name, call in calls.items() if not name.startswith('*')}
    seconds = common.interleaved(calls, repeats, clock=clock)
    rows = []
    for name, rounds in seconds.items():
        times = common.ratio(seconds, name, 'unguided')
        rows.append({'guide': name, 's a batch': statistics.median(rounds), 'times unguided': times})
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    caption = (
        f'{size}x{size}, L = {net.num_layers}, K up to {max(net.num_nodes)}, {millions:.0f} M parameters, '
        f'batch {batch}, {repeats} rounds. Guides with a * render their candidates; the others do not, and may take '
        f'{BOUND} times as long as no guide.'
    )
    common.report('Cost of guiding', facts, {caption: rows}, out)
    slow = [row['guide'] for row in rows if not row['guide'].startswith('*') and row['times unguided'] > BOUND]
    if slow:
        raise ValueError(f'more than {BOUND} times unguided: {", ".join(slow)}')


if __name__ == '__main__':
    main()
