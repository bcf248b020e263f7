"""CIFAR-10 classes by a classifier that the network never saw (Fig. 7): guided by resnet20, judged by resnet56.

    python -m experiments.zscg_cifar_classes --network=NET --data=datasets/cifar10-test.zip

NET: a snapshot of train.py --preset=cifar10-whole-cpu, or ``cifar10``, which comes with the code. docs/metrics.md says
where the classifiers are looked for. The table also shows what is lost where the guide is asked less often: the share
of images that the judge classifies as wanted, against the number of pictures that the guide judges for one image. Of a
network of layers of whole images it asks at fewer layers (--guide-every, --guide-layers of generate.py); of one with
cells or a prior it shows fewer pictures at a time (--proposals); in one row the guide sees each of them also mirrored
and shifted. Without a guide: the best of uniform samples by the guide and, with a prior, of samples by the prior.
"""

import time
from typing import NamedTuple

import click
import torch
import torch.nn.functional as F

from cli.networks import load_network
from cli.options import script
from ddn_networks import Network, black_boxes
from ddn_networks.guided_sampling import Guidance, top_k
from experiments import zscg
from experiments.common import as_saved, class_labels, pictures, spread
from metrics.detectors import load_resnet
from metrics.resnet import CifarResNet

NAMES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
PROPOSALS = (64, 16, 4)
VIEWS = ', three views'  # ends the name of a way whose guide is the mean over three views
HELD = 1000  # real images that show how far the judge can be trusted


def share(net: CifarResNet, images: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[10] share of the images of each class that are classified as it."""
    right = net.classes(images) == index
    return torch.stack([right[index == c].float().mean() for c in range(10)])


class Counted(NamedTuple):
    """A classifier that counts the pictures it is shown. views: the mean of the log-probabilities of a picture, of its
    mirror image, and of it shifted by two pixels."""

    net: CifarResNet
    shown: list[int]
    views: bool

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.shown.append(len(images))
        if not self.views:
            return self.net(images)
        shifted = F.pad(images, (2, 0, 2, 0), mode='replicate')[..., :-2, :-2]
        views = torch.stack([self.net(x).log_softmax(1) for x in (images, images.flip(3), shifted)])
        return views.mean(0)


def guidances(net: Network) -> dict[str, Guidance]:
    """{way: guidance}: ways to choose, and to ask the guide less often."""
    if net.prior or net.num_codes > net.num_layers:
        ways = {f'top 1 of {m} proposals': Guidance([], top_k(1), proposals=m) for m in PROPOSALS}
        return ways | {f'top 1 of {(m := PROPOSALS[1])} proposals{VIEWS}': Guidance([], top_k(1), proposals=m)}
    last = net.num_layers - 1
    ways = {'top 2': Guidance([]), 'top 1': Guidance([], top_k(1))}
    ways |= {f'top 2, every {n}': Guidance([], every=n) for n in (2, 4, 8)}
    starts = [l for l in range(1, net.num_layers) if net.specs[l].size != net.specs[l - 1].size]
    for first, end in zip([0, *starts], [*starts, last + 1], strict=True):
        side = net.specs[first].size[0]
        ways[f'top 2, layers {first}-{end - 1} ({side}x{side})'] = Guidance([], layers=(first, end - 1))
    return ways


def best_each(net: CifarResNet, pool: torch.Tensor, per_class: int) -> torch.Tensor:
    """[10 per_class, C, H, W]: of each of ``per_class`` parts of the pool, the image that the guide likes best of each
    class."""
    chance = torch.cat([net(part).double().log_softmax(1) for part in pool.split(256)])  # [N, 10]
    parts = torch.arange(len(pool)).tensor_split(per_class)
    return torch.stack([pool[part[chance[part, c].argmax()]] for c in range(10) for part in parts])


def trust(net: Network, judge: CifarResNet, data: str) -> dict[str, str]:
    """The judge's accuracy on held-out images and on their reconstructions, which bounds what samples can reach."""
    chosen = spread(data, HELD)
    truth, real = class_labels(data, chosen), pictures(data, net, chosen)
    decoded = torch.cat([net.reconstruct(part).images for part in real.split(100)])
    facts = {}
    for name, images in (('held-out images', real), ('their reconstructions', as_saved(decoded))):
        right = (judge.classes(images) == truth).float().mean().item()
        facts[f'resnet56 on {name}'] = f'classifies {right:.1%} of {HELD} correctly'
    return facts


@script(__file__)
@click.option('--network', required=True, metavar='FILE|URL', help='Snapshot of an unconditional CIFAR-10 network')
@click.option('--data', metavar='ZIP|DIR', help='Held-out images with labels, to measure the accuracy of the judge')
@click.option('--outdir', metavar='DIR', default='out/zscg_cifar_classes', help='Folder for tables and pictures')
@click.option('--per-class', type=click.IntRange(min=1), default=5, help='Images of each class')
@click.option('--pool', type=click.IntRange(min=10),
              help='Unguided samples per image to choose from  [default: as many as the guide judges candidates]')
@torch.no_grad()
def main(network, data, outdir, per_class, pool):
    net = load_network(network)
    guide_net, judge = load_resnet(20), load_resnet(56)
    index = torch.arange(10).repeat_interleave(per_class)
    made = {}  # {way: (images, guide calls per image, seconds per image)}
    for name, guidance in guidances(net).items():
        wanted = index[::per_class] if name == 'top 1' else index  # deterministic: one image per class
        counted = Counted(guide_net, [], name.endswith(VIEWS))
        guidance = guidance._replace(guides=[black_boxes.classifier(counted, wanted)])
        start = time.perf_counter()
        images = as_saved(net.sample(len(wanted), guide=guidance)[0])
        made[name] = images, sum(counted.shown) // len(wanted), (time.perf_counter() - start) / len(wanted)
        click.echo(f'{name}: {made[name][1]} calls, {made[name][2]:.2f} s per image')
    first = next(iter(made))
    pool = pool or made[first][1]
    best = {}  # {name of the sheet: images}
    pools = {'': 'best-of'} | ({', prior': 'best-of-prior'} if len(net.prior) else {})
    for by, sheet in pools.items():
        start = time.perf_counter()
        drawn = zscg.unguided(net, pool * per_class, seed=10**6, uniform=not by)
        each = (time.perf_counter() - start) / len(drawn)
        made[f'unguided{by}'] = drawn[: len(index)], 0, each
        start = time.perf_counter()
        best[sheet] = best_each(guide_net, drawn, per_class)
        # One pool serves all ten classes here; the times are those of a pool for one class.
        made[f'best of {pool}{by}'] = best[sheet], pool, each * pool + (time.perf_counter() - start) / len(index)
    rows = []
    for name, (images, calls, seconds) in made.items():
        wanted = torch.arange(10).repeat_interleave(len(images) // 10)
        by_guide, by_judge = share(guide_net, images, wanted), share(judge, images, wanted)
        rows.append({'way': name, 'guide calls per image': calls,
                     'accuracy by resnet20 (guide)': by_guide.mean().item(),
                     'accuracy by resnet56 (judge)': by_judge.mean().item(), 's per image': seconds,
                     **dict(zip(NAMES, by_judge.tolist(), strict=True))})  # fmt: skip
    facts = {'network': zscg.in_words(net, network),
             'images per class': f'{per_class}; one of top 1',
             'class columns': 'share that resnet56 classifies as the class'}  # fmt: skip
    if data:
        facts |= trust(net, judge, data)
    ways = {'guided': made[first][0], **best}
    sheets = {name: dict(zip(NAMES, images.split(per_class), strict=True)) for name, images in ways.items()}
    zscg.write(outdir, 'zscg-cifar-classes', facts, rows, sheets)


if __name__ == '__main__':
    main()
