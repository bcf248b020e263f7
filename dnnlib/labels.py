"""The labels of a folder or a zip of images."""

import json
import os
import re
from typing import NamedTuple

import numpy as np

from .archives import ImageArchive


class Labels(NamedTuple):
    """One label per image: classes int64 [N], or vectors float32 [N, D]; names of the classes where they are known."""

    values: np.ndarray
    class_names: list[str] | None


def read_labels(archive: ImageArchive) -> Labels | None:
    """The labels of an archive: from its `dataset.json`, else from its top-level folders; None if it has none.

    `dataset.json` is EDM's: `{"labels": [["00000/img00000000.png", 6], ...]}` or `{"labels": null}`, where a label is a
    class number or a list of numbers; a list `class_names` beside it is ours and optional.

    Raises:
        ValueError: `dataset.json` that is not JSON, or does not name the archive's images, or has unusable labels.
    """
    text = archive.read_extra('dataset.json')
    if text is None:
        return labels_from_folders(archive.names())
    where = f'{archive.path}: dataset.json'
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f'{where} is not JSON ({error})') from error
    if not isinstance(content, dict):
        raise ValueError(f'{where} should be {{"labels": [["name.png", 0], ...]}} or {{"labels": null}}')
    if content.get('labels') is None:
        return None
    return _match_labels(content, archive.names(), where)


def _match_labels(content: dict, names: list[str], where: str) -> Labels:
    pairs = content['labels']
    is_pair = [isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in pairs] if pairs else []
    if not isinstance(pairs, list) or not all(is_pair):
        raise ValueError(f'{where}: "labels" should be a list of ["name.png", label] pairs')
    table = {name.replace('\\', '/'): label for name, label in pairs}
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f'{where} has no label for {len(missing)} of {len(names)} images; the first is {missing[0]}')
    if len(table) != len(names):
        extra = min(set(table) - set(names))
        raise ValueError(f'{where} labels {len(table)} images, there are {len(names)}; not there: {extra}')
    names_of = content.get('class_names')
    if names_of is not None and not (isinstance(names_of, list) and all(isinstance(n, str) for n in names_of)):
        raise ValueError(f'{where}: "class_names" should be a list of strings')
    try:
        values = np.array([table[name] for name in names])
    except ValueError:
        values = np.empty(0, dtype=object)
    if values.ndim == 1 and values.dtype.kind in 'iu':
        if values.min() < 0:
            raise ValueError(f'{where}: class numbers start at 0, there is {values.min()}')
        if names_of is not None and values.max() >= len(names_of):
            raise ValueError(f'{where}: class {values.max()} has no name, there are {len(names_of)} class names')
        return Labels(values.astype(np.int64), names_of)
    if values.dtype.kind in 'iuf' and values.ndim in (1, 2) and np.isfinite(values).all():
        return Labels(values.reshape(len(values), -1).astype(np.float32), None)
    raise ValueError(f'{where}: labels should all be class numbers, or all be lists of equally many numbers')


def labels_from_folders(names: list[str]) -> Labels | None:
    """Classes from the top-level folders, numbered in the order of their names; None if they make no classes.

    Folders that all images share are looked through. Files beside the folders make no class, so then there are none;
    folders named like EDM's shards (five digits, `00000`, `00001`, ...) hold no classes either.
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
