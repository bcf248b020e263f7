"""Encoding by beams and refinement where layers have cells: against enumeration, and never further than greedy."""

import itertools
import math

import pytest
import torch
from test_prior import every_code, networks

from ddn_networks import DDN, Network, RecurrentDDN, generate, guided_sampling, guides, samplers, search


def with_cells() -> dict[str, Network]:
    torch.manual_seed(0)
    small = {'base_width': 4, 'multipliers': [1, 2], 'num_blocks': 1, 'features': 8}
    nets = {
        'per scale': DDN(8, 1, [8, 8, 8], [2, 2, 1], [5, 4, 3], grids=[1, 2, 4]),
        'first layer': DDN((6, 4), 3, [8, 8], [1, 2], [3, 4], grids=[1, 1, (3, 2)]),
        'all layers': DDN((6, 4), 1, [8], [3], [2], grids=[(2, 1), (1, 2), (3, 4)]),
        'recurrent': RecurrentDDN((4, 6), 2, 3, 3, **small, grid=(2, 3)),
        'whole': DDN(8, 1, [8, 8], [2, 2], [5, 4]),
    }
    for net in nets.values():
        for block in net.blocks:
            torch.nn.init.normal_(block.conv1.weight, std=0.3)
    return {name: net.eval() for name, net in nets.items()}


def pictures(net: Network, B: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.rand(B, net.img_channels, *net.img_resolution, generator=rng) * 2 - 1


def error(net: Network, codes: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return (net.decode(codes) - images).square().mean((1, 2, 3))


# The k best joint choices of a layer.


@pytest.mark.parametrize('K, n', [(2, 1), (5, 1), (2, 2), (3, 3), (4, 4), (2, 8), (6, 2)])
@pytest.mark.parametrize('k', [1, 2, 3, 4, 7, 16, 100])
def test_the_k_best_are_those_of_all(K, n, k):
    distances = torch.rand(3, K, n, generator=torch.Generator().manual_seed(K * n + k))
    distances[1] = distances[1].mul(4).round()  # ties
    sums, codes = search.k_best(distances, k)
    every = torch.cartesian_prod(*[torch.arange(K)] * n).view(-1, n)
    for b in range(3):
        totals = distances[b].double()[every, torch.arange(n)].sum(1)
        want = totals.sort().values[:k]
        assert codes.shape[1] == len(want) == min(k, K**n) and len(codes[b].unique(dim=0)) == len(want)
        torch.testing.assert_close(sums[b].double(), want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(distances[b].double()[codes[b], torch.arange(n)].sum(1), want, rtol=1e-5, atol=1e-6)


def slow_beam(net: Network, image: torch.Tensor, b: int) -> list[int]:
    """Beam search by rendering all continuations of every partial image, of one image [C, H, W]."""
    kept = [()]
    for layer, spec in enumerate(net.specs):
        answers = list(itertools.product(range(spec.num_nodes), repeat=spec.num_cells))
        tried = [before + answer for before in kept for answer in answers]
        rest = net.num_codes - len(tried[0])
        padded = torch.tensor([codes + (0,) * rest for codes in tried])
        with torch.no_grad():
            made = net(samplers.given(padded), len(padded), keep=True).selected[layer]
        distances = (made.double() - samplers.area_resize(image[None], spec.size)).square().mean((1, 2, 3))
        kept = [tried[i] for i in distances.sort(stable=True).indices[:b]]
    return list(kept[0])


@pytest.mark.parametrize('b', [2, 3, 5])
@pytest.mark.parametrize('grids', [[1, 2, (1, 2)], [(2, 1), 1, 2]])
def test_a_beam_over_cells_is_beam_search(grids, b):
    torch.manual_seed(b)
    net = DDN(4, 1, [8, 8], [1, 2], [3, 2], grids=grids).eval()
    for block in net.blocks:
        torch.nn.init.normal_(block.conv1.weight, std=0.3)
    images = pictures(net, 5)
    assert net.encode(images, beam=b).tolist() == [slow_beam(net, image, b) for image in images]


@pytest.mark.parametrize('name', ['cells', 'whole', 'recurrent'])
def test_a_beam_as_wide_as_the_tree_finds_the_nearest_of_all_codes(name):
    net = networks()[name]
    images = pictures(net, 4)
    every = every_code(net)
    distances = (net.decode(every)[None] - images[:, None]).square().mean((2, 3, 4))
    assert torch.equal(net.encode(images, beam=81), every[distances.argmin(1)])


@pytest.mark.parametrize('name', with_cells())
def test_beams_and_refinement_show_what_their_codes_name(name):
    net = with_cells()[name]
    images = pictures(net, 6)
    greedy = error(net, net.encode(images), images)
    for options in ({'beam': 3}, {'beam': 20}, {'refine': 2}, {'beam': 3, 'refine': 1}):
        output = net.reconstruct(images, **options)
        assert torch.equal(net.encode(images, **options), output.codes)
        torch.testing.assert_close(net.decode(output.codes), output.images, atol=1e-5, rtol=0)
        assert list(output.codes.shape) == [6, net.num_codes]
        shared = net.reconstruct(images, **options, share_prefixes=True)
        torch.testing.assert_close(error(net, shared.codes, images), error(net, output.codes, images))
        if 'refine' in options:
            least = error(net, net.encode(images, beam=options.get('beam', 1)), images)
            assert (error(net, output.codes, images) <= least + 1e-6).all()
            assert error(net, output.codes, images).mean() < greedy.mean()


def test_an_image_is_encoded_alike_in_every_batch():
    net = with_cells()['per scale']
    images = pictures(net, 5)
    for options in ({'beam': 4}, {'refine': 2}):
        whole = net.encode(images, **options)
        parts = generate.reconstructions(net, 5, lambda rows: images[list(rows)], 2, **options)
        assert torch.equal(torch.cat([part.codes for part in parts]), whole)


def test_networks_without_cells_search_as_guides_do():
    """To the bit: the beam of ``guides.l2``, ties by seed 0."""
    for net in (with_cells()['whole'], DDN(4, 3, [8], [4], [2]).eval()):
        images = pictures(net, 7)
        for beam in (2, 6):
            guidance = guided_sampling.Guidance([guides.l2(images)], beam=beam)
            want = guided_sampling.sample(net, guidance, [0] * 7)
            found = net.reconstruct(images, beam=beam)
            if math.prod(net.num_nodes[:-1]) > beam:
                assert torch.equal(found.codes, want.codes) and torch.equal(found.images, want.images)


def test_each_image_has_its_own_condition():
    torch.manual_seed(0)
    net = DDN(4, 1, [8, 8], [1, 2], [3, 4], grids=[1, 2, 2], condition_channels=2).eval()
    images, conditions = pictures(net, 3), torch.randn(3, 2, 4, 4)
    for options in ({'beam': 3}, {'refine': 1}):
        together = net.encode(images, conditions, **options)
        each = [net.encode(images[i : i + 1], conditions[i : i + 1], **options) for i in range(3)]
        assert torch.equal(together, torch.cat(each))


def test_refinement_of_a_layer_without_cells_takes_what_is_nearer_in_the_end():
    """Two layers: the nearest of all codes, as every other first node is tried once."""
    torch.manual_seed(0)
    net = DDN(4, 1, [8, 8], [1, 1], [4, 3]).eval()
    images = pictures(net, 8)
    assert torch.equal(net.encode(images, refine=3), net.encode(images, beam=4))


def test_what_makes_no_sense_is_refused():
    net = with_cells()['whole']
    with pytest.raises(ValueError, match='refine is the number of other nodes to try, at least 0, not -1'):
        net.encode(pictures(net, 1), refine=-1)


# The candidates of a cell.


@pytest.mark.parametrize('name', ['per scale', 'first layer', 'recurrent'])
def test_a_cell_is_shown_with_each_of_its_candidates(name):
    net = with_cells()[name]
    codes = net.sample(3)[1]
    for layer, spec in enumerate(net.specs):
        for cell in {0, spec.num_cells // 2, spec.num_cells - 1}:
            shown = net.cell_branches(codes, layer, cell)
            assert list(shown.shape) == [3, spec.num_nodes, net.img_channels, *spec.size]
            for k in range(spec.num_nodes):
                changed = codes.clone()
                changed[:, net.code_slices[layer].start + cell] = k
                with torch.no_grad():
                    want = net(samplers.given(changed), 3, keep=True).selected[layer]
                torch.testing.assert_close(shown[:, k], want, atol=1e-5, rtol=0)
            if spec.num_cells == 1:
                before = codes[:, : net.code_slices[layer].start]
                torch.testing.assert_close(net.branches(before), shown, atol=1e-5, rtol=0)
    for layer, cell in ((0, -1), (0, net.specs[0].num_cells), (net.num_layers, 0), (-1, 0)):
        with pytest.raises(ValueError, match=f'layer {layer} has no cell {cell}; the layers have'):
            net.cell_branches(codes, layer, cell)


def test_the_tree_ends_where_cells_begin():
    net = with_cells()['per scale']
    codes = net.sample(2)[1]
    assert net.branches(codes[:, :1]).shape[:2] == (2, 5)
    with pytest.raises(ValueError, match='the tree is of the first 2 layers, which have no cells; cell_branches shows'):
        net.branches(codes[:, :2])
