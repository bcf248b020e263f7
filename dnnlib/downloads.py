"""Files from the web, in a cache.

A download is checked before it gets its name in the cache: it is complete, is not a web page, keeps within bounds of
time and size.

Nothing happens at import; requests and tqdm are imported where they are needed.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from .util import atomic_write, format_bytes, redacted

BIG_DOWNLOAD = 8 << 20  # bytes from which a download shows a progress bar
CHUNK = 1 << 16  # bytes read at once; a download that breaks off loses at most that much
PAGE = re.compile(
    rb'(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)*<(!doctype|html|head|body|title|meta|script|\?xml|error)\b', re.I | re.S
)


class DownloadError(OSError):
    """A URL cannot be fetched, or its content is not usable. The message says what to do instead."""


class Limits(NamedTuple):
    """How much a download may take.

    retries: attempts after a failed one; each continues where the last one stopped if the server supports that.
    backoff: seconds before the first retry, doubled each time, at most 30.
    stall: seconds within which the server must answer, and within which each 64 KiB must arrive.
    seconds: for the whole download, retries included.
    max_bytes: size of the file.
    """

    retries: int = 4
    backoff: float = 0.5
    stall: float = 60.0
    seconds: float = 24 * 3600.0
    max_bytes: int = 256 << 30


DEFAULT_LIMITS = Limits()


def is_url(path_or_url: str | os.PathLike) -> bool:
    """True for ``http://`` and ``https://``; everything else is a path."""
    return str(path_or_url).lower().startswith(('http://', 'https://'))


def cache_path(url: str) -> Path:
    """Where the download of ``url`` is kept: in $DNNLIB_CACHE_DIR, else in ~/.cache/ddn. Its name stays readable.

    The file's name does not depend on user and password. ValueError for a malformed URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError(f'{redacted(url)} is not a URL: {error}') from None
    url = parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl() if '@' in parts.netloc else url
    name = re.sub(r'[^A-Za-z0-9._-]', '_', unquote(parts.path).rsplit('/', 1)[-1])[-100:] or 'download'
    return _cache_dir() / f'{hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()[:16]}-{name}'


def _cache_dir() -> Path:
    return Path(os.environ.get('DNNLIB_CACHE_DIR') or os.path.expanduser('~/.cache/ddn'))


def local_path(path_or_url: str | os.PathLike, limits: Limits = DEFAULT_LIMITS) -> Path:
    """The local file or folder of a path (itself) or of an http(s) URL (its download in the cache).

    Args:
        path_or_url: a path, or an http(s) URL.
        limits: of a download.

    Raises:
        FileNotFoundError: there is no such path.
        DownloadError: the URL cannot be fetched; the message says where to put a copy by hand.
        OSError: the disk is full, or the cache cannot be written.
    """
    if not is_url(path_or_url):
        path = Path(path_or_url)
        if not str(path_or_url):
            raise FileNotFoundError('the name of a file or folder is empty')
        if not path.exists():
            raise FileNotFoundError(f'no such file or folder: {redacted(str(path_or_url))}')
        return path
    url = str(path_or_url)
    path = cache_path(url)
    if _is_cached(path):
        with open(path, 'rb', opener=_open_no_link) as file:
            if not _complaint(file, path.name):
                return path
    # Several ranks may do this at once, each with a temporary file of its own; all are the same, the last rename wins.
    with atomic_write(path) as file:
        _Download(url, file, limits, path).run()
    return path


def lasting_path(path_or_url: str | os.PathLike) -> str:
    """A path or URL as files should store it, valid from any folder and without secrets: for a URL with secrets, the
    path of its download in the cache."""
    text = str(path_or_url)
    if not is_url(text):
        return os.path.abspath(text)
    return text if redacted(text) == text else str(local_path(text))


def error_line(error: BaseException) -> str:
    """An error in one line for the user: without the secrets of URLs, and with the cached files of the URLs in it, so
    that a bad download can be removed."""
    text = ' '.join(str(error).split())
    files = re.findall(re.escape(f'{_cache_dir()}{os.sep}') + r'[0-9a-f]{16}-[\w.-]*\w', text)
    for url in re.findall(r'https?://\S+', text, re.IGNORECASE):
        with contextlib.suppress(ValueError):
            files.append(str(cache_path(url.rstrip('\'":,.;)'))))
    cached = dict.fromkeys(file for file in files if os.path.isfile(file))
    more = ''.join(f' (from the download cache: delete {file} to download it again)' for file in cached)
    return redacted(text) + more


# ---------------------------------------------------------------------------------------------------------------- cache


def _is_cached(path: Path) -> bool:
    """Whether there is a file at ``path``. DownloadError for a folder, and for a symbolic link: it is not followed."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        kind = 'a symbolic link, which is not followed' if stat.S_ISLNK(mode) else 'not a file'
        raise DownloadError(f'{path} in the download cache is {kind}: remove it')
    return True


def _open_no_link(path: str | os.PathLike, flags: int) -> int:
    return os.open(path, flags | getattr(os, 'O_NOFOLLOW', 0))


def _complaint(file: BinaryIO, name: str) -> str:
    """What is wrong with a download, by its contents and the ending of its name; empty if it may be right."""
    file.seek(0)
    head = file.read(4096)
    if not head:
        return 'the server sent an empty file'
    if PAGE.match(head):
        return 'the server sent a web page, not a file'
    kind = os.path.splitext(name)[1].lower()
    if kind in ('.zip', '.npz') and not zipfile.is_zipfile(file) or kind == '.safetensors' and not _is_whole(file):
        return f'the server sent another file, or a part of one: not a whole {kind}'
    return ''


def _is_whole(file: BinaryIO) -> bool:
    """Whether a safetensors file is as long as its header says."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        length = int.from_bytes(file.read(8), 'little')
        header = json.loads(file.read(length)) if length < min(size, 100 << 20) else None
        ends = [entry['data_offsets'][1] for name, entry in header.items() if name != '__metadata__']
        return size == 8 + length + max(ends, default=0)
    except Exception:  # json and what it returns: a damaged header can be anything
        return False


# ------------------------------------------------------------------------------------------------------------- download


class _Download:
    """Fetches one URL into one open file."""

    def __init__(self, url: str, file: BinaryIO, limits: Limits, path: Path):
        self.url = url
        self.file = file
        self.limits = limits
        self.path = path  # where a copy can be put by hand
        self.end = time.monotonic() + limits.seconds
        self.etag: str | None = None  # of the remote file, if its rest can be requested
        self.total: int | None = None  # bytes, if known
        self.waiting = False  # a thread is still reading

    def run(self) -> None:
        """Try until the whole file is there and valid. Raises DownloadError."""
        reason = ''
        for attempt in range(self.limits.retries + 1):
            if attempt:
                time.sleep(max(0, min(self.limits.backoff * 2 ** (attempt - 1), 30, self._seconds_left())))
            if self._seconds_left() <= 0:
                self._fail(f'not complete after {self.limits.seconds:g} s')
            reason = self._attempt()
            if not reason:
                return self._check()
        self._fail(f'{reason} ({self.limits.retries + 1} tries)')

    def _seconds_left(self) -> float:
        return self.end - time.monotonic()

    def _fail(self, reason: str) -> None:
        advice = f'If this machine is offline, put the file at {self.path}, or give a local path instead.'
        raise DownloadError(f'cannot download {redacted(self.url)}: {reason}. {advice}') from None

    def _check(self) -> None:
        if complaint := _complaint(self.file, cache_path(self.url).name):
            self._fail(complaint)

    def _attempt(self) -> str:
        """Request the file, or the rest of it. Returns why to try again, or '' when it is complete."""
        import requests

        headers = {'Accept-Encoding': 'identity'}
        if self.etag and self.file.tell():
            headers |= {'Range': f'bytes={self.file.tell()}-', 'If-Range': self.etag}
        else:
            self._restart()
        timeout, reply = (10, self.limits.stall), None
        try:
            reply = self._ask(lambda: requests.get(self.url, headers=headers, stream=True, timeout=timeout))
            status = reply.status_code
            if status in (408, 429) or status >= 500:
                return f'HTTP {status} {reply.reason}'
            if status == 416 or (status == 206 and not self._continues(reply)):
                self.etag = None
                return 'the server did not continue where the connection broke'
            if status not in (200, 203, 206):
                self._fail(f'HTTP {status} {reply.reason}')
            if status != 206:
                self._restart(reply)
            for chunk in self._chunks(reply):
                self.file.write(chunk)
                self._require_size(self.file.tell())
            got, wanted = (self.file.tell(), self.total) if self.total else (reply.raw.tell(), _content_length(reply))
            return '' if wanted in (None, got) else f'connection closed after {got} of {wanted} bytes'
        except _NetworkError as error:
            if error.final:
                self._fail(str(error))
            return str(error)
        finally:
            if reply is not None and not self.waiting:
                reply.close()

    def _restart(self, reply=None) -> None:
        """Empty the file, and take its length and ETag from a reply."""
        self.file.seek(0)
        self.file.truncate()
        self.etag = self.total = None
        if reply is not None and 'Content-Encoding' not in reply.headers:
            self.total = _content_length(reply)
            self._require_size(self.total or 0)
            etag = reply.headers.get('ETag', 'W/')
            self.etag = None if etag.startswith('W/') else etag  # a weak one does not promise the same bytes

    def _require_size(self, size: int) -> None:
        if size > self.limits.max_bytes:
            self._fail(f'larger than {format_bytes(self.limits.max_bytes)}')

    def _continues(self, reply) -> bool:
        """Whether a reply of status 206 is the rest of the file."""
        found = re.fullmatch(r'bytes (\d{1,18})-(\d{1,18})/(\d{1,18})', reply.headers.get('Content-Range', '').strip())
        if found is None or 'Content-Encoding' in reply.headers or not self.etag:
            return False
        first, last, total = map(int, found.groups())
        if first != self.file.tell() or last + 1 != total or self.total not in (None, total):
            return False
        self.total = total
        return True

    def _chunks(self, reply) -> Iterator[bytes]:
        from tqdm import tqdm

        name = urlsplit(reply.url).path.rsplit('/', 1)[-1]
        big = (self.total or 0) >= BIG_DOWNLOAD
        chunks = reply.iter_content(CHUNK)
        shown = {'desc': name, 'unit': 'B', 'unit_scale': True, 'disable': not big, 'leave': False}
        with tqdm(total=self.total, initial=self.file.tell(), **shown) as bar:
            while chunk := self._ask(lambda: next(chunks, b'')):
                yield chunk
                bar.update(len(chunk))

    def _ask(self, action: Callable[[], Any]) -> Any:
        """The result of a network action. Raises _NetworkError.

        The action runs in a thread. A socket's timeout restarts with every byte, so a server that sends a byte a minute
        can only be abandoned: its daemon thread stays behind, and the reply is not closed, which would wait for it.
        """
        done: list[tuple[Any, Exception | None]] = []

        def work() -> None:
            try:
                done.append((action(), None))
            except Exception as error:
                done.append((None, error))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self.waiting = True
        thread.join(max(0, min(self.limits.stall, self._seconds_left())))
        if not done:
            raise _NetworkError('the server sends nothing, or too slowly')
        self.waiting = False
        value, error = done[0]
        if error is not None:
            raise _NetworkError(_why(error), isinstance(error, ValueError)) from None  # ValueError: a bad URL
        return value


class _NetworkError(Exception):
    """No reply, or only a part of it. ``final``: trying again is useless."""

    def __init__(self, reason: str, final: bool = False):
        super().__init__(reason)
        self.final = final


def _content_length(reply) -> int | None:
    length = reply.headers.get('Content-Length', '')
    return int(length) if re.fullmatch(r'\d{1,18}', length) else None


def _why(error: Exception) -> str:
    """The cause of an error of requests in a few words, without its own text, which contains the URL."""
    import requests

    if isinstance(error, requests.Timeout):
        return 'no answer in time'
    known = ('Name or service not known', 'Temporary failure in name resolution', 'Connection refused',
             'Network is unreachable', 'Failed to resolve', 'CERTIFICATE_VERIFY_FAILED', 'IncompleteRead')  # fmt: skip
    words = re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', type(error).__name__).lower()  # 'InvalidURL' -> 'invalid url'
    return next((k for k in known if k in str(error)), words)
