"""A new condition and a new guide: one class each, put into its dict, and train.py and generate.py know them."""

import os

import numpy as np
import pytest
import torch
from conftest import TINY_RUN, invoke, write_zip
from PIL import Image

import generate
import latents
import train
from cli import guide_arguments
from ddn_networks import Network, conditions, guides, pixel_maps


class Levels(conditions.Condition):
    """The grey picture in N levels; in training they lie at random."""

    help = 'the picture in N levels of grey'
    sized = True
    num_random = 1

    def planes(self, source, size, draws):
        shift = draws[:, len(conditions.PLAIN), None, None, None] - 0.5
        grey = pixel_maps.fit(source.mean(1, keepdim=True), size)
        return ((grey + 1) / 2 * (self.size - 1) + shift).round() / (self.size - 1) * 2 - 1


class Brightness(guide_arguments.GuideArgument):
    """Images of this mean."""

    value = 'MEAN'
    options = {'power': 'of the distance (2)'}
    example = 'brightness:-0.5'

    def load(self, value, options):
        self.mean, self.power = float(value), options.whole('power', 2, 1)

    def guide(self, index, shape):
        def distances(candidates, layer):
            return guides.rendered(candidates, lambda x, rows: (x.mean((1, 2, 3)) - self.mean).abs() ** self.power, 64)

        return guides.Guide('brightness', distances)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(conditions.CONDITIONS, 'levels', Levels)
    monkeypatch.setitem(guide_arguments.GUIDES, 'brightness', Brightness)


@pytest.fixture
def data(tmp_path) -> str:
    return write_zip(tmp_path / 'data.zip', 20, (3, 8, 8))


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_a_new_condition_trains_generates_and_reconstructs(data, tmp_path):
    listed = invoke(train.main, '--condition=help')
    assert 'levels:N' in listed and Levels.help in listed
    run = [f'--data={data}', *TINY_RUN, '--channels=16,16,16,16', '--condition=class,levels:3', '--nosubdir']
    invoke(train.main, f'--outdir={tmp_path}/run', *run, '--duration=0.000064')
    assert 'levels:N' in invoke(train.main, *run[:1], '--condition=levels', f'--outdir={tmp_path}', expect=1)
    name = sorted(n for n in os.listdir(tmp_path / 'run') if n.startswith('network-snapshot'))[-1]
    network = f'--network={tmp_path}/run/{name}'
    net = Network.from_pretrained(network[10:])
    assert str(net.conditions) == 'class:3 and levels:3' and net.condition_channels == 2
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(tmp_path / 'picture.png')
    picture = torch.from_numpy(pixels(tmp_path / 'picture.png')).permute(2, 0, 1)[None] / 127.5 - 1
    condition = net.make_condition(1, picture)
    assert set(condition[0, 1].unique().tolist()) <= {-1.0, 0.0, 1.0}
    for key in ('', 'levels:'):
        invoke(generate.main, network, f'--outdir={tmp_path}/{key}out', '--seeds=0-3', '--class=1', '--device=cpu',
               f'--condition-image={key}{tmp_path}/picture.png', f'--grid={tmp_path}/{key}grid.png')  # fmt: skip
        for seed, image in enumerate(net.sample(4, condition=condition)[0]):
            expected = (image.permute(1, 2, 0).numpy() + 1) * 127.5
            found = pixels(tmp_path / f'{key}out' / f'{seed:06d}.png')
            assert np.abs(found - expected.clip(0, 255)).max() <= 1
    invoke(generate.main, network, f'--outdir={tmp_path}/again', f'--reconstruct={data}', '--device=cpu')
    invoke(latents.main, 'encode', network, f'--data={data}', f'--dest={tmp_path}/codes.npz', '--device=cpu')
    out = invoke(generate.main, network, f'--outdir={tmp_path}/x', '--class=1', '--device=cpu', expect=1)
    assert 'conditioned on levels: give --condition-image' in out


def test_a_new_guide_generates(tmp_path):
    torch.manual_seed(0)
    assert 'brightness:MEAN' in invoke(generate.main, '--guide=help')
    common = ['--network=mnist', '--device=cpu', '--seeds=0-7', '--top-k=1']
    means = []
    for mean in (-0.9, -0.5):
        invoke(generate.main, *common, f'--guide=brightness:{mean}', f'--outdir={tmp_path}/{mean}')
        means.append(np.mean([pixels(tmp_path / f'{mean}' / f'{seed:06d}.png') for seed in range(8)]) / 127.5 - 1)
    assert means[0] < -0.8 and means[1] > -0.6
    for text, words in (('brightness:', 'it needs MEAN'), ('brightness:0,power=0', 'power=0 is less than 1'),
                        ('brightness:x', 'could not convert')):  # fmt: skip
        assert f'--guide {text}: {words}' in invoke(generate.main, *common[:2], f'--guide={text}',
                                                    f'--outdir={tmp_path}', expect=1)  # fmt: skip
