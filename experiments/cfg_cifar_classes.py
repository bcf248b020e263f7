"""Classifier-free guidance over codes: class accuracy and distance of CIFAR-10 samples against its strength.

    python train.py --fit-prior=cifar10 --prior=head --prior-width=32 --condition=class --condition-to=heads \\
        --condition-dropout=0.2 --duration=0.04 --xflip=1 --temperature-from=alex --data=datasets/cifar10.zip \\
        --outdir=runs/cifar10-heads --nosubdir
    python -m experiments.cfg_cifar_classes --network=runs/cifar10-heads --data=datasets/cifar10.zip

The new heads alone are given the class (--condition-to=heads), so p(code | class) / p(code) is Bayes' p(class | code)
up to a factor, and --cfg raises it to a power. Networks trained with these options from the start will do as well.
Accuracy is the share that resnet56 classifies as the class asked for; the distance is the Frechet distance of the
detector's features to training images.
"""

from pathlib import Path
from typing import Any

import click
import torch

from cli.networks import load_network
from cli.options import script
from cli.tables import markdown, write_results
from dnnlib.sheets import draw_sheet, in_rows, save_png
from experiments.common import as_saved, features_of
from metrics import evaluate
from metrics.detectors import load_detector, load_resnet
from metrics.distances import frechet_distance
from metrics.image_sets import Files

STRENGTHS = (1.0, 1.5, 2.0, 3.0)


@script(__file__)
@click.option('--network', required=True, metavar='FILE|URL', help='Snapshot of train.py --condition-to=heads')
@click.option('--data', required=True, metavar='ZIP|DIR', help='Training images')
@click.option('--detector', default='alex', metavar='NAME|FILE', help='Of the distance')
@click.option('--num', default=1000, type=click.IntRange(min=10), help='Samples, from seed 0 on, class = seed mod 10')
@click.option('--reference', default=10_000, type=click.IntRange(min=2), help='Training images of the distance')
@click.option('--temperature', type=float, help='Of all layers  [default: those of the network]')
@click.option('--outdir', metavar='DIR', default='out/cfg_cifar_classes', help='Folder for table and pictures')
@torch.no_grad()
def main(network, data, detector, num, reference, temperature, outdir) -> None:
    net, judge, features = load_network(network), load_resnet(56), load_detector(detector)
    if net.conditions.num_classes != 10:
        raise ValueError(f'{network} is not conditioned on the 10 classes of CIFAR-10')
    real = evaluate.statistics(Files(data, reference), features, keep=0, title='reference')
    classes = torch.arange(num) % 10
    rows: list[dict[str, Any]] = []
    for cfg in STRENGTHS:
        parts = torch.arange(num).split(100)
        how = {'cfg': cfg, 'temperature': temperature}
        made = [
            net.sample(seeds=part.tolist(), condition=net.make_condition(classes[part]), **how)[0] for part in parts
        ]
        images = as_saved(torch.cat(made))
        fake = features_of(images, features)
        right = (judge.classes(images) == classes).float().mean().item()
        distance = frechet_distance(real.mu, real.sigma, fake.mu, fake.sigma)
        rows.append({'cfg': cfg, 'accuracy by resnet56': right, f'distance by {features.name}': distance})
        click.echo(rows[-1])
        order = torch.arange(80).view(8, 10).t().flatten() if num >= 80 else torch.arange(num)  # a class in each row
        save_png(draw_sheet(in_rows(images[order], 8), 8), f'{outdir}/cfg-{cfg:g}.png')
    name = Path(network).name
    text = f'# Classifier-free guidance over codes: {num:,} samples of {name}\n\n{markdown(rows)}'
    write_results(f'{outdir}/cfg_cifar_classes', text, {'network': name, 'num': num, 'rows': rows})
    click.echo(text)


if __name__ == '__main__':
    main()
