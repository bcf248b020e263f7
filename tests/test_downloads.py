"""dnnlib.downloads: from a server on this machine."""

import contextlib
import gzip
import http.server
import io
import os
import random
import subprocess
import sys
import threading
import zipfile

import pytest

import dnnlib
from dnnlib.downloads import DownloadError, Limits, cache_path, error_line

FAST = Limits(backoff=0.01)
CONTENT = random.Random(0).randbytes(300_000)


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
        if (name := self.path[1:].partition('?')[0]) in REPLIES:
            return REPLIES[name](self, tries)
        if wanted := self.headers.get('Range'):
            start = int(wanted.removeprefix('bytes=').removesuffix('-'))
            assert self.headers['If-Range'] == '"tag"'
        self.send_response(206 if start else 200)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}')
        self.send_header('Content-Length', str(len(CONTENT) - start))
        self.send_header('ETag', '"tag"' if self.path == '/cut' else 'W/"weak"')
        self.end_headers()
        stop = 100_000 if self.path in ('/cut', '/cut-weak') and tries == 1 else None
        self.wfile.write(CONTENT[start:stop])

    def reply(self, body: bytes, status: int = 200, **headers: str | int | None) -> None:
        """Headers by their names with _ for -; None leaves Content-Length out."""
        self.send_response(status)
        for name, value in ({'Content_Length': len(body)} | headers).items():
            if value is not None:
                self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        self.wfile.write(body)

    def drip(self, text: bytes) -> None:
        """Send a byte now and then, until the test ends or nobody listens."""
        with contextlib.suppress(OSError):
            for i in range(len(text)):
                if self.server.done.wait(0.02):
                    return
                self.wfile.write(text[i : i + 1])

    def log_message(self, *_):
        pass


def cut_then(**headers):
    """A first reply that breaks off, then a part of the file with the headers."""

    def reply(handler: Handler, tries: int) -> None:
        if tries == 1:
            handler.reply(CONTENT[:100_000], Content_Length=len(CONTENT), ETag='"tag"')
        elif handler.headers.get('Range') is not None:
            handler.reply(CONTENT[65536:], 206, **headers)
        else:
            handler.reply(CONTENT)

    return reply


PAGE = b' <!DOCTYPE HTML PUBLIC "-//IETF//DTD HTML 2.0//EN"><title>Log in</title>'
with io.BytesIO() as _file:
    with zipfile.ZipFile(_file, 'w') as _archive:
        _archive.writestr('a.txt', 'a')
    ZIP = _file.getvalue()
_HEADER = b'{"__metadata__":{"a":"b"},"x":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
TENSORS = len(_HEADER).to_bytes(8, 'little') + _HEADER + b'abc'
REPLIES = {
    'page.zip': lambda h, _: h.reply(PAGE),
    'page-behind-a-comment.zip': lambda h, _: h.reply(b'\xef\xbb\xbf<!-- <a> -->\n<html lang="en">'),
    'error.zip': lambda h, _: h.reply(b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'),
    'moved.zip': lambda h, _: h.reply(b'', 302, Location='/page.zip'),
    'moved-away.zip': lambda h, _: h.reply(b'', 302, Location='/moved-away.zip'),
    'empty.zip': lambda h, _: h.reply(b''),
    'empty-without-length.zip': lambda h, _: h.reply(b'', Content_Length=None),
    'no-content.zip': lambda h, _: h.reply(b'', 204),
    'choices.zip': lambda h, _: h.reply(CONTENT, 300),
    'part.zip': lambda h, _: h.reply(CONTENT[:9], 206, Content_Range=f'bytes 0-8/{len(CONTENT)}'),
    'chunked-cut.zip': lambda h, _: h.reply(b'8\r\nabcd', Content_Length=None, Transfer_Encoding='chunked'),
    'gzip-cut.zip': lambda h, _: h.reply(gzip.compress(CONTENT), Content_Length=10**6, Content_Encoding='gzip'),
    'big.zip': lambda h, _: h.reply(b'', Content_Length=10**15),
    'big-chunked.zip': lambda h, _: h.reply(
        b'1000\r\n' + bytes(4096) + b'\r\n0\r\n\r\n', Content_Length=None, Transfer_Encoding='chunked'
    ),
    'bomb.zip': lambda h, _: h.reply(gzip.compress(bytes(1 << 20)), Content_Encoding='gzip'),
    'drip.zip': lambda h, _: (h.reply(b'', Content_Length=10**6), h.drip(bytes(500))),
    'drip-chunked.zip': lambda h, _: (
        h.reply(b'', Content_Length=None, Transfer_Encoding='chunked'), h.drip(b'FFFF\r\n' + bytes(500))),
    'drip-headers.zip': lambda h, _: h.drip(b'HTTP/1.0 200 OK\r\n' + 100 * b'X-A: b\r\n'),
    'silent.zip': lambda h, _: h.server.done.wait(10),
    'other-start': cut_then(Content_Range=f'bytes 0-234463/{len(CONTENT)}'),
    'other-total': cut_then(Content_Range='bytes 65536-299999/400000'),
    'other-end': cut_then(Content_Range=f'bytes 65536-70000/{len(CONTENT)}'),
    'no-range': cut_then(),
    'odd-range': cut_then(Content_Range='bytes=' + '9' * 5000),
    'text.zip': lambda h, _: h.reply(b'Please log in', Content_Length=None),
    'pointer.npz': lambda h, _: h.reply(b'version https://git-lfs.github.com/spec/v1'),
    'cut.zip': lambda h, _: h.reply(ZIP[:-1], Content_Length=None),
    'cut.safetensors': lambda h, _: h.reply(TENSORS[:-1], Content_Length=None),
    'text.safetensors': lambda h, _: h.reply(b'Please log in'),
    'whole.zip': lambda h, _: h.reply(ZIP, Content_Length=None),
    'whole.safetensors': lambda h, _: h.reply(TENSORS, Content_Length=None),
    'signed.zip': lambda h, _: h.send_error(403 if h.headers.get('Authorization') else 404),
}  # fmt: skip


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.requests, server.done = [], threading.Event()
        server.url = f'http://127.0.0.1:{server.server_address[1]}'
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield server
        server.done.set()
        server.shutdown()
        thread.join()


def cached(tmp_path) -> list[str]:
    return os.listdir(tmp_path / 'cache') if (tmp_path / 'cache').exists() else []


def test_download_once_then_from_the_cache(server, tmp_path):
    assert dnnlib.local_path(f'{server.url}/ok.bin').read_bytes() == CONTENT
    path = dnnlib.local_path(f'{server.url}/ok.bin')
    assert path.parent == tmp_path / 'cache' and path.name.endswith('-ok.bin')
    assert len(server.requests) == 1


def test_an_empty_file_in_the_cache_is_fetched_again(server):
    path = dnnlib.local_path(f'{server.url}/ok.bin')
    path.write_bytes(b'')
    assert dnnlib.local_path(f'{server.url}/ok.bin').read_bytes() == CONTENT


def test_download_tries_again(server):
    assert dnnlib.local_path(f'{server.url}/flaky', limits=FAST).read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_download_goes_on_where_it_broke_off(server):
    assert dnnlib.local_path(f'{server.url}/cut', limits=FAST).read_bytes() == CONTENT
    assert server.requests == [('/cut', None), ('/cut', 'bytes=65536-')]


def test_download_starts_over_where_going_on_is_not_safe(server):
    assert dnnlib.local_path(f'{server.url}/cut-weak', limits=FAST).read_bytes() == CONTENT
    assert server.requests == [('/cut-weak', None)] * 2


def test_download_that_is_not_there_is_not_tried_again(server, tmp_path):
    with pytest.raises(DownloadError, match='HTTP 404 Not Found. .*put the file at .*-missing'):
        dnnlib.local_path(f'{server.url}/missing')
    assert len(server.requests) == 1 and cached(tmp_path) == []


def test_download_gives_up(server, tmp_path):
    with pytest.raises(DownloadError, match=r'HTTP 500 .*\(3 tries\)'):
        dnnlib.local_path(f'{server.url}/dead', limits=Limits(2, 0.01))
    assert len(server.requests) == 3 and cached(tmp_path) == []


def test_offline_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as closed:
        url = f'http://127.0.0.1:{closed.server_address[1]}/net.bin'
    with pytest.raises(DownloadError, match='Connection refused .* offline, put the file at .*-net.bin,') as error:
        dnnlib.local_path(url, limits=Limits(1, 0.01))
    assert '\n' not in str(error.value)
    cache_path(url).write_bytes(b'by hand')
    assert dnnlib.local_path(url).read_bytes() == b'by hand'


@pytest.mark.parametrize(
    'name, reason',
    [
        *[(name, 'the server sent a web page, not a file') for name in
          ('page.zip', 'page-behind-a-comment.zip', 'error.zip', 'moved.zip')],
        ('moved-away.zip', 'too many redirects'),
        *[(name, 'the server sent an empty file') for name in ('empty.zip', 'empty-without-length.zip')],
        *[(name, 'the server sent another file, or a part of one: not a whole .') for name in
          ('text.zip', 'pointer.npz', 'cut.zip', 'cut.safetensors', 'text.safetensors')],
        ('no-content.zip', 'HTTP 204'),
        ('choices.zip', 'HTTP 300'),
        ('part.zip', 'the server did not continue'),
        *[(name, '.*') for name in ('chunked-cut.zip', 'gzip-cut.zip')],
        *[(name, 'larger than 4.0 KiB') for name in ('big.zip', 'big-chunked.zip', 'bomb.zip')],
        *[(name, 'the server sends nothing, or too slowly') for name in
          ('drip.zip', 'drip-chunked.zip', 'drip-headers.zip')],
        ('silent.zip', '(the server sends nothing, or too slowly|no answer in time)'),
    ],
)  # fmt: skip
def test_what_is_not_the_file_never_gets_into_the_cache(server, tmp_path, name, reason):
    limits = Limits(1, 0.01, max_bytes=4095 if name.startswith(('big', 'bomb')) else 10**6)
    if name.startswith(('drip', 'silent')):
        limits = limits._replace(stall=0.3)
    with pytest.raises(DownloadError, match=f'^cannot download {server.url}/{name}: {reason}') as error:
        dnnlib.local_path(f'{server.url}/{name}', limits=limits)
    assert '\n' not in str(error.value) and cached(tmp_path) == []


def test_a_download_ends_in_time(server, tmp_path):
    limits = Limits(100, 0.01, stall=0.2, seconds=0.5)
    with pytest.raises(DownloadError, match='drip.zip: not complete after 0.5 s. If'):
        dnnlib.local_path(f'{server.url}/drip.zip', limits=limits)
    assert cached(tmp_path) == []


def test_a_process_ends_although_a_server_does_not(server):
    code = f"""
import dnnlib.downloads
try:
    dnnlib.local_path('{server.url}/drip.zip', limits=dnnlib.downloads.Limits(0, stall=0.2))
except OSError as error:
    print(error)
"""
    root = os.path.dirname(os.path.dirname(dnnlib.__file__))
    result = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and 'too slowly' in result.stdout and not result.stderr


@pytest.mark.parametrize('name', ['other-start', 'other-total', 'other-end', 'no-range', 'odd-range'])
def test_a_wrong_part_of_the_file_is_not_joined(server, name):
    assert dnnlib.local_path(f'{server.url}/{name}', limits=FAST).read_bytes() == CONTENT
    assert server.requests == [(f'/{name}', None), (f'/{name}', 'bytes=65536-'), (f'/{name}', None)]


@pytest.mark.parametrize('name, content', [('whole.zip', ZIP), ('whole.safetensors', TENSORS)])
def test_a_part_that_is_in_the_cache_already_is_fetched_again(server, name, content):
    path = cache_path(f'{server.url}/{name}')
    path.parent.mkdir()
    path.write_bytes(content[:-1])
    for _ in range(2):
        assert dnnlib.local_path(f'{server.url}/{name}', limits=FAST).read_bytes() == content
    assert len(server.requests) == 1


@pytest.mark.parametrize('content', [PAGE, b''])
def test_a_page_that_is_in_the_cache_already_is_fetched_again(server, content):
    path = cache_path(f'{server.url}/ok.bin')
    path.parent.mkdir()
    path.write_bytes(content)
    assert dnnlib.local_path(f'{server.url}/ok.bin').read_bytes() == CONTENT


@pytest.mark.parametrize('target', ['secret', 'missing', 'folder'])
def test_links_in_the_cache_are_not_followed(server, tmp_path, target):
    (tmp_path / 'secret').write_text('kept')
    (tmp_path / 'folder').mkdir()
    path = cache_path(f'{server.url}/ok.bin')
    path.parent.mkdir()
    path.symlink_to(tmp_path / target)
    with pytest.raises(DownloadError, match=f'{path} in the download cache is a symbolic link.*: remove it'):
        dnnlib.local_path(f'{server.url}/ok.bin')
    assert (tmp_path / 'secret').read_text() == 'kept' and not (tmp_path / 'missing').exists()
    assert cached(tmp_path) == [path.name] and not server.requests
    path.unlink()
    path.mkdir()
    with pytest.raises(DownloadError, match='is not a file: remove it'):
        dnnlib.local_path(f'{server.url}/ok.bin')


def test_the_temporary_file_is_not_written_through_a_link(server, tmp_path, monkeypatch):
    monkeypatch.setattr('secrets.token_hex', lambda _: '00000000')
    (tmp_path / 'secret').write_text('kept')
    path = cache_path(f'{server.url}/ok.bin')
    path.parent.mkdir()
    path.with_name(f'.{path.name}.00000000.tmp').symlink_to(tmp_path / 'secret')
    with pytest.raises(OSError, match='cannot write'):
        dnnlib.local_path(f'{server.url}/ok.bin')
    assert (tmp_path / 'secret').read_text() == 'kept'


def test_secrets_in_urls_are_used_and_not_shown(server, tmp_path):
    url = server.url.replace('//', '//user:pass%40word@') + '/signed.zip?token=password#password'
    shown = r'cannot download http://\*\*\*@127.*/signed.zip\?token=\*\*\*: HTTP 403'
    with pytest.raises(DownloadError, match=shown) as error:
        dnnlib.local_path(url)
    assert 'word' not in str(error.value) and server.requests == [('/signed.zip?token=password', None)]
    assert dnnlib.local_path(server.url.replace('//', '//user:secret@') + '/ok.bin').read_bytes() == CONTENT
    assert dnnlib.local_path(f'{server.url}/ok.bin').name == cached(tmp_path)[0]  # not hashed into the name either


@pytest.mark.parametrize('url', ['http://[', 'http://', 'http://a b/c', 'http://' + 'a' * 300, 'http://u:secret@h:port/x',
                                 'http://127.0.0.1:1/\udcff'])  # fmt: skip
def test_malformed_urls(server, tmp_path, url):
    with pytest.raises((ValueError, OSError)) as error:
        dnnlib.local_path(url, limits=FAST)
    assert isinstance(error.value, DownloadError) or 'is not a URL' in str(error.value)
    assert 'secret' not in str(error.value) and '\n' not in str(error.value) and cached(tmp_path) == []


@pytest.mark.parametrize(
    'path', ['/..', '/%2e%2e/', '/a%2f..%2f..%2fb', '/' + 300 * 'x', '/a%00b', '/%0a', '', '/%ff', '/CON:']
)
def test_names_of_downloads_are_harmless(server, path):
    found = cache_path(f'{server.url}{path}')
    assert found.parent == cache_path(server.url).parent and len(found.name) <= 117
    assert set(found.name) <= set('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-')


def test_errors_name_the_cached_file_and_no_secret(server):
    url = server.url.replace('//', '//user:secret@') + '/ok.bin'
    path = dnnlib.local_path(url)
    advice = f' (from the download cache: delete {path} to download it again)'
    shown = server.url.replace('//', '//***@') + '/ok.bin'
    assert error_line(ValueError(f'{url}: is not\n a zip')) == f'{shown}: is not a zip{advice}'
    assert error_line(ValueError(f"'{path}' is not a zip")) == f"'{path}' is not a zip{advice}"
    assert error_line(ValueError(f'{path}: {url}')).count(advice) == 1
    for other in ('a.zip is not a zip', f'{server.url}/other.bin: HTTP 404', 'http://[ is not a URL', ''):
        assert error_line(ValueError(other)) == other


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(FileNotFoundError, match='the name of a file or folder is empty'):
        dnnlib.local_path('')


def test_local_files_need_no_cache(tmp_path):
    path = tmp_path / 'a.bin'
    path.write_bytes(CONTENT)
    assert dnnlib.local_path(str(path)) == path and dnnlib.local_path(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match='no such file or folder: .*nothing'):
        dnnlib.local_path(tmp_path / 'nothing')
