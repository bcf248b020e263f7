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
            image, leak, told = _Selected.apply(x, full.detach(), self.weight, codes, base, self.leak_choice, tell)
        return Selection(candidates, choice, image, leak, continues, sharing, told)


class _Selected(torch.autograd.Function):
    """x [B, F or 2F, H, W], weight [K, C, F] and codes [B] -> the image [B, C, H, W] = W_code x + base, the leak (with
    ``leak_choice``: the same of the second half of x) and, with ``tell``, x with both added. ``full`` is x as float32,
    without gradient.

    As one function, since the gradient of x is then one product that is added to the gradient of what was told, in the
    memory layout of x; autograd would make both, in two layouts, and convert.

    Image and leak are one product too. Where a channel is a plane in memory, the halves of x are 2B smaller matrices;
    where a pixel is a row of channels, halves cannot be told apart so, and a kernel with zeros reads both.
    """

    @staticmethod
    def forward(ctx, x, full, weight, codes, base, leak_choice, tell):
        ctx.set_materialize_grads(False)
        kernel = weight[codes].to(full.dtype)  # [B, C, F], the only node with a gradient
        B, C, F = kernel.shape
        as_rows = full.is_contiguous(memory_format=torch.channels_last)
        if leak_choice and as_rows:
            one = kernel
            kernel = one.new_zeros(B, 2 * C, 2 * F)
            kernel[:, :C, :F] = kernel[:, C:, F:] = one
        elif leak_choice:
            kernel = kernel.repeat_interleave(2, 0)  # [2B, C, F]
        ctx.save_for_backward(full, kernel, codes)
        ctx.leak_choice, ctx.as_rows, ctx.weight_shape = leak_choice, as_rows, weight.shape
        ctx.x_dtype, ctx.weight_dtype, ctx.base_dtype = x.dtype, weight.dtype, None if base is None else base.dtype
        (H, W), halves = full.shape[2:], 2 if leak_choice else 1
        made = torch.bmm(kernel, full.reshape(len(kernel), kernel.shape[2], H * W)).view(B, halves * C, H, W)
        image, leak = made.chunk(2, 1) if leak_choice else (made, None)  # [B, C, H, W]
        image = image if base is None else image + base
        told = None
        if tell:
            told = x.clone()
            told[:, :C] += image
            if leak is not None:
                told[:, -C:] += leak
        return image, leak, told

    @staticmethod
    @once_differentiable
    def backward(ctx, of_image, of_leak, of_told):
        full, kernel, codes = ctx.saved_tensors
        (B, _, H, W), (_, C, F) = full.shape, ctx.weight_shape
        N, halves = H * W, 2 if ctx.leak_choice else 1
        made = full.new_zeros(B, halves * C, H, W)  # of image, then leak
        image, leak = made.chunk(2, 1) if ctx.leak_choice else (made, None)
        for part, grad in ((image, of_image), (leak, of_leak)):
            if grad is not None:
                part += grad
        if of_told is not None:
            of_told = of_told.to(full.dtype)
            image += of_told[:, :C]
            if leak is not None:
                leak += of_told[:, -C:]
        base = None if ctx.base_dtype is None else image.to(ctx.base_dtype)
        flat = made.view(*kernel.shape[:2], N)  # [B, C or 2C, N] or [2B, C, N]
        of_kernel = torch.bmm(flat, full.reshape(len(kernel), kernel.shape[2], N).mT)
        if ctx.leak_choice and ctx.as_rows:
            of_kernel = of_kernel[:, :C, :F] + of_kernel[:, C:, F:]
        elif ctx.leak_choice:
            of_kernel = of_kernel[::2] + of_kernel[1::2]
        of_weight = of_kernel.new_zeros(ctx.weight_shape, dtype=ctx.weight_dtype)
        of_weight.index_put_((codes,), of_kernel.to(ctx.weight_dtype), accumulate=True)
        left, right = (flat.mT, kernel) if ctx.as_rows else (kernel.mT, flat)
        if of_told is None:
            of_x = torch.bmm(left, right)
        else:
            of_told = of_told.permute(0, 2, 3, 1) if ctx.as_rows else of_told
            of_x = torch.baddbmm(of_told.reshape(len(kernel), left.shape[1], right.shape[2]), left, right)
        of_x = of_x.view(B, H, W, halves * F).permute(0, 3, 1, 2) if ctx.as_rows else of_x.view(B, halves * F, H, W)
        return of_x.to(ctx.x_dtype), None, of_weight, None, base, None, None
