"""The Discrete Distribution Layer (DDL): K outputs of which one goes on.

Legend: B images, K nodes, C image channels, F feature channels, H x W pixels, N = H W.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from ddn_networks import shared_prefixes
from ddn_networks.candidates import Candidates, full_precision
from ddn_networks.samplers import Choice, Sampler
from ddn_networks.shared_prefixes import Sharing


class Selection(NamedTuple):
    """What a DDL hands on.

    choice: the sampler's answer.
    partial: [B, C, H, W] float32, the selected candidate (x*_l of Eq. 2), with gradient; [U, C, H, W] of distinct ones
        where images of the same choices share them.
    leak: [B or U, C, H, W] the chosen node's kernel on the second half of the features, or None without Leak Choice.
    continues: [B or U] int64, which row of the features each of ``partial`` continues, or None for its own.
    sharing: which of ``partial`` is whose, or None.
    told: [B or U, F or 2F, H, W] the features with ``partial`` added to the first channels and ``leak`` to the last, as
        the next block of a ``DDN`` gets them; None unless asked for.
    """

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
        also make ``Selection.told``; without gradients that is x itself, changed in place."""
        weight = self.weight
        # At once for candidates and selected image: under autocast each would make its own float32 of the features.
        full = x.to(torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32))
        rows = None if sharing is None else sharing.rows
        candidates = Candidates(weight, full[:, : weight.shape[2]], base, rows)
        choice = sampler(candidates, layer)
        codes, continues = choice.codes, choice.parents  # beam search: images continue other rows of the batch
        if sharing is not None:
            sharing = shared_prefixes.split(sharing, choice, len(weight))
            codes = codes[sharing.first]
            continues = (rows if continues is None else rows[continues])[sharing.first]
        if continues is not None:
            x = x.index_select(0, continues)
            full = x.to(full.dtype)  # itself, where it is that already
            base = None if base is None else base.index_select(0, continues)
        with full_precision(x):
            if torch.is_grad_enabled():
                image, leak, told = _Selected.apply(x, full.detach(), weight, codes, base, self.leak_choice, tell)
            else:
                kernel = _kernel(full, weight, codes, self.leak_choice)
                image, leak = _rendered(full, kernel, base, self.leak_choice)
                told = _tell_(x, image, leak) if tell else None
        return Selection(choice, image, leak, continues, sharing, told)


def _are_rows(features: torch.Tensor) -> bool:
    """Whether a pixel of the features is a row of channels in memory, not a channel a plane."""
    return features.is_contiguous(memory_format=torch.channels_last)


def _halves(features: torch.Tensor, leak_choice: bool) -> torch.Tensor:
    """Views of which one product with each ``_kernel`` makes the image and, with ``leak_choice``, the leak: [B, F, N];
    then of both halves of the features, [2B, F, N] where a channel is a plane in memory, [B, F, 2N] where a pixel is a
    row of channels, image and leak of a pixel side by side."""
    B, channels, H, W = features.shape
    halves = 2 if leak_choice else 1
    if _are_rows(features):
        return features.permute(0, 2, 3, 1).reshape(B, H * W * halves, channels // halves).mT
    return features.reshape(B * halves, channels // halves, H * W)


def _kernel(features: torch.Tensor, weight: torch.Tensor, codes: torch.Tensor, leak_choice: bool) -> torch.Tensor:
    """The chosen node's kernel for each of the ``_halves``: [B or 2B, C, F]."""
    kernel = weight.index_select(0, codes).to(features.dtype)
    return kernel.repeat_interleave(2, 0) if leak_choice and not _are_rows(features) else kernel


def _rendered(
    features: torch.Tensor, kernel: torch.Tensor, base: torch.Tensor | None, leak_choice: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Image and leak [B, C, H, W] of the features, with a ``_kernel``."""
    (B, _, H, W), C = features.shape, kernel.shape[1]
    made = torch.bmm(kernel, _halves(features, leak_choice))
    if not leak_choice:
        image, leak = made.view(B, C, H, W), None
    elif _are_rows(features):
        image, leak = made.view(B, C, H, W, 2).unbind(4)
    else:
        image, leak = made.view(B, 2, C, H, W).unbind(1)
    return image if base is None else image + base, leak


def _tell_(x: torch.Tensor, image: torch.Tensor, leak: torch.Tensor | None) -> torch.Tensor:
    """Add the image to the first channels of x and the leak to the last, in place."""
    C = image.shape[1]
    x[:, :C].add_(image)
    if leak is not None:
        x[:, -C:].add_(leak)
    return x


class _Selected(torch.autograd.Function):
    """x [B, F or 2F, H, W], weight [K, C, F] and codes [B] -> the image [B, C, H, W] = W_code x + base, the leak (with
    ``leak_choice``: the same of the second half of x) and, with ``tell``, x with both added. ``full`` is x as float32,
    without gradient.

    As one function, since the gradient of x is then one product that is added to the gradient of what was told, in the
    memory layout and dtype of x; autograd would make both, in two layouts, and convert.
    """

    @staticmethod
    def forward(ctx, x, full, weight, codes, base, leak_choice, tell):
        ctx.set_materialize_grads(False)
        kernel = _kernel(full, weight, codes, leak_choice)
        ctx.save_for_backward(x, kernel, codes)
        ctx.leak_choice, ctx.weight_shape = leak_choice, weight.shape
        ctx.weight_dtype, ctx.base_dtype = weight.dtype, None if base is None else base.dtype
        image, leak = _rendered(full, kernel, base, leak_choice)
        image = image.clone() if base is None else image  # a view that nobody could change in place
        return image, leak, _tell_(x.clone(), image, leak) if tell else None

    @staticmethod
    @once_differentiable
    def backward(ctx, of_image, of_leak, of_told):
        x, kernel, codes = ctx.saved_tensors
        features = x.to(kernel.dtype)  # as forward read them, and so in the memory layout of then
        (B, channels, H, W), C, as_rows = x.shape, kernel.shape[1], _are_rows(features)
        image, leak = of_image, of_leak
        if of_told is not None:
            image, leak = _sum(image, of_told[:, :C]), _sum(leak, of_told[:, -C:])
        zeros = kernel.new_zeros(B, C, H, W) if image is None or leak is None and ctx.leak_choice else None
        image = (zeros if image is None else image).to(kernel.dtype)
        made = image  # [B, C, H, W], or with the leak [B, C, H, W, 2] or [B, 2, C, H, W], as _rendered has them
        if ctx.leak_choice:
            made = torch.stack([image, zeros if leak is None else leak], 4 if as_rows else 1)
        made = made.reshape(len(kernel), C, -1)
        of_kernel = torch.bmm(made, _halves(features, ctx.leak_choice).mT)  # [B or 2B, C, F]
        if len(kernel) > B:
            of_kernel = of_kernel[::2] + of_kernel[1::2]
        of_weight = of_kernel.new_zeros(ctx.weight_shape, dtype=ctx.weight_dtype)
        of_weight.index_put_((codes,), of_kernel.to(ctx.weight_dtype), accumulate=True)
        made, kernel = made.to(x.dtype), kernel.to(x.dtype)
        left, right = (made.mT, kernel) if as_rows else (kernel.mT, made)
        if of_told is None:
            of_x = torch.bmm(left, right)
        else:
            of_told = of_told.permute(0, 2, 3, 1) if as_rows else of_told
            of_x = torch.baddbmm(of_told.reshape(len(kernel), left.shape[1], right.shape[2]), left, right)
        of_x = of_x.view(B, H, W, channels).permute(0, 3, 1, 2) if as_rows else of_x.view(B, channels, H, W)
        return of_x, None, of_weight, None, None if ctx.base_dtype is None else image.to(ctx.base_dtype), None, None


def _sum(a: torch.Tensor | None, b: torch.Tensor) -> torch.Tensor:
    return b if a is None else a + b
