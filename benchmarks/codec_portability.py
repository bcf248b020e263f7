"""Files of the codec decoded under other numbers of threads and instruction sets than they were encoded under.

    python -m benchmarks.codec_portability --network=NET --data=faces64-test.zip --out=benchmarks/results/NAME

Held-out images are encoded by the network's prior in one process, with one thread and the fastest instructions, and
decoded in others, which compare all codes and the log-probabilities of the first images. ``entropy.MARGIN`` is what
the format allows these to differ by.
"""

import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import click
import torch

from benchmarks import common
from cli.networks import load_network
from cli.options import script
from ddn_networks import entropy, samplers, tensor_files
from ddn_networks.code_streams import ROWS, Codec, Picture
from ddn_networks.codec import ArchiveReader, ArchiveWriter
from dnnlib.util import atomic_write
from experiments.common import pictures, spread

COMPARED = 16  # images whose log-probabilities are compared
# Read when a process starts, by PyTorch for its own kernels (here without AVX) and by MKL (here with SSE2 only).
ENCODER = {'OMP_NUM_THREADS': '1'}
DECODERS = (
    {'OMP_NUM_THREADS': '2', 'ATEN_CPU_CAPABILITY': 'default'},
    {'OMP_NUM_THREADS': '1', 'ATEN_CPU_CAPABILITY': 'default', 'MKL_CBWR': 'COMPATIBLE'},
)


class Decoded(NamedTuple):
    """Pictures, those whose codes differ or are refused, and the largest deviation in nats."""

    num: int
    failed: int
    deviation: float


def in_processes(environments: Sequence[dict[str, str]], fn: Callable, *args: Any) -> list[Any]:
    """``fn(*args)`` in a new process for each of these sets of environment variables, all at once."""
    before, futures = dict(os.environ), []
    with contextlib.ExitStack() as stack:
        for variables in environments:
            pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn'))
            try:
                os.environ.update(variables)
                futures.append(stack.enter_context(pool).submit(fn, *args))  # the process starts here
            finally:
                os.environ.clear()
                os.environ.update(before)
        return [future.result() for future in futures]


@torch.no_grad()
def log_probabilities(made: Codec, codes: torch.Tensor) -> dict[str, torch.Tensor]:
    """log p of all answers of each layer, given codes [B, D], one image at a time."""
    found = [made.exact(samplers.with_log_prior(samplers.given(row[None])), 1, keep=True).log_prior for row in codes]
    return {str(i): torch.cat(layer) for i, layer in enumerate(zip(*found, strict=True))}


def write(network: str, data: str, path: str, num: int) -> None:
    """Encode images, and keep beside the archive what its codes are."""
    made = Codec(load_network(network), 'prior')
    images, kept = pictures(data, made.net, spread(data, num)), []
    with atomic_write(path) as file:
        archive = ArchiveWriter(file, made)
        for part in images.split(ROWS):
            kept.append(made.net.encode(part))
            archive.add([Picture(row[None]) for row in kept[-1]])
        archive.close()
    codes = torch.cat(kept)
    tensor_files.save_tensors(f'{path}.codes', {'codes': codes, **log_probabilities(made, codes[:COMPARED])}, {})


def read(network: str, path: str) -> Decoded:
    """Decode an archive, each picture alone."""
    made = Codec(load_network(network), 'prior')
    before, _ = tensor_files.load_tensors(f'{path}.codes')
    codes, failed = before.pop('codes'), 0
    with open(path, 'rb') as file:
        reader = ArchiveReader(file)
        made.check(reader.header)
        for row, record in zip(codes, reader, strict=True):
            try:
                (picture,) = made.read([record.stream], [record.sized])
                failed += not torch.equal(picture.codes, row[None])
            except ValueError:
                failed += 1
    here = log_probabilities(made, codes[:COMPARED])
    return Decoded(len(codes), failed, max((here[name] - x).abs().max().item() for name, x in before.items()))


def in_words(variables: dict[str, str]) -> str:
    """The environment of a process."""
    return ', '.join(f'{name}={value}' for name, value in variables.items())


@script(__file__)
@click.option('--network', metavar='FILE|URL', required=True, help='Network with a prior')
@click.option('--data', metavar='ZIP|DIR', required=True, help="Images of the network's shape")
@click.option('--num', type=click.IntRange(min=1), default=1000, help='Images, spread evenly over them')
@common.OUT
def main(network, data, num, out):
    facts = common.machine()
    caption = (
        f'{os.path.basename(network)}, images of {os.path.basename(data)}; deviations are of the log-probabilities of '
        f'{min(num, COMPARED)} of them, {entropy.MARGIN:.0e} is what the format allows:'
    )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'pictures.ddn')
        in_processes([ENCODER], write, network, data, path, num)
        rows = [
            {'encoded with': in_words(ENCODER), 'decoded with': in_words(variables), 'images': found.num,
             'failures': found.failed, 'largest deviation, nats': f'{found.deviation:.1e}'}
            for variables, found in zip(DECODERS, in_processes(DECODERS, read, network, path), strict=True)
        ]  # fmt: skip
    common.report('Codec: decoding under other threads and instruction sets', facts, {caption: rows}, out)


if __name__ == '__main__':
    main()
