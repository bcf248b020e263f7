"""The labels of a folder or a zip of images."""

import os
import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from .archives import LABEL_FILE, ImageArchive, tidy_name
from .readers import printable, read_json

MAX_CLASSES = 10**6  # a class number is an index: of a one-hot vector, of a table of counts


class Labels(NamedTuple):
    """One label per image: classes int64 [N], or vectors float32 [N, D]; names of the classes where they are known."""

    values: np.ndarray
    class_names: list[str] | None


def read_labels(archive: ImageArchive) -> Labels | None:
    """The labels of an archive: from its `dataset.json`, else from its top-level folders; None if it has none.

    `dataset.json` is EDM's: `{"labels": [["00000/img00000000.png", 6], ...]}` or `{"labels": null}`, where a label is a
    class number below MAX_CLASSES or a list of numbers; a list `class_names` is ours and optional. It lies at the top,
    or in a folder that holds all images; its names are those of the archive, or begin in that folder.

    Raises:
        ValueError: `dataset.json` cannot be read, is not JSON, does not name the archive's images, or has unusable
            labels, or lies in a folder that does not hold all images.
    """
    if not archive.label_files:
        return labels_from_folders(archive.names())
    names = archive.names()
    parts = os.path.commonpath([name.rpartition('/')[0] for name in names]).split('/')
    shared = ['/'.join([*parts[:depth], LABEL_FILE]) for depth in range(len(parts) + 1)]  # in folders of all images
    file = next((file for file in shared if file in archive.label_files), None)
    if file is None:
        found = printable(f'{archive.path}: {next(iter(archive.label_files))}')
        raise ValueError(f'{found} lies in a folder without all images: move it to the top, or give that folder alone')
    where = printable(f'{archive.path}: {file}')
    content = read_json(archive.read_label_file(file), where)
    if not isinstance(content, dict):
        raise ValueError(f'{where} should be {{"labels": [["name.png", 0], ...]}} or {{"labels": null}}')
    if content.get('labels') is None:
        return None
    return _match_labels(content, names, file.removesuffix(LABEL_FILE), where)


def _match_labels(content: dict, names: list[str], folder: str, where: str) -> Labels:
    """The labels in the order of the images, which are named as in the archive or from the folder of the file on."""
    pairs = content['labels']
    if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
        raise ValueError(f'{where}: "labels" should be a list of ["name.png", label] pairs')
    table = {tidy_name(name): label for name, label in pairs}
    if len(table) != len(pairs):
        twice = next(n for n, count in Counter(tidy_name(name) for name, _ in pairs).items() if count > 1)
        raise ValueError(f'{where} has two labels for {printable(twice)}')
    keys = [tidy_name(name) for name in names]
    if folder and keys[0] not in table:
        keys = [key.removeprefix(folder) for key in keys]
    missing = [key for key in keys if key not in table]
    if missing:
        first = printable(missing[0])
        raise ValueError(f'{where} has no label for {len(missing)} of {len(names)} images; the first is {first}')
    if len(table) != len(keys):
        extra = printable(min(set(table) - set(keys)))
        raise ValueError(f'{where} labels {len(table)} images, there are {len(keys)}; not there: {extra}')
    labels, kinds = [table[key] for key in keys], {type(table[key]) for key in keys}
    if kinds == {int}:
        return Labels(_class_numbers(labels, where), _class_names(content, max(labels), where))
    if kinds == {list}:
        return Labels(_vectors(labels, where), None)
    odd = next((i for i, label in enumerate(labels) if type(label) not in (int, list)), 0)
    raise ValueError(
        f'{where}: labels should all be class numbers (0, 1, 2, ...), or all be lists of equally many numbers; that of '
        f'{printable(keys[odd])} is {printable(repr(labels[odd]))[:40]}'
    )


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)


def _class_numbers(labels: list[int], where: str) -> np.ndarray:
    low, high = min(labels), max(labels)
    if low < 0 or high >= MAX_CLASSES:
        odd = low if low < 0 else high if high < 10**30 else 'a number of more than 30 digits'
        raise ValueError(f'{where}: class numbers start at 0 and end below {MAX_CLASSES}, but there is {odd}')
    return np.array(labels, dtype=np.int64)


def _class_names(content: dict, highest: int, where: str) -> list[str] | None:
    names: Any = content.get('class_names')
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{where}: "class_names" should be a list of strings')
    if highest >= len(names):
        raise ValueError(f'{where}: class {highest} has no name, there are {len(names)} class names')
    return names


def _vectors(labels: list[list], where: str) -> np.ndarray:
    """float32 [N, D]"""
    kinds = set().union(*(map(type, label) for label in labels))
    if len({len(label) for label in labels}) != 1 or not labels[0] or not kinds <= {int, float}:
        raise ValueError(f'{where}: labels that are lists should all be of equally many numbers')
    try:
        with np.errstate(over='ignore'):
            vectors = np.array(labels, dtype=np.float64).astype(np.float32)
    except OverflowError:  # an integer of hundreds of digits
        vectors = np.full([1, 1], np.inf)
    if not np.isfinite(vectors).all():
        raise ValueError(f'{where}: labels hold a number that is infinite or too large')
    return vectors


def labels_from_folders(names: list[str]) -> Labels | None:
    """Classes from the top-level folders, numbered in the order of their names; None if they make no classes.

    Folders that all images share are looked through. Where files lie next to the folders, there are no classes; folders
    named like EDM's shards (five digits, `00000`, `00001`, ...) hold no classes either.
    """
    depth = len(os.path.commonpath(names).split('/')) if len(names) > 1 and os.path.commonpath(names) else 0
    parts = [name.split('/')[depth:] for name in names]
    if any(len(p) < 2 for p in parts):
        return None
    class_names = sorted({p[0] for p in parts})
    if len(class_names) < 2 or all(re.fullmatch(r'\d{5}', name) for name in class_names):
        return None
    numbers = {name: i for i, name in enumerate(class_names)}
    return Labels(np.array([numbers[p[0]] for p in parts], dtype=np.int64), class_names)
