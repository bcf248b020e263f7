"""CIFAR-10 classes by a classifier that the network never met (Fig. 7): guided by resnet20, judged by resnet56.

    python experiments/zscg_cifar_classes.py --network=NET --outdir=experiments/out

Without --network a small one is trained first on --data for --train-kimg thousand images (train.py; minutes on a CPU).
"""

import glob
import os
import subprocess
import sys
import time

import click
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..'))
sys.path.insert(0, os.path.dirname(__file__))

import zscg

from ddn_networks import DDN, black_boxes
from ddn_networks.guided import Guidance, top_k

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
    return net.eval().requires_grad_(False)


def train(data: str, kimg: float, outdir: str) -> str:
    """The last snapshot of a small network trained here."""
    command = [sys.executable, 'train.py', f'--outdir={outdir}', f'--data={data}', '--nosubdir', '--seed=0',
               '--channels=64,64,64,64,48,32', '--blocks=1,2,4,6,6,6', '--nodes=64', f'--duration={kimg / 1000}',
               '--batch=32', '--lr=0.002', '--lr-ramp=0.002', '--lr-decay=cosine', f'--ema={kimg / 2e4}',
               f'--tick={kimg / 4}', '--snap=4', '--dump=4']  # fmt: skip
    subprocess.run(command, check=True, cwd=os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))
    return sorted(glob.glob(os.path.join(outdir, 'network-snapshot-*.safetensors')))[-1]


@torch.no_grad()
def share(net: CifarResNet, images: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[10] how many of each class's images are read as it."""
    right = torch.cat([net(part).argmax(1) for part in images.split(256)]) == index
    return torch.stack([right[index == c].float().mean() for c in range(10)])


WEIGHTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'shared', 'weights')


@click.command(help=__doc__, context_settings={'show_default': True})
@click.option('--network', help='Snapshot of an unconditional CIFAR-10 network')
@click.option('--data', default='datasets/cifar10-train.zip', help='What to train on without one')
@click.option('--train-kimg', type=float, default=50)
@click.option('--weights', default=WEIGHTS, help='Folder of resnet20 and resnet56')
@click.option('--outdir', default='experiments/out')
@click.option('--per-class', type=int, default=10)
@click.option('--pool', type=int, default=1000, help='Unguided samples of which the guide picks the best')
def main(network, data, train_kimg, weights, outdir, per_class, pool):
    network = network or train(data, train_kimg, os.path.join(outdir, 'cifar-network'))
    net = DDN.from_pretrained(network)
    guide_net = load_resnet(os.path.join(weights, 'akamaster_resnet20-12fca82f.th'), 20)
    judge = load_resnet(os.path.join(weights, 'akamaster_resnet56-4bfd9763.th'), 56)
    index = torch.arange(10).repeat_interleave(per_class)
    ways = {
        'top 2': Guidance([]),
        'top 1': Guidance([], top_k(1)),
        'top 2, every 2': Guidance([], every=2),
        'top 2, every 4': Guidance([], every=4),
        'top 2, first half': Guidance([], layers=(0, net.num_layers // 2 - 1)),
        'top 2, second half': Guidance([], layers=(net.num_layers // 2, net.num_layers - 1)),
    }
    made, facts = {}, {}
    for name, guidance in ways.items():
        guidance = guidance._replace(guides=[black_boxes.classifier(guide_net, index)])
        calls = sum(k for l, k in enumerate(net.num_nodes) if guidance.asks(l))
        start = time.perf_counter()
        images = zscg.as_saved(net.sample(len(index), guide=guidance)[0])
        made[name] = images, calls, (time.perf_counter() - start) / len(index)
        print(name, f'{made[name][2]:.2f} s per image', flush=True)
    drawn = zscg.unguided(net, pool, seed=10**6)
    made['unguided'] = drawn[: len(index)], 0, 0.0
    odds = [zscg.finished(black_boxes.classifier(guide_net, c), drawn) for c in range(10)]
    best = torch.cat([drawn[of_class.argsort()[:per_class]] for of_class in odds])
    made[f'best {per_class} of {pool}'] = best, pool // per_class, 0.0
    rows = []
    for name, (images, calls, seconds) in made.items():
        by_guide, by_judge = share(guide_net, images, index), share(judge, images, index)
        rows.append({'way': name, 'read by resnet20 (guide)': by_guide.mean().item(),
                     'read by resnet56 (judge)': by_judge.mean().item(), 'guide calls per image': calls,
                     's per image': seconds, **dict(zip(NAMES, by_judge.tolist(), strict=True))})  # fmt: skip
    facts = {'network': f'{network}, L = {net.num_layers}, K = {max(net.num_nodes)}', 'images per class': per_class,
             'class columns': 'share that resnet56 reads as the class'}  # fmt: skip
    sheets = {'guided': (made['top 2'][0], per_class), 'best-of': (best, per_class)}
    zscg.write(outdir, 'zscg-cifar-classes', facts, rows, sheets)


if __name__ == '__main__':
    main()
