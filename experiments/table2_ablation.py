"""Table 2: what K, Split-and-Prune, Chain Dropout, Learning Residual and Leak Choice are worth.

    python -m experiments.table2_ablation                                     # small, on built-in digits, minutes
    python -m experiments.table2_ablation --setup=faces64 --data=ffhq-64x64.zip --held-out=celebahq-64x64.zip --gpus=8

Trains the eight rows of the table with train.py, each for --duration million images, judges them with fid.py (FID of
--num samples to the training images; rFID of training and of held-out images with their reconstructions) and writes the
table beside the paper's numbers, with the order of the rows compared. Stop it at will: the same command goes on.
Options of train.py go behind a --, for all rows alike; what makes a row is kept.

faces64 is the paper's experiment: K = 512, 64, 8, 2. digits is one for a CPU: a small network (14 layers), 8,000 digits
of 32x32, LeNet features, and K = 64, 16, 8, 2 in the places of 512, 64, 8, 2.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from cli.options import Ints, script_help
from cli.tables import markdown
from dnnlib.archives import ImageArchive
from experiments import ablation, digits
from experiments.ablation import Result, Row

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
    """A size of the experiment. ks: K of the first four rows; k_option: the option that sets it."""

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
    """The rows by the paper's names; one whose K is another here says so in its own."""
    changes = [{setup.k_option: k} for k in setup.ks]
    changes[3]['chain-dropout'] = 0  # Section 4.2: none at K = 2
    changes += [{'balance': 'none'}, {'chain-dropout': 0}, {'learning-residual': False}, {'leak-choice': False}]
    default = {setup.k_option: setup.ks[0], 'chain-dropout': 0.05}
    return [Row(name, {**base, **default, **change}) for name, change in zip(PAPER, changes, strict=True)]


def label(name: str, k: int | None, paper_k: int | None) -> str:
    """'K=64 for 512 (default)' where K is not the paper's."""
    return name if k == paper_k else name.replace(f'K={paper_k}', f'K={k} for {paper_k}')


def labels(ks: Sequence[int]) -> dict[str, str]:
    """The paper's names of the rows -> those that say which K is used here."""
    pairs = itertools.zip_longest(PAPER, ks, (512, 64, 8, 2))
    return {name: label(name, k, paper_k) for name, k, paper_k in pairs}


def table(results: Sequence[Result], ks: Sequence[int]) -> str:
    """Ours and the paper's columns side by side, as Markdown."""
    head = ['Model', *(f'{title} (paper)' for title in COLUMNS.values()), 'held-out PSNR, dB', 'bits', 'CPU seconds']
    lines = []
    for name, paper in PAPER.items():
        cells = [
            f'{ablation.cell(ablation.over_seeds(results, name, column))} ({value})'
            for column, value in zip(COLUMNS, paper, strict=True)
        ]
        cells += [ablation.cell(ablation.over_seeds(results, name, 'PSNR held-out'), 2)]
        cells += [ablation.cell(ablation.over_seeds(results, name, key), 0) for key in ('bits', 'training CPU seconds')]
        lines.append(dict(zip(head, [labels(ks)[name], *cells], strict=True)))
    return markdown(lines)


def orders(results: Sequence[Result]) -> list[str]:
    """How our columns order the rows, against the paper's."""
    lines = []
    for i, (column, title) in enumerate(COLUMNS.items()):
        ours = [ablation.mean_of(results, name, column) for name in PAPER]
        found = ablation.order(ours, [paper[i] for paper in PAPER.values()])
        if found is not None:
            count = sum(value is not None for value in ours)
            lines.append(
                f'* {title}: Spearman {found.rho:+.2f} with the paper over {count} rows; '
                f'{found.agreeing} of {found.pairs} pairs of rows are in its order.'
            )
    return lines


def differences(results: Sequence[Result]) -> list[str]:
    """Each row against the default: whether it is worse here as it is in the paper."""
    lines = []
    default, *others = PAPER
    for i, (column, title) in enumerate(COLUMNS.items()):
        start = ablation.mean_of(results, default, column)
        agree, differ = [], []
        for name in others:
            value = ablation.mean_of(results, name, column)
            if start is not None and value is not None:
                change, of_paper = value - start, PAPER[name][i] - PAPER[default][i]
                (agree if (change > 0) == (of_paper > 0) else differ).append(f'{name} {change:+.1f} ({of_paper:+.1f})')
        if agree or differ:
            lines.append(
                f'* {title}, against the default (paper): as in the paper {"; ".join(agree) or "none"}. '
                f'The other way {"; ".join(differ) or "none"}.'
            )
    return lines


@click.command(help=script_help(__file__))
@click.option('--setup', 'setup_name', type=click.Choice(list(SETUPS)), default='digits', show_default=True,
              help='The size of the experiment')
@click.option('--data', metavar='ZIP', help='Training images, of dataset_tool.py  [default: 8,000 built-in digits]')
@click.option('--held-out', '--val-data', 'held_out', metavar='ZIP', help='Others  [default: 2,000 built-in digits]')
@click.option('--seeds', type=Ints(), default='0', show_default=True, metavar='LIST',
              help='Train every row with each of these: 0,1,2')
@click.option('--only', metavar='LIST', help='Only rows whose names hold one of these words: K=8,Leak')
@click.option('--num', type=click.IntRange(min=2), help='Samples of the FID  [default: digits 5000, faces64 50000]')
@click.option('--num-reconstructed', type=click.IntRange(min=2),
              help='Images of each rFID  [default: as many as both have, 10,000 at most]')
@ablation.shared_options('table2_ablation', ', '.join(f'{name} {setup.duration:g}' for name, setup in SETUPS.items()))
def main(
    setup_name, data, held_out, seeds, only, num, num_reconstructed, folder: Path, into: Path, machine, more, duration,
    detector,
):  # fmt: skip
    setup = SETUPS[setup_name]
    if bool(data) != bool(held_out) or (not data and setup_name != 'digits'):
        raise click.UsageError('give --data and --held-out (the built-in digits are for --setup=digits alone)')
    if not data:
        data, held_out = digits.datasets(folder)
    scoring = ablation.Scoring(data, held_out, detector or setup.detector, num or setup.num, num_reconstructed or 2)
    scoring = ablation.check(scoring)
    if num_reconstructed is None:
        held = [len(ImageArchive(path)) for path in (data, held_out)]
        scoring = scoring._replace(num_reconstructed=min(*held, 10_000))
    base = {**setup.options, **ablation.ticks(duration or setup.duration), 'data': scoring.data, **more}
    rows = ablation.chosen(rows_of(setup, base), only)
    click.echo(f'Rows are called as in the paper; K is {", ".join(map(str, setup.ks))} where it says 512, 64, 8, 2.')
    results = list(ablation.work(rows, seeds, folder, scoring, machine))
    scaled = f' K is {", ".join(map(str, setup.ks))} in the places of 512, 64, 8, 2.' * (setup_name == 'digits')
    text = '\n\n'.join([
        f'Table 2 of the paper at another scale ({setup_name}): ' + ablation.budget(results)
        + f' FID of {scoring.num:,} samples, rFID of {scoring.num_reconstructed:,} images, detector '
        f'{Path(scoring.detector).stem}.{scaled} In brackets the paper\'s numbers (FFHQ-64x64, Inception, held out: '
        'CelebA): their order can be compared, their size cannot.',
        table(results, setup.ks),
        '\n'.join([*orders(results), *differences(results)]),
        *[f'Failed: {line}' for line in ablation.failures(results)],
    ])  # fmt: skip
    into.mkdir(parents=True, exist_ok=True)
    shown = [r._replace(row=labels(setup.ks)[r.row]) for r in results]
    ablation.sheet(into / 'samples.png', shown, scoring.held_out, 4)
    ablation.write(into, text, {'seeds': seeds, 'scoring': scoring._asdict(), 'options': base, 'paper': PAPER}, results)


if __name__ == '__main__':
    main()
