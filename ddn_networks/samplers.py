"""Who answers "which of these K?": samplers are plain functions ``(candidates, layer, codes) -> Choice``.

Legend: B images, K nodes, L layers, n cells of a layer (``cells``; 1 where it asks for the whole image), D codes, the
sum of n over the layers. ``codes`` [B, D] is the latent, layer by layer; the sampler of a layer is given the d choices
so far, ``codes[:, :d]``, and answers ``codes[:, d : d + n]``. A sampler keeps no state between layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ddn_networks.aliases import old_arguments
from ddn_networks.candidates import Candidates, area_resize


class Choice(NamedTuple):
    """A sampler's answer for one layer.

    codes: int64, the chosen node of each image, [B], or of each cell, [B, n].
    distances: [B, K] or [B, K, n], the criterion of the choice (smaller is better), or None where nothing was
        compared.
    dropped: bool, as codes, where Chain Dropout replaced the choice; None if nowhere. Such codes are not counted as
        matches by Split-and-Prune.
    parents: [B] int64, which of the B partial images each code continues (beam search), or None for "its own".
    evidence: what the penalty on the choice was computed from, for the ``observe`` of the balancing that made it.
    log_prior: [B, K] or [B, K, n], log p of every answer by the network's own prior, or None where nothing asked it.
    """

    codes: torch.Tensor
    distances: torch.Tensor | None = None
    dropped: torch.Tensor | None = None
    parents: torch.Tensor | None = None
    evidence: Any = None
    log_prior: torch.Tensor | None = None


class Penalty(NamedTuple):
    """What a way of balancing adds to the distances, for choosing only: values [K] or [B, K], and the evidence that its
    ``observe`` needs again."""

    values: torch.Tensor
    evidence: Any = None


Sampler = Callable[[Candidates, int, torch.Tensor], Choice]  # (candidates, layer, codes so far [B, layer])
PenaltyFn = Callable[[Candidates, int, torch.Tensor], Penalty]  # (candidates, layer, distances [B, K])

Pyramid = Callable[[tuple[int, int]], torch.Tensor]


def target_pyramid(images: torch.Tensor) -> Pyramid:
    """A function of size (H, W) that gives ``images`` area-resized to it, each size made once."""
    made = {}

    def at(size: tuple[int, int]) -> torch.Tensor:
        size = tuple(size)
        if size not in made:
            made[size] = area_resize(images, size)
        return made[size]

    return at


def nearest(images: torch.Tensor, penalty: PenaltyFn | None = None) -> Sampler:
    """The candidate nearest to ``images`` [B, C, H, W] by L2 (Eq. 1): training, encoding and reconstruction.

    ``penalty``: the method of that name of a way of balancing (``balance``), or None.
    """
    return nearest_to(target_pyramid(images), penalty)


def nearest_to(target: Pyramid, penalty: PenaltyFn | None = None) -> Sampler:
    """``nearest`` to the images of a ``target_pyramid`` that is shared with the loss."""

    def sampler(candidates: Candidates, layer: int, codes: torch.Tensor) -> Choice:
        distances = candidates.distances(target(candidates.shape[2:]))  # [B, K]
        if penalty is None:
            return Choice(distances.argmin(1), distances)
        added = penalty(candidates, layer, distances)
        values = added.values if distances.ndim == 2 else added.values.unsqueeze(-1)
        return Choice((distances + values).argmin(1), distances, evidence=added.evidence)

    return sampler


def given(codes: torch.Tensor) -> Sampler:
    """The nodes named by ``codes`` [B, D] int64: decoding."""
    return lambda candidates, layer, so_far: Choice(of_layer(codes, candidates, so_far))


def keeping(sampler: Sampler, partial: torch.Tensor) -> Sampler:
    """``sampler``, but the codes ``partial`` [B, D] where they are not -1."""

    def completing(candidates: Candidates, layer: int, codes: torch.Tensor) -> Choice:
        choice = sampler(candidates, layer, codes)
        kept = of_layer(partial, candidates, codes)
        return choice._replace(codes=torch.where(kept >= 0, kept, choice.codes))

    return completing


def with_log_prior(sampler: Sampler) -> Sampler:
    """``sampler``, and with each choice the log-probability of every answer by the network's own prior
    (``Choice.log_prior``)."""

    def asking(candidates: Candidates, layer: int, codes: torch.Tensor) -> Choice:
        log_prior = candidates.log_prior()
        return sampler(candidates, layer, codes)._replace(log_prior=log_prior)

    return asking


def of_layer(table: torch.Tensor, candidates: Candidates, so_far: torch.Tensor) -> torch.Tensor:
    """The columns of ``table`` [B, D] that belong to a layer, given its candidates and the codes so far [B, d]: [B] for
    the whole image, [B, n] for n cells."""
    d, n = so_far.shape[1], candidates.num_cells
    return table[:, d] if n == 1 else table[:, d : d + n]


def uniform_codes(num_nodes: list[int], seeds: list[int]) -> torch.Tensor:
    """Uniform codes [B, D] int64, one row per seed (Section 3, "How to generation"). ``num_nodes``: K of each of the D
    codes (``Network.code_nodes``).

    A row depends on its seed alone, so a seed names the same image at any batch size, rank count and device. Of a seed
    PyTorch's generator reads the lower 32 bits: s and s + 2^32 are the same image.
    """
    return (uniforms(len(num_nodes), seeds) * torch.tensor(num_nodes, dtype=torch.float64)).long()  # [B, D]


def uniforms(num_codes: int, seeds: list[int]) -> torch.Tensor:
    """The random numbers of generation, [B, D] float64 in [0, 1): a row for each seed, one number for each choice."""
    rows = [torch.rand(num_codes, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
    return torch.stack(rows) if rows else torch.zeros(0, num_codes, dtype=torch.float64)


def chain_dropout_codes(
    num_nodes: list[int], probability: float, batch_size: int, generator: torch.Generator
) -> torch.Tensor:
    """The choices that chance makes: [batch_size, D] int64, a uniform code with ``probability``, else -1 (Section 3.3).

    One table serves the whole batch: the ranks and rounds of a step each take their rows of it.
    """
    K = torch.tensor(num_nodes, dtype=torch.float64)
    chance, value = torch.rand(2, batch_size, len(num_nodes), generator=generator, dtype=torch.float64)
    return torch.where(chance < probability, (value * K).long(), -1)  # [B, D]


@old_arguments(codes='by_chance')
def chain_dropout(sampler: Sampler, by_chance: torch.Tensor) -> Sampler:
    """``sampler``, but the codes ``by_chance`` [B, D] where they are not -1 (see ``chain_dropout_codes``)."""

    def dropping(candidates: Candidates, layer: int, codes: torch.Tensor) -> Choice:
        choice = sampler(candidates, layer, codes)
        chance = of_layer(by_chance, candidates, codes)
        dropped = chance >= 0
        return choice._replace(codes=torch.where(dropped, chance, choice.codes), dropped=dropped)

    return dropping
