"""torch.compile of the blocks gives the same numbers. Skipped where there is no C++ compiler to compile with."""

import os
import shutil

import pytest
import torch

from ddn_networks import DDN, samplers
from training.loss import layer_losses, total_loss

COMPILER = next(filter(shutil.which, (os.environ.get('CXX') or 'c++', 'g++', 'clang++')), None)

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason='torch.compile needs a C++ compiler on the CPU, and none was found'),
    pytest.mark.filterwarnings('ignore'),  # the compiler's own
]


def small_net() -> DDN:
    torch.manual_seed(0)
    net = DDN(img_resolution=4, img_channels=3, channels=[16, 16], num_blocks=[1, 2], num_nodes=[8, 8])
    with torch.no_grad():
        for block in net.blocks:
            block.conv1.weight.mul_(1e5)  # a new block is its skip; these do something
    return net.to(memory_format=torch.channels_last)


def train_one(net: DDN, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Codes, loss and gradients of a training step."""
    target = samplers.target_pyramid(images)
    output = net.train()(samplers.nearest_to(target), len(images), keep=True)
    loss = total_loss(layer_losses(output.selected, target), images.shape[1:])
    net.zero_grad()
    loss.backward()
    return output.codes, loss.detach(), [p.grad for p in net.parameters()]


def test_compiled_blocks_give_the_same_numbers():
    net, compiled = small_net(), small_net()
    for block in compiled.blocks:
        block.compile()  # as training_loop(compile_blocks=True) does
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1

    codes, loss, grads = train_one(net, images)
    compiled_codes, compiled_loss, compiled_grads = train_one(compiled, images)
    torch.testing.assert_close(compiled_codes, codes, rtol=0, atol=0)
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-4, atol=1e-4)
    for a, b in zip(compiled_grads, grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    codes = net.eval().encode(images)
    torch.testing.assert_close(compiled.eval().encode(images), codes, rtol=0, atol=0)
    torch.testing.assert_close(compiled.decode(codes), net.decode(codes), rtol=0, atol=1e-4)
    assert list(compiled.state_dict()) == list(net.state_dict())  # a snapshot does not tell who was compiled
