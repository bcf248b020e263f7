"""``--guide``: from words and files to guides."""

import re
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import invoke
from PIL import Image
from tiny_clip import tiny_open_clip

import generate
from cli import guide_arguments, guide_networks
from cli.jobs import common_names
from ddn_networks import DDN, Candidates, black_boxes, guides, snapshots
from ddn_networks.sampling import Sampling

SHAPE = (8, 8)


def save(path, pixels: np.ndarray) -> str:
    """uint8 [H, W] or [H, W, C] to a file."""
    Image.fromarray(pixels).save(path)
    return str(path)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def as_float(pixels: np.ndarray) -> torch.Tensor:
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1


def family(B: int = 2, C: int = 3, K: int = 5) -> Candidates:
    g = torch.Generator().manual_seed(7)
    return Candidates(torch.randn(K, C, 6, generator=g), torch.randn(B, 6, *SHAPE, generator=g))


def same(spec: guide_arguments.GuideArgument, guide: guides.Guide, index=(0,), candidates=None) -> None:
    built = spec.build(list(index), SHAPE)
    full = candidates or family()
    torch.testing.assert_close(built(full, 0), guide(full, 0), rtol=1e-6, atol=1e-6)


def test_every_picture_guide_means_what_its_function_does(tmp_path):
    picture, mask = noise(8, 8, 3), (noise(8, 8, seed=1) > 128).astype(np.uint8) * 255
    face, eyes = save(tmp_path / 'face.png', picture), save(tmp_path / 'eyes.png', mask)
    target, covered = as_float(picture), as_float(mask)
    strokes = save(tmp_path / 'strokes.png', np.concatenate([picture, mask[..., None]], 2))
    low = torch.nn.functional.interpolate(target, size=(4, 4), mode='area')
    for text, guide in {
        f'l2:{face}': guides.l2(target),
        f'l1:{face},at_once=3': guides.l1(target),
        f'denoise:{face}': guides.denoise(target),
        f'superres:{face},size=4': guides.superres(low),
        f'superres:{face}': guides.superres(target),
        f'colorization:{face}': guides.colorization(target),
        f'inpaint:{face},mask={eyes}': guides.inpaint(target, (covered < 0).float()),
        f'strokes:{strokes}': guides.strokes(torch.cat([target, covered], 1)),
        f'blur:{face},sigma=1.5': guides.blur(target, 1.5),
        f'posterize:{face},bits=2': guides.posterize(target, 2),
        f'edges:{face},threshold=0.5': guides.edges(target, threshold=0.5),
        f'edges:{face},drawn=1': guides.edges(target, drawn=True),
    }.items():
        same(guide_arguments.parse(text), guide)


def test_pictures_of_any_shape_are_cropped_and_resized(tmp_path):
    wide = noise(16, 40, 3)
    spec = guide_arguments.parse('l2:' + save(tmp_path / 'wide.png', wide))
    middle = as_float(wide[:, 12:28])
    same(spec, guides.l2(torch.nn.functional.interpolate(middle, size=SHAPE, mode='area')))
    grey = guide_arguments.parse('l2:' + save(tmp_path / 'grey.png', wide[:, :16, 0]))
    same(grey, guides.l2(as_float(wide[:, :16, 0])))
    clear = np.concatenate([wide[:, :16], np.zeros((16, 16, 1), np.uint8)], 2)  # RGBA, all transparent: white
    same(guide_arguments.parse('l2:' + save(tmp_path / 'clear.png', clear)), guides.l2(torch.ones(1, 3, 8, 8)))


def test_a_folder_gives_one_guide_per_picture(tmp_path):
    pixels = [noise(8, 8, 3, seed=i) for i in range(3)]
    for i, p in enumerate(pixels):
        save(tmp_path / f'{i}.png', p)
    spec = guide_arguments.parse(f'superres:{tmp_path},size=3')
    assert spec.pictures.names == ['0.png', '1.png', '2.png'] == common_names([spec.pictures])
    low = torch.cat([guides.pixel_maps.box(as_float(pixels[i]), (3, 3)) for i in (2, 0)])
    same(spec, guides.superres(low), index=(2, 0))
    one = guide_arguments.parse('l2:' + save(tmp_path.parent / 'one.png', pixels[0]))
    assert common_names([one.pictures, spec.pictures]) == spec.pictures.names
    assert common_names([one.pictures]) == ['one.png']
    same(one, guides.l2(as_float(pixels[0])), index=(1, 2))
    other = tmp_path.parent / 'other'
    other.mkdir()
    for i in range(2):
        save(other / f'{i}.png', pixels[i])
    with pytest.raises(ValueError, match='3 pictures and .* 2; give as many, or one'):
        common_names([spec.pictures, guide_arguments.parse(f'l2:{other}').pictures])


def test_a_folder_of_grey_and_coloured_pictures_of_any_size(tmp_path):
    sizes = {'a.png': (16, 16, 3), 'b.png': (10, 10), 'c.png': (16, 16)}
    for seed, (name, size) in enumerate(sizes.items()):
        save(tmp_path / name, noise(*size, seed=seed))
    grey = [guides.pixel_maps.box(as_float(noise(*sizes[f'{n}.png'], seed=i)), (4, 4)) for i, n in enumerate('abc')]
    low = torch.cat([x.expand(-1, 3, -1, -1) for x in grey])
    same(guide_arguments.parse(f'superres:{tmp_path},size=4'), guides.superres(low), (0, 1, 2), family(B=3))
    colours = torch.cat([as_float(noise(16, 16, 3)), as_float(noise(16, 16, seed=2)).expand(-1, 3, -1, -1)])
    same(guide_arguments.parse(f'superres:{tmp_path}'), guides.superres(colours), (0, 2))
    same(guide_arguments.parse(f'l2:{tmp_path}'), guides.l2(guides.pixel_maps.fit(colours, SHAPE)), (0, 2))
    with pytest.raises(ValueError, match='superres:.*different sizes, 10x10 and 16x16: give size=, or --batch=1'):
        guide_arguments.parse(f'superres:{tmp_path}').build([0, 1, 2], SHAPE)


class Projection(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.randn(48, 4, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.matrix


class Squares(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


def script(net: torch.nn.Module, path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # DeprecationWarning to PyTorch 2.13, FutureWarning later
        torch.jit.save(torch.jit.script(net), str(path))
    return str(path)


def test_networks_come_as_torchscript(tmp_path):
    net = Projection()
    file = script(net, tmp_path / 'net.pt')
    spec = guide_arguments.parse(f'classifier:{file},class=2,size=4,mean=0.1/0.2/0.3,std=0.5,weight=-2')
    mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)

    def fn(images):
        return net(torch.nn.functional.interpolate(((images + 1) / 2 - mean) / 0.5, size=(4, 4), mode='area'))

    same(spec, black_boxes.classifier(fn, 2))
    assert spec.build([], SHAPE).weight == -2 and spec.pictures is None
    pixels = noise(8, 8, 3)
    for text, says in (('std=0', 'std=0: pixels are divided by it'), ('mean=0.5/x', 'mean=x is not a number')):
        with pytest.raises(ValueError, match=says):
            guide_arguments.parse(f'classifier:{file},class=2,{text}')
    face, squares = save(tmp_path / 'face.png', pixels), script(Squares(), tmp_path / 'squares.pt')
    for name, make in (('perceptual', black_boxes.perceptual), ('style', black_boxes.style)):
        same(guide_arguments.parse(f'{name}:{face},network={squares}'), make(lambda x: x * x, as_float(pixels)))


def test_python_functions_come_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'path', sys.path[:])
    file = tmp_path / 'mine.py'
    file.write_text('def red(images):\n    return images[:, 0].mean((1, 2))\n'
                    'def green(images):\n    return images[..., 1].mean((1, 2))\n')
    same(guide_arguments.parse(f'python:{file}:red,at_once=4'), black_boxes.python(lambda x: x[:, 0].mean((1, 2))))
    green = guide_arguments.parse(f'python:{file}:green,numpy=1')
    same(green, black_boxes.python(lambda x: x[..., 1].mean((1, 2)), numpy=True))
    assert green.build([], SHAPE).name == 'python green'
    (tmp_path / 'neighbour_of_mine.py').write_text('def score(images):\n    return images[:, 2].mean((1, 2))\n')
    file.write_text('from __future__ import annotations\nfrom dataclasses import dataclass\n'
                    'import neighbour_of_mine\n'
                    '@dataclass\nclass Blue:\n    factor: int = 2\n    __call__ = lambda self, x: '
                    'self.factor * neighbour_of_mine.score(x)\nblue = Blue()\n')  # fmt: skip
    blue = black_boxes.python(lambda x: 2 * x[:, 2].mean((1, 2)))
    same(guide_arguments.parse(f'python:{file}:blue'), blue)
    file.write_text('raise SystemExit(3)')
    with pytest.raises(ValueError, match='mine.py does not load: SystemExit: 3'):
        guide_arguments.parse(f'python:{file}:red')
    file.write_text('import nothing_of_this_name')
    with pytest.raises(ValueError, match='mine.py does not load: ModuleNotFoundError: No module'):
        guide_arguments.parse(f'python:{file}:red')


def test_splitting():
    known = ['size', 'weight']
    assert guide_arguments.split('a.png,size=8,weight=0.5', known) == ('a.png', {'size': '8', 'weight': '0.5'})
    assert guide_arguments.split('a smiling, old woman', known) == ('a smiling, old woman', {})
    assert guide_arguments.split('e = mc2, size , weight=2', known) == ('e = mc2, size', {'weight': '2'})
    with pytest.raises(ValueError, match="it does not know 'sizes'; its options are size, weight"):
        guide_arguments.split('a.png,sizes=8', known)
    with pytest.raises(ValueError, match="it does not know 'large'"):
        guide_arguments.split('a.png,size=8,large', known)


@pytest.mark.parametrize('text, says', [
    ('supres:x.png', "unknown guide 'supres'; choose from l2, l1, denoise, superres"),
    ('superres', 'needs PICTURE: --guide superres:face.png,size=8'),
    ('superres:none.png', 'none.png: no such file or folder'),
    ('superres:FACE,size=eight', 'size=eight is not a number'),
    ('superres:FACE,size=2.5', 'not a whole number'),
    ('superres:FACE,size=0', 'size=0 is less than 1'),
    ('superres:FACE,size=inf', 'size=inf is not a number'),
    ('l1:FACE,at_once=0', 'at_once=0 is less than 1'),
    ('strokes:FACE', 'it is opaque everywhere: paint strokes on a transparent ground'),
    ('edges:FACE,softness=0', 'positive softness'),
    ('l2:FACE,weight=x', 'weight=x is not a number'),
    ('inpaint:FACE', 'needs mask=FILE'),
    ('blur:FACE', 'needs sigma=NUMBER'),
    ('edges:FACE,drawn=yes', 'drawn=yes: give 1 or 0'),
    ('classifier:none.pt,class=3', 'none.pt: no such file; .* TorchScript'),
    ('classifier:FACE,class=3', 'is not a TorchScript file'),
    ('style:FACE', 'needs network=FILE'),
    ('python:none.py:f', 'none.py:f: expected FILE.py:FUNCTION'),
    ('python:FACE:f', 'face.png:f: expected FILE.py:FUNCTION'),
    ('python:tests:f', 'tests:f: expected FILE.py:FUNCTION'),
])
def test_what_makes_no_sense_is_named(text, says, tmp_path):
    text = text.replace('FACE', save(tmp_path / 'face.png', noise(8, 8, 3)))
    with pytest.raises(ValueError, match=says):
        guide_arguments.parse(text).build([0], SHAPE)


def test_too_large_a_size_and_damaged_pictures_are_named(tmp_path):
    face = save(tmp_path / 'face.png', noise(8, 8, 3))
    with pytest.raises(ValueError, match=r'--guide superres:.*size=9 is more than the 8 pixels'):
        guide_arguments.parse(f'superres:{face},size=9').build([0], SHAPE)
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'not a picture')
    with pytest.raises(ValueError, match='--guide l2:.*broken.png: not an image'):
        guide_arguments.parse(f'l2:{broken}').build([0], SHAPE)


def test_help_lists_every_guide_with_options_and_an_example():
    text = guide_arguments.help_text()
    for name, kind in guide_arguments.GUIDES.items():
        assert f'{name}:{kind.value}' in text and f'--guide {kind.example}' in text
        assert all(option in text for option in kind.options)
        value = kind.example.strip("'").partition(':')[2]
        guide_arguments.split(value, [*kind.options, 'weight'])  # the examples are well formed


def test_clip_with_a_small_random_model(tmp_path):
    open_clip, net, _ = tiny_open_clip(tmp_path, 'ddn-tiny-random')
    guide = guide_networks.clip_guide('a smiling woman', net, open_clip.tokenize)
    candidates = family(B=1, K=3)
    images = torch.nn.functional.interpolate(
        next(iter(candidates.chunks(3)))[1][0].clamp(-1, 1), size=(16, 16), mode='bilinear', align_corners=False
    )
    published = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in published)
    with torch.no_grad():
        found = net.encode_image(((images + 1) / 2 - mean) / std, normalize=True)
        text = net.encode_text(open_clip.tokenize(['a smiling woman']), normalize=True)
    torch.testing.assert_close(guide(candidates, 0)[0], 1 - (found @ text.t())[:, 0], rtol=1e-4, atol=1e-5)


def test_clip_by_words_loads_a_file_of_weights(tmp_path):
    open_clip, net, weights = tiny_open_clip(tmp_path, 'ddn-tiny')
    text = f'clip:a smiling, old woman,model=ddn-tiny,pretrained={weights},at_once=2,weight=0.5'
    spec = guide_arguments.parse(text)
    same(spec, guide_networks.clip_guide('a smiling, old woman', net, open_clip.get_tokenizer('ddn-tiny')))
    assert spec.build([], SHAPE).weight == 0.5 and spec.pictures is None
    with pytest.raises(ValueError, match='--guide clip:.*open_clip has no model ddn-none'):
        guide_arguments.parse('clip:a face,model=ddn-none')
    with pytest.raises(ValueError, match='--guide clip:.*model=ddn-tiny,pretrained=not-a-tag did not load'):
        guide_arguments.parse('clip:a face,model=ddn-tiny,pretrained=not-a-tag')


def test_clip_without_open_clip_says_what_to_install(tmp_path, monkeypatch):
    for module in [name for name in sys.modules if name.split('.')[0] == 'open_clip']:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    for error in ('ImportError("no such thing")', 'RuntimeError("operator torchvision::nms does not exist")'):
        (tmp_path / 'open_clip.py').write_text(f'raise {error}')
        with pytest.raises(ValueError, match=r"did not load \((no such|operator).*pip install -c .* -e '\.\[clip\]'"):
            guide_arguments.parse('clip:a smiling woman')


# generate.py on networks with cells and a prior.


@pytest.fixture(scope='module')
def networks(tmp_path_factory) -> dict[str, str]:
    """Snapshots of networks with cells: without a prior, with one, with measured residuals too."""
    made = {}
    for name, prior_width, sampling in (
        ('plain', 0, Sampling()),
        ('prior', 8, Sampling()),
        ('measured', 8, Sampling((), {f'{kind}/{p}': [0.1] * 3 for kind in ('rgb', 'luma') for p in (1, 2, 4)})),
    ):
        torch.manual_seed(0)
        net = DDN(SHAPE, 3, [8, 8], [2, 1], [4, 4], grids=[1, 2, (4, 2)], prior_width=prior_width)
        net.sampling = sampling
        made[name] = str(tmp_path_factory.mktemp('net') / f'{name}.safetensors')
        snapshots.save_network(made[name], net)
    return made


def generated(network: str, folder, *args, expect: int = 0) -> str:
    fixed = ['--device=cpu', '--seeds=0-2', f'--outdir={folder}', f'--save-codes={folder}/c.npy']
    return invoke(generate.main, f'--network={network}', *fixed, *args, expect=expect)


def test_guides_of_networks_with_cells(networks, tmp_path):
    face = save(tmp_path / 'face.png', noise(8, 8, 3))
    found = {}
    for name, args in {
        'plain': ['plain'], 'top 1': ['plain', '--top-k=1', '--sweeps=1'], 'cold': ['plain', '--temperature=1e-9'],
        'prior': ['measured'], 'none': ['measured', '--prior-weight=0'], 'uniform': ['measured', '--uniform'],
        'likeliest': ['measured', '--temperature=0,0,0'], 'best': ['measured', '--top-k=1'],
        'unmeasured': ['prior', '--uniform'],
    }.items():  # fmt: skip
        folder = tmp_path / name
        generated(networks[args[0]], folder, f'--guide=superres:{face},size=2', *args[1:])
        found[name] = np.load(folder / 'c.npy')
    assert np.array_equal(found['plain'], found['uniform']) and np.array_equal(found['plain'], found['unmeasured'])
    assert not np.array_equal(found['plain'], found['top 1']) and not np.array_equal(found['plain'], found['prior'])
    assert np.array_equal(found['likeliest'], found['best'])
    generated(networks['measured'], tmp_path / 'free')
    assert np.array_equal(found['none'], np.load(tmp_path / 'free' / 'c.npy'))
    two = [f'--guide=edges:{face}', f'--guide=l2:{face}', '--proposals=3', '--prior-weight=1,0.5']
    generated(networks['measured'], tmp_path / 'two', *two)
    generated(networks['plain'], tmp_path / 'two', *two[:3])


@pytest.mark.parametrize('name, args, says', [
    ('prior', [], r'a prior but no measured rgb residuals, .*: measure them with train.py --fit-prior, or leave the'),
    ('plain', ['--prior-weight=1'], 'temperature and prior_weight weigh guides against a network.s own prior'),
    ('plain', ['--temperature=1,1,1'], '--temperature of guides without a prior is one number'),
    ('measured', ['--temperature=1,1'], 'temperature: give one number of at least 0, or 3, one per layer'),
    ('measured', ['--prior-weight=1,2'], 'prior_weight is one number of at least 0, or one for each of 1 guides'),
    ('measured', ['--prior-weight=-1'], 'prior_weight is one number of at least 0'),
    ('measured', ['--prior-weight=nan'], 'prior_weight is one number of at least 0'),
    ('measured', ['--top-p=0.5'], '--top-p and --cfg are for samples without --guide'),
    ('measured', ['--beam=2'], 'a beam of 2 keeps whole images, and layer 1 chooses per cell: use a beam of 1'),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(networks, tmp_path, name, args, says):
    face = save(tmp_path / 'face.png', noise(8, 8, 3))
    output = generated(networks[name], tmp_path / 'out', f'--guide=l2:{face}', *args, expect=1)
    assert re.search(says, output) and output.strip().splitlines()[-1].startswith('Error: ')
    assert 'Traceback' not in output
