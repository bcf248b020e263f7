"""Layers that choose per cell, and the own prior: against layers that choose for the whole image, at equal seconds.

    python -m experiments.cells digits
    python -m experiments.cells faces64 --data=faces64-train.zip --held-out=faces64-test.zip --only=whole,slow

All rows of a setting have the same widths, the same blocks but for 'small steps', and a head of the own prior per
layer, and are trained for the same number of seconds: how many images that is follows from a trial of a few hundred
images; on a CPU these are CPU seconds, of OMP_NUM_THREADS=1. --train-only leaves the evaluation, which takes minutes
per row, to a later call. Distances are Frechet distances of the detector's features to the training images, of --num
samples or held-out images; temperatures are chosen by the same distance with other seeds.
"""

import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from cli.networks import load_network
from cli.options import script
from cli.sampling_defaults import FIRST_SEED, NUM_SAMPLES, families
from cli.tables import markdown, write_results
from ddn_networks import Network, samplers, snapshots
from dnnlib.images import to_float
from dnnlib.sheets import draw_sheet, in_rows, save_png
from dnnlib.util import file_sha256
from experiments import ablation, digits
from experiments.ablation import Row, Scoring
from experiments.common import reference
from metrics import evaluate
from metrics.detectors import Detector, load_detector
from metrics.image_sets import Files, Samples, read, rounded
from metrics.lenet import LeNet
from metrics.reference import FeatureCollector, Statistics
from torch_utils import misc
from training.loss import prior_loss

COMMON = {
    'nodes': 64, 'batch': 32, 'lr': 2e-3, 'lr-ramp': 0.002, 'lr-decay': 'cosine', 'beta2': 0.99, 'ema': 0.002,
    'chain-dropout': 0.05, 'workers': 0, 'prior': 'head', 'seed': 0,
}  # fmt: skip
WHOLE = 'whole images'
FEW = '1,1,1,1,2,2,2,4,4,4,4,4,4,4'  # less for the prior to say, more for a finisher to draw


class Setting(NamedTuple):
    """What a data set is modelled with. options: of train.py. grids: cells a side, schedules by name. detector: of the
    distances. small_steps: blocks of more layers of fewer nodes."""

    options: dict[str, Any]
    grids: dict[str, str]
    detector: str
    small_steps: str = '16,3,2'


SETTINGS = {
    'digits': Setting(
        {'channels': '64,32,16', 'blocks': '5,4,2'},
        {'fast': '1,1,2,2,4,4,4,8,8,8,8', 'slow': '1,1,1,1,1,1,1,1,2,2,4', 'few': '1,1,1,1,1,1,1,2,2,2,2'},
        'lenet',
    ),
    'cifar10': Setting(
        {'channels': '64,32,16', 'blocks': '8,3,3', 'xflip': 1},
        {'fast': '1,1,1,2,2,4,4,8,4,8,8,8,8,8', 'slow': '1,1,1,1,1,1,1,1,2,4,4,8,8,8', 'few': FEW},
        'alex',
    ),
    'faces64': Setting(
        {'channels': '64,48,24,12', 'blocks': '7,3,2,2', 'xflip': 1},
        {'fast': '1,1,1,2,2,4,4,8,8,8,8,8,8,8', 'slow': '1,1,1,1,1,1,2,2,4,4,8,8,8,8', 'few': FEW},
        'alex',
        '16,3,1,1',
    ),
}
# What might make the prior better, each on the fast schedule.
LEADS = {
    '2 % of the gradient': {'prior-gradient': 0.02},
    '20 % of the gradient': {'prior-gradient': 0.2},
    'soft targets': {'prior-soft': 0.3},
    'wide heads': {'prior-width': 96},
    'all images clean': {'prior-clean': 1},
    'no image clean': {'prior-clean': 0},
}
# A layer's cells are independent given the layers before: more layers of fewer nodes decide less at once.
SMALL_STEPS = {
    'nodes': 8, 'grids': '1,1,1,1,2,2,2,2,4,4,4,4,4,8,8,8,8,8,8,8,8', 'prior-width': 48,
}  # fmt: skip


def rows(setting: Setting) -> list[Row]:
    found = [Row(WHOLE, {**setting.options})]
    found += [Row(f'cells {name}', {**setting.options, 'grids': grids}) for name, grids in setting.grids.items()]
    fast = {**setting.options, 'grids': setting.grids['fast']}
    found += [Row(f'fast with {name}', {**fast, **more}) for name, more in LEADS.items()]
    return [*found, Row('small steps', {**setting.options, **SMALL_STEPS, 'blocks': setting.small_steps})]


# ------------------------------------------------------------------------------------------------------------ training


def images_per_second(options: dict[str, Any], device: torch.device) -> float:
    """Of two short trials, without what both spend before and after training. On a CPU these are CPU seconds, so that
    other work on the machine does not shorten a row."""
    clock = time.process_time if device.type == 'cpu' else time.perf_counter
    batch, seconds = int(options['batch']), []
    for batches in (4, 16):
        length = {'duration': batches * batch / 1e6, 'tick': 4 * batch / 1e3, 'snap': 1000, 'dump': 1000}
        with tempfile.TemporaryDirectory() as folder:
            started = clock()
            ablation.train({**options, **length}, Path(folder), 'speed', device)
            seconds.append(clock() - started)
    return 12 * batch / (seconds[1] - seconds[0])


def train(row: Row, run_dir: Path, seconds: float, device: torch.device) -> None:
    """Train a row for about so many seconds; where the folder says how many images that are, for these."""
    path = run_dir / 'speed.json'
    rate = ablation.kept(path, row.options, lambda: {'images_per_second': images_per_second(row.options, device)})
    batch = int(row.options['batch'])
    images = max(1, round(seconds * rate['images_per_second'] / batch)) * batch
    length = {**ablation.ticks(images / 1e6), 'snap': 3, 'dump': 1}
    ablation.train({**row.options, **length}, run_dir, row.name, device)


# ---------------------------------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def of_held_out(net: Network, real: Statistics, detector: Detector, held_out: Files) -> dict[str, float]:
    """Of the nearest codes of held-out images, bits and PSNR of the first 500 of them."""
    collector = FeatureCollector(detector.dim, held_out.num, 0)
    nats, errors = [], []
    for part in torch.arange(held_out.num).split(100):
        images = to_float(read(held_out, part.tolist())).to(net.device)
        output = net(samplers.with_log_prior(samplers.nearest(images)), len(images), keep=True)
        nats.append(prior_loss(output.log_prior, output.distances).item())
        errors.append((output.images.clamp(-1, 1) - images).square().mean().item())
        collector.add_(detector.features(to_float(rounded(output.images, 'images'))), part.tolist())
    return {
        'bits by prior': statistics.mean(nats[:5]) * net.num_codes / math.log(2),
        'held-out dB': misc.psnr(statistics.mean(errors[:5])),
        'reconstructions': ablation.starting(evaluate.compare(real, collector.finish())[0], 'FID'),
    }


def of_samples(net: Network, real: Statistics, detector: Detector, num: int) -> dict[str, Any]:
    """Distances of samples, and the temperatures among ``families`` that other seeds choose."""

    def distance(num: int, seed: int, **how: Any) -> float:
        made = evaluate.statistics(Samples(net, num, seed, **how), detector, keep=0, title='samples')
        return ablation.starting(evaluate.compare(real, made)[0], 'FID')

    by_name = families(net)
    tried = {name: distance(NUM_SAMPLES, FIRST_SEED, temperature=t) for name, t in by_name.items()}
    best = min(tried, key=tried.get)
    return {
        'uniform': distance(num, 0, uniform=True),
        'T 1': distance(num, 0, temperature=1.0),
        'at the chosen T': distance(num, 0, temperature=by_name[best]),
        'chosen T': best,
        'tried': tried,
    }


def digits_read(net: Network, lenet: LeNet, num: int, **how: Any) -> float:
    """Share of samples that the LeNet reads with p >= 0.9."""
    parts = [net.sample(seeds=part.tolist(), **how)[0] for part in torch.arange(num).split(100)]
    return digits.legible(digits.probabilities(lenet, torch.cat(parts)))


def copies(net: Network, temperatures: tuple[float, ...], scoring: Scoring, detector: Detector) -> float:
    """Share of samples that are closer to a training image than 99 % of held-out images are (new ones: 0.01)."""
    samples, held_out = Samples(net, 500, temperature=temperatures), Files(scoring.held_out, 500)
    numbers, _ = evaluate.neighbours(samples, Files(scoring.data), held_out, detector, k=1)
    return next(value for name, value in numbers.items() if 'closer than 99 %' in name)


def evaluated(row: Row, run_dir: Path, net: Network, scoring: Scoring, folder: Path) -> dict[str, Any]:
    """All numbers of a row, kept in its folder."""

    def measure() -> dict[str, Any]:
        detector = load_detector(scoring.detector, device=net.device)
        real = reference(scoring.data, detector, folder, keep=0)
        held_out = Files(scoring.held_out, scoring.num_reconstructed)
        found = {'bits': net.num_bits, **of_held_out(net, real, detector, held_out)}
        found |= of_samples(net, real, detector, scoring.num)
        chosen = families(net)[found['chosen T']]
        found['copies'] = copies(net, chosen, scoring, detector)
        if scoring.detector == 'lenet':
            ways = {'uniform': {'uniform': True}, 'T 1': {'temperature': 1.0}, 'chosen T': {'temperature': chosen}}
            found |= {f'read, {name}': digits_read(net, detector.net, scoring.num, **how) for name, how in ways.items()}
        return found

    key = {**scoring._asdict(), 'network': file_sha256(snapshots.network_path(run_dir))}
    numbers = ablation.kept(run_dir / 'cells.json', key, measure)
    facts = ablation.training_facts(run_dir)
    keys = {'images': 'nimg', 'seconds': 'training CPU seconds', 'git_revision': 'git_revision'}
    options = {k: v for k, v in row.options.items() if k != 'data'}
    return {'row': row.name, 'options': options, **{k: facts[v] for k, v in keys.items()}, **numbers}


def table(results: list[dict[str, Any]]) -> str:
    columns = (
        'row', 'images', 'bits', 'bits by prior', 'held-out dB', 'reconstructions', 'uniform', 'T 1', 'at the chosen T',
        'chosen T', 'copies', 'read, uniform', 'read, T 1', 'read, chosen T',
    )  # fmt: skip
    return markdown([{c: result[c] for c in columns if c in results[0]} for result in results])


def about(scoring: Scoring) -> str:
    """What the columns are."""
    return f"""Frechet distances of {scoring.detector} features to the training images: of {scoring.num_reconstructed:,}
        held-out images reconstructed, and of {scoring.num:,} samples by uniform choices and by the own prior, at
        temperature 1 and at the temperatures chosen by {NUM_SAMPLES:,} other seeds (layers from 0). copies: share of
        samples closer to a training image than 99 % of held-out images. read: share of samples that the LeNet
        classifies with p >= 0.9."""


def sheet(path: Path, net: Network, temperatures: tuple[float, ...], columns: int = 16) -> None:
    """Seeds 0 to 63 by uniform choices; with cells also at temperature 1 and at the chosen ones, block by block."""
    ways = [{'uniform': True}, {'temperature': 1.0}, {'temperature': temperatures}]
    ways = ways if net.num_codes > net.num_layers else ways[:1]
    save_png(draw_sheet(in_rows(torch.cat([net.sample(64, **how)[0] for how in ways]), columns), columns), str(path))


@script(__file__)
@click.argument('name', metavar='SETTING', type=click.Choice(list(SETTINGS)))
@ablation.DATA
@ablation.HELD_OUT
@ablation.ONLY
@click.option('--minutes', type=click.FloatRange(min=0, min_open=True), default=15, help='Training of each row')
@click.option('--num', type=click.IntRange(min=2), default=2000, help='Samples of a distance')
@click.option('--num-reconstructed', type=click.IntRange(min=2), default=2000, help='Held-out images to reconstruct')
@click.option('--train-only', is_flag=True, help='Leave the evaluation to a later call')
@click.option('--outdir', metavar='DIR', default='out/cells', help='Folder of the run folders')
@click.option('--results', metavar='DIR', help='Folder for table and sheets  [default: --outdir]')
@click.option('--device', metavar='NAME', default='cpu', help='Where to train and evaluate')
def main(name, data, held_out, only, minutes, num, num_reconstructed, train_only, outdir, results, device):
    setting, folder, device = SETTINGS[name], Path(outdir).resolve(), torch.device(device)
    into = Path(results).resolve() if results else folder
    folder.mkdir(parents=True, exist_ok=True)
    study = ablation.Study(folder, into, device, {})
    data, held_out = ablation.images_or_digits(data, held_out, study)
    scoring = ablation.check(Scoring(data, held_out, setting.detector, num, num_reconstructed))
    some = [Row(r.name, {**COMMON, **r.options, 'data': scoring.data}) for r in rows(setting)]
    some = ablation.chosen(some, only) if only else some[: 1 + len(setting.grids)]
    found = []
    for row in some:
        run_dir = folder / f'{name}-{ablation.slug(row.name)}'
        click.echo(f'{name}, {row.name}: training')
        train(row, run_dir, minutes * 60, device)
        if not train_only:
            click.echo(f'{name}, {row.name}: evaluation')
            net = load_network(str(snapshots.network_path(run_dir)), device=device)
            found.append(evaluated(row, run_dir, net, scoring, folder))
            sheet(into / f'{run_dir.name}.png', net, families(net)[found[-1]['chosen T']])
    if not train_only:
        title, words = f'# Cells: {name}, {minutes:g} minutes a row', ' '.join(about(scoring).split())
        text = '\n\n'.join([title, words, table(found)])
        shown = scoring._replace(data=Path(data).name, held_out=Path(held_out).name)
        write_results(into / name, text, {'scoring': shown._asdict(), 'rows': found})
        click.echo(text)


if __name__ == '__main__':
    main()
