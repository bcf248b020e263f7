"""Parts of pictures on the command line, ``X,Y,W,H`` in pixels, and the codes that they mean."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import click
import torch

from ddn_networks import Network, codes


class Rectangle(NamedTuple):
    """left, top: of the first pixel, counted from the upper left. width, height: in pixels, at least 1."""

    left: int
    top: int
    width: int
    height: int


class Region(click.ParamType):
    """'0,16,32,8' as a ``Rectangle``."""

    name = 'region'

    def convert(self, value, param, ctx):
        if isinstance(value, Rectangle):
            return value
        match = re.fullmatch(r'(\d{1,6}),(\d{1,6}),([1-9]\d{0,5}),([1-9]\d{0,5})', value.replace(' ', ''))
        if match is None:
            self.fail(f'{value!r} is not X,Y,W,H in pixels; give for example 0,16,32,8', param, ctx)
        return Rectangle(*map(int, match.groups()))


def painted(regions: Sequence[Rectangle], net: Network, option: str) -> torch.Tensor:
    """[H, W] bool, True in the regions. ValueError with the option for one that is not inside the picture."""
    H, W = net.img_resolution
    pixels = torch.zeros(H, W, dtype=torch.bool)
    for left, top, width, height in regions:
        if left + width > W or top + height > H:
            given = f'{option}={left},{top},{width},{height}'
            raise ValueError(f'{given} is not inside the picture, which is {W} pixels wide and {H} high')
        pixels[top : top + height, left : left + width] = True
    return pixels


def inside(regions: Sequence[Rectangle], net: Network, option: str = '--region') -> torch.Tensor:
    """[D] bool, the codes of the cells that lie wholly in the regions. ValueError where there are none."""
    found = ~codes.touching(~painted(regions, net, option), [spec.grid for spec in net.specs])
    if not found.any():
        (H, W), (gh, gw) = net.img_resolution, max(net.specs, key=lambda spec: spec.num_cells).grid
        raise ValueError(f'{option}: no cell lies wholly in it; the smallest are {W / gw:g} by {H / gh:g} pixels')
    return found
