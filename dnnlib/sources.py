"""Sources of datasets: a folder or zip of images, MNIST's idx files, CIFAR-10's archive, an LSUN database.

A source is asked for one image after the other. What is wrong with its file is a ValueError of one line.
"""

import contextlib
import gzip
import io
import math
import os
import pickle
import re
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image

from .archives import MAX_RATIO, ImageArchive
from .downloads import is_url, local_path
from .images import BadImageError, ImageHeader, open_image, read_header, to_image
from .labels import Labels, read_labels
from .lmdb_files import LmdbFile
from .readers import one_line, open_regular, printable, reason

IDX_NAME = re.compile(r'images([-.])idx3-ubyte(\.gz)?$')
MAX_CIFAR = 512 << 20  # bytes of cifar-10-python.tar, unpacked; it has 186 MB


class Source(Protocol):
    labels: Labels | None
    notes: list[str]  # for the user, before work begins

    def __len__(self) -> int: ...
    def title(self, index: int) -> str: ...  # what to call the image in messages
    def header(self, index: int) -> ImageHeader: ...  # raises BadImageError
    def image(self, index: int) -> Image.Image: ...  # mode L, RGB, RGBA; raises BadImageError
    def file(self, index: int) -> tuple[bytes, str] | None: ...  # content and extension, if it comes as a file


def open_source(path_or_url: str, split: str) -> Source:
    """Open a source of the kind that its name implies; ``split`` is train or test. Raises ValueError, OSError."""
    path = local_path(path_or_url)
    if path.is_dir():
        return LmdbSource(path) if path.name.endswith('_lmdb') or (path / 'data.mdb').is_file() else ArchiveSource(path)
    if IDX_NAME.search(path.name):
        return read_idx(path_or_url)
    if path.name.endswith(('.tar.gz', '.tgz', '.tar')):
        return read_cifar10(path, split)
    return ArchiveSource(path)


class ArchiveSource:
    """A folder or zip of image files."""

    def __init__(self, path: Path):
        self.archive = ImageArchive(path)
        self.labels = read_labels(self.archive)
        self.notes = self.archive.notes

    def __len__(self) -> int:
        return len(self.archive)

    def title(self, index: int) -> str:
        return printable(self.archive.name(index))

    def header(self, index: int) -> ImageHeader:
        return self.archive.header(index)

    def image(self, index: int) -> Image.Image:
        return open_image(self.archive.read(index), self.archive.title(index))

    def file(self, index: int) -> tuple[bytes, str]:
        return self.archive.read(index), os.path.splitext(self.archive.name(index))[1].lower()


class ArraySource:
    """Images that are held in memory: uint8 [N, C, H, W]."""

    def __init__(self, images: np.ndarray, labels: Labels | None, notes: list[str] | None = None):
        self.images, self.labels, self.notes = images, labels, notes or []

    def __len__(self) -> int:
        return len(self.images)

    def title(self, index: int) -> str:
        return f'image {index}'

    def header(self, index: int) -> ImageHeader:
        channels, height, width = self.images.shape[1:]
        return ImageHeader(width, height, channels, plain=True)

    def image(self, index: int) -> Image.Image:
        return to_image(self.images[index])

    def file(self, index: int) -> None:
        return None


# ----------------------------------------------------------------------------------------------------------------- LSUN


class LmdbSource:
    """An LSUN database: image files under arbitrary keys, no labels."""

    def __init__(self, path: Path):
        self.labels, self.notes = None, []
        with one_line(f'{path}: not an lmdb that can be read'):
            self.database = LmdbFile(path / 'data.mdb')
            if not self.database.keys:
                raise ValueError('it is empty')

    def __len__(self) -> int:
        return len(self.database)

    def title(self, index: int) -> str:
        return printable(f'key {self.database.keys[index].decode("ascii", "backslashreplace")}')

    def header(self, index: int) -> ImageHeader:
        return read_header(self.file(index)[0], self.title(index))

    def image(self, index: int) -> Image.Image:
        return open_image(self.file(index)[0], self.title(index))

    def file(self, index: int) -> tuple[bytes, str]:
        try:
            return self.database.value(index), '.webp'
        except (ValueError, OSError) as error:
            raise BadImageError(f'{self.title(index)}: cannot be read ({reason(error)})') from error


# ---------------------------------------------------------------------------------------------------------------- MNIST


def read_idx(path_or_url: str) -> ArraySource:
    """MNIST and the like: digits of 28x28 get a border of 2 zeros, as in EDM. Labels are in the file next to it."""
    images = _read_idx_array(local_path(path_or_url), 3)[:, None]  # [N, 1, H, W]
    if images.shape[2:] == (28, 28):
        images = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))  # [N, 1, 32, 32]
    label_file = IDX_NAME.sub(r'labels\1idx1-ubyte\2', str(path_or_url))
    if not is_url(label_file) and not Path(label_file).exists():
        return ArraySource(images, None, [f'No labels: there is no {printable(label_file)}'])
    values = _read_idx_array(local_path(label_file), 1).astype(np.int64)
    if len(values) != len(images):
        raise ValueError(f'{printable(label_file)}: {len(values)} labels for {len(images)} images')
    return ArraySource(images, Labels(values, None))


def _read_idx_array(path: Path, rank: int) -> np.ndarray:
    """uint8, of ``rank`` dimensions. What the header claims is checked before memory is taken."""
    with one_line(f'{path}: not a whole idx file of bytes'), _open_packed(path) as (file, length, is_packed):
        start = 4 + 4 * rank
        head = file.read(start)
        if head[:4] != bytes([0, 0, 8, rank]):
            raise ValueError('wrong first bytes')
        shape = struct.unpack(f'>{rank}I', head[4:])
        size, most = math.prod(shape), max(64 << 20, MAX_RATIO * length) if is_packed else length - start
        if not 0 < size <= most:
            raise ValueError(f'{length} bytes do not hold an array of {shape}')
        data = file.read(size + 1)
        if len(data) != size:
            raise ValueError(f'{len(data)} bytes are not an array of {shape}')
        return np.frombuffer(data, dtype=np.uint8).reshape(shape)


@contextlib.contextmanager
def _open_packed(path: Path) -> Iterator[tuple[BinaryIO, int, bool]]:
    """(file, its length on disk, whether it is a gzip): the content of a file, unpacked while it is read."""
    with open_regular(path) as raw:
        length = os.fstat(raw.fileno()).st_size
        is_packed = raw.read(2) == b'\x1f\x8b'
        raw.seek(0)
        if is_packed:
            with gzip.GzipFile(fileobj=raw) as file:
                yield file, length, True
        else:
            yield raw, length, False


# ------------------------------------------------------------------------------------------------------------- CIFAR-10


def read_cifar10(path: Path, split: str) -> ArraySource:
    """The 50,000 training (or 10,000 test) images of cifar-10-python.tar.gz, with their classes."""
    parts = ['test_batch'] if split == 'test' else [f'data_batch_{i}' for i in range(1, 6)]
    with one_line(f'{path}: not a whole cifar-10-python.tar.gz'):
        with _open_packed(path) as (file, _, _):
            content = file.read(MAX_CIFAR + 1)
        if len(content) > MAX_CIFAR:
            raise ValueError(f'it unpacks to more than {MAX_CIFAR} bytes')
        with tarfile.open(fileobj=io.BytesIO(content), mode='r:') as archive:
            batches = [_read_cifar_part(archive, name) for name in [*parts, 'batches.meta']]
        names = [name.decode() for name in batches.pop()[b'label_names']]
        images = np.concatenate([_cifar_images(batch) for batch in batches]).reshape(-1, 3, 32, 32)
        values = [label for batch in batches for label in batch[b'labels']]
        if len(values) != len(images):
            raise ValueError(f'{len(values)} labels for {len(images)} images')
        if not all(type(value) is int and 0 <= value < len(names) for value in values):
            raise ValueError(f'its labels are not all from 0 to {len(names) - 1}')
        return ArraySource(images, Labels(np.array(values, dtype=np.int64), names))


def _read_cifar_part(archive: tarfile.TarFile, name: str) -> dict:
    member = archive.getmember(f'cifar-10-batches-py/{name}')
    if not member.isreg() or member.issparse() or member.size > MAX_CIFAR:
        raise ValueError(f'{name} is not a plain file')
    with archive.extractfile(member) as file:
        content = _ArrayUnpickler(io.BytesIO(file.read()), encoding='bytes').load()
    if not isinstance(content, dict):
        raise ValueError(f'{name} holds no dict')
    return content


def _cifar_images(batch: dict) -> np.ndarray:
    """uint8 [n, 3072]"""
    data = batch[b'data']
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise ValueError('its images are not bytes of [n, 3072]')
    return data


class _ArrayUnpickler(pickle.Unpickler):
    """Loads dicts, lists, strings and NumPy arrays; a pickle that asks for anything else is refused, not run."""

    def find_class(self, module: str, name: str):
        if (module, name) in {('numpy', 'ndarray'), ('numpy', 'dtype')}:
            return getattr(np, name)
        if module in ('numpy.core.multiarray', 'numpy._core.multiarray') and name == '_reconstruct':
            return np.empty(0).__reduce__()[0]
        if (module, name) == ('_codecs', 'encode'):  # how Python 3 writes bytes in old protocols
            return _encode
        raise pickle.UnpicklingError(f'the file asks to load {module}.{name}: not a file of plain arrays, refused')


def _encode(text: str, encoding: str) -> bytes:
    return text.encode('latin1' if encoding in ('latin1', b'latin1') else 'ascii')
