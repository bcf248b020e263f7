"""Sheets: where each pixel of each picture lies."""

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.images import to_float, to_uint8
from dnnlib.sheets import CAPTION, GAP, Tile, draw_sheet, in_pairs, in_rows, save_png


def pictures(num: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (num, *shape), np.uint8)  # never white


def cell(sheet: np.ndarray, row: int, column: int, size: tuple[int, int]) -> np.ndarray:
    """The place [h, w, C] of a sheet without captions, gaps and repeated pixels."""
    (h, w), top, left = size, 1 + row * (size[0] + 1), 1 + column * (size[1] + 1)
    return sheet[top : top + h, left : left + w]


@pytest.mark.parametrize('channels, mode', [(1, 'L'), (3, 'RGB'), (4, 'RGBA')])
def test_a_grid_has_a_white_line_around_every_picture(channels, mode):
    images = pictures(5, channels, 4, 6)
    sheet = draw_sheet(in_rows(images, 3), scale=1)
    assert sheet.mode == mode and sheet.size == (3 * 7 + 1, 2 * 5 + 1)
    pixels = np.asarray(sheet).reshape(11, 22, channels)
    for i, image in enumerate(images):
        assert np.array_equal(cell(pixels, *divmod(i, 3), (4, 6)), image.transpose(1, 2, 0))
    assert (cell(pixels, 1, 2, (4, 6)) == 255).all()
    lines = np.ones((11, 22), bool)
    lines[1:5, 1:21], lines[6:10, 1:21] = False, False
    lines[:, ::7] = True
    assert (pixels[lines] == 255).all()
    assert np.array_equal(np.asarray(draw_sheet(in_rows(to_float(torch.from_numpy(images)), 3), scale=1)), sheet)
    assert draw_sheet(in_rows(images, 3), columns=8, scale=1).width == 8 * 7 + 1


def test_small_pictures_are_enlarged():
    for width, scale in ((6, 10), (32, 2), (64, 1), (200, 1)):
        images = pictures(2, 1, 3, width)
        large = np.asarray(draw_sheet([images]))
        small = np.asarray(draw_sheet([images], scale=1))
        assert np.array_equal(large, small.repeat(scale, 0).repeat(scale, 1))


def test_pairs_are_rows_with_gaps_between():
    upper, lower = pictures(5, 3, 4, 4), pictures(10, 3, 4, 4)[5:]
    pixels = np.asarray(draw_sheet(in_pairs(upper, lower, 2), scale=1))
    assert pixels.shape == (6 * 5 + 2 * GAP + 1, 2 * 5 + 1, 3)
    for i in range(5):
        row, column = divmod(i, 2)
        below = pixels[row * GAP :]
        assert np.array_equal(cell(below, 2 * row, column, (4, 4)), upper[i].transpose(1, 2, 0))
        assert np.array_equal(cell(below, 2 * row + 1, column, (4, 4)), lower[i].transpose(1, 2, 0))


def test_captions_names_and_empty_places():
    images = pictures(3, 1, 8, 8)
    rows = [[Tile(images[0], 'first'), None, images[1]], [], [images[2]]]
    pixels = np.asarray(draw_sheet(rows, names=['a', '', 'name']))
    left = pixels.shape[1] - (3 * 72 + 8)
    assert left > 0 and pixels.shape[0] == 8 + 2 * (CAPTION + 72) + 8 * GAP
    tops = 8 + CAPTION, 8 + CAPTION + 72 + CAPTION + 8 * GAP
    for image, row, column in ((images[0], 0, 0), (images[1], 0, 2), (images[2], 1, 0)):
        found = pixels[tops[row] :: 8, left + 8 + 72 * column :: 8][:8, :8, 0]
        assert np.array_equal(found, image[0])
    assert (pixels[tops[0] : tops[0] + 64, left + 80 : left + 144] == 255).all()
    assert (pixels[:, :left] < 255).any() and (pixels[8 : 8 + CAPTION, left:] < 255).any()


def test_pictures_of_unlike_sizes_and_channels():
    grey, colour, clear = pictures(1, 1, 4, 4)[0], pictures(1, 3, 6, 5)[0], np.zeros((4, 2, 2), np.uint8)
    sheet = np.asarray(draw_sheet([[grey, torch.from_numpy(colour)], [clear]], scale=1))
    assert sheet.shape == (1 + 7 + 3, 2 * 6 + 1, 4)
    assert np.array_equal(sheet[1:5, 1:5, :3], grey.transpose(1, 2, 0).repeat(3, 2))
    assert (sheet[1:5, 1:5, 3] == 255).all()
    assert np.array_equal(sheet[1:7, 7:12, :3], colour.transpose(1, 2, 0))
    assert (sheet[8:10, 1:3] == 0).all()
    assert (np.asarray(draw_sheet([[Tile(clear, '-')]], scale=1))[1 + CAPTION :] == 255).all()  # on white


def test_a_sheet_is_written_as_a_png(tmp_path):
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    save_png(draw_sheet([images], scale=1), str(tmp_path / 'new' / 'sheet.png'))
    with Image.open(tmp_path / 'new' / 'sheet.png') as sheet:
        assert sheet.format == 'PNG'
        assert np.array_equal(np.asarray(sheet)[1:9, 1:9], to_uint8(images[0]).permute(1, 2, 0).numpy())
