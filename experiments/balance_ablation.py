"""Ways of keeping nodes equally used, on the quick start's network: what each is worth for samples and reconstructions.

    python -m experiments.balance_ablation                        # 10,000 built-in digits, 105,000 images a row
    python -m experiments.balance_ablation --duration=0.02        # minutes

Trains networks that differ in --balance alone, judges them with fid.py (Frechet distance on LeNet features of --num
samples to the training digits; PSNR of reconstructed held-out ones) and with digit_quality.py (the share of 1,000
samples that the LeNet reads with a probability of at least 0.9), and draws them side by side. Stop it at will: the same
command goes on. Options of train.py go behind a --, for all rows alike.
"""

import json
from pathlib import Path

import click

from cli.options import Ints, script_help
from cli.presets import PRESETS
from cli.tables import markdown, write_json
from ddn_networks import Network
from experiments import ablation, digits
from experiments.ablation import Result, Row
from metrics.detectors import load_detector

DURATION = 0.105  # millions of images
ROWS = {
    'none': 'none',
    'bias': 'Loss-Free Balancing',
    'split-prune': 'Split-and-Prune (Algorithm 1)',
    'conditional': 'conditional',
}


def read_share(result: Result) -> Result:
    """With what digit_quality.py finds, which is kept beside the network."""
    if result.network is None:
        return result
    path = Path(result.network).parent / 'digit_quality.json'
    if not path.is_file():
        net, lenet = Network.from_pretrained(result.network), load_detector('lenet').net
        write_json(path, digits.quality(net, lenet, result.facts['held-out']))
    share = json.loads(path.read_text(encoding='utf-8'))['samples_read']
    return result._replace(numbers={**result.numbers, 'read': 100 * share})


def table(results: list[Result]) -> str:
    """The numbers of the rows, as Markdown."""
    columns = {
        'samples read, %': ('read', 1), 'Frechet distance of samples': ('FID', 1),
        'PSNR of held-out digits, dB': ('PSNR held-out', 2), 'usage entropy': ('usage entropy', 3),
        'dead share': ('dead share', 3), 'CPU seconds': ('training CPU seconds', 0),
    }  # fmt: skip
    lines = [
        {'--balance': row}
        | {title: ablation.cell(ablation.over_seeds(results, row, name), n) for title, (name, n) in columns.items()}
        for row in dict.fromkeys(r.row for r in results)
    ]
    return markdown(lines)


@click.command(help=script_help(__file__))
@click.option('--data', metavar='ZIP', help='Training digits, of dataset_tool.py  [default: 8,000 of the built-in]')
@click.option('--held-out', metavar='ZIP', help='Digits for reconstruction  [default: the other 2,000]')
@click.option('--seeds', type=Ints(), default='0', show_default=True, metavar='LIST',
              help='Train every row with each of these: 0,1,2')
@click.option('--only', metavar='LIST', help='Only rows whose names hold one of these words: bias,conditional')
@click.option('--num', type=click.IntRange(min=2), default=5000, show_default=True, help='Samples of the distance')
@ablation.shared_options('balance_ablation', DURATION)
def main(data, held_out, seeds, only, num, folder: Path, into: Path, machine, more, duration, detector):
    if bool(data) != bool(held_out):
        raise click.UsageError('give --data and --held-out, or neither for the built-in digits')
    if not data:
        data, held_out = digits.datasets(folder)
    scoring = ablation.check(ablation.Scoring(data, held_out, detector or 'lenet', num, 2000))
    preset = {name.replace('_', '-'): value for name, value in PRESETS['mnist-cpu'].options.items()}
    base = {**preset, 'workers': 0, **ablation.ticks(duration or DURATION), 'data': scoring.data, **more}
    rows = ablation.chosen([Row(name, {**base, 'balance': name}) for name in ROWS], only)
    held = {'held-out': scoring.held_out}
    results = [
        read_share(r._replace(facts=r.facts | held)) for r in ablation.work(rows, seeds, folder, scoring, machine)
    ]
    text = '\n\n'.join([
        f'The quick start\'s network balanced in different ways. {ablation.budget(results)} The distance is of {num:,} '
        'samples, the share of 1,000, PSNR of 2,000 digits.',
        table(results),
        *[f'Failed: {line}' for line in ablation.failures(results)],
    ])  # fmt: skip
    into.mkdir(parents=True, exist_ok=True)
    ablation.sheet(into / 'samples.png', results, scoring.held_out, 4, samples=64)
    ablation.write(into, text, {'seeds': seeds, 'scoring': scoring._asdict(), 'options': base}, results)


if __name__ == '__main__':
    main()
