"""What guiding costs: the 64x64 network of the paper (K = 512, L = 127, 93 M), random weights, with and without guides.

    python benchmarks/guided.py [--batch 2] [--repeats 3] [--clock cpu] [--out guided.json]

Guides that are linear in the pixels never render the K images; the claim is at most 1.5 times the time of unguided
generation. The table also holds guides that render. Rounds alternate, each figure is the least of its rounds. On a
machine that others use, ``--clock cpu`` with OMP_NUM_THREADS=1 counts this process's own seconds.
"""

import json
import os
import platform
import sys
import time

import click
import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..'))

from ddn_networks import DDN, black_boxes, guided, guides, published_config

BOUND = 1.5


def cases(batch: int, size: int) -> dict[str, guided.Guidance | None]:
    """Name -> guidance; None is unguided. Names that start with '*' render and have no claim."""
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
        **{name: guided.Guidance([guide]) for name, guide in alone.items()},
        'superres 8 + inpaint, summed': guided.Guidance(both, combine=guided.by_distance),
        'superres 8 + inpaint, ranked': guided.Guidance(both, combine=guided.by_rank),
        '* python (mean), every 4': guided.Guidance([alone['* python (mean)']], every=4),
        '* superres 8, beam 2': guided.Guidance([alone['superres 8']], beam=2),
    }


@click.command()
@click.option('--batch', help='Images at a time', type=click.IntRange(min=1), default=2, show_default=True)
@click.option('--repeats', help='Rounds; the least counts', type=click.IntRange(min=1), default=3, show_default=True)
@click.option('--size', help='Resolution', type=int, default=64, show_default=True)
@click.option('--linear-only', help='Leave out the guides that render', is_flag=True)
@click.option('--clock', help='Seconds of what', type=click.Choice(['wall', 'cpu']), default='wall', show_default=True)
@click.option('--out', help='Also write the figures as JSON', type=click.Path())
def main(batch, repeats, size, linear_only, clock, out):
    """Seconds per batch with and without guides."""
    now = time.perf_counter if clock == 'wall' else time.process_time
    torch.manual_seed(0)
    net = DDN(**published_config(size)).eval()
    table = {name: g for name, g in cases(batch, size).items() if not (linear_only and name.startswith('*'))}
    least = dict.fromkeys(table, float('inf'))
    for round_ in range(repeats):
        for name, guidance in table.items():
            if round_ > 0 and name.startswith('*'):
                continue  # once is enough where nothing is claimed
            start = now()
            net.sample(batch, guide=guidance)
            least[name] = min(least[name], now() - start)
    where = f'{platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}'
    print(f'{size}x{size}, K up to {max(net.num_nodes)}, L = {net.num_layers}, batch {batch}, {clock} clock, {where}')
    print(f'{"guide":32} {"s/batch":>8} {"times unguided":>15}')
    for name, seconds in least.items():
        print(f'{name:32} {seconds:8.2f} {seconds / least["unguided"]:15.2f}')
    if out:
        with open(out, 'w') as f:
            json.dump({'where': where, 'clock': clock, 'batch': batch, 'size': size, 'seconds': least}, f, indent=2)
    slow = [name for name, s in least.items() if not name.startswith('*') and s > BOUND * least['unguided']]
    if slow:
        raise click.ClickException(f'more than {BOUND} times unguided: {", ".join(slow)}')


if __name__ == '__main__':
    main()
