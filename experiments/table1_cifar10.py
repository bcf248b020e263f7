"""Table 1: FID of a DDN on unconditional CIFAR-10, beside what the paper and others published.

    python dataset_tool.py --source=cifar-10-python.tar.gz --dest=cifar10.zip
    python -m experiments.table1_cifar10 --data=cifar10.zip --gpus=8          # the paper's network, all of the budget
    python -m experiments.table1_cifar10 --data=cifar10.zip --duration=5      # less of it, which the table says
    python -m experiments.table1_cifar10 --data=cifar10.zip --network=NET     # score what is trained already

Trains with train.py --preset=cifar10 (K = 64, L = 63, 76.3 M parameters) for --duration million images and scores with
fid.py: --num samples against the training images. Stop it at will: the same command goes on. Options of train.py go
behind a --, such as a network for one small machine:

    python -m experiments.table1_cifar10 --data=cifar10.zip --duration=0.2 -- --cbase=32 --batch=64
"""

from pathlib import Path

import click

from cli.options import script_help
from cli.tables import markdown
from ddn_networks import Network
from experiments import ablation
from experiments.ablation import Result, Row

# Table 1 as printed: VQ-VAE from Vuong et al. (2023), the other baselines from Bond-Taylor et al. (2021).
PAPER = [
    ('DCGAN', 'GAN', 37.1), ('IGEBM', 'EBM', 38.0), ('VAE', 'VAE', 106.7), ('VQ-VAE', 'VAE', 117.4),
    ('Gated PixelCNN', 'AR', 65.9), ('GLOW', 'Flow', 46.0), ('DDN, the paper', 'DDN', 52.0),
]  # fmt: skip
NAME = 'DDN, this run'
DURATION = 200  # millions of images


def table(fid: float | None) -> str:
    """The published rows and ours, as Markdown."""
    rows = [{'Method': method, 'Type': kind, 'FID': value} for method, kind, value in [*PAPER, (NAME, 'DDN', fid)]]
    return markdown(rows, '.1f')


def caption(result: Result, scoring: ablation.Scoring) -> str:
    """What the last row is: the budget, the network, the samples."""
    if result.error:
        return f'Table 1 of the paper, CIFAR-10. The last row failed: {result.error}'
    facts = result.facts
    return (
        f'Table 1 of the paper, CIFAR-10. The last row: {facts["nimg"] / 1e6:g} million images '
        f'(the published configuration trains for up to 200), L = {facts["layers"]}, K = {facts["nodes"]}, '
        f'{facts["parameters"]:,} parameters; FID of {scoring.num:,} samples, detector {Path(scoring.detector).stem}, '
        f'against {Path(scoring.data).name}.'
    )


@click.command(help=script_help(__file__))
@click.option('--data', metavar='ZIP', required=True, help='The 50,000 training images, of dataset_tool.py')
@click.option('--network', metavar='FILE', help='Score this snapshot; train nothing')
@click.option('--num', type=click.IntRange(min=2), default=50_000, show_default=True, help='Samples of the FID')
@click.option('--seed', type=click.IntRange(min=0), default=0, show_default=True, help='Of training')
@ablation.shared_options('table1_cifar10', DURATION)
def main(data, network, num, seed, folder: Path, into: Path, machine, more, duration, detector):
    scoring = ablation.check(ablation.Scoring(data, None, detector or 'inception', num, 0))
    if network is not None:
        if duration or more:
            raise click.UsageError('--network is trained already: it takes no --duration and no options of train.py')
        net = Network.from_pretrained(network)
        numbers = ablation.score(ablation.absolute(network), scoring, folder, machine, keep_in=folder)
        facts = {'nimg': net.snapshot_meta.get('cur_nimg', 0), **ablation.shape(network)}
        results = [Result(NAME, seed, {}, numbers, facts, network)]
    else:
        options = {'preset': 'cifar10', **ablation.ticks(duration or DURATION, 100), 'data': scoring.data, **more}
        results = list(ablation.work([Row(NAME, options)], [seed], folder, scoring, machine))
    into.mkdir(parents=True, exist_ok=True)
    ablation.sheet(into / 'samples.png', results, None, 1, samples=80, across=16)
    text = '\n\n'.join([caption(results[0], scoring), table(results[0].numbers.get('FID'))])
    ablation.write(into, text, {'scoring': scoring._asdict(), 'paper': PAPER}, results)


if __name__ == '__main__':
    main()
