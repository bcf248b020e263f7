"""The network: law 1 (decoding an encoding is the forward pass), any shape, every switch, the published sizes."""

import itertools
import re

import numpy as np
import pytest
import torch
from conftest import seeing

from ddn_networks import DDN, RecurrentDDN, guided_sampling, guides, published_config, samplers, search
from ddn_networks.blocks import ResBlock, _double, num_groups
from ddn_networks.ddl import DDL
from ddn_networks.network import resolution_pair, scale_sizes


def tiny(img_resolution=8, img_channels=3, scales=3, seed=0, **kwargs) -> DDN:
    """A small random network whose blocks do something (conv1 is not left at 1e-5)."""
    torch.manual_seed(seed)
    channels = kwargs.pop('channels', [16, 16, 8][:scales])
    net = DDN(img_resolution, img_channels, channels, [1, 2, 2][:scales], [4, 8, 5][:scales], **kwargs)
    with torch.no_grad():
        for block in net.blocks:
            block.conv1.weight.mul_(1e5)
    return net.eval()


def pictures(net: DDN, B: int = 3, seed: int = 1) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(B, net.img_channels, *net.img_resolution, generator=rng) * 2 - 1


RESOLUTIONS = [8, (8, 6), (5, 9), 7, (12, 4), (4, 1), 1]


@pytest.mark.parametrize('img_channels', [1, 3, 4])
@pytest.mark.parametrize('resolution', RESOLUTIONS)
def test_law_1_decoding_an_encoding_is_the_forward_pass(resolution, img_channels):
    net = tiny(resolution, img_channels, scales=1 if resolution == 1 else 3)
    images = pictures(net)
    with torch.no_grad():
        out = net(samplers.nearest(images), len(images))
    codes = net.encode(images)
    assert out.images.shape == images.shape
    assert torch.equal(codes, out.codes)
    assert torch.equal(net.decode(codes), out.images)


@pytest.mark.parametrize('leak_choice', [True, False])
@pytest.mark.parametrize('learning_residual', [True, False])
def test_law_1_with_every_switch(learning_residual, leak_choice):
    net = tiny((6, 9), learning_residual=learning_residual, leak_choice=leak_choice)
    images = pictures(net)
    with torch.no_grad():
        out = net(samplers.nearest(images), len(images), keep=True)
    assert torch.equal(net.decode(net.encode(images)), out.images)
    with_base = []
    sampler = seeing(samplers.given(out.codes), lambda candidates, _: candidates.base is not None, with_base)
    for selection in net.walk(sampler, len(images)):
        assert (selection.leak is not None) == leak_choice
    assert with_base == [learning_residual and l > 0 for l in range(net.num_layers)]


@pytest.mark.parametrize('leak_choice', [True, False])
def test_a_layer_is_k_convolutions_and_a_choice(leak_choice):
    """The DDL against rendering: image of the chosen node, leak of the same kernel on the other half."""
    torch.manual_seed(0)
    ddl = DDL(8, 5, 3, leak_choice)
    x, base, target = torch.randn(4, 8, 6, 5), torch.randn(4, 3, 6, 5), torch.randn(4, 3, 6, 5)
    out = ddl(x, base, samplers.nearest(target), 0)
    features = x[:, :4] if leak_choice else x
    images = torch.einsum('kcf,bfhw->bkchw', ddl.weight, features) + base[:, None]
    codes = (images - target[:, None]).square().mean((2, 3, 4)).argmin(1)
    rows = torch.arange(4)
    assert torch.equal(out.choice.codes, codes)
    torch.testing.assert_close(out.image, images[rows, codes])
    if leak_choice:
        leaks = torch.einsum('kcf,bfhw->bkchw', ddl.weight, x[:, 4:])
        torch.testing.assert_close(out.leak, leaks[rows, codes])
    else:
        assert out.leak is None


def test_selected_images_and_distances_are_kept():
    net = tiny()
    images = pictures(net)
    with torch.no_grad():
        out = net(samplers.nearest(images), len(images), keep=True)
    target = samplers.target_pyramid(images)
    for spec, selected, distances, codes in zip(net.specs, out.selected, out.distances, out.codes.T, strict=True):
        assert selected.shape[2:] == spec.size and distances.shape == (3, spec.num_nodes)
        loss = (selected - target(spec.size)).square().mean((1, 2, 3))
        torch.testing.assert_close(distances.gather(1, codes[:, None])[:, 0], loss)
    assert torch.equal(out.selected[-1], out.images)
    lean = net(samplers.nearest(images), len(images))
    assert lean.selected == lean.distances == [] and lean.dropped is None


def test_walk_and_forward_agree():
    net = tiny()
    images = pictures(net)
    with torch.no_grad():
        out = net(samplers.nearest(images), len(images), keep=True)
        rendered = []
        sampler = seeing(samplers.nearest(images), lambda asked, choice: asked.render(choice.codes), rendered)
        steps = list(net.walk(sampler, len(images)))
    assert len(steps) == net.num_layers == len(net.specs) == 5
    for l, step in enumerate(steps):
        assert torch.equal(step.image, out.selected[l])
        assert torch.equal(step.choice.codes, out.codes[:, l])
        torch.testing.assert_close(rendered[l], step.image, atol=1e-6, rtol=1e-6)


def test_samplers_may_follow_parents():
    """Beam search: row b of a layer continues row parents[b] of the layer before; the codes are whole paths."""
    net = tiny()
    given = net.sample(4, seed=3)[1]

    def so_far(layer):
        return torch.cat([given[:, :2].flip(0), given[:, 2:]], 1)[:, :layer] if layer > 2 else given[:, :layer]

    def reversing(candidates, layer, codes):
        assert torch.equal(codes, so_far(layer))
        if layer != 2:
            return samplers.Choice(given[:, layer])
        return samplers.Choice(given[:, layer], parents=torch.tensor([3, 2, 1, 0]))

    with torch.no_grad():
        out = net(reversing, 4)
    assert torch.equal(out.codes[:, 2:], given[:, 2:])
    assert torch.equal(out.codes[:, :2], given[:, :2].flip(0))
    torch.testing.assert_close(net.decode(out.codes), out.images, atol=1e-6, rtol=0)


@torch.no_grad()
def test_what_is_kept_of_a_beam_belongs_to_its_branches():
    net = tiny()
    target = pictures(net, 2)
    chance = guided_sampling.chance_table(net.num_nodes, range(2))
    beam = guided_sampling.sampler(guided_sampling.Guidance([guides.l2(target)], beam=3), chance, net.img_resolution)

    def dropping(candidates, layer, codes):  # says of every choice whether it was node 0
        choice = beam(candidates, layer, codes)
        return choice._replace(dropped=choice.codes == 0)

    out = net(dropping, 6, keep=True)
    assert torch.equal(out.dropped, out.codes == 0)
    again = net(samplers.given(out.codes), 6, keep=True)
    parts = zip(net.specs, out.selected, again.selected, out.distances, out.codes.T, strict=True)
    for spec, selected, wanted, distances, codes in parts:
        torch.testing.assert_close(selected, wanted, atol=1e-6, rtol=0)
        error = (wanted - samplers.area_resize(target, spec.size).repeat_interleave(3, 0)).square().mean((1, 2, 3))
        error, chosen = error[::3], distances.gather(1, codes[:, None])[::3, 0]  # the others may be dead
        torch.testing.assert_close(chosen, error)


def test_a_seed_names_an_image_at_any_batch_size():
    net = tiny((6, 10))
    images, codes = net.sample(7, seed=10)
    assert images.shape == (7, 3, 6, 10) and codes.shape == (7, 5) and codes.dtype == torch.int64
    for i in range(7):
        image, code = net.sample(seed=10 + i)
        assert torch.equal(code[0], codes[i])
        torch.testing.assert_close(image[0], images[i], atol=1e-5, rtol=0)
    shuffled, _ = net.sample(seeds=[16, 12])
    torch.testing.assert_close(shuffled, images[[6, 2]], atol=1e-5, rtol=0)
    torch.manual_seed(5)
    assert torch.equal(net.sample(7, seed=10)[0], images)  # the global generator has no say
    assert net.sample(0)[1].shape == (0, 5)
    guide = guides.l2(images[:1])
    for seeds in (np.arange(10, 12), torch.arange(10, 12)):
        assert torch.equal(net.sample(seeds=seeds)[1], codes[:2])
        assert torch.equal(net.sample(seeds=seeds, guide=guide)[1], net.sample(2, seed=10, guide=guide)[1])
    with pytest.raises(ValueError, match='num or seeds'):
        net.sample(5, seeds=[1, 2])
    assert len(set(map(tuple, codes.tolist()))) == 7


def test_check_codes():
    net = tiny()
    codes = net.sample(3)[1]
    assert torch.equal(net.check_codes(codes.int()), codes)
    assert torch.equal(net.check_codes(codes.tolist()), codes)
    assert torch.equal(net.check_codes(codes.numpy().astype(np.uint16)), codes)
    for bad, message in [
        (codes[:, :4], r'integers \[B, 5\], not \[3, 4\]'),
        (codes[0], r'integers \[B, 5\], not \[5\]'),
        (codes.float(), 'float32'),
    ]:
        with pytest.raises(ValueError, match=message):
            net.decode(bad)
    for value, entry in itertools.product([-2, 8], [(2, 1)]):
        wrong = codes.clone()
        wrong[entry] = value
        with pytest.raises(ValueError, match=rf'code {value} of image 2, layer 1, is outside 0\.\.7'):
            net.decode(wrong)


def test_images_of_another_shape_are_refused():
    net = tiny()
    for shape in [(2, 3, 8, 7), (2, 1, 8, 8), (3, 8, 8)]:
        with pytest.raises(ValueError, match=r'\[3, 8, 8\]'):
            net.encode(torch.zeros(shape))


def test_images_of_integers_are_refused():
    net = tiny()
    for dtype in (torch.uint8, torch.int64):
        with pytest.raises(ValueError, match=rf'floating point in \[-1, 1\], not {dtype}'):
            net.encode(torch.zeros(2, 3, 8, 8, dtype=dtype))


@pytest.mark.parametrize('dropout', [0.0, 0.5])
def test_grad_checkpoint_changes_no_gradient(dropout):
    net = tiny(dropout=dropout).train()
    images = pictures(net)

    def gradients(grad_checkpoint: bool) -> list[torch.Tensor]:
        net.zero_grad()
        torch.manual_seed(7)
        out = net(samplers.nearest(images), len(images), keep=True, grad_checkpoint=grad_checkpoint)
        target = samplers.target_pyramid(images)
        sum((x - target(x.shape[2:])).square().mean() for x in out.selected).backward()
        return [p.grad.clone() for p in net.parameters()]

    plain = gradients(False)
    for a, b in zip(plain, gradients(True), strict=True):
        assert torch.equal(a, b)
    assert all(g.abs().sum() > 0 for g in plain[:5])


@pytest.mark.parametrize('condition_channels', [1, 2, 4])
def test_the_condition_enters_at_every_scale(condition_channels):
    net = tiny(condition_channels=condition_channels)
    codes = net.sample(2, condition=torch.zeros(2, condition_channels, 8, 8))[1]
    zero, one = torch.zeros(2, condition_channels, 8, 8), torch.ones(2, condition_channels, 8, 8)
    assert not torch.allclose(net.decode(codes, zero), net.decode(codes, one), atol=1e-3)
    with torch.no_grad():
        plain, told = (
            [s.image for s in net.walk(samplers.given(codes), 2, c)] for c in (zero, one)
        )
    assert all(not torch.allclose(a, b, atol=1e-4) for a, b in zip(plain, told, strict=True))
    checker = torch.ones(2, condition_channels, 8, 8) - 2 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2)
    with torch.no_grad():  # its means over 2x2 pixels are zero: only blocks whose input is 8x8 can tell
        seen = [s.image for s in net.walk(samplers.given(codes), 2, checker)]
    sizes = [spec.size for spec in net.specs]
    assert sizes == [(2, 2), (4, 4), (4, 4), (8, 8), (8, 8)]
    assert [torch.equal(a, b) for a, b in zip(plain, seen, strict=True)] == [True, True, True, True, False]
    images = pictures(net, 2)
    assert torch.equal(net.decode(net.encode(images, one), one), net(samplers.nearest(images), 2, one).images)


def test_a_condition_that_is_missing_or_too_much_is_refused():
    with pytest.raises(ValueError, match='2 condition channels'):
        tiny(condition_channels=2).sample(1)
    with pytest.raises(ValueError, match='0 condition channels'):
        tiny().sample(1, condition=torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize('make', [tiny, lambda **kwargs: RecurrentDDN(8, 3, 4, 2, **kwargs).eval()])
def test_augment_labels_of_another_shape_are_refused(make):
    for dim, shape in [(0, (2, 3)), (2, (2, 9)), (2, (1, 2)), (2, (2,))]:
        net = make(augment_dim=dim)
        codes = torch.zeros(2, net.num_layers, dtype=torch.long)
        with pytest.raises(ValueError, match=rf'labels \[2, {dim}\], not {re.escape(str(list(shape)))}'):
            net(samplers.given(codes), 2, augment_labels=torch.ones(shape))


def test_bad_shapes_of_a_network_are_named():
    with pytest.raises(ValueError, match=r'multipliers=\(\)'):
        RecurrentDDN(8, 1, multipliers=())
    with pytest.raises(ValueError, match='one number per scale'):
        DDN(8, 3, [8, 8], [1], [4, 4])
    with pytest.raises(ValueError, match='at least one block'):
        DDN(8, 3, [8, 8], [1, 0], [4, 4])
    with pytest.raises(ValueError, match='needs 3 channels or more'):
        DDN(8, 3, [8, 2], [1, 1], [4, 4])
    with pytest.raises(ValueError, match='at least 2 nodes'):
        DDN(8, 3, [8, 8], [1, 1], [4, 1])
    with pytest.raises(ValueError, match='must be even'):
        DDN(8, 3, [8, 9], [1, 1], [4, 4])
    with pytest.raises(ValueError, match='0 x 8'):
        DDN((0, 8), 3, [8], [1], [4])


def test_sizes_of_the_scales():
    assert scale_sizes((8, 8), 4) == [(1, 1), (2, 2), (4, 4), (8, 8)]
    assert scale_sizes((28, 12), 4) == [(4, 2), (7, 3), (14, 6), (28, 12)]
    assert scale_sizes((5, 1), 3) == [(2, 1), (3, 1), (5, 1)]
    assert resolution_pair(7) == resolution_pair(np.int64(7)) == (7, 7) and resolution_pair([3, 4]) == (3, 4)


@pytest.mark.parametrize('channels', [1, 3, 4, 6, 10, 36, 100, 128, 256])
def test_group_norms_divide_the_channels(channels):
    groups = num_groups(channels)
    assert channels % groups == 0 and groups <= 32
    if channels >= 4 and channels % 4 == 0 and channels // 4 <= 32:
        assert groups == channels // 4  # the published rule, where it applies


def test_a_new_block_begins_as_its_skip():
    torch.manual_seed(0)
    block, x = ResBlock(8, 8), torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x, (4, 4)), x * 0.5**0.5, atol=1e-3, rtol=0)
    up = ResBlock(8, 6, up=True)
    want = up.skip(x.repeat_interleave(2, 2).repeat_interleave(2, 3)) * 0.5**0.5
    torch.testing.assert_close(up(x, (8, 8)), want, atol=1e-3, rtol=0)
    torch.testing.assert_close(up(x, (7, 8)), want[:, :, :7], atol=1e-3, rtol=0)


def on_meta(**config) -> DDN:
    with torch.device('meta'):
        return DDN(**config)


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_published_sizes():
    """The paper's "L = 64, 74M" and "L = 128, 93M" are the blocks alone, without the nodes (and L counts one more)."""
    cifar = on_meta(**published_config(32, max_outputk=64, max_blockn=32))
    assert cifar.num_layers == 63
    assert round(parameters(cifar) / 1e6, 1) == 76.3
    assert parameters(cifar.blocks) // 1e6 == 74
    assert set(cifar.num_nodes) == {64}
    assert cifar.num_bits == 63 * 6
    faces = on_meta(**published_config(64))
    assert faces.num_layers == 127
    assert parameters(faces.blocks) // 1e6 == 93
    assert round(parameters(faces) / 1e6, 1) == 109.4  # K = 512: the nodes are a seventh of it
    assert [s.channels for s in faces.specs][-1] == 128 and faces.specs[-1].num_nodes == 256
    assert faces.specs[0].num_nodes == 512


def test_published_config_at_other_resolutions():
    small = published_config(28, img_channels=1)
    assert len(small['channels']) == 6 and small['num_blocks'] == [1, 2, 4, 8, 16, 32]
    assert scale_sizes((28, 28), 6)[0] == (1, 1)
    large = published_config(256, max_outputk=64, max_blockn=64)
    assert large['channels'] == [256] * 6 + [128, 64, 32]
    assert large['num_nodes'] == [64] * 9
    assert large['num_blocks'][-3:] == [64, 64, 64]
    assert len(published_config(1)['channels']) == 1
    with pytest.raises(ValueError, match=r'one number, not \(32, 64\)'):
        published_config((32, 64))


def test_augment_labels_enter_in_channels_last_too():
    """They once made the first block's group norm crash in the backward pass."""
    torch.manual_seed(0)
    net = DDN(8, 1, [16] * 4, [1] * 4, [4] * 4, augment_dim=9).to(memory_format=torch.channels_last)
    images, labels = torch.rand(4, 1, 8, 8), torch.randn(4, 9)
    for _ in range(3):
        output = net(samplers.nearest(images), 4, keep=True, augment_labels=labels)
        sum(s.square().mean() for s in output.selected).backward()
    with torch.no_grad():
        zeros = net(samplers.given(output.codes), 4, augment_labels=torch.zeros(4, 9)).images
        told = net(samplers.given(output.codes), 4, augment_labels=labels).images
        assert torch.equal(zeros, net.decode(output.codes)) and not torch.equal(told, zeros)


def test_a_beam_is_a_number_of_images():
    net = tiny()
    for beam in (0, -3):
        with pytest.raises(ValueError, match=f'at least 1, not {beam}'):
            net.encode(pictures(net), beam=beam)


@torch.no_grad()
def test_the_code_of_an_image_does_not_depend_on_its_place_in_the_batch():
    net = tiny()
    for weight in net.node_weights:  # as a split leaves them
        weight[1:3] = weight[0]
    codes = net.encode(pictures(net, 1).repeat(6, 1, 1, 1), beam=3)
    assert torch.equal(codes, codes[:1].expand_as(codes))


def test_a_beam_finds_what_trying_all_codes_finds():
    net = tiny(8, 1, scales=2, channels=[8, 8])  # 4 * 8 * 8 codes
    images = pictures(net, 6)
    every = torch.cartesian_prod(*(torch.arange(k) for k in net.num_nodes))
    distances = (net.decode(every)[None] - images[:, None]).square().mean((2, 3, 4))  # [B, K^L]
    error = lambda codes: (net.decode(codes) - images).square().mean((1, 2, 3))  # noqa: E731
    found = net.encode(images, beam=32)
    assert torch.equal(found, every[distances.argmin(1)])
    assert torch.equal(search.nearest_leaf(net, images, at_once=7), found)
    guidance = guided_sampling.Guidance([guides.l2(images)], beam=32)
    assert torch.equal(net.sample(6, guide=guidance)[1], found)
    assert (error(found) <= error(net.encode(images, beam=4))).all()
    assert torch.equal(net.encode(images, beam=1), net.encode(images))
    assert not torch.equal(found, net.encode(images)) and (error(found) <= error(net.encode(images))).all()
    assert torch.equal(net.encode(images, beam=32, share_prefixes=True), found)


@pytest.mark.parametrize('of_net, of_images', [('float64', 'float32'), ('float32', 'float64'), ('float32', 'float16')])
def test_a_beam_over_all_codes_takes_any_floating_dtype(of_net, of_images):
    net = tiny(8, 1, scales=2, channels=[8, 8]).to(getattr(torch, of_net))
    images = pictures(net, 6).to(getattr(torch, of_images))
    assert torch.equal(net.encode(images, beam=32), net.encode(images, beam=31))  # all of them, and one fewer


def test_autocast_does_not_touch_the_distances_of_a_beam_over_all_codes():
    net = tiny(8, 1, scales=2, channels=[8, 8])
    every = torch.cartesian_prod(*(torch.arange(k) for k in net.num_nodes))
    with torch.autocast('cpu', torch.bfloat16):
        drawn = net.decode(every, share_prefixes=True)  # as the search does
        images = (drawn[:100] + drawn[-100:]) / 2  # about as far from either
        found = net.encode(images, beam=32)
    distances = (drawn.double()[None] - images.double()[:, None]).square().mean((2, 3, 4))  # [B, K^L]
    codes = (every[None] == found[:, None]).all(2).long().argmax(1, keepdim=True)
    torch.testing.assert_close(distances.gather(1, codes)[:, 0], distances.amin(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('tell', [True, False])
@pytest.mark.parametrize('with_base', [True, False])
@pytest.mark.parametrize('leak_choice', [True, False])
def test_the_gradient_of_a_layer_is_that_of_the_obvious_sum(leak_choice, with_base, tell, layout):
    torch.manual_seed(0)
    ddl = DDL(12, 5, 2, leak_choice)
    x = torch.randn(3, 12, 4, 6).to(memory_format=layout).requires_grad_()
    base = torch.randn(3, 2, 4, 6, requires_grad=True) if with_base else None
    codes = torch.tensor([[4], [0], [4]])
    leaves = [t for t in (x, base, ddl.weight) if t is not None]

    def obvious():
        kernel = ddl.weight[codes[:, 0]]
        features, rest = (x[:, :6], x[:, 6:]) if leak_choice else (x, None)
        image = torch.einsum('bcf,bfhw->bchw', kernel, features) + (0 if base is None else base)
        told = torch.cat([x[:, :2] + image, x[:, 2:]], 1)
        leak = None
        if leak_choice:
            leak = torch.einsum('bcf,bfhw->bchw', kernel, rest)
            told = torch.cat([told[:, :-2], told[:, -2:] + leak], 1)
        return image, leak, told if tell else None

    made = ddl(x, base, samplers.given(codes), 0, next_input=tell)
    outcomes = []
    for parts in ((made.image, made.leak, made.next_input), obvious()):
        parts = [part for part in parts if part is not None]
        sum((part * torch.linspace(1, 2, part.numel()).view_as(part)).square().sum() for part in parts).backward()
        outcomes.append([*parts, *(leaf.grad for leaf in leaves)])
        for leaf in leaves:
            leaf.grad = None
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
    if layout == torch.channels_last:
        assert outcomes[0][-len(leaves)].is_contiguous(memory_format=layout)


def test_a_layer_in_half_precision_keeps_the_features_dtype():
    ddl = DDL(8, 4, 1)
    x = torch.randn(2, 8, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    made = ddl(x, None, samplers.given(torch.zeros(2, 1, dtype=torch.long)), 0, next_input=True)
    assert made.image.dtype == made.leak.dtype == torch.float32 and made.next_input.dtype == torch.bfloat16
    (made.image.sum() + made.next_input.float().sum()).backward()
    assert x.grad.dtype == torch.bfloat16 and ddl.weight.grad.dtype == torch.float32
    made = ddl(x.detach().float(), None, samplers.given(torch.zeros(2, 1, dtype=torch.long)), 0, next_input=True)
    torch.testing.assert_close(made.image, ddl(x, None, samplers.given(torch.zeros(2, 1, dtype=torch.long)), 0).image)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('leak_choice', [True, False])
def test_without_gradients_a_layer_tells_in_place(leak_choice, layout):
    ddl = DDL(12, 5, 2, leak_choice)
    x, base = torch.randn(3, 12, 4, 6).to(memory_format=layout), torch.randn(3, 2, 4, 6)
    before, sampler = x.clone(), samplers.given(torch.tensor([[4], [0], [4]]))
    expected = ddl(x, base, sampler, 0, next_input=True)
    assert torch.equal(x, before)  # with gradients, x is needed as it was
    with torch.no_grad():
        made = ddl(x, base, sampler, 0, next_input=True)
    assert made.next_input.data_ptr() == x.data_ptr() and not torch.equal(x, before)
    for a, b in zip(made[1:], expected[1:], strict=True):
        assert a is b is None or torch.equal(a, b)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_a_layer_in_half_precision_is_that_in_full(layout):
    torch.manual_seed(0)
    ddl = DDL(16, 4, 1)
    x = torch.randn(6, 16, 8, 8).bfloat16().to(memory_format=layout)
    gradients = []
    for features in (x.clone().requires_grad_(), x.float().requires_grad_()):
        made = ddl(features, None, samplers.given(torch.arange(6)[:, None] % 4), 0, next_input=True)
        (made.image.square().sum() + made.next_input.float().square().sum()).backward()
        gradients.append((features.grad.float(), ddl.weight.grad))
        ddl.weight.grad = None
    for a, b in zip(*gradients, strict=True):
        assert (a - b).norm() < 0.01 * b.norm()


def test_the_gradient_of_a_slice_of_rows_is_that_of_its_copy():
    ddl, sampler = DDL(8, 4, 3), samplers.given(torch.tensor([[1], [3]]))
    wide = torch.randn(2, 12, 4, 4).bfloat16().to(memory_format=torch.channels_last)
    gradients = []
    for x in (wide[:, :8].requires_grad_(), wide[:, :8].clone().requires_grad_()):
        made = ddl(x, None, sampler, 0)
        (made.image.square().sum() + made.leak.sum()).backward()
        gradients.append((x.grad.float(), ddl.weight.grad))
        ddl.weight.grad = None
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('leak_choice', [True, False])
@pytest.mark.parametrize('make', [DDN, RecurrentDDN])
def test_the_images_of_a_pass_may_be_changed_in_place(make, leak_choice):
    sizes = {'channels': [8], 'num_blocks': [1], 'num_nodes': [4]} if make is DDN else {'num_layers': 1}
    net = make(4, 3, **sizes, learning_residual=False, leak_choice=leak_choice)
    images = net(samplers.given(torch.tensor([[1], [3]])), 2).images
    wanted = images.detach().clamp(-0.1, 0.1)
    images.clamp_(-0.1, 0.1).sum().backward()
    assert torch.equal(images, wanted) and net.ddls[0].weight.grad.any()


@pytest.mark.parametrize('grad', [True, False])
def test_autocast_does_not_touch_the_selected_image(grad):
    net = tiny()
    images = pictures(net)
    with torch.set_grad_enabled(grad), torch.autocast('cpu', torch.bfloat16):
        out = net(samplers.nearest(images), len(images), keep=True)
    for selected, distances, codes in zip(out.selected, out.distances, out.codes.T, strict=True):
        error = (selected - samplers.area_resize(images, selected.shape[2:])).square().mean((1, 2, 3))
        assert selected.dtype == torch.float32
        torch.testing.assert_close(error, distances.gather(1, codes[:, None])[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', [(6, 10), (5, 9)])
def test_doubling_is_the_same_in_both_memory_layouts(size):
    x = torch.randn(2, 3, 3, 5, requires_grad=True)
    expected = torch.nn.functional.interpolate(x, scale_factor=2, mode='nearest')[:, :, : size[0], : size[1]]
    for layout in (torch.contiguous_format, torch.channels_last):
        found = _double(x.contiguous(memory_format=layout), size)
        assert torch.equal(found, expected)
        weight = torch.randn_like(expected)
        grads = [torch.autograd.grad((y * weight).sum(), x, retain_graph=True)[0] for y in (found, expected)]
        torch.testing.assert_close(*grads)
