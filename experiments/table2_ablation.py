"""Table 2: the effect of K, Split-and-Prune, Chain Dropout, Learning Residual and Leak Choice.

    python -m experiments.table2_ablation                                     # small, on built-in digits, minutes
    torchrun --standalone --nproc_per_node=8 -m experiments.table2_ablation --setup=faces64 --data=ffhq-64x64.zip \\
        --held-out=celebahq-64x64.zip

Trains the eight rows of the table, each for --duration million images, scores them (FID of --num samples to the
training images; rFID of training and of held-out images) and writes the table with the paper's numbers, and how the
order of the rows compares. If it is stopped, the same command continues. Options of train.py after a -- hold for all
rows; what defines a row is kept.

faces64 is the paper's experiment: K = 512, 64, 8, 2. digits is one for a CPU: a small network (14 layers), 8,000 digits
of 32x32, LeNet features, and K = 64, 16, 8, 2 in place of 512, 64, 8, 2.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from cli.tables import markdown
from dnnlib.archives import ImageArchive
from experiments import ablation, comparison
from experiments.ablation import Result, Row, Scoring, Study
from torch_utils import distributed as dist

# Table 2 as printed: FID, rFID of FFHQ (training), rFID of CelebA (held out).
PAPER = {
    'K=512 (default)': (43.1, 26.0, 33.2),
    'K=64': (47.0, 32.3, 38.7),
    'K=8': (52.6, 40.9, 49.8),
    'K=2 (BinDDN)': (66.5, 38.4, 70.6),
    'w/o Split-and-Prune': (55.3, 31.2, 34.7),
    'w/o Chain Dropout': (182.3, 26.5, 37.4),
    'w/o Learning Res.': (56.2, 40.2, 40.2),
    'w/o Leak Choice': (56.0, 34.3, 32.2),
}
COLUMNS = {'FID': 'FID', 'rFID training': 'rFID, training', 'rFID held-out': 'rFID, held out'}


class Setup(NamedTuple):
    """A scale of the experiment. ks: K of the first four rows; k_option: the option that sets it."""

    options: dict[str, Any]
    k_option: str
    ks: tuple[int, int, int, int]
    detector: str
    duration: float
    num: int


SETUPS = {
    'digits': Setup({**ablation.DIGITS_OPTIONS, 'blocks': '1,1,2,3,4,3'}, 'nodes', (64, 16, 8, 2), 'lenet', 0.02, 5000),
    'faces64': Setup({'preset': 'faces64'}, 'max-k', (512, 64, 8, 2), 'inception', 88.0, 50_000),
}


def rows_of(setup: Setup, base: dict[str, Any]) -> list[Row]:
    """The rows, by the paper's names."""
    changes = [{setup.k_option: k} for k in setup.ks]
    changes[3]['chain-dropout'] = 0  # Section 4.2: none at K = 2
    changes += [{'balance': 'none'}, {'chain-dropout': 0}, {'learning-residual': False}, {'leak-choice': False}]
    default = {setup.k_option: setup.ks[0], 'chain-dropout': 0.05}
    return [Row(name, {**base, **default, **change}) for name, change in zip(PAPER, changes, strict=True)]


def label(name: str, k: int | None, paper_k: int | None) -> str:
    """The name of a row with our K: 'K=64 for 512 (default)'."""
    return name if k == paper_k else name.replace(f'K={paper_k}', f'K={k} for {paper_k}')


def labels(ks: Sequence[int]) -> dict[str, str]:
    """{the paper's name of a row: its name with our K}"""
    pairs = itertools.zip_longest(PAPER, ks, (512, 64, 8, 2))
    return {name: label(name, k, paper_k) for name, k, paper_k in pairs}


def table(results: Sequence[Result], ks: Sequence[int]) -> str:
    """Our columns and the paper's, as Markdown."""
    head = ['Model', *(f'{title} (paper)' for title in COLUMNS.values()), 'held-out PSNR, dB', 'bits', 'CPU seconds']
    lines = []
    for name, paper in PAPER.items():
        cells = [
            f'{comparison.cell(comparison.over_seeds(results, name, column))} ({value})'
            for column, value in zip(COLUMNS, paper, strict=True)
        ]
        more = {'PSNR held-out': 2, 'bits': 0, 'training CPU seconds': 0}
        cells += [comparison.cell(comparison.over_seeds(results, name, key), places) for key, places in more.items()]
        lines.append(dict(zip(head, [labels(ks)[name], *cells], strict=True)))
    return markdown(lines)


def orders(results: Sequence[Result]) -> list[str]:
    """Compare the order of the rows in our columns with the paper's."""
    lines = []
    for i, (column, title) in enumerate(COLUMNS.items()):
        ours = [comparison.mean_of(results, name, column) for name in PAPER]
        found = comparison.order(ours, [paper[i] for paper in PAPER.values()])
        if found is not None:
            count = sum(value is not None for value in ours)
            lines.append(
                f'* {title}: Spearman {found.rho:+.2f} with the paper over {count} rows; '
                f'{found.agreeing} of {found.pairs} pairs of rows are in its order.'
            )
    return lines


def differences(results: Sequence[Result]) -> list[str]:
    """Compare each row with the default: is it worse here as it is in the paper?"""
    lines = []
    default, *others = PAPER
    for i, (column, title) in enumerate(COLUMNS.items()):
        start = comparison.mean_of(results, default, column)
        agree, differ = [], []
        for name in others:
            value = comparison.mean_of(results, name, column)
            if start is not None and value is not None:
                change, of_paper = value - start, PAPER[name][i] - PAPER[default][i]
                (agree if (change > 0) == (of_paper > 0) else differ).append(f'{name} {change:+.1f} ({of_paper:+.1f})')
        if agree or differ:
            lines.append(
                f'* {title}, against the default (paper): as in the paper {"; ".join(agree) or "none"}. '
                f'The other way {"; ".join(differ) or "none"}.'
            )
    return lines


@ablation.command(__file__, ', '.join(f'{name} {setup.duration:g}' for name, setup in SETUPS.items()))
@click.option('--setup', 'setup_name', type=click.Choice(list(SETUPS)), default='digits', help='Scale')
@ablation.DATA
@ablation.HELD_OUT
@ablation.SEEDS
@ablation.ONLY
@click.option('--num', type=click.IntRange(min=2), help='Samples of the FID  [default: digits 5000, faces64 50000]')
@click.option('--num-reconstructed', type=click.IntRange(min=2),
              help='Images of each rFID  [default: as many as both have, 10,000 at most]')
def main(study: Study, setup_name, data, held_out, seeds, only, num, num_reconstructed, duration, detector):
    setup = SETUPS[setup_name]
    if not data and setup_name != 'digits':
        raise click.UsageError('give --data and --held-out: the built-in digits are for --setup=digits')
    data, held_out = ablation.images_or_digits(data, held_out, study)
    scoring = Scoring(data, held_out, detector or setup.detector, num or setup.num, num_reconstructed or 2)
    scoring = ablation.check(scoring)
    if num_reconstructed is None:
        held = [len(ImageArchive(path)) for path in (data, held_out)]
        scoring = scoring._replace(num_reconstructed=min(*held, 10_000))
    base = {**setup.options, **ablation.ticks(duration or setup.duration), 'data': scoring.data, **study.more}
    rows = ablation.chosen(rows_of(setup, base), only)
    ks = ', '.join(map(str, setup.ks))
    dist.print0(f'Rows have the names of the paper; K is {ks} in place of 512, 64, 8, 2.')
    results = list(ablation.work(rows, seeds, study, scoring))
    scaled = f' K is {ks} in place of 512, 64, 8, 2.' * (setup_name == 'digits')
    parts = [
        f'Table 2 of the paper at another scale ({setup_name}): {comparison.budget(results)} FID of {scoring.num:,} '
        f'samples, rFID of {scoring.num_reconstructed:,} images, detector {Path(scoring.detector).stem}.{scaled} In '
        "brackets the paper's numbers (FFHQ-64x64, Inception, held out: CelebA): their order can be compared, their "
        'size cannot.',
        table(results, setup.ks),
        '\n'.join([*orders(results), *differences(results)]),
    ]
    settings = {'seeds': seeds, 'options': base, 'paper': PAPER}
    names = labels(setup.ks).get
    comparison.finish(study, scoring, results, parts, settings, columns=4, samples=40, names=names)


if __name__ == '__main__':
    main()
