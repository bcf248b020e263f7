"""Read a database of LMDB, as LSUN ships its images: damage is a ValueError, where liblmdb ends the process.

A file of pages (64-bit, little-endian; the structures of mdb.c). Two meta pages name the root of a B-tree, and the one
of the later transaction counts. Branch pages point to pages, leaf pages hold keys and values; a value that does not fit
there lies in overflow pages.
"""

import os
import struct
from array import array
from pathlib import Path
from typing import NamedTuple

from .readers import open_regular

HEADER = 16  # bytes before the content of a page: its number, flags, end of its pointers, start of its nodes
BRANCH, LEAF, OVERFLOW, META = 1, 2, 4, 8  # flags of a page
BIG = 1  # flag of a node whose value lies in overflow pages
MAGIC, VERSION = 0xBEEFC0DE, 1


class _Meta(NamedTuple):
    """What a meta page says: page size, entries, root page, last page, transaction."""

    size: int
    entries: int
    root: int
    last: int
    transaction: int


class LmdbFile:
    """The keys and values of ``data.mdb``, in the order of keys. Values are read when they are asked for.

    Raises ValueError or OSError for a file that is damaged, another one, or holds several databases.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.keys: list[bytes] = []
        self._starts, self._sizes = array('Q'), array('Q')  # of values; a start at a page is that of overflow pages
        with open_regular(path) as file:
            length = os.fstat(file.fileno()).st_size
            first = _read_meta(file.read(4096))
            self._page = first.size
            meta = max(first, _read_meta(os.pread(file.fileno(), 4096, self._page)), key=lambda m: m.transaction)
            self._length = (meta.last + 1) * self._page
            if self._length > length:
                raise ValueError('data.mdb is truncated')
            waiting, seen = [meta.root] if meta.entries else [], set()
            while waiting:
                number = waiting.pop()
                if number in seen:
                    raise ValueError('a page has two parents')
                seen.add(number)
                waiting += self._index_page(file.fileno(), number)[::-1]
        if len(self.keys) != meta.entries:
            raise ValueError(f'it has {len(self.keys)} entries in place of {meta.entries}')

    def __len__(self) -> int:
        return len(self.keys)

    def value(self, index: int) -> bytes:
        """The value of a key. ValueError where the file is damaged there."""
        start, size = self._starts[index], self._sizes[index]
        with open_regular(self.path) as file:
            if size and start % self._page == 0:
                self._read_page(file.fileno(), start // self._page, OVERFLOW)
                start += HEADER
            value = os.pread(file.fileno(), size, start)
        if len(value) != size:
            raise ValueError('data.mdb is truncated')
        return value

    def _read_page(self, handle: int, number: int, kinds: int) -> bytes:
        """A page, which must have one of the flags ``kinds``."""
        if not 2 <= number < self._length // self._page:
            raise ValueError(f'page {number} is outside of the file')
        data = os.pread(handle, self._page, number * self._page)
        if len(data) != self._page or struct.unpack_from('<Q', data)[0] != number or not data[10] & kinds:
            raise ValueError(f'page {number} is damaged')
        return data

    def _index_page(self, handle: int, number: int) -> list[int]:
        """Add the entries of a leaf page; returns the children of a branch page."""
        data, children = self._read_page(handle, number, BRANCH | LEAF), []
        (end,) = struct.unpack_from('<H', data, 12)
        if not HEADER <= end <= self._page:
            raise ValueError(f'page {number} is damaged')
        for at in struct.unpack_from(f'<{(end - HEADER) // 2}H', data, HEADER):
            if at + 8 > self._page:
                raise ValueError(f'page {number} is damaged')
            low, high, flags, key_size = struct.unpack_from('<4H', data, at)
            if data[10] & BRANCH:
                children.append(low | high << 16 | flags << 32)
                continue
            start, size = at + 8 + key_size, low | high << 16
            if flags & ~BIG:
                raise ValueError('it holds several databases, or several values of a key')
            if start + (8 if flags & BIG else size) > self._page:
                raise ValueError(f'page {number} is damaged')
            place = number * self._page + start
            if flags & BIG:
                place = struct.unpack_from('<Q', data, start)[0] * self._page
                if place + HEADER + size > self._length:
                    raise ValueError(f'page {number} is damaged')
            self.keys.append(data[at + 8 : start])
            self._starts.append(place)
            self._sizes.append(size)
        return children


def _read_meta(data: bytes) -> _Meta:
    if len(data) < HEADER + 136 or not data[10] & META or struct.unpack_from('<2I', data, HEADER) != (MAGIC, VERSION):
        raise ValueError('it does not begin as an lmdb of version 1')
    (size,) = struct.unpack_from('<I', data, HEADER + 24)
    if size not in {2**n for n in range(9, 17)}:
        raise ValueError(f'its pages have {size} bytes')
    return _Meta(size, *struct.unpack_from('<4Q', data, HEADER + 104))
