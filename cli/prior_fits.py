"""Fit a prior to the network of a snapshot, as ``train.py --fit-prior`` does."""

from collections.abc import Callable
from typing import Any

import torch

from cli.networks import load_network
from cli.sampling_defaults import measured
from cli.training_arguments import HELD_OUT, conditions_of
from ddn_networks import Network, snapshots
from torch_utils import distributed as dist
from training import prior_fitting, report
from training.dataset import ImageFolderDataset, open_training_data
from training.training_loop import NUM_VALIDATION

# Options that training and fitting have in common, and other defaults here: minutes of one core.
DEFAULTS = {
    'head': {'duration': 0.1, 'batch': 64, 'lr': 2e-3, 'prior_width': 64},
    'counts': {'duration': 0.05, 'batch': 128},
    'transformer': {'duration': 0.1, 'batch': 128, 'lr': 1.5e-3, 'prior_width': 96},
}
# What has no meaning for a network whose layers stay as they are.
FOREIGN = (
    'resume', 'preset', 'arch', 'nodes', 'blocks', 'channels', 'cbase', 'cres', 'max_k', 'max_blocks', 'grids', 'steps',
    'base_width', 'balance', 'transfer', 'prior_gradient', 'augment', 'ema', 'compile', 'fp16', 'precision',
)  # fmt: skip
# Further options of training that fitting does not read, always or for a kind of prior.
UNREAD = (
    'unshuffle', 'repeat_blocks', 'learning_residual', 'leak_choice', 'dropout', 'fit_finisher', 'finisher_width',
    'lpips', 'val_pairs', 'lr_ramp', 'lr_decay', 'beta2', 'on_nan', 'batch_gpu', 'ls', 'grad_checkpoint',
    'share_prefixes', 'bench', 'tick', 'snap', 'dump', 'tensorboard',
)  # fmt: skip
UNREAD_BY = {'counts': ('lr', 'prior_width', 'prior_clean', 'prior_soft', 'chain_dropout')}
REPEATS = 4  # steps of a transformer per batch of images


def options(o: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """The options with the defaults of fitting. ValueError for one that means nothing here."""
    kind = o['prior'] if o['prior'] != 'none' else 'head'
    for name in (*FOREIGN, *UNREAD, *UNREAD_BY.get(kind, ())):
        if name in given:
            by = f' --prior={kind}' if name not in (*FOREIGN, *UNREAD) else ''
            raise ValueError(f'--{name.replace("_", "-")} does nothing with --fit-prior{by}: leave it out')
    defaults = {name: value for name, value in DEFAULTS[kind].items() if name not in given}
    return {**o, **defaults, 'prior': kind}


def with_new(source: Network, part: str, changes: dict[str, Any], dataset: ImageFolderDataset) -> Network:
    """The network of ``source`` built with ``changes``, whose ``part`` ('prior' or 'finisher') is new. ValueError where
    the images do not fit it."""
    shape = (source.img_channels, *source.img_resolution)
    if tuple(dataset.image_shape) != shape:
        path = dataset.archive.path
        raise ValueError(f'{path}: the images are {list(dataset.image_shape)}, those of the network {list(shape)}')
    spec = snapshots.init_spec(source)
    net = snapshots.rebuild({**spec, 'kwargs': {**spec['kwargs'], **changes}})
    if any(condition.takes == 'pair' for condition in net.conditions):
        raise ValueError(f'--fit-{part} is not for networks whose condition is a pair of the image')
    own = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith(f'{part}.')}
    net.load_state_dict({**net.state_dict(), **own})
    return net.to(source.device).eval()


def fit_of(net: Network, o: dict[str, Any], seed: int) -> prior_fitting.Fit:
    """The network with the images of the options."""
    kwargs = {'path': o['data'], 'xflip': o['xflip'], 'cache': o['cache']}
    kwargs |= {'use_labels': True} if net.conditions.labels is not None else {}
    data = open_training_data(kwargs, NUM_VALIDATION, o['val_data'], held_out_share=HELD_OUT)
    return prior_fitting.Fit(net, data, seed, o['condition_dropout'])


def conditions_of_heads(source: Network, o: dict[str, Any], dataset: ImageFolderDataset) -> dict[str, Any]:
    """Arguments for a condition that the new heads of an unconditional network are given."""
    names, _ = conditions_of(o, dataset)
    if not names:
        return {}
    if source.condition_channels or o['condition_to'] != 'heads' or o['prior'] != 'head':
        raise ValueError(
            '--fit-prior with a --condition is for heads of a network that has none: add --condition-to=heads '
            '--prior=head, or leave --condition out'
        )
    return {'conditions': names, 'condition_optional': o['condition_dropout'] > 0, 'condition_to': 'heads'}


def fitted(o: dict[str, Any], seed: int, device: torch.device, say: Callable[[str], None]) -> tuple[Network, int]:
    """(the network with a prior, images it was fitted to). ``o``: as ``options`` returns them."""
    if dist.get_world_size() > 1:
        raise ValueError('--fit-prior runs in one process: start it by python, not torchrun')
    torch.manual_seed(seed)
    source, dataset = load_network(o['fit_prior'], device=device), ImageFolderDataset(o['data'])
    changes = {'prior_kind': o['prior'], 'prior_width': o['prior_width'], 'prior_gradient': 0.0}
    net = with_new(source, 'prior', changes | conditions_of_heads(source, o, dataset), dataset)
    net.snapshot_meta = {key: value for key, value in source.snapshot_meta.items() if key == 'finisher'}
    fit = fit_of(net, o, seed)
    data = fit.data
    total = max(1, int(o['duration'] * 1e6))
    say(f'Fitting a prior to {o["fit_prior"]}: {o["prior"]}, {len(data.loaded):,} images of {data.images.name}')
    if o['prior'] == 'counts':
        total = prior_fitting.count(fit, total, o['batch'], o['workers'])
    else:
        prior_fitting.learn(
            fit, total, o['batch'], o['lr'], say, o['prior_clean'], o['prior_soft'], o['chain_dropout'],
            repeats=REPEATS, num_workers=o['workers'],
        )  # fmt: skip
    layers = fit.held_out_nats()
    net.sampling = measured(fit, o['temperature_from'], say)
    say(report.layer_table(net, fit.held_out_bits()))
    nats, uniform = prior_fitting.mean_nats(net, layers), prior_fitting.uniform_nats(net)
    say(f'Held-out images: {nats:.4f} nats per code by the prior, {uniform:.4f} by uniform choices')
    return net, total
