"""Figs. 4, 17 and 19: K points fit a density, by gradient alone, by Split-and-Prune, by a bias. Needs no data.

    python experiments/toy_density.py                                  # five densities, table and figures, a minute
    python experiments/toy_density.py --density=portrait.jpg           # any picture: where it is bright is mass
    python experiments/toy_density.py --nodes=10000 --samples=100000   # the size of the paper's figure

A node here is a point (x, y) of mass 1/K; a sample of the density moves the node nearest to it. The measure is
KL(nodes || density) on 100 x 100 bins, beside that of K real samples, and beside the floor: the least that any K nodes
of equal mass can have on those bins. The balancing is the one that trains images (ddn_networks); the points themselves
are ten lines here, for a layer of them (H = W = 1, C = 2, F = 1) would spend its time on being general.

The ways to train, each with the same samples:

  gradient        the nearest node moves, nothing else: dead nodes and density shift
  split-prune     Algorithm 1 as published, 40 samples a step, one pair of nodes a step
  pairs           the same with 200 samples and up to K / 32 pairs a step, the learning rate falling: better and faster
  trimmed         pairs of 400 samples, three times over them; samples farther from their nodes than twice the median
                  are no evidence for them and do not move them. So parts of the density with less than a quarter of
                  the median's get no nodes, which KL(nodes || density) rewards and the total variation shows
  bias            Loss-Free Balancing: no node dies, a bias on the distances is moved by the load
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli.options import script_help
from ddn_networks.balance import LossFreeBalancing, UsageCounter
from ddn_networks.split_prune import SplitAndPrune
from metrics import density as densities

BINS = 100


class Method(NamedTuple):
    """A way to train points.

    balance: makes the balancing of a list of one weight [K, D].
    batch: samples a step; passes: how often each sample is used.
    lr: how much of the way to a sample a node goes, in the first step and in the last (in between, geometrically).
    trim: samples that are farther from their nodes than so many times the median of the step are ignored; 0 for none.
    settle: share of the steps, the last, without balancing, in which twins find their places.
    """

    balance: Callable[[list[torch.Tensor]], UsageCounter]
    batch: int = 40
    passes: int = 1
    lr: tuple[float, float] = (0.1, 0.1)
    trim: float = 0.0
    settle: float = 0.0


def split_prune_pairs(weights: list[torch.Tensor]) -> SplitAndPrune:
    return SplitAndPrune(weights, pairs=max(1, len(weights[0]) // 32))


def loss_free(weights: list[torch.Tensor]) -> LossFreeBalancing:
    return LossFreeBalancing(weights, rate=6e-4)  # the best of five


METHODS = {
    'gradient': Method(UsageCounter),
    'split-prune': Method(SplitAndPrune),
    'pairs': Method(split_prune_pairs, batch=200, lr=(0.5, 0.05), settle=0.1),
    'trimmed': Method(split_prune_pairs, batch=400, passes=3, lr=(0.5, 0.05), trim=2.0, settle=0.1),
    'bias': Method(loss_free, lr=(0.3, 0.05)),
}


def move_(nodes: torch.Tensor, samples: torch.Tensor, codes: torch.Tensor, counted: torch.Tensor, lr: float) -> None:
    """Gradient descent on the squared distance: each node goes towards the mean of its samples.

    The step is what ``lr`` of the way to each of c samples one after another would be, 1 - (1 - lr)^c.
    nodes [K, D], samples [B, D], codes [B] int64, counted [B] bool (a sample that is not, moves nothing).
    """
    K, D = nodes.shape
    weight = counted.to(nodes.dtype)[:, None]
    pull = torch.cat([(samples - nodes[codes]) * weight, weight], 1)  # [B, D + 1]
    total = torch.zeros(K, D + 1, dtype=nodes.dtype).index_add_(0, codes, pull)
    c = total[:, D:]
    nodes.add_(total[:, :D] * ((1 - (1 - lr) ** c) / c.clamp(min=1)))


@torch.no_grad()
def train(
    start: np.ndarray,
    samples: np.ndarray,
    method: Method,
    on_step: Callable[[int, int, np.ndarray], None] | None = None,
) -> tuple[np.ndarray, UsageCounter]:
    """Move nodes [K, D] by samples [n, D], each used ``method.passes`` times: the nodes at the end, and the balancing.

    ``on_step(step, steps, nodes)`` is called before every step and after the last.
    """
    nodes = torch.tensor(start, dtype=torch.float32)
    data = torch.tensor(samples, dtype=torch.float32)
    B = min(method.batch, len(data))
    per_pass = len(data) // B
    steps = per_pass * method.passes
    balance = method.balance([nodes])
    score = torch.empty(B, len(nodes))  # made once: the system gives large blocks slowly
    for step in range(steps):
        if on_step is not None:
            on_step(step, steps, nodes.numpy())
        x = data[step % per_pass * B :][:B]  # [B, D]
        torch.addmm(nodes.square().sum(1), x, nodes.t(), alpha=-2, out=score)  # [B, K], |node - x|^2 - |x|^2
        distances = None
        if isinstance(balance, LossFreeBalancing):
            distances = [score + x.square().sum(1, keepdim=True)]
            score += balance.bias[0]
        codes = torch.from_numpy(score.numpy().argmin(1))  # NumPy's takes a tenth of PyTorch's time
        counted = torch.ones(B, dtype=torch.bool)
        if method.trim:
            distance = (x - nodes[codes]).square().sum(1)
            counted = distance <= method.trim**2 * distance.median()
        lr = method.lr[0] * (method.lr[1] / method.lr[0]) ** (step / steps)
        move_(nodes, x, codes, counted, lr)
        balance.observe(codes[:, None], ~counted[:, None], distances)
        if step < (1 - method.settle) * steps:
            balance.step_()
    if on_step is not None:
        on_step(steps, steps, nodes.numpy())
    return nodes.numpy(), balance


# ------------------------------------------------------------------------------------------------------------- pictures

# A ramp from dark blue over green to yellow, evenly growing in lightness.
RAMP = np.array(
    [[20, 12, 52], [52, 46, 110], [44, 94, 135], [30, 140, 132], [78, 186, 98], [176, 216, 64], [252, 240, 90]]
)
INK, PAPER, FAINT_INK = (30, 30, 36), (255, 255, 255), (150, 150, 158)
BLUE, GOLD, RED = (86, 140, 214), (226, 160, 20), (206, 52, 52)


def coloured(density: np.ndarray, top: float, scale: int) -> Image.Image:
    """A density [S, S] in colours, ``top`` the brightest."""
    level = np.clip(density / top, 0, 1) * (len(RAMP) - 1)
    channels = [np.interp(level, np.arange(len(RAMP)), RAMP[:, c]) for c in range(3)]
    return Image.fromarray(np.uint8(np.stack(channels, 2))).resize((density.shape[1] * scale,) * 2, 0)


def write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int = 14, anchor='mm', fill=INK) -> None:
    draw.text(at, text, fill, ImageFont.load_default(size), anchor=anchor)


def panels(rows: dict[str, list[tuple[str, np.ndarray, str]]], scale: int = 2) -> Image.Image:
    """Fig. 17: per density a row of (title, histogram or density, caption)."""
    side, gap, top = BINS * scale, 10, 28
    columns = max(len(row) for row in rows.values())
    page = Image.new('RGB', (gap + columns * (side + gap), top + len(rows) * (side + 34)), PAPER)
    draw = ImageDraw.Draw(page)
    for r, row in enumerate(rows.values()):
        brightest = max(np.quantile(row[0][1], 0.999), row[0][1].max() / 3)
        for c, (title, values, caption) in enumerate(row):
            x, y = gap + c * (side + gap), top + r * (side + 34)
            page.paste(coloured(values / values.sum(), brightest, scale), (x, y))
            write(draw, (x + side / 2, y + side + 14), caption)
            if r == 0:
                write(draw, (x + side / 2, top / 2), title, 15)
    return page


def frame(nodes: np.ndarray, backdrop: Image.Image, caption: str) -> Image.Image:
    """One picture of the animation: the nodes as dots over the density."""
    picture = backdrop.copy()
    draw = ImageDraw.Draw(picture)
    side = picture.width
    for x, y in nodes:
        u, v = (x + 1) / 2 * side, (1 - y) / 2 * side
        draw.rectangle([u - 0.5, v - 0.5, u + 0.5, v + 0.5], fill=(255, 255, 255))
    draw.rectangle([0, side, side, picture.height], fill=PAPER)
    write(draw, (side / 2, side + 11), caption)
    return picture


def animate(
    density: np.ndarray, start: np.ndarray, samples: np.ndarray, method: Method, frames: int
) -> list[Image.Image]:
    """The nodes on their way; more pictures of the beginning, where more happens."""
    scale = 3
    shade = coloured(density * 0.7, max(np.quantile(density, 0.999), density.max() / 3), scale)
    backdrop = Image.new('RGB', (BINS * scale, BINS * scale + 22))
    backdrop.paste(shade)
    pictures = []

    def watch(step: int, steps: int, nodes: np.ndarray) -> None:
        if step >= steps * (len(pictures) / (frames - 1)) ** 2:
            kl = densities.kl(nodes, density)
            pictures.append(frame(nodes, backdrop, f'step {step:,} of {steps:,}   KL {kl:.3f}'))

    train(start, samples, method, watch)
    return [p.quantize(48) for p in pictures]


# -------------------------------------------------------------------------------------------------------- one dimension


def bells(n: int, rng: np.random.Generator) -> np.ndarray:
    """The 1D target of Fig. 4: two bells, a wide and a narrow one. [n, 1]"""
    wide = rng.random(n) < 0.7
    return np.where(wide, rng.normal(-0.25, 0.28, n), rng.normal(0.6, 0.09, n))[:, None]


def line_panel(nodes: np.ndarray, data: np.ndarray, title: str, marks: dict[int, tuple] | None = None) -> Image.Image:
    """One panel of Figs. 4 and 19: nodes [K] on the line, the share P of the data nearest to each, and Q = 1/K.

    Blue: the target's density; grey: P over each node's interval; gold: Q over it. ``marks`` circles nodes in a colour.
    """
    W, H, base = 760, 330, 215
    nodes, colours = np.sort(nodes), {}
    for k, colour in (marks or {}).items():
        colours[int(k)] = colour
    K = len(nodes)
    edges = np.concatenate([[-1.2], (nodes[1:] + nodes[:-1]) / 2, [1.2]])
    P = np.histogram(data, np.concatenate([[-np.inf], edges[1:-1], [np.inf]]))[0] / len(data)
    kl = float((P[P > 0] * np.log(P[P > 0] * K)).sum())
    picture = Image.new('RGB', (W, H), PAPER)
    draw = ImageDraw.Draw(picture)

    def at(x: float, y: float) -> tuple[float, float]:
        return (x + 1.2) / 2.4 * W, base - y * 105

    heights, cuts = np.histogram(data, 160, (-1.2, 1.2), density=True)
    outline = [at((a + b) / 2, h) for a, b, h in zip(cuts[:-1], cuts[1:], heights, strict=True)]
    draw.polygon([at(-1.2, 0), *outline, at(1.2, 0)], fill=(206, 224, 246))
    draw.line(outline, fill=BLUE, width=2)
    for k in range(K):
        left, right = edges[k], edges[k + 1]
        for share, colour, width in ((P[k], FAINT_INK, 3), (1 / K, GOLD, 4)):
            height = min(share / max(right - left, 1e-9), 1.95)
            draw.line([at(left, height), at(right, height)], fill=colour, width=width)
        if k:
            x = at(left, 0)[0]
            for y in range(24, base, 8):
                draw.line([(x, y), (x, y + 3)], fill=(200, 200, 205))
        x, y = at(nodes[k], 0)
        draw.polygon([(x, y + 4), (x - 6, y + 16), (x + 6, y + 16)], fill=INK)
        if k in colours:
            draw.ellipse([x - 13, y - 3, x + 13, y + 23], outline=colours[k], width=3)
        if K <= 8:
            for line, (name, value) in enumerate((('P', P[k]), ('Q', 1 / K), ('P-Q', P[k] - 1 / K))):
                write(draw, (x, base + 34 + 17 * line), f'{name} {value:.2f}', 12)
    draw.line([at(-1.2, 0), at(1.2, 0)], fill=INK)
    write(draw, (12, 14), title, 15, 'lm')
    write(draw, (W - 12, 14), f'KL(P||Q) {kl:.3f}', 15, 'rm')
    legend = 'blue: target   grey: P, the data nearest to a node   gold: Q = 1/K, what it stands for'
    write(draw, (12, H - 14), legend, 12, 'lm', FAINT_INK)
    return picture


def illustrate_line(rng: np.random.Generator) -> Image.Image:
    """Figs. 4 and 19: (a) 5 nodes at the beginning, (b, c) the first split and prune, (d) the end; (e, f) 15 nodes."""
    data = bells(20_000, rng)
    pictures = []
    for K in (5, 15):
        start = np.linspace(-1.1, 1.1, K)[:, None]
        end, _ = train(start, data, Method(SplitAndPrune, batch=10, lr=(0.05, 0.01)))
        if K == 5:
            edges = (start[1:, 0] + start[:-1, 0]) / 2
            P = np.bincount(np.searchsorted(edges, data[:, 0]), minlength=K)
            most, least = int(P.argmax()), int(P.argmin())
            pictures.append(line_panel(start[:, 0], data, '(a) 5 nodes begin evenly spread'))
            marks = {most: RED, least: BLUE}
            pictures.append(line_panel(start[:, 0], data, '(b, c) red has the most data and splits, blue dies', marks))
        else:
            pictures.append(line_panel(start[:, 0], data, '(e) 15 nodes begin'))
        pictures.append(line_panel(end[:, 0], data, f'({"d" if K == 5 else "f"}) {K} nodes at the end'))
    W, H = pictures[0].size
    page = Image.new('RGB', (2 * W, 3 * H), PAPER)
    for i, picture in enumerate(pictures):
        page.paste(picture, (i % 2 * W, i // 2 * H))
    return page


# ---------------------------------------------------------------------------------------------------------- the command


def load_densities(names: tuple[str, ...], archive: str | None) -> dict[str, np.ndarray]:
    """Built-in names, pictures and the arrays of an .npz as densities."""
    found = {}
    if archive is not None:
        try:
            with np.load(archive) as file:
                found |= {name: densities.from_array(file[name]) for name in file.files}
        except (OSError, ValueError) as e:
            raise click.ClickException(f'--densities={archive}: {e}') from None
    for name in names or (() if found else tuple(densities.BUILT_IN)):
        if name in densities.BUILT_IN:
            found[name] = densities.BUILT_IN[name](BINS)
            continue
        try:
            with Image.open(name) as picture:
                found[Path(name).stem] = densities.from_picture(picture, BINS)
        except FileNotFoundError:
            known = ', '.join(densities.BUILT_IN)
            raise click.ClickException(f'--density={name} is no file and none of {known}') from None
        except (UnidentifiedImageError, OSError, ValueError) as e:
            raise click.ClickException(f'--density={name}: {e}') from None
    return found


def table(results: list[dict], methods: list[str]) -> str:
    """The KL table as Markdown, and below it total variation and CPU seconds."""
    def rows(title: str, head: list[str], cells: Callable[[dict], list[str]]) -> list[str]:
        lines = [f'| {title} | ' + ' | '.join(head) + ' |', '| --- ' * (len(head) + 1) + '|']
        return [*lines, *(f'| {r["density"]} | ' + ' | '.join(cells(r)) + ' |' for r in results), '']

    lines = rows('KL(nodes, density), nats', ['K real samples', *methods, 'floor'], lambda r: [
        f'{r["real_samples"]["kl"]:.3f}', *(f'{r["methods"][m]["kl"]:.3f}' for m in methods), f'{r["floor"]:.3f}'])
    lines += rows('total variation', ['K real samples', *methods], lambda r: [
        f'{r["real_samples"]["tv"]:.3f}', *(f'{r["methods"][m]["tv"]:.3f}' for m in methods)])
    lines += rows('CPU seconds', methods, lambda r: [f'{r["methods"][m]["cpu_seconds"]:.2f}' for m in methods])
    return '\n'.join(lines)


@click.command(help=script_help(__file__))
@click.option('--density', 'names', multiple=True, metavar='NAME|PICTURE',
              help=f'What to fit; may be repeated. Built in: {", ".join(densities.BUILT_IN)}.  [default: all of them]')
@click.option('--densities', 'archive', metavar='NPZ', help='Fit every two-dimensional array of this file.')
@click.option('--method', 'methods', multiple=True, type=click.Choice(list(METHODS)),
              help='A way to train; may be repeated.  [default: all]')
@click.option('--nodes', type=click.IntRange(min=2), default=2000, show_default=True, help='K, points of mass 1/K.')
@click.option('--samples', type=click.IntRange(min=1), default=72000, show_default=True,
              help='Samples of the density that training may see.')
@click.option('--seed', type=click.IntRange(min=0), default=0, show_default=True,
              help='Of the samples and the first positions.')
@click.option('--threads', type=click.IntRange(min=1), default=1, show_default=True, help='CPU threads.')
@click.option('--outdir', type=click.Path(file_okay=False), default='out/toy_density', show_default=True,
              help='Where results.json, results.md, panels.png, line.png and nodes.gif go.')
@click.option('--animate', 'animated', default='spiral', show_default=True, metavar='NAME',
              help='Which of the densities the animation shows; "none" for no animation.')
@click.option('--figures/--no-figures', default=True, show_default=True, help='Draw panels, line and animation.')
def main(names, archive, methods, nodes, samples, seed, threads, outdir, animated, figures):
    torch.set_num_threads(threads)
    chosen = load_densities(names, archive)
    methods = [m for m in METHODS if not methods or m in methods]
    out = Path(outdir)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise click.ClickException(f'--outdir={outdir} cannot be made: {e.strerror}') from None
    results, shown = [], {}
    train(np.zeros((nodes, 2)), np.zeros((400, 2)), METHODS['pairs'])  # first calls cost more
    for name, density in tqdm(chosen.items(), desc='densities', disable=None):
        rng = np.random.default_rng(seed)
        real = densities.sample(density, nodes, rng)
        data = densities.sample(density, samples, rng)
        start = rng.uniform(-1, 1, (nodes, 2))
        floor = densities.best_counts(density, nodes)
        result = {
            'density': name,
            'floor': densities.kl_of_counts(floor, density),
            'real_samples': {'kl': densities.kl(real, density), 'tv': densities.total_variation(real, density)},
            'methods': {},
        }
        real_kl = result['real_samples']['kl']
        row = [('density', density, name), ('real samples', densities.histogram(real, BINS), f'KL {real_kl:.3f}')]
        for method in methods:
            began, cpu = time.perf_counter(), time.process_time()
            end, balance = train(start, data, METHODS[method])
            spent = {'seconds': time.perf_counter() - began, 'cpu_seconds': time.process_time() - cpu}
            kl = densities.kl(end, density)
            tv = densities.total_variation(end, density)
            result['methods'][method] = {'kl': kl, 'tv': tv, **spent, 'splits': int(balance.num_splits)}
            row.append((method, densities.histogram(end, BINS), f'KL {kl:.3f}'))
        results.append(result)
        shown[name] = [*row, ('floor', floor, f'KL {result["floor"]:.3f}')]
    settings = {'nodes': nodes, 'samples': samples, 'bins': BINS, 'seed': seed, 'threads': threads}
    text = table(results, methods)
    (out / 'results.json').write_text(json.dumps({**settings, 'results': results}, indent=1) + '\n')
    head = f'K = {nodes:,} nodes, {samples:,} samples, {BINS} x {BINS} bins, seed {seed}, {threads} thread(s).'
    (out / 'results.md').write_text(f'{head}\n\n{text}')
    if figures:
        panels(shown).save(out / 'panels.png', optimize=True)
        illustrate_line(np.random.default_rng(seed)).quantize(64).save(out / 'line.png', optimize=True)
        if animated in chosen:
            rng = np.random.default_rng(seed)
            density = chosen[animated]
            few = min(nodes, 2000)
            start, data = rng.uniform(-1, 1, (few, 2)), densities.sample(density, samples, rng)
            gif = animate(density, start, data, METHODS['pairs'], 40)
            times = [90] * (len(gif) - 1) + [2500]
            gif[0].save(out / 'nodes.gif', save_all=True, append_images=gif[1:], duration=times, loop=0)
    click.echo(f'{head}\n\n{text}\nWritten to {out}/')


if __name__ == '__main__':
    main()
