"""Guides of zero-shot conditional generation (ZSCG; Section 3.2, Appendix B): distances that candidates are chosen by.

Legend: B images, K nodes, C channels, H x W pixels of a layer; n pictures that a guide holds.

``guided_sampling`` chooses by the distances; smaller is better. Pictures are [n, c, h, w] float in [-1, 1] of any size.
One picture serves the whole batch; n of them serve B = n m images, m consecutive ones each.

A guide that is quadratic in the pixels (``l2``, ``denoise``, ``superres``, ``colorization``, ``blur``, ``inpaint``,
``strokes``) costs two small matrix products, since the candidates of a layer are an affine family; what it compares is
a ``Comparison``, which is also what layers with cells and networks with a prior ask for. ``l1``, ``posterize`` and
``edges`` render candidates, at most ``max_candidates`` at a time. Guides by a network or a function of the user's are
in ``black_boxes``.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from ddn_networks import pixel_maps
from ddn_networks.candidates import Candidates
from ddn_networks.cells import Grid, to_cells

MAX_CANDIDATES = 256  # rendered candidates that a guide gets at a time


class Comparison(NamedTuple):
    """What a quadratic guide compares at a layer: the mean of (A x - target)^2, with a linear map A of a candidate x.

    target: [B, C', h', w'].
    pixels: the part of A that maps pixels (``Candidates.pixels``); None for the pixels themselves.
    channels: [C', C], the part of A that mixes channels; None for the channels themselves.
    separable: A of pixels as two matrices, rows [h', H] and columns [w', W]: A x = rows x columns^T. None where no
        value that is compared depends on several cells of the layer.
    known: [B, 1, h', w'], the share of each pixel that is compared (``pixels`` multiplies by its root); None for all.
    pooling: side of the block of pixels over which a mean has the variance that A gives to white noise.
    """

    target: torch.Tensor
    pixels: Callable[[torch.Tensor], torch.Tensor] | None = None
    channels: torch.Tensor | None = None
    separable: tuple[torch.Tensor, torch.Tensor] | None = None
    known: torch.Tensor | None = None
    pooling: float = 1.0

    def distances(self, candidates: Candidates) -> torch.Tensor:
        """[B, K], or [B, K, n] where the comparison stays within the n cells of the layer."""
        family = candidates if self.channels is None else candidates.channels(self.channels)
        family = family if self.pixels is None else family.pixels(self.pixels, self.separable is None)
        total = family.distances(self.target)
        if self.known is None:
            return total
        if family.num_cells > 1:
            return total / self._known_cells(family.grid).mean(1).clamp(min=1e-12).view(len(total), 1, -1)
        return total * (math.prod(self.known.shape[1:]) / self.known.sum((1, 2, 3)))[:, None]

    def num_values(self, candidates: Candidates) -> float | torch.Tensor:
        """N, how many independent values are compared, one per block of ``pooling``: of the picture, or of each cell;
        a number, or [B, 1] or [B, 1, n]."""
        if self.known is None:
            pixels = math.prod(candidates.shape[2:]) / self.pooling**2
            return self.target.shape[1] * pixels / candidates.num_cells
        sums = self._known_cells(candidates.grid).sum(1).view(len(self.target), 1, -1)
        return self.target.shape[1] * (sums if candidates.num_cells > 1 else sums[:, :, 0])

    def _known_cells(self, grid: Grid) -> torch.Tensor:
        return to_cells(self.known, grid).flatten(1)  # [B n, h w]


class Guide(NamedTuple):
    """One condition.

    name: for errors.
    distances: (candidates, layer) -> [B, K], or [B, K, n] where the layer has n cells; smaller is better. NaN is an
        error; +inf rules a candidate out at any weight, unless all are ruled out.
    weight: its influence among several guides.
    full_size: whether it gets the candidates at the network's resolution, at smaller layers too.
    comparison: of a quadratic guide (``quadratic``), candidates -> ``Comparison``; None where the guide must see whole
        pictures: then layers with cells, and networks with a prior, show it ``proposals``.
    exact: the comparison says what a linear map of the picture is, without noise: finished pictures are projected back
        onto it (``back_projection``).
    """

    name: str
    distances: Callable[[Candidates, int], torch.Tensor]
    weight: float = 1.0
    full_size: bool = False
    comparison: Callable[[Candidates], Comparison] | None = None
    exact: bool = False

    def compared(self, candidates: Candidates, layer: int) -> Comparison:
        """Its ``comparison``. Raises ValueError naming the guide and the layer where that fails."""
        try:
            return self.comparison(candidates)
        except Exception as error:  # whatever a user's function raises
            raise ValueError(f'guide {self.name} failed at layer {layer}: {error}') from error

    def of_pictures(self, images: torch.Tensor, layer: int) -> torch.Tensor:
        """[B] the distances of pictures [B, C, H, W], as if each were the only candidate."""
        return self(self.only(images), layer)[:, 0]

    @staticmethod
    def only(images: torch.Tensor) -> Candidates:
        """Candidates of which pictures [B, C, H, W] are the only ones."""
        B, C, H, W = images.shape
        return Candidates(images.new_zeros(1, C, 1), images.new_zeros(B, 1, H, W), images)

    def __call__(self, candidates: Candidates, layer: int) -> torch.Tensor:
        """[B, K] or [B, K, n], float32 or wider. Raises ValueError naming the guide and the layer where ``distances``
        fails."""
        whole = [candidates.shape[0], candidates.num_nodes]
        n = candidates.num_cells
        expected = whole if n == 1 else [*whole, n]
        try:
            distances = torch.as_tensor(self.distances(candidates, layer))
        except Exception as error:  # whatever a user's function raises
            raise ValueError(f'guide {self.name} failed at layer {layer}: {error}') from error
        if list(distances.shape) != expected:
            if list(distances.shape) == whole:
                raise ValueError(
                    f'guide {self.name} compares whole images, and layer {layer} chooses per cell of a '
                    f'{candidates.grid[0]}x{candidates.grid[1]} grid: show it whole pictures (of_pictures)'
                )
            shape = '[B, K]' if n == 1 else '[B, K, n]'
            raise ValueError(
                f'guide {self.name} at layer {layer} gave distances {list(distances.shape)}, not {shape} = {expected}'
            )
        if distances.isnan().any():
            raise ValueError(f'guide {self.name} at layer {layer} gave NaN')
        dtype = candidates.dtype
        if candidates.device.type != 'mps':  # which has no float64
            dtype = torch.promote_types(dtype, distances.dtype)
        return distances.detach().to(candidates.device, dtype)


def rendered(
    candidates: Candidates, score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], max_candidates: int
) -> torch.Tensor:
    """[B, K] of a function that must see pictures: at most ``max_candidates`` at a time, over images and nodes.

    ``score`` takes pictures [m, C, H, W] and ``rows`` [m] int64, the image each is a candidate for, and gives [m].
    """
    if max_candidates < 1:
        raise ValueError(f'a guide sees at least one candidate at a time, not {max_candidates}')
    B = candidates.shape[0]
    distances = []
    for first in range(0, B, max_candidates):
        some = slice(first, first + max_candidates)
        part = candidates.of_images(some)
        rows = torch.arange(first, first + part.shape[0], device=candidates.device)
        pieces = []
        for _, images in part.chunks(max(1, max_candidates // len(rows))):  # [b, k, C, H, W]
            b, k = images.shape[:2]
            scores = score(images.flatten(0, 1), rows.repeat_interleave(k))
            if list(scores.shape) not in ([b * k], [b * k, 1]):
                raise ValueError(f'it gave {list(scores.shape)} scores for {b * k} pictures')
            pieces.append(scores.reshape(b, k))
        distances.append(torch.cat(pieces, 1))
    return torch.cat(distances) if distances else candidates.weight.new_zeros(0, candidates.num_nodes)


# Quadratic guides: the K images are never rendered.


def quadratic(
    name: str, comparison: Callable[[Candidates], Comparison], weight: float = 1.0, exact: bool = False
) -> Guide:
    """The guide that compares as ``comparison`` of a layer's candidates says. ``exact``: see ``Guide``."""

    def distances(candidates: Candidates, layer: int) -> torch.Tensor:
        return comparison(candidates).distances(candidates)

    return Guide(name, distances, weight, comparison=comparison, exact=exact)


def l2(target: torch.Tensor, weight: float = 1.0, name: str = 'l2') -> Guide:
    """Mean squared error to ``target`` area-resized to the layer's size: reconstruction (Eq. 1)."""
    target_at = pixel_maps.held(target)
    return quadratic(name, lambda candidates: Comparison(target_at(candidates)), weight)


def denoise(noisy: torch.Tensor, weight: float = 1.0) -> Guide:
    """Mean squared error to a noisy picture: the network cannot generate the noise, so it is left out.

    With noise of deviation s, ``guided_sampling.temperature(2 s^2 / (C H W))`` of the picture samples the posterior
    layer by layer: area-resized noise is the smaller the fewer the pixels.
    """
    return l2(noisy, weight, 'denoise')


def superres(low: torch.Tensor, weight: float = 1.0) -> Guide:
    """Mean squared error between the candidates pooled to the size of ``low`` and ``low``, of any size (Section 3.2).

    Layers smaller than ``low`` compare at their own size, with ``low`` pooled to it.
    """
    low = pixel_maps.checked(low)
    made = {}

    def comparison(candidates: Candidates) -> Comparison:
        sides = candidates.shape[2:]
        size = tuple(min(a, b) for a, b in zip(sides, low.shape[2:], strict=True))
        if (sides, size) not in made:
            matrices = tuple(map(pixel_maps.box_matrix, sides, size))
            made[sides, size] = pixel_maps.box(low, size), matrices
        pooled, matrices = made[sides, size]
        within = all(a % b == 0 and b % cells == 0 for a, b, cells in zip(sides, size, candidates.grid, strict=True))
        return Comparison(
            pixel_maps.like(pooled, candidates),
            lambda x: pixel_maps.box(x, size),
            separable=None if within else matrices,
            pooling=math.sqrt(math.prod(sides) / math.prod(size)),
        )

    return quadratic('superres', comparison, weight, exact=True)


def colorization(grey: torch.Tensor, weight: float = 1.0) -> Guide:
    """Mean squared error between the candidates' luma and ``grey`` [n, 1, h, w] (or the luma of a colour picture)."""
    grey = pixel_maps.to_channels(pixel_maps.checked(grey), 1)
    grey_at = pixel_maps.held(grey)

    def comparison(candidates: Candidates) -> Comparison:
        matrix = pixel_maps.grey_matrix(candidates.shape[1])
        return Comparison(grey_at(candidates, channels=1), channels=matrix)

    return quadratic('colorization', comparison, weight, exact=True)


def blur(blurred: torch.Tensor, sigma: float, weight: float = 1.0) -> Guide:
    """Mean squared error between the blurred candidates and ``blurred``; ``sigma`` in pixels of that picture, up to its
    longer side."""
    blurred = pixel_maps.checked(blurred)
    most = max(blurred.shape[2:])
    if not 0 < sigma <= most:
        raise ValueError(f'a blur has a positive sigma, of at most the {most} pixels of its picture, not {sigma}')
    blurred_at, made = pixel_maps.held(blurred), {}

    def comparison(candidates: Candidates) -> Comparison:
        sides = candidates.shape[2:]
        sigmas = tuple(sigma * a / b for a, b in zip(sides, blurred.shape[2:], strict=True))
        if sides not in made:
            made[sides] = tuple(map(pixel_maps.gaussian_matrix, sides, sigmas))
        return Comparison(
            blurred_at(candidates),
            lambda x: pixel_maps.gaussian_blur(x, sigmas),
            separable=made[sides] if candidates.num_cells > 1 else None,
            # White noise keeps 1 / (4 pi sigma^2) of its variance under a Gaussian, 1 / p^2 in a mean of p x p.
            pooling=max(1.0, 2 * math.sqrt(math.pi * sigmas[0] * sigmas[1])),
        )

    return quadratic('blur', comparison, weight)


def inpaint(target: torch.Tensor, mask: torch.Tensor, weight: float = 1.0, name: str = 'inpaint') -> Guide:
    """Mean squared error over the known pixels only.

    ``mask`` [n or 1, 1, h, w] is 1 where ``target`` is known and 0 where it is to be invented, or lies between. (Mask
    files of ``--guide inpaint`` are inverted: white is to be invented.) At smaller layers a pixel counts by the share
    of its area that is known.
    """
    target, mask = pixel_maps.checked(target), torch.as_tensor(mask).float()
    if mask.ndim != 4 or mask.shape[1] != 1 or not (torch.isfinite(mask).all() and 0 <= mask.min() and mask.max() <= 1):
        raise ValueError(f'a mask is [n, 1, H, W] with entries in 0..1, not {list(mask.shape)}')
    if len(mask) not in (1, len(target)) and len(target) != 1:
        raise ValueError(f'{len(mask)} masks do not fit {len(target)} pictures')
    empty = (mask.flatten(1).amax(1) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f'mask {empty[0]} keeps no pixel: nothing is left to guide by')
    mask = pixel_maps.fit(mask, target.shape[2:])
    made = {}

    def comparison(candidates: Candidates) -> Comparison:
        size = tuple(candidates.shape[2:])
        if size not in made:
            known = pixel_maps.fit(mask, size)  # [n, 1, H, W]
            mean = pixel_maps.fit(target * mask, size) / known.clamp(min=1e-12)  # of the known pixels, [n, C, H, W]
            made[size] = mean, known
        mean, known = made[size]
        mean = pixel_maps.like(mean, candidates)  # [B, C, H, W]
        root = pixel_maps.repeat(known.to(mean).sqrt(), len(mean))  # [B, 1, H, W]
        return Comparison(mean * root, lambda x: x * root, known=root.square())

    return quadratic(name, comparison, weight, exact=name == 'inpaint')


def strokes(rgba: torch.Tensor, weight: float = 1.0) -> Guide:
    """Colour strokes: ``rgba`` [n, 4, h, w] counts by its alpha, from -1 (transparent, not at all) to 1 (opaque)."""
    rgba = pixel_maps.checked(rgba)
    if rgba.shape[1] != 4:
        raise ValueError(f'strokes are RGBA pictures [n, 4, H, W], not {list(rgba.shape)}')
    return inpaint(rgba[:, :3], (rgba[:, 3:] + 1) / 2, weight, 'strokes')


# Guides that are not linear: they get rendered candidates at the layer's size.


def l1(target: torch.Tensor, weight: float = 1.0, max_candidates: int = MAX_CANDIDATES) -> Guide:
    """Mean absolute error to ``target`` area-resized to the layer's size."""
    target_at = pixel_maps.held(target)

    def distances(candidates: Candidates, layer: int) -> torch.Tensor:
        at = target_at(candidates)
        return rendered(candidates, lambda x, rows: (x - at[rows]).abs().mean((1, 2, 3)), max_candidates)

    return Guide('l1', distances, weight)


def posterize(target: torch.Tensor, bits: int, weight: float = 1.0, max_candidates: int = MAX_CANDIDATES) -> Guide:
    """Mean squared distance to the interval that each pixel of a picture of ``bits`` bits per channel leaves open.

    A mean of pixels lies between the means of their bounds, so smaller layers are exact too.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f'a posterised picture has 1 to 8 bits per channel, not {bits}')
    step = 2 ** (8 - bits)
    low = ((pixel_maps.checked(target).clamp(-1, 1) + 1) * 127.5).round()  # 0..255
    low = low.div(step, rounding_mode='floor') * step
    low_at, high_at = pixel_maps.held((low - 0.5) / 127.5 - 1), pixel_maps.held((low + step - 0.5) / 127.5 - 1)

    def distances(candidates: Candidates, layer: int) -> torch.Tensor:
        low, high = low_at(candidates), high_at(candidates)

        def outside(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return (images - images.clamp(low[rows], high[rows])).square().mean((1, 2, 3))

        return rendered(candidates, outside, max_candidates)

    return Guide('posterize', distances, weight)


def edges(
    picture: torch.Tensor,
    drawn: bool = False,
    threshold: float = 0.75,
    softness: float = 0.25,
    weight: float = 1.0,
    max_candidates: int = MAX_CANDIDATES,
) -> Guide:
    """Mean squared error between soft Sobel edges of the candidates and those of ``picture``, at the layer's size.

    ``drawn``: ``picture`` is an edge map already, 1 on edges and -1 elsewhere. An edge is where the Sobel magnitude of
    the luma in [-1, 1] exceeds ``threshold``, blending over ``softness``.
    """
    picture_at = pixel_maps.held(pixel_maps.to_channels(pixel_maps.checked(picture), 1))
    if not softness > 0:
        raise ValueError(f'edges have a positive softness, not {softness}')

    def distances(candidates: Candidates, layer: int) -> torch.Tensor:
        luma = candidates.channels(pixel_maps.grey_matrix(candidates.shape[1]))
        at = picture_at(luma)
        at = at if drawn else pixel_maps.soft_edges(at, threshold, softness)

        def error(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            return (pixel_maps.soft_edges(images, threshold, softness) - at[rows]).square().mean((1, 2, 3))

        return rendered(luma, error, max_candidates)

    return Guide('edges', distances, weight)
