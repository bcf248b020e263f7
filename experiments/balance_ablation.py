"""Balance of node usage on the quick start's network: what each way is worth for samples and reconstructions.

    python -m experiments.balance_ablation                        # 10,000 built-in digits, 105,000 images a row
    python -m experiments.balance_ablation --duration=0.02        # minutes

Trains networks that differ in --balance only, and scores them: Frechet distance on LeNet features of --num samples to
the training digits, PSNR of reconstructed held-out digits, the share of 1,000 samples that a LeNet recognises with a
probability of at least 0.9. Draws them side by side. If it is stopped, the same command continues. Options of train.py
after a -- hold for all rows.
"""

from pathlib import Path

from cli.networks import load_network
from cli.presets import PRESETS
from cli.tables import write_json
from experiments import ablation, comparison, digits
from experiments.ablation import Result, Row, Scoring, Study
from experiments.common import read_record
from metrics.detectors import load_detector

DURATION = 0.105  # millions of images
ROWS = ('none', 'bias', 'split-prune', 'prefix')
COLUMNS = {
    'legible samples, %': ('legible', 1, 1), 'Frechet distance of samples': ('FID', 1, 1),
    'PSNR of held-out digits, dB': ('PSNR held-out', 1, 2), 'usage entropy': ('usage entropy', 1, 3),
    'dead share': ('dead share', 1, 3), 'CPU seconds': ('training CPU seconds', 1, 0),
}  # fmt: skip


def with_legible(result: Result, held_out: str) -> Result:
    """The result with the share of legible samples, which is kept in the run folder."""
    if result.network is None:
        return result
    path = Path(result.network).parent / 'digit_quality.json'
    if not path.is_file():
        write_json(path, digits.quality(load_network(result.network), load_detector('lenet').net, held_out))
    share = read_record(path, 'samples_read')['samples_read']
    return result._replace(numbers={**result.numbers, 'legible': 100 * share})


@ablation.command(__file__, DURATION)
@ablation.DATA
@ablation.HELD_OUT
@ablation.SEEDS
@ablation.ONLY
@ablation.NUM
def main(study: Study, data, held_out, seeds, only, num, duration, detector):
    data, held_out = ablation.images_or_digits(data, held_out, study)
    scoring = ablation.check(Scoring(data, held_out, detector or 'lenet', num, 2000))
    preset = {name.replace('_', '-'): value for name, value in PRESETS['mnist-cpu'].options.items()}
    base = {**preset, 'workers': 0, **ablation.ticks(duration or DURATION), 'data': scoring.data, **study.more}
    rows = ablation.chosen([Row(name, {**base, 'balance': name}) for name in ROWS], only)
    results = [with_legible(r, scoring.held_out) for r in ablation.work(rows, seeds, study, scoring)]
    parts = [
        f"The quick start's network with several ways to balance node usage. {comparison.budget(results)} The distance "
        f'is of {num:,} samples, the share of 1,000, PSNR of 2,000 digits.',
        comparison.table(results, '--balance', COLUMNS),
    ]
    comparison.finish(study, scoring, results, parts, {'seeds': seeds, 'options': base}, columns=4, samples=64)


if __name__ == '__main__':
    main()
