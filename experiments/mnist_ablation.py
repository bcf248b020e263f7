"""Fig. 10: what Split-and-Prune and Chain Dropout do, each alone. MNIST, K = 8, L = 10, no Learning Residual.

    python -m experiments.mnist_ablation                                    # 10,000 built-in digits, half an hour
    python -m experiments.mnist_ablation --data=mnist-train.zip --held-out=mnist-test.zip --duration=1

Trains four networks that differ in nothing else - neither, Chain Dropout alone, Split-and-Prune alone, both - with
train.py, judges them with fid.py (Frechet distance on LeNet features of --num samples to the training digits; PSNR of
reconstructed held-out ones) and draws them side by side. Stop it at will: the same command goes on. Options of train.py
go behind a --, for all rows alike:

    python -m experiments.mnist_ablation --duration=0.016 -- --batch=64 --lr=0.001

"Both" is not in the paper's figure; its network is a recurrent UNet, here it is the single-shot generator.
"""

from pathlib import Path

import click

from cli.options import Ints, script_help
from cli.tables import markdown
from experiments import ablation, digits
from experiments.ablation import Result, Row

NEITHER, DROPOUT, SPLIT, BOTH = 'neither', 'Chain Dropout', 'Split-and-Prune', 'both'
ROWS = [
    Row(NEITHER, {'balance': 'none', 'chain-dropout': 0}),
    Row(DROPOUT, {'balance': 'none', 'chain-dropout': 0.05}),
    Row(SPLIT, {'balance': 'split-prune', 'chain-dropout': 0}),
    Row(BOTH, {'balance': 'split-prune', 'chain-dropout': 0.05}),
]
DURATION = 0.15  # millions of images
OPTIONS = {**ablation.DIGITS_OPTIONS, 'blocks': '1,1,2,2,2,2', 'nodes': 8, 'learning-residual': False}
# What the paper says in words (Appendix A), as "the first has the lower distance".
CLAIMS = [
    (SPLIT, NEITHER, 'Split-and-Prune improves generated images significantly'),
    (SPLIT, DROPOUT, 'Split-and-Prune is indispensable: Chain Dropout does not replace it'),
    (DROPOUT, NEITHER, 'Chain Dropout alleviates the results without Split-and-Prune'),
]


def table(results: list[Result]) -> str:
    """The numbers of the rows, as Markdown."""
    head = ['trained with', 'Frechet distance of samples', 'PSNR of held-out digits, dB', 'of training digits, dB',
            'dead nodes, %', 'usage entropy', 'CPU seconds']  # fmt: skip
    lines = []
    for row in dict.fromkeys(r.row for r in results):
        dead = [100 * value for value in ablation.over_seeds(results, row, 'dead share')]
        named = [('FID', 1), ('PSNR held-out', 2), ('PSNR training', 2)]
        cells = [ablation.cell(ablation.over_seeds(results, row, name), digits) for name, digits in named]
        cells += [ablation.cell(dead), ablation.cell(ablation.over_seeds(results, row, 'usage entropy'), 3)]
        cells.append(ablation.cell(ablation.over_seeds(results, row, 'training CPU seconds'), 0))
        lines.append(dict(zip(head, [row, *cells], strict=True)))
    return markdown(lines)


def verdicts(results: list[Result]) -> list[str]:
    """Each claim of the paper against the distances, seed by seed."""
    lines = []
    for better, worse, claim in CLAIMS:
        found = {r.seed: {s.row: s.numbers['FID'] for s in results if s.seed == r.seed and s.numbers} for r in results}
        pairs = [(rows[better], rows[worse]) for rows in found.values() if better in rows and worse in rows]
        holds = sum(a < b for a, b in pairs)
        verdict = 'holds here' if holds == len(pairs) else 'does NOT hold here' if holds == 0 else 'is undecided here'
        values = ', '.join(f'{a:.1f} against {b:.1f}' for a, b in pairs)
        if pairs:
            lines.append(f'* "{claim}" {verdict}: {better} {values} ({worse}).')
    return lines


@click.command(help=script_help(__file__))
@click.option('--data', metavar='ZIP', help='Training digits, of dataset_tool.py  [default: 8,000 of the built-in]')
@click.option('--held-out', metavar='ZIP', help='Digits for reconstruction  [default: the other 2,000]')
@click.option('--seeds', type=Ints(), default='0', show_default=True, metavar='LIST',
              help='Train every row with each of these: 0,1,2')
@click.option('--only', metavar='LIST', help='Only rows whose names hold one of these words: neither,split')
@click.option('--num', type=click.IntRange(min=2), default=5000, show_default=True, help='Samples of the distance')
@click.option('--num-reconstructed', type=click.IntRange(min=2), default=2000, show_default=True,
              help='Digits to reconstruct, of training and of held-out ones')
@ablation.shared_options('mnist_ablation', DURATION)
def main(
    data, held_out, seeds, only, num, num_reconstructed, folder: Path, into: Path, machine, more, duration, detector
):  # fmt: skip
    if bool(data) != bool(held_out):
        raise click.UsageError('give --data and --held-out, or neither for the built-in digits')
    if not data:
        data, held_out = digits.datasets(folder)
    scoring = ablation.check(ablation.Scoring(data, held_out, detector or 'lenet', num, num_reconstructed))
    base = {**OPTIONS, **ablation.ticks(duration or DURATION), 'data': scoring.data, **more}
    rows = ablation.chosen([Row(row.name, {**base, **row.options}) for row in ROWS], only)
    results = list(ablation.work(rows, seeds, folder, scoring, machine))
    text = '\n\n'.join([
        'Fig. 10 of the paper: MNIST, K = 8, no Learning Residual. ' + ablation.budget(results)
        + f' The distance is of {num:,} samples, PSNR of {num_reconstructed:,} digits.',
        table(results),
        '\n'.join(verdicts(results)),
        *[f'Failed: {line}' for line in ablation.failures(results)],
    ])  # fmt: skip
    into.mkdir(parents=True, exist_ok=True)
    ablation.sheet(into / 'samples.png', results, scoring.held_out, 4, samples=64)
    ablation.write(into, text, {'seeds': seeds, 'scoring': scoring._asdict(), 'options': base}, results)


if __name__ == '__main__':
    main()
