"""The Single Shot Generator (Fig. 3b): a decoder from a constant 1x1 feature to the image, with a DDL after each block.

Legend: B images, L layers, K nodes, C image channels, H x W pixels, S scales.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ddn_networks import guided, samplers
from ddn_networks.blocks import ResBlock
from ddn_networks.ddl import DDL, Selection
from torch_utils import persistence


class LayerSpec(NamedTuple):
    """One layer of the network: its resolution, feature channels and number of nodes."""

    size: tuple[int, int]
    channels: int
    num_nodes: int


class Output(NamedTuple):
    """A forward pass.

    images: [B, C, H, W] the last layer's selected images.
    codes: [B, L] int64, the latent.
    selected: L tensors [B, C, h, w], the selected image of every layer (x*_l of Eq. 2); empty unless asked for.
    distances: L tensors [B, K] or None, what the sampler chose by; empty unless asked for.
    dropped: [B, L] bool, choices that chance made (Chain Dropout), or None where the sampler tells of none.
    """

    images: torch.Tensor
    codes: torch.Tensor
    selected: list[torch.Tensor]
    distances: list[torch.Tensor | None]
    dropped: torch.Tensor | None


def scale_sizes(img_resolution: tuple[int, int], num_scales: int) -> list[tuple[int, int]]:
    """Resolutions of the scales, coarse to fine: each is half of the next, rounded up, so any H x W works."""
    return [tuple(-(-side // 2**s) for side in img_resolution) for s in reversed(range(num_scales))]


def resolution_pair(img_resolution: int | Sequence[int]) -> tuple[int, int]:
    """An int or (H, W) as (H, W)."""
    height, width = (img_resolution,) * 2 if isinstance(img_resolution, int) else img_resolution
    if height < 1 or width < 1:
        raise ValueError(f'a resolution has at least one pixel a side, not {height} x {width}')
    return int(height), int(width)


@persistence.persistent_class
class DDN(nn.Module):
    """Discrete Distribution Network, single-shot generator.

    Args:
        img_resolution: H = W, or (H, W); any size. Scale s has H and W halved (rounded up) S - 1 - s times.
        img_channels: C, 1 (grey), 3 (RGB) or 4 (RGBA).
        channels, num_blocks, num_nodes: one number per scale, coarse to fine: feature channels, blocks (= DDLs), K.
        learning_residual: candidates are added to the image selected before, resized bilinearly (Section 3.3).
        leak_choice: see ``DDL``.
        dropout: inside the blocks, in training mode only.
        condition_channels: channels of an image-like condition, 0 for none; it enters once per scale.
        augment_dim: labels that the augment pipe gives an image in training, 0 for none; they enter like a condition
            and are zero everywhere else.
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
    ):
        super().__init__()
        if not len(channels) == len(num_blocks) == len(num_nodes) > 0 or min(num_blocks) < 1:
            raise ValueError(
                'channels, num_blocks and num_nodes need one number per scale and at least one block each, not '
                f'{list(channels)}, {list(num_blocks)}, {list(num_nodes)}'
            )
        told = max(img_channels, condition_channels + augment_dim)
        if min(channels) < told:
            raise ValueError(f'every scale needs {told} channels or more to be told of image and condition: {channels}')
        self.img_resolution = resolution_pair(img_resolution)
        self.img_channels = img_channels
        self.learning_residual = learning_residual
        self.condition_channels = condition_channels
        self.augment_dim = augment_dim
        self.grad_checkpoint = False
        sizes = scale_sizes(self.img_resolution, len(channels))
        self.specs = [
            LayerSpec(size, c, k)
            for size, c, n, k in zip(sizes, channels, num_blocks, num_nodes, strict=True)
            for _ in range(n)
        ]
        start = torch.linspace(-1, 1, channels[0])[None, :, None, None]
        self.register_buffer('start', start, persistent=False)  # [1, C, 1, 1], the constant the network begins with
        self.blocks = nn.ModuleList()
        self.ddls = nn.ModuleList()
        before = LayerSpec(sizes[0], channels[0], 0)
        for spec in self.specs:
            up = spec.size != before.size
            self.blocks.append(ResBlock(before.channels, spec.channels, up=up, dropout=dropout))
            self.ddls.append(DDL(spec.channels, spec.num_nodes, img_channels, leak_choice))
            before = spec

    # What a latent is.

    @property
    def num_layers(self) -> int:
        """L: how many integers name an image."""
        return len(self.specs)

    @property
    def num_nodes(self) -> list[int]:
        """K of each layer."""
        return [spec.num_nodes for spec in self.specs]

    @property
    def num_bits(self) -> float:
        """Information of a latent, sum of log2 K over the layers (Section 3.2, "Efficient Data Compression")."""
        return float(torch.tensor(self.num_nodes, dtype=torch.float64).log2().sum())

    @property
    def node_weights(self) -> list[nn.Parameter]:
        """The [K, C, F] weights whose rows Split-and-Prune moves, one per layer."""
        return [ddl.weight for ddl in self.ddls]

    @property
    def device(self) -> torch.device:
        return self.start.device

    # The pass.

    def walk(
        self,
        sampler: samplers.Sampler,
        batch_size: int,
        condition: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> Iterator[Selection]:
        """The layers one by one, each a ``Selection``: one question to ``sampler`` per layer, nothing else differs
        between training, generation, reconstruction and guided generation. ``condition`` is image-like,
        [B, condition_channels, h, w]; ``augment_labels`` [B, augment_dim] are training's.
        """
        if (condition is not None) != (self.condition_channels > 0):
            raise ValueError(
                f'this network has {self.condition_channels} condition channels, and the condition given is '
                f'{None if condition is None else tuple(condition.shape)}'
            )
        # Repeated, not expanded: the channels-last strides that a clone of it would have at 1x1, without a gradient,
        # make PyTorch 2.13's group norm read past its end in the backward pass.
        x = self.start.repeat(batch_size, 1, *self.specs[0].size)  # [B, C_0, h, w]
        image = leak = conditioned = None
        for layer, (spec, block, ddl) in enumerate(zip(self.specs, self.blocks, self.ddls, strict=True)):
            added = []  # what the block is told: (first channel, [B, c, h, w])
            if image is not None:
                added.append((0, image))
            if leak is not None:
                added.append((x.shape[1] - leak.shape[1], leak))
            if conditioned != x.shape[2:]:  # once per scale
                conditioned = x.shape[2:]
                middle = (x.shape[1] - self.condition_channels - self.augment_dim) // 2
                if condition is not None:
                    added.append((middle, samplers.area_resize(condition, conditioned)))
                if augment_labels is not None:
                    added.append((middle + self.condition_channels, augment_labels[:, :, None, None]))
            x = _AddToChannels.apply(x, [first for first, _ in added], *(y for _, y in added)) if added else x
            if self.grad_checkpoint and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, spec.size, use_reentrant=False)
            else:
                x = block(x, spec.size)  # [B, C_l, H_l, W_l]
            base = _resize(image, spec.size) if self.learning_residual and image is not None else None
            selection = ddl(x, base, sampler, layer)
            if selection.choice.parents is not None:
                x = x[selection.choice.parents]
            image, leak = selection.image, selection.leak
            yield selection

    def forward(
        self,
        sampler: samplers.Sampler,
        batch_size: int,
        condition: torch.Tensor | None = None,
        keep: bool = False,
        augment_labels: torch.Tensor | None = None,
    ) -> Output:
        """The whole pass. ``keep``: also return the selected image and the distances of every layer (training)."""
        codes, dropped, selected, distances = [], [], [], []
        image = None
        for image, choice in ((s.image, s.choice) for s in self.walk(sampler, batch_size, condition, augment_labels)):
            if choice.parents is not None:
                codes = [c[choice.parents] for c in codes]
            codes.append(choice.codes)
            dropped.append(choice.dropped)
            if keep:
                selected.append(image)
                distances.append(choice.distances)
        dropped = torch.stack(dropped, 1) if all(d is not None for d in dropped) else None
        return Output(image, torch.stack(codes, 1), selected, distances, dropped)

    # Three lines of Python.

    @torch.no_grad()
    def sample(
        self,
        num: int | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        condition: torch.Tensor | None = None,
        guide=None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``num`` images from seeds seed .. seed + num - 1, or one per entry of ``seeds``: uniform choices, or those of
        ``guide``, a ``guides.Guide``, several, or a ``guided.Guidance``.

        Returns images [B, C, H, W] and codes [B, L] int64. A seed names one image, whatever the batch around it.
        """
        if seeds is None:
            seeds = range(seed, seed + (1 if num is None else num))
        if guide is not None:
            return guided.sample(self, guide, list(seeds), condition)
        codes = samplers.uniform_codes(self.num_nodes, list(seeds)).to(self.device)
        return self.decode(codes, condition), codes

    @torch.no_grad()
    def encode(self, images: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """The latent of images [B, C, H, W] in [-1, 1]: codes [B, L] int64 of the nearest candidates (Eq. 3)."""
        expected = [self.img_channels, *self.img_resolution]
        if list(images.shape[1:]) != expected:
            raise ValueError(f'this network encodes images of shape {expected}, not {list(images.shape[1:])}')
        images = images.to(self.device)
        return self(samplers.nearest(images), len(images), condition).codes

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """The images [B, C, H, W] that codes [B, L] int64 name; one candidate per layer is rendered."""
        codes = self.check_codes(codes).to(self.device)
        return self(samplers.given(codes), len(codes), condition).images

    def check_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """``codes`` as int64, or a ValueError that names the first entry outside [B, L] x 0..K-1."""
        codes = torch.as_tensor(codes)
        if codes.ndim != 2 or codes.shape[1] != self.num_layers or codes.is_floating_point():
            raise ValueError(
                f'codes of this network are integers [B, {self.num_layers}], not {list(codes.shape)} {codes.dtype}'
            )
        wrong = ((codes < 0) | (codes >= torch.tensor(self.num_nodes, device=codes.device))).nonzero()
        if len(wrong):
            b, l = wrong[0].tolist()
            raise ValueError(f'code {codes[b, l]} of image {b}, layer {l}, is outside 0..{self.num_nodes[l] - 1}')
        return codes.long()

    @classmethod
    def from_pretrained(cls, path: str, ema: float | str | None = None, device: str | torch.device = 'cpu') -> 'DDN':
        """The network of a snapshot file, in evaluation mode. ``ema``: which averaged weights; None takes the first
        kept copy if there is one, 'none' the raw weights."""
        net = persistence.load_network(path, ema=ema)
        if not isinstance(net, cls):
            raise ValueError(f'{path} holds a {type(net).__name__}, not a {cls.__name__}')
        return net.to(device).eval()


class _AddToChannels(torch.autograd.Function):
    """x [B, C, h, w] with each y [B, c, h, w] added to the channels from its ``first`` on.

    One copy forward and none backward; slices and concatenations would cost several of each.
    """

    @staticmethod
    def forward(ctx, x, firsts, *ys):
        ctx.places = [(first, y.shape[1], y.dtype) for first, y in zip(firsts, ys, strict=True)]
        out = x.clone()
        for first, y in zip(firsts, ys, strict=True):
            out[:, first : first + y.shape[1]] += y
        return out

    @staticmethod
    def backward(ctx, grad):
        wanted = zip(ctx.needs_input_grad[2:], ctx.places, strict=True)
        return grad, None, *(grad[:, f : f + c].to(dtype) if needed else None for needed, (f, c, dtype) in wanted)


def _resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(image.shape[2:]) == tuple(size):
        return image
    return F.interpolate(image, size=size, mode='bilinear', align_corners=False)
