"""The tab Compress: a picture as the bytes of its codes, beside other formats of the same size."""

import base64
import io
from typing import NamedTuple

import gradio as gr
import torch

from ddn_networks import codec
from ddn_networks.code_streams import HEADER, MAGIC, Codec, read_header
from dnnlib.images import decode_image, to_float, to_image, to_uint8
from page import pictures
from page.pictures import picture_grid
from page.subject import Subject
from page.words import number, sentences
from torch_utils import misc

QUALITIES = {'WebP': range(0, 101, 4), 'JPEG': range(1, 96, 4)}
MOST_BITS = 16_384  # that are shown as text


class Coded(NamedTuple):
    """What a visitor compressed. data: the file; original: [1, C, H, W] in [-1, 1], or None where only a file was
    given; label: the class that it was made for."""

    data: bytes
    original: torch.Tensor | None
    label: str | None


def bits_html(data: bytes, num: int) -> str:
    """The first bytes as strings of 0 and 1: header apart, what was not used in grey."""
    text = ''.join(f'{byte:08b}' for byte in data)
    start, end = HEADER.size * 8, num * 8
    shown = text[:MOST_BITS]
    return (
        f'<p class="ddn-bits"><span title="the header: format, network, checksum">{shown[:start]}</span> '
        f'<b>{shown[start:end]}</b>{shown[end:]}{"…" if len(text) > MOST_BITS else ""}</p>'
    )


def download_html(data: bytes) -> str:
    """A link that saves the file, which it holds."""
    uri = f'data:application/octet-stream;base64,{base64.b64encode(data).decode()}'
    return f'<a class="ddn-download" download="picture.ddn" href="{uri}">Download picture.ddn ({len(data)} bytes)</a>'


def other_format(image: torch.Tensor, name: str, size: int) -> tuple[int, torch.Tensor]:
    """The file of another format whose size is nearest to ``size`` bytes: its size, and its picture [C, H, W]."""
    picture, files = to_image(to_uint8(image).numpy()), []
    for quality in QUALITIES[name]:
        file = io.BytesIO()
        picture.save(file, format=name, quality=quality)
        files.append(file.getvalue())
    best = min(files, key=lambda data: abs(len(data) - size))
    return len(best), to_float(torch.from_numpy(decode_image(best, name, len(image))))


def likeness(image: torch.Tensor, original: torch.Tensor) -> str:
    return f'{misc.psnr((image.clamp(-1, 1) - original).square().mean().item()):.1f} dB'


def build(subject: Subject) -> None:
    """Add the components of the tab to the ``gr.Blocks`` around it."""
    net = subject.net
    coder = Codec(net)
    gr.Markdown(
        f'The codes of a picture are a file: a header of {HEADER.size} bytes, and about {net.num_bits / 8:.0f} bytes '
        'of choices' + (', fewer for pictures that it finds likely.' if coder.model != 'uniform' else '.')
    )
    with gr.Row():
        upload = gr.UploadButton(
            'Your picture, or a .ddn file …', type='binary', elem_id='compress-upload', min_width=200
        )
        example = gr.Button('Example picture', min_width=160, elem_id='compress-example')
        label = gr.Dropdown(
            subject.classes, value=(subject.classes or [None])[0], label='Class', visible=bool(subject.num_classes),
            info='A file needs the class that it was made for.',
        )
    size = gr.Slider(
        HEADER.size, HEADER.size + 1, HEADER.size, step=1, label='Bytes', elem_id='bytes', visible=False,
        info='How much of the file has arrived: drag it. The first bytes are a header; the rest are choices.',
    )
    shown = picture_grid(
        'Drop a picture here, or a .ddn file. It is shown as from the first bytes of its file.', four=True,
        clickable=False, drop='compress-upload', elem_id='decoded',
    )
    gr.Markdown(
        'dB: likeness to the original, of all pixels (PSNR); more is nearer. WebP and JPEG: the file whose size is '
        'nearest; neither can be as small as a few bytes.', elem_classes='ddn-explained'
    )
    download = gr.HTML(elem_id='download')
    bits = gr.HTML(elem_id='bits')
    state = gr.State(None)

    def view(coded: Coded, num: int) -> tuple:
        """The pictures at so many bytes, and these bytes."""
        condition = subject.condition(coded.label)
        total = len(coded.data)
        picture = coder.picture(coded.data[:num], condition, partial=num < total)
        image = coder.draw([picture], condition)[0].cpu()
        if coded.original is None:
            items = pictures.items([image], ['From the file'], [f'{num} of {total} bytes'])
            return items, bits_html(coded.data, num)
        original = coded.original[0]
        found = [(f'Original: {original.numel()} bytes', original), (f'{num} of {total} bytes', image)]
        for name in QUALITIES:
            length, other = other_format(original, name, num)
            found.append((f'{name}: {length} bytes', other))
        notes = [f'{note}, {likeness(one, original)}' if i else note for i, (note, one) in enumerate(found)]
        return pictures.items([one for _, one in found], notes, notes), bits_html(coded.data, num)

    def opened(coded: Coded) -> tuple:
        total = len(coded.data)
        slider = gr.update(maximum=max(total, HEADER.size + 1), value=total, visible=True)
        return coded, slider, *view(coded, total), download_html(coded.data)

    def encoded(image: torch.Tensor, label: str | None) -> tuple:
        condition = subject.condition(label)
        (picture,) = codec.encoded(coder, image.to(net.device), condition)
        data = coder.file(picture, condition)
        return opened(Coded(data, image, label))

    @sentences
    def take(data: bytes | None, label):
        if not data or data[0] != MAGIC or len(data) > pictures.MAX_FILE:
            return encoded(pictures.read_file(data, net), label)
        try:
            header = read_header(data)
            if header.archive or header.sized:
                raise ValueError('it holds several pictures, or one of another size; codec.py decode reads it')
            coder.picture(data, subject.condition(label))
            return opened(Coded(data, None, label))
        except ValueError as error:
            raise ValueError(f'This .ddn file cannot be shown: {error}') from error

    @sentences
    def make_example(label, last: Coded | None):
        seed = 1 + (0 if last is None else len(last.data) + int(last.data[-1]))
        images, _ = net.sample(1, seed=seed, condition=subject.condition(label))
        return encoded(images.clamp(-1, 1).cpu(), label)

    @sentences
    def drag(coded: Coded | None, num) -> tuple:
        if coded is None:
            raise ValueError('Give a picture first.')
        return view(coded, int(number(num, HEADER.size, len(coded.data))))

    made = {'show_progress': 'minimal', 'show_progress_on': shown, 'concurrency_id': 'network'}
    upload.upload(take, [upload, label], [state, size, shown, bits, download], **made)
    example.click(make_example, [label, state], [state, size, shown, bits, download], **made)
    size.input(
        drag, [state, size], [shown, bits], show_progress='hidden', concurrency_id='network',
        trigger_mode='always_last',
    )
