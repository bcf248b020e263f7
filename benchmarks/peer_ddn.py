"""The network of discrete-distribution-network 0.2.5 (MIT), trained as its ``Trainer`` does: another DDN to choose.

    PYTHONPATH=peers python -m benchmarks.peer_ddn faces64-train.zip --dim=16 --xflip --outdir=out/peer

How to install it: benchmarks/contestants.py. AdamW, learning rate, weight decay, clipping and average have the values
of its ``Trainer``; samples are of the averaged network. Grey pictures are trained as one channel. Writes a zip of
samples; experiments.quality compares it.
"""

import importlib
from pathlib import Path

import click
import torch
from torch import nn

from benchmarks.contestants import load_guided_sampler
from cli.options import script
from experiments import timed

LR, DECAY, CLIP = 3e-4, 1e-3, 0.5


@script(__file__)
@timed.options
@click.option('--dim', type=click.IntRange(min=1), default=16, help='Channels of the finest stage; doubled per stage')
@click.option('--nodes', type=click.IntRange(min=2), default=64, help='K of each stage')
def main(data, minutes, batch, num, xflip, seed, outdir, dim, nodes):
    if load_guided_sampler() is None:
        raise click.ClickException('discrete-distribution-network is not installed: see benchmarks/contestants.py')
    peer, average = importlib.import_module('discrete_distribution_network'), importlib.import_module('ema_pytorch')
    torch.manual_seed(seed)
    (channels, size, width), batches = timed.images(data, batch, xflip, seed)
    if size != width or size & (size - 1):
        raise ValueError(f'{data}: its networks are of squares of 2^n pixels a side, these pictures are {width}x{size}')
    net = peer.DDN(dim, image_size=size, channels=channels, codebook_size=nodes)
    parameters = sum(p.numel() for p in net.parameters())
    click.echo(f'{parameters:,} parameters, {len(net.layers)} layers')
    ema = average.EMA(
        net, forward_method_names=('sample',), param_or_buffer_names_no_ema=net.guided_sampler_codes_param_names()
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)

    def step(x: torch.Tensor, progress: float) -> float:
        net.train()
        optimizer.zero_grad()
        loss = net((x + 1) / 2)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
        net.split_and_prune_()
        ema.update()
        return loss.item()

    facts = timed.train(step, batches, minutes * 60)
    facts |= {'model': 'discrete-distribution-network 0.2.5', 'parameters': parameters, 'layers': len(net.layers)}
    ema.eval()

    def sample(generator: torch.Generator, number: int) -> torch.Tensor:
        codes = torch.randint(nodes, [number, net.num_stages], generator=generator)
        return ema.ema_model.sample(codes=codes) * 2 - 1

    folder = Path(outdir)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(ema.ema_model.state_dict(), folder / 'peer.pt')
    timed.write_samples(folder / 'peer', sample, num, seed, facts)


if __name__ == '__main__':
    main()
