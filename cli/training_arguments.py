"""From the options of ``train.py`` and the images to the arguments of ``training_loop``.

``o`` is a dict of all options by their names in Python. What is wrong with them is a ValueError of one line.
"""

import inspect
import math
import re
import secrets
from typing import Any

from cli.condition_arguments import training_names
from ddn_networks import published_config
from ddn_networks.condition_set import ConditionSet
from training.dataset import ImageFolderDataset
from training.ema import ema_label
from training.training_loop import BALANCERS

# EDM's augmentations for images, 9 labels (Karras et al. 2022, Table 6).
AUGMENT = {'xflip': 1e8, 'yflip': 1, 'scale': 1, 'rotate_frac': 1, 'aniso': 1, 'translate_frac': 1}
HELD_OUT = 0.02  # share of the training images that a network with a prior does not see
BALANCE_ALIASES = {'conditional': 'prefix'}  # names of earlier revisions


def loop_kwargs(o: dict[str, Any], dataset: ImageFolderDataset) -> dict[str, Any]:
    """The arguments of ``training_loop``, a plain dict, less those of one call (folder, device, resuming)."""
    if o['fp16'] and o['precision'] not in ('fp32', 'fp16'):
        raise ValueError(f'--fp16=1 contradicts --precision={o["precision"]}: give one of them')
    precision = 'fp16' if o['fp16'] else o['precision']
    if o['ls'] is not None and precision != 'fp16':
        raise ValueError('--ls scales the loss for fp16; with fp32 and bf16 there is nothing to scale')
    network = network_options(o, dataset)
    conditions = ConditionSet(network['network_kwargs'].get('conditions', ()), dataset.num_channels)
    return {
        'dataset_kwargs': {
            'path': o['data'],
            'xflip': o['xflip'],
            'cache': o['cache'],
            **({'use_labels': True} if conditions.labels is not None else {}),
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
        'ema_halflives_nimg': _halflives(o['ema']),
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


def network_options(o: dict[str, Any], dataset: ImageFolderDataset) -> dict[str, Any]:
    """``network_class``, ``network_kwargs`` and what training needs for the network's conditions."""
    class_name, kwargs_fn, foreign = NETWORKS[o['arch']]
    for name in foreign:
        if o[name]:
            raise ValueError(f'--{name.replace("_", "-")} does nothing with --arch={o["arch"]}: leave it out')
    kwargs = kwargs_fn(o, dataset)
    network = {'network_class': class_name, 'network_kwargs': kwargs}
    if o['prior'] not in ('none', 'head'):
        raise ValueError(f'--prior={o["prior"]} is for networks that stay as they are: give --fit-prior=NET too')
    if o['temperature_from'] and o['prior'] == 'none':
        raise ValueError('--temperature-from chooses temperatures of a prior: add --prior=head, or leave it out')
    if o['prior'] == 'head':
        network |= {'prior_clean': o['prior_clean'], 'prior_softness': o['prior_soft'], 'held_out': HELD_OUT}
    names, pairs = conditions_of(o, dataset)
    if not names:
        return network
    to = {'condition_to': 'heads'} if o['condition_to'] == 'heads' else {}
    return {
        **network,
        'network_kwargs': {**kwargs, 'conditions': names, 'condition_optional': o['condition_dropout'] > 0, **to},
        'condition_dropout': o['condition_dropout'],
        'pair_data': pairs,
        'val_pairs': o['val_pairs'],
    }


def _single_shot(o: dict[str, Any], dataset: ImageFolderDataset) -> dict[str, Any]:
    """Constructor arguments of ``DDN``; by default the published network for the dataset's resolution."""
    height, width = dataset.resolution
    small = max(height, width) <= 32  # the paper's CIFAR-10 network, and above it that for 64x64
    kwargs = published_config(
        max(height, width),
        max_outputk=o['max_k'] or (64 if small else 512),
        max_blockn=o['max_blocks'] or (32 if small else 64),
        img_channels=dataset.num_channels,
    )
    if o['channels'] and (o['cbase'] or o['cres']):
        raise ValueError('--channels and --cbase with --cres both give all channels: use one way')
    channels = _numbers(o, 'channels')
    if o['cbase'] or o['cres']:  # EDM's way: finest first
        multipliers = _numbers(o, 'cres') or [1] * len(kwargs['channels'])
        channels = [(o['cbase'] or 32) * m for m in reversed(multipliers)]
    scales = len(channels or kwargs['channels'])
    given = {'channels': channels, 'num_blocks': _numbers(o, 'blocks'), 'num_nodes': _numbers(o, 'nodes')}
    for name, values in given.items():
        values = values or kwargs[name][-scales:]
        values = values * scales if len(values) == 1 else values
        if len(values) != scales:
            option = name.removeprefix('num_')
            raise ValueError(f'--{option} needs one number, or one for each of the {scales} scales')
        kwargs[name] = values
    return {
        **kwargs,
        'img_resolution': [height, width],
        'learning_residual': o['learning_residual'],
        'leak_choice': o['leak_choice'],
        'dropout': o['dropout'],
        'repeat_blocks': o['repeat_blocks'],
        'condition_placement': 'published',
        **({'grids': _grids(o['grids'])} if o['grids'] else {}),
        **({'unshuffle': o['unshuffle']} if o['unshuffle'] else {}),
        **_prior(o),
    }


def _recurrent(o: dict[str, Any], dataset: ImageFolderDataset) -> dict[str, Any]:
    """Constructor arguments of ``RecurrentDDN``; by default the paper's for MNIST."""
    nodes, blocks = _numbers(o, 'nodes') or [64], _numbers(o, 'blocks') or [2]
    if len(nodes) > 1:
        raise ValueError(f'--nodes={o["nodes"]}: all steps of a recurrent network share one K')
    grids = _grids(o['grids'] or '1')
    if len(grids) > 1:
        raise ValueError(f'--grids={o["grids"]}: all steps of a recurrent network have one grid')
    if len(blocks) > 1:
        raise ValueError(f'--blocks={o["blocks"]}: a recurrent network has as many at each of its sizes')
    return {
        'img_resolution': list(dataset.resolution),
        'img_channels': dataset.num_channels,
        'num_nodes': nodes[0],
        'num_layers': o['steps'] or 10,
        'base_width': o['base_width'] or 10,
        'multipliers': _numbers(o, 'cres') or [1, 2, 4, 8],
        'num_blocks': blocks[0],
        **({'grid': grids[0]} if o['grids'] else {}),
        **_prior(o),
        'learning_residual': o['learning_residual'],
        'leak_choice': o['leak_choice'],
        'dropout': o['dropout'],
    }


def _prior(o: dict[str, Any]) -> dict[str, Any]:
    """The network's own prior, if one is asked for."""
    return {'prior_width': o['prior_width'], 'prior_gradient': o['prior_gradient']} if o['prior'] == 'head' else {}


# Class, how its arguments are found, and the options that only the other one knows.
NETWORKS = {
    'ddn': ('ddn_networks.single_shot.DDN', _single_shot, ('steps', 'base_width')),
    'recurrent': (
        'ddn_networks.recurrent.RecurrentDDN',
        _recurrent,
        ('max_k', 'max_blocks', 'channels', 'cbase', 'repeat_blocks', 'unshuffle'),
    ),
}


def balance_options(text: str) -> dict[str, Any]:
    """``balance`` and ``balance_kwargs`` of the loop: 'split-prune:pairs=4' is ('split-prune', {'pairs': 4})."""
    name, _, rest = current_balance(text).partition(':')
    if name not in BALANCERS:
        raise ValueError(f'--balance={text}: choose from {", ".join(BALANCERS)}')
    arguments = {}
    for cls in BALANCERS[name].__mro__[:-1]:
        arguments |= inspect.signature(cls).parameters
    known = sorted(k for k, v in arguments.items() if isinstance(v.default, int | float))
    kwargs = {}
    for part in filter(None, rest.split(',')):
        key, _, value = part.partition('=')
        if key not in known:
            takes = ', '.join(known) or 'no arguments'
            raise ValueError(f'--balance={text}: {name} takes {takes}, not {key}')
        whole = isinstance(arguments[key].default, int)
        try:
            kwargs[key] = int(value) if whole else float(value)
        except ValueError:
            kind = 'whole number' if whole else 'number'
            raise ValueError(f'--balance={text}: {key} is a {kind}, not {value!r}') from None
    return {'balance': name, 'balance_kwargs': kwargs}


def current_balance(text: str) -> str:
    """The text of --balance with the name that this revision has for it."""
    name, colon, rest = text.partition(':')
    return BALANCE_ALIASES.get(name, name) + colon + rest


def conditions_of(o: dict[str, Any], dataset: ImageFolderDataset) -> tuple[list[str], str | None]:
    """(names of the network's conditions, the folder or zip of pairs) that --cond and --condition ask for."""

    def labels() -> tuple[str, int]:
        labelled = ImageFolderDataset(o['data'], use_labels=True)
        return 'class' if labelled.has_class_labels else 'vector', labelled.label_dim

    names, pairs = training_names(o['condition'], o['cond'], labels, lambda path: ImageFolderDataset(path).num_channels)
    ConditionSet(names, dataset.num_channels)  # raises for names that do not fit the images or each other
    if pairs and o['augment']:
        raise ValueError('--augment moves images and not their pairs (--condition=image): use one of them')
    if o['val_pairs'] and not (pairs and o['val_data']):
        raise ValueError('--val-pairs are the pairs of --val-data, with --condition=image:PATH; both are needed')
    if o['condition_dropout'] and not names:
        raise ValueError('--condition-dropout needs a --condition to drop')
    if o['condition_to'] == 'heads' and not (names and o['prior'] == 'head'):
        raise ValueError('--condition-to=heads needs a --condition and --prior=head')
    return names, pairs


def _halflives(text: str) -> list[float]:
    """'0.5,0.05' in Mimg as [500000.0, 50000.0]."""
    try:
        halflives = [float(part) * 1e6 for part in text.split(',')]
    except ValueError:
        halflives = [-1.0]
    if not all(0 <= h < math.inf for h in halflives):
        raise ValueError(f'--ema={text}: give half-lives in Mimg, such as 0.5 or 0.5,0.05')
    if len({ema_label(h) for h in halflives}) < len(halflives):
        raise ValueError(f'--ema={text}: two of the half-lives are the same')
    return halflives


def _numbers(o: dict[str, Any], name: str) -> list[int] | None:
    """An option '1,2,4' as [1, 2, 4]."""
    if o[name] is None:
        return None
    try:
        values = [int(part) for part in o[name].split(',')]
    except ValueError:
        raise ValueError(f'--{name}={o[name]}: give numbers separated by commas, such as 64,64,32') from None
    if min(values) < 1:
        raise ValueError(f'--{name}={o[name]}: numbers start at 1')
    return values


def _grids(text: str) -> list[list[int]]:
    """'1,2x4' as [[1, 1], [2, 4]]."""
    found = [re.fullmatch(r'\s*([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?\s*', part) for part in text.split(',')]
    if None in found:
        raise ValueError(f'--grids={text}: give numbers of cells a side, such as 1,2,4 or 1x1,2x4')
    return [[int(m[1]), int(m[2] or m[1])] for m in found]
