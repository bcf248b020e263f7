"""Cells: a layer may ask its question once per cell of a grid, so that it has K^n answers in place of K (n cells).

Legend: B images, C channels, H x W pixels, a grid of g_h x g_w cells, n = g_h g_w, of h x w pixels each.

A cell is a rectangle of pixels; cells are numbered row by row. Cells of one layer are treated as images of their own:
[B, C, H, W] becomes [B n, C, h, w], and everything that a layer computes of images it computes of cells.
"""

from collections.abc import Sequence

import torch

Grid = tuple[int, int]
WHOLE: Grid = (1, 1)  # one question per image


def to_cells(images: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The cells of images: [B, C, H, W] -> [B n, C, h, w], the cells of one image in consecutive rows. Channels last in
    memory, whatever the images are: then a pixel is copied whole, where a row of a small cell is a few numbers."""
    (B, C, H, W), (gh, gw) = images.shape, grid
    rows = images.permute(0, 2, 3, 1)  # [B, H, W, C]
    rows = rows if rows.stride(3) == 1 else rows.contiguous()
    rows = rows.unflatten(1, (gh, H // gh)).unflatten(3, (gw, W // gw))  # [B, gh, h, gw, w, C]
    return rows.transpose(2, 3).reshape(B * gh * gw, H // gh, W // gw, C).permute(0, 3, 1, 2)


def from_cells(cells: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The images that cells make up: [B n, C, h, w] -> [B, C, H, W]."""
    (rows, C, h, w), (gh, gw) = cells.shape, grid
    B = rows // (gh * gw)
    rows = cells.permute(0, 2, 3, 1).reshape(B, gh, gw, h, w, C)
    return rows.transpose(2, 3).reshape(B, gh * h, gw * w, C).permute(0, 3, 1, 2)


def to_strips(images: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The rows of pixels of cells as images: [B, C, H, W] -> [B H g_w, C, 1, w], row by row of the images. A view where
    images are channels last, as training has them; cells are none, since their rows lie apart."""
    (B, C, H, W), gw = images.shape, grid[1]
    return images.permute(0, 2, 3, 1).reshape(B * H * gw, 1, W // gw, C).permute(0, 3, 1, 2)


def from_strips(strips: torch.Tensor, grid: Grid, height: int) -> torch.Tensor:
    """The images of ``height`` H that strips make up: [B H g_w, C, 1, w] -> [B, C, H, W], channels last."""
    (rows, C, _, w), gw = strips.shape, grid[1]
    return strips.permute(0, 2, 3, 1).reshape(rows // (height * gw), height, gw * w, C).permute(0, 3, 1, 2)


def checked_grid(grid: int | Sequence[int], size: tuple[int, int]) -> Grid:
    """A grid for a layer of ``size`` (H, W) as (g_h, g_w); ValueError with what fits where it does not divide it."""
    gh, gw = (grid, grid) if isinstance(grid, int) else (int(g) for g in grid)
    if min(gh, gw) < 1 or size[0] % gh or size[1] % gw:
        fits = [' or '.join(str(g) for g in range(1, side + 1) if side % g == 0) for side in size]
        raise ValueError(
            f'a grid of {gh}x{gw} cells does not divide a layer of {size[0]}x{size[1]} pixels: give {fits[0]} rows and '
            f'{fits[1]} columns'
        )
    return gh, gw
