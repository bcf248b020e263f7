"""An image codec from a network: the codes of a picture, entropy-coded, are a file.

    data = codec.encode(net, images)         # one picture: a file of about net.num_bits / 8 bytes; several: an archive
    images = codec.decode(net, data)
    images = codec.decode(net, data[:100], partial=True)      # a download in progress

Legend: B pictures, C channels, H x W pixels.

An archive is a header with the whole digest of the network, a record for each picture, and an end. A record is: length
of its name + 1, twice, plus 1 where the picture has a size of its own; name; length of the coded stream; checksum (of
the codes, to which that of the name is added); stream. The end is a zero, the number of pictures and the CRC-32 of all
bytes before it. Numbers are varints: seven bits a byte, the lowest first.
"""

import binascii
import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import torch

from ddn_networks import tiles
from ddn_networks.code_rates import Rate, choose
from ddn_networks.code_streams import (
    ARCHIVE,
    MAGIC,
    MAX_SIDE,
    MODELS,
    ROWS,
    VERSION,
    Codec,
    Picture,
    read_header,
    rows_of,
)
from ddn_networks.network import Network

MOST_NAME, MOST_STREAM = 2**12, 2**26  # bytes


def encode(
    net: Network, images: torch.Tensor, condition: torch.Tensor | None = None, model: str | None = None,
    rate: Rate = Rate(), refine: int = 0,  # noqa: B008  # it cannot be changed
) -> bytes:  # fmt: skip
    """The file of images [B, C, H, W] in [-1, 1]; an archive for B other than 1.

    Args:
        net: in evaluation mode.
        images: of any size: others than the network's are cut into tiles.
        condition: [1 or B, c, H, W] of a conditional network; decoding needs it again.
        model: entropy model, 'uniform', 'counts' or 'prior'; None for the best that the network has.
        rate: how many bits, and the beam; by default the nearest codes of all layers.
        refine: see ``Network.reconstruct``; for the default rate only.

    Raises:
        ValueError: images of another number of channels; a model that the network does not have.
        ModuleNotFoundError: ``constriction`` is not installed.
    """
    codec = Codec(net, model)
    if len(images) == 1:
        return codec.file(encoded(codec, images, condition, rate, refine)[0], condition)
    file = io.BytesIO()
    archive = ArchiveWriter(file, codec)
    for at in range(0, len(images), ROWS):
        rows = range(at, min(at + ROWS, len(images)))
        given = rows_of(condition, rows)
        archive.add(encoded(codec, images[at : at + ROWS], given, rate, refine), condition=given)
    archive.close()
    return file.getvalue()


def decode(
    net: Network, data: bytes, condition: torch.Tensor | None = None, partial: bool = False, **how
) -> torch.Tensor:
    """The images [B, C, H, W] of a file, about in [-1, 1] (clamp them to show them).

    Args:
        net: the network that it was made with, in evaluation mode.
        data: the file.
        condition: that of ``encode``.
        partial: the file may be cut off anywhere after its header: what its bytes decide is decoded, and the rest
            filled in. Damage goes unnoticed: the checksum is of all codes. One picture only.
        how: see ``Network.decode``.

    Raises:
        ValueError: in one line: not such a file, damaged, made with another network, pictures of different sizes.
        ModuleNotFoundError: ``constriction`` is not installed.
    """
    header = read_header(data)
    codec = Codec(net, header.model)
    if not header.archive:
        return codec.draw([codec.picture(data, condition, partial)], condition, **how)[0][None]
    if partial:
        raise ValueError('partial decoding is for files of one picture; --recover reads the start of an archive')
    drawn = [image for image, _ in drawings(codec, read_archive(io.BytesIO(data), codec, condition), condition, **how)]
    if len({image.shape for image in drawn}) > 1:
        raise ValueError('this archive holds pictures of different sizes: decode them one by one (codec.py decode)')
    return torch.stack(drawn) if drawn else torch.zeros(0, net.img_channels, *net.img_resolution)


def encoded(
    codec: Codec, images: torch.Tensor, condition: torch.Tensor | None = None,
    rate: Rate = Rate(), refine: int = 0,  # noqa: B008
) -> list[Picture]:  # fmt: skip
    """The codes of images [B, C, H, W] of any size; arguments and errors as for ``encode``."""
    net, size = codec.net, tuple(images.shape[2:])
    if images.ndim != 4 or images.shape[1] != net.img_channels or not 1 <= min(size) <= max(size) <= MAX_SIDE:
        shape = f'[B, {net.img_channels}, H, W] with sides of 1 to {MAX_SIDE:,} pixels'
        raise ValueError(f'images of this network are {shape}, not {list(images.shape)}')
    if refine and rate.asks:
        raise ValueError('refine is for the nearest codes of all layers: leave it out, or layers, bits, psnr, tradeoff')
    if rate.asks:
        return choose(codec, images, rate, condition)
    if size == net.img_resolution:
        return [Picture(row[None]) for row in net.encode(images, condition, rate.beam, refine=refine).cpu()]
    pictures = []
    for i, image in enumerate(images):
        parts, given = tiles.cut(image, net.img_resolution).split(ROWS), rows_of(condition, [i])
        codes = [net.encode(part, given, rate.beam, refine=refine).cpu() for part in parts]
        pictures.append(Picture(torch.cat(codes), size))
    return pictures


# ------------------------------------------------------------------------------------------------------------- archives


class Record(NamedTuple):
    """What an archive holds of a picture."""

    name: str
    sized: bool
    checksum: int
    stream: bytes


class ArchiveWriter:
    """Pictures into a file, one after the other; memory does not grow with their number."""

    def __init__(self, file: BinaryIO, codec: Codec):
        self._file, self._codec, self._crc, self._num = file, codec, 0, 0
        kind = VERSION << 4 | MODELS.index(codec.model) | ARCHIVE
        self._write(bytes([MAGIC, kind]) + codec.digest)

    def add(
        self, pictures: Sequence[Picture], names: Sequence[str] = (), condition: torch.Tensor | None = None
    ) -> list[int]:
        """Add pictures, and return how many bytes each takes."""
        streams, sizes = self._codec.write(pictures, condition), []
        for i, (picture, stream) in enumerate(zip(pictures, streams, strict=True)):
            name = names[i].encode('utf-8', 'surrogateescape') if names else b''
            if len(name) > MOST_NAME:
                raise ValueError(f'the name of a picture has {len(name)} bytes, at most {MOST_NAME} are possible')
            tag = 2 * (len(name) + 1) + (picture.size is not None)
            check = binascii.crc_hqx(name, self._codec.checksum(picture))
            record = varint(tag) + name + varint(len(stream)) + struct.pack('<H', check) + stream
            sizes.append(len(record))
            self._write(record)
            self._num += 1
        return sizes

    def close(self) -> None:
        """Write the end; the file stays open."""
        self._write(varint(0) + varint(self._num))
        self._file.write(struct.pack('<I', self._crc))

    def _write(self, data: bytes) -> None:
        self._crc = binascii.crc32(data, self._crc)
        self._file.write(data)


class ArchiveReader:
    """The records of an archive, one after the other. What is damaged is a ValueError when the place is reached."""

    def __init__(self, file: BinaryIO):
        self._file, self._crc, self._num = file, 0, 0
        self.header = read_header(self._read(34, exactly=False))

    def __iter__(self) -> Iterator[Record]:
        while tag := self._varint(2 * MOST_NAME + 3):
            if tag == 1:
                raise ValueError(f'it is damaged after {self._num} pictures')
            name = self._read(tag // 2 - 1)
            length = self._varint(MOST_STREAM)
            (check,) = struct.unpack('<H', self._read(2))
            stream = self._read(length)
            self._num += 1
            yield Record(name.decode('utf-8', 'surrogateescape'), bool(tag % 2), check, stream)
        num, crc = self._varint(2**63), self._crc
        if num != self._num or struct.pack('<I', crc) != self._read(4) or self._file.read(1):
            raise ValueError(f'it is damaged: its end does not fit the {self._num} pictures before it')

    def _read(self, num: int, exactly: bool = True) -> bytes:
        data = self._file.read(num)
        if exactly and len(data) < num:
            raise ValueError(f'it ends within picture {self._num + 1}: it is cut off')
        self._crc = binascii.crc32(data, self._crc)
        return data

    def _varint(self, most: int) -> int:
        value = shift = 0
        while True:
            (byte,) = self._read(1)
            value |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
            if shift > 63:
                break
        if value > most:
            raise ValueError(f'it is damaged after {self._num} pictures')
        return value


def read_archive(
    file: BinaryIO, codec: Codec, condition: torch.Tensor | None = None
) -> Iterator[tuple[Picture, str]]:
    """The pictures of an archive and their names, one by one. Errors as for ``decode``; what was yielded is whole."""
    reader = ArchiveReader(file)
    codec.check(reader.header)
    for i, record in enumerate(reader):
        try:
            (picture,) = codec.read([record.stream], [record.sized], rows_of(condition, [i]))
            name = record.name.encode('utf-8', 'surrogateescape')
            if binascii.crc_hqx(name, codec.checksum(picture)) != record.checksum:
                raise ValueError('the codes do not have their checksum')
        except ValueError as error:
            raise ValueError(f'picture {i + 1} is damaged ({error})') from None
        yield picture, record.name


def drawings(
    codec: Codec, pictures: Iterable[tuple[Picture, str]], condition: torch.Tensor | None = None, **how
) -> Iterator[tuple[torch.Tensor, str]]:
    """The images [C, H, W] of pictures and their names, drawn ``ROWS`` tiles at a time, or one picture of more. Where
    ``pictures`` ends in a ValueError, it is raised after the images before it. ``how``: see ``Network.decode``."""
    pictures, end, first = iter(pictures), None, 0
    while end is None:
        batch, tiled = [], 0
        try:
            while tiled < ROWS:
                batch.append(next(pictures))
                tiled += len(batch[-1][0].codes)
        except (StopIteration, ValueError) as error:
            end = error
        given = rows_of(condition, range(first, first + len(batch)))
        first += len(batch)
        images = codec.draw([picture for picture, _ in batch], given, **how) if batch else []
        yield from ((image, name) for image, (_, name) in zip(images, batch, strict=True))
    if isinstance(end, ValueError):
        raise end


def varint(value: int) -> bytes:
    """A number of at least 0, seven bits a byte, the lowest first."""
    data = bytearray()
    while value >= 128:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])
