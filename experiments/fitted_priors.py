"""Priors fitted to the shipped network of digits: how many samples are legible, and how far they are from real digits.

    python -m experiments.fitted_priors --data=datasets/mnist.zip --held-out=datasets/mnist-test.zip

Fits counts of the codes, heads on the features and a transformer over the codes by train.py --fit-prior, and samples
uniformly and by each of them. A sample is legible where a LeNet trained on real digits gives its most likely class a
probability of at least 0.9; the distance is the Frechet distance of the LeNet's features to --reference training
images. Bits are those of held-out digits by the prior. What is fitted already is not fitted again.
"""

import math
from pathlib import Path
from typing import Any

import click
import torch

from cli.networks import load_network
from cli.options import script
from cli.tables import markdown, write_results
from cli.training_runs import train
from ddn_networks import Network, snapshots
from experiments import digits
from experiments.common import features_of, pictures
from metrics import evaluate
from metrics.detectors import Detector, load_detector
from metrics.distances import frechet_distance
from metrics.image_sets import Files
from metrics.reference import Statistics

KINDS = {'counts': 0.02, 'head': 0.04, 'transformer': 0.016}  # and how many millions of images each is fitted to
TEMPERATURES = (1.0, 0.8, 0.6)


def scores(images: torch.Tensor, real: Statistics, detector: Detector) -> dict[str, float]:
    """Of samples [N, C, H, W]."""
    made = features_of(images.clamp(-1, 1), detector)
    legible = digits.legible(digits.probabilities(detector.net, images))
    return {'legible': 100 * legible, 'distance': frechet_distance(real.mu, real.sigma, made.mu, made.sigma)}


def sampled(net: Network, num: int, **how: Any) -> torch.Tensor:
    return torch.cat([net.sample(seeds=part.tolist(), **how)[0] for part in torch.arange(num).split(100)])


def fitted(kind: str, network: str, data: str, folder: Path, device: str) -> str:
    """The run folder of a prior of this kind."""
    run = folder / kind
    if not list(run.glob('network-snapshot-*.safetensors')):
        train({'fit_prior': network, 'data': data, 'prior': kind, 'duration': KINDS[kind], 'outdir': str(run),
               'nosubdir': True, 'seed': 0, 'device': device, 'temperature_from': 'lenet'})  # fmt: skip
    return str(run)


@script(__file__)
@click.option('--network', default='mnist', metavar='FILE|URL|NAME', help='Network without a prior')
@click.option('--data', required=True, metavar='ZIP|DIR', help='Training digits')
@click.option('--held-out', required=True, metavar='ZIP|DIR', help='Held-out digits')
@click.option('--num', default=1000, type=click.IntRange(min=2), help='Samples, from seeds 0 to num - 1')
@click.option('--reference', default=10_000, type=click.IntRange(min=2), help='Training images of the distance')
@click.option('--outdir', default='out/fitted_priors', metavar='DIR', help='Folder of the fitted networks')
@click.option('--results', metavar='DIR', help='Folder of the table  [default: --outdir]')
@click.option('--device', default='cpu', metavar='NAME', help='Where to fit')
def main(network, data, held_out, num, reference, outdir, results, device) -> None:
    folder = Path(outdir)
    detector = load_detector('lenet')
    real = evaluate.statistics(Files(data, reference), detector, keep=0, title='reference')
    net = load_network(network)
    some = pictures(held_out, net, range(500))
    codes = torch.cat([net.encode(part) for part in some.split(100)])
    rows: list[dict[str, Any]] = [
        {'prior': 'uniform', 'bits': net.num_bits, **scores(sampled(net, num), real, detector)},
        {'prior': 'reconstructions', 'bits': None, **scores(net.decode(codes), real, detector)},
    ]
    for kind in KINDS:
        with_prior = load_network(str(snapshots.network_path(fitted(kind, network, data, folder, device))))
        bits = -with_prior.log_prob(codes).mean().item() / math.log(2)
        ways = {f'T {t:g}': {'temperature': t} for t in TEMPERATURES} | {'default T': {}}
        for name, how in ways.items():
            found = scores(sampled(with_prior, num, **how), real, detector)
            rows.append({'prior': f'{kind}, {name}', 'bits': bits, **found})
            click.echo(rows[-1])
    facts = {'network': network, 'num': num, 'reference': reference, 'millions of images': KINDS, 'rows': rows}
    text = f'# Priors fitted to {network}: {num:,} samples\n\n{markdown(rows)}'
    write_results(Path(results or outdir) / 'fitted_priors', text, facts)
    click.echo(text)


if __name__ == '__main__':
    main()
