"""experiments/finishers.py: what its controls leave out, and what they train."""

import pytest
import torch

from ddn_networks import DDN
from experiments.finishers import FromNoise, IntoTheTop, Timed
from training.dataset import open_training_data
from training.finisher_fitting import Weights
from training.prior_fitting import Fit


@pytest.fixture
def fit(tiny_zip, monkeypatch):
    monkeypatch.setattr('training.finisher_fitting.ROUND', 16)
    data = open_training_data({'path': tiny_zip, 'xflip': False, 'cache': True}, 8, None, held_out_share=0.1)

    def made(kind: type[Timed], weights: Weights = Weights()) -> Timed:  # noqa: B008
        torch.manual_seed(0)
        C, *size = data.loaded[0][0].shape
        net = DDN(size, C, [8, 8], [2, 2], [4, 4], grids=[1, 1, 2, 4], finisher_width=4)
        found = kind(Fit(net, data, 0), None, 8, 1e-3, 1, 100.0, weights, 4)
        found.seconds = 1e9
        return found

    return made


def test_noise_has_nothing_of_the_networks_picture(fit):
    found = fit(FromNoise, Weights(squared=0.0))
    round_ = found.make_round(0)
    for pictures in (round_.drawn, round_.samples):
        assert not pictures.images.any()
        features = pictures.features.float()
        assert abs(features.mean()) < 0.05 and abs(features.std() - 1) < 0.05
        flat = features.flatten(2)[0]
        assert (torch.corrcoef(flat) - torch.eye(len(flat))).abs().max() < 0.4  # channels of their own
    before = found.samples([0, 1])
    with torch.no_grad():
        for param in (*found.net.blocks.parameters(), *found.net.ddls.parameters()):
            param.mul_(1.5)
    assert torch.equal(found.samples([0, 1]), before)
    first = found.step_()
    assert first['gap'].isfinite() and not torch.equal(found.samples([0, 1]), before)


def test_the_gradient_reaches_the_last_scale_alone(fit):
    found = fit(IntoTheTop)
    before = {name: x.clone() for name, x in found.net.state_dict().items()}
    for _ in range(3):  # the last convolution of a finisher begins at zero
        found.step_()
    moved = {name for name, x in found.net.state_dict().items() if not torch.equal(x, before[name])}
    own = {name for name in moved if not name.startswith('finisher.')}
    assert own and all(name.startswith(('blocks.2.', 'blocks.3.')) for name in own)
    held_out = found.fit.data.loaded[0][0]
    image = torch.from_numpy(held_out)[None] / 127.5 - 1
    with found.averaged_weights():
        expected = found.net.reconstruct(image).images
    assert torch.equal(found.reconstructions(image), expected)
    assert {name: x for name, x in found.ema.params.items() if name.startswith('2.')}
