"""Layers that choose per cell of a grid, against the slow obvious way: each cell as an image of its own, in float64."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from ddn_networks import (
    DDN,
    LossFreeBalancing,
    PrefixBalancing,
    RecurrentDDN,
    SplitAndPrune,
    UsageCounter,
    cells,
    closed_forms,
    guides,
    samplers,
)
from ddn_networks.candidates import Candidates, area_resize
from ddn_networks.ddl import DDL
from ddn_networks.guided_sampling import Guidance, by_distance, temperature, top_k

# B, K, C, F, H, W, grid
SHAPES = [
    (2, 3, 1, 4, 4, 4, (2, 2)),
    (1, 16, 3, 8, 8, 8, (8, 8)),
    (3, 5, 2, 6, 6, 4, (3, 2)),
    (2, 64, 3, 32, 16, 16, (8, 8)),
    (2, 512, 3, 24, 16, 16, (4, 4)),
    (1, 300, 3, 64, 32, 32, (8, 8)),
    (2, 7, 4, 10, 5, 9, (5, 3)),
    (2, 9, 3, 12, 12, 20, (1, 4)),
]


def make(B, K, C, features, H, W, grid, seed=0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(K, C, features, generator=rng) / features**0.5
    x, base = torch.randn(B, features, H, W, generator=rng), torch.randn(B, C, H, W, generator=rng)
    return Candidates(weight, x.to(dtype), base, grid=grid), torch.randn(B, C, H, W, generator=rng)


def slices(H: int, W: int, grid: tuple[int, int]) -> list[tuple[slice, slice]]:
    h, w = H // grid[0], W // grid[1]
    rows, columns = range(grid[0]), range(grid[1])
    return [(slice(r * h, r * h + h), slice(c * w, c * w + w)) for r, c in itertools.product(rows, columns)]


def rendered(c: Candidates) -> torch.Tensor:
    """[B, K, C, H, W] in float64."""
    images = torch.einsum('kcf,bfhw->bkchw', c.weight.double(), c.features.double())
    return images if c.base is None else images + c.base.double()[:, None]


def slow_distances(c: Candidates, target: torch.Tensor) -> torch.Tensor:
    error = (rendered(c) - target.double()[:, None]).square()
    parts = [error[..., y, x].mean((2, 3, 4)) for y, x in slices(*c.shape[2:], c.grid)]
    return torch.stack(parts, 2)  # [B, K, n]


def whole(parts: torch.Tensor, H: int, W: int, grid: tuple[int, int]) -> torch.Tensor:
    """The images [B, C, H, W] of which cell i is cut from image i of ``parts`` [B, n, C, H, W]."""
    image = torch.empty_like(parts[:, 0])
    for i, (y, x) in enumerate(slices(H, W, grid)):
        image[..., y, x] = parts[:, i, :, y, x]
    return image


@pytest.mark.parametrize('shape', SHAPES)
def test_cells_are_cut_row_by_row_and_put_together_again(shape):
    B, _, C, _, H, W, grid = shape
    images = torch.randn(B, C, H, W)
    cut = cells.to_cells(images, grid).unflatten(0, (B, -1))
    for i, (y, x) in enumerate(slices(H, W, grid)):
        assert torch.equal(cut[:, i], images[..., y, x])
    assert torch.equal(cells.from_cells(cut.flatten(0, 1), grid), images)
    last = images.to(memory_format=torch.channels_last)
    assert torch.equal(cells.to_cells(last, grid), cut.flatten(0, 1))
    strips = cells.to_strips(last, grid)
    assert strips.data_ptr() == last.data_ptr() and torch.equal(cells.to_strips(images, grid), strips)
    assert torch.equal(cells.from_strips(strips, grid, H), images)
    row = cut.permute(0, 1, 3, 2, 4).unflatten(1, grid).permute(0, 1, 3, 2, 4, 5)  # [B, g_h, h, g_w, C, w]
    assert torch.equal(strips[:, :, 0], row.flatten(0, 3))


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('last', [False, True])
def test_distances_are_those_of_the_rendered_cells(shape, dtype, last):
    c, target = make(*shape, dtype=dtype)
    if last:
        c = Candidates(c.weight, c.features.to(memory_format=torch.channels_last), c.base, grid=c.grid)
    found, want = c.distances(target), slow_distances(c, target)
    assert found.shape == want.shape and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('method', [*closed_forms.METHODS, 'half_gram'])
@pytest.mark.parametrize('shape', SHAPES)
def test_each_form_of_the_cells_distances(shape, method):
    c, target = make(*shape)
    features = cells.to_cells(c.features, c.grid).flatten(2)
    error = cells.to_cells(c.base - target, c.grid).flatten(2)
    forms = closed_forms.METHODS | {'half_gram': lambda weight, *of_rows: closed_forms.by_half_gram(weight)(*of_rows)}
    found = forms[method](c.weight, features, error).unflatten(0, (-1, c.num_cells)).transpose(1, 2)
    torch.testing.assert_close(found.double() / error[0].numel(), slow_distances(c, target), rtol=1e-4, atol=1e-5)


def test_many_cells_take_half_of_the_gram_matrices(monkeypatch):
    used = []
    half, render = closed_forms.by_half_gram, closed_forms.METHODS['render']
    monkeypatch.setattr(closed_forms, 'by_half_gram', lambda *args: used.append('half') or half(*args))
    monkeypatch.setitem(closed_forms.METHODS, 'render', lambda *args: used.append('render') or render(*args))
    for shape in ((4, 512, 3, 64, 64, 64, (8, 8)), (1, 16, 3, 64, 8, 8, (8, 8))):
        c, target = make(*shape)
        c.distances(target)
    assert used == ['half', 'render']  # 64 pixels a cell, one pixel a cell


@pytest.mark.parametrize('shape, method', [
    ((5, 40, 3, 8, 8, 8, (2, 2)), 'half_gram'), ((5, 6, 3, 8, 8, 8, (4, 8)), 'render'),
    ((3, 8, 1, 8, 8, 8, (1, 2)), 'feature_gram'),
])  # fmt: skip
def test_cells_a_few_images_at_a_time(shape, method, monkeypatch):
    """Slices of one image, and of all."""
    used = []
    for name in closed_forms.METHODS:
        form = closed_forms.METHODS[name]
        monkeypatch.setitem(closed_forms.METHODS, name, lambda *a, n=name, f=form: used.append((n, len(a[1]))) or f(*a))
    half = closed_forms.by_half_gram

    def by_half_gram(weight):
        form = half(weight)
        return lambda *of_rows: used.append(('half_gram', len(of_rows[0]))) or form(*of_rows)

    monkeypatch.setattr(closed_forms, 'by_half_gram', by_half_gram)
    c, target = make(*shape)
    B, n = shape[0], c.num_cells
    for limit, slice_sizes in ((2**18, [B * n]), (1, [4 * n, n] if method == 'half_gram' else [n] * B)):
        used.clear()
        monkeypatch.setattr(closed_forms, '_CPU_NUMBERS', limit)
        torch.testing.assert_close(c.distances(target).double(), slow_distances(c, target), rtol=1e-4, atol=1e-5)
        assert used == [(method, size) for size in slice_sizes]


@pytest.mark.parametrize('shape', SHAPES)
def test_a_rendered_choice_is_made_of_its_cells(shape):
    c, _ = make(*shape)
    codes = torch.randint(c.num_nodes, (c.shape[0], c.num_cells), generator=torch.Generator().manual_seed(3))
    rows = torch.arange(len(codes))[:, None]
    want = whole(rendered(c)[rows, codes], *c.shape[2:], c.grid)
    torch.testing.assert_close(c.render(codes).double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('leak_choice', [True, False])
@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('has_base', [True, False])
def test_a_layer_selects_leaks_and_feeds_per_cell_with_the_gradient_of_autograd(leak_choice, last, has_base):
    rng = torch.Generator().manual_seed(0)
    grid, B, C = (2, 3), 4, 3
    ddl = DDL(16, 5, C, leak_choice, grid).double()
    x = torch.randn(B, 16, 4, 6, generator=rng, dtype=torch.float64)
    x = (x.to(memory_format=torch.channels_last) if last else x).requires_grad_()
    base = torch.randn(B, C, 4, 6, generator=rng, dtype=torch.float64, requires_grad=True) if has_base else None
    codes = torch.randint(5, (B, 6), generator=rng)
    made = ddl(x, base, samplers.given(codes), 0, next_input=True)
    half = ddl.weight.shape[2]

    def slow(features: torch.Tensor) -> torch.Tensor:
        every = torch.einsum('kcf,bfhw->bkchw', ddl.weight, features)
        parts = [every[torch.arange(B), codes[:, i]] for i in range(6)]
        masks = torch.zeros(6, 4, 6, dtype=torch.float64)
        for i, (sy, sx) in enumerate(slices(4, 6, grid)):
            masks[i, sy, sx] = 1
        return sum(part * mask for part, mask in zip(parts, masks, strict=True))

    image = slow(x[:, :half]) + (0 if base is None else base)
    leak = slow(x[:, half:]) if leak_choice else None
    fed = x + F.pad(image, (0, 0, 0, 0, 0, 16 - C))
    fed = fed if leak is None else fed + F.pad(leak, (0, 0, 0, 0, 16 - C, 0))
    pairs = [(made.image, image), (made.next_input, fed)] + ([(made.leak, leak)] if leak_choice else [])
    assert torch.equal(made.codes, codes) and (made.leak is None) == (not leak_choice)
    assert made.next_input.stride() == x.stride()  # convolutions round in another way in another layout
    inputs = [x, ddl.weight] + ([base] if has_base else [])
    gradients = []
    for which in (0, 1):
        loss = sum((pair[which] * (i + 1)).square().sum() for i, pair in enumerate(pairs))
        gradients.append(torch.autograd.grad(loss, inputs))
    for a, b in [*pairs, *zip(*gradients, strict=True)]:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        again = ddl(x.detach().clone(), base, samplers.given(codes), 0, next_input=True)
    torch.testing.assert_close(again.next_input, fed)
    torch.testing.assert_close(again.image, image)


def networks() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    nets = {
        'per scale': DDN(8, 1, [8, 8, 8], [1, 2, 2], [4, 3, 5], grids=[1, 2, 4]),
        'per layer': DDN((12, 8), 3, [8, 8], [2, 2], [4, 3], grids=[1, (3, 2), (2, 4), (6, 8)]),
        'odd': DDN((9, 15), 1, [8], [3], [4], grids=[1, 3, (9, 5)]),
        'recurrent': RecurrentDDN(8, 1, 5, 3, base_width=4, multipliers=[1, 2], num_blocks=1, features=8, grid=(2, 4)),
    }
    for net in nets.values():
        for block in net.blocks:
            torch.nn.init.normal_(block.conv1.weight, std=0.3)
    return nets


@pytest.mark.parametrize('name, cells_of_layers', [
    ('per scale', [1, 4, 4, 16, 16]), ('per layer', [1, 6, 8, 48]), ('odd', [1, 9, 45]), ('recurrent', [8, 8, 8]),
])  # fmt: skip
def test_what_a_latent_is(name, cells_of_layers):
    net = networks()[name].eval()
    D = sum(cells_of_layers)
    assert [spec.num_cells for spec in net.specs] == cells_of_layers and net.num_codes == D
    assert net.num_layers == len(cells_of_layers)
    assert [columns.stop - columns.start for columns in net.code_slices] == cells_of_layers
    assert net.code_slices[0].start == 0 and net.code_slices[-1].stop == D
    K = [k for k, n in zip(net.num_nodes, cells_of_layers, strict=True) for _ in range(n)]
    assert net.code_nodes == K and net.num_bits == pytest.approx(sum(map(math.log2, K)))
    images, codes = net.sample(5, seed=2)
    assert codes.shape == (5, D) and torch.equal(codes, samplers.uniform_codes(K, range(2, 7)))
    torch.testing.assert_close(net.decode(codes), images, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=rf'integers \[B, {D}\], not \[5, {net.num_layers}\]'):
        net.check_codes(codes[:, : net.num_layers])
    codes[3, -1] = 99
    last = f'layer {net.num_layers - 1}, cell {cells_of_layers[-1] - 1}'
    with pytest.raises(ValueError, match=f'image 3, {last}, is outside'):
        net.decode(codes)


@pytest.mark.parametrize('name', networks())
def test_decoding_what_was_encoded_is_what_the_pass_showed(name):
    net = networks()[name].eval()
    images = torch.rand(4, net.img_channels, *net.img_resolution) * 2 - 1
    with torch.no_grad():
        out = net(samplers.nearest(images), 4, keep=True)
    assert torch.equal(net.encode(images), out.codes)
    torch.testing.assert_close(net.decode(out.codes), out.images, atol=1e-5, rtol=0)
    for layer, (columns, distances) in enumerate(zip(net.code_slices, out.distances, strict=True)):
        chosen = out.codes[:, columns]
        found = distances.view(4, net.num_nodes[layer], -1)
        assert torch.equal(found.argmin(1), chosen)
        spec = net.specs[layer]
        error = (out.selected[layer] - area_resize(images, spec.size)).square()
        own = torch.stack([error[..., y, x].mean((1, 2, 3)) for y, x in slices(*spec.size, spec.grid)], 1)
        torch.testing.assert_close(found.gather(1, chosen[:, None])[:, 0], own, rtol=1e-4, atol=1e-5)


def test_a_code_of_the_last_layer_changes_its_cell_alone():
    net = networks()['per layer'].eval()
    images, codes = net.sample(1, seed=4)
    first = net.code_slices[-1].start
    for cell, (y, x) in enumerate(slices(12, 8, net.specs[-1].grid)):
        other = codes.clone()
        other[0, first + cell] = (other[0, first + cell] + 1) % 3
        changed = (net.decode(other) - images).abs().amax((0, 1)) > 1e-6
        inside = torch.zeros_like(changed)
        inside[y, x] = True
        assert changed[y, x].any() and not changed[~inside].any()


def test_prefixes_are_shared_up_to_the_first_layer_with_cells():
    net = networks()['per layer'].eval()
    passes = [[] for _ in net.blocks]
    for block, seen in zip(net.blocks, passes, strict=True):
        block.register_forward_pre_hook(lambda block, args, seen=seen: seen.append(len(args[0])))
    codes = samplers.uniform_codes(net.code_nodes, range(40))
    plain = net.decode(codes)
    shared = net.decode(codes, share_prefixes=True)
    torch.testing.assert_close(shared, plain, atol=1e-5, rtol=0)
    assert [seen[-1] for seen in passes] == [1, 4, 40, 40]  # the first layer chooses 1 of 4, the second has cells
    images = torch.rand(30, 3, 12, 8)
    assert torch.equal(net.encode(images, share_prefixes=True), net.encode(images))


def test_the_tree_has_the_layers_of_whole_images():
    net = networks()['per scale'].eval()
    codes = net.sample(3)[1]
    assert net.branches(codes[:, :0]).shape == (3, 4, 1, 2, 2)
    with pytest.raises(ValueError, match='the tree is of the first 1 layers, which have no cells'):
        net.branches(codes[:, :1])
    with pytest.raises(ValueError, match='of whole layers'):
        net.branches(codes[:, :3])


def test_a_search_over_all_codes_counts_cells():
    torch.manual_seed(0)
    net = DDN(4, 1, [8, 8], [1, 1], [2, 2], grids=[1, 2]).eval()
    torch.nn.init.normal_(net.blocks[1].conv1.weight, std=0.3)
    images = torch.rand(5, 1, 4, 4) * 2 - 1
    every = torch.cartesian_prod(*[torch.arange(2)] * 5)
    distances = (net.decode(every)[None] - images[:, None]).square().mean((2, 3, 4))
    assert torch.equal(net.encode(images, beam=2), every[distances.argmin(1)])


def test_chain_dropout_answers_cells():
    net = networks()['per scale'].eval()
    images = torch.rand(64, 1, 8, 8)
    table = samplers.chain_dropout_codes(net.code_nodes, 0.3, 64, torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = net(samplers.chain_dropout(samplers.nearest(images), table), 64)
    assert table.shape == out.codes.shape == out.dropped.shape == (64, 41)
    assert torch.equal(out.dropped, table >= 0) and torch.equal(out.codes[out.dropped], table[out.dropped])
    assert 0.25 < out.dropped.float().mean() < 0.35


@pytest.mark.parametrize('make_balance', [UsageCounter, SplitAndPrune, LossFreeBalancing])
def test_counts_are_over_all_cells(make_balance):
    net = networks()['per layer']
    balance = make_balance(net.node_weights, net.ddl_of_layer, num_cells=[s.num_cells for s in net.specs])
    images = torch.rand(6, 3, 12, 8)
    out = net(samplers.nearest(images, balance.penalty), 6, keep=True)
    dropped = torch.zeros_like(out.codes, dtype=torch.bool)
    dropped[:, ::3] = True
    balance.observe(out.codes, dropped, out.distances)
    seen = balance.seen[:, :4].clone()
    for layer, columns in enumerate(net.code_slices):
        counted = out.codes[:, columns][~dropped[:, columns]]
        assert torch.equal(seen[layer].long(), counted.bincount(minlength=4))
    if make_balance is LossFreeBalancing:
        spreads = [d.std(1).sum() for d in out.distances]
        torch.testing.assert_close(balance.seen[:, 4].float(), torch.stack(spreads).detach(), rtol=1e-5, atol=1e-6)
        assert balance.seen[:, 5].tolist() == [6.0 * spec.num_cells for spec in net.specs]


def test_a_bias_moves_the_choice_of_every_cell():
    net = networks()['per scale']
    balance = LossFreeBalancing(net.node_weights, net.ddl_of_layer, num_cells=[s.num_cells for s in net.specs])
    for bias in balance.bias:
        bias[1] = -1e6
    images = torch.rand(3, 1, 8, 8)
    out = net(samplers.nearest(images, balance.penalty), 3, keep=True)
    assert (out.codes == 1).all() and out.distances[-1].min() >= 0


def test_balancing_by_prefix_is_refused_with_cells():
    net = networks()['per scale']
    with pytest.raises(ValueError, match='with cells use Split-and-Prune'):
        PrefixBalancing(net.node_weights, net.ddl_of_layer, num_cells=[s.num_cells for s in net.specs])
    PrefixBalancing(net.node_weights, net.ddl_of_layer, num_cells=[1] * 5)


@pytest.mark.parametrize('grids, says', [
    ([1, 3, 4], r'grid of 3x3 cells does not divide a layer of 4x4 pixels: give 1 or 2 or 4 rows'),
    ([1, 2, 16], 'does not divide a layer of 8x8'),
    ([1, 2, 0], 'grid of 0x0'),
    ([1, 2], 'one for each of 3 scales or 5 layers, not 2'),
    ([1, (2, 3), 4], 'grid of 2x3'),
])  # fmt: skip
def test_grids_that_do_not_fit_are_named(grids, says):
    with pytest.raises(ValueError, match=says):
        DDN(8, 1, [8, 8, 8], [1, 2, 2], [4, 3, 5], grids=grids)


def test_without_grids_nothing_changes():
    torch.manual_seed(0)
    plain = DDN(8, 1, [8, 8], [2, 1], [4, 3]).eval()
    torch.manual_seed(0)
    ones = DDN(8, 1, [8, 8], [2, 1], [4, 3], grids=[1, (1, 1), 1]).eval()
    assert torch.equal(plain.sample(5)[0], ones.sample(5)[0]) and plain.num_codes == plain.num_layers == 3


# Guides.


def slow_guide(c: Candidates, of_cell) -> torch.Tensor:
    """[B, K, n] of a function of the rendered candidates of a cell, [B, K, C, h, w], and of its place."""
    images = rendered(c)
    return torch.stack([of_cell(images[..., y, x], (y, x)) for y, x in slices(*c.shape[2:], c.grid)], 2)


def test_guides_that_stay_within_cells_are_exact():
    c, target = make(2, 6, 3, 8, 8, 12, (2, 3))
    mask = (torch.rand(1, 1, 8, 12, generator=torch.Generator().manual_seed(1)) > 0.4).float()
    low = F.avg_pool2d(target, 2)
    luma = torch.tensor(guides.pixel_maps.LUMA).double().view(3, 1, 1)
    grey = (target * luma.float()).sum(1, keepdim=True)
    cases = {
        guides.l2(target): lambda images, at: (images - target[(..., *at)][:, None]).square().mean((2, 3, 4)),
        guides.superres(low): lambda images, at: (
            F.avg_pool2d(images.flatten(0, 1), 2).unflatten(0, (2, 6)) - F.avg_pool2d(target[(..., *at)], 2)[:, None]
        ).square().mean((2, 3, 4)),
        guides.inpaint(target, mask): lambda images, at: (
            (images - target[(..., *at)][:, None]).square() * mask[(0, 0, *at)]
        ).sum((2, 3, 4)) / (3 * mask[(0, 0, *at)].sum()),
        guides.colorization(grey): lambda images, at: (
            (images * luma).sum(2) - grey[(slice(None), 0, *at)][:, None]
        ).square().mean((2, 3)),
    }
    for guide, of_cell in cases.items():
        torch.testing.assert_close(guide(c, 0).double(), slow_guide(c, of_cell).double(), rtol=1e-4, atol=1e-5)


def test_a_hole_as_large_as_a_cell_guides_nothing_there():
    c, target = make(2, 6, 3, 8, 8, 8, (2, 2))
    mask = torch.ones(1, 1, 8, 8)
    mask[..., :4, :4] = 0
    distances = guides.inpaint(target, mask)(c, 0)
    assert not distances[:, :, 0].any() and distances[:, :, 1:].min() > 0


@pytest.mark.parametrize('choose, varied', [(top_k(1), False), (top_k(3), True), (temperature(0.01), True)])
def test_guided_generation_chooses_per_cell(choose, varied):
    net = networks()['per layer'].eval()
    target = torch.rand(1, 3, 12, 8) * 2 - 1
    images, codes = net.sample(3, guide=Guidance([guides.l2(target)], choose))
    torch.testing.assert_close(net.decode(codes), images, atol=1e-5, rtol=0)
    assert torch.equal(codes[0], codes[1]) != varied
    nearest = net.encode(target)
    greedy = net.sample(2, guide=Guidance([guides.l2(target)], top_k(1)))[1]
    assert torch.equal(greedy, nearest.expand(2, -1))
    free = net.sample(3)[0]
    assert (images - target).square().mean() < (free - target).square().mean()
    both = Guidance([guides.l2(target), guides.l2(target, weight=2.0)], top_k(1))
    assert torch.equal(net.sample(2, guide=both)[1], greedy)
    summed = both._replace(combine=by_distance)
    assert torch.equal(net.sample(2, guide=summed)[1], greedy)


def test_layers_that_ask_no_guide_take_the_code_of_the_seed():
    net = networks()['per layer'].eval()
    target = torch.rand(1, 3, 12, 8)
    codes = net.sample(4, seed=3, guide=Guidance([guides.l2(target)], layers=(0, 1)))[1]
    free = net.sample(4, seed=3)[1]
    assert torch.equal(codes[:, 7:], free[:, 7:]) and not torch.equal(codes[:, :7], free[:, :7])


def test_a_beam_of_guides_is_for_layers_without_cells():
    net = networks()['per layer'].eval()
    black = guides.l1(torch.rand(1, 3, 12, 8))
    c, _ = make(2, 6, 3, 8, 8, 8, (2, 2))
    for guide in (black, guides.superres(torch.rand(1, 3, 1, 1)), guides.blur(torch.rand(1, 3, 12, 8), 1.0)):
        with pytest.raises(ValueError, match=f'guide {guide.name} compares whole images, and layer 1 chooses per cell'):
            guide(c, 1)
    with pytest.raises(ValueError, match='a beam of 3 keeps whole images, and layer 1 chooses per cell'):
        net.sample(2, guide=Guidance([guides.l2(torch.rand(1, 3, 12, 8))], beam=3))
    beam = net.sample(2, guide=Guidance([black], beam=3, layers=(0, 0)))[1]
    assert beam.shape == (2, 63)
