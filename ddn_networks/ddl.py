"""The Discrete Distribution Layer (DDL): K outputs, of which one is selected (Section 3).

Legend: B images, K nodes, C image channels, F feature channels, H x W pixels, N = H W.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from ddn_networks import shared_prefixes
from ddn_networks.aliases import OldAttribute, old_arguments
from ddn_networks.candidates import Candidates, pixel_shuffle, pixel_unshuffle
from ddn_networks.cells import WHOLE, Grid
from ddn_networks.closed_forms import select
from ddn_networks.samplers import Choice, Sampler
from ddn_networks.shared_prefixes import Sharing


class Selection(NamedTuple):
    """The result of a DDL.

    choice: the sampler's answer.
    partial: [B, C, H, W] float32, the selected candidate (x*_l of Eq. 2), with gradient; [U, C, H, W] of distinct ones
        where images of the same choices share them.
    leak: [B or U, C, H, W] the chosen node's kernel on the second half of the features, or None without Leak Choice.
        Not shuffled: [B or U, C r^2, H / r, W / r] of a layer that is unshuffled by r.
    continues: [B or U] int64, the row of the features that each row of ``partial`` continues, or None for its own.
    codes: [B, d + n] int64, the choices so far with the n of this layer, in the order of the rows after it.
    sharing: which rows of ``partial`` belong to which images of the batch, or None for one each.
    next_input: [B or U, F or 2F, H, W] the features with ``partial`` (unshuffled) added to the first channels and
        ``leak`` to the last, the input of the next block of a ``DDN``; None unless asked for.
    features: [B or U, F or 2F, H, W] what the candidates were made of; None where ``next_input`` took its memory.
    """

    choice: Choice
    partial: torch.Tensor
    leak: torch.Tensor | None
    codes: torch.Tensor
    continues: torch.Tensor | None = None
    sharing: Sharing | None = None
    next_input: torch.Tensor | None = None
    features: torch.Tensor | None = None
    told = OldAttribute('told', 'next_input')

    @property
    def image(self) -> torch.Tensor:
        """[B, C, H, W] the selected candidate of each image."""
        return self.of_images(self.partial)

    def of_images(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of ``partial``, or of what belongs to it, for each image of the batch."""
        return rows if self.sharing is None else rows.index_select(0, self.sharing.rows)


class DDL(nn.Module):
    """K bias-free 1x1 convolutions over shared features, of which only the chosen one is ever computed.

    Args:
        in_channels: feature channels of the block before.
        num_nodes: K.
        img_channels: C of the images.
        leak_choice: candidates read the first half of the features, and the chosen node's kernel on the second half
            leaks the choice to the next block (Section 3.3). Otherwise candidates read all of them.
        grid: cells of the layer, each of which chooses a node of its own (``cells``).
        unshuffle: r; with r > 1 each pixel of the features makes a block of r x r pixels of the image (``Candidates``).
    """

    def __init__(
        self,
        in_channels: int,
        num_nodes: int,
        img_channels: int,
        leak_choice: bool = True,
        grid: Grid = WHOLE,
        unshuffle: int = 1,
    ):
        super().__init__()
        if num_nodes < 2:
            raise ValueError(f'a discrete distribution needs at least 2 nodes, not {num_nodes}')
        if leak_choice and in_channels % 2:
            raise ValueError(f'Leak Choice halves the {in_channels} channels of a block: their number must be even')
        self.leak_choice, self.grid, self.unshuffle = leak_choice, grid, unshuffle
        features = in_channels // 2 if leak_choice else in_channels
        made = img_channels * unshuffle**2
        self.weight = nn.Parameter(torch.empty(num_nodes, made, features))  # [K, C, F] or [K, C r^2, F]
        nn.init.xavier_uniform_(self.weight.data.view(num_nodes * made, features, 1, 1))

    @old_arguments(tell='next_input')
    def forward(
        self,
        x: torch.Tensor,
        base: torch.Tensor | None,
        sampler: Sampler,
        layer: int,
        codes: torch.Tensor | None = None,
        sharing: Sharing | None = None,
        next_input: bool = False,
        prior: Callable[[torch.Tensor, torch.Tensor, bool], torch.Tensor] | None = None,
    ) -> Selection:
        """Ask ``sampler`` about the candidates on the features x [B, F or 2F, H, W] and render the one it names.
        ``base`` [B, C, r H, r W]: the image that they are added to, None for zero. ``codes`` [B, d]: the choices of
        the layers before, None for the first. ``sharing``: x and ``base`` are of U distinct partial images; it maps
        the images of the batch to them. ``next_input``: also make ``Selection.next_input``; without gradients that is x
        itself, changed in place. ``prior``: the network's own, (features, codes so far, whether it sees the condition)
        -> logits of the choice, for ``Candidates.log_prior``."""
        weight = self.weight
        # One float32 copy of the features for candidates and selected image; under autocast each would make its own.
        full = x.to(torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32))
        base = None if base is None else pixel_unshuffle(base, self.unshuffle)
        rows, ended = None if sharing is None else sharing.rows, None
        if rows is not None and self.grid != WHOLE:  # cells make images differ: what they shared ends here
            x, full = (y.index_select(0, rows) for y in (x, full))
            base = None if base is None else base.index_select(0, rows)
            sharing, rows, ended = None, None, rows
        if codes is None:
            codes = torch.empty(len(x) if rows is None else len(rows), 0, dtype=torch.int64, device=x.device)
        logits = None
        if prior is not None:
            logits = functools.partial(prior, full, codes if sharing is None else codes[sharing.first])
        candidates = Candidates(weight, full[:, : weight.shape[2]], base, rows, self.grid, logits, self.unshuffle)
        choice = sampler(candidates, layer, codes)
        chosen, continues = choice.codes, choice.parents  # beam search: images continue other rows of the batch
        codes = codes if continues is None else codes.index_select(0, continues)
        codes = torch.cat([codes, chosen.view(len(chosen), candidates.num_cells)], 1)  # [B, d + n]
        if sharing is not None:
            sharing = shared_prefixes.split(sharing, choice, len(weight))
            chosen = chosen[sharing.first]
            continues = (rows if continues is None else rows[continues])[sharing.first]
        if continues is not None:
            x = x.index_select(0, continues)
            full = x.to(full.dtype)  # itself, where it is that already
            base = None if base is None else base.index_select(0, continues)
        image, leak, fed = select(
            x, full, weight, chosen.flatten(), base, self.leak_choice, next_input, self.grid
        )
        if ended is not None:
            continues = ended if continues is None else ended[continues]
        kept = None if next_input else x
        return Selection(choice, pixel_shuffle(image, self.unshuffle), leak, codes, continues, sharing, fed, kept)
