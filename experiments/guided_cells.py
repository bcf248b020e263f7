"""How guides steer a network with cells and a prior of its own: curves over what weighs, chooses and repeats.

    python -m experiments.guided_cells --network=NET --data=datasets/faces64-test.zip

Super-resolution from 4x4 and inpainting of the lower half of held-out faces, by the prior at several weights
(``--prior-weight``), and by top k of all nodes without the prior. At the consistency that each top k has, the curve of
the prior is interpolated: which has the better LPIPS? Both are also drawn. Then consistency over sweeps
(super-resolution crosses cells) and over the number of proposals (edges must see whole pictures), of which the best is
taken. ``--fit`` instead fits ``--prior-weight``: for each guide the weight under which the codes of held-out faces are
likeliest given the condition.
"""

import math
import os
from collections.abc import Sequence

import click
import torch
from PIL import Image

from cli.networks import load_network
from cli.options import script
from ddn_networks import Candidates, Network, samplers, sweeps
from ddn_networks.bayes import OwnPrior
from ddn_networks.cell_guidance import CellGuidance
from ddn_networks.guided_sampling import Guidance, top_k
from ddn_networks.guides import Guide
from dnnlib.sheets import save_png
from experiments import face_tasks, zscg
from experiments.common import PORTRAITS_OPTION, pictures, portraits
from experiments.curves import draw_curves
from metrics.detectors import load_lpips

WEIGHTS = [2.0**i for i in range(-8, 3)]
TOP = (1, 2, 4, 8, 16)
SWEEPS = (1, 2, 4, 8)
PROPOSALS = (1, 4, 16, 64)
CURVES = ('SR4', 'inpaint below')


@torch.no_grad()
def nats_of_codes(net: Network, guide: Guide, images: torch.Tensor, weights: Sequence[float]) -> list[float]:
    """For each weight -log p(code | condition, codes before, other cells), the mean over the codes that encoding gives
    images [B, C, H, W], in nats."""
    totals = torch.zeros(len(weights), dtype=torch.float64)
    nearest = samplers.nearest(images)
    own = OwnPrior([1.0], net.sampling.residuals)

    def sampler(candidates: Candidates, layer: int, codes: torch.Tensor) -> samplers.Choice:
        choice = nearest(candidates, layer, codes)
        chosen = choice.codes.view(len(images), -1)
        asked = CellGuidance(Guidance([guide], prior_weight=1.0), candidates, layer, net.img_resolution, own)
        every = torch.arange(candidates.num_cells)
        of_guide, of_prior = (t.distances(sweeps.of_codes(candidates, chosen), every).double() for t in asked.terms)
        for i, weight in enumerate(weights):
            log_p = (-weight * of_guide - of_prior).log_softmax(1)
            totals[i] -= log_p.gather(1, chosen[:, None]).sum()
        return choice

    net(sampler, len(images))
    return (totals / (len(images) * net.num_codes)).tolist()


def fitted_weights(net: Network, tasks: Sequence[zscg.Task], images: torch.Tensor) -> list[dict]:
    """A row for each quadratic guide: the likeliest of ``WEIGHTS``, and the nats per code at each of them and at 0."""
    rows = []
    for task in tasks:
        guide = task.guide(images)
        if guide.comparison is not None:
            nats = nats_of_codes(net, guide, images, [0.0, *WEIGHTS])
            best = min(range(len(nats)), key=nats.__getitem__)
            rows.append({'task': task.name, 'likeliest weight': [0.0, *WEIGHTS][best]}
                        | {f'{w:.3g}': n for w, n in zip([0.0, *WEIGHTS], nats, strict=True)})  # fmt: skip
            click.echo(f'{task.name}: {rows[-1]["likeliest weight"]}')
    return rows


def plot(rows: Sequence[dict], task: str) -> Image.Image:
    """LPIPS over consistency: of the prior at its weights, and of top k without it."""
    named = {'prior, by its weight': 'prior, weight', 'top k without prior': 'top'}
    curves = {
        name: [(row['consistency'], row['lpips']) for row in rows if row['task'] == task and row['way'].startswith(way)]
        for name, way in named.items()
    }
    labels = f'{task}: distance of the picture by the guide', 'LPIPS to the original'
    return draw_curves(curves, dict(zip(named, ('#d62728', '#1f77b4'), strict=True)), labels, legend_width=130)


def interpolated(curve: Sequence[dict], consistency: float, key: str) -> float | None:
    """``key`` of a curve of rows at a consistency, linear in its logarithm; None beyond the ends of the curve."""
    points = sorted((math.log(row['consistency']), row[key]) for row in curve)
    at = math.log(consistency)
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x0 <= at <= x1:
            return y0 + (y1 - y0) * (at - x0) / max(x1 - x0, 1e-12)
    return None


@script(__file__)
@click.option('--network', required=True, metavar='FILE|URL', help='Snapshot of a face network with cells and a prior')
@click.option('--data', required=True, metavar='ZIP|DIR', help='Held-out faces of its resolution')
@PORTRAITS_OPTION
@click.option('--outdir', metavar='DIR', default='out/guided_cells', help='Folder for tables and pictures')
@click.option('--num', type=click.IntRange(min=1), default=24, help='Held-out faces')
@click.option('--fit', is_flag=True, help='Fit the weights of the guides instead')
def main(network, data, portrait_folder, outdir, num, fit):
    net, lpips = load_network(network), load_lpips()
    if not net.prior:
        raise click.ClickException(f'--network={network} has no prior: train it with --prior=head')
    originals, shown = pictures(data, net, range(num)), portraits(portrait_folder, net)
    every = {task.name: task for task in face_tasks.tasks(lambda x: lpips.activations(x)[:3])}
    facts = {'network': zscg.in_words(net, network), 'faces': f'{num} of {os.path.basename(data)}, held out'}
    if fit:
        rows = fitted_weights(net, list(every.values()), originals)
        zscg.write(outdir, 'prior-weights', facts, rows, {})
        return
    rows, sheets = [], {}
    for name in CURVES:
        by_prior = {f'prior, weight {w:.3g}': Guidance([], prior_weight=w) for w in WEIGHTS}
        without = {f'top {k} without prior': Guidance([], top_k(k)) for k in TOP}
        curve, _ = zscg.measured(net, every[name], originals, by_prior, lpips)
        others, _ = zscg.measured(net, every[name], originals, without, lpips, without)
        for row in others:
            row['lpips of the prior there'] = interpolated(curve, row['consistency'], 'lpips')
        rows += [row | {'lpips of the prior there': None} for row in curve] + others
        some = {**dict(list(by_prior.items())[2::2]), **dict(list(without.items())[:3])}
        made = zscg.ways(net, every[name], shown, some, without)
        sheets[name.replace(' ', '-')] = zscg.compared(every[name], shown, made)
        click.echo(f'{name}: {rows[-1]}')
    few = originals[: -(-num // 4)]
    for uniform in (False, True):
        how = 'top 1 without prior' if uniform else 'prior'
        by = {f'{s} sweeps, {how}': Guidance([], top_k(1) if uniform else None, sweeps=s) for s in SWEEPS}
        for name, some in (('SR4', originals), ('deblur', few)):
            rows += zscg.measured(net, every[name], some, by, lpips, by if uniform else ())[0]
        by = {f'{m} proposals, {how}': Guidance([], top_k(1), proposals=m) for m in PROPOSALS}
        rows += zscg.measured(net, every['edges'], few, by, lpips, by if uniform else ())[0]
        click.echo(f'{how}: {rows[-1]}')
    facts |= {'deblur and edges': f'of {len(few)} of the faces',
              'consistency': 'distance of the finished image by the guide', 'psnr': 'dB, to the original',
              'lpips of the prior there': 'of the curve over its weight, at equal consistency',
              'seconds': 'per image of a batch of all, on this machine'}  # fmt: skip
    zscg.write(outdir, 'guided-cells', facts, rows, sheets)
    for name in CURVES:
        save_png(plot(rows, name), os.path.join(outdir, f'guided-cells-{name.replace(" ", "-")}-curves.png'))


if __name__ == '__main__':
    main()
