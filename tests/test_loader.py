"""The order in which images are seen, and the threads that read them ahead."""

import gc
import os
import threading

import forks
import numpy as np
import pytest
import torch
from conftest import write_zip

from dnnlib.images import BadImageError
from training.dataset import ImageFolderDataset
from training.loader import BatchStream, Loader, batch_indices

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# ---------------------------------------------------------------------------------------------------------------- order


def test_an_epoch_is_a_permutation():
    epochs = batch_indices(10, seed=3, start_nimg=0, count=40).reshape(4, 10)
    assert epochs.dtype == np.int64 and (np.sort(epochs) == np.arange(10)).all()
    assert len({tuple(e) for e in epochs}) == 4
    assert not np.array_equal(epochs[0], batch_indices(10, 4, 0, 10))


@pytest.mark.parametrize('start, count', [(0, 0), (0, 1), (9, 1), (9, 2), (7, 26), (35, 5), (12345, 3)])
def test_order_depends_on_the_position_alone(start, count):
    whole = batch_indices(10, 3, 0, start + count)
    assert np.array_equal(batch_indices(10, 3, start, count), whole[start:])


def test_order_is_pinned():
    """A run that is resumed on another machine or NumPy must go on with the same images."""
    assert batch_indices(8, 0, 0, 16).tolist() == [6, 3, 5, 0, 7, 2, 1, 4, 3, 1, 0, 4, 5, 6, 7, 2]


def test_order_of_nothing():
    with pytest.raises(ValueError, match='dataset_size >= 1'):
        batch_indices(0, 0, 0, 1)


def take(stream: BatchStream, count: int) -> list[list[int]]:
    return [micro for micro, _ in zip(stream, range(count), strict=False)]


@pytest.mark.parametrize('world_size, batch_gpu', [(1, None), (1, 2), (2, 4), (2, 2), (4, 1)])
def test_ranks_and_micro_batches_share_one_sequence(world_size, batch_gpu):
    streams = [BatchStream(11, 5, 30, 8, batch_gpu, rank, world_size) for rank in range(world_size)]
    rounds = streams[0].num_accumulation_rounds
    assert rounds * streams[0].batch_gpu * world_size == 8
    parts = [np.reshape(take(stream, 3 * rounds), [3, -1]) for stream in streams]
    assert np.array_equal(np.concatenate(parts, axis=1).ravel(), batch_indices(11, 5, 30, 24))


def test_batches_that_cannot_be_shared():
    with pytest.raises(ValueError, match='batch of 8 cannot be shared equally by 3 ranks'):
        BatchStream(10, 0, 0, 8, world_size=3)
    with pytest.raises(ValueError, match='4 images per rank .* micro-batches of 3: choose a divisor of 4'):
        BatchStream(10, 0, 0, 8, batch_gpu=3, world_size=2)
    with pytest.raises(ValueError, match='rank 2 is not one of 2'):
        BatchStream(10, 0, 0, 8, rank=2, world_size=2)


# --------------------------------------------------------------------------------------------------------------- loader


@pytest.fixture
def path(tmp_path) -> str:
    return write_zip(tmp_path / 'data.zip', 6, (3, 4, 5))


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not loader_threads()


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == 'ddn-loader']


@pytest.mark.parametrize('num_threads, cache, batch_gpu', [(0, False, 2), (2, False, 4), (2, True, 1), (4, True, 2)])
def test_loader_brings_the_stream(path, num_threads, cache, batch_gpu):
    dataset = ImageFolderDataset(path, use_labels=True, xflip=True, cache=cache)
    state = torch.random.get_rng_state()
    loader = Loader(dataset, BatchStream(12, 7, 6, 4, batch_gpu), num_threads=num_threads)
    for step in range(6):
        micro_batches = next(loader)
        assert len(micro_batches) == 4 // batch_gpu
        images, labels = map(torch.cat, zip(*micro_batches, strict=True))
        indices = batch_indices(12, 7, 6 + 4 * step, 4)
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64 and images.shape == (4, 3, 4, 5)
        for i, index in enumerate(indices):
            assert np.array_equal(images[i].numpy(), dataset[index][0]) and labels[i] == index % 6 % 3
    assert torch.equal(torch.random.get_rng_state(), state)
    loader.close()


def test_a_cache_is_filled_by_all_threads_and_spares_the_file(path, monkeypatch):
    dataset, again = ImageFolderDataset(path, cache=True), ImageFolderDataset(path)
    loader = Loader(dataset, BatchStream(6, 0, 0, 6, 1), num_threads=2)
    next(loader)
    loader.close()
    monkeypatch.setattr(dataset.archive, 'image', None)
    for i in range(6):
        assert np.array_equal(dataset[i][0], again[i][0])


def test_loader_without_labels(path):
    ((images, labels),) = next(Loader(ImageFolderDataset(path), BatchStream(6, 0, 0, 2)))
    assert labels.shape == (2, 0) and images.shape == (2, 3, 4, 5)


class Slow:
    """Six images; the one that ``waits_for`` names is ready when the event is set."""

    def __init__(self, waits_for: int = -1):
        self.waits_for, self.event = waits_for, threading.Event()

    def __getitem__(self, index):
        if index == self.waits_for:
            self.event.wait(20)
        return np.full([3, 4, 5], index, np.uint8), np.int64(index)


@pytest.mark.parametrize('num_threads', [0, 1, 3])
def test_an_error_is_raised_where_its_image_is_asked_for(path, num_threads):
    dataset = ImageFolderDataset(path)
    order = batch_indices(6, 0, 0, 6)

    def image(file):
        if file == order[3]:
            raise BadImageError('img is broken')
        return np.zeros([3, 4, 5], np.uint8)

    dataset.archive.image = image
    loader = Loader(dataset, BatchStream(6, 0, 0, 2), num_threads=num_threads)
    next(loader)
    assert loader.ready(10)
    with pytest.raises(BadImageError, match='img is broken'):
        next(loader)
    loader.close()


def test_ready_waits_for_the_whole_step_and_no_longer_than_it_should():
    dataset = Slow(waits_for=batch_indices(6, 0, 0, 2)[1])
    loader = Loader(dataset, BatchStream(6, 0, 0, 2, 1), num_threads=2)
    assert not loader.ready(0.01)
    dataset.event.set()
    assert loader.ready(10)
    assert [int(labels) for _, labels in next(loader)] == batch_indices(6, 0, 0, 2).tolist()
    loader.close()


def test_a_loader_that_is_dropped_ends_its_threads(path):
    loader = Loader(ImageFolderDataset(path), BatchStream(6, 0, 0, 2), num_threads=2)
    next(loader)
    assert len(loader_threads()) == 2
    del loader
    gc.collect()
    assert not loader_threads()


def test_threads_that_cannot_be_started_are_one_line(path, monkeypatch):
    start, calls = threading.Thread.start, []

    def failing(thread):
        calls.append(thread)
        if len(calls) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, 'start', failing)
    with pytest.raises(OSError, match="can't start new thread.*--workers=0"):
        Loader(ImageFolderDataset(path), BatchStream(6, 0, 0, 2), num_threads=2)


LEFT_OPEN = """
import sys
from training.dataset import ImageFolderDataset
from training.loader import BatchStream, Loader

loader = Loader(ImageFolderDataset(sys.argv[1], cache=True), BatchStream(40, 0, 0, 8), num_threads=2)
print(len(next(loader)[0][0]))
if sys.argv[2] == 'error':
    raise ValueError('holds on to the loader')
"""


@pytest.mark.parametrize('how, code', [('end', 0), ('error', 1)])
def test_a_script_that_leaves_a_loader_open_ends(tiny_zip, tmp_path, how, code):
    """In little room: few files, no shared memory, no folder for temporary files."""
    (tmp_path / 'script.py').write_text(LEFT_OPEN)
    result = forks.run(tmp_path / 'script.py', tiny_zip, how, env={'TMPDIR': '/nonexistent'}, files=18)
    assert (result.returncode, result.stdout) == (code, '8\n'), result.stderr
    assert ('holds on to the loader' in result.stderr) == (how == 'error') and 'Fatal' not in result.stderr
