"""Unshuffled layers, whose features have half of the picture's size, against the rendered full-size pictures."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_RUN, final, invoke

import generate
import latents
import train
from ddn_networks import DDN, Network, RecurrentDDN, black_boxes, codec, guides, pixel_maps, samplers, snapshots
from ddn_networks.candidates import Candidates, area_resize
from ddn_networks.ddl import DDL
from ddn_networks.guided_sampling import Guidance
from training.report import layer_table

# B, K, C, F, H, W of the picture, r, grid
SHAPES = [
    (3, 5, 1, 4, 8, 8, 2, (1, 1)),
    (2, 64, 3, 12, 16, 16, 2, (1, 1)),
    (2, 16, 3, 8, 16, 12, 2, (4, 2)),
    (2, 300, 3, 24, 32, 32, 2, (4, 4)),
    (1, 7, 4, 10, 8, 8, 2, (4, 4)),
    (2, 9, 2, 6, 12, 18, 3, (2, 3)),
]


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(B, K, C, features, H, W, r, grid, base=True, rows=None, prior=None) -> Candidates:
    rng, U = gen(), B if rows is None else int(rows.max()) + 1
    weight = torch.randn(K, C * r * r, features, generator=rng) / features**0.5
    x = torch.randn(U, features, H // r, W // r, generator=rng)
    picture = torch.randn(U, C, H, W, generator=rng)
    return Candidates(weight, x, F.pixel_unshuffle(picture, r) if base else None, rows, grid, prior, r)


def in_full(c: Candidates, r: int = 2) -> Candidates:
    """The same candidates as a layer whose features are the K rendered residuals, in float64."""
    K, made = c.num_nodes, torch.einsum('kcf,bfhw->bkchw', c._weight.double(), c._features.double())
    residuals = F.pixel_shuffle(made, r)  # [B, K, C, H, W]
    C = residuals.shape[2]
    base = None if c._base is None else F.pixel_shuffle(c._base.double(), r)
    one_hot = torch.eye(K * C, dtype=torch.float64).view(K, C, K * C)
    return Candidates(one_hot, residuals.flatten(1, 2), base, c.rows, c.grid, c._prior)


def rendered(c: Candidates) -> torch.Tensor:
    """[B, K, C, H, W] of a plain family."""
    images = torch.einsum('kcf,bfhw->bkchw', c.weight, c.features)
    return images if c.base is None else images + c.base[:, None]


def slow_distances(c: Candidates, target: torch.Tensor) -> torch.Tensor:
    error = (rendered(in_full(c, target.shape[2] // c._features.shape[2])) - target.double()[:, None]).square()
    found = F.adaptive_avg_pool2d(error.mean(2), c.grid).flatten(2)
    return found[:, :, 0] if c.num_cells == 1 else found


@pytest.mark.parametrize('base', [True, False])
@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
def test_distances_are_those_of_the_rendered_pictures(shape, last, base):
    c = make(*shape, base=base)
    if last:
        c._features = c._features.to(memory_format=torch.channels_last)
    target = torch.randn(c.shape, generator=gen(1))
    assert c.shape == (shape[0], shape[2], *shape[4:6])
    found = c.distances(target)
    torch.testing.assert_close(found.double(), slow_distances(c, target), rtol=1e-4, atol=1e-5)
    narrow = Candidates(c._weight, c._features.bfloat16(), c._base, None, c.grid, unshuffle=shape[6])
    close = Candidates(c._weight, c._features.bfloat16().float(), c._base, None, c.grid, unshuffle=shape[6])
    torch.testing.assert_close(narrow.distances(target), close.distances(target))


@pytest.mark.parametrize('U', [1, 3])
def test_images_with_candidates_in_common(U):
    rows = torch.arange(40) % U
    c = make(40, 6, 3, 8, 8, 8, 2, (1, 1), rows=rows)
    assert c._shared_pays()
    each = Candidates(c._weight, c._features[rows], c._base[rows], unshuffle=2)
    target = torch.randn(c.shape, generator=gen(1))
    torch.testing.assert_close(c.distances(target), each.distances(target), rtol=1e-4, atol=1e-5)
    assert torch.equal(c.features, each.features) and torch.equal(c.base, each.base)


@pytest.mark.parametrize('shape', SHAPES)
def test_every_way_to_render(shape):
    c = make(*shape)
    want = rendered(in_full(c, shape[6]))
    torch.testing.assert_close(rendered(c).double(), want, rtol=1e-4, atol=1e-5)  # the plain family
    parts = [images for _, images in c.chunks(4)]
    torch.testing.assert_close(torch.cat(parts, 1).double(), want, rtol=1e-4, atol=1e-5)
    part = c.of_images(slice(1))
    torch.testing.assert_close(next(part.chunks(c.num_nodes))[1].double(), want[:1], rtol=1e-4, atol=1e-5)
    codes = torch.randint(c.num_nodes, (c.shape[0], c.num_cells), generator=gen(2))
    torch.testing.assert_close(
        c.render(codes).double(), in_full(c, shape[6]).render(codes), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize('shape', SHAPES[:4])
def test_linear_maps_are_those_of_the_pictures(shape):
    c = make(*shape)
    full, matrix = in_full(c, shape[6]), torch.randn(2, shape[2], generator=gen(3))
    small = torch.randn(c.shape[0], 4, 4, 4, generator=gen(4))
    for family in (c.channels(matrix), c):
        other = full.channels(matrix) if family is not c else full
        target = torch.randn(family.shape, generator=gen(5))
        torch.testing.assert_close(
            family.distances(target).double(), other.distances(target.double()), rtol=1e-4, atol=1e-5
        )
        to = small[:, : family.shape[1]]
        a, b = (f.pixels(lambda x: area_resize(x, (4, 4))).distances(to) for f in (family, other))
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('grid', [(1, 1), (2, 3)])
@pytest.mark.parametrize('leak_choice', [True, False])
@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('has_base', [True, False])
def test_a_layer_selects_and_feeds_with_the_gradient_of_autograd(grid, leak_choice, last, has_base):
    rng, B, C = gen(), 4, 3
    ddl = DDL(32, 5, C, leak_choice, grid, unshuffle=2).double()
    x = torch.randn(B, 32, 4, 6, generator=rng, dtype=torch.float64)
    x = (x.to(memory_format=torch.channels_last) if last else x).requires_grad_()
    base = torch.randn(B, C, 8, 12, generator=rng, dtype=torch.float64, requires_grad=True) if has_base else None
    codes = torch.randint(5, (B, *[grid[0] * grid[1]] * (grid != (1, 1))), generator=rng)
    made = ddl(x, base, samplers.given(codes.view(B, -1)), 0, next_input=True)
    half, h, w = ddl.weight.shape[2], 4 // grid[0], 6 // grid[1]
    of_pixels = codes.view(B, *grid).repeat_interleave(h, 1).repeat_interleave(w, 2)  # [B, 4, 6]

    def slow(features: torch.Tensor) -> torch.Tensor:
        return torch.einsum('bhwcf,bfhw->bchw', ddl.weight[of_pixels], features)

    residual, leak = slow(x[:, :half]), slow(x[:, half:]) if leak_choice else None
    image = F.pixel_shuffle(residual, 2) + (0 if base is None else base)
    fed = x + F.pad(F.pixel_unshuffle(image, 2), (0, 0, 0, 0, 0, 32 - 4 * C))
    fed = fed if leak is None else fed + F.pad(leak, (0, 0, 0, 0, 32 - 4 * C, 0))
    pairs = [(made.image, image), (made.next_input, fed)] + ([(made.leak, leak)] if leak_choice else [])
    inputs = [x, ddl.weight] + ([base] if has_base else [])
    gradients = []
    for which in (0, 1):
        loss = sum((pair[which] * (i + 1)).square().sum() for i, pair in enumerate(pairs))
        gradients.append(torch.autograd.grad(loss, inputs))
    for a, b in [*pairs, *zip(*gradients, strict=True)]:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# Networks.


def network(prior_width=8, **kwargs) -> DDN:
    torch.manual_seed(0)
    arguments = {'grids': [1, 2, 2, 4], 'prior_width': prior_width, 'unshuffle': 2, **kwargs}
    net = DDN((16, 24), 3, [32, 24, 28], [1, 1, 2], [6, 5, 4], **arguments).double()
    for block in net.blocks:
        torch.nn.init.normal_(block.conv1.weight, std=0.2)
    for head in net.prior:
        torch.nn.init.normal_(head.out.weight, std=0.5)
    return net.eval()


def test_the_last_layers_work_at_half_the_size():
    net = network()
    assert [spec.size for spec in net.specs] == [(4, 6), (8, 12), (16, 24), (16, 24)]
    assert [spec.feature_size for spec in net.specs] == [(4, 6), (8, 12), (8, 12), (8, 12)]
    assert [block.up for block in net.blocks] == [False, True, False, False]
    table = layer_table(net)
    assert '16x24 / 2' in table and 'each pixel makes 2x2' in table
    assert '/ 2' not in layer_table(network(unshuffle=1, grids=[1] * 3))


def test_decoding_what_was_encoded_is_what_the_pass_showed():
    net = network()
    images = torch.rand(3, 3, 16, 24, generator=gen()).double() * 2 - 1
    with torch.no_grad():
        out = net(samplers.nearest(images), 3, keep=True)
    assert torch.equal(net.encode(images), out.codes)
    torch.testing.assert_close(net.decode(out.codes), out.images)
    for selected, distances, spec in zip(out.selected, out.distances, net.specs, strict=True):
        assert selected.shape == (3, 3, *spec.size)
        error = (selected - area_resize(images, spec.size)).square().mean(1)
        own = F.adaptive_avg_pool2d(error, spec.grid).flatten(1)
        torch.testing.assert_close(distances.amin(1).view(3, -1), own)
    refined = net.reconstruct(images, refine=1)
    assert (refined.images - images).square().mean() <= (out.images - images).square().mean()


def test_passes_with_shared_prefixes_and_checkpoints_are_the_same():
    net = network(grids=[1] * 3)
    images = torch.rand(6, 3, 16, 24, generator=gen()).double() * 2 - 1
    sampler = samplers.nearest(images)
    a, b = net(sampler, 6), net(sampler, 6, share_prefixes=True)
    assert torch.equal(a.codes, b.codes)
    torch.testing.assert_close(a.images, b.images)
    grads = []
    for checkpointed in (False, True):
        net.zero_grad()
        net.train()(sampler, 6, grad_checkpoint=checkpointed).images.square().sum().backward()
        grads.append([p.grad for p in net.ddls.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_bfloat16_blocks_choose_among_float32_pictures(layout):
    net = network().float().to(memory_format=layout).train()
    images = torch.rand(2, 3, 16, 24, generator=gen()) * 2 - 1
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = net(samplers.nearest(images), 2, keep=True)
    out.images.square().sum().backward()
    assert all(selected.dtype == torch.float32 for selected in out.selected)
    assert all(ddl.weight.grad.isfinite().all() and ddl.weight.grad.any() for ddl in net.ddls)
    error = F.adaptive_avg_pool2d((out.images - images).square().mean(1), net.specs[-1].grid).flatten(1)
    torch.testing.assert_close(out.distances[-1].amin(1), error, rtol=1e-4, atol=1e-5)


def test_a_snapshot_keeps_it(tmp_path):
    net = network().float()
    path = tmp_path / 'network-snapshot-000000001.safetensors'
    snapshots.save_network(path, net)
    codes = net.sample(2, seed=1)[1]
    assert torch.equal(Network.from_pretrained(path).decode(codes), net.decode(codes))


def test_searches_find_the_nearest_picture():
    net = network(prior_width=0, grids=[1] * 3)
    images = torch.rand(2, 3, 16, 24, generator=gen()).double() * 2 - 1
    every = torch.cartesian_prod(*(torch.arange(K) for K in net.num_nodes))
    drawn = net.decode(every)
    errors = (drawn[None] - images[:, None]).square().mean((2, 3, 4))
    for beam in (len(every) // 4, 40):  # exhaustive; as wide as most layers
        found = net.reconstruct(images, beam=beam)
        torch.testing.assert_close(found.images, net.decode(found.codes))
        error = (found.images - images).square().mean((1, 2, 3))
        assert (error <= (net.decode(net.encode(images)) - images).square().mean((1, 2, 3)) + 1e-12).all()
    assert torch.equal(net.encode(images, beam=len(every) // 4), every[errors.argmin(1)])


def test_branches_and_regions_are_of_the_full_size_picture():
    net = network()
    images, codes = net.sample(2, seed=0, uniform=True)
    last, K = net.code_slices[-1].start, net.num_nodes[-1]
    shown = net.cell_branches(codes, 3, 6)  # row 1, column 2 of the 4x4 cells of 4x6 pixels
    for k in range(K):
        other = codes.clone()
        other[:, last + 6] = k
        torch.testing.assert_close(shown[:, k], net.decode(other))
    partial = codes.clone()
    partial[:, last + 6] = -1
    changed = (net.sample(2, seed=5, codes=partial, uniform=True)[0] - images).abs().amax((0, 1)) > 1e-9
    assert changed[4:8, 12:18].all() and changed.sum() == 4 * 6
    tree = network(grids=[1] * 3)
    prefix = torch.tensor([[1, 2, 3]])
    children = [tree.decode(torch.cat([prefix, torch.tensor([[k]])], 1))[0] for k in range(4)]
    torch.testing.assert_close(tree.branches(prefix)[0], torch.stack(children))


def test_files_of_the_codec():
    pytest.importorskip('constriction')
    net = network(prior_width=0).float()
    images = torch.rand(1, 3, 16, 24, generator=gen()) * 2 - 1
    data = codec.encode(net, images)
    torch.testing.assert_close(codec.decode(net, data), net.decode(net.encode(images)))


@pytest.mark.parametrize('side', [32, 64])
def test_a_finisher_sees_their_features(side):
    torch.manual_seed(0)
    net = DDN(side, 1, [8, 8], [1, 2], [4, 4], unshuffle=2, finisher_width=4).eval()
    torch.nn.init.normal_(net.finisher.leave.weight, std=0.1)
    images, codes = net.sample(2, seed=0)
    assert torch.equal(images, net.decode(codes)) and not torch.equal(images, net.decode(codes, finish=False))


@pytest.mark.parametrize('condition_channels', [1, 3])
def test_the_last_layers_see_a_condition_in_every_detail(condition_channels):
    net = network(grids=[1] * 3, condition_channels=condition_channels)
    condition = torch.rand(1, condition_channels, 16, 24, generator=gen()).double()
    condition.requires_grad_()
    sampler = samplers.given(torch.zeros(1, 4, dtype=torch.int64))
    net(sampler, 1, condition).images.square().sum().backward()
    blocks = condition.grad.unfold(2, 2, 2).unfold(3, 2, 2)
    assert (blocks.amax((4, 5)) > blocks.amin((4, 5))).all()  # not the mean of 2x2 pixels alone
    with pytest.raises(ValueError, match='the last 40, for image and condition'):
        network(condition_channels=10)


@pytest.mark.parametrize('make_it, says', [
    (lambda: DDN((16, 9), 1, [8, 8], [1, 1], [4, 4], unshuffle=2), 'even height and width, not 2 for 16x9'),
    (lambda: DDN(16, 1, [8, 8], [1, 1], [4, 4], unshuffle=4), 'unshuffle is 1, or 2'),
    (lambda: DDN(16, 3, [8, 8], [1, 1], [4, 4], unshuffle=2), 'every scale needs 3 channels or more, the last 12'),
    (lambda: DDN(16, 1, [8, 8], [1, 1], [4, 4], grids=[1, 16], unshuffle=2), 'does not divide a layer of 8x8 pixels'),
])  # fmt: skip
def test_what_does_not_fit_is_refused(make_it, says):
    with pytest.raises(ValueError, match=says):
        make_it()
    with pytest.raises(TypeError):
        RecurrentDDN(8, 1, unshuffle=2)


# Guides.

GUIDES = {  # of pictures of 16x24
    'l2': lambda x: guides.l2(x),
    'superres to a cell': lambda x: guides.superres(pixel_maps.box(x, (4, 4))),
    'superres within cells': lambda x: guides.superres(pixel_maps.box(x, (8, 12))),
    'superres across cells': lambda x: guides.superres(pixel_maps.box(x, (3, 5))),
    'inpaint': lambda x: guides.inpaint(x, (torch.rand(1, 1, 16, 24, generator=gen(7)) > 0.4).double()),
    'colorization': lambda x: guides.colorization(x),
    'blur': lambda x: guides.blur(x, 1.5),
    'strokes': lambda x: guides.strokes(torch.cat([x, x[:, :1]], 1)),
    'edges': lambda x: guides.edges(x),
    'l1': lambda x: guides.l1(x),
    'posterize': lambda x: guides.posterize(x, 3),
    'python': lambda x: black_boxes.python(lambda made: (made * x.to(made)).mean((1, 2, 3))),
}


@pytest.mark.parametrize('grid', [(1, 1), (4, 4)])
@pytest.mark.parametrize('name', GUIDES)
def test_guides_compare_the_full_size_pictures(name, grid):
    picture = torch.rand(1, 3, 16, 24, generator=gen(6)).double() * 2 - 1
    guide = GUIDES[name](picture)
    c = make(2, 6, 3, 8, 16, 24, 2, grid)
    full = in_full(c)
    if grid != (1, 1) and (guide.comparison is None or guide.comparison(c).separable is not None):
        return  # whole pictures: see the next test
    torch.testing.assert_close(guide(c, 0).double(), guide(full, 0).double(), rtol=1e-4, atol=1e-5)
    if grid == (1, 1):
        every = rendered(full)
        want = torch.stack([guide.of_pictures(every[:, k], 0) for k in range(6)], 1)
        torch.testing.assert_close(guide(c, 0).double(), want.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('uniform', [True, False])
@pytest.mark.parametrize('names', [*([name] for name in GUIDES), ['inpaint', 'superres across cells', 'edges']])
def test_generation_chooses_as_among_rendered_pictures(names, uniform):
    """Every layer answers the same about its candidates and about the same ones rendered: sweeps, proposals, prior."""
    net = network(prior_width=8)
    facts = {f'{kind}/{p}': [0.1] * 4 for kind in ('rgb', 'luma') for p in (1, 2, 4, 8)}
    net.sampling = net.sampling._replace(residuals=facts)
    picture = torch.rand(1, 3, 16, 24, generator=gen(6)).double() * 2 - 1
    guidance, seen = Guidance([GUIDES[name](picture) for name in names], proposals=3), []
    walk = net.walk

    def walked(sampler, *args, **kwargs):
        def both(candidates, layer, codes):
            choice = sampler(candidates, layer, codes)
            if candidates.shape[2] != candidates._features.shape[2]:
                full = sampler(in_full(candidates), layer, codes)
                seen.append(torch.equal(full.codes, choice.codes))
            return choice

        return walk(both, *args, **kwargs)

    net.walk = walked
    net.sample(3, seed=2, guide=guidance, uniform=uniform)
    assert seen == [True, True]


# Runs.

RUN = [*TINY_RUN, '--unshuffle=2', '--grids=1,1,2,4', '--prior=head', '--prior-width=8', '--tick=0.04', '--nosubdir']


@pytest.fixture(scope='module')
def trained(tiny_zip, tmp_path_factory):
    folder = tmp_path_factory.mktemp('unshuffle') / 'run'
    invoke(train.main, f'--data={tiny_zip}', f'--outdir={folder}', *RUN, '--duration=0.000160')
    return folder


def test_a_run_trains_splits_and_says_it(trained):
    net, state = Network.from_pretrained(trained), final(trained)
    assert [spec.unshuffle for spec in net.specs] == [1, 1, 1, 1, 2, 2]
    assert [tuple(w.shape) for w in net.node_weights[-2:]] == [(5, 4, 4)] * 2
    assert (state['balance/counts'].sum(1)[-1] > state['balance/counts'].sum(1)[0]).all()
    images, codes = net.sample(2, seed=0)
    assert images.shape == (2, 1, 8, 8) and codes.shape == (2, 1 + 2 + 4 + 32)
    stored = json.loads((trained / 'training_options.json').read_text())
    assert stored['options']['unshuffle'] == 2 and '--unshuffle=2' in stored['command']
    assert '8x8 / 2' in (trained / 'log.txt').read_text()


def test_codes_regions_and_cells_in_the_scripts(trained, tiny_zip, tmp_path):
    net, file = [f'--network={trained}', '--device=cpu'], tmp_path / 'codes.npz'
    invoke(latents.main, 'encode', *net, f'--data={tiny_zip}', f'--dest={file}')
    codes = np.load(file)['codes']
    sheet, region = f'--sheet={tmp_path / "sheet.png"}', '--region=0,0,4,4'
    invoke(latents.main, 'cell', *net, f'--codes={file}', sheet, '--row=0', '--layer=5', '--cell=1,2')
    invoke(latents.main, 'swap', *net, f'--codes={file}', sheet, '--coarse=0', '--fine=1', '--layers=4', region)
    keep = [f'--keep={file}:0', '--redraw-region=0,0,4,4', f'--save-codes={tmp_path / "made.npy"}']
    invoke(generate.main, *net, f'--outdir={tmp_path}', '--seeds=0-3', *keep)
    made = np.load(tmp_path / 'made.npy')
    same = (made == codes[0]).all(0)[-16:].reshape(4, 4)  # the cells of the last layer, of 2x2 pixels
    assert same[2:].all() and same[:, 2:].all() and not same[:2, :2].all()


def test_it_resumes_bit_for_bit(trained, tiny_zip, tmp_path):
    invoke(train.main, f'--data={tiny_zip}', f'--outdir={tmp_path}', *RUN, '--duration=0.000080')
    invoke(train.main, f'--resume={tmp_path}', '--duration=0.000160')
    a, b = final(trained), final(tmp_path)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_transfer_to_and_from_layers_of_full_size(trained, tiny_zip, tmp_path):
    snapshot = next(trained.glob('network-snapshot-*.safetensors'))
    rest = [*(arg for arg in RUN if arg != '--unshuffle=2'), f'--transfer={snapshot}', '--duration=0.000016']
    out = invoke(train.main, f'--data={tiny_zip}', f'--outdir={tmp_path}', *rest)
    left = [line for line in out.splitlines() if 'left at random' in line]
    parts = {line.removeprefix('  left at random: ')[:8] for line in left}
    assert parts == {'blocks.4', 'ddls.4.w', 'ddls.5.w', 'prior.4.', 'prior.5.'}  # whose features have other sizes


def test_what_has_no_such_layers_refuses(tiny_zip, tmp_path):
    to = [f'--data={tiny_zip}', f'--outdir={tmp_path}']
    out = invoke(train.main, *to, '--arch=recurrent', '--unshuffle=2', expect=1)
    assert '--unshuffle does nothing with --arch=recurrent' in out
    small = ['--channels=8,2', '--blocks=1', '--nodes=4', '--unshuffle=2']
    out = invoke(train.main, *to, *small, expect=1)
    assert out.splitlines()[-1].startswith('Error: every scale needs 1 channels or more, the last 4')
