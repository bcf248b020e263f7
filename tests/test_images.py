"""dnnlib.images: image files of every kind become uint8 pixels, or an error of one line."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import dnnlib
from dnnlib.images import BadImageError, decode_image, read_header, to_array, to_image, with_channels


def encoded(image: Image.Image, kind: str = 'png', **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)


def test_float_and_uint8_are_inverse_and_clip():
    every = torch.arange(256, dtype=torch.uint8)
    images = dnnlib.to_float(every)
    assert images.min() == -1 and images.max() == 1 and images.dtype == torch.float32
    assert torch.equal(dnnlib.to_uint8(images), every)
    assert torch.equal(dnnlib.to_uint8(images.double()), every)
    assert dnnlib.to_uint8(torch.tensor([-3.0, 3.0, 0.0])).tolist() == [0, 255, 128]


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_plain_images_decode_to_their_pixels(channels):
    pixels = noise(channels, 5, 7)
    data = encoded(to_image(pixels))
    assert np.array_equal(decode_image(data), pixels)
    assert read_header(data) == (7, 5, channels, True)
    assert np.array_equal(to_array(to_image(pixels)), pixels) and decode_image(data).flags.writeable


def test_palette_16_bits_cmyk_and_grey_with_alpha():
    rgb = Image.fromarray(noise(4, 4, 3) // 64 * 64)
    palette = rgb.quantize(64)
    assert np.array_equal(decode_image(encoded(palette)), to_array(palette.convert('RGB')))
    assert decode_image(encoded(palette, transparency=0)).shape == (4, 4, 4)
    deep = np.array([[0, 257, 65535, 128 * 257 + 100]], dtype=np.uint16)
    assert decode_image(encoded(Image.fromarray(deep))).tolist() == [[[0, 1, 255, 128]]]
    flat = Image.new('CMYK', (2, 2), (255, 0, 0, 0))
    assert decode_image(encoded(flat, 'tiff'))[:, 0, 0].tolist() == [0, 255, 255]
    assert decode_image(encoded(Image.new('LA', (1, 1), (7, 9))))[:, 0, 0].tolist() == [7, 7, 7, 9]
    assert decode_image(encoded(Image.new('1', (1, 1), 1))).tolist() == [[[255]]]
    for image in (palette, flat, Image.fromarray(deep)):
        data = encoded(image, 'tiff')
        header = read_header(data)
        assert (header.channels, header.plain) == (decode_image(data).shape[0], False)


def test_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    pixels = noise(1, 2, 3)
    data = encoded(to_image(pixels), exif=exif)
    assert read_header(data) == (2, 3, 1, False)
    assert np.array_equal(decode_image(data), np.rot90(pixels, -1, axes=(1, 2)))


def test_channels_change():
    clear_red = Image.new('RGBA', (1, 1), (255, 0, 0, 0))
    assert to_array(with_channels(clear_red, 3)).ravel().tolist() == [255, 255, 255]
    assert to_array(with_channels(clear_red, 1)).ravel().tolist() == [255]
    grey = Image.new('L', (1, 1), 9)
    assert to_array(with_channels(grey, 4)).ravel().tolist() == [9, 9, 9, 255]
    assert with_channels(grey, 1) is grey


@pytest.mark.parametrize(
    'data, reason',
    [
        (encoded(to_image(noise(3, 40, 40)))[:2000], 'truncated or broken'),
        (encoded(to_image(noise(3, 40, 40)), 'jpeg')[:900], 'truncated or broken'),
        (b'not an image at all', 'not an image'),
        (b'', 'not an image'),
        (encoded(Image.new('F', (1, 1)), 'tiff'), 'mode F'),
    ],
)
def test_broken_images_are_named_in_one_line(data, reason):
    with pytest.raises(BadImageError, match=f'^some/file.png: .*{reason}') as error:
        decode_image(data, 'some/file.png')
    assert '\n' not in str(error.value)
