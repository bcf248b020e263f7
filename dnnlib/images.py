"""Images on disk: a folder or a zip of them, their labels, and one way to turn any of them into uint8 pixels.

N images, C channels (1 grey, 3 RGB, 4 RGBA), H rows, W columns. Pixels are uint8 [C, H, W] on the way in and out, and
float in [-1, 1] inside (`to_float`, `to_uint8`).
"""

import hashlib
import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from .util import atomic_write, local_path

if TYPE_CHECKING:
    import torch

IMAGE_EXTENSIONS = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .bmp .dib .gif .tif .tiff .tga .ppm .pgm .pbm .pnm .jp2 .j2k .avif".split()
)
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_MODE_CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "I;16B": 1, "I;16L": 1, "I;16N": 1}
_MODE_CHANNELS |= {mode: 3 for mode in ("RGB", "RGBX", "CMYK", "YCbCr", "HSV")}
_MODE_CHANNELS |= {mode: 4 for mode in ("RGBA", "RGBa", "LA", "La", "PA")}


class BadImageError(ValueError):
    """A file that is no whole image. The message is one line: its name and what is wrong with it."""


# --------------------------------------------------------------------------------------------------------------- pixels


class ImageHeader(NamedTuple):
    """What an image is, known without decoding its pixels."""

    width: int
    height: int
    channels: int  # 1, 3 or 4
    plain: bool  # its pixels are stored as they are used: 8-bit L, RGB or RGBA, no orientation tag


def _open(data: bytes | BinaryIO, name: str) -> Image.Image:
    image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
    if image.mode not in _MODE_CHANNELS and image.mode != "P":
        raise BadImageError(f"{name}: pixels of mode {image.mode} have no known range; convert it to 8 or 16 bits")
    return image


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(0x0112, 1) if "exif" in image.info else 1


def _channels(image: Image.Image) -> int:
    if image.mode == "P":
        return 4 if "transparency" in image.info else 3
    return _MODE_CHANNELS[image.mode]


def _broken(error: Exception, name: str) -> BadImageError:
    if isinstance(error, BadImageError):
        return error
    if isinstance(error, Image.UnidentifiedImageError):
        return BadImageError(f"{name}: not an image, or its start is damaged")
    return BadImageError(f"{name}: truncated or broken image ({str(error).splitlines()[0] if str(error) else error!r})")


def read_header(data: bytes | BinaryIO, name: str = "image") -> ImageHeader:
    """Size and channels of an image file, from its header alone. Raises BadImageError."""
    try:
        image = _open(data, name)
        orientation = _orientation(image)
        width, height = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
        return ImageHeader(width, height, _channels(image), image.mode in MODES.values() and orientation == 1)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise _broken(error, name) from error


def open_image(data: bytes | BinaryIO, name: str = "image") -> Image.Image:
    """Decode an image file of any kind into a PIL image of mode L, RGB or RGBA, upright.

    Palettes become RGB (RGBA when a colour is transparent), 16-bit grey is scaled to 8 bits, CMYK and others become
    RGB, grey with alpha becomes RGBA, the EXIF orientation is applied, of an animation the first frame is taken.

    Args:
        data: the file's bytes, or a binary file.
        name: what to call it in errors.

    Raises:
        BadImageError: truncated, broken, no image, or pixels whose range is unknown (float).
    """
    try:
        image = _open(data, name)
        image.load()
        if _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            return Image.fromarray(_to_8_bits(np.asarray(image), name))
        mode = MODES[_channels(image)]
        return image if image.mode == mode else image.convert(mode)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise _broken(error, name) from error


def _to_8_bits(pixels: np.ndarray, name: str) -> np.ndarray:
    """0..65535 -> 0..255, rounded. (Pillow's own conversion clips everything above 255.)"""
    if pixels.min() < 0 or pixels.max() > 65535:
        raise BadImageError(f"{name}: 32-bit grey pixels have no known range; convert the file to 8 or 16 bits")
    return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """The image with 1, 3 or 4 channels. Alpha that goes away is flattened onto white; alpha that comes is opaque."""
    if image.mode == "RGBA" and channels != 4:
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(image, mask=image.getchannel("A"))
        image = canvas
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def to_array(image: Image.Image) -> np.ndarray:
    """PIL image (L, RGB, RGBA) -> uint8 [C, H, W], a writable copy of its own."""
    pixels = np.asarray(image)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)  # [C, H, W]
    return np.array(pixels, order="C")


def to_image(pixels: np.ndarray) -> Image.Image:
    """uint8 [C, H, W] with C of 1, 3, 4 -> PIL image."""
    return Image.fromarray(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))


def decode_image(data: bytes | BinaryIO, name: str = "image", channels: int | None = None) -> np.ndarray:
    """An image file of any kind -> uint8 [C, H, W]; C is its own (1, 3, 4) or `channels`. Raises BadImageError."""
    image = open_image(data, name)
    return to_array(image if channels is None else with_channels(image, channels))


def to_float(images: "torch.Tensor") -> "torch.Tensor":
    """uint8 0..255 -> float32 [-1, 1], any shape, on the images' device. `to_uint8` is its exact inverse."""
    return images.float() / 127.5 - 1


def to_uint8(images: "torch.Tensor") -> "torch.Tensor":
    """float [-1, 1] -> uint8 0..255, rounded to the nearest, what is outside clipped; any shape, on the same device."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).byte()


# -------------------------------------------------------------------------------------------------------------- writing


def png_names(names: list[str]) -> list[str]:
    """What to call PNGs that are made of images of these names.

    `a/1.jpg` makes `a/1.png`; where two would make the same, all keep their endings: `a/1.jpg.png`. ValueError where
    two images have one name.
    """
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"two images are called {twice!r}, and one would replace the other")
    pngs = [f"{os.path.splitext(name)[0]}.png" for name in names]
    return pngs if len(set(pngs)) == len(names) else [f"{name}.png" for name in names]


def keep_originals(outputs: Sequence[str], folder: str | os.PathLike, source: str) -> None:
    """ValueError where a file to be written into `folder` would replace the image `source`, or one in the folder
    `source`."""
    at, folder_at = os.path.realpath(source), os.path.realpath(folder)
    for name in outputs:
        path = f"{folder_at}/{name}"
        if path == at or path.startswith(f"{at}/") and os.path.exists(path):
            raise ValueError(f"{folder}/{name} would replace an image of {source}: choose another folder")


def save_image(pixels: np.ndarray, folder: str | os.PathLike, name: str) -> None:
    """Write uint8 [C, H, W] as `folder/name`, whole or not at all. ValueError where that lies outside of the folder."""
    path = os.path.join(folder, name)
    if Path(os.path.relpath(path, folder)).parts[0] == os.pardir:
        raise ValueError(f"an image is called {name!r}, which lies outside of {folder}: give it another name")
    with atomic_write(path, sync=False) as file:
        to_image(pixels).save(file, format="png")


# -------------------------------------------------------------------------------------------------------------- archive


class ImageArchive:
    """The images of a folder (searched recursively) or a zip, in the order of their names; thread- and fork-safe.

    Reading needs no shared position and no state: worker processes may use the same object after a fork, or a pickled
    copy of it. The index is a few NumPy arrays, not Python objects, so that forked workers share its memory.

    Args:
        path: folder, zip, or URL of a zip (downloaded into the cache).

    Attributes:
        path: where it is on this machine.
        is_zip: a zip, not a folder.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file that is no zip, or nothing in it is an image.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = local_path(path)
        self.is_zip = not self.path.is_dir()
        self._handle: int | None = None
        names = self._index_zip() if self.is_zip else _walk(self.path)
        if not names:
            kind, wanted = "zip" if self.is_zip else "folder", ", ".join(sorted(IMAGE_EXTENSIONS))
            raise ValueError(f"{self.path}: no images in this {kind} (looked for {wanted})")
        self._names = np.array([name.encode("utf-8", "surrogateescape") for name in names])

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Path inside the archive, with forward slashes."""
        return bytes(self._names[index]).decode("utf-8", "surrogateescape")

    def names(self) -> list[str]:
        return [self.name(i) for i in range(len(self))]

    def title(self, index: int) -> str:
        """The name for error messages: archive and file."""
        return f"{self.path}: {self.name(index)}"

    def digest(self) -> str:
        """SHA-256 in hex of the names of all images and, of a zip, their lengths and checksums: reads no file."""
        digest = hashlib.sha256("\0".join(self.names()).encode("utf-8", "surrogateescape"))
        if self.is_zip:
            digest.update(self._entries[:, 2:4].tobytes())
        return digest.hexdigest()

    def read(self, index: int) -> bytes:
        """The bytes of one file. Raises BadImageError when it cannot be read, or the zip is damaged there."""
        return self._read_zipped(index) if self.is_zip else self._read_file(index)

    def image(self, index: int) -> np.ndarray:
        """One image, decoded: uint8 [C, H, W]. Raises BadImageError with its name."""
        return decode_image(self.read(index), self.title(index))

    def images(self, indices: Sequence[int], shape: tuple[int, int, int]) -> np.ndarray:
        """uint8 [B, C, H, W] of images of the shape that a network takes. Raises BadImageError for one of another."""
        pixels = [self.image(i) for i in indices]
        for i, image in zip(indices, pixels, strict=True):
            if image.shape != shape:
                (C, H, W), (channels, height, width) = image.shape, shape
                raise BadImageError(
                    f"{self.title(i)} is {W}x{H} with {C} channels, the network's images are {width}x{height} with "
                    f"{channels}: see dataset_tool.py --resolution"
                )
        return np.stack(pixels)

    def header(self, index: int) -> ImageHeader:
        """Size and channels of one image without decoding it. Raises BadImageError with its name."""
        if self.is_zip:
            return read_header(self._read_zipped(index), self.title(index))
        try:
            with open(self.path / self.name(index), "rb") as file:
                return read_header(file, self.title(index))
        except OSError as error:
            raise BadImageError(f"{self.title(index)}: cannot be read ({error.strerror})") from error

    def read_extra(self, name: str) -> bytes | None:
        """The bytes of a file that is no image, such as `dataset.json`; None when there is none of that name."""
        if not self.is_zip:
            file = self.path / name
            return file.read_bytes() if file.is_file() else None
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(name) if name in archive.namelist() else None

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self):
        if getattr(self, "_handle", None) is not None:
            self.close()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_handle": None}

    def _index_zip(self) -> list[str]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                entries = [e for e in archive.infolist() if _is_image(e.filename) and not e.is_dir()]
        except (zipfile.BadZipFile, EOFError, struct.error) as error:
            raise ValueError(f"{self.path}: neither a folder nor a zip that can be read ({error})") from error
        entries.sort(key=lambda e: e.filename)
        for e in entries:
            if e.flag_bits & 1 or e.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                what = "is encrypted" if e.flag_bits & 1 else f"uses compression method {e.compress_type}"
                raise ValueError(f"{self.path}: {e.filename} {what}; repack the zip with `zip -0`")
        fields = [(e.header_offset, e.compress_size, e.file_size, e.CRC, e.compress_type) for e in entries]
        self._entries = np.array(fields, dtype=np.int64).reshape(-1, 5)  # [N, 5]
        return [e.filename for e in entries]

    def _read_file(self, index: int) -> bytes:
        try:
            return (self.path / self.name(index)).read_bytes()
        except OSError as error:
            raise BadImageError(f"{self.title(index)}: cannot be read ({error.strerror})") from error

    def _read_zipped(self, index: int) -> bytes:
        """Read one entry at its offset: `pread` moves no file position, so forked workers may share the handle."""
        offset, packed, size, crc, method = (int(x) for x in self._entries[index])
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        guess = 30 + len(self._names[index]) + 64  # local header: 30 bytes, the name, extra fields
        block = os.pread(self._handle, guess + packed, offset)
        if len(block) < 30 or block[:4] != b"PK\3\4":
            raise BadImageError(f"{self.title(index)}: the zip is damaged or has changed since it was opened")
        start = 30 + sum(struct.unpack("<HH", block[26:30]))
        if start > guess:
            block, start = os.pread(self._handle, packed, offset + start), 0
        data = block[start : start + packed]
        try:
            data = zlib.decompress(data, wbits=-15) if method == zipfile.ZIP_DEFLATED else data
        except zlib.error:
            data = b""
        if len(data) != size or zlib.crc32(data) != crc:
            raise BadImageError(f"{self.title(index)}: damaged in the zip (wrong length or checksum)")
        return data


def _is_image(name: str) -> bool:
    """By extension; what macOS and hidden files leave in archives does not count."""
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _walk(folder: Path) -> list[str]:
    found = []
    above = {str(folder): set()}  # of each folder to come: real names of those on the way to it, against loops of links
    for directory, folders, files in os.walk(folder, followlinks=True):
        way = above.pop(directory) | {os.path.realpath(directory)}
        folders[:] = [f for f in folders if os.path.realpath(os.path.join(directory, f)) not in way]
        above |= {os.path.join(directory, f): way for f in folders}
        base = Path(directory).relative_to(folder)
        found += [name for file in files if _is_image(name := (base / file).as_posix())]
    return sorted(found)


# --------------------------------------------------------------------------------------------------------------- labels


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
    text = archive.read_extra("dataset.json")
    if text is None:
        return labels_from_folders(archive.names())
    where = f"{archive.path}: dataset.json"
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f'{where} should be {{"labels": [["name.png", 0], ...]}} or {{"labels": null}}')
    if content.get("labels") is None:
        return None
    return _match_labels(content, archive.names(), where)


def _match_labels(content: dict, names: list[str], where: str) -> Labels:
    pairs = content["labels"]
    is_pair = [isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in pairs] if pairs else []
    if not isinstance(pairs, list) or not all(is_pair):
        raise ValueError(f'{where}: "labels" should be a list of ["name.png", label] pairs')
    table = {name.replace("\\", "/"): label for name, label in pairs}
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"{where} has no label for {len(missing)} of {len(names)} images; the first is {missing[0]}")
    if len(table) != len(names):
        extra = min(set(table) - set(names))
        raise ValueError(f"{where} labels {len(table)} images, there are {len(names)}; not there: {extra}")
    names_of = content.get("class_names")
    if names_of is not None and not (isinstance(names_of, list) and all(isinstance(n, str) for n in names_of)):
        raise ValueError(f'{where}: "class_names" should be a list of strings')
    try:
        values = np.array([table[name] for name in names])
    except ValueError:
        values = np.empty(0, dtype=object)
    if values.ndim == 1 and values.dtype.kind in "iu":
        if values.min() < 0:
            raise ValueError(f"{where}: class numbers start at 0, there is {values.min()}")
        if names_of is not None and values.max() >= len(names_of):
            raise ValueError(f"{where}: class {values.max()} has no name, there are {len(names_of)} class names")
        return Labels(values.astype(np.int64), names_of)
    if values.dtype.kind in "iuf" and values.ndim in (1, 2) and np.isfinite(values).all():
        return Labels(values.reshape(len(values), -1).astype(np.float32), None)
    raise ValueError(f"{where}: labels should all be class numbers, or all be lists of equally many numbers")


def labels_from_folders(names: list[str]) -> Labels | None:
    """Classes from the top-level folders, numbered in the order of their names; None if they make no classes.

    Folders that all images share are looked through. Files beside the folders make no class, so then there are none;
    folders named like EDM's shards (five digits, `00000`, `00001`, ...) hold no classes either.
    """
    depth = len(os.path.commonpath(names).split("/")) if len(names) > 1 and os.path.commonpath(names) else 0
    parts = [name.split("/")[depth:] for name in names]
    if any(len(p) < 2 for p in parts):
        return None
    class_names = sorted({p[0] for p in parts})
    if len(class_names) < 2 or all(re.fullmatch(r"\d{5}", name) for name in class_names):
        return None
    numbers = {name: i for i, name in enumerate(class_names)}
    return Labels(np.array([numbers[p[0]] for p in parts], dtype=np.int64), class_names)
