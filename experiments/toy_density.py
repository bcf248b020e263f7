"""Figs 4, 17 and 19: K points fit a density, by gradient alone, by Split-and-Prune, by a bias. Needs no data.

    python -m experiments.toy_density                                  # five densities, table and figures, a minute
    python -m experiments.toy_density --density=portrait.jpg           # any picture: brightness is density
    python -m experiments.toy_density --nodes=10000 --samples=100000   # the size of the paper's figure

Measures KL(nodes || density) on 100 x 100 bins, against K real samples and against the floor: the least that any K
nodes of equal mass can have on those bins. All ways to train get the same samples:

  gradient        the nearest node moves, nothing else: dead nodes and density shift
  split-prune     Algorithm 1 as published, 40 samples a step, one pair of nodes a step
  pairs           the same with 200 samples and up to K / 32 pairs a step and a falling learning rate: better and faster
  trimmed         pairs of 400 samples, three passes; samples farther from their nodes than twice the median do not move
                  them. Parts of the density with less than a quarter of the median's then get no nodes, which
                  KL(nodes || density) rewards and the total variation shows
  bias            Loss-Free Balancing: nodes never die, the load moves a bias on the distances
"""

from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from tqdm import tqdm

from cli.options import script
from cli.tables import markdown, write_results
from ddn_networks.split_prune import SplitAndPrune
from dnnlib.readers import read_npz
from experiments.points import METHODS, Method, measure, problem, train
from metrics import density as densities

BINS = 100

# ------------------------------------------------------------------------------------------------------------- pictures

# Dark blue, green, yellow, of evenly growing lightness.
RAMP = np.array(
    [[20, 12, 52], [52, 46, 110], [44, 94, 135], [30, 140, 132], [78, 186, 98], [176, 216, 64], [252, 240, 90]]
)
INK, PAPER, FAINT_INK = (30, 30, 36), (255, 255, 255), (150, 150, 158)
BLUE, GOLD, RED = (86, 140, 214), (226, 160, 20), (206, 52, 52)


def coloured(density: np.ndarray, top: float, scale: int) -> Image.Image:
    """A density [S, S] in colours; ``top`` gets the brightest."""
    level = np.clip(density / top, 0, 1) * (len(RAMP) - 1)
    channels = [np.interp(level, np.arange(len(RAMP)), RAMP[:, c]) for c in range(3)]
    return Image.fromarray(np.uint8(np.stack(channels, 2))).resize((density.shape[1] * scale,) * 2, 0)


def write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int = 14, anchor='mm', fill=INK) -> None:
    draw.text(at, text, fill, ImageFont.load_default(size), anchor=anchor)


def panels(rows: dict[str, list[tuple[str, np.ndarray, str]]], scale: int = 2) -> Image.Image:
    """Draw Fig. 17: for each density a row of (title, histogram or density, caption)."""
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
    """Draw a frame of the animation: the nodes as dots over the density."""
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
    """Frames of the nodes in training, denser at the beginning, where more happens."""
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
    """[n, 1] samples of the 1D target of Fig. 4: a wide and a narrow bell."""
    wide = rng.random(n) < 0.7
    return np.where(wide, rng.normal(-0.25, 0.28, n), rng.normal(0.6, 0.09, n))[:, None]


def line_panel(nodes: np.ndarray, data: np.ndarray, title: str, marks: dict[int, tuple] | None = None) -> Image.Image:
    """Draw a panel of Figs 4 and 19: nodes [K] on the line, the share P of the data nearest to each, and Q = 1/K.

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
    legend = 'blue: target   grey: P, the data nearest to a node   gold: Q = 1/K, its mass'
    write(draw, (12, H - 14), legend, 12, 'lm', FAINT_INK)
    return picture


def illustrate_line(rng: np.random.Generator, samples: int) -> Image.Image:
    """Draw Figs 4 and 19: (a) 5 nodes at first, (b, c) the first split and prune, (d) the end; (e, f) 15 nodes."""
    data = bells(samples, rng)
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
    """{name: density} of built-in names, pictures and the arrays of an .npz. Raises ValueError."""
    found = {}
    for name, array in read_npz(archive).items() if archive else ():
        try:
            found[name] = densities.from_array(array)
        except ValueError as error:
            raise ValueError(f'--densities={archive}: {name}: {error}') from None
    for name in names or (() if found else tuple(densities.BUILT_IN)):
        if name in densities.BUILT_IN:
            found[name] = densities.BUILT_IN[name](BINS)
            continue
        try:
            with Image.open(name) as picture:
                found[Path(name).stem] = densities.from_picture(picture, BINS)
        except FileNotFoundError:
            known = ', '.join(densities.BUILT_IN)
            raise ValueError(f'--density={name} is neither a file nor one of {known}') from None
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise ValueError(f'--density={name}: {error}') from None
    return found


def table(results: list[dict], methods: list[str]) -> str:
    """Tables of KL, total variation and CPU seconds as Markdown."""
    kl, tv, seconds = 'KL(nodes, density), nats', 'total variation', 'CPU seconds'
    rows = {kl: [], tv: [], seconds: []}
    for r in results:
        real, made = r['real_samples'], r['methods']
        rows[kl].append({'K real samples': real['kl'], **{m: made[m]['kl'] for m in methods}, 'floor': r['floor']})
        rows[tv].append({'K real samples': real['tv'], **{m: made[m]['tv'] for m in methods}})
        rows[seconds].append({m: made[m]['cpu_seconds'] for m in methods})
    named = {title: [{title: r['density'], **row} for r, row in zip(results, part, strict=True)]
             for title, part in rows.items()}  # fmt: skip
    return '\n\n'.join(markdown(part, '.2f' if title == seconds else '.3f') for title, part in named.items())


@script(__file__)
@click.option('--density', 'names', multiple=True, metavar='NAME|PICTURE',
              help=f'Density to fit; may be repeated. Built in: {", ".join(densities.BUILT_IN)}  [default: all]')
@click.option('--densities', 'archive', metavar='NPZ', help='Fit every two-dimensional array of this file')
@click.option('--method', 'methods', multiple=True, type=click.Choice(list(METHODS)),
              help='Way to train; may be repeated  [default: all]')
@click.option('--nodes', type=click.IntRange(min=2), default=2000, help='K, points of mass 1/K')
@click.option('--samples', type=click.IntRange(min=1), default=72000, help='Training samples of the density')
@click.option('--seed', type=click.IntRange(min=0), default=0, help='Random seed of samples and first positions')
@click.option('--threads', type=click.IntRange(min=1), default=1, help='CPU threads')
@click.option('--outdir', metavar='DIR', default='out/toy_density',
              help='Folder for results.json, results.md, panels.png, line.png and nodes.gif')
@click.option('--animate', 'animated', default='spiral', metavar='NAME',
              help='Density of the animation; "none" for no animation')
@click.option('--figures/--no-figures', default=True, help='Draw panels, line and animation')
def main(names, archive, methods, nodes, samples, seed, threads, outdir, animated, figures):
    torch.set_num_threads(threads)
    chosen = load_densities(names, archive)
    methods = [m for m in METHODS if not methods or m in methods]
    out = Path(outdir)
    out.mkdir(parents=True, exist_ok=True)
    results, shown = [], {}
    for name, density in tqdm(chosen.items(), desc='densities', disable=None):
        given = problem(density, nodes, samples, seed)
        result, ends = measure(name, density, given, methods)
        results.append(result)
        columns = {'real samples': (given.real, result['real_samples']['kl'])}
        columns |= {m: (end, result['methods'][m]['kl']) for m, end in ends.items()}
        shown[name] = [
            ('density', density, name),
            *((title, densities.histogram(points, BINS), f'KL {kl:.3f}') for title, (points, kl) in columns.items()),
            ('floor', densities.best_counts(density, nodes), f'KL {result["floor"]:.3f}'),
        ]
    settings = {'nodes': nodes, 'samples': samples, 'bins': BINS, 'seed': seed, 'threads': threads}
    head = f'K = {nodes:,} nodes, {samples:,} samples, {BINS} x {BINS} bins, seed {seed}, {threads} thread(s).'
    text = f'{head}\n\n{table(results, methods)}'
    write_results(out / 'results', text, {**settings, 'results': results})
    if figures:
        panels(shown).save(out / 'panels.png', optimize=True)
        line = illustrate_line(np.random.default_rng(seed), min(samples, 20_000))
        line.quantize(64).save(out / 'line.png', optimize=True)
        if animated in chosen:
            rng = np.random.default_rng(seed)
            density = chosen[animated]
            few = min(nodes, 2000)
            start, data = rng.uniform(-1, 1, (few, 2)), densities.sample(density, samples, rng)
            gif = animate(density, start, data, METHODS['pairs'], 40)
            times = [90] * (len(gif) - 1) + [2500]
            gif[0].save(out / 'nodes.gif', save_all=True, append_images=gif[1:], duration=times, loop=0)
    click.echo(f'{text}\n\nWritten to {out}/')


if __name__ == '__main__':
    main()
