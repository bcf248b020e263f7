"""A network with a prior of its own through the scripts: trained, resumed, sampled."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import TINY_RUN, final

import generate
import latents
import train
from ddn_networks import DDN, Network, samplers
from ddn_networks.code_rates import payload_bits
from ddn_networks.code_streams import Codec
from training.loss import prior_loss
from training.report import heads_share, layer_table, read_stats

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
        layers = [bits * spec.num_cells for bits, spec in zip(stats['val_code_bits'], net.specs, strict=True)]
        assert stats['val_bits'] == pytest.approx(sum(layers) + math.log2(net.num_codes + 1) + 1)
        nats = stats['val_prior_nats'] * net.num_codes
        assert sum(layers) == pytest.approx(nats / math.log(2), abs=net.num_codes / 16)  # rounded to 1/16 nat
    state = final(trained)
    assert state['balance/num_splits'].sum() > 0
    assert all(state[f'net/prior.{layer}.out.weight'].any() for layer in range(6))
    assert [line for line in layer_table(net).splitlines() if line.split()[0] == 'prior']


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
    assert 'uniform choices do not use it' in out


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


def test_a_condition_of_the_heads_alone(tiny_zip, tmp_path):
    """Trained, sampled with classifier-free guidance; codes name their images without a class."""
    run = tmp_path / 'run'
    heads = ['--condition=class', '--condition-to=heads', '--condition-dropout=0.2']
    invoke(train.main, f'--data={tiny_zip}', f'--outdir={run}', *RUN, *heads, '--duration=0.000160')
    net = Network.from_pretrained(run)
    assert net.condition_to == 'heads' and net.condition_optional and net.conditions.num_classes == 3
    common = [f'--network={run}', f'--outdir={tmp_path}']
    file = tmp_path / 'codes.npz'
    invoke(generate.main, *common, '--seeds=0-5', '--class=2', '--cfg=3', f'--save-codes={file}')
    want = net.sample(6, condition=net.make_condition(2), cfg=3)[1]
    assert np.array_equal(np.load(file)['codes'], want.numpy())
    invoke(generate.main, *common, f'--codes={file}')
    invoke(generate.main, *common, f'--reconstruct={tiny_zip}', '--max-images=3')
    for args, says in (
        ([f'--codes={file}', '--cfg=2'], '--cfg is for samples'),
        (['--guide=l2:x.png', '--cfg=2'], 'for samples without --guide'),
        (['--uniform', '--cfg=2'], 'uniform choices do not use it'),
    ):
        assert says in invoke(generate.main, *common, *args, expect=1)
    out = invoke(train.main, f'--data={tiny_zip}', *RUN, '--condition-to=heads', '-n', expect=1)
    assert '--condition-to=heads needs a --condition and --prior=head' in out


def test_other_networks_refuse_guidance_without_a_classifier(trained, tmp_path):
    out = invoke(generate.main, f'--network={trained}', f'--outdir={tmp_path}', '--cfg=2', expect=1)
    assert 'cfg needs a network whose prior alone is given the condition' in out and len(out.splitlines()) == 1


def test_the_share_of_the_heads_is_that_of_their_operations():
    def multiplications(modules) -> int:
        seen = []

        def hook(module, inputs, output):
            sizes = output.shape[2:].numel() if isinstance(module, torch.nn.Conv2d) else 1
            seen.append(module.weight.numel() * sizes)

        kinds = torch.nn.Conv2d, torch.nn.Linear
        hooks = [m.register_forward_hook(hook) for part in modules for m in part.modules() if isinstance(m, kinds)]
        net.reconstruct(torch.zeros(1, 1, 8, 8))
        net.log_prob(torch.zeros(1, net.num_codes, dtype=torch.int64))
        for handle in hooks:
            handle.remove()
        return sum(seen)

    net = DDN(8, 1, [8, 8], [1, 2], [4, 4], grids=[1, 4], prior_width=16).train()
    heads, blocks = multiplications(net.prior), multiplications(net.blocks) / 2  # of one of the two passes
    share = heads_share(net)
    want = heads / (heads + blocks)
    assert net.training and 0.7 * want < share < 1.1 * want  # it counts the layers' distances and attention, too
    assert 'of the arithmetic of a pass' in layer_table(net) and ('Warning' in layer_table(net)) == (share > 0.5)
    wide = DDN(8, 1, [8, 8], [1, 2], [4, 4], grids=[1, 4], prior_width=64)
    assert heads_share(wide) > 0.5 and 'more than half' in layer_table(wide)


def test_latents_say_the_bits_that_the_coder_spends(trained, tiny_zip, tmp_path):
    file = tmp_path / 'codes.npz'
    out = invoke(latents.main, 'encode', f'--network={trained}', f'--data={tiny_zip}', f'--dest={file}')
    net = Network.from_pretrained(trained)
    bits = payload_bits(Codec(net), torch.from_numpy(np.load(file)['codes'])).mean().item()
    assert f'{bits:.1f} bits each coded by prior probabilities (log2 K: {net.num_bits:g})' in out
