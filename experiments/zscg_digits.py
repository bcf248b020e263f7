"""Zero-shot conditional generation on digits: classes by LeNet, super-resolution from 4x4, inpainting (Fig. 2).

    python -m experiments.zscg_digits --network=NET --data=datasets/mnist-test.zip --reference=datasets/mnist.zip

NET: a snapshot of train.py --preset=mnist-cpu, or ``mnist``. The judge of classes does not guide: it takes the label of
the nearest --reference image, by pixels. The report states its accuracy on the held-out digits.
"""

import time

import click
import torch

from cli.networks import load_network
from cli.options import script
from ddn_networks import Network, black_boxes, guides, pixel_maps
from ddn_networks.guided_sampling import Guidance, temperature, top_k
from experiments import digits, zscg
from experiments.common import as_saved, class_labels, pictures
from metrics.detectors import load_detector


def tasks() -> list[zscg.Task]:
    def known(x: torch.Tensor) -> torch.Tensor:
        """Mask of the known upper half."""
        half = torch.zeros_like(x[:1, :1])
        half[:, :, : x.shape[2] // 2] = 1
        return half

    def low(x: torch.Tensor, size: int) -> torch.Tensor:
        return pixel_maps.box(x, (size, size))

    def bicubic(x: torch.Tensor, size: int) -> torch.Tensor:
        return torch.nn.functional.interpolate(low(x, size), size=x.shape[2:], mode='bicubic').clamp(-1, 1)

    return [
        *(zscg.Task(f'superres {s}x{s}', lambda x, s=s: guides.superres(low(x, s)), lambda x, s=s: low(x, s),
                    lambda x, s=s: bicubic(x, s)) for s in (4, 8)),
        zscg.Task('inpaint lower half', lambda x: guides.inpaint(x, known(x)), lambda x: x * known(x) + known(x) - 1,
                  lambda x: torch.where(known(x) > 0, x, -torch.ones_like(x))),
    ]  # fmt: skip


def classes(net: Network, lenet, judge, per_class: int) -> tuple[list[dict], torch.Tensor]:
    """(rows of figures of the class guide used in several ways, images of the first way, class by class)."""
    index = torch.arange(10).repeat_interleave(per_class)
    calls = sum(net.num_nodes)
    ways = {
        'top 2': Guidance([]),
        'top 1': Guidance([], top_k(1)),
        'temperature 1': Guidance([], temperature(1.0)),
        'beam 4': Guidance([], beam=4),
        'top 2, every 2': Guidance([], every=2),
        'top 2, every 4': Guidance([], every=4),
        'top 2, first half': Guidance([], layers=(0, net.num_layers // 2 - 1)),
        'top 2, second half': Guidance([], layers=(net.num_layers // 2, net.num_layers - 1)),
    }
    rows, sheet = [], None
    for name, guidance in ways.items():
        guide = black_boxes.classifier(lenet.logits, index)
        start = time.perf_counter()
        images = as_saved(net.sample(len(index), guide=guidance._replace(guides=[guide]))[0])
        seconds = time.perf_counter() - start
        asked = guidance._replace(guides=[guide])
        judged = guidance.beam * sum(k for l, k in enumerate(net.num_nodes) if asked.asks(l))
        rows.append(_class_row(name, images, index, lenet, judge, judged, seconds / len(index)))
        sheet = images if sheet is None else sheet
    pool = zscg.unguided(net, calls, seed=10**6)
    rows.append(_class_row('unguided', pool[: len(index)], index, lenet, judge, 0, 0.0))
    odds = [zscg.finished(black_boxes.classifier(lenet.logits, c), pool) for c in range(10)]
    nearest = torch.cat([pool[of_class.argsort()[:per_class]] for of_class in odds])
    rows.append(_class_row(f'best {per_class} of {calls}', nearest, index, lenet, judge, calls // per_class, 0.0))
    return rows, sheet


def _class_row(way: str, images, index, lenet, judge, calls: int, seconds: float) -> dict:
    by_guide = (lenet.logits(images).argmax(1) == index).float().mean().item()
    by_judge = (judge(images) == index).float().mean().item()
    spread = images.unflatten(0, (10, -1)).std(1).mean().item()
    return {'task': 'class', 'way': way, 'accuracy by the guide': by_guide, 'accuracy by the judge': by_judge,
            'deviation within a class': spread, 'guide calls per image': calls, 's per image': seconds}  # fmt: skip


@script(__file__)
@click.option('--network', required=True, metavar='FILE|URL|NAME', help='Snapshot of a network for 32x32 digits')
@click.option('--data', required=True, metavar='ZIP|DIR', help='Held-out digits with labels')
@click.option('--reference', required=True, metavar='ZIP|DIR', help='Digits with labels, for the judge')
@click.option('--lenet', metavar='FILE|URL', help='Weights of the guide  [default: as fid.py finds them]')
@click.option('--outdir', metavar='DIR', default='out/zscg_digits', help='Folder for tables and pictures')
@click.option('--num', type=click.IntRange(min=1), default=64, help='Held-out digits')
@click.option('--per-class', type=click.IntRange(min=2), default=10, help='Images of each class')
@click.option('--pool', type=click.IntRange(min=1),
              help='Unguided samples to choose from  [default: as many as the guide judges candidates]')
def main(network, data, reference, lenet, outdir, num, per_class, pool):
    net, lenet = load_network(network), load_detector('lenet', lenet).net
    judge = digits.nearest_digit(reference, net)
    originals, truth = pictures(data, net, range(num)), class_labels(data, range(num))
    drawn = zscg.unguided(net, pool or sum(net.num_nodes), seed=10**6)
    ways = {'top 2': Guidance([]), 'top 1': Guidance([], top_k(1)), 'beam 4': Guidance([], beam=4)}
    rows, guided_digits = classes(net, lenet, judge, per_class)
    sheets = {'classes': {str(c): part for c, part in enumerate(guided_digits.split(per_class))}}
    for task in tasks():
        figures, made = zscg.compare(net, task, originals, drawn, ways)
        rows += figures
        sheets[task.name.replace(' ', '-')] = zscg.compared(task, originals, made)
    facts = {
        'network': zscg.in_words(net, network),
        'judge on the held-out digits': f'{(judge(originals) == truth).float().mean().item():.3f} of {num}',
        'guide calls per image': sum(net.num_nodes),
        'pool': len(drawn),
    }
    zscg.write(outdir, 'zscg-digits', facts, rows, sheets)


if __name__ == '__main__':
    main()
