"""Show tensors as a picture: a sheet of images as a PNG, which notebooks display. Needs no imaging library.

Legend: B images, C channels (1 grey, 3 RGB, 4 RGBA), H x W pixels, L layers, D codes.
"""

import os
import struct
import zlib
from typing import TYPE_CHECKING, Any

import torch

from ddn_networks.tensor_files import new_file

if TYPE_CHECKING:
    from ddn_networks.network import Network

_COLOR_TYPES = {1: 0, 3: 2, 4: 6}  # C -> that of PNG
MOST_IMAGES = 1024  # of a sheet


class Picture:
    """A sheet of images.

    Attributes:
        pixels: uint8 [H, W, C] on the CPU.
    """

    def __init__(self, pixels: torch.Tensor):
        self.pixels = pixels

    def _repr_png_(self) -> bytes:
        return png(self.pixels)

    def save(self, path: str | os.PathLike) -> None:
        """Write the PNG, whole or not at all. Raises OSError in one line."""
        with new_file(path) as f:
            f.write(png(self.pixels))


def show(x: Any, net: 'Network | None' = None, columns: int = 0) -> Picture:
    """A picture of ``x``, displayed by a notebook where it is the last value of a cell; ``save(path)`` writes it.

    Args:
        x: images [B, C, H, W] or one [C, H, W], float in [-1, 1] (what is beyond is clamped) or uint8; or codes [B, D]
            of ``net``, which are decoded; or what ``sample``, ``reconstruct`` or a forward pass return. An ``Output``
            that kept its layers is shown as one row of L images per sample.
        net: the network of the codes; not needed otherwise.
        columns: images of a row; 0 for at most 16.

    Raises ValueError for anything else, codes without a network, or more than 1,024 images.
    """
    selected = getattr(x, 'selected', None)
    if selected:
        columns, x = len(selected), torch.stack([_resized(s, x.images.shape[2:]) for s in selected], 1).flatten(0, 1)
    elif isinstance(x, tuple):
        x = getattr(x, 'images', x[0])  # of an Output; of (images, codes)
    x = torch.as_tensor(x).detach()
    if x.ndim == 2 and not x.is_floating_point():
        if net is None:
            raise ValueError(f'codes {list(x.shape)} name images of one network: give it, show(codes, net)')
        x = net.decode(x)
    images = x if x.ndim == 4 else x[None]
    if images.ndim != 4 or images.shape[1] not in _COLOR_TYPES or 0 in images.shape:
        raise ValueError(f'show takes images [B, C, H, W] or [C, H, W] of C 1, 3 or 4, or codes, not {list(x.shape)}')
    if len(images) > MOST_IMAGES:
        raise ValueError(f'{len(images)} images are more than the {MOST_IMAGES} that a sheet has: show a part of them')
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise ValueError(f'images to show are floating point in [-1, 1] or uint8, not {images.dtype}')
    return Picture(_sheet(_to_uint8(images), columns or min(len(images), 16)))


def png(pixels: torch.Tensor) -> bytes:
    """uint8 [H, W, C] as the bytes of a PNG file."""
    height, width, channels = pixels.shape
    rows = torch.cat([pixels.new_zeros(height, 1), pixels.reshape(height, -1)], 1)  # each row begins with its filter, 0
    header = struct.pack('>IIBBBBB', width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    parts = (b'IHDR', header), (b'IDAT', zlib.compress(rows.contiguous().numpy().tobytes(), 9)), (b'IEND', b'')
    chunks = [struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
              for kind, data in parts]  # fmt: skip
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def _to_uint8(images: torch.Tensor) -> torch.Tensor:
    if images.is_floating_point():
        images = ((images.float().nan_to_num() + 1) * 127.5).round().clamp(0, 255).byte()
    return images.cpu()


def _resized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(images.float(), tuple(size), mode='nearest')


def _sheet(images: torch.Tensor, columns: int) -> torch.Tensor:
    """uint8 [B, C, H, W] -> [H', W', C], rows of images on white with a line between them; small images are enlarged
    so that they are 64 pixels wide."""
    B, C, H, W = images.shape
    scale = max(1, 64 // W)
    sheet = images.new_full((C, -(-B // columns) * (H + 1) + 1, columns * (W + 1) + 1), 255)
    for b, image in enumerate(images):
        top, left = (b // columns) * (H + 1) + 1, (b % columns) * (W + 1) + 1
        sheet[:, top : top + H, left : left + W] = image
    sheet = sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return sheet.permute(1, 2, 0).contiguous()
