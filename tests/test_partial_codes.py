"""Partial codes: what is kept stays, what is free is drawn as without it, and has the probabilities of the prior."""

import math

import pytest
import torch
from test_prior import every_code, networks

from ddn_networks import DDN, generate, guides, samplers
from ddn_networks.guided_sampling import Guidance, by_distance, temperature, top_k
from ddn_networks.sampling import Sampling


def half_kept(net, seeds, chance: float = 0.5) -> torch.Tensor:
    """Partial codes [B, D] of which about half are free."""
    rng = torch.Generator().manual_seed(5)
    codes = samplers.uniform_codes(net.code_nodes, [s + 1000 for s in seeds])
    return torch.where(torch.rand(codes.shape, generator=rng) < chance, codes, -1)


WAYS = {
    'prior': {},
    'tempered': {'temperature': 0.7, 'top_p': 0.9},
    'uniform': {'uniform': True},
    'guided': {'guide': 'l2'},
    'several': {'guide': 'several'},
    'warm': {'guide': 'warm'},
    'some layers': {'guide': 'some'},
    'without prior': {'guide': 'l2', 'uniform': True},
}


def way(net, name: str) -> dict:
    """Arguments of ``Network.sample``."""
    target = guides.l2(torch.linspace(-1, 1, 16).view(1, 1, 4, 4))
    other = guides.l2(torch.ones(1, 1, 4, 4), weight=0.5)
    made = {
        'l2': Guidance([target]),
        'several': Guidance([target, other], top_k(3)),
        'warm': Guidance([target, other], temperature(0.1), by_distance),
        'some': Guidance([target], every=2, layers=(0, 1)),
    }
    return {key: made[value] if key == 'guide' else value for key, value in WAYS[name].items()}


def test_proposals_keep_codes():
    """Of a guide that must see whole pictures; node 0 is kept like any other."""
    edges = guides.edges(torch.linspace(-1, 1, 16).view(1, 1, 4, 4))
    for name in ('cells', 'many cells'):
        net = networks()[name]
        for uniform in (False, True):
            partial = half_kept(net, range(24))
            codes = net.sample(seeds=range(24), codes=partial, guide=edges, uniform=uniform)[1]
            assert (partial == 0).any() and torch.equal(codes[partial >= 0], partial[partial >= 0])


@pytest.mark.parametrize('how', WAYS)
@pytest.mark.parametrize('name', networks())
def test_what_is_kept_stays_and_free_codes_are_those_of_the_seed(name, how):
    net = networks()[name]
    net.sampling = Sampling((), {'rgb/1': [0.2] * net.num_layers})
    options, seeds = way(net, how), range(3, 27)
    plain, plain_codes = net.sample(seeds=seeds, **options)
    partial = half_kept(net, seeds)
    before = partial.clone()
    images, codes = net.sample(seeds=seeds, codes=partial, **options)
    assert torch.equal(partial, before)
    assert torch.equal(codes[partial >= 0], partial[partial >= 0])
    torch.testing.assert_close(images, net.decode(codes), atol=1e-5, rtol=0)
    # With its own codes kept, a picture is that of the seed, whatever is free.
    own = torch.where(partial >= 0, plain_codes, -1)
    images, codes = net.sample(seeds=seeds, codes=own, **options)
    assert torch.equal(codes, plain_codes)
    torch.testing.assert_close(images, plain, atol=1e-5, rtol=0)
    # All free: nothing changes; all kept: decoding.
    free = torch.full((1, net.num_codes), -1)
    assert torch.equal(net.sample(seeds=seeds, codes=free, **options)[0], plain)
    images, codes = net.sample(seeds=seeds, codes=plain_codes, **options)
    assert torch.equal(codes, plain_codes)
    torch.testing.assert_close(images, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize('how', ['guided', 'several'])
def test_a_beam_keeps_codes(how):
    net = networks()['whole']
    guidance = way(net, how)['guide']._replace(beam=4)
    partial = half_kept(net, range(12))
    images, codes = net.sample(12, guide=guidance, codes=partial)
    assert torch.equal(codes[partial >= 0], partial[partial >= 0])
    torch.testing.assert_close(images, net.decode(codes), atol=1e-5, rtol=0)


def test_a_beam_finds_the_nearest_image_that_has_the_kept_codes():
    """Against all codes: a beam as wide as the tree, one code kept at each of the layers in turn."""
    net = networks()['whole']
    target = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    every = every_code(net)
    error = (net.decode(every) - target).square().mean((1, 2, 3))
    for layer, K in enumerate(net.num_nodes):
        for kept in range(K):
            partial = torch.full((1, net.num_codes), -1)
            partial[0, layer] = kept
            found = net.sample(1, guide=Guidance([guides.l2(target)], beam=9), codes=partial)[1]
            allowed = error.masked_fill(every[:, layer] != kept, math.inf)
            assert torch.equal(found[0], every[allowed.argmin()])


def test_free_codes_have_the_frequencies_of_the_prior():
    """Given what is kept before them: p(free | kept) of the enumerated codes; what is kept later changes nothing."""
    net = networks()['cells']  # one code of 3, then 4 cells of 2
    every = every_code(net)
    p = net.log_prob(every).exp()
    for first in range(3):
        partial = torch.tensor([[first, -1, 1, -1, -1]])
        codes = net.sample(seeds=range(4000), codes=partial.expand(4000, -1))[1]
        inside = (every[:, 0] == first) & (every[:, 2] == 1)
        want = p[inside] / p[inside].sum()
        index = (every[inside][None] == codes[:, None]).all(2).int().argmax(1)
        counts = index.bincount(minlength=int(inside.sum())).double()
        assert ((counts - 4000 * want).square() / (4000 * want)).sum() < 8 + 5 * math.sqrt(16)
    later = torch.tensor([[-1, 1, 1, -1, -1]])
    assert torch.equal(net.sample(200, codes=later.expand(200, -1))[1][:, 0], net.sample(200)[1][:, 0])


def test_batches_take_their_rows():
    net = networks()['many cells']
    partial = half_kept(net, range(10))
    whole = net.sample(10, codes=partial)[1]
    parts = list(generate.samples(net, range(10), 4, codes=lambda rows: partial[list(rows)]))
    assert torch.equal(torch.cat([batch.codes for batch in parts]), whole)
    assert torch.equal(net.sample(codes=partial)[1], whole)
    one = net.sample(10, codes=partial[:1])[1]
    assert torch.equal(one, net.sample(10, codes=partial[:1].expand(10, -1))[1])


@pytest.mark.parametrize('codes, says', [
    (torch.zeros(1, 4, dtype=torch.int64), r'integers \[B, 5\], not \[1, 4\]'),
    (torch.zeros(1, 5), r'integers \[B, 5\], not \[1, 5\] torch.float32'),
    (torch.tensor([[0, -2, 0, 0, 0]]), 'code -2 of image 0, layer 1, cell 0, is outside 0..1, or -1'),
    (torch.tensor([[3, 0, 0, 0, 0]]), 'code 3 of image 0, layer 0, is outside 0..2, or -1'),
    (torch.full((3, 5), -1), 'codes of 3 images for 2 seeds: give one row, or one each'),
])  # fmt: skip
def test_codes_that_do_not_fit(codes, says):
    with pytest.raises(ValueError, match=says):
        networks()['cells'].sample(2, codes=codes)


def test_decoding_gives_free_codes_the_likeliest_choice():
    net = DDN(4, 1, [8], [2], [3], prior_width=8).eval()
    torch.nn.init.normal_(net.prior[1].out.bias, generator=torch.Generator().manual_seed(0))
    log_p = [net.log_prob(torch.tensor([[0, k]])).item() for k in range(3)]
    likeliest = torch.tensor([[0, log_p.index(max(log_p))]])
    assert torch.equal(net.decode(torch.tensor([[0, -1]])), net.decode(likeliest))
    with pytest.raises(ValueError, match=r'code -2 of image 0, layer 1, is outside 0..2, or -1$'):
        net.decode(torch.tensor([[0, -2]]))


def test_numbers_that_name_no_images():
    net = DDN(4, 1, [8], [2], [3])
    with pytest.raises(ValueError, match='num is the number of images, not -1'):
        net.sample(-1)
    assert len(net.sample(0)[0]) == 0
    with pytest.raises(ValueError, match='codes of this network are integers'):
        net.decode(torch.zeros(1, 2, dtype=torch.complex64))
