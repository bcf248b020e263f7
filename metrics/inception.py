"""FID's Inception-v3 (2015-12-05), an original implementation: images in, 2048 pooled features out.

Parameters have the names of pytorch-fid (``Mixed_5b.branch1x1.conv.weight``), so its weight file loads. The network is
torchvision's Inception-v3 with two changes in pooling from the TensorFlow graph that defines FID: average pools do not
count their padding, and the pool branch of the last block is a max pool. The resize to 299x299 is that of TensorFlow 1:
bilinear, no half-pixel shift, corners not aligned.

``fast_`` makes a loaded network compute the same features (to rounding) in less time: batch norms are folded into the
convolutions, and 1x1 convolutions of the same input become one. The pool branch joins them, since a 1x1 convolution and
an average over pixels commute; its pool then runs on fewer channels.

    B images, C channels, H W pixels
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

SIZE = 299  # pixels a side, after the resize
DIM = 2048  # features
# Images at a time on a CPU, in the first layers and in the blocks. Their activations then stay below 32 MiB, glibc's
# limit for memory that it keeps: larger tensors are pages that the kernel clears each time.
STEM_BATCH, BLOCKS_BATCH = 4, 16


def resize_tf1(images: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """Resize [B, C, H, W] to [B, C, size, size] as ``tf.image.resize_bilinear`` of TensorFlow 1 did.

    Output pixel i reads input position i * n / size, computed in float32 as there, and is clamped at the border.
    """
    for axis in (3, 2):  # as there; where the picture grows, the pass along rows, the slower one, then has less to do
        n = images.shape[axis]
        if n == size:
            continue
        at = torch.arange(size, device=images.device, dtype=torch.float32) * torch.tensor(n / size, dtype=torch.float32)
        low = at.floor().long().clamp(max=n - 1)
        high = (low + 1).clamp(max=n - 1)
        share = (at - low).to(images.dtype).view(-1, *[1] * (3 - axis))
        below = images.index_select(axis, low)
        images = below + (images.index_select(axis, high) - below) * share
    return images


def scaled(images: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1] as the network takes them: (pixel - 128) / 128 of pixels of 0 to 255."""
    return (images.float() * 127.5 - 0.5) / 128


class ConvBN(nn.Module):
    """Convolution without bias, batch norm (eps 1e-3), ReLU. ``fold_`` moves the norm into the convolution."""

    def __init__(self, num_in: int, num_out: int, kernel, stride: int = 1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(num_in, num_out, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(num_out, eps=1e-3)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu_(self.linear(x))

    @torch.no_grad()
    def fold_(self) -> None:
        """Replace convolution and norm by one convolution with a bias, computed in float64."""
        conv, bn = self.conv, self.bn
        scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        shift = bn.bias.double() - bn.running_mean.double() * scale
        conv.weight.copy_(conv.weight.double() * scale.view(-1, 1, 1, 1))
        conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
        self.bn = nn.Identity()


def mean_pool(x: torch.Tensor) -> torch.Tensor:
    """3x3 mean at stride 1; padding is not counted."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class Mixed(nn.Module):
    """A block of parallel branches. ``heads`` names the 1x1 convolutions that read the block's input.

    Args:
        heads: ``{name: channels}`` of those; ``branch_pool`` among them reads the pooled input.
        convs: ``{name: (in, out, kernel, stride, padding)}`` of all the others.
    """

    max_pool = False  # what the pool branch does before its convolution

    def __init__(self, num_in: int, heads: dict[str, int], convs: dict[str, tuple]):
        super().__init__()
        self.head_names = list(heads)
        for name, num_out in heads.items():
            self.add_module(name, ConvBN(num_in, num_out, 1))
        for name, (a, b, kernel, stride, padding) in convs.items():
            self.add_module(name, ConvBN(a, b, kernel, stride, padding))
        self.joint: nn.Conv2d | None = None

    def join_(self) -> None:
        """Join all folded heads into one convolution, except a pool branch with a max pool, which does not commute."""
        names = [name for name in self.head_names if not (self.max_pool and name == 'branch_pool')]
        if len(names) < 2:
            return
        convs = [getattr(self, name).conv for name in names]
        self.joint_names, self.joint_sizes = names, [conv.out_channels for conv in convs]
        weight = torch.cat([conv.weight for conv in convs])
        like = {'dtype': weight.dtype, 'device': weight.device}
        self.joint = nn.Conv2d(weight.shape[1], weight.shape[0], 1, **like).requires_grad_(False)
        self.joint.weight.copy_(weight)
        self.joint.bias.copy_(torch.cat([conv.bias for conv in convs]))
        for name in names:
            delattr(self, name)

    def read(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The outputs of the heads for the block's input, by name."""
        heads = {}
        if self.joint is not None:
            heads = dict(zip(self.joint_names, self.joint(x).split(self.joint_sizes, dim=1), strict=True))
            if 'branch_pool' in heads:
                heads['branch_pool'] = mean_pool(heads['branch_pool'])
            heads = {name: F.relu(head) for name, head in heads.items()}
        for name in self.head_names:
            if name not in heads:
                pooled = name == 'branch_pool'
                seen = x if not pooled else F.max_pool2d(x, 3, 1, 1) if self.max_pool else mean_pool(x)
                heads[name] = getattr(self, name)(seen)
        return heads

    def chain(self, x: torch.Tensor, names: Iterable[str]) -> torch.Tensor:
        for name in names:
            x = getattr(self, name)(x)
        return x


class MixedA(Mixed):
    def __init__(self, num_in: int, num_pool: int):
        super().__init__(
            num_in,
            {'branch1x1': 64, 'branch5x5_1': 48, 'branch3x3dbl_1': 64, 'branch_pool': num_pool},
            {
                'branch5x5_2': (48, 64, 5, 1, 2),
                'branch3x3dbl_2': (64, 96, 3, 1, 1),
                'branch3x3dbl_3': (96, 96, 3, 1, 1),
            },
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.read(x)
        five = self.branch5x5_2(h['branch5x5_1'])
        three = self.chain(h['branch3x3dbl_1'], ['branch3x3dbl_2', 'branch3x3dbl_3'])
        return torch.cat([h['branch1x1'], five, three, h['branch_pool']], 1)


class MixedB(Mixed):
    """Halves the size."""

    def __init__(self, num_in: int):
        super().__init__(
            num_in,
            {'branch3x3dbl_1': 64},
            {
                'branch3x3': (num_in, 384, 3, 2, 0),
                'branch3x3dbl_2': (64, 96, 3, 1, 1),
                'branch3x3dbl_3': (96, 96, 3, 2, 0),
            },
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.chain(self.read(x)['branch3x3dbl_1'], ['branch3x3dbl_2', 'branch3x3dbl_3'])
        return torch.cat([self.branch3x3(x), three, F.max_pool2d(x, 3, 2)], 1)


class MixedC(Mixed):
    def __init__(self, num_in: int, c: int):
        wide, tall = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        super().__init__(
            num_in,
            {'branch1x1': 192, 'branch7x7_1': c, 'branch7x7dbl_1': c, 'branch_pool': 192},
            {
                'branch7x7_2': (c, c, *wide),
                'branch7x7_3': (c, 192, *tall),
                'branch7x7dbl_2': (c, c, *tall),
                'branch7x7dbl_3': (c, c, *wide),
                'branch7x7dbl_4': (c, c, *tall),
                'branch7x7dbl_5': (c, 192, *wide),
            },
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.read(x)
        once = self.chain(h['branch7x7_1'], ['branch7x7_2', 'branch7x7_3'])
        twice = self.chain(h['branch7x7dbl_1'], [f'branch7x7dbl_{i}' for i in (2, 3, 4, 5)])
        return torch.cat([h['branch1x1'], once, twice, h['branch_pool']], 1)


class MixedD(Mixed):
    """Halves the size."""

    def __init__(self, num_in: int):
        super().__init__(
            num_in,
            {'branch3x3_1': 192, 'branch7x7x3_1': 192},
            {
                'branch3x3_2': (192, 320, 3, 2, 0),
                'branch7x7x3_2': (192, 192, (1, 7), 1, (0, 3)),
                'branch7x7x3_3': (192, 192, (7, 1), 1, (3, 0)),
                'branch7x7x3_4': (192, 192, 3, 2, 0),
            },
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.read(x)
        seven = self.chain(h['branch7x7x3_1'], [f'branch7x7x3_{i}' for i in (2, 3, 4)])
        return torch.cat([self.branch3x3_2(h['branch3x3_1']), seven, F.max_pool2d(x, 3, 2)], 1)


class MixedE(Mixed):
    def __init__(self, num_in: int, max_pool: bool):
        wide, tall = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
        super().__init__(
            num_in,
            {'branch1x1': 320, 'branch3x3_1': 384, 'branch3x3dbl_1': 448, 'branch_pool': 192},
            {
                'branch3x3_2a': (384, 384, *wide),
                'branch3x3_2b': (384, 384, *tall),
                'branch3x3dbl_2': (448, 384, 3, 1, 1),
                'branch3x3dbl_3a': (384, 384, *wide),
                'branch3x3dbl_3b': (384, 384, *tall),
            },
        )
        self.max_pool = max_pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.read(x)
        a, b = h['branch3x3_1'], self.branch3x3dbl_2(h['branch3x3dbl_1'])
        threes = [self.branch3x3_2a(a), self.branch3x3_2b(a), self.branch3x3dbl_3a(b), self.branch3x3dbl_3b(b)]
        return torch.cat([h['branch1x1'], *threes, h['branch_pool']], 1)


class Inception(nn.Module):
    """FID's Inception-v3 without its classifier. Load weights by ``metrics.weights.load_``, then call ``fast_`` if only
    features are needed."""

    dim = DIM
    resize = f'TensorFlow-1 bilinear to {SIZE}x{SIZE}'

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBN(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvBN(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvBN(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvBN(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvBN(80, 192, 3)
        self.Mixed_5b = MixedA(192, 32)
        self.Mixed_5c = MixedA(256, 64)
        self.Mixed_5d = MixedA(288, 64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b = MixedC(768, 128)
        self.Mixed_6c = MixedC(768, 160)
        self.Mixed_6d = MixedC(768, 160)
        self.Mixed_6e = MixedC(768, 192)
        self.Mixed_7a = MixedD(768)
        self.Mixed_7b = MixedE(1280, max_pool=False)
        self.Mixed_7c = MixedE(2048, max_pool=True)
        self.eval().requires_grad_(False)

    def resized(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 1 or 3, H, W] as the first convolution reads them, [B, 3, 299, 299]."""
        x = resize_tf1(images).expand(-1, 3, -1, -1).to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.is_fast else x

    def stem(self, images: torch.Tensor) -> torch.Tensor:
        """Activations [B, 192, 35, 35] of images [B, 1 or 3, H, W] whose pixels are scaled already."""
        x = self.resized(images)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, 2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        return F.max_pool2d(x, 3, 2)

    def blocks(self, x: torch.Tensor) -> torch.Tensor:
        """Features [B, 2048] of what ``stem`` returns."""
        for block in '5b 5c 5d 6a 6b 6c 6d 6e 7a 7b 7c'.split():
            x = getattr(self, f'Mixed_{block}')(x)
        return x.float().mean((2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features [B, 2048], float32, of images [B, C, H, W], float in [-1, 1]; one channel counts as grey."""
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise ValueError(f'Inception wants float images [B, 1 or 3, H, W], not {images.dtype} {[*images.shape]}')
        x = scaled(images)
        if x.device.type != 'cpu':
            return self.blocks(self.stem(x))
        stems = (torch.cat([self.stem(few) for few in part.split(STEM_BATCH)]) for part in x.split(BLOCKS_BATCH))
        return torch.cat([self.blocks(stem) for stem in stems])

    @property
    def dtype(self) -> torch.dtype:
        return self.Conv2d_1a_3x3.conv.weight.dtype

    @property
    def is_fast(self) -> bool:
        return isinstance(self.Conv2d_1a_3x3.bn, nn.Identity)

    @torch.no_grad()
    def fast_(self, dtype: torch.dtype = torch.float32) -> 'Inception':
        """Fold the norms, join the heads, convert weights to ``dtype``, channels-last. Irreversible; returns itself."""
        for module in self.modules():
            if isinstance(module, ConvBN):
                module.fold_()
        for module in list(self.modules()):
            if isinstance(module, Mixed):
                module.join_()
        return self.to(dtype=dtype, memory_format=torch.channels_last)
