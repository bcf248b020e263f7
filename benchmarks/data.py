"""How fast images are loaded, beside how fast training needs them.

    python benchmarks/data.py --data=datasets/cifar10-32x32.zip --need=50

One row for each container (the zip, and the same files in a folder), cache and number of workers: images/s through the
very loader of training (`training.loader.Loader`), and how often over that is what training needs. Cached rows
are measured from the second time an image is seen. Without --data, images of noise are made and forgotten.
"""

import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli.options import script_help
from training.dataset import ImageFolderDataset
from training.loader import BatchStream, Loader


def make_noise(path: Path, count: int, size: int) -> None:
    """A zip of PNGs that cannot be compressed: the slowest to read."""
    random = np.random.RandomState(0)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            with archive.open(f"00000/img{i:08d}.png", "w") as file:
                Image.fromarray(random.randint(0, 256, (size, size, 3), dtype=np.uint8)).save(file, "png")


def containers(data: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """The dataset as it is, and in the other container."""
    if data.is_dir():
        with zipfile.ZipFile(scratch / "data.zip", "w") as archive:
            for file in sorted(data.rglob("*")):
                archive.write(file, file.relative_to(data))
        yield from (("zip", scratch / "data.zip"), ("folder", data))
    else:
        with zipfile.ZipFile(data) as archive:
            archive.extractall(scratch / "data")
        yield from (("zip", data), ("folder", scratch / "data"))


def measure(dataset: ImageFolderDataset, batch: int, num_workers: int, seconds: float) -> float:
    """Images per second, once the workers have started and (with a cache) every image has been seen."""
    warm = len(dataset) + batch if dataset.cached else 4 * batch
    batches = Loader(dataset, BatchStream(len(dataset), 0, 0, batch), num_threads=num_workers)
    for _ in range(-(-warm // batch)):
        next(batches)
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        count += len(next(batches)[0][0])
    batches.close()
    return count / elapsed


@click.command(help=script_help(__file__), context_settings={"show_default": True})
@click.option("--data", metavar="ZIP|DIR", type=click.Path(exists=True, path_type=Path), help="Dataset to load")
@click.option("--need", metavar="IMG/S", type=click.FloatRange(min=0, min_open=True), default=50, help="Of training")
@click.option("--workers", metavar="N,N", default="0,1,2,4", help="Numbers of loader threads")
@click.option("--batch", type=click.IntRange(min=1), default=64, help="Images per micro-batch")
@click.option("--seconds", type=float, default=2, help="How long to measure each row")
def main(data, need, workers, batch, seconds):
    with tempfile.TemporaryDirectory() as scratch:
        if data is None:
            data = Path(scratch) / "noise.zip"
            make_noise(data, count=2000, size=64)
        shape = None
        for kind, path in containers(data, Path(scratch)):
            for cache in (False, True):
                dataset = ImageFolderDataset(path, cache=cache)
                if shape is None:
                    shape = dataset.image_shape
                    words = f"{len(dataset)} images of {shape[2]}x{shape[1]}, {shape[0]} channels"
                    click.echo(f"{data.name}: {words}; {os.cpu_count()} cores; training needs {need:g} img/s\n")
                    click.echo("| container | cache | workers | img/s | of the need |\n| --- | --- | --- | --- | --- |")
                for num_workers in map(int, workers.split(",")):
                    speed = measure(dataset, batch, num_workers, seconds)
                    word = "yes" if cache else "no"
                    click.echo(f"| {kind} | {word} | {num_workers} | {speed:.0f} | {speed / need:.1f} x |")


if __name__ == "__main__":
    main()
