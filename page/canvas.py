"""A canvas of the network's pixels to paint on: colour strokes, and a part that is hidden.

Legend: C image channels, H x W pixels of the network.
"""

from typing import Any

import gradio as gr
import torch

from ddn_networks import Network, pixel_maps
from dnnlib.images import to_float
from page import pictures

SIDE = 320  # of the canvas, pixels of the screen


def canvas(net: Network, colours: bool = True, drop: str = '', **more: Any) -> gr.HTML:
    """The canvas; its value holds data URIs of PNGs of H x W pixels, or None: photo, strokes, hidden.

    A mouse, a finger or the keyboard paints: arrow keys move the brush, space paints. The event ``painted`` says that a
    stroke has ended.

    Args:
        net: whose pictures it holds.
        colours: whether it takes colour strokes, not only a hidden part.
        drop: elem_id of an upload button that files dropped here go to.
    """
    return gr.HTML(
        value=showing(None),
        html_template='<div class="ddn-canvas"></div>',
        js_on_load=pictures.script('drop.js', 'canvas.js'),
        apply_default_css=False,
        rows=net.img_resolution[0],
        columns=net.img_resolution[1],
        side=SIDE,
        grey=net.img_channels == 1,
        colours=colours,
        drop=drop,
        **more,
    )


def showing(photo: torch.Tensor | None) -> dict[str, Any]:
    """The value of a canvas with a picture [C, H, W], or none, and nothing painted."""
    return {'photo': None if photo is None else pictures.to_uri(photo), 'strokes': None, 'hidden': None}


class Painted:
    """What a visitor painted.

    Attributes, each None where there is nothing:
        photo: [1, C, H, W] in [-1, 1].
        strokes: [1, 4, H, W] in [-1, 1], transparent where nothing was painted.
        hidden: [1, 1, H, W], 1 in the part that was painted over, else 0.

    Raises:
        ValueError: a value that the canvas does not make.
    """

    def __init__(self, value: Any, net: Network):
        value = value if isinstance(value, dict) else {}
        size, self._channels = net.img_resolution, net.img_channels

        def pixels(key: str, channels: int) -> torch.Tensor | None:
            uri = value.get(key)
            return None if uri is None else torch.from_numpy(pictures.from_uri(uri, channels, size))[None]

        photo, strokes, hidden = pixels('photo', net.img_channels), pixels('strokes', 4), pixels('hidden', 4)
        self.photo = None if photo is None else to_float(photo)
        self.strokes = None if strokes is None or not strokes[:, 3].any() else to_float(strokes)
        self.hidden = None if hidden is None or not hidden[:, 3].any() else (hidden[:, 3:] > 127).float()

    def together(self) -> torch.Tensor:
        """The photo with the strokes on it, black where there is neither: [1, C, H, W]."""
        ground, strokes = self.photo, self.strokes
        if strokes is None:
            return ground
        colours, alpha = pixel_maps.to_channels(strokes[:, :3], self._channels), (strokes[:, 3:] + 1) / 2
        ground = torch.full_like(colours, -1) if ground is None else ground
        return ground * (1 - alpha) + colours * alpha
