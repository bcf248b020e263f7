"""Images of any file type as uint8 pixels, and back.

C channels (1 grey, 3 RGB, 4 RGBA), H rows, W columns. Pixels are uint8 [C, H, W] on the way in and out, and
float in [-1, 1] inside (`to_float`, `to_uint8`).
"""

import contextlib
import importlib.util
import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from .bare_files import BareFile, exif_orientation, strip, xmp_orientation
from .readers import printable, reason
from .util import atomic_write

if TYPE_CHECKING:
    import torch

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
SPARSE = 1 << 26, 4000  # pixels from which a file needs a byte for so many of them: a photo has one for 2 to 50
FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'DIB', 'GIF', 'TIFF', 'TGA', 'PPM', 'JPEG2000')  # Pillow's names
FORMATS += ('AVIF',) * (importlib.util.find_spec('PIL.AvifImagePlugin') is not None)  # since Pillow 11.3
_MODE_CHANNELS = {'1': 1, 'L': 1, 'I': 1, 'I;16': 1, 'I;16B': 1, 'I;16L': 1, 'I;16N': 1}
_MODE_CHANNELS |= {mode: 3 for mode in ('P', 'RGB', 'RGBX', 'CMYK', 'YCbCr', 'HSV')}
_MODE_CHANNELS |= {mode: 4 for mode in ('RGBA', 'RGBa', 'LA', 'La', 'PA')}
_TURN = Image.Transpose
_UPRIGHT = {2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE}
_UPRIGHT |= {6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90}  # by EXIF orientation
_PILLOW_WARNS = ('ignore', None, Warning, re.compile(r'PIL\.'), 0)
_FOREIGN = {'HEIC': rb'....ftyp(heic|heix|hevc|mif1|msf1)', 'JPEG XL': rb'\xff\x0a|\0\0\0\x0cJXL '}  # by their start


class BadImageError(ValueError):
    """A file that is not a whole image. The message is one line: its name and what is wrong with it."""


# --------------------------------------------------------------------------------------------------------------- pixels


class ImageHeader(NamedTuple):
    """What an image is, known without decoding its pixels."""

    width: int
    height: int
    channels: int  # 1, 3 or 4
    plain: bool  # its pixels are stored as they are used: 8-bit L, RGB or RGBA, upright


@contextlib.contextmanager
def _reading(name: str, start: bytes) -> Iterator[None]:
    """Turn every exception in the block into a BadImageError with the name, and ignore Pillow's warnings: what cannot
    be used is an error here. They stay ignored, since ``warnings.catch_warnings`` is not for threads."""
    if _PILLOW_WARNS not in warnings.filters:
        warnings.filterwarnings(_PILLOW_WARNS[0], module=_PILLOW_WARNS[3].pattern)
    try:
        yield
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise BadImageError(f'{printable(name)}: {_complaint(error, start)}') from error


def _complaint(error: Exception, start: bytes) -> str:
    if isinstance(error, BadImageError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f'more pixels than the limit of {2 * (Image.MAX_IMAGE_PIXELS or 0):,}: make it smaller first'
    if isinstance(error, Image.UnidentifiedImageError):
        kind = next((kind for kind, pattern in _FOREIGN.items() if re.match(pattern, start, re.DOTALL)), None)
        if kind is not None:
            return f'not an image of a supported type but {kind}: convert it to PNG or JPEG'
        return 'not an image, or its start is damaged' if start else 'not an image: the file is empty'
    return f'truncated or broken image ({reason(error)})'


def _open(bare: BareFile, length: int) -> tuple[Image.Image, ImageHeader, int]:
    """A PIL image that is not decoded yet, its header, and its orientation; ``length`` in bytes is that of its file."""
    image = Image.open(bare.file, formats=FORMATS)
    W, H = image.size
    if W * H > max(SPARSE[0], SPARSE[1] * length):
        raise BadImageError(f'its header claims {W}x{H} pixels, but the file has only {length} bytes')
    if image.mode not in _MODE_CHANNELS:
        raise BadImageError(f'pixels of mode {image.mode} have no known range: convert it to 8-bit grey or RGB')
    info, orientation = image.info, bare.orientation
    if orientation is None:
        orientation = exif_orientation(info.get('exif', b'')) or xmp_orientation(info.get('xmp', b'')) or 1
    width, height = image.size[::-1] if orientation >= 5 else image.size
    channels = 4 if bare.key is not None or 'transparency' in info else _MODE_CHANNELS[image.mode]
    plain = image.mode == MODES[channels] and orientation == 1 and _depth(image, bare) <= 8
    return image, ImageHeader(width, height, channels, plain), orientation


def _depth(image: Image.Image, bare: BareFile) -> int:
    """Bits per sample as they are in the file; 0 if it is a format of 8 bits, or one that Pillow scales to 8 or 16."""
    return max(image.tag_v2.get(258, (1,))) if image.format == 'TIFF' else bare.depth


def read_header(data: bytes | BinaryIO, name: str = 'image') -> ImageHeader:
    """Size and channels of an image file, from its header alone. Raises BadImageError."""
    file, start, length = _start(data)
    with _reading(name, start):
        return _open(strip(file, pixels=False), length)[1]


def _start(data: bytes | BinaryIO) -> tuple[BinaryIO, bytes, int]:
    """A file, its first bytes and its length."""
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(16)
    file.seek(0)
    return file, start, length


def open_image(data: bytes | BinaryIO, name: str = 'image') -> Image.Image:
    """Decode an image file of any type into a PIL image of mode L, RGB or RGBA, upright.

    Palettes become RGB, CMYK and others become RGB, grey with alpha becomes RGBA, and so does what has a transparent
    colour. The orientation is applied, whether EXIF, XMP or a tag of TIFF holds it. Of an animation or of several pages
    the first image is taken. Other metadata is not looked at, damaged or not.

    16-bit grey is scaled to 8 bits, 65535 to white. A TIFF may name another white: by its bits (12-bit cameras) or in
    the tag MaxSampleValue. Grey of 32 bits or with signs whose white nothing names is refused. A 16-bit PNG or TIFF
    that uses only the lowest quarter of the range can be a dark photo: the first of a process is a warning. It is
    refused if nothing of it would be left in 8 bits.

    Args:
        data: the file's bytes, or a binary file.
        name: what to call it in errors.

    Raises:
        BadImageError: truncated, broken, not an image, too large, or of pixels whose range is unknown.
    """
    file, start, length = _start(data)
    with _reading(name, start):
        bare = strip(file, pixels=True)
        image, header, orientation = _open(bare, length)
        image.load()
        mode, depth = MODES[header.channels], _depth(image, bare)
        alpha = None if bare.key is None else _key_alpha(image, depth, bare.key)
        if image.mode.startswith('I'):
            image = _grey_to_8_bits(image)
        elif depth == 16:
            if image.format == 'TIFF' and _white_of_tiff(image)[0] != 65535:
                raise BadImageError('the white of its 16-bit colours is not 65535: convert it to 8 bits')
            _warn_if_dark(max(high for _, high in image.convert('RGB').getextrema()) * 257)
        if alpha is not None:
            image = image.convert('RGB')
            image.putalpha(alpha)
        image = image if image.mode == mode else image.convert(mode)
        image = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
        if image.size != header[:2]:
            raise BadImageError(f'its header says {header.width}x{header.height}, but its pixels are {image.size}')
        return image


def _key_alpha(image: Image.Image, depth: int, key: tuple[int, ...]) -> Image.Image:
    """0 where a PNG has the colour that it calls transparent, else 255, as mode L."""
    pixels = np.asarray(image.convert('L') if image.mode == '1' else image)
    if depth < 8:
        key = tuple((value & 2**depth - 1) * 255 // (2**depth - 1) for value in key)
    elif len(key) == 3 and depth == 16:
        key = tuple(value >> 8 for value in key)  # Pillow keeps 8 bits of 16-bit colours
    same = pixels == key[0] if len(key) == 1 else (pixels == key).all(axis=2)
    return Image.fromarray(np.where(same, 0, 255).astype(np.uint8))


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits as mode L, rounded. (Pillow's own conversion clips everything above 255.)"""
    pixels, white, named = np.asarray(image), 65535, image.format != 'PNG'
    if image.format == 'TIFF':
        white, named = _white_of_tiff(image)
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > white or white < 1:
        raise BadImageError(f'its grey values reach from {low} to {high}, but its range is 0 to {white}')
    if high and not named:
        if high < 256:
            raise BadImageError(f'its 16-bit values end at {high}, so it would be black: convert it to 8 bits')
        _warn_if_dark(high)
    pixels = pixels.astype(np.uint32 if white <= 65535 else np.uint64)
    if image.format == 'TIFF' and image.tag_v2.get(262) == 0:
        pixels = white - pixels  # WhiteIsZero
    return Image.fromarray(((pixels * 255 + white // 2) // white).astype(np.uint8))


def _white_of_tiff(image: Image.Image) -> tuple[int, bool]:
    """The grey value that is white, and whether the file names it."""
    tags = image.tag_v2
    bits, sample_format, largest = tags.get(258, (1,))[0], tags.get(339, (1,))[0], tags.get(341) or tags.get(281)
    if largest:
        return int(largest[0] if isinstance(largest, tuple) else largest), True
    if bits > 16 or sample_format == 2:
        kind = f'{bits}-bit grey' if sample_format == 1 else f'signed {bits}-bit grey'
        raise BadImageError(f'{kind} has no known range: convert it to 8 or 16 bits, or set tag 281, MaxSampleValue')
    return 2**bits - 1, bits < 16


def _warn_if_dark(high: int) -> None:
    if high < 65536 // 4:  # the text names no file, so that a process prints it once
        warnings.warn(
            'a 16-bit image uses only the lowest quarter of its range, so it is nearly black: where values have 8 to '
            '14 bits, scale them to 0..65535',
            stacklevel=2,
        )


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
