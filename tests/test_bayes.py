"""Guides weighed against a network's own prior, compared with exact posteriors of enumerated codes."""

import math

import pytest
import torch
import torch.nn.functional as F

from ddn_networks import DDN, bayes, black_boxes, guided_sampling, guides, pixel_maps
from ddn_networks.guided_sampling import Guidance, temperature, top_k
from ddn_networks.guides import Comparison
from ddn_networks.sampling import Sampling

SIGMA = 0.5  # deviation of the white error of every pixel
SEEDS = 1000


def white(num_layers: int = 1) -> dict[str, list[float]]:
    """The residuals of white errors: a mean of p x p pixels has 1 / p^2 of the mean square, the luma the sum of squares
    of its coefficients."""
    luma = sum(c * c for c in pixel_maps.LUMA)
    return {f'{kind}/{p}': [SIGMA**2 * share / p**2] * num_layers
            for kind, share in (('rgb', 1.0), ('luma', luma)) for p in (1, 2, 4)}  # fmt: skip


class FixedLogits(torch.nn.Module):
    """A head of the first layer, whose features are always the same."""

    def __init__(self, num_nodes: int, num_cells: int):
        super().__init__()
        logits = torch.randn(num_nodes, num_cells, generator=torch.Generator().manual_seed(3))
        self.register_buffer('logits', logits if num_cells > 1 else logits[:, 0])

    def forward(self, features: torch.Tensor, step: int = 0) -> torch.Tensor:
        return self.logits.expand(len(features), *self.logits.shape)


def network(grid, num_nodes=3, residuals=True, **kwargs) -> DDN:
    """4x4 pixels, one layer."""
    torch.manual_seed(1)
    net = DDN(4, 3, [8], [1], [num_nodes], grids=[grid], prior_width=8, **kwargs).eval()
    for block in net.blocks:
        block.conv1.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    net.prior[0] = FixedLogits(num_nodes, net.num_codes)
    net.sampling = Sampling((), white() if residuals else {})
    return net


def every_code(net: DDN) -> torch.Tensor:
    return torch.cartesian_prod(*(torch.arange(k) for k in net.code_nodes)).view(-1, net.num_codes)


# What an image shows of itself, and the guide that knows it: images [B, 3, 4, 4] -> (values [B, N], covariance, guide).

MASK = (torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(7)) < 0.5).float()
LUMA = torch.tensor(pixel_maps.LUMA).view(3, 1, 1)
CONDITIONS = {
    'l2': (lambda x: x.flatten(1), SIGMA**2, guides.l2),
    'inpaint': (lambda x: x[:, :, MASK[0, 0] > 0].flatten(1), SIGMA**2, lambda y: guides.inpaint(y, MASK)),
    'superres 2x2': (lambda x: F.avg_pool2d(x, 2).flatten(1), SIGMA**2 / 4,
                     lambda y: guides.superres(F.avg_pool2d(y, 2))),
    'superres 1x1': (lambda x: F.avg_pool2d(x, 4).flatten(1), SIGMA**2 / 16,
                     lambda y: guides.superres(F.avg_pool2d(y, 4))),
    'colorization': (lambda x: (x * LUMA).sum(1).flatten(1), SIGMA**2 * LUMA.square().sum(),
                     lambda y: guides.colorization((y * LUMA).sum(1, keepdim=True))),
}  # fmt: skip


def posterior(net: DDN, name: str, image: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """p(code | what the image shows) of every code by Bayes' rule, float64; the log-likelihood times ``weight``."""
    shows, variance, _ = CONDITIONS[name]
    codes = every_code(net)
    error = (shows(net.decode(codes)) - shows(image)).double()
    return (net.log_prob(codes) - weight * error.square().sum(1) / (2 * variance)).softmax(0)


def image_with_white_errors(net: DDN) -> torch.Tensor:
    rng = torch.Generator().manual_seed(5)
    return net.sample(1, seed=3)[0] + SIGMA * torch.randn(1, 3, 4, 4, generator=rng)


def frequencies(net: DDN, guidance: Guidance, num: int = SEEDS, **kwargs) -> torch.Tensor:
    """Counts of every code of so many samples."""
    codes = net.sample(num, guide=guidance, **kwargs)[1]
    bases = torch.tensor([math.prod(net.code_nodes[d + 1 :]) for d in range(net.num_codes)])
    return (codes * bases).sum(1).bincount(minlength=math.prod(net.code_nodes))


def require_frequencies(counts: torch.Tensor, p: torch.Tensor) -> None:
    often = SEEDS * p > 1
    chi = ((counts - SEEDS * p).square() / (SEEDS * p))[often].sum().item()
    assert chi < often.sum() + 5 * math.sqrt(2 * often.sum()), chi
    assert counts[~often].sum() <= 5 + 5 * SEEDS * p[~often].sum()


@pytest.mark.parametrize('grid, num_nodes', [(1, 9), (2, 3)])
@pytest.mark.parametrize('name', CONDITIONS)
def test_guided_samples_have_the_exact_posterior(name, grid, num_nodes):
    net = network(grid, num_nodes)
    image = image_with_white_errors(net)
    crosses = name == 'superres 1x1' and grid == 2
    weight = 0.1 if crosses else 1.0
    p = posterior(net, name, image, weight)
    prior = net.log_prob(every_code(net)).exp()
    assert (p - prior).abs().sum() > 0.1  # or the test would show nothing
    # Gibbs sampling, which takes longer the sharper the condition.
    guidance = Guidance([CONDITIONS[name][2](image)], sweeps=10 if crosses else 1, prior_weight=weight)
    require_frequencies(frequencies(net, guidance), p)


def test_two_conditions_and_weights():
    net = network(2)
    image = image_with_white_errors(net)
    codes = every_code(net)
    log_p = net.log_prob(codes)
    likelihoods = [(posterior(net, name, image).log() - log_p) for name in ('superres 1x1', 'colorization')]
    both = [CONDITIONS[name][2](image) for name in ('superres 1x1', 'colorization')]
    p = (log_p + 0.1 * likelihoods[0] + 0.1 * likelihoods[1]).softmax(0)
    require_frequencies(frequencies(net, Guidance(both, sweeps=10, prior_weight=0.1)), p)
    p = ((log_p + 0.05 * likelihoods[0] + 0.4 * likelihoods[1]) / 1.5).softmax(0)
    guidance = Guidance([both[0], both[1]._replace(weight=2.0)], sweeps=10, prior_weight=[0.05, 0.2])
    require_frequencies(frequencies(net, guidance, temperature=1.5), p)


def test_proposals_of_the_posterior_need_no_prior_again():
    """A log-likelihood judges proposals of q = p(k | the other guides): importance sampling with weights L p / q."""
    net = network(1, 5)
    image = image_with_white_errors(net)
    towards = torch.randn(48, generator=torch.Generator().manual_seed(9)) / 3
    black = black_boxes.python(lambda x: x.flatten(1) @ towards)  # a log-likelihood
    log_likelihood = net.decode(every_code(net)).clamp(-1, 1).flatten(1) @ towards
    near = CONDITIONS['superres 2x2'][2](image)
    for given, known in (([black], net.log_prob(every_code(net))),
                         ([black, near], 0.95 * net.log_prob(every_code(net)) +
                          0.05 * posterior(net, 'superres 2x2', image).log())):  # fmt: skip
        p = (known + log_likelihood).softmax(0)
        gained = (p - known.softmax(0)).abs().sum()
        found = frequencies(net, Guidance(given, temperature(1.0), proposals=30, prior_weight=0.05), 400) / 400
        assert gained > 0.3 and (found - p).abs().sum() < 0.4 * gained


def test_more_proposals_of_the_prior_guide_better():
    net = network(2)
    guide = guides.edges(net.sample(1, seed=77)[0])
    found = [guide.of_pictures(net.sample(30, guide=Guidance([guide], top_k(1), proposals=M))[0], 0).mean()
             for M in (1, 4, 16)]  # fmt: skip
    assert found[0] > found[1] > found[2]
    near = guides.superres(torch.zeros(1, 3, 1, 1))  # whose best answers are always the same
    with_near = [guide.of_pictures(net.sample(30, guide=Guidance([guide, near], top_k(1), proposals=M),
                                              uniform=True)[0], 0).mean() for M in (1, 16)]  # fmt: skip
    assert with_near[0] > with_near[1]


def test_limits_of_the_weight():
    net = network((2, 4))
    image = image_with_white_errors(net)
    unguided = net.sample(50)[1]
    for name in CONDITIONS:
        guide = CONDITIONS[name][2](image)
        assert torch.equal(net.sample(50, guide=Guidance([guide], prior_weight=0.0))[1], unguided)
    nearest = net.encode(image)
    assert torch.equal(net.sample(50, guide=Guidance([guides.l2(image)], prior_weight=1e9))[1], nearest.expand(50, -1))
    likeliest = net.sample(1, guide=guides.l2(image), temperature=0.0)[1]
    assert torch.equal(net.sample(50, guide=Guidance([guides.l2(image)], top_k(1)))[1], likeliest.expand(50, -1))


def test_uniform_is_what_a_network_without_a_prior_does():
    torch.manual_seed(1)
    plain = DDN(8, 3, [8, 8], [2, 1], [4, 4], grids=[1, 4]).eval()
    torch.manual_seed(1)
    net = DDN(8, 3, [8, 8], [2, 1], [4, 4], grids=[1, 4], prior_width=8).eval()
    net.load_state_dict(plain.state_dict(), strict=False)
    target = torch.rand(1, 3, 8, 8)
    for guide in (guides.l2(target), guides.blur(target, 1.0), guides.edges(target)):
        for guidance in (Guidance([guide]), Guidance([guide], every=2)):
            images, codes = net.sample(4, guide=guidance, uniform=True)
            wanted = plain.sample(4, guide=guidance)
            assert torch.equal(codes, wanted[1]) and torch.equal(images, wanted[0])
    whole = DDN(8, 3, [8, 8], [2, 1], [4, 4], prior_width=8).eval()
    beam = whole.sample(2, guide=Guidance([guides.l2(target)], beam=3))
    assert torch.equal(beam[1], whole.sample(2, guide=Guidance([guides.l2(target)], beam=3), uniform=True)[1])


def test_layers_that_are_not_asked_sample_the_prior():
    torch.manual_seed(1)
    net = DDN(8, 3, [8, 8], [2, 1], [4, 4], grids=[1, 4], prior_width=8).eval()
    for head in net.prior:
        head.out.weight.data.normal_(0, 1.0)
    net.sampling = Sampling((0.5, 1.0, 2.0), white(3))
    free = net.sample(20)[1]
    codes = net.sample(20, guide=Guidance([guides.l2(torch.rand(1, 3, 8, 8))], layers=(1, 2)))[1]
    assert torch.equal(codes[:, 0], free[:, 0]) and not torch.equal(codes[:, 1], free[:, 1])
    assert not torch.equal(net.sample(20, uniform=True)[1][:, 0], free[:, 0])


def test_guides_have_fitted_weights():
    """At the default weight samples are those of that weight, given; one weight for all, or one each."""
    net = network(2)
    image = image_with_white_errors(net)
    for name, weight in {**bayes.PRIOR_WEIGHTS, 'superres': 1.0}.items():
        make = {'denoise': guides.denoise, 'strokes': lambda x: guides.strokes(torch.cat([x, x[:, :1] * 0], 1))}
        guide = {**make, **{n.split()[0]: made for n, (_, _, made) in CONDITIONS.items()}}[name](image)
        for given in (weight, [weight]):
            wanted = net.sample(40, guide=Guidance([guide], prior_weight=given))[1]
            assert torch.equal(net.sample(40, guide=guide)[1], wanted)


def test_residuals_of_any_pooling():
    measured = {'rgb/1': [0.8, 0.4], 'rgb/2': [0.2, 0.1], 'rgb/8': [0.05, 0.0], 'luma/1': [0.3, 0.3]}
    square = lambda *args: bayes.mean_square(measured, *args)  # noqa: E731
    assert square(0, False, 1) == pytest.approx(0.8) and square(1, False, 2) == pytest.approx(0.1)
    assert square(0, False, math.sqrt(2)) == pytest.approx(0.4)  # half way, geometrically
    assert square(0, False, 4) == pytest.approx(0.1) and square(0, False, 64) == pytest.approx(0.05)
    assert square(0, True, 2) == pytest.approx(0.3)
    assert square(5, False, 1) == pytest.approx(0.4)  # further steps of a recurrent network are as the last
    assert 0 < square(1, False, 8) < 1e-6
    with pytest.raises(ValueError, match=r'no measured luma residuals, .*: measure them with train.py --fit-prior, or'):
        bayes.mean_square({'rgb/1': [1.0]}, 0, True, 1)


def test_a_network_without_measured_residuals_says_what_to_do():
    net = network(2, residuals=False)
    target = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r'has a prior but no measured rgb residuals.*\(--uniform\)'):
        net.sample(2, guide=guides.l2(target))
    net.sample(2, guide=guides.l2(target), uniform=True)
    net.sample(2, guide=guides.edges(target))
    with pytest.raises(ValueError, match='top_p and cfg are for samples without guides'):
        net.sample(2, guide=guides.edges(target), top_p=0.5)
    with pytest.raises(ValueError, match='a beam or uniform leaves it out'):
        net.sample(2, guide=Guidance([guides.edges(target)], beam=2, layers=(0, 0)), temperature=0.5)


@pytest.mark.parametrize('make', [
    guides.l2, lambda x: guides.superres(x[:, :, :3, :5]), lambda x: guides.superres(x[:, :, :2, :2]),
    guides.colorization, lambda x: guides.blur(x, 1.0), lambda x: guides.inpaint(x, (x[:, :1] > 0).float()),
])  # fmt: skip
def test_values_are_counted_once(make):
    """N d is the sum of squares of the picture, over the cells as over the whole."""
    target = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    rng = torch.Generator().manual_seed(0)
    parts = torch.randn(3, 3, 5, generator=rng), torch.randn(2, 5, 8, 8, generator=rng)
    guide = make(target)
    whole, cells = (guided_sampling.Candidates(*parts, grid=grid) for grid in ((1, 1), (2, 2)))
    comparison = guide.compared(whole, 0)
    N = comparison.num_values(whole)
    total = (comparison.distances(whole) * N)[:, 0]
    if guide.compared(cells, 0).separable is None:
        found = guide(cells, 0) * guide.compared(cells, 0).num_values(cells)
        torch.testing.assert_close(found[:, 0].sum(1), total, rtol=1e-4, atol=1e-4)
    assert isinstance(comparison, Comparison)
    if guide.name == 'blur':  # of which a pixel is like its neighbours
        assert comparison.pooling == pytest.approx(2 * math.pi**0.5) and N == pytest.approx(3 * 64 / (4 * math.pi))
    per_cell = torch.as_tensor(guide.compared(cells, 0).num_values(cells))
    torch.testing.assert_close(per_cell.expand(2, 1, 4).sum(2), torch.as_tensor(N, dtype=per_cell.dtype).expand(2, 1))
