"""When does training with the condition pay? A network told of its task in training, against the unconditional network
of the same shape guided zero-shot for it (Figs 5d, 5e, 7, 8).

\b
  python experiments/conditional.py mnist --network=TOLD --unconditional=NET --data=mnist-test.zip
  python experiments/conditional.py cifar10 --network=TOLD --unconditional=NET --data=cifar10-test.zip
  python experiments/conditional.py color --network=TOLD --unconditional=NET --data=faces64-test.zip
  python experiments/conditional.py edge --network=TOLD --unconditional=NET --data=faces64-test.zip

The networks: train.py with the presets mnist-class-cpu, cifar10-class-cpu, faces64-color-cpu, faces64-edge-cpu, and the
same without the condition. Held-out pictures only. B originals, n samples each.
"""

import os
import sys
import time

import click
import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..'))
sys.path.insert(0, os.path.dirname(__file__))

import zscg
import zscg_cifar_classes

from cli.options import script_help
from ddn_networks import Network, black_boxes, conditions, guides, pixel_maps
from ddn_networks.guided_sampling import Guidance, top_k
from dnnlib.archives import ImageArchive
from dnnlib.labels import read_labels
from metrics.detectors import load_detector, load_lpips

BATCH = 50


def sampled(net: Network, seeds: list[int], condition: torch.Tensor | None, guidance_of=None) -> torch.Tensor:
    """[B, C, H, W], one per seed, as they would be saved. ``guidance_of``: rows of the batch -> Guidance, or None."""
    made = []
    for first in range(0, len(seeds), BATCH):
        rows = list(range(first, min(first + BATCH, len(seeds))))
        some = None if condition is None else condition[rows]
        guide = None if guidance_of is None else guidance_of(rows)
        made.append(net.sample(seeds=[seeds[i] for i in rows], condition=some, guide=guide)[0])
    return zscg.as_saved(torch.cat(made))


def timed(fn) -> tuple[torch.Tensor, float]:
    """Images and CPU seconds for each."""
    start = time.process_time()
    images = fn()
    return images, (time.process_time() - start) / len(images)


def rebuilt(net: Network, images: torch.Tensor, condition: torch.Tensor | None) -> float:
    """PSNR in dB of held-out images encoded and decoded."""
    return zscg.psnr(zscg.as_saved(net.decode(net.encode(images, condition), condition)), images, 2.0).mean().item()


# Classes.


def nearest_digit(path: str):
    """A second judge of digits, that shares nothing with the guide: the label of the nearest real one, by pixels."""
    archive = ImageArchive(path)
    labels = torch.from_numpy(read_labels(archive).values)
    real = torch.stack([torch.from_numpy(archive.image(i)) for i in range(len(archive))]).flatten(1).float() / 127.5 - 1
    return lambda images: labels[torch.cdist(images.flatten(1), real).argmin(1)]


def class_figures(told: Network, plain: Network, guide_fn, judges: dict, held, per_class: int, few: int, every: int):
    """Rows of figures and sheets. ``judges``: name -> function of images that gives classes; the last one is shown
    class by class. ``held``: held-out pictures and their classes. ``few`` images per class where the classifier guides,
    asked at each ``every``-th layer."""
    calls = sum(k for l, k in enumerate(plain.num_nodes) if l % every == 0)
    many, some = torch.arange(10).repeat_interleave(per_class), torch.arange(10).repeat_interleave(few)

    def guided(net: Network, choose, condition: torch.Tensor | None = None) -> torch.Tensor:
        return sampled(
            net, list(range(len(some))), condition,
            lambda rows: Guidance([black_boxes.classifier(guide_fn, some[rows])], choose, every=every),
        )  # fmt: skip

    made = {}
    made['told'] = (*timed(lambda: sampled(told, list(range(len(many))), told.make_condition(many))), many, 0)
    asked = f'guided, every {every}' if every > 1 else 'guided'
    made[f'told and {asked}, top 2'] = (*timed(lambda: guided(told, top_k(2), told.make_condition(some))), some, calls)
    made[f'{asked}, top 2'] = (*timed(lambda: guided(plain, top_k(2))), some, calls)
    made[f'{asked}, top 1'] = (*timed(lambda: guided(plain, top_k(1))), some, calls)
    pool, seconds = timed(lambda: zscg.unguided(plain, max(calls, len(many)), seed=10**6))
    scores = guide_fn(pool).log_softmax(1)
    best = torch.cat([pool[scores[:, c].argsort(descending=True)[:few]] for c in range(10)])
    shared = len(pool) / len(some)  # all classes pick from the same pool, and the classifier judges it for all at once
    made[f'best {few} of {len(pool)}'] = best, seconds * shared, some, round(shared)
    made['neither'] = pool[: len(many)], seconds, many, 0
    made['held-out pictures'] = held[0], 0.0, held[1], 0
    rows = []
    for way, (images, seconds, index, asks) in made.items():
        row = {'way': way, 'images': len(images)}
        for name, judge in judges.items():
            right = judge(images) == index
            row[f'read by {name}'] = right.float().mean().item()
        deviation = torch.stack([images[index == c].std(0).mean() for c in range(10)])
        row |= {'deviation in a class': deviation.mean().item(),
                'guide calls per image': asks, 's per image': seconds}  # fmt: skip
        row |= {str(c): right[index == c].float().mean().item() for c in range(10)}
        rows.append(row)
        print(rows[-1], flush=True)
    first = lambda name: made[name][0].unflatten(0, (10, -1))[:, :10]  # noqa: E731
    sheet = {str(c): first('told')[c] for c in range(10)}
    other = {str(c): first(f'{asked}, top 2')[c] for c in range(10)}
    return rows, {'told': zscg.Sheet(sheet), 'guided': zscg.Sheet(other)}


# Pictures.


def grey_guide(grey: torch.Tensor) -> guides.Guide:
    """Mean squared error between the plain means of the candidates' colours and ``grey``, which the told one sees."""
    grey_at = pixel_maps.held(grey)

    def distances(candidates, layer):
        mean = candidates.channels(torch.full((1, candidates.shape[1]), 1 / candidates.shape[1]))
        return mean.distances(grey_at(mean))

    return guides.Guide('grey', distances)


def chroma(images: torch.Tensor) -> torch.Tensor:
    """What the grey picture does not tell."""
    return images - images.mean(1, keepdim=True)


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root of the mean squared difference, in grey levels of 0..255."""
    return (a - b).square().mean((1, 2, 3)).sqrt().mean().item() * 127.5


def edges_of(images: torch.Tensor) -> torch.Tensor:
    return pixel_maps.sobel(images.mean(1, keepdim=True)) > conditions.PLAIN.threshold


def picture_row(way: str, kind: str, images: torch.Tensor, originals: torch.Tensor, lpips, seconds: float) -> dict:
    """Figures of samples [B n, C, H, W], n consecutive ones for each of B originals."""
    B = len(originals)
    n = len(images) // B
    each = originals.repeat_interleave(n, 0)
    psnr = zscg.psnr(images, each, 2.0).unflatten(0, (B, n))
    embedded = torch.cat([lpips.embed(part) for part in images.split(64)]).unflatten(0, (B, n))
    target = torch.cat([lpips.embed(part) for part in originals.split(64)])
    distance = (embedded - target[:, None]).square().sum(2)  # [B, n]
    apart = torch.cdist(embedded, embedded).square().sum((1, 2)) / max(1, n * (n - 1))
    row = {'way': way, 'PSNR, best': psnr.amax(1).mean().item(), 'PSNR': psnr.mean().item(),
           'LPIPS, best': distance.amin(1).mean().item(), 'LPIPS': distance.mean().item(),
           'colour distance': rms(chroma(images), chroma(each)),
           'diversity, LPIPS': apart.mean().item()}  # fmt: skip
    if kind == 'color':
        row['grey error'] = rms(images.mean(1, keepdim=True), each.mean(1, keepdim=True))
    else:
        a, b = edges_of(images), edges_of(each)
        row['edges in common'] = ((a & b).sum((1, 2, 3)) / (a | b).sum((1, 2, 3)).clamp(min=1)).mean().item()
    return row | {'s per image': seconds}


def picture_ways(told: Network, plain: Network, kind: str, originals: torch.Tensor, n: int) -> dict:
    """Way -> (n images of each original [B n, C, H, W], CPU seconds for each)."""
    each = told.make_condition(images=originals).repeat_interleave(n, 0)
    seeds = list(range(len(each)))
    guide_of = {'color': grey_guide, 'edge': lambda c: guides.edges(c, drawn=True)}[kind]

    def guidance(choose=top_k(2)):  # noqa: B008
        return lambda rows: Guidance([guide_of(each[rows])], choose)

    return {
        'told': timed(lambda: sampled(told, seeds, each)),
        'told and guided, top 2': timed(lambda: sampled(told, seeds, each, guidance())),
        'guided, top 2': timed(lambda: sampled(plain, seeds, None, guidance())),
        'guided, top 1': timed(lambda: sampled(plain, seeds, None, guidance(top_k(1)))),
        'neither': timed(lambda: sampled(plain, seeds, None)),
    }


def picture_figures(told: Network, plain: Network, kind: str, originals: torch.Tensor, n: int, lpips) -> list[dict]:
    """Rows of figures."""
    made = picture_ways(told, plain, kind, originals, n)
    if kind == 'color':
        made['the grey picture'] = originals.mean(1, keepdim=True).expand(-1, 3, -1, -1), 0.0
    rows = []
    for way, (images, seconds) in made.items():
        rows.append(picture_row(way, kind, images, originals, lpips, seconds))
        print(rows[-1], flush=True)
    return rows


def picture_sheet(told: Network, plain: Network, kind: str, portraits: torch.Tensor, n: int = 4) -> zscg.Sheet:
    """n images of each portrait in every way."""
    seen = told.conditions.look(told.make_condition(images=portraits), told.img_resolution)
    rows = {'original': portraits.repeat_interleave(n, 0), 'known': seen.repeat_interleave(n, 0)}
    made = picture_ways(told, plain, kind, portraits, n)
    return zscg.Sheet(rows | {way: images for way, (images, _) in made.items()})


def steered(told: Network, originals: torch.Tensor, others: torch.Tensor):
    """Fig. 8, columns 4 and 5: (images by the condition of ``originals`` alone, and with the 8x8 pixels of others)."""
    condition, seeds = told.make_condition(images=originals), list(range(len(originals)))
    small = pixel_maps.box(others, (8, 8))
    free = sampled(told, seeds, condition)
    return free, sampled(told, seeds, condition, lambda rows: guides.superres(small[rows]))


def steered_figures(told: Network, originals: torch.Tensor, kind: str) -> list[dict]:
    others = originals.roll(len(originals) // 2, 0)
    free, guided = steered(told, originals, others)
    small = chroma(pixel_maps.box(others, (8, 8)))
    rows = []
    for way, images in (('told', free), ('told, and guided by another picture at 8x8', guided)):
        row = {'condition and guide': way,
               'colour distance to the guide at 8x8': rms(chroma(pixel_maps.box(images, (8, 8))), small)}
        if kind == 'color':
            row['grey error'] = rms(images.mean(1, keepdim=True), originals.mean(1, keepdim=True))
        else:
            a, b = edges_of(images), edges_of(originals)
            row['edges in common'] = ((a & b).sum((1, 2, 3)) / (a | b).sum((1, 2, 3)).clamp(min=1)).mean().item()
        rows.append(row)
    return rows


def steered_sheet(told: Network, portraits: torch.Tensor, n: int = 4) -> zscg.Sheet:
    """n images of each portrait by what is told of it, by another's colours on top, and by strokes on top."""
    originals, others = (x.repeat_interleave(n, 0) for x in (portraits, portraits.roll(1, 0)))
    condition = told.make_condition(images=originals)
    seen = told.conditions.look(condition, told.img_resolution)
    dabs = originals.new_full((1, 4, *originals.shape[2:]), -1.0)
    H, W = originals.shape[2:]
    red, blue = (torch.tensor([*colour, 1.0]).view(1, 4, 1, 1) for colour in ((0.7, -0.4, -0.3), (-0.6, -0.2, 0.6)))
    dabs[:, :, H // 2 : H // 2 + H // 8, W // 4 : W // 4 + W // 8] = red
    dabs[:, :, : H // 10, :] = blue
    strokes = Guidance([guides.strokes(dabs)], top_k(1))
    dabbed = sampled(told, list(range(len(originals))), condition, lambda rows: strokes)
    free, guided = steered(told, originals, others)
    drawn = torch.where(dabs[:, 3:] > 0, dabs[:, :3], seen)
    return zscg.Sheet({'known': seen, 'sample': free, 'guide': others, 'guided': guided, 'strokes': drawn,
                       'by strokes': dabbed})  # fmt: skip


@click.command(help=script_help(__file__), context_settings={'show_default': True})
@click.argument('task', type=click.Choice(['mnist', 'cifar10', 'color', 'edge']))
@click.option('--network', required=True, help='Snapshot of the network that was told')
@click.option('--unconditional', required=True, help='Snapshot of one that was not')
@click.option('--data', required=True, help='Held-out pictures, of classes with labels; zip or folder')
@click.option('--num', type=int, default=16, help='Held-out faces, or pictures to reconstruct')
@click.option('--samples', type=int, default=8, help='Of each face')
@click.option('--portraits', default=zscg.PORTRAITS, show_default='assets/faces', help='What the sheets of faces show')
@click.option('--per-class', type=int, default=100)
@click.option('--few', type=int, default=5, help='Per class where a classifier guides')
@click.option('--every', type=int, default=1, help='The classifier guides every n-th layer')
@click.option('--weights', default=zscg_cifar_classes.WEIGHTS, show_default='../shared/weights',
              help='Folder of resnet20 and resnet56')
@click.option('--outdir', default='out/conditional')
@click.option('--note', multiple=True, help='NAME=TEXT: a fact to keep with the numbers')
def main(task, network, unconditional, data, num, samples, portraits, per_class, few, every, weights, outdir, note):
    told, plain = Network.from_pretrained(network), Network.from_pretrained(unconditional)
    facts = dict(text.split('=', 1) for text in note)
    for name, net in (('told', told), ('not told', plain)):
        meta = net.snapshot_meta
        facts[name] = (
            f'{sum(p.numel() for p in net.parameters()):,} parameters, L = {net.num_layers}, {net.num_bits:.0f} bits, '
            f'{meta["cur_nimg"]:,} images seen of {meta.get("dataset")}'
        )
    if task in ('mnist', 'cifar10'):
        originals = zscg.pictures(data, per_class * 10, told, spread=True)
        labels = torch.from_numpy(read_labels(ImageArchive(data)).values)
        labels = labels[zscg.places(per_class * 10, len(labels))]
        if task == 'mnist':
            lenet = load_detector('lenet').net
            guide_fn = lenet.logits
            judges = {'the nearest digit': nearest_digit(data), 'LeNet': lambda x: lenet.logits(x).argmax(1)}
            facts['judges'] = 'LeNet judges itself where it guides; the nearest digit never guides'
        else:
            files = {20: 'akamaster_resnet20-12fca82f.th', 56: 'akamaster_resnet56-4bfd9763.th'}
            guide_fn, judge = (
                zscg_cifar_classes.load_resnet(os.path.join(weights, file), depth) for depth, file in files.items()
            )
            judges = {'resnet56': lambda x: torch.cat([judge(part).argmax(1) for part in x.split(256)])}
            facts['judges'] = 'resnet20 guides, resnet56 judges'
        facts['columns 0 to 9'] = f'share of each class that {list(judges)[-1]} reads as it'
        if task == 'mnist':
            facts['the nearest digit'] = 'of the held-out ones, so of those themselves it says nothing'
        condition = told.make_condition(labels)
        rows, sheets = class_figures(told, plain, guide_fn, judges, (originals, labels), per_class, few, every)
    else:
        originals = zscg.pictures(data, num, told, spread=True)
        condition = told.make_condition(images=originals)
        facts['held-out pictures'] = f'{num} of {os.path.basename(data)}, {samples} samples each; best: of those'
        facts['units'] = 'PSNR in dB; colour distance and grey error are RMS in grey levels of 0..255'
        rows = picture_figures(told, plain, task, originals, samples, load_lpips())
        rows += steered_figures(told, originals, task)
        shown = zscg.portraits(portraits, told)
        sheets = {'samples': picture_sheet(told, plain, task, shown), 'steered': steered_sheet(told, shown)}
    first = slice(0, 200)
    facts['PSNR of held-out pictures encoded and decoded'] = (
        f'{rebuilt(told, originals[first], condition[first]):.2f} dB told, '
        f'{rebuilt(plain, originals[first], None):.2f} dB not told'
    )
    zscg.write(outdir, f'conditional-{task}', facts, rows, sheets)


if __name__ == '__main__':
    main()
