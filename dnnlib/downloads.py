"""Files from the web, in a cache.

Nothing happens at import; requests and tqdm are imported where they are needed.
"""

import hashlib
import os
import re
import tempfile
import time
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlparse

from .util import atomic_write, file_sha256

BIG_DOWNLOAD = 8 << 20  # bytes from which a download shows a progress bar
CHUNK = 1 << 16  # bytes read at once; a download that breaks off loses at most that much


class DownloadError(OSError):
    """A URL could not be fetched, or what came is not what was asked for. The message says what to do instead."""



def is_url(path_or_url: str | os.PathLike) -> bool:
    """True for `http://` and `https://`; everything else is a path."""
    return str(path_or_url).lower().startswith(('http://', 'https://'))


def cache_path(url: str) -> Path:
    """Where the download of `url` is kept: in $DNNLIB_CACHE_DIR, else in ~/.cache/ddn; its name stays readable."""
    directory = os.environ.get('DNNLIB_CACHE_DIR') or Path.home() / '.cache' / 'ddn'
    name = re.sub(r'[^A-Za-z0-9._-]', '_', unquote(urlparse(url).path).rsplit('/', 1)[-1])[-100:] or 'download'
    return Path(directory) / f'{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}'


def local_path(
    path_or_url: str | os.PathLike, sha256: str | None = None, retries: int = 4, backoff: float = 1.0
) -> Path:
    """A path on this machine for a path (itself, a folder too) or a URL (its download in the cache).

    Args:
        path_or_url: a path, or an http(s) URL.
        sha256: hex digest that the file must have. A cached download without it is fetched again.
        retries: how often a failed download is tried again; it goes on where it stopped if the server lets it.
        backoff: seconds before the first new try, doubled each time, at most 30.

    Raises:
        FileNotFoundError: no such path.
        DownloadError: URL that cannot be fetched (the message says where a copy may be put by hand).
        OSError: the digest is another one, disk full, cache not writable.
    """
    if not is_url(path_or_url):
        path = Path(path_or_url)
        if not path.exists():
            raise FileNotFoundError(f'no such file or folder: {path}')
        if sha256 is not None:
            _require_digest(path, sha256, str(path))
        return path
    url = str(path_or_url)
    path = cache_path(url)
    if path.is_file() and (sha256 is None or file_sha256(path) == sha256.lower()):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several ranks may do this at once: each fetches its own temporary file, the last rename wins, all are the same.
    with atomic_write(path) as file:
        _download(url, file, retries, backoff, hint=f'put the file at {path}')
        if sha256 is not None:
            file.flush()
            _require_digest(Path(file.name), sha256, url)
    return path


def open_url(
    path_or_url: str | os.PathLike,
    cache: bool = True,
    sha256: str | None = None,
    retries: int = 4,
    backoff: float = 1.0,
) -> BinaryIO:
    """A binary file, open for reading, from a path or a URL; close it. Errors and arguments as in `local_path`.

    With `cache=False` a download goes to a temporary file that is gone when it is closed.
    """
    if cache or not is_url(path_or_url):
        path = local_path(path_or_url, sha256, retries, backoff)
        if path.is_dir():
            raise IsADirectoryError(f'{path} is a folder, a file is needed')
        return open(path, 'rb')
    file = tempfile.NamedTemporaryFile(mode='w+b')
    try:
        _download(str(path_or_url), file, retries, backoff, hint='download it by hand')
        if sha256 is not None:
            file.flush()
            _require_digest(Path(file.name), sha256, str(path_or_url))
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _require_digest(path: Path, sha256: str, name: str) -> None:
    found = file_sha256(path)
    if found != sha256.lower():
        kind = DownloadError if is_url(name) else OSError
        raise kind(f'{name}: not the file that was expected: sha256 {found}, should be {sha256.lower()}')


def _download(url: str, file: BinaryIO, retries: int, backoff: float, hint: str) -> None:
    """Fetch `url` into the open file, trying again after what may pass (no connection, timeout, HTTP 408, 429, 5xx)."""
    import requests

    advice = f'If this machine is offline, {hint}, or give a local path instead.'
    etag, reason = None, ''
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(min(backoff * 2 ** (attempt - 1), 30))
        headers = {'Accept-Encoding': 'identity'}
        if etag and file.tell():
            headers |= {'Range': f'bytes={file.tell()}-', 'If-Range': etag}
        try:
            with requests.get(url, headers=headers, stream=True, timeout=(10, 60)) as reply:
                status = reply.status_code
                if status in (408, 429) or status >= 500:
                    reason = f'HTTP {status} {reply.reason}'
                    continue
                if status >= 400 and status != 416:
                    raise DownloadError(f'cannot download {url}: HTTP {status} {reply.reason}. {advice}')
                if status != 206:  # the whole file (or a range refused): from the start
                    file.seek(0)
                    file.truncate()
                if status == 416:
                    etag, reason = None, 'the server refused to go on where the connection broke'
                    continue
                etag = reply.headers.get('ETag')
                if etag and etag.startswith('W/'):
                    etag = None  # a weak tag does not promise the same bytes
                reason = _copy_reply(reply, file)
                if not reason:
                    return
        except requests.RequestException as error:
            reason = _why(error)
    raise DownloadError(f'cannot download {url}: {reason} ({retries + 1} tries). {advice}')


def _copy_reply(reply, file: BinaryIO) -> str:
    """Append the reply's body to the file. Returns what is wrong with it, or nothing."""
    from tqdm import tqdm

    length = reply.headers.get('Content-Length')
    length = int(length) if length and length.isdigit() and 'Content-Encoding' not in reply.headers else None
    start = file.tell()
    name = urlparse(reply.url).path.rsplit('/', 1)[-1]
    big = length is not None and length >= BIG_DOWNLOAD
    with tqdm(total=length, desc=name, unit='B', unit_scale=True, disable=not big, leave=False) as bar:
        for chunk in reply.iter_content(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    got = file.tell() - start
    return '' if length in (None, got) else f'connection closed after {got} of {length} bytes'


def _why(error: Exception) -> str:
    """The innermost cause of a requests error, in few words."""
    import requests

    if isinstance(error, requests.Timeout):
        return 'no answer in time'
    text = str(error)
    known = ('Name or service not known', 'Temporary failure in name resolution', 'Connection refused',
             'Network is unreachable', 'Failed to resolve', 'CERTIFICATE_VERIFY_FAILED', 'IncompleteRead')  # fmt: skip
    return next((k for k in known if k in text), text.splitlines()[0][:160] if text else type(error).__name__)
