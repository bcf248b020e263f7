"""Damaged files of the codec: each must be refused in one line, at once, or be the undamaged file.

    python -m benchmarks.codec_damage --network=mnist --num=1000

Half of the files hold one picture, half an archive.
"""

import io
import random
import time
from collections import Counter

import click
import torch

from cli.networks import load_network
from cli.options import script
from ddn_networks import codec
from ddn_networks.code_streams import Codec, read_header


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A copy with flipped bits, cut off, of random bytes in the middle, or with more bytes."""
    kind, at = rng.randrange(4), rng.randrange(len(data))
    if kind == 0:
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 1:
        return data[:at]
    length = rng.randint(1, 16)
    return data[:at] + rng.randbytes(length) + data[at + length * (kind == 2) :]


def read(data: bytes, made: Codec) -> int:
    """The number of pictures of a file. ValueError where it is damaged."""
    if not read_header(data).archive:
        made.picture(data)
        return 1
    return sum(1 for _ in codec.read_archive(io.BytesIO(data), made))


@script(__file__)
@click.option('--network', metavar='FILE|URL', required=True, help='Snapshot, run folder or shipped name')
@click.option('--num', type=click.IntRange(min=1), default=1000, help='Damaged files')
@click.option('--pictures', type=click.IntRange(min=1), default=3, help='Pictures of every second file')
def main(network, num, pictures):
    net, rng = load_network(network), random.Random(0)
    made, files = Codec(net), []
    for count in (1, pictures):
        images, _ = net.sample(count, uniform=True)
        files.append(codec.encode(net, images))
    outcomes, slowest = Counter(), 0.0
    for i in range(num):
        data = damaged(files[i % 2], rng)
        start = time.perf_counter()
        try:
            read(data, made)
            outcomes['undamaged' if data == files[i % 2] else 'NOT NOTICED'] += 1
        except ValueError as error:
            outcomes['one line' if '\n' not in str(error) else 'SEVERAL LINES'] += 1
        slowest = max(slowest, time.perf_counter() - start)
    click.echo(', '.join(f'{name}: {count}' for name, count in sorted(outcomes.items())))
    click.echo(f'slowest: {1000 * slowest:.0f} ms; {torch.get_num_threads()} threads')


if __name__ == '__main__':
    main()
