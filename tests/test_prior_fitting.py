"""Priors fitted to a network that stays as it is; the defaults of sampling that training and fitting measure."""

import math

import numpy as np
import pytest
import torch
from conftest import TINY_NET, TINY_RUN, invoke, write_zip

import generate
import train
from cli import sampling_defaults
from ddn_networks import DDN, Network, samplers, sampling, snapshots
from dnnlib.images import to_float
from metrics.lenet import LeNet
from training import prior_fitting
from training.dataset import ImageFolderDataset, held_out, open_training_data

HIDDEN = 3  # the one of 40 images that is held out


@pytest.fixture(scope='module')
def plain(tiny_zip, tmp_path_factory) -> str:
    """A network without a prior."""
    folder = tmp_path_factory.mktemp('plain') / 'run'
    invoke(train.main, f'--data={tiny_zip}', f'--outdir={folder}', *TINY_RUN, '--nosubdir', '--duration=0.000160')
    return str(folder)


def fit(plain: str, tiny_zip: str, folder, *args: str) -> tuple[Network, str]:
    common = [f'--fit-prior={plain}', f'--data={tiny_zip}', f'--outdir={folder}', '--nosubdir', '--seed=0']
    out = invoke(train.main, *common, '--workers=0', '--device=cpu', '--batch=16', *args)
    return Network.from_pretrained(folder), out


def same_layers(a: Network, b: Network) -> bool:
    layers = {k: v for k, v in a.state_dict().items() if not k.startswith('prior.')}
    return all(torch.equal(v, b.state_dict()[k]) for k, v in layers.items())


def images_of(path: str) -> torch.Tensor:
    data = ImageFolderDataset(path)
    return to_float(torch.from_numpy(np.stack([data[i][0] for i in range(len(data))])))


def test_counts_are_those_of_the_nearest_codes(plain, tiny_zip, tmp_path):
    net, out = fit(plain, tiny_zip, tmp_path, '--prior=counts', '--duration=1')
    before = Network.from_pretrained(plain)
    assert same_layers(before, net) and '39 images' in out and 'nats per code by the prior' in out
    codes = before.encode(images_of(tiny_zip)[[i for i in range(40) if i != HIDDEN]])
    want = torch.stack([codes[:, d].bincount(minlength=5) for d in range(net.num_codes)])
    assert torch.equal(net.prior[0].counts, want)
    slow = ((want + 1) / 44.0).log().gather(1, codes.t()).sum(0)
    torch.testing.assert_close(net.log_prob(codes), slow.double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize('kind', ['head', 'transformer'])
def test_a_prior_learns_while_the_layers_stay(plain, tiny_zip, tmp_path, kind):
    how = ['--prior-width=8', '--lr=0.02', '--duration=0.00032', '--chain-dropout=0.1']
    net, out = fit(plain, tiny_zip, tmp_path, f'--prior={kind}', *how)
    before = Network.from_pretrained(plain)
    assert same_layers(before, net) and net.init_kwargs['prior_kind'] == kind
    codes = before.encode(images_of(tiny_zip))
    assert net.log_prob(codes).mean() > before.log_prob(codes).mean() + 0.1
    lines = [line for line in out.splitlines() if 'held out' in line and line.split()[0].endswith('%:')]
    assert lines[-1].startswith('100%') and 'left' in lines[0]
    file = tmp_path / 'codes.npz'
    cold = ['--temperature=0.5', '--top-p=0.9', f'--save-codes={file}']
    invoke(generate.main, f'--network={tmp_path}', f'--outdir={tmp_path}', '--seeds=0-9', *cold)
    assert np.array_equal(np.load(file)['codes'], net.sample(10, temperature=0.5, top_p=0.9)[1].numpy())
    assert net.sampling.residuals and net.sampling.temperatures == ()


def test_heads_of_a_condition_for_a_network_without(plain, tiny_zip, tmp_path):
    condition = ['--condition=class', '--condition-to=heads', '--condition-dropout=0.2']
    net, _ = fit(plain, tiny_zip, tmp_path, *condition, '--prior-width=8', '--duration=0.0002')
    before = Network.from_pretrained(plain)
    assert same_layers(before, net) and net.condition_optional and net.conditions.num_classes == 3
    codes = net.sample(4, condition=net.make_condition(1), cfg=2)[1]
    assert torch.equal(net.decode(codes), before.decode(codes))


@pytest.mark.parametrize('args, says', [
    (['--balance=bias'], '--balance does nothing with --fit-prior'),
    (['--prior=transformer', '--prior-width=6'], 'a multiple of 4'),
    (['--condition=class'], 'add --condition-to=heads'),
    (['--data=assets/faces'], 'the images are'),
    (['--fit-prior=nothing'], 'no such file: nothing'),
    (['--fit-finisher=mnist'], '--fit-finisher does nothing with --fit-prior: leave it out'),
    (['--tick=1'], '--tick does nothing with --fit-prior: leave it out'),
    (['--prior=counts', '--prior-width=8'], '--prior-width does nothing with --fit-prior --prior=counts: leave it out'),
    (['--temperature-from=nothing'], 'no such file or folder: nothing'),
    (['--temperature-from=assets/faces/hopper.png'], 'hopper.png'),
])  # fmt: skip
def test_what_cannot_be_fitted_is_one_line(plain, tiny_zip, tmp_path, args, says):
    common = [f'--fit-prior={plain}', f'--data={tiny_zip}', f'--outdir={tmp_path / "run"}', '--device=cpu']
    out = invoke(train.main, *common, *args, expect=1)
    assert says in out and 'Traceback' not in out
    assert not list(tmp_path.glob('run/*/*'))


def test_priors_over_codes_need_a_network(tiny_zip):
    out = invoke(train.main, f'--data={tiny_zip}', *TINY_NET, '--prior=counts', '-n', expect=1)
    assert '--prior=counts is for networks that stay as they are' in out


def test_the_second_nearest_is_that():
    torch.manual_seed(0)
    net = DDN(4, 1, [8, 8], [1, 1], [4, 3], grids=[1, 2]).eval()
    images = torch.rand(6, 1, 4, 4)
    second = torch.rand(6, net.num_codes) < 0.5
    with torch.no_grad():
        target = samplers.target_pyramid(images)
        output = net(prior_fitting.nearest_or_second(target, second), 6, keep=True)
    for d, columns in zip(output.distances, net.code_slices, strict=True):
        order = d.view(6, d.shape[1], -1).argsort(1)  # [B, K, n]
        assert torch.equal(output.codes[:, columns], torch.where(second[:, columns], order[:, 1], order[:, 0]))


# ------------------------------------------------------------------------------------------------------------- held out


def test_what_is_held_out_depends_on_the_index_alone():
    some = held_out(60_000, 0.02)
    assert 0.018 < some.mean() < 0.022 and np.array_equal(held_out(40, 0.02), some[:40])
    assert not held_out(1000, 0.0).any() and held_out(1000, 1.0).all()
    assert np.flatnonzero(some[:300]).tolist() == [3, 50, 132, 174, 226]  # as snapshots of other machines have them


def test_training_does_not_see_what_is_held_out(tiny_zip):
    plain, mirrored = ({'path': tiny_zip, 'xflip': flip} for flip in (False, True))
    data = open_training_data(plain, 100, held_out_share=0.02)
    every = ImageFolderDataset(tiny_zip)
    assert len(data.loaded) == 39 and len(data.held_out) == 1 and len(data.validation[0]) == 1
    assert np.array_equal(data.held_out[0][0], every[HIDDEN][0])
    assert np.array_equal(data.validation[0][0].numpy(), every[HIDDEN][0])
    assert all(not np.array_equal(data.loaded[i][0], every[HIDDEN][0]) for i in range(39))
    both = open_training_data(mirrored, 100, held_out_share=0.02)
    assert len(both.loaded) == 78 and len(both.held_out) == 1
    hidden = {every[HIDDEN][0].tobytes(), every[HIDDEN][0][:, :, ::-1].tobytes()}
    assert not hidden & {both.loaded[i][0].tobytes() for i in range(78)}
    assert open_training_data(plain, 100).held_out is None and len(open_training_data(plain, 100).validation[0]) == 40


# ------------------------------------------------------------------------------------------------------------- defaults


def test_residuals_by_hand():
    torch.manual_seed(0)
    net = DDN((6, 4), 3, [8, 8], [1, 1], [4, 3], grids=[1, 2]).eval()
    images = torch.rand(5, 3, 6, 4) * 2 - 1
    found = sampling.measured_residuals(net, [(images[:2], None), (images[2:], None)])
    assert sorted(found) == ['luma/1', 'luma/2', 'luma/4', 'rgb/1', 'rgb/2', 'rgb/4']
    with torch.no_grad():
        selected = net(samplers.nearest(images), 5, keep=True).selected
    for l, (image, size) in enumerate(zip(selected, ((3, 2), (6, 4)), strict=True)):
        residual = (image - torch.nn.functional.adaptive_avg_pool2d(images, size)).double()
        luma = 0.299 * residual[:, 0] + 0.587 * residual[:, 1] + 0.114 * residual[:, 2]
        assert found['rgb/1'][l] == pytest.approx(residual.square().mean().item(), rel=1e-5)
        assert found['luma/1'][l] == pytest.approx(luma.square().mean().item(), rel=1e-5)
        whole = residual.mean((2, 3)).square().mean().item()
        if l == 1:
            blocks = residual.unflatten(2, (3, 2)).unflatten(4, (2, 2)).mean((3, 5))
            assert found['rgb/2'][l] == pytest.approx(blocks.square().mean().item(), rel=1e-5)
        assert found['rgb/4'][l] == pytest.approx(whole, rel=1e-5)  # 6 // 4 is one block


@pytest.fixture
def lenet(tmp_path) -> str:
    torch.manual_seed(0)
    torch.save(LeNet().state_dict(), tmp_path / 'lenet.pt')
    return str(tmp_path / 'lenet.pt')


def test_training_ends_with_the_defaults_of_sampling(tmp_path, lenet, monkeypatch):
    monkeypatch.setattr(sampling_defaults, 'NUM_SAMPLES', 12)
    every = sampling_defaults.families
    monkeypatch.setattr(sampling_defaults, 'families', lambda net: dict(list(every(net).items())[:3]))
    data = write_zip(tmp_path / 'data.zip', 120, (1, 8, 8))
    run = [f'--data={data}', *TINY_RUN, '--prior=head', '--prior-width=8', '--nosubdir']
    out = invoke(train.main, *run, f'--outdir={tmp_path / "run"}', '--duration=0.000160', f'--temperature-from={lenet}')
    net = Network.from_pretrained(tmp_path / 'run')
    chosen = [line for line in out.splitlines() if line.startswith('Default temperatures: ')]
    assert len(chosen) == 1, out[-900:]
    assert '2 held-out images, 12 seeds from 1,000,000,000 on' in chosen[0]
    name = chosen[0].removeprefix('Default temperatures: ').split(' (')[0]
    assert net.sampling.temperatures == sampling_defaults.families(net)[name]
    images = {sum(row) / spec.num_cells for row, spec in zip(net.sampling.counts, net.specs, strict=True)}
    assert len(images) == 1 and images.pop() > 0  # each image counts once for every cell
    assert all(len(v) == net.num_layers for v in net.sampling.residuals.values())
    kept = snapshots.load_network(tmp_path / 'run', ema='none')
    assert kept.sampling == net.sampling and kept.snapshot_meta['cur_nimg'] == 160
    again = invoke(train.main, f'--resume={tmp_path / "run"}')
    assert 'Default temperatures' not in again and Network.from_pretrained(tmp_path / 'run').sampling == net.sampling


def test_without_weights_the_default_is_one_and_the_log_says_so(tiny_zip, tmp_path, monkeypatch):
    monkeypatch.setenv('DDN_LENET', str(tmp_path / 'none.pt'))
    run = [f'--data={tiny_zip}', *TINY_RUN, '--prior=head', '--prior-width=8', '--nosubdir', '--duration=0.000016']
    out = invoke(train.main, *run, f'--outdir={tmp_path}', '--temperature-from=lenet')
    assert 'Default temperature: 1 (--temperature-from=lenet: ' in out
    assert Network.from_pretrained(tmp_path).sampling.temperatures == ()


def test_the_families_of_temperatures():
    net = DDN(8, 1, [8, 8], [4, 4], [4, 3], grids=[1, 2], prior_width=4)
    found = sampling_defaults.families(net)
    assert found['1'] == (1.0,) * 8 and found['1 in 4 layers, then 0.05'] == (1.0,) * 4 + (0.05,) * 4
    assert found['0.8^max(0, layer - 2)'] == pytest.approx([1, 1, 1, 0.8, 0.64, 0.512, 0.4096, 0.32768])
    assert all(len(t) == 8 and 0 <= min(t) and max(t) == 1 for t in found.values())
    one = sampling_defaults.families(DDN(8, 1, [8], [1], [4], prior_width=4))
    assert all(t == (1.0,) for t in one.values()) and math.isfinite(len(one))


def test_temperatures_are_of_a_prior(tiny_zip):
    out = invoke(train.main, f'--data={tiny_zip}', *TINY_NET, '--temperature-from=lenet', '-n', expect=1)
    assert '--temperature-from chooses temperatures of a prior' in out
