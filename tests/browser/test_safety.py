"""What the page refuses, in a sentence, and what it never shows."""

import contextlib
import http.client
import io
import json
import struct
import zlib
from typing import NamedTuple
from urllib.parse import urlparse

import pytest
from PIL import Image
from visitors import WAIT, press, settled, told


def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new('L', (side, side), 128).save(file, format='png')
    return file.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims so many pixels; it has as many bytes as needed not to be found out by that."""
    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    data = b'\x89PNG\r\n\x1a\n'
    for kind, body in ((b'IHDR', head), (b'IDAT', bytes(2_000_000)), (b'IEND', b'')):
        data += struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    return data


WRONG = {
    'not a picture': (b'hello', 'This file: not an image'),
    'cut off': (png(64)[:60], 'This file:'),
    'too many bytes': (bytes(17 << 20), 'This file has more than 16 MB'),
    'too many pixels': (claiming(9_000, 9_000), 'the page takes up to 50 million: make it smaller first'),
}


def test_wrong_files_are_sentences(digits, visit, mnist, tmp_path):
    page = visit(digits, 'Guide')
    field = page.locator('#guide-upload').locator('xpath=preceding-sibling::input')
    for name, (data, says) in WRONG.items():
        (tmp_path / f'{name}.png').write_bytes(data)
        field.set_input_files(tmp_path / f'{name}.png')
        told(page, says)
    page.get_by_role('tab', name='Sample').click()
    press(page, 'Make pictures')
    settled(page, 'samples', mnist.sample(16)[0])


class Answer(NamedTuple):
    status: int
    policy: str | None
    text: str


def asked(address: str, method: str, path: str, body: bytes = b'', **headers: str) -> Answer:
    with contextlib.closing(http.client.HTTPConnection(urlparse(address).netloc, timeout=WAIT / 1000)) as connection:
        connection.request(method, path, body, {name.replace('_', '-'): value for name, value in headers.items()})
        response = connection.getresponse()
        return Answer(response.status, response.headers['Content-Security-Policy'], response.read().decode())


def test_the_server_answers_to_its_own_name_and_says_what_may_be_loaded(digits):
    own = asked(digits, 'GET', '/')
    assert own.status == 200
    assert own.policy.startswith("default-src 'self'") and 'http' not in own.policy
    assert asked(digits, 'GET', '/', Host='evil.example').status == 400


@pytest.mark.parametrize('path', ['/etc/passwd', 'demo.py', '/proc/self/environ'])
def test_no_files_of_the_machine(digits, path):
    assert asked(digits, 'GET', f'/gradio_api/file={path}').status in (403, 404)


def test_large_requests_are_refused(digits):
    body = json.dumps({'data': ['x' * (5 << 20)], 'fn_index': 0, 'session_hash': 'a'}).encode()
    assert asked(digits, 'POST', '/gradio_api/queue/join', body, Content_Type='application/json').status == 413
    assert asked(digits, 'GET', '/').status == 200


def test_the_configuration_of_the_page_names_no_path(everything, tiny_file):
    text = asked(everything, 'GET', '/config').text
    assert str(tiny_file.parent) not in text and '/tmp/' not in text and '**tiny**' in text
