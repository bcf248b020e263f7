"""Charts as SVG within HTML figures: curves, and maps of layers over time. Colours and behaviour are in ``STYLE`` and
``SCRIPT``, which the page includes once; nothing is fetched from anywhere.

Values that are None were not measured: curves have a gap there, maps are grey.
"""

import base64
import html
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 380, 54, 14, 18, 40  # of the drawing, in its own pixels
MOST_POINTS = 300  # of a curve
MOST_COLUMNS = 120  # of a map
GREY = (136, 136, 136)
HEAT = ((255, 250, 225), (253, 190, 90), (227, 74, 51), (110, 0, 30))  # light is good
COUNTS = ((247, 251, 255), (158, 202, 225), (33, 113, 181), (8, 29, 88))

STYLE = """
figure.chart { margin: 0 0 1.2rem; min-width: 0; break-inside: avoid; display: grid; grid-row: span 4;
  grid-template-rows: subgrid }
figure.chart figcaption b { display: block }
figure.chart svg { display: block; width: 100%; height: auto; touch-action: pan-y; font: 12px system-ui, sans-serif }
figure.chart .keys { display: block; min-height: 1.5em }
figure.chart text { fill: var(--soft) }
figure.chart output { display: block; min-height: 1.4em; font-size: .85rem; font-variant-numeric: tabular-nums }
.grid { stroke: var(--line); stroke-width: 1 }
.scale { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; opacity: .6 }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round }
.s0 { stroke: var(--blue) } circle.s0, .key.s0 { fill: var(--blue); background: var(--blue); stroke: none }
.s1 { stroke: var(--orange) } circle.s1, .key.s1 { fill: var(--orange); background: var(--orange); stroke: none }
.key { display: inline-block; width: 1em; height: .3em; vertical-align: middle; margin: 0 .3em 0 .8em }
.pointer { stroke: #fff; mix-blend-mode: difference; opacity: 0; pointer-events: none }
.ramp { display: inline-block; width: 6em; height: .8em; vertical-align: middle; border: 1px solid var(--line) }
.none { width: .9em; background: rgb(136, 136, 136) }
"""

# Writes the values at the pointer above the drawing. Each figure has its numbers as JSON.
SCRIPT = """
const short = v => v === null ? 'not measured' : Math.abs(v) >= 1e5 ? Math.round(v).toLocaleString('en') :
    String(+v.toPrecision(4));
for (const figure of document.querySelectorAll('figure.chart')) {
  const data = JSON.parse(figure.querySelector('script').textContent), svg = figure.querySelector('svg');
  const line = figure.querySelector('.pointer'), output = figure.querySelector('output');
  const read = event => {
    const box = svg.getBoundingClientRect(), scale = data.width / box.width;
    const px = (event.clientX - box.left) * scale, py = (event.clientY - box.top) * scale;
    const at = data.px.reduce((best, x, i) => Math.abs(x - px) < Math.abs(data.px[best] - px) ? i : best, 0);
    let text = data.x[at].toLocaleString('en');
    text = (data.x_name === 'images' ? text + ' images' : data.x_name + ' ' + text) + ': ';
    if (data.rows) {
      const row = Math.floor((py - data.top) / data.row_height);
      if (row < 0 || row >= data.rows.length) return;
      text = data.row_name + ' ' + row + ', ' + text + short(data.rows[row][at]) + data.unit;
    } else {
      text += data.series.map((s, i) => data.names[i] + ' ' + short(s[at]) + data.unit).join(', ');
    }
    output.textContent = text;
    line.setAttribute('x1', data.px[at]); line.setAttribute('x2', data.px[at]); line.style.opacity = 1;
  };
  svg.addEventListener('pointermove', read);
  svg.addEventListener('pointerdown', read);
  svg.addEventListener('pointerleave', () => { output.textContent = ''; line.style.opacity = 0; });
}
"""


class Scale(NamedTuple):
    """Layers ``first`` to ``last`` have images of one size, as ``name`` says it: '32x32'."""

    name: str
    first: int
    last: int


def short(value: float) -> str:
    """A number as axes show it: 0.002, 15k, 2.5M."""
    for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if abs(value) >= size:
            return f'{value / size:.6g}{letter}'
    return f'{value:.6g}'


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from ``low`` to ``high``: at most ``most``, at least one if
    low < high."""
    if not low < high:
        return [low]
    power = 10.0 ** (math.floor(math.log10((high - low) / most)) - 1)
    steps = (factor * power * 10**more for more in range(4) for factor in (1, 2, 5))
    for step in steps:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [float(f'{i * step:.12g}') for i in range(first, last + 1)]
    raise AssertionError('steps end above the range')


def log_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers for a logarithmic axis from ``low`` > 0 to ``high``: powers of ten, with 2 and 5 times them, or
    all round numbers where the range is short."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 2, 5), (1,)):
        found = [f * 10.0**power for power in range(first, last + 1) for f in factors]
        found = [float(f'{v:.12g}') for v in found if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
        if len(found) <= most:
            return found if len(found) > 2 else ticks(low, high, most)
    return found[:: math.ceil(len(found) / most)]


def thinned(count: int, most: int) -> list[int]:
    """At most ``most`` evenly spaced indices of ``count``, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def curves(
    title: str,
    good: str,
    x: Sequence[float],
    series: dict[str, Sequence[float | None]],
    x_name: str = 'images',
    unit: str = '',
    log: bool = False,
    scales: Sequence[Scale] = (),
) -> str:
    """A figure with one or two curves, or nothing where no value is known.

    Args:
        title, good: plain text: what it is, and what good values look like.
        x: in increasing order.
        series: values by their names; the name of a single one is not shown.
        x_name: of the horizontal axis, without unit.
        unit: of the values, shown behind them.
        log: logarithmic vertical axis; values that are not positive are left out.
        scales: marked where ``x`` counts layers.
    """
    chosen = thinned(len(x), MOST_POINTS)
    x = [x[i] for i in chosen]
    series = {name: [_known(values[i], log) for i in chosen] for name, values in series.items()}
    known = [v for values in series.values() for v in values if v is not None]
    if not known:
        return ''
    height = 240
    low, high = min(known), max(known)
    if log:
        room = max((high / low) ** 0.04, 1.1)
        low, high = low / room, high * room
    else:
        room = 0.04 * (high - low) or abs(low) / 2 or 1
        low, high = (max(low - room, 0) if low >= 0 else low - room), high + room  # no share or count below 0
    x_low, x_high = (0 if x_name == 'images' else x[0]), x[-1]
    x_high = x_high if x_high > x_low else x_low + 1
    across = _axis(x_low, x_high, LEFT, WIDTH - RIGHT)
    up = _axis(low, high, height - BOTTOM, TOP, log)
    marks = (log_ticks if log else ticks)(low, high)
    if all(v == int(v) for v in known):
        marks = [v for v in marks if v == int(v)] or marks
    body = [_y_tick(v, up(v), unit) for v in marks]
    body += [_x_tick(v, across(v), height) for v in ticks(x_low, x_high, 5)]
    body.append(_x_label(x_name, height))
    for scale in scales:
        left, right = across(scale.first - 0.5), across(scale.last + 0.5)
        if scale.first:
            body.append(f'<line class="scale" x1="{left:.1f}" x2="{left:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        if right - left > 7 * len(scale.name):
            middle = (left + right) / 2
            body.append(f'<text x="{middle:.1f}" y="{TOP - 7}" text-anchor="middle">{_text(scale.name)}</text>')
    for number, values in enumerate(series.values()):
        body += _line([(across(a), None if b is None else up(b)) for a, b in zip(x, values, strict=True)], number)
    keys = '' if len(series) == 1 else ''.join(
        f'<span class="key s{number}"></span>{_text(name)}' for number, name in enumerate(series)
    )  # fmt: skip
    data = {
        'series': [[_rounded(v) for v in values] for values in series.values()],
        'names': list(series) if len(series) > 1 else [''],
        'unit': unit,
    }
    return _figure(title, good, keys, body, height, x, [across(v) for v in x], x_name, data)


def layer_map(
    title: str,
    good: str,
    x: Sequence[float],
    rows: Sequence[Sequence[float | None]],
    colours: Sequence[tuple[int, int, int]],
    low: float,
    high: float,
    unit: str = '',
    row_name: str = 'layer',
    scales: Sequence[Scale] = (),
    log: bool = False,
) -> str:
    """A figure with a coloured cell for each layer (from top to bottom) at each moment (from left to right).

    Args:
        x: images seen at the moments, in increasing order; the cell ends there.
        rows: for each layer its values at the moments; ``thinned(moments, MOST_COLUMNS)`` of them fit.
        colours: from ``low`` to ``high``.
        log: colours by log(1 + value).
        Others as in ``curves``.
    """
    if not rows or not x:
        return ''
    height_of_row = min(max(2.0, 140 / len(rows)), 400 / len(rows), 18)
    height = round(TOP + height_of_row * len(rows) + BOTTOM)
    right_margin = 46 if scales else RIGHT
    values = np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=np.float64)
    change: Callable = np.log1p if log else np.asarray
    share = ((change(values) - change(low)) / max(change(high) - change(low), 1e-12)).clip(0, 1)
    stops = np.linspace(0, 1, len(colours))
    filled = np.nan_to_num(share)
    pixels = np.stack([np.interp(filled, stops, [c[i] for c in colours]) for i in range(3)], -1)
    pixels[np.isnan(share)] = GREY
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(buffer, 'png')
    picture = base64.b64encode(buffer.getvalue()).decode()
    end = WIDTH - right_margin
    cell = (end - LEFT) / len(x)
    middle = [LEFT + cell * (i + 0.5) for i in range(len(x))]
    body = [
        f'<image href="data:image/png;base64,{picture}" x="{LEFT}" y="{TOP}" width="{end - LEFT}" '
        f'height="{height_of_row * len(rows):.1f}" preserveAspectRatio="none" style="image-rendering:pixelated"/>'
    ]
    at = dict.fromkeys(int(v) for v in ticks(0, len(rows) - 1, 7) if v == int(v)) if len(rows) > 1 else {0: None}
    for row in at:
        y = TOP + height_of_row * (row + 0.5)
        body.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{row}</text>')
    for scale in scales:
        top, bottom = TOP + height_of_row * scale.first, TOP + height_of_row * (scale.last + 1)
        if scale.first:
            body.append(f'<line class="scale" x1="{LEFT}" x2="{end}" y1="{top:.1f}" y2="{top:.1f}"/>')
        if bottom - top > 12:
            body.append(f'<text x="{end + 4}" y="{(top + bottom) / 2 + 4:.1f}">{_text(scale.name)}</text>')
    for value in ticks(x[0], x[-1]):
        body.append(_x_tick(value, float(np.interp(value, x, middle)), height, grid=False))
    body += [_x_label('images', height), f'<text x="2" y="{TOP - 6}">{_text(row_name)}</text>']
    ramp = f'background:linear-gradient(90deg, {", ".join(f"rgb{c}" for c in colours)})'
    ends = [_text(f'{v:,.0f}' if v >= 1000 else f'{v:.4g}') + _text(unit) for v in (low, high)]
    key = f'{ends[0]} <span class="ramp" style="{ramp}"></span> {ends[1]}'
    if np.isnan(share).any():
        key += ' &nbsp; <span class="ramp none"></span> too few images to say'
    data = {
        'rows': [[_rounded(v) for v in row] for row in rows],
        'row_name': row_name,
        'row_height': height_of_row,
        'top': TOP,
        'unit': unit,
    }
    return _figure(title, good, key, body, height, x, middle, 'images', data)


def _known(value: float | None, log: bool) -> float | None:
    """The value, or None for one that cannot be drawn."""
    if value is None or not abs(value) < 1e30 or (log and value <= 1e-30):
        return None
    return float(value)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f'{value:.5g}')


def _axis(low: float, high: float, start: float, end: float, log: bool = False) -> Callable[[float], float]:
    """Values low..high -> pixels start..end."""
    change = math.log10 if log else float
    return lambda v: start + (change(v) - change(low)) / (change(high) - change(low)) * (end - start)


def _line(points: Sequence[tuple[float, float | None]], number: int) -> list[str]:
    """A polyline for each stretch of known points; a dot for one that stands alone."""
    parts, stretch = [], []
    for x, y in [*points, (0, None)]:
        if y is not None:
            stretch.append(f'{x:.1f},{y:.1f}')
        elif len(stretch) > 1:
            parts.append(f'<polyline class="curve s{number}" points="{" ".join(stretch)}"/>')
            stretch = []
        elif stretch:
            a, b = stretch.pop().split(',')
            parts.append(f'<circle class="s{number}" cx="{a}" cy="{b}" r="3"/>')
    return parts


def _y_tick(value: float, y: float, unit: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{_text(short(value))}{_text(unit)}</text>'
    )


def _x_tick(value: float, x: float, height: int, grid: bool = True) -> str:
    y = height - BOTTOM
    line = f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP if grid else y}" y2="{y + 3}"/>'
    return f'{line}<text x="{x:.1f}" y="{y + 15}" text-anchor="middle">{_text(short(value))}</text>'


def _x_label(name: str, height: int) -> str:
    return f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{height - 6}" text-anchor="middle">{_text(name)}</text>'


def _figure(
    title: str,
    good: str,
    key: str,
    body: Sequence[str],
    height: int,
    x: Sequence[float],
    px: Sequence[float],
    x_name: str,
    data: dict[str, Any],
) -> str:
    data = {'width': WIDTH, 'x_name': x_name, 'x': list(x), 'px': [round(p, 1) for p in px], **data}
    numbers = json.dumps(data, separators=(',', ':'), allow_nan=False).replace('<', '\\u003c')
    pointer = f'<line class="pointer" x1="0" x2="0" y1="{TOP}" y2="{height - BOTTOM}"/>'
    return (
        f'<figure class="chart"><figcaption><b>{_text(title)}</b> <small>{_text(good)}</small></figcaption>'
        f'<output></output>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{_text(title)}">{"".join(body)}{pointer}</svg>'
        f'<small class="keys">{key}</small><script type="application/json">{numbers}</script></figure>'
    )


def _text(text: str) -> str:
    return html.escape(str(text))
