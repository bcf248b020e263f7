"""Sheets: rows of pictures as one PNG to look at."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .images import MODES, to_image, to_uint8, with_channels
from .util import atomic_write

GAP = 4  # pixels of an empty row, before they are repeated
CAPTION = 12  # height of a line of text
TEXT_GAP = 4  # between a name and its row

# A picture: float tensor [C, H, W] in [-1, 1], or uint8 array or tensor [C, H, W]; C of 1, 3 or 4.
Picture = Any


class Tile(NamedTuple):
    """A picture with a line of text above it."""

    picture: Picture
    caption: str = ''


def in_rows(pictures: Sequence, columns: int) -> list:
    """Pictures (a list, or an array or tensor [N, C, H, W]) in rows of ``columns``; the last may be shorter."""
    return [pictures[i : i + columns] for i in range(0, len(pictures), columns)]


def in_pairs(upper: Sequence, lower: Sequence, columns: int) -> list:
    """Rows of ``upper``, each above the row of ``lower`` that belongs to it, with a gap between the pairs."""
    rows = [[a, b, ()] for a, b in zip(in_rows(upper, columns), in_rows(lower, columns), strict=True)]
    return sum(rows, [])[:-1]


def draw_sheet(
    rows: Sequence[Sequence[Picture | Tile | None]],
    columns: int = 0,
    names: Sequence[str] = (),
    scale: int | None = None,
) -> Image.Image:
    """Rows of pictures as one picture on white, with a line between them.

    Args:
        rows: None leaves a place empty; an empty row is a gap.
        columns: least number of places in a row.
        names: one for each row, written at its left.
        scale: each pixel becomes ``scale`` x ``scale``; None: 64 over the width of the first picture, at least 1.
    """
    tiles = [[_tile(place) for place in row] for row in rows]
    pictures = [tile.picture for row in tiles for tile in row if tile is not None]
    C, W = max(len(p) for p in pictures), max(p.shape[2] for p in pictures)
    captioned = any(tile is not None and tile.caption for row in tiles for tile in row)
    if names or captioned:
        C = 3
    scale = scale or max(1, 64 // pictures[0].shape[2])
    font = ImageFont.load_default()
    left = max((round(font.getlength(name)) + 2 * TEXT_GAP for name in names), default=0)
    columns = max(columns, *map(len, tiles))
    heights = [_height(row, scale, captioned) for row in tiles]
    size = left + scale * (columns * (W + 1) + 1), scale + sum(heights)
    sheet = Image.new(MODES[C], size, 'white')
    draw = ImageDraw.Draw(sheet)
    top = scale
    for r, (row, height) in enumerate(zip(tiles, heights, strict=True)):
        if names:
            draw.text((TEXT_GAP, top + (height - scale) / 2), names[r], 'black', font, anchor='lm')
        for column, tile in enumerate(row):
            if tile is not None:
                x = left + scale * (column * (W + 1) + 1)
                if captioned:
                    draw.text((x, top), tile.caption, 'black', font)
                picture = with_channels(to_image(tile.picture), C)
                picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
                sheet.paste(picture, (x, top + CAPTION * captioned))
        top += height
    return sheet


def save_png(image: Image.Image, path: str) -> None:
    """Write a picture, whole or not at all."""
    with atomic_write(path) as f:
        image.save(f, format='png')


def _tile(place: Picture | Tile | None) -> Tile | None:
    """The tile, its picture uint8 [C, H, W] in NumPy."""
    if place is None:
        return None
    tile = place if isinstance(place, Tile) else Tile(place)
    if isinstance(tile.picture, np.ndarray):
        return tile
    pixels = to_uint8(tile.picture) if tile.picture.is_floating_point() else tile.picture
    return tile._replace(picture=pixels.cpu().numpy())


def _height(row: Sequence[Tile | None], scale: int, captioned: bool) -> int:
    """Pixels of a row and of the line below it."""
    if not row:
        return GAP * scale
    tallest = max((tile.picture.shape[1] for tile in row if tile is not None), default=0)
    return CAPTION * captioned + scale * (tallest + 1)
