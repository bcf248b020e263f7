"""The folder of a run: its name, finding it again, and who may write into it."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence

from dnnlib.util import Logger, remove_unfinished, require_writable
from training import checkpoint

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def create(outdir: str, words: Sequence[str]) -> str:
    """Make the next free folder 00000-WORD-WORD... in ``outdir``, and return it. ValueError or OSError where it cannot
    be made."""
    require_writable('--outdir', os.path.join(outdir, '00000'))
    os.makedirs(outdir, exist_ok=True)
    name = re.sub(r'[\x00-\x1f\x7f/\\]', '_', '-'.join(words))[:200]
    while True:
        taken = [int(match[0]) for entry in os.listdir(outdir) if (match := re.match(r'\d+', entry))]
        run_dir = os.path.join(outdir, f'{max(taken, default=-1) + 1:05d}-{name}')
        with contextlib.suppress(FileExistsError):  # another run took the number
            os.mkdir(run_dir)
            return run_dir


def use(run_dir: str) -> str:
    """Make ``run_dir`` itself a run folder, and return it. ValueError or OSError where it holds a run, or cannot
    be made."""
    require_writable('--outdir', os.path.join(run_dir, 'log.txt'))
    os.makedirs(run_dir, exist_ok=True)
    if checkpoint.find_states(run_dir):
        raise ValueError(f'--nosubdir: {run_dir} holds a run; --resume={run_dir} continues it')
    return run_dir


def find(resume: str, outdir: str | None) -> tuple[str, str]:
    """(run folder, training state) of --resume: a state file, a run folder, or 'latest' in ``outdir``. Raises
    ValueError."""
    if os.path.isfile(resume):
        return os.path.dirname(resume) or '.', resume
    if resume == 'latest':
        if outdir is None:
            raise ValueError('--resume without a path takes the newest run in --outdir: give that, or the run folder')
        runs = [os.path.join(outdir, d) for d in os.listdir(outdir)] if os.path.isdir(outdir) else []
        runs = [d for d in [outdir, *sorted(runs, reverse=True)] if os.path.isdir(d) and checkpoint.find_states(d)]
        if not runs:
            raise ValueError(f'--resume: no run with a training state in {outdir}')
        resume = runs[0]
    if not os.path.isdir(resume):
        raise ValueError(f'--resume={resume}: no such run folder or state (the ranks of all machines read it)')
    states = checkpoint.find_states(resume)
    if not states:
        raise ValueError(f'--resume={resume}: no training-state-*.safetensors in it')
    return resume, states[0]


@contextlib.contextmanager
def opened(run_dir: str) -> Iterator[None]:
    """The run folder, locked, and with a copy of what is printed in log.txt. If nothing else is written into a new
    folder, it is removed again. ValueError where another process has it open."""
    with _locked(run_dir):
        remove_unfinished(run_dir)
        log = os.path.join(run_dir, 'log.txt')
        new = not os.listdir(run_dir)
        try:
            with Logger(log):
                yield
        finally:
            if new and os.listdir(run_dir) == ['log.txt']:
                os.remove(log)
                with contextlib.suppress(OSError):  # the root of a file system
                    os.rmdir(run_dir)


@contextlib.contextmanager
def _locked(run_dir: str) -> Iterator[None]:
    """The system drops this lock with the process, however that ends. It holds for one machine; where a file system has
    no such locks (some network file systems) there is none."""
    if fcntl is None:
        yield
        return
    handle = os.open(run_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f'{run_dir} is in use: another process trains in it; wait for it, or stop it') from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)
