"""Pictures of any size as tiles of a network's size that overlap, and back.

Legend: T tiles, C channels, H x W pixels of a picture, h x w of a tile.

Tiles are spread evenly from edge to edge. Where they overlap, the picture is their weighted mean, with weights that
fall linearly towards the edges of a tile, so that there are no seams. A side that is shorter than a tile is continued
by its last pixel.
"""

import torch
import torch.nn.functional as F

OVERLAP = 8  # a tile overlaps the next one by at least 1/8


def _starts(length: int, tile: int) -> list[int]:
    step = tile - tile // OVERLAP
    num = 1 if length <= tile else -(-(length - tile) // step) + 1
    return [round(i * (length - tile) / max(num - 1, 1)) for i in range(num)] if num > 1 else [0]


def places(size: tuple[int, int], tile: tuple[int, int]) -> list[tuple[int, int]]:
    """(top, left) of the tiles of a picture, row by row."""
    rows, columns = (_starts(a, b) for a, b in zip(size, tile, strict=True))
    return [(top, left) for top in rows for left in columns]


def cut(image: torch.Tensor, tile: tuple[int, int]) -> torch.Tensor:
    """The tiles of a picture: [C, H, W] -> [T, C, h, w]."""
    H, W = image.shape[1:]
    (h, w), size = tile, (H, W)
    image = F.pad(image[None], (0, max(0, w - W), 0, max(0, h - H)), mode='replicate')[0]
    return torch.stack([image[:, top : top + h, left : left + w] for top, left in places(size, tile)])


def join(tiles: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The picture that tiles make up: [T, C, h, w] -> [C, H, W]."""
    h, w = tiles.shape[2:]
    weight = _ramp(h)[:, None] * _ramp(w)
    padded = [max(a, b) for a, b in zip(size, (h, w), strict=True)]
    total = tiles.new_zeros(tiles.shape[1] + 1, *padded)  # weighted pixels, and the weights
    for tile, (top, left) in zip(tiles, places(size, (h, w)), strict=True):
        part = total[:, top : top + h, left : left + w]
        part += torch.cat([tile, torch.ones_like(tile[:1])]) * weight.to(tiles)
    return (total[:-1] / total[-1])[:, : size[0], : size[1]]


def _ramp(length: int) -> torch.Tensor:
    at = torch.arange(length) + 0.5
    return (torch.minimum(at, length - at) / max(1, length // OVERLAP)).clamp(max=1)
