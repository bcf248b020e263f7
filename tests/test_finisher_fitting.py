"""Finishers trained for a network that stays as it is."""

import json
import os

import pytest
import torch
from conftest import TINY_RUN, invoke

import train
from cli import finisher_fits
from ddn_networks import Network, tensor_files
from experiments import quality
from training import finisher_fitting
from training.checkpoint import find_states
from training.dataset import ImageFolderDataset, open_training_data
from training.prior_fitting import Fit


@pytest.fixture(scope='module')
def plain(tiny_zip, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp('plain') / 'run'
    invoke(train.main, f'--data={tiny_zip}', f'--outdir={folder}', *TINY_RUN, '--nosubdir', '--duration=0.000160')
    return str(folder)


def fit(plain: str, tiny_zip: str, folder, *args: str) -> str:
    common = [f'--fit-finisher={plain}', f'--data={tiny_zip}', f'--outdir={folder}', '--nosubdir', '--seed=0']
    common += ['--finisher-width=4', '--batch=8', '--device=cpu', '--lpips=none', '--tick=0.016', '--snap=1']
    return invoke(train.main, *common, *args)


def test_it_learns_and_the_layers_stay(plain, tiny_zip, tmp_path):
    out = fit(plain, tiny_zip, tmp_path, '--duration=0.000160')
    before, net = Network.from_pretrained(plain), Network.from_pretrained(tmp_path)
    own = {name: x for name, x in net.state_dict().items() if not name.startswith('finisher.')}
    assert len(own) == len(before.state_dict()) < len(net.state_dict())
    assert all(torch.equal(x, own[name]) for name, x in before.state_dict().items())
    codes = before.sample(4)[1]
    assert torch.equal(net.decode(codes, finish=False), before.decode(codes))
    assert (net.decode(codes) - before.decode(codes)).abs().max() > 1e-3
    assert net.snapshot_meta['finisher'] == {'network': plain, 'lpips': None}
    assert quality.trained_on(net) == '' and quality.trained_on(before) == ''
    net.snapshot_meta['finisher']['lpips'] = 'alex.pth, sha256 0'
    assert quality.trained_on(net) == 'LPIPS (AlexNet)'
    assert 'LPIPS: none' in out and 'left' in out
    stats = [json.loads(line) for line in (tmp_path / 'stats.jsonl').read_text().splitlines()]
    assert [s['nimg'] for s in stats] == list(range(16, 161, 16))
    assert stats[-1]['psnr_before'] == stats[0]['psnr_before'] != stats[-1]['psnr_after']
    assert {'samples-000000160.png', 'reconstructions-000000160.png'} <= set(os.listdir(tmp_path))
    assert len(find_states(str(tmp_path))) == 2
    page = (tmp_path / 'report.html').read_text()
    assert page.count('data:image/png;base64') == 2 and 'samples-000000160.png, after 160 images' in page
    assert f'{stats[-1]["psnr_after"]:.2f} dB' in page and '--fit-finisher' in page


def test_a_resumed_run_equals_one_that_never_stopped(plain, tiny_zip, tmp_path, monkeypatch):
    monkeypatch.setattr(finisher_fitting, 'ROUND', 16)  # 8 steps a round: the stop is within the second
    a, middle = tmp_path / 'a', tmp_path / 'b'
    for folder in (a, middle):
        fit(plain, tiny_zip, folder, '--duration=0.000160')
    os.remove(find_states(str(middle))[0])  # as if it had stopped at 144 images
    out = invoke(train.main, f'--resume={middle}', '--device=cpu')
    assert 'Resuming at 144 images' in out
    whole, resumed = (tensor_files.load_tensors(find_states(str(f))[0])[0] for f in (a, middle))
    assert whole.keys() == resumed.keys() and all(torch.equal(x, resumed[name]) for name, x in whole.items())


def test_a_prior_fitted_later_leaves_it(plain, tiny_zip, tmp_path):
    fit(plain, tiny_zip, tmp_path / 'finisher', '--duration=0.000080')
    path = str(tmp_path / 'finisher')
    common = [f'--data={tiny_zip}', f'--outdir={tmp_path / "prior"}', '--nosubdir', '--device=cpu', '--seed=0']
    invoke(train.main, f'--fit-prior={path}', '--prior=counts', '--duration=0.00004', *common)
    before, net = Network.from_pretrained(path), Network.from_pretrained(tmp_path / 'prior')
    assert len(net.prior) == 1 and net.snapshot_meta['finisher'] == before.snapshot_meta['finisher']
    codes = before.sample(2)[1]
    assert torch.equal(net.decode(codes), before.decode(codes))
    assert not torch.equal(net.decode(codes), net.decode(codes, finish=False))


def tiny_fit(plain, tiny_zip, *weights: float) -> finisher_fitting.FinisherFit:
    net = finisher_fits.new_network(Network.from_pretrained(plain), 4, ImageFolderDataset(tiny_zip))
    data = open_training_data({'path': tiny_zip}, 4)
    return finisher_fitting.FinisherFit(Fit(net, data, 0), None, 8, 1e-3, 80, 100.0, finisher_fitting.Weights(*weights))


def test_the_discriminator_sees_pictures_as_files_hold_them(plain, tiny_zip):
    fitting = tiny_fit(plain, tiny_zip)
    torch.nn.init.constant_(fitting.finisher.leave.bias, 20.0)
    seen = []
    fitting.judge.register_forward_pre_hook(lambda module, images: seen.extend(images))
    fitting.step_()
    assert len(seen) >= 9
    assert max(x.abs().max().item() for x in seen) < 3  # 1, and what an image is made brighter by


@pytest.mark.parametrize('weights', [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 0, 1)])
def test_each_loss_moves_the_finisher_by_its_weight_alone(plain, tiny_zip, weights):
    fitting = tiny_fit(plain, tiny_zip, *weights)
    before = fitting.finisher.leave.weight.clone()
    fitting.step_()
    assert torch.equal(fitting.finisher.leave.weight, before) == (not any(weights))


def test_collapse_is_noticed():
    good = {'gap': 0.5, 'detail_after': 0.9}
    assert finisher_fitting.warning(good) is None
    assert 'the discriminator is certain which images are real' in finisher_fitting.warning({**good, 'gap': 9.0})
    assert '2.0 times the high-frequency energy' in finisher_fitting.warning({**good, 'detail_after': 2.0})


def test_options_that_mean_nothing_here(plain, tiny_zip, tmp_path):
    for option in ('nodes=4', 'unshuffle=2', 'beta2=0.9', 'workers=2', 'tensorboard=1', 'condition-to=heads'):
        with pytest.raises(AssertionError, match=f'--{option.split("=")[0]} does nothing with --fit-finisher'):
            fit(plain, tiny_zip, tmp_path, f'--{option}')
    with pytest.raises(AssertionError, match='LPIPS needs grey or RGB images of 31x31 pixels or more; leave it out'):
        fit(plain, tiny_zip, tmp_path, '--lpips=missing.pth')
    out = fit(plain, tiny_zip, tmp_path, '--duration=0.000016', '--lpips=auto')
    assert 'Without LPIPS: LPIPS needs grey or RGB images of 31x31 pixels or more' in out
    with pytest.raises(OSError, match='missing.pth'):
        finisher_fits.perceptual_loss('missing.pth', (3, 32, 32), torch.device('cpu'), print)
