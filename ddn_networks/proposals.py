"""Proposals: whole pictures among which a guide chooses that must see them, as it chooses among K candidates.

Legend: B images, M proposals per image, n cells of a layer, C image channels, H x W pixels.

A layer with cells has K^n answers, and a classifier, CLIP or an edge map cannot judge a cell alone. It is shown M whole
pictures whose codes are sampled, chooses, and is shown M more in which the cells of one quarter are sampled again,
quarter by quarter. M proposals are log2 M bits of control each time, where the layer decides n log2 K.
"""

from collections.abc import Callable

import torch

from ddn_networks.candidates import Candidates
from ddn_networks.cells import Grid
from ddn_networks.sweeps import Picture

# (what to begin with, None at first; the cells that choose, None for all; number of the proposal) -> Picture
Propose = Callable[[Picture | None, torch.Tensor | None, int], Picture]
Judge = Callable[[torch.Tensor], torch.Tensor]  # images [B, M, C, H, W] -> the chosen ones [B]


def quarters(grid: Grid) -> list[list[int]]:
    """The cells of the upper left, upper right, lower left and lower right part of a grid; fewer parts where it has one
    row or column, none for a single cell."""
    gh, gw = grid
    parts: dict[tuple[int, int], list[int]] = {}
    for cell in range(gh * gw):
        parts.setdefault((2 * (cell // gw) // gh, 2 * (cell % gw) // gw), []).append(cell)
    return list(parts.values()) if len(parts) > 1 else []


def choose(candidates: Candidates, propose: Propose, judge: Judge, num_proposals: int) -> torch.Tensor:
    """The codes [B, n] that the judge chose, first among whole proposals, then quarter by quarter. Among those is the
    picture chosen before."""
    best = _best([propose(None, None, m) for m in range(num_proposals)], candidates, judge)
    for cells in quarters(candidates.grid):
        cells = torch.tensor(cells, device=candidates.device)
        best = _best([best, *(propose(best, cells, m) for m in range(1, num_proposals))], candidates, judge)
    return best.codes


def _best(shown: list[Picture], candidates: Candidates, judge: Judge) -> Picture:
    images = torch.stack([picture.image(candidates) for picture in shown], 1)  # [B, M, C, H, W]
    at = torch.arange(len(images), device=images.device), judge(images)
    return Picture(*(torch.stack(parts, 1)[at] for parts in zip(*shown, strict=True)))
