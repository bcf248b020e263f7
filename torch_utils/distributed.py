"""Ranks: one process per device, started by torchrun, on one machine or many.

    with distributed.session(device) as device:
        ...
        distributed.all_reduce_(gradients)

One rank makes no process group, and every function here is then trivial. With several, a rank that fails or hangs ends
the run with its rank and the reason: each rank runs a heartbeat thread that publishes, once a second through the
rendezvous store, how many collectives it has entered. A rank that waits longer than the timeout sees who is missing.
"""

import contextlib
import datetime
import importlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from dnnlib.util import redacted

TIMEOUT = 600.0  # seconds that a rank may let the others wait
INTERVAL = 1.0  # seconds between two signs of life
GRACE = 30.0  # the process group's own timeout comes this much later: it cannot tell who is missing
CONNECT = 30.0  # seconds that reaching the store may take at least

_OPS = {'sum': dist.ReduceOp.SUM, 'min': dist.ReduceOp.MIN, 'max': dist.ReduceOp.MAX} if dist.is_available() else {}

# State of the process, as torch's default process group is: collectives anywhere in it are counted here.
_watch: '_Watch | None' = None


class AgreedExit(SystemExit):
    """An exit that all ranks make together: no rank has failed."""


# ------------------------------------------------------------------------------------------------------------- identity


def get_rank() -> int:
    """0 .. world size - 1, from torchrun's environment; 0 without torchrun."""
    return dist.get_rank() if _has_group() else _env('RANK', 0)


def get_world_size() -> int:
    """The number of ranks; 1 without torchrun."""
    return dist.get_world_size() if _has_group() else _env('WORLD_SIZE', 1)


def get_local_rank() -> int:
    """The rank on this machine, which is the number of its GPU."""
    return _env('LOCAL_RANK', 0)


def print0(*args: Any, **kwargs: Any) -> None:
    """``print`` on rank 0 only, flushed, without the secrets of URLs."""
    if get_rank() == 0:
        print(*(redacted(str(arg)) for arg in args), **{'flush': True, **kwargs})


def device_for_rank(requested: str | torch.device | None = None) -> torch.device:
    """The device this rank works on: the GPU of its local rank, else MPS (one rank only), else the CPU.

    Args:
        requested: 'cuda', 'cuda:N' (one rank per machine only), 'mps', 'cpu', or None or 'auto' for the best there is.

    Raises:
        ValueError: the requested device is not there.
    """
    local, world = get_local_rank(), get_world_size()
    if requested in (None, 'auto'):
        mps = world == 1 and torch.backends.mps.is_available()
        requested = 'cuda' if torch.cuda.is_available() else 'mps' if mps else 'cpu'
    try:
        device = torch.device(requested)
    except RuntimeError:
        raise ValueError(f'unknown device {requested!r}; choose from cuda, mps, cpu') from None
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            raise ValueError(f'device {requested} was asked for, but PyTorch {torch.__version__} finds no GPU')
        if device.index is not None and world > 1:
            raise ValueError(f'{world} ranks cannot share {requested}: ask for cuda, and each takes its own GPU')
        index, count = local if device.index is None else device.index, torch.cuda.device_count()
        if index >= count:
            raise ValueError(f'local rank {local} needs GPU {index}, but there are {count}: lower --nproc_per_node')
        return torch.device('cuda', index)
    if device.type == 'mps':
        if not torch.backends.mps.is_available():
            raise ValueError('device mps was asked for, but PyTorch does not find it')
        if world > 1:
            raise ValueError(f'{world} ranks cannot share mps: use one rank, or --device=cpu')
    elif device.type != 'cpu':
        raise ValueError(f'{device.type} is not a device for training; choose from cuda, mps, cpu')
    return device


# -------------------------------------------------------------------------------------------------------- begin and end


def init(device_type: str | None = None, timeout_s: float = TIMEOUT) -> None:
    """Join the other ranks that torchrun's environment describes; with one rank, do nothing.

    Args:
        device_type: 'cuda' talks over NCCL (and gloo for CPU tensors), anything else over gloo.
        timeout_s: a rank that lets another wait longer than this ends the run.

    Raises:
        ValueError: the environment is incomplete.
        RuntimeError: some ranks did not come, with their numbers.
    """
    global _watch
    rank, world = get_rank(), get_world_size()
    if world == 1 or _has_group():
        return
    missing = [name for name in ('RANK', 'MASTER_ADDR', 'MASTER_PORT') if name not in os.environ]
    if missing:
        raise ValueError(f'WORLD_SIZE is {world} but {", ".join(missing)} not set: start with torchrun')
    host, port = os.environ['MASTER_ADDR'], _env('MASTER_PORT', 0)
    hosted = os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'  # torchrun itself serves the store
    timeout = datetime.timedelta(seconds=timeout_s)
    attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    # A busy machine may need seconds to reach even itself: connecting has a timeout of its own.
    connecting = max(timeout, datetime.timedelta(seconds=CONNECT))
    store = dist.TCPStore(host, port, is_master=rank == 0 and not hosted, timeout=connecting, wait_for_workers=False)
    own = dist.TCPStore(host, port, is_master=False, timeout=connecting, wait_for_workers=False)  # for the thread alone
    store.set_timeout(timeout)
    own.set_timeout(timeout)
    watch = _Watch(dist.PrefixStore(f'ddn-watch-{attempt}', own), rank, world, timeout_s)
    watch.publish()
    try:
        watch.peers()  # wait until all ranks have come
    except RuntimeError:
        absent = [r for r in range(world) if not watch.store.check([str(r)])]
        raise RuntimeError(f'{_ranks(absent)} of {world} did not come to {host}:{port} in {timeout_s:g} s') from None
    # Its functions have the group as a default argument: imported later, by DDP, it would keep the group and its
    # threads beyond `shutdown`, into the end of the interpreter, where such a thread can abort the process.
    importlib.import_module('torch.distributed.nn.functional')
    dist.init_process_group(
        backend='cpu:gloo,cuda:nccl' if device_type == 'cuda' else 'gloo',
        store=dist.PrefixStore(f'ddn-group-{attempt}', store),
        rank=rank,
        world_size=world,
        timeout=timeout + datetime.timedelta(seconds=GRACE),
    )
    _watch = watch
    watch.thread.start()


def shutdown() -> None:
    """Leave together with the other ranks. With one rank, nothing."""
    global _watch
    if _watch is not None:
        _watch.stopping.set()
        barrier()
        _watch.thread.join()
        _watch = None
    if _has_group():
        dist.destroy_process_group()


@contextlib.contextmanager
def session(device: str | torch.device | None = None, timeout_s: float = TIMEOUT) -> Iterator[torch.device]:
    """``init`` and ``shutdown`` around a block that is given its device (see ``device_for_rank``).

    With one rank exceptions pass as they are. With several, an exception ends this process with one line on stderr
    that names rank, reason and place (after a traceback, unless the error is a ValueError, OSError or an exit); the
    others end as well, and torchrun with them. Put it around everything else: nothing outside runs then.
    A session within another one is part of it: the outer one shuts down.
    """
    inner = _has_group()
    try:
        chosen = device_for_rank(device)
        if chosen.type == 'cuda':
            torch.cuda.set_device(chosen)
        init(chosen.type, timeout_s)
        yield chosen
    except SystemExit as e:
        if get_world_size() > 1 and e.code not in (None, 0) and not isinstance(e, AgreedExit):
            _fail(e)
        if not inner:
            shutdown()
        raise
    except BaseException as e:
        if get_world_size() > 1:
            _fail(e)
        raise
    if not inner:
        shutdown()


# ---------------------------------------------------------------------------------------------------------- collectives


def all_reduce_(tensor: torch.Tensor, op: str = 'sum', wait: bool = True) -> 'dist.Work | None':
    """Replace ``tensor`` by its 'sum', 'min' or 'max' over ranks, in place.

    Without ``wait`` the result is there after ``wait()`` of what is returned (None: it is there already).
    """
    if op not in ('sum', 'min', 'max'):
        raise ValueError(f'{op!r} is not a reduction; use sum, min or max')
    if get_world_size() == 1:
        return None
    _enter('all_reduce')
    return dist.all_reduce(tensor, _OPS[op], async_op=not wait)


def all_gather_object(obj: Any) -> list[Any]:
    """The objects of all ranks, by rank. Pickled between our own processes; too slow for the training step."""
    if get_world_size() == 1:
        return [obj]
    _enter('all_gather_object')
    objects = [None] * get_world_size()
    dist.all_gather_object(objects, obj)
    return objects


def barrier() -> None:
    """Wait until every rank is here."""
    if get_world_size() > 1:
        _enter('barrier')
        on_gpu = 'nccl' in dist.get_backend()
        dist.barrier(device_ids=[torch.cuda.current_device()] if on_gpu else None)


def _enter(name: str) -> None:
    if not _has_group():
        raise RuntimeError(f'{name} among {get_world_size()} ranks needs distributed.session() or init() first')
    if _watch is not None:
        _watch.calls += 1
        _watch.call = name


# ---------------------------------------------------------------------------------------------- ranks that fail or hang


class _Sign(NamedTuple):
    """What a rank publishes: its heartbeat, collectives entered, and why it ended, if it did."""

    beat: int
    calls: int
    failure: str


class _Watch:
    """The heartbeat thread: publishes this rank's progress, and ends this rank when it waits in vain."""

    def __init__(self, store: 'dist.Store', rank: int, world_size: int, timeout_s: float):
        self.store, self.rank, self.world_size, self.timeout_s = store, rank, world_size, timeout_s
        self.beat = self.calls = 0
        self.call = ''
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, name='ddn-watch', daemon=True)

    def publish(self, failure: str = '') -> None:
        self.beat += 1
        self.store.set(str(self.rank), json.dumps([self.beat, self.calls, failure]))

    def peers(self) -> list[_Sign]:
        """The last sign of every rank; RuntimeError where one never gave any within the timeout."""
        return [_Sign(*json.loads(s)) for s in self.store.multi_get([str(r) for r in range(self.world_size)])]

    def run(self) -> None:
        heard = [(0, time.monotonic())] * self.world_size  # last beat of each rank, and when it came
        entered = (0, time.monotonic())  # the last collective of this rank, and when it was first seen
        while not self.stopping.wait(INTERVAL):
            try:
                self.publish()
                signs = self.peers()
            except RuntimeError as e:
                if not self.stopping.is_set():
                    _say(f'the rendezvous store does not answer, so the machine of rank 0 is gone ({_one_line(e)})')
                    _end()
                return
            now = time.monotonic()
            heard = [h if h[0] == s.beat else (s.beat, now) for h, s in zip(heard, signs, strict=True)]
            entered = entered if entered[0] == self.calls else (self.calls, now)
            reason = self.why_end(signs, [now - t for _, t in heard], now - entered[1])
            if reason and not self.stopping.is_set():
                _say(reason)
                if not any(s.failure for s in signs):  # the first to end lets the others say where they were
                    with contextlib.suppress(RuntimeError):
                        self.publish(reason)
                    time.sleep(2.5 * INTERVAL)
                _end()

    def why_end(self, signs: list[_Sign], silent_s: list[float], waited_s: float) -> str:
        """The reason to end this rank, or ''."""
        failed = [r for r, s in enumerate(signs) if s.failure and r != self.rank]
        if failed:
            return f'{_ranks(failed[:1])} ended first ({signs[failed[0]].failure}); this rank was at {_where()}'
        silent = [r for r, seconds in enumerate(silent_s) if seconds >= self.timeout_s and r != self.rank]
        if silent:
            return f'{_ranks(silent)} had no heartbeat for {self.timeout_s:g} s: dead, stopped or cut off'
        late = [r for r, s in enumerate(signs) if s.calls < self.calls]
        if late and waited_s >= self.timeout_s:
            return f'{_ranks(late)} blocked others for {self.timeout_s:g} s at collective {self.calls} ({self.call})'
        return ''


def _fail(error: BaseException) -> None:
    """End this process because of ``error``, or of the rank whose end has caused it."""
    culprit = ''
    if _watch is not None and isinstance(error, RuntimeError):
        with contextlib.suppress(RuntimeError):  # the store may be gone too
            culprit = _culprit()
    place = _place(traceback.extract_tb(error.__traceback__))
    reason = redacted(f'{culprit}; this rank was at {place}' if culprit else f'{_one_line(error)} [{place}]')
    if not culprit and not isinstance(error, (ValueError, OSError, SystemExit, KeyboardInterrupt)):
        traceback.print_exception(error)
    _say(reason)
    if _watch is not None:
        _watch.stopping.set()
        with contextlib.suppress(RuntimeError):
            _watch.publish(reason)
    _end()


def _culprit() -> str:
    """Which rank ended before this one, if any: it published that, or its heartbeat has stopped."""
    before = _watch.peers()
    said = [r for r, s in enumerate(before) if s.failure and r != _watch.rank]
    if said:
        return f'{_ranks(said[:1])} ended first ({before[said[0]].failure})'
    time.sleep(3 * INTERVAL)
    after = _watch.peers()
    dead = [r for r in range(len(after)) if after[r].beat == before[r].beat and r != _watch.rank]
    return f'{_ranks(dead)} died' if dead else ''


def _say(reason: str) -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        line = f'rank {get_rank()} of {get_world_size()} on {socket.gethostname()} ends the run: {reason}\n'
        sys.stderr.write(line)  # in one piece, so that ranks do not mix
        sys.stderr.flush()


def _end() -> None:
    """Exit at once: destructors of a process group can wait for ranks that will not come."""
    os._exit(1)


def _where() -> str:
    """What the main thread of this process is doing."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    return 'its end' if frame is None else _place(traceback.extract_stack(frame))


def _place(stack: traceback.StackSummary) -> str:
    """File, line and function of the innermost frame that is not a library's or this file's."""
    own = [f for f in stack if 'site-packages' not in f.filename and f.filename not in (__file__, contextlib.__file__)]
    last = (own or stack)[-1]
    return f'{os.path.basename(last.filename)}:{last.lineno} ({last.name})'


def _one_line(error: BaseException) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:300]


def _ranks(ranks: list[int]) -> str:
    return f'rank{"s" * (len(ranks) > 1)} {", ".join(map(str, ranks))}'


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _env(name: str, default: int) -> int:
    value = os.environ.get(name)
    if value is None:
        return default
    try:
        return int(value)
    except ValueError:
        raise ValueError(f'the environment variable {name} is {value!r}, not a number') from None
