"""Keep a network of a training run in ddn_networks/pretrained/: averaged weights, and a JSON of how they were made.

    python train.py --preset=mnist-tree-8x3 --data=datasets/mnist-train.zip --outdir=runs/tree-8x3 --nosubdir
    python -m experiments.keep_network --run=runs/tree-8x3 --name=tree-8x3

A snapshot of a run holds the raw weights and each averaged copy, so two networks or more. Keeps the first averaged copy
of the newest snapshot, in half precision: from then on the network *is* the rounded one, and all codes and figures are
made with it. The JSON holds the run's options, images, seconds, revision and the digest of the file.
"""

import os

import click
import torch

from cli.networks import load_network
from cli.options import script
from cli.presets import PRESETS
from cli.tables import write_json
from ddn_networks import snapshots
from dnnlib.util import file_sha256
from experiments.common import read_record
from training.report import read_stats

DTYPES = {'float16': torch.float16, 'float32': torch.float32}


def command(stored: dict, dataset: str, preset: str) -> str:
    """The command that trains it again: a preset, and the options in which the run differs."""
    others = {k: stored['options'][k] for k, v in PRESETS[preset].options.items() if stored['options'].get(k) != v}
    if stored['options'].get('precision', 'fp32') != 'fp32':
        others['precision'] = stored['options']['precision']
    if stored['options'].get('transfer'):
        others['transfer'] = begun_with(stored['options']['transfer'])
    options = ''.join(f' --{name.replace("_", "-")}={value}' for name, value in others.items())
    return f'python train.py --preset={preset}{options} --data=datasets/{dataset}.zip --outdir=runs'


def begun_with(transfer: str) -> str:
    """RUN/SNAPSHOT of the path of a snapshot; the name of a kept network unchanged."""
    return os.path.join(*transfer.split(os.sep)[-2:])


def keep(run: str, path: str, ema: str | None, dtype: torch.dtype, preset: str | None, note: str) -> dict:
    """Write the network to ``path``. Returns the facts for its JSON."""
    newest = snapshots.network_path(run)
    stored = read_record(os.path.join(run, 'training_options.json'), 'options', 'loop', 'preset', 'torch')
    stats = read_stats(run)
    preset = preset or stored['preset']
    if preset not in PRESETS:
        raise ValueError(f'{run} has no preset that exists now: name the nearest one with --preset')
    net = load_network(newest, ema=ema)
    meta = {k: net.snapshot_meta.get(k) for k in ('dataset', 'git_revision', 'cur_nimg')} | {'preset': preset}
    meta |= {'finisher': net.snapshot_meta['finisher']} if 'finisher' in net.snapshot_meta else {}
    kept = ema or next(iter(net.snapshot_meta['emas']), 'none')
    snapshots.save_network(path, net.to(dtype), meta={**meta, 'averaged_over_mimg': kept})
    loop = {k: v for k, v in stored['loop'].items() if k not in ('dataset_kwargs', 'val_data', 'num_workers')}
    if loop.get('transfer'):
        loop['transfer'] = begun_with(loop['transfer'])
    return {
        'file': os.path.basename(path),
        'sha256': file_sha256(path),
        'bytes': os.path.getsize(path),
        'parameters': sum(p.numel() for p in net.parameters()),
        'stored_as': str(dtype).removeprefix('torch.'),
        'averaged_over_mimg': kept,
        'command': command(stored, meta['dataset'], preset),
        'images_seen': meta['cur_nimg'],
        'seconds': stats[-1]['seconds'] if stats else None,
        'git_revision': meta['git_revision'],
        'torch': stored['torch'],
        'note': note,
        'training': loop,
    }


@script(__file__)
@click.option('--run', required=True, metavar='DIR', help='Run folder of train.py')
@click.option('--name', required=True, help='Name of the network, for --network=NAME')
@click.option('--outdir', metavar='DIR', help='Folder of NAME.safetensors and NAME.json  [default: the package]')
@click.option('--ema', metavar='LABEL', help="Averaged weights by half-life, or 'none'  [default: the first]")
@click.option('--dtype', type=click.Choice(list(DTYPES)), default='float16', help='Precision of the file')
@click.option('--preset', help="Preset in terms of which to write the command  [default: the run's own]")
@click.option('--note', default='', help='Remark for the JSON: the machine, how the settings were found')
def main(run, name, outdir, ema, dtype, preset, note) -> None:
    path = os.path.join(outdir or snapshots.PRETRAINED, f'{name}.safetensors')
    facts = keep(run, path, ema, DTYPES[dtype], preset, note)
    write_json(path.replace('.safetensors', '.json'), facts)
    click.echo(f'{path}: {facts["parameters"]:,} parameters, {facts["bytes"]:,} bytes')


if __name__ == '__main__':
    main()
