"""What the page says: facts of a latent, and errors as sentences."""

import functools
import html
import inspect
import math
from collections.abc import Callable
from typing import Any

import gradio as gr
import torch

from ddn_networks import Network, codes
from dnnlib.readers import printable

MOST_BITS = 4096  # that are shown as text


def number(value: Any, least: float, most: float) -> float:
    """A number of a control, within its bounds. ValueError where the page sent something else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f'Give a number from {least:.10g} to {most:.10g}.')
    return min(max(value, least), most)


def sentences(function: Callable) -> Callable:
    """Show the ``ValueError`` of an event's function as a sentence on the page, which stays usable."""

    def told(error: ValueError) -> gr.Error:
        return gr.Error(printable(error), duration=20, print_exception=False)

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def streaming(*args, **kwargs):
            try:
                yield from function(*args, **kwargs)
            except ValueError as error:
                raise told(error) from None

        return streaming

    @functools.wraps(function)
    def once(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except ValueError as error:
            raise told(error) from None

    return once


def bits_of(net: Network, latent: torch.Tensor, condition: torch.Tensor | None) -> str:
    """The codes [1, D] of a picture and their bits, as HTML."""
    by_layer = [latent[0, columns].tolist() for columns in net.code_slices]
    lines = ''.join(
        f'<li>{" ".join(map(str, row))}</li>' for row in by_layer
    )
    size = f'{net.num_bits:g} bits'
    if net.prior:
        own = -net.log_prob(latent, condition).item() / math.log(2)
        size += f'; {own:.1f} bits by how likely the network finds its choices'
    try:
        text = codes.to_bits(latent, net.code_nodes)[0]
        text = f'<p class="ddn-bits">{text[:MOST_BITS]}{"…" if len(text) > MOST_BITS else ""}</p>'
    except ValueError:  # K is not a power of two
        text = ''
    return (
        f'<p><b>{latent.shape[1]} codes</b> name this picture: one line for each layer, one number for each choice.</p>'
        f'<ol class="ddn-codes" start="0">{lines}</ol><p><b>{html.escape(size)}</b></p>{text}'
    )
