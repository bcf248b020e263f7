"""Networks that come with the code: whole, small, made as their JSON says; and scripts that keep and measure them."""

import hashlib
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import generate
from ddn_networks import DDN, Network, RecurrentDDN, samplers, snapshots
from experiments import keep_network, recurrent_depth
from training import report

NAMES = sorted(path.stem for path in snapshots.PRETRAINED.glob('*.safetensors'))


@pytest.mark.parametrize('name', NAMES)
def test_what_comes_with_the_code_is_what_its_json_says(name):
    path = snapshots.PRETRAINED / f'{name}.safetensors'
    facts = json.loads(path.with_suffix('.json').read_text())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == facts['sha256']
    assert path.stat().st_size == facts['bytes']
    net = Network.from_pretrained(name)
    assert sum(p.numel() for p in net.parameters()) == facts['parameters']
    assert net.snapshot_meta['cur_nimg'] == facts['images_seen'] and facts['seconds'] > 0
    images, codes = net.sample(2, seed=5)
    assert torch.equal(net.decode(codes), images) and images.std() > 0.1
    found = net.encode(images.clamp(-1, 1))
    assert net.decode(found).sub(images).square().mean() < images.square().mean()


def test_they_are_small():
    assert sum(path.stat().st_size for path in snapshots.PRETRAINED.glob('*')) < 16e6


@pytest.mark.skipif('mnist' not in NAMES, reason='pretrained/ has no network of digits')
def test_digits_straight_after_the_clone(tmp_path):
    args = ['--network=mnist', f'--outdir={tmp_path}/out', '--seeds=0-3', f'--grid={tmp_path}/grid.png']
    result = CliRunner().invoke(generate.main, args)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / 'out' / '000003.png') as image:
        assert image.size == (32, 32)


def run_folder(folder, net, emas) -> None:
    folder.mkdir()
    meta = {'preset': 'mnist-cpu', 'dataset': 'digits', 'git_revision': 'abc', 'cur_nimg': 640}
    snapshots.save_network(str(folder / 'network-snapshot-000000640.safetensors'), net, emas, meta)
    loop = {'lr': 0.1, 'dataset_kwargs': {'path': '/somewhere/of/mine.zip'}, 'val_data': '/somewhere', 'num_workers': 0}
    options = {**keep_network.PRESETS['mnist-cpu'].options, 'chain_dropout': 0.25, 'precision': 'bf16'}
    stored = {'options': options, 'loop': loop, 'preset': 'mnist-cpu', 'torch': '2.x'}
    (folder / 'training_options.json').write_text(json.dumps(stored))
    tick = {**dict.fromkeys(report.NUMBERS, 1.0), **dict.fromkeys(report.LISTS, [1.0])}
    ticks = [{**tick, 'nimg': nimg, 'seconds': seconds} for nimg, seconds in ((320, 1.0), (640, 2.5))]
    (folder / 'stats.jsonl').write_text(''.join(json.dumps(tick) + '\n' for tick in ticks))


@pytest.mark.parametrize('dtype, bytes_each', [('float16', 2), ('float32', 4)])
def test_what_is_kept_is_the_average_alone(tmp_path, dtype, bytes_each):
    net = DDN(8, 1, [16, 16], [2, 2], [4, 4])
    emas = {'0.1': {name: p.detach() * 0.5 for name, p in net.named_parameters()}}
    run_folder(tmp_path / 'run', net, emas)
    args = [f'--run={tmp_path}/run', '--name=small', f'--outdir={tmp_path}/kept', f'--dtype={dtype}']
    result = CliRunner().invoke(keep_network.main, args)
    assert result.exit_code == 0, result.output
    kept = Network.from_pretrained(str(tmp_path / 'kept' / 'small.safetensors'))
    for a, b in zip(kept.parameters(), net.parameters(), strict=True):
        assert torch.equal(a, (b * 0.5).to(getattr(torch, dtype)).float())
    facts = json.loads((tmp_path / 'kept' / 'small.json').read_text())
    assert facts['seconds'] == 2.5 and facts['images_seen'] == 640 and facts['averaged_over_mimg'] == '0.1'
    assert facts['command'] == (
        'python train.py --preset=mnist-cpu --chain-dropout=0.25 --precision=bf16 --data=datasets/digits.zip '
        '--outdir=runs'
    )
    assert '/somewhere' not in json.dumps(facts) and facts['training'] == {'lr': 0.1}
    assert facts['bytes'] < facts['parameters'] * bytes_each + 8000
    (tmp_path / 'empty').mkdir()
    result = CliRunner().invoke(keep_network.main, [f'--run={tmp_path}/empty', '--name=x', f'--outdir={tmp_path}/kept'])
    assert result.exit_code == 1 and 'has no network-snapshot' in result.output


@pytest.mark.parametrize('source', ['run', 'tree-8x4'])
def test_a_network_fitted_later_is_kept_with_its_commands(tmp_path, source):
    net = DDN(8, 1, [16, 16], [2, 2], [4, 4], prior_width=4, finisher_width=4)
    run_folder(tmp_path / 'run', net, {})
    meta = {'cur_nimg': 32, 'git_revision': 'def', 'finisher': {'network': '/somewhere/run', 'lpips': None}}
    snapshots.save_network(str(tmp_path / 'fitted.safetensors'), net, meta=meta)
    run = str(tmp_path / 'run') if source == 'run' else source
    args = [f'--run={run}', f'--fitted={tmp_path}/fitted.safetensors', '--name=x', f'--outdir={tmp_path}',
            '--then=first', '--then=second']  # fmt: skip
    result = CliRunner().invoke(keep_network.main, args)
    assert result.exit_code == 0, result.output
    kept = Network.from_pretrained(str(tmp_path / 'x.safetensors'))
    assert kept.finisher is not None and len(kept.prior) == 4
    assert kept.snapshot_meta['finisher'] == {'network': 'run', 'lpips': None}
    facts = json.loads((tmp_path / 'x.json').read_text())
    assert facts['then'] == ['first', 'second'] and facts['file'] == 'x.safetensors'
    assert kept.snapshot_meta['cur_nimg'] == facts['images_seen']
    known = {'run': ('digits', 640, 'mnist-cpu'), 'tree-8x4': ('mnist-train', 150016, 'mnist-tree-8x4')}[source]
    assert (kept.snapshot_meta['dataset'], facts['images_seen'], kept.snapshot_meta['preset']) == known
    assert facts['parameters'] == sum(p.numel() for p in net.parameters())
    assert '/somewhere' not in json.dumps(facts)


def test_the_command_says_what_it_began_with():
    preset = keep_network.PRESETS['mnist-tree-8x5'].options
    for transfer, said in (('/somewhere/runs/8x3/network-snapshot-1.safetensors', '8x3/network-snapshot-1.safetensors'),
                           ('tree-8x3', 'tree-8x3')):  # fmt: skip
        line = keep_network.command({'options': {**preset, 'transfer': transfer}}, 'digits', 'mnist-tree-8x5')
        assert line.split()[2:4] == ['--preset=mnist-tree-8x5', f'--transfer={said}']


def recurrent() -> RecurrentDDN:
    torch.manual_seed(0)
    return RecurrentDDN(8, 1, 5, 4, base_width=4, multipliers=[1, 2], num_blocks=1, features=8).eval()


def test_a_long_pass_shows_what_short_ones_make():
    net = recurrent()
    codes = samplers.uniform_codes(net.num_nodes, [0, 1, 2])
    every = recurrent_depth.over_steps(net, samplers.given(codes), 3)
    for steps in (1, 3):
        net.num_layers = steps
        assert (every[steps - 1] - net.decode(codes[:, :steps]).clamp(-1, 1)).abs().max() <= 1.01 / 255
    net.num_layers = 4
    digits = torch.rand(7, 1, 8, 8) * 2 - 1
    found = recurrent_depth.psnr_over_steps(net, digits, batch=3)
    for steps in (2, 4):
        net.num_layers = steps
        error = (net.decode(net.encode(digits)).clamp(-1, 1) - digits).square().mean().item()
        assert found[steps - 1] == pytest.approx(10 * np.log10(4 / error), abs=0.05)


def test_the_chart_has_a_panel_for_each_curve():
    curves = [('a', [1.0, 2.0, 4.0], '{:.1f}', (255, 0, 0)), ('b', [3.0], '{:.0f}', (0, 0, 255))]
    page = recurrent_depth.chart(3, curves)
    left, right = np.split(np.asarray(page), 2, axis=1)
    for half, colour in ((left, (255, 0, 0)), (right, (0, 0, 255))):
        assert (half == colour).all(2).any()
