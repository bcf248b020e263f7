"""Finished pictures are brought back onto exact conditions, and onto no others."""

import pytest
import torch

from ddn_networks import DDN, guides, pixel_maps
from ddn_networks.back_projection import TOLERANCE, Conditions, projected
from ddn_networks.guided_sampling import Guidance


def pictures(num=3, seed=0, size=16, channels=3):
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num, channels, 4, 4, generator=rng) * 2 - 1
    return pixel_maps.upsample(coarse, (size, size))


def half_mask(size=16):
    mask = torch.zeros(1, 1, size, size)
    mask[..., : size // 2] = 1
    return mask


def soft_mask():
    return torch.linspace(0, 1, 16).view(1, 1, 1, 16).expand(1, 1, 16, 16).contiguous()


EXACT = {
    'superres': lambda x: [guides.superres(pixel_maps.box(x, (4, 4)))],
    'superres of a size that does not divide': lambda x: [guides.superres(pixel_maps.box(x, (5, 7)))],
    'inpaint': lambda x: [guides.inpaint(x, half_mask())],
    'inpaint with a soft mask': lambda x: [guides.inpaint(x, soft_mask())],
    'colorization': lambda x: [guides.colorization(x)],
    'stacked': lambda x: [guides.superres(pixel_maps.box(x, (4, 4))), guides.inpaint(x, half_mask()),
                          guides.colorization(x)],
}  # fmt: skip


def by_hand(guide_name, x, y):
    """RMSE [B] of A y against the condition of picture x, written out again."""
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    difference = {
        'superres': torch.nn.functional.avg_pool2d(x - y, 4),
        'inpaint': (x - y)[..., :8],
        'colorization': ((x - y) * luma).sum(1),
    }[guide_name]
    return difference.flatten(1).square().mean(1).sqrt()


@pytest.mark.parametrize('name', EXACT)
def test_it_ends_as_near_as_before(name):
    x = pictures()
    made = EXACT[name](x)
    before = x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    finished = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    y = projected(finished, before, made, 0)
    assert y.abs().max() <= 1
    conditions = Conditions(made, x, 0)
    assert (conditions.errors(finished) > conditions.errors(before) + 0.05).all()
    assert (conditions.errors(y) <= conditions.errors(before) + TOLERANCE + 1e-6).all()
    for guide, error in zip(made, conditions.errors(finished).T, strict=True):
        torch.testing.assert_close(error, guide.of_pictures(finished, 0).sqrt())
        if name in ('superres', 'inpaint', 'colorization', 'stacked'):
            torch.testing.assert_close(error, by_hand(guide.name, x, finished))
            limit = torch.minimum(by_hand(guide.name, x, before), by_hand(guide.name, x, before.clamp(-1, 1)))
            assert (by_hand(guide.name, x, y) <= limit + TOLERANCE + 1e-6).all()


@pytest.mark.parametrize('name', [name for name in EXACT if 'soft' not in name])
def test_a_projection_is_the_pseudo_inverse(name):
    x = pictures(2, size=16)
    conditions = Conditions(EXACT[name](x), x, 0)
    unit = torch.eye(3 * 16 * 16).view(-1, 3, 16, 16)
    of_units = Conditions(EXACT[name](x[:1]), unit, 0)
    A = torch.cat(of_units.measured(unit), 1).T.double()  # [M, C H W]
    y = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    missing = torch.cat(conditions.missing(y), 1).double()
    expected = y.double() + (torch.linalg.pinv(A, rtol=1e-6) @ missing.T).T.view(x.shape)
    exact = torch.cat(conditions.missing(conditions.projected(y)), 1).norm(dim=1)
    assert (exact < 2e-3 * missing.norm(dim=1)).all()
    tolerance = 2e-2 if 'divide' in name or name == 'stacked' else 1e-5
    torch.testing.assert_close(conditions.projected(y).double(), expected, rtol=0, atol=tolerance)


def test_conditions_that_no_picture_meets_move_it_towards_the_picture_before():
    x = pictures()
    made = [guides.inpaint(torch.full_like(x, 3.0), half_mask()), guides.superres(torch.full((1, 3, 4, 4), -3.0))]
    before, finished = x * 0.5, -x
    y = projected(finished, before, made, 0)
    conditions = Conditions(made, x, 0)
    assert (conditions.errors(y) <= conditions.errors(before) + TOLERANCE + 1e-6).all()
    assert y.abs().max() <= 1


@pytest.mark.parametrize('guide', [
    guides.l2(pictures()), guides.denoise(pictures()), guides.blur(pictures(), 2.0), guides.l1(pictures()),
    guides.strokes(torch.cat([pictures(), torch.ones(3, 1, 16, 16)], 1)), guides.posterize(pictures(), 2),
    guides.inpaint(pictures(), half_mask(), weight=-1.0),
], ids=lambda guide: f'{guide.name} {guide.weight:g}')  # fmt: skip
def test_other_guides_change_nothing(guide):
    x = pictures(seed=3)
    assert projected(x, pictures(), [guide], 0) is x


def network():
    torch.manual_seed(0)
    net = DDN(16, 3, [8, 8], [2, 2], [4, 8], grids=[1, 1, 2, 4], finisher_width=4).eval()
    with torch.no_grad():
        for param in net.finisher.parameters():
            param.copy_(0.1 * torch.randn(param.shape))
    return net


@pytest.mark.parametrize('name', ['superres', 'stacked'])
def test_guided_samples_are_projected(name):
    net, x = network(), pictures(2)
    guidance = Guidance(EXACT[name](x))
    before, codes = net.sample(4, guide=guidance, finish=False)
    after, same = net.sample(4, guide=guidance)
    assert torch.equal(codes, same) and torch.equal(before, net.decode(codes, finish=False))
    conditions = Conditions(guidance.guides, after, 3)
    plain = net.decode(codes)
    assert (conditions.errors(plain) > conditions.errors(before) + TOLERANCE).any()
    assert (conditions.errors(after) <= conditions.errors(before) + TOLERANCE + 1e-6).all()
    assert (after - before).abs().max() > 0.01


def test_guided_samples_without_exact_conditions_are_the_finished_ones():
    net = network()
    after, codes = net.sample(4, guide=guides.blur(pictures(2), 1.0))
    assert torch.equal(after, net.decode(codes))
