"""Which images each step of training sees, and the threads that read them ahead.

N images of the dataset, C channels, H rows, W columns; `nimg` counts images seen since the start of training, over all
ranks. Which image is seen at which count is a pure function of (seed, nimg): a resumed run continues with the very next
image, and any number of ranks, micro-batches and threads sees the same sequence.
"""

import collections
import concurrent.futures
import functools
import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

MAX_SEED = 2**63
AHEAD = 2  # micro-batches that each thread reads ahead
LINGER = 2.0  # seconds that closing waits for a thread to finish its micro-batch


class Dataset(Protocol):
    """`dataset[i]` is a tuple of arrays of equal shapes for all i: (image, label, ...)."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]: ...


# ---------------------------------------------------------------------------------------------------------------- order


@functools.lru_cache(maxsize=2)
def _epoch_order(dataset_size: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of one epoch, int64 [N], read-only."""
    # RandomState, because NumPy promises never to change its bits.
    order = np.arange(dataset_size, dtype=np.int64)
    np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed % MAX_SEED, epoch]))).shuffle(order)
    order.flags.writeable = False
    return order


def batch_indices(dataset_size: int, seed: int, start_nimg: int, count: int) -> np.ndarray:
    """Which images are seen at positions start_nimg .. start_nimg + count - 1 of training: int64 [count].

    Position p lies in epoch p // dataset_size; an epoch is a random permutation of the dataset, given (seed, epoch).
    """
    if dataset_size < 1 or start_nimg < 0 or count < 0:
        raise ValueError(f'need dataset_size >= 1, start_nimg, count >= 0, not {dataset_size}, {start_nimg}, {count}')
    epochs = range(start_nimg // dataset_size, -(-(start_nimg + count) // dataset_size))
    orders = [_epoch_order(dataset_size, seed, epoch) for epoch in epochs]
    first = start_nimg % dataset_size
    return np.concatenate(orders)[first : first + count] if orders else np.empty(0, dtype=np.int64)


class BatchStream:
    """The micro-batches that one rank sees, as lists of dataset indices, from `start_nimg` on without end.

    Step s of training uses the global batch at positions start_nimg + s * batch .. + batch - 1 (`batch_indices`).
    Rank r takes the r-th of `world_size` equal contiguous parts, in `num_accumulation_rounds` micro-batches of
    `batch_gpu`. So the images of a step do not depend on the number of ranks or micro-batches.

    Args:
        dataset_size: number of images, mirrored ones included: `len(dataset)`.
        seed: seed of the order, the same on all ranks.
        start_nimg: images seen before, over all ranks.
        batch: images per step, over all ranks.
        batch_gpu: images per micro-batch; None for all images of the rank's step.
        rank, world_size: which part.

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
        if not 0 <= rank < world_size:
            raise ValueError(f'rank {rank} is not one of {world_size}')
        if batch < 1 or batch % world_size:
            raise ValueError(f'a batch of {batch} cannot be shared equally by {world_size} ranks')
        self.batch_rank = batch // world_size
        self.batch_gpu = self.batch_rank if batch_gpu is None else batch_gpu
        if self.batch_gpu < 1 or self.batch_rank % self.batch_gpu:
            raise ValueError(
                f'{self.batch_rank} images per rank and step (batch {batch}, {world_size} ranks) '
                f'cannot be cut into micro-batches of {batch_gpu}: choose a divisor of {self.batch_rank}'
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


class Loader:
    """The steps' images, without end: `next` is the list of the micro-batches of one step, each a tuple of CPU tensors,
    (images uint8 [batch_gpu, C, H, W], labels int64 [batch_gpu] or float32 [batch_gpu, D], ...).

    Threads read ahead. They suffice, since reading, decompressing and decoding release Python's lock; and unlike worker
    processes they need no shared memory, pipes or sockets, which can run out. Closing the loader, dropping it, or the
    end of the program ends them. Touches no global random state.

    Args:
        dataset: an `ImageFolderDataset`, or any other `Dataset`.
        stream: the micro-batches.
        device: where the caller will move them; for CUDA their memory is pinned.
        num_threads: threads that read; 0 reads in `next` itself.

    Raises:
        OSError: the threads cannot be started.
        BadImageError: (in `next`) an image that cannot be used, with its name; other errors of `dataset` likewise.
    """

    def __init__(
        self, dataset: Dataset, stream: BatchStream, device: torch.device | str = 'cpu', num_threads: int = 0
    ):
        self._load = functools.partial(_load, dataset, torch.device(device).type == 'cuda')
        self._indices, self._rounds = iter(stream), stream.num_accumulation_rounds
        self._num_ahead = max(AHEAD * num_threads, self._rounds) if num_threads else 0
        self._ahead: collections.deque[concurrent.futures.Future] = collections.deque()
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        threads = []
        self.close = weakref.finalize(self, _end, threads, self._jobs, self._ahead)
        for _ in range(num_threads):
            thread = threading.Thread(target=_work, args=(self._load, self._jobs), name='ddn-loader', daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                self.close()
                raise OSError(f'no thread can be started to load images ({error}): give --workers=0') from None
            threads.append(thread)
        self._order()

    def __iter__(self) -> 'Loader':
        return self

    def __next__(self) -> list[tuple[torch.Tensor, ...]]:
        if not self._num_ahead:
            return [self._load(next(self._indices)) for _ in range(self._rounds)]
        step = []
        for _ in range(self._rounds):
            step.append(self._ahead[0].result())
            self._ahead.popleft()
            self._order()
        return step

    def ready(self, seconds: float) -> bool:
        """Whether `next` returns or raises at once, after waiting for at most so many seconds."""
        step = [self._ahead[i] for i in range(self._rounds if self._num_ahead else 0)]
        done, not_done = concurrent.futures.wait(step, seconds, concurrent.futures.FIRST_EXCEPTION)
        return not not_done or any(future.exception() for future in done)

    def _order(self) -> None:
        """Have as many micro-batches read ahead as there should be."""
        while len(self._ahead) < self._num_ahead:
            self._ahead.append(concurrent.futures.Future())
            self._jobs.put((next(self._indices), self._ahead[-1]))


def _load(dataset: Dataset, pinned: bool, indices: Sequence[int]) -> tuple[torch.Tensor, ...]:
    arrays = zip(*(dataset[i] for i in indices), strict=True)
    tensors = (torch.from_numpy(np.stack(a)) for a in arrays)
    return tuple(t.pin_memory() if pinned else t for t in tensors)


def _work(load: Any, jobs: queue.SimpleQueue) -> None:
    """A thread of a loader, until it is given None."""
    while (job := jobs.get()) is not None:
        indices, future = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(load(indices))
            except BaseException as error:
                future.set_exception(error)
        del job, indices, future  # while it waits, it keeps no images


def _end(threads: list[threading.Thread], jobs: queue.SimpleQueue, ahead: collections.deque) -> None:
    for future in ahead:
        future.cancel()
    for _ in threads:
        jobs.put(None)
    for thread in threads:
        thread.join(LINGER)
