"""Fit a finisher to a network that stays as it is: a generator that begins with the network's picture.

Legend: B images of a batch, N of a round, C image channels, H x W pixels. x is a real image, x_L what the network draws
for it, y = x_L + R(x_L, h_L, z) what the finisher makes of that.

Reconstructions learn from three losses: LPIPS and the mean squared error of y against x, and an adversarial one of the
pairs (y, x_L) against (x, x_L), image by image. Samples of the network's own prior have no x: for them the adversarial
loss alone, of y against other real images. The adversarial loss is relativistic (softplus of the difference of a real
and a fake logit), with a penalty on the discriminator's gradients at both (Huang et al. 2024, "The GAN is dead").

The network is slow beside its finisher, so its pictures are made in rounds of N images and used several times. What a
round holds is a function of (seed, round), so a run resumes exactly with weights and moments alone.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ddn_networks import prior, samplers, tensor_files
from ddn_networks.finisher import activation, code_noise
from ddn_networks.network import Output
from torch_utils import misc
from training.checkpoint import new_moments
from training.ema import EMA
from training.loader import batch_indices
from training.prior_fitting import Fit

ROUND = 1024  # images that the network draws at once, and half as many samples
PASSES = 4  # how often a round is used
PENALTY_EVERY = 8  # steps; the penalty is that many times as strong
WARM_UP = 50  # steps
FIRST_SEED = 2 * 10**9  # of samples to learn from; figures use seeds from 0 on, temperatures those from 10^9 on
ENLARGED = 4.0  # what the discriminator sees of small differences
PART = 64  # images in a pass of the network
NUM_WATCHED = 128  # held-out images of every report
SATURATED = 8.0  # gap of real and fake logits that leaves the generator without a gradient

Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # images [B, C, H, W] twice -> distances [B]


class Weights(NamedTuple):
    """Weights of the losses: the adversarial ones of reconstructions and of ``samples``; ``gamma`` is that of the
    penalty, summed over pixels."""

    adversarial: float = 0.1
    samples: float = 0.15
    perceptual: float = 1.0
    squared: float = 3.0
    gamma: float = 0.005


class Drawn(NamedTuple):
    """What the network draws. images: x_L [N, C, H, W]; features: h_L [N, F, h, w], both kept in float16; codes:
    [N, D]."""

    images: torch.Tensor
    features: torch.Tensor
    codes: torch.Tensor

    def rows(self, rows: torch.Tensor) -> 'Drawn':
        """Some of them, in float32."""
        return Drawn(self.images[rows].float(), self.features[rows].float(), self.codes[rows])


class Round(NamedTuple):
    """Real images [N, C, H, W], what the network draws for them, and samples."""

    real: torch.Tensor
    drawn: Drawn
    samples: Drawn


class Discriminator(nn.Module):
    """Two logits of pairs (image, the network's picture): one for reconstructions, one for samples, which are judged
    alone. Convolutions without normalisation, from half the size of the image (by ``pixel_unshuffle``) down to 4x4:
    few, since what a finisher learns on a CPU is limited by the images that it sees.

    What a finisher adds has no mean and is small against the picture, so convolutions of the picture alone hardly
    notice it (on faces, logits stayed within 0.02 of each other for 6,000 images). The discriminator also sees the
    difference from the network's picture, zero for samples, and the image's ``detail``, both enlarged.

    Args:
        img_channels: C.
        img_resolution: (H, W).
        width: channels at first; twice and three times as many at the coarser sizes.
    """

    def __init__(self, img_channels: int, img_resolution: Sequence[int], width: int):
        super().__init__()
        self.fold = 1 if any(n % 2 for n in img_resolution) else 2
        side, levels = min(img_resolution) // self.fold, 1
        while side > 4:
            side, levels = side // 2, levels + 1
        widths = [width * min(i + 1, 3) for i in range(levels)]
        self.enter = nn.Conv2d(3 * img_channels * self.fold**2, width, 3, padding=1)
        self.shrink = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.leave = nn.Linear(widths[-1] * 16, 2)

    def forward(self, images: torch.Tensor, drawn: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [B], higher for real, of images [B, C, H, W]; ``drawn``: x_L, or None for samples."""
        added = torch.zeros_like(images) if drawn is None else images - drawn
        seen = torch.cat([images, ENLARGED * added, ENLARGED * detail(images)], 1)
        x = self.enter(F.pixel_unshuffle(seen, self.fold))
        for shrink in self.shrink:
            x = shrink(activation(x))
        return self.leave(F.adaptive_avg_pool2d(activation(x), 4).flatten(1))[:, 0 if drawn is not None else 1]


def detail(images: torch.Tensor) -> torch.Tensor:
    """What averaging over 2x2 pixels loses, [B, C, H, W]."""
    coarse = F.interpolate(F.avg_pool2d(images, 2), images.shape[2:], mode='bilinear', align_corners=False)
    return images - coarse


def high_frequencies(images: torch.Tensor) -> torch.Tensor:
    """Mean square of ``detail``."""
    return detail(images).square().mean()


def shifted(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Images [B, C, H, W] moved by up to an eighth of a side, edges repeated, and a little brighter or darker: what the
    discriminator sees. Pairs are one image of 2 C channels."""
    B, _, H, W = x.shape
    rows, columns = (
        (torch.randint(-(n // 8), n // 8 + 1, (B, 1), generator=rng) + torch.arange(n)).clamp(0, n - 1) for n in (H, W)
    )
    place = (rows[:, :, None] * W + columns[:, None]).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    moved = x.flatten(2).gather(2, place.to(x.device)).view(x.shape)
    return moved + 0.2 * torch.randn(B, 1, 1, 1, generator=rng).to(x)


class FinisherFit:
    """A network, of which only the finisher learns, and the images that it learns from.

    Args:
        fit: the network, with a finisher that is new, and the images.
        perceptual: LPIPS, or None to go without.
        batch_size: reconstructions per step; half as many samples.
        lr: learning rate of Adam, for both networks, at its highest.
        total_nimg: images of the whole run, which the learning rate's cosine follows.
        ema_nimg: half-life of the averaged weights, in images.
        weights: of the losses.
        width: of the discriminator.
    """

    def __init__(
        self,
        fit: Fit,
        perceptual: Perceptual | None,
        batch_size: int,
        lr: float,
        total_nimg: int,
        ema_nimg: float,
        weights: Weights = Weights(),  # noqa: B008  # immutable
        width: int = 32,
    ):
        self.fit, self.net, self.seed = fit, fit.net, fit.seed
        self.perceptual, self.batch_size, self.lr, self.weights = perceptual, batch_size, lr, weights
        self.total_steps = max(1, total_nimg // batch_size)
        self.step = 0
        self.finisher = self.net.finisher.requires_grad_(True)
        torch.manual_seed(self.seed)
        self.judge = Discriminator(self.net.img_channels, self.net.img_resolution, width).to(self.net.device)
        self.optimizers = [torch.optim.Adam(m.parameters(), lr, (0.0, 0.99)) for m in (self.finisher, self.judge)]
        for optimizer in self.optimizers:
            optimizer.state.update(new_moments(optimizer))
        self.ema = EMA(dict(self.finisher.named_parameters()), [ema_nimg])
        self.round: tuple[int, Round] | None = None
        self.num_round = min(ROUND, len(fit.data.loaded))
        self.steps_a_pass = max(1, self.num_round // batch_size)

    # What the network draws.

    @torch.no_grad()
    def drawn(self, images: torch.Tensor, condition: torch.Tensor | None) -> Drawn:
        """The reconstructions of images, as ``encode`` and ``decode`` make them."""
        output = self.net(samplers.nearest(images), len(images), condition)
        return self._pictures(output)

    def _pictures(self, output: Output) -> Drawn:
        return Drawn(output.images.half(), output.features.half(), output.codes)

    def finished(self, pictures: Drawn) -> torch.Tensor:
        """y [N, C, H, W] of pictures by the weights as they are."""
        noise = code_noise(pictures.codes, [spec.grid for spec in self.net.specs], self.net.img_resolution)
        return self.finisher(pictures.images, pictures.features, noise)

    def finished_samples(self, pictures: Drawn) -> torch.Tensor:
        """y of samples, as a step learns from them."""
        return self.finished(pictures)

    @torch.no_grad()
    def sampled(self, seeds: Sequence[int], condition: torch.Tensor | None) -> Drawn:
        """Samples: two thirds by the network's own prior at its default temperatures, the others at temperature 1;
        uniform ones of a network without a prior."""
        net, parts = self.net, []
        defaults = net.sampling.temperatures_of(net.num_layers)
        for rows, temperatures in zip(_thirds(len(seeds)), (defaults, [1.0] * net.num_layers), strict=True):
            some = [seeds[i] for i in rows]
            given = condition if condition is None or len(condition) == 1 else condition[rows.start : rows.stop]
            if net.prior:
                sampler = prior.from_prior(samplers.uniforms(net.num_codes, some), temperatures)
            else:
                sampler = samplers.given(samplers.uniform_codes(net.code_nodes, some).to(net.device))
            if some:
                parts.append(self._pictures(net(sampler, len(some), given)))
        return _joined(parts)

    def make_round(self, number: int) -> Round:
        """Round ``number``: the next images in the order of the run, and samples of seeds of its own."""
        real, drawn, samples = [], [], []
        first = number * self.num_round
        order = batch_indices(len(self.fit.data.loaded), self.seed, first, self.num_round)
        for start in range(0, len(order), PART):
            images, condition = self.fit.of_indices(order[start : start + PART])
            real.append(images)
            drawn.append(self.drawn(images, condition))
            num = (len(images) + 1) // 2
            seeds = range(FIRST_SEED + first + start, FIRST_SEED + first + start + num)
            own = None if condition is None else condition[:num]
            samples.append(self.sampled(seeds, own))
        return Round(torch.cat(real), _joined(drawn), _joined(samples))

    # A step.

    def current_round(self) -> tuple[Round, torch.Tensor, torch.Tensor]:
        """The round of the next step, and which of its images and samples the step takes."""
        in_round = self.steps_a_pass * PASSES
        number = self.step // in_round
        if self.round is None or self.round[0] != number:
            self.round = None  # its memory first
            self.round = number, self.make_round(number)
        of_pass = self.step // self.steps_a_pass
        rng = torch.Generator().manual_seed((self.seed * 1_000_003 + of_pass) % 2**63)
        at = self.step % self.steps_a_pass
        orders = [torch.randperm(len(x.images), generator=rng) for x in self.round[1][1:]]
        rows = orders[0][at * self.batch_size : (at + 1) * self.batch_size]
        half = max(1, self.batch_size // 2)
        return self.round[1], rows, orders[1][at * half : (at + 1) * half]

    def step_(self) -> dict[str, torch.Tensor]:
        """One step of discriminator and finisher; what it measured, 0-dimensional tensors."""
        current, rows, sample_rows = self.current_round()
        rng = torch.Generator().manual_seed((self.seed * 7_368_787 + self.step + 2**62) % 2**63)
        real, drawn, sampled = current.real[rows], current.drawn.rows(rows), current.samples.rows(sample_rows)
        others = current.real[torch.randint(len(current.real), (len(sampled.images),), generator=rng)]
        made, imagined = self.finished(drawn), self.finished_samples(sampled)
        scale = self._lr_scale()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group['lr'] = self.lr * scale

        # Real and fake of the two kinds, as files would hold them, seen under the same shift within a pair.
        made_stored, imagined_stored, before = (x.clamp(-1, 1) for x in (made, imagined, drawn.images))
        pairs = torch.cat([real, before], 1), torch.cat([made_stored, before], 1)
        state = rng.get_state()
        seen = [shifted(pair, rng.set_state(state)) for pair in pairs]
        alone = shifted(others, rng), shifted(imagined_stored, rng)
        C = real.shape[1]

        def logits(which: int, detached: bool = False) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
            pair, single = seen[which], alone[which]
            if detached:
                pair, single = (x.detach().requires_grad_(penalised) for x in (pair, single))
            return self.judge(pair[:, :C], pair[:, C:]), self.judge(single), [pair, single]

        penalised = self.step % PENALTY_EVERY == 0
        judged = [logits(which, detached=True) for which in (0, 1)]
        gaps = [real_logit - fake_logit for real_logit, fake_logit in zip(judged[0][:2], judged[1][:2], strict=True)]
        loss = F.softplus(-gaps[0]).mean() + 0.5 * F.softplus(-gaps[1]).mean()
        if penalised:
            for a, b, inputs in judged:
                grads = torch.autograd.grad(a.sum() + b.sum(), inputs, create_graph=True)
                size = sum(g.square().flatten(1).sum(1).mean() for g in grads)
                loss = loss + 0.5 * self.weights.gamma * PENALTY_EVERY * size
        self.optimizers[1].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[1].step()

        self.judge.requires_grad_(False)
        with torch.no_grad():
            real_logits = logits(0)[:2]
        fake_logits = logits(1)[:2]
        adversarial = [F.softplus(r - f).mean() for r, f in zip(real_logits, fake_logits, strict=True)]
        squared = (made - real).square().mean()
        total = self.weights.squared * squared
        total = total + self.weights.adversarial * adversarial[0] + self.weights.samples * adversarial[1]
        found = {'squared': squared, 'gap': gaps[0].mean(), 'gap_samples': gaps[1].mean()}
        if self.perceptual is not None:
            found['lpips'] = self.perceptual(made, real).mean()
            total = total + self.weights.perceptual * found['lpips']
        self.optimizers[0].zero_grad(set_to_none=True)
        total.backward()
        self.optimizers[0].step()
        self.judge.requires_grad_(True)
        self.ema.update_(self.step * self.batch_size, self.batch_size)
        self.step += 1
        return {name: value.detach() for name, value in found.items()}

    def _lr_scale(self) -> float:
        """Warm-up, then a cosine down to a tenth."""
        cosine = torch.tensor(torch.pi * min(1.0, self.progress)).cos().item()
        return min(1.0, (self.step + 1) / WARM_UP) * (0.1 + 0.9 * 0.5 * (1 + cosine))

    @property
    def nimg(self) -> int:
        """Images that the finisher has learned from."""
        return self.step * self.batch_size

    @property
    def progress(self) -> float:
        """The share of the run that is done."""
        return self.step / self.total_steps

    @property
    def done(self) -> bool:
        return self.progress >= 1

    # The state.

    @property
    def averages(self) -> dict[str, torch.Tensor]:
        """The averaged weights of the finisher."""
        (weights,) = self.ema.copies.values()
        return weights

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a state holds, by name; the tensors are the live ones."""
        found = {f'ema/{name}': x for name, x in self.averages.items()}
        for kind, module, optimizer in zip(
            ('finisher', 'judge'), (self.finisher, self.judge), self.optimizers, strict=True
        ):
            for name, param in module.named_parameters():
                found[f'{kind}/{name}'] = param
                found |= {f'opt/{kind}/{key}/{name}': x for key, x in optimizer.state[param].items()}
        return found

    def save_state(self, path: str) -> None:
        meta = {'kind': 'finisher-state', 'step': self.step, 'batch': self.batch_size}
        tensor_files.save_tensors(path, {n: t.detach() for n, t in self.tensors().items()}, meta)

    @torch.no_grad()
    def load_state(self, path: str) -> None:
        """Copy a state into this run. ValueError in one line where it is of another one; then nothing is changed."""
        live = self.tensors()
        with tensor_files.opened(path) as file:
            step = file.meta.get('step')
            right = file.meta.get('kind') == 'finisher-state' and type(step) is int and step >= 0
            right = right and file.meta.get('batch') == self.batch_size
            stray = next((name for name in file.described if name not in live), None)
            wrong = tensor_files.misfit(live, file.described) or stray
            if wrong or not right:
                raise ValueError(f'{path} is not a state of this run: {wrong or "its step or batch is another one"}')
            read = file.read(live)
            tensor_files.require_finite(read, path)
        for name, tensor in read.items():
            live[name].copy_(tensor)
        self.step, self.round = step, None

    # What is looked at.

    @torch.no_grad()
    def averaged(self, pictures: Drawn) -> torch.Tensor:
        """y of pictures by the averaged weights, [N, C, H, W]."""
        parts = torch.arange(len(pictures.images)).split(PART)
        with self.averaged_weights():
            return torch.cat([self.finished(pictures.rows(p)) for p in parts])

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The averages take the place of the weights."""
        own = {name: param.detach().clone() for name, param in self.ema.params.items()}
        _set(self.ema.params, self.averages)
        try:
            yield
        finally:
            _set(self.ema.params, own)


def _thirds(num: int) -> Iterator[range]:
    """The first two thirds of num, and the rest."""
    first = -(-2 * num // 3)
    yield range(first)
    yield range(first, num)


@torch.no_grad()
def _set(params: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    for name, param in params.items():
        param.copy_(values[name])


def _joined(pictures: Sequence[Drawn]) -> Drawn:
    return Drawn(*(torch.cat(parts) for parts in zip(*pictures, strict=True)))


class Watched:
    """Held-out images: numbers and sheets, before and after."""

    def __init__(self, of: FinisherFit):
        self.of = of
        images, condition = next(of.fit.held_out(NUM_WATCHED))
        self.real = images
        self.drawn = of.drawn(images, condition)
        shown = None if condition is None else condition[: min(64, len(condition))]
        self.sampled = of.sampled(range(64 if shown is None or len(shown) == 1 else len(shown)), shown)

    @torch.no_grad()
    def numbers(self) -> dict[str, float]:
        """PSNR, LPIPS where it is known, and high-frequency energy over that of the real images, before and after."""
        found = {}
        for name, images in (('before', self.drawn.images.float()), ('after', self.of.averaged(self.drawn))):
            images = images.clamp(-1, 1)
            error = (images - self.real).square().mean((1, 2, 3)).mean()
            found[f'psnr_{name}'] = float(misc.psnr(error))
            found[f'detail_{name}'] = float(high_frequencies(images) / high_frequencies(self.real))
            if self.of.perceptual is not None:
                parts = zip(images.split(PART), self.real.split(PART), strict=True)
                found[f'lpips_{name}'] = float(torch.cat([self.of.perceptual(a, b) for a, b in parts]).mean())
        return found


def warning(stats: dict[str, float]) -> str | None:
    """What is wrong with a run, in a line; None for nothing."""
    if stats['gap'] > SATURATED:
        return (
            f'Warning: the discriminator is certain which images are real (logits {stats["gap"]:.1f} apart): the '
            'finisher learns nothing from it; a smaller --lr helps'
        )
    if stats['detail_after'] > 1.5:
        return (
            f'Warning: finished images have {stats["detail_after"]:.1f} times the high-frequency energy of real ones: '
            'noise, not detail; a smaller --lr helps'
        )
    return None


def train(
    fit: FinisherFit,
    tick_nimg: float,
    on_tick: Callable[[dict[str, float], Watched], None],
    stop: Callable[[], bool],
) -> None:
    """Train to the end, or until ``stop()``, with ``on_tick`` after every ``tick_nimg`` images and at the end."""
    watched = Watched(fit)
    sums: dict[str, torch.Tensor] = {}
    since, started, first = 0, time.time(), fit.step
    stopped = False
    while not (fit.done or stopped):
        for name, value in fit.step_().items():
            sums[name] = sums.get(name, 0) + value
        since += 1
        stopped = stop()
        if since * fit.batch_size >= tick_nimg or fit.done or stopped:
            seconds, steps = time.time() - started, fit.step - first
            stats = {'nimg': fit.nimg, **{n: float(v) / since for n, v in sums.items()}}
            stats |= {'images_per_sec': steps * fit.batch_size / seconds, 'seconds': seconds}
            left = seconds / steps * (fit.total_steps - fit.step)
            on_tick({**stats, 'seconds_left': left, **watched.numbers()}, watched)
            sums, since = {}, 0
