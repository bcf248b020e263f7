"""The images of a folder or a zip.

An index is made once; what is in it that is not an image is counted, not read. Names inside of a zip are tidied
(`./a.png`, `a\\b.png`, `C:/a.png`), those of files in a folder are what they are.
"""

import hashlib
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .downloads import local_path
from .images import BadImageError, ImageHeader, decode_image, read_header
from .readers import MAX_JSON, open_regular, printable, read_bytes, reason
from .util import format_bytes

IMAGE_EXTENSIONS = frozenset(
    '.png .jpg .jpeg .jpe .jfif .webp .bmp .dib .gif .tif .tiff .tga .ppm .pgm .pbm .pnm .jp2 .j2k .avif'.split()
)
LABEL_FILE = 'dataset.json'
MAX_FILE = 1 << 30  # bytes of one file in a zip
MAX_RATIO = 200  # how much smaller than its JSON a zip may be, from 64 MiB on
MAX_WAYS = 100  # paths on which links may lead to one folder


class ZipEntry(NamedTuple):
    """A file in a zip: position of its local header, packed bytes, unpacked bytes, checksum of these, compression
    method, checksum of its name."""

    offset: int
    packed: int
    size: int
    crc: int
    method: int
    name_crc: int


class ImageArchive:
    """The images of a folder (searched recursively) or a zip, in the order of their names; thread- and fork-safe.

    Reading needs no shared position and no state: worker processes may use the same object after a fork, or a pickled
    copy of it. The index is a few arrays, not Python objects, so that forked workers share its memory.

    Args:
        path: folder, zip, or URL of a zip (downloaded into the cache).

    Attributes:
        path: where it is on this machine.
        is_zip: a zip, not a folder.
        notes: what was passed over, in a line or two for the user.
        label_files: names of all `dataset.json` in it.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: in one line: not a zip, a damaged one, a folder in it that cannot be read, or no images.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = local_path(path)
        self.is_zip = not self.path.is_dir()
        self._handle: int | None = None
        contents = _Contents()
        entries = _index_zip(self.path, contents) if self.is_zip else _index_folder(self.path, contents)
        names = sorted(contents.images)
        sheets = _sheets(names)
        names = [name for name in names if name not in sheets]
        self.notes = contents.notes(names, sheets)
        self.label_files = {name: entries.get(name) for name in sorted(contents.label_files)}
        if not names:
            kind, wanted = 'zip' if self.is_zip else 'folder', ', '.join(sorted(IMAGE_EXTENSIONS))
            notes = ''.join(f'; {note[0].lower()}{note[1:]}' for note in self.notes)
            raise ValueError(f'{printable(self.path)}: no images in this {kind} (looked for {wanted}){notes}')
        encoded = [name.encode('utf-8', 'surrogateescape') for name in names]
        self._names = b''.join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)  # [N + 1]
        if self.is_zip:
            self._entries = np.array([entries[name] for name in names], dtype=np.int64)  # [N, 6]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def name(self, index: int) -> str:
        """Path inside the archive, with forward slashes."""
        return self._names[self._ends[index] : self._ends[index + 1]].decode('utf-8', 'surrogateescape')

    def names(self) -> list[str]:
        return [self.name(i) for i in range(len(self))]

    def title(self, index: int) -> str:
        """The name for error messages: archive and file."""
        return printable(f'{self.path}: {self.name(index)}')

    def digest(self) -> str:
        """SHA-256 in hex of the names of all images and, of a zip, their lengths and checksums: reads no file."""
        digest = hashlib.sha256('\0'.join(self.names()).encode('utf-8', 'surrogateescape'))
        if self.is_zip:
            digest.update(self._entries[:, 2:4].tobytes())
        return digest.hexdigest()

    def read(self, index: int) -> bytes:
        """The bytes of one file. Raises BadImageError when it cannot be read, or the zip is damaged there."""
        if self.is_zip:
            return self._read_entry(ZipEntry(*self._entries[index].tolist()), self.title(index))
        try:
            with open_regular(self.path / self.name(index), MAX_FILE) as file:
                return file.read()
        except (OSError, MemoryError) as error:
            raise BadImageError(f'{self.title(index)}: cannot be read ({reason(error)})') from error

    def image(self, index: int) -> np.ndarray:
        """One image, decoded: uint8 [C, H, W]. Raises BadImageError with its name."""
        return decode_image(self.read(index), self.title(index))

    def images(self, indices: Sequence[int], shape: tuple[int, int, int]) -> np.ndarray:
        """uint8 [B, C, H, W] of images of the shape that a network takes. Raises BadImageError for another shape."""
        pixels = [self.image(i) for i in indices]
        for i, image in zip(indices, pixels, strict=True):
            if image.shape != shape:
                (C, H, W), (channels, height, width) = image.shape, shape
                raise BadImageError(
                    f"{self.title(i)} is {W}x{H} with {C} channels, the network's images are {width}x{height} with "
                    f'{channels}: see dataset_tool.py --resolution'
                )
        return np.stack(pixels)

    def header(self, index: int) -> ImageHeader:
        """Size and channels of one image without decoding it. Raises BadImageError with its name."""
        if self.is_zip:
            return read_header(self.read(index), self.title(index))
        try:
            with open_regular(self.path / self.name(index), MAX_FILE) as file:
                return read_header(file, self.title(index))
        except OSError as error:
            raise BadImageError(f'{self.title(index)}: cannot be read ({reason(error)})') from error

    def read_label_file(self, name: str) -> bytes:
        """The bytes of one of `label_files`. Raises ValueError in one line."""
        if not self.is_zip:
            return read_bytes(self.path / name, MAX_JSON)
        found, title = self.label_files[name], printable(f'{self.path}: {name}')
        if isinstance(found, str):
            raise ValueError(f'{title} {found}')
        entry = ZipEntry(*found)
        if entry.size > min(MAX_JSON, max(64 << 20, MAX_RATIO * entry.packed)):
            raise ValueError(f'{title}: {format_bytes(entry.size)} of {format_bytes(entry.packed)} is too large')
        return self._read_entry(entry, title)

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self):
        if getattr(self, '_handle', None) is not None:
            self.close()

    def __getstate__(self) -> dict:
        return self.__dict__ | {'_handle': None}

    def _read_entry(self, entry: ZipEntry, title: str) -> bytes:
        """Read a file at its offset: `pread` moves no file position, so forked workers may share the handle."""
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY | getattr(os, 'O_CLOEXEC', 0))
        block = os.pread(self._handle, 256 + entry.packed, entry.offset)  # the local header, a name of usual length
        if len(block) < 30 or block[:4] != b'PK\3\4':
            raise BadImageError(f'{title}: the zip is damaged or has changed since it was opened')
        name_length, extra_length = struct.unpack('<HH', block[26:30])
        start = 30 + name_length + extra_length
        if start > 256:
            block = os.pread(self._handle, start + entry.packed, entry.offset)
        if zlib.crc32(block[30 : 30 + name_length]) != entry.name_crc:
            raise BadImageError(f'{title}: damaged in the zip (another file is in its place)')
        data = block[start : start + entry.packed]
        try:
            if entry.method == zipfile.ZIP_DEFLATED:  # at most one byte more than it should be: a bomb stops here
                data = zlib.decompressobj(-15).decompress(data, entry.size + 1)
        except zlib.error:
            data = b''
        if len(data) != entry.size or zlib.crc32(data) != entry.crc:
            raise BadImageError(f'{title}: damaged in the zip (wrong length or checksum)')
        return data


# ---------------------------------------------------------------------------------------------------------------- index


class _Contents:
    """What an archive holds, by name."""

    def __init__(self):
        self.images: list[str] = []
        self.label_files: list[str] = []
        self.folders: set[str] = set()
        self.others: Counter[str] = Counter()  # files that are not images, by their ending

    def add(self, name: str, can_be_read: bool = True) -> bool:
        """Record a file. False for one that is never read: hidden, or not an image."""
        if _is_hidden(name):
            return False
        if can_be_read and name[name.rfind('.') :].lower() in IMAGE_EXTENSIONS:
            self.images.append(name)
            return True
        folder, _, file = name.rpartition('/')
        ending = os.path.splitext(file)[1].lower()
        if can_be_read and file == LABEL_FILE:
            self.label_files.append(name)
        else:
            self.folders.add(folder)
            self.others[(ending or 'without an ending') if can_be_read else 'pipes or devices'] += 1
            return False
        return True

    def notes(self, images: list[str], sheets: list[str]) -> list[str]:
        """What was passed over, for the user: a line for files, one for sheets, one for folders without images."""
        lines, others = [], sorted(self.others.items(), key=lambda item: (-item[1], item[0]))
        if others:
            words = [f'{count} {printable(ending)[:20]}' for ending, count in others[:8]] + ['...'] * (len(others) > 8)
            lines.append(f'Passed over {self.others.total()} file(s) that are not images: {", ".join(words)}')
        if sheets:
            lines.append(f'Passed over {printable(", ".join(sheets))}: a sheet of the numbered images in its folder')
        full = _and_above({name.rpartition('/')[0] for name in images}) | {''}
        empty = sorted(f for f in _and_above(self.folders) - full if f.rpartition('/')[0] in full)
        if empty and images:
            words = [printable(folder) for folder in empty[:8]] + ['...'] * (len(empty) > 8)
            lines.append(f'No images in {len(empty)} folder(s): {", ".join(words)}')
        return lines


def _and_above(folders: Iterable[str]) -> set[str]:
    """The folders and all their parents, without the root."""
    found: set[str] = set()
    for folder in folders:
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition('/')[0]
    return found


def _sheets(names: list[str]) -> list[str]:
    """Every `grid.png` in a folder of images named by numbers: the sheet that `generate.py --grid` writes."""
    sheets = [name for name in names if f'/{name}'.endswith('/grid.png')]
    if not sheets:
        return []
    folders = {True: set(), False: set()}  # of images that are named by numbers, and of others
    for name in set(names).difference(sheets):
        folder, _, file = name.rpartition('/')
        folders[re.fullmatch(r'\d+\.png', file) is not None].add(f'top/{folder}'.rstrip('/'))
    numbered, others = _and_above(folders[True]), _and_above(folders[False])
    return [name for name in sheets if os.path.dirname(f'top/{name}') in numbered - others]


def _index_zip(path: Path, contents: _Contents) -> dict[str, tuple[int, ...] | str]:
    """Fill in the contents; returns a ZipEntry's numbers for each file, or why it cannot be read. Reads the directory
    only."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            end, infos = os.fstat(file.fileno()).st_size, archive.infolist()
    except Exception as error:  # zipfile raises nearly anything on damaged files
        raise ValueError(f'{printable(path)}: neither a folder nor a zip that can be read ({reason(error)})') from error
    entries: dict[str, tuple[int, ...] | str] = {}
    for info in infos:
        name = tidy_name(info.filename)
        if info.filename.endswith(('/', '\\')):
            if not _is_hidden(f'{name}/'):
                contents.folders.add(name)
        elif contents.add(name):
            complaint = _complaint(info, end)
            if name in entries:
                complaint = 'is the name of two files; repack the zip'
            if complaint is not None and name.rpartition('/')[2] != LABEL_FILE:
                raise ValueError(printable(f'{path}: {name} {complaint}'))
            raw = info.orig_filename.encode('utf-8' if info.flag_bits & 0x800 else 'cp437')  # as it is in the file
            place = (info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type)
            entries[name] = complaint or (*place, zlib.crc32(raw))
    places = np.array([e[:2] for e in entries.values() if not isinstance(e, str)], dtype=np.int64).reshape(-1, 2)
    places = places[places[:, 0].argsort()]
    if (places[:-1].sum(axis=1) + 30 > places[1:, 0]).any():
        raise ValueError(f'{printable(path)}: files overlap in this zip, so it is damaged')
    return entries


def _complaint(info: zipfile.ZipInfo, end: int) -> str | None:
    """Why a file in a zip of ``end`` bytes cannot be read, or None."""
    if info.flag_bits & 1:
        return 'is encrypted; repack the zip with `zip -0`'
    if info.compress_type not in (0, 8):  # stored, deflated
        return f'uses compression method {info.compress_type}; repack the zip with `zip -0`'
    if info.header_offset < 0 or info.header_offset + info.compress_size > end:
        place = f'{info.compress_size} bytes at position {info.header_offset}'
        return f'should be {place}, but the zip ends at {end}: it is damaged'
    if info.file_size > MAX_FILE:
        return f'has {info.file_size} bytes, more than the limit of {MAX_FILE}'
    return None


def _is_hidden(name: str) -> bool:
    """Hidden, in a hidden folder, or what macOS and disks add."""
    return name.startswith(('.', '__MACOSX/', 'lost+found/')) or '/.' in name or '/__MACOSX/' in name


def tidy_name(name: str) -> str:
    """The name of a file in a zip as a plain relative path: `./a`, `/a`, `b/../a`, `C:\\a` and `a` are one."""
    if not (name.startswith(('.', '/')) or '/.' in name or '//' in name or '\\' in name or name[1:2] == ':'):
        return name
    parts: list[str] = []
    for part in re.sub(r'^[A-Za-z]:/', '', name.replace('\\', '/')).split('/'):
        if part == '..':
            del parts[-1:]
        elif part not in ('', '.'):
            parts.append(part)
    return '/'.join(parts)


def _index_folder(folder: Path, contents: _Contents) -> dict:
    for entry, name in _files(folder, contents.folders):
        # A link that leads nowhere stays among the images: reading it names it.
        is_file = entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path) or not os.path.exists(entry.path)
        contents.add(name, can_be_read=is_file)
    return {}


def _files(root: Path, folders: set[str]) -> Iterator[tuple[os.DirEntry, str]]:
    """Files below a folder, hidden folders left out, with their paths from there; fills in the paths of folders. Links
    are followed, but not to a folder that they come from."""
    ways: Counter[tuple[int, int]] = Counter()
    waiting: list[tuple[str, frozenset]] = [('', frozenset())]  # folders, and those on the way to each
    while waiting:
        base, above = waiting.pop()
        folder = os.path.join(root, base)
        try:
            state = os.stat(folder)
            place = (state.st_dev, state.st_ino)
            if place in above:
                continue
            with os.scandir(folder) as scan:
                entries = list(scan)
        except OSError as error:
            advice = 'make it readable, or move it elsewhere'
            raise ValueError(f'{printable(folder)}: cannot be read ({reason(error)}): {advice}') from error
        ways[place] += 1
        if ways[place] > MAX_WAYS:
            raise ValueError(f'{printable(folder)}: links lead to this folder in more than {MAX_WAYS} ways')
        folders.add(base)
        for entry in entries:
            name = f'{base}/{entry.name}' if base else entry.name
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                if not _is_hidden(f'{entry.name}/'):
                    waiting.append((name, above | {place}))
            else:
                yield entry, name
