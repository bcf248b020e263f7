"""What a run shows: the layer table, a line per tick, sheets of pictures, stats.jsonl, TensorBoard events.

Legend: L layers, K nodes.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ddn_networks import Network, samplers
from dnnlib.readers import one_line, open_regular, reason
from dnnlib.sheets import Tile, draw_sheet, in_pairs, in_rows, save_png
from dnnlib.util import format_time
from torch_utils import misc
from training.monitor import UsageWindow


def layer_table(net: Network, code_bits: Sequence[float] | None = None) -> str:
    """Size, channels, K, cells and code bits, one line for equal layers, and the sums; shared weights count once.
    ``code_bits``: mean bits of a code of each layer as the codec stores it, [L], for a column of those of an image."""
    lines = [f'{"layers":>9}  {"size":>9}  {"channels":>8}  {"K":>5}  {"cells":>6}  {"bits":>8}  {"parameters":>11}']
    coded = [b * spec.num_cells for b, spec in zip(code_bits or (), net.specs, strict=bool(code_bits))]
    lines[0] += f'  {"coded":>8}' if coded else ''
    for first, last in _runs(net.specs):
        used = {p for i in range(first, last + 1) for m in net.layer_modules(i) for p in m.parameters()}
        used |= set(net.parameters(recurse=False)) if first == 0 else set()  # what the network begins with
        params = sum(p.numel() for p in used)
        spec = net.specs[first]
        span = f'{first}-{last}' if last > first else f'{first}'
        size = f'{spec.size[0]}x{spec.size[1]}'
        size += f' / {spec.unshuffle}' * (spec.unshuffle > 1)
        cells = f'{spec.grid[0]}x{spec.grid[1]}'
        bits = (last + 1 - first) * spec.num_cells * math.log2(spec.num_nodes)
        lines.append(
            f'{span:>9}  {size:>9}  {spec.channels:>8}  {spec.num_nodes:>5}  {cells:>6}  {bits:>8.1f}  {params:>11,}'
        )
        lines[-1] += f'  {sum(coded[first : last + 1]):>8.1f}' if coded else ''
    lines += [f'{"":>9}  {len(net.ddls)} sets of nodes for {net.num_layers} layers'] * (len(net.ddls) < net.num_layers)
    if net.specs[-1].unshuffle > 1:
        lines.append(f'{"":>9}  / 2: features of half that size, of which each pixel makes 2x2 of the image')
    sums = f'{f"L = {net.num_layers}":>9}  {"":>9}  {"":>8}  {"codes":>5}  {net.num_codes:>6}'
    lines.append(f'{sums}  {net.num_bits:>8.1f}  {_parameters(net):>11,}')
    lines[-1] += f'  {sum(coded):>8.1f}' if coded else ''
    if net.prior:
        heads = sum(p.numel() for p in net.prior.parameters())
        share = heads_share(net)
        lines.append(f'{"prior":>9}  {heads:,} of the parameters, {share:.0%} of the arithmetic of a pass')
        if share > 0.5:
            lines.append(f'{"":>9}  Warning: the heads take more than half of it; a smaller --prior-width takes less')
    return '\n'.join(lines)


@torch.no_grad()
def heads_share(net: Network) -> float:
    """The share of the own prior in the floating-point operations of a pass that encodes one image, 0 to 1. In a
    training step it is about the same: backward passes of heads and of blocks take twice as many again."""
    training = net.training
    image = torch.zeros(1, net.img_channels, *net.img_resolution, device=net.device)
    condition = image.new_zeros(1, net.condition_channels, 1, 1) if net.condition_channels else None
    with FlopCounterMode(display=False) as counter:
        net.eval()(samplers.with_log_prior(samplers.nearest(image)), 1, condition)
    net.train(training)
    counts = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    name = type(net).__name__
    return sum(counts.get(f'{name}.prior.{i}', 0) for i in range(len(net.prior))) / max(counts['Global'], 1)


def network_facts(net: Network) -> dict[str, Any]:
    """JSON-able: what report.html says of the network."""
    sizes = [spec.size for spec in net.specs]
    scales = [
        {'height': sizes[first][0], 'width': sizes[first][1], 'first': first, 'last': last}
        for first, last in _runs(sizes)
    ]
    facts = {'num_layers': net.num_layers, 'bits': net.num_bits, 'parameters': _parameters(net), 'scales': scales}
    facts |= {'bits_of_codes': [math.log2(spec.num_nodes) for spec in net.specs]}
    return facts | {'table': layer_table(net)}


def _runs(values: Sequence[Any]) -> list[tuple[int, int]]:
    """(first, last) index of each stretch of equal values."""
    ends = [i for i in range(len(values)) if i + 1 == len(values) or values[i + 1] != values[i]]
    return list(zip([0, *(end + 1 for end in ends)], ends, strict=False))


def _parameters(net: Network) -> int:
    return sum(p.numel() for p in net.parameters())


def psnr(images: torch.Tensor, target: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], clipped to that range, over all pixels of all images."""
    return misc.psnr((images.clamp(-1, 1) - target).square().mean().item())


class PriorWatch:
    """Whether the own prior knows the training images by heart: its nats per code of held-out images rise above their
    least by 1 % of a uniform prior's, and are above those of training by 5 %."""

    def __init__(self, net: Network):
        self.uniform = float(torch.tensor(net.code_nodes, dtype=torch.float64).log().mean())
        self.least = math.inf

    def warning(self, stats: Mapping[str, Any]) -> str | None:
        """A line on a tick where they part; None elsewhere."""
        training, held_out = stats.get('prior_nats'), stats.get('val_prior_nats')
        if training is None or held_out is None:
            return None
        self.least = min(self.least, held_out)
        if held_out <= self.least + 0.01 * self.uniform or held_out <= training + 0.05 * self.uniform:
            return None
        return (
            f'Warning: the prior overfits: {held_out:.3f} nats per code of validation images, {training:.3f} in '
            f'training; the least was {self.least:.3f}. More images, or a smaller --prior-width, help'
        )


def mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def tick_line(stats: dict[str, Any]) -> str:
    """One tick in one line."""
    dead = mean_or_none(stats['dead'])
    memory = f'{stats["cpu_mem_gb"]:.1f} GB'
    if stats['peak_gpu_mem_gb'] is not None:
        memory += f', GPU {stats["peak_gpu_mem_gb"]:.1f} GB'
    nats = ''
    if stats.get('val_prior_nats') is not None:
        nats = f'nats {stats["prior_nats"]:.3f}, val {stats["val_prior_nats"]:.3f}  '
    return (
        f'tick {stats["tick"]:<4} {stats["nimg"] / 1000:>9.1f} kimg  {stats["images_per_sec"]:>7.1f} img/s  '
        f'loss {stats["loss"]:.4f}  val PSNR {stats["val_psnr"]:.2f}  {nats}'
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
    reconstruction: of ``selected``, L tensors [B, C, h, w], at most 17 evenly spaced, in one or two rows."""
    size = tuple(originals.shape[2:])
    numbers = sorted({round(l) for l in np.linspace(0, len(selected) - 1, min(17, len(selected)))})
    images = [torch.nn.functional.interpolate(selected[l].float(), size, mode='nearest-exact') for l in numbers]
    num_rows = -(-(1 + len(numbers)) // 9)
    columns = -(-(1 + len(numbers)) // num_rows)
    rows = []
    for i, original in enumerate(originals):
        chosen = [Tile(image[i], f'layer {l}') for l, image in zip(numbers, images, strict=True)]
        rows += [*in_rows([Tile(original, 'original'), *chosen], columns), ()]
    save_png(draw_sheet(rows[:-1]), os.path.join(run_dir, f'layers-{cur_nimg:09d}.png'))


class Attempts:
    """Do what may fail without an end to the run: write logs and pictures. An error is a warning, once for each.

    Attribute ``failed``: what has failed so far.
    """

    def __init__(self):
        self.failed: set[str] = set()

    def __call__(self, what: str, action: Callable, *args: Any) -> None:
        try:
            action(*args)
        except Exception as error:
            if what not in self.failed:
                self.failed.add(what)
                print(f'Warning: {what} could not be written ({reason(error)}); training continues', flush=True)


def open_events(run_dir: str) -> Any:
    """A TensorBoard writer into ``run_dir``; ValueError where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        install = "pip install -c constraints.txt -e '.[tensorboard]'"
        raise ValueError(f'--tensorboard=1 needs the package: {install}') from None
    return SummaryWriter(run_dir, max_queue=1000, flush_secs=30)


def write_events(events: Any, stats: dict[str, Any]) -> None:
    """The numbers of a tick as TensorBoard scalars; of lists, their means."""
    for name, value in stats.items():
        value = mean_or_none(value) if isinstance(value, list) else value
        if isinstance(value, (int, float)) and name not in ('nimg', 'tick'):
            events.add_scalar(name, value, stats['nimg'])  # no flush: it would wait for ever for a writer that failed


# ---------------------------------------------------------------------------------------------------------- stats.jsonl

NUMBERS = ('loss', 'val_psnr', 'images_per_sec', 'seconds')  # what a tick must have, a number or None
LISTS = ('loss_layers', 'usage_entropy', 'dead', 'splits')  # lists of them
MAX_LINE = 16 << 20  # bytes of a tick


def append_stats(run_dir: str, stats: dict[str, Any]) -> None:
    """Add a tick to stats.jsonl, as a line of its own also behind one that a kill cut off."""
    with open(os.path.join(run_dir, 'stats.jsonl'), 'ab+') as f:
        f.seek(max(f.tell() - 1, 0))
        cut_off = f.read() not in (b'', b'\n')
        f.write((('\n' if cut_off else '') + json.dumps(_finite(stats), allow_nan=False) + '\n').encode())


def read_stats(run_dir: str) -> list[dict[str, Any]]:
    """The ticks of stats.jsonl, without those of as many or more images than a later one: a resume did them again."""
    return parse_stats(run_dir)[0]


def parse_stats(run_dir: str) -> tuple[list[dict[str, Any]], int]:
    """(``read_stats``, how many lines are not whole ticks and were skipped: the one that a kill cut off, damage).

    Numbers that are not finite become None.
    """
    path = os.path.join(run_dir, 'stats.jsonl')
    ticks, num_bad = [], 0
    if not os.path.exists(path):
        return ticks, num_bad
    with open_regular(path) as f:
        while line := f.readline(MAX_LINE):
            stats = _tick(line)
            if stats is None:
                num_bad += bool(line.strip())
                continue
            while ticks and ticks[-1]['nimg'] >= stats['nimg']:
                ticks.pop()
            ticks.append(stats)
    return ticks, num_bad


def _tick(line: bytes) -> dict[str, Any] | None:
    """A line of stats.jsonl, or None if it is not one."""
    try:
        with one_line('not a tick'):
            stats = json.loads(line)
            whole = type(stats['nimg']) is int and 0 <= stats['nimg'] < 2**53
            whole &= all(_is_number(stats[key]) for key in NUMBERS)
            whole &= all(isinstance(stats[key], list) and stats[key] for key in LISTS)
            whole &= all(_is_number(value) for key in LISTS for value in stats[key])
            return _finite(stats) if whole else None
    except ValueError:
        return None


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _finite(value: Any) -> Any:
    """JSON without NaN, infinity and integers that no float holds: None is in their place."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, int | float) and not abs(value) < 1e300 else value
