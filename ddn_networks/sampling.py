"""What a network knows about its own sampling: facts measured after training, kept in its snapshots.

Legend: L layers, K nodes, B images, C image channels, H x W pixels, p x p pixels of a block.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ddn_networks import pixel_maps, samplers

if TYPE_CHECKING:
    from ddn_networks.network import Network

LARGEST = 1e6  # of temperatures and residuals
MOST = 2**40  # of a count
MOST_NAMES = 64  # of residuals


class Sampling(NamedTuple):
    """Defaults of sampling, and what guides need to weigh the prior against a condition.

    temperatures: L numbers of at least 0, the default temperatures of the own prior; () for 1 everywhere.
    residuals: name -> L numbers, the mean square of each layer's residual (selected image - target at the layer's size)
        on training images in [-1, 1], after averaging over blocks of p x p pixels: 'rgb/1', 'rgb/2', 'rgb/4', ... and
        'luma/1', ...; {} where nothing was measured.
    counts: L lists of K integers, how often each node of a layer was the nearest, all cells together; () where nothing
        was counted. The codec's entropy model (``codec``).
    """

    temperatures: Sequence[float] = ()
    residuals: Mapping[str, Sequence[float]] = {}
    counts: Sequence[Sequence[int]] = ()

    def temperatures_of(self, num_layers: int) -> list[float]:
        """The default temperatures of so many layers: of a recurrent network that makes more steps than it was trained
        with, later steps have the last one."""
        found = list(self.temperatures or (1.0,))
        return found[:num_layers] + found[-1:] * (num_layers - len(found))


def from_json(value: Any, num_nodes: Sequence[int]) -> Sampling:
    """``Sampling`` of a snapshot's header; ValueError in one line where it does not fit a network whose L layers have
    so many nodes."""
    num_layers = len(num_nodes)
    if not isinstance(value, Mapping) or not set(value) <= set(Sampling._fields):
        raise ValueError(f'sampling is {str(value)[:80]}, not an object of {" and ".join(Sampling._fields)}')
    residuals = value.get('residuals', {})
    if not isinstance(residuals, Mapping) or len(residuals) > MOST_NAMES:
        raise ValueError(f'sampling: residuals is {str(residuals)[:80]}, not an object of at most {MOST_NAMES} lists')
    for name in residuals:
        if not isinstance(name, str) or not re.fullmatch(r'(rgb|luma)/[1-9]\d{0,3}', name):
            raise ValueError(f'sampling: {str(name)[:80]!r} does not name residuals, as rgb/1 and luma/2 do')
    temperatures = _numbers('temperatures', value.get('temperatures', ()), (0, num_layers))
    counts = value.get('counts', ())
    right = isinstance(counts, list | tuple) and len(counts) in (0, num_layers)
    if not (right and all(_are_counts(row, K) for row, K in zip(counts, num_nodes, strict=False))):
        raise ValueError(f'sampling: counts is {str(counts)[:80]}, not {num_layers} lists of K integers of 0 to {MOST}')
    residuals = {k: _numbers(k, v, (num_layers,)) for k, v in residuals.items()}
    return Sampling(temperatures, residuals, tuple(tuple(row) for row in counts))


def to_json(sampling: Sampling) -> dict[str, Any]:
    """What ``from_json`` reads."""
    residuals = {name: list(values) for name, values in sampling.residuals.items()}
    counts = {'counts': [list(row) for row in sampling.counts]} if sampling.counts else {}
    return {'temperatures': list(sampling.temperatures), 'residuals': residuals, **counts}


def _numbers(name: str, values: Any, lengths: Sequence[int]) -> tuple[float, ...]:
    right = isinstance(values, list | tuple) and len(values) in lengths
    right = right and all(type(v) in (int, float) and math.isfinite(v) and 0 <= v <= LARGEST for v in values)
    if not right:
        raise ValueError(
            f'sampling: {name} is {str(values)[:80]}, not {lengths[-1]} numbers of 0 to {LARGEST:g}, one per layer'
        )
    return tuple(float(v) for v in values)


def _are_counts(row: Any, num: int) -> bool:
    right = isinstance(row, list | tuple) and len(row) == num
    return right and all(type(count) is int and 0 <= count <= MOST for count in row)


@torch.no_grad()
def measured_counts(
    net: 'Network', batches: Iterable[tuple[torch.Tensor, torch.Tensor | None]]
) -> tuple[tuple[int, ...], ...]:
    """``Sampling.counts`` of batches (images [B, C, H, W] in [-1, 1], their condition)."""
    total = [torch.zeros(K, dtype=torch.int64) for K in net.num_nodes]
    for images, condition in batches:
        codes = net.encode(images, condition, share_prefixes=True).cpu()
        for own, columns in zip(total, net.code_slices, strict=True):
            own += codes[:, columns].flatten().bincount(minlength=len(own))
    return tuple(tuple(own.tolist()) for own in total)


@torch.no_grad()
def measured_residuals(
    net: 'Network', batches: Iterable[tuple[torch.Tensor, torch.Tensor | None]]
) -> dict[str, list[float]]:
    """``Sampling.residuals`` of batches (images [B, C, H, W] in [-1, 1], their condition)."""
    sums: dict[str, torch.Tensor] = {}
    num = 0
    for images, condition in batches:
        target = samplers.target_pyramid(images)
        selected = net(samplers.nearest_to(target), len(images), condition, keep=True).selected
        grey = pixel_maps.grey_matrix(net.img_channels).to(images)
        for layer, image in enumerate(selected):
            residual = image.float() - target(image.shape[2:])  # [B, C, h, w]
            luma = torch.einsum('dc,bchw->bdhw', grey, residual)
            for p in (2**i for i in range(max(net.img_resolution).bit_length())):
                size = tuple(max(1, side // p) for side in residual.shape[2:])
                for name, values in ((f'rgb/{p}', residual), (f'luma/{p}', luma)):
                    total = sums.setdefault(name, torch.zeros(net.num_layers, dtype=torch.float64))
                    total[layer] += pixel_maps.box(values, size).double().square().mean((1, 2, 3)).sum().cpu()
        num += len(images)
    return {name: (total / num).tolist() for name, total in sums.items()}
