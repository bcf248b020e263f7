"""The files of codec.py: pictures to encode, and what is read back."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch
from tqdm import tqdm

from cli.pictures import Pictures
from ddn_networks.code_streams import HEADER, Codec, Header, Picture, read_header
from ddn_networks.codec import MOST_STREAM, ArchiveReader, read_archive
from dnnlib.images import png_names
from dnnlib.readers import open_regular, printable, read_bytes
from dnnlib.util import format_bytes


class Originals:
    """The pictures of files, folders and zips, one batch at a time. ValueError where there are none, or two have one
    name."""

    def __init__(self, paths: Sequence[str], channels: int, most: int | None = None):
        self._sources, self._channels = [Pictures(path) for path in paths], channels
        places = [(source, i) for source in self._sources for i in range(len(source))]
        self._places = places[:most]
        names = [source.names[i] for source, i in self._places]
        self.names = [os.path.splitext(name)[0] for name in png_names(names)]

    @property
    def files(self) -> list[str]:
        """What is read: zips, pictures, and those of folders."""
        return [os.path.join(s.path, name) if os.path.isdir(s.path) else s.path
                for s in self._sources for name in s.names]  # fmt: skip

    def __len__(self) -> int:
        return len(self._places)

    def batches(self, size: int, pixels: int) -> Iterator[tuple[list[str], torch.Tensor]]:
        """(names, images [n, C, H, W] in [-1, 1]) of pictures of the same size in a row: at most ``size``, and at most
        ``size`` times ``pixels``, or one."""
        names: list[str] = []
        images: list[torch.Tensor] = []
        for name, (source, i) in zip(self.names, self._places, strict=True):
            (image,) = source.read([i], self._channels)
            full = len(images) == size or (len(images) + 1) * image[0].numel() > size * pixels
            if images and (full or image.shape != images[0].shape):
                yield names, torch.stack(images)
                names, images = [], []
            names.append(name)
            images.append(image)
        yield names, torch.stack(images)


def header(path: str) -> Header:
    """The header of a file. ValueError in one line with its name."""
    with named(path), open_regular(path) as file:
        return read_header(file.read(34))


def outputs(path: str, outdir: str) -> Iterator[str]:
    """The PNGs that a file is decoded to. Needs no network; of a damaged archive those before the damage."""
    if not header(path).archive:
        yield os.path.join(outdir, f'{stem(path)}.png')
        return
    with contextlib.suppress(ValueError), open_regular(path) as file:
        for i, record in enumerate(ArchiveReader(file)):
            yield os.path.join(outdir, f'{numbered(record.name, i)}.png')


def stem(path: str) -> str:
    """The name of a file of one picture, without ending."""
    return os.path.splitext(os.path.basename(path))[0]


def numbered(name: str, index: int) -> str:
    """The name that an archive has for a picture, or its number there."""
    return name or f'{index:06d}'


def pictures(path: str, codec: Codec, partial: bool = False, title: str = 'read') -> Iterator[tuple[Picture, str]]:
    """The pictures of a file and their names without ending, one by one, with progress. ValueError where it is damaged;
    what was yielded is whole."""
    if not header(path).archive:
        yield codec.picture(read_bytes(path, MOST_STREAM), None, partial), stem(path)
        return
    if partial:
        raise ValueError('--partial is for files of one picture; of an archive --recover writes the whole pictures')
    how = {'unit': 'B', 'unit_scale': True, 'delay': 2, 'leave': False}
    with open_regular(path) as file, tqdm(total=os.path.getsize(path), desc=title, **how) as bar:
        names: set[str] = set()
        for i, (picture, name) in enumerate(read_archive(file, codec)):
            name = numbered(name, i)
            if name in names:
                raise ValueError(f'two of its pictures are called {name!r}, and one would replace the other')
            names.add(name)
            yield picture, name
            bar.update(file.tell() - bar.n)


@contextlib.contextmanager
def named(path: str, recover: bool = False) -> Iterator[list[str]]:
    """Errors in the block with the name of the file. ``recover``: they end the block, and are in the list."""
    damage: list[str] = []
    try:
        yield damage
    except ValueError as error:
        text = str(error) if path in str(error) else f'{printable(path)}: {error}'
        if not recover:
            raise ValueError(text) from error
        damage.append(text)


def description(path: str) -> list[str]:
    """What a file says of itself, in lines. ValueError where it is damaged."""
    about, length = header(path), os.path.getsize(path)
    lines = [f'entropy model  {about.model}', f'network        {about.digest.hex()}']
    if not about.archive:
        kind = 'one picture, in tiles' if about.sized else 'one picture'
        return [f'kind           {kind}', *lines, f'bytes          {length}, {HEADER.size} of them header']
    num = coded = 0
    with open_regular(path) as file:
        for record in ArchiveReader(file):
            num, coded = num + 1, coded + len(record.stream)
    each = f', {coded / num:.1f} each' if num else ''
    return ['kind           archive', *lines, f'pictures       {num:,}',
            f'bytes          {length:,} ({format_bytes(length)}), {coded:,} of them codes{each}']  # fmt: skip
