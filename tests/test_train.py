"""train.py as its users run it: options, a whole small run, and going on after a stop."""

import functools
import itertools
import json
import math
import os
import re
import shlex
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import TINY_RUN, final, invoke, write_zip

import train
from cli.presets import PRESETS
from ddn_networks import tensor_files
from torch_utils import persistence
from training import checkpoint, training_loop
from training.loader import batch_indices
from training.report import read_stats
from training.report_html import write_report

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


run_train = functools.partial(invoke, train.main)


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different


def test_a_run_leaves_what_it_promises(tiny_zip, tmp_path):
    out = run_train(f'--outdir={tmp_path}', f'--data={tiny_zip}', *TINY_RUN, '--duration=0.000480', '--tick=0.16',
                    '--snap=1', '--dump=1', '--ema=0.0001,0.0002')  # fmt: skip
    (run_dir,) = tmp_path.iterdir()
    assert run_dir.name == '00000-tiny-ddn-batch16'
    names = sorted(p.name for p in run_dir.iterdir())
    for n in (160, 320, 480):
        assert {f'{kind}-{n:09d}.png' for kind in ('samples', 'reconstructions', 'layers')} <= set(names)
        assert f'network-snapshot-{n:09d}.safetensors' in names
    assert [n for n in names if n.startswith('training-state')] == [
        'training-state-000000320.safetensors', 'training-state-000000480.safetensors',  # fmt: skip
    ]  # the two newest
    assert 'report.html' in names and not [n for n in names if n.endswith('.tmp')]
    assert 'img/s' in out and 'left' in out and 'bits' in out
    assert (run_dir / 'log.txt').read_text().count('tick') == out.count('tick')
    stats = [json.loads(line) for line in (run_dir / 'stats.jsonl').read_text().splitlines()]
    assert [s['nimg'] for s in stats] == [160, 320, 480]
    for s in stats:
        assert len(s['loss_layers']) == len(s['usage_entropy']) == len(s['dead']) == len(s['splits']) == 6
        assert all(0 <= e <= 1 + 1e-9 for e in s['usage_entropy']) and s['val_psnr'] > 0 and s['seconds_left'] >= 0
    assert stats[-1]['loss'] < stats[0]['loss']
    net = persistence.load_network(str(run_dir / 'network-snapshot-000000480.safetensors'))
    assert net.snapshot_meta['cur_nimg'] == 480 and net.snapshot_meta['emas'] == ['0.0001', '0.0002']
    ema, state = net.state_dict(), final(run_dir)
    assert all(torch.equal(ema[n], state[f'ema/0.0001/{n}']) for n in ema)
    assert any(not torch.equal(ema[n], state[f'net/{n}']) for n in ema)


@pytest.mark.parametrize(
    'more', [[], ['--batch-gpu=4', '--dropout=0.2', '--xflip=1', '--balance=conditional:pairs=2,memory=40']]
)
def test_ten_steps_stop_ten_steps_are_twenty_bit_for_bit(tiny_zip, tmp_path, more):
    common = [f'--data={tiny_zip}', *TINY_RUN, '--tick=0.08', '--dump=1', '--nosubdir', *more]
    run_train(f'--outdir={tmp_path / "a"}', *common, '--duration=0.000320')
    run_train(f'--outdir={tmp_path / "b"}', *common, '--duration=0.000160')
    out = run_train(f'--resume={tmp_path / "b"}', '--duration=0.000320')
    assert 'total_nimg: 160 -> 320' in out and out.count('continues with another option') == 1
    assert_same(final(tmp_path / 'a'), final(tmp_path / 'b'))
    a, b = ([json.loads(line) for line in (tmp_path / d / 'stats.jsonl').read_text().splitlines()] for d in 'ab')
    assert [s['loss_layers'] for s in a] == [s['loss_layers'] for s in b]


def test_the_learning_rate_is_a_ramp_and_then_a_constant_or_a_cosine():
    rates = [[training_loop.learning_rate(nimg, 2.0, 100, decay, 400) for nimg in (0, 50, 100, 200, 400, 500)]
             for decay in ('none', 'cosine')]  # fmt: skip
    half = 0.5**0.5
    assert rates[0] == [0, 1, 2, 2, 2, 2]
    assert rates[1] == pytest.approx([0, (1 + math.cos(math.pi / 8)) / 2, 1 + half, 1, 0, 0])


def test_rounds_of_accumulation_change_nothing_but_rounding(tiny_zip, tmp_path):
    common = [f'--data={tiny_zip}', *TINY_RUN, '--nodes=24', '--lr=0.003', '--duration=0.000160', '--nosubdir']
    run_train(f'--outdir={tmp_path / "a"}', *common)
    run_train(f'--outdir={tmp_path / "b"}', *common, '--batch-gpu=4')
    a, b = final(tmp_path / 'a'), final(tmp_path / 'b')
    assert torch.equal(a['balance/counts'], b['balance/counts'])
    assert a['balance/num_splits'].sum() > 10
    (one,), (other,) = (read_stats(str(tmp_path / d)) for d in 'ab')
    assert one['loss_layers'] == pytest.approx(other['loss_layers'], rel=1e-4)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=1e-4)


def test_a_resume_tells_changes_and_no_others(tmp_path):
    data = write_zip(tmp_path / 'data.zip', 40, (1, 8, 8))
    args = [f'--data={data}', *TINY_RUN, '--nosubdir', '--batch-gpu=auto']
    run_train(f'--outdir={tmp_path}', *args, '--duration=0.000016')
    out = run_train(f'--resume={tmp_path}', '--duration=0.000032')
    assert out.count('continues with another option') == out.count('total_nimg: 16 -> 32') == 1
    other = f'{data} is not what this run was trained on'
    assert other not in out
    write_zip(data, 40, (1, 8, 8), seed=1)
    assert other in run_train(f'--resume={tmp_path}', '--duration=0.000048')
    assert other not in run_train(f'--resume={tmp_path}', '--duration=0.000064')


def test_a_resume_that_does_not_fit_leaves_the_run_as_it_was(tiny_zip, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    run_train(f'--outdir={tmp_path}', f'--data={tiny_zip}', *TINY_RUN, '--duration=0.000160', '--nosubdir')
    before = (tmp_path / 'training_options.json').read_text()
    for wrong, words in {
        '--nodes=6': 'ddls.0.weight is [5, 1, 4]',
        '--batch-gpu=5': 'divisor',
        '--balance=bias': 'balance/',
        '--ema=0.0002': 'ema/0.0002',
        '--data=nowhere.zip': 'nowhere.zip',
        '--preset=mnist-cpu': 'was started with no preset',
        '--tensorboard=1': '--tensorboard=1 needs the package',
    }.items():
        assert words in run_train(f'--resume={tmp_path}', wrong, '--duration=0.000320', expect=1).splitlines()[-1]
        assert (tmp_path / 'training_options.json').read_text() == before
    run_train(f'--resume={tmp_path}', '--duration=0.000320')
    assert '"total_nimg": 320' in (tmp_path / 'training_options.json').read_text()
    (tmp_path / 'training_options.json').write_text('{}')
    assert 'training_options.json does not hold' in run_train(f'--resume={tmp_path}', expect=1)


def test_going_on_from_an_older_state_sets_the_newer_ones_aside(tiny_zip, tmp_path):
    args = [f'--data={tiny_zip}', *TINY_RUN, '--tick=0.08', '--dump=1', '--nosubdir']
    run_train(f'--outdir={tmp_path}', *args, '--duration=0.000320')
    out = run_train(f'--resume={tmp_path / "training-state-000000240.safetensors"}', '--lr=0.001', '--tick=0.016')
    assert '5 states, snapshots and pictures of later than 240 images are kept as *.old' in out
    for name in ('network-snapshot-000000320.safetensors', 'samples-000000320.png', 'layers-000000320.png'):
        assert (tmp_path / f'{name}.old').read_bytes() != (tmp_path / name).read_bytes()
    assert sorted(p.name for p in tmp_path.glob('training-state*')) == [
        'training-state-000000304.safetensors',
        'training-state-000000320.safetensors',
        'training-state-000000320.safetensors.old',
    ]
    old, new = (tmp_path / f'training-state-000000320.safetensors{end}' for end in ('.old', ''))
    assert old.read_bytes() != new.read_bytes()
    assert f'Resuming from {old} at 320 images' in run_train(f'--resume={old}')
    assert [s['nimg'] for s in read_stats(str(tmp_path))] == [80, 160, 240, 256, 272, 288, 304, 320]
    new.write_bytes(new.read_bytes()[:1000])
    out = run_train(f'--resume={tmp_path}', '--duration=0.000400', expect=1).splitlines()[-1]
    assert 'is not a whole safetensors file' in out and out.endswith('training-state-000000304.safetensors')


def test_only_a_run_that_parts_sets_what_came_after_its_newest_state_aside(tiny_zip, tmp_path):
    """As after a crash. A run that goes on unchanged makes the same files again."""
    args = [f'--data={tiny_zip}', *TINY_RUN, '--tick=0.08', '--snap=1', '--dump=3', '--nosubdir']
    run_train(f'--outdir={tmp_path}', *args, '--duration=0.000400')
    state = tmp_path / 'training-state-000000400.safetensors'
    later = tmp_path / 'network-snapshot-000000320.safetensors'
    before = later.read_bytes()
    state.unlink()
    assert '.old' not in run_train(f'--resume={tmp_path}') and not list(tmp_path.glob('*.old'))
    assert later.read_bytes() == before
    state.unlink()
    assert '8 states, snapshots and pictures of later than 240' in run_train(f'--resume={tmp_path}', '--lr=0.001')
    assert later.read_bytes() != before == (tmp_path / f'{later.name}.old').read_bytes()


def test_a_line_of_statistics_that_a_kill_cut_off_costs_no_other(tiny_zip, tmp_path):
    args = [f'--data={tiny_zip}', *TINY_RUN, '--tick=0.08', '--nosubdir']
    run_train(f'--outdir={tmp_path}', *args, '--duration=0.000160')
    stats = tmp_path / 'stats.jsonl'
    stats.write_text(stats.read_text()[:-50])
    run_train(f'--resume={tmp_path}', '--duration=0.000320')
    assert [s['nimg'] for s in read_stats(str(tmp_path))] == [80, 240, 320]


def test_a_tick_that_was_done_again_counts_once(tmp_path):
    rest = {'val_psnr': 1, 'images_per_sec': 1, 'seconds': 1, 'dead': [None]}
    rest |= dict.fromkeys(('loss_layers', 'usage_entropy', 'splits'), [0])
    lines = [{'nimg': nimg, 'loss': i, **rest} for i, nimg in enumerate((80, 160, 240, 160, 320))]
    (tmp_path / 'stats.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    assert read_stats(str(tmp_path)) == [lines[0], lines[3], lines[4]]


def test_a_run_keeps_the_command_that_made_it(tiny_zip, tmp_path):
    out = tmp_path / 'a b'
    args = [f'--data={tiny_zip}', '--preset=mnist-cpu', *TINY_RUN, '--nosubdir', '--xflip=1', '--condition=mask',
            '--condition=edge', f'--outdir={out}', '--duration=0.000016']  # fmt: skip
    run_train(*args)
    stored = json.loads((out / 'training_options.json').read_text())
    start, script, *again = shlex.split(stored['command'])
    assert (start, script) == ('python', 'train.py') and len(again) == len({*again}) <= len(args)
    run_train(*[f'--outdir={tmp_path / "b"}' if arg == f'--outdir={out}' else arg for arg in again])
    other = json.loads((tmp_path / 'b' / 'training_options.json').read_text())
    assert other['loop'] == stored['loop'] and other['options'] == stored['options']
    assert stored['changed']['preset'] == 'mnist-cpu' and stored['changed']['xflip'] is True
    assert stored['changed']['lr_decay'] == 'cosine' and 'dropout' not in stored['changed']  # the preset's, the default
    shown = re.sub(r'</?span>', '', (out / 'report.html').read_text())  # a line is not broken within an option
    assert 'train.py --preset=mnist-cpu' in shown
    run_train(f'--resume={out}', '--duration=0.000032', '--seed=2')
    command = json.loads((out / 'training_options.json').read_text())['command']
    assert '--seed=2' in command and '--duration=3.2e-05' in command and '--resume' not in command


def test_the_report_tells_not_measured_from_none_dead(tiny_zip, tmp_path):
    run_train(f'--outdir={tmp_path}', f'--data={tiny_zip}', *TINY_RUN, '--nosubdir', '--duration=0.000160')
    grey = 'too few images to say'
    assert grey not in (tmp_path / 'report.html').read_text()
    last = read_stats(str(tmp_path))[-1]
    (tmp_path / 'stats.jsonl').write_text(json.dumps(last | {'dead': [0.0, 0.0, None, *last['dead'][3:]]}) + '\n')
    write_report(str(tmp_path))
    assert (tmp_path / 'report.html').read_text().count(grey) == 1


def test_the_loss_of_a_tick_without_a_step_is_not_zero(tiny_zip, tmp_path, monkeypatch):
    real = training_loop.layer_losses
    monkeypatch.setattr(training_loop, 'layer_losses', lambda *args: real(*args) * float('nan'))
    run_train(f'--outdir={tmp_path}', f'--data={tiny_zip}', *TINY_RUN, '--nosubdir', '--duration=0.000032',
              '--on-nan=skip')  # fmt: skip
    assert json.loads((tmp_path / 'stats.jsonl').read_text())['loss'] != 0


def test_a_log_that_was_there_before_is_kept(tiny_zip, tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'log.txt').write_text('notes\n')
    run_train(f'--outdir={tmp_path / "run"}', f'--data={tiny_zip}', *TINY_RUN, '--nosubdir', '--batch-gpu=5', expect=1)
    assert (tmp_path / 'run' / 'log.txt').read_text().startswith('notes\n')


def test_a_folder_with_a_run_takes_no_other_run(tiny_zip, tmp_path):
    args = [f'--outdir={tmp_path}', f'--data={tiny_zip}', *TINY_RUN, '--nosubdir', '--duration=0.000032']
    run_train(*args)
    assert f'--resume={tmp_path} continues it' in run_train(*args, expect=1)


def test_snapshots_and_states_are_kept_where_a_step_spans_several_ticks(tiny_zip, tmp_path):
    run_train(f'--outdir={tmp_path}', f'--data={tiny_zip}', *TINY_RUN, '--nosubdir', '--duration=0.000160',
              '--tick=0.005', '--snap=10', '--dump=10')  # fmt: skip
    kept = {kind: sorted(int(re.search(r'-(\d{9})', p.name)[1]) for p in tmp_path.glob(f'{kind}*'))
            for kind in ('network-snapshot', 'training-state')}  # fmt: skip
    assert kept == {'network-snapshot': [64, 112, 160], 'training-state': [112, 160]}


def test_the_loss_scale_of_fp16_is_part_of_the_state(tiny_zip, tmp_path):
    args = [f'--data={tiny_zip}', *TINY_RUN, '--nosubdir', '--precision=fp16', '--ls=1e38', '--on-nan=skip']
    run_train(f'--outdir={tmp_path / "a"}', *args, '--duration=0.000320')
    run_train(f'--outdir={tmp_path / "b"}', *args, '--duration=0.000160')
    run_train(f'--resume={tmp_path / "b"}', '--duration=0.000320')
    a, b = (tensor_files.load_tensors(str(tmp_path / d / 'training-state-000000320.safetensors'))[1] for d in 'ab')
    assert a['scaler'] == b['scaler'] and a['scaler']['scale'] < 1e37
    assert_same(final(tmp_path / 'a'), final(tmp_path / 'b'))
    run_train(f'--resume={tmp_path / "b"}', '--duration=0.000336', '--ls=4')
    again = tensor_files.load_tensors(str(tmp_path / 'b' / 'training-state-000000336.safetensors'))[1]
    assert again['scaler']['scale'] == 4


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_a_step_that_is_not_finite_is_passed_over(tiny_zip, tmp_path, monkeypatch, precision):
    calls, real = itertools.count(), training_loop.layer_losses

    def third_is_nan(*args):
        return real(*args) * (float('nan') if next(calls) == 2 else 1)

    monkeypatch.setattr(training_loop, 'layer_losses', third_is_nan)
    run_train(f'--outdir={tmp_path}', f'--data={tiny_zip}', *TINY_RUN, '--nosubdir', '--duration=0.000160',
              '--on-nan=skip', f'--precision={precision}')  # fmt: skip
    last = json.loads((tmp_path / 'stats.jsonl').read_text().splitlines()[-1])
    assert last['nimg'] == 160 and last['skipped_steps'] >= 1 and last['loss'] < 10
    assert all(tensor.isfinite().all() for tensor in final(tmp_path, 'network-snapshot').values())


def test_resume_without_a_path_takes_the_newest_run(tiny_zip, tmp_path):
    common = [f'--outdir={tmp_path}', f'--data={tiny_zip}', *TINY_RUN]
    run_train(*common, '--duration=0.000032')
    run_train(*common, '--duration=0.000048')
    out = run_train(f'--outdir={tmp_path}', '--duration=0.000064', '--resume')
    assert '00001-tiny-ddn-batch16/training-state-000000048' in out


def test_dry_run_prints_the_plain_dict_and_makes_nothing(tiny_zip, tmp_path):
    out = run_train(f'--outdir={tmp_path / "x"}', f'--data={tiny_zip}', '--preset=mnist-cpu', '--nodes=7', '-n')
    loop = json.loads(out)
    assert loop['network_kwargs']['num_nodes'] == [7] * 3  # the line wins over the preset
    assert loop['lr_decay'] == 'cosine'  # the preset over the default
    assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize('name', PRESETS)
def test_every_preset_is_made_of_options_that_exist(tmp_path, name):
    preset = PRESETS[name].options
    assert preset.keys() <= {parameter.name for parameter in train.main.params}
    data = write_zip(tmp_path / 'colours.zip', 3, (3, 8, 8))
    loop = json.loads(run_train(f'--data={data}', f'--preset={name}', '-n'))
    assert loop['batch_size'] == preset['batch'] and loop['total_nimg'] == round(preset['duration'] * 1e6)


def test_without_a_preset_it_is_the_papers_network(tmp_path):
    zip32 = write_zip(tmp_path / 'c.zip', 2, (3, 32, 32))
    kwargs = json.loads(run_train(f'--outdir={tmp_path}', f'--data={zip32}', '-n'))['network_kwargs']
    assert sum(kwargs['num_blocks']) == 63 and max(kwargs['num_nodes']) == 64
    zip64 = write_zip(tmp_path / 'f.zip', 2, (3, 64, 64))
    kwargs = json.loads(run_train(f'--outdir={tmp_path}', f'--data={zip64}', '-n'))['network_kwargs']
    assert sum(kwargs['num_blocks']) == 127 and max(kwargs['num_nodes']) == 512
    edm = json.loads(run_train(f'--outdir={tmp_path}', f'--data={zip64}', '--cbase=32', '--cres=1,2,4', '-n'))
    assert edm['network_kwargs']['channels'] == [128, 64, 32]


def test_any_shape_trains(tmp_path):
    odd = write_zip(tmp_path / 'odd.zip', 20, (3, 11, 6))
    run_train(f'--outdir={tmp_path / "r"}', f'--data={odd}', *TINY_RUN, '--channels=8,8,8', '--blocks=1',
              '--duration=0.000032', '--nosubdir', '--precision=bf16', '--grad-checkpoint=1')  # fmt: skip
    net = persistence.load_network(str(tmp_path / 'r' / 'network-snapshot-000000032.safetensors'))
    assert net.sample(2)[0].shape == (2, 3, 11, 6)


def test_transfer_begins_with_the_weights(tiny_zip, tmp_path):
    run_train(f'--outdir={tmp_path / "a"}', f'--data={tiny_zip}', *TINY_RUN, '--duration=0.000160', '--nosubdir')
    snapshot = tmp_path / 'a' / 'network-snapshot-000000160.safetensors'
    run_train(f'--outdir={tmp_path / "b"}', f'--data={tiny_zip}', *TINY_RUN, '--duration=0.000016', '--nosubdir',
              f'--transfer={snapshot}', '--lr=1e-9', '--balance=none')  # fmt: skip
    a, b = final(tmp_path / 'a', 'network'), final(tmp_path / 'b', 'network')
    torch.testing.assert_close(b['net/blocks.0.conv0.weight'], a['ema/0.0001/blocks.0.conv0.weight'])


def test_a_number_that_goes_wrong_stops_the_run_and_is_never_saved(tiny_zip, tmp_path):
    args = [f'--data={tiny_zip}', *TINY_RUN, '--duration=0.1', '--tick=0.064', '--dump=1', '--lr=1e18', '--nosubdir']
    out = run_train(f'--outdir={tmp_path / "a"}', *args, expect=1)
    what = r'Error: the (loss of layer \d+|gradient of \S+) is not finite in the step after [\d,]+ images'
    assert re.search(what, out)
    states = checkpoint.find_states(str(tmp_path / 'a'))
    assert (f'the last good state is {states[0]}.' if states else f'{tmp_path / "a"} has no state.') in out
    for name in os.listdir(tmp_path / 'a'):
        if name.endswith('.safetensors'):
            assert all(t.isfinite().all() for t in tensor_files.load_tensors(str(tmp_path / 'a' / name))[0].values())


BAD = {
    'no-such-file': (['--data=nowhere.zip'], 'nowhere.zip'),
    'no-data': ([], '--data is missing'),
    'batch-gpu': (['--data=DATA', '--batch-gpu=5'], 'divisor'),
    'one-per-scale': (['--data=DATA', '--blocks=1,2'], '--blocks needs one number'),
    'not-numbers': (['--data=DATA', '--nodes=a'], '--nodes=a'),
    'one-node': (['--data=DATA', '--nodes=1'], 'at least 2 nodes'),
    'ema': (['--data=DATA', '--ema=x'], '--ema=x'),
    'ema-infinite': (['--data=DATA', '--ema=inf'], '--ema=inf'),
    'ema-negative': (['--data=DATA', '--ema=-1'], '--ema=-1'),
    'ema-twice': (['--data=DATA', '--ema=0.5,0.50'], 'two of the half-lives are the same'),
    'ls': (['--data=DATA', '--ls=8'], '--ls'),
    'cuda': (['--data=DATA', '--device=cuda:77'], 'cuda:77'),
    'resume-nothing': (['--resume=nowhere'], 'nowhere'),
    'resume-empty': (['--resume'], 'no run with a training state'),
    'transfer': (['--data=DATA', '--transfer=nowhere.safetensors'], 'nowhere.safetensors'),
    'balance': (['--data=DATA', '--balance=split'], 'choose from split-prune, prefix, bias, none'),
    'balance-key': (['--data=DATA', '--balance=bias:pairs=2'], 'bias takes limit, memory, rate, not pairs'),
    'balance-value': (['--data=DATA', '--balance=conditional:rate=x'], 'rate is a number'),
    'balance-whole': (['--data=DATA', '--balance=split-prune:pairs=1.5'], 'pairs is a whole number'),
    'balance-float': (['--data=DATA', '--balance=split-prune:memory=x'], 'memory is a number'),
    'balance-range': (['--data=DATA', '--balance=split-prune:pairs=0'], 'pairs >= 1'),
    'val-shape': (['--data=DATA', '--val-data=OTHER'], 'OTHER'),
}


@pytest.mark.parametrize('args, words', BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line(tiny_zip, tmp_path, args, words):
    other = write_zip(tmp_path / 'other.zip', 2, (3, 4, 4))
    given = [a.replace('DATA', tiny_zip).replace('OTHER', other) for a in args]
    words = words.replace('OTHER', other)
    tiny = [a for a in TINY_RUN if a.split('=')[0] not in [g.split('=')[0] for g in given]]
    out = run_train(f'--outdir={tmp_path / "out"}', *tiny, '--duration=0.000032', *given, expect=1)
    errors = [line for line in out.splitlines() if line.startswith('Error:')]
    assert len(errors) == 1 and words in errors[0], out
    assert not list(tmp_path.glob('out/*'))  # no folder of a run that never began


@pytest.mark.parametrize('option', ['--duration=nan', '--duration=inf', '--tick=inf', '--lr=nan', '--lr=1e300',
                                    f'--seed={2**63}', '--lr-ramp=1e308', '--tick=1e307', '--duration=1e303',
                                    '--ls=1e300'])  # fmt: skip
def test_a_number_that_is_none(tiny_zip, option):
    out = run_train(f'--data={tiny_zip}', option, '-n', expect=2)
    assert option.split('=')[0] in out.splitlines()[-1]


@pytest.mark.parametrize('outdir', ['/dev/null', '/dev/null/x', '/proc', 'http://me:secret@host/x'])
def test_an_outdir_that_is_not_a_folder_is_named(tiny_zip, outdir):
    out = run_train(f'--outdir={outdir}', f'--data={tiny_zip}', *TINY_RUN, expect=1)
    assert '--outdir=' in out.splitlines()[-1] and 'secret' not in out


def test_an_empty_resume_is_not_a_new_run(tiny_zip, tmp_path):
    out = run_train(f'--outdir={tmp_path / "out"}', f'--data={tiny_zip}', *TINY_RUN, '--resume=', expect=2)
    assert "'--resume': it is empty" in out and not (tmp_path / 'out').exists()


def test_a_run_folder_that_cannot_be_made(tiny_zip, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    out = run_train(f'--outdir={tmp_path / "file"}', f'--data={tiny_zip}', *TINY_RUN, expect=1)
    assert str(tmp_path / 'file') in out


def test_a_run_says_which_files_it_passed_over(tiny_zip, tmp_path):
    data = tmp_path / 'data.zip'
    data.write_bytes(Path(tiny_zip).read_bytes())
    with zipfile.ZipFile(data, 'a') as archive:
        archive.writestr('photo.heic', b'')
    out = run_train(f'--outdir={tmp_path}', f'--data={data}', *TINY_RUN, '--duration=0.000016')
    assert 'Passed over 1 file(s) that are not images: 1 .heic' in out


def test_a_truncated_image_stops_with_its_name_and_loses_no_step(tiny_zip, tmp_path):
    bad = f'img{batch_indices(40, 1, 0, 40)[20]:08d}.png'  # seen in the second step
    with zipfile.ZipFile(tiny_zip) as a, zipfile.ZipFile(tmp_path / 'broken.zip', 'w') as b:
        for name in a.namelist():
            data = a.read(name)
            b.writestr(name, data[: len(data) // 2] if name.endswith(bad) else data)
    args = [f'--outdir={tmp_path / "run"}', '--nosubdir', f'--data={tmp_path / "broken.zip"}', f'--val-data={tiny_zip}']
    assert bad in run_train(*args, *TINY_RUN, '--duration=0.01', expect=1).splitlines()[-1]
    assert [os.path.basename(path) for path in checkpoint.find_states(str(tmp_path / 'run'))] == [
        'training-state-000000016.safetensors'
    ]



