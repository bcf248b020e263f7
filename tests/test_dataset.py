"""The dataset, the exact order of its images, and the loader, workers included."""

import gc
import io
import json
import multiprocessing
import os
import pickle
import signal
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import training.dataset
from training.dataset import BadImageError, BatchStream, ImageFolderDataset, batch_indices, data_iterator

PIXELS = np.random.RandomState(0).randint(0, 256, (6, 3, 4, 5), dtype=np.uint8)  # [N, C, H, W]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.squeeze(pixels.transpose(1, 2, 0))).save(buffer, "png")
    return buffer.getvalue()


def make(path, files: dict[str, bytes], labels=None) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        if labels is not None:
            archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return str(path)


NAMES = [f"00000/img{i:08d}.png" for i in range(6)]
FILES = {name: png(pixels) for name, pixels in zip(NAMES, PIXELS, strict=True)}


@pytest.fixture
def path(tmp_path):
    return make(tmp_path / "tiny.zip", FILES, [[name, i // 2] for i, name in enumerate(NAMES)])


# -------------------------------------------------------------------------------------------------------------- dataset


def test_zip_and_folder_give_the_same(path, tmp_path):
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "tiny")
    for source in (path, tmp_path / "tiny"):
        dataset = ImageFolderDataset(source, use_labels=True)
        assert len(dataset) == 6 and dataset.name == "tiny"
        assert dataset.image_shape == (3, 4, 5) and dataset.resolution == (4, 5) and dataset.num_channels == 3
        assert dataset.label_dim == 3 and dataset.has_labels and dataset.has_class_labels
        for i in range(6):
            image, label = dataset[i]
            assert image.dtype == np.uint8 and np.array_equal(image, PIXELS[i])
            assert label.dtype == np.int64 and label == i // 2
        assert dataset.image_name(5) == NAMES[5]
        dataset.check()


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(png(PIXELS[0]))
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    dataset = ImageFolderDataset(tmp_path)
    assert [dataset.image_name(i) for i in range(len(dataset))] == ["a/b/x.png", "a/x.png", "b/a/x.png", "b/x.png"]


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_rgba(tmp_path, channels):
    pixels = np.random.RandomState(1).randint(0, 256, (channels, 3, 7), dtype=np.uint8)
    dataset = ImageFolderDataset(make(tmp_path / "a.zip", {"a.png": png(pixels)}))
    assert dataset.image_shape == (channels, 3, 7) and np.array_equal(dataset[0][0], pixels)


def test_without_labels(path):
    dataset = ImageFolderDataset(path)
    assert not dataset.has_labels and dataset.label_dim == 0 and not dataset.has_class_labels
    assert dataset[0][1].shape == (0,) and dataset[0][1].dtype == np.float32


def test_label_vectors(tmp_path):
    vectors = [[name, [i, 0.5]] for i, name in enumerate(NAMES)]
    dataset = ImageFolderDataset(make(tmp_path / "a.zip", FILES, vectors), use_labels=True)
    assert dataset.label_dim == 2 and not dataset.has_class_labels and dataset.has_labels
    assert dataset.get_label(3).tolist() == [3, 0.5] and dataset.get_label(3).dtype == np.float32


def test_class_folders_need_no_json(tmp_path):
    files = {f"{c}/{i}.png": png(PIXELS[i]) for i, c in enumerate(["dog", "cat", "dog"])}
    dataset = ImageFolderDataset(make(tmp_path / "a.zip", files), use_labels=True)
    assert dataset.class_names == ["cat", "dog"] and dataset.label_dim == 2
    assert [int(dataset.get_label(i)) for i in range(3)] == [0, 1, 1]


@pytest.mark.parametrize("cache", [False, True])
def test_xflip_doubles(path, cache):
    dataset = ImageFolderDataset(path, use_labels=True, xflip=True, cache=cache)
    assert len(dataset) == 12
    for _ in range(2):
        for i in range(6):
            assert np.array_equal(dataset[6 + i][0], PIXELS[i, :, :, ::-1]) and dataset[6 + i][1] == i // 2
            assert np.array_equal(dataset[i][0], PIXELS[i])
    assert dataset.image_name(6) == NAMES[0]


def test_max_size_is_a_fixed_random_subset(path):
    dataset = ImageFolderDataset(path, use_labels=True, max_size=3, xflip=True, random_seed=1)
    names = [dataset.image_name(i) for i in range(3)]
    assert len(dataset) == 6 and names == sorted(set(names)) and set(names) <= set(NAMES)
    assert dataset.label_dim == 3  # of the whole set
    for i, name in enumerate(names):
        assert np.array_equal(dataset[i][0], PIXELS[NAMES.index(name)]) and dataset[i][1] == NAMES.index(name) // 2
    again = ImageFolderDataset(path, max_size=3, random_seed=1)
    assert [again.image_name(i) for i in range(3)] == names
    assert len(ImageFolderDataset(path, max_size=99)) == 6


def test_images_are_the_callers_own(path):
    for cache in (False, True):
        dataset = ImageFolderDataset(path, cache=cache)
        dataset[0][0][:] = 0
        assert np.array_equal(dataset[0][0], PIXELS[0])


def test_pickled_dataset_reads(path):
    dataset = ImageFolderDataset(path, use_labels=True)
    _ = dataset[0]
    assert np.array_equal(pickle.loads(pickle.dumps(dataset))[4][0], PIXELS[4])


@pytest.mark.parametrize("index", [-1, 6])
def test_index_outside(path, index):
    with pytest.raises(IndexError, match=f"image {index} of 6"):
        ImageFolderDataset(path)[index]


# ------------------------------------------------------------------------------------------------------------ bad input


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*no.zip"):
        ImageFolderDataset(tmp_path / "no.zip")


def test_zip_that_is_no_zip(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK but no")
    with pytest.raises(ValueError, match="a.zip: neither a folder nor a zip"):
        ImageFolderDataset(tmp_path / "a.zip")


def test_zip_without_images(tmp_path):
    with pytest.raises(ValueError, match="a.zip: no images in this zip"):
        ImageFolderDataset(make(tmp_path / "a.zip", {"a.txt": b""}))


def test_labels_that_do_not_match(tmp_path):
    broken = make(tmp_path / "a.zip", FILES, [[NAMES[0], 1]])
    assert len(ImageFolderDataset(broken)) == 6  # not asked for, not looked at
    with pytest.raises(ValueError, match="dataset.json has no label for 5 of 6 images"):
        ImageFolderDataset(broken, use_labels=True)


def test_labels_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="a.zip has no labels: it needs a dataset.json or one folder per class"):
        ImageFolderDataset(make(tmp_path / "a.zip", FILES), use_labels=True)


@pytest.mark.parametrize(
    "pixels, words",
    [(PIXELS[0, :, :3], "5x3 with 3 channels"), (PIXELS[0, :1], "5x4 with 1 channel,")],
)
def test_image_of_another_shape_is_named(tmp_path, pixels, words):
    dataset = ImageFolderDataset(make(tmp_path / "a.zip", FILES | {NAMES[3]: png(pixels)}))
    for look in (lambda: dataset[3], dataset.check):
        with pytest.raises(BadImageError, match=f"img00000003.png is {words}.*first .* is 5x4 .*dataset_tool") as error:
            look()
        assert "\n" not in str(error.value)


def test_truncated_image_is_named(tmp_path):
    dataset = ImageFolderDataset(make(tmp_path / "a.zip", FILES | {NAMES[3]: FILES[NAMES[3]][:-40]}))
    with pytest.raises(BadImageError, match="a.zip: 00000/img00000003.png: truncated or broken"):
        _ = dataset[3]


def test_cache_that_does_not_fit(path, monkeypatch):
    if not os.path.isdir("/dev/shm"):
        pytest.skip("no /dev/shm here")
    full = os.statvfs_result([4096, 4096, 100, 0, 0, 0, 0, 0, 0, 255])
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(OSError, match="caching needs 360 B of shared memory, /dev/shm has 0 B; go without"):
        ImageFolderDataset(path, cache=True)


def test_max_size_of_nothing(path):
    with pytest.raises(ValueError, match="at least 1, not 0"):
        ImageFolderDataset(path, max_size=0)


# ---------------------------------------------------------------------------------------------------------------- order


def test_an_epoch_is_a_permutation():
    epochs = batch_indices(10, seed=3, start_nimg=0, count=40).reshape(4, 10)
    assert epochs.dtype == np.int64 and (np.sort(epochs) == np.arange(10)).all()
    assert len({tuple(e) for e in epochs}) == 4
    assert not np.array_equal(epochs[0], batch_indices(10, 4, 0, 10))


@pytest.mark.parametrize("start, count", [(0, 0), (0, 1), (9, 1), (9, 2), (7, 26), (35, 5), (12345, 3)])
def test_order_depends_on_the_position_alone(start, count):
    whole = batch_indices(10, 3, 0, start + count)
    assert np.array_equal(batch_indices(10, 3, start, count), whole[start:])


def test_order_is_pinned():
    """A run that is resumed on another machine or NumPy must go on with the same images."""
    assert batch_indices(8, 0, 0, 16).tolist() == [6, 3, 5, 0, 7, 2, 1, 4, 3, 1, 0, 4, 5, 6, 7, 2]


def test_order_of_nothing():
    with pytest.raises(ValueError, match="dataset_size >= 1"):
        batch_indices(0, 0, 0, 1)


def take(stream: BatchStream, count: int) -> list[list[int]]:
    return [micro for micro, _ in zip(stream, range(count), strict=False)]


@pytest.mark.parametrize("world_size, batch_gpu", [(1, None), (1, 2), (2, 4), (2, 2), (4, 1)])
def test_ranks_and_micro_batches_share_one_sequence(world_size, batch_gpu):
    streams = [BatchStream(11, 5, 30, 8, batch_gpu, rank, world_size) for rank in range(world_size)]
    rounds = streams[0].num_accumulation_rounds
    assert rounds * streams[0].batch_gpu * world_size == 8
    parts = [np.reshape(take(stream, 3 * rounds), [3, -1]) for stream in streams]
    assert np.array_equal(np.concatenate(parts, axis=1).ravel(), batch_indices(11, 5, 30, 24))


def test_batches_that_cannot_be_shared():
    with pytest.raises(ValueError, match="batch of 8 cannot be shared equally by 3 ranks"):
        BatchStream(10, 0, 0, 8, world_size=3)
    with pytest.raises(ValueError, match="4 images per rank .* micro-batches of 3: choose a divisor of 4"):
        BatchStream(10, 0, 0, 8, batch_gpu=3, world_size=2)
    with pytest.raises(ValueError, match="rank 2 is not one of 2"):
        BatchStream(10, 0, 0, 8, rank=2, world_size=2)


# --------------------------------------------------------------------------------------------------------------- loader


@pytest.mark.parametrize("num_workers, cache", [(0, False), (2, False), (2, True)])
def test_loader_brings_the_stream(path, num_workers, cache):
    dataset = ImageFolderDataset(path, use_labels=True, xflip=True, cache=cache)
    _ = dataset[0]  # the zip is open before the workers fork
    state = torch.random.get_rng_state()
    batches = data_iterator(dataset, BatchStream(12, 7, 6, 4), num_workers=num_workers)
    for step in range(6):
        images, labels = next(batches)
        indices = batch_indices(12, 7, 6 + 4 * step, 4)
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64 and images.shape == (4, 3, 4, 5)
        for i, index in enumerate(indices):
            assert np.array_equal(images[i].numpy(), dataset[index][0]) and labels[i] == index % 6 // 2
    assert torch.equal(torch.random.get_rng_state(), state)
    batches.close()
    assert not multiprocessing.active_children()


def test_workers_fill_one_cache(path):
    dataset = ImageFolderDataset(path, cache=True)
    assert dataset._cached.sum() == 0
    batches = data_iterator(dataset, BatchStream(6, 0, 0, 6), num_workers=2)
    for _ in range(3):
        next(batches)
    batches.close()
    assert dataset._cached.sum() == 6 and np.array_equal(dataset._cache.numpy(), PIXELS)


def test_cache_is_read_instead_of_the_file(path, monkeypatch):
    dataset = ImageFolderDataset(path, cache=True)
    first = dataset[2][0]
    monkeypatch.setattr(training.dataset.ImageArchive, "image", None)
    assert np.array_equal(dataset[2][0], first)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader_names_a_bad_image_in_one_line(tmp_path, num_workers):
    dataset = ImageFolderDataset(make(tmp_path / "a.zip", FILES | {NAMES[3]: FILES[NAMES[3]][:-40]}))
    batches = data_iterator(dataset, BatchStream(6, 0, 0, 6), num_workers=num_workers)
    with pytest.raises(BadImageError) as error:
        next(batches)
    assert str(error.value).startswith(f"{tmp_path}/a.zip: 00000/img00000003.png: truncated")
    assert "\n" not in str(error.value)
    assert not multiprocessing.active_children()  # they end at once, not when garbage is collected


def test_loader_without_labels(path):
    images, labels = next(data_iterator(ImageFolderDataset(path), BatchStream(6, 0, 0, 2)))
    assert labels.shape == (2, 0) and images.shape == (2, 3, 4, 5)


def test_workers_leave_ctrl_c_to_the_parent(path):
    batches = data_iterator(ImageFolderDataset(path), BatchStream(6, 0, 0, 2), num_workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    for _ in range(8):
        next(batches)
    assert worker.is_alive()
    batches.close()


class Slow(torch.utils.data.Dataset):
    """Six images, half a second each."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        time.sleep(0.5)
        return np.zeros([3, 4, 5], np.uint8), index


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_in_the_wait_for_images_ends_the_workers(num_workers):
    """Also while somebody holds on to the error: at exit Python would wait for them, for ever."""
    batches = data_iterator(Slow(), BatchStream(6, 0, 0, 2), num_workers=num_workers)
    next(batches)

    def fail(number, frame):
        raise OSError("too many open files")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(OSError, match="too many open files") as error:
            for _ in range(2):
                next(batches)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert error and not multiprocessing.active_children()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's half-made iterator goes badly
def test_an_error_when_the_second_worker_begins_ends_the_first(path, monkeypatch):
    start, calls = multiprocessing.Process.start, []

    def failing(process):
        calls.append(process)
        if len(calls) == 2:
            raise OSError("Cannot allocate memory")
        start(process)

    monkeypatch.setattr(multiprocessing.Process, "start", failing)
    batches = data_iterator(ImageFolderDataset(path), BatchStream(6, 0, 0, 2), num_workers=2)
    with pytest.raises(OSError, match="Cannot allocate memory") as error:
        next(batches)
    assert error and not multiprocessing.active_children()
    del error
    gc.collect()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_killed_worker_is_told_where_images_are_asked_for(num_workers):
    """As where memory runs out. Not from a signal handler, anywhere in the process."""
    batches = data_iterator(Slow(), BatchStream(6, 0, 0, 2), num_workers=num_workers)
    next(batches)
    worker = multiprocessing.active_children()[0]
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.2)
    with pytest.raises(OSError, match="a process that loads images was killed") as error:
        for _ in range(8):
            next(batches)
    assert error and not multiprocessing.active_children()
