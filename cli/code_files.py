"""Latents on disk: codes [N, D] as .npz, .npy or text, and in .npz what they are the codes of."""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dnnlib import readers
from dnnlib.downloads import local_path
from dnnlib.readers import printable
from dnnlib.util import atomic_write

MAX_TEXT = 256 << 20  # bytes of a text file


class CodeFile(NamedTuple):
    """codes: [N, D] int64. names: of the images, [N], or None. labels: class numbers [N] int64, or None. num_nodes: K
    of each code, [D] int64, or None. data: path of the images, or None. vectors: labels of D numbers, [N, D] float32,
    or None."""

    codes: np.ndarray
    names: np.ndarray | None = None
    labels: np.ndarray | None = None
    num_nodes: np.ndarray | None = None
    data: str | None = None
    vectors: np.ndarray | None = None


def read_code_file(path: str, partial: bool = False) -> CodeFile:
    """What ``write_code_file`` wrote, or codes alone; ``partial``: they may be -1, for a code that is free.

    Raises:
        OSError: no such file, or a download that fails.
        ValueError: a file that cannot be read, without codes, or with arrays that do not belong to them.
    """
    local = local_path(path)
    if path.endswith('.npz'):
        arrays = readers.read_npz(local, CodeFile._fields)
    elif path.endswith('.npy'):
        arrays = {'codes': readers.read_npy(local)}
    else:
        arrays = {'codes': _read_text(local)}
    name = printable(path)
    if 'codes' not in arrays:
        raise ValueError(f"{name} has no array named 'codes'")
    codes = arrays['codes']
    if codes.dtype.kind not in 'iu':
        raise ValueError(f'{name} holds {codes.dtype}, not integers')
    if codes.ndim != 2 or not codes.size:
        raise ValueError(f'{name} holds no codes: its integers are {list(codes.shape)}, not [images, codes]')
    found = {key: _checked(name, key, array, codes.shape, partial) for key, array in arrays.items()}
    return CodeFile(**found)


def _checked(
    name: str, key: str, array: np.ndarray, shape: tuple[int, int], partial: bool = False
) -> np.ndarray | str:
    """An array of a file with codes of ``shape`` (N, D), in the type that ``CodeFile`` has. Raises ValueError."""
    N, D = shape
    kinds, axes, words = {
        'codes': ('iu', (N, D), 'codes [N, D]'),
        'names': ('U', (N,), 'names [N]'),
        'labels': ('iu', (N,), 'class numbers [N]'),
        'num_nodes': ('iu', (D,), 'numbers of nodes [D]'),
        'data': ('U', (), 'the path of the images'),
        'vectors': ('f', (N, *array.shape[1:2]), 'vectors [N, D]'),
    }[key]
    if array.dtype.kind not in kinds or array.shape != axes:
        found = f'{array.dtype} {list(array.shape)}'
        raise ValueError(f"{name}: the array '{key}' is {found}, not {words} of its {N} codes")
    if kinds == 'U':
        return str(array) if key == 'data' else array
    if kinds == 'f':
        array = array.astype(np.float64)
        if not (np.abs(array) <= np.finfo(np.float32).max).all():
            raise ValueError(f"{name}: the array '{key}' holds NaN, or numbers too large")
        return array.astype(np.float32)
    least = -1 if partial and key == 'codes' else 0
    if array.size and not least <= int(array.min()) <= int(array.max()) <= np.iinfo(np.int64).max:
        raise ValueError(f"{name}: the array '{key}' holds {array.min()} to {array.max()}; they start at {least}")
    return array.astype(np.int64)


def _read_text(path: Path) -> np.ndarray:
    data = readers.read_bytes(path, MAX_TEXT)
    with readers.one_line(f'{path} holds no codes: it should be text, the integers of an image in each line'):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # that it is empty, which the caller finds
            return np.loadtxt(io.StringIO(data.decode()), dtype=np.int64, ndmin=2)


def write_code_file(path: str, file: CodeFile) -> None:
    """As .npz with all that is known, codes in the smallest type, whole or not at all."""
    codes = file.codes.astype(np.min_scalar_type(int(file.codes.max(initial=0))))
    more = {key: value for key, value in file._asdict().items() if key != 'codes' and value is not None}
    with atomic_write(path) as f:
        np.savez_compressed(f, codes=codes, **more)


def write_codes(path: str, codes: np.ndarray) -> None:
    """Codes [N, D] alone: .npz or .npy by their endings, else text."""
    with atomic_write(path) as f:
        if path.endswith('.npz'):
            np.savez(f, codes=codes)
        elif path.endswith('.npy'):
            np.save(f, codes)
        else:
            np.savetxt(f, codes, fmt='%d')
