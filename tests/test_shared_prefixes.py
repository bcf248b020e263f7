"""Images that made the same choices so far share one state: the same numbers from fewer passes of a block."""

import pytest
import torch

from ddn_networks import DDN, Network, RecurrentDDN, guided_sampling, guides, samplers, shared_prefixes


def networks(**kwargs) -> dict[str, Network]:
    torch.manual_seed(0)
    small = {'base_width': 4, 'multipliers': [1, 2], 'num_blocks': 1, 'features': 8}
    nets = {
        'single': DDN(8, 1, [8, 8], [3, 2], [3, 4], **kwargs),
        'from 1x1': DDN((6, 5), 3, [8, 8, 8, 8], [1, 1, 2, 1], [2, 3, 3, 4], **kwargs),
        'repeating': DDN(8, 1, [8, 8, 8, 8], [1, 1, 3, 1], [4, 3, 3, 5], repeat_blocks=True, **kwargs),
        'alone': DDN(8, 1, [8, 8], [3, 2], [3, 3], learning_residual=False, leak_choice=False, **kwargs),
        'recurrent': RecurrentDDN(8, 1, 4, 4, **small, **kwargs),
        'bare': RecurrentDDN(8, 2, 4, 4, **small, carry_features=False, learning_residual=False, leak_choice=False),
    }
    for net in nets.values():
        with torch.no_grad():
            for block in net.blocks:
                block.conv1.weight.mul_(1e5)
    return nets


@pytest.mark.parametrize('name', networks())
def test_nothing_changes_but_the_number_of_passes(name):
    net = networks()[name].train()
    B = 40
    images = torch.rand(B, net.img_channels, *net.img_resolution) * 2 - 1
    images[1] = images[0]
    chance = samplers.chain_dropout_codes(net.num_nodes, 0.2, B, torch.Generator().manual_seed(1))
    passes = []
    net.blocks[0].register_forward_pre_hook(lambda block, args: passes.append(len(args[0])))

    def made(share: bool) -> list[torch.Tensor]:
        net.zero_grad()
        out = net(samplers.chain_dropout(samplers.nearest(images), chance), B, keep=True, share_prefixes=share)
        target = samplers.target_pyramid(images)
        sum((x - target(x.shape[2:])).square().mean() for x in out.selected).backward()
        return [out.codes, *out.selected, *out.distances, *(p.grad.clone() for p in net.parameters())]

    plain = made(False)
    for a, b in zip(plain, made(True), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)
    assert passes[0] == B and passes[len(passes) // 2] == 1
    if name == 'recurrent':
        assert passes[-1] == len(plain[0][:, : net.num_layers - 1].unique(dim=0)) < B


def test_partial_images_are_those_of_equal_codes():
    codes = torch.randint(3, (50, 4), generator=torch.Generator().manual_seed(0))
    sharing = shared_prefixes.start(50, codes.device)
    for l in range(4):
        sharing = shared_prefixes.split(sharing, samplers.Choice(codes[:, l]), 3)
        alike = (codes[:, None, : l + 1] == codes[None, :, : l + 1]).all(2)
        assert torch.equal(sharing.rows[:, None] == sharing.rows[None, :], alike)
        assert torch.equal(sharing.rows[sharing.first], torch.arange(len(sharing.first)))


@pytest.mark.parametrize('name', networks())
def test_encoding_decoding_and_beams_are_the_same(name):
    net = networks()[name].eval()
    target = net.sample(1, seed=9)[0]
    guide = guided_sampling.Guidance([guides.l2(target)], beam=3)

    codes = samplers.uniform_codes(net.num_nodes, range(3, 33))

    def made(share: bool) -> list[torch.Tensor]:
        images = net.decode(codes, share_prefixes=share)
        guided = guided_sampling.sample(net, guide, range(2), share_prefixes=share)
        again = net.reconstruct(images, share_prefixes=share)
        return [images, again.codes, again.images, guided.images, guided.codes]

    for a, b in zip(made(False), made(True), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_what_every_image_brings_itself_is_not_shared():
    condition = torch.rand(4, 1, 8, 8)
    net = DDN(8, 1, [8, 8], [2, 1], [3, 3], condition_channels=1).eval()
    codes = samplers.uniform_codes(net.num_nodes, [0] * 4)
    plain = net.decode(codes, condition)
    assert torch.equal(net.decode(codes, condition, share_prefixes=True), plain)
    net = DDN(8, 1, [8, 8], [2, 1], [3, 3], dropout=0.5).train()
    assert net.sharing(4, None, None) is None and net.eval().sharing(4, None, None) is not None
    net = DDN(8, 1, [8, 8], [2, 1], [3, 3], augment_dim=2).eval()
    labels = torch.arange(8.0).view(4, 2)
    plain = net(samplers.given(codes), 4, augment_labels=labels).images
    shared = net(samplers.given(codes), 4, augment_labels=labels, share_prefixes=True).images
    assert torch.equal(shared, plain)


@torch.no_grad()
@pytest.mark.parametrize('name', ['single', 'from 1x1', 'recurrent'])
def test_one_condition_for_all_images_is_shared(name):
    net = networks(condition_channels=1)[name].eval()
    condition = torch.rand(1, 1, *net.img_resolution)
    passes = []
    net.blocks[0].register_forward_pre_hook(lambda block, args: passes.append(len(args[0])))
    plain, codes = net.sample(30, condition=condition)
    guide = guided_sampling.Guidance([guides.l2(plain[:1])], beam=3)
    steps = guided_sampling.sample(net, guide, range(2), condition).codes
    found = net.encode(plain, condition, beam=2)
    passes.clear()
    images = net.decode(codes, condition, share_prefixes=True)
    assert passes[0] == 1
    torch.testing.assert_close(images, plain, atol=1e-5, rtol=0)
    shared = guided_sampling.sample(net, guide, range(2), condition, share_prefixes=True).codes
    assert torch.equal(shared, steps)
    assert torch.equal(net.encode(plain, condition, beam=2, share_prefixes=True), found)


@torch.no_grad()
def test_a_beam_over_all_codes_draws_each_image_once_under_one_condition():
    net = networks(condition_channels=1)['single'].eval()
    images, condition = net.sample(9, condition=torch.rand(1, 1, 8, 8))[0], torch.rand(1, 1, 8, 8)
    passes = []
    net.blocks[0].register_forward_pre_hook(lambda block, args: passes.append(len(args[0])))
    found = net.encode(images, condition, beam=3**3 * 4)
    assert passes[0] == 1 and passes[1:] == [9]  # the search, then the images that it found
    each = net.encode(images, condition.repeat(9, 1, 1, 1), beam=3**3 * 4)
    assert torch.equal(found, each)
