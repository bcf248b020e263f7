"""What rate-distortion choices gain: PSNR at equal bits of the nearest codes, of a beam, and of a price for each bit.

    python -m experiments.rate_choices --network=NET --data=faces64-test.zip --results=out/rate_distortion/choices

A way to choose is a beam and a lambda, the squared error that a bit may cost (codec.py --beam, --tradeoff). Its curve
has a point for each number of layers: mean bits of the coded streams and mean PSNR of the last of these layers' images,
enlarged. The table has the curves at the same bits, interpolated.
"""

from collections.abc import Sequence

import click
import numpy as np
import torch

from cli.networks import load_network
from cli.options import script
from cli.tables import markdown, write_results
from ddn_networks import snapshots
from ddn_networks.code_rates import LAMBDAS, head_bits, trial
from ddn_networks.code_streams import Codec
from experiments.common import pictures, spread
from torch_utils import misc

AT = (50, 100, 200, 400, 800, 1200, 1600, 2000, 2400, 2800)  # bits
BATCH = 16


def curve(made: Codec, images: torch.Tensor, tradeoff: float, beam: int) -> list[tuple[float, float]]:
    """(mean bits, mean PSNR) of images [B, C, H, W] with the first 1, 2, ... L layers."""
    found = [t for part in images.split(BATCH) for t in trial(made, part, tradeoff, beam=beam)]
    points = []
    for layer in range(1, made.net.num_layers + 1):
        bits = sum(t.bits[layer].sum().item() for t in found) / len(found) + head_bits(made)
        points.append((bits, sum(misc.psnr(t.errors[layer]) for t in found) / len(found)))
    return points


def at_bits(points: Sequence[tuple[float, float]], bits: float) -> float | None:
    """PSNR of a curve at a number of bits, linear between its points; None outside of them."""
    x, y = zip(*sorted(points), strict=True)
    return float(np.interp(bits, x, y)) if x[0] <= bits <= x[-1] else None


@script(__file__)
@click.option('--network', metavar='FILE|URL', required=True, help='Snapshot, run folder or shipped name')
@click.option('--data', metavar='ZIP|DIR', required=True, help="Held-out images of the network's shape")
@click.option('--num', type=click.IntRange(min=1), default=64, help='Images, spread evenly over them')
@click.option('--beam', type=click.IntRange(min=1), default=4, help='Partial images of the beam')
@click.option('--results', metavar='PATH', required=True, help='Files to write: PATH.md and .json')
def main(network, data, num, beam, results):
    net = load_network(network)
    made, images = Codec(net), pictures(data, net, spread(data, num))
    ways = [(1, tradeoff) for tradeoff in LAMBDAS] + [(beam, tradeoff) for tradeoff in LAMBDAS[:3]]
    rows, curves = [], []
    for size, tradeoff in ways:
        points = curve(made, images, tradeoff, size)
        name = ('nearest' if size == 1 else f'beam {size}') + (f', lambda {tradeoff:g}' if tradeoff else '')
        curves.append({'way': name, 'points': points})
        rows.append({'way': name, 'bits of all layers': points[-1][0], **{f'{b} bits': at_bits(points, b) for b in AT}})
        click.echo(markdown(rows[-1:]))
    rows = [{key: row[key] for key in row if any(r[key] is not None for r in rows)} for row in rows]
    facts = {'network': snapshots.network_path(network).name, 'model': made.model, 'num': num, 'curves': curves}
    about = f'{num} held-out images; entropy model: {made.model}; bits without the header of a file.'
    write_results(results, f'# PSNR in dB at equal bits\n\n{about}\n\n{markdown(rows)}', facts)


if __name__ == '__main__':
    main()
