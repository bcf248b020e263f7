"""The scripts of Figs 2, 7, 15 and 16: their parts against obvious ways, and tiny runs."""

import json
import re
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import write_zip
from PIL import Image
from tiny_clip import tiny_open_clip

from cli import guide_networks
from ddn_networks import DDN, Network, black_boxes, guides, snapshots
from ddn_networks.guided_sampling import Guidance
from ddn_networks.sampling import Sampling
from dnnlib.images import to_uint8
from dnnlib.sheets import CAPTION, draw_sheet
from experiments import (
    common,
    conditional,
    curves,
    face_tasks,
    guided_cells,
    shipped_networks,
    superres,
    zscg,
    zscg_cifar_classes,
    zscg_faces,
)
from metrics.detectors import load_resnet
from metrics.lenet import LeNet
from metrics.lpips import LPIPS
from metrics.resnet import CifarResNet


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def net(tmp_path):
    """A random network for 32x32 RGB, and its snapshot."""
    torch.manual_seed(0)
    net = DDN(32, 3, [8, 8], [2, 1], [6, 4]).eval()
    path = str(tmp_path / 'net.safetensors')
    snapshots.save_network(path, net, {}, {})
    return net, path


def test_finished_images_are_judged_as_they_are():
    images, target = uniform(3, 3, 8, 8), uniform(3, 3, 8, 8, seed=1)
    expected = (images - target).square().mean((1, 2, 3))
    torch.testing.assert_close(zscg.finished(guides.l2(target), images), expected)


def test_best_of_is_the_nearest_for_each_target():
    pool, targets = uniform(300, 1, 4, 4), uniform(5, 1, 4, 4, seed=1)
    best = zscg.best_of(lambda i: guides.l2(targets[i : i + 1]), pool, 5)
    for target, chosen in zip(targets, best, strict=True):
        nearest = min(range(300), key=lambda i: (pool[i] - target).square().sum().item())
        assert torch.equal(chosen, pool[nearest])


def test_compare_measures_each_way(net):
    net, _ = net
    originals = uniform(4, 3, 32, 32, seed=2)
    pool = zscg.unguided(net, 9, seed=100, batch=4)
    again = torch.cat([zscg.unguided(net, 1, seed=100 + i) for i in range(9)])
    torch.testing.assert_close(pool, again, rtol=0, atol=2 / 255 + 1e-6)
    task = zscg.Task('SR4', lambda x: guides.superres(zscg_faces.low(x, 4)), lambda x: zscg_faces.low(x, 4),
                     lambda x: x.mean((2, 3), keepdim=True).expand_as(x))  # fmt: skip
    ways = {'top 2': Guidance([]), 'beam 2': Guidance([], beam=2)}
    rows, made = zscg.compare(net, task, originals, pool, ways, lambda x, y: (x - y).abs().mean((1, 2, 3)))
    assert [row['way'] for row in rows] == list(made) == ['top 2', 'beam 2', 'unguided', 'baseline', 'best of 9']
    for row in rows:
        images = made[row['way']]
        pooled = torch.nn.functional.avg_pool2d(images - originals, 8)
        assert row['consistency'] == pytest.approx(pooled.square().mean().item(), rel=1e-4)
        error = (images.clamp(-1, 1) - originals).square().mean((1, 2, 3))
        assert row['psnr'] == pytest.approx((10 * (4 / error).log10()).mean().item(), rel=1e-4)
        assert row['lpips'] == pytest.approx((images - originals).abs().mean().item(), rel=1e-4)
    assert rows[1]['consistency'] < rows[2]['consistency']
    sheet = zscg.compared(task, originals, made, shown=3)
    assert list(sheet)[:3] == ['original', 'known', 'top 2']
    assert all(images.shape == (3, 3, 32, 32) for images in sheet.values())
    page = draw_sheet(list(sheet.values()), names=list(sheet))
    assert page.height == 2 * (7 * 33 + 1) and page.width > 2 * (3 * 33 + 1)


def test_dabs_are_the_colours_under_the_strokes():
    x = uniform(2, 3, 64, 64)
    rgba = face_tasks.stroked(x)
    assert torch.equal(rgba[:, :3], x) and (rgba[:, 3] == 1).float().mean() == 1 / 16
    by_hand = torch.stack([x[:, :, i, j] for i in (2, 3) for j in (2, 3)]).mean(0)
    torch.testing.assert_close(face_tasks.dabs(x)[:, :, 0, 0], by_hand)


@pytest.fixture
def resnets(tmp_path, monkeypatch):
    """Random classifiers in files like the published ones."""
    for depth in (20, 56):
        torch.manual_seed(depth)
        state = {f'module.{name}': value for name, value in CifarResNet(depth).state_dict().items()}
        torch.save({'state_dict': state, 'best_prec1': 91.7}, tmp_path / f'{depth}.th')
        monkeypatch.setenv(f'DDN_RESNET{depth}', str(tmp_path / f'{depth}.th'))


def test_best_each_takes_the_likeliest_of_its_part(resnets):
    judge = load_resnet(20)
    pool = uniform(9, 3, 32, 32)
    best = zscg_cifar_classes.best_each(judge, pool, 3)
    likely = judge(pool).softmax(1)
    for c in range(10):
        for part in range(3):
            chosen = part * 3 + int(likely[part * 3 : part * 3 + 3, c].argmax())
            assert torch.equal(best[c * 3 + part], pool[chosen])


def test_cifar_classes_run(net, tmp_path, resnets):
    args = [f'--network={net[1]}', f'--outdir={tmp_path / "out"}', '--per-class=1']
    outcome = CliRunner().invoke(zscg_cifar_classes.main, args, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    rows = json.loads((tmp_path / 'out' / 'zscg-cifar-classes.json').read_text())['rows']
    calls = {row['way']: row['guide calls per image'] for row in rows}
    assert calls['top 2'] == calls['top 1'] == 16 == calls['best of 16'] and calls['unguided'] == 0
    assert calls['top 2, every 2'] == 10 and calls['top 2, every 4'] == 6
    assert calls['top 2, layers 0-1 (16x16)'] == 12 and calls['top 2, layers 2-2 (32x32)'] == 4
    assert all(0 <= row['accuracy by resnet56 (judge)'] <= 1 for row in rows)
    assert (tmp_path / 'out' / 'zscg-cifar-classes-guided.png').exists()


@pytest.mark.parametrize('prior_width', [0, 8])
def test_cifar_classes_among_proposals(prior_width, tmp_path, resnets, monkeypatch):
    monkeypatch.setattr(zscg_cifar_classes, 'PROPOSALS', (8, 4, 2))
    torch.manual_seed(0)
    path = str(tmp_path / 'net.safetensors')
    net = DDN(32, 3, [8, 8], [1, 1], [6, 4], grids=[1, 2], prior_width=prior_width).eval()
    for parameter in net.prior.parameters():
        torch.nn.init.normal_(parameter)
    snapshots.save_network(path, net, {}, {})
    args = [f'--network={path}', f'--outdir={tmp_path / "out"}', '--per-class=1', '--pool=10']
    outcome = CliRunner().invoke(zscg_cifar_classes.main, args, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    rows = json.loads((tmp_path / 'out' / 'zscg-cifar-classes.json').read_text())['rows']
    calls = {row['way']: row['guide calls per image'] for row in rows}
    # The 6 candidates of the whole image or, with a prior, proposals; then those for all cells, and for each quarter.
    whole = {m: m if prior_width else 6 for m in (8, 4, 2)}
    assert [calls[f'top 1 of {m} proposals'] for m in (8, 4, 2)] == [whole[m] + 5 * m for m in (8, 4, 2)]
    assert calls['top 1 of 4 proposals, three views'] == whole[4] + 5 * 4  # pictures, each seen three times
    by_prior = {way: n for way, n in calls.items() if way.endswith(', prior')}
    assert by_prior == ({'unguided, prior': 0, 'best of 10, prior': 10} if prior_width else {})
    assert calls['best of 10'] == 10 and calls['unguided'] == 0
    uniform, prior = (tmp_path / 'out' / f'zscg-cifar-classes-{name}.png' for name in ('best-of', 'best-of-prior'))
    assert prior.exists() == (prior_width > 0)
    assert not prior_width or prior.read_bytes() != uniform.read_bytes()


def test_unguided_samples_are_uniform_or_by_the_prior():
    torch.manual_seed(0)
    net = DDN(8, 1, [8], [2], [16], prior_width=8).eval()
    for parameter in net.prior.parameters():
        torch.nn.init.normal_(parameter)
    made, by_prior = (zscg.unguided(net, 5, seed=7, batch=4, uniform=uniform) for uniform in (True, False))
    for seed, part in ((7, slice(0, 4)), (11, slice(4, 5))):
        num = len(range(5)[part])
        assert torch.equal(made[part], common.as_saved(net.sample(num, seed=seed, uniform=True)[0]))
        assert torch.equal(by_prior[part], common.as_saved(net.sample(num, seed=seed)[0]))
    assert not torch.equal(made, by_prior)


def test_a_guide_of_three_views_is_the_mean_of_their_log_probabilities():
    torch.manual_seed(0)
    net = CifarResNet(20).eval()
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    shown: list[int] = []
    with torch.no_grad():
        found = zscg_cifar_classes.Counted(net, shown, True)(images)
        shifted = torch.cat([images[..., :1, :].expand(-1, -1, 2, -1), images[..., :-2, :]], 2)
        shifted = torch.cat([shifted[..., :1].expand(-1, -1, -1, 2), shifted[..., :-2]], 3)
        wanted = sum(net(x).log_softmax(1) for x in (images, images.flip(3), shifted)) / 3
        torch.testing.assert_close(found, wanted)
        assert torch.equal(zscg_cifar_classes.Counted(net, shown, False)(images), net(images)) and shown == [2, 2]


@pytest.mark.parametrize('finisher', [0, 8])
def test_superres_against_bicubic(finisher, tmp_path, monkeypatch):
    monkeypatch.setattr(superres, 'load_lpips', lambda: LPIPS().eval())
    torch.manual_seed(1)
    torch.save(LeNet().state_dict(), tmp_path / 'lenet.pth')
    net = DDN(32, 3, [12, 12], [2, 1], [4, 4], grids=[1, 1, (4, 2)], prior_width=8, finisher_width=finisher)
    net.sampling = Sampling((0.5, 0.5, 0.5), {f'{kind}/{p}': [0.2 / p] * 3 for kind in ('rgb', 'luma') for p in (1, 8)})
    snapshots.save_network(str(tmp_path / 'net.safetensors'), net)
    data = write_zip(tmp_path / 'held-out.zip', 30, (3, 32, 32), labels=False)
    args = [f'--network={tmp_path / "net.safetensors"}', f'--data={data}', f'--outdir={tmp_path / "out"}', '--size=4']
    args += [f'--detector={tmp_path / "lenet.pth"}', '--num=24', '--seeds=2']
    outcome = CliRunner().invoke(superres.main, args, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    rows = json.loads((tmp_path / 'out' / 'superres-net.json').read_text())['rows']
    ways = [*superres.WAYS, *(f'{way}, finisher' for way in superres.WAYS if finisher)]
    assert [row['way'] for row in rows] == ['bicubic', *ways]
    originals = common.pictures(data, net, range(24))
    small = torch.nn.functional.interpolate(originals, size=(4, 4), mode='area')
    bicubic = torch.nn.functional.interpolate(small, size=(32, 32), mode='bicubic').clamp(-1, 1)
    wanted = 10 * torch.log10(4 / (common.as_saved(bicubic) - originals).square().mean((1, 2, 3)))
    assert rows[0]['PSNR dB'] == pytest.approx(wanted.mean().item(), abs=1e-4)
    drawn = net.sample(seeds=list(range(24)), guide=Guidance([guides.superres(small)]), finish=False)[0]
    apart = torch.nn.functional.interpolate(common.as_saved(drawn), size=(4, 4), mode='area') - small
    assert rows[1]['RMSE of the condition'] == pytest.approx(apart.square().mean().sqrt().item(), rel=1e-4)
    assert all(row['FD'] > 0 and row['KID'] is not None for row in rows)
    assert rows[-1]['trained on'] == ('not known' if finisher else '-')
    with Image.open(tmp_path / 'out' / 'superres-net.png') as picture:
        assert picture.width > 8 * 2 * 32  # original, 4x4, bicubic, two seeds of two ways, top 1
    outcome = CliRunner().invoke(superres.main, [*args, '--size=7'])
    assert outcome.exit_code == 2 and 'divides the sides, 32 and 32' in outcome.output


def test_a_network_layer_by_layer_and_under_conditions(net, tmp_path):
    net, path = net
    data = write_zip(tmp_path / 'images.zip', 3, (3, 32, 32), labels=False)
    out = tmp_path / 'out'
    args = [f'--data={path}={data}', '--images=2', '--seeds=3', f'--outdir={out}']
    outcome = CliRunner().invoke(shipped_networks.main, args, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    originals = common.pictures(data, net, common.spread(data, 2))
    layers = torch.cat([originals, net.reconstruct(originals).images]).clamp(-1, 1)
    with Image.open(out / 'layers.png') as page:
        sheet = torch.from_numpy(np.array(page.convert('RGB'))).permute(2, 0, 1)
    step, top = 2 * 33, 2 + CAPTION  # a pixel is 2 x 2, a line between pictures
    for i, image in enumerate(layers):  # the first column, and the last of 1 + L
        row, column = i % 2, i // 2 * net.num_layers
        y, x = top + row * (step + CAPTION), 2 + column * step
        assert (sheet[:, y : y + 64 : 2, x : x + 64 : 2].int() - to_uint8(image).int()).abs().max() <= 1
    with Image.open(out / 'tasks.png') as tasks:
        assert tasks.height == 2 + 3 * step and tasks.width > 2 * (1 + 3 + 1) * step  # three tasks, two images

    outcome = CliRunner().invoke(shipped_networks.main, [f'--data={data}'])
    assert outcome.exit_code == 2 and 'name the network as well' in outcome.output


def test_faces_run_every_task(net, tmp_path, monkeypatch):
    torch.manual_seed(0)
    lpips = LPIPS().eval()
    monkeypatch.setattr(zscg_faces, 'load_lpips', lambda: lpips)
    data = write_zip(tmp_path / 'faces.zip', 3, (3, 32, 32), labels=False)
    args = [f'--network={net[1]}', f'--data={data}', f'--outdir={tmp_path / "out"}', '--num=2', '--pool=3']
    outcome = CliRunner().invoke(zscg_faces.main, args, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    written = json.loads((tmp_path / 'out' / 'zscg-faces.json').read_text())
    tasks = {row['task'] for row in written['rows']}
    assert {'SR4', 'inpaint eyes', 'colorization', 'denoise', '1 bit', 'strokes', 'edges', 'style'} < tasks
    assert 'left half + SR8' in tasks and "one's upper half + another's SR8" in tasks
    text = (tmp_path / 'out' / 'zscg-faces.md').read_text()
    assert sum(line.startswith('| ---') for line in text.splitlines()) == 3  # tables of unlike columns
    for sheet in ('tasks', 'SR8', 'balance'):
        with Image.open(tmp_path / 'out' / f'zscg-faces-{sheet}.png') as picture:
            assert picture.width > 64


@pytest.fixture(scope='module')
def with_cells(tmp_path_factory) -> str:
    """A network with cells, a prior and measured residuals."""
    torch.manual_seed(0)
    net = DDN(32, 3, [12, 12], [2, 1], [4, 4], grids=[1, 1, (4, 2)], prior_width=8)
    net.sampling = Sampling((), {f'{kind}/{p}': [0.2 / p] * 3 for kind in ('rgb', 'luma') for p in (1, 2, 4, 8)})
    path = str(tmp_path_factory.mktemp('cells') / 'cells.safetensors')
    snapshots.save_network(path, net)
    return path


def test_faces_by_a_second_network_with_cells(net, with_cells, tmp_path, monkeypatch):
    monkeypatch.setattr(zscg_faces, 'load_lpips', lambda: LPIPS().eval())
    data = write_zip(tmp_path / 'faces.zip', 3, (3, 32, 32), labels=False)
    args = [f'--network={net[1]}', f'--cells={with_cells}', f'--data={data}', f'--outdir={tmp_path / "out"}', '--num=2']
    outcome = CliRunner().invoke(zscg_faces.main, [*args, '--pool=3', '--task=SR4', '--task=edges'])
    assert outcome.exit_code == 0, outcome.output
    rows = json.loads((tmp_path / 'out' / 'zscg-faces.json').read_text())['rows']
    for task in ('SR4', 'edges'):
        ways = {row['way']: row for row in rows if row['task'] == task}
        assert {'top 2', 'cells', 'cells, top 2 without prior', 'cells, unguided'} < set(ways)
        assert {'consistency', 'psnr', 'lpips', 'seconds'} < set(ways['cells'])
        assert ways['cells, top 1 without prior']['consistency'] < ways['cells, unguided']['consistency']
        assert ways['cells']['seconds'] > 0 and ways['unguided']['seconds'] is None
    assert (tmp_path / 'out' / 'zscg-faces-cells.png').exists()


def test_curves_of_guided_cells(net, with_cells, tmp_path, monkeypatch):
    monkeypatch.setattr(guided_cells, 'load_lpips', lambda: LPIPS().eval())
    for name, few in (('WEIGHTS', [0.1, 1.0]), ('TOP', [1]), ('SWEEPS', [1]), ('PROPOSALS', [1, 4])):
        monkeypatch.setattr(guided_cells, name, few)
    data = write_zip(tmp_path / 'faces.zip', 3, (3, 32, 32), labels=False)
    args = [f'--data={data}', f'--outdir={tmp_path}', '--num=2']
    outcome = CliRunner().invoke(guided_cells.main, [f'--network={with_cells}', *args])
    assert outcome.exit_code == 0, outcome.output
    ways = {row['way'] for row in json.loads((tmp_path / 'guided-cells.json').read_text())['rows']}
    assert {'prior, weight 0.1', 'top 1 without prior', '1 sweeps, prior', '4 proposals, top 1 without prior'} <= ways
    for task in ('SR4', 'inpaint-below'):
        with Image.open(tmp_path / f'guided-cells-{task}-curves.png') as image:
            assert image.size == (curves.WIDTH, curves.HEIGHT)
    outcome = CliRunner().invoke(guided_cells.main, [f'--network={with_cells}', *args, '--fit'])
    assert outcome.exit_code == 0, outcome.output
    fitted = {row['task']: row for row in json.loads((tmp_path / 'prior-weights.json').read_text())['rows']}
    assert {'SR4', 'colorization', 'deblur', 'inpaint below'} < set(fitted) and 'edges' not in fitted
    outcome = CliRunner().invoke(guided_cells.main, [f'--network={net[1]}', *args])
    assert outcome.exit_code == 1 and 'has no prior' in outcome.output


def test_the_weight_is_fitted_by_the_likelihood_of_codes(with_cells):
    """Without a weight it is that of the prior; the nearest codes are certain under an l2 guide of infinite weight."""
    net = Network.from_pretrained(with_cells)
    images = uniform(4, 3, 32, 32, seed=3)
    nats = guided_cells.nats_of_codes(net, guides.l2(images), images, [0.0, 1e7])
    own = -net.log_prob(net.encode(images)).mean().item() / net.num_codes
    assert nats[0] == pytest.approx(own, rel=1e-4) and nats[1] == pytest.approx(0, abs=1e-3)
    curve = [{'consistency': c, 'lpips': v} for c, v in ((0.1, 0.3), (1e-3, 0.5), (1e-2, 0.4))]
    assert guided_cells.interpolated(curve, 10**-1.5, 'lpips') == pytest.approx(0.35)
    assert guided_cells.interpolated(curve, 0.2, 'lpips') is None


def test_faces_by_texts(net, tmp_path, monkeypatch):
    lpips = LPIPS().eval()
    monkeypatch.setattr(zscg_faces, 'load_lpips', lambda: lpips)
    shades = {text: i / 10 for i, text in enumerate([*zscg_faces.TEXTS, *zscg_faces.PLACES])}

    def like_a_text(text: str) -> guides.Guide:  # what the text says is a shade
        return black_boxes.python(lambda images: -(images.mean((1, 2, 3)) - shades[text]).abs())

    monkeypatch.setattr(zscg_faces, 'clip_guides', lambda model: like_a_text)
    data = write_zip(tmp_path / 'faces.zip', 3, (3, 32, 32), labels=False)
    args = [f'--network={net[1]}', f'--data={data}', f'--outdir={tmp_path / "out"}', '--num=2', '--pool=8']
    outcome = CliRunner().invoke(zscg_faces.main, [*args, '--task=SR4', '--clip=any'], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    rows = json.loads((tmp_path / 'out' / 'zscg-faces.json').read_text())['rows']
    texts = {row['text']: row for row in rows if 'text' in row}
    assert list(texts) == list(zscg_faces.TEXTS)
    assert all(row['best of 8'] <= row['unguided'] for row in texts.values())
    assert sum(r['guided'] for r in texts.values()) < sum(r['unguided'] for r in texts.values())
    places = [row for row in rows if 'text in a place' in row]
    assert len(places) == 4 * len(zscg_faces.PLACES)
    for sheet in ('texts', 'places'):
        with Image.open(tmp_path / 'out' / f'zscg-faces-{sheet}.png') as picture:
            assert picture.width > 64


def test_a_text_gets_its_box_and_the_face_the_rest(net):
    face = net[0].sample(1, seed=5)[0]
    shade = lambda text: black_boxes.python(lambda images: -(images.mean((1, 2, 3)) - 1).abs())  # noqa: E731
    rows, made = zscg_faces.text_in_a_place(net[0], shade, face)
    for text, box in zscg_faces.PLACES.items():
        assert torch.equal(made[text][:1], face * zscg_faces.box_mask(face, *box)) and len(made[text]) == 5
        of = [row for row in rows if row['text in a place'] == text]
        assert [row['weight of the face'] for row in of] == [0.9, 0.7, 0.5, 0.3]
    heavy, light = ([row for row in rows if row['weight of the face'] == weight] for weight in (0.9, 0.3))
    assert sum(r['to the rest'] for r in heavy) < sum(r['to the rest'] for r in light)
    assert sum(r['to the text'] for r in heavy) > sum(r['to the text'] for r in light)


def test_clip_that_does_not_load_is_one_line(tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.split('.')[0] == 'open_clip']:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'open_clip.py').write_text('raise ImportError("no such thing")')
    words = '--clip=ViT-B-32,openai: clip needs open_clip, which did not load (no such thing): pip install'
    with pytest.raises(ValueError, match=re.escape(words)):
        zscg_faces.clip_guides('ViT-B-32,openai')


def test_clip_guides_load_a_model_of_open_clip(tmp_path):
    open_clip, clip, weights = tiny_open_clip(tmp_path, 'ddn-tiny-faces')
    found = zscg_faces.clip_guides(f'ddn-tiny-faces,{weights}')('a child')
    images = uniform(2, 3, 16, 16)
    expected = guide_networks.clip_guide('a child', clip, open_clip.get_tokenizer('ddn-tiny-faces'))
    torch.testing.assert_close(zscg.finished(found, images), zscg.finished(expected, images))
    with pytest.raises(ValueError, match='--clip=ddn-tiny-faces,no-tag'):
        zscg_faces.clip_guides('ddn-tiny-faces,no-tag')


def test_what_is_missing_is_named(net, tmp_path):
    data = write_zip(tmp_path / 'a.zip', 3, (1, 8, 8), labels=False)
    for choose in (lambda: common.pictures(data, net[0], range(4)), lambda: common.spread(data, 4)):
        with pytest.raises(ValueError, match='holds 3 images, 4 are needed'):
            choose()
    with pytest.raises(ValueError, match="is 8x8 with 1 channels, the network's images are 32x32 with 3"):
        common.pictures(data, net[0])
    with pytest.raises(ValueError, match='has no class labels'):
        common.class_labels(data, [0])


def test_pictures_spread_evenly_with_their_classes(net, tmp_path):
    data = write_zip(tmp_path / 'a.zip', 12, (3, 32, 32))
    chosen = common.spread(data, 4)
    assert chosen == [0, 3, 6, 9] and common.class_labels(data, chosen).tolist() == [0, 0, 0, 0]
    assert torch.equal(common.pictures(data, net[0], chosen), common.pictures(data, net[0])[::3])


@pytest.mark.parametrize('task', ['mnist', 'color', 'edge'])
def test_conditional_networks_are_compared(tmp_path, task, monkeypatch):
    torch.manual_seed(0)
    channels, of = (1, ['onehot:10']) if task == 'mnist' else (3, [task])
    paths = []
    for name, kwargs in (('conditional', {'conditions': of}), ('plain', {})):
        paths.append(str(tmp_path / f'{name}.safetensors'))
        net = DDN(32, channels, [12, 12], [1, 1], [4, 4], **kwargs).eval()
        snapshots.save_network(paths[-1], net, {}, {'cur_nimg': 7})
    monkeypatch.setattr(conditional, 'load_lpips', lambda: LPIPS().eval())
    monkeypatch.setattr(conditional, 'load_detector', lambda name: SimpleNamespace(net=LeNet()))
    data = write_zip(tmp_path / 'data.zip', 20, (channels, 32, 32), labels=False)
    with zipfile.ZipFile(data, 'a') as archive:
        labels = [[name, i // 2] for i, name in enumerate(sorted(archive.namelist()))]
        archive.writestr('dataset.json', json.dumps({'labels': labels}))
    args = [task, f'--network={paths[0]}', f'--unconditional={paths[1]}', f'--data={data}', f'--outdir={tmp_path}']
    args += ['--num=2', '--samples=2', '--per-class=2', '--few=2', '--note=machine=a test']
    outcome = CliRunner().invoke(conditional.main, args, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    written = json.loads((tmp_path / f'conditional-{task}.json').read_text())
    ways = {row['way'] for row in written['rows'] if 'way' in row}
    assert {'conditional', 'conditional and guided, top 2', 'guided, top 2', 'guided, top 1', 'neither'} <= ways
    assert written['facts']['machine'] == 'a test' and '7 images seen' in written['facts']['conditional']
    assert len(list(tmp_path.glob(f'conditional-{task}-*.png'))) == 2
