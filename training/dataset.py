"""The training data: images of a folder or zip, the order in which they are seen, and the loader that brings them.

N images, C channels, H rows, W columns; `nimg` counts images seen since the start of training, over all ranks. Which
image is seen at which count is a pure function of (seed, nimg): a resumed run goes on with the very next image, and any
number of ranks, micro-batches and workers sees the same sequence.
"""

import multiprocessing.connection
import os
import signal
import warnings
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch

from dnnlib.archives import ImageArchive
from dnnlib.images import BadImageError, to_float, to_uint8
from dnnlib.labels import read_labels
from dnnlib.util import format_bytes

__all__ = [
    "BadImageError",
    "BatchStream",
    "ImageFolderDataset",
    "PairedDataset",
    "batch_indices",
    "data_iterator",
    "to_float",
    "to_uint8",
]

MAX_SEED = 2**63


# -------------------------------------------------------------------------------------------------------------- dataset


class ImageFolderDataset(torch.utils.data.Dataset):
    """Images of a folder or a zip, all of one size: `dataset[i]` is `(image, label)`.

    `image` is uint8 [C, H, W], C of 1 (grey), 3 (RGB) or 4 (RGBA). `label` is an int64 class number, or a float32
    vector [D]; without labels a vector of length 0. Any image type Pillow reads will do.

    Args:
        path: folder, zip, or URL of a zip. What `dataset_tool.py` writes, or any images of one size.
        use_labels: take the labels of `dataset.json`, or of the top-level folders where there is none.
        xflip: double the dataset; image N + i is image i mirrored left to right.
        max_size: keep that many images, drawn at random by `random_seed` (before doubling); None keeps all.
        cache: keep decoded images, in one tensor in shared memory that all loader workers fill and read. Each rank
            has one of its own.
        random_seed: draws the `max_size` images.

    Raises:
        FileNotFoundError: nothing is at `path`.
        ValueError: no zip, no images, a `dataset.json` that does not match, no labels where they are asked for.
        BadImageError: (a ValueError, when an image is read) truncated, or of another size or number of channels than
            the first. The message names the image.
        OSError: the cache does not fit into shared memory.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        use_labels: bool = False,
        xflip: bool = False,
        max_size: int | None = None,
        cache: bool = False,
        random_seed: int = 0,
    ):
        if max_size is not None and max_size < 1:
            raise ValueError(f"max_size is a number of images, at least 1, not {max_size}")
        self.archive = ImageArchive(path)
        self._files = np.arange(len(self.archive), dtype=np.int64)  # [N] positions in the archive
        if max_size is not None and max_size < len(self._files):
            self._files = np.sort(np.random.RandomState(random_seed).permutation(self._files)[:max_size])
        self.xflip = xflip
        labels = read_labels(self.archive) if use_labels else None
        if use_labels and labels is None:
            raise ValueError(f"{self.archive.path} has no labels: it needs a dataset.json or one folder per class")
        self._labels = np.zeros([len(self._files), 0], dtype=np.float32)
        self._label_dim, self.class_names = 0, None
        if labels is not None:
            self._labels, self.class_names = labels.values[self._files], labels.class_names
            # The number of classes is the archive's: it must not shrink with max_size.
            is_class = labels.values.ndim == 1
            counted = max(int(labels.values.max()) + 1, len(self.class_names or ())) if is_class else 0
            self._label_dim = counted if is_class else labels.values.shape[1]
        self.image_shape: tuple[int, int, int] = self.archive.image(self._files[0]).shape
        self._cache = self._cached = None
        if cache:
            self._cache = _shared_bytes((len(self._files), *self.image_shape), self.archive.path)
            self._cached = torch.zeros(len(self._files), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self._files) * (2 if self.xflip else 1)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.get_image(index), self.get_label(index)

    @property
    def name(self) -> str:
        """What to call the dataset in the name of a run: the file's, without its extension."""
        return self.archive.path.stem if self.archive.is_zip else self.archive.path.resolve().name

    @property
    def cached(self) -> bool:
        return self._cache is not None

    @property
    def num_channels(self) -> int:
        return self.image_shape[0]

    @property
    def resolution(self) -> tuple[int, int]:
        """(H, W)"""
        return self.image_shape[1:]

    @property
    def has_labels(self) -> bool:
        return self._label_dim > 0

    @property
    def has_class_labels(self) -> bool:
        """Labels are class numbers 0 .. label_dim - 1, not vectors (EDM: has_onehot_labels)."""
        return self.has_labels and self._labels.ndim == 1

    @property
    def label_dim(self) -> int:
        """Number of classes, or length of the label vectors; 0 without labels."""
        return self._label_dim

    def get_label(self, index: int) -> np.ndarray:
        """int64 class number, or float32 [D] (D = 0 without labels)."""
        return self._labels[self._position(index)[0]]

    def get_image(self, index: int) -> np.ndarray:
        """uint8 [C, H, W], the caller's own copy. Raises BadImageError."""
        position, flipped = self._position(index)
        if self._cache is None:
            image = self._read(position)
        else:
            # Two workers may fill the same place at once: both write the same bytes, then the mark.
            if not self._cached[position]:
                self._cache[position] = torch.from_numpy(self._read(position))
                self._cached[position] = 1
            image = self._cache[position].numpy().copy()
        return image[:, :, ::-1].copy() if flipped else image

    def image_name(self, index: int) -> str:
        """The file of an image, as it is called in its folder or zip."""
        return self.archive.name(self._files[self._position(index)[0]])

    def check(self) -> None:
        """Read the header of every image; raises BadImageError on the first that does not fit. Seconds for 100,000."""
        for file in self._files:
            header = self.archive.header(file)
            self._require_shape((header.channels, header.height, header.width), file)

    def _position(self, index: int) -> tuple[int, bool]:
        """Index -> (position among the images kept, whether it is mirrored)."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return int(index) % len(self._files), index >= len(self._files)

    def _read(self, position: int) -> np.ndarray:
        image = self.archive.image(self._files[position])
        self._require_shape(image.shape, self._files[position])
        return image

    def _require_shape(self, shape: tuple[int, ...], file: int) -> None:
        if shape != self.image_shape:
            first = f"the first ({self.archive.name(self._files[0])}) is {_shape_words(self.image_shape)}"
            raise BadImageError(
                f"{self.archive.title(file)} is {_shape_words(shape)}, {first}; "
                f"make them alike: dataset_tool.py --source={self.archive.path} --dest=NEW.zip --resolution=WxH"
            )


class PairedDataset(torch.utils.data.Dataset):
    """Images with another picture each, to be conditioned on: `dataset[i]` is `(image, label, pair)`.

    The pair of an image is the picture of the same name, without its extension; a mirrored image has a mirrored pair.
    All pairs have one shape, which need not be that of the images; `path` may hold more pictures than are asked for.

    Args:
        images: what to pair.
        path: folder, zip, or URL of a zip of the pairs.
        cache: as for the images.

    Raises:
        ValueError: an image without a pair, or two, by name.
    """

    def __init__(self, images: ImageFolderDataset, path: str | os.PathLike, cache: bool = False):
        self.images, self.pairs = images, ImageFolderDataset(path, cache=cache)
        found: dict[str, int] = {}
        for index in range(len(self.pairs)):
            stem = os.path.splitext(self.pairs.image_name(index))[0]
            if stem in found:
                raise ValueError(f"{path} has two pictures named {stem}: which one is the pair of that image?")
            found[stem] = index
        self._pair_of = np.empty(len(images._files), dtype=np.int64)  # [N]
        for position in range(len(self._pair_of)):
            name = images.image_name(position)
            index = found.get(os.path.splitext(name)[0])
            if index is None:
                raise ValueError(f"{path} has no picture for {name} of {images.archive.path}; pairs have equal names")
            self._pair_of[position] = index

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return (*self.images[index], self.get_pair(index))

    def get_pair(self, index: int) -> np.ndarray:
        """uint8 [C', h, w], the caller's own copy. Raises BadImageError."""
        position, flipped = self.images._position(index)
        pair = self.pairs.get_image(self._pair_of[position])
        return pair[:, :, ::-1].copy() if flipped else pair


def _shape_words(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]} with {shape[0]} channel{'s' if shape[0] > 1 else ''}"


def _shared_bytes(shape: tuple[int, ...], path: os.PathLike) -> torch.Tensor:
    """A uint8 tensor in shared memory. Asks for the room first: running out of it later would be a bus error."""
    need = int(np.prod(shape, dtype=np.int64))
    advice = "go without cache, keep fewer images, or (in a container) raise --shm-size"
    if os.path.isdir("/dev/shm"):
        state = os.statvfs("/dev/shm")
        free = state.f_bavail * state.f_frsize
        if need > free:
            room = f"{format_bytes(need)} of shared memory, /dev/shm has {format_bytes(free)}"
            raise OSError(f"{path}: caching needs {room}; {advice}")
    try:
        return torch.empty(shape, dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        raise OSError(f"{path}: no {format_bytes(need)} of shared memory to cache images; {advice}") from error


# ---------------------------------------------------------------------------------------------------------------- order


@lru_cache(maxsize=2)
def _epoch_order(dataset_size: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of one epoch, int64 [N], read-only."""
    # RandomState, because NumPy promises never to change its bits.
    order = np.arange(dataset_size, dtype=np.int64)
    np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed % MAX_SEED, epoch]))).shuffle(order)
    order.flags.writeable = False
    return order


def batch_indices(dataset_size: int, seed: int, start_nimg: int, count: int) -> np.ndarray:
    """Which images are seen at positions start_nimg .. start_nimg + count - 1 of training: int64 [count].

    Position p lies in epoch p // dataset_size; an epoch is a permutation of the dataset, drawn from (seed, epoch).
    """
    if dataset_size < 1 or start_nimg < 0 or count < 0:
        raise ValueError(f"need dataset_size >= 1, start_nimg, count >= 0, not {dataset_size}, {start_nimg}, {count}")
    epochs = range(start_nimg // dataset_size, -(-(start_nimg + count) // dataset_size))
    orders = [_epoch_order(dataset_size, seed, epoch) for epoch in epochs]
    first = start_nimg % dataset_size
    return np.concatenate(orders)[first : first + count] if orders else np.empty(0, dtype=np.int64)


class BatchStream(torch.utils.data.Sampler):
    """The micro-batches that one rank sees, as lists of dataset indices, from `start_nimg` on without end.

    Step s of training uses the global batch at positions start_nimg + s * batch .. + batch - 1 (`batch_indices`).
    Rank r takes the r-th of `world_size` equal contiguous parts, in `num_accumulation_rounds` micro-batches of
    `batch_gpu`. So the images of a step do not depend on the number of ranks or micro-batches. A DataLoader takes it as
    `batch_sampler`; `data_iterator` does that.

    Args:
        dataset_size: number of images, mirrored ones included: `len(dataset)`.
        seed: of the order. Not to differ between ranks.
        start_nimg: images seen before, over all ranks.
        batch: images per step, over all ranks.
        batch_gpu: images per micro-batch; None for all that the rank has in a step.
        rank, world_size: who takes which part.

    Raises:
        ValueError: `batch` is not a multiple of `world_size * batch_gpu`.
    """

    def __init__(
        self,
        dataset_size: int,
        seed: int,
        start_nimg: int,
        batch: int,
        batch_gpu: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        super().__init__()  # no argument: torch < 2.10 warns of one, later ones have none
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size}")
        if batch < 1 or batch % world_size:
            raise ValueError(f"a batch of {batch} cannot be shared equally by {world_size} ranks")
        self.batch_rank = batch // world_size
        self.batch_gpu = self.batch_rank if batch_gpu is None else batch_gpu
        if self.batch_gpu < 1 or self.batch_rank % self.batch_gpu:
            raise ValueError(
                f"{self.batch_rank} images per rank and step (batch {batch}, {world_size} ranks) "
                f"cannot be cut into micro-batches of {batch_gpu}: choose a divisor of {self.batch_rank}"
            )
        self.num_accumulation_rounds = self.batch_rank // self.batch_gpu
        self.dataset_size, self.seed, self.start_nimg = dataset_size, seed, start_nimg
        self.batch, self.rank = batch, rank

    def __iter__(self) -> Iterator[list[int]]:
        nimg = self.start_nimg + self.rank * self.batch_rank
        while True:
            indices = batch_indices(self.dataset_size, self.seed, nimg, self.batch_rank)
            for micro in indices.reshape(self.num_accumulation_rounds, self.batch_gpu):
                yield micro.tolist()
            nimg += self.batch


# --------------------------------------------------------------------------------------------------------------- loader


def data_iterator(
    dataset: torch.utils.data.Dataset,
    stream: BatchStream,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    prefetch_factor: int = 2,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Load the micro-batches of `stream`, for ever: (images uint8 [batch_gpu, C, H, W], labels) on the CPU.

    Labels are int64 [batch_gpu] or float32 [batch_gpu, D]; a `PairedDataset` adds pairs uint8 [batch_gpu, C', h, w].
    Memory is pinned when `device` is a CUDA device. Touches no global random state. Closing the iterator, or dropping
    it, ends its workers; so does an error.

    Args:
        dataset: an `ImageFolderDataset`, or any dataset of (array, label, ...).
        stream: the micro-batches.
        device: where the caller will move them.
        num_workers: processes that load; 0 loads in this one, when asked.
        prefetch_factor: micro-batches that each worker holds ready.

    Raises:
        BadImageError: an image that cannot be used, with its name, also when a worker met it.
        OSError: a worker was killed.
    """
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=stream,
        num_workers=num_workers,
        prefetch_factor=prefetch_factor if num_workers else None,
        pin_memory=torch.device(device).type == "cuda",
        worker_init_fn=_leave_signals_to_parent if num_workers else None,
        generator=torch.Generator().manual_seed(0),  # else every new iterator draws from the global one
    )
    return _iterate(loader)


def _iterate(loader: torch.utils.data.DataLoader) -> Iterator[tuple[torch.Tensor, ...]]:
    others, handler = multiprocessing.active_children(), signal.getsignal(signal.SIGCHLD)
    try:
        try:
            with warnings.catch_warnings():
                # Python >= 3.12 warns of any fork beside threads; no lock these use could another thread hold.
                warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
                batches = iter(loader)
        finally:
            workers = [worker for worker in multiprocessing.active_children() if worker not in others]
        # torch tells of a killed worker in a signal handler, so anywhere in the process, and, at most 5 seconds later,
        # in `next`: that is enough, and can be dealt with.
        if signal.getsignal(signal.SIGCHLD) != handler:
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        while True:
            yield next(batches)
    except BadImageError as error:
        # A worker's error comes with its traceback as text; the user needs its last line.
        line = str(error).strip().splitlines()[-1]
        raise BadImageError(line.removeprefix(f"{BadImageError.__module__}.{BadImageError.__name__}: ")) from None
    except Exception:
        # What a killed worker leaves may be any error: of the queue, of a socket.
        if not workers or not multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=1):
            raise
        advice = "lower --workers or the batch, or look for who killed it; --resume goes on from the last state"
        raise OSError(f"a process that loads images was killed, as where memory runs out: {advice}") from None
    finally:
        # torch ends the workers with their iterator. But the traceback of an error holds on to that, and at exit Python
        # waits for workers, for ever: they ignore the signal by which it asks them to end.
        batches = None
        for worker in workers:
            worker.kill()
            worker.join(timeout=1)


def _leave_signals_to_parent(worker_id: int) -> None:
    """Signals reach the whole process group: the parent decides what to do, and ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
