"""Speed of the codec against Pillow's formats: pictures per second of encoding and of decoding; and its memory.

    OMP_NUM_THREADS=1 python -m benchmarks.codec_speed --network=mnist --num=64

Pictures are samples of the network, all of them in one archive; Pillow's files are one each, at quality 50. Memory is
what is held besides the network, at most, while an archive of them is written and read, and one of ten times as many.
"""

import io
import tempfile
import time
from collections.abc import Callable

import click
import torch
from PIL import Image

from benchmarks import common
from cli import codec_files
from cli.networks import load_network
from cli.options import script
from cli.tables import markdown
from ddn_networks import codec
from ddn_networks.code_streams import MODELS, Codec, default_model
from ddn_networks.codec import ArchiveWriter, drawings, encoded
from dnnlib.images import to_image, to_uint8

BATCH = 64  # pictures at a time
PEERS = {'JPEG': {'format': 'JPEG'}, 'WebP': {'format': 'WEBP'}, 'AVIF': {'format': 'AVIF'}, 'PNG': {'format': 'PNG'}}


def seconds(work: Callable) -> tuple[float, object]:
    """Of the second call, and what it returns."""
    work()
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def row(name: str, num: int, encoding: float, decoding: float, length: int) -> dict:
    return {'codec': name, 'encode /s': num / encoding, 'decode /s': num / decoding, 'bytes': length / num}


def memory_of(network: str, path: str, num: int) -> dict:
    """A row: extra memory while an archive of ``num`` samples is written, and while it is read. In a fresh process."""
    net = load_network(network, device=torch.device('cpu'))
    coder = Codec(net, default_model(net))

    def write() -> None:
        with open(path, 'wb') as file:
            archive = ArchiveWriter(file, coder)
            for seeds in torch.arange(num).split(BATCH):
                images = net.sample(seeds=seeds.tolist())[0].clamp(-1, 1)
                archive.add(encoded(coder, images), [f'{seed:06}' for seed in seeds.tolist()])
            archive.close()

    def read() -> None:
        for _ in drawings(coder, codec_files.pictures(path, coder)):
            pass

    found = {name: common.extra_memory(call, calls=1) / 2**20 for name, call in (('encode', write), ('decode', read))}
    return {'pictures': num, **{f'{name} MB': value for name, value in found.items()}}


@script(__file__)
@click.option('--network', metavar='FILE|URL', required=True, help='Snapshot, run folder or shipped name')
@click.option('--num', type=click.IntRange(min=1), default=64, help='Pictures')
def main(network, num):
    net = load_network(network)
    images = net.sample(num)[0].clamp(-1, 1)
    rows = []
    for model in MODELS:
        try:
            Codec(net, model)
        except ValueError:  # it has no prior, or no counts
            continue
        encoding, data = seconds(lambda model=model: codec.encode(net, images, model=model))
        decoding, _ = seconds(lambda data=data: codec.decode(net, data))
        rows.append(row(f'codec, {model}', num, encoding, decoding, len(data)))
    pictures = [to_image(x) for x in to_uint8(images).numpy()]

    def saved(how: dict) -> list[bytes]:
        files = [io.BytesIO() for _ in pictures]
        for picture, file in zip(pictures, files, strict=True):
            picture.save(file, **how)
        return [file.getvalue() for file in files]

    for name, how in PEERS.items():
        how = how if name == 'PNG' else {**how, 'quality': 50}
        encoding, files = seconds(lambda how=how: saved(how))
        decoding, _ = seconds(lambda files=files: [Image.open(io.BytesIO(file)).convert('RGB') for file in files])
        rows.append(row(name, num, encoding, decoding, sum(map(len, files))))
    click.echo(f'{torch.get_num_threads()} threads\n\n{markdown(rows)}\n')
    with tempfile.TemporaryDirectory() as folder:
        path = f'{folder}/archive.ddn'
        click.echo(markdown([common.in_fresh_process(memory_of, network, path, n) for n in (num, 10 * num)]))


if __name__ == '__main__':
    main()
