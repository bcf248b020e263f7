"""Pictures between a network and the page: PNGs in data URIs, files that visitors give, and the grids that show them.

Legend: B images, C image channels (1, 3 or 4), H x W pixels of the network.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch

from cli.pictures import crop
from ddn_networks import Network, pixel_maps
from dnnlib.images import BadImageError, decode_image, read_header, to_float, to_image, to_uint8

MAX_FILE = 16 << 20  # bytes of a picture that a visitor gives
MAX_UPLOAD = 64 << 20  # bytes that reach the server, which says in a sentence that a file is too large
MAX_PIXELS = 50_000_000  # of a picture that a visitor gives
MAX_URI = 1 << 20  # characters of a picture that the page sends back, which has the network's size
START = 'data:image/png;base64,'

Items = dict[str, Any]


def to_uri(image: torch.Tensor) -> str:
    """A picture [C, H, W] in [-1, 1] as the data URI of a PNG of the same pixels."""
    file = io.BytesIO()
    to_image(to_uint8(image).cpu().numpy()).save(file, format='png')
    return START + base64.b64encode(file.getvalue()).decode()


def from_uri(uri: Any, channels: int, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a data URI that the page made, uint8 [C, H, W]. ValueError where they are not of this size."""
    if not isinstance(uri, str) or not uri.startswith(START) or len(uri) > MAX_URI:
        raise ValueError('The page sent something that is not a picture: reload it.')
    data = base64.b64decode(uri.removeprefix(START))
    header = read_header(data, 'The picture')
    if (header.height, header.width) != size:
        raise ValueError('The page sent a picture of another size: reload it.')
    return decode_image(data, 'The picture', channels)


def read_file(data: bytes | None, net: Network) -> torch.Tensor:
    """The picture of a visitor's file as the network sees it, [1, C, H, W] in [-1, 1]: its middle part, resized.

    Raises:
        ValueError: a file that is no picture, or too large a one; found before its pixels are decoded.
    """
    if not data:
        raise ValueError('This file is empty: choose a PNG, JPEG or WebP picture.')
    if len(data) > MAX_FILE:
        raise ValueError(f'This file has more than {MAX_FILE >> 20} MB: make the picture smaller first.')
    try:
        header = read_header(data, 'This file')
        if header.width * header.height > MAX_PIXELS:
            raise BadImageError(
                f'This picture has {header.width} x {header.height} pixels; the page takes up to '
                f'{MAX_PIXELS // 1_000_000} million: make it smaller first.'
            )
        pixels = decode_image(data, 'This file', net.img_channels)
    except BadImageError as error:
        raise ValueError(str(error)) from error
    picture = to_float(torch.from_numpy(pixels))[None]
    return pixel_maps.fit(crop(picture, net.img_resolution), net.img_resolution)


def items(
    images: torch.Tensor | Sequence[torch.Tensor],
    names: Sequence[str],
    notes: Sequence[str] = (),
    bars: Sequence[float] = (),
    chosen: int | None = None,
) -> Items:
    """The value of a ``picture_grid``: images [B, C, H, W], their names (read aloud), lines of text under them, bars
    (0 to 1), and the one that is marked."""
    found = []
    for i, image in enumerate(images):
        item = {'src': to_uri(image), 'name': names[i], 'chosen': i == chosen}
        if notes:
            item['note'] = notes[i]
        if len(bars):
            item['bar'] = round(float(bars[i]), 4)
        found.append(item)
    return {'items': found}


def script(*names: str) -> str:
    """Files of JavaScript of this folder as the script of one component."""
    return '\n'.join((Path(__file__).parent / name).read_text() for name in names)


def picture_grid(
    empty: str, side: int = 96, clickable: bool = True, four: bool = False, drop: str = '', **more: Any
) -> gr.HTML:
    """A grid of pictures, whose value is that of ``items``. Pictures are buttons: the event ``select`` has the
    ``index`` of the one that was chosen.

    Args:
        empty: what it says while there are none.
        side: width of a picture in pixels of the screen.
        clickable: whether pictures can be chosen.
        four: four in a row, two on a phone, of whatever width.
        drop: elem_id of an upload button that files dropped here go to.
    """
    return gr.HTML(
        value={'items': []},
        html_template='<div class="ddn-pictures"></div>',
        js_on_load=script('drop.js', 'pictures.js'),
        apply_default_css=False,
        empty=empty,
        side=side,
        clickable=clickable,
        four=four,
        drop=drop,
        **more,
    )
