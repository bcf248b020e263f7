"""Guides against slow oracles that render every candidate; choice rules; beam search against brute force."""

import itertools

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image, ImageOps

from ddn_networks import DDN, Candidates, black_boxes, guided_sampling, guides, samplers
from ddn_networks.guided_sampling import Guidance
from ddn_networks.guides import Guide


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=gen(seed)) * 2 - 1


def family(C: int = 3, size=(8, 8), B: int = 2, K: int = 5, features: int = 6, base: bool = True) -> Candidates:
    g = gen(7)
    weight = torch.randn(K, C, features, generator=g) / features**0.5
    return Candidates(weight, torch.randn(B, features, *size, generator=g), uniform(B, C, *size) if base else None)


def all_images(candidates: Candidates) -> np.ndarray:
    """[B, K, C, H, W] float64."""
    return torch.cat([images for _, images in candidates.chunks(100)], 1).double().numpy()


def area(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Area pooling of [..., H, W]: pixels are cut into size[0] x size[1] equal ones, which are averaged."""
    H, W = x.shape[-2:]
    x = x.repeat(size[0], -2).repeat(size[1], -1)
    return x.reshape(*x.shape[:-2], size[0], H, size[1], W).mean((-3, -1))


def luma(x: np.ndarray) -> np.ndarray:
    """[..., C, H, W] -> [..., 1, H, W]."""
    if x.shape[-3] == 1:
        return x
    r, g, b = x[..., 0:1, :, :], x[..., 1:2, :, :], x[..., 2:3, :, :]
    return 0.299 * r + 0.587 * g + 0.114 * b


def mse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[B, K, ...] against [B, ...]."""
    return ((a - b[:, None]) ** 2).mean((2, 3, 4))


def close(guide: Guide, candidates: Candidates, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    actual = guide(candidates, 0).numpy()
    assert actual.shape == (candidates.shape[0], candidates.num_nodes)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture
def never_render(monkeypatch):
    def chunks(self, size):
        raise AssertionError('a linear guide rendered its candidates')

    monkeypatch.setattr(Candidates, 'chunks', chunks)


# Linear guides: exact against rendering.

SIZES = [(1, 1), (4, 4), (8, 8), (16, 16), (6, 10)]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('C', [1, 3, 4])
def test_l2(size, C):
    candidates, target = family(C, size), uniform(2, C, 16, 20, seed=3)
    images = all_images(candidates)
    wanted = guides.pixel_maps.fit(target, size).double().numpy()
    if all(a % b == 0 for a, b in zip((16, 20), size, strict=True)):
        np.testing.assert_allclose(wanted, area(target.double().numpy(), size), atol=1e-6)
    close(guides.l2(target), candidates, mse(images, wanted))
    close(guides.denoise(target), candidates, mse(images, wanted))


def test_l2_larger_than_the_target_is_bilinear():
    small = torch.tensor([[[[0.0, 1.0]]]])  # [1, 1, 1, 2]
    wanted = np.array([0.0, 0.25, 0.75, 1.0]).reshape(1, 1, 1, 4).repeat(2, 0)
    candidates = family(1, (1, 4))
    close(guides.l2(small), candidates, mse(all_images(candidates), wanted))


@pytest.mark.parametrize('low', [(4, 4), (1, 1), (8, 8), (5, 7), (3, 16), (32, 32)])
@pytest.mark.parametrize('size', SIZES)
def test_superres(size, low):
    candidates, picture = family(3, size), uniform(2, 3, *low, seed=3)
    common = tuple(min(a, b) for a, b in zip(size, low, strict=True))
    expected = mse(area(all_images(candidates), common), area(picture.double().numpy(), common))
    close(guides.superres(picture), candidates, expected)


@pytest.mark.parametrize('C', [1, 3, 4])
@pytest.mark.parametrize('channels', [1, 3])
def test_colorization(C, channels):
    candidates, picture = family(C), uniform(2, channels, 16, 16, seed=3)
    expected = mse(luma(all_images(candidates)), area(luma(picture.double().numpy()), (8, 8)))
    close(guides.colorization(picture), candidates, expected)


def masked_oracle(images: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over the known area of the squared error to the mean of the known pixels under each pixel."""
    size = images.shape[-2:]
    known = area(mask, size)  # [B, 1, h, w]
    mean = area(target * mask, size) / np.maximum(known, 1e-12)
    error = (known[:, None] * (images - mean[:, None]) ** 2).sum((2, 3, 4))
    return error / (known.sum((1, 2, 3)) * images.shape[2])[:, None]


@pytest.mark.parametrize('size', [(1, 1), (4, 4), (8, 8), (16, 16)])
def test_inpaint_and_strokes(size):
    candidates, target = family(3, size), uniform(2, 3, 16, 16, seed=3)
    mask = (torch.rand(2, 1, 16, 16, generator=gen(4)) < 0.4).float()  # one per image
    mask[0, :, :, 5:] = 0
    expected = masked_oracle(all_images(candidates), target.double().numpy(), mask.double().numpy())
    close(guides.inpaint(target, mask), candidates, expected)
    garbage = torch.where(mask > 0, target, 99.0)
    close(guides.inpaint(garbage, mask), candidates, expected)
    close(guides.strokes(torch.cat([target, 2 * mask - 1], 1)), candidates, expected)


def test_inpaint_with_soft_masks_of_another_size_and_number():
    candidates, target = family(3, (8, 8)), uniform(1, 3, 16, 16, seed=3)
    mask = torch.rand(2, 1, 32, 32, generator=gen(4))
    fitted = area(mask.double().numpy(), (16, 16))
    expected = masked_oracle(all_images(candidates), target.double().numpy().repeat(2, 0), fitted)
    close(guides.inpaint(target, mask), candidates, expected)
    wide = torch.ones(1, 1, 16, 16)
    close(guides.inpaint(target, wide), candidates, guides.l2(target)(candidates, 0).numpy())


@pytest.mark.parametrize('size', [(1, 1), (4, 4), (16, 16), (6, 10)])
def test_blur(size):
    candidates, picture, sigma = family(3, size), uniform(2, 3, 16, 16, seed=3), 1.7
    images = all_images(candidates)
    for axis, length in ((3, size[0]), (4, size[1])):
        s = sigma * length / 16
        images = scipy.ndimage.gaussian_filter1d(images, s, axis, mode='nearest', radius=int(4 * s) + 1)
    close(guides.blur(picture, sigma), candidates, mse(images, guides.pixel_maps.fit(picture, size).double().numpy()))


def test_linear_guides_never_render(never_render):
    candidates, picture = family(3, (16, 16), K=4), uniform(2, 3, 16, 16, seed=3)
    mask = torch.ones(2, 1, 16, 16)
    linear = [guides.l2(picture), guides.denoise(picture), guides.superres(picture[:, :, :5, :5])]
    linear += [guides.colorization(picture), guides.blur(picture, 2.0), guides.inpaint(picture, mask)]
    linear += [guides.strokes(torch.cat([picture, mask], 1))]
    for guide in linear:
        guide(candidates, 0)
    with pytest.raises(ValueError, match='rendered'):
        guides.l1(picture)(candidates, 0)


@pytest.mark.parametrize('make', [
    guides.l2, lambda x: guides.superres(x[:, :, :7, :5]), guides.colorization, guides.edges,
    lambda x: guides.blur(x, 1.0), lambda x: black_boxes.style(lambda images: images, x),
])  # fmt: skip
def test_autocast_does_not_touch_what_guides_compare(make):
    candidates, target = family(), uniform(2, 3, 8, 8)
    wanted = make(target)(candidates, 0)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert torch.equal(make(target)(candidates, 0), wanted)


def test_candidates_without_a_base():
    candidates, picture = family(3, (8, 8), base=False), uniform(2, 3, 4, 4, seed=3)
    images = all_images(candidates)
    close(guides.superres(picture), candidates, mse(area(images, (4, 4)), picture.double().numpy()))
    ones = torch.ones(2, 1, 4, 4)
    up = guides.pixel_maps.fit(picture, (8, 8)).double().numpy()
    close(guides.inpaint(picture, ones), candidates, mse(images, up))
    close(guides.l1(picture), candidates, np.abs(images - up[:, None]).mean((2, 3, 4)))


# Guides with a formula.


@pytest.mark.parametrize('max_candidates', [1, 3, 7, 1000])
def test_l1_in_any_chunks(max_candidates):
    candidates, target = family(3, (4, 4), B=3), uniform(3, 3, 16, 16, seed=3)
    expected = np.abs(all_images(candidates) - area(target.double().numpy(), (4, 4))[:, None]).mean((2, 3, 4))
    close(guides.l1(target, max_candidates=max_candidates), candidates, expected)


@pytest.mark.parametrize('bits', [1, 3, 8])
def test_posterize(bits):
    original = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    low_bit = np.array(ImageOps.posterize(Image.fromarray(original), bits))
    picture = torch.from_numpy(low_bit).permute(2, 0, 1)[None] / 127.5 - 1
    guide = guides.posterize(picture, bits)
    step = 2 ** (8 - bits)
    low = low_bit.transpose(2, 0, 1)[None].repeat(2, 0).astype(float)
    for size in ((4, 4), (16, 16)):
        candidates = family(3, size)
        x = (all_images(candidates) + 1) * 127.5
        l, h = (area(v, size)[:, None] for v in (low - 0.5, low + step - 0.5))
        outside = np.maximum(np.maximum(l - x, x - h), 0) / 127.5
        close(guide, candidates, (outside**2).mean((2, 3, 4)))
    truth = torch.from_numpy(original).permute(2, 0, 1)[None] / 127.5 - 1
    exact = Candidates(torch.zeros(2, 3, 4), torch.zeros(1, 4, 16, 16), truth)
    assert guide(exact, 0).max() < 1e-10  # the original itself is what the low bits leave open


def test_posterize_reads_stretched_levels_too():
    levels = torch.tensor([0, 85, 170, 255.0]).view(1, 1, 2, 2)  # 2 bits as level * 255 / 3
    truth = torch.tensor([40, 100, 140, 200.0]).view(1, 1, 2, 2)
    exact = Candidates(torch.zeros(2, 1, 4), torch.zeros(1, 4, 2, 2), truth / 127.5 - 1)
    assert guides.posterize(levels / 127.5 - 1, 2)(exact, 0).max() < 1e-10
    assert guides.posterize(levels / 127.5 - 1, 3)(exact, 0).max() > 1e-4


def soft_sobel(x: np.ndarray) -> np.ndarray:
    gradient = np.hypot(*(scipy.ndimage.sobel(x, axis, mode='nearest') for axis in (-1, -2)))
    return np.tanh((gradient - 0.75) / 0.5)


def one_by_one(fn, x: np.ndarray) -> np.ndarray:
    flat = x.reshape(-1, *x.shape[-2:])
    return np.stack([fn(p) for p in flat]).reshape(x.shape)


@pytest.mark.parametrize('drawn', [False, True])
@pytest.mark.parametrize('size', [(1, 1), (8, 8)])
def test_edges(size, drawn):
    candidates, picture = family(3, size), uniform(2, 3, 16, 16, seed=3)
    wanted = area(luma(picture.double().numpy()), size)
    wanted = wanted if drawn else one_by_one(soft_sobel, wanted)
    expected = mse(one_by_one(soft_sobel, luma(all_images(candidates))), wanted)
    close(guides.edges(picture, drawn=drawn), candidates, expected)


# Black boxes.


@pytest.mark.parametrize('max_candidates', [1, 4, 11, 1000])
def test_black_boxes_see_every_candidate_once_in_bounded_chunks(max_candidates):
    candidates = family(3, (4, 4), B=3, K=7)
    seen = []

    def fn(images):
        assert images.shape[1:] == (3, 4, 4) and -1 <= images.min() and images.max() <= 1
        seen.append(len(images))
        return images.double().sum((1, 2, 3))

    guide = black_boxes.python(fn, max_candidates=max_candidates)
    close(guide, candidates, -all_images(candidates).clip(-1, 1).sum((2, 3, 4)), 1e-4)
    assert max(seen) <= max_candidates and sum(seen) == 21
    assert len(seen) <= 2 * -(-21 // max_candidates) + 3  # and not one by one


def test_python_takes_numpy_and_gives_anything():
    candidates = family(3, (4, 4))

    def fn(images):
        assert isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == (4, 4, 3)
        return np.mean(images[..., 0].astype(float), axis=(1, 2)).tolist()

    reds = np.round((all_images(candidates).clip(-1, 1)[:, :, 0] + 1) * 127.5).mean((2, 3))
    close(black_boxes.python(fn, numpy=True), candidates, -reds, 1e-4)


def test_black_boxes_see_the_networks_resolution():
    sizes = set()
    net, guide = tiny(), black_boxes.python(lambda x: (sizes.add(tuple(x.shape[1:])), x.mean((1, 2, 3)))[1])
    net.sample(2, guide=guide)
    assert sizes == {(3, 8, 8)}
    candidates = family(3, (4, 4))
    full = candidates.pixels(lambda x: guides.pixel_maps.upsample(x, (8, 8)))
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(all_images(candidates)).flatten(0, 1), size=(8, 8), mode='bilinear', align_corners=False
    )
    np.testing.assert_allclose(all_images(full).reshape(10, 3, 8, 8), wanted, atol=1e-5)


def test_classifier_orders_as_the_probability_and_does_not_saturate():
    candidates, projection = family(3, (4, 4), K=9), torch.randn(48, 4, generator=gen(5))
    for scale in (1.0, 100.0):  # at 100 float32 probabilities are all 0 or 1
        fn = lambda x, s=scale: x.flatten(1) @ projection * s  # noqa: E731
        distances = black_boxes.classifier(fn, [2, 3])(candidates, 0)
        images = torch.from_numpy(all_images(candidates)).clamp(-1, 1).flatten(2)
        logits = images @ projection.double() * scale
        log_odds = [torch.stack([v[c] - v[[i for i in range(4) if i != c]].logsumexp(0) for v in row])
                    for row, c in zip(logits, (2, 3), strict=True)]
        torch.testing.assert_close(distances, -torch.stack(log_odds).float(), rtol=1e-4, atol=1e-4)
        if scale == 1.0:
            probability = torch.stack([logits[0].softmax(1)[:, 2], logits[1].softmax(1)[:, 3]])
            assert (distances.argsort(1) == probability.argsort(1, descending=True)).all()
        assert all(len(row.unique()) == 9 for row in distances)
    with pytest.raises(ValueError, match=r'classifier failed at layer 3: class \[4\] is not in logits \[\d+, 4\]'):
        black_boxes.classifier(fn, 4)(candidates, 3)


def test_perceptual_and_style():
    candidates, target = family(3, (8, 8)), uniform(2, 3, 8, 8, seed=3)
    kernel = torch.randn(4, 3, 3, 3, generator=gen(5))

    def features(x):
        return [torch.nn.functional.conv2d(x, kernel.to(x)), x]

    images = torch.from_numpy(all_images(candidates)).clamp(-1, 1)
    found, wanted = features(images.flatten(0, 1)), features(target.double())
    found = [f.unflatten(0, (2, 5)) for f in found]
    expected = sum((f - w[:, None]).square().mean((2, 3, 4)) for f, w in zip(found, wanted, strict=True))
    close(black_boxes.perceptual(features, target), candidates, expected.numpy())
    gram = [torch.einsum('...chw,...dhw->...cd', x, x) / x.shape[-3:].numel() for x in (*found, *wanted)]
    expected = sum((f - w[:, None]).square().mean((2, 3)) for f, w in zip(gram[:2], gram[2:], strict=True))
    close(black_boxes.style(features, target), candidates, expected.numpy())
    rolled = Candidates(torch.zeros(2, 3, 4), torch.zeros(2, 4, 8, 8), target.roll((3, 5), (2, 3)))
    assert black_boxes.style(lambda x: x, target)(rolled, 0).max() < 1e-10  # texture, not place
    assert black_boxes.perceptual(lambda x: x, target)(rolled, 0).min() > 0.1


def test_clip_is_one_minus_the_cosine():
    candidates, text = family(1, (4, 4)), torch.randn(2, 5, generator=gen(6))
    projection = torch.randn(3 * 36, 5, generator=gen(5))
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)

    def encode(x):
        assert x.shape[1:] == (3, 6, 6)
        return x.flatten(1) @ projection

    expected = np.zeros((2, 5))
    images = torch.from_numpy(all_images(candidates)).float().clamp(-1, 1)
    for b, k in itertools.product(range(2), range(5)):
        x = images[b, k][None].expand(1, 3, 4, 4)
        x = torch.nn.functional.interpolate(x, size=(6, 6), mode='bilinear', align_corners=False)
        x = ((x + 1) / 2 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        f = x.flatten() @ projection
        expected[b, k] = 1 - (f @ text[b] / f.norm() / text[b].norm()).item()
    close(black_boxes.clip(encode, text, 6, mean, std), candidates, expected)


# Pictures: channels, numbers, errors.


def test_channels_convert_as_documented():
    to = guides.pixel_maps.to_channels
    colour, grey = uniform(1, 3, 2, 2), uniform(1, 1, 2, 2)
    np.testing.assert_allclose(to(colour, 1), luma(colour.numpy()), atol=1e-6)
    assert torch.equal(to(grey, 3), grey.repeat(1, 3, 1, 1))
    assert torch.equal(to(colour, 4), torch.cat([colour, torch.ones(1, 1, 2, 2)], 1))
    for C, channels in ((4, 3), (4, 1), (2, 3), (3, 5)):
        with pytest.raises(ValueError, match=f'a picture of {C} channels does not convert to the {channels}'):
            to(torch.zeros(1, C, 2, 2), channels)


def test_few_pictures_serve_many_images():
    candidates, pictures = family(3, (4, 4), B=6), uniform(2, 3, 4, 4, seed=3)
    each = pictures[[0, 0, 0, 1, 1, 1]]
    for make in (guides.l2, guides.superres, guides.colorization, guides.l1, guides.edges):
        torch.testing.assert_close(make(pictures)(candidates, 0), make(each)(candidates, 0), rtol=0, atol=0)
    logits = lambda x: x.flatten(1)[:, :3]  # noqa: E731
    torch.testing.assert_close(
        black_boxes.classifier(logits, [0, 2])(candidates, 0),
        black_boxes.classifier(logits, [0, 0, 0, 2, 2, 2])(candidates, 0), rtol=0, atol=0,
    )
    with pytest.raises(ValueError, match='guide l2 failed at layer 0: its 4 pictures .* batch of 6'):
        guides.l2(uniform(4, 3, 4, 4))(candidates, 0)


def test_failing_guides_are_named_with_their_layer():
    net = tiny()
    late = lambda fn: lambda c, l: fn(c) if l == 2 else torch.zeros(c.shape[0], c.num_nodes)  # noqa: E731

    def sample(fn):
        return net.sample(2, guide=Guide('mine', late(fn)))

    def broken(candidates):
        raise KeyError('no such thing')

    with pytest.raises(ValueError, match="guide mine failed at layer 2: 'no such thing'"):
        sample(broken)
    with pytest.raises(ValueError, match='guide mine at layer 2 gave NaN'):
        sample(lambda c: torch.full((c.shape[0], c.num_nodes), float('nan')))
    with pytest.raises(ValueError, match=r'guide mine at layer 2 gave distances \[2, 9\], not \[B, K\] = \[2, 4\]'):
        sample(lambda c: torch.zeros(2, 9))
    with pytest.raises(ValueError, match=r'guide python failed at layer 0: it gave \[8, 3\] scores for 8 pictures'):
        net.sample(2, guide=black_boxes.python(lambda x: x.mean((2, 3))))


def test_distances_keep_the_precision_that_a_guide_gives_them():
    """In float32 all of these are 1e8."""
    falling = Guide('falling', lambda c, layer: (1e8 - torch.arange(5, dtype=torch.float64)).expand(c.shape[0], -1))
    assert falling(family(), 0).diff().tolist() == [[-1.0] * 4] * 2
    guidance = Guidance([falling], guided_sampling.top_k(1))
    sampler = guided_sampling.sampler(guidance, guided_sampling.chance_table([5], range(2)), (8, 8))
    choice = sampler(family(), 0, torch.zeros(2, 0, dtype=torch.int64))
    assert choice.codes.tolist() == [4, 4]
    whole = Guide('whole', lambda c, layer: torch.arange(5).expand(c.shape[0], -1))
    assert whole(family(), 0).dtype == torch.float32


def test_what_chooses_among_the_best_is_not_what_an_unguided_code_is_drawn_by():
    K = 4
    chance = guided_sampling.chance_table([K] * 10, range(200))
    choice, ties = (chance.choice * K).long(), (chance.ties * K).long()
    for a, b in ((choice, chance.codes), (ties, chance.codes), (choice, ties)):
        assert (a == b).float().mean().item() == pytest.approx(1 / K, abs=0.05)


@pytest.mark.parametrize('make, says', [
    (lambda: guides.l2(torch.zeros(3, 8, 8)), r'pictures \[n, C, H, W\]'),
    (lambda: guides.l2(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), 'uint8'),
    (lambda: guides.l2(torch.full((1, 3, 8, 8), float('nan'))), 'NaN'),
    (lambda: guides.superres(torch.zeros(0, 3, 8, 8)), r'\[0, 3, 8, 8\]'),
    (lambda: guides.blur(torch.zeros(1, 3, 8, 8), 0.0), 'positive sigma, .*, not 0.0'),
    (lambda: guides.blur(torch.zeros(1, 3, 8, 6), 9.0), 'at most the 8 pixels of its picture, not 9.0'),
    (lambda: guides.blur(torch.zeros(1, 3, 8, 8), float('inf')), 'not inf'),
    (lambda: guides.posterize(torch.zeros(1, 3, 8, 8), 9), '1 to 8 bits'),
    (lambda: guides.strokes(torch.zeros(1, 3, 8, 8)), 'RGBA'),
    (lambda: guides.inpaint(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)), 'mask 0 keeps no pixel'),
    (lambda: guides.inpaint(torch.zeros(1, 3, 8, 8), torch.full((1, 1, 8, 8), 2.0)), 'entries in 0..1'),
    (lambda: guides.inpaint(torch.zeros(3, 3, 8, 8), torch.ones(2, 1, 8, 8)), '2 masks do not fit 3 pictures'),
    (lambda: guided_sampling.top_k(0), 'at least the best one'),
    (lambda: guided_sampling.temperature(0.0), 'positive'),
])
def test_senseless_guides(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize('guidance, says', [
    (Guidance([]), 'at least one guide'),
    (Guidance([guides.l2(torch.zeros(1, 3, 8, 8), weight=0)]), 'guide l2 has weight 0'),
    (Guidance([guides.l2(torch.zeros(1, 3, 8, 8))], beam=0), 'beam and every are at least 1, not 0'),
    (Guidance([guides.l2(torch.zeros(1, 3, 8, 8))], every=0), 'beam and every are at least 1, not 1 and 0'),
    (Guidance([guides.l2(torch.zeros(1, 3, 8, 8))], layers=(3, 9)), 'layers 0-4; 3-9'),
])
def test_senseless_guidance(guidance, says):
    with pytest.raises(ValueError, match=says):
        tiny().sample(1, guide=guidance)


# Choosing.


def test_top_k_takes_the_k_best_evenly():
    scores = torch.randn(1, 6, generator=gen()).expand(600, 6)
    best = scores[0].argsort()
    chance = (torch.arange(600) + 0.5) / 600
    for k in (1, 2, 4, 6, 50):
        counts = torch.bincount(guided_sampling.top_k(k)(scores, chance), minlength=6)[best]
        assert counts.tolist() == [600 // min(k, 6)] * min(k, 6) + [0] * (6 - min(k, 6))
    assert guided_sampling.top_k(3)(scores[:1], torch.ones(1)) == best[2]  # chance rounded up to 1


def test_temperature_samples_the_softmax():
    scores = torch.randn(1, 6, generator=gen()).expand(10000, 6)
    chance = (torch.arange(10000) + 0.5) / 10000
    for t in (0.1, 1.0, 100.0):
        share = torch.bincount(guided_sampling.temperature(t)(scores, chance), minlength=6) / 10000
        torch.testing.assert_close(share, torch.softmax(-scores[0] / t, 0), atol=2e-4, rtol=0)
    assert (guided_sampling.temperature(1e-30)(scores, chance) == scores[0].argmin()).all()
    never = torch.tensor([[float('inf'), 1.0, float('inf')]]).expand(10, 3)
    assert (guided_sampling.temperature(1.0)(never, torch.arange(10) / 10) == 1).all()


def test_ranks_count_the_strictly_better():
    distances = torch.tensor([[0.3, 0.1, 0.3, 2.0, -1.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    expected = [[sum(other < d for other in row) for d in row] for row in distances.tolist()]
    assert guided_sampling.ranks(distances).tolist() == expected


def test_combining_by_rank_and_by_distance():
    a, b = torch.randn(2, 3, 7, generator=gen())
    mean = guided_sampling.by_distance([a, b], [3.0, 1.0])
    torch.testing.assert_close(mean, 0.75 * a + 0.25 * b)
    ranked = guided_sampling.by_rank([a, b * 1e6], [3.0, 1.0])
    for row in range(3):
        for k in range(7):
            ranks = [sum(o < d[row, k] for o in d[row]) for d in (a, b)]
            assert ranked[row, k].item() == pytest.approx(0.75 * ranks[0].item() + 0.25 * ranks[1].item())


def test_the_weighted_sum_of_linear_guides_is_the_weighted_mean_of_rendered_distances():
    candidates, picture = family(3, (8, 8)), uniform(2, 3, 8, 8, seed=3)
    low, grey = area(picture.double().numpy(), (4, 4)), luma(picture.double().numpy())
    both = [guides.superres(torch.from_numpy(low).float()), guides.colorization(picture)]
    total = guided_sampling.by_distance([g(candidates, 0) for g in both], [2.0, 1.0]).numpy()
    images = all_images(candidates)
    expected = (2 * mse(area(images, (4, 4)), low) + mse(luma(images), grey)) / 3
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-5)


# The sampler.


def tiny(num_nodes: int = 4, **kwargs) -> DDN:
    """L = 5 layers at 1x1 to 8x8."""
    torch.manual_seed(0)
    net = DDN(8, 3, [8, 8, 8, 8], [1, 1, 1, 2], [num_nodes] * 4, **kwargs).eval()
    for ddl in net.ddls:
        ddl.weight.data.mul_(2)
    return net


def test_argmax_by_l2_is_encoding():
    net, images = tiny(), uniform(3, 3, 8, 8, seed=9)
    shown, codes = net.sample(6, guide=Guidance([guides.l2(images)], guided_sampling.top_k(1)))
    assert torch.equal(codes, net.encode(images).repeat_interleave(2, 0))
    torch.testing.assert_close(net.decode(codes), shown, rtol=0, atol=1e-6)


@pytest.mark.parametrize('options', [{}, {'choose': guided_sampling.temperature(0.05)}, {'every': 2}, {'beam': 3}])
def test_a_seed_is_one_image_at_any_batch_size(options):
    net, target = tiny(), uniform(1, 3, 4, 4, seed=9)
    before = torch.random.get_rng_state()
    guidance = Guidance([guides.superres(target), guides.l1(target)], **options)
    images, codes = net.sample(7, seed=20, guide=guidance)
    for first, last in ((0, 1), (1, 4), (4, 7)):
        some, these = net.sample(seeds=range(20 + first, 20 + last), guide=guidance)
        assert torch.equal(these, codes[first:last])
        torch.testing.assert_close(some, images[first:last], rtol=0, atol=1e-5)
    if options.get('beam', 1) == 1:
        assert len(codes.unique(dim=0)) > 1
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize('every, layers, asked', [
    (1, None, [0, 1, 2, 3, 4]), (2, None, [0, 2, 4]), (3, None, [0, 3]), (1, (1, 3), [1, 2, 3]), (2, (1, 4), [1, 3]),
])
@pytest.mark.parametrize('beam', [1, 2])
def test_layers_that_do_not_ask_choose_as_without_a_guide(every, layers, asked, beam):
    net, called = tiny(), []

    def distances(candidates, layer):
        called.append(layer)
        return torch.arange(4.0).expand(candidates.shape[0], 4)

    guidance = Guidance([Guide('first', distances)], guided_sampling.top_k(1), beam=beam, every=every, layers=layers)
    codes = net.sample(5, seed=3, guide=guidance)[1]
    assert called == asked
    wanted = samplers.uniform_codes(net.num_nodes, range(3, 8))
    wanted[:, asked] = 0
    if beam == 1:
        assert torch.equal(codes, wanted)
    rest = [l for l in range(5) if l not in asked]
    assert torch.equal(codes[:, rest], wanted[:, rest])


def test_indifferent_guides_leave_the_choice_to_chance():
    net = tiny(num_nodes=5)
    indifferent = Guide('indifferent', lambda c, layer: torch.zeros(c.shape[0], c.num_nodes))
    for choose in (guided_sampling.top_k(1), guided_sampling.top_k(2), guided_sampling.temperature(1.0)):
        codes = net.sample(1000, guide=Guidance([indifferent], choose))[1]
        share = torch.stack([torch.bincount(column, minlength=5) for column in codes.t()]) / 1000
        assert (share - 0.2).abs().max() < 0.06
    codes = net.sample(300, guide=Guidance([indifferent, guides.l2(uniform(1, 3, 8, 8))], guided_sampling.top_k(1)))[1]
    assert len(codes.unique(dim=0)) == 1  # and the other guide alone decides


def judged(*values: float, weight: float = 1.0) -> Guide:
    """The same distances [K] at every layer."""
    return Guide('judged', lambda c, layer: torch.tensor(values).expand(c.shape[0], -1), weight)


@pytest.mark.parametrize('combine', [guided_sampling.by_rank, guided_sampling.by_distance])
@pytest.mark.parametrize('options', [
    {'choose': guided_sampling.top_k(1)}, {'choose': guided_sampling.top_k(2)},
    {'choose': guided_sampling.temperature(1.0)}, {'beam': 3},
])  # fmt: skip
def test_infinite_is_never(combine, options):
    net, inf = tiny(), float('inf')

    def chosen(*given: Guide) -> set[int]:
        return set(net.sample(20, guide=Guidance(given, combine=combine, **options))[1].flatten().tolist())

    for weight in (1.0, -1.0):
        only_2 = judged(inf, inf, 1, inf, weight=weight)
        others = judged(0, 1, 2, 3), judged(3, inf, 1, 0), judged(0, 1, 2, 3, weight=-5.0)
        assert chosen(only_2) == {2}
        for other in others:
            assert chosen(only_2, other) == chosen(other, only_2) == {2}
        assert chosen(judged(inf, 0, 1, inf, weight=weight)) <= {1, 2}
        assert 2 not in chosen(judged(1, 0, inf, 2), judged(3, 2, 1, 0, weight=weight))
        nothing = judged(inf, inf, inf, inf, weight=weight)
        assert chosen(only_2, nothing) == chosen(nothing, only_2) == {2}
        assert chosen(nothing) == chosen(nothing, nothing) == {0, 1, 2, 3}
        assert chosen(only_2, judged(0, 1, inf, 2)) == {2}  # they leave nothing: the first is heard


def test_negative_weight_is_away_from():
    net = tiny()
    least = Guide('least', lambda c, layer: torch.arange(4.0).expand(c.shape[0], 4))
    for combine in (guided_sampling.by_rank, guided_sampling.by_distance):
        away = Guidance([least._replace(weight=-1.0)], guided_sampling.top_k(1), combine)
        assert (net.sample(2, guide=away)[1] == 3).all()


def test_a_conditional_network_takes_condition_and_guide():
    net, condition = tiny(condition_channels=1), uniform(3, 1, 8, 8)
    target = uniform(3, 3, 8, 8, seed=5)
    for guidance in (Guidance([guides.l2(target)], guided_sampling.top_k(1)), Guidance([guides.l2(target)], beam=2)):
        images, codes = net.sample(3, condition=condition, guide=guidance)
        torch.testing.assert_close(net.decode(codes, condition), images, rtol=0, atol=1e-6)
    images, _ = net.sample(3, condition=condition[:1], guide=Guidance([guides.l2(target)], beam=2))
    assert images.shape == (3, 3, 8, 8)


# Beam search.


def prefix_image(net: DDN, prefix: tuple[int, ...], layer: int) -> torch.Tensor:
    """The selected image of ``layer`` after these codes, by a plain decode."""
    codes = torch.tensor([[*prefix, *[0] * (net.num_layers - len(prefix))]])
    return net(samplers.given(codes), 1, keep=True).selected[layer]


def error(net: DDN, prefix: tuple[int, ...], target: torch.Tensor) -> float:
    image = prefix_image(net, prefix, len(prefix) - 1)
    return (image - guides.pixel_maps.fit(target, image.shape[2:])).square().mean().item()


@torch.no_grad()
def slow_beam(net: DDN, target: torch.Tensor, b: int) -> tuple[int, ...]:
    kept = [()]
    for l in range(net.num_layers):
        grown = [(*prefix, k) for prefix in kept for k in range(net.num_nodes[l])]
        kept = sorted(grown, key=lambda prefix: error(net, prefix, target))[:b]
    return kept[0]


@torch.no_grad()
@pytest.mark.parametrize('b', [2, 3, 5])
def test_beam_search_is_beam_search(b):
    net, targets = tiny(num_nodes=3), uniform(3, 3, 8, 8, seed=11)
    images, codes = net.sample(3, guide=Guidance([guides.l2(targets)], beam=b))
    for target, row in zip(targets, codes, strict=True):
        assert tuple(row.tolist()) == slow_beam(net, target[None], b)
    torch.testing.assert_close(net.decode(codes), images, rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_wide_beam_finds_the_best_leaf():
    net, target = tiny(num_nodes=3), uniform(1, 3, 8, 8, seed=12)
    leaves = torch.tensor(list(itertools.product(range(3), repeat=5)))
    errors = (net.decode(leaves) - target).square().mean((1, 2, 3))
    for beam in (81, 100):  # 81 prefixes of four codes: nothing is ever dropped
        codes = net.sample(2, guide=Guidance([guides.l2(target)], beam=beam))[1]
        assert torch.equal(codes, leaves[errors.argmin()].expand(2, 5))
    greedy = net.sample(1, guide=Guidance([guides.l2(target)], guided_sampling.top_k(1)))[0]
    assert (greedy - target).square().mean() > errors.min()  # or the test would show nothing


def test_beam_of_several_guides_ranks_all_continuations_of_an_image():
    net, target = tiny(num_nodes=3), uniform(1, 3, 8, 8, seed=12)
    alone = net.sample(1, guide=Guidance([guides.l2(target)], beam=4))[1]
    twice = net.sample(1, guide=Guidance([guides.l2(target), guides.l2(target, weight=2.0)], beam=4))[1]
    assert torch.equal(alone, twice)


@torch.no_grad()
def test_a_sampler_keeps_nothing_between_passes():
    """What a beam needs to know of its rows is in the codes so far: two passes may take turns with one sampler."""
    net, target = tiny(num_nodes=3), uniform(2, 3, 8, 8, seed=12)
    two_left = lambda c, l: torch.arange(3.0).masked_fill(torch.arange(3) > 1, float('inf')).expand(c.shape[0], -1)  # noqa: E731
    guidance = Guidance([guides.l2(target), Guide('two left', two_left)], beam=4, layers=(1, 4))
    sampler = guided_sampling.sampler(guidance, guided_sampling.chance_table(net.num_nodes, range(2)), (8, 8))
    alone = net(sampler, 8)
    passes = [net.walk(sampler, 8) for _ in range(2)]
    first, second = zip(*[[step.codes for step in steps] for steps in zip(*passes, strict=True)], strict=True)
    assert torch.equal(first[-1], alone.codes) and torch.equal(second[-1], alone.codes)
    assert torch.equal(alone.codes[::4], net.sample(2, guide=guidance)[1])


def test_rows_with_the_codes_of_the_first_are_spare():
    codes = torch.tensor([[[0, 1], [0, 1], [0, 2]], [[1, 1], [1, 0], [1, 1]]])
    assert guided_sampling.copies_of_first(codes).tolist() == [[False, True, False], [False, False, True]]
    assert guided_sampling.copies_of_first(codes[:, :, :0]).tolist() == [[False, True, True]] * 2


def test_the_five_line_guide_of_the_docs():
    """docs/guiding.md: the left half mirrors the right."""

    def mirrored(candidates, layer):
        difference = candidates.pixels(lambda x: x - x.flip(3))
        return difference.distances(torch.zeros(difference.shape))

    candidates = family(3, (4, 6))
    images = all_images(candidates)
    close(Guide('mirrored', mirrored), candidates, ((images - images[..., ::-1]) ** 2).mean((2, 3, 4)))
    images, _ = tiny().sample(8, guide=Guidance([Guide('mirrored', mirrored)], guided_sampling.top_k(1)))
    free, _ = tiny().sample(8)
    asymmetry = [(x - x.flip(3)).square().mean() for x in (images, free)]
    assert asymmetry[0] < 0.7 * asymmetry[1]


@pytest.mark.parametrize('beam, finisher_width', [(1, 0), (3, 0), (1, 4)])
def test_layers_end_with_what_sample_gives(beam, finisher_width):
    torch.manual_seed(0)
    net = DDN(8, 1, [8, 8], [2, 2], [5, 4], finisher_width=finisher_width).eval()
    if net.finisher is not None:
        torch.nn.init.normal_(net.finisher.leave.weight)
    guidance = Guidance([guides.l2(uniform(1, 1, 8, 8))], beam=beam)
    steps = list(guided_sampling.layers(net, guidance, range(3)))
    assert len(steps) == net.num_layers + bool(finisher_width)
    images, codes = net.sample(3, guide=guidance)
    assert torch.equal(steps[-1][0], images) and torch.equal(steps[-1][1], codes)
    for l, (some, so_far) in enumerate(steps[: net.num_layers]):
        assert list(some.shape[2:]) == list(net.specs[l].size) and so_far.shape == (3, l + 1)
        assert beam > 1 or torch.equal(so_far, codes[:, : l + 1])
