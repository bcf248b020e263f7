"""Pictures to look at: grids of images as one PNG."""

import numpy as np
from PIL import Image

from .images import to_image, to_uint8
from .util import atomic_write


def image_grid(images, columns: int, padding: int = 1, rows_apart: int = 0) -> Image.Image:
    """Images, row by row, as one picture.

    Args:
        images: float tensor [N, C, H, W] in [-1, 1], or uint8 array [N, C, H, W]; C of 1, 3 or 4.
        columns: images per row.
        padding: white pixels around each image.
        rows_apart: after every so many rows, a gap of 4 more pixels; 0 for none.
    """
    pixels = images if isinstance(images, np.ndarray) else to_uint8(images).cpu().numpy()  # [N, C, H, W]
    N, C, H, W = pixels.shape
    rows = -(-N // columns)
    gap = [4 * (r // rows_apart) if rows_apart else 0 for r in range(rows)]
    height = rows * (H + padding) + padding + gap[-1]
    canvas = np.full((C, height, columns * (W + padding) + padding), 255, dtype=np.uint8)
    for i, image in enumerate(pixels):
        row, column = divmod(i, columns)
        y, x = padding + row * (H + padding) + gap[row], padding + column * (W + padding)
        canvas[:, y : y + H, x : x + W] = image
    return to_image(canvas)


def save_png(image: Image.Image, path: str, scale: int = 1) -> None:
    """Write a picture, each pixel repeated ``scale`` x ``scale`` times: whole or not at all."""
    with atomic_write(path) as f:
        image.resize((image.width * scale, image.height * scale), Image.NEAREST).save(f, format='png')


def comfortable_scale(image_width: int) -> int:
    """How often to repeat pixels so that small images can be looked at: 32 -> 2, 64 -> 1."""
    return max(1, 64 // image_width)
