"""Networks under the published parameter names (the shape is set down in ``docs/network.md``).

Names: block_{n}x{n}_{i}, or block_{n}x{n}_0_up for the upsampling one; in each ``block.norm0, block.conv0, block.norm1,
block.conv1, block.skip`` and ``ddo.multi_out_conv1x1.weight`` [K C, F, 1, 1], of which node k owns rows kC .. kC+C-1.
"""

import re
from collections.abc import Mapping

import torch

from ddn_networks.network import DDN

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
    CIFAR-10: (32, 64, 32), L = 63. 64x64: (64, 512, 64), L = 127. A resolution that is no power of two takes the
    scales of the next one.
    """
    scales = range((img_resolution - 1).bit_length() + 1)
    channels = [max(4, min(channel_max, channel_base >> s)) for s in scales]
    return {
        'img_resolution': img_resolution,
        'img_channels': img_channels,
        'channels': channels,
        'num_blocks': [min(2**s, 64, max_blockn) for s in scales],
        'num_nodes': [max(2, min(max_outputk, max(16, min(4 * c, 1024)) // 2)) for c in channels],
    }


def from_published(state_dict: Mapping[str, torch.Tensor], img_channels: int = 3) -> DDN:
    """The network of a state dict under the published names, every shape read from the tensors, in evaluation mode.

    Raises ValueError naming the first tensor that is missing, unknown or misshapen.
    """
    blocks: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    for name, tensor in state_dict.items():
        match = _BLOCK.fullmatch(name)
        if match is None:
            continue  # buffers of the wrapper around the network
        height, width, index, _, rest = match.groups()
        if height != width:
            raise ValueError(f'{name}: the published network is square')
        if rest == _NODES or _KEPT.fullmatch(rest):
            blocks.setdefault((int(height), int(index)), {})[rest] = tensor
        elif not _SCRATCH.fullmatch(rest):
            raise ValueError(f'{name} is no parameter of the published network')
    if not blocks:
        raise ValueError('no parameter named block_NxN_I...: this is no state dict of the published network')
    order = sorted(blocks)
    missing = next((f'block_{n}x{n}_{i}: {p}' for n, i in order for p in (_NODES, 'block.conv1.weight')
                    if p not in blocks[n, i]), None)
    if missing:
        raise ValueError(f'{missing} is missing')
    sizes = sorted({size for size, _ in order})
    first = [blocks[size, 0] for size in sizes]
    channels = [b['block.conv1.weight'].shape[0] for b in first]
    features = first[0][_NODES].shape[1]
    net = DDN(
        img_resolution=sizes[-1],
        img_channels=img_channels,
        channels=channels,
        num_blocks=[sum(s == size for s, _ in order) for size in sizes],
        num_nodes=[b[_NODES].shape[0] // img_channels for b in first],
        leak_choice=2 * features == channels[0],
    )
    renamed = {}
    for l, key in enumerate(order):
        for name, tensor in blocks[key].items():
            if name == _NODES:
                renamed[f'ddls.{l}.weight'] = tensor.reshape(-1, img_channels, tensor.shape[1])
            else:
                renamed[f'blocks.{l}.{name.removeprefix("block.")}'] = tensor
    try:
        net.load_state_dict(renamed)
    except RuntimeError as e:
        raise ValueError(f'the tensors do not make a published network: {" ".join(str(e).split())[:300]}') from None
    return net.eval()
