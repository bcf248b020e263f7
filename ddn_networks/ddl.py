"""The Discrete Distribution Layer (DDL): K outputs of which one goes on.

Legend: B images, K nodes, C image channels, F feature channels, H x W pixels, N = H W.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

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
    told: [B or U, F or 2F, H, W] the features with ``partial`` added to the first channels and ``leak`` to the last, as
        the next block of a ``DDN`` gets them; None unless asked for.
    """

    candidates: Candidates
    choice: Choice
    partial: torch.Tensor
    leak: torch.Tensor | None
    continues: torch.Tensor | None = None
    sharing: Sharing | None = None
    told: torch.Tensor | None = None

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
        tell: bool = False,
    ) -> Selection:
        """Ask ``sampler`` about the candidates on the features x [B, F or 2F, H, W] and render the one it names.
        ``sharing``: x and ``base`` are of U distinct partial images, and this says which of them is whose. ``tell``:
        also make ``Selection.told``."""
        # At once for candidates and selected image: under autocast each would make its own float32 of the features.
        full = x.to(torch.promote_types(torch.promote_types(x.dtype, self.weight.dtype), torch.float32))
        rows = None if sharing is None else sharing.rows
        candidates = Candidates(self.weight, full[:, : self.weight.shape[2]], base, rows)
        choice = sampler(candidates, layer)
        codes, continues = choice.codes, choice.parents  # beam search: images continue other rows of the batch
        if sharing is not None:
            sharing = prefixes.split(sharing, choice, len(self.weight))
            codes = codes[sharing.first]
            continues = (rows if continues is None else rows[continues])[sharing.first]
        if continues is not None:
            x = x.index_select(0, continues)
            full = x.to(full.dtype)  # itself, where it is that already
            base = None if base is None else base.index_select(0, continues)
        with torch.autocast(x.device.type, enabled=False):
            kernel = self.weight[codes].to(full.dtype)  # [B, C, F], the only node with a gradient
            if self.leak_choice:  # image and leak in one product with both halves, which reads the features once
                none = torch.zeros_like(kernel)
                kernel = torch.cat([torch.cat([kernel, none], 2), torch.cat([none, kernel], 2)], 1)  # [B, 2C, 2F]
            image, leak, told = _Selected.apply(x, full.detach(), kernel, base, self.leak_choice, tell)
        return Selection(candidates, choice, image, leak, continues, sharing, told)


class _Selected(torch.autograd.Function):
    """x [B, F, H, W] and one kernel [B, c, F] each -> the image [B, C, H, W] = kernel x + base, the leak (the second
    half of kernel x, or None) and, with ``tell``, x with both added. ``full`` is x as float32, without gradient.

    As one function, since the gradient of x is then one product that is added to the gradient of what was told, in the
    memory layout of x; autograd would make both, in two layouts, and convert.
    """

    @staticmethod
    def forward(ctx, x, full, kernel, base, leak_choice, tell):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(full, kernel)
        ctx.leak_choice, ctx.x_dtype, ctx.base_dtype = leak_choice, x.dtype, None if base is None else base.dtype
        made = (kernel @ full.flatten(2)).unflatten(2, x.shape[2:])  # [B, C or 2C, H, W]
        image, leak = made.chunk(2, 1) if leak_choice else (made, None)
        image = image if base is None else image + base
        told = None
        if tell:
            told = x.clone()
            told[:, : image.shape[1]] += image
            if leak is not None:
                told[:, -leak.shape[1] :] += leak
        return image, leak, told

    @staticmethod
    @once_differentiable
    def backward(ctx, of_image, of_leak, of_told):
        full, kernel = ctx.saved_tensors
        made = full.new_zeros(len(full), kernel.shape[1], *full.shape[2:])  # of image, then leak
        image, leak = made.chunk(2, 1) if ctx.leak_choice else (made, None)
        for part, grad in ((image, of_image), (leak, of_leak)):
            if grad is not None:
                part += grad
        if of_told is not None:
            image += of_told[:, : image.shape[1]]
            if leak is not None:
                leak += of_told[:, -leak.shape[1] :]
        base = None if ctx.base_dtype is None else image.to(ctx.base_dtype)
        flat = made.flatten(2)  # [B, c, N]
        of_kernel = flat @ full.flatten(2).mT
        as_rows = full.is_contiguous(memory_format=torch.channels_last)  # [B, N, F] in memory
        left, right = (flat.mT, kernel) if as_rows else (kernel.mT, flat)
        if of_told is None:
            of_x = left @ right
        else:
            of_told = of_told.to(full.dtype)
            told = of_told.permute(0, 2, 3, 1).flatten(1, 2) if as_rows else of_told.flatten(2)
            of_x = torch.baddbmm(told, left, right)
        H, W = full.shape[2:]
        of_x = of_x.unflatten(1, (H, W)).permute(0, 3, 1, 2) if as_rows else of_x.unflatten(2, (H, W))
        return of_x.to(ctx.x_dtype), None, of_kernel, base, None, None
