"""Make a file of pretrained/ from a training run: the averaged weights alone, and beside it how they were made.

    python train.py --preset=mnist-tree-8x3 --data=datasets/mnist-train.zip --outdir=runs/tree-8x3 --nosubdir
    python experiments/keep_network.py --run=runs/tree-8x3 --name=tree-8x3

A run's snapshots hold the raw weights and each averaged copy, which is two networks or more. What is kept is the newest
snapshot's first averaged copy, as the network itself, in half precision: from then on the network *is* the rounded one,
and all codes and figures are made with it. The JSON holds the run's options, images, seconds, revision and the digest.
"""

import hashlib
import json
import os
import re
import sys

import click
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from cli.options import one_line_errors, script_help
from cli.presets import PRESETS
from ddn_networks import Network
from dnnlib.util import atomic_write
from torch_utils import persistence

DTYPES = {'float16': torch.float16, 'float32': torch.float32}


def newest_snapshot(run: str) -> str:
    names = sorted(n for n in os.listdir(run) if re.fullmatch(r'network-snapshot-\d+\.safetensors', n))
    if not names:
        raise ValueError(f'{run} holds no network-snapshot-*.safetensors')
    return os.path.join(run, names[-1])


def last_seconds(run: str) -> float | None:
    """Wall-clock seconds of the run as its last line of statistics says them."""
    path = os.path.join(run, 'stats.jsonl')
    if not os.path.exists(path):
        return None
    with open(path) as f:
        return json.loads(f.read().splitlines()[-1])['seconds']


def command(stored: dict, dataset: str, preset: str) -> str:
    """The line that trains it again: a preset, and what the run had otherwise."""
    others = {k: stored['options'][k] for k, v in PRESETS[preset].items() if stored['options'].get(k) != v}
    if stored['options'].get('precision', 'fp32') != 'fp32':
        others['precision'] = stored['options']['precision']
    if stored['options'].get('transfer'):
        others['transfer'] = begun_with(stored['options']['transfer'])
    options = ''.join(f' --{name.replace("_", "-")}={value}' for name, value in others.items())
    return f'python train.py --preset={preset}{options} --data=datasets/{dataset}.zip --outdir=runs'


def begun_with(transfer: str) -> str:
    """RUN/SNAPSHOT of the path of one, wherever the run was; or the name of a kept network as it is."""
    return os.path.join(*transfer.split(os.sep)[-2:])


def keep(run: str, path: str, ema: str | None, dtype: torch.dtype, preset: str | None, note: str) -> dict:
    """Write the network to ``path``; returns what its JSON says."""
    with open(os.path.join(run, 'training_options.json')) as f:
        stored = json.load(f)
    preset = preset or stored['preset']
    if preset not in PRESETS:
        raise ValueError(f'{run} was trained without a preset that is there now: name the nearest one with --preset')
    net = Network.from_pretrained(newest_snapshot(run), ema=ema)
    meta = {k: net.snapshot_meta.get(k) for k in ('dataset', 'git_revision', 'cur_nimg')} | {'preset': preset}
    kept = ema or next(iter(net.snapshot_meta['emas']), 'none')
    persistence.save_network(path, net.to(dtype), meta={**meta, 'averaged_over_mimg': kept})
    loop = {k: v for k, v in stored['loop'].items() if k not in ('dataset_kwargs', 'val_data', 'num_workers')}
    if loop.get('transfer'):
        loop['transfer'] = begun_with(loop['transfer'])
    with open(path, 'rb') as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    return {
        'file': os.path.basename(path),
        'sha256': digest,
        'bytes': os.path.getsize(path),
        'parameters': sum(p.numel() for p in net.parameters()),
        'stored_as': str(dtype).removeprefix('torch.'),
        'averaged_over_mimg': kept,
        'command': command(stored, meta['dataset'], preset),
        'images_seen': meta['cur_nimg'],
        'seconds': last_seconds(run),
        'git_revision': meta['git_revision'],
        'torch': stored['torch'],
        'note': note,
        'training': loop,
    }


@click.command(help=script_help(__file__), context_settings={'show_default': True})
@click.option('--run', required=True, metavar='DIR', help='Run folder of train.py')
@click.option('--name', required=True, help='Name in pretrained/, for --network=NAME')
@click.option('--outdir', metavar='DIR', help='Where to write NAME.safetensors and NAME.json  [default: pretrained/]')
@click.option('--ema', help="Averaged weights, or 'none'  [default: the first]")
@click.option('--dtype', type=click.Choice(list(DTYPES)), default='float16', help='Of the weights in the file')
@click.option('--preset', help="To say the run's command by  [default: the run's own]")
@click.option('--note', default='', help='Anything else to say: the machine, how the settings were found')
@one_line_errors(KeyError)
def main(run, name, outdir, ema, dtype, preset, note) -> None:
    newest_snapshot(run)
    path = os.path.join(outdir or persistence.PRETRAINED, f'{name}.safetensors')
    os.makedirs(os.path.dirname(path), exist_ok=True)
    facts = keep(run, path, ema, DTYPES[dtype], preset, note)
    with atomic_write(path.replace('.safetensors', '.json'), 'w') as f:
        json.dump(facts, f, indent=1)
        f.write('\n')
    print(f'{path}: {facts["parameters"]:,} parameters, {facts["bytes"]:,} bytes')


if __name__ == '__main__':
    main()
