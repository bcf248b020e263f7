"""Turn any source of images into a dataset for training: EDM's format, a zip (or folder) of images of one size.

\b
    00000/img00000000.png ... 00001/img00010000.png, and dataset.json {"labels": [["00000/img00000000.png", 6], ...]}

\b
--source may be
  DIR or FILE.zip               images of any type, searched recursively
  cifar-10-python.tar.gz        CIFAR-10
  *-images-idx3-ubyte[.gz]      MNIST and the like, padded from 28x28 to 32x32
  *_lmdb                        LSUN

Labels come from the source's dataset.json, else from the names of its top-level folders. Width and height are free.
docs/datasets.md says which files are read, and how.

--resolution alone stretches images to that size. With --transform=center-crop they are cut to its proportions first;
center-crop-wide adds black bars to that, so WxH becomes WxW.

\b
--format=png            lossless, what EDM reads
--format=webp-lossless  lossless and smaller; RGB only
--format=keep           files that need no change are copied, so a folder of JPEGs does not grow; the others are PNG

--skip-images and --max-images cut one source in two, after --shuffle if that is given (a source with a folder per class
is in the order of its classes):

\b
  python dataset_tool.py --source=photos --dest=train.zip --shuffle --skip-images=1000
  python dataset_tool.py --source=photos --dest=test.zip --shuffle --max-images=1000
"""

import cli.environment  # noqa: F401  # before anything is printed

# isort: split
import contextlib
import errno
import io
import json
import re
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from cli.options import Command, one_line_errors, script_help
from dnnlib.images import BadImageError, ImageHeader, with_channels
from dnnlib.readers import printable
from dnnlib.sources import Source, open_source
from dnnlib.util import atomic_write, format_bytes, require_writable

SHOWN = 20  # broken files, or classes, that are named
MAX_SIDE, MAX_PIXELS = 16_384, 1 << 26  # of --resolution; 2^26 is 8192x8192

# --------------------------------------------------------------------------------------------------------------- pixels


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize with Lanczos to exactly this size, also if that changes the proportions."""
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
    if not dest.is_dir():
        require_writable('--dest', dest)
    if dest.suffix.lower() in ('.tar', '.gz', '.tgz', '.rar', '.7z', '.lmdb'):
        raise ValueError(f'--dest={dest}: a .zip or a folder is written, nothing else')
    if dest.is_dir() and (dest.suffix.lower() == '.zip' or any(dest.iterdir())):
        raise ValueError(f'--dest={dest} is a folder that is not empty: choose another name, or remove it first')
    if dest.is_file() and dest.suffix.lower() != '.zip':
        raise ValueError(f'--dest={dest} is a file: choose a name that ends in .zip, or a new folder')


# -------------------------------------------------------------------------------------------------------------- convert


class Target(NamedTuple):
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
    """Positions to take. Broken images count, so that two cuts of one source never overlap."""
    if skip >= count:
        raise ValueError(f'--skip-images={skip} leaves nothing: the source has {count} images')
    order = np.random.RandomState(0).permutation(count) if shuffle else np.arange(count)
    return order[skip : None if most is None else skip + most].tolist()


def survey(source: Source, chosen: Sequence[int], broken: Broken) -> dict[int, ImageHeader]:
    """Read the headers of all images, and leave out those that cannot be read."""
    headers = {}
    for index in tqdm(chosen, desc='Looking', unit='img', disable=None, leave=False):
        try:
            headers[index] = source.header(index)
        except BadImageError as error:
            broken.add(error)
    return headers


def common_channels(headers: dict[int, ImageHeader]) -> int:
    """Number of channels for all: alpha only if every image has it, colour if any has it. A mix is reported."""
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


def convert(source: Source, index: int, target: Target) -> tuple[bytes, str]:
    """One image as it will be written: content and extension. Raises BadImageError."""
    image = source.image(index)  # decoded also when its file is kept: a truncated one must not get through
    size = target.resolution or image.size
    same = image.size == size and (target.transform != 'center-crop-wide' or size[0] == size[1])
    if target.format == 'keep' and same:
        file, header = source.file(index), source.header(index)
        if file is not None and header.plain and header.channels == target.channels:
            return file
    image = TRANSFORMS[target.transform](with_channels(image, target.channels), *size)
    extension = '.webp' if target.format == 'webp-lossless' else '.png'
    return encode(image, extension), extension


def write_all(
    source: Source, chosen: Sequence[int], target: Target, broken: Broken, write: Callable[[str, bytes], None]
) -> tuple[int, int]:
    """Write the images and dataset.json; returns how many images and bytes."""
    kept, names, total = [], [], 0
    for index in tqdm(chosen, desc='Writing', unit='img', disable=None):
        try:
            data, extension = convert(source, index, target)
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
    match = re.fullmatch(r'0*([1-9]\d{0,9})x0*([1-9]\d{0,9})', value, re.ASCII)
    if not match:
        raise click.BadParameter(f'{value[:40]!r} is not WIDTHxHEIGHT, such as 64x64 or 96x64')
    return int(match[1]), int(match[2])


def check_size(resolution: tuple[int, int] | None, transform: str | None) -> None:
    """Refuse sizes that no image can have, before any work."""
    if resolution is None:
        if transform is not None:
            raise click.UsageError(f'--transform={transform} needs --resolution=WxH')
        return
    width, height = resolution
    if transform == 'center-crop-wide':
        if width < height:
            raise click.UsageError(f'center-crop-wide pads the height: {width}x{height} is not wide')
        height = width
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        limit = f'{MAX_SIDE} pixels a side and {MAX_PIXELS:,} in all'
        raise click.UsageError(f'--resolution={resolution[0]}x{resolution[1]} is too large: give at most {limit}')


def plan(
    source: Source, chosen: Sequence[int], broken: Broken, channels: str, **kwargs
) -> tuple[Target, Sequence[int]]:
    """What the images become, and which of them: those with a readable header, where headers had to be read."""
    target = Target(0 if channels == 'auto' else int(channels), **kwargs)
    if channels == 'auto' or target.resolution is None:
        headers = survey(source, chosen, broken)
        if not headers:
            raise ValueError(f'none of the {len(chosen)} images can be read; the first: {broken.reasons[0]}')
        chosen = list(headers)
        if channels == 'auto':
            target = target._replace(channels=common_channels(headers))
        if target.resolution is None:
            require_one_size(source, headers)
    if target.format == 'webp-lossless' and target.channels != 3:
        raise ValueError('WebP keeps RGB only: use --format=png for grey or RGBA images, or --channels=3')
    return target, chosen


@click.command(
    cls=Command, help=script_help(__file__), context_settings={'show_default': True, 'max_content_width': 120}
)
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
@one_line_errors()
def main(source, dest, max_images, skip_images, shuffle, transform, resolution, channels, format_, split, on_error):
    check_size(resolution, transform)
    require_free(dest, source)
    images, broken = open_source(source, split), Broken([], stop=on_error == 'fail')
    for note in images.notes:
        click.echo(note)
    chosen = choose(len(images), skip_images, max_images, shuffle)
    target, chosen = plan(images, chosen, broken, channels, resolution=resolution, transform=transform, format=format_)
    with open_dest(dest) as write:
        count, size = write_all(images, chosen, target, broken, write)
    click.echo(summary(images, target, count, size, dest))
    if broken.reasons:
        more = len(broken.reasons) - SHOWN
        lines = [f'Left out {len(broken.reasons)} broken file(s):', *broken.reasons[:SHOWN]]
        click.echo('\n  '.join(lines + ([f'... and {more} more'] if more > 0 else [])))


def summary(source: Source, target: Target, count: int, size: int, dest: Path) -> str:
    kind = {1: 'grey', 3: 'RGB', 4: 'RGBA'}[target.channels]
    labels = source.labels
    if labels is None:
        words = 'without labels'
    elif labels.values.ndim == 2:
        words = f'with label vectors of length {labels.values.shape[1]}'
    else:
        names = labels.class_names or []
        words = f'with labels of {len(names or np.unique(labels.values))} classes'
        if names:
            shown = [f'{i} {printable(name)}' for i, name in enumerate(names[:SHOWN])]
            words += f' ({", ".join(shown + ["..."] * (len(names) > SHOWN))})'
    return f'Wrote {printable(dest)}: {count} {kind} images {words}, {format_bytes(size)}'


if __name__ == '__main__':
    main()
