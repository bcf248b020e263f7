"""Curves of measured values as pictures, without a plotting library."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 560, 380, 48


def draw_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    colours: Mapping[str, str],
    labels: tuple[str, str],
    limits: tuple[float, float] | None = None,
    legend_width: int = 90,
) -> Image.Image:
    """Values y over x > 0, x on a logarithmic axis.

    Args:
        curves: points (x, y) by the name of their curve, in the order in which a line joins them.
        colours: of each name. labels: of x and y. legend_width: pixels of the longest name.
        limits: of the axis of y, by default all values; what is above is drawn at its end.
    """
    image = Image.new('RGB', (WIDTH, HEIGHT), 'white')
    draw = ImageDraw.Draw(image)
    xs, ys = ([point[i] for points in curves.values() for point in points] for i in (0, 1))
    low, high = math.log(min(xs) * 0.9), math.log(max(xs) * 1.1)
    bottom, top = limits or (min(ys), max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log(x) - low) / (high - low)
        up = (min(y, top) - bottom) / max(top - bottom, 1e-12)
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    for tick in (digit * 10.0**power for power in range(-9, 9) for digit in (1, 2, 5)):
        if low <= math.log(tick) <= high:
            x, y = at(tick, bottom)
            draw.line([(x, MARGIN), (x, y)], '#e0e0e0')
            draw.text((x, y + 6), f'{tick:g}', 'black', anchor='ma')
    for value in np.linspace(bottom, top, 6):
        x, y = at(math.exp(low), value)
        draw.text((x - 4, y), f'{value:.3g}', 'black', anchor='rm')
    placed = {name: [at(*point) for point in points] for name, points in curves.items()}
    left, height = WIDTH - MARGIN - legend_width, 14 * len(placed)
    legend = min((MARGIN, HEIGHT - MARGIN - height - 6), key=lambda top: sum(  # where fewer points are
        x > left and top <= y <= top + height for points in placed.values() for x, y in points
    ))  # fmt: skip
    for i, (name, points) in enumerate(placed.items()):
        draw.line(points, colours[name], width=2)
        for x, y in points:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), colours[name])
        draw.text((left, legend + 14 * i), name, colours[name])
    draw.text((WIDTH / 2, HEIGHT - 14), labels[0], 'black', anchor='mm')
    draw.text((MARGIN, MARGIN - 20), labels[1], 'black')
    return image
