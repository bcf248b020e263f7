"""Runs that continue: from any folder, from files of earlier revisions, one process at a time."""

import functools
import json
import os
import signal
import time
from pathlib import Path

import forks
import pytest
import torch
from conftest import TINY_NET, TINY_RUN, final, invoke, write_zip

import train
from cli import training_runs
from cli.training_options import read_stored
from training import run_folder

run_train = functools.partial(invoke, train.main)
AGAIN = 'This run continues with another option'


def options_of(run_dir: Path) -> dict:
    return json.loads((run_dir / 'training_options.json').read_text())


def replace_options(run_dir: Path, content: object) -> None:
    (run_dir / 'training_options.json').write_text(json.dumps(content))


# ---------------------------------------------------------------------------------------------------------------- paths


def test_a_run_of_relative_paths_resumes_from_any_folder(tmp_path, monkeypatch):
    """With an image condition, whose path stands among the conditions."""
    for name in ('data', 'val', 'pairs', 'val_pairs'):
        write_zip(tmp_path / f'{name}.zip', 16, (1, 8, 8))
    monkeypatch.chdir(tmp_path)
    args = ['--data=data.zip', '--val-data=val.zip', '--condition=image:pairs.zip', '--val-pairs=val_pairs.zip']
    run_train('--outdir=run', *args, *TINY_RUN, '--nosubdir', '--duration=0.000016')
    stored = options_of(tmp_path / 'run')
    assert stored['options']['condition'] == [f'image:{tmp_path}/pairs.zip']
    assert stored['options']['data'] == stored['loop']['dataset_kwargs']['path'] == f'{tmp_path}/data.zip'
    names = ('val_data', 'pair_data', 'val_pairs')
    assert [stored['loop'][name] for name in names] == [
        f'{tmp_path}/{name}.zip' for name in ('val', 'pairs', 'val_pairs')
    ]
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    out = run_train('--resume=../run', '--duration=0.000032')
    assert out.count(AGAIN) == 1 and 'total_nimg: 16 -> 32' in out


def test_a_snapshot_to_start_from_is_found_from_any_folder(tiny_zip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_train('--outdir=a', f'--data={tiny_zip}', *TINY_RUN, '--nosubdir', '--duration=0.000016')
    transfer = '--transfer=a/network-snapshot-000000016.safetensors'
    run_train('--outdir=b', f'--data={tiny_zip}', *TINY_RUN, '--nosubdir', '--duration=0.000016', transfer)
    monkeypatch.chdir('/')
    out = run_train(f'--resume={tmp_path / "b"}', '--duration=0.000032')
    assert out.count(AGAIN) == 1 and 'total_nimg' in out


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run of one step in a folder 'run' beside its data, and a function that brings its options back."""
    folder = tmp_path_factory.mktemp('finished')
    write_zip(folder / 'data.zip', 16, (3, 8, 8))
    args = [f'--data={folder / "data.zip"}', *TINY_RUN, '--condition=color', '--balance=prefix']
    run_train(f'--outdir={folder / "run"}', '--nosubdir', *args, '--duration=0.000016')
    return folder


@pytest.fixture
def run(finished):
    """Its run folder, of which only training_options.json is changed."""
    before = options_of(finished / 'run')
    yield finished / 'run'
    replace_options(finished / 'run', before)


def test_a_relative_path_of_an_earlier_revision_leads_there_or_says_what_to_do(run, monkeypatch):
    stored = options_of(run)
    stored['options']['data'] = stored['loop']['dataset_kwargs']['path'] = 'data.zip'
    replace_options(run, stored)
    monkeypatch.chdir('/')
    out = run_train(f'--resume={run}', expect=1)
    assert "--data is 'data.zip', relative to the folder in which the run was started" in out.splitlines()[-1]
    replace_options(run, stored | {'options': {**stored['options'], 'condition': ['image:pairs.zip']}})
    out = run_train(f'--resume={run}', f'--data={run.parent / "data.zip"}', expect=1)
    assert "--condition is 'pairs.zip', relative to the folder" in out.splitlines()[-1]
    replace_options(run, stored)
    out = run_train(f'--resume={run}', f'--data={run.parent / "data.zip"}')
    assert out.count(AGAIN) == 1 and f'dataset_kwargs.path: data.zip -> {run.parent / "data.zip"}' in out
    monkeypatch.chdir(run.parent)
    replace_options(run, stored)
    assert AGAIN not in run_train(f'--resume={run}')


# ---------------------------------------------------------------------------------------------------- earlier revisions


def test_a_run_of_revision_002c5b3_continues_unchanged(run):
    """That revision named the class and the balance otherwise, and placed conditions otherwise without saying so."""
    stored = options_of(run)
    assert stored['loop']['balance'] == stored['options']['balance'] == 'prefix'
    assert stored['loop']['network_kwargs'].pop('condition_placement') == 'published'
    stored['loop'] |= {'balance': 'conditional', 'network_class': 'ddn_networks.network.DDN'}
    stored['options']['balance'] = 'conditional'
    replace_options(run, stored)
    assert AGAIN not in run_train(f'--resume={run}')
    after = options_of(run)
    assert after['loop']['network_kwargs']['condition_placement'] == 'centred'
    assert (after['loop']['balance'], after['loop']['network_class']) == ('prefix', 'ddn_networks.single_shot.DDN')
    assert AGAIN not in run_train(f'--resume={run}')
    assert options_of(run) == after


def test_the_earlier_name_of_a_balance_is_an_alias(tiny_zip):
    loops = [json.loads(run_train(f'--data={tiny_zip}', f'--balance={name}:pairs=2', *TINY_NET, '--seed=1', '-n'))
             for name in ('prefix', 'conditional')]  # fmt: skip
    assert loops[0] == loops[1] and loops[0]['balance'] == 'prefix'


def test_an_argument_that_the_loop_did_not_have_before_is_its_default(run):
    stored = options_of(run)
    del stored['loop']['share_prefixes'], stored['options']['share_prefixes']
    replace_options(run, stored)
    assert AGAIN not in run_train(f'--resume={run}')


# ------------------------------------------------------------------------------------------------------ damaged options


@pytest.mark.parametrize(
    'path, value, words',
    [
        ('options.nodes', 4, '--nodes cannot be 4'),
        ('options.nodes', ['4'], "--nodes cannot be ['4']"),
        ('options.batch', '16', "--batch cannot be '16'"),
        ('options.batch', 16.5, '--batch cannot be 16.5'),
        ('options.batch', True, '--batch cannot be True'),
        ('options.batch', None, '--batch cannot be None'),
        ('options.xflip', 1, '--xflip cannot be 1'),
        ('options.lr', -1, '--lr cannot be -1'),
        ('options.lr', 10**400, '--lr cannot be 1000'),
        ('options.arch', 'vae', "--arch cannot be 'vae'"),
        ('options.condition', 'color', "--condition cannot be 'color'"),
        ('options.condition', ['help'], "--condition cannot be ['help']"),
        ('options.balance', 'x\ny', 'choose from split-prune'),
        ('options.device', 7, '--device cannot be 7'),
        ('options.what\nis this', 1, "unknown option 'what\\nis this'"),
        ('loop.seed', '1', "the seed of the loop is '1'"),
        ('loop.seed', -1, 'the seed of the loop is -1'),
        ('loop.network_kwargs', None, 'does not hold the options'),
        ('loop', [], 'does not hold the options'),
        ('options', None, 'does not hold the options'),
        ('preset', 5, 'does not hold the options'),
    ],
    ids=str,
)
def test_a_stored_option_that_is_wrong_is_named(run, path, value, words):
    stored = options_of(run)
    *keys, last = path.split('.')
    functools.reduce(dict.get, keys, stored)[last] = value
    replace_options(run, stored)
    (line,) = run_train(f'--resume={run}', expect=1).splitlines()
    assert words in line and ('training_options.json' in line or last == 'balance')


@pytest.mark.parametrize(
    'text', ['[' * 100_000, '[]', '{}', '', '{"options": {}', '\0', 'NaN', '{"options":{},"loop":{}}'], ids=range(8)
)
def test_options_that_are_not_options_are_one_line(run, text):
    (run / 'training_options.json').write_text(text)
    (line,) = run_train(f'--resume={run}', expect=1).splitlines()
    assert str(run / 'training_options.json') in line


def test_options_that_are_missing_are_one_line(tmp_path, run):
    os.rename(run / 'training_options.json', tmp_path / 'away')
    try:
        (line,) = run_train(f'--resume={run}', expect=1).splitlines()
    finally:
        os.rename(tmp_path / 'away', run / 'training_options.json')
    assert str(run / 'training_options.json') in line


def test_a_wrong_stored_option_that_is_given_anew_does_not_matter(run):
    stored = options_of(run)
    stored['options']['data'] = 'moved/away.zip'
    replace_options(run, stored)
    assert 'data' not in read_stored(str(run), {'data'}).options


# ----------------------------------------------------------------------------------------------------------- run folder


def test_one_process_at_a_time_has_a_run_folder(tiny_zip, tmp_path):
    """And none after a kill -9."""
    args = [f'--outdir={tmp_path}', f'--data={tiny_zip}', *TINY_RUN, '--nosubdir', '--tick=0.016', '--dump=1']
    with forks.Process(['train.py', *args], stdout=forks.PIPE, stderr=forks.STDOUT) as process:
        try:
            assert any(line.startswith('tick') for line in process.stdout)
            while not run_folder.checkpoint.find_states(str(tmp_path)):
                time.sleep(0.01)
            for again in (f'--resume={tmp_path}', f'--resume={tmp_path}/'):
                (line,) = run_train(again, expect=1).splitlines()
                assert 'is in use: another process trains in it' in line
            assert process.poll() is None
        finally:
            os.kill(process.pid, signal.SIGKILL)
    out = run_train(f'--resume={tmp_path}', '--duration=0.000016')
    assert 'Resuming from' in out
    with run_folder.opened(str(tmp_path)):
        pass


def test_a_folder_in_use_is_left_as_it_is(tmp_path):
    with run_folder.opened(str(tmp_path)):
        unfinished = tmp_path / '.state.0123abcd.tmp'
        unfinished.touch()
        with pytest.raises(ValueError, match='is in use'), run_folder.opened(str(tmp_path)):
            pass
        assert unfinished.exists()


def test_a_file_system_without_locks_has_none(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(37, 'No locks available')

    monkeypatch.setattr(run_folder.fcntl, 'flock', flock)
    with run_folder.opened(str(tmp_path)), run_folder.opened(str(tmp_path)):
        pass


@pytest.mark.parametrize('desc', ['../../x', 'a/b', 'a\\b', 'a\nb', 'x' * 101, '\x1b[1m'])
def test_a_description_stays_in_outdir(tiny_zip, tmp_path, desc):
    out = run_train(f'--outdir={tmp_path / "runs"}', f'--data={tiny_zip}', *TINY_RUN, f'--desc={desc}', expect=2)
    assert '--desc' in out.splitlines()[-1] and not list(tmp_path.iterdir())


def test_names_of_run_folders(tmp_path):
    made = [run_folder.create(str(tmp_path), words) for words in (['a', 'b'], ['a', 'b'], ['../c\n', 'é'], ['x' * 300])]
    names = [os.path.relpath(path, tmp_path) for path in made]
    assert names == ['00000-a-b', '00001-a-b', '00002-.._c_-é', '00003-' + 'x' * 200]


def test_two_runs_that_begin_at_once_have_two_folders(tmp_path, monkeypatch):
    mkdir, calls = os.mkdir, []

    def taken(path, *mode):
        mkdir(path, *mode)
        calls.append(path)
        if len(calls) == 1:
            raise FileExistsError(path)

    monkeypatch.setattr(os, 'mkdir', taken)
    assert os.path.basename(run_folder.create(str(tmp_path), ['a'])) == '00001-a'


# ---------------------------------------------------------------------------------------------------------- from Python


def test_training_from_python_is_training_from_the_command_line(tiny_zip, tmp_path, capsys):
    options = dict(arg.removeprefix('--').split('=') for arg in TINY_RUN)
    options |= {'batch': 16, 'data': tiny_zip, 'nosubdir': True, 'chain-dropout': 0, 'duration': 0.000032}
    run_dir = training_runs.train({**options, 'outdir': tmp_path / 'a', 'preset': None, 'condition': ['class']})
    assert run_dir == str(tmp_path / 'a')
    given = [f'--{name}={value}' for name, value in options.items() if name != 'nosubdir']
    run_train(*given, '--nosubdir', f'--outdir={tmp_path / "b"}', '--condition=class')
    a, b = final(tmp_path / 'a'), final(tmp_path / 'b')
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(training_runs.click.ClickException, match='No such option.*--nods'):
        training_runs.train({'nods': 4})
    with pytest.raises(training_runs.click.ClickException, match='--data is missing'):
        training_runs.train({'outdir': tmp_path})
