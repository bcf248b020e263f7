"""Speed of the codec against Pillow's formats: pictures per second of encoding and of decoding; and its memory.

    OMP_NUM_THREADS=1 python -m benchmarks.codec_speed --network=mnist --num=64

Pictures are samples of the network, all of them in one archive; Pillow's files are one each, at quality 50. Memory is
the most that ``codec.py`` holds (resident) while it encodes and decodes an archive of them, and of ten times as many.
"""

import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from PIL import Image

from cli.networks import load_network
from cli.options import script
from cli.tables import markdown
from ddn_networks import codec
from ddn_networks.code_streams import MODELS, Codec
from dnnlib.images import to_image, to_uint8

PEERS = {'JPEG': {'format': 'JPEG'}, 'WebP': {'format': 'WEBP'}, 'AVIF': {'format': 'AVIF'}, 'PNG': {'format': 'PNG'}}


def seconds(work: Callable) -> tuple[float, object]:
    """Of the second call, and what it returns."""
    work()
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def row(name: str, num: int, encoding: float, decoding: float, length: int) -> dict:
    return {'codec': name, 'encode /s': num / encoding, 'decode /s': num / decoding, 'bytes': length / num}


def peak(*arguments: str) -> float:
    """The most MB that ``codec.py`` with these arguments held. RuntimeError if it fails."""
    command = [sys.executable, 'codec.py', *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f'{" ".join(command)}: exit status {process.returncode}')
    return usage.ru_maxrss / 1024


def memory(network: str, images: torch.Tensor, nums: list[int]) -> list[dict]:
    """A row for each number of pictures, which repeat ``images`` [N, C, H, W]."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / 'pictures').mkdir()
        made = 0
        for num in nums:
            for i in range(made, num):
                to_image(to_uint8(images[i % len(images)]).numpy()).save(folder / f'pictures/{i:06}.png')
            made = num
            archive, drawn = str(folder / f'{num}.ddn'), str(folder / f'{num}')
            options = f'--network={network}', '--device=cpu'
            encoding = peak('encode', str(folder / 'pictures'), *options, f'--dest={archive}')
            decoding = peak('decode', archive, *options, f'--outdir={drawn}')
            rows.append({'pictures': num, 'encode MB': encoding, 'decode MB': decoding})
    return rows


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
    click.echo(markdown(memory(network, images, [num, 10 * num])))


if __name__ == '__main__':
    main()
