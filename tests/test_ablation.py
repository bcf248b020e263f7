"""The scripts of Fig. 10 and Tables 1 and 2: their words against hand-made numbers, and tiny runs of real programs."""

import json

import click
import pytest
import torch
from click.testing import CliRunner
from conftest import unpadded, write_zip

import fid
import train as train_script
from experiments import ablation, digit_quality, mnist_ablation, table1_cifar10, table2_ablation
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
    """(folder with images and a detector, the commands that were run): train.py and fid.py run in this process."""
    torch.manual_seed(0)
    torch.save(LeNet().state_dict(), tmp_path / 'judge.pth')
    for seed, name in enumerate(('a', 'b')):
        write_zip(tmp_path / f'{name}.zip', 24, (1, 8, 8), seed, labels=False)
    commands = []

    def run(script, args, show=None, ranks=1):
        commands.append([script, *args])
        program = {'train.py': train_script.main, 'fid.py': fid.main}[script]
        outcome = CliRunner().invoke(program, list(args))
        if outcome.exit_code:
            raise ablation.Failed(f'{script}: {outcome.output.strip().splitlines()[-1].removeprefix("Error: ")}')
        for line in outcome.output.splitlines():
            if show is not None:
                show(line)

    monkeypatch.setattr(ablation, 'run', run)
    return tmp_path, commands


def call(script, here, *args, fails=False):
    folder = here[0]
    common = [f'--data={folder / "a.zip"}', f'--detector={folder / "judge.pth"}', f'--outdir={folder / "out"}']
    outcome = CliRunner().invoke(script.main, [*common, '--device=cpu', *args])
    assert (outcome.exit_code != 0) == fails, outcome.output + repr(outcome.exception)
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
    assert ablation.failures(results) == ['w/o Split-and-Prune (seed 0): no space left']


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
    text = unpadded(mnist_ablation.table(results))
    assert '| neither | 55.0 ± 7.1 | 17.12 ± 0.00 | 18.00 ± 0.00 | 25.0 ± 0.0 |' in text


def test_order_by_hand():
    assert ablation.order([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx((0.8, 5, 6))
    assert ablation.order([1, None, 3, 4], [10, 30, 20, 40]) == pytest.approx((1.0, 3, 3))
    assert ablation.order([1, 2, 3], [5, 5, 9])[1:] == (2, 2)  # the equal pair says nothing
    assert ablation.order([1, 2, None], [1, 2, 3]) is None and ablation.order([2, 2, 2], [1, 2, 3]) is None
    assert ablation.cell([]) == '-' and ablation.cell([1, 2]) == '1.5 ± 0.7'


def test_options_behind_the_dashes():
    assert ablation.parse_options(['--batch=64', '--lr=1e-3']) == {'batch': '64', 'lr': '1e-3'}
    with pytest.raises(click.UsageError, match='--name=value'):
        ablation.parse_options(['--batch', '64'])
    rows = [ablation.Row(name, {}) for name in ('K=8', 'w/o Leak Choice')]
    assert ablation.chosen(rows, 'leak, x') == rows[1:] and ablation.chosen(rows, None) == rows
    with pytest.raises(click.UsageError, match='there are K=8, w/o Leak'):
        ablation.chosen(rows, 'K=9')


def test_rows_are_trained_once_and_a_failed_one_is_named(here):
    args = [f'--held-out={here[0] / "b.zip"}', '--num=12', '--num-reconstructed=8', '--duration=0.000032']
    only = ['--only=K=8,K=2', '--', *TINY]
    out = call(table2_ablation, here, *args, *only)
    commands = here[1]
    assert [c[0] for c in commands].count('train.py') == 2 and [c[1] for c in commands if c[0] == 'fid.py'] == [
        'ref', 'calc', 'reconstruct', 'calc', 'reconstruct']  # fmt: skip
    assert '[1/2] K=8: trains' in out and 'left' in out and 'K is 64, 16, 8, 2 in the places' in out
    folder = here[0] / 'out'
    kept = json.loads((folder / 'results.json').read_text())
    assert [r['row'] for r in kept['rows']] == ['K=8', 'K=2 (BinDDN)'] and kept['rows'][0]['facts']['nodes'] == 8
    names = ['FID', 'rFID training', 'PSNR training', 'rFID held-out', 'PSNR held-out']
    assert list(kept['rows'][0]['numbers']) == names
    assert kept['rows'][0]['facts']['nimg'] == 32
    assert (folder / 'results.md').read_text().strip() in out and (folder / 'samples.png').is_file()

    commands.clear()
    again = call(table2_ablation, here, *args, *only)
    assert not commands and 'K=8: is here' in again  # neither trained nor judged again
    assert json.loads((folder / 'results.json').read_text()) == kept

    # Interrupted: the record says that it is not finished, so it goes on.
    record = folder / 'k-8-seed0' / 'row.json'
    record.write_text(json.dumps(json.loads(record.read_text()) | {'finished': False}))
    call(table2_ablation, here, *args, *only)
    assert [c[:2] for c in commands] == [['train.py', f'--resume={folder / "k-8-seed0"}']]

    # Other options in the same folder are refused; the row is named, the other rows go on, the exit is not 0.
    commands.clear()
    refused = call(table2_ablation, here, *args, '--only=K=8,Leak', '--', *TINY[:-1], '--workers=00', fails=True)
    assert 'rows failed: K=8 (seed 0)' in refused and "'workers': '00'" in refused and 'w/o Leak Choice' in refused
    assert [c[0] for c in commands].count('train.py') == 1
    assert '| K=8 | - (52.6) |' in unpadded((folder / 'results.md').read_text())


def test_table1_trains_or_scores(here):
    write_zip(here[0] / 'a.zip', 24, (3, 8, 8), labels=False)
    out = call(table1_cifar10, here, '--num=12', '--duration=0.000032', '--', *TINY, '--max-k=4')
    assert '3.2e-05 million images' in out and 'K = 4' in out
    (network,) = (here[0] / 'out' / 'ddn-this-run-seed0').glob('network-snapshot-*')
    here[1].clear()
    scored = call(table1_cifar10, here, '--num=12', f'--network={network}')
    assert [c[:2] for c in here[1]] == [['fid.py', 'calc']] and out.splitlines()[-3] == scored.splitlines()[-3]
    refused = call(table1_cifar10, here, f'--network={network}', '--duration=1', fails=True)
    assert '--network is trained already' in refused
    assert 'no such' in call(table1_cifar10, here, '--data=nowhere.zip', fails=True).lower()


def test_fig10_runs(here):
    out = call(mnist_ablation, here, f'--held-out={here[0] / "b.zip"}', '--num=12', '--num-reconstructed=8',
               '--duration=0.000016', '--seeds=0,1', '--', *TINY)  # fmt: skip
    assert [c[0] for c in here[1]].count('train.py') == 8 and out.count('here: ') == 3
    assert '± ' in out and 'seeds 0, 1 (± is the standard deviation over them)' in out
    assert 'give --data and --held-out' in call(mnist_ablation, here, fails=True)


def test_what_a_program_says_last_is_the_reason(tmp_path):
    with pytest.raises(ablation.Failed, match='dataset_tool.py: .*nowhere'):
        ablation.run('dataset_tool.py', ['--source=nowhere', f'--dest={tmp_path / "x.zip"}'])
    lines = []
    ablation.run('dataset_tool.py', ['--help'], lines.append)
    assert lines[0].startswith('Usage')


@pytest.mark.parametrize('script', [mnist_ablation, table1_cifar10, table2_ablation])
def test_help_teaches(script):
    text = CliRunner().invoke(script.main, ['--help']).output
    assert 'python -m experiments.' in text and 'train.py' in text
    assert all(len(line) < 121 for line in text.splitlines())


def test_digit_quality_without_the_weights_of_its_judge_is_one_line(monkeypatch):
    monkeypatch.setenv('DDN_LENET', 'nowhere.pt')
    result = CliRunner().invoke(digit_quality.main, ['--network=mnist'])
    assert result.exit_code == 1 and result.output.startswith('Error: ') and 'nowhere.pt' in result.output
