"""Turn any source of images into a dataset for training: EDM's format, a zip (or folder) of images of one size.

    00000/img00000000.png ... 00001/img00010000.png, and dataset.json {"labels": [["00000/img00000000.png", 6], ...]}

A source is a small class with `__len__`, `title` (for messages), `header`, `image`, `file` and `labels`; `convert` asks
it for one image after the other.
"""

import contextlib
import errno
import gzip
import io
import json
import os
import pickle
import re
import secrets
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from dnnlib.archives import ImageArchive
from dnnlib.downloads import error_line, is_url, local_path
from dnnlib.images import BadImageError, ImageHeader, open_image, read_header, to_image, with_channels
from dnnlib.labels import Labels, read_labels
from dnnlib.util import atomic_write, format_bytes, redacted

IDX_NAME = re.compile(r'images([-.])idx3-ubyte(\.gz)?$')
SHOWN = 20  # broken files named in the summary

# -------------------------------------------------------------------------------------------------------------- sources


class Source(Protocol):
    labels: Labels | None

    def __len__(self) -> int: ...
    def title(self, index: int) -> str: ...  # what to call the image in messages
    def header(self, index: int) -> ImageHeader: ...  # raises BadImageError
    def image(self, index: int) -> Image.Image: ...  # mode L, RGB, RGBA; raises BadImageError
    def file(self, index: int) -> tuple[bytes, str] | None: ...  # content and extension, if it comes as a file


class ArchiveSource:
    """A folder or zip of image files."""

    def __init__(self, path: Path):
        self.archive = ImageArchive(path)
        self.labels = read_labels(self.archive)

    def __len__(self) -> int:
        return len(self.archive)

    def title(self, index: int) -> str:
        return self.archive.name(index)

    def header(self, index: int) -> ImageHeader:
        return self.archive.header(index)

    def image(self, index: int) -> Image.Image:
        return open_image(self.archive.read(index), self.archive.title(index))

    def file(self, index: int) -> tuple[bytes, str]:
        return self.archive.read(index), os.path.splitext(self.archive.name(index))[1].lower()


class ArraySource:
    """Images that are held in memory: uint8 [N, C, H, W]."""

    def __init__(self, images: np.ndarray, labels: Labels | None):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def title(self, index: int) -> str:
        return f'image {index}'

    def header(self, index: int) -> ImageHeader:
        channels, height, width = self.images.shape[1:]
        return ImageHeader(width, height, channels, plain=True)

    def image(self, index: int) -> Image.Image:
        return to_image(self.images[index])

    def file(self, index: int) -> None:
        return None


class LmdbSource:
    """An LSUN database: image files under arbitrary keys, no labels."""

    labels = None

    def __init__(self, path: Path):
        try:
            import lmdb
        except ImportError:
            raise ValueError(f'{path}: reading an lmdb needs the package lmdb: pip install lmdb') from None
        try:
            self.transaction = lmdb.open(str(path), readonly=True, lock=False, readahead=False, max_readers=1).begin()
            with self.transaction.cursor() as cursor:
                self.keys = list(cursor.iternext(keys=True, values=False))
        except lmdb.Error as error:
            raise ValueError(f'{path}: not an lmdb that can be read ({error})') from error
        if not self.keys:
            raise ValueError(f'{path}: the lmdb is empty')

    def __len__(self) -> int:
        return len(self.keys)

    def title(self, index: int) -> str:
        return f"key {self.keys[index].decode('ascii', 'replace')}"

    def header(self, index: int) -> ImageHeader:
        return read_header(self.file(index)[0], self.title(index))

    def image(self, index: int) -> Image.Image:
        return open_image(self.file(index)[0], self.title(index))

    def file(self, index: int) -> tuple[bytes, str]:
        return bytes(self.transaction.get(self.keys[index])), '.webp'


def open_source(path_or_url: str, split: str) -> Source:
    """Find out what kind of source it is, by its name. Raises ValueError, OSError."""
    path = local_path(path_or_url)
    if path.is_dir():
        return LmdbSource(path) if path.name.endswith('_lmdb') or (path / 'data.mdb').is_file() else ArchiveSource(path)
    if IDX_NAME.search(path.name):
        return read_idx(path_or_url)
    if path.name.endswith(('.tar.gz', '.tgz', '.tar')):
        return read_cifar10(path, split)
    return ArchiveSource(path)


def read_idx(path_or_url: str) -> ArraySource:
    """MNIST and its kin: digits of 28x28 get a border of 2 zeros, as in EDM; labels from the file beside it, if any."""
    images = _read_idx_array(local_path(path_or_url), 3)[:, None]  # [N, 1, H, W]
    if images.shape[2:] == (28, 28):
        images = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))  # [N, 1, 32, 32]
    beside = IDX_NAME.sub(r'labels\1idx1-ubyte\2', str(path_or_url))
    if not is_url(beside) and not Path(beside).exists():
        click.echo(f'No labels: there is no {beside}')
        return ArraySource(images, None)
    values = _read_idx_array(local_path(beside), 1).astype(np.int64)
    if len(values) != len(images):
        raise ValueError(f'{beside}: {len(values)} labels for {len(images)} images')
    return ArraySource(images, Labels(values, None))


def _read_idx_array(path: Path, rank: int) -> np.ndarray:
    try:
        with open(path, 'rb') as file:
            data = file.read()
        data = gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data
        start = 4 + 4 * rank
        if data[:4] != bytes([0, 0, 8, rank]):
            raise ValueError('wrong first bytes')
        shape = struct.unpack(f'>{rank}I', data[4:start])
        if len(data) - start != np.prod(shape, dtype=np.int64) or shape[0] == 0:
            raise ValueError(f'{len(data) - start} bytes do not hold an array of {shape}')
        return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
    except (ValueError, EOFError, struct.error, gzip.BadGzipFile, gzip.zlib.error) as error:
        raise ValueError(f'{path}: not a whole idx file of bytes ({error})') from error


def read_cifar10(path: Path, split: str) -> ArraySource:
    """The 50,000 training (or 10,000 test) images of cifar-10-python.tar.gz, with their classes."""
    parts = ['test_batch'] if split == 'test' else [f'data_batch_{i}' for i in range(1, 6)]
    try:
        with tarfile.open(path) as archive:
            batches = [_read_cifar_part(archive, name) for name in [*parts, 'batches.meta']]
        meta = batches.pop()
        images = np.concatenate([np.asarray(b[b'data'], dtype=np.uint8) for b in batches]).reshape(-1, 3, 32, 32)
        values = np.concatenate([np.asarray(b[b'labels'], dtype=np.int64) for b in batches])
        names = [name.decode() for name in meta[b'label_names']]
    except (tarfile.TarError, EOFError, KeyError, ValueError, TypeError, AttributeError, gzip.zlib.error) as error:
        reason = (str(error).splitlines() or ['truncated'])[0].rstrip(':')
        raise ValueError(f'{path}: not a whole cifar-10-python.tar.gz ({reason})') from error
    except pickle.UnpicklingError as error:
        raise ValueError(f'{path}: {error}') from error
    if len(values) != len(images):
        raise ValueError(f'{path}: {len(values)} labels for {len(images)} images')
    return ArraySource(images, Labels(values, names))


def _read_cifar_part(archive: tarfile.TarFile, name: str) -> dict:
    with archive.extractfile(f'cifar-10-batches-py/{name}') as file:
        return _ArrayUnpickler(file, encoding='bytes').load()


class _ArrayUnpickler(pickle.Unpickler):
    """Loads dicts, lists, strings and NumPy arrays; a pickle that asks for anything else is refused, not run."""

    def find_class(self, module: str, name: str):
        if (module, name) in {('numpy', 'ndarray'), ('numpy', 'dtype')}:
            return getattr(np, name)
        if module in ('numpy.core.multiarray', 'numpy._core.multiarray') and name == '_reconstruct':
            return np.empty(0).__reduce__()[0]
        if (module, name) == ('_codecs', 'encode'):  # how Python 3 writes bytes in old protocols
            return _encode
        raise pickle.UnpicklingError(f'the file asks to load {module}.{name}: not a file of plain arrays, refused')


def _encode(text: str, encoding: str) -> bytes:
    return text.encode('latin1' if encoding in ('latin1', b'latin1') else 'ascii')


# --------------------------------------------------------------------------------------------------------------- pixels


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize with Lanczos, whatever it does to the proportions."""
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


def center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """The largest centred part that has the proportions of width x height, resized to it."""
    w = min(image.width, max(1, round(image.height * width / height)))
    h = min(image.height, max(1, round(image.width * height / width)))
    left, top = (image.width - w) // 2, (image.height - h) // 2
    return resize(image.crop((left, top, left + w, top + h)), width, height)


def center_crop_wide(image: Image.Image, width: int, height: int) -> Image.Image:
    """`center_crop` to width x height, with black bars above and below that make it width x width."""
    canvas = Image.new(image.mode, (width, width))
    canvas.paste(center_crop(image, width, height), (0, (width - height) // 2))
    return canvas


TRANSFORMS = {None: resize, 'center-crop': center_crop, 'center-crop-wide': center_crop_wide}


def encode(image: Image.Image, extension: str) -> bytes:
    """The image as a PNG or a lossless WebP, without what else its file held (colour profiles, dates, places)."""
    buffer = io.BytesIO()
    bare = Image.fromarray(np.asarray(image))
    if extension == '.png':
        bare.save(buffer, 'png')
    else:
        bare.save(buffer, 'webp', lossless=True, quality=100)
    return buffer.getvalue()


# -------------------------------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def open_dest(dest: Path) -> Iterator[Callable[[str, bytes], None]]:
    """A function `write(name, data)` into a new zip or folder, which appears at `dest` whole or not at all."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    if dest.suffix.lower() == '.zip':
        with atomic_write(dest) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
            yield lambda name, data: _write_entry(archive, name, data)
        return
    temporary = dest.with_name(f'.{dest.name}.{secrets.token_hex(4)}.tmp')
    try:
        temporary.mkdir()
        yield lambda name, data: _write_file(temporary / name, data)
        temporary.rename(dest)  # replaces an empty folder
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(error.errno, f'disk full: could not write {dest}; what was written is removed') from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_entry(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name)  # dated 1980: the same source makes the same zip
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def require_free(dest: Path, source: str) -> None:
    """Refuse a destination that holds something else. An older zip is replaced, at the very end."""
    if dest.resolve() == Path(source).resolve():
        raise ValueError(f'--dest is the source itself: {dest}')
    if dest.suffix.lower() in ('.tar', '.gz', '.tgz', '.rar', '.7z', '.lmdb'):
        raise ValueError(f'--dest={dest}: a .zip or a folder is written, nothing else')
    if dest.is_dir() and (dest.suffix.lower() == '.zip' or any(dest.iterdir())):
        raise ValueError(f'--dest={dest} is a folder that is not empty: choose another name, or remove it first')
    if dest.is_file() and dest.suffix.lower() != '.zip':
        raise ValueError(f'--dest={dest} is a file: choose a name that ends in .zip, or a new folder')


# -------------------------------------------------------------------------------------------------------------- convert


class Plan(NamedTuple):
    """What every image becomes."""

    channels: int  # 1, 3 or 4
    resolution: tuple[int, int] | None  # (W, H); None keeps the size that all images have
    transform: str | None
    format: str  # png, webp-lossless, keep


class Broken(NamedTuple):
    """The images that were left out, and why."""

    reasons: list[str]
    stop: bool  # at the first one

    def add(self, error: BadImageError) -> None:
        if self.stop:
            raise error
        self.reasons.append(str(error))


def choose(count: int, skip: int, most: int | None, shuffle: bool) -> Sequence[int]:
    """The positions to take, broken images counted: two cuts of one source stay apart whatever is broken in it."""
    if skip >= count:
        raise ValueError(f'--skip-images={skip} leaves nothing: the source has {count} images')
    order = np.random.RandomState(0).permutation(count) if shuffle else np.arange(count)
    return order[skip : None if most is None else skip + most].tolist()


def survey(source: Source, chosen: Sequence[int], broken: Broken) -> dict[int, ImageHeader]:
    """The headers of the images that have a readable one."""
    headers = {}
    for index in tqdm(chosen, desc='Looking', unit='img', disable=None, leave=False):
        try:
            headers[index] = source.header(index)
        except BadImageError as error:
            broken.add(error)
    return headers


def common_channels(headers: dict[int, ImageHeader]) -> int:
    """Channels that suit all: alpha only if every image has it, colour if any has it. A mix is said."""
    counts = {c: sum(h.channels == c for h in headers.values()) for c in (1, 3, 4)}
    found = [c for c, n in counts.items() if n]
    if len(found) == 1:
        return found[0]
    words = ', '.join(f'{counts[c]} {kind}' for c, kind in ((1, 'grey'), (3, 'RGB'), (4, 'with alpha')) if counts[c])
    click.echo(f'A mix of {words}: all become RGB, alpha is flattened onto white (--channels=1|3|4 to choose)')
    return 3


def require_one_size(source: Source, headers: dict[int, ImageHeader]) -> None:
    first = next(iter(headers))
    size = headers[first][:2]
    for index, header in headers.items():
        if header[:2] != size:
            raise ValueError(
                f'{source.title(index)} is {header.width}x{header.height}, but {source.title(first)} is '
                f'{size[0]}x{size[1]}: give --resolution=WxH, and --transform=center-crop to keep proportions'
            )


def convert(source: Source, index: int, plan: Plan) -> tuple[bytes, str]:
    """One image as it will be written: content and extension. Raises BadImageError."""
    image = source.image(index)  # decoded also when its file is kept: a truncated one must not get through
    size = plan.resolution or image.size
    same = image.size == size and (plan.transform != 'center-crop-wide' or size[0] == size[1])
    if plan.format == 'keep' and same:
        file, header = source.file(index), source.header(index)
        if file is not None and header.plain and header.channels == plan.channels:
            return file
    image = TRANSFORMS[plan.transform](with_channels(image, plan.channels), *size)
    extension = '.webp' if plan.format == 'webp-lossless' else '.png'
    return encode(image, extension), extension


def write_all(source: Source, chosen: Sequence[int], plan: Plan, broken: Broken, write: Callable) -> tuple[int, int]:
    """Write the images and dataset.json; returns how many images and bytes."""
    kept, names, total = [], [], 0
    for index in tqdm(chosen, desc='Writing', unit='img', disable=None):
        try:
            data, extension = convert(source, index, plan)
        except BadImageError as error:
            broken.add(error)
            continue
        number = f'{len(names):08d}'  # EDM's numbering: the first five of eight digits are the folder
        name = f'{number[:5]}/img{number}{extension}'
        write(name, data)
        kept.append(index)
        names.append(name)
        total += len(data)
    if not names:
        raise ValueError(f'none of the {len(chosen)} images can be read; the first: {broken.reasons[0]}')
    content: dict = {'labels': None}
    if source.labels is not None:
        content['labels'] = [list(pair) for pair in zip(names, source.labels.values[kept].tolist(), strict=True)]
        if source.labels.class_names is not None:
            content['class_names'] = source.labels.class_names
    write('dataset.json', json.dumps(content).encode())
    return len(names), total


# ----------------------------------------------------------------------------------------------------------------- main


def parse_resolution(_ctx, _param, value: str | None) -> tuple[int, int] | None:
    """WxH -> (W, H)"""
    if value is None:
        return None
    match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', value)
    if not match:
        raise click.BadParameter(f'{value!r} is not WIDTHxHEIGHT, such as 64x64 or 96x64')
    return int(match[1]), int(match[2])


@click.command(context_settings={'show_default': True, 'max_content_width': 120})
@click.option('--source', required=True, metavar='PATH|URL', help='Where the images come from')
@click.option('--dest', required=True, metavar='ZIP|DIR', type=click.Path(path_type=Path), help='What to write')
@click.option('--max-images', metavar='N', type=click.IntRange(min=1), help='Take at most N images')
@click.option('--skip-images', metavar='N', type=click.IntRange(min=0), default=0, help='Leave out the first N images')
@click.option('--shuffle', is_flag=True, help='Take the images in random order, always the same one')
@click.option('--transform', type=click.Choice(['center-crop', 'center-crop-wide']), help='How to fit --resolution')
@click.option('--resolution', metavar='WxH', callback=parse_resolution, help='Resize to this size')
@click.option('--channels', type=click.Choice(['auto', '1', '3', '4']), default='auto', help='Grey, RGB, RGBA')
@click.option('--format', 'format_', type=click.Choice(['png', 'webp-lossless', 'keep']), default='png', help='Files')
@click.option('--split', type=click.Choice(['train', 'test']), default='train', help="Part of CIFAR-10's own archive")
@click.option('--on-error', type=click.Choice(['skip', 'fail']), default='skip', help='What to do about broken files')
def main(source, dest, max_images, skip_images, shuffle, transform, resolution, channels, format_, split, on_error):
    """Turn any source of images into a dataset for training: a zip (or folder) of images of one size, with labels.

    \b
    --source may be
      DIR or FILE.zip               images of any type, searched recursively
      cifar-10-python.tar.gz        CIFAR-10
      *-images-idx3-ubyte[.gz]      MNIST and its kin, padded from 28x28 to 32x32
      *_lmdb                        LSUN (needs: pip install lmdb)

    Labels come from the source's dataset.json, else from the names of its top-level folders. Width and height are free.

    --resolution alone stretches images to that size. With --transform=center-crop they are cut to its proportions
    first; center-crop-wide adds black bars to that, so WxH becomes WxW.

    \b
    --format=png            lossless, what EDM reads
    --format=webp-lossless  lossless and smaller; RGB only
    --format=keep           files that need no change are copied, so a folder of JPEGs does not grow; the others are PNG

    --skip-images and --max-images cut one source in two, after --shuffle if that is given (a source with a folder per
    class is in the order of its classes):

    \b
      dataset_tool.py --source=photos --dest=train.zip --shuffle --skip-images=1000
      dataset_tool.py --source=photos --dest=test.zip --shuffle --max-images=1000
    """
    if transform is not None and resolution is None:
        raise click.UsageError(f'--transform={transform} needs --resolution=WxH')
    if transform == 'center-crop-wide' and resolution[0] < resolution[1]:
        raise click.UsageError(f'center-crop-wide pads the height: {resolution[0]}x{resolution[1]} is not wide')
    broken = Broken([], stop=on_error == 'fail')
    try:
        require_free(dest, source)
        images = open_source(source, split)
        chosen = choose(len(images), skip_images, max_images, shuffle)
        if channels == 'auto' or resolution is None:
            headers = survey(images, chosen, broken)
            if not headers:
                raise ValueError(f'none of the {len(chosen)} images can be read; the first: {broken.reasons[0]}')
            chosen = list(headers)
        plan = Plan(common_channels(headers) if channels == 'auto' else int(channels), resolution, transform, format_)
        if resolution is None:
            require_one_size(images, headers)
        if format_ == 'webp-lossless' and plan.channels != 3:
            raise ValueError('WebP keeps RGB only: use --format=png for grey or RGBA images, or --channels=3')
        with open_dest(dest) as write:
            count, size = write_all(images, chosen, plan, broken, write)
    except BrokenPipeError:
        raise  # whoever read the output has gone: click ends quietly
    except OSError as error:
        place = f': {error.filename}' if error.filename else ''
        raise click.ClickException(redacted(f'{error.strerror or error}{place}')) from error
    except ValueError as error:
        raise click.ClickException(error_line(error)) from error
    click.echo(summary(images, plan, count, size, dest))
    if broken.reasons:
        more = len(broken.reasons) - SHOWN
        lines = [f'Left out {len(broken.reasons)} broken file(s):', *broken.reasons[:SHOWN]]
        click.echo('\n  '.join(lines + ([f'... and {more} more'] if more > 0 else [])))


def summary(source: Source, plan: Plan, count: int, size: int, dest: Path) -> str:
    kind = {1: 'grey', 3: 'RGB', 4: 'RGBA'}[plan.channels]
    labels = source.labels
    if labels is None:
        words = 'without labels'
    elif labels.values.ndim == 2:
        words = f'with label vectors of length {labels.values.shape[1]}'
    else:
        words = f'with labels of {len(labels.class_names or np.unique(labels.values))} classes'
    return f'Wrote {dest}: {count} {kind} images {words}, {format_bytes(size)}'


if __name__ == '__main__':
    main()
