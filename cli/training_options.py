"""The options of ``train.py``: how a command line gives them, and how ``training_options.json`` of a run keeps them."""

import math
import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import click

from cli.condition_arguments import training_help, with_paths
from cli.options import Text, option_group
from cli.presets import PRESETS, presets_help
from cli.training_arguments import BALANCERS, NETWORKS, current_balance
from ddn_networks.code_priors import KINDS
from ddn_networks.snapshots import upgraded
from dnnlib.downloads import is_url, lasting_path
from dnnlib.readers import printable, read_json
from torch_utils.misc import PRECISIONS

# Options of one call, not of the run.
NOT_STORED = {'outdir', 'resume', 'dry_run', 'nosubdir', 'desc', 'preset', 'fit_prior'}
PATHS = ('data', 'val_data', 'val_pairs', 'transfer')
OF_THE_LOOP = ('val_data', 'pair_data', 'val_pairs', 'transfer')  # paths among the arguments of the loop

# ---------------------------------------------------------------------------------------------------------------- types


class BatchGpu(click.ParamType):
    """A number of images, or 'auto'."""

    name = 'int or auto'

    def convert(self, value, param, ctx):
        return value if value == 'auto' else INT_POS.convert(value, param, ctx)


class FiniteRange(click.FloatRange):
    """Numbers of a range, without nan and inf."""

    def convert(self, value, param, ctx):
        value = super().convert(value, param, ctx)
        return value if math.isfinite(value) else self.fail(f'{value} is not finite.', param, ctx)


class PresetName(Text):
    """A preset; 'help' lists all."""

    def convert(self, value, param, ctx):
        if super().convert(value, param, ctx) not in PRESETS:
            self.fail(f'{value!r} is not a preset; --preset=help lists them', param, ctx)
        return value


class Description(click.ParamType):
    """A part of a folder's name."""

    name = 'text'

    def convert(self, value, param, ctx):
        if len(value) > 100 or not all(c.isalnum() or c in '-_.,=+ ' for c in value):
            self.fail(f'{printable(value)!r} should be at most 100 letters, digits and -_.,=+', param, ctx)
        return value


MIMG = 1e12  # most millions of images, or thousands: they are counted in integers and in float64
FLOAT_POS = FiniteRange(0, MIMG, min_open=True)
FLOAT_NONNEGATIVE = FiniteRange(0, MIMG)
RATE = FiniteRange(0, 1e30, min_open=True)  # Adam divides it, in float32
LOSS_SCALE = FiniteRange(0, 2.0**127, min_open=True)  # a float32
PROBABILITY, BELOW_ONE = FiniteRange(0, 1), FiniteRange(0, 1, max_open=True)
INT_POS = click.IntRange(min=1)
BATCH = click.IntRange(1, 2**24)
TICKS = click.IntRange(1, 2**31)

# -------------------------------------------------------------------------------------------------------------- options


def _option(*names: str, metavar: str | None = None, **kwargs: Any) -> Callable:
    return click.option(*names, metavar=metavar, show_default=True, **kwargs)


# fmt: off
GROUPS = (
    option_group(
        'Run',
        _option('--outdir', metavar='DIR', help='Folder in which to make the run folder'),
        _option('--resume', metavar='RUN|STATE', is_flag=False, flag_value='latest',
                help='Resume a run: its folder, a state in it, or nothing for the newest run in --outdir'),
        _option('--preset', metavar='NAME', type=PresetName(presets_help),
                help="Named set of options, which others on the line override; 'help' lists all"),
        _option('--seed', metavar='INT', type=click.IntRange(0, 2**63 - 1), help='Random seed  [default: a new one]'),
        _option('--desc', metavar='TEXT', type=Description(), help="Text to add to the run folder's name"),
        _option('--nosubdir', is_flag=True, help='Use --outdir itself as the run folder'),
        _option('-n', '--dry-run', is_flag=True, help='Print the arguments of the training loop and exit'),
    ),
    option_group(
        'Data',
        _option('--data', metavar='ZIP|DIR|URL', help='Training images, see dataset_tool.py'),
        _option('--xflip', metavar='BOOL', type=bool, default=False, help='Double the dataset by mirroring'),
        _option('--augment', metavar='FLOAT', type=PROBABILITY, default=0.0,
                help="Probability of EDM's augmentations, 0 for none"),
        _option('--val-data', metavar='ZIP|DIR|URL',
                help='Validation images  [default: the training images; with a prior, 2 % held out of them]'),
        _option('--val-pairs', metavar='ZIP|DIR|URL', help='Pairs of --val-data, with --condition=image:PATH'),
        _option('--cache', metavar='BOOL', type=bool, default=True, help='Keep decoded images in memory'),
        _option('--workers', metavar='INT', type=click.IntRange(0, 1024), default=1,
                help='Threads per rank that load images ahead; 0: load when needed'),
    ),
    option_group(
        'Conditions',
        _option('--condition', metavar='LIST', type=Text(training_help), multiple=True,
                help="Conditions of the network, with commas between; 'help' lists all"),
        _option('--cond', metavar='BOOL', type=bool, default=False, help='The same as --condition=class'),
        _option('--condition-dropout', metavar='FLOAT', type=BELOW_ONE, default=0.0,
                help='Probability of dropping the condition, so that the network also works without one'),
        _option('--condition-to', type=click.Choice(['all', 'heads']), default='all',
                help="What sees the condition: all layers, or the prior's heads alone"),
    ),
    option_group(
        'Network',
        _option('--arch', type=click.Choice(list(NETWORKS)), default='ddn',
                help='Single-shot generator, or one UNet applied L times (Fig. 3c)'),
        _option('--nodes', metavar='LIST', help='K per scale, coarse to fine, or one number for all'),
        _option('--blocks', metavar='LIST', help='Blocks per scale, coarse to fine, or one number for all'),
        _option('--channels', metavar='LIST', help='Channels per scale, coarse to fine, such as 64,64,32'),
        _option('--cbase', metavar='INT', type=INT_POS, help='Channels as in EDM: --cbase times --cres'),
        _option('--cres', metavar='LIST', help='Multipliers of --cbase or --base-width, fine to coarse'),
        _option('--max-k', metavar='INT', type=click.IntRange(min=2),
                help='Largest K  [default: 64 up to 32x32, 512 above]'),
        _option('--max-blocks', metavar='INT', type=INT_POS,
                help='Largest number of blocks of a scale  [default: 32 up to 32x32, 64 above]'),
        _option('--grids', metavar='LIST',
                help='Cells a side that choose, per scale or per layer: 1,2,4 or 1x2,4x8  [default: 1]'),
        _option('--unshuffle', metavar='INT', type=click.IntRange(1, 2),
                help='2: features of the last scale at half its size, each pixel of them makes 2x2 of the image  '
                '[default: 1]'),
        _option('--repeat-blocks', metavar='BOOL', type=bool, default=False, help='Share weights within a scale'),
        _option('--steps', metavar='INT', type=click.IntRange(1, 10_000), help='L, if recurrent  [default: 10]'),
        _option('--base-width', metavar='INT', type=INT_POS, help='Unit of --cres, if recurrent  [default: 10]'),
        _option('--learning-residual', metavar='BOOL', type=bool, default=True,
                help='Add candidates to the image chosen before'),
        _option('--leak-choice', metavar='BOOL', type=bool, default=True,
                help="Pass the chosen node's leak to the next block"),
        _option('--dropout', metavar='FLOAT', type=BELOW_ONE, default=0.0, help='Dropout of features in the blocks'),
    ),
    option_group(
        'Own prior (how likely each choice is given those before)',
        _option('--prior', type=click.Choice(['none', *KINDS]), default='none',
                help='Train a head per layer, on its features; with --fit-prior also counts of codes, or a transformer '
                'over codes'),
        _option('--fit-prior', metavar='NET', help='Fit a --prior to this network, which stays as it is: minutes; '
                'other defaults, see docs/network.md'),
        _option('--temperature-from', metavar='NAME|FILE',
                help='Choose default temperatures by the distance of this detector: inception, lenet, alex  '
                '[default: 1]'),
        _option('--prior-width', metavar='INT', type=INT_POS, default=64,
                help='Channels of a head, or width of the transformer'),
        _option('--prior-gradient', metavar='FLOAT', type=PROBABILITY, default=0.0,
                help="Share of the heads' gradient that reaches the features"),
        _option('--prior-clean', metavar='FLOAT', type=PROBABILITY, default=0.5,
                help='Share of the images without Chain Dropout'),
        _option('--prior-soft', metavar='FLOAT', type=FLOAT_NONNEGATIVE, default=0.0,
                help='Soft targets: softmax(-distance / (this times its spread))'),
    ),
    option_group(
        'Finisher (a network after the last layer that draws what the codes leave open)',
        _option('--fit-finisher', metavar='NET', help='Train a finisher for this network, which stays as it is; other '
                'defaults, see docs/finisher.md'),
        _option('--finisher-width', metavar='INT', type=INT_POS, default=24, help='Channels at full size'),
        _option('--lpips', metavar='auto|none|FILE', default='auto',
                help='Also learn from LPIPS, with these weights of AlexNet (a file or URL); auto: if they are found'),
    ),
    option_group(
        'Training',
        _option('--duration', metavar='MIMG', type=FLOAT_POS, default=200.0, help='Length of training'),
        _option('--batch', metavar='INT', type=BATCH, default=512, help='Images per step, all ranks'),
        _option('--lr', metavar='FLOAT', type=RATE, default=1e-3, help='Learning rate of Adam'),
        _option('--lr-ramp', metavar='MIMG', type=FLOAT_NONNEGATIVE, default=10.0, help='Linear warm-up to --lr'),
        _option('--lr-decay', type=click.Choice(['none', 'cosine']), default='none', help='Decay after the warm-up'),
        _option('--beta2', metavar='FLOAT', type=BELOW_ONE, default=0.999, help='beta2 of Adam'),
        _option('--ema', metavar='LIST', default='0.5',
                help='Half-lives of the averaged weights, Mimg, such as 0.5,0.05'),
        _option('--chain-dropout', metavar='FLOAT', type=PROBABILITY, default=0.05,
                help='Probability of a random choice in place of the nearest candidate'),
        _option('--balance', metavar='NAME[:KEY=VALUE,...]', default='split-prune',
                help=f'How to balance node usage: {", ".join(BALANCERS)}; see docs/training.md'),
        _option('--on-nan', type=click.Choice(['stop', 'skip']), default='stop',
                help='What to do at a step whose loss or gradient is not finite'),
        _option('--transfer', metavar='FILE', help='Snapshot whose weights to start from'),
    ),
    option_group(
        'Device',
        _option('--device', metavar='NAME', help='cuda, mps or cpu  [default: the best available]'),
        _option('--batch-gpu', metavar='INT|auto', type=BatchGpu(),
                help='Images per rank at once; auto: what fits into memory  [default: all]'),
        _option('--precision', type=click.Choice(list(PRECISIONS)), default='fp32', help='Precision of the blocks'),
        _option('--fp16', metavar='BOOL', type=bool, default=False, help='The same as --precision=fp16'),
        _option('--ls', metavar='FLOAT', type=LOSS_SCALE, help='Initial loss scale of fp16  [default: 65536]'),
        _option('--compile', metavar='BOOL', type=bool, default=False, help='Use torch.compile for the blocks'),
        _option('--grad-checkpoint', metavar='BOOL', type=bool, default=False,
                help='Recompute blocks in the backward pass: less memory, a third more time'),
        _option('--share-prefixes', metavar='BOOL', type=bool, default=False,
                help='Compute features once for images with the same choices so far: faster for small K'),
        _option('--bench', metavar='BOOL', type=bool, default=True, help='Use cuDNN benchmarking'),
    ),
    option_group(
        'Output',
        _option('--tick', metavar='KIMG', type=FLOAT_POS, default=50.0, help='Interval of progress lines'),
        _option('--snap', metavar='TICKS', type=TICKS, default=50, help='Interval of snapshots and pictures'),
        _option('--dump', metavar='TICKS', type=TICKS, default=50,
                help='Interval of training states; the two newest are kept'),
        _option('--tensorboard', metavar='BOOL', type=bool, default=False, help='Also write TensorBoard event files'),
    ),
)
# fmt: on


def training_options(function: Callable) -> Callable:
    """Decorator: all options, in groups for a ``GroupedCommand``."""
    for group in reversed(GROUPS):
        function = group(function)
    return function


@click.command('train.py')
@training_options
def _command(**options):
    """The options outside a command line."""


def parsed(options: Mapping[str, Any]) -> click.Context:
    """Options by name, {'preset': 'mnist-cpu', 'chain-dropout': 0}, as a command line would give them; None leaves an
    option out. click.UsageError for unknown names and wrong values."""
    flags = {option.name for option in _command.params if option.is_flag}
    arguments = []
    for key, value in options.items():
        option = f'--{key.replace("_", "-")}'
        if key.replace('-', '_') in flags:
            arguments += [option] if value else []
        elif value is not None:
            values = value if isinstance(value, list | tuple) else [value]
            arguments += [f'{option}={entry}' for entry in values]
    return _command.make_context('train.py', arguments)


def changed(options: Mapping[str, Any], preset: str | None = None) -> dict[str, Any]:
    """The options that are not at their defaults, or not as the preset has them."""
    defaults = parsed({}).params | (PRESETS[preset].options if preset else {})
    return {name: value for name, value in options.items() if value != defaults.get(name)}


def as_command(options: Mapping[str, Any], ranks: int) -> str:
    """A command line for a new run with these options."""
    start = 'python' if ranks == 1 else f'torchrun --nproc_per_node={ranks}'
    words = [f'--preset={options["preset"]}'] if options['preset'] else []
    for name, value in changed(options, options['preset']).items():
        option = f'--{name.replace("_", "-")}'
        if name == 'nosubdir':
            words.append(option)
        elif name not in ('preset', 'resume', 'dry_run') and value is not None:
            values = value if isinstance(value, list | tuple) else [int(value) if isinstance(value, bool) else value]
            words += [f'{option}={entry}' for entry in values]
    return f'{start} train.py {shlex.join(words)}'


# --------------------------------------------------------------------------------------------------------------- stored


class Stored(NamedTuple):
    """What ``training_options.json`` of a run holds.

    options: as ``training_options`` gives them. loop: arguments of ``training_loop``. data: facts about the images.
    """

    options: dict[str, Any]
    loop: dict[str, Any]
    data: Any
    preset: str | None


def read_stored(run_dir: str, given: set[str]) -> Stored:
    """The options of a run, in the terms of this revision, with absolute paths.

    Args:
        run_dir: the run folder.
        given: names of options that are given anew, so that the stored ones do not matter.

    Raises:
        ValueError: the file is missing or damaged, holds unknown options or wrong values, or a relative path that does
            not lead anywhere from here.
    """
    path = os.path.join(run_dir, 'training_options.json')
    content = read_json(path)
    content = content if isinstance(content, dict) else {}
    options, loop, preset = (content.get(key) for key in ('options', 'loop', 'preset'))
    if not (isinstance(options, dict) and isinstance(loop, dict) and isinstance(preset, str | None)
            and isinstance(loop.get('network_kwargs'), dict)):  # fmt: skip
        raise ValueError(f'{path} does not hold the options of a run of train.py')
    seed = loop.get('seed')
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f'{path}: the seed of the loop is {_shown(seed)}, not a number from 0 to 2^63 - 1')
    known = {param.name: param for param in _command.params}
    for name, value in options.items():
        if name not in known:
            raise ValueError(f'{path}: unknown option {_shown(name)}')
        if not _fits(known[name], value):
            raise ValueError(f'{path}: --{name.replace("_", "-")} cannot be {_shown(value)}')
    options = {k: v for k, v in options.items() if k not in given and k not in NOT_STORED}
    if options.get('balance'):
        options['balance'] = current_balance(options['balance'])
    return Stored(lasting(options, path), _upgraded_loop(loop), content.get('data'), preset)


def _shown(value: Any) -> str:
    return printable(repr(value))[:80]


def _fits(param: click.Option, value: Any) -> bool:
    """Whether the option takes this value, in JSON's terms, and would store it as it is."""
    if value is None:
        return not isinstance(param.default, bool | int | float | str)
    values = value if param.multiple else [value]
    if not isinstance(values, list):
        return False
    return all(_same(param.type, entry) for entry in values)


def _same(kind: click.ParamType, value: Any) -> bool:
    if isinstance(kind, Text):
        return isinstance(value, str) and value != 'help'
    try:
        converted = kind.convert(value, None, None)
    except Exception:  # click's types are made for texts
        return False
    return converted == value and isinstance(converted, bool) == isinstance(value, bool)


def lasting(options: Mapping[str, Any], stored_in: str = '') -> dict[str, Any]:
    """The options with paths that lead to the same files from any folder, and URLs without secrets. Those
    ``stored_in`` a file may be relative, of an earlier revision: ValueError where such a path leads nowhere."""

    def file(option: str, path: str) -> str:
        if stored_in and not is_url(path) and not os.path.isabs(path) and not os.path.exists(path):
            raise ValueError(
                f'{stored_in}: --{option} is {_shown(path)}, relative to the folder in which the run was started: '
                f'resume there, or give --{option} again'
            )
        return lasting_path(path)

    kept = {name: file(name.replace('_', '-'), options[name]) for name in PATHS if options.get(name)}
    if (detector := options.get('temperature_from')) and os.path.exists(detector):  # a file, not a name
        kept['temperature_from'] = lasting_path(detector)
    conditions = with_paths(options.get('condition') or (), lambda path: file('condition', path))
    return {**options, **kept, 'condition': conditions}


def _upgraded_loop(loop: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the loop of an earlier revision as this one would store them."""
    network = upgraded({'class_name': loop.get('network_class'), 'kwargs': loop.get('network_kwargs')})
    loop = {**loop, 'network_class': network['class_name'], 'network_kwargs': network['kwargs']}
    if isinstance(loop.get('balance'), str):
        loop['balance'] = current_balance(loop['balance'])
    loop |= {name: _found(loop[name]) for name in OF_THE_LOOP if name in loop}
    if isinstance(loop.get('dataset_kwargs'), dict):
        loop['dataset_kwargs'] = {**loop['dataset_kwargs'], 'path': _found(loop['dataset_kwargs'].get('path'))}
    return loop


def _found(file: Any) -> Any:
    return lasting_path(file) if isinstance(file, str) and os.path.exists(file) else file
