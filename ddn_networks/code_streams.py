"""The codes of pictures as bytes, and files of one picture (``codec``).

Legend: B pictures, T tiles of a picture, L layers, K nodes, n cells of a layer, D codes of a tile.

A file begins with two bytes: magic, and a version with the entropy model and the kind of file. In a file of one picture
follow the first 4 bytes of the network's digest and a checksum of the codes (2 bytes), 8 bytes in all, then the coded
stream: number of codes, how the rest is filled in, and the codes, layer by layer. Archives keep the whole digest once.
The digest covers what decoding depends on: weights without the finisher; the prior or the counts if they are the
entropy model. The checksum is of codes, since the last bits of pixels differ between machines.
"""

import binascii
import copy
import functools
import hashlib
import inspect
import itertools
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from ddn_networks import entropy, pixel_maps, samplers, search, snapshots, tiles
from ddn_networks.candidates import Candidates
from ddn_networks.code_priors import Counts
from ddn_networks.ddl import Selection
from ddn_networks.network import Network
from ddn_networks.samplers import Choice

MAGIC, VERSION = 0xDD, 1
MODELS = ('uniform', 'counts', 'prior')
SIZED, ARCHIVE = 4, 8  # flags of the second byte
HEADER = struct.Struct('<BB4sH')
MAX_SIDE, SIZE_BITS = 2**14, 28  # pixels; bits of two sides
# A file may claim so many pixels, and more for each of its bytes: no file makes more memory be taken.
MIN_PIXELS, PIXELS_PER_BYTE = 2**20, 2**14
ROWS = 64  # tiles in a pass at once
WALKS = 8  # passes whose features are kept between layers; those of more tiles are computed anew for each layer


class Picture(NamedTuple):
    """The codes of one picture.

    codes: [T, D] int64, -1 where a code is free: those after the first d, which are the same in all tiles.
    size: (H, W) of a picture of another size than the network's, cut into tiles (``tiles``); None for one tile.
    enlarged: show the image of the last layer that has codes, enlarged; otherwise free codes are the likeliest.
    """

    codes: torch.Tensor
    size: tuple[int, int] | None = None
    enlarged: bool = False


class Codec:
    """A network as a codec. It keeps what is computed once: make one for several calls.

    Args:
        net: in evaluation mode; a file made with its prior needs it on the CPU.
        model: of ``MODELS``; None for ``default_model``.

    Raises:
        ValueError: the network has no prior, or no counts, and ``model`` is that.
    """

    def __init__(self, net: Network, model: str | None = None):
        self.net, self.model = net, model or default_model(net)
        if self.model not in MODELS:
            raise ValueError(f'an entropy model is one of {", ".join(MODELS)}, not {model!r}')
        if self.model == 'counts' and not net.sampling.counts:
            raise ValueError('this network has no counts of its codes: add them with codec.py count')
        if self.model == 'prior' and not net.prior:
            raise ValueError('this network has no prior: take counts, or fit one with train.py --fit-prior')
        self.starts = [0, *(columns.stop for columns in net.code_slices)]

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 of what decoding depends on, 32 bytes."""
        return network_digest(self.net, self.model)

    @functools.cached_property
    def exact(self) -> Network:
        """The network in float64, where its prior differs between machines by 1e-14 nats only."""
        if self.net.device.type != 'cpu':
            raise ValueError('the entropy model is the prior, which is computed on the CPU: move the network there')
        return copy.deepcopy(self.net).double()

    @property
    def asks_prior(self) -> bool:
        """Whether the probabilities of a code depend on the codes before it: by a prior that is not counts."""
        return self.model == 'prior' and not isinstance(self.net.prior[0], Counts)

    # Codes and bytes.

    def write(self, pictures: Sequence[Picture], condition: torch.Tensor | None = None) -> list[bytes]:
        """The coded streams of pictures; ``condition``: [1 or B, c, h, w]."""
        writers = [entropy.Writer() for _ in pictures]
        nums = [num_kept(picture) for picture in pictures]
        for writer, picture, num in zip(writers, pictures, nums, strict=True):
            for side in picture.size or ():
                writer.put(np.array(divmod(side - 1, 128)), np.ones(128))
            writer.put(np.array([num]), np.ones(self.net.num_codes + 1))
            writer.put(np.array([picture.enlarged]), np.ones(2))
        owner = [i for i, picture in enumerate(pictures) for _ in range(len(picture.codes))]
        codes = torch.cat([picture.codes for picture in pictures]).cpu()

        def code(row: int, layer: int, log_p: np.ndarray | None) -> np.ndarray | None:
            writer, own = writers[owner[row]], self.columns(layer, nums[owner[row]])
            if not own:
                return None
            if log_p is not None:
                found = entropy.rounded(log_p)
                entropy.put_listed(writer, found)
            frequencies = self.frequencies[layer] if log_p is None else found.frequencies
            writer.put(codes[row, own].numpy(), frequencies[: len(own)] if frequencies.ndim == 2 else frequencies)
            return codes[row, self.columns(layer)].clamp(min=0).numpy()

        self._each_code(code, len(owner), rows_of(condition, owner))
        streams = [writer.finish() for writer in writers]
        for stream, picture in zip(streams, pictures, strict=True):
            if picture.size and not _may_claim(stream, picture.size):
                H, W = picture.size
                raise ValueError(f'{len(stream)} bytes of codes are too few for {W}x{H} pixels: keep more of them')
        return streams

    def read(
        self, streams: Sequence[bytes], sized: Sequence[bool], condition: torch.Tensor | None = None,
        partial: bool = False,
    ) -> list[Picture]:  # fmt: skip
        """The pictures of coded streams. ``sized``: whether each has a size. ``partial``: the streams may be cut off;
        codes that their bytes do not decide are free.

        Raises:
            ValueError: bytes that no codes have (not with ``partial``), or a size that so few bytes cannot have.
        """
        readers = [(entropy.PrefixReader if partial else entropy.CheckedReader)(stream) for stream in streams]
        heads = [self._head(*args) for args in zip(readers, streams, sized, strict=True)]
        owner = [i for i, (tiles_, *_) in enumerate(heads) for _ in range(tiles_)]
        codes = torch.full((len(owner), self.net.num_codes), -1)

        def decode(row: int, layer: int, log_p: np.ndarray | None) -> np.ndarray | None:
            reader, own = readers[owner[row]], self.columns(layer, heads[owner[row]][2])
            found = None if log_p is None or not own else entropy.get_listed(reader, entropy.rounded(log_p))
            if not own or log_p is not None and found is None:
                return None
            frequencies = self.frequencies[layer] if log_p is None else found.frequencies
            got = reader.get(frequencies[: len(own)] if frequencies.ndim == 2 else frequencies, len(own))
            codes[row, own[: len(got)]] = torch.from_numpy(got)
            return codes[row, self.columns(layer)].clamp(min=0).numpy() if len(got) == len(own) else None

        self._each_code(decode, len(owner), rows_of(condition, owner))
        for reader in () if partial else readers:
            if not reader.is_whole():
                raise ValueError('it is damaged: these are not the bytes of its codes')
        parts = codes.split([tiles_ for tiles_, *_ in heads])
        return [Picture(part, size, enlarged) for part, (_, size, _, enlarged) in zip(parts, heads, strict=True)]

    def _head(
        self, reader: entropy.CheckedReader | entropy.PrefixReader, stream: bytes, sized: bool
    ) -> tuple[int, tuple[int, int] | None, int, bool]:
        """Number of tiles, size, number of codes and ``enlarged`` of a stream."""
        size = None
        if sized:
            digits = reader.get(np.ones(128), 4)
            if len(digits) < 4:
                raise ValueError('it ends before the size of the picture')
            size = (int(digits[:2] @ (128, 1)) + 1, int(digits[2:] @ (128, 1)) + 1)
            if not _may_claim(stream, size):
                raise ValueError(f'it is damaged: {len(stream)} bytes claim a picture of {size[1]}x{size[0]} pixels')
        kept, enlarged = reader.get(np.ones(self.net.num_codes + 1), 1), reader.get(np.ones(2), 1)
        num = 1 if size is None else len(tiles.places(size, self.net.img_resolution))
        return num, size, int(kept.sum()), bool(enlarged.any())

    def _each_code(
        self, ask: Callable[[int, int, np.ndarray | None], np.ndarray | None], rows: int,
        condition: torch.Tensor | None,
    ) -> None:  # fmt: skip
        """``ask(row, layer, log p [n, K] or None)`` for all layers, and in a layer for all rows; it returns the row's
        codes, None for those that do not matter any more. The network's prior is asked if it is the entropy model; of
        more than ``WALKS`` passes, the others begin anew for each layer, so that memory does not grow."""
        if not self.asks_prior:
            for layer in range(self.net.num_layers):
                if not [row for row in range(rows) if ask(row, layer, None) is not None]:
                    break
            return
        now, alive = 0, False
        codes = torch.zeros(rows, self.net.num_codes, dtype=torch.int64)

        def sampler(candidates: Candidates, layer: int, so_far: torch.Tensor, part: range) -> Choice:
            nonlocal alive
            columns = slice(*self.starts[layer : layer + 2])
            if layer == now:  # the layers before are asked again where a walk is not kept
                log_p = candidates.log_prior().view(len(part), candidates.num_nodes, -1)  # [B, K, n]
                for i, row in enumerate(part):
                    own = ask(row, layer, log_p[i].t().numpy())
                    if own is not None:
                        codes[row, columns], alive = torch.from_numpy(own), True
            chosen = codes[part.start : part.stop, columns]
            return Choice(chosen if candidates.num_cells > 1 else chosen[:, 0])

        condition = None if condition is None else condition.double()
        parts = [range(first, min(first + ROWS, rows)) for first in range(0, rows, ROWS)]

        def walk(part: range) -> Iterator[Selection]:
            return self.exact.walk(functools.partial(sampler, part=part), len(part), rows_of(condition, part))

        with torch.no_grad():
            kept = [walk(part) for part in parts[:WALKS]]
            for now in range(self.net.num_layers):
                alive = False
                for one in kept:
                    next(one)
                for part in parts[WALKS:]:
                    next(itertools.islice(walk(part), now, None))
                if not alive:
                    break

    @functools.cached_property
    def frequencies(self) -> list[np.ndarray]:
        """Integers [K] of each layer, or [n, K], by a model that does not depend on other codes."""
        net = self.net
        if self.model == 'uniform':
            return [np.ones(K, dtype=np.int64) for K in net.num_nodes]
        found = []
        for layer, spec in enumerate(net.specs):
            if self.model == 'prior':
                first = min(self.starts[layer], len(net.prior[0].counts) - spec.num_cells)
                own = net.prior[0].counts[first : first + spec.num_cells, : spec.num_nodes].clamp(min=0).cpu().numpy()
            else:  # later steps of a recurrent network than were counted have the counts of the last one
                own = np.array(net.sampling.counts[min(layer, len(net.sampling.counts) - 1)], dtype=np.int64)
            found.append(own + 1)
        return found

    def columns(self, layer: int, num: int | None = None) -> range:
        """The columns of a layer's codes; of the first ``num`` codes of the latent."""
        first, end = self.starts[layer : layer + 2]
        return range(first, end if num is None else max(first, min(end, num)))

    def checksum(self, picture: Picture) -> int:
        """Of the codes, the size and how the rest is filled in: 16 bits."""
        facts = [*(picture.size or ()), picture.enlarged]
        return binascii.crc_hqx(np.array(facts + picture.codes.flatten().tolist(), dtype='<i4').tobytes(), 0)

    # Pictures.

    @torch.no_grad()
    def draw(self, pictures: Sequence[Picture], condition: torch.Tensor | None = None, **how) -> list[torch.Tensor]:
        """The image [C, H, W] of each picture, about in [-1, 1]. ``condition``: [1 or B, c, h, w]. ``how``: see
        ``Network.decode``."""
        codes = torch.cat([picture.codes for picture in pictures]).to(self.net.device)
        condition = rows_of(condition, [i for i, picture in enumerate(pictures) for _ in range(len(picture.codes))])
        enlarged = torch.tensor([p.enlarged for p in pictures for _ in range(len(p.codes))]).to(self.net.device)
        drawn = []
        for part in torch.arange(len(codes)).split(ROWS):
            some, given = codes[part], rows_of(condition, part.tolist())
            drawn.append(completed(self.net, some, enlarged[part], given, **how))
        parts = torch.cat(drawn).split([len(picture.codes) for picture in pictures])
        return [
            part[0] if picture.size is None else tiles.join(part, picture.size)
            for part, picture in zip(parts, pictures, strict=True)
        ]

    # Files.

    def file(self, picture: Picture, condition: torch.Tensor | None = None) -> bytes:
        """A file of one picture."""
        kind = VERSION << 4 | MODELS.index(self.model) | (SIZED if picture.size else 0)
        header = HEADER.pack(MAGIC, kind, self.digest[:4], self.checksum(picture))
        return header + self.write([picture], condition)[0]

    def picture(self, data: bytes, condition: torch.Tensor | None = None, partial: bool = False) -> Picture:
        """The picture of a file; with ``partial`` of one that is whole all codes. Errors as for ``decode``."""
        header = read_header(data)
        self.check(header)
        if partial:
            try:
                return self.picture(data, condition)
            except ValueError:
                pass  # it is cut off
        (picture,) = self.read([data[HEADER.size :]], [header.sized], condition, partial)
        if not partial and self.checksum(picture) != header.checksum:
            raise ValueError('it is damaged: the codes do not have the checksum in its header')
        return picture

    def check(self, header: 'Header') -> None:
        """ValueError where a file was made with another entropy model or network."""
        if header.model != self.model:
            raise ValueError(f'it was made with the entropy model {header.model!r}, this is {self.model!r}')
        if not self.digest.startswith(header.digest):
            own = self.digest[: len(header.digest)].hex()
            raise ValueError(f'it was made with another network: that of digest {header.digest.hex()}, not {own}')


def _may_claim(stream: bytes, size: tuple[int, int]) -> bool:
    return size[0] * size[1] <= max(MIN_PIXELS, PIXELS_PER_BYTE * len(stream))


def num_kept(picture: Picture) -> int:
    """d, how many codes a picture has. ValueError where they are not the first ones of all tiles."""
    given = picture.codes >= 0
    num = int(given.sum(1).max())
    if given[:, :num].all() and not given[:, num:].any():
        return num
    raise ValueError('the codes of a file are the first ones of each tile: others after a free one are not possible')


class Header(NamedTuple):
    """The first bytes of a file. digest: the first 4 or all 32 bytes of the network's; checksum: None of an archive."""

    model: str
    sized: bool
    archive: bool
    digest: bytes
    checksum: int | None


def read_header(data: bytes) -> Header:
    """The header of a file, given its first bytes, 34 or more of an archive. ValueError where it is not such a file."""
    if len(data) < 2 or data[0] != MAGIC:
        raise ValueError('it is not a file of codec.py')
    version, kind = divmod(data[1], 16)
    if version != VERSION or kind & 3 >= len(MODELS):
        raise ValueError(f'it is of version {version} of the format, this program reads version {VERSION}')
    archive = bool(kind & ARCHIVE)
    if len(data) < (34 if archive else HEADER.size):
        raise ValueError('it ends within its header')
    digest = data[2:34] if archive else data[2:6]
    checksum = None if archive else int.from_bytes(data[6:8], 'little')
    return Header(MODELS[kind & 3], bool(kind & SIZED), archive, digest, checksum)


def default_model(net: Network) -> str:
    """The network's prior if it has one, else counts of its codes, else uniform."""
    return 'prior' if net.prior else 'counts' if net.sampling.counts else 'uniform'


def network_digest(net: Network, model: str) -> bytes:
    """SHA-256 of a network's class, arguments and weights; of its prior or its counts only where these are the entropy
    model; without its finisher."""
    spec = snapshots.init_spec(net)
    left_out = ('finisher',) if model == 'prior' else ('finisher', 'prior_')
    # Arguments of their default value are left out: later revisions may have more of them.
    defaults = {k: p.default for k, p in inspect.signature(type(net)).parameters.items()}
    kwargs = {
        k: v for k, v in spec['kwargs'].items()
        if not k.startswith(left_out) and snapshots.plain(v) != snapshots.plain(defaults[k])
    }  # fmt: skip
    facts = {'class_name': spec['class_name'], 'kwargs': kwargs, 'steps': net.num_layers}
    if model == 'counts':
        facts['counts'] = [list(row) for row in net.sampling.counts]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(net.state_dict().items()):
        if name.startswith('finisher.') or name.startswith('prior.') and model != 'prior':
            continue
        digest.update(f'{name} {list(tensor.shape)} '.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.digest()


def completed(
    net: Network, codes: torch.Tensor, enlarged: torch.Tensor, condition: torch.Tensor | None = None, **how
) -> torch.Tensor:
    """The images [B, C, H, W] of codes [B, D] that are free (-1) from some place on. Where ``enlarged`` [B] says so,
    that of the last layer with codes, enlarged (bicubic), its free cells changed as little as possible; else with the
    likeliest codes, drawn ``how`` (``Network.decode``)."""
    last = torch.stack([(codes[:, columns] >= 0).any(1) for columns in net.code_slices], 1).sum(1) - 1  # [B]
    enlarged = enlarged & (last >= 0)
    large = codes.new_zeros(len(codes), net.img_channels, *net.img_resolution, dtype=torch.float32)
    rest, rows = (~enlarged).nonzero()[:, 0], enlarged.nonzero()[:, 0]
    if len(rest):
        large[rest] = net.decode(codes[rest], rows_of(condition, rest.tolist()), **how)
    if len(rows):
        large[rows] = _last_enlarged(net, codes[rows], last[rows], rows_of(condition, rows.tolist()))
    return large


def _last_enlarged(
    net: Network, codes: torch.Tensor, last: torch.Tensor, condition: torch.Tensor | None
) -> torch.Tensor:
    """The image of layer ``last`` [B], enlarged: see ``completed``."""

    def sampler(candidates: Candidates, layer: int, so_far: torch.Tensor) -> Choice:
        return Choice(search.least_change(candidates))

    large = codes.new_zeros(len(codes), net.img_channels, *net.img_resolution, dtype=torch.float32)
    for layer, selection in enumerate(net.walk(samplers.keeping(sampler, codes), len(codes), condition)):
        here = last == layer
        if here.any():
            large[here] = pixel_maps.enlarge(selection.image[here], net.img_resolution)
        if layer == last.max():
            break
    return large


def rows_of(condition: torch.Tensor | None, rows: Sequence[int]) -> torch.Tensor | None:
    """A condition [1 or B, c, h, w] of some of the images."""
    return condition if condition is None or len(condition) == 1 else condition[list(rows)]
