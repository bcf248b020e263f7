"""Recurrence Iteration (Fig. 3c): the same laws as the single-shot generator's, one weight for all steps, any L."""

import json

import pytest
import torch
from conftest import final, invoke, seeing

import fid
import generate
import train
from ddn_networks import (
    DDN,
    LossFreeBalancing,
    Network,
    RecurrentDDN,
    SplitAndPrune,
    guided_sampling,
    guides,
    samplers,
    snapshots,
)
from training import report
from training.monitor import UsageWindow

SMALL = {'base_width': 4, 'multipliers': [1, 2], 'num_blocks': 1, 'features': 8}


def tiny(img_resolution=8, img_channels=1, num_nodes=5, num_layers=4, seed=0, **kwargs) -> RecurrentDDN:
    """A small random network whose blocks do something (conv1 is not left at 1e-5)."""
    torch.manual_seed(seed)
    net = RecurrentDDN(img_resolution, img_channels, num_nodes, num_layers, **{**SMALL, **kwargs})
    with torch.no_grad():
        for block in net.blocks:
            block.conv1.weight.mul_(1e5)
    return net.eval()


def repeating(seed=0) -> DDN:
    torch.manual_seed(seed)
    return DDN(8, 1, [8, 8, 8], [3, 1, 4], [4, 3, 5], repeat_blocks=True).eval()


def pictures(net: Network, B: int = 3, seed: int = 1) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(B, net.img_channels, *net.img_resolution, generator=rng) * 2 - 1


def all_candidates(net: Network, codes: torch.Tensor) -> list[torch.Tensor]:
    """The K candidates [B, K, C, h, w] of every layer on the way that ``codes`` name."""
    seen = []
    net(seeing(samplers.given(codes), lambda candidates, _: next(candidates.chunks(99))[1], seen), len(codes))
    return seen


SWITCHES = [
    {},
    {'carry_features': False},
    {'embed_step': False},
    {'learning_residual': False},
    {'leak_choice': False},
    {'multipliers': [1]},
    {'num_blocks': 2, 'multipliers': [1, 2, 3]},
]


@pytest.mark.parametrize('resolution, channels', [(8, 1), ((7, 5), 3), ((1, 4), 4), (1, 1)])
def test_law_1_at_any_shape(resolution, channels):
    law_1(tiny(resolution, channels))


@pytest.mark.parametrize('switches', SWITCHES, ids=str)
def test_law_1_with_every_switch(switches):
    net = tiny((6, 9), **switches)
    law_1(net)
    with_base = []
    sampler = seeing(samplers.given(net.sample(2)[1]), lambda candidates, _: candidates.base is not None, with_base)
    for selection in net.walk(sampler, 2):
        assert (selection.leak is not None) == switches.get('leak_choice', True)
    assert with_base == [switches.get('learning_residual', True) and step > 0 for step in range(net.num_layers)]


def law_1(net: Network) -> None:
    images = pictures(net)
    with torch.no_grad():
        out = net(samplers.nearest(images), len(images), keep=True)
    codes = net.encode(images)
    assert out.images.shape == images.shape and codes.shape == (3, net.num_layers)
    assert torch.equal(codes, out.codes) and torch.equal(net.decode(codes), out.images)
    for image, distances, code in zip(out.selected, out.distances, codes.T, strict=True):
        error = (image - samplers.area_resize(images, tuple(image.shape[2:]))).square().mean((1, 2, 3))
        torch.testing.assert_close(distances.min(1).values, error)
        assert torch.equal(distances.argmin(1), code)


def test_law_1_with_repeated_blocks():
    net = repeating()
    assert net.ddl_of_layer == [0, 1, 1, 2, 3, 4, 4, 4] and len(net.ddls) == len(net.blocks) == 5
    assert net.num_nodes == [4, 4, 4, 3, 5, 5, 5, 5]
    law_1(net)
    plain = DDN(8, 1, [8, 8, 8], [3, 1, 4], [4, 3, 5])
    assert plain.ddl_of_layer == list(range(8)) and len(plain.blocks) == 8


def test_a_step_is_the_same_network_on_another_input():
    """The walk against its definition, written out: one UNet and one DDL on what the step before left."""
    net = tiny(num_layers=3)
    images = pictures(net)
    zeros = torch.zeros(3, 1, 8, 8)
    image, leak, hidden, base = zeros, zeros, torch.zeros(3, 4, 8, 8), None
    rows, columns = torch.linspace(-1, 1, 8)[:, None].expand(8, 8), torch.linspace(-1, 1, 8).expand(8, 8)
    with torch.no_grad():
        out = net(samplers.nearest(images), 3, keep=True)
        for step in range(3):
            x = torch.cat([torch.stack([rows, columns]).expand(3, -1, -1, -1), image, leak, hidden], 1)
            angles = torch.tensor([step / 2**i for i in range(8)])
            shift = net.step_shift(torch.cat([angles.sin(), angles.cos()]))
            hidden = torch.nn.functional.silu(net.norm_out(net.unet(x, shift)))
            f = net.conv_out(hidden)
            rendered = torch.einsum('kcf,bfhw->bkchw', net.ddls[0].weight, f[:, :4])
            rendered = rendered if base is None else rendered + base[:, None]
            code = (rendered - images[:, None]).square().mean((2, 3, 4)).argmin(1)
            image = base = rendered[torch.arange(3), code]
            leak = torch.einsum('bcf,bfhw->bchw', net.ddls[0].weight[code], f[:, 4:])
            assert torch.equal(code, out.codes[:, step])
            torch.testing.assert_close(image, out.selected[step], atol=1e-5, rtol=1e-5)


def test_the_size_of_the_paper():
    net = RecurrentDDN(32, 1)
    assert abs(sum(p.numel() for p in net.parameters()) - 407_000) < 0.01 * 407_000
    assert net.num_layers == 10 and net.num_nodes == [64] * 10 and net.num_bits == 60
    table = report.layer_table(net)
    assert '0-9' in table and '32x32' in table and table.count('404,422') == 2 and '1 sets of nodes' in table
    single = DDN(8, 1, [8, 8], [1, 2], [4, 4])
    assert 'sets of nodes' not in report.layer_table(single)
    counted = [int(line.split()[-1].replace(',', '')) for line in report.layer_table(repeating()).splitlines()[1:]
               if line.strip()[-1].isdigit()]  # fmt: skip
    assert sum(counted[:-1]) == counted[-1] == sum(p.numel() for p in repeating().parameters())


def test_l_can_be_changed():
    net = tiny()
    images = pictures(net)
    four = net.encode(images)
    net.num_layers = 7
    seven = net.encode(images)
    assert seven.shape == (3, 7) and torch.equal(seven[:, :4], four) and net.num_bits > 7 * 2
    law_1(net)
    net.num_layers = 1
    assert torch.equal(net.encode(images), four[:, :1]) and net.decode(four[:, :1]).shape == images.shape
    with pytest.raises(ValueError, match='at least 1 step'):
        net.num_layers = 0
    with pytest.raises(ValueError, match='at least 1 step'):
        tiny(num_layers=0)
    with pytest.raises(ValueError, match='multipliers'):
        tiny(multipliers=[1, 0])


def test_a_step_may_be_told_its_number_or_not():
    """Without a number, features or residual, two steps that see the same image make the same candidates."""
    blind = tiny(embed_step=False, carry_features=False, learning_residual=False, leak_choice=False, num_layers=2)
    told = tiny(embed_step=True, carry_features=False, learning_residual=False, leak_choice=False, num_layers=2)
    for net, alike in ((blind, True), (told, False)):
        with torch.no_grad():
            net.ddls[0].weight[0].zero_()  # node 0 is the image that the first step began with
            first, second = all_candidates(net, torch.zeros(1, 2, dtype=torch.long))
        assert torch.allclose(first, second, atol=1e-6) == alike


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-5), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize('make', [tiny, repeating])
def test_any_floating_dtype(make, dtype, tolerance):
    net = make()
    codes = net.sample(3)[1]
    wanted, net = net.decode(codes), net.to(dtype)
    images = net.decode(codes)
    assert images.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(images.float(), wanted, atol=tolerance, rtol=0)
    net.train()(samplers.nearest(images.detach()), 3).images.square().mean().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_branches_are_the_candidates_of_a_node():
    for net in (tiny(), repeating()):
        codes = net.sample(3, seed=5)[1]
        for l in range(net.num_layers):
            branches = net.branches(codes[:, :l])
            for k in range(net.num_nodes[l]):
                changed = torch.cat([codes[:, :l], torch.full((3, 1), k), codes[:, l + 1 :]], 1)
                want = list(net.walk(samplers.given(changed), 3))[l]
                torch.testing.assert_close(branches[:, k], want.image, atol=1e-5, rtol=1e-5)
        with pytest.raises(ValueError, match='no children'):
            net.branches(codes)
        with pytest.raises(ValueError, match='layer 0'):
            net.branches(codes[:, :1] + 9)


def test_beam_search_follows_parents():
    net = tiny()
    given = net.sample(4, seed=3)[1]

    def reversing(candidates, layer, codes):
        parents = torch.tensor([3, 2, 1, 0]) if layer == 2 else None
        return samplers.Choice(given[:, layer], parents=parents)

    with torch.no_grad():
        out = net(reversing, 4)
    assert torch.equal(out.codes[:, :2], given[:, :2].flip(0))
    torch.testing.assert_close(net.decode(out.codes), out.images, atol=1e-6, rtol=0)


def test_guides_do_not_ask_what_network_it_is():
    net = tiny(num_nodes=8)
    target = pictures(net, 1)
    codes = net.encode(target)
    guide = guides.superres(target)  # at full size: the image itself
    images, found = net.sample(2, guide=guided_sampling.Guidance([guide], choose=guided_sampling.top_k(1)))
    assert torch.equal(found, codes.expand(2, -1)) and torch.equal(images, net.decode(found))
    beam = net.sample(1, guide=guided_sampling.Guidance([guide], beam=3))[0]
    assert (beam - target).square().mean() <= (images[:1] - target).square().mean() + 1e-6


def test_condition_and_augment_labels_reach_every_step():
    net = tiny(condition_channels=2, augment_dim=3)
    codes = net.sample(2, condition=torch.zeros(2, 2, 4, 4))[1]
    zero, one = torch.zeros(2, 2, 4, 4), torch.ones(1, 2, 4, 4)
    assert not torch.allclose(net.decode(codes, zero), net.decode(codes, one), atol=1e-4)
    with pytest.raises(ValueError, match='2 condition channels'):
        net.sample(1)
    with torch.no_grad():
        plain, labelled = (
            net(samplers.given(codes), 2, zero, augment_labels=labels).images for labels in (None, torch.ones(2, 3))
        )
    assert not torch.allclose(plain, labelled, atol=1e-4)


@pytest.mark.parametrize('make', [tiny, repeating])
def test_codes_per_step_counts_per_weight(make):
    """Split-and-Prune sees the steps that share a weight as matches of one set of nodes."""
    net = make()
    balance = SplitAndPrune(net.node_weights, net.ddl_of_layer, split_at=1e9, prune_at=0.0)
    codes = net.encode(pictures(net, 6))
    balance.observe(codes)
    balance.step_()
    for w in range(len(net.node_weights)):
        layers = [l for l in range(net.num_layers) if net.ddl_of_layer[l] == w]
        K = net.num_nodes[layers[0]]
        want = torch.tensor([sum(int((codes[:, l] == k).sum()) for l in layers) for k in range(K)])
        assert torch.equal(balance.counts[w, : len(want)], want.double())
    assert balance.counts.sum() == codes.numel()


def test_one_split_moves_the_node_of_all_steps():
    net = tiny(num_layers=3)
    optimizer = torch.optim.Adam(net.parameters())
    balance = SplitAndPrune(net.node_weights, net.ddl_of_layer)
    balance.attach(optimizer)
    balance.observe(torch.tensor([[2, 2, 2], [2, 0, 1], [2, 3, 2]]))  # node 4 of 5 was never matched
    sum(p.sum() for p in net.parameters()).backward()
    optimizer.step()
    assert torch.equal(net.ddls[0].weight[4], net.ddls[0].weight[2]) and balance.num_splits.tolist() == [1]
    assert balance.counts[0].tolist() == [1, 1, 3, 1, 3]
    state = optimizer.state[net.ddls[0].weight]
    assert torch.equal(state['exp_avg'][4], state['exp_avg'][2])
    for candidates in all_candidates(net, torch.full((1, 3), 2)):
        assert torch.equal(candidates[:, 4], candidates[:, 2])


def test_usage_and_biases_are_per_weight():
    net = tiny()
    balance = LossFreeBalancing(net.node_weights, net.ddl_of_layer)
    out = net(samplers.nearest(pictures(net), balance.penalty), 3, keep=True)
    balance.observe(out.codes, None, out.distances)
    usage = UsageWindow(balance)
    usage.observe(out.codes, None)
    assert usage.counts.shape == (1, 5) and usage.counts.sum() == 12
    balance.step_()
    assert len(balance.bias) == 4 and all(torch.equal(b, balance.bias[0]) for b in balance.bias)
    assert balance.bias[0].abs().sum() > 0


@pytest.mark.parametrize('dropout', [0.0, 0.5])
def test_grad_checkpoint_changes_no_gradient(dropout):
    net = tiny(dropout=dropout, num_layers=3).train()
    images = pictures(net)

    def gradients(grad_checkpoint: bool) -> list[torch.Tensor]:
        net.zero_grad()
        torch.manual_seed(7)
        out = net(samplers.nearest(images), len(images), keep=True, grad_checkpoint=grad_checkpoint)
        sum((x - images).square().mean() for x in out.selected).backward()
        return [p.grad.clone() for p in net.parameters()]

    plain = gradients(False)
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(True), strict=True))
    assert all(g.isfinite().all() for g in plain) and plain[0].abs().sum() > 0


def test_snapshots_of_either_class(tmp_path):
    for net in (tiny(multipliers=[1, 2]), repeating()):
        path = str(tmp_path / f'{type(net).__name__}.safetensors')
        ema = {'0.5': {n: p + 0.01 for n, p in net.named_parameters()}}
        snapshots.save_network(path, net, ema)
        for cls in (type(net), Network):
            loaded = cls.from_pretrained(path, ema='none')
            assert type(loaded) is type(net) and torch.equal(loaded.sample(2)[0], net.sample(2)[0])
        assert not torch.equal(Network.from_pretrained(path).sample(2)[0], net.sample(2)[0])
    with pytest.raises(ValueError, match='holds a RecurrentDDN, not a DDN: take RecurrentDDN.from_pretrained'):
        DDN.from_pretrained(str(tmp_path / 'RecurrentDDN.safetensors'))


# The scripts.

RUN = ['--arch=recurrent', '--nodes=5', '--steps=3', '--base-width=2', '--batch=8', '--lr=0.01', '--lr-ramp=0',
       '--seed=1', '--workers=0', '--device=cpu', '--ema=0.0001', '--nosubdir', '--tick=0.04', '--dump=1']  # fmt: skip


@pytest.fixture(scope='module')
def trained(tiny_zip, tmp_path_factory) -> str:
    run_dir = tmp_path_factory.mktemp('run')
    out = invoke(train.main, f'--data={tiny_zip}', f'--outdir={run_dir}', *RUN, '--duration=0.000080')
    assert '0-2' in out and '1 sets of nodes' in out
    return str(run_dir)


def test_five_steps_stop_five_steps_are_ten_bit_for_bit(trained, tiny_zip, tmp_path):
    invoke(train.main, f'--data={tiny_zip}', f'--outdir={tmp_path / "b"}', *RUN, '--duration=0.000040')
    out = invoke(train.main, f'--resume={tmp_path / "b"}', '--duration=0.000080')
    assert out.count('continues with another option') == 1
    a, b = final(trained), final(tmp_path / 'b')
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    assert a['balance/num_splits'].shape == (1,) and a['balance/num_splits'] > 0


def test_generate_fid_and_guides_take_it(trained, tiny_zip, tmp_path):
    network = f'--network={trained}/network-snapshot-000000080.safetensors'

    def draw(folder: str, *args: str) -> None:
        invoke(generate.main, network, f'--outdir={tmp_path / folder}', '--device=cpu', *args)

    draw('s', '--seeds=0-2', f'--save-codes={tmp_path / "c.txt"}')
    assert len((tmp_path / 'c.txt').read_text().split()) == 9
    draw('s', '--seeds=0', '--steps=6', f'--save-codes={tmp_path / "d.txt"}')
    assert len((tmp_path / 'd.txt').read_text().split()) == 6
    draw('r', f'--reconstruct={tiny_zip}')
    face = min((tmp_path / 'r').rglob('*.png'))
    draw('g', '--seeds=0', f'--guide=superres:{face},size=4', '--beam=2')
    assert fid.load(network.split('=')[1], None, torch.device('cpu'))[0].num_layers == 3
    single = tmp_path / 'single.safetensors'
    snapshots.save_network(str(single), repeating())
    out = invoke(generate.main, f'--network={single}', f'--outdir={tmp_path / "x"}', '--steps=6', expect=1)
    assert '--steps' in out and 'not recurrent' in out


@pytest.mark.parametrize('preset, K, L', [('mnist-recurrent', 64, 10), ('mnist-tree', 8, 3), ('taiji', 2, 10)])
def test_presets(tiny_zip, preset, K, L):
    loop = json.loads(invoke(train.main, f'--data={tiny_zip}', f'--preset={preset}', '-n'))
    assert loop['network_class'] == 'ddn_networks.recurrent.RecurrentDDN'
    net = snapshots.rebuild({'class_name': loop['network_class'], 'kwargs': loop['network_kwargs']})
    assert (net.num_nodes, net.num_layers) == ([K] * L, L)
    assert loop['chain_dropout'] == (0.0 if K == 2 else 0.05)


def test_options_of_the_other_network_are_refused(tiny_zip):
    def error(*args: str) -> str:
        return invoke(train.main, f'--data={tiny_zip}', '-n', *args, expect=1)

    assert '--channels does nothing with --arch=recurrent' in error('--arch=recurrent', '--channels=8')
    assert '--steps does nothing with --arch=ddn' in error('--steps=3')
    assert 'share one K' in error('--arch=recurrent', '--nodes=8,4')
