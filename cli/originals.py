"""What belongs to the codes of a file: the images that they encode, and each image's condition."""

from collections.abc import Sequence

import numpy as np
import torch

from cli.code_files import CodeFile
from cli.condition_arguments import ConditionArguments
from dnnlib.archives import ImageArchive
from dnnlib.images import to_float


class Originals:
    """The images that codes encode, by the row of the file: from ``data``, or the archive that the file names.

    ValueError where there is none, or where it does not hold them all.
    """

    def __init__(self, file: CodeFile, data: str | None = None):
        path = data or file.data
        if path is None:
            raise ValueError('this file of codes does not name its images: give --data')
        self.archive = ImageArchive(path)
        known = {name: i for i, name in enumerate(self.archive.names())}
        names = list(known)[: len(file.codes)] if file.names is None else file.names.tolist()
        missing = [name for name in names if name not in known]
        if missing or len(names) != len(file.codes):
            raise ValueError(f'{path} does not hold {missing[0] if missing else "as many images as there are codes"}')
        self.places = [known[name] for name in names]

    def __getitem__(self, row: int) -> np.ndarray:
        """uint8 [C, H, W]."""
        return self.archive.image(self.places[row])


class RowConditions:
    """rows of a file of codes -> their condition [B, c, H, W], or None for a network without: what the command line
    gives, else each row's own label and picture."""

    def __init__(self, given: ConditionArguments, file: CodeFile, data: str | None):
        several = any(len(pictures) > 1 for pictures in given.pictures.values())
        given.require_for(len(file.codes), of=_first_of(file, data) if several else None)
        labels = file.labels if file.vectors is None else file.vectors
        self.given, self.labels = given, None if labels is None else torch.from_numpy(labels)
        self.originals = Originals(file, data) if given.needs_originals else None

    def __call__(self, rows: Sequence[int]) -> torch.Tensor | None:
        rows = list(rows)
        images = torch.empty(len(rows), 0)  # only their number counts
        if self.originals is not None:
            images = to_float(torch.from_numpy(np.stack([self.originals[row] for row in rows])))
        return self.given.of_images(images, None if self.labels is None else self.labels[rows], rows)


def _first_of(file: CodeFile, data: str | None) -> int | None:
    """The number of images in the archive whose first ones the codes encode; None where that is not known."""
    path = data or file.data
    if path is None:
        return None
    try:
        names = ImageArchive(path).names()
    except (ValueError, OSError):  # it may be gone
        return None
    return len(names) if file.names is None or file.names.tolist() == names[: len(file.names)] else None
