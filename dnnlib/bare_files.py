"""Image files without their metadata, which is where most damage does: what Pillow gets to decode.

Text, colour profiles, EXIF, XMP and thumbnails of a PNG, JPEG or TIFF are left out, except the two things that change
what the picture looks like: its orientation, wherever it is stored, and a PNG's transparent colour. So damage in
metadata, or Pillow's limits on its size, cannot make a good picture unreadable.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

ORIENTATION, XMP = 0x0112, 700  # tags of EXIF and TIFF
MAX_TEXT = 1 << 20  # bytes of a PNG's text that are searched for an orientation
PNG_START = b'\x89PNG\r\n\x1a\n'
PNG_CRITICAL = (b'IHDR', b'PLTE', b'IDAT', b'IEND')
PNG_METADATA = b'iCCP tEXt zTXt iTXt tIME pHYs gAMA cHRM sRGB sBIT bKGD hIST sPLT cICP acTL fcTL fdAT'.split()
JPEG_ALONE = (0x00, 0x01, *range(0xD0, 0xDA))  # markers without content
# Tags of TIFF that say how pixels are stored; sizes, bits, strips, tiles, colours, compression, ranges.
TIFF_PIXELS = {*range(256, 260), 262, 266, 273, *range(277, 282), 284, 292, 293, 317, 320, *range(322, 326)}
TIFF_PIXELS |= {332, 333, 334, *range(338, 342), 347, *range(512, 522), *range(529, 533), 50674}


class BareFile(NamedTuple):
    """file: of pixels alone. orientation: 1 to 8 as in EXIF, None where Pillow finds it. depth: bits per sample, 0 if
    unknown here. key: the transparent colour of a PNG without palette, [C] values of ``depth`` bits, or None."""

    file: BinaryIO
    orientation: int | None = None
    depth: int = 0
    key: tuple[int, ...] | None = None


def strip(file: BinaryIO, pixels: bool) -> BareFile:
    """The bare file of an image file; with ``pixels=False`` only as much of it as its header needs.

    Raises:
        ValueError, struct.error: the file is damaged where it says how its pixels are stored.
    """
    start = file.read(8)
    file.seek(0)
    if start == PNG_START:
        return _strip_png(file, pixels)
    if start.startswith(b'\xff\xd8\xff'):
        return _strip_jpeg(file, pixels)
    if start.startswith((b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')):
        return _strip_tiff(bytearray(file.read()))
    return BareFile(file)


# ---------------------------------------------------------------------------------------------------------- orientation


class _Entry(NamedTuple):
    """An entry of a directory of TIFF or EXIF; ``value`` is its number if it is an integer, else 0."""

    tag: int
    count: int
    value: int
    packed: bytes


def _directory(data: bytes | bytearray) -> tuple[int, str, list[_Entry]]:
    """The first directory of a TIFF file or EXIF block: its offset, the format of offsets, its entries. Entries beyond
    the end of the data are left out."""
    order = {b'II': '<', b'MM': '>'}.get(bytes(data[:2]))
    if order is None:
        raise ValueError('no byte order')
    big = struct.unpack_from(order + 'H', data, 2)[0] == 43
    count_format, word = (order + 'Q', order + 'Q') if big else (order + 'H', order + 'I')
    (offset,) = struct.unpack_from(word, data, 8 if big else 4)
    (num,) = struct.unpack_from(count_format, data, offset)
    size, start = (20 if big else 12), offset + struct.calcsize(count_format)
    entries = []
    for at in range(start, min(start + num * size, len(data) - size + 1), size):
        tag, kind, count = struct.unpack_from(order + 'HH' + word[1], data, at)
        code = {1: 'B', 3: 'H', 4: 'I'}.get(kind)
        value = struct.unpack_from(order + code, data, at + (12 if big else 8))[0] if code and count else 0
        entries.append(_Entry(tag, count, value, bytes(data[at : at + size])))
    return offset, word, entries


def _upright(entries: list[_Entry]) -> int | None:
    return next((e.value for e in entries if e.tag == ORIENTATION and 1 <= e.value <= 8), None)


def exif_orientation(exif: bytes) -> int | None:
    """Tag 0x0112 of an EXIF block, 1 to 8, None if it has none; damage in other tags does not matter."""
    while exif.startswith(b'Exif\0\0'):
        exif = exif[6:]
    try:
        return _upright(_directory(exif)[2])
    except (ValueError, struct.error):
        return None


def xmp_orientation(xmp: bytes | str) -> int | None:
    """tiff:Orientation of an XMP packet, 1 to 8, or None."""
    xmp = xmp.encode('utf-8', 'replace') if isinstance(xmp, str) else xmp
    match = re.search(rb'tiff:Orientation\s*(?:=\s*["\']|>)\s*([1-8])\b', xmp)
    return int(match[1]) if match else None


# -------------------------------------------------------------------------------------------------------------- formats


def _strip_png(file: BinaryIO, pixels: bool) -> BareFile:
    kept, exif, xmp, key = [file.read(8)], None, None, None
    depth = colour = 0
    for kind, data, chunk in _png_chunks(file, pixels):
        if kind in PNG_CRITICAL or kind == b'tRNS' and colour == 3:
            kept.append(chunk)
        if kind == b'IHDR':
            depth, colour = struct.unpack_from('BB', data, 8)
        elif kind == b'tRNS' and colour in (0, 2):
            key = struct.unpack_from('>H' if colour == 0 else '>HHH', data)
        elif kind == b'eXIf':
            exif = exif or exif_orientation(data)
        elif kind in (b'tEXt', b'zTXt', b'iTXt'):
            found = _png_text(kind, data)
            exif, xmp = exif or exif_orientation(found), xmp or xmp_orientation(found)
    return BareFile(io.BytesIO(b''.join(kept)), exif or xmp or 1, depth, key)


def _png_chunks(file: BinaryIO, pixels: bool) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(type, data, whole chunk) of a PNG's chunks up to IEND. Of IDAT without ``pixels`` there is only the start; of
    text the first MAX_TEXT bytes; metadata with a wrong checksum are left out."""
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack('>I4s', head)
        data = file.read(length if pixels and kind == b'IDAT' else 0 if kind == b'IDAT' else min(length, MAX_TEXT))
        file.seek(length - len(data), io.SEEK_CUR)
        checksum = file.read(4)
        is_whole = len(checksum) == 4 and len(data) == length
        if is_whole and zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(checksum, 'big'):
            if kind not in PNG_METADATA:
                raise ValueError(f'wrong checksum of its {kind.decode("ascii", "replace")} data')
            continue
        yield kind, data, head + data + checksum
        if kind == b'IEND':
            return
    raise ValueError('its end is missing')


def _png_text(kind: bytes, data: bytes) -> bytes:
    """The EXIF or XMP block in a text chunk of a PNG; nothing if it holds another text, or is damaged."""
    key, _, text = data.partition(b'\0')
    if key not in (b'XML:com.adobe.xmp', b'Raw profile type exif', b'Raw profile type APP1', b'Raw profile type xmp'):
        return b''
    packed = kind == b'zTXt' or kind == b'iTXt' and text[:1] == b'\1'
    text = text[1:] if kind == b'zTXt' else text[2:].split(b'\0', 2)[-1] if kind == b'iTXt' else text
    try:
        text = zlib.decompressobj().decompress(text, MAX_TEXT) if packed else text
        # ImageMagick's raw profiles: a name, a length, then hexadecimal digits in lines
        return bytes.fromhex(b''.join(text.split()[2:]).decode('ascii')) if key.startswith(b'Raw') else text
    except (zlib.error, ValueError):
        return b''


def _strip_jpeg(file: BinaryIO, pixels: bool) -> BareFile:
    kept, exif, xmp = [file.read(2)], None, None
    while byte := file.read(1):
        if byte != b'\xff':
            continue  # Pillow skips what stands between segments, too
        while (byte := file.read(1)) == b'\xff':
            continue
        if not byte or byte[0] in JPEG_ALONE:
            continue
        size = file.read(2)
        data = file.read(max(0, int.from_bytes(size, 'big') - 2))
        if byte == b'\xe1' and data.startswith(b'Exif\0\0'):
            exif = exif or exif_orientation(data)
        elif byte == b'\xe1' and data.startswith(b'http://ns.adobe.com/xap/1.0/\0'):
            xmp = xmp or xmp_orientation(data)
        tells_colours = data.startswith(b'JFIF\0') and len(data) >= 14 or data.startswith(b'Adobe') and len(data) >= 12
        if tells_colours or not (0xE0 <= byte[0] <= 0xEF or byte == b'\xfe'):
            kept.append(b'\xff' + byte + size + data)
        if byte == b'\xda':  # the pixels begin
            kept.append(file.read() if pixels else b'')
            break
    return BareFile(io.BytesIO(b''.join(kept)), exif or xmp or 1, 8)


def _strip_tiff(data: bytearray) -> BareFile:
    offset, word, entries = _directory(data)
    orientation = _upright(entries)
    for e in entries:
        if e.tag == XMP and orientation is None:
            at = struct.unpack(word, e.packed[-struct.calcsize(word) :])[0]
            orientation = xmp_orientation(bytes(data[at : at + min(e.count, MAX_TEXT)]))
    kept = [e.packed for e in entries if e.tag in TIFF_PIXELS]
    count = struct.pack(word[0] + ('H' if word[1] == 'I' else 'Q'), len(kept))
    directory = count + b''.join(kept) + bytes(struct.calcsize(word))  # no next directory: only the first image
    data[offset : offset + len(directory)] = directory
    return BareFile(io.BytesIO(data), orientation or 1)
