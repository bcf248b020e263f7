"""The published single-shot network, number by number: codes, images, distances, loss and every gradient.

tests/data/ddn_uncond_16px.npz holds a small network with random weights under the published names and what it computes.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import ddn_networks
from ddn_networks import samplers

GOLDEN = Path(__file__).parent / 'data' / 'ddn_uncond_16px.npz'
NODES = 'ddo.multi_out_conv1x1.weight'


@pytest.fixture(scope='module')
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


@pytest.fixture
def published(golden) -> dict[str, torch.Tensor]:
    return {name.removeprefix('param/'): t for name, t in golden.items() if name.startswith('param/')}


def published_order(names) -> list[str]:
    """Names of the blocks, coarse to fine."""
    blocks = {name.split('.')[0] for name in names}
    return sorted(blocks, key=lambda b: [int(n) for n in b.removesuffix('_up').replace('x', '_').split('_')[1:]])


def ours(net: ddn_networks.DDN, blocks: list[str], name: str) -> torch.nn.Parameter:
    """Our parameter of a published name."""
    block, rest = name.split('.', 1)
    layer = blocks.index(block)
    if rest == NODES:
        return net.ddls[layer].weight
    return net.blocks[layer].get_parameter(rest.removeprefix('block.'))


def test_shapes_are_read_from_the_tensors(golden, published):
    net = ddn_networks.from_published(published)
    assert [spec.size for spec in net.specs] == [(n, n) for n in golden['layer_size'].tolist()]
    assert [spec.channels for spec in net.specs] == golden['layer_channels'].tolist()
    assert net.num_nodes == golden['layer_k'].tolist()
    assert not net.training


def test_encoding_gives_the_published_codes_images_and_distances(golden, published):
    net = ddn_networks.from_published(published)
    with torch.no_grad():
        out = net(samplers.nearest(golden['images']), len(golden['images']), keep=True)
    assert torch.equal(out.codes, golden['codes'])
    torch.testing.assert_close(out.images, golden['reconstruction'], atol=5e-5, rtol=0)
    for l, (selected, distances) in enumerate(zip(out.selected, out.distances, strict=True)):
        torch.testing.assert_close(selected, golden[f'selected/{l:03d}'], atol=5e-5, rtol=0)
        torch.testing.assert_close(distances.min(1).values, golden[f'distance/{l:03d}'], atol=1e-5, rtol=0)
    assert torch.equal(net.encode(golden['images']), golden['codes'])


def test_decoding_given_codes_gives_the_published_images(golden, published):
    net = ddn_networks.from_published(published)
    torch.testing.assert_close(net.decode(golden['given_codes']), golden['given_images'], atol=5e-5, rtol=0)


def test_training_loss_and_every_gradient(golden, published):
    net = ddn_networks.from_published(published)
    out = net(samplers.nearest(golden['images']), len(golden['images']), keep=True)
    target = samplers.target_pyramid(golden['images'])
    losses = [(x - target(x.shape[2:])).square().mean() for x in out.selected]
    loss = torch.stack(losses).mean()  # Eq. 4, without EDM's factor C H W
    assert abs(loss.item() - golden['train_loss'].item()) < 1e-6
    loss.backward()
    blocks = published_order(published)
    compared = set()
    for name, expected in golden.items():
        if name.startswith('grad/'):
            parameter = ours(net, blocks, name.removeprefix('grad/'))
            got = parameter.grad.reshape(expected.shape)
            assert (got - expected).abs().max() <= 1e-3 * expected.abs().max(), name
            compared.add(parameter)
    assert compared == set(net.parameters())


def test_names_may_carry_a_wrapper(golden, published):
    wrapped = {f'model.{name}': t for name, t in published.items()} | {'sigma_min': torch.zeros(())}
    assert torch.equal(ddn_networks.from_published(wrapped).encode(golden['images']), golden['codes'])


def test_two_copies_of_a_network_are_refused(published):
    both = {f'{copy}.{name}': t for copy in ('net', 'ema') for name, t in published.items()}
    with pytest.raises(ValueError, match=r'net\.(\S+) and ema\.\1 are one parameter: .* one network'):
        ddn_networks.from_published(both)


@pytest.mark.parametrize('gone', ['block_4x4_2.ddo.multi_out_conv1x1.weight', 'block_4x4_2.block.conv1.weight',
                                  'block_8x8_1.block.norm0.bias', 'block_8x8_0_up.block.skip.weight'])
def test_a_missing_tensor_is_named(published, gone):
    del published[gone]
    with pytest.raises(ValueError, match=gone.replace('.', r'\.') + ' is missing'):
        ddn_networks.from_published(published)


@pytest.mark.parametrize('gone', ['block_1x1_0', 'block_4x4_0_up', 'block_4x4_1', 'block_8x8'])
def test_a_missing_block_is_named(published, gone):
    published = {name: t for name, t in published.items() if not name.startswith(gone)}
    with pytest.raises(ValueError, match=gone + '.* is missing'):
        ddn_networks.from_published(published)


def test_a_tensor_too_many_is_named(published):
    published['block_4x4_2.block.skip.weight'] = torch.zeros(32, 32, 1, 1)  # a known name where no skip has a conv
    with pytest.raises(ValueError, match=r'block_4x4_2\.block\.skip\.weight does not belong'):
        ddn_networks.from_published(published)
    del published['block_4x4_2.block.skip.weight']
    published['block_3x3_0_up.block.conv0.weight'] = torch.zeros(32, 32, 3, 3)
    with pytest.raises(ValueError, match='block_3x3: .* powers of two'):
        ddn_networks.from_published(published)


@pytest.mark.parametrize('name', ['block_4x4_2.block.conv7.weight', 'block_4x4_2.block.norm0.running_mean',
                                  'block_4x4_2.attention.weight'])
def test_an_unknown_tensor_is_named(published, name):
    published[name] = torch.zeros(3)
    with pytest.raises(ValueError, match=name.replace('.', r'\.')):
        ddn_networks.from_published(published)


@pytest.mark.parametrize('name', ['block_4x4_2.block.conv0.weight', 'block_8x8_0_up.block.skip.bias',
                                  'block_2x2_1.ddo.multi_out_conv1x1.weight'])
def test_a_misshapen_tensor_is_named(published, name):
    published[name] = published[name][:-3]
    with pytest.raises(ValueError) as error:
        ddn_networks.from_published(published)
    assert name in str(error.value)
    assert str(list(published[name].shape)) in str(error.value)


def test_something_else_is_no_published_network():
    with pytest.raises(ValueError, match='not a state dict of the published network'):
        ddn_networks.from_published({'conv.weight': torch.zeros(3, 3, 1, 1)})
    with pytest.raises(ValueError, match='square'):
        ddn_networks.from_published({'block_4x8_0.block.conv1.weight': torch.zeros(4, 4, 3, 3)})
