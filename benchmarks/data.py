"""Speed of loading images against the speed that training needs.

    python -m benchmarks.data --data=datasets/cifar10-32x32.zip --need=50

A row for each container (the zip, and the same files in a folder), cache and number of threads: images/s of the loader
of training (``training.loader.Loader``), and how many times the need that is. Rows with a cache are measured once every
image has been seen. Without --data, temporary images of noise are used.
"""

import os
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click

from benchmarks.common import make_noise
from cli.options import Ints, script
from cli.tables import markdown
from training.dataset import ImageFolderDataset
from training.loader import BatchStream, Loader


def containers(data: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """The dataset as a zip and as a folder: one is given, the other made."""
    if data.is_dir():
        with zipfile.ZipFile(scratch / 'data.zip', 'w') as archive:
            for file in sorted(data.rglob('*')):
                archive.write(file, file.relative_to(data))
        yield from (('zip', scratch / 'data.zip'), ('folder', data))
    else:
        with zipfile.ZipFile(data) as archive:
            archive.extractall(scratch / 'data')
        yield from (('zip', data), ('folder', scratch / 'data'))


def measure(dataset: ImageFolderDataset, batch: int, num_threads: int, seconds: float) -> float:
    """Images per second after the threads have started and, with a cache, every image has been seen."""
    warm = len(dataset) + batch if dataset.cached else 4 * batch
    batches = Loader(dataset, BatchStream(len(dataset), 0, 0, batch), num_threads=num_threads)
    for _ in range(-(-warm // batch)):
        next(batches)
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        count += len(next(batches)[0][0])
    batches.close()
    return count / elapsed


@script(__file__)
@click.option('--data', metavar='ZIP|DIR', type=click.Path(exists=True, path_type=Path), help='Dataset to load')
@click.option('--need', metavar='IMG/S', type=click.FloatRange(min=0, min_open=True), default=50,
              help='Images per second of training')  # fmt: skip
@click.option('--workers', metavar='LIST', type=Ints(), default='0,1,2,4', help='Numbers of loader threads')
@click.option('--batch', type=click.IntRange(min=1), default=64, help='Images per micro-batch')
@click.option('--seconds', type=float, default=2, help='Duration of the measurement of a row')
def main(data, need, workers, batch, seconds):
    with tempfile.TemporaryDirectory() as scratch:
        if data is None:
            data = Path(scratch) / 'noise.zip'
            make_noise(data, count=2000, size=64)
        rows = []
        for kind, path in containers(data, Path(scratch)):
            for cache in (False, True):
                dataset = ImageFolderDataset(path, cache=cache)
                for num_threads in workers:
                    speed = measure(dataset, batch, num_threads, seconds)
                    rows.append({'container': kind, 'cache': 'yes' if cache else 'no', 'threads': num_threads,
                                 'img/s': speed, 'times the need': speed / need})  # fmt: skip
        C, H, W = dataset.image_shape
        click.echo(f'{data.name}: {len(dataset)} images of {W}x{H}, {C} channels; {os.cpu_count()} cores; training '
                   f'needs {need:g} img/s\n\n{markdown(rows)}')


if __name__ == '__main__':
    main()
