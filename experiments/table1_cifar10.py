"""Table 1: FID of a DDN on unconditional CIFAR-10, against what the paper and others published.

    python dataset_tool.py --source=cifar-10-python.tar.gz --dest=cifar10.zip
    torchrun --standalone --nproc_per_node=8 -m experiments.table1_cifar10 --data=cifar10.zip   # all of the budget
    python -m experiments.table1_cifar10 --data=cifar10.zip --duration=5      # less of it, which the table states
    python -m experiments.table1_cifar10 --data=cifar10.zip --network=NET     # score a trained network

Trains as train.py --preset=cifar10 does (K = 64, L = 63, 76.3 M parameters) for --duration million images, and scores
as fid.py does: --num samples against the training images. If it is stopped, the same command continues. Options of
train.py follow a --, such as a network for one small machine:

    python -m experiments.table1_cifar10 --data=cifar10.zip --duration=0.2 -- --cbase=32 --batch=64
"""

from pathlib import Path

import click

from cli.networks import load_network
from cli.tables import markdown
from experiments import ablation, comparison
from experiments.ablation import Result, Row, Scoring, Study

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


def caption(result: Result, scoring: Scoring) -> str:
    """Describe the last row: budget, network, samples."""
    if result.error:
        return f'Table 1 of the paper, CIFAR-10. The last row failed: {result.error}'
    facts = result.facts
    return (
        f'Table 1 of the paper, CIFAR-10. The last row: {facts["nimg"] / 1e6:g} million images '
        f'(the published configuration trains for up to 200), L = {facts["layers"]}, K = {facts["nodes"]}, '
        f'{facts["parameters"]:,} parameters; FID of {scoring.num:,} samples, detector {Path(scoring.detector).stem}, '
        f'against {Path(scoring.data).name}.'
    )


@ablation.command(__file__, DURATION)
@click.option('--data', metavar='ZIP', required=True, help='The 50,000 training images, of dataset_tool.py')
@click.option('--network', metavar='FILE', help='Score this snapshot; train nothing')
@click.option('--num', type=click.IntRange(min=2), default=50_000, help='Samples of the FID')
@click.option('--seed', type=click.IntRange(min=0), default=0, help='Random seed of training')
def main(study: Study, data, network, num, seed, duration, detector):
    scoring = ablation.check(Scoring(data, None, detector or 'inception', num, 0))
    if network is not None:
        if duration or study.more:
            raise click.UsageError('--network is trained already: leave out --duration and options of train.py')
        net = load_network(network)
        numbers = ablation.score(ablation.absolute(network), scoring, study.folder, study.device, study.folder)
        facts = {'nimg': net.snapshot_meta.get('cur_nimg', 0), **ablation.shape(net)}
        results = [Result(NAME, seed, {}, numbers, facts, network)]
    else:
        options = {'preset': 'cifar10', **ablation.ticks(duration or DURATION, 100), 'data': scoring.data}
        results = list(ablation.work([Row(NAME, options | study.more)], [seed], study, scoring))
    parts = [caption(results[0], scoring), table(results[0].numbers.get('FID'))]
    comparison.finish(study, scoring, results, parts, {'paper': PAPER}, columns=1, samples=80, across=16)


if __name__ == '__main__':
    main()
