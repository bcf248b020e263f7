"""Sampling defaults of a trained network with a prior: residuals of its layers, and temperatures that a detector likes.

Legend: L layers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ddn_networks import Network, sampling, snapshots
from ddn_networks.sampling import Sampling
from dnnlib.readers import reason
from metrics import distances, evaluate
from metrics.detectors import NETWORKS, Detector, load_detector
from metrics.image_sets import Samples
from metrics.reference import Statistics
from torch_utils import distributed as dist
from training.dataset import Part, open_training_data
from training.prior_fitting import Fit, residual_batches
from training.training_loop import NUM_VALIDATION

FIRST_SEED = 10**9  # reported figures use seeds from 0 on
NUM_SAMPLES = 1000  # for each choice of temperatures
NUM_RESIDUALS = 500  # training images


class HeldOut:
    """Held-out images of a run as an ``ImageSet``."""

    def __init__(self, part: Part):
        self.part, self.num = part, len(part)
        self.resolution = part[0][0].shape[1:]

    def batches(self, positions: Sequence[int], size: int) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        for first in range(0, len(positions), size):
            some = positions[first : first + size]
            yield some, torch.from_numpy(np.stack([self.part[i][0] for i in some]))

    def describe(self) -> dict[str, Any]:
        return {'num': self.num}

    def notes(self) -> list[str]:
        return []


def families(net: Network) -> dict[str, tuple[float, ...]]:
    """Temperatures to choose from, by name: 1; 1 for the first m layers, then a constant t; t^max(0, l - m)."""
    L = net.num_layers
    starts = {m for m in (L // 4, L // 2, 3 * L // 4, net.num_whole_layers) if 0 < m < L}
    found = {'1': (1.0,) * L}
    for m in sorted(starts):
        found |= {f'1 in {m} layers, then {t:g}': (1.0,) * m + (t,) * (L - m) for t in (0.8, 0.5, 0.05)}
    for t in (0.95, 0.9, 0.8):
        found[f'{t:g}^max(0, layer - 2)'] = tuple(t ** max(0, l - 2) for l in range(L))
    return found


def distance(real: Statistics, fake: Statistics) -> float:
    """The Frechet distance, or that of KID, without bias, where there are no more images than features."""
    if min(real.num, fake.num) > len(real.mu):
        return distances.frechet_distance(real.mu, real.sigma, fake.mu, fake.sigma)
    return distances.polynomial_mmd(real.features.float(), fake.features.float())


def choose_temperatures(
    net: Network, held_out: Part, detector: Detector, say: Callable[[str], None]
) -> tuple[float, ...]:
    """The temperatures whose samples are nearest to held-out images. All ranks call it."""
    before = net.sampling
    real = evaluate.statistics(HeldOut(held_out), detector, title='held-out images')
    found = {}
    options = families(net)
    for i, (name, temperatures) in enumerate(options.items()):
        net.sampling = Sampling(temperatures)
        fake = evaluate.statistics(
            Samples(net, NUM_SAMPLES, FIRST_SEED), detector, title=f'temperatures {i + 1} of {len(options)}'
        )
        found[name] = distance(real, fake)
        say(f'  {found[name]:10.4f}  {name}')
    net.sampling = before
    best = min(found, key=found.get)
    words = f'{len(held_out):,} held-out images, {NUM_SAMPLES:,} seeds from {FIRST_SEED:,} on'
    say(f'Default temperatures: {best} ({detector.name}, {words})')
    return options[best]


def check_detector(name: str) -> None:
    """ValueError or OSError, before any work, for a detector that is neither a known name nor a file of weights. A
    known one whose weights are missing is not an error: ``measured`` then keeps temperature 1."""
    if name not in NETWORKS:
        load_detector(name)


def measured(fit: Fit, temperature_from: str | None, say: Callable[[str], None]) -> Sampling:
    """The defaults of a network with a prior, measured on training images and on held-out ones. What prevents the
    choice of temperatures is said in a line, and they stay 1. All ranks call it."""
    net = fit.net
    residuals = sampling.measured_residuals(net, residual_batches(fit, NUM_RESIDUALS))
    counts = sampling.measured_counts(net, residual_batches(fit, NUM_RESIDUALS))
    temperatures: Sequence[float] = ()
    if temperature_from is None:
        say('Default temperature: 1 (--temperature-from=DETECTOR chooses one)')
    else:
        try:
            detector = load_detector(temperature_from, device=net.device)
            if fit.data.held_out is None:
                raise ValueError('too few images: none of them is held out')
            temperatures = choose_temperatures(net, fit.data.held_out, detector, say)
        except (ValueError, OSError) as error:
            say(f'Default temperature: 1 (--temperature-from={temperature_from}: {reason(error)})')
    return Sampling(temperatures, {name: tuple(values) for name, values in residuals.items()}, counts)


def complete(
    run_dir: str, loop: dict[str, Any], temperature_from: str | None, device: torch.device, say: Callable[[str], None]
) -> None:
    """Measure the defaults of the newest snapshot of a run that has ended, and write them into it; nothing where it has
    some. All ranks call it. ``loop``: arguments of ``training_loop``."""
    path = snapshots.network_path(run_dir)
    net = snapshots.load_network(path).to(device)
    if 'sampling' in net.snapshot_meta:
        return
    data = open_training_data(
        loop['dataset_kwargs'], NUM_VALIDATION, loop['val_data'], loop.get('pair_data'), loop.get('val_pairs'),
        loop['held_out'],
    )  # fmt: skip
    fit = Fit(net, data, loop['seed'])
    facts = measured(fit, temperature_from, say)
    if dist.get_rank() == 0:
        snapshots.set_sampling(path, facts)
    dist.barrier()
