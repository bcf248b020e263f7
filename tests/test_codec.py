"""The codec: what it writes it reads, at the length that the probabilities say; what is not whole is refused."""

import io
import math

import numpy as np
import pytest
import torch

import ddn_networks
from ddn_networks import code_streams, codec, entropy, sampling, snapshots, tiles
from ddn_networks.code_rates import Rate
from ddn_networks.code_streams import Codec, Picture, completed, default_model, network_digest

pytest.importorskip('constriction')


def network(kind: str = 'head', seed: int = 0, grids=(1, 2), **more) -> ddn_networks.DDN:
    """8x8, three layers, K 5, with cells; a prior that is not uniform, and counts."""
    torch.manual_seed(seed)
    prior = {} if kind == 'none' else {'prior_kind': kind, 'prior_width': 8}
    net = ddn_networks.DDN(8, 1, [8, 8], [1, 2], [5, 5], grids=grids, **prior, **more).eval()
    for head in net.prior:
        if kind == 'counts':
            head.counts.random_(0, 100)
        else:
            torch.nn.init.normal_(head.out.weight, std=0.5)
    counts = torch.randint(0, 50, (3, 5), generator=torch.Generator().manual_seed(seed)).tolist()
    net.sampling = sampling.Sampling(counts=counts)
    return net


def images(num: int, seed: int = 0, size=(8, 8)) -> torch.Tensor:
    return torch.rand(num, 1, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ------------------------------------------------------------------------------------------------------------- coding


def test_symbols_come_back_from_bytes_no_longer_than_their_probabilities_say():
    rng = np.random.default_rng(0)
    for num, K in ((1, 2), (7, 64), (200, 3), (60, 300)):
        frequencies = rng.integers(1, 1000, (num, K)) ** 2
        symbols = rng.integers(0, K, num)
        writer = entropy.Writer()
        writer.put(symbols[:1], frequencies[:1])
        writer.put(symbols[1:], frequencies[1:])
        data = writer.finish()
        reader = entropy.CheckedReader(data)
        assert (reader.get(frequencies, num) == symbols).all() and reader.is_whole()
        assert len(data) <= math.ceil(entropy.bits(symbols, frequencies) / 8 + 0.1)


def test_no_symbols_are_no_bytes():
    assert entropy.Writer().finish() == b''


def test_a_prefix_decides_no_wrong_symbol_and_nearly_all_of_its_bits():
    rng = np.random.default_rng(1)
    frequencies = rng.integers(1, 100, (80, 9))
    symbols = rng.integers(0, 9, 80)
    writer = entropy.Writer()
    writer.put(symbols, frequencies)
    data = writer.finish()
    for length in range(len(data)):
        found = entropy.PrefixReader(data[:length]).get(frequencies, 80)
        assert (found == symbols[: len(found)]).all()
        decided = entropy.bits(symbols[: len(found) + 1], frequencies[: len(found) + 1])
        assert decided > 8 * length - 8, 'one symbol more would not have fitted'


def test_bytes_with_an_end_that_is_not_theirs_are_not_whole():
    frequencies, symbols = np.ones(10), np.arange(10)
    writer = entropy.Writer()
    writer.put(symbols, frequencies)
    data = writer.finish()
    for other in (data + b'\0', data + b'x'):
        reader = entropy.CheckedReader(other)
        reader.get(frequencies, 10)
        assert not reader.is_whole()


def test_frequencies_of_the_prior_are_the_same_on_every_machine():
    exact = [entropy.SCALE * math.exp(-j * entropy.STEP) for j in range(len(entropy.FREQUENCIES))]
    assert min(abs(x % 1 - 0.5) for x in exact) > 1e-3  # no library's exp is that wrong
    assert entropy.FREQUENCIES[0] == 2**16 and entropy.FREQUENCIES[-1] == 1


def test_listed_entries_make_a_decoder_agree_whose_probabilities_are_a_little_off():
    rng = np.random.default_rng(2)
    log_p = np.log(rng.dirichlet(np.ones(8), 50))
    log_p.ravel()[::7] = -(np.arange(len(log_p.ravel()[::7])) + 0.5) * entropy.STEP  # on boundaries
    off = log_p + rng.uniform(-1e-5, 1e-5, log_p.shape)
    found = entropy.rounded(log_p, margin=1e-4)
    assert (entropy.rounded(off).steps != found.steps).any(), 'they would not agree without the list'
    symbols = rng.integers(0, 8, 50)
    writer = entropy.Writer()
    entropy.put_listed(writer, found)
    writer.put(symbols, found.frequencies)
    reader = entropy.CheckedReader(writer.finish())
    theirs = entropy.get_listed(reader, entropy.rounded(off))
    assert (theirs.steps == found.steps).all()
    assert (reader.get(theirs.frequencies, 50) == symbols).all() and reader.is_whole()


# -------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize('model', ['uniform', 'counts', 'prior'])
@pytest.mark.parametrize('kind', ['head', 'counts', 'transformer'])
def test_a_file_names_the_picture_of_its_codes(kind, model):
    net, x = network(kind, grids=() if kind == 'transformer' else (1, 2)), images(3)
    data = codec.encode(net, x[:1], model=model)
    assert torch.equal(codec.decode(net, data), net.decode(net.encode(x[:1])))
    archive = codec.encode(net, x, model=model)
    torch.testing.assert_close(codec.decode(net, archive), net.decode(net.encode(x)))


def test_a_file_is_as_long_as_the_model_says():
    net, x = network('head'), images(5)
    for model in ('uniform', 'counts', 'prior'):
        for image in x[:, None]:
            codes = net.encode(image)
            bits = {'uniform': net.num_bits, 'prior': -net.log_prob(codes).item() / math.log(2)}
            nodes = [(np.array(c) + 1) / (sum(c) + 5) for c in net.sampling.counts]
            of_code = [p for p, spec in zip(nodes, net.specs, strict=True) for _ in range(spec.num_cells)]
            bits['counts'] = -sum(math.log2(p[k]) for p, k in zip(of_code, codes[0].tolist(), strict=True))
            head = math.log2(net.num_codes + 1) + 1  # number of codes, and how the rest is filled in
            length = len(codec.encode(net, image, model=model)) - 8
            assert abs(length - (bits[model] + head) / 8) < 1 + 0.02 * bits[model] / 8  # rounded to 1/16 nat


def test_the_default_model_is_the_best_that_the_network_has():
    assert default_model(network('head')) == 'prior' and default_model(network('none')) == 'counts'
    bare = network('none')
    bare.sampling = sampling.Sampling()
    assert default_model(bare) == 'uniform'
    for net, model in ((bare, 'counts'), (bare, 'prior'), (bare, 'other')):
        with pytest.raises(ValueError, match='counts|prior|one of'):
            Codec(net, model)


def test_pictures_of_other_sizes_are_tiles():
    net = network('head')
    for size in ((8, 9), (5, 20), (17, 8), (3, 3), (40, 31)):
        x = images(1, size=size)
        data = codec.encode(net, x)
        made = codec.decode(net, data)
        parts = tiles.cut(x[0], (8, 8))
        expected = tiles.join(net.decode(net.encode(parts)), size)
        torch.testing.assert_close(made[0], expected)
    two = codec.encode(net, images(2, size=(9, 9)))
    assert codec.decode(net, two).shape == (2, 1, 9, 9)


@pytest.mark.parametrize('size', [(8, 8), (8, 9), (5, 20), (17, 8), (3, 3), (40, 31)])
def test_tiles_make_up_the_picture_that_they_were_cut_from(size):
    x = images(1, size=size)[0]
    torch.testing.assert_close(tiles.join(tiles.cut(x, (8, 8)), size), x)
    places = tiles.places(size, (8, 8))
    assert all(top + 8 <= max(8, size[0]) and left + 8 <= max(8, size[1]) for top, left in places)


@pytest.mark.parametrize('model', ['uniform', 'prior'])
def test_the_first_bytes_of_a_file_are_a_coarser_picture(model):
    net, x = network('head'), images(1)
    data, codes = codec.encode(net, x, model=model), net.encode(x)
    decided = []
    for length in range(8, len(data)):
        got = Codec(net, model).picture(data[:length], partial=True).codes
        num = int((got >= 0).sum())
        assert (got[:, :num] == codes[:, :num]).all() and (got[:, num:] == -1).all()
        decided.append(num)
        made = codec.decode(net, data[:length], partial=True)
        if num < net.num_codes:  # the rest is what the prior finds likeliest
            expected = completed(net, got, torch.tensor([False]))
            assert torch.equal(made, expected)
    assert decided == sorted(decided) and decided[0] == 0 and decided[-1] > 0


@pytest.mark.parametrize('size', [(8, 8), (1, 1)])
def test_a_whole_file_is_all_of_its_picture_also_as_a_part(size):
    net, x = network('head'), images(1, size=size)
    for rate in (Rate(), Rate(layers=0)):
        data = codec.encode(net, x, rate=rate)
        assert torch.equal(codec.decode(net, data, partial=True), codec.decode(net, data))


def test_free_codes_are_filled_in_by_the_likeliest():
    net = network('head')
    codes = torch.tensor([[3, *[-1] * 8]])
    filled = [3]
    for layer in (1, 2):  # the oracle: argmax of log p, layer by layer
        prefix = torch.tensor([filled + [0] * (9 - len(filled))])
        output = net(ddn_networks.samplers.with_log_prior(ddn_networks.samplers.given(prefix)), 1, keep=True)
        filled += output.log_prior[layer].argmax(1)[0].tolist()
    expected = net.decode(torch.tensor([filled]))
    assert torch.equal(completed(net, codes, torch.tensor([False])), expected)
    bare = network('none')
    best = [c.index(max(c)) for c in bare.sampling.counts]
    expected = bare.decode(torch.tensor([[3] + [best[1]] * 4 + [best[2]] * 4]))
    assert torch.equal(completed(bare, codes, torch.tensor([False])), expected)


def test_the_rest_may_be_the_last_layers_image_enlarged():
    net = network('head')
    picture = Picture(torch.tensor([[3, *[-1] * 8]]), enlarged=True)
    small = net.branches(torch.zeros(1, 0, dtype=torch.int64))[:, 3]
    expected = torch.nn.functional.interpolate(small, (8, 8), mode='bicubic', align_corners=False)
    made = Codec(net)
    data = made.file(picture)
    torch.testing.assert_close(codec.decode(net, data), expected)
    assert len(data) <= 11  # one code, two facts


def test_a_file_keeps_the_first_codes():
    made = Codec(network())
    for num in range(10):
        picture = Picture(torch.tensor([[1, 2, 3, 4, 0, 1, 2, 3, 4][:num] + [-1] * (9 - num)]))
        assert torch.equal(made.picture(made.file(picture)).codes, picture.codes)
    with pytest.raises(ValueError, match='first ones'):
        made.file(Picture(torch.tensor([[1, -1, 2, -1, -1, -1, -1, -1, -1]])))


def test_a_conditional_network_decodes_with_its_condition():
    net = network('head', conditions=['class:3'])
    x, condition = images(2), net.make_condition(torch.tensor([1, 2]))
    made = codec.decode(net, codec.encode(net, x, condition), condition)
    torch.testing.assert_close(made, net.decode(net.encode(x, condition), condition))


@pytest.mark.parametrize('model', ['uniform', 'prior'])
def test_tiles_of_several_pictures_have_the_condition_of_their_picture(model):
    net = network('head', conditions=['class:3'])
    x, condition = images(2, size=(9, 20)), net.make_condition(torch.tensor([1, 2]))
    made = codec.decode(net, codec.encode(net, x, condition, model), condition)
    for i in range(2):
        one = codec.decode(net, codec.encode(net, x[i : i + 1], condition[i : i + 1], model), condition[i : i + 1])
        torch.testing.assert_close(made[i], one[0])


@pytest.mark.parametrize('model', ['uniform', 'prior'])
def test_more_tiles_than_the_bytes_can_hold_are_refused_in_the_first_layers(model, monkeypatch):
    """A damaged size is refused when the bytes are spent, before later layers of all its tiles are computed."""
    net, asked = network('head'), []
    made = Codec(net, model)
    right, size = made.file(codec.encoded(made, images(1, size=(9, 9)))[0]), (127, 128)
    wrong = entropy.Writer()
    for side in size:
        wrong.put(np.array(divmod(side - 1, 128)), np.ones(128))
    wrong.put(np.array([9]), np.ones(10))
    data = right[:8] + wrong.finish() + bytes(range(20))
    each = made._each_code
    monkeypatch.setattr(made, '_each_code', lambda ask, *args: each(lambda *a: asked.append(a[1]) or ask(*a), *args))
    with pytest.raises(ValueError, match='more bytes than it has'):
        made.picture(data)
    assert max(asked) < net.num_layers - 1 and len(asked) < 2 * len(tiles.places(size, (8, 8)))
    assert made.picture(right).codes.shape == (4, 9)


def test_symbols_that_hardly_happen_are_not_taken_for_damage():
    """Their bits are more than the coder spends, whose least probability is 2^-24."""
    frequencies = np.array([2**52, 1, 1])
    writer = entropy.Writer()
    writer.put(np.ones(200, dtype=np.int64), frequencies)
    reader = entropy.CheckedReader(writer.finish())
    assert (reader.get(frequencies, 200) == 1).all() and reader.is_whole()


def test_a_picture_of_many_tiles_keeps_the_features_of_a_few_passes(monkeypatch):
    """Its file is the same, and so are the codes that are read from it."""
    net, x = network('head', conditions=['class:3']), images(1, size=(9, 30))
    condition = net.make_condition(torch.tensor([1]))
    made = Codec(net)
    (picture,) = codec.encoded(made, x, condition)
    expected = made.file(picture, condition)
    walk, alive, most = made.exact.walk, [0], [0]

    def counted(*args):
        alive[0] += 1
        most[0] = max(alive[0], most[0])
        try:
            yield from walk(*args)
        finally:
            alive[0] -= 1

    monkeypatch.setattr(made.exact, 'walk', counted)
    monkeypatch.setattr(code_streams, 'ROWS', 1)
    for walks, num in ((10, 10), (2, 3)):  # of 10 tiles
        monkeypatch.setattr(code_streams, 'WALKS', walks)
        most[0] = 0
        assert made.file(picture, condition) == expected
        assert torch.equal(made.picture(expected, condition).codes, picture.codes)
        assert most == [num] and alive == [0]


def test_pictures_are_drawn_in_passes_of_a_bounded_number_of_tiles(monkeypatch):
    net = network('head')
    made, passes = Codec(net), []
    draw = made.draw

    def recorded(pictures, *args, **how):
        passes.append([len(picture.codes) for picture in pictures])
        return draw(pictures, *args, **how)

    monkeypatch.setattr(made, 'draw', recorded)
    monkeypatch.setattr(codec, 'ROWS', 4)
    codes = net.encode(images(40))
    sizes = [None, None, (15, 14), None, (20, 21), None, None]
    nums = [1 if size is None else len(tiles.places(size, (8, 8))) for size in sizes]
    parts = codes[: sum(nums)].split(nums)
    pictures = [Picture(part, size) for part, size in zip(parts, sizes, strict=True)]
    pictures[1] = Picture(torch.where(torch.arange(9) < 1, pictures[1].codes, -1), enlarged=True)
    assert nums == [1, 1, 4, 1, 9, 1, 1]

    def some():
        for i, picture in enumerate(pictures):
            yield picture, str(i)
        raise ValueError('the end is damaged')

    found = []
    with pytest.raises(ValueError, match='the end is damaged'):
        for image, name in codec.drawings(made, some()):
            found.append(image)
            assert name == str(len(found) - 1)
    assert passes == [[1, 1, 4], [1, 9], [1, 1]]
    for image, picture in zip(found, pictures, strict=True):
        torch.testing.assert_close(image, draw([picture])[0])
    assert list(codec.drawings(made, [])) == []


# ------------------------------------------------------------------------------------------------------------- refusals


def test_what_is_damaged_or_of_another_network_is_refused():
    net, other = network('head'), network('head', seed=1)
    data = codec.encode(net, images(1))
    for wrong, words in (
        (b'', 'not a file of codec.py'),
        (b'\x89PNG' + data, 'not a file of codec.py'),
        (data[:1] + b'\x2a' + data[2:], 'version 2'),
        (data[:7], 'ends within its header'),
        (data[:-1], 'damaged'),
        (data + b'\0', 'damaged'),
        (data[:6] + bytes([data[6] ^ 1]) + data[7:], 'checksum'),
    ):
        with pytest.raises(ValueError, match=words):
            codec.decode(net, wrong)
    with pytest.raises(ValueError, match='another network'):
        codec.decode(other, data)


@pytest.mark.parametrize('rate', [Rate(), Rate(layers=2), Rate(bits=200)])
@pytest.mark.parametrize('shape', [(1, 3, 8, 8), (1, 8, 8), (1, 1, 0, 8), (1, 1, 1, 2**14 + 1)])
def test_images_that_no_file_can_hold_are_refused(shape, rate):
    with pytest.raises(ValueError, match=r'images of this network are \[B, 1, H, W\]'):
        codec.encode(network('none'), torch.zeros(shape), rate=rate)


def test_a_picture_of_one_pixel_is_a_file():
    net = network('head')
    for x in (images(1, size=(1, 1)), images(2, size=(1, 1))):
        assert codec.decode(net, codec.encode(net, x)).shape == x.shape


def test_what_the_decoder_refuses_is_not_written(monkeypatch):
    """A large picture in few bytes: the encoder would lose it."""
    monkeypatch.setattr(code_streams, 'MIN_PIXELS', 10)
    monkeypatch.setattr(code_streams, 'PIXELS_PER_BYTE', 20)
    net, x = network('none'), images(1, size=(9, 20))
    with pytest.raises(ValueError, match='too few for 20x9 pixels'):
        codec.encode(net, x, rate=Rate(layers=0))
    assert codec.decode(net, codec.encode(net, x)).shape == x.shape


def test_a_header_that_claims_a_huge_picture_is_refused():
    net = network('none')
    writer = entropy.Writer()
    for side in (2**14, 2**14):
        writer.put(np.array(divmod(side - 1, 128)), np.ones(128))
    stream = writer.finish() + b'abcdefgh'
    with pytest.raises(ValueError, match='claim a picture of 16384x16384'):
        Codec(net).read([stream], [True])


def test_an_archive_that_is_cut_off_gives_what_is_whole():
    net, x = network('head'), images(4)
    data = codec.encode(net, x)
    lengths = []
    for length in (34, 40, 50, 60, 64, len(data) - 7, len(data) - 1):
        whole = []
        with pytest.raises(ValueError, match='cut off|damaged'):
            for picture, _ in codec.read_archive(io.BytesIO(data[:length]), Codec(net)):
                whole.append(picture.codes)
        assert not whole or torch.equal(torch.cat(whole), net.encode(x)[: len(whole)])
        lengths.append(len(whole))
    assert lengths == sorted(lengths) and lengths[-1] == 4 and len(set(lengths)) > 2


def test_an_archive_keeps_names_and_any_number_of_pictures():
    net = network('counts')
    for num in (0, 1, 3):
        file, made = io.BytesIO(), Codec(net)
        writer = codec.ArchiveWriter(file, made)
        codes = net.encode(images(3))[:num]
        sizes = [writer.add([Picture(c[None])], [f'a/{i}.png'])[0] for i, c in enumerate(codes)]
        writer.close()
        assert len(file.getvalue()) == 34 + sum(sizes) + 6
        file.seek(0)
        found = list(codec.read_archive(file, made))
        assert [name for _, name in found] == [f'a/{i}.png' for i in range(num)]
        assert all(torch.equal(p.codes[0], c) for (p, _), c in zip(found, codes, strict=True))
    assert codec.decode(net, codec.encode(net, images(0))).shape == (0, 1, 8, 8)


def test_the_digest_is_of_what_decoding_depends_on(tmp_path):
    net = network('head')
    digests = {model: network_digest(net, model) for model in ('uniform', 'counts', 'prior')}
    assert len(set(digests.values())) == 3
    snapshots.save_network(tmp_path / 'net.safetensors', net, meta={'anything': 1})
    again = ddn_networks.Network.from_pretrained(tmp_path / 'net.safetensors')
    assert {model: network_digest(again, model) for model in digests} == digests
    again.sampling = again.sampling._replace(counts=[[1] * 5] * 3)
    changed = {model for model in digests if network_digest(again, model) != digests[model]}
    assert changed == {'counts'}
    with torch.no_grad():
        again.prior[0].out.bias[0] += 1
    assert network_digest(again, 'prior') != digests['prior'] and network_digest(again, 'uniform') == digests['uniform']
    with torch.no_grad():
        again.ddls[0].weight[0] += 1
    assert network_digest(again, 'uniform') != digests['uniform']


# -------------------------------------------------------------------------------------------------------------- counts


def test_counts_are_of_the_nearest_nodes_and_stay_in_snapshots(tmp_path):
    net, x = network('none'), images(6)
    batches = [(x[:4], None), (x[4:], None)]
    codes = net.encode(x)
    counts = sampling.measured_counts(net, batches)
    for layer, columns in enumerate(net.code_slices):
        assert counts[layer] == tuple((codes[:, columns] == k).sum().item() for k in range(5))
    net.sampling = sampling.Sampling(counts=counts)
    snapshots.save_network(tmp_path / 'net.safetensors', net)
    assert snapshots.load_network(tmp_path / 'net.safetensors').sampling.counts == counts


@pytest.mark.parametrize('counts', [[[1] * 5] * 2, [[1] * 4] * 3, [[1] * 4 + [-1]] * 3, [[0.5] * 5] * 3, [7] * 3, 3,
                                    [[2**41] * 5] * 3, [['1'] * 5] * 3])  # fmt: skip
def test_counts_that_do_not_fit_the_network_are_refused(counts):
    with pytest.raises(ValueError, match='counts'):
        sampling.from_json({'counts': counts}, [5, 5, 5])


def test_the_prior_is_computed_in_float64():
    net, x = network('head'), images(4)
    exact = Codec(net).exact
    codes = net.encode(x)
    ask = ddn_networks.samplers.with_log_prior(ddn_networks.samplers.given(codes))
    with torch.no_grad():
        many = exact(ask, 4, keep=True).log_prior
        assert all(log_p.dtype == torch.float64 for log_p in many)
        for b in range(4):
            given = ddn_networks.samplers.given(codes[b : b + 1])
            one = exact(ddn_networks.samplers.with_log_prior(given), 1, keep=True).log_prior
            for a, c in zip(many, one, strict=True):
                assert (a[b] - c[0]).abs().max() < entropy.MARGIN / 100
    assert net.ddls[0].weight.dtype == torch.float32, 'the network itself stays as it is'


def test_a_recurrent_network_is_a_codec_too():
    torch.manual_seed(0)
    net = ddn_networks.RecurrentDDN(8, 1, 4, 3, 4, (1, 2), 1, 8, prior_width=8).eval()
    torch.nn.init.normal_(net.prior[0].out.weight)
    net.sampling = sampling.Sampling(counts=[[3, 2, 1, 0]] * 3)
    net.num_layers = 5
    x = images(2)
    for model in ('uniform', 'counts', 'prior'):
        made = codec.decode(net, codec.encode(net, x, model=model))
        torch.testing.assert_close(made, net.decode(net.encode(x)))
