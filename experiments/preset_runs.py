"""Report on training runs of the CPU presets: loss, dead nodes and PSNR per tick, and the newest pictures.

    python train.py --preset=faces64-cpu --outdir=runs/faces64-cpu --nosubdir --data=faces64-train.zip \\
        --val-data=faces64-test.zip --workers=0
    python -m experiments.preset_runs runs/faces64-cpu runs/cifar10-cpu --outdir=experiments/results/presets

Each RUN is a run folder of train.py and names its pictures, which are the upper rows of the newest sheets. Options of a
run that differ from its preset are listed. Sheets of reconstructions show the data, which may not be publishable:
--reconstructions copies them too.
"""

import glob
import os
from collections.abc import Sequence
from typing import Any

import click
import numpy as np
from PIL import Image

from cli.options import script
from cli.presets import PRESETS
from cli.tables import markdown, write_results
from dnnlib.sheets import save_png
from experiments.common import read_record
from training.report import mean_or_none, read_stats

TALL = 400  # pixels of a sheet that are copied, about 350 kB of faces


def ticks(stats: Sequence[dict[str, Any]], batch: int, most: int) -> list[dict[str, Any]]:
    """The figures of at most ``most`` ticks, evenly spread, the first and the last among them."""
    chosen = sorted({round(i) for i in np.linspace(0, len(stats) - 1, min(most, len(stats)))})
    rows = []
    for s in (stats[i] for i in chosen):
        dead = mean_or_none(s['dead'])
        rows.append({
            'images': s['nimg'], 'steps': s['nimg'] // batch, 'loss': s['loss'], 'last layer': s['loss_layers'][-1],
            'val PSNR, dB': s['val_psnr'], 'dead nodes, %': None if dead is None else 100 * dead,
            'usage entropy': float(np.mean(s['usage_entropy'])), 'images/s': s['images_per_sec'],
        })  # fmt: skip
    return rows


def read_run(run: str, most: int) -> dict[str, Any]:
    """Facts and ticks of a run folder. Raises ValueError where it is not one."""
    path, stats = os.path.join(run, 'training_options.json'), read_stats(run)
    if not os.path.exists(path) or not stats:
        raise ValueError(f'{run} is not a run folder of train.py with a finished tick')
    options = read_record(path, 'loop', 'options', 'preset')
    loop = options['loop']
    kwargs, given = loop['network_kwargs'], options['options']
    preset = PRESETS[options['preset']].options if options['preset'] in PRESETS else {}
    return {
        'name': os.path.basename(os.path.abspath(run)),
        'preset': options['preset'],
        'other than the preset': {key: given[key] for key, value in preset.items() if given.get(key) != value},
        'data': os.path.basename(loop['dataset_kwargs']['path']),
        'validation': os.path.basename(loop['val_data'] or loop['dataset_kwargs']['path']),
        'network': {key: kwargs[key] for key in ('channels', 'num_blocks', 'num_nodes') if key in kwargs},
        'seconds': stats[-1]['seconds'],
        'ticks': ticks(stats, loop['batch_size'], most),
    }


def in_words(run: dict[str, Any]) -> list[str]:
    """Describe a run in Markdown."""
    first, last = run['ticks'][0], run['ticks'][-1]
    names = ', '.join(f'{key} {value}' for key, value in run['network'].items())
    other = ''.join(f' --{key.replace("_", "-")}={value}' for key, value in run['other than the preset'].items())
    return [
        f'## {run["name"]}',
        f'Preset {run["preset"]}{other}, data {run["data"]}, validation {run["validation"]}; {names}; '
        f'{last["images"]:,} images in {run["seconds"] / 60:.1f} minutes. '
        f'Loss {first["loss"]:.4f} to {last["loss"]:.4f}.',
        markdown(run['ticks']),
        *(f'![{sheet}]({run["name"]}-{sheet}.png)' for sheet in run['sheets']),
    ]


@script(__file__)
@click.argument('runs', metavar='RUN...', nargs=-1, required=True)
@click.option('--outdir', metavar='DIR', help='Folder for presets.json, presets.md and the newest sheets')
@click.option('--reconstructions', is_flag=True, help='Copy sheets of reconstructions too')
@click.option('--ticks', 'most', metavar='INT', type=click.IntRange(min=2), default=12, help='Rows per run')
def main(runs, outdir, reconstructions, most):
    read = [read_run(run, most) for run in runs]
    for run, folder in zip(read, runs, strict=True):
        run['sheets'] = {}
        for sheet in ('samples', 'reconstructions') if reconstructions else ('samples',):
            found = sorted(glob.glob(os.path.join(glob.escape(folder), f'{sheet}-*.png')))
            if not found:  # the run has no snapshot yet
                continue
            run['sheets'][sheet] = os.path.basename(found[-1])
            if outdir:
                with Image.open(found[-1]) as picture:
                    upper = picture.crop((0, 0, picture.width, min(picture.height, TALL)))
                    save_png(upper, os.path.join(outdir, f'{run["name"]}-{sheet}.png'))
    text = '\n\n'.join(['# Presets on real data', *(part for run in read for part in in_words(run))])
    click.echo(text)
    if outdir:
        write_results(os.path.join(outdir, 'presets'), text, read)


if __name__ == '__main__':
    main()
