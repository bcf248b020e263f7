"""What a run shows: the layer table, a line per tick, sheets of pictures, and report.html.

Legend: L layers, K nodes.
"""

import base64
import html
import json
import math
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ddn_networks import Network
from dnnlib.sheets import Tile, draw_sheet, in_pairs, in_rows, save_png
from dnnlib.util import atomic_write, format_time
from torch_utils import misc
from training.monitor import UsageWindow


def layer_table(net: Network) -> str:
    """Size, channels, K, cells and code bits, one line for equal layers, and the sums; shared weights count once."""
    lines = [f'{"layers":>9}  {"size":>9}  {"channels":>8}  {"K":>5}  {"cells":>6}  {"bits":>8}  {"parameters":>11}']
    first = 0
    for layer, spec in enumerate(net.specs):
        if layer + 1 < net.num_layers and net.specs[layer + 1] == spec:
            continue
        n = layer + 1 - first
        used = {p for i in range(first, layer + 1) for m in net.layer_modules(i) for p in m.parameters()}
        used |= set(net.parameters(recurse=False)) if first == 0 else set()  # what the network begins with
        params = sum(p.numel() for p in used)
        span = f'{first}-{layer}' if n > 1 else f'{layer}'
        size = f'{spec.size[0]}x{spec.size[1]}'
        cells = f'{spec.grid[0]}x{spec.grid[1]}'
        bits = n * spec.num_cells * math.log2(spec.num_nodes)
        lines.append(
            f'{span:>9}  {size:>9}  {spec.channels:>8}  {spec.num_nodes:>5}  {cells:>6}  {bits:>8.1f}  {params:>11,}'
        )
        first = layer + 1
    lines += [f'{"":>9}  {len(net.ddls)} sets of nodes for {net.num_layers} layers'] * (len(net.ddls) < net.num_layers)
    total = sum(p.numel() for p in net.parameters())
    sums = f'{f"L = {net.num_layers}":>9}  {"":>9}  {"":>8}  {"codes":>5}  {net.num_codes:>6}'
    lines.append(f'{sums}  {net.num_bits:>8.1f}  {total:>11,}')
    return '\n'.join(lines)


def psnr(images: torch.Tensor, target: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], clipped to that range, over all pixels of all images."""
    return misc.psnr((images.clamp(-1, 1) - target).square().mean().item())


def mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def tick_line(stats: dict[str, Any]) -> str:
    """One tick in one line."""
    dead = mean_or_none(stats['dead'])
    memory = f'{stats["cpu_mem_gb"]:.1f} GB'
    if stats['peak_gpu_mem_gb'] is not None:
        memory += f', GPU {stats["peak_gpu_mem_gb"]:.1f} GB'
    return (
        f'tick {stats["tick"]:<4} {stats["nimg"] / 1000:>9.1f} kimg  {stats["images_per_sec"]:>7.1f} img/s  '
        f'loss {stats["loss"]:.4f}  val PSNR {stats["val_psnr"]:.2f}  '
        f'entropy {np.mean(stats["usage_entropy"]):.3f}  dead {"-" if dead is None else f"{dead:.1%}"}  '
        f'splits {sum(stats["splits"]):,}  {memory}  {format_time(stats["seconds"])} done, '
        f'{format_time(stats["seconds_left"])} left'
    )


class ProgressLine:
    """A bar on terminals: images seen, images/s, time left, loss, dead nodes."""

    def __init__(self, total_nimg: int, start_nimg: int, enabled: bool):
        self.bar = tqdm(
            total=total_nimg,
            initial=start_nimg,
            unit='img',
            unit_scale=True,
            smoothing=0.05,
            dynamic_ncols=True,
            leave=False,
            disable=None if enabled else True,  # None: only where stderr is a terminal
        )
        self.due = 0.0

    def update(self, cur_nimg: int, losses: torch.Tensor, usage: UsageWindow) -> None:
        if self.bar.disable:
            return
        if time.time() >= self.due:
            ready = usage.ready()
            dead = f'{usage.dead_share()[ready].mean():.1%}' if bool(ready.any()) else '-'
            self.bar.set_postfix_str(f'loss {losses.mean():.4f}, dead {dead}', refresh=False)
            self.due = time.time() + 0.5
        self.bar.update(cur_nimg - self.bar.n)

    def clear(self) -> None:
        self.bar.clear()

    def close(self) -> None:
        self.bar.close()


def write_sheets(
    run_dir: str,
    cur_nimg: int,
    samples: torch.Tensor,
    originals: torch.Tensor,
    reconstructions: torch.Tensor,
    columns: int,
) -> None:
    """samples-N.png, and reconstructions-N.png with rows of originals above rows of their reconstructions."""
    sheets = {'samples': in_rows(samples, columns), 'reconstructions': in_pairs(originals, reconstructions, columns)}
    for name, rows in sheets.items():
        save_png(draw_sheet(rows, columns), os.path.join(run_dir, f'{name}-{cur_nimg:09d}.png'))


def write_layers(run_dir: str, cur_nimg: int, originals: torch.Tensor, selected: Sequence[torch.Tensor]) -> None:
    """layers-N.png: each original [C, H, W] and, after it, what the layers choose for it on the way to its
    reconstruction: of ``selected``, L tensors [B, C, h, w], at most 17 evenly spaced, in rows of 9."""
    size = tuple(originals.shape[2:])
    numbers = sorted({round(l) for l in np.linspace(0, len(selected) - 1, min(17, len(selected)))})
    images = [torch.nn.functional.interpolate(selected[l].float(), size, mode='nearest-exact') for l in numbers]
    rows = []
    for i, original in enumerate(originals):
        chosen = [Tile(image[i], f'layer {l}') for l, image in zip(numbers, images, strict=True)]
        rows += [*in_rows([Tile(original, 'original'), *chosen], 9), ()]
    save_png(draw_sheet(rows[:-1]), os.path.join(run_dir, f'layers-{cur_nimg:09d}.png'))


def open_events(run_dir: str) -> Any:
    """A TensorBoard writer into ``run_dir``; ValueError where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        install = "pip install -c constraints.txt -e '.[tensorboard]'"
        raise ValueError(f'--tensorboard=1 needs the package: {install}') from None
    return SummaryWriter(run_dir)


def write_events(events: Any, stats: dict[str, Any]) -> None:
    """The numbers of a tick as TensorBoard scalars; of lists, their means."""
    for name, value in stats.items():
        value = mean_or_none(value) if isinstance(value, list) else value
        if isinstance(value, (int, float)) and name not in ('nimg', 'tick'):
            events.add_scalar(name, value, stats['nimg'])
    events.flush()


# ---------------------------------------------------------------------------------------------------------- report.html


def write_report(run_dir: str) -> None:
    """report.html: curves of every quantity in stats.jsonl, per-layer maps, and the newest pictures, in one file."""
    stats = read_stats(run_dir)
    if not stats:
        return
    nimg = [s['nimg'] for s in stats]
    dead = [mean_or_none(s['dead']) for s in stats]
    last = stats[-1]
    parts = [
        f'<h1>{html.escape(os.path.basename(os.path.abspath(run_dir)))}</h1>',
        f'<p>{html.escape(tick_line(last))}</p>',
        '<div class="row">',
        _curve('loss (mean over layers)', nimg, [s['loss'] for s in stats], log=True),
        _curve('validation PSNR, dB', nimg, [s['val_psnr'] for s in stats]),
        _curve('usage entropy (1: all nodes equally)', nimg, [float(np.mean(s['usage_entropy'])) for s in stats]),
        _curve('dead nodes, share', nimg, dead),
        _curve('images per second', nimg, [s['images_per_sec'] for s in stats]),
        '</div><h2>Per layer (of shared nodes: per set)</h2><div class="row">',
        _bars('loss', last['loss_layers']),
        _bars('usage entropy', last['usage_entropy'], top=1.0),
        _bars('dead share (grey: too few images yet)', last['dead']),
        _bars('splits so far', last['splits']),
        '</div>',
    ]
    for kind, words in (('samples', 'Samples'), ('reconstructions', 'Images above, reconstructions below')):
        names = sorted(n for n in os.listdir(run_dir) if n.startswith(kind) and n.endswith('.png'))
        shown = sorted({round(i) for i in np.linspace(0, len(names) - 1, min(4, len(names)))}) if names else []
        parts.append(f'<h2>{words}</h2><div class="row">')
        for name in (names[i] for i in shown):
            with open(os.path.join(run_dir, name), 'rb') as f:
                data = base64.b64encode(f.read()).decode()
            parts.append(f'<figure><img src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>')
        parts.append('</div>')
    style = (
        'body{font:14px sans-serif;margin:2em;max-width:110em}.row{display:flex;flex-wrap:wrap;gap:1.5em}'
        'figure{margin:0}img{max-width:42em}svg{background:#fafafa}figcaption{color:#555}'
    )
    with atomic_write(os.path.join(run_dir, 'report.html'), 'w') as f:
        f.write(f'<!doctype html><meta charset="utf-8"><title>DDN run</title><style>{style}</style>' + '\n'.join(parts))


def append_stats(run_dir: str, stats: dict[str, Any]) -> None:
    """Add a tick to stats.jsonl, as a line of its own also behind one that a kill cut off."""
    with open(os.path.join(run_dir, 'stats.jsonl'), 'ab+') as f:
        f.seek(max(f.tell() - 1, 0))
        cut_off = f.read() not in (b'', b'\n')
        f.write((('\n' if cut_off else '') + json.dumps(stats) + '\n').encode())


def read_stats(run_dir: str) -> list[dict[str, Any]]:
    """The ticks of stats.jsonl, without those of as many or more images than a later one: a resume did them again."""
    path = os.path.join(run_dir, 'stats.jsonl')
    if not os.path.exists(path):
        return []
    ticks = []
    with open(path) as f:
        for line in f:
            try:
                stats = json.loads(line)
            except json.JSONDecodeError:  # the line that a kill cut off
                continue
            while ticks and ticks[-1]['nimg'] >= stats['nimg']:
                ticks.pop()
            ticks.append(stats)
    return ticks


_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 380, 200, 52, 22


def _svg(title: str, body: str, low: str, high: str, left: str, right: str) -> str:
    text = 'font-size="11" fill="#444"'
    return (
        f'<figure><figcaption>{title}</figcaption><svg width="{_WIDTH}" height="{_HEIGHT}">{body}'
        f'<text x="4" y="14" {text}>{high}</text><text x="4" y="{_HEIGHT - _BOTTOM}" {text}>{low}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}" {text}>{left}</text>'
        f'<text x="{_WIDTH - 4}" y="{_HEIGHT - 6}" text-anchor="end" {text}>{right}</text></svg></figure>'
    )


def _curve(title: str, nimg: Sequence[int], values: Sequence[float | None], log: bool = False) -> str:
    points = [(n, math.log10(v) if log else v) for n, v in zip(nimg, values, strict=True) if v is not None]
    if not points:
        return ''
    xs, ys = zip(*points, strict=True)
    (x0, x1), (y0, y1) = (min(xs), max(xs)), (min(ys), max(ys))
    x = [_LEFT + (v - x0) / max(x1 - x0, 1) * (_WIDTH - _LEFT - 6) for v in xs]
    y = [8 + (y1 - v) / ((y1 - y0) or 1) * (_HEIGHT - _BOTTOM - 12) for v in ys]
    path = ' '.join(f'{a:.1f},{b:.1f}' for a, b in zip(x, y, strict=True))
    body = f'<polyline points="{path}" fill="none" stroke="#0366d6" stroke-width="1.5"/>'
    low, high = (f'{10**v if log else v:.4g}' for v in (y0, y1))
    return _svg(title, body, low, high, f'{x0 / 1000:g} kimg', f'{x1 / 1000:g} kimg')


def _bars(title: str, values: Sequence[float | None], top: float | None = None) -> str:
    """A bar for each layer from 0 to ``top`` (None: the largest value); a grey one, as high as can be, for None."""
    top = top or max((v for v in values if v is not None), default=0.0) or 1.0
    width = (_WIDTH - _LEFT - 6) / len(values)
    full = _HEIGHT - _BOTTOM - 4
    drawn = [(1.0, '#ddd', '-') if v is None else (v / top, '#28a745', f'{v:.4g}') for v in values]
    body = ''.join(
        f'<rect x="{_LEFT + i * width:.1f}" y="{4 + full * (1 - height):.1f}" width="{max(width - 1, 0.5):.1f}" '
        f'height="{full * height:.1f}" fill="{color}"><title>layer {i}: {words}</title></rect>'
        for i, (height, color, words) in enumerate(drawn)
    )
    return _svg(title, body, '0', f'{top:.4g}', 'layer 0', f'layer {len(values) - 1}')
