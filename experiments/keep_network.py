"""Keep a network of a training run in ddn_networks/pretrained/: averaged weights, and a JSON of how they were made.

    python train.py --preset=mnist-tree-8x3 --data=datasets/mnist-train.zip --outdir=runs/tree-8x3 --nosubdir
    python -m experiments.keep_network --run=runs/tree-8x3 --name=tree-8x3
    python -m experiments.keep_network --run=runs/cifar10 --fitted=runs/cifar10-finisher --name=cifar10 \\
        --then='python train.py --fit-finisher=runs/cifar10 --data=datasets/cifar10.zip --outdir=runs'

A snapshot of a run holds the raw weights and each averaged copy, so two networks or more. Keeps the first averaged copy
of the newest snapshot, in half precision: from then on the network *is* the rounded one, and all codes and figures are
made with it. The JSON holds the run's options, images, seconds, revision and the digest of the file. --fitted is a
network whose prior or finisher was fitted later, and --then the commands; then --run may be a network that is kept.
"""

import json
import os
from collections.abc import Sequence

import click
import torch

from cli.networks import load_network
from cli.options import script
from cli.presets import PRESETS
from cli.tables import write_json
from ddn_networks import Network, snapshots
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


def write(net: Network, path: str, dtype: torch.dtype, facts: dict) -> dict:
    """Write a network with ``facts`` of it. Returns what its JSON says of the file."""
    meta = {'git_revision': net.snapshot_meta.get('git_revision')} | facts
    if 'finisher' in net.snapshot_meta:
        made = net.snapshot_meta['finisher']
        meta['finisher'] = {**made, 'network': os.path.basename(made['network'])}
    snapshots.save_network(path, net.to(dtype), meta=meta)
    return {
        'file': os.path.basename(path),
        'sha256': file_sha256(path),
        'bytes': os.path.getsize(path),
        'parameters': sum(p.numel() for p in net.parameters()),
        'stored_as': str(dtype).removeprefix('torch.'),
    }


def training_facts(run: str, meta: dict, ema: str | None, preset: str | None) -> dict:
    """How the network of a run was trained, whose snapshot has ``meta``."""
    stored = read_record(os.path.join(run, 'training_options.json'), 'options', 'loop', 'preset', 'torch')
    stats = read_stats(run)
    preset = preset or stored['preset']
    if preset not in PRESETS:
        raise ValueError(f'{run} has no preset that exists now: name the nearest one with --preset')
    loop = {k: v for k, v in stored['loop'].items() if k not in ('dataset_kwargs', 'val_data', 'num_workers')}
    if loop.get('transfer'):
        loop['transfer'] = begun_with(loop['transfer'])
    return {
        'averaged_over_mimg': ema or next(iter(meta['emas']), 'none'),
        'dataset': meta.get('dataset'),
        'preset': preset,
        'command': command(stored, meta.get('dataset'), preset),
        'images_seen': meta.get('cur_nimg'),
        'seconds': stats[-1]['seconds'] if stats else None,
        'git_revision': meta.get('git_revision'),
        'torch': stored['torch'],
        'training': loop,
    }


def kept_facts(name: str, meta: dict) -> dict:
    """The same of a network that is kept already."""
    with open(snapshots.PRETRAINED / f'{name}.json', encoding='utf-8') as file:
        facts = json.load(file)
    of_file = ('file', 'sha256', 'bytes', 'parameters', 'stored_as', 'note')
    return {k: v for k, v in facts.items() if k not in of_file} | {k: meta.get(k) for k in ('dataset', 'preset')}


def keep(
    run: str, path: str, ema: str | None, dtype: torch.dtype, preset: str | None, fitted: str | None = None,
    then: Sequence[str] = (),
) -> dict:  # fmt: skip
    """Write the network of ``run``, or ``fitted`` to it, to ``path``. Returns the facts for its JSON."""
    net = load_network(run, ema=ema)
    meta = net.snapshot_meta
    facts = training_facts(run, meta, ema, preset) if os.path.isdir(run) else kept_facts(run, meta)
    net = load_network(fitted) if fitted else net
    named = {key: facts.pop(key) for key in ('dataset', 'preset')}
    training = facts.pop('training')
    named |= {'cur_nimg': facts['images_seen'], 'averaged_over_mimg': facts['averaged_over_mimg']}
    of_file = write(net, path, dtype, named)
    return {**of_file, **facts, **({'then': list(then)} if then else {}), 'training': training}


@script(__file__)
@click.option('--run', required=True, metavar='DIR|NAME', help='Run folder; with --fitted also a kept network')
@click.option('--name', required=True, help='Name of the network, for --network=NAME')
@click.option('--outdir', metavar='DIR', help='Folder of NAME.safetensors and NAME.json  [default: the package]')
@click.option('--ema', metavar='LABEL', help="Averaged weights by half-life, or 'none'  [default: the first]")
@click.option('--dtype', type=click.Choice(list(DTYPES)), default='float16', help='Precision of the file')
@click.option('--fitted', metavar='NET', help='Network whose prior or finisher was fitted to that of --run')
@click.option('--then', multiple=True, metavar='COMMAND', help='Command that fitted it, for the JSON; several in order')
@click.option('--preset', help="Preset in terms of which to write the command  [default: the run's own]")
@click.option('--note', default='', help='Remark for the JSON: the machine, how the settings were found')
def main(run, name, outdir, ema, dtype, fitted, then, preset, note) -> None:
    path = os.path.join(outdir or snapshots.PRETRAINED, f'{name}.safetensors')
    facts = keep(run, path, ema, DTYPES[dtype], preset, fitted, then) | {'note': note}
    write_json(path.replace('.safetensors', '.json'), facts)
    click.echo(f'{path}: {facts["parameters"]:,} parameters, {facts["bytes"]:,} bytes')


if __name__ == '__main__':
    main()
