"""One unconditional face network, many tasks on held-out faces (Fig. 2; several conditions at once, Figs 15, 16).

    python -m experiments.zscg_faces --network=NET --data=datasets/faces64-test.zip

NET: a snapshot of train.py --preset=faces64-whole-cpu. Figures are of --num faces of --data; the sheets show
--portraits, which may be published. Figs 15 and 16 guide by CLIP: name a model by --clip (extra: clip); without it, two
conditions on pixels take its place. Guiding by a text: docs/guiding.md.

    python -m experiments.zscg_faces --network=NET --data=datasets/faces64-test.zip --clip=ViT-B-32,openai

A second network, with layers that choose per cell and a prior of its own, in the same table (no beams, which keep whole
images):

    python -m experiments.zscg_faces --network=NET --cells=NET2 --data=datasets/faces64-test.zip
"""

import os
import time
from collections.abc import Callable, Sequence

import click
import torch

from cli import guide_networks
from cli.networks import load_network
from cli.options import script
from ddn_networks import Network, guides
from ddn_networks.guided_sampling import Guidance, by_distance, top_k
from experiments import zscg
from experiments.common import PORTRAITS_OPTION, as_saved, pictures, portraits
from experiments.face_tasks import box_mask, low, tasks
from metrics.detectors import load_lpips

SEEDS = 4  # pictures of each portrait on the sheet of tasks
WITHOUT_PRIOR = ('cells, top 2 without prior', 'cells, top 1 without prior')
WAYS_OF_CELLS = {'cells': Guidance([]), WITHOUT_PRIOR[0]: Guidance([], top_k(2)),
                 WITHOUT_PRIOR[1]: Guidance([], top_k(1))}  # fmt: skip


def together(net: Network, originals: torch.Tensor) -> list[dict]:
    """Figures of two conditions at once, the left half and the whole at 8x8, summed by ranks and by distances
    (Appendix B)."""
    known = box_mask(originals, 0.0, 1.0, 0.5, 1.0)
    both = [guides.inpaint(originals, known), guides.superres(low(originals, 8))]
    ways = {'inpaint alone': Guidance(both[:1]), 'SR8 alone': Guidance(both[1:]), 'both, ranks': Guidance(both),
            'both, distances': Guidance(both, combine=by_distance)}  # fmt: skip
    rows = []
    for name, guidance in ways.items():
        images = as_saved(net.sample(len(originals), guide=guidance)[0])
        figures = [zscg.finished(guide, images).mean().item() for guide in both]
        rows.append({'task': 'left half + SR8', 'way': name, 'to the half': figures[0], 'to 8x8': figures[1],
                     'psnr': zscg.psnr(images, originals, peak=2.0).mean().item()})  # fmt: skip
    return rows


def balance(net: Network, originals: torch.Tensor, seeds: int = 1) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Two contradicting conditions by their weights (Fig. 16): the upper half of a face, and 8x8 pixels of the next.

    Returns (rows of figures, {weights: images [B * seeds, C, H, W]}).
    """
    below = box_mask(originals, 0.5, 1.0, 0.0, 1.0)
    others = originals.roll(-1, 0)
    rows, made = [], {}
    for weight in (1.0, 0.75, 0.5, 0.25, 0.0):
        both = [guides.inpaint(originals, below, weight), guides.superres(low(others, 8), 1 - weight)]
        guidance = Guidance([guide for guide in both if guide.weight])
        images = as_saved(net.sample(len(originals) * seeds, guide=guidance)[0])
        way = f'weights {weight:.2f} and {1 - weight:.2f}'
        figures = [zscg.finished(guide, images).mean().item() for guide in both]
        rows.append({'task': "one's upper half + another's SR8", 'way': way,
                     'to the half': figures[0], 'to 8x8': figures[1]})  # fmt: skip
        made[way.removeprefix('weights ')] = images
    return rows, made


TEXTS = ('a smiling woman', 'an old man with a beard', 'a child', 'a person with red hair', 'a person with glasses')
PLACES = {  # Fig. 16: a text, and the box (top, bottom, left, right) that is left to it
    'wearing sunglasses': (0.38, 0.6, 0.15, 0.85),
    'wearing a hat': (0.0, 0.5, 0.0, 1.0),
    'happy person': (0.5, 1.0, 0.0, 1.0),
}


def clip_guides(model: str) -> Callable[[str], guides.Guide]:
    """A function from a text to its guide, by the ``open_clip`` model 'NAME,TAG or FILE'. Raises ValueError."""
    name, _, pretrained = model.partition(',')
    if not pretrained:
        raise ValueError(f'--clip={model} names no weights: give {name},TAG or {name},FILE')
    try:
        clip, tokenizer = guide_networks.clip_model(name, pretrained)
    except ValueError as error:
        raise ValueError(f'--clip={model}: {error}') from error
    return lambda text: guide_networks.clip_guide(text, clip, tokenizer)


def by_texts(
    net: Network, guide_of: Callable[[str], guides.Guide], pool: torch.Tensor, seeds: int
) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Fig. 15: (rows of distances to each text of guided, unguided and the best unguided faces, {text: faces})."""
    rows, made = [], {}
    for text in TEXTS:
        guide = guide_of(text)
        made[text] = as_saved(net.sample(seeds, guide=guide)[0])
        of_pool = torch.cat([zscg.finished(guide, part) for part in pool.split(64)])
        rows.append({'text': text, 'guided': zscg.finished(guide, made[text]).mean().item(),
                     'unguided': of_pool.mean().item(), f'best of {len(pool)}': of_pool.min().item()})  # fmt: skip
    return rows, made


def text_in_a_place(
    net: Network, guide_of: Callable[[str], guides.Guide], face: torch.Tensor
) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Fig. 16: a face [1, C, H, W] with a box left to a text, by their weights: (rows of figures, {text: images})."""
    rows, made = [], {}
    for text, box in PLACES.items():
        known = box_mask(face, *box)
        drawn = [face * known]
        for weight in (0.9, 0.7, 0.5, 0.3):
            both = [guide_of(text)._replace(weight=1 - weight), guides.inpaint(face, known, weight)]
            drawn.append(as_saved(net.sample(1, guide=Guidance(both))[0]))
            figures = [zscg.finished(guide, drawn[-1]).item() for guide in both]
            rows.append({'text in a place': text, 'weight of the face': weight,
                         'to the text': figures[0], 'to the rest': figures[1]})  # fmt: skip
        made[text] = torch.cat(drawn)
    return rows, made


def drawn_tasks(net: Network, shown: torch.Tensor, every: Sequence[zscg.Task]) -> zscg.Sheet:
    """Fig. 2: a row per task; for each portrait what is known of it, and images of several seeds (top 2)."""
    rows = {}
    for task in every:
        known = zscg.pixels_of(task.condition(shown), shown)
        images = as_saved(net.sample(len(shown) * SEEDS, guide=task.guide(shown))[0])
        each = zip(known, images.split(SEEDS), strict=True)
        rows[task.name] = torch.cat([torch.cat([k[None], some]) for k, some in each])
    return rows


@script(__file__)
@click.option('--network', required=True, metavar='FILE|URL', help='Snapshot of an unconditional face network')
@click.option('--cells', metavar='FILE|URL', help='Snapshot of another face network, with cells')
@click.option('--data', required=True, metavar='ZIP|DIR', help='Held-out faces of its resolution')
@PORTRAITS_OPTION
@click.option('--outdir', metavar='DIR', default='out/zscg_faces', help='Folder for tables and pictures')
@click.option('--num', type=click.IntRange(min=1), default=24, help='Held-out faces')
@click.option('--pool', type=click.IntRange(min=1),
              help='Unguided samples to choose from  [default: as many as the guide judges candidates]')
@click.option('--clip', metavar='MODEL,TAG|FILE', help='Also make Figs 15 and 16, by this model of open_clip')
@click.option('--task', 'only', multiple=True, metavar='NAME', help='Only this task; may be repeated')
def main(network, cells, data, portrait_folder, outdir, num, pool, clip, only):
    guide_of = clip_guides(clip) if clip else None
    net, lpips = load_network(network), load_lpips()
    originals, shown = pictures(data, net, range(num)), portraits(portrait_folder, net)
    calls = sum(net.num_nodes)
    drawn = zscg.unguided(net, pool or calls, seed=10**6, batch=16)
    measure = lpips if min(net.img_resolution) >= 31 else None
    ways = {'top 2': Guidance([]), 'top 1': Guidance([], top_k(1)), 'beam 4': Guidance([], beam=4)}
    every = [task for task in tasks(lambda x: lpips.activations(x)[:3]) if not only or task.name in only]
    other = load_network(cells) if cells else None
    rows = []
    for task in every:
        start = time.perf_counter()
        figures, _ = zscg.compare(net, task, originals, drawn, ways, measure)
        rows += figures
        if other is not None:
            rows += zscg.measured(other, task, originals, WAYS_OF_CELLS, measure, WITHOUT_PRIOR)[0]
            free = as_saved(other.sample(num, seed=10**6)[0])
            rows += zscg.figures(task, originals, {'cells, unguided': free}, measure)
        click.echo(f'{task.name}, {time.perf_counter() - start:.0f} s: {figures[0]}')
    sheets = {'tasks': drawn_tasks(net, shown, every)}
    if other is not None:
        sheets['cells'] = drawn_tasks(other, shown, every)
    for task in every:
        if task.name == 'SR8':
            compared = zscg.ways(net, task, shown, ways) | {'unguided': drawn[: len(shown)]}
            compared['bicubic'] = as_saved(task.baseline(shown))
            best = zscg.best_of(lambda i, task=task: task.guide(shown[i : i + 1]), drawn, len(shown))
            sheets['SR8'] = zscg.compared(task, shown, compared | {f'best of {len(drawn)}': best})
    if not only:
        rows += together(net, originals)
        figures, _ = balance(net, originals)
        rows += figures
        _, made = balance(net, shown, SEEDS)
        sheets['balance'] = made
    if guide_of is not None:
        figures, made = by_texts(net, guide_of, drawn, SEEDS)
        rows, sheets['texts'] = rows + figures, made
        figures, made = text_in_a_place(net, guide_of, shown[:1])
        rows, sheets['places'] = rows + figures, made
    facts = {'network': zscg.in_words(net, network),
             **({'network with cells': zscg.in_words(other, cells)} if cells else {}),
             'faces': f'{num} of {os.path.basename(data)}, held out; the sheets show {len(shown)} portraits',
             'guide calls per image': calls, 'pool': len(drawn), 'psnr': 'dB, to the original',
             'consistency': 'distance of the finished image by the guide, in a unit that depends on the task',
             'seconds': 'per image of a batch of all, on this machine',
             }  # fmt: skip
    zscg.write(outdir, 'zscg-faces', facts, rows, sheets)


if __name__ == '__main__':
    main()
