"""The network's own prior: exact likelihoods, sampling that has them, and what moves when a node splits."""

import math

import pytest
import torch

from ddn_networks import (
    DDN,
    Network,
    RecurrentDDN,
    SplitAndPrune,
    guides,
    prior,
    samplers,
    sampling,
    snapshots,
    tensor_files,
)
from ddn_networks.code_priors import CodeTransformer, Counts
from ddn_networks.prior import PriorHead, inverse_cdf
from training.loss import prior_loss


def random_heads_(net: Network, scale: float = 1.0) -> Network:
    rng = torch.Generator().manual_seed(3)
    for block in net.blocks:
        block.conv1.weight.data.normal_(0, 0.3, generator=rng)
    for head in net.prior:
        for param in head.out.parameters():
            param.data.normal_(0, scale, generator=rng)
    return net.eval()


def networks() -> dict[str, Network]:
    torch.manual_seed(0)
    small = {'base_width': 4, 'multipliers': [1, 2], 'num_blocks': 1, 'features': 8, 'prior_width': 6}
    nets = {
        'whole': DDN(4, 1, [8, 8], [2, 1], [3, 4], prior_width=8),
        'cells': DDN(4, 1, [8, 8], [1, 1], [3, 2], grids=[1, 2], prior_width=8),
        'many cells': DDN(4, 1, [8], [2], [2], grids=[1, (2, 4)], prior_width=8),
        'recurrent': RecurrentDDN(4, 1, 3, 3, **small),
    }
    return {name: random_heads_(net) for name, net in nets.items()}


def every_code(net: Network) -> torch.Tensor:
    return torch.cartesian_prod(*(torch.arange(k) for k in net.code_nodes)).view(-1, net.num_codes)


@pytest.mark.parametrize('name', networks())
def test_the_probabilities_of_all_codes_sum_to_one(name):
    net = networks()[name]
    log_p = net.log_prob(every_code(net))
    assert log_p.dtype == torch.float64 and log_p.std() > 0.1
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(net.log_prob(every_code(net)[:3]), log_p[:3], atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', networks())
def test_the_prior_after_a_prefix_adds_up_to_the_likelihood(name):
    net = networks()[name]
    codes = every_code(net)[::7]
    total = torch.zeros(len(codes), dtype=torch.float64)
    for spec, columns in zip(net.specs, net.code_slices, strict=True):
        log_p = net.next_log_prior(codes[:, : columns.start])
        assert list(log_p.shape) == [len(codes), spec.num_nodes, *[spec.num_cells] * (spec.num_cells > 1)]
        log_p = log_p.view(len(codes), spec.num_nodes, spec.num_cells)
        total += log_p.gather(1, codes[:, None, columns]).double().sum((1, 2))
    torch.testing.assert_close(total, net.log_prob(codes), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match='no layer is left'):
        net.next_log_prior(codes)


@pytest.mark.parametrize('name', networks())
def test_sampling_has_these_frequencies(name):
    net = networks()[name]
    every = every_code(net)
    p = net.log_prob(every).exp()
    codes = torch.cat([net.sample(seeds=range(s, s + 2000))[1] for s in range(0, 6_000, 2000)])
    bases = torch.tensor([math.prod(net.code_nodes[d + 1 :]) for d in range(net.num_codes)])
    counts = (codes * bases).sum(1).bincount(minlength=len(every))
    chi = ((counts - 6_000 * p).square() / (6_000 * p)).sum().item()
    assert chi < len(every) + 5 * math.sqrt(2 * len(every))


@pytest.mark.parametrize('name', networks())
def test_the_likelihood_is_what_sampling_saw(name):
    net = networks()[name]
    draws = samplers.uniforms(net.num_codes, range(16))
    with torch.no_grad():
        out = net(prior.from_prior(draws), 16, keep=True)
    images, codes = net.sample(16)
    assert torch.equal(codes, out.codes) and torch.equal(images, out.images)
    seen = torch.zeros(16, dtype=torch.float64)
    for log_p, columns in zip(out.log_prior, net.code_slices, strict=True):
        assert log_p.ndim == (2 if columns.stop - columns.start == 1 else 3)
        torch.testing.assert_close(log_p.exp().sum(1), torch.ones_like(log_p[:, 0]))
        log_p = log_p.view(16, log_p.shape[1], -1)
        seen += log_p.gather(1, codes[:, None, columns]).double().sum((1, 2))
    torch.testing.assert_close(net.log_prob(codes), seen, atol=1e-6, rtol=0)
    torch.testing.assert_close(net.decode(codes), images, atol=1e-5, rtol=0)


def test_a_new_prior_is_uniform():
    torch.manual_seed(0)
    net = DDN(4, 1, [8, 8], [1, 2], [3, 5], grids=[1, 1, (2, 4)], prior_width=8).eval()
    assert torch.equal(net.sample(50)[1], net.sample(50, uniform=True)[1])
    bits = -net.log_prob(net.sample(4)[1]) / math.log(2)
    torch.testing.assert_close(bits, torch.full_like(bits, net.num_bits), atol=1e-4, rtol=0)
    plain = DDN(4, 1, [8, 8], [1, 2], [3, 5]).eval()
    codes = plain.sample(3)[1]
    torch.testing.assert_close(-plain.log_prob(codes) / math.log(2), torch.full((3,), plain.num_bits).double())


def test_seeds_name_images_at_any_batch_size():
    net = networks()['many cells']
    images, codes = net.sample(9, seed=4)
    for i in range(9):
        image, code = net.sample(seed=4 + i)
        assert torch.equal(code[0], codes[i])
        torch.testing.assert_close(image[0], images[i], atol=1e-5, rtol=0)


def test_temperatures_and_top_p():
    net = networks()['cells']
    every = every_code(net)
    likeliest = net.sample(20, temperature=0.0)[1]
    assert (likeliest == likeliest[0]).all()
    assert torch.equal(net.sample(20, top_p=1e-9)[1], likeliest)
    assert torch.equal(net.sample(20, temperature=1e-6)[1], likeliest)
    assert torch.equal(net.sample(200, temperature=1e9)[1], net.sample(200, uniform=True)[1])
    assert torch.equal(net.sample(20, temperature=1.0, top_p=1.0)[1], net.sample(20)[1])
    mixed = net.sample(200, temperature=[1.0, 0.0])[1]
    assert mixed[:, 0].unique().numel() == 3 and torch.equal(mixed[:, 0], net.sample(200)[1][:, 0])
    for first in range(3):
        assert len(mixed[mixed[:, 0] == first].unique(dim=0)) == 1
    cold = net.log_prob(net.sample(500, temperature=0.5)[1]).mean()
    assert cold > net.log_prob(net.sample(500)[1]).mean() and len(every) == 48


def test_inverse_cdf():
    log_p = torch.tensor([[0.5, 0.0, 0.3, 0.2]]).log().expand(7, -1)
    u = torch.tensor([0.0, 0.499, 0.501, 0.799, 0.801, 0.999, 1.0], dtype=torch.float64)
    assert inverse_cdf(log_p, u).tolist() == [0, 0, 2, 2, 3, 3, 3]  # a node of probability 0 is never chosen
    assert inverse_cdf(log_p, u, top_p=0.49).tolist() == [0] * 7
    assert inverse_cdf(log_p, u, top_p=0.51).tolist() == [0, 0, 0, 2, 2, 2, 2]
    squared = torch.tensor([0.25, 0.0, 0.09, 0.04]) / 0.38
    at = torch.tensor([squared[0] - 0.001, squared[0] + 0.001], dtype=torch.float64)
    assert inverse_cdf(log_p[:2], at, temperature=0.5).tolist() == [0, 2]
    cells = torch.stack([log_p, log_p.flip(1)], 2)  # [B, K, n]
    both = inverse_cdf(cells, torch.stack([u, u], 1))
    assert both[:, 0].tolist() == [0, 0, 2, 2, 3, 3, 3] and both[:, 1].tolist() == [0, 1, 3, 3, 3, 3, 3]


@pytest.mark.parametrize('arguments, says', [
    ({'temperature': [1.0, 1.0, 1.0]}, 'one number of at least 0, or 2, one per layer'),
    ({'temperature': -1.0}, 'at least 0'),
    ({'temperature': 1.0, 'uniform': True}, 'uniform choices do not use it'),
    ({'top_p': 0.0}, 'top_p is above 0 and at most 1'),
    ({'top_p': 1.5}, 'top_p is above 0 and at most 1'),
])  # fmt: skip
def test_what_does_not_fit_is_named(arguments, says):
    with pytest.raises(ValueError, match=says):
        networks()['cells'].sample(2, **arguments)


def test_a_network_without_a_prior_has_no_temperature():
    with pytest.raises(ValueError, match='this network has none'):
        DDN(4, 1, [8], [2], [3]).sample(2, temperature=0.5)
    net = networks()['cells']
    guided = net.sample(2, guide=guides.l2(torch.zeros(1, 1, 4, 4)), uniform=True)[1]
    assert guided.shape == (2, 5)


def test_shared_prefixes_and_snapshots_keep_the_prior(tmp_path):
    for name, net in networks().items():
        codes = net.sample(40)[1]
        with torch.no_grad():
            sampler = samplers.with_log_prior(samplers.given(codes))
            plain, shared = (net(sampler, 40, keep=True, share_prefixes=share).log_prior for share in (False, True))
        for a, b in zip(plain, shared, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        path = tmp_path / f'{name}.safetensors'
        snapshots.save_network(path, net)
        assert torch.equal(Network.from_pretrained(path).log_prob(codes), net.log_prob(codes))


@pytest.mark.parametrize('share', [0.0, 0.25])
def test_the_gradient_stops_at_the_features_but_for_a_share(share):
    torch.manual_seed(0)
    net = DDN(4, 1, [8, 8], [1, 2], [3, 5], grids=[1, 1, (2, 4)], prior_width=8, prior_gradient=share)
    random_heads_(net).train()
    images = torch.rand(6, 1, 4, 4)

    def gradients(amount: float) -> dict[str, torch.Tensor]:
        net.prior_gradient = amount
        net.zero_grad()
        out = net(samplers.with_log_prior(samplers.nearest(images)), 6, keep=True)
        sum(-log_p.amax(1).sum() for log_p in out.log_prior).backward()
        return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}

    found, whole = gradients(share), gradients(1.0)
    for name, gradient in found.items():
        if name.startswith('prior.'):
            torch.testing.assert_close(gradient, whole[name])
    of_blocks = [name for name in whole if name.startswith('blocks.')]
    assert of_blocks and any(whole[name].abs().sum() > 0 for name in of_blocks)
    for name in of_blocks:
        last = name.startswith('blocks.2.')  # deeper layers let a share through at each layer above them
        if not share:
            assert name not in found or not found[name].any()
        elif last:
            torch.testing.assert_close(found[name], share * whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('grid', [(1, 1), (2, 2), (4, 8)])
def test_a_split_shares_the_probability_of_a_node(grid):
    """Right after it p(split) + p(copy) is the old p over 1 - p(pruned), for every cell, in weights and averages."""
    torch.manual_seed(0)
    head = PriorHead(6, 5, (4, 8), grid, 8).to(memory_format=torch.channels_last)  # as in training on a CPU
    torch.nn.init.normal_(head.out.weight, std=0.3)
    torch.nn.init.normal_(head.out.bias)
    node = torch.nn.Parameter(torch.randn(5, 1, 3))
    optimizer = torch.optim.Adam([node, *head.parameters()])
    features = torch.randn(9, 6, 4, 8)
    head(features).square().sum().backward()
    node.grad = torch.randn_like(node)
    copies = {p: (p.detach() + 0.1).clone() for p in head.out.parameters()}
    balance = SplitAndPrune([node], num_cells=[head.num_cells])
    balance.follow_prior([[head]], [copies])
    codes = torch.tensor([2] * 50 + [0] * 20 + [1] * 20 + [3] * 20 + [4])[:, None].expand(-1, head.num_cells)
    balance.observe(codes)
    optimizer.step()
    before = head(features).softmax(1).double()
    averages = [copy.clone() for copy in copies.values()]
    moments = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for p in head.out.parameters()}
    plan = balance.step_(optimizer)
    assert plan.active.tolist() == [[True]] and (int(plan.split), int(plan.prune)) == (2, 4)
    after = head(features).softmax(1).double()
    kept = 1 - before[:, 4]
    close = {'rtol': 1e-5, 'atol': 1e-6}
    torch.testing.assert_close(after[:, 2] + after[:, 4], before[:, 2] / kept, **close)
    torch.testing.assert_close(after[:, 2], after[:, 4], **close)
    for k in (0, 1, 3):
        torch.testing.assert_close(after[:, k], before[:, k] / kept, **close)
    for param in head.out.parameters():
        for key, old in moments[param].items():
            new = optimizer.state[param][key]
            if old.shape == param.shape:
                rows, want = new.reshape(5, -1), old.reshape(5, -1)
                assert torch.equal(rows[4], want[2]) and torch.equal(rows[:4], want[:4])
    weight, bias = (copy.reshape(5, -1) for copy in copies.values())
    assert torch.equal(weight[4], averages[0].reshape(5, -1)[2])
    torch.testing.assert_close(bias[4], averages[1].reshape(5, -1)[2] - math.log(2))
    torch.testing.assert_close(bias[2], bias[4])
    still = [head.out.bias.clone(), *(copy.clone() for copy in copies.values())]
    assert not balance.step_(optimizer).active.any()
    assert all(torch.equal(a, b) for a, b in zip(still, [head.out.bias, *copies.values()], strict=True))


def test_heads_learn_what_the_features_say():
    """On a network that stays as it is: below the entropy that counts per layer have."""
    torch.manual_seed(0)
    net = random_heads_(DDN(4, 1, [8, 8], [1, 2], [4, 4], grids=[1, 1, 2], prior_width=32), 0.0).train()
    images = torch.randn(48, 1, 1, 1) + 0.3 * torch.randn(48, 1, 4, 4)
    optimizer = torch.optim.Adam(net.prior.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        output = net(samplers.with_log_prior(samplers.nearest(images)), 48, keep=True)
        loss = prior_loss(output.log_prior, output.distances)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    share = torch.stack([output.codes[:, d].bincount(minlength=4) for d in range(net.num_codes)]) / 48
    marginal = torch.special.entr(share).sum(1).mean().item()
    assert losses[0] == pytest.approx(math.log(4)) and losses[-1] < 0.8 * marginal


def test_a_temperature_that_overflows_takes_the_likeliest():
    log_p = torch.tensor([[-3.0, -0.1, -5.0]]).log_softmax(1)
    for temperature in (0, 5e-324, 1e-310, 1e-300, 1e-30):
        assert inverse_cdf(log_p, torch.tensor([0.99], dtype=torch.float64), temperature).tolist() == [1]


def test_a_snapshot_keeps_the_defaults_of_sampling(tmp_path):
    net = networks()['cells']
    assert net.sampling == sampling.Sampling() and net.sampling.temperatures_of(2) == [1, 1]
    path = tmp_path / 'net.safetensors'
    snapshots.save_network(path, net)
    assert 'sampling' not in tensor_files.load_tensors(path)[1]
    net.sampling = sampling.Sampling((1.0, 0.25), {'rgb/1': (0.5, 0.125), 'luma/2': (0.25, 0.0)})
    snapshots.save_network(path, net)
    loaded = Network.from_pretrained(path)
    assert loaded.sampling == net.sampling
    assert torch.equal(loaded.sample(50)[1], net.sample(50, temperature=[1.0, 0.25])[1])
    assert not torch.equal(loaded.sample(50)[1], net.sample(50, temperature=1)[1])
    assert torch.equal(loaded.sample(50, uniform=True)[1], networks()['cells'].sample(50, uniform=True)[1])
    for wrong in ((1.0,), (1.0, -1.0), (1.0, math.nan)):
        net.sampling = sampling.Sampling(wrong)
        with pytest.raises(ValueError, match='temperatures is .*, not 2 numbers of 0 to 1e'):
            snapshots.save_network(path, net)


def test_more_steps_than_a_recurrent_network_was_trained_with(tmp_path):
    net = networks()['recurrent']
    net.sampling = sampling.Sampling((1.0, 0.5, 0.25))
    for steps, same in ((5, [1, 0.5, 0.25, 0.25, 0.25]), (2, [1, 0.5])):
        net.num_layers = steps
        assert torch.equal(net.sample(20)[1], net.sample(20, temperature=same)[1])
        snapshots.save_network(tmp_path / 'net.safetensors', net)  # which keeps the L of the constructor
        assert Network.from_pretrained(tmp_path / 'net.safetensors').sampling == net.sampling


def fitted_over_codes(kind: str) -> Network:
    """A network with a prior over codes that is far from uniform."""
    torch.manual_seed(0)
    if kind == 'counts of cells':
        net = DDN(4, 1, [8, 8], [1, 1], [3, 2], grids=[1, 2], prior_kind='counts').eval()
    elif kind == 'recurrent transformer':
        small = {'base_width': 4, 'multipliers': [1, 2], 'num_blocks': 1, 'features': 8}
        net = RecurrentDDN(4, 1, 3, 3, **small, prior_kind='transformer', prior_width=8).eval()
    else:
        net = DDN(4, 1, [8, 8], [2, 1], [3, 4], prior_kind=kind, prior_width=8).eval()
    for module in net.prior.modules():
        if isinstance(module, Counts):
            module.add_(torch.stack([torch.randint(k, (50,)) // 2 for k in net.code_nodes], 1))
        elif isinstance(module, CodeTransformer):
            torch.nn.init.normal_(module.out.weight)
    return net


OVER_CODES = ['counts', 'transformer', 'counts of cells', 'recurrent transformer']


@pytest.mark.parametrize('kind', OVER_CODES)
def test_priors_over_codes_are_exact(kind, tmp_path):
    """All probabilities sum to one, log_prob is their product by hand, samples have them, and snapshots keep them."""
    net = fitted_over_codes(kind)
    every = every_code(net)
    log_p = net.log_prob(every)
    assert log_p.std() > 0.1 and log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    module = net.prior[0]
    slow = torch.zeros(len(every), dtype=torch.float64)
    for layer, columns in enumerate(net.code_slices):
        logits = module(every[:, : columns.start], layer).double().log_softmax(1)
        logits = logits.view(len(every), -1, columns.stop - columns.start)
        slow += logits.gather(1, every[:, None, columns]).sum((1, 2))
    torch.testing.assert_close(log_p, slow, atol=1e-5, rtol=0)
    images, codes = net.sample(4000)
    bases = torch.tensor([math.prod(net.code_nodes[d + 1 :]) for d in range(net.num_codes)])
    counts, p = (codes * bases).sum(1).bincount(minlength=len(every)), log_p.exp()
    chi = ((counts - 4000 * p).square() / (4000 * p)).sum().item()
    assert chi < len(every) + 5 * math.sqrt(2 * len(every))
    torch.testing.assert_close(net.decode(codes[:9]), images[:9], atol=1e-5, rtol=0)
    snapshots.save_network(tmp_path / 'net.safetensors', net)
    assert torch.equal(Network.from_pretrained(tmp_path / 'net.safetensors').log_prob(every), log_p)
    with torch.no_grad():
        asking = samplers.with_log_prior(samplers.given(codes[:40]))
        plain, shared = (net(asking, 40, keep=True, share_prefixes=share).log_prior for share in (False, True))
    for a, b in zip(plain, shared, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_transformer_gives_all_logits_in_one_pass():
    net = fitted_over_codes('transformer')
    codes = net.sample(20, uniform=True)[1]
    for layer, logits in enumerate(net.prior[0].of_all(codes)):
        torch.testing.assert_close(logits, net.prior[0](codes[:, :layer], layer))


def test_counts_are_exact():
    net = fitted_over_codes('counts')
    p = net.prior[0](torch.zeros(1, 0, dtype=torch.int64), 0).exp()[0]
    assert torch.allclose(p, (net.prior[0].counts[0, :3] + 1).float()) and net.prior[0].counts[0].sum() == 50


@pytest.mark.parametrize('kwargs, says', [
    ({'prior_kind': 'table'}, 'one of head, counts, transformer'),
    ({'prior_kind': 'transformer', 'prior_width': 6}, 'a multiple of 4'),
    ({'prior_kind': 'transformer', 'prior_width': 8, 'grids': [2, 2]}, 'whole-image layers'),
    ({'condition_to': 'head'}, "'all' or 'heads'"),
    ({'condition_to': 'heads', 'prior_width': 8}, 'needs a condition and a prior'),
    ({'condition_to': 'heads', 'conditions': ['class:3']}, 'needs a condition and a prior'),
])  # fmt: skip
def test_priors_that_do_not_fit(kwargs, says):
    with pytest.raises(ValueError, match=says):
        DDN(4, 1, [8, 8], [1, 1], [3, 2], **kwargs)


def conditional_heads(optional: bool = True, recurrent: bool = False) -> Network:
    torch.manual_seed(0)
    given = {'conditions': ['class:3'], 'condition_optional': optional, 'condition_to': 'heads', 'prior_width': 16}
    if recurrent:
        small = {'base_width': 4, 'multipliers': [1, 2], 'num_blocks': 1, 'features': 8}
        return random_heads_(RecurrentDDN(4, 1, 3, 3, **small, **given))
    return random_heads_(DDN(4, 1, [8, 8], [1, 2], [3, 2], grids=[1, 1, (1, 2)], **given))


@pytest.mark.parametrize('recurrent', [False, True])
@pytest.mark.parametrize('optional', [False, True])
def test_codes_name_the_same_images_with_and_without_a_condition_of_heads(optional, recurrent):
    net = conditional_heads(optional, recurrent)
    every = every_code(net)
    classes = torch.arange(len(every)) % 3
    condition = net.make_condition(classes)
    assert torch.equal(net.decode(every), net.decode(every, condition))
    images = torch.rand(6, 1, 4, 4)
    assert torch.equal(net.encode(images), net.encode(images, net.make_condition(classes[:6])))
    of_class = torch.stack([net.log_prob(every, net.make_condition(c)) for c in range(3)])
    torch.testing.assert_close(of_class.exp().sum(1), torch.ones(3).double(), atol=1e-5, rtol=0)
    assert (of_class[0] - of_class[1]).abs().max() > 0.01
    torch.testing.assert_close(
        net.log_prob(every, condition), of_class[classes, torch.arange(len(every))], atol=1e-5, rtol=0
    )
    if not optional:
        with pytest.raises(ValueError, match='wants one'):
            net.log_prob(every)


def test_guidance_without_a_classifier():
    """cfg 1 is the prior with the condition, 0 the prior without; in between and beyond, the product by hand."""
    net = conditional_heads()
    condition = net.make_condition(2)
    plain = net.sample(300, condition=condition)[1]
    assert torch.equal(net.sample(300, condition=condition, cfg=1)[1], plain)
    assert torch.equal(net.sample(300, condition=condition, cfg=0)[1], net.sample(300)[1])
    strong = net.sample(3000, condition=condition, cfg=3)[1][:, 0].bincount(minlength=3) / 3000
    first = torch.zeros(1, net.num_codes, dtype=torch.int64)
    with torch.no_grad():
        asked = samplers.with_log_prior(samplers.given(first))
        given, without = (net(asked, 1, c, keep=True).log_prior[0][0] for c in (condition, None))
    want = (without + 3 * (given - without)).softmax(0)
    assert (strong - want).abs().max() < 0.04 < (want - given.exp()).abs().max()


@pytest.mark.parametrize('cfg, with_condition, says', [
    (2, False, 'needs a condition'), (-1, True, '0 to 1000'), (math.nan, True, '0 to 1000'),
])  # fmt: skip
def test_guidance_without_a_classifier_that_means_nothing(cfg, with_condition, says):
    net = conditional_heads()
    with pytest.raises(ValueError, match=says):
        net.sample(2, condition=net.make_condition(1) if with_condition else None, cfg=cfg)
    plain = random_heads_(DDN(4, 1, [8], [1], [3], conditions=['class:3'], condition_optional=True, prior_width=8))
    for other in (conditional_heads(optional=False), plain):
        with pytest.raises(ValueError, match='whose prior alone is given the condition'):
            other.sample(2, condition=other.make_condition(1).expand(2, -1, -1, -1), cfg=2)
    with pytest.raises(ValueError, match='this network has none'):
        DDN(4, 1, [8], [1], [3]).sample(2, cfg=2)


def test_the_ratio_with_and_without_a_condition_is_bayes():
    """Heads fitted to pairs of code and class: p(k | c) / p(k) is p(c | k) / p(c) of the pairs."""
    torch.manual_seed(1)
    kwargs = {'conditions': ['class:3'], 'condition_optional': True, 'condition_to': 'heads', 'prior_width': 32}
    net = DDN(4, 1, [8], [1], [4], **kwargs)
    joint = torch.tensor([[8.0, 2, 1, 1], [1, 6, 3, 2], [2, 1, 2, 7]]) / 36  # [c, k]
    codes = torch.arange(4).repeat(3)[:, None]
    condition = net.make_condition(torch.arange(3).repeat_interleave(4))
    optimizer = torch.optim.Adam(net.prior.parameters(), lr=0.003)
    for _ in range(150):
        asked = samplers.with_log_prior(samplers.given(codes))
        log_p = [net(asked, 12, c, keep=True).log_prior[0].gather(1, codes)[:, 0] for c in (condition, None)]
        loss = -(joint.flatten() * (log_p[0] + log_p[1])).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ratio = (net.eval().log_prob(codes, condition) - net.log_prob(codes)).exp().view(3, 4).float()
    want = (joint / joint.sum(0)) / joint.sum(1, keepdim=True)
    torch.testing.assert_close(ratio, want, atol=0.03, rtol=0)
