"""Damaged, foreign and wrong files of the codec: each must be refused in one line, at once, without much memory.

    python -m benchmarks.codec_damage --network=digits --out=benchmarks/results/codec_damage

A third of the files hold one picture, a third one in tiles, a third an archive, whose pictures before the damage must
be the right ones (``codec.py decode --recover`` writes them). Files are read as ``codec.py`` reads them, and the
undamaged ones first.
"""

import copy
import io
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence

import click
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks import common
from cli import codec_files
from cli.networks import load_network
from cli.options import script
from ddn_networks import Network, codec
from ddn_networks.code_streams import Codec

OUTCOMES = ('one line', 'undamaged', 'WRONG PICTURES', 'SEVERAL LINES')


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def replaced(data: bytes, rng: random.Random) -> bytes:
    """Random bytes in the middle, in place of others or beside them."""
    at, length = rng.randrange(len(data)), rng.randint(1, 16)
    return data[:at] + rng.randbytes(length) + data[at + length * rng.randrange(2) :]


def foreign(data: bytes, rng: random.Random) -> bytes:
    """A PNG, text, noise, or noise after the first bytes of a file."""
    kind, noise = rng.randrange(4), rng.randbytes(rng.randint(0, 5000))
    if kind == 0:
        file = io.BytesIO()
        Image.new('L', (rng.randint(1, 64), 8), rng.randrange(256)).save(file, 'png')
        return file.getvalue()
    return noise.hex().encode() if kind == 1 else noise if kind == 2 else data[: rng.randint(1, 34)] + noise


def outcome(path: str, made: Codec, codes: Sequence[torch.Tensor]) -> str:
    """What becomes of reading a file. ``codes``: [T, D] of each picture of the undamaged one."""
    read = []
    try:
        for picture, _ in codec_files.pictures(path, made):
            read.append(picture.codes)
        found = 'undamaged'
    except ValueError as error:
        found = 'one line' if '\n' not in str(error) else 'SEVERAL LINES'
    right = len(read) <= len(codes) and all(torch.equal(a, b) for a, b in zip(read, codes, strict=False))
    return found if right else 'WRONG PICTURES'


def changed(net: Network) -> Network:
    """A network that differs in one weight."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1
    return other


@script(__file__)
@click.option('--network', metavar='FILE|URL', required=True, help='Snapshot, run folder or shipped name')
@click.option('--num', type=click.IntRange(min=1), default=1000, help='Files')
@click.option('--pictures', type=click.IntRange(min=1), default=3, help='Pictures of an archive')
@common.OUT
def main(network, num, pictures, out):
    facts, rng = common.machine(clock='cpu'), random.Random(0)
    made = Codec(load_network(network))
    images, _ = made.net.sample(pictures)
    parts = images[:1], images, F.interpolate(images[:1], scale_factor=2.0)
    codes = [[picture.codes for picture in codec.encoded(made, x)] for x in parts]
    files, of_other = ([codec.encode(net, x) for x in parts] for net in (made.net, changed(made.net)))
    kinds: dict[str, Callable] = {
        'flipped bit': lambda i: flipped(files[i], rng), 'truncated': lambda i: truncated(files[i], rng),
        'bytes replaced or added': lambda i: replaced(files[i], rng), 'foreign': lambda i: foreign(files[i], rng),
        'of another network': lambda i: of_other[i],
    }  # fmt: skip
    counts, slowest = {kind: Counter() for kind in kinds}, dict.fromkeys(kinds, 0.0)

    def read(data: bytes, i: int, folder: str) -> str:
        path = os.path.join(folder, 'file.ddn')
        with open(path, 'wb') as file:
            file.write(data)
        return outcome(path, made, codes[i])

    def run() -> None:
        for n in range(num):
            kind, i = list(kinds)[n % len(kinds)], n // len(kinds) % len(files)
            data, start = kinds[kind](i), time.process_time()
            found = read(data, i, folder)
            slowest[kind] = max(slowest[kind], time.process_time() - start)
            counts[kind]['WRONG PICTURES' if found == 'undamaged' and data != files[i] else found] += 1

    with tempfile.TemporaryDirectory() as folder:
        for i, data in enumerate(files):
            if (found := read(data, i, folder)) != 'undamaged':
                raise ValueError(f'{network}: an undamaged file is refused: {found}')
        memory = common.extra_memory(run, calls=1)
    rows = [{'files': kind, **{name: counts[kind][name] for name in OUTCOMES}, 'slowest, CPU ms': 1000 * slowest[kind]}
            for kind in kinds]  # fmt: skip
    caption = (
        f'{os.path.basename(network)}, {num:,} files of {", ".join(str(len(file)) for file in files)} bytes; beyond '
        f'what undamaged files take, {memory / 2**20:.0f} MiB of memory at most:'
    )
    common.report('Codec: damaged, foreign and wrong files', facts, {caption: rows}, out)


if __name__ == '__main__':
    main()
