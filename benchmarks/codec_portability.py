"""Files of the codec decoded under another number of threads or instruction set than they were encoded under.

    ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=1 python -m benchmarks.codec_portability --network=NET --write=files.ddn
    ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=2 python -m benchmarks.codec_portability --network=NET --read=files.ddn

The first call encodes samples by the network's prior, and keeps the log-probabilities of the first one beside the file;
the second decodes all, counts failures, and prints the largest deviation of the log-probabilities in nats
(``entropy.MARGIN`` is what the format allows). PyTorch reads both variables when it starts.
"""

import os

import click
import torch

from cli.networks import load_network
from cli.options import script
from ddn_networks import samplers, tensor_files
from ddn_networks.code_streams import ROWS, Codec, Picture
from ddn_networks.codec import ArchiveWriter, read_archive
from dnnlib.util import atomic_write


@torch.no_grad()
def log_probabilities(made: Codec, codes: torch.Tensor) -> dict[str, torch.Tensor]:
    """log p of all codes of a latent [D], of each layer."""
    given = samplers.with_log_prior(samplers.given(codes[None]))
    return {str(i): x for i, x in enumerate(made.exact(given, 1, keep=True).log_prior)}


def write(made: Codec, path: str, num: int) -> None:
    with atomic_write(path) as file:
        archive = ArchiveWriter(file, made)
        for first in range(0, num, ROWS):
            _, codes = made.net.sample(seeds=range(first, min(first + ROWS, num)))
            archive.add([Picture(row[None]) for row in codes])
            if first == 0:
                tensor_files.save_tensors(f'{path}.log-p', log_probabilities(made, codes[0]), {})
        archive.close()


def read(made: Codec, path: str) -> tuple[int, int, float]:
    """Pictures, wrong or refused ones, and the largest deviation in nats. The codes that were written are those of the
    same samples here, which the prior chooses: they are compared by the checksums of the file."""
    num = failed = 0
    deviation = 0.0
    with open(path, 'rb') as file:
        records = read_archive(file, made)
        while True:
            try:
                picture, _ = next(records)
            except StopIteration:
                break
            except ValueError as error:
                click.echo(f'picture {num}: {error}')
                failed += 1
                break
            if num == 0:
                before, _ = tensor_files.load_tensors(f'{path}.log-p')
                here = log_probabilities(made, picture.codes[0])
                deviation = max((here[name] - x).abs().max().item() for name, x in before.items())
            num += 1
    return num, failed, deviation


@script(__file__)
@click.option('--network', metavar='FILE|URL', required=True, help='Network with a prior')
@click.option('--write', 'target', metavar='FILE', help='Encode and write this archive')
@click.option('--read', 'source', metavar='FILE', help='Decode this archive')
@click.option('--num', type=click.IntRange(min=1), default=1000, help='Pictures to encode')
def main(network, target, source, num):
    made = Codec(load_network(network), 'prior')
    if bool(target) == bool(source):
        raise ValueError('give --write or --read')
    where = f'{os.environ.get("ATEN_CPU_CAPABILITY", torch.backends.cpu.get_cpu_capability())}, threads: '
    where += str(torch.get_num_threads())
    if target:
        write(made, target, num)
        click.echo(f'{num:,} pictures encoded ({where})')
        return
    num, failed, deviation = read(made, source)
    click.echo(f'{num:,} pictures decoded ({where}), failures: {failed}, largest deviation {deviation:.1e} nats')


if __name__ == '__main__':
    main()
