"""Flow matching with a UNet: what a user of few parameters and minutes might train instead of a DDN.

    python -m experiments.flow_matching faces64-train.zip --channels=32,64,128,200 --patch=2 --xflip --outdir=out/flow

A network v(x, t) learns the velocity of the straight line from noise x_0 to an image x_1, |v(x_t, t) - (x_1 - x_0)|^2
with x_t = (1 - t) x_0 + t x_1 and t uniform in [0, 1] (Lipman et al. 2023; Liu et al. 2023). Samples follow it from t =
0 to 1 in equal steps of Heun's method, two evaluations each, with a last step of Euler's where their number is odd.
Writes a zip of samples for each of --evaluations; experiments.quality compares them.

    B images, C channels, H x W pixels, T features of the time
"""

import copy
import math
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import nn

from cli.options import Ints, script
from experiments import timed
from training.ema import EMA

GROUPS = 8  # of a group norm; widths are multiples of it
TIME = 128  # T
LR, RAMP = 1e-3, 0.02  # Adam's; the share of the time in which it grows from 0
HALFLIFE = 2000  # images, of the average


class Block(nn.Module):
    """Residual block of two convolutions; the time scales and shifts between them."""

    def __init__(self, num_in: int, num_out: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(GROUPS, num_in), nn.GroupNorm(GROUPS, num_out)])
        self.first = nn.Conv2d(num_in, num_out, 3, padding=1)
        self.second = nn.Conv2d(num_out, num_out, 3, padding=1)
        self.time = nn.Linear(TIME, 2 * num_out)
        self.skip = nn.Conv2d(num_in, num_out, 1) if num_in != num_out else nn.Identity()
        nn.init.zeros_(self.second.weight)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        h = self.first(F.silu(self.norms[0](x)))
        h = self.second(F.silu(self.norms[1](h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Residual self-attention of one head over the pixels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.flatten(2).mT for part in self.qkv(self.norm(x)).chunk(3, 1))  # [B, H W, C]
        return x + self.out(F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape))


class UNet(nn.Module):
    """v(x, t): a block per scale on the way down, two on the way up, attention at the coarsest scale.

    Args:
        img_channels: C.
        channels: width of each scale, finest first; each scale halves H and W.
        patch: the finest scale has H / patch x W / patch pixels, each of the channels of patch x patch pixels.
    """

    def __init__(self, img_channels: int, channels: list[int], patch: int = 1):
        super().__init__()
        self.patch = patch
        self.time = nn.Sequential(nn.Linear(TIME, TIME), nn.SiLU(), nn.Linear(TIME, TIME), nn.SiLU())
        self.first = nn.Conv2d(img_channels * patch**2, channels[0], 3, padding=1)
        before = [channels[0], *channels]
        self.down = nn.ModuleList([Block(a, b) for a, b in zip(before, channels, strict=False)])
        self.middle = nn.ModuleList([Block(channels[-1], channels[-1]), Attention(channels[-1])])
        after = [*channels, channels[-1]]
        self.up = nn.ModuleList([Block(b + a, a) for a, b in zip(channels, after[1:], strict=True)])
        self.norm = nn.GroupNorm(GROUPS, channels[0])
        self.last = nn.Conv2d(channels[0], img_channels * patch**2, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The velocity [B, C, H, W] at x [B, C, H, W] and times t [B] in [0, 1]."""
        rates = torch.exp(torch.linspace(0, math.log(1000), TIME // 2, device=x.device))
        angles = t[:, None] * rates
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))  # [B, T]
        x, kept = self.first(F.pixel_unshuffle(x, self.patch)), []
        for i, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if i else x, time)
            kept.append(x)
        x = self.middle[1](self.middle[0](x, time))
        for i, block in reversed(list(enumerate(self.up))):
            x = block(torch.cat([x, kept[i]], 1), time)
            x = F.interpolate(x, scale_factor=2, mode='nearest') if i else x
        return F.pixel_shuffle(self.last(F.silu(self.norm(x))), self.patch)


def loss(net: nn.Module, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mean squared error of the velocity at random times."""
    t = torch.rand(len(images), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    at = t[:, None, None, None]
    return F.mse_loss(net((1 - at) * noise + at * images, t), images - noise)


@torch.no_grad()
def follow(net: nn.Module, x: torch.Tensor, evaluations: int) -> torch.Tensor:
    """From noise x [B, C, H, W] at t = 0 to images at t = 1 in so many evaluations of the network."""
    steps = (evaluations + 1) // 2
    for i in range(steps):
        t = torch.full([len(x)], i / steps)
        v = net(x, t)
        if i < steps - 1 or evaluations % 2 == 0:
            v = (v + net(x + v / steps, t + 1 / steps)) / 2
        x = x + v / steps
    return x


def rate(progress: float) -> float:
    """Learning rate: a linear ramp, then half a cosine to zero."""
    return LR * min(progress / RAMP, (1 + math.cos(math.pi * progress)) / 2)


@script(__file__)
@timed.options
@click.option('--channels', type=Ints(), required=True, metavar='LIST', help='Widths, finest first, in eights')
@click.option('--patch', type=click.IntRange(min=1), default=1, help='Pixels a side of a pixel of the finest scale')
@click.option('--evaluations', type=Ints(), default='1,8,35', metavar='LIST', help='Evaluations of a sample')
def main(data, minutes, batch, num, xflip, seed, outdir, channels, patch, evaluations):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    shape, batches = timed.images(data, batch, xflip, seed)
    net = UNet(shape[0], channels, patch).to(memory_format=torch.channels_last)
    size = sum(p.numel() for p in net.parameters())
    click.echo(f'{size:,} parameters')
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99), fused=True)
    ema, seen = EMA(dict(net.named_parameters()), [HALFLIFE]), 0

    def step(x: torch.Tensor, progress: float) -> float:
        nonlocal seen
        for group in optimizer.param_groups:
            group['lr'] = rate(progress)
        optimizer.zero_grad(set_to_none=True)
        value = loss(net, x.to(memory_format=torch.channels_last), generator)
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        ema.update_(seen, len(x))
        seen += len(x)
        return value.item()

    facts = timed.train(step, batches, minutes * 60)
    averaged = copy.deepcopy(net).eval().requires_grad_(False)
    averaged.load_state_dict(next(iter(ema.copies.values())))
    folder = Path(outdir)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(averaged.state_dict(), folder / 'flow.pt')
    for number in evaluations:
        about = {'model': f'flow matching, {number} evaluations', 'parameters': size, **facts}

        def sample(generator: torch.Generator, size: int, number: int = number) -> torch.Tensor:
            return follow(averaged, torch.randn(size, *shape, generator=generator), number)

        timed.write_samples(folder / f'flow-{number}', sample, num, seed, about)


if __name__ == '__main__':
    main()
