"""Recurrence Iteration (Fig. 3c): one UNet and one DDL, applied L times, each to the image selected before.

Legend: B images, L steps, K nodes, C image channels, F feature channels, H x W pixels, S sizes of the UNet.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ddn_networks import samplers
from ddn_networks.blocks import ResBlock, num_groups
from ddn_networks.cells import checked_grid
from ddn_networks.code_priors import over_codes
from ddn_networks.condition_set import ConditionSet
from ddn_networks.ddl import DDL, Selection
from ddn_networks.network import LayerSpec, Network, resolution_pair, scale_sizes
from ddn_networks.prior import PriorHead
from ddn_networks.snapshots import persistent_class

STEP_FREQUENCIES = 8  # sines and cosines that encode the number of a step


class UNet(nn.Module):
    """A UNet, [B, C_in, H, W] -> [B, widths[0], H, W]: blocks at ever smaller sizes, then blocks on the way up that
    also see the features of the way down.

    Args:
        in_channels: C_in.
        sizes: S sizes (H, W), fine to coarse.
        widths: feature channels of each size.
        num_blocks: on the way down at each size, and as many on the way up.
        dropout: inside the blocks.
    """

    def __init__(
        self,
        in_channels: int,
        sizes: Sequence[tuple[int, int]],
        widths: Sequence[int],
        num_blocks: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.sizes = list(sizes)
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)

        def stage(before: int, width: int) -> nn.ModuleList:
            widths_in = [before] + [width] * (num_blocks - 1)
            return nn.ModuleList(ResBlock(w, width, dropout=dropout) for w in widths_in)

        self.down = nn.ModuleList(stage(a, b) for a, b in zip([widths[0], *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(stage(a + b, b) for a, b in zip(widths[1:], widths[:-1], strict=True))

    @property
    def blocks(self) -> list[ResBlock]:
        return [block for stage in (*self.down, *self.up) for block in stage]

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        """``shift`` [widths[0]] is added to every pixel after the first convolution."""
        x = self.conv_in(x)
        if shift is not None:
            x = x + shift[:, None, None]
        seen = []
        for size, stage in zip(self.sizes, self.down, strict=True):
            x = samplers.area_resize(x, size)
            for block in stage:
                x = block(x, size)
            seen.append(x)
        seen.pop()
        for size, stage in zip(self.sizes[-2::-1], reversed(self.up), strict=True):
            x = torch.cat([F.interpolate(x, size=size, mode='nearest'), seen.pop()], 1)
            for block in stage:
                x = block(x, size)
        return x


@persistent_class
class RecurrentDDN(Network):
    """Discrete Distribution Network by Recurrence Iteration. The defaults are the size of the paper's network for
    MNIST: 404,422 parameters at 32x32 (there: about 407,000).

    A step sees the selected image and the leak of the step before, the features of the step before, and where each
    pixel is; before the first step they are zero. With the published width of 10, K = 64 images that read 10 features
    would all lie in one space of 10 dimensions, so a 3x3 convolution widens the features for the DDL.

    Args:
        img_resolution: H = W, or (H, W); any size.
        img_channels: C, 1 (grey), 3 (RGB) or 4 (RGBA).
        num_nodes: K.
        num_layers: L, steps. May be set to another number later: the weights are the same for any.
        base_width: feature channels at full size.
        multipliers: feature channels of each size in units of ``base_width``, fine to coarse; sizes halve.
        num_blocks: residual blocks of each size on the way down, and on the way up.
        grid: cells that choose at every step, an int or (rows, columns). See ``cells``.
        features: channels that the DDL gets; with ``leak_choice`` half of them make the candidates.
        carry_features: a step sees the features of the one before, not its image and leak alone.
        embed_step: a step gets its number as an embedding.
        learning_residual: candidates are added to the image selected before (Section 3.3).
        leak_choice: see ``DDL``.
        dropout: inside the blocks, in training mode only.
        prior_width, prior_gradient, prior_kind, condition_to: see ``DDN``; one head serves all steps.
        finisher_width: see ``DDN``.
        condition_channels, augment_dim, conditions, condition_optional: see ``DDN``; every step sees the condition.
    """

    def __init__(
        self,
        img_resolution: int | Sequence[int],
        img_channels: int,
        num_nodes: int = 64,
        num_layers: int = 10,
        base_width: int = 10,
        multipliers: Sequence[int] = (1, 2, 4, 8),
        num_blocks: int = 2,
        features: int = 64,
        carry_features: bool = True,
        embed_step: bool = True,
        learning_residual: bool = True,
        leak_choice: bool = True,
        dropout: float = 0.0,
        condition_channels: int = 0,
        augment_dim: int = 0,
        conditions: Sequence[str] = (),
        condition_optional: bool = False,
        grid: int | Sequence[int] = 1,
        prior_width: int = 0,
        prior_gradient: float = 0.0,
        prior_kind: str = 'head',
        condition_to: str = 'all',
        finisher_width: int = 0,
    ):
        super().__init__()
        if not multipliers or min(base_width, num_blocks, features, *multipliers) < 1:
            raise ValueError(
                'a recurrent network needs at least one block, feature and channel, not '
                f'num_blocks={num_blocks}, features={features}, base_width={base_width}, multipliers={multipliers}'
            )
        self.img_resolution = resolution_pair(img_resolution)
        self.img_channels = img_channels
        self.conditions = ConditionSet(conditions, img_channels, condition_optional, condition_channels)
        heads = prior_kind == 'head' and prior_width > 0
        self.condition_to = self._checked_condition_to(condition_to, heads)
        self.learning_residual = learning_residual
        self.carry_features = carry_features
        self.augment_dim = augment_dim
        self.dropout = dropout
        self.num_layers = num_layers
        grid = checked_grid(grid, self.img_resolution)
        self.layer_spec = LayerSpec(self.img_resolution, features, num_nodes, grid)
        widths = [base_width * m for m in multipliers]
        self.input_channels = [  # of the parts of `_step_input`
            img_channels,
            img_channels if leak_choice else 0,
            base_width if carry_features else 0,
            self.feature_condition_channels,
            augment_dim,
        ]
        position = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in self.img_resolution), indexing='ij')
        self.register_buffer('position', torch.stack(position)[None], persistent=False)  # [1, 2, H, W]
        sizes = scale_sizes(self.img_resolution, len(widths))[::-1]
        self.unet = UNet(2 + sum(self.input_channels), sizes, widths, num_blocks, dropout)
        self.step_shift = nn.Linear(2 * STEP_FREQUENCIES, base_width) if embed_step else None
        self.norm_out = nn.GroupNorm(num_groups(base_width), base_width, eps=1e-6)
        self.conv_out = nn.Conv2d(base_width, features, 3, padding=1)
        self.ddls = nn.ModuleList([DDL(features, num_nodes, img_channels, leak_choice, grid)])
        self.prior_gradient = prior_gradient
        seen, size = features + self.head_condition_channels, self.img_resolution
        head = [PriorHead(seen, num_nodes, size, grid, prior_width, steps=True)] if heads else []
        self.prior = nn.ModuleList([*head, *over_codes(prior_kind, prior_width, self.specs)])
        self.finisher = self._new_finisher(finisher_width)
        for conv in (self.unet.conv_in, self.conv_out):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    @property
    def num_layers(self) -> int:
        """L, the number of steps. Settable; a snapshot keeps the L of the constructor."""
        return self._num_layers

    @num_layers.setter
    def num_layers(self, value: int) -> None:
        if value < 1:
            raise ValueError(f'a network makes at least 1 step, not {value}')
        self._num_layers = int(value)

    @property
    def specs(self) -> list[LayerSpec]:
        return [self.layer_spec] * self.num_layers

    @property
    def ddl_of_layer(self) -> list[int]:
        return [0] * self.num_layers

    @property
    def blocks(self) -> list[ResBlock]:
        return self.unet.blocks

    def layer_modules(self, layer: int) -> list[nn.Module]:
        return [self]

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
        shared = self.sharing(batch_size, condition, augment_labels) if share_prefixes else None
        image = leak = hidden = codes = None
        for step in range(self.num_layers):
            num = batch_size if shared is None else len(shared.first)
            x = self._step_input(num, image, leak, hidden, condition, augment_labels)  # [B or U, 2 + C + ..., H, W]
            if grad_checkpoint and self.training and torch.is_grad_enabled():
                x, hidden = checkpoint(self._features, x, step, use_reentrant=False)
            else:
                x, hidden = self._features(x, step)  # [B or U, F, H, W], [B or U, base_width, H, W]
            base = image if self.learning_residual else None
            selection = self.ddls[0](x, base, sampler, step, codes, shared, prior=self._head(step, condition))
            image, leak = selection.partial, selection.leak  # [B or U, C, H, W]
            codes, shared = selection.codes, selection.sharing
            if selection.continues is not None:
                hidden = hidden.index_select(0, selection.continues)
            yield selection

    def _step_input(self, batch_size: int, *seen: torch.Tensor | None) -> torch.Tensor:
        """The input of a step, concatenated: position, image, leak, features, condition, augment labels; zero where
        there is none."""
        size = self.img_resolution
        parts = [self.position.expand(batch_size, -1, -1, -1)]
        for channels, part in zip(self.input_channels, seen, strict=True):
            if channels and part is None:
                parts.append(self.position.new_zeros(batch_size, channels, *size))
            elif channels and part.ndim == 2:
                parts.append(part[:, :, None, None].expand(-1, -1, *size))
            elif channels:
                parts.append(samplers.area_resize(part, size).expand(batch_size, -1, -1, -1))
        return torch.cat([part.to(self.position.dtype) for part in parts], 1)

    def _features(self, x: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        shift = None
        if self.step_shift is not None:
            dtype = torch.promote_types(x.dtype, torch.float32)
            steps = torch.arange(STEP_FREQUENCIES, dtype=dtype, device=x.device)
            angles = step * 0.5**steps  # periods of 2 pi to 256 pi steps
            shift = self.step_shift(torch.cat([angles.sin(), angles.cos()]).to(x.dtype))
        hidden = F.silu(self.norm_out(self.unet(x, shift)))
        return self.conv_out(hidden), hidden
