"""Zero-shot conditional generation (ZSCG): choosing by guides (Section 3.2, Appendix B).

Legend: B images, K nodes, L layers, b beams per image (rows of one image are consecutive: B b rows in all), D codes.

    images, codes = net.sample(16, guide=guides.superres(low))
    images, codes = net.sample(16, guide=Guidance([guides.inpaint(face, mask), black_boxes.clip(...)], every=4))

Layers that choose per cell, and networks with a prior of their own, are in ``cell_guidance``.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from ddn_networks import pixel_maps, prior, samplers
from ddn_networks.bayes import OwnPrior
from ddn_networks.candidates import Candidates
from ddn_networks.cell_guidance import CellGuidance
from ddn_networks.choosing import (
    Combine,
    Guidance,
    Rule,
    by_distance,
    by_likelihood,
    by_rank,
    others,
    ranks,
    temperature,
    top_k,
    turned,
)
from ddn_networks.guides import Guide
from ddn_networks.samplers import Choice, Sampler

if TYPE_CHECKING:
    from ddn_networks.network import Network, Output

__all__ = [
    'Combine',
    'Guidance',
    'Randomness',
    'Rule',
    'by_distance',
    'by_likelihood',
    'by_rank',
    'chance_table',
    'checked',
    'layers',
    'ranks',
    'sample',
    'sampler',
    'temperature',
    'top_k',
]


class Randomness(NamedTuple):
    """All randomness of a batch, sampled up front: a row depends on its seed alone.

    uniforms: [B, D] float64 in [0, 1), the random numbers of the unguided image. codes: [B, D] int64, its uniform
        choice. choice, ties: [B, D] float32 in [0, 1). streams: B seeds of further random numbers (``cell_guidance``).
    partial: [B, D] int64, codes that are kept, whatever guides say, -1 for free; None where all are free.
    """

    uniforms: torch.Tensor
    codes: torch.Tensor
    choice: torch.Tensor
    ties: torch.Tensor
    streams: Sequence[int]
    partial: torch.Tensor | None = None


def chance_table(num_nodes: list[int], seeds: Sequence[int], partial: torch.Tensor | None = None) -> Randomness:
    """The randomness of each seed; its codes are those of ``samplers.uniform_codes``, or kept ones. What is free is the
    same whatever is kept."""
    D = len(num_nodes)
    draws, streams = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        draws.append(torch.rand(3, D, generator=generator, dtype=torch.float64))
        streams.append(int(torch.randint(2**31, (), generator=generator)))
    draws = torch.stack(draws, 1) if draws else torch.zeros(3, 0, D, dtype=torch.float64)  # [3, B, D]
    singles = draws.float().clamp(max=1 - 2**-24)  # rounding could give 1
    codes = samplers.uniform_codes(num_nodes, list(seeds))
    codes = codes if partial is None else torch.where(partial >= 0, partial, codes)
    return Randomness(draws[0], codes, singles[1], singles[2], streams, partial)


def sampler(
    guidance: Guidance, chance: Randomness, img_resolution: tuple[int, int], own: OwnPrior | None = None
) -> Sampler:
    """The sampler of one pass over B b rows. The best picture of each image is the first of its rows; a row with the
    codes of the first is a spare copy, as before guides are asked and where they leave fewer than b continuations.
    ``own``: weigh the guides against the network's own prior; for one row per image."""
    b = guidance.beam
    unguided = None if own is None else prior.from_prior(chance.uniforms, own.temperatures)

    def guided(candidates: Candidates, layer: int, codes: torch.Tensor) -> Choice:
        def own_part(table: torch.Tensor) -> torch.Tensor:
            return samplers.of_layer(table.to(candidates.device), candidates, codes)  # [B] or [B, n]

        kept = None if chance.partial is None else own_part(chance.partial)
        if not guidance.asks(layer) or b == 1 and kept is not None and bool((kept >= 0).all()):
            if unguided is None:
                return Choice(own_part(chance.codes).repeat_interleave(b, 0))
            choice = unguided(candidates, layer, codes)
            return choice if kept is None else Choice(torch.where(kept >= 0, kept, choice.codes))
        if candidates.num_cells > 1 and b > 1:
            raise ValueError(
                f'a beam of {b} keeps whole images, and layer {layer} chooses per cell: use a beam of 1, or guide only '
                'layers without cells (--guide-layers)'
            )
        if candidates.num_cells == 1 and own is None:
            drawn = own_part(chance.choice), own_part(chance.ties)
            return _among_all(guidance, candidates, layer, codes, *drawn, img_resolution, kept)
        quantiles = chance.choice if own is None or guidance.choose else chance.uniforms
        answers = CellGuidance(guidance, candidates, layer, img_resolution, own, kept)
        return answers.answer(own_part(quantiles), own_part(chance.ties), chance.streams)

    return guided


def _among_all(
    guidance: Guidance,
    candidates: Candidates,
    layer: int,
    codes: torch.Tensor,
    chance: torch.Tensor,
    ties: torch.Tensor,
    img_resolution: tuple[int, int],
    kept: torch.Tensor | None,
) -> Choice:
    """The answer of a layer without cells: the guides compare all K candidates of each of the B b rows."""
    b, rows, K = guidance.beam, candidates.shape[0], candidates.num_nodes
    full = candidates
    if any(guide.full_size for guide in guidance.guides) and tuple(candidates.shape[2:]) != tuple(img_resolution):
        full = candidates.pixels(lambda x: pixel_maps.upsample(x, img_resolution))
    distances = [guide(full if guide.full_size else candidates, layer) for guide in guidance.guides]
    spare = copies_of_first(codes.unflatten(0, (rows // b, b)))  # [B, b]
    never = spare[..., None].expand(-1, -1, K).flatten(1)  # [B, b K]
    if kept is not None:
        never = never | others(kept, K).repeat(1, b)
    distances = [d.reshape(rows // b, b * K) for d in distances]
    scores, never = guidance.scores(distances, [guide.weight for guide in guidance.guides], never)
    if b == 1:
        return Choice(guidance.pick(scores, ties, chance), scores)
    order = turned((ties * K).long(), b * K)  # [B, b K]: equal scores are taken in a random order
    best = scores.gather(1, order).sort(dim=1, stable=True).indices[:, :b]  # [B, b], the best first
    best = order.gather(1, best)
    best = torch.where(never.gather(1, best), best[:, :1], best)
    parents = best // K + torch.arange(0, rows, b, device=candidates.device)[:, None]  # [B, b] rows
    return Choice((best % K).flatten(), scores.view(rows, K), None, parents.flatten())


def copies_of_first(codes: torch.Tensor) -> torch.Tensor:
    """Which rows but the first have the codes of the first row of their image: codes [B, b, l] -> [B, b] bool."""
    copies = (codes == codes[:, :1]).all(2)
    copies[:, 0] = False
    return copies


@torch.no_grad()
def sample(
    net: 'Network',
    guidance: Guidance | Guide | Sequence[Guide],
    seeds: Sequence[int],
    condition: torch.Tensor | None = None,
    share_prefixes: bool = False,
    temperature: float | Sequence[float] | None = None,
    uniform: bool = False,
    partial: torch.Tensor | None = None,
) -> 'Output':
    """One guided image per seed: the images [B, C, H, W] and codes [B, D] of one pass. See ``Guidance``.

    A network with a prior of its own weighs the guides against it (``bayes``), unless ``uniform`` or with a beam.
    ``temperature``: one, or one per layer, that log p(k | condition) is divided by; None for those of the network.
    ``partial`` [B, D] int64: codes that are kept; guides answer for the free ones, which are -1.

    Raises:
        ValueError: guidance whose numbers do not fit the network; a guide that fails, with its name and the layer.
    """
    b, chosen, condition = _asking(net, guidance, seeds, condition, temperature, uniform, partial)
    return best_rows(net(chosen, len(seeds) * b, condition, share_prefixes=share_prefixes), b)


@torch.no_grad()
def layers(
    net: 'Network',
    guidance: Guidance | Guide | Sequence[Guide],
    seeds: Sequence[int],
    condition: torch.Tensor | None = None,
    temperature: float | Sequence[float] | None = None,
    uniform: bool = False,
    partial: torch.Tensor | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The images of ``sample`` while they are made: after each layer the images [B, C, h, w] and the codes so far
    [B, d], and of a network with a finisher once more after that. With a beam they are of the partial images that are
    the best at that moment."""
    b, chosen, condition = _asking(net, guidance, seeds, condition, temperature, uniform, partial)
    selection = None
    for selection in net.walk(chosen, len(seeds) * b, condition):
        yield selection.image[::b], selection.codes[::b]
    if net.finisher is not None:
        from ddn_networks.network import Output

        features = selection.of_images(selection.features)
        output = best_rows(Output(selection.image, selection.codes, [], [], None, features=features), b)
        yield net.finished_under(guidance, output), output.codes


def _asking(
    net: 'Network',
    guidance: Guidance | Guide | Sequence[Guide],
    seeds: Sequence[int],
    condition: torch.Tensor | None,
    temperature: float | Sequence[float] | None,
    uniform: bool,
    partial: torch.Tensor | None,
) -> tuple[int, Sampler, torch.Tensor | None]:
    """b, the sampler of a pass over B b rows, and its condition; arguments and errors as of ``sample``."""
    guidance = checked(guidance, net.num_layers)
    b, own = guidance.beam, None
    if net.prior and not uniform and b == 1:
        temperatures = net.sampling.temperatures_of(net.num_layers) if temperature is None else temperature
        own = OwnPrior(prior.checked_temperatures(temperatures, net.num_layers), net.sampling.residuals)
    elif temperature is not None or guidance.prior_weight is not None:
        raise ValueError(
            "temperature and prior_weight weigh guides against a network's own prior: this network has none, or a beam "
            'or uniform leaves it out'
        )
    if condition is not None and len(condition) > 1:
        condition = condition.repeat_interleave(b, 0)
    chance = chance_table(net.code_nodes, seeds, partial)
    return b, sampler(guidance, chance, net.img_resolution, own), condition


def best_rows(output: 'Output', beam: int) -> 'Output':
    """The images, codes and features of the best of every ``beam`` rows, the first."""
    features = None if output.features is None else output.features[::beam]
    return output._replace(images=output.images[::beam], codes=output.codes[::beam], features=features)


def checked(guidance: Guidance | Guide | Sequence[Guide], num_layers: int) -> Guidance:
    """A guide or several as a ``Guidance``; ValueError where its numbers make no sense for so many layers."""
    if isinstance(guidance, Guide):
        guidance = [guidance]
    if not isinstance(guidance, Guidance):
        guidance = Guidance(list(guidance))
    if not guidance.guides:
        raise ValueError('guided generation needs at least one guide')
    for guide in guidance.guides:
        if not math.isfinite(guide.weight) or guide.weight == 0:
            raise ValueError(f'guide {guide.name} has weight {guide.weight}; it must be finite and not zero')
    if guidance.beam < 1 or guidance.every < 1:
        raise ValueError(f'beam and every are at least 1, not {guidance.beam} and {guidance.every}')
    if guidance.proposals < 1 or guidance.sweeps < 1:
        raise ValueError(f'proposals and sweeps are at least 1, not {guidance.proposals} and {guidance.sweeps}')
    weights = guidance.prior_weights()
    if len(weights) != len(guidance.guides) or not all(w is None or 0 <= w < math.inf for w in weights):
        raise ValueError(
            f'prior_weight is one number of at least 0, or one for each of {len(guidance.guides)} guides, not '
            f'{guidance.prior_weight}'
        )
    first, last = guidance.layers or (0, num_layers - 1)
    if not 0 <= first <= last < num_layers:
        raise ValueError(f'this network has layers 0-{num_layers - 1}; {first}-{last} are not among them')
    return guidance
