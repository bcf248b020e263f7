"""Train a preset in the minutes for which a GPU is lent: network, prior, finisher, FID, and what to take along.

\b
  bash benchmarks/gpu.sh train cifar10-gpu datasets/cifar10.zip
  python -m benchmarks.gpu_train --preset=mnist-cpu --data=digits.zip --seconds=20 --device=cpu --detector=lenet

Trains the network with a prior beside it, then a finisher; how many images fit into a phase's share of --seconds
follows from a trial of a few batches. A phase that is finished is not done again, and one that was stopped resumes: the
same command continues, on the same machine. It leaves in --out the averaged network in half precision, in parts of at
most 15 MiB (join them with cat), 64 samples, and the scores of that file. Where there are no weights of the detector it
says so; fid.py calc scores the joined file elsewhere.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import common
from cli.networks import load_network
from cli.options import script
from cli.presets import PRESETS
from cli.tables import markdown, write_json, write_results
from cli.training_runs import train
from ddn_networks import snapshots
from dnnlib.archives import ImageArchive
from dnnlib.readers import reason
from dnnlib.sheets import draw_sheet, in_rows, save_png
from dnnlib.util import atomic_write, file_sha256
from experiments import ablation
from experiments.common import read_record, reference
from metrics import evaluate
from metrics.detectors import Detector, load_detector
from metrics.image_sets import Samples
from training import checkpoint
from training.report import read_stats

NETWORK, FINISHER = 0.5, 0.2  # shares of the seconds; the rest is for starting, temperatures and FID
FINISHING = {'batch': 128, 'lr': 4e-4, 'ema': '0.02', 'finisher_width': 48}  # options of --fit-finisher
TRIAL = 60  # batches that tell how fast training is
PART = 15 * 2**20  # bytes
BATCH = 256  # images of the detector at a time


def length(options: dict[str, Any], seconds: float, record: Path, device: torch.device) -> dict[str, float]:
    """Options for as many images as training sees in so many seconds; measured once, without the first third."""
    batch = options['batch']

    def measure() -> dict[str, float]:
        third = TRIAL // 3 * batch
        with tempfile.TemporaryDirectory() as folder:
            short = {'duration': 3 * third / 1e6, 'tick': third / 1e3, 'outdir': folder, 'nosubdir': True}
            train({**options, **short, 'device': device.type})
            return {'images_per_second': min(tick['images_per_sec'] for tick in read_stats(folder)[1:])}

    rate = ablation.kept(record, {**options, 'seconds': seconds}, measure)['images_per_second']
    images = max(1, round(seconds * rate / batch)) * batch
    return {'duration': images / 1e6, 'tick': images / 1e4}


def trained(run_dir: Path, options: dict[str, Any], seconds: float, device: torch.device) -> str:
    """Train in a folder for so many seconds, or resume, unless it is finished; the path of the snapshot."""
    record = run_dir.with_suffix('.json')
    if not record.is_file():
        given = {'resume': str(run_dir)}
        if not checkpoint.find_states(str(run_dir)):
            fast = {name: value for name, value in options.items() if name != 'temperature_from'}
            more = length(fast, seconds, run_dir.with_name(f'{run_dir.name}-speed.json'), device)
            given = {**options, **more, 'outdir': str(run_dir), 'nosubdir': True}
        train({**given, 'device': device.type})
        write_json(record, {'network': str(snapshots.network_path(run_dir))})
    return read_record(record, 'network')['network']


def require_same(path: Path, settings: dict[str, Any]) -> None:
    """Keep the settings of the runs of a folder. ValueError where they had others: what is finished is not trained
    again, so it would pass for the result of these."""
    if not path.is_file():
        write_json(path, settings)
    before = read_record(path, *settings)
    changed = {name: before[name] for name in settings if before[name] != settings[name]}
    if changed:
        raise ValueError(f'{path.parent} was trained with {changed}: give another --run')


def stored(network: str, seen: int, path: Path, preset: str) -> Path:
    """Write the averaged weights of a snapshot in half precision: from then on the network is the rounded one."""
    if not path.is_file():
        net = load_network(network)
        facts = {key: net.snapshot_meta.get(key) for key in ('dataset', 'git_revision', 'finisher')}
        snapshots.save_network(path, net.half(), meta={**facts, 'preset': preset, 'cur_nimg': seen})
    return path


def scored(path: Path, data: str, folder: Path, detector: Detector, num: int, device: torch.device) -> dict[str, float]:
    """FID, KID, precision and recall of samples of a network against its training images."""
    real = reference(data, detector, folder)

    def measure() -> dict[str, float]:
        made = evaluate.statistics(Samples(load_network(path, device=device), num), detector, BATCH, title='samples')
        return evaluate.compare(real, made)[0]

    key = {'network': file_sha256(path), 'detector': detector.digest, 'precision': detector.precision, 'num': num}
    key['data'] = ImageArchive(data).digest()
    return ablation.kept(folder / f'score-{detector.name}.json', key, measure)


def parts(path: Path, out: Path) -> list[Path]:
    """Copy a file in parts, path.part-00 and so on."""
    for old in out.glob(f'{path.name}.part-*'):
        old.unlink()
    data, made = path.read_bytes(), []
    for i in range(0, len(data), PART):
        made.append(out / f'{path.name}.part-{i // PART:02d}')
        with atomic_write(made[-1]) as file:
            file.write(data[i : i + PART])
    return made


@script(__file__)
@click.option('--preset', required=True, type=click.Choice(list(PRESETS)), metavar='NAME', help='Preset of train.py')
@click.option('--data', required=True, metavar='ZIP|DIR', help='Training images')
@click.option('--seconds', type=click.FloatRange(min=0, min_open=True), default=540, help='Time for everything')
@click.option('--run', metavar='DIR', default='runs/gpu', help='Folder of the runs')
@click.option('--out', metavar='DIR', default='out/gpu', help='Folder of what to take along')
@click.option('--precision', metavar='NAME', default='bf16', help='Precision of training, as train.py --precision')
@click.option('--workers', type=click.IntRange(min=0), default=8, help='Threads that load images')
@click.option('--detector', metavar='NAME|FILE', default='inception', help='Detector, as fid.py --detector')
@click.option('--num', type=click.IntRange(min=2), default=10_000, help='Samples of the FID')
@click.option('--device', metavar='NAME', default='cuda', help='cuda, or cpu to try the script')
def main(preset, data, seconds, run, out, precision, workers, detector, num, device):
    folder, out, device = Path(run).resolve() / preset, Path(out).resolve(), torch.device(device)
    for place in (folder, out):
        place.mkdir(parents=True, exist_ok=True)
    same = {'data': str(Path(data).resolve()), 'seconds': seconds, 'precision': precision}
    require_same(folder / 'settings.json', same)
    shared = {'data': data, 'seed': 0}
    own = {'prior': 'head', **PRESETS[preset].options, **shared, 'workers': workers, 'precision': precision}
    network = trained(folder / 'network', own, NETWORK * seconds, device)
    seen = load_network(network).snapshot_meta['cur_nimg']
    finishing = {**FINISHING, **shared, 'fit_finisher': network, 'xflip': own.get('xflip')}
    finished = trained(folder / 'finisher', finishing, FINISHER * seconds, device)
    path = stored(finished, seen, folder / f'{preset}.safetensors', preset)
    made = parts(path, out)
    net = load_network(path, device=device)
    save_png(draw_sheet(in_rows(net.sample(64)[0], 16), 16), str(out / 'samples.png'))
    half = 'float16' if detector == 'inception' and device.type == 'cuda' else 'float32'
    numbers: dict[str, float] = {}
    try:
        chosen = load_detector(detector, device=device, precision=half, folder=folder / 'features')
        numbers, judged = scored(path, data, folder, chosen, num, device), f'{chosen.name} in {half}'
    except OSError as error:  # no weights here: score the file elsewhere
        judged = f'not scored: {reason(error)}'
    facts = common.machine(device.type)
    words = f'{preset}: {seen:,} images, {ablation.shape(net)["parameters"]:,} parameters, {net.num_bits:,.0f} bits; '
    words += f'{judged}. {common.in_words(facts)}'
    about = {'preset': preset, 'images': seen, 'sha256': file_sha256(path), 'parts': [part.name for part in made]}
    rows = [{'number': name, 'value': value} for name, value in numbers.items()]
    parts_of_text = [f'# {preset}, trained in {seconds:g} seconds', words, markdown(rows, '.5g') if rows else '']
    text = '\n\n'.join(filter(None, parts_of_text))
    write_results(out / preset, text, {**about, 'machine': facts, 'numbers': numbers})
    click.echo(f'{text}\n\nTo take along: {out}')


if __name__ == '__main__':
    main()
