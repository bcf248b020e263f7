"""The K images of a layer, compared without rendering them.

Legend: B images, K nodes, C image channels, F feature channels, H x W pixels, N = H W.

The K outputs of a Discrete Distribution Layer are an affine family: candidate k is ``base + W_k F`` with the features F
of the layer, one 1x1 convolution W_k per node (Section 3, "Network architecture") and ``base`` the image chosen before
(Learning Residual, Section 3.3) or nothing. Rendering all of them costs B K C N numbers. What a sampler asks of them is
nearly always a squared L2 distance, and that has a closed form in which no candidate appears:

    |W_k F + E|^2 = <W_k^T W_k, F F^T> + 2 <W_k, E F^T> + |E|^2        with E = base - target.

A linear map of pixels or channels leaves the family affine, so super-resolution, inpainting or colorization guides are
answered in the same way.

A layer may be *unshuffled* by r: its features have h x w = H/r x W/r pixels, W_k makes C r^2 channels of them, and a
pixel shuffle (a permutation) makes the picture of those. Distances are those of the unshuffled family, which costs as
much as a layer of h x w pixels. The same pictures are also a plain family of r^2 F features of H x W pixels, each zero
but at one of the r^2 places of a block: that is what ``weight`` and ``features`` then are.
"""

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from ddn_networks import closed_forms
from ddn_networks.aliases import old_names
from ddn_networks.cells import WHOLE, Grid, checked_grid, from_cells, to_cells
from ddn_networks.closed_forms import full_precision


class Candidates:
    """One layer's K candidate images, lazily: candidate k is ``base + weight[k] @ features``.

    A sampler may use its candidates until it has answered: without gradients the layer then changes the features in
    place. Render those to be kept (``render``, ``chunks``).

    Args:
        weight: [K, C, F] one 1x1 convolution per node; [K, C r^2, F] if unshuffled.
        features: [B, F, H, W], any floating dtype; arithmetic is float32 or the wider of the dtypes. [B, F, h, w] if
            unshuffled.
        base: [B, C, H, W] the image each candidate is added to, or None for zero; [B, C r^2, h, w] if unshuffled.
        rows: where images share candidates (``shared_prefixes``), features and base have U rows and rows [B] int64 maps
            each image to its row. Everything else is as if each image had its own.
        grid: cells that the question is asked for (``cells``); with more than one, distances and codes are per cell.
        prior: whether it sees the condition -> logits of the network's own prior, of B or U rows; None without one.
        unshuffle: r.

    Attributes:
        weight, features, base: [K, C, F], [B, F, H, W], [B, C, H, W] or None, of the plain family; F counts r^2 times.

    Raises:
        ValueError: shapes that do not fit, a grid that does not divide the pixels of the features.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        features: torch.Tensor,
        base: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
        grid: Grid = WHOLE,
        prior: Callable[[bool], torch.Tensor] | None = None,
        unshuffle: int = 1,
    ):
        if weight.ndim != 3 or features.ndim != 4 or weight.shape[2] != features.shape[1]:
            raise ValueError(
                f'candidates need weight [K, C, F] and features [B, F, H, W], not {tuple(weight.shape)} and '
                f'{tuple(features.shape)}'
            )
        shape = (features.shape[0], weight.shape[1], *features.shape[2:])
        if base is not None and tuple(base.shape) != shape:
            raise ValueError(f'the base of these candidates must be {shape}, not {tuple(base.shape)}')
        self.rows, self._prior, self._unshuffle = rows, prior, unshuffle
        self._log_prior: dict[bool, torch.Tensor] = {}
        self.grid = grid if grid == WHOLE else checked_grid(grid, features.shape[2:])
        self._weight, self._features, self._base = weight, features, base  # the latter two [B or U, ...]
        B, channels, h, w = shape
        self.shape = (  # (B, C, H, W) of one candidate per image
            B if rows is None else len(rows), channels // unshuffle**2, h * unshuffle, w * unshuffle
        )  # fmt: skip

    @functools.cached_property
    def weight(self) -> torch.Tensor:
        r, (K, channels, F) = self._unshuffle, self._weight.shape
        return self._weight if r == 1 else self._weight.reshape(K, channels // r**2, r * r * F)

    @property
    def features(self) -> torch.Tensor:
        r, features = self._unshuffle, self._of_images(self._features)
        if r == 1:
            return features
        B, F, h, w = features.shape
        places = features.new_zeros(B, r, r, F, h, r, w, r)
        for i in range(r):
            for j in range(r):
                places[:, i, j, :, :, i, :, j] = features
        return places.view(B, r * r * F, h * r, w * r)

    @property
    def base(self) -> torch.Tensor | None:
        base = self._unshuffled_base
        return base if base is None or self._unshuffle == 1 else pixel_shuffle(base, self._unshuffle)

    @property
    def _unshuffled_base(self) -> torch.Tensor | None:
        return None if self._base is None else self._of_images(self._base)

    def _of_images(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self.rows is None else rows[self.rows]

    def of_features(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """``fn`` of the features of each image, of h x w pixels if unshuffled, computed once where images share them:
        [B, ...]."""
        return self._of_images(fn(self._features))

    def of_images(self, some: slice) -> 'Candidates':
        """The candidates of some of the images."""
        features, base = self._of_images(self._features)[some], self._unshuffled_base
        base = None if base is None else base[some]
        return Candidates(self._weight, features, base, grid=self.grid, unshuffle=self._unshuffle)

    @property
    def num_nodes(self) -> int:
        return self._weight.shape[0]

    @property
    def num_cells(self) -> int:
        """n, the number of answers that a sampler gives per image."""
        return self.grid[0] * self.grid[1]

    @property
    def device(self) -> torch.device:
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of distances and rendered images: float32 or wider, whatever the features are."""
        dtype = torch.promote_types(torch.promote_types(self._weight.dtype, self._features.dtype), torch.float32)
        return dtype if self._base is None else torch.promote_types(dtype, self._base.dtype)

    def log_prior(self, conditional: bool = True) -> torch.Tensor:
        """How likely each answer is given the choices so far, log p [B, K] or [B, K, n], by the network's own prior
        (``prior``); uniform without one. Computed once. ``conditional``: False for log p without the condition, of a
        prior that alone is given it."""
        if conditional not in self._log_prior:
            if self._prior is None:
                shape = (self.shape[0], self.num_nodes, *[self.num_cells] * (self.num_cells > 1))
                log_prior = self._weight.new_zeros(shape, dtype=self.dtype).log_softmax(1)
            else:
                logits = self._prior(conditional)
                log_prior = (logits if self.rows is None else logits[self.rows]).log_softmax(1)
            self._log_prior[conditional] = log_prior
        return self._log_prior[conditional]

    def pixels(self, fn: Callable[[torch.Tensor], torch.Tensor], within_cells: bool = False) -> 'Candidates':
        """The candidates after a linear map over pixels, the same for every channel: A(W F + b) = W (A F) + A b.

        ``fn`` takes [B, any channels, H, W] and returns [B, the same channels, H', W']. It must be linear (area
        pooling, a mask, a blur, a crop, a warp), and must not mix channels or images. ``within_cells``: nor cells; only
        then the result has the cells of these candidates, else it is compared as whole images.
        """
        with full_precision(self._weight):
            base = None if self.base is None else fn(self.base.to(self.dtype))
            grid = self.grid if within_cells else WHOLE
            return Candidates(self.weight, fn(self.features.to(self.dtype)), base, grid=grid)

    def channels(self, matrix: torch.Tensor) -> 'Candidates':
        """The candidates after a linear map over image channels, [C', C]: T(W F + b) = (T W) F + T b."""
        matrix, base = matrix.to(device=self.device, dtype=self.dtype), self._unshuffled_base
        if self._unshuffle > 1:  # the same at each place of a block
            matrix = torch.kron(matrix, torch.eye(self._unshuffle**2).to(matrix))
        with full_precision(self._weight):
            weight = matrix @ self._weight.to(self.dtype)  # [K, C', F]
            base = None if base is None else torch.einsum('dc,bchw->bdhw', matrix, base.to(self.dtype))
        features = self._of_images(self._features)
        return Candidates(weight, features, base, grid=self.grid, unshuffle=self._unshuffle)

    def distances(self, to: torch.Tensor) -> torch.Tensor:
        """Mean squared error of every candidate against ``to`` [B, C, H, W] (Eq. 1), no gradient: over the image,
        [B, K], or with several cells over each cell, [B, K, n].

        Exact up to rounding. Candidates are rendered only where that costs less (small N against F).
        """
        if tuple(to.shape) != self.shape:
            raise ValueError(f'the target of these candidates must be {self.shape}, not {tuple(to.shape)}')
        B, C, H, W = self.shape
        with torch.no_grad(), full_precision(self._weight):
            weight = self._weight.detach().to(self.dtype)
            to = pixel_unshuffle(to.to(self.dtype), self._unshuffle)
            if self.num_cells > 1:
                return self._cell_distances(weight, to)
            if self.rows is not None and self._shared_pays():
                return self._shared_distances(weight, to)
            features = self._of_images(self._features).detach().to(self.dtype).flatten(2)  # [B, F, N]
            base = self._unshuffled_base
            error = -to if base is None else base.detach().to(self.dtype) - to
            error = error.flatten(2)  # [B, C, N]
            total = closed_forms.distances(weight, features, error)
            return total.clamp_(min=0) / (C * H * W)  # the Gram forms round below zero

    def _cell_distances(self, weight: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """``distances`` with the cells of the images as images: [B, K, n]."""
        features, base = self._of_images(self._features).detach().to(self.dtype), self._unshuffled_base
        error = -to if base is None else base.detach().to(self.dtype) - to
        total = closed_forms.cell_distances(weight, features, error, self.grid)  # [B n, K]
        total = total.clamp_(min=0) / (error[0].numel() // self.num_cells)
        return total.unflatten(0, (-1, self.num_cells)).transpose(1, 2)

    def _shared_pays(self) -> bool:
        """Whether B images times U K candidates cost less than B images times K of their own."""
        (K, C, F), B, U = self._weight.shape, self.shape[0], len(self._features)
        N = self._features[0, 0].numel()
        # A product with few columns takes as long as one with 16.
        rendered = U * K * C * (F * max(N, 16) + N * (B + closed_forms.TRAFFIC))
        return rendered < min(closed_forms.costs(B, K, C, F, N).values()) + B * F * N * closed_forms.TRAFFIC

    def _shared_distances(self, weight: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """|V_k|^2 - 2 <V_k, target> + |target|^2 with the U K candidates V rendered once."""
        shared = Candidates(weight, self._features.detach(), None if self._base is None else self._base.detach())
        target = to.flatten(1)  # [B, C N]
        U = len(self._features)
        # On the CPU rendered candidates may be 16 times as many numbers as other results: smaller products take longer.
        numbers = max(len(to) * U, U * target.shape[1] // (16 if to.is_cpu else 1))
        total = []  # [U, k] of |V_k|^2 and [B, k] of <V_k, target>, some candidates at a time
        for _, images in shared.chunks(closed_forms.slice_size(to, numbers)):
            images = images.flatten(2)  # [U, k, C N]
            inner = (target @ images.flatten(0, 1).t()).unflatten(1, images.shape[:2])  # [B, U, k]
            own = inner[torch.arange(len(to), device=to.device), self.rows]  # [B, k]
            total.append(images.square().sum(2)[self.rows] - 2 * own)
        return (torch.cat(total, 1) + target.square().sum(1, keepdim=True)).clamp(min=0) / target.shape[1]

    def render(self, codes: torch.Tensor) -> torch.Tensor:
        """One candidate per image or cell: codes [B] or [B, n] int64 -> [B, C, H, W], with gradient to weight, features
        and base."""
        base = self._unshuffled_base
        with full_precision(self._weight):
            features = to_cells(self._of_images(self._features).to(self.dtype), self.grid)
            image = self._weight[codes.flatten()].to(self.dtype) @ features.flatten(2)
            image = from_cells(image.unflatten(2, features.shape[2:]), self.grid)
            return pixel_shuffle(image if base is None else image + base, self._unshuffle)

    def chunks(self, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Rendered candidates for guides that must see pictures: (k0, [B, k, C, H, W]) with k <= size, no gradient."""
        if size < 1:
            raise ValueError(f'a chunk holds at least one candidate, not {size}')
        features, base = self._of_images(self._features).detach().to(self.dtype), self._unshuffled_base
        base = None if base is None else base.detach()[:, None]
        for k0 in range(0, self.num_nodes, size):
            weight = self._weight.detach()[k0 : k0 + size].to(self.dtype)
            with torch.no_grad(), full_precision(weight):  # not around the yield: it would hold for the caller
                images = (weight.flatten(0, 1) @ features.flatten(2)).unflatten(1, weight.shape[:2])
                images = images.unflatten(3, features.shape[2:])
                images = pixel_shuffle(images if base is None else images + base, self._unshuffle)
            yield k0, images


def pixel_shuffle(images: torch.Tensor, r: int) -> torch.Tensor:
    """[..., C r^2, h, w] -> [..., C, h r, w r]: the r^2 channels of a pixel become a block of r x r pixels."""
    return images if r == 1 else F.pixel_shuffle(images, r)


def pixel_unshuffle(images: torch.Tensor, r: int) -> torch.Tensor:
    """The inverse: [..., C, H, W] -> [..., C r^2, H / r, W / r]."""
    return images if r == 1 else F.pixel_unshuffle(images, r)


def area_resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Area-resize [B, C, H, W] to [B, C, *size]: each output pixel is the mean of the input pixels it covers."""
    return images if tuple(images.shape[2:]) == tuple(size) else F.interpolate(images, size=size, mode='area')


__getattr__ = old_names(__name__)
