"""Load weights of the published networks (``docs/network.md`` describes them).

Names: block_{n}x{n}_{i}, or block_{n}x{n}_0_up for the upsampling one; in each ``block.norm0, block.conv0, block.norm1,
block.conv1, block.skip`` and ``ddo.multi_out_conv1x1.weight`` [K C, F, 1, 1], of which node k owns rows kC .. kC+C-1.
"""

import numbers
import re
from collections.abc import Mapping, Sequence

import torch

from ddn_networks.single_shot import DDN

_BLOCK = re.compile(r'(?:.*\.)?block_(\d+)x(\d+)_(\d+)(_up)?\.(.+)')
_KEPT = re.compile(r'block\.(norm0|conv0|norm1|conv1|skip)\.(weight|bias)')
_SCRATCH = re.compile(r'ddo\.split_idxs|block\.\w+\.resample_filter')
_NODES = 'ddo.multi_out_conv1x1.weight'


def published_config(
    img_resolution: int,
    max_outputk: int = 512,
    max_blockn: int = 64,
    img_channels: int = 3,
    channel_base: int = 2**13,
    channel_max: int = 256,
) -> dict:
    """Constructor arguments of the published network at a resolution, as the paper's experiments use it.

    Scale s = 0 .. log2(resolution): blocks 1, 2, 4, 8, 16, 32, 64, 64, ... capped by ``max_blockn``; channels
    min(channel_max, channel_base / 2^s), at least 4; K = min(max_outputk, max(16, min(4 channels, 1024)) / 2).
    CIFAR-10: (32, 64, 32), L = 63. 64x64: (64, 512, 64), L = 127. A resolution that is not a power of two has
    the scales of the next one.
    """
    if not isinstance(img_resolution, numbers.Integral):
        raise ValueError(f'the resolution of a published network is one number, not {img_resolution}')
    scales = range((img_resolution - 1).bit_length() + 1)
    channels = [max(4, min(channel_max, channel_base >> s)) for s in scales]
    return {
        'img_resolution': img_resolution,
        'img_channels': img_channels,
        'channels': channels,
        'num_blocks': [min(2**s, 64, max_blockn) for s in scales],
        'num_nodes': [max(2, min(max_outputk, max(16, min(4 * c, 1024)) // 2)) for c in channels],
    }


def from_published(
    state_dict: Mapping[str, torch.Tensor], img_channels: int = 3, conditions: Sequence[str] = ()
) -> DDN:
    """Build the network of a published state dict, all shapes read from its tensors, in evaluation mode.

    A published condition has no parameters, so the tensors do not show it: ``conditions`` names it, ['class:10'] for
    the class-conditional networks of MNIST and CIFAR-10, ['color'], ['edge'] or ['lowres:N'] for those of Fig. 8.

    Raises ValueError naming the first tensor that is missing, unknown, duplicate or of a wrong shape.
    """
    blocks: dict[tuple[int, int], dict[str, str]] = {}  # (size, index) -> name within the block -> name in state_dict
    for name in state_dict:
        match = _BLOCK.fullmatch(name)
        if match is None:
            continue  # buffers of the wrapper around the network
        height, width, index, _, rest = match.groups()
        if height != width:
            raise ValueError(f'{name}: the published network is square')
        if rest == _NODES or _KEPT.fullmatch(rest):
            first = blocks.setdefault((int(height), int(index)), {}).setdefault(rest, name)
            if first != name:
                raise ValueError(f'{first} and {name} are one parameter: leave the tensors of one network')
        elif not _SCRATCH.fullmatch(rest):
            raise ValueError(f'{name} is not a parameter of the published network')
    if not blocks:
        raise ValueError('no parameter named block_NxN_I...: this is not a state dict of the published network')
    sizes = [2**s for s in range(max(size for size, _ in blocks).bit_length())]
    num_blocks = [1 + max((i for s, i in blocks if s == size), default=0) for size in sizes]
    order = []
    for block in ((size, i) for size, n in zip(sizes, num_blocks, strict=True) for i in range(n)):
        for rest in (_NODES, 'block.conv1.weight'):
            if rest not in blocks.get(block, {}):
                raise ValueError(f'{_published_name(*block, rest)} is missing')
        order.append(block)
    if stray := sorted(set(blocks) - set(order)):
        raise ValueError(f'block_{stray[0][0]}x{stray[0][0]}: the sizes of the published network are powers of two')
    first = [blocks[size, 0] for size in sizes]
    channels = [state_dict[b['block.conv1.weight']].shape[0] for b in first]
    net = DDN(
        img_resolution=sizes[-1],
        img_channels=img_channels,
        channels=channels,
        num_blocks=num_blocks,
        num_nodes=[state_dict[b[_NODES]].shape[0] // img_channels for b in first],
        leak_choice=2 * state_dict[first[0][_NODES]].shape[1] == channels[0],
        conditions=['published-edge' if name == 'edge' else name for name in conditions],
    )
    own = net.state_dict()
    for l, block in enumerate(order):
        modules = {'block.': f'blocks.{l}.', 'ddo.multi_out_conv1x1.': f'ddls.{l}.'}
        for prefix, module in modules.items():
            for mine in [name for name in own if name.startswith(module)]:
                rest = prefix + mine.removeprefix(module)
                if rest not in blocks[block]:
                    raise ValueError(f'{_published_name(*block, rest)} is missing')
                name = blocks[block].pop(rest)
                expected, tensor = list(own[mine].shape), state_dict[name]
                if rest == _NODES:
                    expected = [expected[0] * expected[1], expected[2], 1, 1]
                if list(tensor.shape) != expected:
                    raise ValueError(f'{name} is {list(tensor.shape)}; the other tensors ask for {expected}')
                own[mine] = tensor.reshape(own[mine].shape)
        if blocks[block]:
            name = next(iter(blocks[block].values()))
            raise ValueError(f'{name} does not belong to the network of the other tensors')
    net.load_state_dict(own)
    return net.eval()


def _published_name(size: int, index: int, rest: str) -> str:
    return f'block_{size}x{size}_{index}{"_up" if index == 0 and size > 1 else ""}.{rest}'
