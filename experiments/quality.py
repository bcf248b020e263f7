"""How good are the pictures? One table for networks, with and without prior and finisher, and for other models.

    python -m experiments.quality digits --network=whole=mnist --network=cells=out/cells/digits-cells-fast
    python -m experiments.quality faces64 --data=faces64-train.zip --held-out=faces64-test.zip --num=2000 \\
        --network=new=new.safetensors --pictures=flow-1=out/flow/flow-1.zip --inception=10000 --fid-of=new=uniform

Each --network is sampled by uniform choices and, with a prior, at temperature 1 and at its default temperatures; with a
finisher before and after it. --pictures are samples of other models, with their facts in a JSON file of the same name
(experiments.flow_matching, benchmarks.peer_ddn). Distances are Frechet distances of features to the training images.
The detector is a fast proxy of Inception: for digits the LeNet, for Fashion-MNIST a LeNet that this script trains, else
pooled AlexNet features. All rows are of --num samples, since distances fall with their number. --inception adds FIDs of
so many: half an hour of a core for 10,000, so name the rows (--fid-of='new=prior, T 1'). Features, samples and numbers
are kept in --outdir, so the same command resumes; the table is written again after each row.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from cli.networks import load_network
from cli.options import script
from cli.tables import markdown, write_results
from ddn_networks import Network
from dnnlib.archives import ImageArchive
from dnnlib.images import to_float
from dnnlib.sheets import Tile, draw_sheet, in_rows, save_png
from dnnlib.util import file_sha256
from experiments import ablation, classifier, comparison, digits, timed
from experiments.common import pictures, read_record, reference, trained_on
from metrics import evaluate
from metrics.detectors import Detector, load_detector
from metrics.image_sets import Files, Samples, read
from metrics.reference import Statistics
from torch_utils import persistence

DETECTORS = {'digits': 'lenet', 'fashion': None, 'cifar10': 'alex', 'faces64': 'alex'}  # None: trained here
BATCH = 64  # images at a time
SHEET = 64  # samples, of seeds 0 to 63
NUM_NEAR = 500  # samples whose nearest training images are searched for
NUM_BITS = 500  # held-out images whose codes the prior is asked about
ROWS, NEAREST = 8, 6  # of the sheet of nearest training images


class Case(NamedTuple):
    """Samples of a model. facts: columns of the table; trained_on: metrics that it was trained on, which are no
    evidence."""

    model: str
    way: str
    path: Path
    facts: dict[str, Any]
    trained_on: str


class Study(NamedTuple):
    """What all rows share: images, where to keep things, and how many."""

    data: str
    held_out: str
    folder: Path
    num: int
    num_reconstructed: int
    device: torch.device

    @property
    def num_held_out(self) -> int:
        """Held-out images that are compared with training images as samples are."""
        return min(self.num, len(ImageArchive(self.held_out)))

    def digests(self) -> dict[str, str]:
        """Digests of the images, for the keys of numbers that are kept."""
        return {'data': ImageArchive(self.data).digest(), 'held_out': ImageArchive(self.held_out).digest()}


# ------------------------------------------------------------------------------------------------------------- samples


def ways(net: Network) -> dict[str, tuple[bool, dict[str, Any]]]:
    """The ways to sample a network, by name: whether with the finisher, and arguments of ``Samples``."""
    found = {'uniform': {'uniform': True}}
    if len(net.prior):
        found['prior, T 1'] = {'temperature': 1.0}
        if any(t != 1 for t in net.sampling.temperatures):
            found['prior, default T'] = {}
    both = {name: (False, how) for name, how in found.items()}
    return both | ({f'{n}, finisher': (True, how) for n, how in found.items()} if net.finisher is not None else {})


def sampled(model: str, path: str, study: Study, only: str | None = None) -> Iterator[Case]:
    """Samples of a network in all ways or ``only`` one, each kept as a zip with its CPU seconds."""
    nets = {finish: load_network(path, device=study.device, finish=finish) for finish in (False, True)}
    digest = file_sha256(persistence.network_path(path))
    for way, (finish, how) in ways(nets[True]).items():
        if only not in (None, way):
            continue
        name = f'{ablation.slug(f"{model} {way}")}-{study.num}'
        place = study.folder / f'{name}.zip'

        def make(place: Path = place, finish: bool = finish, how: dict[str, Any] = how) -> dict[str, float]:
            source = Samples(nets[finish], study.num, **how)
            started = time.process_time()
            parts = [images for _, images in source.batches(range(study.num), BATCH)]
            seconds = (time.process_time() - started) / study.num
            timed.write_zip(place, torch.cat(parts))
            return {'seconds': seconds}

        key = {'network': digest, 'num': study.num, 'way': way}
        facts = {'s / image': ablation.kept(place.with_suffix('.json'), key, make)['seconds']}
        used = nets[finish]
        facts |= {'parameters': ablation.shape(used)['parameters'], 'training s': training_seconds(path)}
        yield Case(model, way, place, facts, trained_on(used))


def training_seconds(path: str) -> float | None:
    """CPU seconds of training that the folder of a run knows of."""
    record = Path(path) / 'row.json'
    return read_record(record, 'cpu_seconds')['cpu_seconds'] if record.is_file() else None


def others(model: str, path: str) -> Case:
    """Samples of another model, and what the JSON file beside them says. Raises OSError, ValueError."""
    keys = {'s / image': 'seconds per image', 'parameters': 'parameters', 'training s': 'training CPU seconds'}
    facts = read_record(Path(path).with_suffix('.json'), 'model', *keys.values())
    return Case(model, facts['model'], Path(path), {column: facts[key] for column, key in keys.items()}, '')


# ------------------------------------------------------------------------------------------------------------- numbers


def of_samples(path: Path, num: int, real: Statistics, detector: Detector) -> dict[str, float]:
    """Distance to the training images, KID, precision and recall of so many samples."""
    made = evaluate.statistics(Files(path, num), detector, BATCH, title=path.stem)
    numbers, _ = evaluate.compare(real, made)
    return {name: ablation.starting(numbers, name) for name in ('FID', 'KID', 'precision', 'recall')}


def by_proxy(path: Path, num: int, real: Statistics, detector: Detector) -> dict[str, float]:
    """The columns of ``of_samples`` by the fast detector, and, if that is a LeNet, how many samples it classifies."""
    found = of_samples(path, num, real, detector)
    columns = {'FD': found['FID'], 'precision': found['precision'], 'recall': found['recall']}
    return columns | (classified(path, num, detector) if detector.name == 'lenet' else {})


def nearest(case: Case, study: Study, detector: Detector) -> dict[str, float]:
    """How near samples come to training images, against held-out images; draws the sheet, which shows both."""
    samples, gallery = Files(case.path, most=NUM_NEAR), Files(study.data)
    numbers, found = evaluate.neighbours(
        samples, gallery, Files(study.held_out, most=NUM_NEAR), detector, k=NEAREST, batch=BATCH
    )
    rows = []
    for i, near in enumerate(found[detector.name][:ROWS]):
        rows.append([Tile(read(samples, [i])[0], 'sample'), *map(Tile, read(gallery, near.tolist()))])
    save_png(draw_sheet(rows), str(case.path.with_name(f'{case.path.stem}-nearest.png')))
    medians = [value for name, value in numbers.items() if 'median' in name or 'the same' in name]
    copies = next(value for name, value in numbers.items() if 'closer than 99 %' in name)
    ratio = medians[0] / medians[1] if medians[1] else None  # held-out images that are training images
    return {'nearest / held-out': ratio, 'copies': copies}


def classified(path: Path, num: int, detector: Detector) -> dict[str, float]:
    """Share of samples that a LeNet classifies with p >= 0.9."""
    source, found = Files(path, num), []
    for _, images in source.batches(range(num), BATCH):
        found.append(digits.probabilities(detector.net, to_float(images)))
    return {'p >= 0.9': digits.legible(torch.cat(found))}


def of_case(case: Case, study: Study, detector: Detector, real: Statistics) -> dict[str, Any]:
    """A row of the table, without FID."""

    def measure() -> dict[str, float]:
        return by_proxy(case.path, study.num, real, detector) | nearest(case, study, detector)

    key = {'samples': file_sha256(case.path), 'detector': detector.digest, 'num': study.num, **study.digests()}
    numbers = ablation.kept(study.folder / f'{case.path.stem}-numbers.json', key, measure)
    row = {'model': case.model, 'sampled': case.way, 'samples': study.num, **numbers}
    return row | case.facts | {'trained on': case.trained_on or '-'}


def of_real(study: Study, detector: Detector, real: Statistics) -> dict[str, float]:
    """Numbers of the held-out images themselves, as many as samples or all that there are."""

    def measure() -> dict[str, float]:
        return by_proxy(Path(study.held_out), study.num_held_out, real, detector)

    key = {'detector': detector.digest, 'num': study.num_held_out, **study.digests()}
    return ablation.kept(study.folder / f'held-out-{detector.name}.json', key, measure)


def bits(net: Network, held_out: str) -> float | None:
    """Of held-out images' codes by the prior; None without one."""
    if not len(net.prior):
        return None
    some = pictures(held_out, net, range(min(NUM_BITS, len(ImageArchive(held_out)))))
    nats = torch.cat([net.log_prob(net.encode(part)) for part in some.split(BATCH)])
    return -nats.mean().item() / math.log(2)


def of_network(model: str, path: str, study: Study, detector: Detector) -> Iterator[dict[str, Any]]:
    """Rows of the table of reconstructions: without the finisher and, where there is one, with it."""
    source = Files(study.held_out, study.num_reconstructed)
    lpips, _ = evaluate.find_lpips([source], study.device)
    key = {'network': file_sha256(persistence.network_path(path)), 'detector': detector.digest, 'num': source.num}
    key |= study.digests()
    for finish in (False, True):
        net = load_network(path, device=study.device, finish=finish)
        if finish and net.finisher is None:
            return
        row = {'model': model, 'finisher': 'with' if finish else 'without'}

        def measure(net: Network = net) -> dict[str, float]:
            numbers, _ = evaluate.reconstruction(net, source, detector, lpips, BATCH, model)
            found = {what: ablation.starting(numbers, what) for what in ('rFID', 'PSNR', 'LPIPS')}
            return found | {'bits by prior': bits(net, study.held_out)}

        place = study.folder / f'{ablation.slug(f"{model} {finish} {detector.name}")}.json'
        found = ablation.kept(place, {**key, 'finish': finish}, measure)
        row |= {'parameters': ablation.shape(net)['parameters'], 'bits': net.num_bits}
        row |= {'bits by prior': found['bits by prior'], 'PSNR dB': found['PSNR'], 'LPIPS': found['LPIPS']}
        yield row | {f'r{title(detector)}': found['rFID'], 'trained on': trained_on(net) or '-'}


def title(detector: Detector) -> str:
    """What a Frechet distance by a detector is called."""
    return 'FID' if detector.name == 'inception' else 'FD'


def rows_with_fid(
    networks: dict[str, str], zips: dict[str, str], chosen: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """(model, way) of the rows that get an FID: the chosen ones, or all. Raises ValueError for others."""
    rows = [(model, way) for model, path in networks.items() for way in ways(load_network(path))]
    rows += [(model, others(model, path).way) for model, path in zips.items()]
    for row in chosen:
        if row not in rows:
            known = ', '.join(f'"{model}={way}"' for model, way in rows)
            raise ValueError(f'--fid-of={"=".join(row)}: no such row; choose from {known}')
    return chosen or rows


def add_fids(
    study: Study, cases: list[Case], rows: list[dict], networks: dict[str, str], again: list[dict], wide: Detector,
    num: int, num_real: int | None, chosen: list[tuple[str, str]],
) -> Iterator[None]:  # fmt: skip
    """Add FID and KID to the ``chosen`` rows of samples and rFID to the reconstructions of their networks, row by row.
    A network draws more samples where ``num`` are more than those of its row."""
    real = reference(study.data, wide, study.folder, num_real)
    for case, row in zip(cases, rows, strict=True):
        if (case.model, case.way) not in chosen:
            continue
        if num > study.num and case.model in networks:
            (case,) = sampled(case.model, networks[case.model], study._replace(num=num), case.way)
        key = {'samples': file_sha256(case.path), 'detector': wide.digest, 'num': num, 'real': real.num}
        place = study.folder / f'{case.path.stem}-fid.json'
        found = ablation.kept(place, key | study.digests(), lambda: of_samples(case.path, num, real, wide))  # noqa: B023
        row |= {'FID': found['FID'], 'KID': found['KID']}
        yield
    for model in dict.fromkeys(model for model, _ in chosen if model in networks):
        for row in of_network(model, networks[model], study, wide):
            next(x for x in again if (x['model'], x['finisher']) == (model, row['finisher']))['rFID'] = row['rFID']
            yield


# --------------------------------------------------------------------------------------------------------------- table


def calibration(rows: list[dict[str, Any]]) -> str:
    """How the proxy orders the rows that have an FID."""
    both = [(row['FD'], row['FID']) for row in rows if row.get('FID') is not None]
    order = comparison.order(*zip(*both, strict=True)) if len(both) > 2 else None
    if order is None:
        return ''
    return (
        f'The proxy against FID over {len(both)} rows: Spearman correlation {order.rho:.2f}, the same order in '
        f'{order.agreeing} of {order.pairs} pairs.'
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Rows, which may have different columns; 'trained on' comes last."""
    columns = dict.fromkeys(column for row in rows for column in row if column != 'trained on')
    return markdown([{column: row.get(column) for column in [*columns, 'trained on']} for row in rows])


def written(name: str, about: str, rows: list[dict[str, Any]], again: list[dict[str, Any]], into: Path) -> str:
    """Write the tables; returns the text."""
    parts = [f'# Quality: {name}', about, table(rows), calibration(rows)]
    parts += ['Reconstructions of held-out images:', table(again)] if again else []
    text = '\n\n'.join(filter(None, parts))
    write_results(into / name, text, {'samples': rows, 'reconstructions': again})
    return text


def words(study: Study, detector: Detector, real: dict[str, float], trained: bool) -> str:
    """What the columns are, and the numbers of held-out images. ``trained``: the detector was trained here."""
    proxy = {'lenet': 'the features of a LeNet', 'alex': 'pooled AlexNet features'}[detector.name]
    if trained:
        right = classifier.accuracy(detector.net, study.held_out)
        proxy += f', trained on the training images, that classifies {right:.1%} of the held-out images right,'
    held = ', '.join(f'{name} {value:.4g}' for name, value in real.items())
    return ' '.join(
        f"""FD: Frechet distance of {proxy} to the training images; precision and recall by the same features. p >= 0.9:
        share of samples that the LeNet classifies with so much confidence. nearest / held-out: median distance of
        samples to the nearest training image over that of held-out images; copies: share of samples that are closer
        than 99 % of held-out images. s / image: CPU seconds of sampling; training s: of training. trained on: a metric
        that the model was trained on, so that it and distances of its features say nothing. Default temperatures
        (default T) may have been chosen by distances of a detector's features (train.py --temperature-from), on other
        seeds and held-out images. The same numbers of {study.num_held_out:,} held-out images: {held}.""".split()
    )


def pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    """NAME=PATH, several times, as pairs."""
    if any('=' not in value for value in values):
        raise click.BadParameter(f'give each as {param.metavar}')
    return [tuple(value.split('=', 1)) for value in values]


def by_name(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """NAME=PATH, several times, as a dict."""
    found = dict(pairs(ctx, param, values))
    if len(found) < len(values):
        raise click.BadParameter(f'give each as {param.metavar}, every name once')
    return found


@script(__file__)
@click.argument('name', metavar='SETTING', type=click.Choice(list(DETECTORS)))
@click.option('--network', 'networks', multiple=True, callback=by_name, metavar='NAME=FILE', help='Network to measure')
@click.option('--pictures', 'zips', multiple=True, callback=by_name, metavar='NAME=ZIP', help="Another model's samples")
@ablation.DATA
@ablation.HELD_OUT
@ablation.NUM
@click.option('--num-reconstructed', type=click.IntRange(min=2), default=2000, help='Held-out images to reconstruct')
@click.option('--inception', type=click.IntRange(min=2), metavar='INT', help='Images of an FID  [default: no FID]')
@click.option('--fid-of', 'chosen', multiple=True, callback=pairs, metavar='NAME=WAY',
              help='Row that gets an FID, such as "new=prior, T 1"  [default: all]')
@click.option('--reference', 'num_real', type=click.IntRange(min=2), metavar='INT',
              help='Training images of the reference of FID  [default: all]')
@click.option('--outdir', metavar='DIR', default='out/quality', help='Folder for samples, features and numbers')
@click.option('--results', metavar='DIR', help='Folder for table and sheets  [default: --outdir]')
@click.option('--device', metavar='NAME', default='cpu', help='Where to sample and evaluate')
def main(
    name, networks, zips, data, held_out, num, num_reconstructed, inception, chosen, num_real, outdir, results, device
):  # fmt: skip
    folder, device = Path(outdir).resolve() / name, torch.device(device)
    into = Path(results).resolve() if results else folder
    for place in (folder, into):
        place.mkdir(parents=True, exist_ok=True)
    data, held_out = ablation.images_or_digits(data, held_out, ablation.Study(folder, into, device, {}))
    # What would end hours of work is an error now.
    if num_real and num_real > (held := len(ImageArchive(data))):
        raise click.UsageError(f'--reference={num_real}: {data} holds {held} images')
    chosen = rows_with_fid(networks, zips, chosen) if inception else []
    for model, path in zips.items():
        Files(path, max(num, inception) if any(model == of for of, _ in chosen) else num)
    wide = load_detector('inception', device=device, folder=folder / 'features') if inception else None
    study = Study(data, held_out, folder, num, min(num_reconstructed, len(ImageArchive(held_out))), device)
    weights = DETECTORS[name] or classifier.detector_file(data, folder / f'lenet-{study.digests()["data"][:12]}.pth')
    detector = load_detector(weights, device=device, folder=folder / 'features')
    real = reference(data, detector, folder)
    about = words(study, detector, of_real(study, detector, real), trained=DETECTORS[name] is None)
    cases, rows, again = [], [], []
    for model, path in networks.items():
        for row in of_network(model, path, study, detector):
            again.append(row)
        cases += sampled(model, path, study)
        rows += [of_case(case, study, detector, real) for case in cases[len(rows) :]]
        click.echo(written(name, about, rows, again, into))
    for model, path in zips.items():
        cases.append(others(model, path))
        rows.append(of_case(cases[-1], study, detector, real))
        click.echo(written(name, about, rows, again, into))
    for case in cases:
        source = Files(case.path)
        shown = in_rows(to_float(read(source, range(min(SHEET, source.num)))), 16)
        save_png(draw_sheet(shown, 16), str(into / f'{name}-{ablation.slug(f"{case.model} {case.way}")}.png'))
    if wide is not None:
        real_size = num_real or len(ImageArchive(data))
        about += f' FID, KID: by Inception, of {inception:,} samples against {real_size:,} training images.'
        for _ in add_fids(study, cases, rows, networks, again, wide, inception, num_real, chosen):
            written(name, about, rows, again, into)
        click.echo(written(name, about, rows, again, into))


if __name__ == '__main__':
    main()
