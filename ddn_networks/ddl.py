"""The Discrete Distribution Layer (DDL): K outputs of which one goes on.

Legend: B images, K nodes, C image channels, F feature channels, H x W pixels, N = H W.
"""

from typing import NamedTuple

import torch
from torch import nn

from ddn_networks import prefixes
from ddn_networks.candidates import Candidates
from ddn_networks.prefixes import Sharing
from ddn_networks.samplers import Choice, Sampler


class Selection(NamedTuple):
    """What a DDL hands on.

    candidates: the K candidates the sampler was asked about, unrendered.
    choice: the sampler's answer.
    partial: [B, C, H, W] float32, the selected candidate (x*_l of Eq. 2), with gradient; [U, C, H, W] of distinct ones
        where images of the same choices share them.
    leak: [B or U, C, H, W] the chosen node's kernel on the second half of the features, or None without Leak Choice.
    continues: [B or U] int64, which row of the features each of ``partial`` continues, or None for its own.
    sharing: which of ``partial`` is whose, or None.
    """

    candidates: Candidates
    choice: Choice
    partial: torch.Tensor
    leak: torch.Tensor | None
    continues: torch.Tensor | None = None
    sharing: Sharing | None = None

    @property
    def image(self) -> torch.Tensor:
        """[B, C, H, W] the selected candidate of each image."""
        return self.partial if self.sharing is None else self.partial.index_select(0, self.sharing.rows)


class DDL(nn.Module):
    """K bias-free 1x1 convolutions over shared features, of which only the chosen one is ever computed.

    Args:
        in_channels: feature channels of the block before.
        num_nodes: K.
        img_channels: C of the images.
        leak_choice: candidates read the first half of the features, and the chosen node's kernel on the second half
            tells the next block what was chosen (Section 3.3). Otherwise candidates read all of them.
    """

    def __init__(self, in_channels: int, num_nodes: int, img_channels: int, leak_choice: bool = True):
        super().__init__()
        if num_nodes < 2:
            raise ValueError(f'a discrete distribution needs at least 2 nodes, not {num_nodes}')
        if leak_choice and in_channels % 2:
            raise ValueError(f'Leak Choice halves the {in_channels} channels of a block: their number must be even')
        self.leak_choice = leak_choice
        features = in_channels // 2 if leak_choice else in_channels
        self.weight = nn.Parameter(torch.empty(num_nodes, img_channels, features))  # [K, C, F]
        nn.init.xavier_uniform_(self.weight.data.view(num_nodes * img_channels, features, 1, 1))

    def forward(
        self,
        x: torch.Tensor,
        base: torch.Tensor | None,
        sampler: Sampler,
        layer: int,
        sharing: Sharing | None = None,
    ) -> Selection:
        """Ask ``sampler`` about the candidates on the features x [B, F or 2F, H, W] and render the one it names.
        ``sharing``: x and ``base`` are of U distinct partial images, and this says which of them is whose."""
        # At once for candidates and selected image: under autocast each would make its own float32 of the features.
        x = x.to(torch.promote_types(torch.promote_types(x.dtype, self.weight.dtype), torch.float32))
        rows = None if sharing is None else sharing.rows
        candidates = Candidates(self.weight, x[:, : self.weight.shape[2]], base, rows)
        choice = sampler(candidates, layer)
        codes, continues = choice.codes, choice.parents  # beam search: images continue other rows of the batch
        if sharing is not None:
            sharing = prefixes.split(sharing, choice, len(self.weight))
            codes = codes[sharing.first]
            continues = (rows if continues is None else rows[continues])[sharing.first]
        if continues is not None:
            x = x.index_select(0, continues)
            base = None if base is None else base.index_select(0, continues)
        with torch.autocast(x.device.type, enabled=False):
            kernel = self.weight[codes]  # [B, C, F], the only node with a gradient
            if self.leak_choice:  # image and leak in one product with both halves, which reads the features once
                none = torch.zeros_like(kernel)
                kernel = torch.cat([torch.cat([kernel, none], 2), torch.cat([none, kernel], 2)], 1)  # [B, 2C, 2F]
            image = (kernel.to(x.dtype) @ x.flatten(2)).unflatten(2, x.shape[2:])  # [B, C or 2C, H, W]
            image, leak = image.chunk(2, 1) if self.leak_choice else (image, None)  # [B, C, H, W] each
        return Selection(candidates, choice, image if base is None else image + base, leak, continues, sharing)
