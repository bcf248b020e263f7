"""How many bits a picture gets: rate-distortion choices, and the codes that fit a number of bits or a PSNR.

Legend: B images, T tiles of an image, b beams per image, L layers, K nodes, n cells of a layer, D codes of a tile.

A choice costs its squared error and lambda for each of the bits that the coder spends on it, for all K candidates in
closed form. Larger lambdas, and fewer codes, make smaller files. Which of both is better depends on the picture: a
search tries some lambdas, and of each all numbers of layers.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ddn_networks import entropy, pixel_maps, samplers, search, tiles
from ddn_networks.candidates import Candidates
from ddn_networks.code_streams import HEADER, ROWS, SIZE_BITS, Codec, Picture, num_kept, rows_of
from ddn_networks.samplers import Choice

LAMBDAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)  # squared error, summed over pixels in [-1, 1], for a bit


class Rate(NamedTuple):
    """What is asked of the file of a picture; at most one of the first three.

    layers: keep so many layers.
    bits: at most so many bits, with the 8 bytes of the header, at the best PSNR.
    psnr: at least so many dB if the network can, in as few bits as possible.
    tradeoff: lambda, squared error (summed over pixels in [-1, 1]) that a bit may cost; searched for with ``bits`` and
        ``psnr``.
    beam: partial images kept in the search.
    """

    layers: int | None = None
    bits: float | None = None
    psnr: float | None = None
    tradeoff: float = 0.0
    beam: int = 1

    @property
    def asks(self) -> bool:
        """Whether anything but the nearest codes of all layers is asked for."""
        return (self.layers, self.bits, self.psnr) != (None, None, None) or self.tradeoff > 0


class Trial(NamedTuple):
    """An image encoded with some lambda; with a beam the best codes of each number of layers.

    codes: L + 1 tensors [T, d], of the first 0 .. L layers.
    bits: the same of their bits by the entropy model.
    errors: L + 1 numbers, mean squared error of the last of these layers' images, enlarged; infinite for none. Of
        several tiles the mean of theirs.
    """

    codes: list[torch.Tensor]
    bits: list[torch.Tensor]
    errors: list[float]


class Cut(NamedTuple):
    """The first codes of an image, their bits with the head of a stream, and the mean squared error of what is drawn.
    """

    picture: Picture
    bits: float
    error: float


def choose(
    codec: Codec, images: torch.Tensor, rate: Rate, condition: torch.Tensor | None = None
) -> list[Picture]:
    """The codes of images [B, C, H, W]; those of another size than the network's in tiles, with the first codes of
    all tiles. ValueError for what no file can be."""
    net, L = codec.net, codec.net.num_layers
    images = images.to(net.device)
    if sum(x is not None for x in (rate.layers, rate.bits, rate.psnr)) > 1:
        raise ValueError('give one of layers, bits and psnr')
    for name in ('bits', 'psnr', 'tradeoff'):
        if (value := getattr(rate, name)) is not None and not 0 <= value < math.inf:
            raise ValueError(f'{name} is a number of at least 0, not {value}')
    if rate.layers is not None and not 0 <= rate.layers <= L:
        raise ValueError(f'this network has {L} layers: {rate.layers} of them cannot be kept')
    size = size_of(codec, images)
    least = HEADER.size + math.ceil((head_bits(codec, size) + 1) / 8)  # bytes
    if rate.bits is not None and rate.bits // 8 < least:
        raise ValueError(f'a file has {HEADER.size} bytes of header and some more: give at least {8 * least} bits')
    if size is not None and len(images) > 1:
        rows = range(len(images))
        return [choose(codec, images[b : b + 1], rate, rows_of(condition, [b]))[0] for b in rows]
    if rate.bits is None and rate.psnr is None:
        num = codec.starts[L if rate.layers is None else rate.layers]
        tries = trials(codec, images, rate.tradeoff, condition, rate.beam)
        return [cut.picture for cut in cuts(codec, images, tries, [num] * len(images), condition)]
    return searched(codec, images, rate, condition)


def size_of(codec: Codec, images: torch.Tensor) -> tuple[int, int] | None:
    """(H, W) of images [B, C, H, W] of another size than the network's, else None."""
    size = tuple(images.shape[2:])
    return None if size == codec.net.img_resolution else size


# ----------------------------------------------------------------------------------------------- bits that are spent


def answer_bits(codec: Codec, layer: int, log_p: torch.Tensor | None = None) -> torch.Tensor:
    """Bits that the coder spends on each answer of a layer, [B or 1, K, n] float32, -log2 of the rounded probabilities
    that it codes with. ``log_p``: [B, K] or [B, K, n] by the network's own prior; read where the entropy model is."""
    if codec.asks_prior:
        table = torch.from_numpy(entropy.FREQUENCIES).to(log_p.device).float()
        steps = (0.5 - log_p.float() / entropy.STEP).nan_to_num(len(table)).clamp(0, len(table) - 1)
        frequencies = table[steps.long()].view(len(log_p), log_p.shape[1], -1)  # [B, K, n]
    else:
        counts = torch.from_numpy(np.atleast_2d(codec.frequencies[layer])).to(codec.net.device).float()
        frequencies = counts.t().expand(-1, codec.net.specs[layer].num_cells)[None]  # [1, K, n]
    return (frequencies.sum(1, keepdim=True) / frequencies).log2()


def code_bits(codec: Codec, codes: torch.Tensor, log_prior: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Bits that the coder spends on each of the codes [B, D], given the log-probabilities of all layers by the own
    prior (``Output.log_prior`` of the pass with these codes): [B, D]."""
    found = []
    for layer, (log_p, columns) in enumerate(zip(log_prior, codec.net.code_slices, strict=True)):
        bits = answer_bits(codec, layer, log_p).expand(len(codes), -1, -1)  # [B, K, n]
        found.append(bits.gather(1, codes[:, None, columns])[:, 0])
    return torch.cat(found, 1)


@torch.no_grad()
def payload_bits(codec: Codec, codes: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
    """Bits of the coded stream of each image: codes [B, D] -> [B] float64. A file has 64 more, its header, and ends at
    a whole byte."""
    net = codec.net
    codes = net.check_codes(codes).to(net.device)
    log_prior = [None] * net.num_layers
    if codec.asks_prior:
        log_prior = net(samplers.with_log_prior(samplers.given(codes)), len(codes), condition, keep=True).log_prior
    return code_bits(codec, codes, log_prior).cpu().double().sum(1) + head_bits(codec)


def mean_code_bits(codec: Codec, codes: torch.Tensor, log_prior: Sequence[torch.Tensor | None]) -> list[float]:
    """Mean bits of a code of each layer, [L]; arguments of ``code_bits``."""
    bits = code_bits(codec, codes, log_prior)
    return [bits[:, columns].mean().item() for columns in codec.net.code_slices]


def head_bits(codec: Codec, size: tuple[int, int] | None = None) -> float:
    """Of the size of an image in tiles, of the number of codes, and of how the rest is filled in."""
    return (0 if size is None else SIZE_BITS) + math.log2(codec.net.num_codes + 1) + 1


# ------------------------------------------------------------------------------------------------------------- one pass


@torch.no_grad()
def trial(
    codec: Codec, images: torch.Tensor, tradeoff: float, condition: torch.Tensor | None = None, beam: int = 1
) -> list[Trial]:
    """Images [B, C, H, W], each encoded with this lambda."""
    net, B = codec.net, len(images)
    chooser = Chooser(codec, images, tradeoff, beam)
    own = condition is not None and len(condition) > 1
    condition = condition.repeat_interleave(beam, 0) if own else condition
    codes, bits, errors = [torch.zeros(B, 0, dtype=torch.int64)], [torch.zeros(B, 0)], [torch.full((B,), math.inf)]
    for layer, selection in enumerate(net.walk(chooser, B * beam, condition)):
        image = selection.image[::beam]
        if layer + 1 < net.num_layers:
            image = pixel_maps.enlarge(image, net.img_resolution)
        codes.append(selection.codes[::beam].cpu())
        bits.append(chooser.bits[::beam].cpu())
        errors.append((image.clamp(-1, 1) - images).square().mean((1, 2, 3)).cpu())
    return [
        Trial([c[b : b + 1] for c in codes], [x[b : b + 1] for x in bits], [e[b].item() for e in errors])
        for b in range(B)
    ]


def trials(
    codec: Codec, images: torch.Tensor, tradeoff: float, condition: torch.Tensor | None = None, beam: int = 1
) -> list[Trial]:
    """``trial`` of images of the network's size, or of one image of another size: that of all its tiles."""
    if size_of(codec, images) is None:
        return trial(codec, images, tradeoff, condition, beam)
    parts = tiles.cut(images[0], codec.net.img_resolution).split(ROWS)
    found = [tile for part in parts for tile in trial(codec, part, tradeoff, condition, beam)]
    codes, bits = ([torch.cat(x) for x in zip(*of, strict=True)]
                   for of in ([t.codes for t in found], [t.bits for t in found]))  # fmt: skip
    errors = [sum(of) / len(found) for of in zip(*(t.errors for t in found), strict=True)]
    return [Trial(codes, bits, errors)]


class Chooser:
    """The sampler of ``trial``: of each image the b partial images of least squared error + lambda * bits.

    Attributes:
        bits: [B b, d], those of the codes so far. (The one sampler that keeps something between layers: what earlier
            choices cost cannot be seen from the candidates.)
    """

    def __init__(self, codec: Codec, images: torch.Tensor, tradeoff: float, beam: int):
        self.codec, self.beam, self.tradeoff = codec, beam, tradeoff
        self.target, self.numbers = samplers.target_pyramid(images), images[0].numel()
        self.bits = images.new_zeros(len(images) * beam, 0)

    def __call__(self, candidates: Candidates, layer: int, codes: torch.Tensor) -> Choice:
        B, n, beam = len(codes), candidates.num_cells, self.beam
        target = self.target(candidates.shape[2:]).repeat_interleave(beam, 0)
        bits = answer_bits(self.codec, layer, candidates.log_prior() if self.codec.asks_prior else None)
        costs = candidates.distances(target).view(B, -1, n) * (self.numbers / n)
        costs = costs + self.tradeoff * bits  # [B b, K, n]
        if beam == 1:
            chosen, parents = costs.argmin(1), None  # [B, n]
            rows = torch.arange(B, device=codes.device)
        else:
            sums, answers = search.k_best(costs, beam)  # [B b, k], [B b, k, n]
            sums = sums + self.tradeoff * self.bits.sum(1, keepdim=True)
            chosen, rows = search.kept_in_beam(sums, answers, codes, beam)
            parents = rows
        own = bits.expand(B, -1, -1)[rows].gather(1, chosen[:, None])  # [B b, 1, n]
        self.bits = torch.cat([self.bits[rows], own[:, 0]], 1)
        return Choice(chosen if n > 1 else chosen[:, 0], None, None, parents)


# ----------------------------------------------------------------------------------------------------------- the search


def searched(
    codec: Codec, images: torch.Tensor, rate: Rate, condition: torch.Tensor | None = None
) -> list[Picture]:
    """The best picture of each image: of all whole layers and lambdas, and with ``bits`` of as many codes as fit; with
    ``psnr`` less of its last layer."""
    B = len(images)
    lambdas = LAMBDAS[:1] if codec.model == 'uniform' else LAMBDAS  # where all codes cost the same it decides nothing
    tries = [trials(codec, images, tradeoff, condition, rate.beam) for tradeoff in lambdas]
    head = head_bits(codec, size_of(codec, images))
    found: list[list[Cut]] = [[] for _ in range(B)]

    def add(of_image: Sequence[Trial], nums: Sequence[int]) -> None:
        for own, cut in zip(found, cuts(codec, images, of_image, nums, condition), strict=True):
            own.append(cut)

    for layer, num in enumerate(codec.starts):
        whole = [
            [Cut(None, head + t.bits[layer].sum().item(), t.errors[layer]) for t in of_image]
            for of_image in zip(*tries, strict=True)
        ]
        chosen = [own.index(best(own, rate)) for own in whole]
        add([tries[i][b] for b, i in enumerate(chosen)], [num] * B)
    if rate.bits is not None:
        for of_image in tries:
            add(of_image, [most_codes(t.bits[-1], 8 * (rate.bits // 8 - HEADER.size) - head) for t in of_image])
        return fitting(codec, images, rate, [best(own, rate) for own in found], condition)
    return [shortened(codec, images[b : b + 1], rate, best(own, rate), rows_of(condition, [b]))
            for b, own in enumerate(found)]  # fmt: skip


def fitting(
    codec: Codec, images: torch.Tensor, rate: Rate, found: Sequence[Cut], condition: torch.Tensor | None = None
) -> list[Picture]:
    """The pictures of cuts whose bits are estimates, without the last codes where the file would be too long."""
    pictures = [cut.picture for cut in found]
    while True:
        streams = codec.write(pictures, condition)
        long = [len(stream) > rate.bits // 8 - HEADER.size and num_kept(picture) > 0
                for stream, picture in zip(streams, pictures, strict=True)]  # fmt: skip
        if not any(long):
            return pictures
        pictures = [first(p, num_kept(p) - 1) if yes else p for p, yes in zip(pictures, long, strict=True)]


def shortened(
    codec: Codec, image: torch.Tensor, rate: Rate, cut: Cut, condition: torch.Tensor | None
) -> Picture:
    """The fewest codes of a cut that still reach ``rate.psnr``, by halving its last layer."""
    limit, picture = 4 * 10 ** (-rate.psnr / 10), cut.picture
    num = num_kept(picture)
    low = max((start for start in codec.starts if start < num), default=0)
    while cut.error <= limit and num - low > 1:
        middle = (low + num) // 2
        tried = min((first(picture, middle)._replace(enlarged=e) for e in (False, True)),
                    key=lambda p: error(codec, image, p, condition))  # fmt: skip
        if error(codec, image, tried, condition) <= limit:
            picture, num = tried, middle
        else:
            low = middle
    return picture


def best(found: Sequence[Cut], rate: Rate) -> Cut:
    """The least error of those that fit ``rate.bits``, or the fewest bits of those that reach ``rate.psnr``; if there
    is none, the shortest, or the one of least error."""
    if rate.bits is not None:
        right = [cut for cut in found if HEADER.size + math.ceil(cut.bits / 8) <= rate.bits // 8]
        return min(right, key=lambda cut: cut.error) if right else min(found, key=lambda cut: cut.bits)
    right = [cut for cut in found if cut.error <= 4 * 10 ** (-rate.psnr / 10)]
    return min(right, key=lambda cut: cut.bits) if right else min(found, key=lambda cut: cut.error)


def most_codes(bits: torch.Tensor, limit: float) -> int:
    """How many of the codes with these bits [T, D], of all tiles, have at most ``limit`` bits."""
    return int((bits.double().sum(0).cumsum(0) <= limit).sum())


def first(picture: Picture, num: int) -> Picture:
    """The first ``num`` codes of a picture."""
    codes = picture.codes.clone()
    codes[:, num:] = -1
    return picture._replace(codes=codes)


def cuts(
    codec: Codec, images: torch.Tensor, tries: Sequence[Trial], nums: Sequence[int],
    condition: torch.Tensor | None = None,
) -> list[Cut]:  # fmt: skip
    """The first codes of each image's trial, so many; the rest filled in as it is nearer to the image."""
    D, size, made = codec.net.num_codes, size_of(codec, images), []
    for own, num in zip(tries, nums, strict=True):
        layer = next(l for l, start in enumerate(codec.starts) if start >= num)
        picture = Picture(F.pad(own.codes[layer][:, :num], (0, D - num), value=-1), size)
        made.append(Cut(picture, head_bits(codec, size) + own.bits[layer][:, :num].sum().item(), math.inf))
    for enlarged in (False, True) if min(nums) < D else (False,):
        pictures = [cut.picture._replace(enlarged=enlarged) for cut in made]
        drawn = torch.stack(codec.draw(pictures, condition, finish=False))
        errors = (drawn.clamp(-1, 1) - images).square().mean((1, 2, 3)).tolist()
        made = [Cut(picture, cut.bits, error) if error < cut.error else cut
                for picture, cut, error in zip(pictures, made, errors, strict=True)]  # fmt: skip
    return made


def error(codec: Codec, image: torch.Tensor, picture: Picture, condition: torch.Tensor | None = None) -> float:
    """Mean squared error against an image [1, C, H, W]."""
    drawn = codec.draw([picture], condition, finish=False)[0]
    return (drawn.clamp(-1, 1) - image[0]).square().mean().item()
