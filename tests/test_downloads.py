"""dnnlib.downloads: from a server on this machine."""

import hashlib
import http.server
import os
import random
import threading

import pytest

import dnnlib
from dnnlib.downloads import DownloadError, cache_path

CONTENT = random.Random(0).randbytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """/ok.bin serves; /flaky fails twice; /cut breaks off half-way once, and lets go on; /missing is not there."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get('Range')))
        tries = sum(path == self.path for path, _ in server.requests)
        if self.path == '/missing':
            return self.send_error(404)
        if self.path == '/flaky' and tries <= 2:
            return self.send_error(503)
        if self.path == '/dead':
            return self.send_error(500)
        start = 0
        if wanted := self.headers.get('Range'):
            start = int(wanted.removeprefix('bytes=').removesuffix('-'))
            assert self.headers['If-Range'] == '"tag"'
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(CONTENT) - start))
        self.send_header('ETag', '"tag"' if self.path == '/cut' else 'W/"weak"')
        self.end_headers()
        stop = 100_000 if self.path in ('/cut', '/cut-weak') and tries == 1 else None
        self.wfile.write(CONTENT[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.requests = []
        server.url = f'http://127.0.0.1:{server.server_address[1]}'
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def cached(tmp_path) -> list[str]:
    return os.listdir(tmp_path / 'cache') if (tmp_path / 'cache').exists() else []


def test_download_once_then_from_the_cache(server, tmp_path):
    with dnnlib.open_url(f'{server.url}/ok.bin', sha256=DIGEST.upper()) as file:
        assert file.read() == CONTENT
    path = dnnlib.local_path(f'{server.url}/ok.bin', sha256=DIGEST)
    assert path.parent == tmp_path / 'cache' and path.name.endswith('-ok.bin')
    assert len(server.requests) == 1


def test_download_without_cache_leaves_nothing(server, tmp_path):
    with dnnlib.open_url(f'{server.url}/ok.bin', cache=False, sha256=DIGEST) as file:
        assert file.read() == CONTENT
    assert cached(tmp_path) == []


def test_a_damaged_cache_is_fetched_again(server):
    path = dnnlib.local_path(f'{server.url}/ok.bin')
    path.write_bytes(b'damaged')
    assert dnnlib.local_path(f'{server.url}/ok.bin', sha256=DIGEST).read_bytes() == CONTENT


def test_download_tries_again(server):
    assert dnnlib.local_path(f'{server.url}/flaky', backoff=0.01).read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_download_goes_on_where_it_broke_off(server):
    assert dnnlib.local_path(f'{server.url}/cut', backoff=0.01, sha256=DIGEST).read_bytes() == CONTENT
    assert server.requests == [('/cut', None), ('/cut', 'bytes=65536-')]


def test_download_starts_over_where_going_on_is_not_safe(server):
    assert dnnlib.local_path(f'{server.url}/cut-weak', backoff=0.01, sha256=DIGEST).read_bytes() == CONTENT
    assert server.requests == [('/cut-weak', None)] * 2


def test_download_of_other_content_is_refused(server, tmp_path):
    with pytest.raises(DownloadError, match=f'not the file that was expected: sha256 {DIGEST}, should be 00'):
        dnnlib.local_path(f'{server.url}/ok.bin', sha256='00' * 32)
    assert cached(tmp_path) == []


def test_download_that_is_not_there_is_not_tried_again(server, tmp_path):
    with pytest.raises(DownloadError, match='HTTP 404 Not Found. .*put the file at .*-missing'):
        dnnlib.local_path(f'{server.url}/missing')
    assert len(server.requests) == 1 and cached(tmp_path) == []


def test_download_gives_up(server, tmp_path):
    with pytest.raises(DownloadError, match=r'HTTP 500 .*\(3 tries\)'):
        dnnlib.open_url(f'{server.url}/dead', cache=False, retries=2, backoff=0.01)
    assert len(server.requests) == 3 and cached(tmp_path) == []


def test_offline_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as closed:
        url = f'http://127.0.0.1:{closed.server_address[1]}/net.bin'
    with pytest.raises(DownloadError, match='Connection refused .* offline, put the file at .*-net.bin,') as error:
        dnnlib.local_path(url, retries=1, backoff=0.01)
    assert '\n' not in str(error.value)
    cache_path(url).write_bytes(b'by hand')
    assert dnnlib.local_path(url).read_bytes() == b'by hand'


def test_local_files_need_no_cache(tmp_path):
    path = tmp_path / 'a.bin'
    path.write_bytes(CONTENT)
    with dnnlib.open_url(path, sha256=DIGEST) as file:
        assert file.read() == CONTENT
    assert dnnlib.local_path(str(path)) == path and dnnlib.local_path(tmp_path) == tmp_path
    with pytest.raises(OSError, match='a.bin: not the file that was expected'):
        dnnlib.local_path(path, sha256='00' * 32)
    with pytest.raises(FileNotFoundError, match='no such file or folder: .*nothing'):
        dnnlib.open_url(tmp_path / 'nothing')
    with pytest.raises(IsADirectoryError, match='is a folder'):
        dnnlib.open_url(tmp_path)
