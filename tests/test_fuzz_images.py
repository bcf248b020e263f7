"""Damaged files of every kind that datasets are made of: an error of one line, or a result that is well formed.

Formats with checksums give the undamaged result or an error. Seeded, so that a failure repeats.
"""

import gzip
import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dnnlib.archives import ImageArchive
from dnnlib.images import FORMATS, BadImageError, decode_image, read_header, to_image
from dnnlib.labels import MAX_CLASSES, Labels, read_labels
from dnnlib.sources import read_cifar10, read_idx
from tests.mutations import EXTREMES, PRINT_PEAK, mutations, outcome
from tests.test_dataset_tool import write_cifar, write_idx
from tests.test_images import TURNED, encoded, exif_block, noise, png_ways, png_with, tiff_with, ways

RGB, GREY, RGBA = (to_image(noise(c, 20, 24, seed=c)) for c in (3, 1, 4))
SMOOTH = Image.fromarray(np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)).convert('RGB')
EXIF = b'Exif\0\0' + exif_block(6)
IMAGES = {
    'png': encoded(RGB),
    'png grey': encoded(GREY),
    'png RGBA': encoded(RGBA),
    'png palette': encoded(RGB.quantize(16), transparency=3),
    'png 16 bits': encoded(Image.fromarray(noise(20, 24).astype(np.uint16) * 257)),
    'png turned': png_with('after', png_ways(6)['eXIf'])(np.ascontiguousarray(TURNED[6])),
    'jpeg': encoded(SMOOTH, 'jpeg', exif=EXIF),
    'jpeg progressive': encoded(SMOOTH, 'jpeg', progressive=True, icc_profile=bytes(200)),
    'jpeg CMYK': encoded(SMOOTH.convert('CMYK'), 'jpeg'),
    'webp': encoded(SMOOTH, 'webp', exif=EXIF),
    'webp lossless': encoded(RGBA, 'webp', lossless=True),
    'gif': encoded(RGB.quantize(32), 'gif', transparency=5),
    'gif grey': encoded(GREY, 'gif', transparency=5),
    'gif animation': encoded(RGB.quantize(8), 'gif', save_all=True, append_images=[SMOOTH.quantize(8)]),
    'tiff': encoded(RGB, 'tiff', tiffinfo={0x0112: 6, 270: 'words'}),
    'tiff deflate': encoded(RGB, 'tiff', compression='tiff_adobe_deflate'),
    'tiff lzw': encoded(GREY, 'tiff', compression='tiff_lzw'),
    'tiff jpeg': encoded(SMOOTH, 'tiff', compression='jpeg'),
    'tiff 16 bits': encoded(Image.fromarray(noise(20, 24).astype(np.uint16) * 257), 'tiff'),
    'tiff big': encoded(RGB, 'tiff', big_tiff=True),
    'tiff turned': tiff_with({0x0112: (6,), 282: (1, 0)})(np.ascontiguousarray(TURNED[6])),
    'bmp': encoded(RGB, 'bmp'),
    'bmp palette': encoded(RGB.quantize(16), 'bmp'),
    'ppm': encoded(RGB, 'ppm'),
    'tga': encoded(RGBA, 'tga', compression='tga_rle'),
    'jpeg2000': encoded(RGB, 'jpeg2000'),
    **({'avif': encoded(SMOOTH, 'avif', speed=10)} if 'AVIF' in FORMATS else {}),
}


@pytest.mark.parametrize('kind', IMAGES)
def test_damaged_images(kind):
    data = IMAGES[kind]
    whole, used = decode_image(data), 0
    for damaged in mutations(data, 120):
        pixels = outcome(lambda d=damaged: decode_image(d, 'a.png'))
        header = outcome(lambda d=damaged: read_header(d, 'a.png'))
        for found in (pixels, header):
            assert not isinstance(found, Exception) or isinstance(found, BadImageError) and str(found)[:7] == 'a.png: '
        if not isinstance(pixels, Exception):
            used += 1
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4)
            assert (header.channels, header.height, header.width) == pixels.shape
            assert not kind.startswith('png') or np.array_equal(pixels, whole)
    assert used  # what is appended, for one, does no harm


@pytest.mark.parametrize('way', [way for way in ways(1) if not way.startswith(('PNG eXIf', 'WebP'))])
def test_damaged_metadata_do_not_spoil_pixels(way):
    """The bytes of a block of EXIF, XMP or text, one at a time: the pixels are those of some orientation."""
    upright = ways(1)[way](np.ascontiguousarray(TURNED[1]))
    place = max(upright.find(mark) for mark in (b'Raw profile', b'XML:com', b'Exif\0\0', b'<x:xmp', b'\x12\1\4\0'))
    shapes = {decode_image(upright).shape, decode_image(upright).transpose(0, 2, 1).shape}
    for at in range(place, place + 60):
        if way.startswith('TIFF') and at > place + 11:
            break  # beyond the tag
        damaged = upright[:at] + bytes([upright[at] ^ 0xFF]) + upright[at + 1 :]
        pixels = outcome(lambda d=damaged: decode_image(d))
        if way.startswith(('JPEG', 'PNG')):
            assert pixels.shape in shapes
        if not isinstance(pixels, Exception):
            assert pixels.shape == (pixels.shape[0], *read_header(damaged)[1::-1])


# ------------------------------------------------------------------------------------------------------------- archives

FILES = {f'{c}/{i}.png': encoded(to_image(noise(3, 4, 6, seed=i))) for i, c in enumerate('ab')}
JSON = {'labels': [['a/0.png', 3], ['b/1.png', 1]], 'class_names': ['w', 'x', 'y', 'z']}


def a_zip(compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
        archive.writestr('dataset.json', json.dumps(JSON))
    return buffer.getvalue()


def well_formed(labels: Labels | None, num: int) -> bool:
    if labels is None:
        return True
    values, names = labels
    if values.ndim == 1:
        in_range = values.min() >= 0 and values.max() < (len(names) if names is not None else MAX_CLASSES)
        return values.dtype == np.int64 and len(values) == num and in_range
    return values.dtype == np.float32 and values.shape[0] == num and np.isfinite(values).all() and names is None


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_zips(tmp_path, compression):
    data, path, used = a_zip(compression), tmp_path / 'a.zip', 0
    tail = len(data) - data.index(b'PK\1\2')  # the directory, where most is said
    for damaged in [*mutations(data, 250), *(data[:-tail] + end for end in mutations(data[-tail:], 250, seed=1))]:
        path.write_bytes(damaged)
        archive = outcome(lambda: ImageArchive(path))
        if isinstance(archive, Exception):
            assert str(path) in str(archive)
            continue
        for i in range(len(archive)):
            found = outcome(lambda a=archive, i=i: a.read(i))
            assert found in FILES.values() or isinstance(found, BadImageError) and str(path) in str(found)
            used += not isinstance(found, Exception)
        labels = outcome(lambda a=archive: read_labels(a))
        assert isinstance(labels, Exception) or well_formed(labels, len(archive))
        archive.close()
    assert used


def spoil(value, rng: random.Random):
    """A copy of a JSON value in which one or two things are others."""
    odd = (*EXTREMES, -1, 0.5, -(2**63), 10**30, 1e300, True, None, '', '\udce9\n', [], {}, [[]], [1, 2], 'a/0.png')
    if rng.random() < 0.15:
        return rng.choice(odd)
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        return {**value, rng.choice([key, key, key, 'other']): spoil(value[key], rng)}
    if isinstance(value, list) and value:
        at = rng.randrange(len(value))
        return [*value[:at], *rng.choice([[spoil(value[at], rng)]] * 4 + [[], [value[at]] * 2]), *value[at + 1 :]]
    return rng.choice(odd)


def test_damaged_labels(tmp_path):
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(data)
    rng = random.Random(0)
    vectors = {'labels': [['a/0.png', [1, 0.5]], ['b/1.png', [2, 3]]]}
    spoiled = [json.dumps(spoil(rng.choice([JSON, vectors]), rng)).encode() for _ in range(300)]
    used = 0
    (tmp_path / 'dataset.json').write_bytes(b'')
    archive = ImageArchive(tmp_path)
    for text in [*spoiled, *mutations(json.dumps(JSON).encode(), 150), *mutations(json.dumps(vectors).encode(), 150)]:
        (tmp_path / 'dataset.json').write_bytes(text)
        labels = outcome(lambda: read_labels(archive))
        assert well_formed(labels, 2) if not isinstance(labels, Exception) else 'dataset.json' in str(labels), text
        used += isinstance(labels, Labels)
    assert used > 50


# -------------------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize('ending', ['', '.gz'])
def test_damaged_idx_files(tmp_path, ending):
    path = tmp_path / f'a-images-idx3-ubyte{ending}'
    labels = tmp_path / f'a-labels-idx1-ubyte{ending}'
    whole, classes = write_idx(path, noise(3, 8, 9)).read_bytes(), write_idx(labels, noise(3)).read_bytes()
    used = 0
    for i, damaged in enumerate([*mutations(whole, 150), *mutations(classes, 150)]):
        path.write_bytes(damaged if i < 150 else whole)
        labels.write_bytes(damaged if i >= 150 else classes)
        source = outcome(lambda: read_idx(str(path)))
        if not isinstance(source, Exception):
            used += 1
            assert source.images.dtype == np.uint8 and source.images.shape[0] == len(source.labels.values) > 0
            assert source.images.size == 3 * 8 * 9
            assert not ending or np.array_equal(source.images[:, 0], noise(3, 8, 9))
    assert used


@pytest.mark.parametrize('packed', [False, True])
def test_damaged_cifar_files(tmp_path, packed):
    data = write_cifar(tmp_path / 'whole').read_bytes()
    whole = read_cifar10(tmp_path / 'whole', 'test')
    data = data if packed else gzip.decompress(data)
    pickled = tarfile.open(tmp_path / 'whole').getmember('cifar-10-batches-py/test_batch').offset_data
    path, used = tmp_path / 'cifar-10-python.tar', 0
    inside = [] if packed else [data[:pickled] + part for part in mutations(data[pickled:], 200, seed=1)]
    for damaged in [*mutations(data, 120), *inside]:
        path.write_bytes(damaged)
        source = outcome(lambda: read_cifar10(path, 'test'))
        if isinstance(source, Exception):
            assert str(source).startswith(f'{path}: not a whole cifar-10-python.tar.gz (')
        else:
            used += 1
            assert source.images.dtype == np.uint8 and source.images.shape[1:] == (3, 32, 32)
            assert well_formed(source.labels, len(source.images))
            assert not packed or np.array_equal(source.images, whole.images)
    assert used or packed


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='measures memory by /proc')
def test_claims_of_images_take_no_memory(tmp_path):
    """Small files that claim pictures of 10^8 pixels and more, and tags of 2^31 values, under a limit of memory."""
    side = 13_000
    png = bytearray(IMAGES['png'])
    png[16:24] = struct.pack('>II', side, side)
    png[29:33] = struct.pack('>I', zlib.crc32(png[12:29]))
    bmp, gif, tga = bytearray(IMAGES['bmp']), bytearray(IMAGES['gif']), bytearray(IMAGES['tga'])
    bmp[18:26] = struct.pack('<II', side, side)
    gif[6:10] = tga[12:16] = struct.pack('<HH', side, side)
    files = {
        'a.png': png,
        'a.bmp': bmp,
        'a.gif': gif,
        'a.tga': tga,
        'a.ppm': IMAGES['ppm'].replace(b'24 20', b'%d %d' % (side, side)),
        'a.tif': tiff_with({256: (side,), 257: (side,), 258: (8,)})(np.zeros([1, 4, 4], np.uint8)),
        'b.tif': IMAGES['tiff'].replace(struct.pack('<HHI', 258, 3, 3), struct.pack('<HHI', 258, 3, 2**31)),
        'a.jp2': IMAGES['jpeg2000'].replace(struct.pack('>II', 24, 20), struct.pack('>II', side, side)),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    code = (
        'import sys; from dnnlib import ImageArchive\n'
        'archive = ImageArchive(sys.argv[1])\n'
        'for i in range(len(archive)):\n'
        '    for read in (archive.header, archive.image):\n'
        '        try: print(archive.name(i), getattr(read(i), "shape", ""))\n'
        '        except ValueError as error: print(error)\n'
        + PRINT_PEAK
    )
    limit = (3 << 30, resource.getrlimit(resource.RLIMIT_AS)[1])
    done = subprocess.run(
        [sys.executable, '-c', code, tmp_path], capture_output=True, text=True, cwd=Path(__file__).parents[1],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit), env=os.environ | {'OMP_NUM_THREADS': '1'},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and done.stderr == '' and len(lines) == 2 * len(files) + 1, done
    assert f'a.gif: its header claims {side}x{side} pixels, but the file has only {len(gif)} bytes' in done.stdout
    assert int(lines[-1]) < 400_000
