"""Conditions: what they are made of, networks with them, and train.py and generate.py."""

import functools
import json
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_NET, TINY_RUN, final, invoke, write_zip
from PIL import Image

import ddn_networks
import generate
import latents
import train
from cli import condition_arguments
from cli.condition_arguments import ConditionArguments
from cli.pictures import Pictures
from ddn_networks import conditions, guides, samplers, snapshots
from ddn_networks.condition_set import ConditionSet
from dnnlib.archives import ImageArchive
from training.dataset import ImageFolderDataset, PairedDataset
from training.loader import BatchStream, Loader


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def make(names, images=None, labels=None, size=(8, 6), channels=3, draws=None, optional=False):
    return ConditionSet(names, channels, optional).make(size, labels, images, draws)


def draw(*args) -> torch.Tensor:
    return ConditionSet([], 3).draw(*args)


def tiny(names, channels=3, optional=False, scales=3, **kwargs) -> ddn_networks.DDN:
    torch.manual_seed(0)
    net = ddn_networks.DDN(8, channels, [16] * scales, [1, 2, 2, 1][:scales], [4, 3, 5, 4][:scales], conditions=names,
                           condition_optional=optional, **kwargs)  # fmt: skip
    for block in net.blocks:  # as published the second convolution is nearly zero: then a condition hardly shows
        torch.nn.init.normal_(block.conv1.weight, std=0.1)
    return net.eval()


# What each condition is.


@pytest.mark.parametrize('num_classes, digits', [(1, 1), (2, 1), (4, 1), (5, 2), (10, 2), (16, 2), (17, 3), (1000, 5)])
def test_a_class_is_its_number_in_base_4(num_classes, digits):
    condition = make([f'class:{num_classes}'], labels=torch.arange(num_classes))
    assert condition.shape == (num_classes, digits, 8, 6)
    assert (condition == condition[:, :, :1, :1]).all()  # planes
    for number, planes in enumerate(condition[:, :, 0, 0].tolist()):
        expected = [-1 + 2 / 3 * int(digit) for digit in np.base_repr(number, 4).rjust(digits, '0')]
        assert planes == pytest.approx(expected if number else [0.0] * digits)
    optional = make([f'class:{num_classes}'], labels=torch.arange(num_classes), optional=True)
    assert (optional[:, :, 0, 0] != 0).all()  # zeros say that there is no condition
    assert len(optional.unique(dim=0)) == num_classes


def test_a_class_may_have_a_plane_of_its_own():
    condition = make(['onehot:5'], labels=[4, 0])
    assert torch.equal(condition[:, :, 0, 0], torch.eye(5)[[4, 0]]) and condition.shape == (2, 5, 8, 6)
    assert torch.equal(make(['onehot:5'], labels=[4, 0], optional=True), condition)  # no class is all zeros
    both = make(['onehot:5', 'class:5'], labels=3)
    assert torch.equal(both, torch.cat([make(['onehot:5'], labels=3), make(['class:5'], labels=3)], 1))
    with pytest.raises(ValueError, match=r'0..4, not 5'):
        make(['onehot:5'], labels=5)


def test_a_vector_is_its_numbers():
    vectors = pictures(2, 3)
    assert torch.equal(make(['vector:3'], labels=vectors), vectors[:, :, None, None].expand(-1, -1, 8, 6))
    assert make(['vector:3'], labels=vectors[0]).shape == (1, 3, 8, 6)


def test_colour_is_the_mean_outside_of_training_and_random_weights_within():
    images = pictures(2, 3, 8, 6)
    torch.testing.assert_close(make(['color'], images), images.mean(1, keepdim=True))
    draws = draw(2, 0.0, torch.Generator().manual_seed(3))
    weights = draws[0, :3]
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    assert (weights > 0).all() and (weights - 1 / 3).abs().max() > 0.02 and torch.equal(weights, draws[1, :3])
    expected = sum(w * images[:, i : i + 1] for i, w in enumerate(weights))
    torch.testing.assert_close(make(['color'], images, draws=draws), expected)
    grey = images[:, :1]
    assert torch.equal(make(['color'], grey), grey)  # what a user holds may be grey already
    assert make(['color'], torch.cat([images, grey], 1)).shape == (2, 1, 8, 6)  # alpha does not count


def test_edges_are_where_the_sobel_magnitude_is_large():
    images = pictures(2, 3, 8, 6)
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode='replicate')
    expected = torch.empty(2, 1, 8, 6)
    for y in range(8):
        for x in range(6):
            n = grey[:, 0, y : y + 3, x : x + 3]
            dx = n[:, 0, 2] + 2 * n[:, 1, 2] + n[:, 2, 2] - n[:, 0, 0] - 2 * n[:, 1, 0] - n[:, 2, 0]
            dy = n[:, 2, 0] + 2 * n[:, 2, 1] + n[:, 2, 2] - n[:, 0, 0] - 2 * n[:, 0, 1] - n[:, 0, 2]
            expected[:, 0, y, x] = torch.where((dx**2 + dy**2).sqrt() > 0.75, 1.0, -1.0)
    assert torch.equal(make(['edge'], images), expected) and -1 < expected.mean() < 1
    draws = draw(2, 0.0, torch.Generator().manual_seed(3))
    assert 0.5 <= draws[0, 3] <= 1
    draws[:, 3] = 1e9
    assert (make(['edge'], images, draws=draws) == -1).all()


def test_an_edge_map_may_be_drawn():
    drawing = torch.full((1, 1, 32, 24), -1.0)
    drawing[:, :, 13] = 1.0  # a line of one pixel survives the shrinking
    edges = make(['edge'], {'drawn': drawing})
    assert (edges[:, :, 3] == 1).all() and edges.mean() == -1 + 2 / 8
    assert torch.equal(make(['edge'], {'drawn': edges}), edges)


def test_low_resolution_goes_down_by_area_and_up_bilinearly():
    images = pictures(2, 3, 8, 6)
    low = F.interpolate(images, size=(4, 3), mode='area')
    up = F.interpolate(low, size=(8, 6), mode='bilinear', align_corners=False)
    torch.testing.assert_close(make(['lowres:4'], images), up)
    torch.testing.assert_close(make(['lowres:4'], low), up)  # what a user holds may be small already


def test_a_mask_hides_a_box_or_what_is_transparent():
    images = pictures(3, 3, 8, 8)
    plain = make(['mask'], images, size=(8, 8))
    hidden = torch.zeros(8, 8, dtype=torch.bool)
    hidden[2:6, 2:6] = True
    assert torch.equal(plain[:, 3], torch.where(hidden, -1.0, 1.0).expand(3, -1, -1))
    assert torch.equal(plain[:, :3], images * ~hidden)
    drawn = make(['mask'], images, size=(8, 8), draws=draw(3, 0.0, torch.Generator().manual_seed(1)))
    sizes = (drawn[:, 3] == -1).sum((1, 2))
    assert (4 <= sizes).all() and (sizes <= 36).all() and len(drawn[:, 3].unique(dim=0)) == 3  # a box for each image
    alpha = torch.ones(3, 1, 8, 8)
    alpha[:, :, :, 5:] = -1
    given = make(['mask'], torch.cat([images, alpha], 1), size=(8, 8))
    assert torch.equal(given[:, 3:], alpha) and torch.equal(given[:, :3], images * (alpha > 0))


def test_conditions_together_are_side_by_side():
    images, pair = pictures(4, 3, 8, 6), pictures(4, 2, 4, 3, seed=1)
    names = ['class:10', 'image:2', 'color', 'edge', 'lowres:2', 'mask']
    sources = ConditionSet(names, 3).sources(images, pair)
    whole = make(names, sources, labels=[3, 1, 4, 1])
    parts = ConditionSet(names, 3)
    assert [part.channels for part in parts] == [2, 2, 1, 1, 3, 4] and whole.shape == (4, 13, 8, 6)
    alone = [make([n], None if n == 'class:10' else sources, [3, 1, 4, 1] if n == 'class:10' else None) for n in names]
    assert torch.equal(whole, torch.cat(alone, 1))
    assert torch.equal(make(names, sources, labels=3)[1], make(names, sources, labels=[1, 3, 1, 1])[1])
    shown = parts.look(whole, (8, 6))
    assert torch.equal(shown, make(['image:2'], pair)[:, :1].expand(-1, 3, -1, -1))
    assert ConditionSet(['class:3'], 3).look(make(['class:3'], labels=1), (8, 6)) is None


def test_what_chance_draws_is_one_table_and_drops_whole_conditions():
    table = draw(4000, 0.25, torch.Generator().manual_seed(0))
    assert table.shape == (4000, len(conditions.PLAIN))
    assert torch.equal(table, draw(4000, 0.25, torch.Generator().manual_seed(0)))
    assert abs(table[:, -1].mean() - 0.75) < 0.02 and (draw(400, 0.0, torch.Generator())[:, -1] == 1).all()
    box = table[:, 4:8]
    assert (box >= 0).all() and (box[:, :2] + box[:, 2:] <= 1 + 1e-6).all() and (box[:, 2:] >= 0.25).all()
    images = pictures(40, 3, 8, 6)
    whole = make(['class:10', 'color'], images, torch.full((40,), 3), draws=table[:40], optional=True)
    dropped = table[:40, -1] == 0
    assert 0 < dropped.sum() < 40 and torch.equal(whole.abs().sum((1, 2, 3)) == 0, dropped)


@pytest.mark.parametrize(
    'names, words',
    [
        (['classes'], "unknown condition 'classes'; choose from class:N, onehot:N, vector:N, color, edge, "),
        (['class'], "unknown condition 'class'"), (['color:3'], "unknown condition 'color:3'"),
        (['lowres:0'], "unknown condition 'lowres:0'"), (['class:' + '9' * 5000], 'unknown condition'),
        (['edge', 'color', 'edge'], "'edge' is given twice"), (['lowres:4', 'lowres:8'], "'lowres' is given twice"),
    ],
)  # fmt: skip
def test_a_name_that_makes_no_sense(names, words):
    with pytest.raises(ValueError, match=words):
        ConditionSet(names, 3)
    with pytest.raises(ValueError, match='grey already'):
        ConditionSet(['color'], 1)


@pytest.mark.parametrize(
    'names, labels, words',
    [
        (['class:10'], None, r'10 classes: its labels are numbers 0..9, there are none'),
        (['class:10'], 10, r'0..9, not 10 \(label 0 of 1\)'),
        (['class:10'], [3, -1], r'0..9, not -1 \(label 1 of 2\)'),
        (['class:10'], torch.zeros(2, 10), 'not vectors of 10'),
        (['class:10'], 2.5, 'not numbers with a fraction'),
        (['vector:3'], None, '3 numbers each, there are none'),
        (['vector:3'], torch.zeros(2, 4), '3 numbers each, not vectors of 4'),
        (['vector:3'], 2, '3 numbers each, not class numbers'),
        (['vector:3'], torch.tensor([0.0, torch.nan, 1.0]), 'NaN'),
        (['color'], 3, 'conditioned on color: it takes no labels'),
    ],
)
def test_labels_that_are_missing_out_of_range_or_of_another_width(names, labels, words):
    with pytest.raises(ValueError, match=words) as error:
        make(names, pictures(1, 3, 8, 6) if names == ['color'] else None, labels)
    assert '\n' not in str(error.value)


def test_pictures_that_are_missing_or_do_not_fit():
    with pytest.raises(ValueError, match="no picture for 'color'"):
        make(['class:2', 'color'], labels=1)
    with pytest.raises(ValueError, match="no picture for 'edge'"):
        make(['color', 'edge'], {'color': pictures(1, 1, 8, 8)})
    with pytest.raises(ValueError, match='a picture of 2 channels, not 3'):
        make(['image:2'], pictures(1, 3, 8, 8))
    with pytest.raises(ValueError, match="2 conditions 'color' for 3 images"):
        make(['class:2', 'color'], pictures(2, 3, 8, 6), [0, 1, 1])
    with pytest.raises(ValueError, match='conditioned on class:2: it takes no pictures'):
        make(['class:2'], pictures(2, 3, 8, 6), [0, 1])


# The networks.


def recurrent(names, channels=3, optional=False):
    torch.manual_seed(0)
    return ddn_networks.RecurrentDDN(8, channels, num_nodes=5, num_layers=3, base_width=4, multipliers=(1, 2),
                                     features=16, conditions=names, condition_optional=optional).eval()  # fmt: skip


@pytest.mark.parametrize('network', [tiny, recurrent])
def test_a_conditional_network_encodes_decodes_and_is_rebuilt_from_its_snapshot(network, tmp_path):
    net = network(['class:10', 'color'])
    images = pictures(4, 3, 8, 8)
    condition = net.make_condition([1, 2, 3, 4], images)
    codes = net.encode(images, condition)
    assert torch.equal(net.decode(codes, condition), net(samplers.nearest(images), 4, condition).images)
    assert not torch.equal(net.decode(codes, condition), net.decode(codes, net.make_condition([5, 2, 3, 4], images)))
    assert torch.equal(net.sample(condition=condition)[0], net.sample(4, condition=condition)[0])
    one = net.sample(4, seed=1, condition=condition[:1])[0]  # one row serves all
    torch.testing.assert_close(one[2:3], net.sample(1, seed=3, condition=condition[:1])[0], atol=1e-5, rtol=0)
    guided, codes = net.sample(4, condition=condition, guide=guides.l2(images))
    torch.testing.assert_close(net.decode(codes, condition), guided, atol=1e-5, rtol=0)
    snapshots.save_network(str(tmp_path / 'net.safetensors'), net)
    again = ddn_networks.Network.from_pretrained(str(tmp_path / 'net.safetensors'))
    assert str(again.conditions) == str(net.conditions) == 'class:10 and color'
    assert again.condition_channels == net.condition_channels == 3
    assert torch.equal(again.decode(codes, again.make_condition([1, 2, 3, 4], images)), net.decode(codes, condition))


@pytest.mark.parametrize('network', [tiny, recurrent])
def test_an_optional_condition_may_be_missing_and_counts_as_zero(network):
    net = network(['class:10'], optional=True)
    assert net.make_condition() is None
    images, codes = net.sample(3)
    torch.testing.assert_close(images, net.decode(codes, torch.zeros(3, 2, 8, 8)))
    assert not torch.allclose(images, net.decode(codes, net.make_condition(0)), atol=1e-4)  # class 0 is not "nothing"
    with pytest.raises(ValueError, match=r'4 condition channels \(mask; see make_condition\).* is None'):
        network(['mask']).sample(1)


def test_a_condition_that_does_not_fit_is_one_line():
    net = tiny(['class:10'])
    for bad in (torch.zeros(1, 3, 8, 8), torch.zeros(2, 2, 8, 8), torch.zeros(2)):
        with pytest.raises(ValueError, match='2 condition channels .* wants one') as error:
            net.sample(3, condition=bad)
        assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match='trained without a condition'):
        tiny([]).make_condition(3)
    with pytest.raises(ValueError, match='leave condition_channels out'):
        tiny(['class:10'], condition_channels=2)
    with pytest.raises(ValueError, match='17 channels or more'):
        tiny(['image:17'])


@pytest.mark.parametrize('name', ['class:10', 'color', 'edge'])
def test_a_published_network_is_told_in_its_middle_channels(name):
    net = tiny([name], scales=4)
    state = published_names(net)
    loaded = ddn_networks.from_published(state, conditions=[name])
    images = pictures(2, 3, 8, 8)
    condition = loaded.make_condition([0, 7]) if name == 'class:10' else loaded.make_condition(images=images)
    assert torch.equal(loaded.encode(images, condition), net.encode(images, condition))
    inputs = []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    codes = net.encode(images, condition)
    net.decode(codes, condition)
    c, middle = net.condition_channels, 16 // 2 - net.condition_channels // 2
    start = torch.linspace(-1, 1, 16).view(1, 16, 1, 1).repeat(2, 1, 1, 1)
    start[:, middle : middle + c] += condition.mean((2, 3), keepdim=True)
    torch.testing.assert_close(inputs[-6], start)
    if name == 'class:10':
        assert condition[0].abs().sum() == 0 and condition[1, :, 0, 0].tolist() == pytest.approx([-1 / 3, 1])  # 7 = 13


def published_names(net) -> dict[str, torch.Tensor]:
    """The state of a network that starts at 1x1, under the published names."""
    state, index, before = {}, 0, None
    for layer, spec in enumerate(net.specs):
        up = before is not None and spec.size != before
        index = 0 if spec.size != before else index + 1
        name = f'block_{spec.size[0]}x{spec.size[1]}_{index}{"_up" if up else ""}'
        for rest, tensor in net.blocks[layer].state_dict().items():
            state[f'{name}.block.{rest}'] = tensor
        weight = net.ddls[layer].weight.detach()
        state[f'{name}.ddo.multi_out_conv1x1.weight'] = weight.flatten(0, 1)[:, :, None, None]
        before = spec.size
    return state


# train.py and the data.


run_train = functools.partial(invoke, train.main)
run_generate = functools.partial(invoke, generate.main, '--device=cpu')


def snapshot(run_dir) -> str:
    return str(run_dir / sorted(n for n in os.listdir(run_dir) if n.startswith('network-snapshot'))[-1])


def error_of(out: str) -> str:
    (line,) = [line for line in out.splitlines() if line.startswith('Error:')]
    return line


@pytest.fixture(scope='module')
def colours(tmp_path_factory) -> str:
    """40 images 8x8 in colour of three classes."""
    return write_zip(tmp_path_factory.mktemp('data') / 'colours.zip', 40, (3, 8, 8))


def vector_zip(path, count: int, width: int) -> str:
    write_zip(path, count, (1, 8, 8), labels=False)
    import zipfile

    with zipfile.ZipFile(path, 'a') as archive:
        labels = [[f'00000/img{i:08d}.png', [i / count] * width] for i in range(count)]
        archive.writestr('dataset.json', json.dumps({'labels': labels}))
    return str(path)


WIDE = ['--channels=16,16,16,16']
CONDITIONED = ['--condition=class,color', '--condition=mask', '--condition-dropout=0.3']


@pytest.mark.parametrize(
    'more', [['--condition=onehot', '--augment=0.3', '--seed=2'], [*CONDITIONED, '--batch-gpu=4', '--xflip=1']]
)
def test_conditional_training_stops_and_goes_on_bit_for_bit(colours, tmp_path, more):
    common = [f'--data={colours}', *TINY_RUN, *WIDE, '--tick=0.08', '--snap=1', '--dump=1', '--nosubdir'] + more
    run_train(f'--outdir={tmp_path / "a"}', *common, '--duration=0.000160')
    run_train(f'--outdir={tmp_path / "b"}', *common, '--duration=0.000080')
    out = run_train(f'--resume={tmp_path / "b"}', '--duration=0.000160')
    assert out.count('continues with another option') == 1  # total_nimg
    a, b = final(tmp_path / 'a'), final(tmp_path / 'b')
    assert all(torch.equal(a[name], b[name]) for name in a)
    stats = [json.loads(line) for line in (tmp_path / 'a' / 'stats.jsonl').read_text().splitlines()]
    assert stats[-1]['loss'] < stats[0]['loss'] and stats[-1]['val_psnr'] > 0
    net = ddn_networks.DDN.from_pretrained(snapshot(tmp_path / 'a'))
    optional = '--condition-dropout=0.3' in more
    assert [part.name for part in net.conditions] == (['class:3', 'color', 'mask'] if optional else ['onehot:3'])
    assert net.condition_optional == optional
    if optional:
        assert net.sample(2)[0].shape == (2, 3, 8, 8)
    sheet = np.asarray(Image.open(tmp_path / 'a' / 'samples-000000160.png'))
    rows = 10 if optional else 3  # validation images, or classes
    assert sheet.shape == (8 * (rows * 9 + 1), 8 * (10 * 9 + 1), 3)


def test_the_condition_teaches_the_network_something(tmp_path):
    """Images that their condition determines: what is drawn from a grey picture then matches it."""
    data = write_zip(tmp_path / 'grey.zip', 40, (1, 8, 8))
    run_train(f'--outdir={tmp_path / "a"}', f'--data={data}', *TINY_RUN, '--condition=lowres:4', '--duration=0.002',
              '--tick=2', '--nosubdir')  # fmt: skip
    net = ddn_networks.DDN.from_pretrained(snapshot(tmp_path / 'a'))
    images = torch.stack([torch.from_numpy(image) for image, _ in ImageFolderDataset(data)]).float() / 127.5 - 1
    drawn = net.sample(condition=net.make_condition(images=images))[0]
    other = net.sample(condition=net.make_condition(images=images.roll(1, 0)))[0]
    assert 2 * (drawn - images).square().mean() < (other - images).square().mean()


def test_vector_labels_train_and_draw(tmp_path):
    data = vector_zip(tmp_path / 'v.zip', 20, 3)
    common = [f'--data={data}', *TINY_RUN, '--cond=1', '--duration=0.000032', '--nosubdir']
    run_train(f'--outdir={tmp_path / "a"}', *common)
    net = snapshot(tmp_path / 'a')
    run_generate(f'--network={net}', f'--outdir={tmp_path / "out"}', '--label=0.5,0.5,0.5', '--seeds=0-3')
    assert len(os.listdir(tmp_path / 'out')) == 4
    out = run_generate(f'--network={net}', f'--outdir={tmp_path}', '--label=0.5,0.5', expect=1)
    assert '3 numbers each, not numbers with a fraction [2]' in error_of(out)
    assert 'give --label' in error_of(run_generate(f'--network={net}', f'--outdir={tmp_path}', expect=1))


def test_pairs_are_found_by_name_and_mirrored_along(tmp_path):
    data = write_zip(tmp_path / 'images.zip', 6, (3, 8, 8))
    archive = ImageArchive(data)
    for i in reversed(range(6)):  # pairs of another kind, size and order; one more than is needed
        path = tmp_path / 'pairs' / os.path.splitext(archive.name(i))[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(archive.image(i)[0, :4, :4]).save(f'{path}.bmp')
    Image.fromarray(archive.image(0)[0, :4, :4]).save(tmp_path / 'pairs' / 'more.bmp')
    paired = PairedDataset(ImageFolderDataset(data, xflip=True), tmp_path / 'pairs', cache=True)
    assert len(paired) == 12
    for i in range(12):
        image, label, pair = paired[i]
        corner = image[0, :4, :4] if i < 6 else image[0, :4, 4:]
        assert np.array_equal(pair[0], corner) and label.shape == (0,)
    (batch,) = next(Loader(paired, BatchStream(12, 0, 0, 4)))
    assert [tuple(x.shape) for x in batch] == [(4, 3, 8, 8), (4, 0), (4, 1, 4, 4)]
    run_train(f'--outdir={tmp_path / "a"}', f'--data={data}', *TINY_RUN, f'--condition=image:{tmp_path / "pairs"}',
              f'--val-data={data}', f'--val-pairs={tmp_path / "pairs"}', '--xflip=1', '--batch=4',
              '--duration=0.000032', '--nosubdir')  # fmt: skip
    net = snapshot(tmp_path / 'a')
    assert [p.name for p in ddn_networks.DDN.from_pretrained(net).conditions] == ['image:1']
    run_generate(f'--network={net}', f'--outdir={tmp_path / "out"}', f'--condition-image={tmp_path / "pairs"}')
    assert len(list((tmp_path / 'out').rglob('*.png'))) == 7
    os.remove(f'{path}.bmp')
    out = run_train(f'--outdir={tmp_path}', f'--data={data}', *TINY_RUN, f'--condition=image:{tmp_path / "pairs"}',
                    expect=1)  # fmt: skip
    assert archive.name(0) in error_of(out) and 'pairs have equal names' in error_of(out)


BAD = {
    'no-labels': (['--data=UNLABELLED', '--cond=1'], 'has no labels: it needs a dataset.json'),
    'val-no-labels': (['--cond=1', '--val-data=UNLABELLED'], 'has no labels'),
    'val-out-of-range': (['--cond=1', '--val-data=MORE'], '0..2, not 3'),
    'unknown': (['--condition=colour'], '--condition=colour: choose from class, onehot, vector, color, edge,'),
    'lowres': (['--condition=lowres'], '--condition=lowres: choose from'),
    'class:10': (['--condition=class:10'], '--condition=class:10: choose from'),
    'twice': (['--condition=edge,edge'], "'edge' is given twice"),
    'grey': (['--data=GREY', '--condition=color'], 'grey already'),
    'dropout': (['--condition-dropout=0.1'], 'needs a --condition'),
    'too-many': (['--condition=class,lowres:2,color,edge,mask'], '10 channels or more'),
    'no-pairs': (['--condition=image:nowhere'], 'nowhere'),
    'augment': (['--condition=image:DATA', '--augment=0.1'], '--augment'),
    'val-pairs': (['--condition=color', '--val-pairs=DATA'], '--val-pairs'),
}


@pytest.mark.parametrize('args, words', BAD.values(), ids=BAD.keys())
def test_bad_conditions_are_one_line(colours, tmp_path, args, words):
    more = tmp_path / 'more'
    for i in range(5):
        (more / str(i)).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(more / str(i) / 'x.png')
    paths = {
        'UNLABELLED': write_zip(tmp_path / 'u.zip', 3, (3, 8, 8), labels=False),
        'GREY': write_zip(tmp_path / 'g.zip', 3, (1, 8, 8)), 'MORE': str(more), 'DATA': colours,
    }  # fmt: skip
    for word, path in paths.items():
        args = [a.replace(word, path) for a in args]
    common = [f'--outdir={tmp_path / "out"}', f'--data={colours}', *TINY_RUN, '--duration=0.000032']
    assert words in error_of(run_train(*common, *args, expect=1))


def test_the_colouring_preset_and_dry_runs(colours, tmp_path):
    rgb = write_zip(tmp_path / 'c.zip', 2, (3, 256, 256))
    loop = json.loads(run_train(f'--data={rgb}', '--preset=color256', '-n'))
    assert loop['network_kwargs']['conditions'] == ['color'] and loop['lr'] == 2e-4 and loop['batch_size'] == 512
    assert max(loop['network_kwargs']['num_nodes']) == 64 and loop['network_kwargs']['img_resolution'] == [256, 256]
    loop = json.loads(run_train(f'--data={colours}', *TINY_NET, '--cond=1', '--condition=edge,lowres:4', '-n'))
    assert loop['network_kwargs']['conditions'] == ['class:3', 'edge', 'lowres:4']
    assert loop['dataset_kwargs']['use_labels'] and not loop['network_kwargs']['condition_optional']
    plain = json.loads(run_train(f'--data={colours}', *TINY_NET, '-n'))
    assert 'conditions' not in plain['network_kwargs'] and 'use_labels' not in plain['dataset_kwargs']


def test_the_batch_that_fits_is_found_for_a_conditional_network(colours, tmp_path):
    out = run_train(f'--data={colours}', *TINY_RUN, '--condition=color', '--batch-gpu=auto', '-n')
    assert json.loads(out)['batch_gpu'] == 16


def test_a_conditional_network_of_any_shape(tmp_path):
    odd = write_zip(tmp_path / 'odd.zip', 20, (3, 11, 6))
    run_train(f'--outdir={tmp_path / "r"}', f'--data={odd}', *TINY_RUN, '--channels=12,12,12', '--blocks=1',
              '--condition=class,lowres:4,edge', '--duration=0.000032', '--nosubdir', '--precision=bf16',
              '--grad-checkpoint=1')  # fmt: skip
    run_train(f'--outdir={tmp_path / "u"}', f'--data={odd}', *TINY_RUN[3:], '--arch=recurrent', '--nodes=4',
              '--steps=2', '--base-width=2', '--condition=mask', '--duration=0.000032', '--nosubdir')  # fmt: skip
    for name in 'ru':
        net = snapshot(tmp_path / name)
        run_generate(f'--network={net}', f'--outdir={tmp_path / "out"}', f'--reconstruct={odd}',
                     *(['--class=2'] if name == 'r' else []))  # fmt: skip


# generate.py.


@pytest.fixture(scope='module')
def networks(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp('nets')
    made = {
        'class': tiny(['onehot:10']), 'color': tiny(['color']), 'optional': tiny(['class:10'], optional=True),
        'edge': tiny(['edge']), 'mask': tiny(['mask']), 'both': tiny(['class:3', 'color']), 'none': tiny([]),
        'pair': tiny(['image:1']), 'vector': tiny(['vector:3']), 'lowres': tiny(['lowres:3']),
        'two': tiny(['color', 'lowres:3']), 'grey-mask': tiny(['mask'], channels=1),
    }  # fmt: skip
    for name, net in made.items():
        snapshots.save_network(str(folder / f'{name}.safetensors'), net)
    return {name: str(folder / f'{name}.safetensors') for name in made}


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_generate_draws_a_class_or_a_row_of_each(networks, tmp_path):
    net = networks['class']
    run_generate(f'--network={net}', f'--outdir={tmp_path / "a"}', '--class=3', '--seeds=0-4')
    run_generate(f'--network={net}', f'--outdir={tmp_path / "b"}', '--class=all', '--seeds=0-4', '--batch=7',
                 f'--grid={tmp_path / "grid.png"}')  # fmt: skip
    assert sorted(os.listdir(tmp_path / 'b')) == sorted(f'class{c}' for c in range(10))
    for seed in range(5):
        same = pixels(tmp_path / 'a' / f'{seed:06d}.png')
        assert np.array_equal(same, pixels(tmp_path / 'b' / 'class3' / f'{seed:06d}.png'))
        assert not np.array_equal(same, pixels(tmp_path / 'b' / 'class4' / f'{seed:06d}.png'))
    grid = pixels(tmp_path / 'grid.png')
    assert grid.shape == (8 * (10 * 9 + 1), 8 * (5 * 9 + 1), 3)  # a row for each class
    third = grid[8 * (3 * 9 + 1) :: 8, 8 * (2 * 9 + 1) :: 8][:8, :8]
    assert np.array_equal(third, pixels(tmp_path / 'a' / '000002.png'))
    run_generate(f'--network={net}', f'--outdir={tmp_path / "c"}', '--class=1,3', f'--save-codes={tmp_path / "c.npy"}')
    assert np.load(tmp_path / 'c.npy').shape == (20, 5)  # ten of each where no seeds are given
    run_generate(f'--network={net}', f'--outdir={tmp_path / "d"}', '--class=3', f'--codes={tmp_path / "c.npy"}')
    assert np.array_equal(pixels(tmp_path / 'd' / '000002.png'), pixels(tmp_path / 'a' / '000002.png'))


def test_generate_draws_of_pictures_and_shows_them(networks, tmp_path, colours):
    net, folder = networks['color'], tmp_path / 'grey'
    folder.mkdir()
    archive = ImageArchive(colours)
    for i in range(3):
        Image.fromarray(archive.image(i).transpose(1, 2, 0)).save(folder / f'p{i}.png')
    run_generate(f'--network={net}', f'--outdir={tmp_path / "a"}', f'--condition-image={folder}', '--seeds=0-3',
                 f'--grid={tmp_path / "grid.png"}')  # fmt: skip
    assert sorted(os.listdir(tmp_path / 'a')) == [f'p{i}-{s:06d}.png' for i in range(3) for s in range(4)]
    grid = pixels(tmp_path / 'grid.png')
    assert grid.shape == (8 * (3 * 9 + 1), 8 * (6 * 9 + 1), 3)  # condition, four samples, original
    cell = lambda row, column: grid[8 * (row * 9 + 1) :: 8, 8 * (column * 9 + 1) :: 8][:8, :8]  # noqa: E731
    original = archive.image(2).transpose(1, 2, 0)
    assert np.array_equal(cell(2, 5), original)
    assert np.abs(cell(2, 0) - original.mean(2, keepdims=True)).max() <= 1
    assert np.array_equal(cell(2, 3), pixels(tmp_path / 'a' / 'p2-000002.png'))
    run_generate(f'--network={net}', f'--outdir={tmp_path / "b"}', f'--condition-image=color:{folder / "p2.png"}',
                 '--seeds=2,9')  # fmt: skip
    assert np.array_equal(pixels(tmp_path / 'b' / '000002.png'), pixels(tmp_path / 'a' / 'p2-000002.png'))
    run_generate(f'--network={networks["both"]}', f'--outdir={tmp_path / "c"}', f'--condition-image={folder}',
                 '--class=0-1', '--seeds=0-1', f'--grid={tmp_path / "both.png"}')  # fmt: skip
    assert sorted(os.listdir(tmp_path / 'c' / 'class1')) == [f'p{i}-{s:06d}.png' for i in range(3) for s in range(2)]
    assert pixels(tmp_path / 'both.png').shape[0] == 8 * (6 * 9 + 1)


def test_generate_reconstructs_by_the_images_own_condition(networks, tmp_path, colours):
    for name in ('both', 'color', 'mask'):
        run_generate(f'--network={networks[name]}', f'--outdir={tmp_path / name}', f'--reconstruct={colours}',
                     f'--save-codes={tmp_path / name}.npy', f'--grid={tmp_path / name}.png')  # fmt: skip
    net = ddn_networks.DDN.from_pretrained(networks['both'])
    archive = ImageArchive(colours)
    images = torch.stack([torch.from_numpy(archive.image(i)) for i in range(40)]).float() / 127.5 - 1
    codes = net.encode(images, net.make_condition(torch.arange(40) % 3, images))
    assert torch.equal(codes, torch.from_numpy(np.load(tmp_path / 'both.npy')))
    unlabelled = write_zip(tmp_path / 'u.zip', 3, (3, 8, 8), labels=False)
    out = run_generate(f'--network={networks["both"]}', f'--outdir={tmp_path}', f'--reconstruct={unlabelled}', expect=1)
    assert 'have no labels: give --class' in error_of(out) and ' images from ' not in out
    args = [f'--outdir={tmp_path}', f'--reconstruct={unlabelled}']
    assert 'give --label' in error_of(run_generate(f'--network={networks["vector"]}', *args, expect=1))


def test_generate_reconstructs_by_a_class_and_a_picture_for_each_image(networks, tmp_path):
    data = write_zip(tmp_path / 'data.zip', 7, (3, 8, 8))
    larger = write_zip(tmp_path / 'larger.zip', 7, (3, 20, 20), seed=5)
    common = [f'--reconstruct={data}', '--batch=3', f'--outdir={tmp_path / "out"}', f'--save-codes={tmp_path}/c.npy']
    images, given = (torch.stack([torch.from_numpy(a.image(i)) for i in range(7)]).float() / 127.5 - 1
                     for a in (ImageArchive(data), ImageArchive(larger)))  # fmt: skip
    classes = torch.tensor([6, 0, 1, 2, 9, 9, 4])
    for name, option, told in (
        ('class', '--class=6,0-2,9,9,4', {'labels': classes}),
        ('class', '--class=4', {'labels': 4}),
        ('lowres', f'--condition-image={larger}', {'images': given}),
        ('two', f'--condition-image=color:{larger}', {'images': {'color': given, 'lowres': images}}),
        ('both', f'--condition-image={larger}', {'labels': torch.arange(7) % 3, 'images': given}),
    ):
        net = ddn_networks.DDN.from_pretrained(networks[name])
        run_generate(f'--network={networks[name]}', option, *common)
        expected = net.encode(images, net.make_condition(**told))
        assert torch.equal(torch.from_numpy(np.load(tmp_path / 'c.npy')), expected)
        run_generate(f'--network={networks[name]}', option, *common, '--max-images=2')  # one each of all, here
        assert torch.equal(torch.from_numpy(np.load(tmp_path / 'c.npy')), expected[:2])
    net = ddn_networks.DDN.from_pretrained(networks['class'])
    run_generate(f'--network={networks["class"]}', '--class=6,0', *common, '--max-images=2')  # and of the first ones
    expected = net.encode(images[:2], net.make_condition(classes[:2]))
    assert torch.equal(torch.from_numpy(np.load(tmp_path / 'c.npy')), expected)
    out = run_generate(f'--network={networks["class"]}', '--class=0-2', *common, '--max-images=2', expect=1)
    assert '3 classes for 2 images' in error_of(out)
    for option, words in (('--class=0,1,2', '3 classes for 7 images'), ('--class=all', '10 classes for 7 images')):
        assert words in error_of(run_generate(f'--network={networks["class"]}', option, *common, expect=1))


@pytest.mark.parametrize('names, labels, times', [
    (['edge'], None, 1), (['class:3', 'color'], torch.arange(6) % 3, 3), (['vector:2', 'color'], pictures(6, 2), 6),
])  # fmt: skip
def test_a_picture_told_of_all_images_is_read_once(tmp_path, monkeypatch, names, labels, times):
    """Once for each label, that is."""
    net, images, reads = tiny(names), pictures(6, 3, 8, 8), []
    write_zip(tmp_path / 'one.zip', 1, (3, 20, 20))
    told = ConditionArguments(net, None, None, [str(tmp_path / 'one.zip')])
    (picture,), read = told.pictures[''].read([0]), Pictures.read
    monkeypatch.setattr(Pictures, 'read', lambda *args: reads.append(args) or read(*args))
    found = [told.of_images(images[:len(rows)], None if labels is None else labels[rows], rows)
             for rows in ([0, 1], [2, 3, 4, 5])]  # fmt: skip
    assert len(reads) == times
    assert torch.equal(torch.cat(found), net.make_condition(labels, picture[None]).expand(6, -1, -1, -1))


def test_pictures_of_their_own_are_not_kept_for_ever(networks, tmp_path, monkeypatch):
    monkeypatch.setattr(condition_arguments, 'MADE', 4)
    net = ddn_networks.DDN.from_pretrained(networks['edge'])
    told = ConditionArguments(net, None, None, [write_zip(tmp_path / 'six.zip', 6, (3, 20, 20))])
    given = torch.stack(told.pictures[''].read(range(6)))
    for rows in (range(6), [5, 0, 3]):
        assert torch.equal(told.of_images(given, None, rows), net.make_condition(images=given[list(rows)]))
    assert told._made.cache_info().currsize == 4


def test_a_drawing_is_the_same_wherever_it_is_told(networks, tmp_path):
    """Lines of one pixel, 20 times as large as the network: where it is read first must not matter."""
    drawing = np.zeros((160, 160), np.uint8)
    drawing[50], drawing[:, 90] = 255, 255
    Image.fromarray(drawing).save(tmp_path / 'drawn.png')
    data = write_zip(tmp_path / 'data.zip', 3, (3, 8, 8))
    net = ddn_networks.DDN.from_pretrained(networks['edge'])
    edges = torch.full((1, 1, 8, 8), -1.0)
    edges[:, :, 2], edges[:, :, :, 4] = 1.0, 1.0
    common = [f'--network={networks["edge"]}', f'--condition-image=drawn:{tmp_path}/drawn.png']
    run_generate(*common, f'--outdir={tmp_path}/r', f'--reconstruct={data}', f'--save-codes={tmp_path}/c.npy')
    images = torch.stack([torch.from_numpy(ImageArchive(data).image(i)) for i in range(3)]).float() / 127.5 - 1
    assert torch.equal(torch.from_numpy(np.load(tmp_path / 'c.npy')), net.encode(images, edges))
    run_generate(*common, f'--outdir={tmp_path}/o', '--seeds=0-3', f'--save-codes={tmp_path}/e.npz')
    invoke(latents.main, 'decode', *common, f'--codes={tmp_path}/e.npz', f'--outdir={tmp_path}/d', '--device=cpu')
    for seed in range(4):
        assert np.array_equal(*(pixels(tmp_path / folder / f'{seed:06d}.png') for folder in 'od'))


def test_without_a_class_a_seed_says_which(networks, tmp_path):
    common = [f'--network={networks["class"]}', '--seeds=7,12']
    run_generate(*common, f'--outdir={tmp_path / "a"}', '--batch=1')
    net = ddn_networks.DDN.from_pretrained(networks['class'])
    drawn = net.sample(seeds=[7, 12], condition=net.make_condition([7, 2]))[0]
    for seed, image in zip((7, 12), drawn, strict=True):
        expected = ((image + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
        assert np.abs(pixels(tmp_path / 'a' / f'{seed:06d}.png') - expected).max() <= 1
    words = ' '.join(run_generate('--help').split())
    assert "seed mod N; --reconstruct: the image's own; needed for --codes and --guide" in words
    np.save(tmp_path / 'c.npy', np.zeros((2, 5), int))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / 'p.png')
    for option in (f'--codes={tmp_path}/c.npy', f'--guide=l2:{tmp_path}/p.png'):  # no seed, or somebody asks for more
        out = run_generate(*common, option, f'--outdir={tmp_path / "b"}', expect=1)
        assert 'conditioned on 10 classes: give --class=3' in error_of(out) and ' images from ' not in out


def test_strokes_guide_the_colours_of_a_grey_photograph(networks, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / 'grey.png')
    strokes = np.zeros((8, 8, 4), np.uint8)
    strokes[2:5, 2:5] = (255, 0, 0, 255)
    Image.fromarray(strokes).save(tmp_path / 'strokes.png')
    common = [f'--network={networks["color"]}', f'--condition-image={tmp_path / "grey.png"}', '--seeds=0-9']
    run_generate(*common, f'--outdir={tmp_path / "free"}')
    run_generate(*common, f'--outdir={tmp_path / "guided"}', f'--guide=strokes:{tmp_path / "strokes.png"}', '--top-k=1',
                 f'--grid={tmp_path / "grid.png"}')  # fmt: skip

    def distance(name: str) -> float:
        images = np.stack([pixels(tmp_path / name / f'{s:06d}.png') for s in range(10)]).astype(float)
        return np.square(images[:, 2:5, 2:5] - (255, 0, 0)).mean()

    assert distance('guided') < distance('free')
    net = ddn_networks.DDN.from_pretrained(networks['color'])
    grey = torch.from_numpy(pixels(tmp_path / 'grey.png').copy()).float()[None, None] / 127.5 - 1
    rgba = torch.from_numpy(strokes.transpose(2, 0, 1)).float()[None] / 127.5 - 1
    guidance = ddn_networks.guided_sampling.Guidance([guides.strokes(rgba)], ddn_networks.guided_sampling.top_k(1))
    expected = net.sample(10, condition=net.make_condition(images=grey), guide=guidance)[0][4]
    got = pixels(tmp_path / 'guided' / '000004.png').transpose(2, 0, 1)
    assert np.abs(got - ((expected.numpy() + 1) * 127.5).clip(0, 255)).max() <= 1
    for i in range(2):  # a folder of conditions and a folder of guides go along
        (tmp_path / 'g').mkdir(exist_ok=True), (tmp_path / 's').mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / 'g' / f'{i}.png')
        Image.fromarray(strokes).save(tmp_path / 's' / f'{i}.png')
    run_generate(f'--network={networks["color"]}', f'--condition-image={tmp_path / "g"}',
                 f'--outdir={tmp_path / "two"}', f'--guide=strokes:{tmp_path / "s"}')  # fmt: skip
    assert sorted(os.listdir(tmp_path / 'two')) == ['0.png', '1.png']


def test_other_conditions_of_the_command_line(networks, tmp_path):
    drawing = np.zeros((32, 32), np.uint8)
    drawing[13] = 255
    Image.fromarray(drawing).save(tmp_path / 'edges.png')
    common = [f'--network={networks["edge"]}', '--seeds=0']
    run_generate(*common, f'--outdir={tmp_path / "drawn"}', f'--condition-image=drawn:{tmp_path / "edges.png"}',
                 f'--grid={tmp_path / "edges-grid.png"}')  # fmt: skip
    assert pixels(tmp_path / 'edges-grid.png').shape[1] == 8 * (2 * 9 + 1)  # what was drawn says no more than the edges
    net = ddn_networks.DDN.from_pretrained(networks['edge'])
    line = torch.full((1, 1, 8, 8), -1.0)
    line[:, :, 3] = 1.0
    expected = net.sample(1, condition=line)[0][0]
    got = pixels(tmp_path / 'drawn' / '000000.png').transpose(2, 0, 1)
    assert np.abs(got - ((expected.numpy() + 1) * 127.5).clip(0, 255)).max() <= 1
    rgba = np.full((8, 8, 4), 255, np.uint8)
    Image.fromarray(rgba).save(tmp_path / 'whole.png')
    rgba[:, 4:, 3] = 0
    Image.fromarray(rgba).save(tmp_path / 'hole.png')
    for name in ('mask', 'grey-mask'):
        run_generate(f'--network={networks[name]}', f'--outdir={tmp_path / name}', '--seeds=0-1',
                     f'--condition-image={tmp_path / "hole.png"}', f'--grid={tmp_path / name}.png')  # fmt: skip
        out = run_generate(f'--network={networks[name]}', f'--outdir={tmp_path / name}',
                           f'--condition-image={tmp_path / "whole.png"}', expect=1)  # fmt: skip
        assert 'hides nothing' in error_of(out)
    run_generate(f'--network={networks["optional"]}', f'--outdir={tmp_path / "without"}', '--seeds=0')
    run_generate(f'--network={networks["optional"]}', f'--outdir={tmp_path / "with"}', '--seeds=0', '--class=0')
    assert not np.array_equal(*(pixels(tmp_path / name / '000000.png') for name in ('with', 'without')))


@pytest.mark.parametrize(
    'network, args, words',
    [
        ('class', ['--class=10'], '0..9, not 10'),
        ('class', ['--label=1'], '--label: this network is not conditioned on that but on onehot:10'),
        ('class', ['--condition-image=x.png'], 'not conditioned on pictures but on onehot:10'),
        ('none', ['--class=1'], '--class: this network is not conditioned on that but on nothing'),
        ('color', [], 'conditioned on color: give --condition-image'),
        ('color', ['--condition-image=edge:PICTURE'], 'this network is conditioned on color'),
        ('color', ['--condition-image=nowhere.png'], 'nowhere.png: no such file'),
        ('both', ['--condition-image=PICTURE'], 'conditioned on 3 classes'),
        ('pair', ['--reconstruct=DATA'], 'another picture of each image: give --condition-image'),
        ('color', ['--condition-image=DATA', '--guide=colorization:TWO'], '--condition-image'),
        ('color', ['--condition-image=TWO', '--reconstruct=DATA'], '2 pictures for 40 images'),
        ('edge', ['--condition-image=edge:PICTURE', '--condition-image=drawn:PICTURE'], 'given twice'),
        ('edge', ['--condition-image=drawn:PICTURE', '--condition-image=edge:PICTURE'], 'given twice'),
        ('edge', ['--condition-image=edge:PICTURE', '--condition-image=PICTURE'], 'has a picture already'),
    ],
)  # fmt: skip
def test_what_the_network_is_not_told_is_one_line(networks, tmp_path, colours, network, args, words):
    (tmp_path / 'two').mkdir()
    for i in range(2):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'two' / f'{i}.png')
    for word, path in (('PICTURE', tmp_path / 'two' / '0.png'), ('DATA', colours), ('TWO', tmp_path / 'two')):
        args = [a.replace(word, str(path)) for a in args]
    out = run_generate(f'--network={networks[network]}', f'--outdir={tmp_path / "out"}', *args, expect=1)
    assert words in error_of(out)
