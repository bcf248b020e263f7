"""PrefixBalancing: its forecast against autograd, its rows, its state, and what it is for."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from ddn_networks import Candidates, PrefixBalancing, SplitAndPrune, samplers


def asked(balance, weights, features, targets):
    """One round of choices, all layers on the same features: codes [B, L] and the evidence of each layer."""
    sampler = samplers.nearest(targets, balance.penalty)
    none = torch.zeros(len(features), 0, dtype=torch.int64)
    choices = [sampler(Candidates(w.detach(), features), layer, none) for layer, w in enumerate(weights)]
    return torch.stack([choice.codes for choice in choices], 1), [choice.evidence for choice in choices]


def observed_(balance, weights, features, targets):
    codes, evidence = asked(balance, weights, features, targets)
    balance.observe(codes, evidence=evidence)


def layers(*shapes):
    rng = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=rng)) for shape in shapes]


def batch(B, features, channels, seed, size=5):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(B, features, size, size, generator=rng), torch.randn(B, channels, size, size, generator=rng)


def test_a_step_is_adams_on_the_cross_entropy():
    weights = layers((5, 2, 3), (4, 2, 3))
    balance = PrefixBalancing(weights, grid=2, lr=0.01, prune_at=0.0, split_at=1e9)
    models = [torch.nn.Linear(12, 5), torch.nn.Linear(12, 4)]
    for m in models:
        torch.nn.init.zeros_(m.weight)
        torch.nn.init.zeros_(m.bias)
    adam = torch.optim.Adam([p for m in models for p in m.parameters()], lr=0.01)
    for step in range(5):
        features, targets = batch(8, 3, 2, step)
        codes, evidence = asked(balance, weights, features, targets)
        dropped = torch.rand(8, 2, generator=torch.Generator().manual_seed(step)) < 0.3
        balance.observe(codes, dropped, evidence=evidence)
        balance.step_()
        adam.zero_grad()
        read = F.layer_norm(F.adaptive_avg_pool2d(features, 2).flatten(1), (12,))
        for layer, m in enumerate(models):
            loss = F.cross_entropy(m(read), codes[:, layer], reduction='none')
            (loss * ~dropped[:, layer]).mean().backward()
        adam.step()
    for forecast, m in zip(balance.forecasts, models, strict=True):
        torch.testing.assert_close(forecast, torch.cat([m.weight, m.bias[:, None]], 1), atol=1e-5, rtol=1e-4)
        assert forecast.abs().max() > 0.02


def test_the_penalty_is_the_log_of_the_forecast_in_units_of_the_spread():
    weights = layers((3, 1, 2))
    balance = PrefixBalancing(weights, rate=0.5, limit=1.0)
    features, targets = batch(4, 2, 1, 0)
    candidates = Candidates(weights[0].detach(), features)
    distances = candidates.distances(targets)
    assert not balance.penalty(candidates, 0, distances).values.any()  # nothing is foreseen yet
    balance.forecasts[0][:, -1] = torch.tensor([0.7, 0.2, 0.1]).log()
    want = torch.tensor([math.log(2.1), math.log(0.6), -1.0])  # the last one stops at the limit
    penalty = balance.penalty(candidates, 0, distances).values
    torch.testing.assert_close(penalty, 0.5 * distances.std(1, keepdim=True) * want)


def test_autocast_does_not_touch_the_penalty():
    weights = layers((6, 2, 3))
    balance = PrefixBalancing(weights)
    torch.nn.init.normal_(balance.flat, generator=torch.Generator().manual_seed(1))
    features, targets = batch(4, 3, 2, 0)
    candidates = Candidates(weights[0].detach(), features)
    distances = candidates.distances(targets)
    plain = balance.penalty(candidates, 0, distances).values
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(balance.penalty(candidates, 0, distances).values, plain) and plain.any()


def test_a_pass_that_is_not_finite_teaches_nothing():
    weights = layers((6, 2, 3), (6, 2, 3))
    broken, spared = (PrefixBalancing(weights, prune_at=0.0, split_at=1e9) for _ in range(2))
    features, targets = batch(8, 3, 2, 0)
    evidence = asked(broken, weights, features.fill_(float('nan')), targets)[1]
    broken.observe(torch.zeros(8, 2, dtype=torch.long), evidence=evidence)
    evidence = asked(spared, weights, features.fill_(0), targets)[1]
    none = torch.ones(8, 2, dtype=torch.bool)
    spared.observe(torch.zeros(8, 2, dtype=torch.long), none, evidence=evidence)
    for balance in (broken, spared):
        balance.step_()
        features, targets = batch(8, 3, 2, 1)
        observed_(balance, weights, features, targets)
        balance.step_()
    assert torch.equal(broken.flat, spared.flat) and broken.flat.any()


def test_a_node_that_splits_takes_its_forecast_along():
    weights = layers((4, 1, 2), (3, 1, 2))
    balance = PrefixBalancing(weights, lr=1e-9)
    rng = torch.Generator().manual_seed(1)
    for forecast in balance.forecasts:
        forecast.copy_(torch.randn(forecast.shape, generator=rng))
    before = [f.clone() for f in balance.forecasts]
    features, targets = batch(12, 2, 1, 0)
    evidence = asked(balance, weights, features, targets)[1]
    codes = torch.tensor([[1, 0], [1, 1], [1, 2]] * 3 + [[0, 0], [2, 1], [0, 2]])
    balance.observe(codes, torch.zeros_like(codes, dtype=torch.bool), evidence=evidence)
    plan = balance.step_()
    assert plan.active[:, 0].tolist() == [True, False] and (plan.split[0, 0], plan.prune[0, 0]) == (1, 3)
    want = before[0].clone()
    want[3] = want[1]
    want[[1, 3], -1] -= math.log(2)
    torch.testing.assert_close(balance.forecasts[0], want)
    torch.testing.assert_close(balance.forecasts[1], before[1])
    for name in ('exp_avg', 'exp_avg_sq'):  # Adam's, of the first weight
        moments = balance.optimizer.state[balance.flat][name][1:].split(before[0].numel())[0].view_as(before[0])
        assert torch.equal(moments[3], moments[1]) and not torch.equal(moments[0], moments[1])


def test_more_pairs_than_a_weight_has_nodes():
    shapes = (16, 1, 2), (2, 1, 2)
    both = [make(layers(*shapes), pairs=8) for make in (PrefixBalancing, SplitAndPrune)]
    features, targets = batch(12, 2, 1, 0)
    codes = torch.tensor([[0, 1], [1, 1], [2, 1]] * 4)
    plans = []
    for balance in both:
        prefix = isinstance(balance, PrefixBalancing)
        balance.observe(codes, evidence=asked(balance, balance.weights, features, targets)[1] if prefix else None)
        plans.append(balance.step_())
    assert plans[0].active.sum(1).tolist() == [3, 1]  # as Split-and-Prune, which takes the pairs there are
    assert all(torch.equal(a, b) for a, b in zip(*plans, strict=True))
    assert both[0].forecasts[0].isfinite().all() and both[0].forecasts[1].isfinite().all()


def test_it_uses_nodes_that_split_and_prune_leaves_alone():
    """Two kinds of images, told apart by their features. At first half of the nodes serve the one kind and half the
    other: all are equally used, Split-and-Prune is content, and behind each kind half of them are never trained."""

    def usage(make):
        start = torch.tensor([[0.3, 2.0], [0.7, 2.0], [2.0, 0.3], [2.0, 0.7]])[:, None]  # [K, 1, 2]
        weight = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.Adam([weight], lr=0.02)
        balance = make([weight])
        balance.attach(optimizer)
        rng = torch.Generator().manual_seed(0)
        none = torch.zeros(64, 0, dtype=torch.int64)
        counts = torch.zeros(2, 4)
        for step in range(900):
            kind = torch.arange(64) % 2
            features = F.one_hot(kind, 2).float()[:, :, None, None]  # [B, 2, 1, 1]
            targets = torch.rand(64, 1, 1, 1, generator=rng)
            candidates = Candidates(weight, features)
            choice = samplers.nearest(targets, balance.penalty)(candidates, 0, none)
            codes = choice.codes
            optimizer.zero_grad()
            (candidates.render(codes) - targets).square().mean().backward()
            balance.observe(codes[:, None], evidence=[choice.evidence])
            optimizer.step()
            if step >= 800:
                nearest = samplers.nearest(targets)(candidates, 0, none).codes  # as encoding will choose
                counts.index_put_((kind, nearest), torch.ones(64), accumulate=True)
        return 4 * counts / counts.sum(1, keepdim=True), balance

    plain, balance = usage(SplitAndPrune)
    assert (plain == 0).sum() == 4 and not balance.num_splits.any()
    share, _ = usage(PrefixBalancing)
    assert share.min() > 0.5 and share.max() < 2


def run(weights, balance, steps):
    for step in steps:
        features, targets = batch(16, 3, 2, step)
        observed_(balance, weights, features, targets)
        balance.step_()


def test_resuming_is_never_having_stopped():
    whole = layers((6, 2, 3), (6, 2, 3))
    stopped = copy.deepcopy(whole)
    a, b = PrefixBalancing(whole, lr=0.05), PrefixBalancing(stopped, lr=0.05)
    run(whole, a, range(20))
    run(stopped, b, range(10))
    c = PrefixBalancing(stopped, lr=0.05)
    c.load_state_dict({name: t.clone() for name, t in b.state_dict().items()})
    run(stopped, c, range(10, 20))
    for x, y in zip([*whole, *a.state_dict().values()], [*stopped, *c.state_dict().values()], strict=True):
        assert torch.equal(x, y)
    assert a.forecasts[0].abs().max() > 0.1


def test_two_ranks_are_one_rank_of_the_same_batch():
    weights = [layers((6, 2, 3), (6, 2, 3)) for _ in range(3)]
    sums = {}
    ranks = [PrefixBalancing(w, reduce_fn=lambda t: t.copy_(sums[t.shape])) for w in weights[:2]]
    alone = PrefixBalancing(weights[2])
    for step in range(15):
        features, targets = batch(16, 3, 2, step)
        observed_(alone, weights[2], features, targets)
        alone.step_()
        for r, rank in enumerate(ranks):
            half = slice(8 * r, 8 * r + 8)
            observed_(rank, weights[r], features[half], targets[half])
        sums = {t[0].shape: t[0] + t[1] for t in zip(*((b.seen, b.flat.grad) for b in ranks), strict=True)}
        for rank in ranks:
            rank.step_()
    states = [[*w, *b.state_dict().values()] for w, b in zip(weights, [*ranks, alone], strict=True)]
    for a, b, c in zip(*states, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, atol=1e-5, rtol=1e-4)


def test_what_was_not_asked_cannot_be_observed():
    weights = layers((4, 1, 2))
    with pytest.raises(ValueError, match='its penalty was part of'):
        PrefixBalancing(weights).observe(torch.zeros(3, 1, dtype=torch.long))
    with pytest.raises(ValueError, match='grid=0'):
        PrefixBalancing(weights, grid=0)
