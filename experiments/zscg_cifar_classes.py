"""CIFAR-10 classes by a classifier that the network never met (Fig. 7): guided by resnet20, judged by resnet56.

    python experiments/zscg_cifar_classes.py --network=NET --data=datasets/cifar10-test.zip

Without --network one is trained first (preset cifar10-cpu). The table also says what is lost where the guide is asked
less often (--guide-every, --guide-layers of generate.py): the share that the judge reads against the guide's calls.
"""

import os
import sys
import time

import click
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..'))
sys.path.insert(0, os.path.dirname(__file__))

import zscg

from cli.options import script_help
from ddn_networks import Network, black_boxes
from ddn_networks.guided_sampling import Guidance, top_k
from dnnlib.archives import ImageArchive
from dnnlib.labels import read_labels

NAMES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as those classifiers were trained


class Block(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut: every second pixel, channels padded with zeros."""

    def __init__(self, before: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.more = stride, channels - before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return F.relu(y + shortcut)


class CifarResNet(nn.Module):
    """He et al. 2015 for CIFAR-10, depth 6 n + 2: images [B, 3, 32, 32] in [-1, 1] -> logits [B, 10]."""

    def __init__(self, depth: int):
        super().__init__()
        n = (depth - 2) // 6
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(n)))
        self.layer2 = nn.Sequential(*(Block(16 if i == 0 else 32, 32, 2 if i == 0 else 1) for i in range(n)))
        self.layer3 = nn.Sequential(*(Block(32 if i == 0 else 64, 64, 2 if i == 0 else 1) for i in range(n)))
        self.linear = nn.Linear(64, 10)
        self.register_buffer('mean', torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = ((images.float() + 1) / 2 - self.mean) / self.std
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def load_resnet(path: str, depth: int) -> CifarResNet:
    """A classifier of akamaster/pytorch_resnet_cifar10 (BSD-2) from its file."""
    state = torch.load(path, map_location='cpu', weights_only=True)['state_dict']
    net = CifarResNet(depth)
    net.load_state_dict({name.removeprefix('module.'): tensor for name, tensor in state.items()})
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # a fifth faster


@torch.no_grad()
def share(net: CifarResNet, images: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[10] how many of each class's images are read as it."""
    right = torch.cat([net(part).argmax(1) for part in images.split(256)]) == index
    return torch.stack([right[index == c].float().mean() for c in range(10)])


WEIGHTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'shared', 'weights')
HELD = 1000  # real images that say how far the judge can be trusted


def guidances(net: Network) -> dict[str, Guidance]:
    """Ways of choosing, and of asking the guide less often (--guide-every, --guide-layers)."""
    last = net.num_layers - 1
    ways = {'top 2': Guidance([]), 'top 1': Guidance([], top_k(1))}
    ways |= {f'top 2, every {n}': Guidance([], every=n) for n in (2, 4, 8)}
    starts = [l for l in range(1, net.num_layers) if net.specs[l].size != net.specs[l - 1].size]
    for first, end in zip([0, *starts], [*starts, last + 1], strict=True):
        side = net.specs[first].size[0]
        ways[f'top 2, layers {first}-{end - 1} ({side}x{side})'] = Guidance([], layers=(first, end - 1))
    return ways


@torch.no_grad()
def best_each(net: CifarResNet, pool: torch.Tensor, per_class: int) -> torch.Tensor:
    """[10 per_class, C, H, W]: the pool is cut into ``per_class`` parts, of each the guide picks the best per class."""
    chance = torch.cat([net(part).double().log_softmax(1) for part in pool.split(256)])  # [N, 10]
    parts = torch.arange(len(pool)).tensor_split(per_class)
    return torch.stack([pool[part[chance[part, c].argmax()]] for c in range(10) for part in parts])


@torch.no_grad()
def trust(net: Network, judge: CifarResNet, data: str) -> dict[str, str]:
    """How often the judge reads held-out images right, and what the network can draw of them: how much of a class its
    pictures show at all."""
    archive = ImageArchive(data)
    labels, real = read_labels(archive), zscg.pictures(data, HELD, net, spread=True)
    if labels is None:
        raise click.ClickException(f'{data} has no labels')
    truth = torch.from_numpy(labels.values)[zscg.places(HELD, len(archive))]
    drawn = torch.cat([net.decode(net.encode(part)) for part in real.split(100)])
    facts = {}
    for name, images in (('held-out images', real), ('their reconstructions', zscg.as_saved(drawn))):
        right = (torch.cat([judge(part).argmax(1) for part in images.split(256)]) == truth).float().mean().item()
        facts[f'resnet56 on {name}'] = f'reads {right:.1%} of {HELD} right'
    return facts


@click.command(help=script_help(__file__), context_settings={'show_default': True})
@click.option('--network', help='Snapshot of an unconditional CIFAR-10 network')
@click.option('--train-data', default='datasets/cifar10-train.zip', help='What to train preset cifar10-cpu on without')
@click.option('--data', help='Held-out images with labels: how often does the judge read them right?')
@click.option('--weights', default=WEIGHTS, show_default='../shared/weights', help='Folder of resnet20 and resnet56')
@click.option('--outdir', default='out/zscg_cifar_classes')
@click.option('--per-class', type=int, default=5)
@click.option('--pool', type=int, help='Unguided samples per image to choose from  [default: as many as guide calls]')
def main(network, train_data, data, weights, outdir, per_class, pool):
    network = network or zscg.trained('cifar10-cpu', train_data, os.path.join(outdir, 'cifar-network'))
    net = Network.from_pretrained(network)
    guide_net = load_resnet(os.path.join(weights, 'akamaster_resnet20-12fca82f.th'), 20)
    judge = load_resnet(os.path.join(weights, 'akamaster_resnet56-4bfd9763.th'), 56)
    index = torch.arange(10).repeat_interleave(per_class)
    made = {}  # way -> images, guide calls per image, seconds per image
    for name, guidance in guidances(net).items():
        wanted = index[::per_class] if name == 'top 1' else index  # which takes no chances: all of a class are one
        guidance = guidance._replace(guides=[black_boxes.classifier(guide_net, wanted)])
        calls = sum(k for l, k in enumerate(net.num_nodes) if guidance.asks(l))
        start = time.perf_counter()
        images = zscg.as_saved(net.sample(len(wanted), guide=guidance)[0])
        made[name] = images, calls, (time.perf_counter() - start) / len(wanted)
        print(name, f'{calls} calls, {made[name][2]:.2f} s per image', flush=True)
    pool = pool or sum(net.num_nodes)
    start = time.perf_counter()
    drawn = zscg.unguided(net, pool * per_class, seed=10**6)
    each = (time.perf_counter() - start) / len(drawn)
    made['unguided'] = drawn[: len(index)], 0, each
    start = time.perf_counter()
    best = best_each(guide_net, drawn, per_class)
    # One pool serves all ten classes here; who wants one class draws and judges it for that class alone.
    made[f'best of {pool}'] = best, pool, each * pool + (time.perf_counter() - start) / len(best)
    rows = []
    for name, (images, calls, seconds) in made.items():
        wanted = torch.arange(10).repeat_interleave(len(images) // 10)
        by_guide, by_judge = share(guide_net, images, wanted), share(judge, images, wanted)
        rows.append({'way': name, 'guide calls per image': calls, 'read by resnet20 (guide)': by_guide.mean().item(),
                     'read by resnet56 (judge)': by_judge.mean().item(), 's per image': seconds,
                     **dict(zip(NAMES, by_judge.tolist(), strict=True))})  # fmt: skip
    facts = {'network': zscg.in_words(net, network),
             'images per class': f'{per_class}; one of top 1',
             'class columns': 'share that resnet56 reads as the class'}  # fmt: skip
    if data:
        facts |= trust(net, judge, data)
    ways = {'guided': made['top 2'][0], 'best-of': best}
    sheets = {name: zscg.Sheet(dict(zip(NAMES, images.split(per_class), strict=True))) for name, images in ways.items()}
    zscg.write(outdir, 'zscg-cifar-classes', facts, rows, sheets)


if __name__ == '__main__':
    main()
