"""Do samples look like digits? The share that a classifier of real digits recognises with confidence.

    python -m experiments.digit_quality --network=out/quickstart/run/network-snapshot-....safetensors

Samples the network, by its own prior if it has one, and classifies samples and real digits with a LeNet (99.0 % right
on MNIST; its weights: docs/metrics.md). A sample counts as legible where the largest class probability is at least 0.9.
Also: how the samples spread over the classes, and the PSNR of reconstructed held-out digits.
"""

import json

import click

from cli.networks import load_network
from cli.options import script
from cli.tables import write_json
from experiments import digits
from metrics.detectors import load_detector


@script(__file__)
@click.option('--network', required=True, metavar='FILE|URL|NAME', help='Network snapshot')
@click.option('--real', default='datasets/quickstart/test.zip', metavar='ZIP|DIR', help='Held-out digits')
@click.option('--num', default=1000, type=click.IntRange(min=1), help='Samples, from seeds 0 to num - 1')
@click.option('--ema', metavar='LABEL', help="Averaged weights by half-life, or 'none'  [default: the first]")
@click.option('--temperature', type=click.FloatRange(min=0), help="Of the prior  [default: the network's own]")
@click.option('--out', metavar='JSON', help='Also write the numbers here')
def main(network: str, real: str, num: int, ema: str | None, temperature: float | None, out: str | None) -> None:
    lenet = load_detector('lenet').net
    how = {} if temperature is None else {'temperature': temperature}
    result = digits.quality(load_network(network, ema=ema), lenet, real, num, **how)
    click.echo(json.dumps(result, indent=2))
    if out:
        write_json(out, result)


if __name__ == '__main__':
    main()
