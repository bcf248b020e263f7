"""What a layer computes, in closed forms: the distances of its K candidates, and the one that is selected.

Legend: B images, K nodes, C image channels, F feature channels, H x W pixels, N = H W.

Distances have three forms, of which the cheapest is taken; E is base less target:

    |W_k F + E|^2                                       rendered, where there are few pixels
    <W_k^T W_k, F F^T>  +  2 <W_k, E F^T>  +  |E|^2     with the Gram matrices of the nodes, for large batches
    <W_k, W_k (F F^T)>  +  2 <W_k, E F^T>  +  |E|^2     with that of the features, for small ones
"""

import contextlib
import functools
from collections.abc import Callable

import torch
from torch.autograd.function import once_differentiable

from ddn_networks.cells import WHOLE, Grid, from_strips, to_cells, to_strips


def full_precision(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """A context without autocast: distances decide a discrete choice, so they stay in full precision."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


# Size limit of an intermediate result, in numbers. A result that leaves the CPU's cache (or makes the allocator ask for
# fresh pages at every call) costs several times the arithmetic; other devices want few and large kernels.
_CPU_NUMBERS, _DEVICE_NUMBERS = 2**18, 2**26


def slice_size(like: torch.Tensor, numbers: int) -> int:
    """How many slices of ``numbers`` numbers each fit one intermediate result."""
    return max(1, (_CPU_NUMBERS if like.is_cpu else _DEVICE_NUMBERS) // numbers)


def _by_rendering(weight: torch.Tensor, features: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """|W_k F + E|^2 rendered, a few images at a time: the cheapest form where there are few pixels."""
    (K, C, _), N = weight.shape, error.shape[2]
    if N <= 4:  # multiplying by so few columns is slow: rows of one product instead, all pixels of all images
        kernel = weight.permute(2, 1, 0).flatten(1)  # [F, C K]

        def part(f: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
            residual = (f.mT.flatten(0, 1) @ kernel).view(len(f), N * C, K)
            return residual.add_(e.mT.reshape(len(e), N * C, 1)).square_().sum(1)
    else:
        kernel = weight.flatten(0, 1)  # [K C, F]

        def part(f: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
            residual = (kernel @ f).view(len(f), K, C, N)
            return residual.add_(e[:, None]).square_().flatten(2).sum(2)

    size = slice_size(weight, K * C * N)
    return torch.cat([part(f, e) for f, e in zip(features.split(size), error.split(size), strict=True)])


def _cross(weight: torch.Tensor, features: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """2 <W_k, E F^T> + |E|^2: the part of the distance that both Gram forms share. [B, K]"""
    correlation = torch.bmm(error, features.mT)  # [B, C, F]
    return torch.addmm(error.square().sum((1, 2))[:, None], correlation.flatten(1), weight.flatten(1).t(), alpha=2)


def _by_node_gram(weight: torch.Tensor, features: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """<W_k^T W_k, F F^T>, with the F x F matrix of every node made once for the batch."""
    gram = torch.bmm(features, features.mT).flatten(1)  # [B, F F]
    total = _cross(weight, features, error)
    size = slice_size(weight, gram.shape[1])
    for w, part in zip(weight.split(size), total.split(size, 1), strict=True):
        # [k, F, F]; where there is one channel, a product of matrices takes several times as long.
        of_nodes = w * w.mT if w.shape[1] == 1 else torch.bmm(w.mT, w)
        part.addmm_(gram, of_nodes.flatten(1).t())
    return total


def _by_feature_gram(weight: torch.Tensor, features: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """<W_k, W_k (F F^T)>: the same without the node matrices, cheaper for small batches."""
    gram = torch.bmm(features, features.mT)  # [B, F, F]
    total = _cross(weight, features, error)
    size = slice_size(weight, len(gram) * weight[0].numel())
    for w, part in zip(weight.split(size), total.split(size, 1), strict=True):
        product = (w.flatten(0, 1) @ gram).unflatten(1, w.shape[:2])  # [B, k, C, F]
        part += product.mul_(w).flatten(2).sum(2)
    return total


METHODS = {'render': _by_rendering, 'node_gram': _by_node_gram, 'feature_gram': _by_feature_gram}
TRAFFIC = 16  # multiplications in the time of writing and reading one number of an intermediate result


def costs(B: int, K: int, C: int, F: int, N: int) -> dict[str, int]:
    """The cost of each form of the K distances, in multiplications."""
    gram = B * F * N * (F + C) + B * K * C * F
    return {
        'render': B * K * C * N * (F + TRAFFIC),
        'node_gram': gram + K * F * F * (B + C + TRAFFIC),
        'feature_gram': gram + B * K * C * F * (F + TRAFFIC),
    }


def cheapest_method(B: int, K: int, C: int, F: int, N: int) -> str:
    """The cheapest form of the K distances: 'render', 'node_gram' or 'feature_gram'."""
    found = costs(B, K, C, F, N)
    return min(found, key=found.__getitem__)


def distances(weight: torch.Tensor, features: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """Squared distances [B, K], by whichever form costs least; rounding may leave them slightly below zero.

    Args:
        weight: [K, C, F] a kernel per node. features: [B, F, N]. error: [B, C, N] base less target.
    """
    return METHODS[cheapest_method(len(error), *weight.shape, error.shape[2])](weight, features, error)


def cell_distances(
    weight: torch.Tensor, features: torch.Tensor, error: torch.Tensor, grid: Grid = WHOLE
) -> torch.Tensor:
    """``distances`` of the cells of images, many of few pixels each: [B n, K].

    With so many rows the products of Gram matrices cost most; they are symmetric, so half of their entries will do. A
    few images are cut into cells at a time: a copy of all of them would cost more than the arithmetic on it.

    Args:
        weight: [K, C, F]. features: [B, F, H, W]. error: [B, C, H, W] base less target. grid: the cells of an image.
    """
    (K, C, F), (B, _, H, W), n = weight.shape, features.shape, grid[0] * grid[1]
    rows, N, half = B * n, H * W // n, F * (F + 1) // 2
    found = costs(rows, K, C, F, N)
    del found['node_gram']  # half of it is cheaper, but for so few nodes that rendering them is
    found['half_gram'] = rows * F * N * (F + C) + rows * K * (C * F + half) + (rows + K) * half * TRAFFIC
    method = min(found, key=found.__getitem__)
    if method == 'half_gram':
        form, size = by_half_gram(weight), 4 * slice_size(weight, n * F * F)  # fewer rows take a fifth longer
    else:
        form, size = functools.partial(METHODS[method], weight), slice_size(weight, F * H * W)
    slices = zip(features.split(size), error.split(size), strict=True)
    return torch.cat([form(to_cells(f, grid).flatten(2), to_cells(e, grid).flatten(2)) for f, e in slices])


def by_half_gram(weight: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """<W_k^T W_k, F F^T> as a sum over the upper triangles, the entries above the diagonal counted twice, as a function
    of features and error: the matrices of the nodes are made once for all of them."""
    F = weight.shape[2]
    i, j = torch.triu_indices(F, F, device=weight.device)
    at = i * F + j
    nodes = torch.bmm(weight.mT, weight).flatten(1).index_select(1, at)  # [K, half]
    nodes *= torch.where(i == j, 1.0, 2.0)

    def form(features: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
        gram = torch.bmm(features, features.mT).flatten(1).index_select(1, at)
        return _cross(weight, features, error).addmm_(gram, nodes.t())

    return form


# The selected image, in two memory layouts: a channel a plane, or (channels last) a pixel a row of channels.


def select(
    x: torch.Tensor,
    full: torch.Tensor,
    weight: torch.Tensor,
    codes: torch.Tensor,
    base: torch.Tensor | None,
    leak_choice: bool,
    next_input: bool,
    grid: Grid = WHOLE,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The image [B, C, H, W] = W_code x + base of the chosen nodes, their leak (W_code on the second half of x), and x
    with both added to its first and last channels, for the next block.

    Args:
        x: [B, F or 2F, H, W] features. full: the same in float32 or wider.
        weight: [K, C, F]. codes: [B n] int64, by cell of ``grid``. base: [B, C, H, W] or None for zero.
        leak_choice: x has two halves; otherwise the leak is None.
        next_input: also make x with both added, in its memory layout; without gradients that is x itself, changed in
            place (a copy where there are cells and a channel is a plane).
    """
    if grid != WHOLE:  # the strips of cells as images, without copies where a pixel is a row of channels
        B, _, H, _ = x.shape
        codes = codes.view(B, grid[0], 1, grid[1]).expand(-1, -1, H // grid[0], -1).flatten()
        strips = to_strips(x, grid)
        full = strips.detach() if full is x else to_strips(full, grid)
        base = None if base is None else to_strips(base, grid)
        made = select(strips, full, weight, codes, base, leak_choice, next_input)
        image, leak, fed = (None if y is None else from_strips(y, grid, H) for y in made)
        return image, leak, fed.contiguous() if next_input and not _are_rows(x) else fed
    with full_precision(x):
        if torch.is_grad_enabled():
            return _Selected.apply(x, full.detach(), weight, codes, base, leak_choice, next_input)
        image, leak = _rendered(full, _kernel(full, weight, codes, leak_choice), base, leak_choice)
        return image, leak, _add_choice_(x, image, leak) if next_input else None


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


def _add_choice_(x: torch.Tensor, image: torch.Tensor, leak: torch.Tensor | None) -> torch.Tensor:
    """Add the image to the first channels of x and the leak to the last, in place."""
    C = image.shape[1]
    x[:, :C].add_(image)
    if leak is not None:
        x[:, -C:].add_(leak)
    return x


class _Selected(torch.autograd.Function):
    """x [B, F or 2F, H, W], weight [K, C, F] and codes [B] -> the image [B, C, H, W] = W_code x + base, the leak (with
    ``leak_choice``: the same of the second half of x) and, with ``next_input``, x with both added. ``full`` is x in
    float32, without gradient.

    As one function, since the gradient of x is then one product that is added to the gradient of the next input, in the
    memory layout and dtype of x; autograd would make both, in two layouts, and convert.
    """

    @staticmethod
    def forward(ctx, x, full, weight, codes, base, leak_choice, next_input):
        ctx.set_materialize_grads(False)
        kernel = _kernel(full, weight, codes, leak_choice)
        ctx.save_for_backward(x, kernel, codes)
        ctx.leak_choice, ctx.weight_shape = leak_choice, weight.shape
        ctx.weight_dtype, ctx.base_dtype = weight.dtype, None if base is None else base.dtype
        image, leak = _rendered(full, kernel, base, leak_choice)
        image = image.clone() if base is None else image  # autograd refuses in-place changes of a view
        return image, leak, _add_choice_(x.clone(), image, leak) if next_input else None

    @staticmethod
    @once_differentiable
    def backward(ctx, of_image, of_leak, of_next):
        x, kernel, codes = ctx.saved_tensors
        features = x.to(kernel.dtype)  # as forward read them, and so in the memory layout of then
        (B, channels, H, W), C, as_rows = x.shape, kernel.shape[1], _are_rows(features)
        image, leak = of_image, of_leak
        if of_next is not None:
            image, leak = _sum(image, of_next[:, :C]), _sum(leak, of_next[:, -C:])
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
        if of_next is None:
            of_x = torch.bmm(left, right)
        else:
            of_next = of_next.permute(0, 2, 3, 1) if as_rows else of_next
            of_x = torch.baddbmm(of_next.reshape(len(kernel), left.shape[1], right.shape[2]), left, right)
        of_x = of_x.view(B, H, W, channels).permute(0, 3, 1, 2) if as_rows else of_x.view(B, channels, H, W)
        return of_x, None, of_weight, None, None if ctx.base_dtype is None else image.to(ctx.base_dtype), None, None


def _sum(a: torch.Tensor | None, b: torch.Tensor) -> torch.Tensor:
    return b if a is None else a + b
