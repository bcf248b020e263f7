"""Scripts as processes without the seconds that importing torch takes: one process has imported it, and forks.

``forks.run`` and ``forks.Process`` stand for those of ``subprocess``. For what happens while torch is loaded, start a
real process.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PIPE, STDOUT, CLOSED = 'pipe', 'stdout', 'closed'  # what a stream may be, besides a file


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Process:
    """A script of the checkout, running.

    Args:
        args: file of the script, or '-m' and a module; then its arguments.
        stdout, stderr: a file, PIPE, STDOUT (stderr only) or CLOSED; None for nowhere.
        env: changes of the environment; None takes a variable away.
        files: most open files (``ulimit -n``).
        cwd: the folder that it runs in.
    """

    def __init__(self, args, stdout=None, stderr=None, env=None, files=None, cwd=ROOT):
        self.returncode: int | None = None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        streams, opened, given = {'stdin': None, 'stdout': stdout, 'stderr': stderr}, [], []
        for name, stream in streams.items():
            if stream == PIPE:
                read, write = os.pipe()
                setattr(self, name, open(read, encoding='utf-8'))
                opened.append(write)
                given.append(write)
            elif stream == STDOUT:
                given.append(given[1])
            elif hasattr(stream, 'fileno'):
                given.append(stream.fileno())
            else:
                opened.append(os.open(os.devnull, os.O_RDWR))
                given.append(opened[-1])
        self._reply, reply = os.pipe()
        closed = [i for i, stream in enumerate(streams.values()) if stream == CLOSED]
        env = {name: value for name, value in {**os.environ, **(env or {})}.items() if value is not None}
        request = {'args': [str(a) for a in args], 'env': env, 'files': files, 'cwd': str(cwd), 'closed': closed}
        data = json.dumps(request).encode() + b'\n'
        _server().sendall(data[socket.send_fds(_server(), [data], [*given, reply]) :])
        for handle in [*opened, reply]:
            os.close(handle)
        self.pid = int(self._line(60))

    def __enter__(self) -> 'Process':
        return self

    def __exit__(self, *exc) -> None:
        self.wait()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        if self.returncode is None and select.select([self._reply], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        if self.returncode is None:
            self.returncode = int(self._line(timeout))
            os.close(self._reply)
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """All that is left to read of stdout, then of stderr."""
        texts = [s.read() if s is not None and not s.closed else '' for s in (self.stdout, self.stderr)]
        self.wait(timeout)
        return texts[0], texts[1]

    def _line(self, timeout: float) -> str:
        if not select.select([self._reply], [], [], timeout)[0]:
            with contextlib.suppress(AttributeError, ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            raise AssertionError(f'no answer in {timeout} s')
        return b''.join(iter(lambda: os.read(self._reply, 1), b'\n')).decode()


def run(*args, **kwargs) -> Done:
    """Run a script to its end. Arguments as for ``Process``; streams are pipes by default."""
    with Process(args, **{'stdout': PIPE, 'stderr': PIPE, **kwargs}) as process:
        stdout, stderr = process.communicate()
    return Done(process.returncode, stdout, stderr)


# ----------------------------------------------------------------------------------------------------------- the server


@functools.cache
def _server() -> socket.socket:
    """A connection to the process that forks; it ends with this one, when the connection does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    command = [sys.executable, '-W', 'ignore', __file__, str(theirs.fileno())]
    kwargs = {'env': {**os.environ, 'PYTHONPATH': str(ROOT)}, 'stdin': subprocess.DEVNULL, 'start_new_session': True}
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], **kwargs)
    theirs.close()
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def _serve(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the supervisors
    while True:
        data, handles, *_ = socket.recv_fds(connection, 1 << 16, 4)
        if not data:
            return
        while not data.endswith(b'\n'):
            data += connection.recv(1 << 16)
        if os.fork() == 0:
            connection.close()
            _supervise(json.loads(data), handles)
            os._exit(0)
        for handle in handles:
            os.close(handle)


def _supervise(request: dict, handles: list[int]) -> None:
    """Fork the script, and report its number and its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, reply = handles
    pid = os.fork()
    if pid == 0:
        os.close(reply)
        _script(request, streams)
        sys.exit()
    for handle in streams:
        os.close(handle)
    os.write(reply, b'%d\n' % pid)
    os.write(reply, b'%d\n' % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _script(request: dict, streams: list[int]) -> None:
    """Run the script in this process, which then ends as any interpreter does."""
    os.setsid()
    for i, handle in enumerate(streams):
        os.dup2(handle, i)
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(request['env'])
    os.chdir(request['cwd'])
    if request['files']:
        resource.setrlimit(resource.RLIMIT_NOFILE, (request['files'],) * 2)
    for i in request['closed']:
        os.close(i)
        setattr(sys, ('stdin', 'stdout', 'stderr')[i], None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    module = request['args'][0] == '-m'
    sys.argv = request['args'][module:]
    (runpy.run_module if module else runpy.run_path)(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    # The first two are imported by Adam and DistributedDataParallel, and take seconds.
    for name in ('torch._dynamo', 'torch.distributed.nn.functional', 'fid', 'generate', 'latents', 'train'):
        importlib.import_module(name)
    _serve(socket.socket(fileno=int(sys.argv[1])))
