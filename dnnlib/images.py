"""Images of any file type as uint8 pixels, and back.

C channels (1 grey, 3 RGB, 4 RGBA), H rows, W columns. Pixels are uint8 [C, H, W] on the way in and out, and
float in [-1, 1] inside (`to_float`, `to_uint8`).
"""

import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from .util import atomic_write

if TYPE_CHECKING:
    import torch

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
_MODE_CHANNELS = {'1': 1, 'L': 1, 'I': 1, 'I;16': 1, 'I;16B': 1, 'I;16L': 1, 'I;16N': 1}
_MODE_CHANNELS |= {mode: 3 for mode in ('RGB', 'RGBX', 'CMYK', 'YCbCr', 'HSV')}
_MODE_CHANNELS |= {mode: 4 for mode in ('RGBA', 'RGBa', 'LA', 'La', 'PA')}


class BadImageError(ValueError):
    """A file that is no whole image. The message is one line: its name and what is wrong with it."""


# --------------------------------------------------------------------------------------------------------------- pixels


class ImageHeader(NamedTuple):
    """What an image is, known without decoding its pixels."""

    width: int
    height: int
    channels: int  # 1, 3 or 4
    plain: bool  # its pixels are stored as they are used: 8-bit L, RGB or RGBA, no orientation tag


def _open(data: bytes | BinaryIO, name: str) -> Image.Image:
    image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    if image.mode not in _MODE_CHANNELS and image.mode != 'P':
        raise BadImageError(f'{name}: pixels of mode {image.mode} have no known range; convert it to 8 or 16 bits')
    return image


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(0x0112, 1) if 'exif' in image.info else 1


def _channels(image: Image.Image) -> int:
    if image.mode == 'P':
        return 4 if 'transparency' in image.info else 3
    return _MODE_CHANNELS[image.mode]


def _broken(error: Exception, name: str) -> BadImageError:
    if isinstance(error, BadImageError):
        return error
    if isinstance(error, Image.UnidentifiedImageError):
        return BadImageError(f'{name}: not an image, or its start is damaged')
    return BadImageError(f'{name}: truncated or broken image ({str(error).splitlines()[0] if str(error) else error!r})')


def read_header(data: bytes | BinaryIO, name: str = 'image') -> ImageHeader:
    """Size and channels of an image file, from its header alone. Raises BadImageError."""
    try:
        image = _open(data, name)
        orientation = _orientation(image)
        width, height = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
        return ImageHeader(width, height, _channels(image), image.mode in MODES.values() and orientation == 1)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise _broken(error, name) from error


def open_image(data: bytes | BinaryIO, name: str = 'image') -> Image.Image:
    """Decode an image file of any kind into a PIL image of mode L, RGB or RGBA, upright.

    Palettes become RGB (RGBA when a colour is transparent), 16-bit grey is scaled to 8 bits, CMYK and others become
    RGB, grey with alpha becomes RGBA, the EXIF orientation is applied, of an animation the first frame is taken.

    Args:
        data: the file's bytes, or a binary file.
        name: what to call it in errors.

    Raises:
        BadImageError: truncated, broken, no image, or pixels whose range is unknown (float).
    """
    try:
        image = _open(data, name)
        image.load()
        if _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith('I'):
            return Image.fromarray(_to_8_bits(np.asarray(image), name))
        mode = MODES[_channels(image)]
        return image if image.mode == mode else image.convert(mode)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise _broken(error, name) from error


def _to_8_bits(pixels: np.ndarray, name: str) -> np.ndarray:
    """0..65535 -> 0..255, rounded. (Pillow's own conversion clips everything above 255.)"""
    if pixels.min() < 0 or pixels.max() > 65535:
        raise BadImageError(f'{name}: 32-bit grey pixels have no known range; convert the file to 8 or 16 bits')
    return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """The image with 1, 3 or 4 channels. Alpha that goes away is flattened onto white; alpha that comes is opaque."""
    if image.mode == 'RGBA' and channels != 4:
        canvas = Image.new('RGB', image.size, 'white')
        canvas.paste(image, mask=image.getchannel('A'))
        image = canvas
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def to_array(image: Image.Image) -> np.ndarray:
    """PIL image (L, RGB, RGBA) -> uint8 [C, H, W], a writable copy of its own."""
    pixels = np.asarray(image)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)  # [C, H, W]
    return np.array(pixels, order='C')


def to_image(pixels: np.ndarray) -> Image.Image:
    """uint8 [C, H, W] with C of 1, 3, 4 -> PIL image."""
    return Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))


def decode_image(data: bytes | BinaryIO, name: str = 'image', channels: int | None = None) -> np.ndarray:
    """An image file of any kind -> uint8 [C, H, W]; C is its own (1, 3, 4) or `channels`. Raises BadImageError."""
    image = open_image(data, name)
    return to_array(image if channels is None else with_channels(image, channels))


def to_float(images: 'torch.Tensor') -> 'torch.Tensor':
    """uint8 0..255 -> float32 [-1, 1], any shape, on the images' device. `to_uint8` is its exact inverse."""
    return images.float() / 127.5 - 1


def to_uint8(images: 'torch.Tensor') -> 'torch.Tensor':
    """float [-1, 1] -> uint8 0..255, rounded to the nearest, what is outside clipped; any shape, on the same device."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).byte()


# -------------------------------------------------------------------------------------------------------------- writing


def png_names(names: list[str]) -> list[str]:
    """What to call PNGs that are made of images of these names.

    `a/1.jpg` makes `a/1.png`; where two would make the same, all keep their endings: `a/1.jpg.png`. ValueError where
    two images have one name.
    """
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f'two images are called {twice!r}, and one would replace the other')
    pngs = [f'{os.path.splitext(name)[0]}.png' for name in names]
    return pngs if len(set(pngs)) == len(names) else [f'{name}.png' for name in names]


def keep_originals(outputs: Sequence[str], folder: str | os.PathLike, source: str) -> None:
    """ValueError where a file to be written into `folder` would replace the image `source`, or one in the folder
    `source`."""
    at, folder_at = os.path.realpath(source), os.path.realpath(folder)
    for name in outputs:
        path = f'{folder_at}/{name}'
        if path == at or path.startswith(f'{at}/') and os.path.exists(path):
            raise ValueError(f'{folder}/{name} would replace an image of {source}: choose another folder')


def save_image(pixels: np.ndarray, folder: str | os.PathLike, name: str) -> None:
    """Write uint8 [C, H, W] as `folder/name`, whole or not at all. ValueError where that lies outside of the folder."""
    path = os.path.join(folder, name)
    if Path(os.path.relpath(path, folder)).parts[0] == os.pardir:
        raise ValueError(f'an image is called {name!r}, which lies outside of {folder}: give it another name')
    with atomic_write(path, sync=False) as file:
        to_image(pixels).save(file, format='png')
