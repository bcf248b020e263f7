"""Split-and-Prune and its relatives, against Algorithm 1 in plain Python."""

import copy
import itertools
import math

import pytest
import torch

from ddn_networks import LossFreeBalancing, SplitAndPrune, UsageCounter, samplers
from ddn_networks.ddl import DDL
from ddn_networks.split_prune import Plan, apply_to_counts_, make_plan, row_moves


def oracle(counts: list[float], split_at=2.0, prune_at=0.5, pairs=1, confidence=0.0) -> list[tuple[int, int]]:
    """Algorithm 1, lines 11 to 19, on one weight: changes ``counts``, returns (k_max, k_min) of each pair moved."""
    K, n = len(counts), sum(counts)
    order = sorted(range(K), key=lambda k: counts[k])
    before = list(counts)
    moved = []
    for j in range(min(pairs, max(1, K // 2))):
        k_max, k_min = order[K - 1 - j], order[j]
        high = split_at * n / K + confidence * math.sqrt(split_at * n / K)
        low = prune_at * n / K - confidence * math.sqrt(prune_at * n / K)
        if (before[k_max] > high or before[k_min] < low) and before[k_max] > 2 * before[k_min]:
            counts[k_max] = counts[k_min] = before[k_max] / 2
            moved.append((k_max, k_min))
    return moved


def distinct_counts(W: int, K: int, seed: int, scale: float) -> torch.Tensor:
    """Random counts [W, K] without ties, so that argmax and argmin are unique."""
    rng = torch.Generator().manual_seed(seed)
    level = torch.rand(W, 1, generator=rng, dtype=torch.float64) ** 2 * 4  # from skewed to even
    counts = ((torch.rand(W, K, generator=rng, dtype=torch.float64) ** 3 + level) * scale).floor()
    return counts + torch.rand(W, K, generator=rng, dtype=torch.float64) * 0.5


@pytest.mark.parametrize('options', [{}, {'split_at': 1.3, 'prune_at': 0.9}, {'pairs': 3}, {'confidence': 2.0},
                                     {'pairs': 1000, 'confidence': 1.0}])
@pytest.mark.parametrize('K', [2, 3, 8, 65])
def test_plans_and_counts_are_those_of_algorithm_1(K, options):
    counts = distinct_counts(200, K, seed=K, scale=40)
    want = counts.tolist()
    pairs = [oracle(row, **options) for row in want]
    plan = make_plan(counts, torch.full((200,), K), **options)
    apply_to_counts_(counts, plan)
    got = [
        [(s, p) for s, p, a in zip(*row, strict=True) if a]
        for row in zip(plan.split.tolist(), plan.prune.tolist(), plan.active.tolist(), strict=True)
    ]
    assert got == pairs
    assert any(pairs) and not all(pairs)  # the test has seen both
    torch.testing.assert_close(counts, torch.tensor(want, dtype=torch.float64), atol=0, rtol=0)


def test_the_guard_changes_nothing_in_algorithm_1():
    """With the paper's thresholds, whoever is split had more than twice the count of whoever is pruned."""
    for seed, K in itertools.product(range(20), (2, 3, 4, 9)):
        counts = (distinct_counts(50, K, seed, 6)).floor()  # many ties
        plan = make_plan(counts, torch.full((50,), K))
        n = counts.sum(1)
        literal = (counts.max(1).values > 2 * n / K) | (counts.min(1).values < 0.5 * n / K)
        assert torch.equal(plan.active[:, 0], literal)


def test_equal_counts_and_no_counts_move_nothing():
    for value in (0.0, 1.0, 7.0):
        assert not make_plan(torch.full((3, 5), value), torch.full((3,), 5), pairs=2).active.any()


def test_nodes_beyond_k_do_not_exist():
    counts = distinct_counts(4, 8, 1, 30)
    num_nodes = torch.tensor([2, 8, 3, 5])
    padded = counts.clone()
    for w, K in enumerate(num_nodes.tolist()):
        padded[w, K:] = 0
    for pairs in (1, 4):
        plan = make_plan(padded, num_nodes, pairs=pairs)
        moves = row_moves(plan)
        for w, K in enumerate(num_nodes.tolist()):
            alone = make_plan(counts[w : w + 1, :K], num_nodes[w : w + 1], pairs=pairs)
            n = alone.split.shape[1]
            for a, b in zip(plan, alone, strict=True):
                chosen = alone.active[0]
                assert torch.equal(a[w, :n][chosen], b[0][chosen])
            assert torch.equal(plan.active[w, :n], alone.active[0]) and not plan.active[w, n:].any()
            assert moves.source[w].max() < K and moves.prune[w].max() < K


@pytest.mark.parametrize('pairs', [1, 4])
def test_counts_are_conserved_as_the_algorithm_says(pairs):
    """Line 17: what the pruned node had leaves the total, and nothing else does."""
    counts = distinct_counts(100, 16, 5, 30)
    before = counts.clone()
    plan = make_plan(counts, torch.full((100,), 16), pairs=pairs)
    apply_to_counts_(counts, plan)
    lost = before.gather(1, plan.prune).where(plan.active, 0).sum(1)
    torch.testing.assert_close(counts.sum(1), before.sum(1) - lost)
    assert plan.active.any() and not plan.active.all()


def layer_weights_and_optimizer(shapes, seed=0):
    torch.manual_seed(seed)
    weights = [torch.nn.Parameter(torch.randn(s)) for s in shapes]
    optimizer = torch.optim.Adam(weights, lr=0.01)
    for _ in range(3):
        sum((w * torch.randn_like(w)).sum() for w in weights).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights, optimizer


SHAPES = [(2, 3, 4), (8, 1, 6), (5, 3, 4), (8, 3, 1)]


@pytest.mark.parametrize('pairs', [1, 3])
def test_one_plan_moves_weights_optimizer_and_averages(pairs):
    weights, optimizer = layer_weights_and_optimizer(SHAPES)
    averages = [[torch.randn_like(w) for w in weights] for _ in range(2)]
    balance = SplitAndPrune(weights, pairs=pairs)
    for a in averages:
        balance.follow(a)
    rows = [[w, *(optimizer.state[w][k] for k in ('exp_avg', 'exp_avg_sq')), *(a[i] for a in averages)]
            for i, w in enumerate(weights)]
    rng = torch.Generator().manual_seed(1)
    moved = 0
    for _ in range(20):
        codes = torch.stack([(torch.rand(30, generator=rng) ** 3 * len(w)).long() for w in weights], 1)
        before = [[t.detach().clone() for t in tensors] for tensors in rows]
        evidence = (balance.counts + 0).tolist()
        balance.observe(codes)
        for w, column in enumerate(codes.T.tolist()):
            for k in column:
                evidence[w][k] += 1
        plan = balance.step_(optimizer)
        for w in range(len(weights)):
            K = len(weights[w])
            active = plan.active[w]
            source = {p: s for s, p, a in zip(plan.split[w].tolist(), plan.prune[w].tolist(), active, strict=True) if a}
            moved += len(source)
            for old, new in zip(before[w], rows[w], strict=True):
                for k in range(K):
                    assert torch.equal(new[k], old[source.get(k, k)])  # copied exactly, or bit-equal
            halves = {k: evidence[w][s] / 2 for p, s in source.items() for k in (p, s)}
            want = [halves.get(k, evidence[w][k]) for k in range(K)]
            assert balance.counts[w, :K].tolist() == want and not balance.counts[w, K:].any()
    assert moved > 20 and balance.num_splits.sum() == moved


def test_steps_of_adam_are_not_moved():
    """Only states of the weight's shape are per row; Adam's step counter is not."""
    weights, optimizer = layer_weights_and_optimizer([(2, 1, 1)])
    balance = SplitAndPrune(weights)
    balance.observe(torch.zeros(10, 1, dtype=torch.long))
    assert balance.step_(optimizer).active.all()
    assert optimizer.state[weights[0]]['step'].item() == 3


def test_a_dead_node_is_reborn():
    weights, optimizer = layer_weights_and_optimizer([(4, 3, 2)])
    balance = SplitAndPrune(weights)
    balance.attach(optimizer)
    codes = torch.tensor([[0], [1], [2], [1]])  # never 3
    balance.observe(codes)
    optimizer.step()
    assert torch.equal(weights[0][3], weights[0][1])
    assert balance.counts.tolist() == [[1, 1, 1, 1]] and balance.num_splits.tolist() == [1]
    optimizer.step()  # nothing new, nothing to do
    assert balance.num_splits.tolist() == [1]


def test_chance_is_no_evidence():
    weights, _ = layer_weights_and_optimizer([(4, 1, 1), (4, 1, 1)])
    balance = UsageCounter(weights)
    balance.observe(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[False, True], [True, False]]))
    balance.step_()
    assert balance.counts.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_layers_that_share_a_weight_share_its_counts():
    """A recurrent network: codes per step, evidence per weight."""
    weights, _ = layer_weights_and_optimizer([(3, 1, 2), (2, 1, 2)])
    balance = SplitAndPrune(weights, ddl_of_layer=[0, 1, 0, 0])
    balance.observe(torch.tensor([[0, 1, 1, 0], [0, 0, 1, 0]]))
    plan = balance.step_()
    assert plan.active[:, 0].tolist() == [True, False]  # node 2 of the shared weight is dead
    assert (plan.split[0].item(), plan.prune[0].item()) == (0, 2)
    assert balance.counts.tolist() == [[2, 2, 2], [1, 1, 0]]


def test_evidence_that_forgets():
    weights, _ = layer_weights_and_optimizer([(4, 1, 1)])
    balance = SplitAndPrune(weights, memory=10)
    for _ in range(100):
        balance.observe(torch.arange(4)[:, None])
        balance.step_()
    torch.testing.assert_close(balance.counts, torch.full((1, 4), 10.0, dtype=torch.float64))
    eternal = SplitAndPrune(weights)
    for b in (balance, eternal):
        if b is eternal:
            b.counts.fill_(100)
        steps = 0
        while not b.step_().active.any():  # node 3 dies
            b.observe(torch.arange(3)[:, None])
            steps += 1
        b.steps = steps
    assert balance.steps < eternal.steps / 5


def test_bad_options_are_named():
    weights, _ = layer_weights_and_optimizer([(4, 1, 1)])
    for bad in ({'pairs': 0}, {'memory': 0}, {'prune_at': 3.0}, {'confidence': -5}):
        with pytest.raises(ValueError, match=f'{next(iter(bad))}={next(iter(bad.values()))}'):
            SplitAndPrune(weights, **bad)
    with pytest.raises(ValueError, match=r'\[4, 1, 1\] has the shape \[4, 1, 2\]'):
        SplitAndPrune(weights).follow([torch.zeros(4, 1, 2)])


# --------------------------------------------------------------------------------------------- training one small layer


def mixture(n: int, rng: torch.Generator) -> torch.Tensor:
    """A skewed bimodal 1-D density as in Section 3.1: a large thin peak at -1, a small one at 1. [n, 1, 1, 1]"""
    peak = torch.where(torch.rand(n, generator=rng) < 0.85, -1.0, 1.0)
    return (peak + 0.1 * torch.randn(n, generator=rng))[:, None, None, None]


def train_layer(make_balance, K=16, steps=400, batch=64) -> torch.Tensor:
    """K constants on a line; the share of the data nearest to each, of 20,000 new samples, in units of 1/K. [K]"""
    rng = torch.Generator().manual_seed(0)
    ddl, feature = DDL(1, K, 1, leak_choice=False), torch.ones(1, 1, 1, 1)
    weight = ddl.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=rng))
    optimizer = torch.optim.SGD([weight], lr=0.2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, steps)
    balance = make_balance([weight])
    balance.attach(optimizer)
    for _ in range(steps):
        x = mixture(batch, rng)
        out = ddl(feature.expand(batch, -1, -1, -1), None, samplers.nearest(x, balance.penalty), 0)
        balance.observe(out.choice.codes[:, None], None, [out.choice.distances])
        optimizer.zero_grad()
        (out.image - x).square().mean().backward()
        optimizer.step()
        schedule.step()
    codes = (mixture(20000, rng).view(-1, 1) - weight.detach().view(K)).abs().argmin(1)
    return torch.bincount(codes, minlength=K) / 20000 * K


def test_a_layer_on_a_skewed_mixture_ends_balanced():
    share = train_layer(SplitAndPrune)
    assert share.min() > 0.5 and share.max() < 2.0


def test_a_layer_whose_evidence_forgets_stays_balanced():
    """The counts of Algorithm 1 grow stale: with a memory of 50 matches a node, training longer does no harm."""
    share = train_layer(lambda w: SplitAndPrune(w, memory=50), steps=800)
    assert share.min() > 0.6 and share.max() < 1.6


def test_a_layer_balanced_by_a_bias_has_no_dead_node():
    share = train_layer(lambda w: LossFreeBalancing(w, rate=0.004), steps=800)
    assert share.min() > 0 and share.max() < 2.0


def test_without_balancing_nodes_die():
    """The density shift and the dead nodes of Section 3.1: what the tests above are about."""
    share = train_layer(UsageCounter)
    assert share.min() == 0 and share.max() > 2.0


# ------------------------------------------------------------------------------------------------------------- the bias


def observed(balance, columns: list[list[int]], spread: float = 1.0) -> None:
    """Observe codes, with distances that have the standard deviation ``spread`` over the nodes."""
    codes = torch.tensor(columns)
    distances = []
    for w in balance.ddl_of_layer:
        d = torch.arange(float(len(balance.weights[w]))).expand(len(codes), -1)
        distances.append(d / d.std(1, keepdim=True) * spread)
    balance.observe(codes, None, distances)


def test_the_bias_rises_with_the_load():
    weights, _ = layer_weights_and_optimizer([(4, 1, 1), (2, 1, 1)])
    before = [w.detach().clone() for w in weights]
    balance = LossFreeBalancing(weights, rate=0.5)
    assert [len(b) for b in balance.bias] == [4, 2] and not any(b.any() for b in balance.bias)
    observed(balance, [[0, 1], [0, 1], [0, 0], [2, 1]], spread=2.0)
    balance.step_()
    before_idle = balance.bias[0].clone()
    balance.step_()  # nothing seen, nothing moved
    torch.testing.assert_close(balance.bias[0], before_idle)
    torch.testing.assert_close(balance.bias[0], torch.tensor([2.0, -1, 0, -1]))  # rate x unit x (c K / n - 1)
    torch.testing.assert_close(balance.bias[1], torch.tensor([-0.5, 0.5]))
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))  # no node is thrown away
    assert balance.num_splits.tolist() == [0, 0]


def test_the_bias_does_not_depend_on_the_scale_of_distances():
    weights, _ = layer_weights_and_optimizer([(4, 1, 1)])
    small, large = (LossFreeBalancing(weights, memory=5) for _ in range(2))
    for step in range(40):
        codes = [[step % 3], [0]]
        observed(small, codes, spread=1e-3)
        observed(large, codes, spread=1e3)
        small.step_()
        large.step_()
    torch.testing.assert_close(small.bias[0] * 1e6, large.bias[0])
    for _ in range(100):  # distances shrink in training, and the bias with them
        observed(large, [[0], [1], [2], [3]], spread=1e-3)
        large.step_()
    torch.testing.assert_close(large.bias[0], small.bias[0], rtol=1e-3, atol=0)


def test_distances_that_are_not_finite_leave_the_unit_alone():
    weights, _ = layer_weights_and_optimizer([(4, 1, 1), (2, 1, 1)])
    with_bad, without = (LossFreeBalancing(weights, rate=0.5) for _ in range(2))
    codes = torch.tensor([[0, 1], [2, 1], [0, 0]])
    distances = [torch.rand(3, k, generator=torch.Generator().manual_seed(k)) for k in (4, 2)]
    bad_values = float('nan'), float('inf'), torch.finfo(torch.float32).max  # the spread of the last is infinite
    for balance, bad in ((with_bad, bad_values), (without, ())):
        balance.observe(codes, None, distances)
        for value in bad:
            broken = [torch.tensor([-value, value]).repeat(3, k // 2) for k in (4, 2)]
            balance.observe(codes, torch.ones_like(codes, dtype=torch.bool), broken)
        balance.step_()
    assert all(torch.equal(a, b) and a.any() for a, b in zip(with_bad.bias, without.bias, strict=True))


def test_without_a_finite_distance_there_is_no_bias():
    weights, _ = layer_weights_and_optimizer([(4, 1, 1)])
    balance = LossFreeBalancing(weights)
    balance.observe(torch.zeros(3, 1, dtype=torch.long), None, [torch.full((3, 4), float('inf'))])
    balance.step_()
    assert torch.equal(balance.bias[0], torch.zeros(4))


def test_the_bias_needs_distances():
    weights, _ = layer_weights_and_optimizer([(4, 1, 1)])
    with pytest.raises(ValueError, match='keep=True'):
        LossFreeBalancing(weights).observe(torch.zeros(1, 1, dtype=torch.long))
    for option, value in {'rate': -0.1, 'memory': 0, 'limit': -1}.items():
        with pytest.raises(ValueError, match=f'{option}={value}'):
            LossFreeBalancing(weights, **{option: value})


# ---------------------------------------------------------------------------------------------- state and several ranks

BALANCES = [UsageCounter, SplitAndPrune, lambda w, **kw: SplitAndPrune(w, pairs=2, memory=8, confidence=0.5, **kw),
            LossFreeBalancing]


@pytest.mark.parametrize('make', BALANCES)
def test_resuming_is_never_having_stopped(make):
    rng = torch.Generator().manual_seed(4)
    batches = [(torch.rand(16, 2, generator=rng) ** 2 * 6).long().tolist() for _ in range(30)]

    def run(weights, balance, part):
        for codes in part:
            observed(balance, codes)
            balance.step_()

    weights, _ = layer_weights_and_optimizer([(6, 1, 2), (6, 1, 2)])
    whole, stopped = copy.deepcopy(weights), copy.deepcopy(weights)
    a, b = make(whole), make(stopped)
    run(whole, a, batches)
    run(stopped, b, batches[:15])
    observed(b, batches[15])  # stopped between two rounds of one step
    state = {name: t.clone() for name, t in b.state_dict().items()}
    c = make(stopped)
    c.load_state_dict(state)
    c.step_()
    run(stopped, c, batches[16:])
    for x, y in zip([*whole, *a.state_dict().values()], [*stopped, *c.state_dict().values()], strict=True):
        assert torch.equal(x, y)
    if isinstance(a, LossFreeBalancing):
        assert torch.equal(a.bias[1], c.bias[1]) and a.bias[1].any()


def test_a_state_of_another_way_or_shape_is_refused():
    weights, _ = layer_weights_and_optimizer([(4, 1, 1)])
    with pytest.raises(ValueError, match='another way of balancing'):
        SplitAndPrune(weights).load_state_dict(LossFreeBalancing(weights).state_dict())
    other, _ = layer_weights_and_optimizer([(5, 1, 1)])
    with pytest.raises(ValueError, match=r'counts of a training state is \[1, 5\], not \[1, 4\]'):
        SplitAndPrune(weights).load_state_dict(SplitAndPrune(other).state_dict())


@pytest.mark.parametrize('make', BALANCES)
def test_two_ranks_are_one_rank_of_the_same_batch(make):
    """Each rank sees half of the batch; the reduction is the sum that an all-reduce would give."""
    rng = torch.Generator().manual_seed(5)
    totals = {}
    weights = [layer_weights_and_optimizer([(6, 1, 2), (6, 1, 2)])[0] for _ in range(3)]
    ranks = [make(w, reduce_fn=lambda t: t.copy_(totals['seen'])) for w in weights[:2]]
    alone = make(weights[2])
    for _ in range(20):
        codes = (torch.rand(32, 2, generator=rng) ** 2 * 6).long()
        observed(alone, codes.tolist())
        alone.step_()
        for rank, half in zip(ranks, codes.chunk(2), strict=True):
            observed(rank, half.tolist())
        totals['seen'] = sum(rank.seen for rank in ranks)
        for rank in ranks:
            rank.step_()
    states = [[*w, *b.state_dict().values()] for w, b in zip(weights, [*ranks, alone], strict=True)]
    for a, b, c in zip(*states, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_a_step_is_cheap_on_the_host():
    """Kernels of a step do not grow with K, and rows that do not move cost nothing where a plan can be read."""
    weights = [torch.nn.Parameter(torch.randn(16, 3, 4)) for _ in range(127)]
    balance = SplitAndPrune(weights)
    balance.observe(torch.arange(16)[:, None].expand(16, 127))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        balance.step_()
    assert sum(e.count for e in profile.key_averages()) < 127


def test_plans_are_tensors_of_one_shape():
    plan = make_plan(torch.rand(3, 7), torch.full((3,), 7), pairs=2)
    assert isinstance(plan, Plan) and {t.shape for t in plan} == {(3, 2)}
