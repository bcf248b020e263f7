"""Contestants of the benchmarks: the backbone without any DDL (the limit) and the public implementations.

The peers (both MIT) come with an extra. Use a separate environment, since their dependencies are many; without the
constraints another PyTorch is installed:

    pip install -c constraints.txt -e '.[peers]'
    python -m benchmarks.ddl

or, much smaller, only what a layer needs, in a folder that PYTHONPATH names:

    pip install --no-deps --target peers sddn==0.0.2 discrete-distribution-network==0.2.5 boxx opencv-python-headless \\
        pandas tabulate scikit-image seaborn snakeviz pyopengl matplotlib python-dateutil six pytz tzdata lazy_loader \\
        cycler kiwisolver pyparsing contourpy fonttools tornado x-mlps-pytorch torch-einops-utils ema-pytorch \\
        accelerate pyyaml huggingface_hub einops einx frozendict x-transformers jaxtyping wadler-lindig beartype \\
        loguru platformdirs
    PYTHONPATH=peers python -m benchmarks.ddl

Legend: B images, K nodes, L layers, C image channels, H x W pixels.
"""

import contextlib
import importlib
import sys
import types
from collections.abc import Callable

import click
import torch
from torch import nn

from benchmarks.common import CLOCK, OUT, Call, extra_memory, interleaved, medians, ratio
from cli.tables import markdown
from ddn_networks import DDN, Choice, published_config
from ddn_networks.closed_forms import full_precision
from ddn_networks.ddl import Selection
from ddn_networks.samplers import Pyramid, Sampler
from torch_utils.misc import compile_, host_syncs, memory_format

CONFIGURATIONS = ('cpu', 'cifar10', '64x64')
INEXACT = 'layers in bf16'  # a contestant's name ends so where its layers are under autocast, too
BATCHES = {'cpu': 64, 'cifar10': 4, '64x64': 1}  # that two cores can bear


def configuration(name: str, num_nodes: int) -> dict:
    """Constructor arguments of a network with up to ``num_nodes`` nodes a layer: 'cifar10' and '64x64' as published,
    'cpu' as train.py's preset mnist-cpu, except for K."""
    if name == 'cpu':
        return {'img_resolution': 32, 'img_channels': 1, 'channels': [64, 32, 16], 'num_blocks': [4, 4, 2],
                'num_nodes': [num_nodes] * 3}  # fmt: skip
    return published_config(*{'cifar10': (32, num_nodes, 32), '64x64': (64, num_nodes, 64)}[name])


def load_sddn() -> types.ModuleType | None:
    """Import the authors' core library; None where it is not installed."""
    try:
        return importlib.import_module('sddn')
    except ImportError:
        return None


def load_guided_sampler() -> type[nn.Module] | None:
    """Import ``GuidedSampler`` of discrete-distribution-network; None where it is not installed.

    The package imports torchvision for image transforms, which a layer does not need: an empty module replaces it where
    it is missing or does not fit this PyTorch (it then raises RuntimeError).
    """
    try:
        importlib.import_module('torchvision')
    except (ImportError, RuntimeError):
        stand_ins = {name: types.ModuleType(name) for name in ('torchvision.transforms', 'torchvision.utils')}
        stand_ins['torchvision.utils'].save_image = None
        stand_ins['torchvision'] = types.ModuleType('torchvision')
        stand_ins['torchvision'].transforms = stand_ins['torchvision.transforms']
        sys.modules.update(stand_ins)
    try:
        return importlib.import_module('discrete_distribution_network').GuidedSampler
    except ImportError:
        return None


def blocks_in(precision: str, device: torch.device) -> torch.autocast:
    """The training loop's context for 'fp32' or 'bf16' blocks."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == 'bf16')


class Backbone(nn.Module):
    """The blocks of a DDN in a row with nothing in between: the limit of speed for any layer."""

    def __init__(self, net: DDN):
        super().__init__()
        self.specs = net.specs
        self.blocks = net.blocks  # the same modules
        self.start = net.start

    def forward(self, batch_size: int) -> torch.Tensor:
        """The features of the last block, [B, C_L, H, W]."""
        x = self.start.repeat(batch_size, 1, 1, 1)  # [B, C_0, h, w]
        for spec, block in zip(self.specs, self.blocks, strict=True):
            x = block(x, spec.feature_size)
        return x


class SddnLayer(nn.Module):
    """``sddn``'s layer with the interface of a ``DDL``.

    It ignores the sampler, since the layer chooses by itself: the nearest to ``target`` in training, ``codes`` [B, L]
    otherwise. ``exact``: compute in float32, as ours does, at any precision of the blocks; else under their
    autocast, where it compares images of 8 bits.
    """

    def __init__(self, in_channels: int, num_nodes: int, img_channels: int, size: int):
        super().__init__()
        output = load_sddn().DiscreteDistributionOutput
        self.layer = output(num_nodes, in_channels, img_channels, leak_choice=True, size=size)
        output.inits.clear()  # a global list that would keep all layers alive
        self.size = size
        self.target: Pyramid | None = None
        self.codes: torch.Tensor | None = None
        self.exact = True

    def forward(
        self,
        x: torch.Tensor,
        base: torch.Tensor | None,
        sampler: Sampler,
        layer: int,
        so_far: torch.Tensor | None,
        sharing: None,
        next_input: bool,
    ) -> Selection:
        features = x.contiguous()  # it would copy all K candidates otherwise
        d = {'feat_last': features.float() if self.exact else features}
        if base is not None:
            d['predict'] = base
        codes = torch.zeros(len(x), dtype=torch.int64)  # in training it counts by itself and does not return them
        if self.training:
            target = self.target((self.size, self.size))
            d |= {'target': target, f'target_{self.size}x{self.size}': target}
        else:
            codes = self.codes[:, layer]
            d['idx_ks'] = [codes]
        with full_precision(x) if self.exact else contextlib.nullcontext():
            d = self.layer(d)
        image, leak, following = d['predict'], d['feat_leak'], None
        if next_input:
            between = x.shape[1] - image.shape[1] - leak.shape[1]
            following = x + torch.cat([image, image.new_zeros(len(x), between, *x.shape[2:]), leak], 1).to(x.dtype)
        codes = codes[:, None]
        so_far = codes if so_far is None else torch.cat([so_far, codes], 1)
        return Selection(Choice(so_far[:, -1]), image, leak, so_far, next_input=following)


def with_sddn(net: DDN) -> DDN:
    """Replace the layers of ``net`` by ``sddn``'s, in place."""
    layers = [SddnLayer(spec.channels, spec.num_nodes, net.img_channels, spec.size[0]) for spec in net.specs]
    net.ddls = nn.ModuleList(layers)
    return net


def networks(name: str, num_nodes: list[int], sddn_nodes: int | None, device: str) -> dict[str, nn.Module]:
    """{name: network} of a configuration's table: the backbone, ours with each K, ``sddn``'s layers with one K. All
    share the blocks."""
    ours = {f'ours K {k}': DDN(**configuration(name, k)) for k in num_nodes}
    blocks = next(iter(ours.values())).blocks
    made = {'backbone': Backbone(next(iter(ours.values()))), **ours}
    if sddn_nodes is not None and load_sddn() is not None:
        made[f'sddn K {sddn_nodes}'] = with_sddn(DDN(**configuration(name, sddn_nodes)))
        made[f'sddn K {sddn_nodes}, {INEXACT}'] = made[f'sddn K {sddn_nodes}']
    for net in made.values():
        net.blocks = blocks
        net.to(device)
    return made


def lay_out_(net: nn.Module, format_: torch.memory_format) -> None:
    """Convert a network's weights to a memory layout, as the training loop does, in place.

    ``sddn``'s kernels keep their own: channels last, its K images would be so too, and its layer take twice the time.
    """
    net.to(memory_format=format_)
    for layer in (module.layer for module in net.modules() if isinstance(module, SddnLayer)):
        kernels = layer.multi_out_conv1x1.weight  # [K C, F, 1, 1], whose strides alone say how it is laid out
        kernels.data = kernels.data.flatten(1).view(kernels.shape)


def set_choice_(net: DDN, exact: bool, target: Pyramid | None = None, codes: torch.Tensor | None = None) -> None:
    """Set how the ``SddnLayer``s of a network choose, and their precision."""
    for ddl in net.ddls:
        ddl.exact, ddl.target, ddl.codes = exact, target, codes


def network_options(command):
    """Decorator: the command-line options of the benchmarks of whole networks."""
    names = ', '.join(CONFIGURATIONS)
    some = click.IntRange(min=1)
    for option in (
        OUT,
        click.option('--device', metavar='NAME', help='cpu or cuda', default='cpu'),
        click.option('--quick', help='Smallest network, batch 2, two rounds: does everything run?', is_flag=True),
        CLOCK,
        click.option('--repeats', help='Rounds, of which the medians are taken', type=some, default=5),
        click.option('--batch', help='Images at a time  [default: as many as two cores can bear]', type=some),
        click.option('--sddn-nodes', help='K of sddn; 0 for none', type=click.IntRange(min=0), default=512),
        click.option('--nodes', metavar='LIST', help='Largest K of a layer of ours', default='8,64,512'),
        click.option('--precisions', metavar='LIST', help='Precisions of the blocks', default='fp32,bf16'),
        click.option('--configs', metavar='LIST', help=f'Networks: {names}', default=','.join(CONFIGURATIONS)),
    ):
        command = option(command)
    return command


def compare(
    make: Callable[[str, nn.Module, torch.Tensor, str], Call],
    configs: str,
    precisions: str,
    nodes: str,
    sddn_nodes: int,
    batch: int | None,
    repeats: int,
    quick: bool,
    device: str,
    clock: str,
) -> dict[str, list[dict]]:
    """{caption: rows of a table}: contestants against the backbone, per network and precision; on CUDA also compiled.

    ``make(name, net, images, precision)`` returns the call to time.
    """
    if unknown := set(configs.split(',')) - set(CONFIGURATIONS):
        raise ValueError(f'--configs={",".join(unknown)}: unknown; choose from {", ".join(CONFIGURATIONS)}')
    tables = {}
    for config in ['cpu'] if quick else configs.split(','):
        nets = networks(config, [int(k) for k in nodes.split(',')], sddn_nodes or None, device)
        B = batch or (2 if quick else BATCHES[config])
        images = smooth_images(next(net for net in nets.values() if isinstance(net, DDN)), B).to(device)
        for compiled in (False, True) if device.startswith('cuda') else (False,):
            if compiled:
                compile_(nets['backbone'].blocks, dynamic=False)  # which all networks share
            for precision in precisions.split(','):
                for net in nets.values():
                    lay_out_(net, memory_format(torch.device(device), precision))
                names = [name for name in nets if precision != 'fp32' or not name.endswith(INEXACT)]
                calls = {name: make(name, nets[name], images, precision) for name in names}
                rounds, burst = (2, 0.0) if quick else (repeats, 1.0)
                seconds = interleaved(calls, rounds, burst, device=device, clock=clock)
                caption = f'{config}, batch {B}, {precision}{", blocks compiled" if compiled else ""}'
                tables[caption] = [_row(name, calls[name], seconds, B, device) for name in calls]
                click.echo(f'{caption}\n\n{markdown(tables[caption])}\n')
    return tables


def smooth_images(net: DDN, batch: int) -> torch.Tensor:
    """Smooth random images [B, C, H, W] in [-1, 1]."""
    low = torch.rand(batch, net.img_channels, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return nn.functional.interpolate(low, size=net.img_resolution, mode='bilinear')


def _row(name: str, call: Call, seconds: dict[str, list[float]], batch: int, device: str) -> dict:
    row = {
        'network': name,
        'seconds': medians(seconds)[name],
        'images/s': batch / medians(seconds)[name],
        'x / backbone': ratio(seconds, name, 'backbone'),
    }
    ours = [n for n in seconds if n.startswith('ours')]
    row['x / ours, least K'] = ratio(seconds, name, ours[0]) if name in ours else None
    row['sddn / x'] = next((ratio(seconds, n, name) for n in seconds if n.startswith('sddn')), None)  # the exact one
    if device.startswith('cuda'):
        row['peak MB'] = extra_memory(call, device) / 2**20
        with host_syncs() as places:
            call()
        row['host waits'] = len(places)
    return row


def verdict(tables: dict[str, list[dict]], limit: float, flat: float, faster: float) -> str:
    """The goals and the results, a line per table."""
    lines = [f'Goals: at most {limit} times the backbone, flat over K to {flat:.0%}, {faster} times faster than sddn.']
    for caption, rows in tables.items():
        ours = [row for row in rows if row['network'].startswith('ours')]
        worst, spread = max(r['x / backbone'] for r in ours), max(r['x / ours, least K'] for r in ours) - 1
        sddn = '' if ours[-1]['sddn / x'] is None else f', sddn takes {ours[-1]["sddn / x"]:.2f} times ours'
        lines.append(f'{caption}: {worst:.2f} times the backbone, {spread:+.1%} from the least K at worst{sddn}')
    return '\n'.join(lines)
