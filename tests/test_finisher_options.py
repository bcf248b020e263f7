"""Scripts show the finished picture, or with --finish=0 the picture before."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import fid
import generate
import latents
from ddn_networks import DDN, Network, snapshots
from dnnlib.images import to_float, to_uint8


@pytest.fixture(scope='module')
def path(tmp_path_factory) -> str:
    torch.manual_seed(0)
    net = DDN(16, 1, [8, 8], [1, 1], [4, 4], grids=[1, 2], finisher_width=4)
    with torch.no_grad():
        for param in net.finisher.parameters():
            param.copy_(0.2 * torch.randn(param.shape))
    path = tmp_path_factory.mktemp('net') / 'net.safetensors'
    snapshots.save_network(path, net)
    return str(path)


def run(script, *args) -> str:
    result = CliRunner().invoke(script.main, [str(a) for a in args])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def shown(images: torch.Tensor) -> list[np.ndarray]:
    return list(to_uint8(images)[:, 0].numpy())


def pixels(folder, names) -> list[np.ndarray]:
    return [np.asarray(Image.open(folder / name)) for name in names]


@pytest.mark.parametrize('options, finish', [([], True), (['--finish=1'], True), (['--finish=0'], False)])
def test_of_samples_codes_and_reconstructions(path, tmp_path, options, finish):
    net = Network.from_pretrained(path)
    images, codes = net.sample(3, finish=finish)
    assert not torch.equal(to_uint8(images), to_uint8(net.sample(3, finish=not finish)[0]))
    network = [f'--network={path}', '--device=cpu', *options]
    names = [f'{i:06d}.png' for i in range(3)]
    saved = tmp_path / 'codes.npz'
    run(generate, *network, f'--outdir={tmp_path / "a"}', '--seeds=0-2', f'--save-codes={saved}')
    np.testing.assert_array_equal(pixels(tmp_path / 'a', names), shown(images))
    run(generate, *network, f'--outdir={tmp_path / "b"}', f'--codes={saved}')
    np.testing.assert_array_equal(pixels(tmp_path / 'b', names), shown(images))
    run(latents, 'decode', *network, f'--codes={saved}', f'--outdir={tmp_path / "c"}')
    np.testing.assert_array_equal(pixels(tmp_path / 'c', names), shown(images))
    run(generate, *network, f'--outdir={tmp_path / "d"}', f'--reconstruct={tmp_path / "a"}')
    made = net.reconstruct(to_float(to_uint8(images)), finish=finish).images
    np.testing.assert_array_equal(pixels(tmp_path / 'd', names), shown(made))


def test_evaluation_says_so(path):
    device = torch.device('cpu')
    with_it, about = fid.load(path, None, device, True)
    without, about_without = fid.load(path, None, device, False)
    assert with_it.finisher is not None and without.finisher is None
    assert 'finish' not in about and about_without['finish'] is False
    source = fid.samples(None, path, None, False, device, 2, 0, None)
    ((_, images),) = source.batches(range(2), 2)
    expected = Network.from_pretrained(path).sample(2, finish=False)[0]
    assert torch.equal(images, to_uint8(expected)) and json.dumps(source.describe()).count('"finish": false') == 1
