"""Files written whole or not at all, logs, and texts for messages."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO

CHUNK = 1 << 16  # bytes read at once

# A URL in a text. The user may hold a password with / or @ in it; a number after : is a port. Quotes and full stops
# behind a URL are not of its query.
_URL = re.compile(
    r'(?P<start>\b[a-z][a-z0-9+.-]{1,15}:/{1,3})'
    r'(?P<user>(?!\[)[^\s/?#:@]*:(?!\d{1,5}([/?#\s]|$))\S*@|[^\s/?#]*@)?'
    r'(?P<rest>[^\s?#"<>]*)'
    r'(?P<query>[?#][^\s"<>]*?(?=[\'),.;:\]]*([\s"<>]|$)))?',
    re.IGNORECASE,
)


# ---------------------------------------------------------------------------------------------------------------- words


def format_time(seconds: float) -> str:
    """Seconds in words: ``7s``, ``5m 06s``, ``2h 03m 04s``, ``1d 02h 03m``."""
    total = max(0, round(seconds))
    minutes, s = divmod(total, 60)
    hours, m = divmod(minutes, 60)
    d, h = divmod(hours, 24)
    if d:
        return f'{d}d {h:02d}h {m:02d}m'
    if h:
        return f'{h}h {m:02d}m {s:02d}s'
    return f'{m}m {s:02d}s' if m else f'{s}s'


def redacted(value: Any) -> Any:
    """A text, or all texts of nested dicts, lists and tuples, without the secrets of URLs: ``user:password@`` and every
    value of a query become ``***``.

    Apply it to everything that is printed, raised or stored. The file that a URL names stays readable.
    """
    if isinstance(value, dict):
        return {redacted(key): redacted(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [redacted(entry) for entry in value]
    if isinstance(value, tuple):
        return tuple(map(redacted, value))
    if not isinstance(value, str):
        return value
    return _URL.sub(lambda url: url['start'] + '***@' * bool(url['user']) + url['rest'] + _hidden(url['query']), value)


def _hidden(query: str | None) -> str:
    """``?token=abc&raw`` as ``?token=***&***``; a fragment goes with the last value."""
    if not query:
        return ''
    names = [part.partition('=') for part in query[1:].split('&')]
    return query[0] + '&'.join(f'{name}=***' if equals else '***' for name, equals, _ in names)


def format_bytes(count: float) -> str:
    """Bytes in the largest unit in which they are at least 1: ``512 B``, ``1.5 KiB``, ``2.0 GiB``."""
    for unit in ('B', 'KiB', 'MiB', 'GiB'):
        if count < 1024:
            return f'{count:.0f} B' if unit == 'B' else f'{count:.1f} {unit}'
        count /= 1024
    return f'{count:.1f} TiB'


# ----------------------------------------------------------------------------------------------------------------- logs


class _Tee:
    """A text stream that also writes into a log file; into that alone once the stream cannot be written any more."""

    def __init__(self, stream: TextIO | None, name: str, logger: 'Logger'):
        self._stream = stream  # None where the process was started without: ``>&-``
        self._name = name
        self._logger = logger
        self._gone = stream is None

    def write(self, text: str) -> int:
        shown = redacted(text)
        self._logger._log(shown)
        self._try(lambda: self._stream.write(_encodable(shown, self._stream)))
        return len(text)

    def flush(self) -> None:
        self._try(lambda: self._stream.flush())

    def isatty(self) -> bool:
        with contextlib.suppress(ValueError):  # it was closed
            return not self._gone and self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, action: Callable[[], Any]) -> None:
        """Run the action; if the pipe, terminal or file is closed, or its disk is full, give the stream up."""
        if self._gone:
            return
        try:
            action()
        except BlockingIOError:
            pass  # a slow reader of a non-blocking pipe misses this text
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self._gone = True
            discard_output(self._stream)
            self._logger._log(f'{self._name} is given up ({_reason(error)}); the output continues in this file\n', True)


def _encodable(text: str, stream: TextIO) -> str:
    """The text with escapes for characters that the stream's encoding does not have."""
    encoding = getattr(stream, 'encoding', None) or 'utf-8'
    return text.encode(encoding, 'backslashreplace').decode(encoding)


def discard_output(stream: TextIO) -> None:
    """Let what the stream still buffers go nowhere, so that Python's flush at exit cannot fail."""
    with contextlib.suppress(OSError, ValueError):
        number, nowhere = stream.fileno(), os.open(os.devnull, os.O_WRONLY)
        if nowhere != number:  # where the stream's number was closed, it is free and the new file may get it
            os.dup2(nowhere, number)
            os.close(nowhere)


def _reason(error: Exception) -> str:
    return getattr(error, 'strerror', None) or str(error)


class Logger:
    """Copies everything printed (stdout and stderr) into the file ``path`` while it is open, flushed at every write.

        with Logger('runs/00000/log.txt'):
            print('seen and kept')

    Appends by default, so a resumed run continues its log. An exception that leaves the block is written into the log
    with its traceback. A log that can no longer be written (full disk) and an output whose reader has gone (``| head``,
    a closed terminal) do not end the run: each is given up with one line in the other.
    """

    def __init__(self, path: str | os.PathLike, mode: str = 'a'):
        self.path = Path(path)
        self.mode = mode
        self._file: TextIO | None = None
        self._line_ended = True

    def __enter__(self) -> 'Logger':
        self._file = open(self.path, self.mode, encoding='utf-8', errors='backslashreplace')
        self._saved = sys.stdout, sys.stderr
        self._tees = _Tee(sys.stdout, 'stdout', self), _Tee(sys.stderr, 'stderr', self)
        sys.stdout, sys.stderr = self._tees
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is not None and not isinstance(error, SystemExit):
            self._log(redacted(''.join(traceback.format_exception(kind, error, trace))))
        for tee in self._tees:
            tee.flush()  # here, where a reader that has gone ends nothing; at exit it would change the exit code
        # Streams that were replaced in the meantime stay as they are.
        if sys.stdout is self._tees[0]:
            sys.stdout = self._saved[0]
        if sys.stderr is self._tees[1]:
            sys.stderr = self._saved[1]
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _log(self, text: str, own_line: bool = False) -> None:
        if self._file is None:
            return
        try:
            self._file.write('\n' * (own_line and not self._line_ended) + text)
            self._file.flush()
            self._line_ended = text.endswith('\n') if text else self._line_ended
        except OSError as error:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                file.close()
            self._tees[1].write(f'{self.path}: the log is given up: {error.strerror}\n')


# ---------------------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = 'wb', sync: bool = True) -> Iterator[IO]:
    """A file that appears at ``path`` whole or not at all.

    Yields a file opened under a temporary name in the same directory (``.NAME.XXXXXXXX.tmp``). When the block ends well
    it is flushed to the disk and renamed over ``path``; when an exception leaves the block it is removed, and the file
    that was at ``path`` before remains. A ``kill -9`` leaves the temporary file: see ``remove_unfinished``.

    Args:
        path: where the file should be; a missing directory is created. Where it is a link, the file that it leads to is
            written; a pipe or device is not replaced.
        mode: 'wb' (the default) or 'w' (UTF-8 text); both can be read back ('+' is added).
        sync: wait until it is on the disk. Without, a power cut may lose it: for files that are many and easily remade.

    Raises:
        OSError: the disk is full (``errno.ENOSPC``), or permission is missing; in one line with the path.
    """
    path = Path(path)
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    if mode not in ('wb', 'w'):
        raise ValueError(f"atomic_write writes whole files: mode is 'wb' or 'w', not {mode!r}")
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, f'cannot write {path}: it is a folder, pipe or device, not a file')
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Mode 'x' rather than tempfile: the file gets the permissions that the user's umask gives to any new file.
        with open(temporary, mode.replace('w', 'x') + '+', encoding=None if 'b' in mode else 'utf-8') as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if sync:
            _sync_directory(path.parent)
    except OSError as error:
        _unlink(temporary)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, f'disk full: could not write {path}; the unfinished file is removed') from error
        if error.filename == str(temporary) or error.errno == errno.EFBIG:  # name the file that the user knows
            raise type(error)(error.errno, f'cannot write {path}: {os.strerror(error.errno)}') from error
        raise
    except BaseException:
        _unlink(temporary)
        raise


def require_writable(option: str, path: str | os.PathLike, others: Iterable[str] = ()) -> None:
    """Check before long work that its result can be written to ``path``, without creating anything: the last existing
    folder on the way is tried.

    Args:
        option: what named the path, for the error: ``--dest``.
        others: files that will be written too, and that ``path`` must not replace.

    Raises:
        OSError: it cannot be written; in one line with option and path.
        ValueError: it is one of ``others``.
    """
    if _URL.match(str(path)):
        raise ValueError(f'{option}={path} is a URL: give a place on this machine')
    path = Path(path)
    try:
        there = next(folder for folder in path.absolute().parents if folder.exists())
        tempfile.TemporaryFile(dir=there).close()
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, 'a folder, pipe or device, not a file', str(path))
    except OSError as error:
        reason = f'{error.filename}: {error.strerror}'
        raise OSError(f'{option}={path} cannot be written ({reason}): give another place') from error
    at = os.path.realpath(path)
    if any(os.path.basename(other) == path.name and os.path.realpath(other) == at for other in others):
        raise ValueError(f'{option}={path} would replace another file of this command: give it another name')


def file_sha256(file: str | os.PathLike | BinaryIO) -> str:
    """SHA-256, in hex, of the bytes of the file at a path, or of what is left to read of an open one."""
    digest = hashlib.sha256()
    with contextlib.nullcontext(file) if hasattr(file, 'read') else open(file, 'rb') as opened:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remove_unfinished(directory: str | os.PathLike) -> list[Path]:
    """Remove the temporary files that ``atomic_write`` left in ``directory`` at a ``kill -9`` or a power cut, and
    return the paths. Call it only while no other process writes there.
    """
    left = [p for p in Path(directory).iterdir() if re.fullmatch(r'\..+\.[0-9a-f]{8}\.tmp', p.name) and p.is_file()]
    for path in left:
        _unlink(path)
    return left


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut, where the system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
