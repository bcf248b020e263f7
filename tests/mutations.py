"""Damaged copies of files for the fuzz tests: seeded, so that a failure repeats."""

import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

# Code whose output is the most memory that its process has had, in KiB. (ru_maxrss is that of its parent, too.)
PRINT_PEAK = r'import re; print(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1])'
EXTREMES = (0, 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def mutations(data: bytes, num: int, seed: int = 0) -> Iterator[bytes]:
    """``num`` damaged copies of ``data``: flipped bits, cut ends, lost, repeated, zeroed and random blocks, and
    integers replaced by extreme ones. Half of them touch the first 512 bytes, where formats keep what they claim."""
    rng = random.Random(seed)

    def place(length: int) -> int:
        end = len(data) - length
        return rng.randint(0, max(0, min(end, 512) if rng.random() < 0.5 else end))

    def flip_bits() -> bytes:
        made = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            made[place(1)] ^= 1 << rng.randrange(8)
        return bytes(made)

    def replace(length: int, by: Callable[[bytes], bytes]) -> bytes:
        at = place(length)
        return data[:at] + by(data[at : at + length]) + data[at + length :]

    def integer() -> bytes:
        size, code = rng.choice(((2, 'H'), (4, 'I'), (8, 'Q')))
        value = rng.choice(EXTREMES) % 2 ** (8 * size)
        return replace(size, lambda _: struct.pack(rng.choice('<>') + code, value))

    kinds = (
        flip_bits,
        lambda: data[: rng.randrange(len(data))],
        lambda: replace(rng.randint(1, 64), lambda _: b''),
        lambda: replace(rng.randint(1, 64), lambda block: block * 2),
        lambda: replace(rng.randint(1, 64), lambda block: bytes(len(block))),
        lambda: replace(rng.randint(1, 64), lambda block: rng.randbytes(len(block))),
        lambda: data + rng.randbytes(rng.randint(1, 64)),
        integer,
    )
    for i in range(num):
        yield kinds[i % len(kinds)]()


def outcome(read: Callable[[], Any]) -> Any:
    """What ``read`` returns, or the ValueError or OSError that it raised, of one line. Anything else fails the test."""
    try:
        return read()
    except (ValueError, OSError) as error:
        assert not isinstance(error, UnicodeError), f'a decoder speaks instead of the reader: {error!r}'
        text = str(error)
        assert text and '\n' not in text.strip(), f'not one line: {text!r}'
        return error
