"""Layers that choose per cell, and the own prior: against layers that choose for the whole image, at equal seconds.

    python -m experiments.cells digits
    python -m experiments.cells faces64 --data=faces64-train.zip --held-out=faces64-test.zip --only=whole,slow

All rows of a setting have the same blocks and widths and a head of the own prior per layer, and are trained for the
same number of seconds: how many images that is follows from a trial of a few hundred images. On a CPU use one core and
OMP_NUM_THREADS=1, with nothing else on it. --train-only leaves the evaluation, which takes minutes per row, to a later
call. Distances are Frechet distances of the detector's features to the training images, of --num samples or held-out
images; temperatures are chosen by the same distance with other seeds.
"""

import math
import tempfile
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
from metrics import evaluate
from metrics.detectors import load_detector
from metrics.image_sets import Files, Samples, read, rounded
from metrics.reference import FeatureCollector
from torch_utils import misc
from training.loss import prior_loss
from training.report import read_stats

COMMON = {
    'nodes': 64, 'batch': 32, 'lr': 2e-3, 'lr-ramp': 0.002, 'lr-decay': 'cosine', 'beta2': 0.99, 'ema': 0.002,
    'chain-dropout': 0.05, 'workers': 0, 'prior': 'head', 'seed': 0,
}  # fmt: skip
WHOLE = 'whole images'


class Setting(NamedTuple):
    """What a data set is modelled with. options: of train.py. grids: schedules by name. detector: of the distances."""

    options: dict[str, Any]
    grids: dict[str, str]
    detector: str


SETTINGS = {
    'digits': Setting(
        {'channels': '64,32,16', 'blocks': '5,4,2'},
        {'fast': '1,1,2,2,4,4,4,8,8,8,8', 'slow': '1,1,1,1,1,1,1,1,2,2,4'},
        'lenet',
    ),
    'cifar10': Setting(
        {'channels': '64,32,16', 'blocks': '8,3,3', 'xflip': 1},
        {'fast': '1,1,1,2,2,4,4,8,4,8,8,8,8,8', 'slow': '1,1,1,1,1,1,1,1,2,4,4,8,8,8'},
        'alex',
    ),
    'faces64': Setting(
        {'channels': '64,48,24,12', 'blocks': '7,3,2,2', 'xflip': 1},
        {'fast': '1,1,1,2,2,4,4,8,8,8,8,8,8,8', 'slow': '1,1,1,1,1,1,2,2,4,4,8,8,8,8'},
        'alex',
    ),
}
# What might make the prior better, each on the fast schedule; 'share of the step' is bounded by one half.
LEADS = {
    '2 % of the gradient': {'prior-gradient': 0.02},
    'soft targets': {'prior-soft': 0.3},
    'wide heads': {'prior-width': 96},
    'all images clean': {'prior-clean': 1},
    'no image clean': {'prior-clean': 0},
}


def rows(setting: Setting) -> list[Row]:
    found = [Row(WHOLE, {**setting.options})]
    found += [Row(f'cells {name}', {**setting.options, 'grids': grids}) for name, grids in setting.grids.items()]
    fast = {**setting.options, 'grids': setting.grids['fast']}
    return found + [Row(f'fast with {name}', {**fast, **more}) for name, more in LEADS.items()]


# ------------------------------------------------------------------------------------------------------------ training


def images_per_second(options: dict[str, Any], device: torch.device) -> float:
    """Of a short trial, without its first tick."""
    batch = int(options['batch'])
    short = {'duration': 12 * batch / 1e6, 'tick': 4 * batch / 1e3, 'snap': 1000, 'dump': 1000}
    with tempfile.TemporaryDirectory() as folder:
        ablation.train({**options, **short}, Path(folder), 'speed', device)
        return min(tick['images_per_sec'] for tick in read_stats(folder)[1:])


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
def bits_by_prior(net: Network, images: torch.Tensor) -> float:
    """Mean bits of the nearest codes of images by the own prior."""
    output = net(samplers.with_log_prior(samplers.nearest(images)), len(images), keep=True)
    return prior_loss(output.log_prior, output.distances).item() * net.num_codes / math.log(2)


def numbers_of(network: str, setting: Setting, scoring: Scoring, folder: Path, device: torch.device) -> dict[str, Any]:
    """What is measured of a trained network."""
    net, detector = load_network(network, device=device), load_detector(scoring.detector, device=device)
    real = ablation.reference(scoring, folder, detector)

    def distance(num: int, seed: int, **how: Any) -> float:
        made = evaluate.statistics(Samples(net, num, seed, **how), detector, keep=0, title='samples')
        return ablation.starting(evaluate.compare(real, made)[0], 'FID')

    held_out = Files(scoring.held_out, scoring.num_reconstructed)
    found: dict[str, Any] = {'bits': net.num_bits}
    some = torch.arange(min(500, held_out.num)).split(50)
    parts = [to_float(read(held_out, part.tolist())).to(device) for part in some]
    found['bits by prior'] = sum(bits_by_prior(net, part) for part in parts) / len(parts)
    rebuilt = [net.reconstruct(part).images.clamp(-1, 1) for part in parts]
    error = torch.cat([(a - b).square().mean((1, 2, 3)) for a, b in zip(rebuilt, parts, strict=True)]).mean()
    found['held-out dB'] = misc.psnr(error.item())
    collector = FeatureCollector(detector.dim, held_out.num, 0)
    for part in torch.arange(held_out.num).split(100):
        images = net.reconstruct(to_float(read(held_out, part.tolist())).to(device)).images
        collector.add_(detector.features(to_float(rounded(images, 'images'))), part.tolist())
    made = collector.finish()
    found['reconstructions'] = ablation.starting(evaluate.compare(real, made)[0], 'FID')
    found['uniform'] = distance(scoring.num, 0, uniform=True)
    by_name = families(net)
    tried = {name: distance(NUM_SAMPLES, FIRST_SEED, temperature=t) for name, t in by_name.items()}
    best = min(tried, key=tried.get)
    found |= {'T 1': distance(scoring.num, 0, temperature=1.0), 'chosen T': best, 'tried': tried}
    found['at the chosen T'] = distance(scoring.num, 0, temperature=by_name[best])
    return found


def digits_read(network: str, num: int, device: torch.device, **how: Any) -> float:
    """Share of samples that the LeNet reads with p >= 0.9."""
    net, lenet = load_network(network, device=device), load_detector('lenet', device=device).net
    parts = [net.sample(seeds=part.tolist(), **how)[0] for part in torch.arange(num).split(100)]
    return digits.legible(digits.probabilities(lenet, torch.cat(parts)))


def copies(network: str, temperatures: tuple[float, ...], scoring: Scoring, device: torch.device) -> float:
    """Share of samples that are closer to a training image than 99 % of held-out images are (new ones: 0.01)."""
    net, detector = load_network(network, device=device), load_detector(scoring.detector, device=device)
    samples, held_out = Samples(net, 500, temperature=temperatures), Files(scoring.held_out, 500)
    numbers, _ = evaluate.neighbours(samples, Files(scoring.data), held_out, detector, k=1)
    return next(value for name, value in numbers.items() if 'closer than 99 %' in name)


def evaluated(row: Row, run_dir: Path, setting: Setting, scoring: Scoring, folder: Path, device: torch.device) -> dict:
    """All numbers of a row, kept in its folder."""
    network = str(snapshots.network_path(run_dir))

    def measure() -> dict[str, Any]:
        found = numbers_of(network, setting, scoring, folder, device)
        chosen = families(load_network(network))[found['chosen T']]
        found['copies'] = copies(network, chosen, scoring, device)
        if setting.detector == 'lenet':
            ways = {'uniform': {'uniform': True}, 'T 1': {'temperature': 1.0}, 'chosen T': {'temperature': chosen}}
            found |= {f'read, {name}': digits_read(network, scoring.num, device, **how) for name, how in ways.items()}
        return found

    key = {**scoring._asdict(), 'network': file_sha256(network)}
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


def sheet(path: Path, run_dir: Path, temperatures: tuple[float, ...], columns: int = 16) -> None:
    """Seeds 0 to 63 by uniform choices; with cells also at temperature 1 and at the chosen ones, block by block."""
    net = load_network(str(snapshots.network_path(run_dir)))
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
            found.append(evaluated(row, run_dir, setting, scoring, folder, device))
            chosen = families(load_network(str(snapshots.network_path(run_dir))))[found[-1]['chosen T']]
            sheet(into / f'{run_dir.name}.png', run_dir, chosen)
    if not train_only:
        title, words = f'# Cells: {name}, {minutes:g} minutes a row', ' '.join(about(scoring).split())
        text = '\n\n'.join([title, words, table(found)])
        shown = scoring._replace(data=Path(data).name, held_out=Path(held_out).name)
        write_results(into / name, text, {'scoring': shown._asdict(), 'rows': found})
        click.echo(text)


if __name__ == '__main__':
    main()
