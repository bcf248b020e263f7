"""Quality over L: a recurrent network run for more or fewer steps than it was trained for.

    python -m experiments.recurrent_depth --network=recurrent --real=datasets/mnist16-t10k.zip \\
        --outdir=experiments/results/recurrent_depth

One pass of --steps steps also gives the image of every smaller L, since a step does not depend on L. Measures the PSNR
of held-out digits after each step, and the share of uniform samples that a LeNet recognises, as in
experiments/digit_quality.py: the largest class probability is at least 0.9. The network ``recurrent`` of
ddn_networks/pretrained/ is for digits of 16x16; docs/latents.md makes those.
"""

import os

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from cli.networks import load_network
from cli.options import script
from cli.tables import write_json
from ddn_networks import RecurrentDDN, samplers
from dnnlib.archives import ImageArchive
from dnnlib.sheets import draw_sheet, save_png
from experiments.common import as_saved, pictures
from metrics.detectors import load_detector
from metrics.lenet import LeNet
from torch_utils import misc

BLUE, RED, INK, FAINT = (60, 110, 200), (200, 60, 50), (30, 30, 36), (214, 214, 220)


@torch.no_grad()
def over_steps(net: RecurrentDDN, sampler: samplers.Sampler, num: int) -> torch.Tensor:
    """The image after every step, [L, B, C, H, W] in [-1, 1], rounded to 8 bits."""
    return as_saved(torch.stack([selection.image for selection in net.walk(sampler, num)]))


def psnr_over_steps(net: RecurrentDDN, target: torch.Tensor, batch: int = 125) -> list[float]:
    """PSNR in dB over all pixels of ``target`` [N, C, H, W], for L = 1, 2, ..."""
    error = torch.zeros(net.num_layers, dtype=torch.float64)
    for part in target.split(batch):
        images = over_steps(net, samplers.nearest(part), len(part))
        error += (images - part).double().square().mean((2, 3, 4)).sum(1)
    return [misc.psnr(mse) for mse in (error / len(target)).tolist()]


def read_over_steps(net: RecurrentDDN, lenet: LeNet, num: int, batch: int = 125) -> list[float]:
    """The share of ``num`` uniform samples that the LeNet recognises, for L = 1, 2, ..."""
    legible = torch.zeros(net.num_layers, dtype=torch.float64)
    for part in torch.arange(num).split(batch):
        codes = samplers.uniform_codes(net.num_nodes, part.tolist())
        images = over_steps(net, samplers.given(codes), len(part))
        surest = lenet.probabilities(images.flatten(0, 1)).amax(1).view(net.num_layers, -1)
        legible += (surest >= 0.9).sum(1)
    return (legible / num).tolist()


def chart(trained: int, curves: list[tuple[str, list[float], str, tuple]]) -> Image.Image:
    """Curves over L = 1, 2, ..., one panel each: (title, values, format of a value, colour); a line at the L that the
    network was trained with."""
    width, height, edge = 460, 250, 46
    page = Image.new('RGB', (width * len(curves), height), 'white')
    draw = ImageDraw.Draw(page)
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    for panel, (title, values, form, colour) in enumerate(curves):
        left, right, top, bottom = panel * width + edge, (panel + 1) * width - 16, 34, height - 36
        low, high = min(values), max(values)
        span = max(high - low, 1e-9)

        def at(step: int, value: float, left=left, right=right, top=top, bottom=bottom, low=low, span=span, n=values):
            x = left + (right - left) * (step - 1) / max(1, len(n) - 1)
            return x, bottom - (bottom - top) * (value - low) / span

        draw.text(((left + right) / 2, 14), title, INK, font, anchor='mm')
        for share in (0, 0.25, 0.5, 0.75, 1):
            y = at(1, low + share * span)[1]
            draw.line([left, y, right, y], FAINT)
            draw.text((left - 5, y), form.format(low + share * span), INK, small, anchor='rm')
        if trained <= len(values):
            x = at(trained, low)[0]
            draw.line([x, top, x, bottom], (150, 150, 158))
            draw.text((x + 3, bottom - 8), f'trained with L = {trained}', (110, 110, 118), small, anchor='lm')
        for step in range(1, len(values) + 1):
            if step == 1 or step % 5 == 0:
                draw.text((at(step, low)[0], bottom + 11), str(step), INK, small, anchor='mm')
        draw.text(((left + right) / 2, height - 10), 'L, steps', INK, small, anchor='mm')
        points = [at(step, value) for step, value in enumerate(values, 1)]
        draw.line(points, colour, width=2)
        for x, y in points:
            draw.ellipse([x - 2.5, y - 2.5, x + 2.5, y + 2.5], fill=colour)
    return page


@script(__file__)
@click.option('--network', required=True, metavar='FILE|URL|NAME', help='Snapshot of a recurrent network')
@click.option('--real', required=True, metavar='ZIP|DIR', help='Held-out digits')
@click.option('--steps', type=click.IntRange(min=1), default=20, help='Largest L, steps')
@click.option('--num', type=click.IntRange(min=1), default=500, help='Held-out digits, and samples')
@click.option('--ema', metavar='LABEL', help="Averaged weights by half-life, or 'none'  [default: the first]")
@click.option('--outdir', metavar='DIR', help='Write results.json, quality.png and samples.png there')
def main(network, real, steps, num, ema, outdir) -> None:
    net = load_network(network, ema=ema)
    if not isinstance(net, RecurrentDDN):
        raise ValueError(f'{network} is not recurrent: its {net.num_layers} layers are fixed')
    lenet, held = load_detector('lenet').net, len(ImageArchive(real))
    target = pictures(real, net, np.linspace(0, held - 1, min(num, held)).astype(int).tolist())
    trained, net.num_layers = net.num_layers, steps
    result = {
        'trained_steps': trained,
        'psnr': psnr_over_steps(net, target),
        'samples_read': read_over_steps(net, lenet, num),
        'num_held_out': len(target),
        'num_samples': num,
        'network': {k: net.snapshot_meta.get(k) for k in ('preset', 'cur_nimg', 'git_revision')},
    }
    print('L     PSNR    read')
    for step, (psnr, read) in enumerate(zip(result['psnr'], result['samples_read'], strict=True), 1):
        print(f'{step:<4}  {psnr:5.2f}  {read:6.1%}{"  <- trained with" * (step == trained)}')
    if not outdir:
        return
    write_json(os.path.join(outdir, 'results.json'), result)
    share = [100 * read for read in result['samples_read']]
    curves = [
        ('PSNR of held-out digits, dB', result['psnr'], '{:.1f}', BLUE),
        ('uniform samples that a LeNet recognises, %', share, '{:.0f}', RED),
    ]
    save_png(chart(trained, curves), os.path.join(outdir, 'quality.png'))
    drawn = over_steps(net, samplers.given(samplers.uniform_codes(net.num_nodes, list(range(8)))), 8)
    save_png(draw_sheet(drawn.transpose(0, 1), scale=1), os.path.join(outdir, 'samples.png'))
    print(f'{outdir}: results.json, quality.png, samples.png')


if __name__ == '__main__':
    main()
