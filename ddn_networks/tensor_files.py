"""Named tensors and a JSON text in one file: safetensors, written whole or not at all, and checked when it is read.

The header's metadata has two entries: ``ddn``, the JSON text, and ``sha256``, the digest of that text and of all
tensors, which files of earlier revisions do not have.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import struct
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import safe_open

_NAMES = {
    torch.float64: 'F64',
    torch.float32: 'F32',
    torch.float16: 'F16',
    torch.bfloat16: 'BF16',
    torch.int64: 'I64',
    torch.int32: 'I32',
    torch.int16: 'I16',
    torch.int8: 'I8',
    torch.uint8: 'U8',
    torch.bool: 'BOOL',
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Described(NamedTuple):
    """What a file says of a tensor that has not been read yet."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f'{list(self.shape)} {_NAMES[self.dtype]}'


class TensorFile:
    """An open file: its JSON ``meta``, and its tensors as ``described`` before any of them is read."""

    def __init__(self, path: str | os.PathLike, file: Any):
        self.path, self._file = path, file
        with one_line(f'{path} is not a whole safetensors file'):
            self.described = {name: _described(file.get_slice(name)) for name in file.keys()}
            entries = file.metadata() or {}
        with one_line(f'{path} is a safetensors file without the header of a DDN snapshot'):
            if 'ddn' not in entries or entries.keys() - {'ddn', 'sha256', 'format'}:
                raise ValueError(f'its entries are {", ".join(entries) or "none"}')
            self.meta = _parsed(entries['ddn'])
        self._text, self._sha256 = entries['ddn'], entries.get('sha256')

    def read(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        """The tensors of these names. ValueError where the file does not have the digest that its header names."""
        with one_line(f'{self.path} cannot be read'):
            tensors = {name: self._file.get_tensor(name) for name in self.described}  # mapped: no memory yet
            if self._sha256 not in (None, _digest(self._text, self.described, tensors.__getitem__)):
                raise ValueError('it is damaged, its contents do not have the SHA-256 digest in its header')
            return {name: tensors[name] for name in names}


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[TensorFile]:
    """The open file; ValueError or OSError in one line where it is damaged or another one."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f'{path} is not a file')  # a pipe would be waited for
    with contextlib.ExitStack() as stack:
        with one_line(f'{path} is not a whole safetensors file (cut off, or a pickle under another name?)'):
            file = stack.enter_context(safe_open(stack.enter_context(_utf8_name(path)), 'pt'))
        yield TensorFile(path, file)


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the JSON that ``save_tensors`` wrote. ValueError or OSError in one line where the file is damaged
    or another one, or where a tensor holds NaN or infinite values."""
    with opened(path) as file:
        tensors = file.read(file.described)
    require_finite(tensors, str(path))
    return tensors, file.meta


def save_tensors(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON-able ``meta`` as one safetensors file: whole under its name, or not at all.

    Raises:
        ValueError: a tensor holds NaN or infinite values.
        OSError: disk full, no permission, in one line.
    """
    held = {name: tensor.detach().to('cpu').contiguous() for name, tensor in tensors.items()}
    require_finite(held, f'{path} is not written')
    held = dict(sorted(held.items(), key=lambda item: (-item[1].element_size(), item[0])))  # aligned
    text = json.dumps(meta, allow_nan=False)
    described = {name: Described(tensor.dtype, tuple(tensor.shape)) for name, tensor in held.items()}
    header, end = {'__metadata__': {'ddn': text, 'sha256': _digest(text, described, held.__getitem__)}}, 0
    for name, (dtype, shape) in described.items():
        start, end = end, end + held[name].nbytes
        header[name] = {'dtype': _NAMES[dtype], 'shape': shape, 'data_offsets': [start, end]}
    head = json.dumps(header, separators=(',', ':')).encode()
    head += b' ' * (-len(head) % 8)
    with new_file(path) as f:
        f.write(struct.pack('<Q', len(head)) + head)
        for tensor in held.values():
            f.write(_bytes(tensor))


def misfit(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, Described], convertible: Collection[torch.dtype] = FLOATS
) -> str | None:
    """How the first tensor that is missing, or of another shape or type than ``expected``, differs; None if all fit.
    The types ``convertible`` stand for each other."""
    for name, tensor in expected.items():
        if name not in found:
            return f'{name} is missing'
        right = Described(tensor.dtype, tuple(tensor.shape))
        converts = right.dtype in convertible and found[name].dtype in convertible
        if found[name].shape != right.shape or not (converts or found[name].dtype == right.dtype):
            return f'{name} is {found[name]} in place of {right}'
    return None


def require_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """ValueError that begins with ``where`` and names the first of ``tensors`` with NaN or infinite values."""
    for name, tensor in tensors.items():
        # The sum is the faster test; it overflows only where values are huge.
        if tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite():
            if not tensor.isfinite().all():
                raise ValueError(f'{where}: {name} holds NaN or infinite values')


@contextlib.contextmanager
def _utf8_name(path: str | os.PathLike) -> Iterator[str]:
    """A name of the file that safetensors takes: a link to it where its own is not UTF-8."""
    try:
        name = os.fspath(path)
        name.encode()
        yield name
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = os.path.join(folder, 'link')
            os.symlink(os.path.abspath(path), link)
            yield link


@contextlib.contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turn whatever a damaged file raises, MemoryError and RecursionError included, into one line that begins with
    ``what``: an OSError or a ValueError."""
    try:
        yield
    except Exception as e:
        reason = ' '.join(str(e).split())[:300] or type(e).__name__
        kind = OSError if isinstance(e, OSError) else ValueError
        raise kind(f'{what}: {reason}') from None


def _described(part: Any) -> Described:
    if part.get_dtype() not in _DTYPES:
        raise ValueError(f'tensors of type {part.get_dtype()} are unknown here')
    return Described(_DTYPES[part.get_dtype()], tuple(part.get_shape()))


def _parsed(text: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError('a key is there twice')
        return dict(pairs)

    def refuse(literal: str) -> None:
        raise ValueError(f'{literal} is not JSON')

    meta = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    if not isinstance(meta, dict):
        raise ValueError('it is not a JSON object')
    return meta


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _digest(text: str, described: Mapping[str, Described], tensor: Callable[[str], torch.Tensor]) -> str:
    """SHA-256 of the JSON text and of all tensors with their names, types and shapes, in the order of names."""
    state = hashlib.sha256(text.encode())
    for name in sorted(described):
        dtype, shape = described[name]
        state.update(f'\n{name} {_NAMES[dtype]} {list(shape)}\n'.encode())
        state.update(_bytes(tensor(name)))
    return state.hexdigest()


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A file that appears at ``path`` when the block ends well; an exception leaves what was there before."""
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, 'xb') as f:  # not tempfile: the permissions are those of the user's umask
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException as e:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(e, OSError):
            reason = 'the disk is full' if e.errno in (errno.ENOSPC, errno.EDQUOT) else e.strerror or e
            raise OSError(e.errno, f'cannot write {path}: {reason}; nothing of it is left behind') from None
        raise
    with contextlib.suppress(OSError, AttributeError):  # so that the rename survives a power cut; not on every system
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
