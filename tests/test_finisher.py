"""The finisher: codes still name one picture, without it nothing changes, and a late code changes only its place."""

import pytest
import torch

from ddn_networks import DDN, Network, RecurrentDDN, samplers, snapshots, tensor_files
from ddn_networks.finisher import code_noise, mixed, noise_levels


def random_(net):
    """Weights that do something, also those that begin at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in net.finisher.parameters():
            param.copy_(0.1 * torch.randn(param.shape, generator=generator))
    return net.eval()


def small(finisher_width=8, **more):
    torch.manual_seed(1)
    sizes = {'img_resolution': 16, 'img_channels': 3, 'channels': [8, 8], 'num_blocks': [2, 2], 'num_nodes': [4, 8]}
    net = DDN(**{**sizes, 'grids': [1, 1, 2, 4], 'prior_width': 8, **more}, finisher_width=finisher_width)
    return random_(net) if finisher_width else net.eval()


def recurrent():
    torch.manual_seed(1)
    return random_(RecurrentDDN((8, 8), 1, num_nodes=4, num_layers=3, base_width=4, finisher_width=8))


@pytest.mark.parametrize('make', [small, recurrent])
def test_it_is_the_last_step_and_codes_do_not_depend_on_it(make):
    net = make()
    images = torch.rand(3, net.img_channels, *net.img_resolution) * 2 - 1
    codes = net.encode(images)
    before = net.decode(codes, finish=False)
    plain = net(samplers.nearest(images), 3)
    assert torch.equal(before, plain.images) and torch.equal(codes, plain.codes)
    after = net.decode(codes)
    assert torch.equal(after, net.finished(net(samplers.given(codes), 3)))
    assert (after - before).abs().max() > 0.01
    assert torch.equal(net.reconstruct(images).images, after)
    assert torch.equal(net.reconstruct(images, finish=False).images, before)
    shared = net.decode(codes[[0, 1, 0]], share_prefixes=True)
    torch.testing.assert_close(shared, after[[0, 1, 0]])


def test_samples_have_it_unless_asked_not_to():
    net = small()
    images, codes = net.sample(4)
    assert torch.equal(images, net.decode(codes))
    assert torch.equal(net.sample(4, finish=False)[0], net.decode(codes, finish=False))
    one = torch.cat([net.sample(seeds=[s])[0] for s in range(4)])
    torch.testing.assert_close(one, images)


def test_free_codes_are_the_likeliest():
    net = small()
    torch.nn.init.normal_(net.prior[1].out.bias)
    torch.nn.init.normal_(net.prior[3].out.bias)
    codes = net.sample(3)[1]
    partial = codes.clone()
    partial[:, 2:] = -1
    partial[1, 1], partial[1, 9] = -1, codes[1, 9]
    likeliest = net.sample(3, codes=partial, temperature=0.0)[1]
    assert (likeliest != codes).any() and torch.equal(likeliest[partial >= 0], codes[partial >= 0])
    assert torch.equal(net.decode(partial), net.decode(likeliest))
    assert torch.equal(net.decode(partial, finish=False), net.decode(likeliest, finish=False))
    assert torch.equal(net.decode(partial, share_prefixes=True), net.decode(likeliest))


def test_float64_networks_finish_in_float64():
    net = small()
    codes = net.sample(2)[1]
    exact = net.double().decode(codes)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), net.float().decode(codes), rtol=1e-4, atol=1e-4)


def test_a_new_one_changes_nothing():
    net = small(finisher_width=0)
    codes = net.sample(2)[1]
    spec = snapshots.init_spec(net)
    with_one = snapshots.rebuild({**spec, 'kwargs': {**spec['kwargs'], 'finisher_width': 8}}).eval()
    left = with_one.load_state_dict(net.state_dict(), strict=False)
    assert not left.unexpected_keys and all(name.startswith('finisher.') for name in left.missing_keys)
    assert torch.equal(with_one.decode(codes), net.decode(codes))


def test_a_late_code_changes_only_its_place():
    net = small(img_resolution=128, channels=[4, 4], num_blocks=[1, 1], num_nodes=[4, 4], grids=[1, 8], prior_width=0)
    codes = torch.zeros(1, net.num_codes, dtype=torch.int64)
    other = codes.clone()
    other[0, -64] = 3  # the first cell of the last layer, 16x16 pixels
    change = (net.decode(codes) - net.decode(other)).abs().amax((0, 1))
    assert change[:16, :16].max() > 0
    assert change[112:].max() == 0 and change[:, 112:].max() == 0


def test_noise_is_normal_local_and_a_function_of_the_codes():
    grids = [(1, 1), (2, 3), (4, 2)]
    codes = torch.randint(10**6, (64, 15), generator=torch.Generator().manual_seed(0))
    noise = code_noise(codes, grids, (24, 24))
    assert noise.shape == (64, 1, 24, 24) and noise.dtype == torch.float32
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    flat = noise.flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(64)).abs().max() < 0.2  # of different codes: unrelated
    neighbours = (noise[..., 1:] * noise[..., :-1]).mean()
    assert abs(neighbours) < 0.02
    assert torch.equal(code_noise(codes[5:6], grids, (24, 24)), noise[5:6])
    other = codes[:1].clone()
    other[0, 7] += 1  # the first cell of the last layer, 6x12 pixels
    changed = (code_noise(other, grids, (24, 24)) != noise[:1])[0, 0]
    assert changed[:6, :12].all() and changed.sum() == 6 * 12


def test_noise_takes_its_levels_from_one_table_on_all_devices():
    levels = noise_levels()
    assert levels.dtype == torch.float32 and levels.device.type == 'cpu' and len(levels) == 4096
    assert torch.equal(levels, -levels.flip(0)) and (levels.diff() > 0).all()
    noise = code_noise(torch.arange(500)[:, None], [(1, 1)], (16, 16))
    assert torch.isin(noise, levels).all() and len(noise.unique()) == 4096
    # By an independent reading of the definition, for one pixel.
    first = int(mixed(torch.tensor(7 + 1)))  # code 7 of the only cell
    place = int(mixed(torch.tensor(3 * 16 + 5 + 1)))
    at = int(mixed(torch.tensor(first ^ place))) >> 20
    assert noise[7, 0, 3, 5] == torch.distributions.Normal(0, 1).icdf(torch.tensor((at + 0.5) / 4096).double()).float()


def test_mixing_is_a_bijection_that_spreads_bits():
    x = torch.arange(2**16)
    y = mixed(x)
    assert len(y.unique()) == len(x) and 0 <= y.min() and y.max() < 2**32
    flips = [(mixed(x ^ (1 << bit)) ^ y) for bit in range(16)]
    ones = sum(((f[:, None] >> torch.arange(32)) & 1).float().mean() for f in flips) / 16
    assert abs(ones - 0.5) < 0.05


def test_it_takes_features_of_half_the_size():
    from ddn_networks.finisher import Finisher
    from ddn_networks.network import LayerSpec

    finisher = Finisher(3, LayerSpec((32, 32), 6, 4), (64, 64), 4)
    y = finisher(torch.zeros(2, 3, 64, 64), torch.randn(2, 6, 32, 32), torch.zeros(2, 1, 64, 64))
    assert y.shape == (2, 3, 64, 64)


def test_a_snapshot_has_it(tmp_path):
    net = small()
    path = tmp_path / 'net.safetensors'
    snapshots.save_network(path, net)
    loaded = Network.from_pretrained(str(path))
    codes = net.sample(2)[1]
    assert torch.equal(loaded.decode(codes), net.decode(codes))
    state = {name: x.half() if x.is_floating_point() else x for name, x in net.state_dict().items()}
    snapshots.save_network(path, net, {'0.1': state})
    halved = Network.from_pretrained(str(path))
    assert halved.finisher.leave.weight.dtype == torch.float32
    torch.testing.assert_close(halved.finisher.leave.weight, net.finisher.leave.weight, rtol=1e-3, atol=1e-4)
    tensors, meta = tensor_files.load_tensors(path)
    tensor_files.save_tensors(path, {n: x for n, x in tensors.items() if not n.endswith('finisher.leave.bias')}, meta)
    with pytest.raises(ValueError, match='leave.bias'):
        Network.from_pretrained(str(path))
    without = small(finisher_width=0)
    assert without.finisher is None and not any('finisher' in name for name in without.state_dict())
