"""Fit a prior to a network that stays as it is: heads on its features, counts of its codes, a transformer over them.

Legend: B images of a batch, L layers, K nodes, D codes.
"""

import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from tqdm import tqdm

from ddn_networks import Network, samplers
from ddn_networks.candidates import Candidates
from ddn_networks.code_priors import CodeTransformer, Counts
from ddn_networks.code_rates import mean_code_bits
from ddn_networks.code_streams import Codec
from ddn_networks.network import Output
from ddn_networks.samplers import Choice, Pyramid, Sampler
from dnnlib.images import to_float
from dnnlib.util import format_time
from training.dataset import Part, TrainingData
from training.loader import BatchStream, Loader
from training.loss import prior_loss
from training.validation import condition_of

LOOKS = 8  # at the held-out images
NUM_HELD_OUT = 1000  # of these, at most


def nearest_or_second(target: Pyramid, second: torch.Tensor) -> Sampler:
    """The nearest candidate, or the second nearest where ``second`` [B, D] bool says so: codes that are nearly those of
    the images, so that a prior over few images sees more than their codes."""

    def sampler(candidates: Candidates, layer: int, codes: torch.Tensor) -> Choice:
        distances = candidates.distances(target(candidates.shape[2:]))  # [B, K] or [B, K, n]
        two = distances.topk(2, dim=1, largest=False).indices
        other = samplers.of_layer(second, candidates, codes)
        return Choice(torch.where(other, two[:, 1], two[:, 0]), distances)

    return sampler


def with_trained_log_prior(sampler: Sampler) -> Sampler:
    """``samplers.with_log_prior`` with a gradient to the prior, within a pass without."""

    def asking(candidates: Candidates, layer: int, codes: torch.Tensor) -> Choice:
        with torch.enable_grad():
            log_prior = candidates.log_prior()
        return sampler(candidates, layer, codes)._replace(log_prior=log_prior)

    return asking


class Fit:
    """A network, of which only the prior learns, and the images that it learns from.

    Args:
        net: with a prior that is new.
        data: training and held-out images.
        seed: of the order of the images and of all that is random.
        condition_dropout: probability of dropping the condition, for heads that are given it.
    """

    def __init__(self, net: Network, data: TrainingData, seed: int, condition_dropout: float = 0.0):
        self.net = net.eval().requires_grad_(False)
        self.data, self.seed, self.condition_dropout = data, seed, condition_dropout
        self.rng = torch.Generator().manual_seed(seed)

    def batches(self, batch_size: int, num_workers: int = 1) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """(images [B, C, H, W], their condition or None) without end, in random order."""
        stream = BatchStream(len(self.data.loaded), self.seed, 0, batch_size)
        loader = Loader(self.data.loaded, stream, self.net.device, num_workers)
        try:
            for ((images, *facts),) in loader:
                yield self._prepared(images, facts, self.condition_dropout)
        finally:
            loader.close()

    def of_indices(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same of some images."""
        rows = zip(*(self.data.loaded[int(i)] for i in indices), strict=True)
        images, *facts = (torch.from_numpy(np.stack(arrays)) for arrays in rows)
        return self._prepared(images, facts, None)

    def held_out(self, batch_size: int = 100) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """The same of images that the prior does not learn from; of the validation batch where none are held out."""
        part = self.data.held_out
        rows = self.data.validation if part is None else _stacked(part, NUM_HELD_OUT)
        for first in range(0, len(rows[0]), batch_size):
            images, *facts = (x[first : first + batch_size] for x in rows)
            yield self._prepared(images, facts, None)

    def _prepared(self, images: torch.Tensor, facts: list, dropout: float | None) -> tuple:
        images = to_float(images.to(self.net.device))
        conditions = self.net.conditions
        draws = conditions.draw(len(images), dropout, self.rng) if conditions and dropout is not None else None
        return images, condition_of(self.net, images, *facts, draws=draws)

    def held_out_nats(self) -> list[float]:
        """Nats per code of held-out images by the prior, of each layer."""

        def nats(output: Output) -> list[float]:
            layers = zip(output.log_prior, output.distances, strict=True)
            return [prior_loss([log_p], [d]).item() for log_p, d in layers]

        return self._held_out_means(nats)

    def held_out_bits(self) -> list[float]:
        """Bits of a code of held-out images as the codec stores it by the prior, of each layer."""
        codec = Codec(self.net, 'prior')
        return self._held_out_means(lambda output: mean_code_bits(codec, output.codes, output.log_prior))

    @torch.no_grad()
    def _held_out_means(self, of: Callable[[Output], list[float]]) -> list[float]:
        total, num = torch.zeros(self.net.num_layers, dtype=torch.float64), 0
        for images, condition in self.held_out():
            asking = samplers.with_log_prior(samplers.nearest(images))
            output = self.net(asking, len(images), condition, keep=True)
            total += torch.tensor(of(output), dtype=torch.float64) * len(images)
            num += len(images)
        return (total / num).tolist()


def _stacked(part: Part, most: int) -> list[torch.Tensor]:
    arrays = zip(*(part[i] for i in range(min(len(part), most))), strict=True)
    return [torch.from_numpy(np.stack(a)) for a in arrays]


def count(fit: Fit, total_nimg: int, batch_size: int, num_workers: int = 1) -> int:
    """Count the plain nearest codes of the images, each once, at most ``total_nimg``; returns how many."""
    num = min(total_nimg, len(fit.data.loaded))
    prior: Counts = fit.net.prior[0]
    seen = 0
    batches = fit.batches(batch_size, num_workers)
    with tqdm(total=num, desc='counts', unit='img', disable=None) as bar:
        while seen < num:
            images, condition = next(batches)
            images = images[: num - seen]
            condition = condition if condition is None or len(condition) == 1 else condition[: num - seen]
            prior.add_(fit.net.encode(images, condition))
            seen += len(images)
            bar.update(len(images))
    batches.close()
    return seen


def learn(
    fit: Fit,
    total_nimg: int,
    batch_size: int,
    lr: float,
    say: Callable[[str], None],
    clean: float = 0.5,
    softness: float = 0.0,
    chain_dropout: float = 0.05,
    second: float = 0.1,
    repeats: int = 1,
    num_workers: int = 1,
) -> float:
    """Train heads or a transformer by cross entropy to the plain nearest codes; returns the least held-out nats per
    code, which the prior then has.

    Args:
        clean: share of each batch whose codes are the nearest; in the others each code is chosen by chance with
            probability ``chain_dropout``, or is the second nearest with probability ``second``.
        softness: see ``prior_loss``.
        repeats: steps that a transformer makes per batch, with batches drawn from all codes of the last epoch.
    """
    net, started = fit.net, time.time()
    net.prior.requires_grad_(True)
    transformer = net.prior[0] if isinstance(net.prior[0], CodeTransformer) else None
    optimizer = torch.optim.AdamW(net.prior.parameters(), lr, (0.9, 0.99), weight_decay=0.05 if transformer else 0.0)
    steps = max(1, total_nimg // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 50) * (1 - step / steps))
    epoch = max(1, len(fit.data.loaded) // batch_size)
    pool: list[tuple[torch.Tensor, list[torch.Tensor]]] = []  # codes and distances of the last epoch, by batch
    best, weights = float('inf'), None
    looks = {round(steps * (i + 1) / LOOKS) for i in range(LOOKS)}
    nats: list[torch.Tensor] = []
    batches = fit.batches(batch_size, num_workers)
    with tqdm(total=steps * batch_size, desc='prior', unit='img', disable=None) as bar:
        for step, (images, condition) in zip(range(1, steps + 1), batches, strict=False):
            output = _encoded(fit, images, condition, clean, chain_dropout, second, transformer is None)
            if transformer is None:
                losses = [prior_loss(output.log_prior, output.distances, softness)]
            else:
                pool = [*pool, (output.codes, output.distances)][-epoch:]
                picks = [len(pool) - 1, *torch.randint(len(pool), (repeats - 1,), generator=fit.rng).tolist()]
                losses = (_of_codes(transformer.train(), *pool[i], softness) for i in picks)
            for loss in losses:
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                nats.append(loss.detach())
            net.eval()
            schedule.step()
            bar.update(len(images))
            if step in looks:
                held_out = mean_nats(net, fit.held_out_nats())
                if held_out < best:
                    best, weights = held_out, {k: v.clone() for k, v in net.prior.state_dict().items()}
                left = format_time((time.time() - started) / step * (steps - step))
                bar.clear()
                say(
                    f'{step / steps:.0%}: {torch.stack(nats).mean():.4f} nats per code, held out {held_out:.4f}, '
                    f'{left} left'
                )
                nats.clear()
    batches.close()
    net.prior.load_state_dict(weights)
    net.requires_grad_(False)
    return best


@torch.no_grad()
def _encoded(
    fit: Fit,
    images: torch.Tensor,
    condition: torch.Tensor | None,
    clean: float,
    chain_dropout: float,
    second: float,
    ask: bool,
) -> Output:
    """A pass over a batch, a share of it with other choices than the nearest; ``ask``: with the heads' answers."""
    net, B = fit.net, len(images)
    by_chance = samplers.chain_dropout_codes(net.code_nodes, chain_dropout, B, fit.rng)
    other = torch.rand(B, net.num_codes, generator=fit.rng) < second
    kept = round(clean * B)
    by_chance[:kept], other[:kept] = -1, False
    sampler = nearest_or_second(samplers.target_pyramid(images), other.to(images.device))
    sampler = samplers.chain_dropout(sampler, by_chance.to(images.device))
    sampler = with_trained_log_prior(sampler) if ask else sampler
    return net(sampler, B, condition, keep=True)


def _of_codes(
    transformer: CodeTransformer, codes: torch.Tensor, distances: list[torch.Tensor], softness: float
) -> torch.Tensor:
    """The loss of a transformer, all layers in one pass."""
    log_prior = [logits.log_softmax(1) for logits in transformer.of_all(codes)]
    return prior_loss(log_prior, distances, softness)


def mean_nats(net: Network, layers: list[float]) -> float:
    """Nats per code over all codes, from those of each layer."""
    return sum(n * spec.num_cells for n, spec in zip(layers, net.specs, strict=True)) / net.num_codes


def uniform_nats(net: Network) -> float:
    """Nats per code of uniform choices."""
    return torch.tensor(net.code_nodes, dtype=torch.float64).log().mean().item()


def residual_batches(fit: Fit, num: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """About ``num`` training images and their condition, for ``sampling.measured_residuals``."""
    size = min(50, len(fit.data.loaded))
    batches = fit.batches(size, 0)
    yield from itertools.islice(batches, max(1, min(num, len(fit.data.loaded)) // size))
    batches.close()
