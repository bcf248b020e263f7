"""The base class of all DDNs: L questions of "which of these K?", answered by a latent.

Legend: B images, L layers, K nodes, D codes of a latent (L without cells), C image channels, H x W pixels.
"""

import itertools
import numbers
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from ddn_networks import (
    back_projection,
    guided_sampling,
    hub,
    model_cards,
    prior,
    samplers,
    search,
    shared_prefixes,
    snapshots,
)
from ddn_networks.aliases import OldAttribute, old_arguments, old_names
from ddn_networks.cells import WHOLE, Grid
from ddn_networks.condition_set import ConditionSet, Images
from ddn_networks.conditions import Labels
from ddn_networks.ddl import Selection
from ddn_networks.finisher import Finisher, code_noise
from ddn_networks.prior import PriorHead
from ddn_networks.sampling import Sampling


class LayerSpec(NamedTuple):
    """One layer of the network: its resolution, feature channels, number of nodes, grid of cells that choose, and
    pixels a side that each pixel of its features makes (``Candidates``)."""

    size: tuple[int, int]
    channels: int
    num_nodes: int
    grid: Grid = WHOLE
    unshuffle: int = 1

    @property
    def num_cells(self) -> int:
        """n, the number of codes of the layer."""
        return self.grid[0] * self.grid[1]

    @property
    def feature_size(self) -> tuple[int, int]:
        """(H, W) of the features."""
        return self.size[0] // self.unshuffle, self.size[1] // self.unshuffle


class Output(NamedTuple):
    """A forward pass.

    images: [B, C, H, W] the last layer's selected images.
    codes: [B, D] int64, the latent.
    selected: L tensors [B, C, h, w], the selected image of every layer (x*_l of Eq. 2); empty unless asked for.
    distances: L tensors [B, K] or [B, K, n], or None, the sampler's criterion; empty unless asked for.
    dropped: [B, D] bool, choices that chance made (Chain Dropout), or None where the sampler made none.
    evidence: L entries, what the sampler's penalty was computed from (``Choice.evidence``); empty unless asked for.
    log_prior: L tensors [B, K] or [B, K, n], log p of every answer, where the sampler asked the prior
        (``Choice.log_prior``), else None; empty unless asked for.
    features: [B, F, h, w] of the last layer, of a network with a finisher, else None.

    With a beam, row b of every tensor belongs to the branch that ends in ``images[b]``.
    """

    images: torch.Tensor
    codes: torch.Tensor
    selected: list[torch.Tensor]
    distances: list[torch.Tensor | None]
    dropped: torch.Tensor | None
    evidence: Sequence[Any] = ()
    log_prior: Sequence[torch.Tensor | None] = ()
    features: torch.Tensor | None = None


def scale_sizes(img_resolution: tuple[int, int], num_scales: int) -> list[tuple[int, int]]:
    """Resolutions of the scales, coarse to fine: each is half of the next, rounded up, so any H x W works."""
    return [tuple(-(-side // 2**s) for side in img_resolution) for s in reversed(range(num_scales))]


def resolution_pair(img_resolution: int | Sequence[int]) -> tuple[int, int]:
    """An int or (H, W) as (H, W)."""
    sides = (img_resolution,) * 2 if isinstance(img_resolution, numbers.Integral) else tuple(img_resolution)
    if len(sides) != 2:
        raise ValueError(f'a resolution is one number or two, H and W, not {str(list(sides))[:80]}')
    height, width = sides
    if height < 1 or width < 1:
        raise ValueError(f'a resolution has at least one pixel a side, not {height} x {width}')
    return int(height), int(width)


def _rows(tensors: list[torch.Tensor | None], rows: torch.Tensor) -> list[torch.Tensor | None]:
    return [None if x is None else x[rows] for x in tensors]


SomeNetwork = TypeVar('SomeNetwork', bound='Network')


class Network(nn.Module):
    """Base class of all paradigms of Fig. 3. A subclass defines its layers and how to ``walk`` through them.

    Attributes of every network:
        img_resolution, img_channels: (H, W) and C of the images.
        conditions: a ``ConditionSet``: what the condition is made of, how many channels it has, and whether the network
            also works without.
        augment_dim: labels of the augment pipe, 0 for none.
        dropout: probability of dropping a feature in training.
        specs: a ``LayerSpec`` per layer.
        blocks, ddls: the modules; several layers may use the same one.
        ddl_of_layer: for each layer the index of its DDL in ``ddls``, [L].
        condition_to: 'all', or 'heads' where the condition reaches the heads of the prior alone: codes then name the
            same images with and without it.
        prior: a ``PriorHead`` per layer, or one for all steps of a recurrent network, or one of ``code_priors``; empty
            without a prior.
        prior_gradient: the share of the heads' gradient that training lets into the features.
        finisher: a ``Finisher``, or None: draws the detail that the codes leave open.
        sampling: default temperatures and other facts that were measured after training (``Sampling``).
    """

    img_resolution: tuple[int, int]
    img_channels: int
    conditions: ConditionSet
    augment_dim: int
    dropout: float
    specs: list[LayerSpec]
    blocks: nn.ModuleList
    ddls: nn.ModuleList
    ddl_of_layer: list[int]
    prior: nn.ModuleList
    prior_gradient: float
    condition_to: str
    finisher: Finisher | None
    sampling: Sampling = Sampling()

    # What a latent is.

    @property
    def num_layers(self) -> int:
        """L, the number of questions that the network asks."""
        return len(self.specs)

    @property
    def num_codes(self) -> int:
        """D, the number of integers that name an image: one per cell of each layer, L if no layer has cells."""
        return sum(spec.num_cells for spec in self.specs)

    @property
    def num_whole_layers(self) -> int:
        """How many layers, from the first, have no cells: the depth of the tree of latents."""
        return next((l for l, spec in enumerate(self.specs) if spec.num_cells > 1), self.num_layers)

    @property
    def code_slices(self) -> list[slice]:
        """The columns of a latent [B, D] that belong to each layer, cells row by row."""
        ends = list(itertools.accumulate(spec.num_cells for spec in self.specs))
        return [slice(end - spec.num_cells, end) for spec, end in zip(self.specs, ends, strict=True)]

    @property
    def code_nodes(self) -> list[int]:
        """K of each of the D codes."""
        return [spec.num_nodes for spec in self.specs for _ in range(spec.num_cells)]

    @property
    def num_nodes(self) -> list[int]:
        """K of each layer."""
        return [spec.num_nodes for spec in self.specs]

    @property
    def num_bits(self) -> float:
        """Information of a latent, sum of log2 K over its codes (Section 3.2, "Efficient Data Compression")."""
        return float(torch.tensor(self.code_nodes, dtype=torch.float64).log2().sum())

    @property
    def node_weights(self) -> list[nn.Parameter]:
        """The [K, C, F] weights whose rows Split-and-Prune moves; layer l uses that at ``ddl_of_layer[l]``."""
        return [ddl.weight for ddl in self.ddls]

    @property
    def device(self) -> torch.device:
        return self.ddls[0].weight.device

    def layer_modules(self, layer: int) -> list[nn.Module]:
        """The modules that compute a layer."""
        raise NotImplementedError

    # The pass.

    def walk(
        self,
        sampler: samplers.Sampler,
        batch_size: int,
        condition: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
        share_prefixes: bool = False,
        grad_checkpoint: bool = False,
    ) -> Iterator[Selection]:
        """The layers one by one, each a ``Selection``: one question to ``sampler`` per layer, nothing else differs
        between training, generation, reconstruction and guided generation. Arguments as for ``forward``. Without
        gradients features are changed in place: hooks and samplers that keep some, or ``Candidates`` of them, clone
        them.
        """
        raise NotImplementedError

    def forward(
        self,
        sampler: samplers.Sampler,
        batch_size: int,
        condition: torch.Tensor | None = None,
        keep: bool = False,
        augment_labels: torch.Tensor | None = None,
        share_prefixes: bool = False,
        grad_checkpoint: bool = False,
    ) -> Output:
        """The whole pass.

        Args:
            sampler: who answers "which of these K?" (``samplers``).
            batch_size: B.
            condition: image-like, [B or 1, condition_channels, h, w]; None without one.
            keep: also return the selected image, the distances and the evidence of every layer (training).
            augment_labels: [B, augment_dim] labels of the augment pipe (training); None for zeros.
            share_prefixes: compute features once for all images of the batch that made the same choices so far
                (``shared_prefixes``): the same numbers, faster where B is large against the K of the first layers.
            grad_checkpoint: recompute features in the backward pass instead of keeping them (training).
        """
        dropped, selected, distances, evidence, log_prior = [], [], [], [], []
        selection = None
        for selection in self.walk(sampler, batch_size, condition, augment_labels, share_prefixes, grad_checkpoint):
            choice = selection.choice
            if keep:
                distances.append(choice.distances)
                evidence.append(choice.evidence)
                log_prior.append(choice.log_prior)
            if choice.parents is not None:
                lists = dropped, selected, distances, log_prior
                dropped, selected, distances, log_prior = (_rows(tensors, choice.parents) for tensors in lists)
            dropped.append(choice.dropped)
            if keep:
                selected.append(selection.image)
        dropped = torch.cat([d.view(len(d), -1) for d in dropped], 1) if all(d is not None for d in dropped) else None
        features = None if self.finisher is None else selection.of_images(selection.features)
        return Output(selection.image, selection.codes, selected, distances, dropped, evidence, log_prior, features)

    def finished(self, output: Output) -> torch.Tensor:
        """The images [B, C, H, W] of a pass after the finisher; those of the pass for a network without one."""
        if self.finisher is None:
            return output.images
        noise = code_noise(output.codes, [spec.grid for spec in self.specs], self.img_resolution)
        return self.finisher(output.images, output.features, noise)

    def finished_under(self, guide, output: Output) -> torch.Tensor:
        """``finished`` for a pass that ``guide`` chose: projected back onto its exact conditions."""
        if self.finisher is None:
            return output.images
        every = guided_sampling.checked(guide, self.num_layers).guides
        return back_projection.projected(self.finished(output), output.images, every, self.num_layers - 1)

    # Three lines of Python.

    @torch.no_grad()
    def sample(
        self,
        num: int | None = None,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        condition: torch.Tensor | None = None,
        guide=None,
        temperature: float | Sequence[float] | None = None,
        top_p: float | None = None,
        uniform: bool = False,
        cfg: float = 1.0,
        codes: torch.Tensor | None = None,
        finish: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``num`` images from seeds seed .. seed + num - 1, or one per entry of ``seeds``: choices by the network's own
        prior, uniform ones where it has none or with ``uniform``, or those of ``guide``, a ``guides.Guide``, several,
        or a ``guided_sampling.Guidance``. ``temperature`` (one, or one per layer, by default
        ``sampling.temperatures``), ``top_p`` and ``cfg``: of the prior, see ``prior.from_prior``; guides take the
        temperature and weigh the prior (``bayes``), unless ``uniform``. A conditional network takes a ``condition``
        (``make_condition``) of one row for all, or one row per image, which then also says how many.

        ``codes``: partial codes [B or 1, D] int64: those from 0 on are kept, those that are -1 are free and are chosen
        with the same random numbers as without ``codes``. What is kept in later layers does not change how the free
        codes before it are chosen.

        ``finish``: apply the network's finisher, if it has one; without it the images are those of the last layer. What
        it draws is projected back onto exact conditions (``back_projection``).

        Returns images [B, C, H, W], about in [-1, 1] (clamp them to show them), and codes [B, D] int64. A seed names
        one image, at any batch size.
        """
        codes = None if codes is None else self.check_codes(codes, free=True).cpu()
        if seeds is None:
            if num is None:
                num = max((len(rows) for rows in (condition, codes) if rows is not None), default=1)
            if num < 0:
                raise ValueError(f'num is the number of images, not {num}')
            seeds = range(seed, seed + num)
        elif num is not None:
            raise ValueError(f'give num or seeds, not both: num={num} and {len(seeds)} seeds')
        seeds = [int(s) for s in seeds]  # of any array
        if codes is not None:
            if len(codes) not in (1, len(seeds)):
                raise ValueError(f'codes of {len(codes)} images for {len(seeds)} seeds: give one row, or one each')
            codes = codes.expand(len(seeds), -1)
        by_prior = bool(self.prior) and not uniform
        if not by_prior and (temperature is not None or top_p is not None or cfg != 1):
            why = 'this network has none' if not self.prior else 'uniform choices do not use it'
            raise ValueError(f'temperature, top_p and cfg are those of the own prior: {why}')
        if guide is not None:
            if top_p is not None or cfg != 1:
                raise ValueError('top_p and cfg are for samples without guides')
            output = guided_sampling.sample(self, guide, seeds, condition, False, temperature, uniform, codes)
            return self.finished_under(guide, output) if finish else output.images, output.codes
        if by_prior:
            wanted = self.sampling.temperatures_of(self.num_layers) if temperature is None else temperature
            temperatures = prior.checked_temperatures(wanted, self.num_layers)
            draws = samplers.uniforms(self.num_codes, seeds)
            top_p = 1.0 if top_p is None else top_p
            if not 0 < top_p <= 1:
                raise ValueError(f'top_p is above 0 and at most 1, not {top_p}')
            chosen = prior.from_prior(draws, temperatures, top_p, self._checked_cfg(cfg, condition))
            chosen = chosen if codes is None else samplers.keeping(chosen, codes.to(self.device))
            output = self(chosen, len(seeds), condition)
            return self.finished(output) if finish else output.images, output.codes
        uniform_codes = samplers.uniform_codes(self.code_nodes, seeds)
        codes = uniform_codes if codes is None else torch.where(codes >= 0, codes, uniform_codes)
        codes = codes.to(self.device)
        return self.decode(codes, condition, finish=finish), codes

    @torch.no_grad()
    def reconstruct(
        self,
        images: torch.Tensor,
        condition: torch.Tensor | None = None,
        beam: int = 1,
        share_prefixes: bool = False,
        refine: int = 0,
        finish: bool = True,
    ) -> Output:
        """One pass that encodes images [B, C, H, W] in [-1, 1] and draws what their codes name (Eq. 3).

        The nearest candidate of each layer need not lead to the nearest image of the last one.

        Args:
            beam: keep that many partial images per image and return the best of the last layer; where a layer has
                cells, the best joint choices of all cells. With as many as there are codes before the last layer (K^n
                of a layer with n cells) the search is exhaustive.
            share_prefixes: see ``forward``.
            refine: so many other nodes are tried for every cell, layer by layer, and kept where they bring the final
                image nearer; up to 2 L passes for each. Never worse than without. See ``search.refined``.
            finish: apply the network's finisher, if it has one, to the images that are returned. Codes do not depend on
                it.

        Raises:
            ValueError: images of another shape or dtype, a beam below 1, refinement below 0.
        """
        expected = [self.img_channels, *self.img_resolution]
        if list(images.shape[1:]) != expected:
            raise ValueError(f'this network encodes images of shape {expected}, not {list(images.shape[1:])}')
        if not images.is_floating_point():
            raise ValueError(f'images to encode are floating point in [-1, 1], not {images.dtype}')
        if beam < 1:
            raise ValueError(f'a beam is at least 1, not {beam}')
        if refine < 0:
            raise ValueError(f'refine is the number of other nodes to try, at least 0, not {refine}')
        output = search.nearest(self, images.to(self.device), condition, beam, refine, share_prefixes)
        return output._replace(images=self.finished(output)) if finish else output

    def encode(
        self,
        images: torch.Tensor,
        condition: torch.Tensor | None = None,
        beam: int = 1,
        share_prefixes: bool = False,
        refine: int = 0,
    ) -> torch.Tensor:
        """The latent of images: codes [B, D] int64. Arguments and errors as for ``reconstruct``."""
        return self.reconstruct(images, condition, beam, share_prefixes, refine, finish=False).codes

    @torch.no_grad()
    def decode(
        self,
        codes: torch.Tensor,
        condition: torch.Tensor | None = None,
        share_prefixes: bool = False,
        finish: bool = True,
    ) -> torch.Tensor:
        """The images [B, C, H, W] that codes [B, D] int64 name, about in [-1, 1] (clamp them to show them); one
        candidate per layer is rendered. Codes that are -1 are free: the likeliest choices take their place
        (``search.likeliest``). ``share_prefixes``: see ``forward``. ``finish``: apply the finisher, if there is one."""
        codes = self.check_codes(codes, free=True).to(self.device)
        if (codes < 0).any():
            chosen, share_prefixes = samplers.keeping(search.likeliest(self), codes), False
        else:
            chosen = samplers.given(codes)
        output = self(chosen, len(codes), condition, share_prefixes=share_prefixes)
        return self.finished(output) if finish else output.images

    def _new_finisher(self, width: int) -> Finisher | None:
        """One of that width for the layers of this network; None for width 0."""
        return Finisher(self.img_channels, self.specs[-1], self.img_resolution, width) if width else None

    @torch.no_grad()
    def log_prob(self, codes: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """log p(codes) in nats by the network's own prior, uniform without one: codes [B, D] -> [B] float64."""
        codes = self.check_codes(codes).to(self.device)
        output = self(samplers.with_log_prior(samplers.given(codes)), len(codes), condition, keep=True)
        total = torch.zeros(len(codes), dtype=torch.float64, device=self.device)
        for log_p, columns in zip(output.log_prior, self.code_slices, strict=True):
            log_p = log_p.view(len(codes), log_p.shape[1], -1)  # [B, K, n]
            total += log_p.gather(1, codes[:, None, columns]).double().sum((1, 2))
        return total

    @property
    def prior_heads(self) -> list[list[nn.Module]]:
        """For each of ``ddls`` the heads of the prior whose choices are of its nodes."""
        heads = [[] for _ in self.ddls]
        for layer, head in enumerate(self.prior):
            if isinstance(head, PriorHead):
                heads[self.ddl_of_layer[layer]].append(head)
        return heads

    def _head(
        self, layer: int, condition: torch.Tensor | None
    ) -> Callable[[torch.Tensor, torch.Tensor, bool], torch.Tensor] | None:
        """(features, codes so far, whether it sees the condition) -> logits of a layer's choice; None without a
        prior."""
        if not self.prior:
            return None
        head = self.prior[min(layer, len(self.prior) - 1)]

        def logits(features: torch.Tensor, codes: torch.Tensor, conditional: bool = True) -> torch.Tensor:
            if not isinstance(head, PriorHead):
                return head(codes, layer)
            still = features.detach()
            if self.prior_gradient and torch.is_grad_enabled():
                still = still + self.prior_gradient * (features - still)  # the same numbers
            if self.condition_to == 'heads':
                self.conditions.check(condition, len(codes))
                still = self._with_condition(still, condition if conditional else None)
            return head(still, layer)

        return logits

    def _with_condition(self, features: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        """What a head that is given the condition itself sees: [B, C + c, H, W]; zeros for no condition."""
        B, _, *size = features.shape
        if condition is None:
            planes = features.new_zeros(B, self.condition_channels, *size)
        else:
            planes = samplers.area_resize(condition.to(features), size).expand(B, -1, -1, -1)
        return torch.cat([features, planes], 1)

    @property
    def feature_condition_channels(self) -> int:
        """Channels of the condition that are added to the features."""
        return self.condition_channels if self.condition_to == 'all' else 0

    @property
    def head_condition_channels(self) -> int:
        """Channels of the condition that the heads of the prior are given."""
        return self.condition_channels - self.feature_condition_channels

    def _checked_cfg(self, cfg: float, condition: torch.Tensor | None) -> float:
        """The strength of classifier-free guidance; ValueError where it means nothing for this network."""
        if cfg != 1:
            if self.condition_to != 'heads' or not self.condition_optional:
                raise ValueError(
                    'cfg needs a network whose prior alone is given the condition, sometimes: one of train.py '
                    '--condition-to=heads --condition-dropout=P'
                )
            if condition is None:
                raise ValueError('cfg needs a condition: give one')
            if not 0 <= cfg <= 1000:
                raise ValueError(f'cfg is a number of 0 to 1000, not {cfg}')
        return float(cfg)

    def check_condition(self, condition: torch.Tensor | None, batch_size: int) -> None:
        """ValueError where a condition is missing, too much or misshapen. What only heads are given may be missing."""
        if condition is not None or self.condition_to == 'all':
            self.conditions.check(condition, batch_size)

    def _checked_condition_to(self, condition_to: str, heads: bool) -> str:
        if condition_to not in ('all', 'heads'):
            raise ValueError(f"condition_to is 'all' or 'heads', not {condition_to!r}")
        if condition_to == 'heads' and not (heads and self.conditions.channels):
            raise ValueError("condition_to='heads' needs a condition and a prior with heads")
        return condition_to

    def branches(self, prefixes: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """The children of nodes of the tree (Fig. 1b): all K candidates [B, K, C, h, w] of the layer after the codes
        ``prefixes`` [B, l], 0 <= l < ``num_whole_layers``. The image of a node is one of its parent's branches."""
        return search.branches(self, self.check_codes(prefixes, prefix=True), condition)

    def next_log_prior(self, prefixes: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """How likely the answers of the layer after the codes ``prefixes`` [B, d] of whole layers are: log p by the
        network's own prior, uniform without one; [B, K], or [B, K, n] of a layer with n cells."""
        return search.next_log_prior(self, self.check_codes(prefixes, prefix=True), condition)

    def cell_branches(
        self, codes: torch.Tensor, layer: int, cell: int, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What a cell chose from: the image of a layer in the pass with ``codes`` [B, D], with each of the K candidates
        in place of that cell alone, [B, K, C, h, w]. Cells are numbered row by row; a layer without cells has cell 0.
        ValueError for a cell that is not there."""
        return search.cell_branches(self, self.check_codes(codes), layer, cell, condition)

    def check_codes(self, codes: torch.Tensor, prefix: bool = False, free: bool = False) -> torch.Tensor:
        """``codes`` as int64, or a ValueError that names the first entry outside [B, D] x 0..K-1. ``prefix``: the codes
        of the first layers, whole layers each, are enough. ``free``: -1 is allowed, for a code that is free."""
        codes = torch.as_tensor(codes)
        slices = self.code_slices
        lengths = [0, *(columns.stop for columns in slices)] if prefix else [self.num_codes]
        is_integer = not codes.is_floating_point() and not codes.is_complex()
        if codes.ndim != 2 or codes.shape[1] not in lengths or not is_integer:
            wanted = f'{self.num_codes} or fewer, of whole layers' if prefix else self.num_codes
            raise ValueError(f'codes of this network are integers [B, {wanted}], not {list(codes.shape)} {codes.dtype}')
        codes = codes.long()  # before anything is compared: torch compares no uint16
        num_nodes = torch.tensor(self.code_nodes[: codes.shape[1]], device=codes.device)
        wrong = ((codes < (-1 if free else 0)) | (codes >= num_nodes)).nonzero()
        if len(wrong):
            b, d = wrong[0].tolist()
            layer = next(l for l, columns in enumerate(slices) if d < columns.stop)
            cell = f', cell {d - slices[layer].start}' if self.specs[layer].num_cells > 1 else ''
            allowed = f'0..{num_nodes[d] - 1}{", or -1" * free}'
            raise ValueError(f'code {codes[b, d]} of image {b}, layer {layer}{cell}, is outside {allowed}')
        return codes

    # Conditions.

    @property
    def condition_channels(self) -> int:
        """c of the condition, 0 without one."""
        return self.conditions.channels

    @property
    def condition_optional(self) -> bool:
        """Whether the network also works without its condition."""
        return self.conditions.optional

    @old_arguments(chance='draws')
    def make_condition(
        self, labels: Labels | None = None, images: Images | None = None, draws: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """The condition [B, condition_channels, H, W] of labels (a class number, several, vectors) and pictures
        [B, c, h, w] in [-1, 1], as ``ConditionSet.make`` says; None for nothing where the condition is optional."""
        made = self.conditions.make(self.img_resolution, labels, images, draws)
        return None if made is None else made.to(self.device)

    def check_augment_labels(self, augment_labels: torch.Tensor | None, batch_size: int) -> None:
        """ValueError where augment labels are misshapen; None is always right."""
        expected = [batch_size, self.augment_dim]
        if augment_labels is not None and list(augment_labels.shape) != expected:
            raise ValueError(f'this network takes augment labels {expected}, not {list(augment_labels.shape)}')

    def sharing(
        self, batch_size: int, condition: torch.Tensor | None, augment_labels: torch.Tensor | None
    ) -> shared_prefixes.Sharing | None:
        """The start of a pass with ``share_prefixes``; None where each image brings an input of its own."""
        own = condition is not None and len(condition) > 1 or augment_labels is not None
        own = own or self.training and self.dropout > 0
        return None if own else shared_prefixes.start(batch_size, self.device)

    @classmethod
    def from_pretrained(
        cls: type[SomeNetwork], path: str, ema: float | str | None = None, device: str | torch.device = 'cpu'
    ) -> SomeNetwork:
        """The network of a snapshot, in evaluation mode: one of this class; ``Network`` takes any. ``path``: a file, a
        run folder, a folder of ``save_pretrained``, the name of a network that comes with the package, such as 'mnist',
        or 'hf:owner/name' (or 'hf:owner/name@revision') of the Hugging Face Hub. ``ema``: which averaged weights; None
        takes the first kept copy if there is one, 'none' the raw weights."""
        net = snapshots.load_network(path, ema)
        if not isinstance(net, cls):
            made = type(net).__name__
            raise ValueError(
                f'{path} holds a {made}, not a {cls.__name__}: take {made}.from_pretrained or Network.from_pretrained'
            )
        return net.to(device).eval()

    def save_pretrained(
        self,
        folder: str | os.PathLike,
        trained_on: str | None = None,
        figures: Mapping[str, Any] | None = None,
        license: str | None = None,
    ) -> None:
        """Write a folder that ``from_pretrained`` reads and the Hugging Face Hub shows: ``model.safetensors`` (these
        weights alone), ``config.json``, a model card ``README.md`` and a sheet of samples ``samples.png`` (none where
        the network needs a condition).

        Args:
            folder: made where it does not exist.
            trained_on: what the card says about the data; by default the dataset that the snapshot names.
            figures: measured numbers of the card, such as {'FID-50k': 7.1}.
            license: of the weights, as the Hub names licences ('apache-2.0'); none is written by default.

        Raises OSError in one line.
        """
        model_cards.save(self, folder, trained_on, figures, license)

    def push_to_hub(
        self,
        repo: str,
        trained_on: str | None = None,
        figures: Mapping[str, Any] | None = None,
        license: str | None = None,
        private: bool | None = None,
        message: str = 'Upload a network',
    ) -> str:
        """Upload the folder of ``save_pretrained`` to the repository 'owner/name' of the Hugging Face Hub, made where
        it does not exist, ``private`` or not. Returns the address of the commit. Needs the extra ``hub`` and a token
        (``hf auth login``). Raises ValueError for another name, and OSError in one line."""
        hub.check_repo(repo)
        with tempfile.TemporaryDirectory() as folder:
            model_cards.save(self, folder, trained_on, figures, license, repo)
            return hub.upload(folder, repo, private, message)

    # As earlier revisions call it.

    layer_weights = OldAttribute('layer_weights', 'ddl_of_layer')
    share_prefixes = OldAttribute('share_prefixes')
    grad_checkpoint = OldAttribute('grad_checkpoint')

    def set_conditions_(self, condition_channels: int, names: Sequence[str], optional: bool) -> None:
        warnings.warn(f'{type(self).__name__}.set_conditions_ is now conditions', DeprecationWarning, stacklevel=2)
        self.conditions = ConditionSet(names, self.img_channels, optional, condition_channels)


__getattr__ = old_names(__name__)
