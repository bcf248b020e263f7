"""The samplers that training, generation and reconstruction use."""

import pytest
import torch

from ddn_networks import samplers
from ddn_networks.candidates import Candidates, area_resize

NONE = torch.zeros(0, 0, dtype=torch.int64)  # codes so far, for samplers that do not look at them


def constant_candidates(values: torch.Tensor, B: int) -> Candidates:
    """Candidate k is the constant values[k] at one grey pixel."""
    return Candidates(values[:, None, None], torch.ones(B, 1, 1, 1))


def ask(sampler, B: int, num_nodes: list[int]) -> list[samplers.Choice]:
    codes, choices = torch.zeros(B, 0, dtype=torch.int64), []
    for l, K in enumerate(num_nodes):
        choices.append(sampler(constant_candidates(torch.arange(float(K)), B), l, codes))
        codes = torch.cat([codes, choices[-1].codes[:, None]], 1)
    return choices


def test_nearest_takes_the_least_distance_and_reports_all():
    images = torch.tensor([-3.0, 1.4, 2.6])[:, None, None, None]
    choice = samplers.nearest(images)(constant_candidates(torch.arange(4.0), 3), 0, NONE)
    assert choice.codes.tolist() == [0, 1, 3] and choice.codes.dtype == torch.int64
    torch.testing.assert_close(choice.distances, (images[:, 0, 0] - torch.arange(4.0)).square())
    assert choice.dropped is None and choice.parents is None


def test_nearest_compares_at_the_size_of_the_layer():
    images = torch.rand(2, 3, 8, 6)
    small = area_resize(images, (4, 3))
    weight = torch.randn(9, 3, 5)
    features = torch.randn(2, 5, 4, 3)
    choice = samplers.nearest(images)(Candidates(weight, features), 0, NONE)
    torch.testing.assert_close(choice.distances, Candidates(weight, features).distances(small))


def test_the_target_pyramid_makes_each_size_once():
    images = torch.rand(2, 1, 4, 4)
    at = samplers.target_pyramid(images)
    assert at((4, 4)) is images
    assert at((2, 2)) is at(torch.Size((2, 2)))
    assert torch.equal(at((1, 1)), images.mean((2, 3), keepdim=True))


def test_a_penalty_moves_the_choice_and_not_the_distances():
    images = torch.tensor([0.1, 0.9, 2.2])[:, None, None, None]
    bias = [torch.zeros(3), torch.tensor([0.0, 10.0, 0.0])]
    candidates = constant_candidates(torch.arange(3.0), 3)
    sampler = samplers.nearest(images, lambda candidates, layer, distances: samplers.Penalty(bias[layer]))
    plain, biased = (sampler(candidates, l, NONE) for l in range(2))
    assert plain.codes.tolist() == [0, 1, 2]
    assert biased.codes.tolist() == [0, 0, 2]
    assert torch.equal(plain.distances, biased.distances)


def test_given_answers_with_its_column():
    codes = torch.tensor([[1, 2, 0], [3, 0, 1]])
    for l, choice in enumerate(ask(samplers.given(codes), 2, [4, 3, 2])):
        assert torch.equal(choice.codes, codes[:, l])
        assert choice.distances is None


def test_uniform_codes_are_uniform():
    num_nodes = [2, 5, 64, 512]
    codes = samplers.uniform_codes(num_nodes, list(range(4000)))
    assert codes.shape == (4000, 4) and codes.dtype == torch.int64
    for column, K in zip(codes.T, num_nodes, strict=True):
        assert 0 <= column.min() and column.max() == K - 1
        counts = torch.bincount(column, minlength=K).double()
        expected = 4000 / K
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi2 - (K - 1)) < 5 * (2 * (K - 1)) ** 0.5  # five sigma of chi squared
    pairs = codes[:, 0] * 5 + codes[:, 1]  # layers are independent
    assert torch.bincount(pairs, minlength=10).min() > 300


def test_uniform_codes_depend_on_their_seed_alone():
    codes = samplers.uniform_codes([7, 9], [5, 3, 5])
    assert torch.equal(codes[0], codes[2]) and not torch.equal(codes[0], codes[1])
    assert torch.equal(samplers.uniform_codes([7, 9], [3])[0], codes[1])
    assert samplers.uniform_codes([7, 9], []).shape == (0, 2)
    longer = samplers.uniform_codes([7, 9, 11], [5])
    assert torch.equal(longer[0, :2], codes[0])


@pytest.mark.parametrize('probability', [0.0, 0.05, 0.5, 1.0])
def test_chain_dropout_happens_as_often_as_it_should(probability):
    num_nodes = [2, 10, 64]
    B = 5000
    codes = samplers.chain_dropout_codes(num_nodes, probability, B, torch.Generator().manual_seed(0))
    assert codes.shape == (B, 3) and codes.dtype == torch.int64
    share = (codes >= 0).double().mean(0)
    sigma = (probability * (1 - probability) / B) ** 0.5
    assert ((share - probability).abs() <= 4 * sigma).all()
    assert (codes >= -1).all() and (codes < torch.tensor(num_nodes)).all()
    if probability >= 0.5:
        for column, K in zip(codes.T, num_nodes, strict=True):
            counts = torch.bincount(column[column >= 0], minlength=K).double()
            expected = counts.sum() / K
            assert ((counts - expected) ** 2 / expected).sum() < (K - 1) + 5 * (2 * (K - 1)) ** 0.5


def test_chain_dropout_codes_are_drawn_for_the_whole_batch_at_once():
    table = samplers.chain_dropout_codes([4, 4], 0.5, 64, torch.Generator().manual_seed(3))
    assert torch.equal(table, samplers.chain_dropout_codes([4, 4], 0.5, 64, torch.Generator().manual_seed(3)))
    assert not torch.equal(table, samplers.chain_dropout_codes([4, 4], 0.5, 64, torch.Generator().manual_seed(4)))


def test_chain_dropout_replaces_choices_and_says_so():
    table = torch.tensor([[-1, 2, 0], [1, -1, -1]])
    given = torch.tensor([[3, 3, 3], [2, 2, 2]])
    choices = ask(samplers.chain_dropout(samplers.given(given), table), 2, [4, 4, 4])
    assert [c.codes.tolist() for c in choices] == [[3, 1], [2, 2], [0, 2]]
    assert [c.dropped.tolist() for c in choices] == [[False, True], [True, False], [True, False]]


def test_chain_dropout_keeps_the_distances():
    images = torch.tensor([0.1, 0.9])[:, None, None, None]
    sampler = samplers.chain_dropout(samplers.nearest(images), torch.tensor([[2], [-1]]))
    choice = sampler(constant_candidates(torch.arange(3.0), 2), 0, NONE)
    assert choice.codes.tolist() == [2, 1]
    assert choice.distances.argmin(1).tolist() == [0, 1]
