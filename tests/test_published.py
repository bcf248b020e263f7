"""Published conditional networks against a slow pass written from their description, and what older snapshots mean."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_RUN, invoke, write_zip

import generate
import train
from ddn_networks import DDN, Choice, Network, from_published, snapshots, tensor_files
from ddn_networks.condition_set import ConditionSet

SIZES, CHANNELS, BLOCKS, NODES = (1, 2, 4, 8, 16), (16, 16, 12, 12, 8), (1, 2, 1, 2, 2), 6
NODE_WEIGHTS = 'ddo.multi_out_conv1x1.weight'


@pytest.fixture(scope='module')
def published() -> dict[str, torch.Tensor]:
    """Random tensors under the published names, in which conditions show: no convolution begins near zero."""
    generator = torch.Generator().manual_seed(0)
    state, before = {}, CHANNELS[0]

    def add(name: str, *shape: int) -> None:
        fan_in = torch.Size(shape[1:]).numel() or 1
        state[name] = torch.randn(shape, generator=generator) * fan_in**-0.5

    for size, channels, num in zip(SIZES, CHANNELS, BLOCKS, strict=True):
        for i in range(num):
            up = size > 1 and i == 0
            name = f'block_{size}x{size}_{i}{"_up" if up else ""}'
            for part, shape in (('norm0', (before,)), ('norm1', (channels,))):
                add(f'{name}.block.{part}.weight', *shape)
                add(f'{name}.block.{part}.bias', *shape)
            for part, shape in (('conv0', (channels, before, 3, 3)), ('conv1', (channels, channels, 3, 3)),
                                ('skip', (channels, before, 1, 1))):  # fmt: skip
                if part != 'skip' or up or before != channels:
                    add(f'{name}.block.{part}.weight', *shape)
                    add(f'{name}.block.{part}.bias', channels)
            add(f'{name}.{NODE_WEIGHTS}', NODES * 3, channels // 2, 1, 1)
            before = channels
    return state


def oracle(state, images, condition, first_channel) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and images of a pass that chooses the nearest candidates; ``first_channel(C, c)`` places the condition."""
    x = torch.linspace(-1, 1, CHANNELS[0]).view(1, -1, 1, 1).repeat(len(images), 1, 1, 1)
    image = leak = None
    codes, told = [], set()
    for name in dict.fromkeys(key.split('.')[0] for key in state):
        weights = {k.removeprefix(f'{name}.'): v for k, v in state.items() if k.startswith(f'{name}.')}
        size, C, c = int(name.split('x')[1].split('_')[0]), x.shape[1], condition.shape[1]
        x = x.clone()
        if image is not None:
            x[:, :3] += image
            x[:, C - 3 :] += leak
        if x.shape[2] not in told:
            told.add(x.shape[2])
            first = first_channel(C, c)
            x[:, first : first + c] += F.interpolate(condition, x.shape[2:], mode='area')

        def norm(y, part, weights=weights):
            groups = min(32, y.shape[1] // 4)
            return F.group_norm(y, groups, weights[f'block.{part}.weight'], weights[f'block.{part}.bias'], 1e-6)

        def conv(y, part, weights=weights):
            w = weights[f'block.{part}.weight']
            return F.conv2d(y, w, weights[f'block.{part}.bias'], padding=w.shape[2] // 2)

        y, skip = F.silu(norm(x, 'norm0')), x
        if name.endswith('_up'):
            y, skip = (z.repeat_interleave(2, 2).repeat_interleave(2, 3) for z in (y, skip))
        y = conv(F.silu(norm(conv(y, 'conv0'), 'norm1')), 'conv1')
        x = (y + (conv(skip, 'skip') if 'block.skip.weight' in weights else skip)) * 0.5**0.5
        nodes = weights[NODE_WEIGHTS].view(NODES, 3, -1)
        candidates = torch.einsum('kcf,bfhw->bkchw', nodes, x[:, : x.shape[1] // 2])
        if image is not None:
            candidates = candidates + F.interpolate(image, (size, size), mode='bilinear', align_corners=False)[:, None]
        target = F.interpolate(images, (size, size), mode='area')
        chosen = (candidates - target[:, None]).square().mean((2, 3, 4)).argmin(1)
        codes.append(chosen)
        image = candidates[torch.arange(len(images)), chosen]
        leak = torch.einsum('bcf,bfhw->bchw', nodes[chosen], x[:, x.shape[1] // 2 :])
    return torch.stack(codes, 1), image


def published_channel(C: int, c: int) -> int:
    return C // 2 - c // 2


def earlier_channel(C: int, c: int) -> int:
    return (C - c) // 2


def edges(images: torch.Tensor, border: bool) -> torch.Tensor:
    grey = images.mean(1)
    if border:
        grey = F.pad(grey[:, None], (1, 1, 1, 1), mode='replicate')[:, 0]
    left, right, up, down = grey[:, :, :-2], grey[:, :, 2:], grey[:, :-2], grey[:, 2:]
    dx = (right - left)[:, :-2] + 2 * (right - left)[:, 1:-1] + (right - left)[:, 2:]
    dy = (down - up)[:, :, :-2] + 2 * (down - up)[:, :, 1:-1] + (down - up)[:, :, 2:]
    return torch.where((dx**2 + dy**2).sqrt() > 0.75, 1.0, -1.0)[:, None]


def described(kind: str, images: torch.Tensor, border: bool) -> torch.Tensor:
    """The condition that a kind makes of images; image i is of class i."""
    if kind == 'class:10':
        digits = [[i // 4, i % 4] if i else [1.5, 1.5] for i in range(len(images))]  # 1.5 is the digit of zero
        return (torch.tensor(digits) / 1.5 - 1)[:, :, None, None].expand(-1, -1, 16, 16)
    if kind == 'color':
        return images.mean(1, keepdim=True)
    if kind == 'lowres:4':
        small = F.interpolate(images, (4, 4), mode='area')
        return F.interpolate(small, (16, 16), mode='bilinear', align_corners=False)
    return edges(images, border)


@pytest.fixture(scope='module')
def images() -> torch.Tensor:
    small = torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return F.interpolate(small, (16, 16), mode='bilinear', align_corners=False)


def made(net: Network, kind: str, images: torch.Tensor) -> torch.Tensor:
    return net.make_condition(range(len(images))) if kind == 'class:10' else net.make_condition(images=images)


@pytest.mark.parametrize('kind', ['color', 'edge', 'lowres:4', 'class:10'])
def test_codes_of_published_conditional_networks(published, images, kind, tmp_path):
    net = from_published(published, conditions=[kind])
    condition = made(net, kind, images)
    torch.testing.assert_close(condition, described(kind, images, border=False), atol=1e-6, rtol=0)
    codes, expected = oracle(published, images, condition, published_channel)
    assert torch.equal(net.encode(images, condition), codes)
    torch.testing.assert_close(net.decode(codes, condition), expected, atol=1e-4, rtol=0)
    snapshots.save_network(tmp_path / 'net.safetensors', net)
    again = DDN.from_pretrained(tmp_path / 'net.safetensors')
    assert torch.equal(again.encode(images, made(again, kind, images)), codes)


def as_earlier(path, net: Network) -> None:
    """A snapshot as revisions before the published rule wrote it."""
    snapshots.save_network(path, net)
    tensors, meta = tensor_files.load_tensors(path)
    del meta['kwargs']['condition_placement']
    meta['kwargs']['conditions'] = [name.removeprefix('published-') for name in meta['kwargs']['conditions']]
    tensor_files.save_tensors(path, tensors, {**meta, 'class_name': 'ddn_networks.network.DDN'})


@pytest.mark.parametrize('kind', ['color', 'edge', 'lowres:4', 'class:10'])
def test_networks_of_earlier_revisions_keep_their_codes(published, images, kind, tmp_path):
    new = from_published(published, conditions=[kind])
    as_earlier(tmp_path / 'net.safetensors', new)
    net = DDN.from_pretrained(tmp_path / 'net.safetensors')
    condition = made(net, kind, images)
    torch.testing.assert_close(condition, described(kind, images, border=True), atol=1e-6, rtol=0)
    codes = oracle(published, images, condition, earlier_channel)[0]
    assert torch.equal(net.encode(images, condition), codes)
    same = torch.equal(codes, new.encode(images, made(new, kind, images)))
    assert same == (kind == 'class:10')  # an even number of channels begins at the same one
    snapshots.save_network(tmp_path / 'again.safetensors', net)  # and for good
    again = DDN.from_pretrained(tmp_path / 'again.safetensors')
    assert again.condition_placement == 'centred' and torch.equal(again.encode(images, condition), codes)


# first channel of the condition, and labels before it; without a condition labels are where they always were
PLACES = {
    ('published', 1, 9): (8, 4), ('published', 1, 15): (8, 8), ('published', 3, 13): (7, 7),
    ('published', 0, 9): (3, 0), ('centred', 1, 9): (3, 0), ('centred', 0, 9): (3, 0),
}  # fmt: skip


@pytest.mark.parametrize('case', PLACES, ids=str)
def test_augment_labels_are_beside_the_condition(case):
    (placement, c, num_labels), (first, before) = case, PLACES[case]
    net = DDN(4, 3, [16] * 3, [1, 1, 1], [3, 3, 3], condition_channels=c, augment_dim=num_labels,
              condition_placement=placement).eval()  # fmt: skip
    seen = []
    net.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    condition = torch.full((1, c, 4, 4), 50.0) if c else None
    list(net.walk(lambda *args: _first(args[0]), 1, condition, torch.full((1, num_labels), 100.0)))
    added = (seen[0] - torch.linspace(-1, 1, 16).view(1, -1, 1, 1))[0, :, 0, 0].round().int().tolist()
    expected = [0] * (first - before) + [100] * before + [50] * c + [100] * (num_labels - before)
    assert added == (expected + [0] * 16)[:16]


def _first(candidates):
    return Choice(torch.zeros(candidates.shape[0], dtype=torch.int64))


def test_unknown_placement():
    with pytest.raises(ValueError, match="condition_placement is 'published' or 'centred', not 'left'"):
        DDN(4, 3, [16], [1], [3], condition_placement='left')


def test_published_edges_beside_another_picture_have_its_size(images):
    for names in (['published-edge', 'class:10'], ['published-edge', 'color', 'class:10']):
        conditions = ConditionSet(names, 3)
        made = conditions.make((16, 16), list(range(9)), images)
        small = edges(images, border=False)
        if 'color' in names:
            small = F.interpolate(small, (16, 16), mode='bilinear', align_corners=False)
        torch.testing.assert_close(made[:, :1], small)
        assert conditions.look(made, (16, 16)).shape == (9, 3, 16, 16)
    drawn = F.pad(edges(images, border=False), (1, 1, 1, 1), value=-1)
    made = ConditionSet(['published-edge'], 3).make((16, 16), images={'drawn': drawn})
    assert torch.equal(made, drawn[:, :, 1:-1, 1:-1])


def test_a_network_of_published_edges_is_trained_and_shown(tmp_path):
    data = write_zip(tmp_path / 'data.zip', 40, (3, 8, 8))
    run = tmp_path / 'run'
    invoke(train.main, f'--data={data}', *TINY_RUN, '--condition=published-edge', '--nosubdir', f'--outdir={run}',
           '--duration=0.000032', '--tick=0.016')  # fmt: skip
    invoke(generate.main, '--device=cpu', f'--network={run}', f'--condition-image={data}', '--seeds=0',
           f'--outdir={tmp_path}/out', f'--grid={tmp_path}/grid.png')  # fmt: skip


def test_published_edges_need_three_pixels(published):
    small = {name: t for name, t in published.items() if name.startswith(('block_1x1', 'block_2x2'))}
    with pytest.raises(ValueError, match='needs 3 pixels a side'):
        from_published(small, conditions=['edge']).make_condition(images=torch.zeros(1, 3, 2, 2))


def test_a_run_of_an_earlier_revision_resumes_with_its_placement(tmp_path):
    data = write_zip(tmp_path / 'data.zip', 40, (3, 8, 8))
    common = [f'--data={data}', *TINY_RUN, '--condition=color', '--nosubdir', '--tick=0.08', '--snap=1', '--dump=1']
    run = tmp_path / 'run'
    invoke(train.main, f'--outdir={run}', *common, '--duration=0.000080')
    path = run / 'training_options.json'
    stored = json.loads(path.read_text())
    assert stored['loop']['network_kwargs']['condition_placement'] == 'published'
    out = invoke(train.main, f'--resume={run}', '--duration=0.000096')
    assert DDN.from_pretrained(run).condition_placement == 'published'
    del stored['loop']['network_kwargs']['condition_placement']
    stored['loop']['network_class'] = 'ddn_networks.network.DDN'
    path.write_text(json.dumps(stored))
    out = invoke(train.main, f'--resume={run}', '--duration=0.000160')
    assert 'condition_placement' not in out and 'network_class' not in out
    assert DDN.from_pretrained(run).condition_placement == 'centred'
