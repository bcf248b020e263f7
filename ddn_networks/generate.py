"""Images in batches: the loop behind generate.py, the metrics and the experiments.

    for batch in generate.samples(net, range(50_000)):
        save(batch.images)

Legend: B images of a batch, C channels, H x W pixels, L layers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from ddn_networks.guided_sampling import Guidance
from ddn_networks.network import Network

# One condition for all images, or a function of positions that gives theirs, [B or 1, c, H, W] or None.
Condition = torch.Tensor | Callable[[Sequence[int]], torch.Tensor | None] | None


class Batch(NamedTuple):
    """Some of the images that were asked for.

    positions: which of them these are, B numbers.
    images: [B, C, H, W] about in [-1, 1], on the network's device, of the pass that made them.
    codes: [B, L] int64, their latents.
    originals: [B, C, H, W], the images that these reconstruct, or None.
    """

    positions: Sequence[int]
    images: torch.Tensor
    codes: torch.Tensor
    originals: torch.Tensor | None = None


def samples(
    net: Network,
    seeds: Sequence[int],
    batch_size: int = 64,
    condition: Condition = None,
    guidance: Guidance | Callable[[Sequence[int]], Guidance] | None = None,
    positions: Sequence[int] | None = None,
    temperature: float | Sequence[float] | None = None,
    top_p: float | None = None,
    uniform: bool = False,
    cfg: float = 1.0,
    codes: Callable[[Sequence[int]], torch.Tensor] | None = None,
    finish: bool = True,
) -> Iterator[Batch]:
    """One image per seed, by the network's own prior, uniform choices, or ``guidance`` (or a function of positions that
    gives it).

    Args:
        net: in evaluation mode.
        seeds: may be a range; only one batch of it is looked at a time.
        positions: which of the seeds to do, for a rank its share; None for all.
        temperature, top_p, uniform, cfg: see ``Network.sample``.
        codes: a function of positions that gives their partial codes, [B, D] (``Network.sample``); None keeps nothing.
        finish: apply the finisher of a network that has one.
    """
    for part in _batches(len(seeds), batch_size, positions):
        guide = guidance(part) if callable(guidance) else guidance
        some, given = [seeds[i] for i in part], _of(condition, part)
        partial = None if codes is None else codes(part)
        how = {'codes': partial, 'finish': finish}
        yield Batch(part, *net.sample(None, 0, some, given, guide, temperature, top_p, uniform, cfg, **how))


def decodings(
    net: Network,
    codes: torch.Tensor,
    batch_size: int = 64,
    condition: Condition = None,
    positions: Sequence[int] | None = None,
    finish: bool = True,
) -> Iterator[Batch]:
    """The images that the rows of codes [N, D] name. ``positions``: which rows; None for all. ``finish``: apply the
    finisher of a network that has one."""
    for part in _batches(len(codes), batch_size, positions):
        some = codes[list(part)]
        yield Batch(part, net.decode(some, _of(condition, part), finish=finish), some)


def reconstructions(
    net: Network,
    num: int,
    read: Callable[[Sequence[int]], torch.Tensor],
    batch_size: int = 64,
    condition: torch.Tensor | Callable[[Sequence[int], torch.Tensor], torch.Tensor | None] | None = None,
    positions: Sequence[int] | None = None,
    beam: int = 1,
    share_prefixes: bool = False,
    refine: int = 0,
    finish: bool = True,
) -> Iterator[Batch]:
    """Images encoded and decoded again, in one pass each (``Network.reconstruct``).

    Args:
        net: in evaluation mode.
        num: how many images there are.
        read: positions -> images [B, C, H, W] float in [-1, 1].
        condition: one for all images, or a function of positions and images that gives theirs.
        positions: which of the images to do, for a rank its share; None for all.
        beam, share_prefixes, refine, finish: see ``Network.reconstruct``.
    """
    for part in _batches(num, batch_size, positions):
        originals = read(part)
        made = condition(part, originals) if callable(condition) else condition
        output = net.reconstruct(originals, made, beam, share_prefixes, refine, finish)
        yield Batch(part, output.images, output.codes, originals)


def _of(condition: Condition, positions: Sequence[int]) -> torch.Tensor | None:
    return condition(positions) if callable(condition) else condition


def _batches(num: int, batch_size: int, positions: Sequence[int] | None) -> Iterator[Sequence[int]]:
    positions = range(num) if positions is None else positions
    for first in range(0, len(positions), batch_size):
        yield positions[first : first + batch_size]
