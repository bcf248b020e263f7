"""Pictures given on the command line: a file, a folder or a zip, read when they are needed.

A folder of n pictures makes n results. Pictures are cropped to the middle part that has the network's proportions
and resized, area-wise down and bilinearly up; grey and colour convert by luma and by repeating.
"""

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ddn_networks import pixel_maps
from dnnlib import readers
from dnnlib.archives import ImageArchive
from dnnlib.images import decode_image, to_float

MAX_FILE = 1 << 30  # bytes of a picture's file

Size = tuple[int, int]
Fit = Callable[[torch.Tensor, Size], torch.Tensor]


class Pictures:
    """The pictures of a file, a folder or a zip. ``option`` is what the user typed, for errors.

    Attributes: path, option, names of the pictures.
    """

    def __init__(self, path: str, option: str = ''):
        if not os.path.exists(path):
            raise ValueError(f'{path}: no such file or folder')
        self.path, self.option = path, option or path
        self.archive = ImageArchive(path) if os.path.isdir(path) or path.endswith('.zip') else None
        self.names = self.archive.names() if self.archive else [os.path.basename(path)]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: Sequence[int], channels: int | None = None) -> list[torch.Tensor]:
        """[C, H, W] float in [-1, 1] each; entry i is picture i modulo their number. C is ``channels``; None for 1 or
        3, as the file has, with transparency flattened onto white."""
        return [to_float(torch.from_numpy(self._pixels(i % len(self), channels))) for i in index]

    def at(
        self,
        index: Sequence[int],
        size: Size | None,
        shape: Size,
        channels: int | None = None,
        fit: Fit = pixel_maps.fit,
    ) -> torch.Tensor:
        """[n, C, H, W] cropped to the proportions of ``shape`` and brought to ``size`` by ``fit``; None keeps the size
        of the crop. Where some are grey, all get the channels of the others. ValueError where sizes differ."""
        cropped = [crop(picture[None], shape) for picture in self.read(index, channels)]
        cropped = [picture if size is None else fit(picture, size) for picture in cropped]
        sizes = {tuple(picture.shape[2:]) for picture in cropped}
        if len(sizes) > 1:
            words = ' and '.join(f'{W}x{H}' for H, W in sorted(sizes))
            raise ValueError(f'{self.path} holds pictures of different sizes, {words}: give size=, or --batch=1')
        C = max((picture.shape[1] for picture in cropped), default=0)
        return torch.cat([pixel_maps.to_channels(picture, C) for picture in cropped])

    def _pixels(self, index: int, channels: int | None) -> np.ndarray:
        if self.archive:
            data, name = self.archive.read(index), self.archive.title(index)
        else:
            data, name = readers.read_bytes(self.path, MAX_FILE), self.path
        pixels = decode_image(data, name, channels)
        if channels is None and len(pixels) == 4:
            pixels = decode_image(data, name, 3)
        return pixels


def crop(picture: torch.Tensor, shape: Size) -> torch.Tensor:
    """The largest middle part of [n, C, H, W] with the proportions of ``shape``."""
    H, W = picture.shape[2:]
    scale = min(H / shape[0], W / shape[1])
    h, w = max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
    top, left = (H - h) // 2, (W - w) // 2
    return picture[:, :, top : top + h, left : left + w]
