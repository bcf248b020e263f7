"""Entropy coding of codes: integer frequencies in, bytes out, by the range coder of ``constriction`` (PyPI).

Legend: K nodes, n cells of a layer.

Frequencies are integers, so that every machine has the same. A log-probability of the network's own prior is a float,
whose last bits differ between machines, and one that is rounded the other way loses the rest of a picture. Therefore
the prior is computed in float64, where implementations differ by about 1e-14 nats, and rounded to 1/16 nat; entries
within ``MARGIN`` of a boundary between two roundings are listed with their value, and the decoder takes it.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import constriction

STEP = 1 / 16  # nats
MARGIN = 1e-9  # nats; benchmarks/codec_portability.py prints the largest deviation between implementations
SCALE = 2**16  # frequency of a probability of 1
# Frequency of the rounded log-probability -j STEP. No entry is near a rounding boundary, so it is the same everywhere.
FREQUENCIES = np.array([max(1, round(SCALE * math.exp(-j * STEP))) for j in range(178)], dtype=np.int64)
ANOTHER = np.array([SCALE - 1, 1])  # frequencies of "no other entry is listed" and of "one more"


def coder() -> 'constriction.stream':
    """The module of the entropy coder. ModuleNotFoundError in one line where it is not installed."""
    try:
        import constriction
    except ImportError:
        raise ModuleNotFoundError("the codec needs `constriction`: pip install 'ddn-networks[codec]'") from None
    return constriction.stream


class Writer:
    """Symbols in, the shortest bytes that ``Reader`` turns into them out."""

    def __init__(self):
        stream = coder()
        self._encoder, self._family = stream.queue.RangeEncoder(), stream.model.Categorical(perfect=False)
        self._written: list[tuple[np.ndarray, np.ndarray]] = []

    def put(self, symbols: np.ndarray, frequencies: np.ndarray) -> None:
        """Symbols [n], and the frequencies of all of a symbol's values, [n, K] or [K] for all; integers below 2^53."""
        table = _table(frequencies, len(symbols))
        symbols = np.ascontiguousarray(symbols, dtype=np.int32)
        self._encoder.encode(symbols, self._family, table)
        self._written.append((symbols, table))

    def finish(self) -> bytes:
        """What was put. The coder fills up its last words; here bytes are left out as long as the symbols stay."""
        data = self._encoder.get_compressed().astype('>u4').tobytes()
        for length in range(max(0, len(data) - 12), len(data)):
            short = data[:length]
            up = (int.from_bytes(short, 'big') + 1).to_bytes(length + 1, 'big')  # the next number of as many bytes
            for candidate in (short, up[1:]) if length and not up[0] else (short,):
                if self._is_read_from(candidate):
                    return candidate
        return data

    def _is_read_from(self, data: bytes) -> bool:
        reader = Reader(data)
        try:
            return all((reader.get(table, len(symbols)) == symbols).all() for symbols, table in self._written)
        except ValueError:
            return False


class Reader:
    """The symbols of ``Writer``. ``fill``: the value of the bytes that follow the end of ``data``."""

    def __init__(self, data: bytes, fill: int = 0):
        stream = coder()
        data += bytes([fill]) * (-len(data) % 4 + 32)
        words = np.frombuffer(data, '>u4').astype(np.uint32)
        self._decoder, self._family = stream.queue.RangeDecoder(words), stream.model.Categorical(perfect=False)

    def get(self, frequencies: np.ndarray, num: int) -> np.ndarray:
        """The next ``num`` symbols, int64. ValueError where no symbol has these bytes."""
        try:
            return self._decoder.decode(self._family, _table(frequencies, num)).astype(np.int64)
        except AssertionError:
            raise ValueError('no codes have these bytes') from None


class CheckedReader:
    """``Reader`` of bytes that must be what ``Writer`` makes of the symbols. Symbols that cannot have come from so few
    bytes are a ValueError: damage that claims more of them ends there, not after all of them."""

    def __init__(self, data: bytes):
        self._data, self._reader, self._writer = data, Reader(data), Writer()
        self._left = 1.1 * 8 * len(data) + 64  # bits, with what the coder's own rounding of probabilities may save

    def get(self, frequencies: np.ndarray, num: int) -> np.ndarray:
        symbols = self._reader.get(frequencies, num)
        self._writer.put(symbols, frequencies)
        self._left -= np.minimum(symbol_bits(symbols, frequencies), 20).sum()
        if self._left < 0:
            raise ValueError('it is damaged: its codes need more bytes than it has')
        return symbols

    def is_whole(self) -> bool:
        """Whether the bytes are those of the symbols, no fewer and no more."""
        return self._writer.finish() == self._data


class PrefixReader:
    """The symbols that the first bytes of a stream decide, whatever bytes follow: those that are the same if only zeros
    follow and if only ones do. ``get`` returns fewer symbols than asked for where they end, and none after that."""

    def __init__(self, data: bytes):
        self._low, self._high, self._ended = Reader(data), Reader(data, 255), False

    def get(self, frequencies: np.ndarray, num: int) -> np.ndarray:
        found: list[int] = []
        table = _table(frequencies, num)
        while not self._ended and len(found) < num:
            one = table[len(found)][None]
            try:
                low, high = self._low.get(one, 1)[0], self._high.get(one, 1)[0]
            except ValueError:
                low, high = 0, 1
            self._ended = low != high
            if not self._ended:
                found.append(low)
        return np.array(found, dtype=np.int64)


def _table(frequencies: np.ndarray, num: int) -> np.ndarray:
    """[n, K] float64; the coder makes the same probabilities of the same integers everywhere."""
    return np.ascontiguousarray(np.broadcast_to(frequencies, (num, frequencies.shape[-1])), dtype=np.float64)


# ------------------------------------------------------------------------------------------------- the prior's integers


class Rounded(NamedTuple):
    """Log-probabilities as integers.

    steps: [n, K] int64, -log p in units of ``STEP``, at most the last of ``FREQUENCIES``.
    listed: [m] int64, places in ``steps.ravel()`` whose value another machine might round the other way.
    """

    steps: np.ndarray
    listed: np.ndarray

    @property
    def frequencies(self) -> np.ndarray:
        return FREQUENCIES[self.steps]


def rounded(log_p: np.ndarray, margin: float = MARGIN) -> Rounded:
    """log p [n, K] in nats, float64, rounded; entries within ``margin`` nats of a boundary are listed."""
    exact = np.clip(-log_p / STEP, 0, None)
    steps = np.minimum(np.floor(exact + 0.5), len(FREQUENCIES) - 1).astype(np.int64)
    near = np.abs(exact + 0.5 - np.round(exact + 0.5)) < margin / STEP
    near &= (exact > 0.25) & (exact < len(FREQUENCIES) - 1)  # beyond these both roundings are the same
    return Rounded(steps, np.flatnonzero(near))


def put_listed(writer: Writer, found: Rounded) -> None:
    """Write the list of an encoder."""
    for place in found.listed:
        writer.put(np.array([1]), ANOTHER)
        writer.put(np.array([place]), np.ones(found.steps.size))
        writer.put(found.steps.ravel()[place, None], np.ones(len(FREQUENCIES)))
    writer.put(np.array([0]), ANOTHER)


def get_listed(reader: 'CheckedReader | PrefixReader', own: Rounded) -> Rounded | None:
    """``own`` with the values that the encoder listed; None where the stream ends before."""
    steps = own.steps.copy()
    while True:
        more = reader.get(ANOTHER, 1)
        place = reader.get(np.ones(steps.size), 1) if more.any() else more[:0]
        value = reader.get(np.ones(len(FREQUENCIES)), 1) if len(place) else place
        if len(value):
            steps.ravel()[place] = value
        elif len(more) and not more.any():
            return Rounded(steps, own.listed)
        else:
            return None


def symbol_bits(symbols: np.ndarray, frequencies: Sequence | np.ndarray) -> np.ndarray:
    """-log2 of the probability of each of symbols [n], given frequencies [n, K] or [K]."""
    table = _table(np.asarray(frequencies), len(symbols))
    return -np.log2(table[np.arange(len(symbols)), symbols] / table.sum(1))


def bits(symbols: np.ndarray, frequencies: Sequence | np.ndarray) -> float:
    """-log2 of the probability of symbols [n], given frequencies [n, K]."""
    return float(symbol_bits(symbols, frequencies).sum())
