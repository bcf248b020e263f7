"""The batches behind the scripts: images of the pass that made them, for any batch size and share of a rank."""

import pytest
import torch

from ddn_networks import DDN, generate, guides, samplers, search
from ddn_networks.guided_sampling import Guidance, top_k


def tiny(**kwargs) -> DDN:
    torch.manual_seed(0)
    net = DDN(8, 1, [8, 8], [2, 1], [4, 3], **kwargs).eval()
    for block in net.blocks:  # a fresh block is nearly its skip
        torch.nn.init.normal_(block.conv1.weight, std=0.3)
    return net


def block_calls(net: DDN) -> list[int]:
    calls = []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda block, args: calls.append(len(args[0])))
    return calls


def together(batches) -> generate.Batch:
    positions, images, codes, originals = zip(*batches, strict=True)
    originals = None if originals[0] is None else torch.cat(originals)
    return generate.Batch([p for part in positions for p in part], torch.cat(images), torch.cat(codes), originals)


def test_samples_are_those_of_the_seeds():
    net = tiny()
    images, codes = net.sample(seeds=[5, 3, 9, 10**9, 4])
    made = together(generate.samples(net, [5, 3, 9, 10**9, 4], batch_size=2))
    assert made.positions == [0, 1, 2, 3, 4] and torch.equal(made.codes, codes)
    torch.testing.assert_close(made.images, images, atol=1e-4, rtol=0)
    share = together(generate.samples(net, [5, 3, 9, 10**9, 4], batch_size=2, positions=range(1, 5, 2)))
    assert share.positions == [1, 3] and torch.equal(share.codes, codes[1::2])


def test_a_range_of_seeds_is_never_a_list():
    first = next(generate.samples(tiny(), range(10**15), batch_size=2))
    assert list(first.positions) == [0, 1] and first.images.shape == (2, 1, 8, 8)


def test_condition_and_guidance_follow_positions():
    net = tiny(condition_channels=1)
    conditions = torch.rand(5, 1, 8, 8)
    targets = torch.rand(5, 1, 8, 8)
    asked = []

    def guidance(part):
        asked.append(list(part))
        return Guidance([guides.l2(targets[list(part)])], top_k(1))

    made = together(generate.samples(net, [0] * 5, 2, lambda part: conditions[list(part)], guidance))
    assert asked == [[0, 1], [2, 3], [4]]
    assert torch.equal(made.codes, net.encode(targets, conditions))
    one = together(generate.samples(net, range(3), 2, conditions[:1]))
    assert torch.equal(one.codes, samplers.uniform_codes(net.num_nodes, range(3)))
    torch.testing.assert_close(one.images, net.decode(one.codes, conditions[:1]), atol=1e-4, rtol=0)


def test_decodings_are_the_images_of_the_rows():
    net = tiny()
    codes = samplers.uniform_codes(net.num_nodes, range(5))
    made = together(generate.decodings(net, codes, 2, positions=[4, 0, 2]))
    assert made.positions == [4, 0, 2] and torch.equal(made.codes, codes[[4, 0, 2]])
    torch.testing.assert_close(made.images, net.decode(codes)[[4, 0, 2]], atol=1e-4, rtol=0)


@pytest.mark.parametrize('beam', [1, 3])
def test_reconstructions_are_of_one_pass(beam):
    net = tiny()
    images = torch.rand(5, 1, 8, 8) * 2 - 1
    calls = block_calls(net)
    made = together(generate.reconstructions(net, 5, lambda part: images[list(part)], 2, beam=beam))
    assert calls == [n * beam for n in (2, 2, 1) for _ in range(net.num_layers)]
    assert torch.equal(made.originals, images) and torch.equal(made.codes, net.encode(images, beam=beam))
    torch.testing.assert_close(made.images, net.decode(made.codes), atol=1e-5, rtol=0)


def test_guided_samples_are_of_one_pass():
    net = tiny()
    calls = block_calls(net)
    guidance = Guidance([guides.l2(torch.rand(1, 1, 8, 8))])
    made = together(generate.samples(net, range(4), 4, guidance=guidance))
    assert calls == [4] * net.num_layers
    torch.testing.assert_close(made.images, net.decode(made.codes), atol=1e-5, rtol=0)


def test_the_search_over_all_codes_draws_what_it_found():
    net = tiny()
    images = torch.rand(6, 1, 8, 8) * 2 - 1
    output = net.reconstruct(images, beam=4 * 4)
    assert torch.equal(output.codes, search.nearest_leaf(net, images))
    torch.testing.assert_close(output.images, net.decode(output.codes), atol=1e-4, rtol=0)
