"""Runs that are stopped, whose output nobody reads, or that cannot write: no image of training is lost."""

import functools
import itertools
import os
import re
import signal
import subprocess
import sys
import threading

import forks
import pytest
import torch
from conftest import TINY_RUN, final, invoke

import train
from ddn_networks import snapshots
from training import checkpoint, report, training_loop
from training.dataset import ImageFolderDataset
from training.loader import Loader
from training.validation import Validation

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
run_train = functools.partial(invoke, train.main)


def await_line(lines, start_of_line: str) -> None:
    for line in lines:
        if line.startswith(start_of_line):
            return
    raise AssertionError(f'no line {start_of_line!r}')


def assert_stopped(run_dir, name: str) -> int:
    """The log says that the run was stopped and how it resumes, and the state is there; at how many images."""
    log = (run_dir / 'log.txt').read_text()
    stopped = re.search(rf'Stopped by {name} at ([\d,]+) images; the state is saved', log)
    assert stopped and f'python train.py --resume={run_dir}' in log and 'Traceback' not in log, log
    nimg = int(stopped[1].replace(',', ''))
    assert os.path.exists(checkpoint.state_path(str(run_dir), nimg))
    return nimg


def options(tiny_zip, run_dir, *more: str) -> list[str]:
    return [f'--outdir={run_dir}', f'--data={tiny_zip}', *TINY_RUN, '--nosubdir', *more]


# -------------------------------------------------------------------------------------------------------------- signals


def test_a_signal_to_the_whole_group_saves_a_state_from_which_it_goes_on_exactly(tiny_zip, tmp_path):
    """As terminals and job schedulers send it."""
    args = options(tiny_zip, tmp_path / 'a', '--tick=0.16', '--workers=1')
    with forks.Process(['train.py', *args], stdout=forks.PIPE, stderr=forks.STDOUT) as process:
        await_line(process.stdout, 'tick')
        os.killpg(process.pid, signal.SIGTERM)
        output = process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM and 'Traceback' not in output, output
    duration = f'--duration={(assert_stopped(tmp_path / "a", "SIGTERM") + 160) / 1e6:f}'
    run_train(f'--resume={tmp_path / "a"}', duration)
    run_train(*options(tiny_zip, tmp_path / 'b', duration))
    a, b = final(tmp_path / 'a'), final(tmp_path / 'b')
    assert a.keys() == b.keys() and not [name for name in a if not torch.equal(a[name], b[name])]


def test_ctrl_c_that_ends_tee_first_saves_the_state(tiny_zip, tmp_path):
    """`python train.py | tee log`: the reader is gone before the run hears of the signal. Nor is there a stderr."""
    args = options(tiny_zip, tmp_path, '--tick=0.16')
    with forks.Process(['train.py', *args], stdout=forks.PIPE, stderr=forks.CLOSED) as process:
        await_line(process.stdout, 'tick')
        process.stdout.close()
        os.killpg(process.pid, signal.SIGINT)
    assert process.returncode == 130
    assert_stopped(tmp_path, 'SIGINT')


IN_A_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_a_terminal_that_is_closed_saves_the_state(tiny_zip, tmp_path):
    ours, theirs = os.openpty()
    command = [sys.executable, '-c', IN_A_TERMINAL, 'train.py', *options(tiny_zip, tmp_path, '--tick=0.16')]
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        with open(ours, 'rb', buffering=0) as terminal:
            shown = b''
            while b'tick' not in shown:
                shown += terminal.read(1000)
        process.send_signal(signal.SIGHUP)  # as the shell sends it; the system did so when the terminal was closed
    assert process.returncode == 128 + signal.SIGHUP
    assert_stopped(tmp_path, 'SIGHUP')


def test_training_in_a_thread_leaves_signals_alone(tiny_zip, tmp_path):
    before, found = signal.getsignal(signal.SIGINT), []
    args = options(tiny_zip, tmp_path, '--duration=0.000016')
    thread = threading.Thread(target=lambda: found.append(run_train(*args)))
    thread.start()
    thread.join()
    assert 'Done: 16 images' in found[0] and signal.getsignal(signal.SIGINT) == before


def test_a_run_under_nohup_ignores_a_hangup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with training_loop.StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.number
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_in_the_wait_for_images_saves_the_state(tiny_zip, tmp_path, monkeypatch):
    """A file system that does not answer."""
    images, answers = itertools.count(1), threading.Event()
    get_image, ready = ImageFolderDataset.get_image, Loader.ready

    def slow_image(dataset, index):
        if threading.current_thread().name == 'ddn-loader' and next(images) == 40:
            answers.wait(20)
        return get_image(dataset, index)

    def interrupted(loader, seconds):
        if ready(loader, seconds):
            return True
        os.kill(os.getpid(), signal.SIGINT)
        answers.set()
        return False

    monkeypatch.setattr(ImageFolderDataset, 'get_image', slow_image)
    monkeypatch.setattr(Loader, 'ready', interrupted)
    out = run_train(f'--outdir={tmp_path}', f'--data={tiny_zip}', *TINY_RUN, '--nosubdir', '--workers=1', expect=130)
    nimg = int(re.search(r'Stopped by SIGINT at ([\d,]+) images; the state is saved', out)[1])
    assert nimg < 40 and os.path.exists(tmp_path / f'training-state-{nimg:09d}.safetensors')
    assert not [thread for thread in threading.enumerate() if thread.name == 'ddn-loader']


# --------------------------------------------------------------------------------------- little room, and no readers


def test_a_run_needs_no_reader_no_shared_memory_no_folder_for_temporary_files_and_few_files(tiny_zip, tmp_path):
    """`python train.py 2>&1 | head -2` where `ulimit -n` is 18 and TMPDIR is nowhere."""
    args = options(tiny_zip, tmp_path, '--workers=2', '--duration=0.000320', '--tick=0.016')
    env, streams = {'TMPDIR': f'/nonexistent/{"long" * 60}'}, {'stdout': forks.PIPE, 'stderr': forks.STDOUT}
    with forks.Process(['train.py', *args], env=env, files=18, **streams) as run:
        for _ in range(2):
            run.stdout.readline()
        run.stdout.close()
    log = (tmp_path / 'log.txt').read_text()
    assert run.returncode == 0 and log.count('stdout is given up (Broken pipe)') == 1
    assert log.rstrip().split('\n')[-1].startswith('Done: 320 images')
    assert os.path.exists(checkpoint.state_path(str(tmp_path), 320))


def test_an_error_ends_a_run_whose_images_a_thread_loads(tiny_zip, tmp_path):
    args = options(tiny_zip, tmp_path, '--lr=1e18', '--workers=1')
    with forks.Process(['train.py', *args], stdout=forks.PIPE, stderr=forks.STDOUT) as run:
        output = run.communicate(timeout=60)[0]
    assert run.returncode == 1 and 'is not finite in the step' in output.splitlines()[-1], output


# ----------------------------------------------------------------------------------------------- what cannot be written

EVERY_STEP = ('--tick=0.016', '--snap=1', '--dump=1', '--duration=0.000048')


def states(run_dir) -> list[int]:
    return [int(re.search(r'(\d+)\.safetensors', path)[1]) for path in checkpoint.find_states(run_dir)]


def test_logs_and_pictures_that_cannot_be_written_cost_a_warning_each(tiny_zip, tmp_path, monkeypatch):
    """Folders stand where the files should be: an error even for root, as a full disk is."""
    for name in ('stats.jsonl', 'report.html'):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(report, 'save_png', lambda sheet, path: os.rename(path, path))
    out = run_train(*options(tiny_zip, tmp_path, *EVERY_STEP))
    warnings = [line.split(' could not be written (')[0] for line in out.splitlines() if line.startswith('Warning')]
    assert sorted(warnings) == ['Warning: report.html', 'Warning: stats.jsonl', 'Warning: the pictures']
    assert 'Done: 48 images' in out and states(tmp_path) == [48, 32]
    assert len(list(tmp_path.glob('network-snapshot-*'))) == 3


@pytest.mark.parametrize(
    'damage', ['[' * 100_000, '{"nimg": "x"}', '\0\xff', '{"nimg": 16}', 'null', '{"nimg": []}'], ids=range(6)
)
def test_a_bad_line_of_statistics_loses_no_tick(tiny_zip, tmp_path, damage):
    (tmp_path / 'stats.jsonl').write_text(damage + '\n')
    out = run_train(*options(tiny_zip, tmp_path, *EVERY_STEP))
    assert 'Done: 48 images' in out and states(tmp_path) == [48, 32] and 'Traceback' not in out


def test_the_state_is_saved_before_all_else(tiny_zip, tmp_path, monkeypatch):
    there = []

    def look(*args):
        there.append(checkpoint.find_states(str(tmp_path)) != [])
        raise OSError(28, 'No space left on device')

    for where, name in ((snapshots, 'save_network'), (Validation, 'write_pictures'), (report, 'append_stats'),
                        (training_loop, 'write_report')):  # fmt: skip
        monkeypatch.setattr(where, name, look)
    out = run_train(*options(tiny_zip, tmp_path, *EVERY_STEP), expect=1)
    assert there == [True] and 'No space left on device' in out.splitlines()[-1] and states(tmp_path) == [16]


@pytest.mark.parametrize('duration', ['0.000016', '0.000048'])
def test_a_snapshot_that_could_not_be_written_is_written_on_resume(tiny_zip, tmp_path, monkeypatch, duration):
    """Also that of a run that has ended: a full disk, or a kill between the state and the snapshot."""
    args = options(tiny_zip, tmp_path / 'a', *EVERY_STEP)
    with monkeypatch.context() as full:
        full.setattr(snapshots, 'save_network', lambda *args: (_ for _ in ()).throw(OSError(28, 'disk full')))
        run_train(*args, f'--duration={duration}', expect=1)
    run_train(f'--resume={tmp_path / "a"}', f'--duration={duration}')
    run_train(*options(tiny_zip, tmp_path / 'b', *EVERY_STEP), f'--duration={duration}')
    names = [{p.name for p in (tmp_path / d).iterdir() if p.suffix not in ('.jsonl', '.html')} for d in 'ab']
    assert names[0] == names[1]
    for name in names[0]:
        if name.startswith(('network', 'samples')):
            assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


class DeadWriter:
    """TensorBoard's, whose thread has failed."""

    def __init__(self):
        self.calls = 0

    def add_scalar(self, *args):
        self.calls += 1
        raise OSError(28, 'No space left on device')


def test_events_that_cannot_be_written_are_given_up(tiny_zip, tmp_path, monkeypatch):
    writer = DeadWriter()
    monkeypatch.setattr(report, 'open_events', lambda run_dir: writer)
    out = run_train(*options(tiny_zip, tmp_path, '--tensorboard=1', *EVERY_STEP))
    assert writer.calls == 1 and out.count('Warning: the TensorBoard events could not be written (No space') == 1


KILLED = """
import os, random, signal, sys, time
import torch
from ddn_networks import tensor_files
from training import checkpoint

torch.set_num_threads(1)  # a fork has no threads of its parent's pool
folder, rng = sys.argv[1], random.Random(0)
tensors = {'x': torch.zeros(200_000)}
for round in range(50):
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        nimg = 1 + max([int(os.path.basename(p)[15:24]) for p in checkpoint.find_states(folder)], default=0)
        while True:
            tensors['x'].fill_(nimg)
            tensor_files.save_tensors(checkpoint.state_path(folder, nimg), tensors, {'cur_nimg': nimg})
            nimg += 1
            os.write(told, b'.')
    os.read(ready, 1)  # one state at least, then a random moment
    time.sleep(rng.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    states = checkpoint.find_states(folder)
    loaded, meta = tensor_files.load_tensors(states[0])
    assert (loaded['x'] == meta['cur_nimg']).all() and meta['cur_nimg'] == int(os.path.basename(states[0])[15:24])
    os.close(ready), os.close(told)
    for path in states[2:]:
        os.remove(path)
left = [name for name in os.listdir(folder) if name.endswith('.tmp')]
print(meta['cur_nimg'], len(left))
"""


def test_the_newest_state_is_whole_after_fifty_kills(tmp_path):
    (tmp_path / 'states').mkdir()
    (tmp_path / 'killed.py').write_text(KILLED)
    result = forks.run(tmp_path / 'killed.py', tmp_path / 'states')
    assert result.returncode == 0, result.stderr
    newest, interrupted = map(int, result.stdout.split())
    assert newest >= 50 and interrupted >= 5  # so many kills came in the middle of a write
