"""Fig. 10: the effect of Split-and-Prune and of Chain Dropout, each alone. MNIST, K = 8, L = 10, no Learning Residual.

    python -m experiments.mnist_ablation                                    # 10,000 built-in digits, half an hour
    python -m experiments.mnist_ablation --data=mnist-train.zip --held-out=mnist-test.zip --duration=1

Trains four networks that differ in nothing else - neither, Chain Dropout alone, Split-and-Prune alone, both - scores
them (Frechet distance on LeNet features of --num samples to the training digits; PSNR of reconstructed held-out digits)
and draws them side by side. If it is stopped, the same command continues. Options of train.py after a -- hold for all
rows:

    python -m experiments.mnist_ablation --duration=0.016 -- --batch=64 --lr=0.001

"Both" is not in the paper's figure; its network is a recurrent UNet, this one is the single-shot generator.
"""

import click

from experiments import ablation, comparison
from experiments.ablation import Result, Row, Scoring, Study

NEITHER, DROPOUT, SPLIT, BOTH = 'neither', 'Chain Dropout', 'Split-and-Prune', 'both'
ROWS = [
    Row(NEITHER, {'balance': 'none', 'chain-dropout': 0}),
    Row(DROPOUT, {'balance': 'none', 'chain-dropout': 0.05}),
    Row(SPLIT, {'balance': 'split-prune', 'chain-dropout': 0}),
    Row(BOTH, {'balance': 'split-prune', 'chain-dropout': 0.05}),
]
DURATION = 0.15  # millions of images
OPTIONS = {**ablation.DIGITS_OPTIONS, 'blocks': '1,1,2,2,2,2', 'nodes': 8, 'learning-residual': False}
# Claims of Appendix A, as "the first has the lower distance".
CLAIMS = [
    (SPLIT, NEITHER, 'Split-and-Prune improves generated images significantly'),
    (SPLIT, DROPOUT, 'Split-and-Prune is indispensable: Chain Dropout does not replace it'),
    (DROPOUT, NEITHER, 'Chain Dropout alleviates the results without Split-and-Prune'),
]
COLUMNS = {
    'Frechet distance of samples': ('FID', 1, 1), 'PSNR of held-out digits, dB': ('PSNR held-out', 1, 2),
    'of training digits, dB': ('PSNR training', 1, 2), 'dead nodes, %': ('dead share', 100, 1),
    'usage entropy': ('usage entropy', 1, 3), 'CPU seconds': ('training CPU seconds', 1, 0),
}  # fmt: skip


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


@ablation.command(__file__, DURATION)
@ablation.DATA
@ablation.HELD_OUT
@ablation.SEEDS
@ablation.ONLY
@ablation.NUM
@click.option('--num-reconstructed', type=click.IntRange(min=2), default=2000,
              help='Digits to reconstruct, of the training digits and of the held-out ones')
def main(study: Study, data, held_out, seeds, only, num, num_reconstructed, duration, detector):
    data, held_out = ablation.images_or_digits(data, held_out, study)
    scoring = ablation.check(Scoring(data, held_out, detector or 'lenet', num, num_reconstructed))
    base = {**OPTIONS, **ablation.ticks(duration or DURATION), 'data': scoring.data, **study.more}
    rows = ablation.chosen([Row(row.name, {**base, **row.options}) for row in ROWS], only)
    results = list(ablation.work(rows, seeds, study, scoring))
    parts = [
        f'Fig. 10 of the paper: MNIST, K = 8, no Learning Residual. {comparison.budget(results)} The distance is of '
        f'{num:,} samples, PSNR of {num_reconstructed:,} digits.',
        comparison.table(results, 'trained with', COLUMNS),
        '\n'.join(verdicts(results)),
    ]
    comparison.finish(study, scoring, results, parts, {'seeds': seeds, 'options': base}, columns=4, samples=64)


if __name__ == '__main__':
    main()
