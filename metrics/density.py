"""Densities on a grid of bins, and measures of how well K equal nodes represent one (Fig. 17).

Legend: S x S bins over the square [-1, 1]^2, row 0 at the top (y = 1); K nodes; n samples. A density is a float64 array
[S, S] that sums to 1 and is nowhere zero. Points are (x, y).
"""

import heapq

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FAINT = 1e-20  # mass spread over all bins, so that a node without data costs much, but not infinitely much


def from_array(values: np.ndarray) -> np.ndarray:
    """Non-negative values [S, S] as a density. Raises ValueError for others, or if all are zero."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all() or values.min() < 0 or values.sum() <= 0:
        raise ValueError('a density is a two-dimensional array of numbers >= 0 that are not all zero')
    values = values / values.sum() + FAINT / values.size
    return values / values.sum()


def from_picture(picture: Image.Image, size: int = 100) -> np.ndarray:
    """The brightness of any picture as a density [size, size]."""
    grey = picture.convert('RGB').resize((size, size), Image.Resampling.BOX)
    return from_array(np.asarray(grey, np.float64).mean(2))


def gaussian(size: int = 100) -> np.ndarray:
    x = np.linspace(-1, 1, size)
    return from_array(np.exp(-(x**2 + x[:, None] ** 2) / 0.3))


def rings(size: int = 100) -> np.ndarray:
    """Five rings, increasingly blurred in three corners."""
    big = 4 * size
    sharp = Image.new('L', (big, big))
    draw = ImageDraw.Draw(sharp)
    for x, y in ((0.5, 0.5), (0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)):
        for radius, colour in ((0.1, 255), (0.05, 0)):
            draw.ellipse([(c + s * radius) * big for s in (-1, 1) for c in (x, y)], fill=colour)
    out = sharp.copy()
    for corner, radius in (((1, 0), 0.012), ((0, 1), 0.03), ((1, 1), 0.08)):
        box = tuple(c * big // 2 for c in (*corner, corner[0] + 1, corner[1] + 1))
        out.paste(sharp.filter(ImageFilter.GaussianBlur(radius * big)).crop(box), box)
    return from_picture(out, size)


def code(size: int = 100, modules: int = 25) -> np.ndarray:
    """A picture like a QR code: random modules and three finder squares. It encodes nothing."""
    grid = np.random.RandomState(0).rand(modules, modules) < 0.5
    finder = np.ones((7, 7), bool)
    finder[1:6, 1:6] = False
    finder[2:5, 2:5] = True
    for rows, columns in ((slice(7), slice(7)), (slice(7), slice(-7, None)), (slice(-7, None), slice(7))):
        grid[rows, columns] = finder
    return from_array(np.asarray(Image.fromarray(~grid).resize((size, size), Image.Resampling.NEAREST), float))


def spiral(size: int = 100, turns: float = 3.0) -> np.ndarray:
    x = (np.arange(4 * size) + 0.5) / (2 * size) - 1
    radius, angle = np.hypot(x, x[:, None]), np.arctan2(x[:, None], x)
    phase = radius / 0.9 * turns - angle / (2 * np.pi)
    arm = (np.abs(phase - np.round(phase)) < 0.16) & (radius < 0.9) & (radius > 0.05)
    return from_picture(Image.fromarray(np.uint8(255 * arm)), size)


def words(size: int = 100) -> np.ndarray:
    big = 4 * size
    picture = Image.new('L', (big, big))
    font = ImageFont.load_default(big / 4.6)
    for i, line in enumerate(('Discrete', 'Distribution', 'Networks')):
        width = font.getlength(line)
        fitted = ImageFont.load_default(min(big / 4.6, big / 4.6 * 0.92 * big / width))
        centre = (big / 2, big * (0.2 + 0.3 * i))
        ImageDraw.Draw(picture).text(centre, line, 255, fitted, anchor='mm')
    return from_picture(picture, size)


BUILT_IN = {'gaussian': gaussian, 'rings': rings, 'code': code, 'spiral': spiral, 'words': words}


def sample(density: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw n samples [n, 2], uniform within their bins."""
    S = len(density)
    upto = density.ravel().cumsum()
    bins = np.searchsorted(upto, rng.random(n) * upto[-1], side='right').clip(max=S * S - 1)
    row, column = divmod(bins, S)
    u, v = rng.random((2, n))
    return np.stack([(column + u) / S * 2 - 1, 1 - (row + v) / S * 2], 1)


def histogram(points: np.ndarray, size: int) -> np.ndarray:
    """Count the points [K, 2] in each bin: [size, size] int64. Points outside count for the nearest bin."""
    x, y = np.asarray(points, np.float64).T
    column = np.floor((x + 1) / 2 * size).astype(int).clip(0, size - 1)
    row = np.floor((1 - y) / 2 * size).astype(int).clip(0, size - 1)
    return np.bincount(row * size + column, minlength=size * size).reshape(size, size)


def kl_of_counts(counts: np.ndarray, density: np.ndarray) -> float:
    """KL(nodes || density) in nats, from the nodes per bin."""
    share = counts / counts.sum()
    held = counts > 0
    return float((share[held] * np.log(share[held] / density[held])).sum())


def kl(points: np.ndarray, density: np.ndarray) -> float:
    """KL(P || density) in nats, P the discrete distribution of K points with mass 1/K each (Fig. 17)."""
    return kl_of_counts(histogram(points, len(density)), density)


def total_variation(points: np.ndarray, density: np.ndarray) -> float:
    """Half of sum |P - density|, 0..1. Counts mass that no node represents, which KL(P || density) ignores."""
    return float(np.abs(histogram(points, len(density)) / len(points) - density).sum() / 2)


def best_counts(density: np.ndarray, num_nodes: int) -> np.ndarray:
    """The allocation [S, S] int64 of K equal-mass nodes to bins that has the least KL(nodes || density).

    With c_b nodes in bin b, K KL = sum c_b log c_b - c_b log(K q_b): a sum of convex functions of the c_b. So putting
    each node where it costs least is exact.
    """
    price = -np.log(density.ravel())
    counts = np.zeros(price.size, np.int64)
    heap = [(p, b) for b, p in enumerate(price.tolist())]  # what the next node in bin b costs: c log c is 0 at 0 and 1
    heapq.heapify(heap)
    for _ in range(num_nodes):
        b = heap[0][1]
        counts[b] += 1
        c = counts[b]
        heapq.heapreplace(heap, (float((c + 1) * np.log(c + 1) - c * np.log(c) + price[b]), b))
    return counts.reshape(density.shape)


def floor(density: np.ndarray, num_nodes: int) -> float:
    """The least KL(nodes || density) that K nodes of equal mass can have on these bins."""
    return kl_of_counts(best_counts(density, num_nodes), density)
