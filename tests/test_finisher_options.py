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
            param.copy_(0.1 * torch.randn(param.shape))
    path = tmp_path_factory.mktemp('net') / 'net.safetensors'
    snapshots.save_network(path, net)
    return str(path)


def run(script, *args) -> str:
    result = CliRunner().invoke(script.main, [str(a) for a in args])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def pixels(folder, names) -> np.ndarray:
    return np.stack([np.asarray(Image.open(folder / name)) for name in names])


def same(found: np.ndarray, images: torch.Tensor) -> None:
    """But for rounding: generate.py has its tensors channels last."""
    assert np.abs(found.astype(int) - to_uint8(images)[:, 0].numpy()).max() <= 1


@pytest.mark.parametrize('options, finish', [([], True), (['--finish=1'], True), (['--finish=0'], False)])
def test_of_samples_codes_and_reconstructions(path, tmp_path, options, finish):
    net = Network.from_pretrained(path)
    images, codes = net.sample(3, finish=finish)
    assert (to_uint8(images).int() - to_uint8(net.sample(3, finish=not finish)[0]).int()).abs().max() > 9
    network = [f'--network={path}', '--device=cpu', *options]
    names = [f'{i:06d}.png' for i in range(3)]
    saved = tmp_path / 'codes.npz'
    run(generate, *network, f'--outdir={tmp_path / "a"}', '--seeds=0-2', f'--save-codes={saved}')
    same(pixels(tmp_path / 'a', names), images)
    run(generate, *network, f'--outdir={tmp_path / "b"}', f'--codes={saved}')
    same(pixels(tmp_path / 'b', names), images)
    run(latents, 'decode', *network, f'--codes={saved}', f'--outdir={tmp_path / "c"}')
    same(pixels(tmp_path / 'c', names), images)
    run(generate, *network, f'--outdir={tmp_path / "d"}', f'--reconstruct={tmp_path / "a"}')
    made = net.reconstruct(to_float(to_uint8(images)), finish=finish).images
    same(pixels(tmp_path / 'd', names), made)


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
