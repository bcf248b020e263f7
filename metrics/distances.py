"""Distances between two sets of feature vectors: FID, KID, precision, recall, density, coverage, nearest neighbours.

All in float64, except for the tables of pairwise distances, which have the precision of the features and are made in
pieces of bounded size. Independent of the network that the features come from.

    N M vectors of two sets, D features, K neighbours
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

TABLE_BYTES = 1 << 27  # of one piece of a table of pairwise distances

# -------------------------------------------------------------------------------------------------- moments and FID


class Moments:
    """Streaming mean [D] and covariance [D, D] in float64 of vectors in batches, on any number of ranks.

    Keeps the mean and the sum of squared deviations and merges batches by Chan, Golub and LeVeque (1983), so a large
    mean costs no digits.
    """

    def __init__(self, dim: int):
        self.num = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)  # sum of (x - mean) (x - mean)^T

    def add_(self, features: torch.Tensor) -> 'Moments':
        """Add vectors [N, D]. Raises ValueError for another shape or a number that is not finite."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f'features must be [N, {len(self.mean)}], not {[*features.shape]}')
        if len(features):
            x = features.detach().to('cpu', torch.float64)
            if not x.isfinite().all():
                raise ValueError('features that are not finite (NaN or infinite): no statistics can be made of them')
            total = self.num + len(x)
            mean = x.mean(0)
            step, x = mean - self.mean, x - mean
            self.scatter += x.T @ x
            self.scatter.addr_(step, step, alpha=self.num * len(x) / total)
            self.mean += step * (len(x) / total)
            self.num = total
        return self

    def all_reduce_(self, all_reduce_: Callable[[torch.Tensor], object]) -> 'Moments':
        """Replace the moments by those of all ranks' vectors; ``all_reduce_`` sums a tensor over ranks in place."""
        num = torch.tensor([self.num], dtype=torch.float64)
        all_reduce_(num)
        total = int(num.item())
        mean = self.mean * (self.num / max(total, 1))
        all_reduce_(mean)
        step = self.mean - mean
        scatter = self.scatter + self.num * torch.outer(step, step)
        all_reduce_(scatter)
        self.num, self.mean, self.scatter = total, mean, scatter
        return self

    @property
    def mu(self) -> np.ndarray:
        return self.mean.numpy().copy()

    @property
    def sigma(self) -> np.ndarray:
        """Unbiased covariance (over N - 1). Raises ValueError below two vectors."""
        if self.num < 2:
            raise ValueError(f'a covariance needs at least 2 vectors, not {self.num}')
        sigma = self.scatter / (self.num - 1)
        return ((sigma + sigma.T) / 2).numpy()


def require_covariance(sigma: torch.Tensor) -> torch.Tensor:
    """``covariance_factor`` of a matrix [D, D]. Raises ValueError unless it is finite, symmetric and positive
    semi-definite."""
    if not sigma.isfinite().all():
        raise ValueError('statistics that are not finite (NaN or infinite)')
    if (sigma - sigma.T).abs().max() > 1e-8 * sigma.abs().max():
        raise ValueError('a covariance must be symmetric')
    return covariance_factor(sigma)


def covariance_factor(sigma: torch.Tensor) -> torch.Tensor:
    """A [D, R] with A A^T = sigma [D, D], R its rank. Cholesky where that is safe, else a symmetric
    eigendecomposition. Raises ValueError for eigenvalues that are negative by more than rounding."""
    noise = torch.finfo(sigma.dtype).eps * len(sigma)
    lower, failed = torch.linalg.cholesky_ex(sigma)
    if not failed and lower.diagonal().square().min() > noise * sigma.diagonal().max():
        return lower
    try:
        values, vectors = torch.linalg.eigh(sigma)
    except torch.linalg.LinAlgError as error:
        raise ValueError(f'the eigenvalues of a covariance do not converge ({error})') from None
    if values[0] < -1e-4 * values[-1].abs() or sigma.diagonal().min() < 0:  # float32 rounds to 1e-5 of the largest
        raise ValueError(f'a covariance must be positive semi-definite; this has the eigenvalue {values[0]:.3g}')
    kept = values > noise * values[-1].clamp(min=0)
    return vectors[:, kept] * values[kept].sqrt()


def frechet_distance(mu1, sigma1, mu2, sigma2) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians: |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).  (FID)

    With S = A A^T from a symmetric eigendecomposition, tr (S1 S2)^(1/2) is the sum of the singular values of A1^T A2:
    no matrix root and no root of rounding errors, so singular covariances (fewer images than features) are as exact as
    others, where ``scipy.linalg.sqrtm`` is off by 1e-6 and more.

    Args:
        mu1, mu2: [D]; sigma1, sigma2: [D, D], symmetric, positive semi-definite. Arrays or tensors; float64 inside.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite or overflow, a sigma that is not a covariance.
    """
    mu1, sigma1, mu2, sigma2 = (torch.as_tensor(x).to('cpu', torch.float64) for x in (mu1, sigma1, mu2, sigma2))
    D = mu1.numel()
    for mu, sigma in ((mu1, sigma1), (mu2, sigma2)):
        if tuple(mu.shape) != (D,) or tuple(sigma.shape) != (D, D):
            raise ValueError(
                f'means [D] and covariances [D, D] of one D are needed, not {[*mu1.shape]}, {[*sigma1.shape]} and '
                f'{[*mu2.shape]}, {[*sigma2.shape]}'
            )
        if not mu.isfinite().all():
            raise ValueError('statistics that are not finite (NaN or infinite)')
    overlap = torch.linalg.svdvals(require_covariance(sigma1).T @ require_covariance(sigma2)).sum()
    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * overlap
    if not distance.isfinite():
        raise ValueError('the Frechet distance overflows')
    return max(float(distance), 0.0)


# ------------------------------------------------------------------------------------------------------------- KID


class KID(NamedTuple):
    mean: float
    standard_error: float
    subset_size: int
    num_subsets: int


def polynomial_mmd(x: torch.Tensor, y: torch.Tensor) -> float:
    """Unbiased squared MMD of [N, D] and [M, D], kernel (x.y / D + 1)^3 (Binkowski et al. 2018); can be below 0."""
    N, M, D = len(x), len(y), x.shape[1]
    # The products in the precision of the features: for float32 that is off by 1e-9 here, and twice as fast.
    xx, yy, xy = (((a @ b.T).double() / D + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - xx.diagonal().sum()) / (N * (N - 1)) + (yy.sum() - yy.diagonal().sum()) / (M * (M - 1))
    return float(within - 2 * xy.mean())


def kernel_distance(
    x: torch.Tensor, y: torch.Tensor, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KID:
    """KID: the mean of the unbiased polynomial MMD over random subsets of both sets, and its standard error.

    Subsets overlap once num_subsets * subset_size exceeds a set, and then are worth less than their number. So the
    standard error is the subsets' deviation over the root of how many *disjoint* ones the smaller set has. The estimate
    is unbiased at any subset size; for small sets subsets are a quarter of the smaller one.

    Args:
        x, y: features [N, D], [M, D], at least 8 each.
        seed: of the choice of subsets.

    Raises:
        ValueError: too few vectors, different D, an overflow.
    """
    fewest = min(len(x), len(y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f'KID compares [N, D] with [M, D], not {[*x.shape]} with {[*y.shape]}')
    if fewest < 8:
        raise ValueError(f'KID needs at least 8 vectors of each set, not {len(x)} and {len(y)}')
    size = min(subset_size, fewest // 4)
    generator = torch.Generator().manual_seed(seed)
    draw = lambda z: z[torch.randperm(len(z), generator=generator)[:size].to(z.device)]  # noqa: E731
    values = np.array([polynomial_mmd(draw(x), draw(y)) for _ in range(num_subsets)])
    if not np.isfinite(values).all():
        raise ValueError('KID overflows: the features are too large')
    disjoint = min(num_subsets, fewest // size)
    return KID(float(values.mean()), float(values.std(ddof=1) / math.sqrt(disjoint)), size, num_subsets)


# ------------------------------------------------------------------------------------------------- nearest neighbours


def square_distances(x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield ``(i, table)``: squared distances of x[i : i + len(table)] to all of y, in pieces of TABLE_BYTES at most.

    Raises ValueError where they overflow.
    """
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b loses the digits that a and b share, so subtract these first.
    center = y.double().mean(0).to(y.dtype)
    x, y = x - center, y - center
    y_norm = y.square().sum(1)
    rows = max(1, TABLE_BYTES // max(1, len(y) * y.element_size()))
    for i in range(0, len(x), rows):
        part = x[i : i + rows]
        table = torch.addmm(y_norm, part, y.T, alpha=-2).add_(part.square().sum(1, keepdim=True))
        if not table.isfinite().all():
            raise ValueError('distances between features overflow: the features are too large')
        yield i, table.clamp_(min=0)


def neighbour_radii(x: torch.Tensor, *ks: int) -> list[torch.Tensor]:
    """For each k [N]: squared distance of each vector of x [N, D] to its k-th nearest other one."""
    if not 0 < min(ks) <= max(ks) < len(x):
        raise ValueError(f'{len(x)} vectors have no {max(ks)} nearest others')
    nearest = []
    for i, table in square_distances(x, x):
        rows = torch.arange(len(table), device=table.device)
        table[rows, rows + i] = math.inf  # not itself
        nearest.append(table.topk(max(ks), largest=False).values)
    nearest = torch.cat(nearest)  # [N, max k]
    return [nearest[:, k - 1] for k in ks]


class Nearest:
    """The k nearest vectors of a gallery, which comes in batches (``add_``), to each of a set of queries [N, D].

    ``distances`` [N, k] are Euclidean and ascending, ``indices`` [N, k] int64 count in the order added; infinity and -1
    where fewer than k were added.
    """

    def __init__(self, queries: torch.Tensor, k: int):
        self.queries = queries
        self.seen = 0
        self.indices = torch.full((len(queries), k), -1, dtype=torch.int64, device=queries.device)
        self.distances = torch.full((len(queries), k), math.inf, dtype=torch.float64, device=queries.device)

    def add_(self, gallery: torch.Tensor) -> 'Nearest':
        """Add vectors [M, D] to the gallery."""
        gallery = gallery.to(self.queries)
        k = self.indices.shape[1]
        for i, table in square_distances(self.queries, gallery):
            rows = slice(i, i + len(table))
            near = table.topk(min(k, len(gallery)), largest=False).indices  # [n, k]
            exact = torch.stack(
                [(self.queries[rows] - gallery[column]).double().square().sum(1).sqrt() for column in near.unbind(1)], 1
            )
            distances = torch.cat([self.distances[rows], exact], 1)
            indices = torch.cat([self.indices[rows], near + self.seen], 1)
            order = distances.argsort(dim=1, stable=True)[:, :k]
            self.distances[rows], self.indices[rows] = distances.gather(1, order), indices.gather(1, order)
        self.seen += len(gallery)
        return self


class Closeness(NamedTuple):
    """Distances of samples to training images against those of held-out images. See ``closeness``."""

    closer: float
    copies: float
    median_sample: float
    median_held_out: float


def closeness(samples: torch.Tensor, held_out: torch.Tensor) -> Closeness:
    """Compare nearest-training-image distances of samples [N] and of held-out images [M].

    ``closer`` is the share of (sample, held-out image) pairs in which the sample is closer to its nearest training
    image; ties count half. 0.5: as new as held-out images; towards 1: memorised; towards 0: farther than real images.
    ``copies`` is the share of samples that are closer than 99 % of held-out images; for these themselves it is 0.01.
    """
    s, h = samples.double().sort().values, held_out.double().sort().values
    below = torch.searchsorted(h, s, right=False)  # held-out ones strictly nearer than the sample
    not_above = torch.searchsorted(h, s, right=True)
    closer = 1 - (below + not_above).double().mean() / (2 * len(h))
    copies = (s < h.quantile(0.01)).double().mean()
    return Closeness(float(closer), float(copies), float(s.median()), float(h.median()))


# -------------------------------------------------------------------------- precision, recall, density, coverage


class Manifold(NamedTuple):
    precision: float
    recall: float
    density: float
    coverage: float


def manifold_metrics(real: torch.Tensor, fake: torch.Tensor, k_precision: int = 3, k_density: int = 5) -> Manifold:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), in one pass.

    A set's manifold is the union of balls around its vectors that reach to the k-th nearest other one. Precision: share
    of fakes in the real manifold. Recall: share of reals in the fake manifold. Density: how many real balls hold a
    fake, on average, over k. Coverage: share of real balls that hold a fake. Balls are closed.

    Args:
        real, fake: features [N, D], [M, D], more than k each; tables of distances are made in their precision.

    Raises:
        ValueError: too few vectors, different D.
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f'precision and recall compare [N, D] with [M, D], not {[*real.shape]} with {[*fake.shape]}')
    real_precision, real_density = neighbour_radii(real, k_precision, k_density)
    (fake_radii,) = neighbour_radii(fake, k_precision)
    num_precise = num_balls = 0
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = recalled.clone()
    for i, table in square_distances(fake, real):  # [m, N]
        num_precise += int((table <= real_precision).any(1).sum())
        recalled |= (table <= fake_radii[i : i + len(table), None]).any(0)
        inside = table <= real_density
        num_balls += int(inside.sum())
        covered |= inside.any(0)
    return Manifold(
        num_precise / len(fake),
        float(recalled.double().mean()),
        num_balls / (k_density * len(fake)),
        float(covered.double().mean()),
    )
