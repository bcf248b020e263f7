"""The training data: images of a folder or zip, and pairs of images.

N images, C channels, H rows, W columns. The order in which training sees them is that of `training.loader`.
"""

import os
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch

from dnnlib.archives import ImageArchive
from dnnlib.images import BadImageError
from dnnlib.labels import read_labels
from dnnlib.util import format_bytes

# -------------------------------------------------------------------------------------------------------------- dataset


class ImageFolderDataset:
    """Images of a folder or a zip, all of one size: `dataset[i]` is `(image, label)`.

    `image` is uint8 [C, H, W], C of 1 (grey), 3 (RGB) or 4 (RGBA). `label` is an int64 class number, or a float32
    vector [D]; without labels a vector of length 0. Any image type Pillow reads will do.

    Args:
        path: folder, zip, or URL of a zip. What `dataset_tool.py` writes, or any images of one size.
        use_labels: take the labels of `dataset.json`, or of the top-level folders where there is none.
        xflip: double the dataset; image N + i is image i mirrored left to right.
        max_size: keep that many images, a random subset given `random_seed` (before doubling); None keeps all.
        cache: keep decoded images in memory. Each rank has a cache of its own.
        random_seed: seed of the subset of `max_size` images.

    Raises:
        FileNotFoundError: nothing is at `path`.
        ValueError: not a zip, no images, a `dataset.json` that does not match, no labels although they are asked for.
        BadImageError: (a ValueError, when an image is read) truncated, or of another size or number of channels than
            the first. The message names the image.
        OSError: the cache does not fit into memory.
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
            raise ValueError(f'max_size is a number of images, at least 1, not {max_size}')
        self.archive = ImageArchive(path)
        self._files = np.arange(len(self.archive), dtype=np.int64)  # [N] positions in the archive
        if max_size is not None and max_size < len(self._files):
            self._files = np.sort(np.random.RandomState(random_seed).permutation(self._files)[:max_size])
        self.xflip = xflip
        labels = read_labels(self.archive) if use_labels else None
        if use_labels and labels is None:
            raise ValueError(f'{self.archive.path} has no labels: it needs a dataset.json or one folder per class')
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
            self._cache = _cache((len(self._files), *self.image_shape), self.archive.path)
            self._cached = np.zeros(len(self._files), dtype=bool)

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
            # Two threads may fill the same place at once: both write the same bytes, then the mark.
            if not self._cached[position]:
                self._cache[position] = self._read(position)
                self._cached[position] = True
            image = self._cache[position].copy()
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
            raise IndexError(f'image {index} of {len(self)}')
        return int(index) % len(self._files), index >= len(self._files)

    def _read(self, position: int) -> np.ndarray:
        image = self.archive.image(self._files[position])
        self._require_shape(image.shape, self._files[position])
        return image

    def _require_shape(self, shape: tuple[int, ...], file: int) -> None:
        if shape != self.image_shape:
            first = f'the first ({self.archive.name(self._files[0])}) is {_shape_words(self.image_shape)}'
            raise BadImageError(
                f'{self.archive.title(file)} is {_shape_words(shape)}, {first}; '
                f'give them one size: dataset_tool.py --source={self.archive.path} --dest=NEW.zip --resolution=WxH'
            )


class PairedDataset:
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
                raise ValueError(f'{path} has two pictures named {stem}: which one is the pair of that image?')
            found[stem] = index
        self._pair_of = np.empty(len(images._files), dtype=np.int64)  # [N]
        for position in range(len(self._pair_of)):
            name = images.image_name(position)
            index = found.get(os.path.splitext(name)[0])
            if index is None:
                raise ValueError(f'{path} has no picture for {name} of {images.archive.path}; pairs have equal names')
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


class Part:
    """Some images of a dataset, at ``indices`` [N]: `part[i]` is `dataset[indices[i]]`."""

    def __init__(self, dataset: ImageFolderDataset | PairedDataset, indices: np.ndarray):
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        return self.dataset[int(self.indices[index])]


def held_out(num: int, share: float) -> np.ndarray:
    """Which of ``num`` images are kept from training, bool [num]: about the ``share`` of them, by a hash of the index
    alone, so the same in every run, whatever its seed."""
    with np.errstate(over='ignore'):
        x = (np.arange(num, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # the finalizer of SplitMix64
            x = (x ^ (x >> np.uint64(30))) * np.uint64(factor)
    return (x >> np.uint64(11)) < share * 2.0**53


class TrainingData(NamedTuple):
    """What training sees: the images as ``loaded`` brings them (with pairs, if any), and a validation batch.

    images: the dataset. loaded: it, or its pairs with it, without what is held out. validation: arrays of ``loaded``,
    stacked. held_out: the images that training does not see; None for none.
    """

    images: ImageFolderDataset
    loaded: ImageFolderDataset | PairedDataset | Part
    validation: list[torch.Tensor]
    held_out: Part | None = None


def open_training_data(
    dataset_kwargs: dict[str, Any],
    num_validation: int,
    val_data: str | None = None,
    pair_data: str | None = None,
    val_pairs: str | None = None,
    held_out_share: float = 0.0,
) -> TrainingData:
    """Open the images of a run.

    Args:
        dataset_kwargs: arguments of ``ImageFolderDataset``.
        num_validation: images of the validation batch at most, evenly spaced.
        val_data: validation images; None takes what is held out, or else the training images.
        pair_data, val_pairs: pairs of the training and of the validation images.
        held_out_share: share of the images, mirrored ones with theirs, that training does not see (``held_out``).

    Raises:
        ValueError, OSError: they cannot be used, in one line.
    """
    images = ImageFolderDataset(**dataset_kwargs)
    val_set = images if val_data is None else ImageFolderDataset(val_data, dataset_kwargs.get('use_labels', False))
    if val_set.image_shape != images.image_shape:
        raise ValueError(
            f'{val_data}: the images are {_shape_words(val_set.image_shape)}, the training images '
            f'{_shape_words(images.image_shape)}'
        )
    loaded = images
    if pair_data is not None:
        loaded = PairedDataset(images, pair_data, images.cached)
        val_set = loaded if val_data is None else PairedDataset(val_set, val_pairs or pair_data)
    hidden = np.flatnonzero(held_out(len(images._files), held_out_share))
    kept_out = None
    if len(hidden):
        kept_out = Part(loaded, hidden)
        rows = np.arange(len(images))
        loaded = Part(loaded, rows[~np.isin(rows % len(images._files), hidden)])
        val_set = kept_out if val_data is None else val_set
        if not len(loaded):
            raise ValueError(f'{images.archive.path} has too few images ({len(images)}) to hold some out')
    shown = np.linspace(0, len(val_set) - 1, min(num_validation, len(val_set)))
    batch = zip(*(val_set[int(i)] for i in shown), strict=True)
    return TrainingData(images, loaded, [torch.from_numpy(np.stack(arrays)) for arrays in batch], kept_out)


def _shape_words(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]} with {shape[0]} channel{'s' if shape[0] > 1 else ''}"


def _cache(shape: tuple[int, ...], path: os.PathLike) -> np.ndarray:
    """Room for uint8 images [N, C, H, W]; it takes memory as it is filled. OSError where there is not enough."""
    need, free = int(np.prod(shape, dtype=np.int64)), psutil.virtual_memory().available
    if need > free:
        raise OSError(
            f'{path}: to cache the images takes {format_bytes(need)} of memory, {format_bytes(free)} are free: '
            'give --cache=0'
        )
    return np.empty(shape, dtype=np.uint8)
