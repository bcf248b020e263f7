"""Train a Discrete Distribution Network.

Start with torchrun for several GPUs or machines, with plain python for one device:

\b
  # the paper's network for the dataset's resolution, 8 GPUs
  torchrun --standalone --nproc_per_node=8 train.py --outdir=runs --data=ffhq-64x64.zip
\b
  # a small network for digits on a CPU, minutes
  python train.py --preset=mnist-cpu --outdir=runs --data=datasets/mnist.zip
\b
  # the paper's recurrent network for digits, 404 k parameters, K = 64, L = 10
  python train.py --preset=mnist-recurrent --outdir=runs --data=datasets/mnist.zip
\b
  # told of classes; told of the grey picture, and of nothing one time in ten; see docs/conditions.md
  python train.py --cond=1 --outdir=runs --data=datasets/cifar10.zip
  python train.py --condition=color --condition-dropout=0.1 --outdir=runs --data=ffhq-64x64.zip
\b
  # go on after a stop, exactly
  python train.py --resume=runs/00000-mnist-ddn-batch32-mnist-cpu
"""

import cli.environment  # noqa: F401  # before torch is loaded

# isort: split
import contextlib
import inspect
import json
import math
import os
import re
import secrets
from collections.abc import Iterator
from typing import Any

import click
import torch
from click.core import ParameterSource

from cli.condition_arguments import training_help, training_names
from cli.options import Text, script_help
from cli.presets import PRESETS
from ddn_networks import published_config
from ddn_networks.condition_set import ConditionSet
from ddn_networks.snapshots import upgraded
from dnnlib.downloads import error_line, is_url, lasting_path
from dnnlib.util import Logger, redacted, remove_unfinished
from torch_utils import distributed as dist
from torch_utils import misc
from training import checkpoint
from training.dataset import ImageFolderDataset
from training.ema import ema_label
from training.memory import auto_batch_gpu
from training.training_loop import BALANCERS, training_loop

# EDM's augmentations for images, 9 labels (Karras et al. 2022, Table 6).
AUGMENT = {'xflip': 1e8, 'yflip': 1, 'scale': 1, 'rotate_frac': 1, 'aniso': 1, 'translate_frac': 1}
NOT_STORED = {'outdir', 'resume', 'dry_run', 'nosubdir', 'desc', 'preset'}  # options that a resumed run does not take


def int_list(text: str | None, name: str) -> list[int] | None:
    """'1,2,4' as [1, 2, 4]."""
    if text is None:
        return None
    try:
        values = [int(part) for part in text.split(',')]
    except ValueError:
        raise click.ClickException(f'--{name}={text}: give numbers separated by commas, such as 64,64,32') from None
    if min(values) < 1:
        raise click.ClickException(f'--{name}={text}: numbers start at 1')
    return values


def grid_list(text: str) -> list[list[int]]:
    """'1,2x4' as [[1, 1], [2, 4]]."""
    found = [re.fullmatch(r'\s*([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?\s*', part) for part in text.split(',')]
    if None in found:
        raise click.ClickException(f'--grids={text}: give numbers of cells a side, such as 1,2,4 or 1x1,2x4')
    return [[int(m[1]), int(m[2] or m[1])] for m in found]


def condition_options(o: dict[str, Any], dataset: ImageFolderDataset) -> tuple[list[str], str | None]:
    """(names of the network's conditions, the folder or zip of pairs) that --cond and --condition ask for."""

    def labels() -> tuple[str, int]:
        labelled = ImageFolderDataset(o['data'], use_labels=True)
        return 'class' if labelled.has_class_labels else 'vector', labelled.label_dim

    names, pairs = training_names(o['condition'], o['cond'], labels, lambda path: ImageFolderDataset(path).num_channels)
    ConditionSet(names, dataset.num_channels)  # raises for names that do not fit the images or each other
    if pairs and o['augment']:
        raise click.ClickException('--augment moves images and not their pairs (--condition=image): use one of them')
    if o['val_pairs'] and not (pairs and o['val_data']):
        raise click.ClickException('--val-pairs are those of --val-data, with --condition=image:PATH; both are needed')
    if o['condition_dropout'] and not names:
        raise click.ClickException('--condition-dropout needs a --condition that could be left out')
    return names, pairs


def network_kwargs(o: dict[str, Any], dataset: ImageFolderDataset) -> dict[str, Any]:
    """Constructor arguments of the network that the options ask for at the dataset's resolution."""
    height, width = dataset.resolution
    small = max(height, width) <= 32  # the paper's CIFAR-10 network, and above it that for 64x64
    kwargs = published_config(
        max(height, width),
        max_outputk=o['max_k'] or (64 if small else 512),
        max_blockn=o['max_blocks'] or (32 if small else 64),
        img_channels=dataset.num_channels,
    )
    if o['channels'] and (o['cbase'] or o['cres']):
        raise click.ClickException('--channels names all channels; --cbase and --cres do so too: use one way')
    channels = int_list(o['channels'], 'channels')
    if o['cbase'] or o['cres']:  # EDM's way: finest first
        multipliers = int_list(o['cres'], 'cres') or [1] * len(kwargs['channels'])
        channels = [(o['cbase'] or 32) * m for m in reversed(multipliers)]
    scales = len(channels or kwargs['channels'])
    for name, values in (('channels', channels), ('num_blocks', int_list(o['blocks'], 'blocks')),
                         ('num_nodes', int_list(o['nodes'], 'nodes'))):  # fmt: skip
        values = values or kwargs[name][-scales:]
        values = values * scales if len(values) == 1 else values
        if len(values) != scales:
            option = {'num_blocks': 'blocks', 'num_nodes': 'nodes'}.get(name, name)
            raise click.ClickException(f'--{option} needs one number, or one for each of the {scales} scales')
        kwargs[name] = values
    return {
        **kwargs,
        'img_resolution': [height, width],
        'learning_residual': o['learning_residual'],
        'leak_choice': o['leak_choice'],
        'dropout': o['dropout'],
        'repeat_blocks': o['repeat_blocks'],
        'condition_placement': 'published',
        **({'grids': grid_list(o['grids'])} if o['grids'] else {}),
    }


def recurrent_kwargs(o: dict[str, Any], dataset: ImageFolderDataset) -> dict[str, Any]:
    """Constructor arguments of the recurrent network; by default the paper's for MNIST."""
    nodes = int_list(o['nodes'], 'nodes') or [64]
    if len(nodes) > 1:
        raise click.ClickException(f'--nodes={o["nodes"]}: all steps of a recurrent network share one K')
    grids = grid_list(o['grids'] or '1')
    if len(grids) > 1:
        raise click.ClickException(f'--grids={o["grids"]}: all steps of a recurrent network have one grid')
    blocks = int_list(o['blocks'], 'blocks') or [2]
    if len(blocks) > 1:
        raise click.ClickException(f'--blocks={o["blocks"]}: a recurrent network has as many at each of its sizes')
    return {
        'img_resolution': list(dataset.resolution),
        'img_channels': dataset.num_channels,
        'num_nodes': nodes[0],
        'num_layers': o['steps'] or 10,
        'base_width': o['base_width'] or 10,
        'multipliers': int_list(o['cres'], 'cres') or [1, 2, 4, 8],
        'num_blocks': blocks[0],
        **({'grid': grids[0]} if o['grids'] else {}),
        'learning_residual': o['learning_residual'],
        'leak_choice': o['leak_choice'],
        'dropout': o['dropout'],
    }


# Class, how its arguments are found, and the options that only the other one knows.
NETWORKS = {
    'ddn': ('ddn_networks.single_shot.DDN', network_kwargs, ('steps', 'base_width')),
    'recurrent': (
        'ddn_networks.recurrent.RecurrentDDN',
        recurrent_kwargs,
        ('max_k', 'max_blocks', 'channels', 'cbase', 'repeat_blocks'),
    ),
}


def network_options(o: dict[str, Any], dataset: ImageFolderDataset) -> dict[str, Any]:
    """``network_class`` and ``network_kwargs`` of the training loop."""
    class_name, kwargs_fn, foreign = NETWORKS[o['arch']]
    for name in foreign:
        if o[name]:
            raise click.ClickException(f'--{name.replace("_", "-")} does nothing with --arch={o["arch"]}: leave it out')
    kwargs = kwargs_fn(o, dataset)
    names, pairs = condition_options(o, dataset)
    told = {}
    if names:
        kwargs |= {'conditions': names, 'condition_optional': o['condition_dropout'] > 0}
        told = {'condition_dropout': o['condition_dropout'], 'pair_data': pairs, 'val_pairs': o['val_pairs']}
    return {'network_class': class_name, 'network_kwargs': kwargs, **told}


def loop_kwargs(o: dict[str, Any], dataset: ImageFolderDataset) -> dict[str, Any]:
    """Options -> the plain dict of ``training_loop``, less what belongs to the run at hand."""
    if o['fp16'] and o['precision'] not in ('fp32', 'fp16'):
        raise click.ClickException(f'--fp16=1 contradicts --precision={o["precision"]}')
    precision = 'fp16' if o['fp16'] else o['precision']
    if o['ls'] is not None and precision != 'fp16':
        raise click.ClickException('--ls scales the loss for fp16; with fp32 and bf16 there is nothing to scale')
    try:
        halflives = [FLOAT_NONNEGATIVE(part) * 1e6 for part in o['ema'].split(',')]
    except click.BadParameter:
        raise click.ClickException(f'--ema={o["ema"]}: give half-lives in Mimg, such as 0.5 or 0.5,0.05') from None
    if len({ema_label(h) for h in halflives}) < len(halflives):
        raise click.ClickException(f'--ema={o["ema"]}: two of the half-lives are the same')
    network = network_options(o, dataset)
    names = network['network_kwargs'].get('conditions', ())
    labelled = ConditionSet(names, dataset.num_channels).labels is not None
    return {
        'dataset_kwargs': {
            'path': o['data'],
            'xflip': o['xflip'],
            'cache': o['cache'],
            **({'use_labels': True} if labelled else {}),
        },
        **network,
        'seed': o['seed'] if o['seed'] is not None else secrets.randbelow(2**31),
        'batch_size': o['batch'],
        'batch_gpu': o['batch_gpu'],
        'total_nimg': max(int(o['duration'] * 1e6), 1),
        'lr': o['lr'],
        'lr_rampup_nimg': int(o['lr_ramp'] * 1e6),
        'lr_decay': o['lr_decay'],
        'betas': [0.9, o['beta2']],
        'ema_halflives_nimg': halflives,
        'chain_dropout': o['chain_dropout'],
        **balance_options(o['balance']),
        'augment_kwargs': {'p': o['augment'], **AUGMENT} if o['augment'] else None,
        'precision': precision,
        'loss_scale': o['ls'],
        'on_nan': o['on_nan'],
        'compile_blocks': o['compile'],
        'grad_checkpoint': o['grad_checkpoint'],
        'share_prefixes': o['share_prefixes'],
        'tick_nimg': max(int(o['tick'] * 1000), 1),
        'snapshot_ticks': o['snap'],
        'state_ticks': o['dump'],
        'val_data': o['val_data'],
        'num_workers': o['workers'],
        'tensorboard': o['tensorboard'],
        'cudnn_benchmark': o['bench'],
        'transfer': o['transfer'],
    }


def without_secrets(o: dict[str, Any]) -> dict[str, Any]:
    """The options that name files, where URLs with a password or token are the downloads: options are stored."""
    kept = {k: lasting_path(o[k]) for k in ('data', 'val_data', 'val_pairs', 'transfer') if o[k] and is_url(o[k])}
    pairs = [text.removeprefix('image:') for text in o['condition']]
    return kept | {'condition': tuple(f'image:{lasting_path(p)}' if is_url(p) else text
                                      for p, text in zip(pairs, o['condition'], strict=True))}  # fmt: skip


def balance_options(text: str) -> dict[str, Any]:
    """``balance`` and ``balance_kwargs`` of the loop: 'split-prune:pairs=4' is ('split-prune', {'pairs': 4})."""
    name, _, rest = text.partition(':')
    if name not in BALANCERS:
        raise click.ClickException(f'--balance={text}: there are {", ".join(BALANCERS)}')
    arguments = {}
    for cls in BALANCERS[name].__mro__[:-1]:
        arguments |= inspect.signature(cls).parameters
    known = sorted(k for k, v in arguments.items() if isinstance(v.default, int | float))
    kwargs = {}
    for part in filter(None, rest.split(',')):
        key, _, value = part.partition('=')
        if key not in known:
            takes = ', '.join(known) or 'no arguments'
            raise click.ClickException(f'--balance={text}: {name} takes {takes}, not {key}')
        whole = isinstance(arguments[key].default, int)
        try:
            kwargs[key] = int(value) if whole else float(value)
        except ValueError:
            kind = 'whole number' if whole else 'number'
            raise click.ClickException(f'--balance={text}: {key} is a {kind}, not {value!r}') from None
    return {'balance': name, 'balance_kwargs': kwargs}


def find_resume(resume: str, outdir: str | None) -> tuple[str, str]:
    """(run folder, training state) of --resume: a state file, a run folder, or 'latest' in --outdir."""
    if os.path.isfile(resume):
        return os.path.dirname(resume) or '.', resume
    if resume == 'latest':
        if outdir is None:
            raise click.ClickException('--resume without a path looks in --outdir: give it, or the run folder')
        runs = [os.path.join(outdir, d) for d in os.listdir(outdir)] if os.path.isdir(outdir) else []
        runs = [d for d in [outdir, *sorted(runs, reverse=True)] if os.path.isdir(d) and checkpoint.find_states(d)]
        if not runs:
            raise click.ClickException(f'--resume: no run with a training state in {outdir}')
        resume = runs[0]
    if not os.path.isdir(resume):
        here = ' on this machine; the ranks of all machines read it' if dist.get_world_size() > 1 else ''
        raise click.ClickException(f'--resume={resume}: no such run folder or state{here}')
    states = checkpoint.find_states(resume)
    if not states:
        raise click.ClickException(f'--resume={resume}: no training-state-*.safetensors in it')
    return resume, states[0]


def stored_options(run_dir: str) -> dict[str, Any]:
    """What ``training_options.json`` of a run holds."""
    path = os.path.join(run_dir, 'training_options.json')
    try:
        with open(path) as f:
            stored = json.load(f)
    except (OSError, ValueError) as e:
        raise click.ClickException(f'{path} cannot be read, and without it the run cannot go on: {e}') from None
    if not (isinstance(stored, dict) and {'options', 'loop'} <= stored.keys()):
        raise click.ClickException(f'{path} does not hold the options of a run of train.py')
    loop = stored['loop']
    network = upgraded({'class_name': loop['network_class'], 'kwargs': loop['network_kwargs']})
    loop |= {'network_class': network['class_name'], 'network_kwargs': network['kwargs']}
    return stored


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = '') -> list[str]:
    """'name: old -> new' for each entry of nested dicts that differs."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f'{prefix}{key}.')
        elif a != b:
            lines.append(f'{prefix}{key}: {a} -> {b}')
    return lines


def new_run_dir(o: dict[str, Any], dataset_name: str) -> str:
    """Make the next free folder 00000-NAME-... in --outdir."""
    if o['nosubdir']:
        run_dir = o['outdir']
        os.makedirs(run_dir, exist_ok=True)
        if checkpoint.find_states(run_dir):
            raise ValueError(f'--nosubdir: {run_dir} has a run; --resume={run_dir} goes on with it')
        return run_dir
    os.makedirs(o['outdir'], exist_ok=True)
    taken = [int(m[0]) for d in os.listdir(o['outdir']) if (m := re.match(r'\d+', d))]
    world = dist.get_world_size()
    desc = f'{dataset_name}-{o["arch"]}{f"-gpus{world}" if world > 1 else ""}-batch{o["batch"]}'
    desc += ''.join(f'-{part}' for part in (o['preset'], o['desc']) if part)
    run_dir = os.path.join(o['outdir'], f'{max(taken, default=-1) + 1:05d}-{desc}')
    os.makedirs(run_dir)
    return run_dir


@contextlib.contextmanager
def run_log(run_dir: str) -> Iterator[None]:
    """What is printed goes to log.txt, too. The folder of a run that could not begin is removed if nothing else is in
    it."""
    remove_unfinished(run_dir)
    log = os.path.join(run_dir, 'log.txt')
    new = not os.listdir(run_dir)
    try:
        with Logger(log):
            yield
    finally:
        if new and os.listdir(run_dir) == ['log.txt']:
            os.remove(log)
            with contextlib.suppress(OSError):  # the root of a file system
                os.rmdir(run_dir)


class LongHelp(click.Command):
    """A command whose module docstring is its help."""

    def get_help(self, ctx):
        self.help = script_help(__file__)
        return super().get_help(ctx)


class BatchGpu(click.ParamType):
    """A number of images, or 'auto'."""

    name = 'int or auto'

    def convert(self, value, param, ctx):
        return value if value == 'auto' else click.IntRange(min=1).convert(value, param, ctx)


class FiniteRange(click.FloatRange):
    """Numbers of a range, without nan and inf."""

    def convert(self, value, param, ctx):
        value = super().convert(value, param, ctx)
        return value if math.isfinite(value) else self.fail(f'{value} is not finite.', param, ctx)


FLOAT_POS = FiniteRange(min=0, min_open=True)
FLOAT_NONNEGATIVE = FiniteRange(min=0)
INT_POS = click.IntRange(min=1)


# fmt: off
@click.command(cls=LongHelp, context_settings={'show_default': True, 'max_content_width': 110})
# What and where.
@click.option('--outdir', metavar='DIR', type=str, help='Where to make the run folder')
@click.option('--data', metavar='ZIP|DIR', type=str, help='Training images, from dataset_tool.py (a path or URL)')
@click.option('--preset', type=click.Choice(list(PRESETS)), help='A ready set of options; others on the line win')
@click.option('--cond', metavar='BOOL', type=bool, default=False, help='The same as --condition=class')
@click.option('--condition', metavar='LIST', type=Text(training_help), multiple=True,
              help="Conditions of the network, with commas between; 'help' lists all")
@click.option('--condition-dropout', metavar='FLOAT', type=FiniteRange(0, 1, max_open=True), default=0.0,
              help='Probability of no condition; the network then works without, too')
@click.option('--arch', type=click.Choice(list(NETWORKS)), default='ddn',
              help='Network: single-shot generator, or one UNet again and again (Fig. 3c)')
@click.option('--xflip', metavar='BOOL', type=bool, default=False, help='Double the dataset by mirroring')
@click.option('--val-data', metavar='ZIP|DIR', type=str, help='Images of the validation batch  [default: training]')
@click.option('--val-pairs', metavar='ZIP|DIR', type=str, help='Their pairs, with --condition=image:PATH')
# The network.
@click.option('--max-k', metavar='INT', type=click.IntRange(min=2), help='Largest K  [default: 64 to 32x32, then 512]')
@click.option('--max-blocks', metavar='INT', type=INT_POS, help='Most blocks a scale  [default: 32 to 32x32, then 64]')
@click.option('--channels', metavar='LIST', type=str, help='Channels per scale, coarse to fine: 64,64,32')
@click.option('--blocks', metavar='LIST', type=str, help='Blocks per scale, coarse to fine, or one number')
@click.option('--nodes', metavar='LIST', type=str, help='K per scale, coarse to fine, or one number (recurrent: K)')
@click.option('--cbase', metavar='INT', type=INT_POS, help="EDM's way: channels are cbase times cres")
@click.option('--cres', metavar='LIST', type=str, help="EDM's way: multipliers, fine to coarse")
@click.option('--grids', metavar='LIST', type=str,
              help='Cells a side that choose, per scale or per layer: 1,2,4 or 1x2,4x8 (recurrent: one)  [default: 1]')
@click.option('--repeat-blocks', metavar='BOOL', type=bool, default=False, help='The blocks of a scale share weights')
@click.option('--steps', metavar='INT', type=INT_POS, help='recurrent: L  [default: 10]')
@click.option('--base-width', metavar='INT', type=INT_POS, help='recurrent: --cres counts in it  [default: 10]')
@click.option('--learning-residual', metavar='BOOL', type=bool, default=True, help='Candidates add to the image before')
@click.option('--leak-choice', metavar='BOOL', type=bool, default=True, help='The next block is told what was chosen')
@click.option('--dropout', metavar='FLOAT', type=FiniteRange(0, 1, max_open=True), default=0.0,
              help='Dropout of features in the blocks')
# Training.
@click.option('--duration', metavar='MIMG', type=FLOAT_POS, default=200.0, help='Length, millions of images')
@click.option('--batch', metavar='INT', type=INT_POS, default=512, help='Images per step, over all ranks')
@click.option('--batch-gpu', metavar='INT|auto', type=BatchGpu(),
              help='Images per rank at once, or auto: what fits  [default: all]')
@click.option('--lr', metavar='FLOAT', type=FLOAT_POS, default=1e-3, help="Adam's learning rate")
@click.option('--lr-ramp', metavar='MIMG', type=FLOAT_NONNEGATIVE, default=10.0, help='Linear ramp to --lr')
@click.option('--lr-decay', type=click.Choice(['none', 'cosine']), default='none', help='After the ramp')
@click.option('--beta2', metavar='FLOAT', type=FiniteRange(0, 1, max_open=True), default=0.999, help="Adam's")
@click.option('--ema', metavar='LIST', type=str, default='0.5', help='Half-lives of averaged weights, Mimg: 0.5,0.05')
@click.option('--chain-dropout', metavar='FLOAT', type=FiniteRange(0, 1), default=0.05,
              help='Probability that chance makes a choice')
@click.option('--balance', metavar='NAME[:KEY=VALUE,...]', default='split-prune',
              help='How nodes are kept equally used: split-prune (Algorithm 1), conditional (and that whatever was '
                   'chosen before), bias (Loss-Free Balancing), none; with arguments of its class in ddn_networks, '
                   'such as split-prune:pairs=4,memory=100')
@click.option('--augment', metavar='FLOAT', type=FiniteRange(0, 1), default=0.0,
              help="Probability of EDM's augmentations; 0 for none")
@click.option('--on-nan', type=click.Choice(['stop', 'skip']), default='stop', help='At a non-finite loss or gradient')
@click.option('--transfer', metavar='FILE', type=str, help='Begin with the weights of this snapshot')
# The machine.
@click.option('--device', type=str, help='cuda, mps or cpu  [default: the best there is]')
@click.option('--precision', type=click.Choice(['fp32', 'bf16', 'fp16']), default='fp32', help='Of the blocks')
@click.option('--fp16', metavar='BOOL', type=bool, default=False, help='The same as --precision=fp16')
@click.option('--ls', metavar='FLOAT', type=FLOAT_POS, help='First loss scale of fp16  [default: 65536]')
@click.option('--compile', metavar='BOOL', type=bool, default=False, help='torch.compile the blocks')
@click.option('--grad-checkpoint', metavar='BOOL', type=bool, default=False, help='Less memory, a third more time')
@click.option('--share-prefixes', metavar='BOOL', type=bool, default=False,
              help='Features once for images that chose alike so far: fast for small K and large batches')
@click.option('--bench', metavar='BOOL', type=bool, default=True, help='cuDNN benchmarking')
@click.option('--cache', metavar='BOOL', type=bool, default=True, help='Keep decoded images in memory')
@click.option('--workers', metavar='INT', type=click.IntRange(0, 1024), default=1,
              help='Threads per rank that load images ahead; 0: load when needed')
# What is kept.
@click.option('--desc', metavar='STR', type=str, help="A word for the run folder's name")
@click.option('--nosubdir', is_flag=True, help='Use --outdir itself as the run folder')
@click.option('--tick', metavar='KIMG', type=FLOAT_POS, default=50.0, help='Thousands of images between two lines')
@click.option('--tensorboard', metavar='BOOL', type=bool, default=False,
              help='Write event files too (extra: tensorboard)')
@click.option('--snap', metavar='TICKS', type=INT_POS, default=50, help='Ticks between snapshots and pictures')
@click.option('--dump', metavar='TICKS', type=INT_POS, default=50, help='Ticks between states; two newest are kept')
@click.option('--seed', metavar='INT', type=click.IntRange(0, 2**63 - 1),
              help='Of everything random  [default: a new one]')
@click.option('--resume', metavar='RUN|STATE', is_flag=False, flag_value='latest',
              help='Go on with a run: its folder, a state in it, or nothing for the newest in --outdir')
@click.option('-n', '--dry-run', is_flag=True, help='Print what would be done and stop')
# fmt: on
@click.pass_context
def main(ctx: click.Context, **o: Any) -> None:
    given = {k for k in o if ctx.get_parameter_source(k) is ParameterSource.COMMANDLINE}
    run_dir = state = None
    old, unchanged = {}, False
    if o['resume']:
        run_dir, state = find_resume(o['resume'], o['outdir'])
        old = stored_options(run_dir)
        if o['preset'] not in (None, old.get('preset')):
            raise click.ClickException(f'--preset={o["preset"]}: {run_dir} was started with another; leave it out')
        o |= {k: v for k, v in old['options'].items() if k not in given and k not in NOT_STORED}
    elif o['preset']:
        o |= {k: v for k, v in PRESETS[o['preset']].items() if k not in given}
    if not o['data']:
        raise click.ClickException('--data is needed: a zip or folder of images, see dataset_tool.py')
    if not (o['outdir'] or run_dir or o['dry_run']):
        raise click.ClickException('--outdir is needed: where to make the run folder')

    try:
        with dist.session(o['device']) as device:
            o |= without_secrets(o)
            dataset = ImageFolderDataset(o['data'])
            loop = loop_kwargs(o, dataset)
            if loop['batch_gpu'] == 'auto':
                loop['batch_gpu'] = auto_batch_gpu(loop, device)
                dist.print0(f'--batch-gpu=auto: {loop["batch_gpu"]} images at once')
            data = {'num': len(dataset), 'shape': list(dataset.image_shape), 'digest': dataset.archive.digest()}
            if old:
                if data != old.get('data', data):
                    dist.print0(f'{o["data"]} is not what this run was trained on: from here on it is another run')
                loop['seed'] = loop['seed'] if 'seed' in given else old['loop']['seed']
                placement = old['loop']['network_kwargs'].get('condition_placement')
                if placement and 'condition_placement' in loop['network_kwargs']:  # earlier revisions' runs keep theirs
                    loop['network_kwargs']['condition_placement'] = placement
                changes = differences(old['loop'], loop)
                for line in changes:
                    dist.print0(f'This run goes on with another option: {line}')
                unchanged = not changes and data == old.get('data')
            loop['seed'] = dist.all_gather_object(loop['seed'])[0]
            if o['dry_run']:
                dist.print0(json.dumps(loop, indent=2))
                return
            if run_dir is None:
                run_dir = new_run_dir(o, dataset.name) if dist.get_rank() == 0 else None
                run_dir = dist.all_gather_object(run_dir)[0]
            preset = o['preset'] or old.get('preset')
            meta = {'preset': preset, 'dataset': dataset.name, 'git_revision': misc.git_revision()}
            options = {k: v for k, v in o.items() if k not in NOT_STORED}
            stored = {'options': options, 'loop': loop, 'data': data, **meta, 'torch': torch.__version__,
                      'ranks': dist.get_world_size()}  # fmt: skip
            with run_log(run_dir) if dist.get_rank() == 0 else contextlib.nullcontext():
                dist.print0(f'Run folder: {run_dir}')
                training_loop(
                    run_dir=run_dir,
                    device=device,
                    resume_state=state,
                    resume_unchanged=unchanged,
                    snapshot_meta=meta,
                    run_options=redacted(stored),
                    **loop,
                )
    except (ValueError, OSError, FloatingPointError) as e:
        raise click.ClickException(error_line(e)) from None


if __name__ == '__main__':
    main()
