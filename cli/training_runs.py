"""Train from options, as ``train.py`` does: new runs, and runs that continue."""

import contextlib
import inspect
import json
import os
import secrets
from collections.abc import Mapping
from typing import Any

import click
import torch
from click.core import ParameterSource

from cli import finisher_fits, prior_fits, sampling_defaults
from cli.options import one_line_errors
from cli.presets import PRESETS
from cli.training_arguments import loop_kwargs
from cli.training_options import NOT_STORED, Stored, as_command, changed, lasting, parsed, read_stored
from ddn_networks import snapshots
from dnnlib.util import redacted
from torch_utils import distributed as dist
from torch_utils import misc
from training import run_folder
from training.dataset import ImageFolderDataset
from training.memory import auto_batch_gpu
from training.training_loop import training_loop


def train(options: Mapping[str, Any]) -> str:
    """Train with these options of ``train.py``, by name: {'preset': 'mnist-cpu', 'chain-dropout': 0, 'outdir': 'runs',
    'data': 'mnist.zip'}, or {'resume': 'runs/00000-mnist'}.

    Returns:
        The run folder.

    Raises:
        click.ClickException: wrong options or data, in one line.
        SystemExit: after a signal; the state is saved.

    PyTorch's random state and cuDNN's settings are as before afterwards, so that one process may train several times.
    """
    with misc.global_state_kept():
        return run(parsed(options))


def run(ctx: click.Context) -> str | None:
    """``train`` for a command line that click has parsed; None after --dry-run."""
    given = {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    try:
        with one_line_errors(FloatingPointError):
            return _run(dict(ctx.params), given)
    except KeyboardInterrupt:  # before the first step, or for the second time
        click.echo('Aborted!', err=True)
        raise SystemExit(130) from None


def _run(o: dict[str, Any], given: set[str]) -> str | None:
    run_dir = state = old = None
    if o['resume'] is not None:  # --resume= is an error, not a new run
        run_dir, state = run_folder.find(o['resume'], o['outdir'])
        old = read_stored(run_dir, given)
        if o['preset'] not in (None, old.preset):
            before = old.preset or 'no preset'
            raise ValueError(f'--preset={o["preset"]}: {run_dir} was started with {before}; leave it out')
        o |= {k: v for k, v in old.options.items() if k not in given} | {'preset': old.preset}
    elif o['preset']:
        o |= {k: v for k, v in PRESETS[o['preset']].options.items() if k not in given}
    if not o['data']:
        raise ValueError('--data is missing: give a zip or folder of images, see dataset_tool.py')
    if not (o['outdir'] or run_dir or o['dry_run']):
        raise ValueError('--outdir is missing: give a folder for the run folder')

    if 'temperature_from' in given:
        sampling_defaults.check_detector(o['temperature_from'])

    with dist.session(o['device']) as device:
        o = lasting(o)
        if o['fit_prior'] is not None:
            return _fit_prior(o, given, device)
        if o['fit_finisher'] is not None:
            return _fit_finisher(o, given, device, run_dir, state)
        dataset = ImageFolderDataset(o['data'])
        data = {'num': len(dataset), 'shape': list(dataset.image_shape), 'digest': dataset.archive.digest()}
        loop, notes = loop_kwargs(o, dataset), list(dataset.archive.notes)
        if loop['batch_gpu'] == 'auto':
            loop['batch_gpu'] = auto_batch_gpu(loop, device)
            notes.append(f'--batch-gpu=auto: {loop["batch_gpu"]} images at once')
        unchanged = old is not None and _continue(loop, data, old, given, o['data'], notes)
        loop['seed'] = dist.all_gather_object(loop['seed'])[0]
        if o['dry_run']:
            dist.print0(json.dumps(loop, indent=2))
            return None
        facts = {'preset': o['preset'], 'dataset': dataset.name, 'git_revision': misc.git_revision()}
        options = {k: v for k, v in o.items() if k not in NOT_STORED}
        ranks = dist.get_world_size()
        stored = {'command': as_command(o | {'seed': loop['seed']}, ranks), 'options': options,
                  'changed': changed({'preset': o['preset']} | options), 'loop': loop, 'data': data, **facts,
                  'torch': torch.__version__, 'ranks': ranks}  # fmt: skip
        first = dist.get_rank() == 0
        if run_dir is None:
            words = [dataset.name, o['arch'], *[f'gpus{ranks}'] * (ranks > 1), f'batch{o["batch"]}']
            run_dir = dist.all_gather_object(_new_folder(o, words) if first else None)[0]
        with run_folder.opened(run_dir) if first else contextlib.nullcontext():
            for line in [f'Run folder: {run_dir}', *notes]:
                dist.print0(line)
            training_loop(
                run_dir=run_dir,
                device=device,
                resume_state=state,
                resume_unchanged=unchanged,
                snapshot_meta=facts,
                run_options=redacted(stored),
                **loop,
            )
            if loop['network_kwargs'].get('prior_width'):
                sampling_defaults.complete(run_dir, loop, o['temperature_from'], device, dist.print0)
        return run_dir


def _fit_prior(o: dict[str, Any], given: set[str], device: torch.device) -> str | None:
    o = prior_fits.options(o, given)
    seed = o['seed'] if o['seed'] is not None else secrets.randbelow(2**31)
    if o['dry_run']:
        click.echo(json.dumps({name: o[name] for name in ('fit_prior', 'prior', *prior_fits.DEFAULTS[o['prior']])}))
        return None
    words = [os.path.splitext(os.path.basename(o['data']))[0], 'prior', o['prior']]
    run_dir = _new_folder(o, words)
    with run_folder.opened(run_dir):
        click.echo(f'Run folder: {run_dir}')
        net, num = prior_fits.fitted(o, seed, device, click.echo)
        path = os.path.join(run_dir, f'network-snapshot-{num:09d}.safetensors')
        facts = {'git_revision': misc.git_revision(), 'fitted_to': redacted(o['fit_prior']), 'cur_nimg': num}
        snapshots.save_network(path, net, meta={**net.snapshot_meta, **facts})
        click.echo(f'Network with its prior: {path}')
    return run_dir


def _fit_finisher(
    o: dict[str, Any], given: set[str], device: torch.device, run_dir: str | None, state: str | None
) -> str | None:
    o = finisher_fits.options(o, given, resumed=state is not None)
    seed = o['seed'] if o['seed'] is not None else secrets.randbelow(2**31)
    if o['dry_run']:
        click.echo(json.dumps({name: o[name] for name in ('fit_finisher', 'lpips', *finisher_fits.DEFAULTS)}))
        return None
    if run_dir is None:
        run_dir = _new_folder(o, [os.path.splitext(os.path.basename(o['data']))[0], 'finisher'])
    with run_folder.opened(run_dir):
        click.echo(f'Run folder: {run_dir}')
        options = {k: v for k, v in o.items() if k not in NOT_STORED} | {'seed': seed}
        stored = {'command': as_command(o | {'seed': seed}, 1), 'options': options, 'preset': None,
                  'loop': {'seed': seed, 'network_kwargs': {}}, 'git_revision': misc.git_revision()}  # fmt: skip
        finisher_fits.fitted(o, seed, device, run_dir, state, redacted(stored), click.echo)
    return run_dir


def _new_folder(o: dict[str, Any], words: list[str]) -> str:
    if o['nosubdir']:
        return run_folder.use(o['outdir'])
    return run_folder.create(o['outdir'], [*words, *filter(None, (o['preset'], o['desc']))])


def _continue(
    loop: dict[str, Any], data: dict[str, Any], old: Stored, given: set[str], path: str, notes: list[str]
) -> bool:
    """Give ``loop`` what a run keeps, and add to ``notes`` what differs from before; whether nothing does."""
    if 'seed' not in given:
        loop['seed'] = old.loop['seed']
    placement = old.loop['network_kwargs'].get('condition_placement')
    if placement and 'condition_placement' in loop['network_kwargs']:  # runs of earlier revisions keep theirs
        loop['network_kwargs']['condition_placement'] = placement
    if old.data is not None and data != old.data:
        notes.append(f'{path} is not what this run was trained on: from here on it is another run')
    known = inspect.signature(training_loop).parameters
    defaults = {name: known[name].default for name in loop}  # of arguments that earlier revisions did not have
    changes = _differences({**defaults, **old.loop}, loop)
    notes += [f'This run continues with another option: {line}' for line in changes]
    return not changes and data == old.data


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = '') -> list[str]:
    """'name: old -> new' for each entry of nested dicts that differs."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += _differences(a, b, f'{prefix}{key}.')
        elif a != b:
            lines.append(f'{prefix}{key}: {a} -> {b}'[:500])
    return lines
