"""torch.compile of a block gives the same numbers. Skipped where there is no C++ compiler to compile with."""

import os
import shutil

import pytest
import torch

from ddn_networks import DDN, samplers
from ddn_networks.blocks import ResBlock
from torch_utils import misc
from training.loss import layer_losses, total_loss

COMPILER = next(filter(shutil.which, (os.environ.get('CXX') or 'c++', 'g++', 'clang++')), None)

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason='torch.compile needs a C++ compiler on the CPU, and none was found'),
    pytest.mark.filterwarnings('ignore'),  # the compiler's own
]


def small_net() -> DDN:
    torch.manual_seed(0)
    net = DDN(img_resolution=2, img_channels=3, channels=[16], num_blocks=[1], num_nodes=[8])
    with torch.no_grad():
        net.blocks[0].conv1.weight.mul_(1e5)  # a new block is its skip; this one does something
    return net.to(memory_format=torch.channels_last)


def train_one(net: DDN, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Codes, selected images and gradients of a training step."""
    target = samplers.target_pyramid(images)
    output = net(samplers.nearest_to(target), len(images), keep=True)
    total_loss(layer_losses(output.selected, target), images.shape[1:]).backward()
    return output.codes, output.images.detach(), [p.grad for p in net.parameters()]


def test_blocks_of_many_widths_are_all_compiled(monkeypatch):
    whole = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, 'compile', lambda self, **how: whole(self, backend='eager', **how))
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters['stats']
    before = graphs['unique_graphs']
    blocks = [ResBlock(c, c) for c in range(1, 11)]
    misc.compile_(blocks)
    for c, block in enumerate(blocks, 1):
        block(torch.ones(1, c, 2, 2), (2, 2))
    assert graphs['unique_graphs'] - before == len(blocks)


def test_a_compiled_block_gives_the_same_numbers():
    net, compiled = small_net(), small_net()
    misc.compile_(compiled.blocks)  # as training_loop(compile_blocks=True) does
    images = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codes, made, grads = train_one(net, images)
    with torch._inductor.config.patch(compile_threads=1):  # a small graph is not worth a pool of processes
        compiled_codes, compiled_made, compiled_grads = train_one(compiled, images)
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] >= 1  # somebody did compile
    torch.testing.assert_close(compiled_codes, codes, rtol=0, atol=0)
    torch.testing.assert_close(compiled_made, made, rtol=0, atol=1e-4)
    for a, b in zip(compiled_grads, grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert list(compiled.state_dict()) == list(net.state_dict())  # a snapshot does not tell who was compiled
