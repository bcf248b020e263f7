"""Sweeps: layers that choose per cell, answered cell by cell where a guide's comparison crosses cells.

Legend: B images, K nodes, n cells of h x w pixels, C image channels, F feature channels, H x W pixels of the layer,
h' x w' values per channel that a guide compares.

A quadratic guide compares A x with a target. Where each value depends on one cell only, the K distances of all cells
are one closed form. Coarse super-resolution and blur cross cells; then the distance of the picture is still a closed
form in the choice of one cell, given the present choices of the others:

    |A x - target|^2 = |A_c W_k F_c + E_c|^2 + what cell c does not reach      A_c: A of the pixels of cell c
                                                                               E_c: the error without cell c

so a sweep answers the cells one after the other (coordinate descent; with sampled choices Gibbs sampling). Cells that
reach no common value are answered at once.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ddn_networks import closed_forms
from ddn_networks.candidates import Candidates
from ddn_networks.cells import from_cells, to_cells
from ddn_networks.closed_forms import full_precision
from ddn_networks.guides import Comparison

# ([distances [B, K, m] of each guide], the cells [m], number of sweeps after this one) -> codes [B, m]
Decide = Callable[[list[torch.Tensor], torch.Tensor, int], torch.Tensor]


class Picture(NamedTuple):
    """The present choices of a layer with cells.

    codes: [B, n]. own: [B, n, C, h, w], what each cell adds to the base.
    """

    codes: torch.Tensor
    own: torch.Tensor

    def image(self, candidates: Candidates) -> torch.Tensor:
        """[B, C, H, W]."""
        image = from_cells(self.own.flatten(0, 1), candidates.grid)
        return image if candidates.base is None else image + candidates.base


def of_codes(candidates: Candidates, codes: torch.Tensor) -> Picture:
    """The choices ``codes`` [B, n]."""
    features = _cells_of(candidates, candidates.features)  # [B, n, F, h, w]
    return Picture(codes, _rendered(candidates.weight[codes], features))


def mean(candidates: Candidates, p: torch.Tensor) -> Picture:
    """The mean of all answers with probabilities p [B, K, n]: what stands for cells that have not chosen yet."""
    features = _cells_of(candidates, candidates.features)
    with full_precision(features):
        kernels = torch.einsum('bkn,kcf->bncf', p.to(features), candidates.weight.to(features))
    return Picture(p.argmax(1), _rendered(kernels, features))


def _cells_of(candidates: Candidates, images: torch.Tensor) -> torch.Tensor:
    """Images [B, c, H, W] as [B, n, c, h, w]."""
    return to_cells(images.detach().to(candidates.dtype), candidates.grid).unflatten(0, (-1, candidates.num_cells))


def _rendered(kernels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Kernels [B, n, C, F] on features [B, n, F, h, w]: [B, n, C, h, w]."""
    with full_precision(features):
        return (kernels.detach().to(features) @ features.flatten(3)).unflatten(3, features.shape[3:])


class Fixed:
    """Distances [B, K, n] of a guide that stays within cells: they do not depend on other cells."""

    reach = (1, 1)

    def __init__(self, distances: torch.Tensor):
        self.values = distances

    def distances(self, picture: Picture, cells: torch.Tensor) -> torch.Tensor:
        """[B, K, m] of the ``cells`` [m]."""
        return self.values[:, :, cells]


class Crossing:
    """Distances of a ``Comparison`` that crosses cells, of one layer's candidates.

    Attributes:
        reach: (rows, columns), how far apart two cells are at least in one of them that reach no common value.
    """

    def __init__(self, candidates: Candidates, comparison: Comparison, scale: float = 1.0):
        self.candidates, self.comparison, self.scale = candidates, comparison, scale
        made = [_of_cells(matrix, cells) for matrix, cells in zip(comparison.separable, candidates.grid, strict=True)]
        self.reach = tuple(reach for _, _, reach in made)
        like = candidates.weight.new_empty(0, dtype=candidates.dtype)
        self.rows, self.columns = (matrix.to(like) for matrix in comparison.separable)
        gh, gw = candidates.grid
        at = torch.arange(gh * gw, device=like.device)
        (bases, maps, _), (more_bases, more_maps, _) = made
        self.bases = bases.to(like)[at // gw], more_bases.to(like)[at % gw]  # [n, i, h'], [n, j, w']
        self.maps = maps.to(like)[at // gw], more_maps.to(like)[at % gw]  # [n, i, h], [n, j, w]
        self.weight = candidates.weight.detach().to(like)
        self.features = self._mapped(_cells_of(candidates, candidates.features), at)  # [B, n, F, i, j]

    def _mapped(self, of_cells: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """A_c of pixels of cells [B, m, c, h, w]: [B, m, c, i, j]."""
        with full_precision(of_cells):
            return self.maps[0][cells, None] @ of_cells @ self.maps[1][cells, None].mT

    def distances(self, picture: Picture, cells: torch.Tensor) -> torch.Tensor:
        """[B, K, m]: the mean squared difference of the whole picture for every answer of each of the ``cells`` [m],
        given the other cells, times n (as if it were that of the cell, with an n-th of the values) and scale."""
        image = picture.image(self.candidates)
        with full_precision(image):
            error = self.rows @ image @ self.columns.mT - self.comparison.target  # [B, C, h', w']
            rows, columns = self.bases[0][cells, None], self.bases[1][cells, None]
            within = rows @ error[:, None] @ columns.mT  # [B, m, C, i, j], all of the error that a cell reaches
            beyond = error.square().sum((1, 2, 3))[:, None] - within.square().sum((2, 3, 4))  # [B, m]
            without = within - self._mapped(picture.own[:, cells], cells)
            features = self.features[:, cells].flatten(0, 1)  # [B m, F, i, j]
            total = closed_forms.cell_distances(self.weight, features, without.flatten(0, 1))  # [B m, K]
        total = total.clamp(min=0).unflatten(0, (-1, len(cells))) + beyond.clamp(min=0)[:, :, None]  # [B, m, K]
        return total.mT * (self.scale * self.candidates.num_cells / error[0].numel())


def _of_cells(matrix: torch.Tensor, cells: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """A matrix [h', H] cut into the columns of its cells, each as basis and map: [g, i, h'] of orthonormal rows and
    [g, i, h] with matrix of the cell = basis^T map and i as small as may be; and how many cells apart two cells are
    that reach no common row."""
    blocks = matrix.unflatten(1, (cells, -1)).transpose(0, 1)  # [g, h', h]
    reached = (blocks != 0).any(2)  # [g, h']
    most = int(reached.sum(1).max())
    if most < blocks.shape[2]:  # rows of the matrix themselves
        at = reached.int().sort(dim=1, descending=True, stable=True).indices[:, :most]  # [g, i]
        basis = torch.nn.functional.one_hot(at, len(matrix)).to(matrix)
        maps = blocks.gather(1, at[:, :, None].expand(-1, -1, blocks.shape[2]))
    else:
        q, maps = torch.linalg.qr(blocks)
        basis = q.mT
    common = (reached.float() @ reached.float().mT).nonzero()  # pairs of cells
    return basis, maps, 1 + int((common[:, 0] - common[:, 1]).abs().max()) if len(common) else 1


def groups(candidates: Candidates, terms: Sequence[Fixed | Crossing]) -> list[torch.Tensor]:
    """The cells in groups that are answered at once, since no two of a group reach a common value of any guide."""
    gh, gw = candidates.grid
    rows, columns = (max((term.reach[axis] for term in terms), default=1) for axis in (0, 1))
    cells = torch.arange(gh * gw, device=candidates.device).view(gh, gw)
    return [cells[i::rows, j::columns].flatten() for i in range(min(rows, gh)) for j in range(min(columns, gw))]


def sweep(
    candidates: Candidates,
    terms: Sequence[Fixed | Crossing],
    decide: Decide,
    picture: Picture,
    num_sweeps: int = 2,
    chosen: torch.Tensor | None = None,
) -> Picture:
    """The picture after so many sweeps. One pass is enough where no guide crosses cells.

    Args:
        terms: the distances of each guide. decide: how they become choices.
        picture: the choices to begin with (``of_codes``), or what stands for them (``mean``).
        chosen: [m], the cells that choose; None for all. The others stay as they are.
    """
    apart = groups(candidates, terms)
    if chosen is not None:
        apart = [cells[torch.isin(cells, chosen)] for cells in apart]
        apart = [cells for cells in apart if len(cells)]
    features = _cells_of(candidates, candidates.features)
    codes, own = picture.codes.clone(), picture.own.clone()
    for left in reversed(range(num_sweeps if len(apart) > 1 else 1)):
        for cells in apart:
            found = decide([term.distances(Picture(codes, own), cells) for term in terms], cells, left)
            codes[:, cells] = found
            own[:, cells] = _rendered(candidates.weight[found], features[:, cells])
    return Picture(codes, own)
