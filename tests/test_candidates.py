"""Candidates against the slow obvious rendering of all K images in float64."""

import pytest
import torch
import torch.nn.functional as F

from ddn_networks import closed_forms
from ddn_networks.candidates import Candidates, area_resize
from ddn_networks.closed_forms import cheapest_method

# B, K, C, F, H, W
SHAPES = [
    (1, 2, 1, 1, 1, 1),
    (4, 2, 3, 8, 1, 1),
    (2, 16, 3, 32, 2, 2),
    (3, 5, 4, 1, 3, 2),
    (5, 512, 3, 16, 4, 4),
    (1, 64, 3, 24, 8, 8),
    (3, 7, 1, 12, 5, 9),
    (2, 33, 3, 6, 16, 16),
    (1, 2, 4, 4, 1, 31),
    (16, 128, 3, 16, 16, 12),
    (2, 300, 2, 3, 20, 7),
]


def make(B, K, C, F, H, W, base=True, dtype=torch.float32, seed=0):
    """Candidates and a target with the statistics of a layer: residuals small against images."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(K, C, F, generator=rng) * 0.3 / F**0.5
    features = torch.randn(B, F, H, W, generator=rng).to(dtype)
    image = torch.rand(B, C, H, W, generator=rng) * 2 - 1 if base else None
    target = torch.rand(B, C, H, W, generator=rng) * 2 - 1
    return Candidates(weight, features, image), target


def rendered(c: Candidates) -> torch.Tensor:
    """The slow obvious thing, [B, K, C, H, W] float64: one convolution per node."""
    features = c.features.double()
    images = [F.conv2d(features, node.double()[:, :, None, None]) for node in c.weight.detach()]
    images = torch.stack(images, 1)
    return images if c.base is None else images + c.base.double()[:, None]


def slow_distances(c: Candidates, to: torch.Tensor) -> torch.Tensor:
    return (rendered(c) - to.double()[:, None]).square().mean((2, 3, 4))  # [B, K]


def check_distances(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-6) -> None:
    """Equal to rounding; where the argmin differs, the distances of the two nodes differ by less than rounding."""
    scale = 1 + want.max()
    assert (got - want).abs().max() < tolerance * scale
    chosen = want.gather(1, got.argmin(1, keepdim=True))
    assert ((chosen - want.min(1, keepdim=True).values) < 2 * tolerance * scale).all()


@pytest.mark.parametrize('base', [True, False])
@pytest.mark.parametrize('shape', SHAPES)
def test_distances(shape, base):
    c, target = make(*shape, base=base)
    got = c.distances(target)
    assert got.shape == shape[:2] and got.dtype == torch.float32 and not got.requires_grad
    check_distances(got, slow_distances(c, target))


@pytest.mark.parametrize('method', sorted(closed_forms.METHODS))
@pytest.mark.parametrize('shape', SHAPES)
def test_each_method_alone(shape, method, monkeypatch):
    monkeypatch.setattr(closed_forms, 'cheapest_method', lambda *dims: method)
    c, target = make(*shape)
    check_distances(c.distances(target), slow_distances(c, target))


@pytest.mark.parametrize('method', sorted(closed_forms.METHODS))
def test_bfloat16_features(method, monkeypatch):
    """Features as autocast leaves them: they are what they are, the arithmetic on them is float32."""
    monkeypatch.setattr(closed_forms, 'cheapest_method', lambda *dims: method)
    c, target = make(8, 512, 3, 64, 16, 16, dtype=torch.bfloat16)
    assert c.distances(target).dtype == c.render(torch.zeros(8, dtype=torch.long)).dtype == torch.float32
    check_distances(c.distances(target), slow_distances(c, target))


def test_float64_stays_float64():
    c, target = make(2, 9, 3, 8, 6, 6, dtype=torch.float64)
    assert c.distances(target).dtype == torch.float64
    check_distances(c.distances(target), slow_distances(c, target), 1e-13)


@pytest.mark.parametrize('shape', [(2, 16, 3, 32, 2, 2), (4, 64, 3, 32, 16, 16), (1, 64, 3, 24, 8, 8)])
def test_autocast_does_not_touch_distances(shape):
    c, target = make(*shape)
    codes = c.distances(target).argmin(1)
    matrix = torch.tensor([[0.3, 0.6, 0.1]])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        got, image, chunk = c.distances(target), c.render(codes), next(c.chunks(100))[1]
        luma = c.channels(matrix).distances(target[:, :1])
        blurred = c.pixels(blur).distances(target)
    assert torch.equal(got, c.distances(target))
    assert torch.equal(image, c.render(codes))
    assert torch.equal(chunk, next(c.chunks(100))[1])
    assert torch.equal(luma, c.channels(matrix).distances(target[:, :1]))
    assert torch.equal(blurred, c.pixels(blur).distances(target))


@pytest.mark.parametrize('shape', [(4, 16, 3, 8, 6, 5), (2, 8, 3, 16, 2, 2), (3, 4, 1, 8, 4, 4)])
def test_channels_last(shape):
    c, target = make(*shape)
    last = Candidates(
        c.weight,
        c.features.contiguous(memory_format=torch.channels_last),
        c.base.contiguous(memory_format=torch.channels_last),
    )
    check_distances(last.distances(target.contiguous(memory_format=torch.channels_last)), slow_distances(c, target))
    codes = torch.arange(shape[0]) % shape[1]
    torch.testing.assert_close(last.render(codes), c.render(codes))


@pytest.mark.parametrize('method', sorted(closed_forms.METHODS))
def test_a_perfect_candidate_has_distance_zero_to_rounding(method, monkeypatch):
    monkeypatch.setattr(closed_forms, 'cheapest_method', lambda *dims: method)
    c, _ = make(4, 50, 3, 16, 8, 8)
    codes = torch.tensor([3, 0, 49, 17])
    distances = c.distances(c.render(codes))
    assert torch.equal(distances.argmin(1), codes)
    assert distances.gather(1, codes[:, None]).max() < 1e-6 and distances.min() >= 0


@pytest.mark.parametrize('narrow', ['features', 'base'])
def test_a_linear_map_over_pixels_is_in_full_precision(narrow):
    c, target = make(3, 5, 2, 8, 12, 10, dtype=torch.bfloat16 if narrow == 'features' else torch.float32)
    base = c.base.bfloat16() if narrow == 'base' else c.base
    wide = Candidates(c.weight, c.features.float(), base.float())
    goal = blur(target)
    got = Candidates(c.weight, c.features, base).pixels(blur).distances(goal)
    assert torch.equal(got, wide.pixels(blur).distances(goal))


BLUR = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0]))[None, None] / 16


def blur(x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x.flatten(0, 1)[:, None], BLUR.to(x), padding=1).view(x.shape)


MASK = (torch.arange(12 * 10).view(12, 10) % 3 > 0).float()
PIXEL_MAPS = {
    'area': lambda x: area_resize(x, (4, 5)),
    'mask': lambda x: x * MASK.to(x),
    'blur': blur,
    'crop': lambda x: x[:, :, 2:7, 1:],
    'flip': lambda x: x.flip(3),
}


@pytest.mark.parametrize('base', [True, False])
@pytest.mark.parametrize('name', PIXEL_MAPS)
def test_linear_maps_over_pixels(name, base):
    fn = PIXEL_MAPS[name]
    c, target = make(3, 11, 3, 6, 12, 10, base=base)
    goal = fn(target)
    images = rendered(c)
    mapped = fn(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    want = (mapped - goal.double()[:, None]).square().mean((2, 3, 4))
    check_distances(c.pixels(fn).distances(goal), want)
    codes = torch.tensor([0, 10, 4])
    want = mapped[torch.arange(3), codes]
    torch.testing.assert_close(c.pixels(fn).render(codes).double(), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize('base', [True, False])
@pytest.mark.parametrize('matrix', [[[0.299, 0.587, 0.114]], [[0.0, 0.0, 1.0]], [[1.0, -1, 0], [0, 0.5, 0.5]]])
def test_linear_maps_over_channels(matrix, base):
    matrix = torch.tensor(matrix)
    c, target = make(3, 11, 3, 6, 4, 7, base=base)
    goal = torch.einsum('dc,bchw->bdhw', matrix, target)
    mapped = torch.einsum('dc,bkchw->bkdhw', matrix.double(), rendered(c))
    want = (mapped - goal.double()[:, None]).square().mean((2, 3, 4))
    check_distances(c.channels(matrix).distances(goal), want)
    fewer = c.channels(matrix).pixels(lambda x: area_resize(x, (2, 1)))  # the maps compose
    mapped = area_resize(mapped.flatten(0, 1), (2, 1)).unflatten(0, (3, 11))
    want = (mapped - area_resize(goal, (2, 1)).double()[:, None]).square().mean((2, 3, 4))
    check_distances(fewer.distances(area_resize(goal, (2, 1))), want)


@pytest.mark.parametrize('size', [1, 2, 7, 11, 100])
@pytest.mark.parametrize('base', [True, False])
def test_chunks_are_all_candidates_once(size, base):
    c, _ = make(2, 11, 3, 5, 3, 4, base=base)
    starts, images = zip(*c.chunks(size), strict=True)
    assert list(starts) == list(range(0, 11, size))
    assert all(chunk.shape[1] <= size and not chunk.requires_grad for chunk in images)
    torch.testing.assert_close(torch.cat(images, 1).double(), rendered(c), atol=1e-6, rtol=0)


@pytest.mark.parametrize('shape', SHAPES)
def test_render(shape):
    c, _ = make(*shape)
    codes = torch.arange(shape[0]) * 7 % shape[1]
    want = rendered(c)[torch.arange(shape[0]), codes]
    torch.testing.assert_close(c.render(codes).double(), want, atol=2e-6, rtol=0)


@pytest.mark.parametrize('shape', SHAPES[:8])
def test_gradients_of_render_are_those_of_rendering_everything(shape):
    c, target = make(*shape, dtype=torch.float64)
    codes = torch.arange(shape[0]) * 3 % shape[1]
    leaves = [t.double().requires_grad_() for t in (c.weight, c.features, c.base)]
    ((Candidates(*leaves).render(codes) - target) ** 2).mean().backward()
    got = [t.grad.clone() for t in leaves]
    for t in leaves:
        t.grad = None
    weight, features, base = leaves
    naive = torch.einsum('kcf,bfhw->bkchw', weight, features) + base[:, None]
    ((naive[torch.arange(shape[0]), codes] - target) ** 2).mean().backward()
    for mine, t in zip(got, leaves, strict=True):
        torch.testing.assert_close(mine, t.grad, atol=1e-12, rtol=0)
    unused = torch.ones(shape[1], dtype=torch.bool).index_fill(0, codes, False)
    assert not got[0][unused].any()  # only chosen nodes learn


def test_distances_build_no_graph():
    c, target = make(2, 5, 3, 4, 4, 4)
    c = Candidates(c.weight.requires_grad_(), c.features.requires_grad_(), c.base)
    assert not c.distances(target).requires_grad
    assert c.render(torch.tensor([0, 1])).requires_grad


def test_the_cheapest_method_is_the_cheapest():
    assert cheapest_method(16, 16, 3, 128, 1) == 'render'  # one pixel: the Gram matrices cost more than the images
    assert cheapest_method(16, 512, 3, 64, 64 * 64) == 'node_gram'
    assert cheapest_method(1, 512, 3, 64, 64 * 64) == 'feature_gram'  # node matrices would serve one image


def test_errors_name_the_shapes():
    c, target = make(2, 5, 3, 4, 6, 6)
    with pytest.raises(ValueError, match=r'weight \[K, C, F\]'):
        Candidates(c.weight[:, :, :2], c.features)
    with pytest.raises(ValueError, match=r'\(5, 3, 4, 1, 1\)'):
        Candidates(c.weight[..., None, None], c.features)
    with pytest.raises(ValueError, match='base of these candidates'):
        Candidates(c.weight, c.features, c.base[:, :1])
    with pytest.raises(ValueError, match=r'target of these candidates must be \(2, 3, 6, 6\)'):
        c.distances(target[:1])
    with pytest.raises(ValueError, match='base of these candidates'):
        c.pixels(lambda x: x[:, :, : x.shape[1]])  # no map of pixels: it depends on the channels
    with pytest.raises(ValueError, match='at least one candidate'):
        next(c.chunks(0))


def test_area_resize_is_the_mean():
    x = torch.arange(24.0).view(1, 1, 4, 6)
    assert torch.equal(area_resize(x, (2, 2))[0, 0], torch.tensor([[4.0, 7.0], [16.0, 19.0]]))
    assert area_resize(x, (4, 6)) is x


def test_candidates_in_common_are_rendered_some_at_a_time(monkeypatch):
    c, _ = make(2, 300, 3, 4, 16, 16)
    rows = torch.arange(32) % 2
    target = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    shared = Candidates(c.weight, c.features, c.base, rows)
    monkeypatch.setattr(Candidates, '_shared_pays', lambda self: True)
    whole = shared.distances(target)
    numbers = []

    def chunks(candidates, size):
        for k0, images in plain(candidates, size):
            numbers.append(images.numel())
            yield k0, images

    plain = Candidates.chunks
    monkeypatch.setattr(Candidates, 'chunks', chunks)
    monkeypatch.setattr(closed_forms, '_CPU_NUMBERS', 2**11)
    torch.testing.assert_close(shared.distances(target), whole)
    assert sum(numbers) == 2 * 300 * 3 * 16 * 16 and max(numbers) <= 16 * 2**11


def test_candidates_in_common_of_few_pixels_are_not_worth_rendering():
    c, _ = make(32, 512, 3, 128, 2, 2)
    assert not Candidates(c.weight, c.features, c.base, torch.arange(64) % 32)._shared_pays()  # 5 times as slow
    assert Candidates(c.weight, c.features[:1], c.base[:1], torch.zeros(64).long())._shared_pays()


@pytest.mark.parametrize('base', [True, False])
@pytest.mark.parametrize('U, pays', [(3, True), (60, False)])
def test_images_with_candidates_in_common(U, base, pays):
    c, _ = make(U, 5, 2, 8, 6, 4, base=base)
    rows = torch.randint(U, (64,), generator=torch.Generator().manual_seed(0))
    shared = Candidates(c.weight, c.features, c.base, rows)
    own = Candidates(c.weight, c.features[rows], None if c.base is None else c.base[rows])
    target = torch.rand(64, 2, 6, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert shared.shape == own.shape == (64, 2, 6, 4) and shared._shared_pays() == pays
    check_distances(shared.distances(target), slow_distances(own, target))
    codes = rows % 5
    assert torch.equal(shared.render(codes), own.render(codes))
    pooled = [x.pixels(lambda y: F.avg_pool2d(y, 2)).channels(torch.ones(1, 2)) for x in (shared, own)]
    small = torch.zeros(64, 1, 3, 2)
    torch.testing.assert_close(pooled[0].distances(small), pooled[1].distances(small))
    passes = []
    sums = shared.of_features(lambda f: passes.append(len(f)) or f.sum((1, 2, 3)))
    assert passes == [U] and torch.equal(sums, own.features.sum((1, 2, 3)))
    for (k, a), (_, b) in zip(shared.chunks(2), own.chunks(2), strict=True):
        assert torch.equal(a, b) and k % 2 == 0 and torch.is_grad_enabled()  # between two chunks, too
    assert torch.is_grad_enabled()
