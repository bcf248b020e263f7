"""A network with a prior of its own through the scripts: trained, resumed, sampled."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import TINY_RUN, final

import generate
import train
from ddn_networks import Network, samplers
from training.loss import prior_loss
from training.report import layer_table, read_stats

RUN = [*TINY_RUN, '--grids=1,1,2,2x4', '--chain-dropout=0.3', '--prior=head', '--prior-width=8', '--tick=0.08',
       '--nosubdir']  # fmt: skip


def invoke(main, *args, expect=0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == expect, result.output
    return result.output


@pytest.fixture(scope='module')
def trained(tiny_zip, tmp_path_factory):
    folder = tmp_path_factory.mktemp('prior') / 'run'
    invoke(train.main, f'--data={tiny_zip}', f'--outdir={folder}', *RUN, '--duration=0.000320')
    return folder


def test_the_prior_is_trained_and_moves_with_the_nodes(trained):
    net = Network.from_pretrained(trained)
    assert len(net.prior) == 6
    for stats in read_stats(str(trained)):
        assert math.isfinite(stats['prior_nats']) and math.isfinite(stats['val_prior_nats'])
    state = final(trained)
    assert state['balance/num_splits'].sum() > 0
    assert all(state[f'net/prior.{layer}.out.weight'].any() for layer in range(6))
    assert layer_table(net).splitlines()[-1].split()[0] == 'prior'


def test_it_resumes_bit_for_bit(trained, tiny_zip, tmp_path):
    invoke(train.main, f'--data={tiny_zip}', f'--outdir={tmp_path}', *RUN, '--duration=0.000160')
    invoke(train.main, f'--resume={tmp_path}', '--duration=0.000320')
    a, b = final(trained), final(tmp_path)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_without_a_prior_nothing_of_it_is_stored(tiny_zip):
    plain = json.loads(invoke(train.main, f'--data={tiny_zip}', *TINY_RUN, '-n'))
    assert not [key for key in (*plain, *plain['network_kwargs']) if key.startswith('prior')]
    head = ['--prior=head', '--prior-gradient=0.02', '-n']
    given = json.loads(invoke(train.main, f'--data={tiny_zip}', *TINY_RUN, *head))
    assert given['network_kwargs']['prior_gradient'] == 0.02 and given['prior_clean'] == 0.5


def test_half_of_the_images_have_no_chain_dropout(trained, monkeypatch, tiny_zip, tmp_path):
    seen = []
    plain = samplers.chain_dropout
    monkeypatch.setattr(samplers, 'chain_dropout', lambda s, table: seen.append(table) or plain(s, table))
    common = [f'--data={tiny_zip}', *RUN, '--duration=0.000032']
    invoke(train.main, *common, f'--outdir={tmp_path / "half"}')
    invoke(train.main, *common, f'--outdir={tmp_path / "all"}', '--prior-clean=1')
    half, whole = seen[0] >= 0, seen[-1] >= 0
    assert not half[:8].any() and half[8:].any() and not whole.any()


def test_samples_are_by_the_prior(trained, tmp_path):
    net = f'--network={trained}'

    def codes(name: str, *args: str) -> np.ndarray:
        file = tmp_path / f'{name}.npz'
        invoke(generate.main, net, f'--outdir={tmp_path / name}', '--seeds=0-19', f'--save-codes={file}', *args)
        return np.load(file)['codes']

    loaded = Network.from_pretrained(trained)
    assert np.array_equal(codes('prior'), loaded.sample(20)[1].numpy())
    assert np.array_equal(codes('uniform', '--uniform'), loaded.sample(20, uniform=True)[1].numpy())
    cold = ['--temperature=1,1,1,0.5,0.5,0', '--top-p=0.9']
    want = loaded.sample(20, temperature=[1, 1, 1, 0.5, 0.5, 0], top_p=0.9)[1].numpy()
    assert np.array_equal(codes('cold', *cold), want)
    out = invoke(generate.main, net, f'--outdir={tmp_path}', '--temperature=1,2', expect=1)
    assert 'one number of at least 0, or 6, one per layer' in out
    out = invoke(generate.main, net, f'--outdir={tmp_path}', '--temperature=1', '--uniform', expect=1)
    assert 'uniform choices and guides do not use it' in out
    out = invoke(generate.main, net, f'--outdir={tmp_path}', '--guide=l2:x.png', '--uniform', expect=1)
    assert 'with --guide' in out


def test_the_loss_is_the_cross_entropy_of_the_nearest_code():
    rng = torch.Generator().manual_seed(0)
    log_p = [torch.randn(shape, generator=rng).log_softmax(1) for shape in ((4, 3), (4, 5, 2))]
    distances = [torch.rand(log.shape, generator=rng) for log in log_p]
    slow = [-log_p[0][b, distances[0][b].argmin()] for b in range(4)]
    slow += [-log_p[1][b, distances[1][b, :, i].argmin(), i] for b in range(4) for i in range(2)]
    torch.testing.assert_close(prior_loss(log_p, distances), torch.stack(slow).mean())
    torch.testing.assert_close(prior_loss(log_p, distances, 1e-6), torch.stack(slow).mean())
    soft = torch.cat([
        -((-d / (0.5 * d.std(1, keepdim=True))).softmax(1) * log).sum(1).reshape(4, -1)
        for log, d in zip(log_p, distances, strict=True)
    ], 1)  # fmt: skip
    torch.testing.assert_close(prior_loss(log_p, distances, 0.5), soft.mean())
