"""Latents on disk: codes [N, L] as .npz, .npy or text, and with them, in .npz, what they are the codes of."""

import warnings
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from dnnlib.downloads import local_path
from dnnlib.util import atomic_write


class CodeFile(NamedTuple):
    """codes: [N, L] int64. names: of the images, [N], or None. labels: class numbers [N] int64, or None. num_nodes: K
    of each layer, [L], or None. data: path of the images, or None. vectors: labels of D numbers, [N, D] float32, or
    None."""

    codes: np.ndarray
    names: np.ndarray | None = None
    labels: np.ndarray | None = None
    num_nodes: np.ndarray | None = None
    data: str | None = None
    vectors: np.ndarray | None = None


def read_code_file(path: str) -> CodeFile:
    """What ``write_code_file`` wrote, or codes alone; ValueError in one line where there are none."""
    more = {}
    try:
        if path.endswith('.npz'):
            with open(local_path(path), 'rb') as f, np.load(f, allow_pickle=False) as archive:
                codes = archive['codes']
                more = {key: archive[key] for key in CodeFile._fields[1:] if key in archive}
        elif path.endswith('.npy'):
            codes = np.load(local_path(path), allow_pickle=False)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # that it is empty, which is an error below
                codes = np.loadtxt(local_path(path), dtype=np.int64, ndmin=2)
    except KeyError:
        raise ValueError(f"{path} has no array named 'codes'") from None
    except (ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise ValueError(f'{path} holds no codes (integers, one image per line): {e}') from None
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f'{path} holds {codes.dtype}, not integers')
    if codes.ndim != 2 or not codes.size:
        raise ValueError(f'{path} holds no codes: its integers are {list(codes.shape)}, not [images, layers]')
    for key, kinds, ndim, words in (('labels', 'iu', 1, 'class numbers [N]'), ('vectors', 'f', 2, 'vectors [N, D]')):
        values = more.get(key)
        if values is None:
            continue
        if values.dtype.kind not in kinds or values.ndim != ndim or len(values) != len(codes):
            found = f'{values.dtype} {list(values.shape)}'
            raise ValueError(f"{path}: the array '{key}' is {found}, not {words} of its {len(codes)} codes")
    if 'data' in more:
        more['data'] = str(more['data'])
    return CodeFile(codes.astype(np.int64), **more)


def write_code_file(path: str, file: CodeFile) -> None:
    """As .npz with all that is known, codes in the smallest type, whole or not at all."""
    codes = file.codes.astype(np.min_scalar_type(int(file.codes.max(initial=0))))
    more = {key: value for key, value in file._asdict().items() if key != 'codes' and value is not None}
    with atomic_write(path) as f:
        np.savez_compressed(f, codes=codes, **more)


def write_codes(path: str, codes: np.ndarray) -> None:
    """Codes [N, L] alone: .npz or .npy by their endings, else text."""
    with atomic_write(path) as f:
        if path.endswith('.npz'):
            np.savez(f, codes=codes)
        elif path.endswith('.npy'):
            np.save(f, codes)
        else:
            np.savetxt(f, codes, fmt='%d')
