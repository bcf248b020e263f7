"""dnnlib.images: image files of every kind become uint8 pixels, or an error of one line."""

import concurrent.futures
import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

import dnnlib
from dnnlib.images import FORMATS, BadImageError, decode_image, read_header, to_array, to_image, with_channels


def encoded(image: Image.Image, kind: str = 'png', **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(depth: int, colour: int, rows: list[bytes], *chunks: bytes, after: bytes = b'') -> bytes:
    """A PNG of packed rows: its width is what one row of ``depth`` bits and the colour type hold."""
    width = len(rows[0]) * 8 // (depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour])
    header = struct.pack('>IIBBBBB', width, len(rows), depth, colour, 0, 0, 0)
    pixels = chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row for row in rows)))
    parts = [b'\x89PNG\r\n\x1a\n', chunk(b'IHDR', header), *chunks, pixels, after, chunk(b'IEND', b'')]
    return b''.join(parts)


def tiff(pixels: np.ndarray | bytes, size: tuple[int, int], tags: dict[int, tuple[int, ...]]) -> bytes:
    """A little-endian TIFF of one strip; every tag is one number or more of type LONG."""
    data = pixels if isinstance(pixels, bytes) else pixels.tobytes()
    tags = {256: (size[0],), 257: (size[1],), 259: (1,), 262: (1,), 273: (8,), 277: (1,), 278: (size[1],)} | tags
    tags = dict(sorted((tags | {279: (len(data),)}).items()))
    directory, more = struct.pack('<H', len(tags)), b''
    end = 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, values in tags.items():
        packed = struct.pack(f'<{len(values)}I', *values)
        if len(values) > 1:
            packed, more = struct.pack('<I', end + len(more)), more + packed
        directory += struct.pack('<HHI', tag, 4, len(values)) + packed
    return struct.pack('<2sHI', b'II', 42, 8 + len(data)) + data + directory + bytes(4) + more


def same_header(data: bytes, pixels: np.ndarray) -> bool:
    header = read_header(data)
    return (header.channels, header.height, header.width) == pixels.shape


# --------------------------------------------------------------------------------------------------------------- pixels


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


def test_palette_cmyk_and_grey_with_alpha():
    rgb = Image.fromarray(noise(4, 4, 3) // 64 * 64)
    palette = rgb.quantize(64)
    assert np.array_equal(decode_image(encoded(palette)), to_array(palette.convert('RGB')))
    flat = Image.new('CMYK', (2, 2), (255, 0, 0, 0))
    assert decode_image(encoded(flat, 'tiff'))[:, 0, 0].tolist() == [0, 255, 255]
    assert decode_image(encoded(Image.new('LA', (1, 1), (7, 9))))[:, 0, 0].tolist() == [7, 7, 7, 9]
    assert decode_image(encoded(Image.new('1', (1, 1), 1))).tolist() == [[[255]]]
    for image in (palette, flat, Image.fromarray(np.full([2, 2], 65535, dtype=np.uint16))):
        data = encoded(image, 'tiff')
        header = read_header(data)
        assert (header.channels, header.plain) == (decode_image(data).shape[0], False)


def test_channels_change():
    clear_red = Image.new('RGBA', (1, 1), (255, 0, 0, 0))
    assert to_array(with_channels(clear_red, 3)).ravel().tolist() == [255, 255, 255]
    assert to_array(with_channels(clear_red, 1)).ravel().tolist() == [255]
    grey = Image.new('L', (1, 1), 9)
    assert to_array(with_channels(grey, 4)).ravel().tolist() == [9, 9, 9, 255]
    assert with_channels(grey, 1) is grey


def test_of_an_animation_the_first_image_is_taken():
    frames = [Image.fromarray(noise(4, 6, 3, seed=i)) for i in range(3)]
    for kind, options in (('png', {}), ('webp', {'lossless': True}), ('tiff', {})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(decode_image(data), to_array(frames[0])) and same_header(data, decode_image(data))


# --------------------------------------------------------------------------------------------------------- transparency


@pytest.mark.parametrize(
    'depth, rows, key, shades, clear',
    [
        (1, [b'\x40'], 1, [0, 255, 0, 0, 0, 0, 0, 0], 1),
        (2, [b'\x1b'], 2, [0, 85, 170, 255], 2),
        (4, [b'\x0f'], 15, [0, 255], 1),
        (8, [b'\x07\x09'], 9, [7, 9], 1),
        (16, [b'\x80\x80\x80\x81'], 0x8081, [128, 128], 1),
    ],
)
def test_the_transparent_shade_of_a_grey_png(depth, rows, key, shades, clear):
    data = png(depth, 0, rows, chunk(b'tRNS', struct.pack('>H', key)))
    pixels = decode_image(data)
    assert same_header(data, pixels) and not read_header(data).plain
    assert [pixels[c].ravel().tolist() for c in range(3)] == [shades] * 3
    assert pixels[3].ravel().tolist() == [0 if i == clear else 255 for i in range(len(shades))]


@pytest.mark.parametrize('depth', [8, 16])
def test_the_transparent_colour_of_an_rgb_png(depth):
    row = bytes([255, 0, 0, 9, 8, 7, 9, 8, 6])
    values = [9, 8, 7]
    if depth == 16:
        row, values = bytes(b for byte in row for b in (byte, byte)), [v * 257 for v in values]
    data = png(depth, 2, [row], chunk(b'tRNS', struct.pack('>HHH', *values)))
    pixels = decode_image(data)
    assert same_header(data, pixels) and pixels[:, 0].T.tolist() == [[255, 0, 0, 255], [9, 8, 7, 0], [9, 8, 6, 255]]
    # a transparent corner is white where there is no alpha, as of a palette image
    assert decode_image(data, channels=3)[:, 0, 1].tolist() == [255, 255, 255]
    assert decode_image(data, channels=1)[0, 0, 1] == 255


def test_transparent_shades_of_palettes_and_gifs():
    palette = Image.fromarray(noise(4, 4, 3) // 64 * 64).quantize(8)
    assert decode_image(encoded(palette, transparency=0)).shape == (4, 4, 4)
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    data = encoded(grey, 'gif', transparency=5)
    pixels = decode_image(data)
    assert same_header(data, pixels) and pixels.shape == (4, 16, 16)
    assert np.flatnonzero(pixels[3] == 0).tolist() == [5] and decode_image(data, channels=1)[0, 0, 5] == 255


# ---------------------------------------------------------------------------------------------------------------- range

DEEP = np.array([[0, 257, 65535, 128 * 257 + 100]], dtype=np.uint16)


@pytest.mark.parametrize('kind', ['png', 'tiff', 'ppm', 'jpeg2000'])
def test_16_bits_are_scaled_to_8(kind):
    data = b'P5 4 1 65535\n' + DEEP.astype('>u2').tobytes()
    if kind != 'ppm':
        data = encoded(Image.fromarray(DEEP), kind, **({'irreversible': False} if kind == 'jpeg2000' else {}))
    assert decode_image(data).tolist() == [[[0, 1, 255, 128]]] and same_header(data, decode_image(data))


def test_12_bits_of_a_camera_are_scaled_to_8():
    data = tiff(b'\x00\x0f\xff\x80\x00\x00', (3, 1), {258: (12,)})  # 0, 4095, 2048
    assert decode_image(data).tolist() == [[[0, 255, 128]]]


@pytest.mark.parametrize('tag', [281, 341])
@pytest.mark.parametrize(
    'dtype, tags', [('<u2', {258: (16,)}), ('<u4', {258: (32,)}), ('<i4', {258: (32,), 339: (2,)})]
)
def test_a_tiff_may_name_its_white(tag, dtype, tags):
    data = tiff(np.array([[0, 4095, 2048]], dtype=dtype), (3, 1), tags | {tag: (4095,)})
    assert decode_image(data).tolist() == [[[0, 255, 128]]]
    with pytest.raises(BadImageError, match='grey values reach from 0 to 4095, but its range is 0 to 4094'):
        decode_image(tiff(np.array([[0, 4095]], dtype=dtype), (2, 1), tags | {tag: (4094,)}))


def test_white_may_be_zero():
    data = tiff(np.array([[0, 65535, 257]], dtype='<u2'), (3, 1), {258: (16,), 262: (0,)})
    assert decode_image(data).tolist() == [[[255, 0, 254]]]


@pytest.mark.parametrize(
    'data, words',
    [
        (tiff(np.arange(256, dtype='<i4'), (16, 16), {258: (32,), 339: (2,)}), 'signed 32-bit grey has no known range'),
        (tiff(np.arange(256, dtype='<u4'), (16, 16), {258: (32,)}), '32-bit grey has no known range'),
        (tiff(np.arange(256, dtype='<u4') << 24, (16, 16), {258: (32,)}), '32-bit grey has no known range'),
        (tiff(np.arange(256, dtype='<i2'), (16, 16), {258: (16,), 339: (2,)}), 'signed 16-bit grey has no known range'),
        (encoded(Image.fromarray(np.array([[0, 255]], dtype=np.uint16))), 'end at 255, so it would be black'),
        (tiff(np.array([0, 1], dtype='<u2'), (2, 1), {258: (16,)}), 'end at 1, so it would be black'),
        (tiff(b'\xff\x7f' * 3, (1, 1), {258: (16,) * 3, 262: (2,), 277: (3,), 281: (32767,) * 3}), 'white of its 16'),
        (encoded(Image.new('F', (1, 1)), 'tiff'), 'mode F have no known range'),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:9]),
)
def test_what_would_come_out_dark_is_refused(data, words):
    with pytest.raises(BadImageError, match=f'^a.tif: .*{words}'):
        decode_image(data, 'a.tif')


@pytest.mark.parametrize(
    'data, expected',
    [
        (encoded(Image.fromarray(np.array([[0, 4095]], dtype=np.uint16))), [0, 16]),
        (tiff(np.array([0, 4095], dtype='<u2'), (2, 1), {258: (16,)}), [0, 16]),
        (encoded(Image.fromarray(np.array([[0, 256]], dtype=np.uint16))), [0, 1]),
        (png(16, 2, [b'\x0f\xff' * 3]), [15, 15, 15]),
        (png(16, 2, [bytes(6)]), [0, 0, 0]),
        (tiff(b'\xff\x0f' * 3, (1, 1), {258: (16,) * 3, 262: (2,), 277: (3,)}), [15, 15, 15]),
    ],
    ids=lambda value: value if isinstance(value, list) else repr(value[:9]),
)
def test_a_dark_photo_of_16_bits_is_a_warning(data, expected):
    with pytest.warns(UserWarning, match='^a 16-bit image uses only the lowest quarter of its range'):
        assert decode_image(data).ravel().tolist() == expected


def test_many_dark_photos_are_one_warning():
    data = [encoded(Image.fromarray(np.array([[0, high]], dtype=np.uint16))) for high in (300, 4000, 16383)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('default')
        assert [decode_image(d).max() for d in data] == [1, 16, 64]
    assert len(caught) == 1


def test_black_is_not_dark():
    assert decode_image(encoded(Image.fromarray(np.zeros([2, 2], dtype=np.uint16)))).max() == 0
    assert decode_image(png(16, 2, [b'\xff\xff\x00\x00\x00\x00'])).ravel().tolist() == [255, 0, 0]


# ------------------------------------------------------------------------------------------------ orientation, metadata

UPRIGHT = noise(1, 2, 3)
TURNED = {  # what a camera stores for each orientation, so that it comes out upright
    1: UPRIGHT,
    2: UPRIGHT[:, :, ::-1],
    3: UPRIGHT[:, ::-1, ::-1],
    4: UPRIGHT[:, ::-1],
    5: UPRIGHT.transpose(0, 2, 1),
    6: np.rot90(UPRIGHT, 1, axes=(1, 2)),
    7: np.rot90(UPRIGHT, 2, axes=(1, 2)).transpose(0, 2, 1),
    8: np.rot90(UPRIGHT, -1, axes=(1, 2)),
}


def exif_block(orientation: int, order: str = '<') -> bytes:
    """EXIF as of a camera whose resolution is 1/0, and whose next tag lies beyond the end of the file."""
    entries = [(0x010F, 2, 2**31, 2**31), (0x0112, 3, 1, orientation), (0x011A, 5, 1, 56), (0x8769, 4, 1, 2**32 - 1)]
    packed = b''
    for tag, kind, count, value in entries:
        packed += struct.pack(order + ('HHIHH' if kind == 3 else 'HHII'), tag, kind, count, value, *[0] * (kind == 3))
    start = (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'IH', 8, len(entries))
    return start + packed + bytes(4) + struct.pack(order + 'II', 1, 0)


def xmp_packet(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def raw_profile(data: bytes) -> bytes:
    """As ImageMagick writes it."""
    return b'\nexif\n%8d\n%s\n' % (len(data), data.hex().encode())


def png_with(place: str, extra: bytes) -> Callable[[np.ndarray], bytes]:
    def make(pixels):
        rows = [row.tobytes() for row in pixels[0]]
        return png(8, 0, rows, extra) if place == 'before' else png(8, 0, rows, after=extra)

    return make


def png_ways(o: int) -> dict[str, bytes]:
    exif = exif_block(o)
    compressed = zlib.compress(raw_profile(exif))
    return {
        'eXIf': chunk(b'eXIf', exif),
        'eXIf, big-endian': chunk(b'eXIf', exif_block(o, '>')),
        'raw profile': chunk(b'tEXt', b'Raw profile type exif\0' + raw_profile(exif)),
        'zipped raw profile': chunk(b'zTXt', b'Raw profile type exif\0\0' + compressed),
        'raw profile APP1': chunk(b'tEXt', b'Raw profile type APP1\0' + raw_profile(b'Exif\0\0' + exif)),
        'raw profile xmp': chunk(b'tEXt', b'Raw profile type xmp\0' + raw_profile(xmp_packet(o))),
        'XMP': chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + xmp_packet(o)),
        'zipped XMP': chunk(b'iTXt', b'XML:com.adobe.xmp\0\1\0en\0\0' + zlib.compress(xmp_packet(o))),
    }


def jpeg_with(segment: bytes) -> Callable[[np.ndarray], bytes]:
    """A JPEG of blocks of 8x8, so that its pixels stay what they were, nearly."""

    def make(pixels):
        data = encoded(Image.fromarray(np.kron(pixels[0], np.ones([8, 8], np.uint8))), 'jpeg', quality=100)
        return data[:2] + b'\xff\xe1' + struct.pack('>H', len(segment) + 2) + segment + data[2:]

    return make


def riff(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack('<I', len(data)) + data + bytes(len(data) % 2)


def webp_with(kind: bytes, flag: int, extra: bytes) -> Callable[[np.ndarray], bytes]:
    """A lossless WebP with one chunk of metadata after its pixels, where the format wants it."""

    def make(pixels):
        plain = encoded(to_image(pixels).convert('RGB'), 'webp', lossless=True)
        size = b''.join((n - 1).to_bytes(3, 'little') for n in pixels.shape[:0:-1])
        content = b'WEBP' + riff(b'VP8X', bytes([flag, 0, 0, 0]) + size) + plain[12:] + riff(kind, extra)
        return riff(b'RIFF', content)

    return make


def tiff_with(tags: dict[int, tuple[int, ...]], more: bytes = b'') -> Callable[[np.ndarray], bytes]:
    return lambda pixels: tiff(pixels.tobytes() + more, pixels.shape[:0:-1], {258: (8,), 279: (pixels.size,)} | tags)


def tiff_with_xmp(o: int) -> Callable[[np.ndarray], bytes]:
    def make(pixels):
        data = tiff_with({700: (0x01010101, 0)}, more=xmp_packet(o))(pixels)
        at = data.index(struct.pack('<HHI', 700, 4, 2))
        return data[:at] + struct.pack('<HHII', 700, 7, len(xmp_packet(o)), 8 + pixels.size) + data[at + 12 :]

    return make


def ways(o: int) -> dict[str, Callable[[np.ndarray], bytes]]:
    """Every way in which a file may say how it is turned."""
    found = {f'PNG {n}, {p}': png_with(p, extra) for n, extra in png_ways(o).items() for p in ('before', 'after')}
    found['JPEG EXIF'] = jpeg_with(b'Exif\0\0' + exif_block(o))
    found['JPEG XMP'] = jpeg_with(b'http://ns.adobe.com/xap/1.0/\0' + xmp_packet(o))
    found['WebP EXIF'] = webp_with(b'EXIF', 8, exif_block(o))
    found['WebP EXIF as of a JPEG'] = webp_with(b'EXIF', 8, b'Exif\0\0' + exif_block(o))
    found['WebP XMP'] = webp_with(b'XMP ', 4, xmp_packet(o))
    found['TIFF tag'] = tiff_with({0x0112: (o,)})
    found['TIFF XMP'] = tiff_with_xmp(o)
    return found


@pytest.mark.parametrize('way', ways(1))
def test_orientation_is_applied_wherever_it_is_stored(way, tmp_path):
    for o, turned in TURNED.items():
        data = ways(o)[way](np.ascontiguousarray(turned))
        pixels = decode_image(data)[:1]
        expected = np.kron(UPRIGHT, np.ones([1, 8, 8], np.uint8)) if way.startswith('JPEG') else UPRIGHT
        assert pixels.shape == expected.shape and np.abs(pixels.astype(int) - expected).max() < 6, o
        (tmp_path / 'a').write_bytes(data)
        with open(tmp_path / 'a', 'rb') as file:
            assert read_header(data) == read_header(file)
        assert read_header(data)[:2] == pixels.shape[:0:-1]
        assert read_header(data).plain == (o == 1)


def test_the_tag_counts_more_than_xmp_and_nonsense_counts_nothing():
    both = [chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + xmp_packet(6)), chunk(b'eXIf', exif_block(3))]
    assert np.array_equal(decode_image(png(8, 0, [row.tobytes() for row in TURNED[3][0]], *both)), UPRIGHT)
    for o in (0, 9, 65535):
        assert np.array_equal(decode_image(png_with('before', chunk(b'eXIf', exif_block(o)))(UPRIGHT)), UPRIGHT)


@pytest.mark.skipif('AVIF' not in FORMATS, reason='Pillow before 11.3')
def test_avif_is_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(np.zeros([16, 32, 3], np.uint8)), 'avif', exif=exif)
    assert same_header(data, decode_image(data)) and decode_image(data).shape == (3, 32, 16)


LARGE = zlib.compress(bytes(70 << 20))


@pytest.mark.parametrize(
    'extra',
    [
        chunk(b'zTXt', b'Comment\0\0' + zlib.compress(bytes(3 << 20))),
        chunk(b'iTXt', b'Comment\0\1\0\0\0' + zlib.compress(bytes(3 << 20))),
        chunk(b'zTXt', b'Raw profile type exif\0\0' + LARGE),
        chunk(b'iCCP', b'sRGB\0\0' + LARGE),
        chunk(b'iCCP', b'no profile'),
        chunk(b'iCCP', b'sRGB\0\1'),
        chunk(b'tEXt', b'Raw profile type exif\0\nexif\n 10\nno hex'),
        chunk(b'tEXt', b'Raw profile type exif\0'),
        chunk(b'gAMA', b''),
        chunk(b'cHRM', b'1'),
        chunk(b'pHYs', b'1'),
        chunk(b'acTL', b'1'),
        chunk(b'fcTL', b'1'),
        chunk(b'tIME', b'')[:-1] + b'x',
        chunk(b'tEXt', b'a\0b')[:-1] + b'x',
    ],
    ids=lambda data: repr(data[4:20]),
)
@pytest.mark.parametrize('place', ['before', 'after'])
def test_broken_or_large_metadata_of_a_png_are_no_matter(extra, place):
    data = png_with(place, extra)(UPRIGHT)
    assert np.array_equal(decode_image(data), UPRIGHT) and read_header(data) == (3, 2, 1, True)


@pytest.mark.parametrize(
    'marker, segment',
    [
        (0xE0, b'JFIF'),
        (0xE0, b''),
        (0xE1, b'Exif\0\0'),
        (0xE1, b'Exif\0\0II*\0'),
        (0xE1, b'Exif\0\0' + b'\xff' * 40),
        (0xE2, b'MPF\0' + b'\xff' * 40),
        (0xE2, b'MPF\0II*\0\x08\0\0\0' + b'\1\0\1\xb0\4\0\1\0\0\0\2\0\0\0' + bytes(4)),
        (0xE2, b'ICC_PROFILE\0\0\0'),
        (0xED, b'Photoshop 3.0\x008BIM\x03\xed'),
        (0xED, b'Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\1\0'),
        (0xEE, b'Adobe'),
        (0xFE, b''),
    ],
)
def test_broken_metadata_of_a_jpeg_are_no_matter(marker, segment):
    whole = encoded(to_image(noise(3, 16, 24)), 'jpeg')
    data = whole[:2] + struct.pack('>HH', 0xFF00 | marker, len(segment) + 2) + segment + whole[2:]
    assert np.array_equal(decode_image(data), decode_image(whole)) and read_header(data) == (24, 16, 3, True)


@pytest.mark.parametrize(
    'tags',
    [
        {282: (1, 0)},
        {305: (2**31, 2**31)},
        {34665: (2**31,)},
        {34665: (8,), 34853: (8,)},
        {34377: (2**32 - 1, 2**32 - 1)},
        {34675: (1, 2, 3)},
        {700: (1, 2)},
        {330: (8, 8)},
    ],
)
def test_broken_metadata_of_a_tiff_are_no_matter(tags):
    data = tiff_with(tags | {0x0112: (6,)})(np.ascontiguousarray(TURNED[6]))
    assert np.array_equal(decode_image(data), UPRIGHT) and read_header(data)[:2] == (3, 2)


def test_big_tiffs_and_both_byte_orders_are_turned():
    turned = to_image(np.ascontiguousarray(TURNED[6]))
    for options in ({}, {'big_tiff': True}):
        data = encoded(turned, 'tiff', tiffinfo={0x0112: 6, 270: 'words'}, **options)
        assert np.array_equal(decode_image(data), UPRIGHT) and same_header(data, UPRIGHT)
    for compression in ('tiff_lzw', 'tiff_adobe_deflate', 'jpeg', 'packbits'):
        data = encoded(to_image(noise(3, 16, 24)), 'tiff', compression=compression)
        expected = to_array(Image.open(io.BytesIO(data)).convert('RGB'))
        assert np.array_equal(decode_image(data), expected)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    'data, reason',
    [
        (encoded(to_image(noise(3, 40, 40)))[:2000], 'truncated or broken'),
        (encoded(to_image(noise(3, 40, 40)), 'jpeg')[:900], 'truncated or broken'),
        (b'not an image at all', 'not an image'),
        (b'', 'the file is empty'),
        (b'\0\0\0\x18ftypheic\0\0\0\0mif1heic', 'but HEIC: convert it'),
        (b'\0\0\0\x0cJXL \r\n\x87\n', 'but JPEG XL: convert it'),
        (b'II*\0\xff\xff\xff\xff', 'truncated or broken'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not an image'),  # would start Ghostscript
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:9]),
)
def test_broken_images_are_named_in_one_line(data, reason):
    for read in (decode_image, read_header):
        if read is decode_image or not data[:900].startswith((b'\x89PNG', b'\xff\xd8')):
            with pytest.raises(BadImageError, match=f'^some/file.png: .*{reason}') as error:
                read(data, 'some/file.png')
            assert '\n' not in str(error.value)


def test_a_damaged_png_does_not_pass_for_another_picture():
    """Where inflating does not notice: Pillow looks at no checksum of its pixels."""
    data = bytearray(png(8, 0, [bytes(16)] * 16).replace(zlib.compress(b'\0' * 272), b'?'))
    stored = zlib.compressobj(0)
    content = stored.compress(bytes(17 * 16)) + stored.flush()
    data = bytearray(data[:33] + chunk(b'IDAT', content) + chunk(b'IEND', b''))
    assert decode_image(bytes(data)).max() == 0
    data[60] = 99
    with pytest.raises(BadImageError, match='wrong checksum of its IDAT data'):
        decode_image(bytes(data))


def test_an_image_beyond_the_limit_of_pixels_says_so(monkeypatch):
    data = encoded(to_image(noise(1, 10, 10)))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 60)
    assert decode_image(data).shape == (1, 10, 10)  # without a warning
    before = list(warnings.filters)
    assert decode_image(data).shape == (1, 10, 10) and warnings.filters == before
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 40)
    for read in (decode_image, read_header):
        with pytest.raises(BadImageError, match='^a.png: more pixels than the limit of 80: make it smaller first'):
            read(data, 'a.png')


def test_threads_read_images_and_leave_the_warnings_of_others_alone():
    whole = encoded(to_image(noise(3, 40, 40)), 'jpeg')
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(decode_image, [whole] * 200))
    assert all(np.array_equal(image, found[0]) for image in found)
    with pytest.raises(UserWarning):
        warnings.warn('of ours', stacklevel=1)


def test_memory_that_runs_out_is_one_line(monkeypatch):
    def load(self):
        raise MemoryError

    monkeypatch.setattr('PIL.ImageFile.ImageFile.load', load)
    with pytest.raises(BadImageError, match=r'a.png: truncated or broken image \(not enough memory\)'):
        decode_image(encoded(to_image(noise(1, 2, 2))), 'a.png')
