"""The Single Shot Generator (Fig. 3b): a decoder from a constant 1x1 feature to the image, with a DDL after each block.

Legend: B images, L layers, K nodes, C image channels, H x W pixels, S scales.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ddn_networks import pixel_maps, samplers
from ddn_networks.blocks import ResBlock
from ddn_networks.candidates import pixel_unshuffle
from ddn_networks.cells import checked_grid
from ddn_networks.code_priors import over_codes
from ddn_networks.condition_set import ConditionSet
from ddn_networks.ddl import DDL, Selection
from ddn_networks.network import LayerSpec, Network, resolution_pair, scale_sizes
from ddn_networks.prior import PriorHead
from ddn_networks.snapshots import persistent_class


@persistent_class
class DDN(Network):
    """Discrete Distribution Network, single-shot generator.

    Args:
        img_resolution: H = W, or (H, W); any size. Scale s has H and W halved (rounded up) S - 1 - s times.
        img_channels: C, 1 (grey), 3 (RGB) or 4 (RGBA).
        channels, num_blocks, num_nodes: one number per scale, coarse to fine: feature channels, blocks (= DDLs), K.
            With as many scales as the resolution halves the first is 1x1, as published; with fewer it is larger.
        learning_residual: candidates are added to the image selected before, resized bilinearly (Section 3.3).
        leak_choice: see ``DDL``.
        dropout: inside the blocks, in training mode only.
        condition_channels: channels of an image-like condition, 0 for none; it enters once per scale.
        conditions: what the condition is made of, by name, such as ['class:10', 'color'] (see ``conditions``); they say
            how many channels it has.
        condition_optional: a missing condition counts as zero, which training with condition dropout makes true.
        condition_placement: first of the C feature channels to which a condition of c channels is added: 'published',
            C // 2 - c // 2, or 'centred', (C - c) // 2, as networks of earlier revisions have it.
        augment_dim: labels that the augment pipe gives an image in training, 0 for none; they enter like a condition,
            in the adjacent channels, and are zero everywhere else.
        grids: cells that choose, one grid per scale or one per layer, each an int or (rows, columns); () for whole
            images everywhere. See ``cells``.
        prior_width: channels of the heads of the network's own prior (``prior``); 0 for no prior.
        prior_gradient: the share of the heads' gradient that training lets into the features.
        prior_kind: 'head'; or 'counts' (whatever the width) or 'transformer' of that width, see ``code_priors``.
        condition_to: 'all', or 'heads': only the heads of the prior are given the condition.
        finisher_width: channels at full size of the ``finisher``; 0 for none.
        unshuffle: 2 for layers of the last scale whose features have half of the picture's height and width, and whose
            1x1 convolutions make the four pixels of each 2x2 block: most of a last scale at a fraction of its
            arithmetic. 1 for features of the picture's size.
        repeat_blocks: all blocks of a scale after its first are one, applied again and again with one DDL: Recurrence
            Iteration (Fig. 3c) within a single-shot generator.
    """

    def __init__(
        self,
        img_resolution: int | Sequence[int],
        img_channels: int,
        channels: Sequence[int],
        num_blocks: Sequence[int],
        num_nodes: Sequence[int],
        learning_residual: bool = True,
        leak_choice: bool = True,
        dropout: float = 0.0,
        condition_channels: int = 0,
        augment_dim: int = 0,
        repeat_blocks: bool = False,
        conditions: Sequence[str] = (),
        condition_optional: bool = False,
        condition_placement: str = 'published',
        grids: Sequence[int | Sequence[int]] = (),
        prior_width: int = 0,
        prior_gradient: float = 0.0,
        prior_kind: str = 'head',
        condition_to: str = 'all',
        finisher_width: int = 0,
        unshuffle: int = 1,
    ):
        super().__init__()
        if condition_placement not in ('published', 'centred'):
            raise ValueError(f"condition_placement is 'published' or 'centred', not {condition_placement!r}")
        if not len(channels) == len(num_blocks) == len(num_nodes) > 0 or min(num_blocks) < 1:
            raise ValueError(
                'channels, num_blocks and num_nodes need one number per scale and at least one block each, not '
                f'{list(channels)}, {list(num_blocks)}, {list(num_nodes)}'
            )
        self.img_channels = img_channels
        self.conditions = ConditionSet(conditions, img_channels, condition_optional, condition_channels)
        heads = prior_kind == 'head' and prior_width > 0
        self.condition_to = self._checked_condition_to(condition_to, heads)
        self.img_resolution = resolution_pair(img_resolution)
        if unshuffle not in (1, 2) or any(side % unshuffle for side in self.img_resolution):
            raise ValueError(
                f'unshuffle is 1, or 2 for images of even height and width, not {unshuffle} for '
                f'{self.img_resolution[0]}x{self.img_resolution[1]}'
            )
        least = max(img_channels, self.feature_condition_channels + augment_dim)
        top = max(img_channels * unshuffle**2, self.feature_condition_channels * unshuffle**2 + augment_dim)
        if min(channels) < least or channels[-1] < top:
            needs = f'every scale needs {least} channels or more' + f', the last {top}' * (top > least)
            raise ValueError(f'{needs}, for image and condition: {channels}')
        self.learning_residual = learning_residual
        self.augment_dim = augment_dim
        self.condition_placement = condition_placement
        self.dropout = dropout
        sizes = scale_sizes(self.img_resolution, len(channels))
        specs = [
            LayerSpec(size, c, k)
            for size, c, n, k in zip(sizes, channels, num_blocks, num_nodes, strict=True)
            for _ in range(n)
        ]
        for layer in range(len(specs) - num_blocks[-1], len(specs)):
            specs[layer] = specs[layer]._replace(unshuffle=unshuffle)
        self.specs = [
            spec._replace(grid=checked_grid(grid, spec.feature_size))
            for spec, grid in zip(specs, _grids_of_layers(grids, num_blocks), strict=True)
        ]
        # The constant that the network begins with. At 1x1 it is the published one; a larger first scale learns where
        # it is, since convolutions cannot tell the places of a constant image apart.
        first = self.specs[0].feature_size
        if first == (1, 1):
            self.register_buffer('start', torch.linspace(-1, 1, channels[0]).view(1, -1, 1, 1), persistent=False)
        else:
            self.start = nn.Parameter(torch.randn(1, channels[0], *first))  # [1, C_0, h, w]
        self.blocks = nn.ModuleList()
        self.ddls = nn.ModuleList()
        self.ddl_of_layer = []  # which block and DDL each layer goes through
        before = LayerSpec(first, channels[0], 0)
        for layer, spec in enumerate(self.specs):
            up = spec.feature_size != before.feature_size
            if repeat_blocks and layer > 1 and spec == before == self.specs[layer - 2]:
                self.ddl_of_layer.append(self.ddl_of_layer[-1])
                continue
            self.ddl_of_layer.append(len(self.blocks))
            self.blocks.append(ResBlock(before.channels, spec.channels, up=up, dropout=dropout))
            self.ddls.append(DDL(spec.channels, spec.num_nodes, img_channels, leak_choice, spec.grid, spec.unshuffle))
            before = spec
        self.prior_gradient = prior_gradient
        self.prior = nn.ModuleList(
            PriorHead(
                spec.channels + self.head_condition_channels, spec.num_nodes, spec.feature_size, spec.grid, prior_width
            )
            for spec in self.specs
            if heads
        )
        self.prior.extend(over_codes(prior_kind, prior_width, self.specs))
        self.finisher = self._new_finisher(finisher_width)

    def layer_modules(self, layer: int) -> list[nn.Module]:
        return [self.blocks[self.ddl_of_layer[layer]], self.ddls[self.ddl_of_layer[layer]]]

    def condition_place(self, channels: int, unshuffle: int = 1) -> tuple[int, int]:
        """First of the feature channels to which the condition is added, and how many labels of the augment pipe are
        added to the channels before; the others follow the condition."""
        c, num_labels = self.feature_condition_channels * unshuffle**2, self.augment_dim
        if self.condition_placement == 'centred' or not c:
            return (channels - c - num_labels) // 2, 0
        first = channels // 2 - c // 2
        return first, max(num_labels // 2, num_labels - (channels - first - c))

    def walk(
        self,
        sampler: samplers.Sampler,
        batch_size: int,
        condition: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
        share_prefixes: bool = False,
        grad_checkpoint: bool = False,
    ) -> Iterator[Selection]:
        self.check_condition(condition, batch_size)
        self.check_augment_labels(augment_labels, batch_size)
        # Repeated, not expanded: the channels-last strides that a clone of it would have at 1x1, without a gradient,
        # make PyTorch 2.13's group norm read past its end in the backward pass.
        shared = self.sharing(batch_size, condition, augment_labels) if share_prefixes else None
        x = self.start.repeat(batch_size if shared is None else 1, 1, 1, 1)  # [B or U, C_0, h, w]
        image = codes = conditioned = None
        blocks, ddls = list(self.blocks), list(self.ddls)  # asking a ModuleList takes longer
        for layer, (spec, use) in enumerate(zip(self.specs, self.ddl_of_layer, strict=True)):
            block, ddl = blocks[use], ddls[use]
            r = self.specs[max(layer - 1, 0)].unshuffle  # of the layer that made x
            if conditioned != (x.shape[2:], r):  # once per scale
                conditioned = x.shape[2:], r
                first, before = self.condition_place(x.shape[1], r)
                if condition is not None and self.feature_condition_channels:
                    planes = samplers.area_resize(condition, [r * side for side in x.shape[2:]])
                    x = _add_to_channels(x, first, pixel_unshuffle(planes, r))
                if augment_labels is not None:
                    labels = augment_labels[:, :, None, None]
                    x = _add_to_channels(x, first - before, labels[:, :before])
                    x = _add_to_channels(x, first + self.feature_condition_channels * r**2, labels[:, before:])
            if grad_checkpoint and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, spec.feature_size, use_reentrant=False)
            else:
                x = block(x, spec.feature_size)  # [B or U, C_l, H_l, W_l]
            base = pixel_maps.upsample(image, spec.size) if self.learning_residual and image is not None else None
            more = layer + 1 < self.num_layers
            head = self._head(layer, condition)
            selection = ddl(x, base, sampler, layer, codes, shared, next_input=more, prior=head)
            image, x = selection.partial, selection.next_input  # [B or U, C, H_l, W_l], [B or U, C_l, H_l, W_l]
            codes, shared = selection.codes, selection.sharing
            yield selection


def _grids_of_layers(
    grids: Sequence[int | Sequence[int]], num_blocks: Sequence[int]
) -> list[int | Sequence[int]]:
    """One grid per layer, from one per scale or per layer, or none; ValueError where there are as many of neither."""
    L = sum(num_blocks)
    if len(grids) == L:
        return list(grids)
    if grids and len(grids) != len(num_blocks):
        raise ValueError(f'grids needs one for each of {len(num_blocks)} scales or {L} layers, not {len(grids)}')
    return [grid for grid, n in zip(grids or [1] * len(num_blocks), num_blocks, strict=True) for _ in range(n)]


def _add_to_channels(x: torch.Tensor, first: int, y: torch.Tensor) -> torch.Tensor:
    """x [B, C, h, w] with y [B or 1, c, h or 1, w or 1] added to its channels from ``first`` on."""
    return x + F.pad(y, (0, 0, 0, 0, first, x.shape[1] - first - y.shape[1])).to(x.dtype)
