"""One unconditional face network, many tasks (Fig. 2; several conditions at once as in Fig. 16), on held-out faces.

    python experiments/zscg_faces.py --network=NET --data=datasets/faces64-test.zip --outdir=experiments/out
"""

import os
import sys

import click
import torch
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..'))
sys.path.insert(0, os.path.dirname(__file__))

import zscg

from ddn_networks import DDN, black_boxes, guides, pixel_maps
from ddn_networks.guided import Guidance, by_distance, top_k
from metrics.detectors import load_lpips


def noisy(x: torch.Tensor) -> torch.Tensor:
    return x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def low(x: torch.Tensor, size: int) -> torch.Tensor:
    return pixel_maps.box(x, (size, size))


def luma(x: torch.Tensor) -> torch.Tensor:
    return pixel_maps.to_channels(x, 1)


def blurred(x: torch.Tensor) -> torch.Tensor:
    return pixel_maps.gaussian_blur(x, (3.0, 3.0))


def one_bit(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x < 0, -1.0, 1.0).to(x)


def box_mask(x: torch.Tensor, top: float, bottom: float, left: float, right: float) -> torch.Tensor:
    """[1, 1, H, W] 0 inside the box, given in parts of the side; 1 outside."""
    H, W = x.shape[2:]
    known = torch.ones(1, 1, H, W)
    known[:, :, int(top * H) : int(bottom * H), int(left * W) : int(right * W)] = 0
    return known


def stroked(x: torch.Tensor) -> torch.Tensor:
    """[B, 4, H, W] RGBA: a grid of dots in the picture's colours, transparent between, as a user might dab them."""
    H, W = x.shape[2:]
    alpha = torch.full((len(x), 1, H, W), -1.0)
    alpha[:, :, H // 16 :: H // 8, W // 16 :: W // 8] = 1.0
    return torch.cat([x, alpha], 1)


def dabs(x: torch.Tensor) -> torch.Tensor:
    """The colours of those dots alone."""
    H, W = x.shape[2:]
    return x[:, :, H // 16 :: H // 8, W // 16 :: W // 8]


def tasks(features) -> list[zscg.Task]:
    eyes = lambda x: box_mask(x, 0.38, 0.6, 0.15, 0.85)  # noqa: E731
    below = lambda x: box_mask(x, 0.5, 1.0, 0.0, 1.0)  # noqa: E731
    bicubic = lambda x, s: F.interpolate(low(x, s), size=x.shape[2:], mode='bicubic').clamp(-1, 1)  # noqa: E731

    def filled(x: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """The hidden part in the mean colour of the known."""
        mean = (x * known).sum((2, 3), keepdim=True) / known.sum()
        return torch.where(known > 0, x, mean)

    def dots(x: torch.Tensor) -> torch.Tensor:
        rgba = stroked(x)
        return torch.where(rgba[:, 3:] > 0, rgba[:, :3], 1.0)

    superres = [
        zscg.Task(f'SR{s}', lambda x, s=s: guides.superres(low(x, s)), lambda x, s=s: low(x, s),
                  lambda x, s=s: bicubic(x, s)) for s in (4, 8, 16)
    ]  # fmt: skip
    return [
        *superres,
        zscg.Task('reconstruction', guides.l2, lambda x: x),
        zscg.Task('colorization', lambda x: guides.colorization(luma(x)), luma,
                  lambda x: luma(x).expand(-1, 3, -1, -1)),
        zscg.Task('inpaint eyes', lambda x: guides.inpaint(x, eyes(x)), lambda x: x * eyes(x),
                  lambda x: filled(x, eyes(x))),
        zscg.Task('inpaint below', lambda x: guides.inpaint(x, below(x)), lambda x: x * below(x),
                  lambda x: filled(x, below(x))),
        zscg.Task('denoise', lambda x: guides.denoise(noisy(x)), noisy,
                  lambda x: pixel_maps.gaussian_blur(noisy(x), (1.0, 1.0))),
        zscg.Task('deblur', lambda x: guides.blur(blurred(x), 3.0), blurred, blurred),
        zscg.Task('1 bit', lambda x: guides.posterize(one_bit(x), 1), one_bit, lambda x: one_bit(x) / 2),
        zscg.Task('edges', guides.edges, lambda x: pixel_maps.soft_edges(luma(x), 0.75, 0.25)),
        zscg.Task('strokes', lambda x: guides.strokes(stroked(x)), dots,
                  lambda x: F.interpolate(dabs(x), size=x.shape[2:], mode='bilinear')),
        zscg.Task('style', lambda x: black_boxes.style(features, x), lambda x: x),
    ]  # fmt: skip


def together(net: DDN, originals: torch.Tensor) -> tuple[list[dict], torch.Tensor]:
    """Two conditions at once: the left half's pixels and the whole at 8x8, by ranks and by distances (Appendix B)."""
    known = box_mask(originals, 0.0, 1.0, 0.5, 1.0)
    both = [guides.inpaint(originals, known), guides.superres(low(originals, 8))]
    ways = {'inpaint alone': Guidance(both[:1]), 'superres alone': Guidance(both[1:]), 'both, ranks': Guidance(both),
            'both, distances': Guidance(both, combine=by_distance)}  # fmt: skip
    rows, sheet = [], [originals * known]
    for name, guidance in ways.items():
        images = zscg.as_saved(net.sample(len(originals), guide=guidance)[0])
        figures = [zscg.finished(guide, images).mean().item() for guide in both]
        rows.append({'task': 'left half + SR8', 'way': name, 'to the half': figures[0], 'to 8x8': figures[1],
                     'psnr': zscg.psnr(images, originals, peak=2.0).mean().item()})  # fmt: skip
        sheet.append(images)
    return rows, torch.cat([images[:8] for images in sheet])


@click.command(help=__doc__, context_settings={'show_default': True})
@click.option('--network', required=True, help='Snapshot of an unconditional face network')
@click.option('--data', required=True, help='Held-out faces of its resolution, zip or folder')
@click.option('--outdir', default='experiments/out')
@click.option('--num', type=int, default=16, help='Held-out faces')
@click.option('--pool', type=int, default=512, help='Unguided samples of which the guide picks the best per face')
@click.option('--task', 'only', multiple=True, help='Only these tasks')
def main(network, data, outdir, num, pool, only):
    net, lpips = DDN.from_pretrained(network), load_lpips()
    originals = zscg.pictures(data, num, net)
    drawn = zscg.unguided(net, pool, seed=10**6, batch=16)
    measure = lpips if min(net.img_resolution) >= 31 else None
    ways = {'top 2': Guidance([]), 'top 1': Guidance([], top_k(1))}
    rows, sheets = [], {}
    for task in tasks(lambda x: lpips.activations(x)[:3]):
        if only and task.name not in only:
            continue
        figures, sheet = zscg.compare(net, task, originals, drawn, ways, measure)
        print(task.name, figures[0], flush=True)
        rows += figures
        sheets[task.name.replace(' ', '-')] = (sheet, min(8, num))
    if not only:
        figures, sheet = together(net, originals)
        rows += figures
        sheets['together'] = (sheet, min(8, num))
    facts = {'network': f'{network}, L = {net.num_layers}, K = {max(net.num_nodes)}, {net.num_bits:.0f} bits',
             'faces': f'{num} of {data}', 'pool': f'{pool}; the guide judges {sum(net.num_nodes)} candidates an image'}
    zscg.write(outdir, 'zscg-faces', facts, rows, sheets)  # fmt: skip


if __name__ == '__main__':
    main()
