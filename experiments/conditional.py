"""When does training with the condition pay? (Figs 5d, 5e, 7, 8)

Compares a network trained with a condition and the unconditional network of the same shape, guided zero-shot.

\b
  python -m experiments.conditional mnist --network=COND --unconditional=NET --data=mnist-test.zip
  python -m experiments.conditional cifar10 --network=COND --unconditional=NET --data=cifar10-test.zip
  python -m experiments.conditional color --network=COND --unconditional=NET --data=faces64-test.zip
  python -m experiments.conditional edge --network=COND --unconditional=NET --data=faces64-test.zip

COND: train.py with the preset mnist-class-cpu, cifar10-class-cpu, faces64-color-cpu or faces64-edge-cpu; NET: the same
preset without the condition. All figures are of held-out pictures. Legend: B originals, n samples of each.
"""

import os
import time
from collections.abc import Callable

import click
import torch

from cli.networks import load_network
from cli.options import script
from ddn_networks import Network, black_boxes, conditions, guides, pixel_maps
from ddn_networks.guided_sampling import Guidance, top_k
from experiments import digits, zscg
from experiments.common import PORTRAITS_OPTION, as_saved, class_labels, pictures, portraits, spread
from metrics.detectors import load_detector, load_lpips, load_resnet
from metrics.reconstruction import psnr

BATCH = 50


def sampled(net: Network, seeds: list[int], condition: torch.Tensor | None, guidance_of=None) -> torch.Tensor:
    """[B, C, H, W], one image per seed, rounded to 8 bits. ``guidance_of``: rows of the batch -> Guidance, or None."""
    made = []
    for first in range(0, len(seeds), BATCH):
        rows = list(range(first, min(first + BATCH, len(seeds))))
        some = None if condition is None else condition[rows]
        guide = None if guidance_of is None else guidance_of(rows)
        made.append(net.sample(seeds=[seeds[i] for i in rows], condition=some, guide=guide)[0])
    return as_saved(torch.cat(made))


def timed(make: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    """(images, CPU seconds per image)"""
    start = time.process_time()
    images = make()
    return images, (time.process_time() - start) / len(images)


def psnr_of_codes(net: Network, images: torch.Tensor, condition: torch.Tensor | None) -> float:
    """Mean PSNR in dB of held-out images encoded and decoded."""
    return psnr(as_saved(net.reconstruct(images, condition).images), images, 2.0).mean().item()


# Classes.


def class_figures(
    conditional: Network, plain: Network, guide_fn, judges: dict, held, per_class: int, few: int, every: int
) -> tuple[list[dict], dict[str, zscg.Sheet]]:
    """(rows of figures, sheets).

    Args:
        judges: {name: function of images that returns classes}; the last one is shown class by class.
        held: held-out pictures and their classes.
        few: images per class where the classifier guides, which is asked at each ``every``-th layer.
    """
    calls = sum(k for l, k in enumerate(plain.num_nodes) if l % every == 0)
    many, some = torch.arange(10).repeat_interleave(per_class), torch.arange(10).repeat_interleave(few)

    def guided(net: Network, choose, condition: torch.Tensor | None = None) -> torch.Tensor:
        return sampled(
            net, list(range(len(some))), condition,
            lambda rows: Guidance([black_boxes.classifier(guide_fn, some[rows])], choose, every=every),
        )  # fmt: skip

    made = {}
    by_class = conditional.make_condition
    made['conditional'] = (*timed(lambda: sampled(conditional, list(range(len(many))), by_class(many))), many, 0)
    way = f'guided, every {every}' if every > 1 else 'guided'
    made[f'conditional and {way}, top 2'] = (*timed(lambda: guided(conditional, top_k(2), by_class(some))), some, calls)
    made[f'{way}, top 2'] = (*timed(lambda: guided(plain, top_k(2))), some, calls)
    made[f'{way}, top 1'] = (*timed(lambda: guided(plain, top_k(1))), some, calls)
    pool, seconds = timed(lambda: zscg.unguided(plain, max(calls, len(many)), seed=10**6))
    scores = guide_fn(pool).log_softmax(1)
    best = torch.cat([pool[scores[:, c].argsort(descending=True)[:few]] for c in range(10)])
    shared = len(pool) / len(some)  # all classes pick from the same pool, and the classifier judges it for all at once
    made[f'best {few} of {len(pool)}'] = best, seconds * shared, some, round(shared)
    made['neither'] = pool[: len(many)], seconds, many, 0
    made['held-out pictures'] = held[0], 0.0, held[1], 0
    rows = []
    for name, (images, seconds, index, asked) in made.items():
        row = {'way': name, 'images': len(images)}
        for judge_name, judge in judges.items():
            right = judge(images) == index
            row[f'accuracy by {judge_name}'] = right.float().mean().item()
        deviation = torch.stack([images[index == c].std(0).mean() for c in range(10)])
        row |= {'deviation in a class': deviation.mean().item(),
                'guide calls per image': asked, 's per image': seconds}  # fmt: skip
        row |= {str(c): right[index == c].float().mean().item() for c in range(10)}
        rows.append(row)
        click.echo(row)
    first = {name: made[name][0].unflatten(0, (10, -1))[:, :10] for name in ('conditional', f'{way}, top 2')}
    sheets = [{str(c): images[c] for c in range(10)} for images in first.values()]
    return rows, dict(zip(('conditional', 'guided'), sheets, strict=True))


# Pictures.


def grey_guide(grey: torch.Tensor) -> guides.Guide:
    """Mean squared error between the plain mean of the candidates' channels and ``grey``, as condition 'color' has
    it."""
    grey_at = pixel_maps.held(grey)

    def distances(candidates, layer):
        mean = candidates.channels(torch.full((1, candidates.shape[1]), 1 / candidates.shape[1]))
        return mean.distances(grey_at(mean))

    return guides.Guide('grey', distances)


def chroma(images: torch.Tensor) -> torch.Tensor:
    """The part of the images that is not in the grey picture."""
    return images - images.mean(1, keepdim=True)


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root of the mean squared difference, in grey levels of 0..255."""
    return (a - b).square().mean((1, 2, 3)).sqrt().mean().item() * 127.5


def kept(kind: str, images: torch.Tensor, originals: torch.Tensor) -> dict[str, float]:
    """How well images keep the condition 'color' or 'edge' of their originals."""
    if kind == 'color':
        return {'grey error': rms(images.mean(1, keepdim=True), originals.mean(1, keepdim=True))}
    a, b = (pixel_maps.sobel(x.mean(1, keepdim=True)) > conditions.PLAIN.threshold for x in (images, originals))
    return {'edges in common': ((a & b).sum((1, 2, 3)) / (a | b).sum((1, 2, 3)).clamp(min=1)).mean().item()}


def picture_row(way: str, kind: str, images: torch.Tensor, originals: torch.Tensor, lpips, seconds: float) -> dict:
    """Figures of samples [B n, C, H, W], n consecutive ones for each of B originals."""
    B = len(originals)
    n = len(images) // B
    each = originals.repeat_interleave(n, 0)
    values = psnr(images, each, 2.0).unflatten(0, (B, n))
    embedded = torch.cat([lpips.embed(part) for part in images.split(64)]).unflatten(0, (B, n))
    target = torch.cat([lpips.embed(part) for part in originals.split(64)])
    distance = (embedded - target[:, None]).square().sum(2)  # [B, n]
    apart = torch.cdist(embedded, embedded).square().sum((1, 2)) / max(1, n * (n - 1))
    return {'way': way, 'PSNR, best': values.amax(1).mean().item(), 'PSNR': values.mean().item(),
            'LPIPS, best': distance.amin(1).mean().item(), 'LPIPS': distance.mean().item(),
            'colour distance': rms(chroma(images), chroma(each)), 'diversity, LPIPS': apart.mean().item(),
            **kept(kind, images, each), 's per image': seconds}  # fmt: skip


def picture_ways(
    conditional: Network, plain: Network, kind: str, originals: torch.Tensor, n: int
) -> dict[str, tuple[torch.Tensor, float]]:
    """{way: (n images of each original [B n, C, H, W], CPU seconds per image)}"""
    each = conditional.make_condition(images=originals).repeat_interleave(n, 0)
    seeds = list(range(len(each)))
    guide_of = {'color': grey_guide, 'edge': lambda c: guides.edges(c, drawn=True)}[kind]

    def guidance(choose=top_k(2)):  # noqa: B008
        return lambda rows: Guidance([guide_of(each[rows])], choose)

    return {
        'conditional': timed(lambda: sampled(conditional, seeds, each)),
        'conditional and guided, top 2': timed(lambda: sampled(conditional, seeds, each, guidance())),
        'guided, top 2': timed(lambda: sampled(plain, seeds, None, guidance())),
        'guided, top 1': timed(lambda: sampled(plain, seeds, None, guidance(top_k(1)))),
        'neither': timed(lambda: sampled(plain, seeds, None)),
    }


def picture_figures(
    conditional: Network, plain: Network, kind: str, originals: torch.Tensor, n: int, lpips
) -> list[dict]:
    """Rows of figures, one per way."""
    made = picture_ways(conditional, plain, kind, originals, n)
    if kind == 'color':
        made['the grey picture'] = originals.mean(1, keepdim=True).expand(-1, 3, -1, -1), 0.0
    rows = []
    for way, (images, seconds) in made.items():
        rows.append(picture_row(way, kind, images, originals, lpips, seconds))
        click.echo(rows[-1])
    return rows


def picture_sheet(conditional: Network, plain: Network, kind: str, shown: torch.Tensor, n: int = 4) -> zscg.Sheet:
    """n images of each portrait in every way."""
    seen = conditional.conditions.look(conditional.make_condition(images=shown), conditional.img_resolution)
    rows = {'original': shown.repeat_interleave(n, 0), 'known': seen.repeat_interleave(n, 0)}
    made = picture_ways(conditional, plain, kind, shown, n)
    return rows | {way: images for way, (images, _) in made.items()}


def steered(net: Network, originals: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fig. 8, columns 4 and 5: (images by the condition of ``originals`` alone, and guided by 8x8 pixels of
    ``others``)."""
    condition, seeds = net.make_condition(images=originals), list(range(len(originals)))
    small = pixel_maps.box(others, (8, 8))
    free = sampled(net, seeds, condition)
    return free, sampled(net, seeds, condition, lambda rows: guides.superres(small[rows]))


def steered_figures(net: Network, originals: torch.Tensor, kind: str) -> list[dict]:
    """How near the colours come to the other picture, and how well the condition is kept, with and without guide."""
    others = originals.roll(len(originals) // 2, 0)
    small = chroma(pixel_maps.box(others, (8, 8)))
    ways = ('conditional', 'conditional, and guided by another picture at 8x8')
    return [
        {'condition and guide': way,
         'colour distance to the guide at 8x8': rms(chroma(pixel_maps.box(images, (8, 8))), small),
         **kept(kind, images, originals)}
        for way, images in zip(ways, steered(net, originals, others), strict=True)
    ]  # fmt: skip


def steered_sheet(net: Network, shown: torch.Tensor, n: int = 4) -> zscg.Sheet:
    """n images of each portrait by its condition, and with the guides of another portrait's colours and of strokes."""
    originals, others = (x.repeat_interleave(n, 0) for x in (shown, shown.roll(1, 0)))
    condition = net.make_condition(images=originals)
    seen = net.conditions.look(condition, net.img_resolution)
    dabs = originals.new_full((1, 4, *originals.shape[2:]), -1.0)
    H, W = originals.shape[2:]
    red, blue = (torch.tensor([*colour, 1.0]).view(1, 4, 1, 1) for colour in ((0.7, -0.4, -0.3), (-0.6, -0.2, 0.6)))
    dabs[:, :, H // 2 : H // 2 + H // 8, W // 4 : W // 4 + W // 8] = red
    dabs[:, :, : H // 10, :] = blue
    strokes = Guidance([guides.strokes(dabs)], top_k(1))
    dabbed = sampled(net, list(range(len(originals))), condition, lambda rows: strokes)
    free, guided = steered(net, originals, others)
    drawn = torch.where(dabs[:, 3:] > 0, dabs[:, :3], seen)
    return {'known': seen, 'sample': free, 'guide': others, 'guided': guided, 'strokes': drawn, 'by strokes': dabbed}


@script(__file__)
@click.argument('task', type=click.Choice(['mnist', 'cifar10', 'color', 'edge']))
@click.option('--network', required=True, metavar='FILE|URL', help='Snapshot of the conditional network')
@click.option('--unconditional', required=True, metavar='FILE|URL', help='Snapshot of the unconditional network')
@click.option('--data', required=True, metavar='ZIP|DIR', help='Held-out pictures, with labels where classes need them')
@click.option('--num', type=click.IntRange(min=1), default=16, help='Held-out faces')
@click.option('--samples', type=click.IntRange(min=1), default=8, help='Samples of each face')
@PORTRAITS_OPTION
@click.option('--per-class', type=click.IntRange(min=1), default=100, help='Images per class')
@click.option('--few', type=click.IntRange(min=2), default=5, help='Images per class where a classifier guides')
@click.option('--every', type=click.IntRange(min=1), default=1, help='Ask the classifier at every n-th layer')
@click.option('--outdir', metavar='DIR', default='out/conditional', help='Folder for tables and pictures')
@click.option('--note', multiple=True, metavar='NAME=TEXT', help='Remark above the tables; may be repeated')
def main(task, network, unconditional, data, num, samples, portrait_folder, per_class, few, every, outdir, note):
    conditional, plain = load_network(network), load_network(unconditional)
    facts = dict(text.partition('=')[::2] for text in note)
    for name, net in (('conditional', conditional), ('unconditional', plain)):
        meta = net.snapshot_meta
        facts[name] = (
            f'{sum(p.numel() for p in net.parameters()):,} parameters, L = {net.num_layers}, {net.num_bits:.0f} bits, '
            f'{meta["cur_nimg"]:,} images seen of {meta.get("dataset")}'
        )
    if task in ('mnist', 'cifar10'):
        chosen = spread(data, per_class * 10)
        originals, labels = pictures(data, conditional, chosen), class_labels(data, chosen)
        if task == 'mnist':
            lenet = load_detector('lenet').net
            guide_fn = lenet.logits
            nearest = digits.nearest_digit(data, conditional)
            judges = {'the nearest digit': nearest, 'LeNet': lambda x: lenet.logits(x).argmax(1)}
            facts['judges'] = 'the LeNet guides and judges; the nearest digit only judges'
        else:
            guide_fn, judge = load_resnet(20), load_resnet(56)
            judges = {'resnet56': judge.classes}
            facts['judges'] = 'resnet20 guides, resnet56 judges'
        facts['columns 0 to 9'] = f'share of each class that {list(judges)[-1]} classifies as it'
        if task == 'mnist':
            facts['the nearest digit'] = 'of the held-out ones, so its row of held-out pictures says nothing'
        condition = conditional.make_condition(labels)
        held = (originals, labels)
        rows, sheets = class_figures(conditional, plain, guide_fn, judges, held, per_class, few, every)
    else:
        originals = pictures(data, conditional, spread(data, num))
        condition = conditional.make_condition(images=originals)
        facts['held-out pictures'] = f'{num} of {os.path.basename(data)}, {samples} samples each; best: of those'
        facts['units'] = 'PSNR in dB; colour distance and grey error are RMS in grey levels of 0..255'
        rows = picture_figures(conditional, plain, task, originals, samples, load_lpips())
        rows += steered_figures(conditional, originals, task)
        shown = portraits(portrait_folder, conditional)
        sheets = {
            'samples': picture_sheet(conditional, plain, task, shown),
            'steered': steered_sheet(conditional, shown),
        }
    first = slice(0, 200)
    facts['PSNR of held-out pictures encoded and decoded'] = (
        f'{psnr_of_codes(conditional, originals[first], condition[first]):.2f} dB conditional, '
        f'{psnr_of_codes(plain, originals[first], None):.2f} dB unconditional'
    )
    zscg.write(outdir, f'conditional-{task}', facts, rows, sheets)


if __name__ == '__main__':
    main()
