"""The experiments of Fig. 10 and Tables 1 and 2: their words against hand-made numbers, and tiny runs."""

import json
import os
import signal
import socket
import sys
import time

import click
import forks
import pytest
import scipy.stats
import torch
from click.testing import CliRunner
from conftest import final, invoke, unpadded, write_zip

import fid
import train as train_script
from cli import training_runs
from experiments import (
    ablation,
    balance_ablation,
    comparison,
    digit_quality,
    digits,
    mnist_ablation,
    table1_cifar10,
    table2_ablation,
)
from metrics import evaluate
from metrics.lenet import LeNet

FACTS = {
    'nimg': 30016, 'dead share': 0.25, 'usage entropy': 0.9, 'training CPU seconds': 61.0, 'layers': 10, 'nodes': 8,
    'bits': 30.0, 'parameters': 1234,
}  # fmt: skip
TINY = [
    '--channels=8,8,8,8', '--blocks=1,1,1,1', '--batch=16', '--lr=0.01', '--lr-ramp=0', '--ema=0.0001', '--workers=0',
]  # fmt: skip


def result(row, fid, seed=0, training=20.0, held_out=30.0, **more):
    numbers = {'FID': fid, 'rFID training': training, 'rFID held-out': held_out, 'PSNR held-out': 17.125,
               'PSNR training': 18.0}  # fmt: skip
    return ablation.Result(row, seed, {}, numbers, FACTS | more, None)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """(folder with images and a detector, what was done): 'train', 'resume', and what was scored."""
    torch.manual_seed(0)
    torch.save(LeNet().state_dict(), tmp_path / 'judge.pth')
    for seed, name in enumerate(('a', 'b')):
        write_zip(tmp_path / f'{name}.zip', 24, (1, 8, 8), seed, labels=False)
    done = []

    def spy(module, name, word):
        real = getattr(module, name)

        def seen(*args, **kwargs):
            done.append(word(*args))
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, seen)

    spy(ablation, 'train_network', lambda options: 'resume' if 'resume' in options else 'train')
    spy(evaluate, 'statistics', lambda source, *_: type(source).__name__)
    spy(evaluate, 'reconstruction', lambda net, source, *_: f'reconstruct {os.path.basename(source.path)}')
    return tmp_path, done


def call(script, here, *args, fails=False):
    folder = here[0]
    common = [f'--data={folder / "a.zip"}', f'--detector={folder / "judge.pth"}', f'--outdir={folder / "out"}']
    outcome = CliRunner().invoke(script.main, [*common, '--device=cpu', *args])
    assert (outcome.exit_code != 0) == fails, outcome.output + repr(outcome.exception)
    assert not outcome.exception or isinstance(outcome.exception, SystemExit), repr(outcome.exception)
    return outcome.output


def test_table2_stands_beside_the_papers_numbers():
    results = [result(name, paper[0] + 1, training=paper[1], held_out=-paper[2])
               for name, paper in table2_ablation.PAPER.items()]  # fmt: skip
    text = unpadded(table2_ablation.table(results, (64, 16, 8, 2)))
    lines = text.splitlines()
    assert lines[2] == '| K=64 for 512 (default) | 44.1 (43.1) | 26.0 (26.0) | -33.2 (33.2) | 17.12 | 30 | 61 |'
    assert lines[4].startswith('| K=8 | 53.6 (52.6)') and lines[5].startswith('| K=2 (BinDDN) |') and len(lines) == 10
    fid_order, training, held_out = table2_ablation.orders(results)
    assert 'FID: Spearman +1.00' in fid_order and '28 of 28 pairs' in fid_order
    assert 'rFID, held out: Spearman -1.00' in held_out and '0 of 28 pairs' in held_out
    assert '+1.00' in training
    same, _, other = table2_ablation.differences(results)
    assert 'w/o Leak Choice +12.9 (+12.9)' in same and 'The other way none.' in same
    assert 'as in the paper none' in other and 'K=64 -5.5 (+5.5)' in other


def test_a_row_without_numbers_is_a_dash_and_leaves_the_order_to_the_others():
    names = list(table2_ablation.PAPER)
    results = [result(name, 10.0 * i) for i, name in enumerate(names[:4])]
    results.append(ablation.Result(names[4], 0, {}, {}, {}, None, 'no space left'))
    text = unpadded(table2_ablation.table(results, (512, 64, 8, 2)))
    assert '| w/o Split-and-Prune | - (55.3) |' in text and 'K=512 (default) | 0.0 (43.1)' in text
    assert 'over 4 rows; 6 of 6 pairs' in table2_ablation.orders(results)[0]
    assert comparison.failures(results) == ['w/o Split-and-Prune (seed 0): no space left']


def test_the_rows_of_table2_change_one_thing_each():
    rows = table2_ablation.rows_of(table2_ablation.SETUPS['faces64'], {'nodes': 3, 'leak-choice': True})
    assert [row.name for row in rows] == list(table2_ablation.PAPER)
    assert [row.options['max-k'] for row in rows] == [512, 64, 8, 2, 512, 512, 512, 512]
    assert [row.options['chain-dropout'] for row in rows] == [0.05, 0.05, 0.05, 0, 0.05, 0, 0.05, 0.05]
    assert rows[4].options['balance'] == 'none' and rows[6].options['learning-residual'] is False
    assert rows[7].options['leak-choice'] is False


def test_table1_and_its_caption():
    ours = unpadded(table1_cifar10.table(71.25))
    assert '| DDN, the paper | DDN | 52.0 |' in ours and ours.endswith('| DDN, this run | DDN | 71.2 |')
    assert unpadded(table1_cifar10.table(None)).endswith('| - |') and len(ours.splitlines()) == 10
    scoring = ablation.Scoring('x/cifar10.zip', None, 'inception', 50_000, 0)
    text = table1_cifar10.caption(result('DDN', 71.25, nimg=2_000_000), scoring)
    assert '2 million images' in text and 'FID of 50,000 samples' in text and 'cifar10.zip' in text


def test_fig10_says_which_claims_hold():
    values = {mnist_ablation.NEITHER: (50.0, 60.0), mnist_ablation.DROPOUT: (40.0, 61.0)}
    values[mnist_ablation.SPLIT] = (45.0, 30.0)
    results = [result(row, pair[seed], seed) for row, pair in values.items() for seed in (0, 1)]
    improves, indispensable, alleviates = mnist_ablation.verdicts(results)
    assert 'holds here' in improves and '45.0 against 50.0, 30.0 against 60.0' in improves
    assert 'undecided' in indispensable and 'undecided' in alleviates
    assert 'does NOT hold here' in mnist_ablation.verdicts(results[:6:2])[1]
    text = unpadded(comparison.table(results, 'trained with', mnist_ablation.COLUMNS))
    assert '| neither | 55.0 ± 7.1 | 17.12 ± 0.00 | 18.00 ± 0.00 | 25.0 ± 0.0 |' in text


def test_order_by_hand():
    assert comparison.order([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx((0.8, 5, 6))
    assert comparison.order([1, None, 3, 4], [10, 30, 20, 40]) == pytest.approx((1.0, 3, 3))
    tied = comparison.order([1, 2, 3, 3], [5, 5, 9, 7])
    assert tied[1:] == (4, 5)  # the pair that is equal in the paper says nothing
    assert tied.rho == pytest.approx(scipy.stats.spearmanr([1, 2, 3, 3], [5, 5, 9, 7]).statistic)
    assert comparison.order([1, 2, None], [1, 2, 3]) is None and comparison.order([2, 2, 2], [1, 2, 3]) is None
    assert comparison.cell([]) == '-' and comparison.cell([1, 2]) == '1.5 ± 0.7'


def test_options_behind_the_dashes():
    assert ablation.parse_options(['--batch=64', '--lr=1e-3']) == {'batch': '64', 'lr': '1e-3'}
    with pytest.raises(click.UsageError, match='--name=value'):
        ablation.parse_options(['--batch', '64'])
    rows = [ablation.Row(name, {}) for name in ('K=8', 'w/o Leak Choice')]
    assert ablation.chosen(rows, 'leak, x') == rows[1:] and ablation.chosen(rows, None) == rows
    with pytest.raises(click.UsageError, match='choose from K=8, w/o Leak'):
        ablation.chosen(rows, 'K=9')


def test_rows_are_trained_once_and_a_failed_one_is_named(here):
    args = [f'--held-out={here[0] / "b.zip"}', '--num=12', '--num-reconstructed=8', '--duration=0.000032']
    only = ['--only=K=8,K=2', '--', *TINY]
    out = call(table2_ablation, here, *args, *only)
    done = here[1]
    scored = ['reconstruct a.zip', 'reconstruct b.zip']
    assert done == ['train', 'Samples', 'Files', *scored, 'train', 'Samples', *scored]
    assert '[1/2] K=8: training' in out and '[1/2] K=8: tick 1' in out and 'left' in out and 'parameters  ' not in out
    assert 'K is 64, 16, 8, 2 in place' in out
    folder = here[0] / 'out'
    kept = json.loads((folder / 'results.json').read_text())
    assert [r['row'] for r in kept['rows']] == ['K=8', 'K=2 (BinDDN)'] and kept['rows'][0]['facts']['nodes'] == 8
    names = ['FID', 'rFID training', 'PSNR training', 'rFID held-out', 'PSNR held-out']
    assert list(kept['rows'][0]['numbers']) == names
    assert kept['rows'][0]['facts']['nimg'] == 32 and kept['rows'][0]['facts']['training CPU seconds'] > 0
    assert (folder / 'results.md').read_text().strip() in out and (folder / 'samples.png').is_file()

    done.clear()
    call(table2_ablation, here, *args, *only)
    assert not done  # neither trained nor scored again
    assert json.loads((folder / 'results.json').read_text()) == kept

    # Interrupted: the record says that it is not finished, so it is resumed.
    record = folder / 'k-8-seed0' / 'row.json'
    record.write_text(json.dumps(json.loads(record.read_text()) | {'finished': False}))
    call(table2_ablation, here, *args, *only)
    assert done == ['resume']

    # A damaged record is named.
    whole = record.read_text()
    for text in ('{"options": {}', '[]', '{}'):
        record.write_text(text)
        assert f'rows failed: K=8 (seed 0): {record}' in call(table2_ablation, here, *args, *only, fails=True)
    record.write_text(whole)

    # Other options in the same folder are refused; the row is named, the other rows follow, the exit is not 0.
    done.clear()
    refused = call(table2_ablation, here, *args, '--only=K=8,Leak', '--', *TINY[:-1], '--workers=00', fails=True)
    assert 'rows failed: K=8 (seed 0)' in refused and "'workers': '00'" in refused and 'w/o Leak Choice' in refused
    assert done.count('train') == 1
    assert '| K=8 | - (52.6) |' in unpadded((folder / 'results.md').read_text())

    # Wrong options of train.py are a row that failed, too.
    refused = call(table2_ablation, here, *args, '--only=K=64', '--', *TINY, '--nods=4', fails=True)
    assert 'rows failed: K=64 (seed 0): ' in refused and '--nods' in refused


def test_numbers_are_those_of_the_scripts(here, tmp_path):
    """What an ablation writes of a network, against train.py and fid.py as one types them."""
    call(mnist_ablation, here, f'--held-out={here[0] / "b.zip"}', '--num=12', '--num-reconstructed=8',
         '--duration=0.000032', '--only=both', '--', *TINY)  # fmt: skip
    row = json.loads((here[0] / 'out' / 'results.json').read_text())['rows'][0]
    options = [f'--{key}={value}' for key, value in row['options'].items()]
    invoke(train_script.main, f'--outdir={tmp_path / "run"}', '--nosubdir', '--device=cpu', *options)
    folders = tmp_path / 'run', here[0] / 'out' / 'both-seed0'
    mine, theirs = (final(folder, 'network-snapshot') for folder in folders)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine) and mine.keys() == theirs.keys()
    judge = [f'--detector={here[0] / "judge.pth"}', '--device=cpu', f'--network={tmp_path / "run"}']
    a, b = (f'{here[0]}/{name}.zip' for name in 'ab')
    invoke(fid.main, 'ref', *judge[:2], f'--data={a}', f'--dest={tmp_path}/ref.npz')
    printed = invoke(fid.main, 'calc', *judge, f'--ref={tmp_path}/ref.npz', '--num=12', '--keep=0')
    numbers = json.loads(printed.splitlines()[-1])['numbers']
    printed = invoke(fid.main, 'reconstruct', *judge, f'--data={a}', f'--held-out={b}', '--num=8')
    numbers |= json.loads(printed.splitlines()[-1])['numbers']
    assert row['numbers'] == {
        'FID': numbers['FID-12'],
        'rFID training': numbers['training rFID-8'], 'PSNR training': numbers['training PSNR-8 dB'],
        'rFID held-out': numbers['held-out rFID-8'], 'PSNR held-out': numbers['held-out PSNR-8 dB'],
    }  # fmt: skip


def test_trainings_leave_the_process_as_it_was(here, tmp_path, monkeypatch):
    """Seeds, cuDNN's setting, signal handlers and streams; so a second training equals the first."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    options = dict(option.removeprefix('--').split('=') for option in TINY)
    options |= {'data': f'{here[0]}/a.zip', 'nosubdir': True, 'seed': 3, 'duration': 0.000032, 'device': 'cpu'}
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)
    torch.manual_seed(5)
    before = [*map(signal.getsignal, numbers), sys.stdout, sys.stderr, False]
    state = torch.get_rng_state()
    for name in 'xy':
        training_runs.train({**options, 'outdir': str(tmp_path / name)})
        assert before == [*map(signal.getsignal, numbers), sys.stdout, sys.stderr, torch.backends.cudnn.benchmark]
        assert torch.equal(torch.get_rng_state(), state)
    x, y = (final(tmp_path / name) for name in 'xy')
    assert x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)
    call(mnist_ablation, here, f'--held-out={here[0] / "b.zip"}', '--num=12', '--num-reconstructed=8',
         '--duration=0.000016', '--only=neither,split', '--', *TINY)  # fmt: skip
    assert before == [*map(signal.getsignal, numbers), sys.stdout, sys.stderr, torch.backends.cudnn.benchmark]


def test_a_signal_says_where_to_continue(here, monkeypatch):
    def stopped(options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(ablation, 'train_network', stopped)
    out = call(mnist_ablation, here, f'--held-out={here[0] / "b.zip"}', '--num=12', '--num-reconstructed=8', fails=True)
    assert 'Error: stopped in row neither; the same command continues there' in out


def test_two_ranks_train_together(here):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    folder, options = here[0], ['--num=12', '--num-reconstructed=8', '--duration=0.000016', '--only=both']
    command = ['-m', 'experiments.mnist_ablation', f'--data={folder / "a.zip"}', '--device=cpu',
               f'--held-out={folder / "b.zip"}', f'--detector={folder / "judge.pth"}', f'--outdir={folder / "two"}',
               *options, '--', *TINY]  # fmt: skip
    environment = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    ranks = [forks.Process(command, env=environment | {'RANK': rank}, stdout=forks.PIPE) for rank in '01']
    outputs = []
    for rank in ranks:
        with rank:
            outputs.append(rank.communicate()[0])
    assert [rank.returncode for rank in ranks] == [0, 0] and outputs[1] == '' and 'Written to' in outputs[0]
    call(mnist_ablation, here, f'--held-out={folder / "b.zip"}', *options, '--', *TINY)
    two, one = (json.loads((folder / name / 'results.json').read_text())['rows'] for name in ('two', 'out'))
    for a, b in zip(two, one, strict=True):
        assert a['numbers'] == pytest.approx(b['numbers'], rel=1e-3) and a['facts']['nimg'] == 16


def test_table1_trains_or_scores(here):
    write_zip(here[0] / 'a.zip', 24, (3, 8, 8), labels=False)
    out = call(table1_cifar10, here, '--num=12', '--duration=0.000032', '--', *TINY, '--max-k=4')
    assert '3.2e-05 million images' in out and 'K = 4' in out
    (network,) = (here[0] / 'out' / 'ddn-this-run-seed0').glob('network-snapshot-*')
    here[1].clear()
    scored = call(table1_cifar10, here, '--num=12', f'--network={network}')
    assert here[1] == ['Samples'] and out.splitlines()[-3] == scored.splitlines()[-3]
    refused = call(table1_cifar10, here, f'--network={network}', '--duration=1', fails=True)
    assert '--network is trained already' in refused
    assert 'no such' in call(table1_cifar10, here, '--data=nowhere.zip', fails=True).lower()


def test_fig10_runs(here):
    out = call(mnist_ablation, here, f'--held-out={here[0] / "b.zip"}', '--num=12', '--num-reconstructed=8',
               '--duration=0.000016', '--seeds=0,1', '--only=neither,chain,split', '--', *TINY)  # fmt: skip
    assert here[1].count('train') == 6 and out.count('here: ') == 3
    assert '± ' in out and 'seeds 0, 1 (± is the standard deviation over them)' in out
    assert 'give --data and --held-out' in call(mnist_ablation, here, fails=True)


def test_balance_runs(here, monkeypatch):
    monkeypatch.setenv('DDN_LENET', str(here[0] / 'judge.pth'))
    monkeypatch.setattr(digits, 'quality', lambda net, lenet, real: {'samples_read': 0.75})
    monkeypatch.setattr(balance_ablation, 'Scoring', lambda *args: ablation.Scoring(*args[:-1], 8))
    out = call(balance_ablation, here, f'--held-out={here[0] / "b.zip"}', '--num=12', '--duration=0.000016',
               '--only=bias,prefix', '--', *TINY, '--nodes=4')  # fmt: skip
    rows = unpadded((here[0] / 'out' / 'results.md').read_text())
    assert '| bias | 75.0 |' in rows and '| prefix | 75.0 |' in rows and 'Written to' in out


@pytest.mark.parametrize('script', [mnist_ablation, table1_cifar10, table2_ablation])
def test_help_teaches(script):
    text = CliRunner().invoke(script.main, ['--help']).output
    assert 'python -m experiments.' in text and 'train.py' in text
    assert all(len(line) < 121 for line in text.splitlines())


def test_digit_quality_without_the_weights_of_its_judge_is_one_line(monkeypatch):
    monkeypatch.setenv('DDN_LENET', 'nowhere.pt')
    result = CliRunner().invoke(digit_quality.main, ['--network=mnist'])
    assert result.exit_code == 1 and result.output.startswith('Error: ') and 'nowhere.pt' in result.output
