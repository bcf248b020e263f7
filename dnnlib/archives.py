"""The images of a folder or a zip."""

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .downloads import local_path
from .images import BadImageError, ImageHeader, decode_image, read_header

IMAGE_EXTENSIONS = frozenset(
    '.png .jpg .jpeg .jpe .jfif .webp .bmp .dib .gif .tif .tiff .tga .ppm .pgm .pbm .pnm .jp2 .j2k .avif'.split()
)


class ImageArchive:
    """The images of a folder (searched recursively) or a zip, in the order of their names; thread- and fork-safe.

    Reading needs no shared position and no state: worker processes may use the same object after a fork, or a pickled
    copy of it. The index is a few NumPy arrays, not Python objects, so that forked workers share its memory.

    Args:
        path: folder, zip, or URL of a zip (downloaded into the cache).

    Attributes:
        path: where it is on this machine.
        is_zip: a zip, not a folder.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file that is no zip, or nothing in it is an image.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = local_path(path)
        self.is_zip = not self.path.is_dir()
        self._handle: int | None = None
        names = self._index_zip() if self.is_zip else _walk(self.path)
        if not names:
            kind, wanted = 'zip' if self.is_zip else 'folder', ', '.join(sorted(IMAGE_EXTENSIONS))
            raise ValueError(f'{self.path}: no images in this {kind} (looked for {wanted})')
        self._names = np.array([name.encode('utf-8', 'surrogateescape') for name in names])

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Path inside the archive, with forward slashes."""
        return bytes(self._names[index]).decode('utf-8', 'surrogateescape')

    def names(self) -> list[str]:
        return [self.name(i) for i in range(len(self))]

    def title(self, index: int) -> str:
        """The name for error messages: archive and file."""
        return f'{self.path}: {self.name(index)}'

    def digest(self) -> str:
        """SHA-256 in hex of the names of all images and, of a zip, their lengths and checksums: reads no file."""
        digest = hashlib.sha256('\0'.join(self.names()).encode('utf-8', 'surrogateescape'))
        if self.is_zip:
            digest.update(self._entries[:, 2:4].tobytes())
        return digest.hexdigest()

    def read(self, index: int) -> bytes:
        """The bytes of one file. Raises BadImageError when it cannot be read, or the zip is damaged there."""
        return self._read_zipped(index) if self.is_zip else self._read_file(index)

    def image(self, index: int) -> np.ndarray:
        """One image, decoded: uint8 [C, H, W]. Raises BadImageError with its name."""
        return decode_image(self.read(index), self.title(index))

    def images(self, indices: Sequence[int], shape: tuple[int, int, int]) -> np.ndarray:
        """uint8 [B, C, H, W] of images of the shape that a network takes. Raises BadImageError for one of another."""
        pixels = [self.image(i) for i in indices]
        for i, image in zip(indices, pixels, strict=True):
            if image.shape != shape:
                (C, H, W), (channels, height, width) = image.shape, shape
                raise BadImageError(
                    f"{self.title(i)} is {W}x{H} with {C} channels, the network's images are {width}x{height} with "
                    f"{channels}: see dataset_tool.py --resolution"
                )
        return np.stack(pixels)

    def header(self, index: int) -> ImageHeader:
        """Size and channels of one image without decoding it. Raises BadImageError with its name."""
        if self.is_zip:
            return read_header(self._read_zipped(index), self.title(index))
        try:
            with open(self.path / self.name(index), 'rb') as file:
                return read_header(file, self.title(index))
        except OSError as error:
            raise BadImageError(f'{self.title(index)}: cannot be read ({error.strerror})') from error

    def read_extra(self, name: str) -> bytes | None:
        """The bytes of a file that is no image, such as `dataset.json`; None when there is none of that name."""
        if not self.is_zip:
            file = self.path / name
            return file.read_bytes() if file.is_file() else None
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(name) if name in archive.namelist() else None

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self):
        if getattr(self, '_handle', None) is not None:
            self.close()

    def __getstate__(self) -> dict:
        return self.__dict__ | {'_handle': None}

    def _index_zip(self) -> list[str]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                entries = [e for e in archive.infolist() if _is_image(e.filename) and not e.is_dir()]
        except (zipfile.BadZipFile, EOFError, struct.error) as error:
            raise ValueError(f'{self.path}: neither a folder nor a zip that can be read ({error})') from error
        entries.sort(key=lambda e: e.filename)
        for e in entries:
            if e.flag_bits & 1 or e.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                what = 'is encrypted' if e.flag_bits & 1 else f'uses compression method {e.compress_type}'
                raise ValueError(f'{self.path}: {e.filename} {what}; repack the zip with `zip -0`')
        fields = [(e.header_offset, e.compress_size, e.file_size, e.CRC, e.compress_type) for e in entries]
        self._entries = np.array(fields, dtype=np.int64).reshape(-1, 5)  # [N, 5]
        return [e.filename for e in entries]

    def _read_file(self, index: int) -> bytes:
        try:
            return (self.path / self.name(index)).read_bytes()
        except OSError as error:
            raise BadImageError(f'{self.title(index)}: cannot be read ({error.strerror})') from error

    def _read_zipped(self, index: int) -> bytes:
        """Read one entry at its offset: `pread` moves no file position, so forked workers may share the handle."""
        offset, packed, size, crc, method = (int(x) for x in self._entries[index])
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY | getattr(os, 'O_CLOEXEC', 0))
        guess = 30 + len(self._names[index]) + 64  # local header: 30 bytes, the name, extra fields
        block = os.pread(self._handle, guess + packed, offset)
        if len(block) < 30 or block[:4] != b'PK\3\4':
            raise BadImageError(f'{self.title(index)}: the zip is damaged or has changed since it was opened')
        start = 30 + sum(struct.unpack('<HH', block[26:30]))
        if start > guess:
            block, start = os.pread(self._handle, packed, offset + start), 0
        data = block[start : start + packed]
        try:
            data = zlib.decompress(data, wbits=-15) if method == zipfile.ZIP_DEFLATED else data
        except zlib.error:
            data = b''
        if len(data) != size or zlib.crc32(data) != crc:
            raise BadImageError(f'{self.title(index)}: damaged in the zip (wrong length or checksum)')
        return data


def _is_image(name: str) -> bool:
    """By extension; what macOS and hidden files leave in archives does not count."""
    parts = name.split('/')
    hidden = any(part.startswith('.') or part == '__MACOSX' for part in parts)
    return not hidden and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _walk(folder: Path) -> list[str]:
    found = []
    above = {str(folder): set()}  # of each folder to come: real names of those on the way to it, against loops of links
    for directory, folders, files in os.walk(folder, followlinks=True):
        way = above.pop(directory) | {os.path.realpath(directory)}
        folders[:] = [f for f in folders if os.path.realpath(os.path.join(directory, f)) not in way]
        above |= {os.path.join(directory, f): way for f in folders}
        base = Path(directory).relative_to(folder)
        found += [name for file in files if _is_image(name := (base / file).as_posix())]
    return sorted(found)
