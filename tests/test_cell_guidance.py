"""Guides at layers that choose per cell: sweeps against brute force in float64, proposals against what guides see."""

import itertools

import pytest
import torch

from ddn_networks import DDN, black_boxes, guided_sampling, guides, pixel_maps, proposals, sweeps
from ddn_networks.candidates import Candidates
from ddn_networks.cell_guidance import CellGuidance
from ddn_networks.guided_sampling import Guidance, by_distance, temperature, top_k
from ddn_networks.guides import Guide
from ddn_networks.sweeps import Crossing, Fixed


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=gen(seed)) * 2 - 1


def family(B=2, K=4, C=3, features=5, size=(8, 12), grid=(2, 3), seed=0, base=True) -> Candidates:
    rng = gen(seed)
    weight = torch.randn(K, C, features, generator=rng) / features**0.5
    x = torch.randn(B, features, *size, generator=rng)
    return Candidates(weight, x, uniform(B, C, *size, seed=seed + 1) if base else None, grid=grid)


def double(c: Candidates) -> Candidates:
    return Candidates(c.weight.double(), c.features.double(), None if c.base is None else c.base.double(), grid=c.grid)


CROSSING = {  # pictures of 16x24 pixels
    'superres coarse': lambda x: guides.superres(pixel_maps.box(x, (2, 2))),
    'superres 1x1': lambda x: guides.superres(pixel_maps.box(x, (1, 1))),
    'superres that divides nothing': lambda x: guides.superres(pixel_maps.box(x, (3, 5))),
    'superres finer than the cells': lambda x: guides.superres(pixel_maps.box(x, (5, 7))),
    'blur': lambda x: guides.blur(x, 1.5),
    'wide blur': lambda x: guides.blur(x, 9.0),
}
SHAPES = [((8, 12), (2, 3)), ((8, 12), (4, 6)), ((8, 12), (8, 12)), ((8, 12), (1, 4)), ((6, 10), (3, 5))]


def crossing(make, candidates: Candidates) -> Crossing:
    guide = make(uniform(1, candidates.shape[1], 16, 24, seed=5))
    comparison = guide.compared(candidates, 0)
    assert comparison.separable is not None
    return Crossing(candidates, comparison)


@pytest.mark.parametrize('size, grid', SHAPES)
@pytest.mark.parametrize('name', CROSSING)
def test_distances_of_a_cell_are_those_of_the_whole_picture(name, size, grid):
    candidates = family(size=size, grid=grid, base=grid != (1, 4))
    n, K = candidates.num_cells, candidates.num_nodes
    guide = CROSSING[name](uniform(1, 3, 16, 24, seed=5))
    comparison = guide.compared(candidates, 0)
    if comparison.separable is None:
        assert 'superres' in name  # whose blocks lie within the cells
        return
    term = Crossing(candidates, comparison)
    picture = sweeps.of_codes(candidates, torch.randint(K, (2, n), generator=gen(1)))
    torch.testing.assert_close(picture.image(candidates), candidates.render(picture.codes), atol=1e-5, rtol=0)
    chosen = torch.randperm(n, generator=gen(2))[:3]
    found = term.distances(picture, chosen)
    exact = double(candidates)
    for i, k in itertools.product(range(len(chosen)), range(K)):
        codes = picture.codes.clone()
        codes[:, chosen[i]] = k
        want = guide.of_pictures(exact.render(codes), 0) * n
        torch.testing.assert_close(found[:, k, i].double(), want.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size, grid', SHAPES)
@pytest.mark.parametrize('name', CROSSING)
def test_cells_of_a_group_do_not_meet(name, size, grid):
    candidates = family(size=size, grid=grid)
    guide = CROSSING[name](uniform(1, 3, 16, 24, seed=5))
    comparison = guide.compared(candidates, 0)
    terms = [] if comparison.separable is None else [Crossing(candidates, comparison)]
    apart = sweeps.groups(candidates, terms)
    assert sorted(torch.cat(apart).tolist()) == list(range(candidates.num_cells))
    if not terms:
        assert len(apart) == 1
        return
    changed = []
    for cell in range(candidates.num_cells):
        codes = torch.zeros(1, candidates.num_cells, dtype=torch.int64)
        codes[0, cell] = 1
        one = Candidates(torch.stack([torch.zeros(1, 1), torch.ones(1, 1)]), torch.ones(1, 1, *size), grid=grid)
        changed.append(comparison.pixels(one.render(codes))[0].flatten() > 0)
    for cells in apart:
        for a, b in itertools.combinations(cells.tolist(), 2):
            assert not (changed[a] & changed[b]).any()
    if name == 'superres coarse' and grid == (4, 6):
        assert len(apart) == 6  # blocks of 2x3 cells


def argmin(distances, cells, left):
    return distances[0].argmin(1)


@pytest.mark.parametrize('name', CROSSING)
def test_a_sweep_never_raises_the_distance(name):
    candidates = family(B=4, K=6, size=(8, 12), grid=(4, 6))
    term = crossing(CROSSING[name], candidates)
    guide = CROSSING[name](uniform(1, 3, 16, 24, seed=5))
    picture = sweeps.of_codes(candidates, torch.randint(6, (4, 24), generator=gen(1)))
    last = guide.of_pictures(picture.image(candidates), 0)
    first = last
    for _ in range(3):
        picture = sweeps.sweep(candidates, [term], argmin, picture, 1)
        now = guide.of_pictures(candidates.render(picture.codes), 0)
        assert (now <= last + 1e-5).all()
        last = now
    assert (last < 0.9 * first).all()


@pytest.mark.parametrize('name, at_least', [
    ('superres that divides nothing', 6), ('blur', 6), ('wide blur', 5), ('superres 1x1', 2),  # 3 values of 4 cells
])  # fmt: skip
def test_sweeps_end_where_no_cell_improves_and_mostly_in_the_optimum(name, at_least):
    """Brute force over all codes, in float64, of 8 layers."""
    best_found = 0
    for seed in range(8):
        candidates = family(B=1, K=3, size=(8, 12), grid=(2, 2), seed=seed)
        guide = CROSSING[name](uniform(1, 3, 16, 24, seed=5))
        term = Crossing(candidates, guide.compared(candidates, 0))
        found = sweeps.sweep(candidates, [term], argmin, sweeps.mean(candidates, torch.full((1, 3, 4), 1 / 3)), 20)
        every = torch.cartesian_prod(*[torch.arange(3)] * 4)
        exact = double(candidates)
        many = Candidates(exact.weight, exact.features.expand(81, -1, -1, -1), exact.base.expand(81, -1, -1, -1),
                          grid=(2, 2))  # fmt: skip
        distances = guide.of_pictures(many.render(every), 0)
        at = (every == found.codes).all(1)
        neighbours = (every != found.codes).sum(1) <= 1
        assert distances[at] <= distances[neighbours].min() + 1e-6
        best_found += int(distances[at] <= distances.min() + 1e-6)
    assert best_found >= at_least


@pytest.mark.parametrize('choose', [top_k(1), top_k(2), temperature(0.05)])
def test_one_cell_chooses_as_a_layer_without_cells(choose):
    candidates = family(B=3, K=6, grid=(1, 1))
    for name, make in {**CROSSING, 'l2': guides.l2}.items():
        guidance = Guidance([make(uniform(1, 3, 16, 24, seed=5))], choose)
        chance = guided_sampling.chance_table([6], range(3))
        today = guided_sampling.sampler(guidance, chance, (8, 12))(candidates, 0, torch.zeros(3, 0, dtype=torch.int64))
        answers = CellGuidance(guidance, candidates, 0, (8, 12), None)
        found = answers.answer(chance.choice[:, 0], chance.ties[:, 0], chance.streams)
        assert torch.equal(found.codes, today.codes), name
    with_a_cell = crossing_of_one_cell(candidates)
    torch.testing.assert_close(with_a_cell[0], with_a_cell[1], rtol=1e-4, atol=1e-5)


def crossing_of_one_cell(candidates: Candidates) -> tuple[torch.Tensor, torch.Tensor]:
    guide = guides.superres(uniform(1, 3, 3, 5, seed=5))
    whole = sweeps.mean(candidates, torch.full((3, 6, 1), 1 / 6))
    term = Crossing(candidates, guide.compared(candidates, 0)._replace(
        separable=(pixel_maps.box_matrix(8, 3), pixel_maps.box_matrix(12, 5))))  # fmt: skip
    return term.distances(whole, torch.arange(1))[:, :, 0], guide(candidates, 0)


def test_the_mean_picture_is_the_mean_of_all_pictures():
    candidates = family(K=3, grid=(1, 2))
    p = torch.rand(2, 3, 2, generator=gen(3)).softmax(1)
    total = 0
    for a, b in itertools.product(range(3), range(3)):
        weight = (p[:, a, 0] * p[:, b, 1])[:, None, None, None]
        total = total + weight * candidates.render(torch.tensor([[a, b], [a, b]]))
    torch.testing.assert_close(sweeps.mean(candidates, p).image(candidates), total, atol=1e-5, rtol=0)


# Whole networks.


def tiny(**kwargs) -> DDN:
    """12x8 pixels; layers of 1, 6 and 24 cells."""
    torch.manual_seed(0)
    net = DDN((12, 8), 3, [8, 8, 8], [1, 1, 1], [5, 4, 4], grids=[1, (3, 2), (6, 4)], **kwargs).eval()
    for ddl in net.ddls:
        ddl.weight.data.mul_(2)
    return net


TARGET = uniform(1, 3, 12, 8, seed=4)
BY_SWEEPS = [
    guides.superres(pixel_maps.box(TARGET, (3, 2))), guides.superres(pixel_maps.box(TARGET, (2, 1))),
    guides.blur(TARGET, 1.0),
]  # fmt: skip
BY_PROPOSALS = [
    guides.l1(TARGET), guides.posterize(TARGET, 2), guides.edges(TARGET),
    black_boxes.python(lambda x: x[:, 0].mean((1, 2))), black_boxes.style(lambda x: x, TARGET),
    black_boxes.perceptual(lambda x: x, TARGET), black_boxes.classifier(lambda x: x.flatten(1)[:, :4] * 9, 2),
    Guide('user', lambda c, layer: c.distances(pixel_maps.fit(TARGET, c.shape[2:]).expand(c.shape))),
]  # fmt: skip


@pytest.mark.parametrize('guide', [*BY_SWEEPS, *BY_PROPOSALS], ids=lambda guide: guide.name)
def test_every_guide_guides_a_network_with_cells(guide):
    net = tiny()
    free = guide.of_pictures(net.sample(8)[0], 2).mean()
    for choose in (None, top_k(1), temperature(1e-3)):
        images, codes = net.sample(8, guide=Guidance([guide], choose))
        torch.testing.assert_close(net.decode(codes), images, atol=1e-5, rtol=0)
        assert guide.of_pictures(images, 2).mean() < free - 0.05 * free.abs()
    away, _ = net.sample(8, guide=guide._replace(weight=-1.0))
    assert guide.of_pictures(away, 2).mean() > free


@pytest.mark.parametrize('every', [[BY_SWEEPS[0]], [BY_SWEEPS[2], guides.l2(TARGET)], [BY_PROPOSALS[2]],
                                   [BY_PROPOSALS[3], BY_SWEEPS[1], guides.l2(TARGET)]])  # fmt: skip
def test_a_seed_is_one_image_at_any_batch_size(every):
    net, guidance = tiny(), Guidance(every, proposals=2)
    images, codes = net.sample(5, seed=20, guide=guidance)
    assert len(codes.unique(dim=0)) == 5
    for first, last in ((0, 1), (1, 3), (3, 5)):
        some, these = net.sample(seeds=range(20 + first, 20 + last), guide=guidance)
        assert torch.equal(these, codes[first:last])
        torch.testing.assert_close(some, images[first:last], atol=1e-5, rtol=0)


def test_a_second_sweep_helps_at_most_layers():
    net, guide = tiny(), BY_SWEEPS[2]
    found = []
    for num in (1, 2):
        images, _ = net.sample(16, guide=Guidance([guide], top_k(1), sweeps=num))
        found.append(guide.of_pictures(images, 2).mean())
    assert found[1] < found[0]


def test_several_guides_by_their_weights():
    net, other = tiny(), uniform(1, 3, 12, 8, seed=8)
    first, second = BY_SWEEPS[0], guides.l2(other)
    distances = []
    for weight in (0.02, 0.5, 0.98):
        both = [first._replace(weight=weight), second._replace(weight=1 - weight)]
        for combine in (guided_sampling.by_rank, by_distance):
            images, _ = net.sample(8, guide=Guidance(both, top_k(1), combine))
            distances.append([guide.of_pictures(images, 2).mean().item() for guide in both])
    for i in (0, 1):
        assert distances[0 + i][0] > distances[2 + i][0] > distances[4 + i][0] - 1e-3
        assert distances[0 + i][1] < distances[2 + i][1] < distances[4 + i][1]
    nothing = [Guide('nothing', lambda c, layer: torch.zeros(c.shape[0], c.num_nodes)), guides.l2(TARGET)]
    near = guides.l2(TARGET).of_pictures(net.sample(8, guide=nothing)[0], 2).mean()
    assert near < 0.6 * guides.l2(TARGET).of_pictures(net.sample(8)[0], 2).mean()


def test_layers_that_ask_nothing_keep_the_code_of_the_seed():
    net = tiny()
    free = net.sample(4, seed=3)[1]
    for guide in (BY_SWEEPS[0], BY_PROPOSALS[2]):
        codes = net.sample(4, seed=3, guide=Guidance([guide], layers=(1, 1)))[1]
        assert torch.equal(codes[:, :1], free[:, :1]) and torch.equal(codes[:, 7:], free[:, 7:])
        assert not torch.equal(codes[:, 1:7], free[:, 1:7])


def test_infinite_is_never_in_proposals_and_sweeps():
    net = tiny()

    def dark(c, layer):
        images = torch.cat([x for _, x in c.chunks(9)], 1)
        return torch.where(images.mean((2, 3, 4)) > 0, torch.inf, 0.0)

    images, _ = net.sample(16, guide=Guidance([Guide('dark', dark)], proposals=32))
    assert (images.mean((1, 2, 3)) <= 1e-6).float().mean() > 0.8  # where M pictures hold one
    nothing = Guide('nothing', lambda c, layer: torch.full((c.shape[0], c.num_nodes), torch.inf))
    assert torch.equal(net.sample(2, guide=nothing)[0][0], net.sample(1, guide=nothing)[0][0])  # and is ignored


# Proposals.


def test_quarters():
    assert proposals.quarters((1, 1)) == []
    assert proposals.quarters((1, 3)) == [[0, 1], [2]]
    assert proposals.quarters((2, 2)) == [[0], [1], [2], [3]]
    assert [len(q) for q in proposals.quarters((8, 6))] == [12] * 4
    for grid in ((3, 2), (5, 4), (1, 7)):
        cells = sorted(sum(proposals.quarters(grid), []))
        assert cells == list(range(grid[0] * grid[1]))


@pytest.mark.parametrize('M', [1, 3, 8])
def test_guides_see_whole_pictures_at_the_networks_resolution(M):
    net, seen = tiny(), []
    bright = black_boxes.python(lambda x: (seen.append(x.clone()), x.mean((1, 2, 3)))[1])
    images, codes = net.sample(2, guide=Guidance([bright], top_k(1), proposals=M, layers=(1, 2)))
    assert {tuple(x.shape[1:]) for x in seen} == {(3, 12, 8)}
    assert sum(map(len, seen)) == 2 * 2 * 5 * M  # images, layers, whole and four quarters
    last = torch.cat(seen)[-2 * M :].unflatten(0, (2, M))
    best = last.mean((2, 3, 4)).argmax(1)
    torch.testing.assert_close(last[torch.arange(2), best], images.clamp(-1, 1), atol=1e-5, rtol=0)
    small = torch.cat(seen)[: 2 * M].unflatten(0, (2, M))  # of the layer before, enlarged as a whole
    partial = net(guided_sampling.samplers.given(codes), 2, keep=True).selected[1]
    shown = [x.unflatten(0, (2, M)) for x in seen[:5]]
    enlarged = pixel_maps.upsample(partial, (12, 8)).clamp(-1, 1)
    assert min((x[0] - enlarged[0]).abs().amax((1, 2, 3)).min() for x in shown) < 1e-5 and small.shape[1] == M


def test_more_proposals_guide_better():
    net, guide = tiny(), BY_PROPOSALS[2]
    found = []
    for M in (1, 4, 32):
        images, _ = net.sample(24, guide=Guidance([guide], top_k(1), proposals=M, layers=(1, 2)))
        found.append(guide.of_pictures(images, 2).mean().item())
    assert found[0] > found[1] > found[2]
    free = guide.of_pictures(net.sample(24)[0], 2).mean().item()
    assert found[0] == pytest.approx(free, abs=0.05)  # one proposal is chance


@pytest.mark.parametrize('arguments, says', [
    ({'proposals': 0}, 'proposals and sweeps are at least 1, not 0 and 2'),
    ({'sweeps': 0}, 'not 16 and 0'),
    ({'prior_weight': -1.0}, 'prior_weight is one number of at least 0, or one for each of 1 guides, not -1.0'),
    ({'prior_weight': [1.0, 1.0]}, 'or one for each of 1 guides'),
    ({'prior_weight': 1.0}, 'this network has none'),
    ({'beam': 2}, 'a beam of 2 keeps whole images, and layer 1 chooses per cell: use a beam of 1, or guide only'),
])  # fmt: skip
def test_senseless_guidance(arguments, says):
    with pytest.raises(ValueError, match=says):
        tiny().sample(1, guide=Guidance([guides.l2(TARGET)], **arguments))


def test_kept_codes_are_held_while_others_sweep():
    net = tiny()
    partial = torch.full((1, 31), -1)
    partial[0, 7:19], partial[0, 2] = 1, 3
    for guide in (guides.l2(TARGET), BY_SWEEPS[0], BY_PROPOSALS[2]):
        output = guided_sampling.sample(net, Guidance([guide], top_k(1)), range(3), partial=partial.expand(3, -1))
        assert (output.codes[:, 7:19] == 1).all() and (output.codes[:, 2] == 3).all()
        assert len(output.codes[:, 19:].unique()) > 1
    whole = partial.clone()
    whole[0, 0], whole[0, 1:7] = 2, 0
    codes = guided_sampling.sample(net, BY_SWEEPS[0], range(3), partial=whole.expand(3, -1)).codes
    assert torch.equal(codes[:, :7], torch.tensor([[2, *[0] * 6]] * 3))


def test_fixed_terms_are_exact_in_one_pass():
    candidates = family(K=5, grid=(2, 3))
    distances = guides.l2(uniform(1, 3, 8, 12))(candidates, 0)
    begin = sweeps.of_codes(candidates, torch.zeros(2, 6, dtype=torch.int64))
    passes = []

    def decide(found, cells, left):
        passes.append((len(cells), left))
        return argmin(found, cells, left)

    assert torch.equal(sweeps.sweep(candidates, [Fixed(distances)], decide, begin, 5).codes, distances.argmin(1))
    assert passes == [(6, 0)]
    some = sweeps.sweep(candidates, [Fixed(distances)], decide, begin, 5, torch.tensor([1, 4])).codes
    assert torch.equal(some[:, [1, 4]], distances.argmin(1)[:, [1, 4]]) and not some[:, [0, 2, 3, 5]].any()
