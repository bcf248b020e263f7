"""The tab Compress: pixels and bytes against the codec, down to a file that is given back."""

import io

import torch
from visitors import drop, from_uri, settled, shown, told, wait_for

from ddn_networks import codec
from ddn_networks.code_streams import HEADER
from dnnlib.images import to_float, to_image, to_uint8


def upload(page, name: str, data: bytes) -> None:
    page.locator('#compress-upload').locator('xpath=preceding-sibling::input').set_input_files(
        {'name': name, 'mimeType': 'application/octet-stream', 'buffer': data}
    )


def downloaded(page) -> bytes:
    link = page.locator('#download a')
    with page.expect_download() as saved:
        link.click()
    assert saved.value.suggested_filename == 'picture.ddn'
    return saved.value.path().read_bytes()


def test_a_picture_down_to_bytes_and_back(everything, digits, visit, tiny):
    page = visit(everything, 'Compress')
    assert page.get_by_text('Drop a picture here, or a .ddn file.').is_visible()
    page.locator('#compress-example').click()
    image = to_float(to_uint8(tiny.sample(1, seed=1)[0]))
    data = codec.encode(tiny, tiny.sample(1, seed=1)[0].clamp(-1, 1))
    wait_for(page, 'decoded', 4)
    assert (shown(page, 'decoded')[:2] == to_uint8(torch.cat([image, codec.decode(tiny, data)])).numpy()).all()
    assert downloaded(page) == data
    bits = page.locator('#bits').inner_text().replace(' ', '').replace('\n', '')
    assert bits == ''.join(f'{byte:08b}' for byte in data)

    slider = page.locator('#bytes input[type=range]')
    slider.focus()
    slider.press('ArrowLeft')
    slider.press('ArrowLeft')
    part = len(data) - 2
    page.get_by_text(f'{part} of {len(data)} bytes').wait_for()
    expected = codec.decode(tiny, data[:part], partial=True)
    assert (shown(page, 'decoded')[1] == to_uint8(expected[0]).numpy()).all()
    slider.press('Home')
    page.get_by_text(f'{HEADER.size} of {len(data)} bytes').wait_for()
    expected = codec.decode(tiny, data[: HEADER.size], partial=True)
    assert (shown(page, 'decoded')[1] == to_uint8(expected[0]).numpy()).all()
    notes = page.locator('#decoded .ddn-note').all_inner_texts()
    assert notes[2].startswith('WebP: ') and notes[3].startswith('JPEG: ') and notes[1].endswith(' dB')

    drop(page, '#decoded .ddn-pictures', 'picture.ddn', data)
    settled(page, 'decoded', codec.decode(tiny, data))
    broken = bytearray(data)
    broken[-1] ^= 255
    for wrong in (bytes(broken), data[:4], b'\xdd\x10'):
        upload(page, 'wrong.ddn', wrong)
        told(page, 'This .ddn file cannot be shown')
    settled(page, 'decoded', codec.decode(tiny, data))  # what was there stays

    other = visit(digits, 'Compress')
    upload(other, 'picture.ddn', data)
    other.get_by_text('it was made with another network').or_(other.get_by_text('cannot be shown')).first.wait_for()


def test_a_dropped_picture(digits, visit, mnist):
    page = visit(digits, 'Compress')
    picture = to_float(to_uint8(mnist.sample(1, seed=5)[0]))
    page.locator('#compress-example').click()
    wait_for(page, 'decoded', 4)
    uri = page.locator('#decoded img').first.get_attribute('src')
    file = io.BytesIO()
    to_image(to_uint8(picture)[0].numpy()).save(file, format='png')
    drop(page, '#decoded .ddn-pictures', 'mine.png', file.getvalue())
    data = codec.encode(mnist, picture)
    page.get_by_text(f'Download picture.ddn ({len(data)} bytes)').wait_for()
    page.wait_for_function("old => document.querySelector('#decoded img').src !== old", arg=uri)
    assert (from_uri(page.locator('#decoded img').first.get_attribute('src')) == to_uint8(picture)[0].numpy()).all()
