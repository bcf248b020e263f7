"""Read files that others wrote: plain bytes, JSON, .npy, .npz. A file that cannot be used is a ValueError of one line.

The readers check the format only. Which keys, shapes and values a file should have is for the caller to check; numbers
in JSON may be infinite (``1e999``) and arrays may hold NaN.
"""

import contextlib
import json
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

import numpy as np

MAX_JSON = 256 << 20  # bytes of a JSON file; parsed it takes about ten times as much
MAX_ARRAYS = 4 << 30  # bytes of all arrays that are read from one .npy or .npz
CHUNK = 1 << 20

PathOrBytes = str | os.PathLike | bytes


def printable(text: Any) -> str:
    """``str(text)`` in one line that any terminal can show: control characters and bytes that are not UTF-8 become
    escapes. Use it for every file name in a message."""
    text = str(text)
    if text.isprintable():
        return text
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text)


def reason(error: BaseException) -> str:
    """What went wrong, in one short line."""
    if isinstance(error, MemoryError):
        return 'not enough memory'
    if isinstance(error, RecursionError):
        return 'nested too deeply'
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = text.strip().splitlines()
    return printable(lines[0][:200]) if lines else type(error).__name__


@contextlib.contextmanager
def one_line(complaint: str) -> Iterator[None]:
    """Turn every exception in the block, MemoryError and RecursionError included, into a ValueError of one line:
    ``complaint (reason)``."""
    try:
        yield
    except Exception as error:
        raise ValueError(f'{printable(complaint)} ({reason(error)})') from error


def open_regular(path: str | os.PathLike, limit: int | None = None) -> BinaryIO:
    """Open a regular file for reading. OSError for a folder, pipe, socket or device, which is never waited for, and for
    a file of more than ``limit`` bytes."""
    handle = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0))
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(None, 'not a regular file', str(path))
        if limit is not None and state.st_size > limit:
            raise OSError(None, f'it is larger than {limit} bytes', str(path))
        return open(handle, 'rb')
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: str | os.PathLike, limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes. Raises ValueError."""
    with one_line(f'{path} cannot be read'), open_regular(path, limit) as file:
        return file.read()


def read_json(source: PathOrBytes, what: str | None = None) -> Any:
    """Parse a JSON file, or the bytes of one; at most ``MAX_JSON`` bytes.

    Args:
        source: path, or bytes.
        what: name of the file in errors; its path by default.

    Raises:
        ValueError: it cannot be read, is too large, is not JSON, nests too deeply, has a key twice, or holds NaN
            or Infinity.
    """
    what = what or ('JSON' if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else read_bytes(source, MAX_JSON)
    with one_line(f'{what} is not JSON'):
        if len(data) > MAX_JSON:
            raise ValueError(f'it is larger than {MAX_JSON} bytes')
        return json.loads(data, parse_constant=_no_constant, object_pairs_hook=_unique)


def _no_constant(name: str) -> None:
    raise ValueError(f'{name} is not a JSON number')


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError('an object has one key twice')
    return found


def read_npy(path: str | os.PathLike, max_bytes: int = MAX_ARRAYS) -> np.ndarray:
    """Read an array of numbers, truth values or text from a .npy file.

    Raises:
        ValueError: it cannot be read, is not a whole .npy, holds objects, or is larger than ``max_bytes``.
    """
    with one_line(f'{path} is not a .npy file that can be read'), open_regular(path) as file:
        return _read_array(file, os.fstat(file.fileno()).st_size, max_bytes)


def read_npz(
    path: str | os.PathLike, keys: Collection[str] | None = None, max_bytes: int = MAX_ARRAYS
) -> dict[str, np.ndarray]:
    """Read arrays of numbers, truth values or text from a .npz file.

    Args:
        path: a local path.
        keys: read these arrays only, where they exist; None reads all.
        max_bytes: most bytes of all arrays together.

    Raises:
        ValueError: it cannot be read, is not a whole .npz, holds objects, or is larger than ``max_bytes``.
    """
    arrays: dict[str, np.ndarray] = {}
    with one_line(f'{path} is not an .npz file that can be read'), open_regular(path) as file:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                key = entry.filename.removesuffix('.npy')
                if key == entry.filename or keys is not None and key not in keys:
                    continue
                if key in arrays:
                    raise ValueError(f'it has two arrays named {key!r}')
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f'{key!r} uses compression method {entry.compress_type}')
                with archive.open(entry) as member, one_line(f'array {key!r}'):
                    arrays[key] = _read_array(member, entry.file_size, max_bytes)
                max_bytes -= arrays[key].nbytes
    return arrays


def _read_array(file: BinaryIO, size: int, max_bytes: int) -> np.ndarray:
    """One array in .npy format from a file of ``size`` bytes. Its claims are checked before memory is taken."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f'version {version[0]}.{version[1]} of .npy holds no plain array')
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the parser, about odd characters
        shape, fortran_order, dtype = read_header(file)
    if dtype.kind not in 'biufcSU':
        raise ValueError(f'it holds {dtype}, not numbers or text')
    there, num_bytes = size - file.tell(), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or num_bytes != there:
        raise ValueError(f'its header claims {num_bytes} bytes of {dtype} {list(shape)}, the file has {there}')
    if num_bytes > max_bytes:
        raise ValueError(f'its arrays take more than {max_bytes} bytes')
    data = bytearray()
    while len(data) < num_bytes and (chunk := file.read(min(CHUNK, num_bytes - len(data)))):
        data += chunk
    if len(data) != num_bytes:
        raise ValueError(f'it ends after {len(data)} of {num_bytes} bytes')
    array = np.frombuffer(data, dtype).reshape(shape[::-1] if fortran_order else shape)
    return array.T if fortran_order else array
