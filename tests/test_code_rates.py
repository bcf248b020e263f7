"""How many bits a picture gets: the choices against a slow search, and files that fit what was asked for."""

import itertools
import math

import pytest
import torch
from test_codec import images, network

from ddn_networks import codec, entropy, samplers, tiles
from ddn_networks.code_rates import (
    LAMBDAS,
    Rate,
    answer_bits,
    choose,
    cuts,
    mean_code_bits,
    most_codes,
    payload_bits,
    trial,
    trials,
)
from ddn_networks.code_streams import Codec, Picture

pytest.importorskip('constriction')


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.clamp(-1, 1) - b).square().mean().item()


@pytest.mark.parametrize('model', ['uniform', 'counts', 'prior'])
def test_a_choice_costs_its_error_and_its_bits(model):
    """Each cell of each layer against all K rendered candidates."""
    net, x, tradeoff = network('head'), images(2), 0.3
    made = Codec(net, model)
    for b, found in enumerate(trial(made, x, tradeoff)):
        codes = found.codes[-1]
        given = samplers.with_log_prior(samplers.given(codes))
        output = net(given, 1, keep=True)
        for layer, columns in enumerate(net.code_slices):
            spec = net.specs[layer]
            prefix, target = codes.clone(), samplers.area_resize(x[b : b + 1], spec.size)
            for cell, d in enumerate(range(columns.start, columns.stop)):
                costs, bits = [], []
                for k in range(5):
                    prefix[:, d] = k
                    shown = net(samplers.given(prefix), 1, keep=True).selected[layer]
                    error = (shown - target).square().sum().item() * x[0].numel() / target.numel()
                    counts = net.sampling.counts[layer]
                    by_counts = (counts[k] + 1) / (sum(counts) + 5)
                    log_p = output.log_prior[layer].view(5, -1).detach().double().numpy()
                    coded = entropy.rounded(log_p[:, [cell]].T).frequencies[0]
                    own = coded[k] / coded.sum()
                    p = {'uniform': 1 / 5, 'counts': by_counts, 'prior': own}[model]
                    bits.append(-math.log2(p))
                    costs.append(error + tradeoff * bits[-1])
                prefix[:, d] = codes[:, d]
                assert min(costs) == costs[codes[0, d]]
                assert found.bits[-1][0, d].item() == pytest.approx(bits[codes[0, d]], rel=1e-4)


@pytest.mark.parametrize('kind', ['head', 'counts', 'transformer'])
@pytest.mark.parametrize('model', ['uniform', 'counts', 'prior'])
def test_the_bits_shown_are_those_that_the_coder_spends(model, kind, monkeypatch):
    """Of each picture against all that is put into its stream, and that against the bytes."""
    net = network(kind, grids=() if kind == 'transformer' else (1, 2))
    made, codes = Codec(net, model), net.encode(images(6))
    shown = payload_bits(made, codes)
    put, spent = entropy.Writer.put, []

    def counted(writer, symbols, frequencies):
        spent[-1] += entropy.bits(symbols.astype(int), frequencies)
        put(writer, symbols, frequencies)

    monkeypatch.setattr(entropy.Writer, 'put', counted)
    lengths = []
    for row in codes:
        spent.append(0.0)
        lengths.append(len(made.write([Picture(row[None])])[0]))
    assert shown.tolist() == pytest.approx(spent, abs=1e-3)
    assert shown.sum() / 8 < sum(lengths) + 1 and sum(lengths) < shown.sum() / 8 + len(codes)
    asking = samplers.with_log_prior(samplers.given(codes))
    of_layers = mean_code_bits(made, codes, net(asking, 6, keep=True).log_prior)
    total = sum(bits * spec.num_cells for bits, spec in zip(of_layers, net.specs, strict=True))
    assert total + math.log2(net.num_codes + 1) + 1 == pytest.approx(shown.mean().item(), abs=1e-3)


def test_probabilities_of_a_broken_network_still_have_bits():
    bits = answer_bits(Codec(network('head')), 0, torch.tensor([[math.nan, -math.inf, 0.0, 1e-9, -1e9]]))
    assert bits.isfinite().all() and bits[0, 2] == bits[0, 3] < bits[0, 0] == bits[0, 1] == bits[0, 4]


def test_lambda_zero_is_the_nearest_code_and_a_larger_one_makes_shorter_streams():
    net, x = network('head'), images(4)
    made = Codec(net)
    assert torch.equal(torch.cat([found.codes[-1] for found in trial(made, x, 0.0)]), net.encode(x))
    lengths = [sum(found.bits[-1].sum() for found in trial(made, x, t)) for t in (0, 0.1, 1, 100)]
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] < lengths[0]


def test_a_beam_that_holds_everything_finds_the_least_cost():
    net, x, tradeoff = network('head', grids=(1, 1)), images(2), 0.2
    made = Codec(net)
    every = torch.tensor(list(itertools.product(range(5), repeat=3)))
    drawn, bits = net.decode(every), payload_bits(made, every) - math.log2(4) - 1
    for b, best in enumerate(trial(made, x, tradeoff, beam=125)):
        costs = (drawn - x[b]).square().sum((1, 2, 3)) + tradeoff * bits
        found = (every == best.codes[-1]).all(1).nonzero().item()
        assert costs[found] == pytest.approx(costs.min().item(), rel=1e-5)
        assert best.bits[-1].sum().item() == pytest.approx(bits[found].item(), rel=1e-4)


def test_one_beam_of_a_beam_search_is_the_greedy_choice_where_it_is_best():
    net, x = network('head'), images(3)
    made = Codec(net)
    greedy, beam = (trial(made, x, 0.0, beam=b) for b in (1, 6))
    for one, several in zip(greedy, beam, strict=True):
        assert several.errors[-1] <= one.errors[-1] * 1.05


@pytest.mark.parametrize('model', ['uniform', 'counts', 'prior'])
@pytest.mark.parametrize('bits', [72, 88, 200])
def test_a_file_has_no_more_bits_than_asked_for(bits, model):
    net, x = network('head'), images(1 + (model != 'prior'))
    for image in x[:, None]:
        data = codec.encode(net, image, model=model, rate=Rate(bits=bits))
        assert 8 * len(data) <= bits
        plain = [codec.encode(net, image, model=model, rate=Rate(layers=n)) for n in range(4)]
        shorter = [error(codec.decode(net, d), image) for d in plain if 8 * len(d) <= bits - 8]
        assert error(codec.decode(net, data), image) <= min(shorter, default=4) + 1e-6


def test_a_file_has_the_psnr_asked_for_in_fewer_bits_where_that_is_possible():
    net, x = network('head'), images(4)
    full = codec.encode(net, x[:1])
    best = -10 * math.log10(error(codec.decode(net, full), x[:1]) / 4)
    data = codec.encode(net, x[:1], rate=Rate(psnr=best - 1.0))
    assert -10 * math.log10(error(codec.decode(net, data), x[:1]) / 4) >= best - 1.0 and len(data) < len(full)
    data = codec.encode(net, x[:1], rate=Rate(psnr=100.0))
    assert error(codec.decode(net, data), x[:1]) <= error(codec.decode(net, full), x[:1]) + 1e-6


def test_layers_keep_a_prefix():
    net, x = network('head'), images(1)
    for layers in range(4):
        got = Codec(net).picture(codec.encode(net, x, rate=Rate(layers=layers))).codes
        num = net.code_slices[layers - 1].stop if layers else 0
        assert torch.equal(got[:, :num], net.encode(x)[:, :num]) and (got[:, num:] == -1).all()


@pytest.mark.parametrize('rate, words', [
    (Rate(layers=4), '3 layers'), (Rate(bits=71), 'at least 72'), (Rate(bits=100, psnr=20), 'one of'),
    (Rate(tradeoff=math.nan), 'tradeoff'), (Rate(tradeoff=math.inf), 'tradeoff'), (Rate(tradeoff=-1.0), 'tradeoff'),
    (Rate(psnr=math.nan), 'psnr'), (Rate(bits=math.inf), 'bits'),
])  # fmt: skip
def test_rates_that_no_file_has_are_refused(rate, words):
    with pytest.raises(ValueError, match=words):
        choose(Codec(network('head')), images(1), rate)


def test_lambdas_are_tried_in_order():
    assert list(LAMBDAS) == sorted(LAMBDAS) and LAMBDAS[0] == 0


@pytest.mark.parametrize('model', ['uniform', 'prior'])
def test_pictures_in_tiles_have_the_rate_asked_for(model):
    """As many of the first codes of every tile as fit; never worse than whole layers of the nearest ones."""
    net, x = network('head'), images(1, size=(9, 8))
    nearest = [codec.encode(net, x, model=model, rate=Rate(layers=n)) for n in range(4)]
    errors = [error(codec.decode(net, data), x) for data in nearest]
    for bits in (120, 200):
        data = codec.encode(net, x, model=model, rate=Rate(bits=bits))
        made = codec.decode(net, data)
        assert 8 * len(data) <= bits and made.shape == x.shape
        fitting = [e for d, e in zip(nearest, errors, strict=True) if 8 * len(d) <= bits - 8]
        assert error(made, x) <= min(fitting, default=4) + 1e-6
    full = -10 * math.log10(errors[-1] / 4)
    data = codec.encode(net, x, model=model, rate=Rate(psnr=full - 1))
    assert -10 * math.log10(error(codec.decode(net, data), x) / 4) >= full - 1 and len(data) < len(nearest[-1])


def test_bits_of_tiles_are_those_of_their_stream():
    net, x = network('head'), images(1, size=(9, 14))
    made = Codec(net)
    (found,) = trials(made, x, 0.0)
    (cut,) = cuts(made, x, [found], [net.num_codes])
    assert torch.equal(cut.picture.codes, net.encode(tiles.cut(x[0], (8, 8)))) and cut.picture.size == (9, 14)
    assert abs(8 * len(made.write([cut.picture])[0]) - cut.bits) < 9
    assert cut.error == pytest.approx(error(made.draw([cut.picture])[0][None], x), rel=1e-5)


def test_several_pictures_in_tiles_are_encoded_as_each_alone():
    net, x = network('head', conditions=['class:3']), images(2, size=(9, 8))
    condition, rate = net.make_condition(torch.tensor([1, 2])), Rate(bits=160)
    found = choose(Codec(net), x, rate, condition)
    for i, picture in enumerate(found):
        (one,) = choose(Codec(net), x[i : i + 1], rate, condition[i : i + 1])
        assert torch.equal(picture.codes, one.codes) and picture.size == (9, 8)


def test_codes_that_fit_are_those_of_all_tiles():
    bits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 4.0]])  # of two tiles: 2, 5 and 12 bits of the first codes
    assert [most_codes(bits, limit) for limit in (1.9, 2, 4.9, 5, 11.9, 12)] == [0, 1, 1, 2, 2, 3]
