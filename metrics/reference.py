"""Statistics of a set of images, the file they are kept in, and every number that two of them give.

The file is EDM's `.npz` with `mu` `[D]` and `sigma` `[D, D]` in float64, so theirs are read here and ours there. Ours
also holds `features` `[N, D]` (some of the images', for KID, precision and recall) and `meta`, a JSON text.
"""

import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dnnlib.util import atomic_write, redacted
from metrics import distances

FEW = 10_000  # images; below that FID is biased so much that it compares with nothing but itself
K_DENSITY = 5


class Statistics(NamedTuple):
    """Moments of the features of `num` images (None: unknown), and the features `[n, D]` of some of them (or None)."""

    mu: np.ndarray
    sigma: np.ndarray
    num: int | None
    features: torch.Tensor | None
    meta: dict


class Collector:
    """Takes in the features of a set of images, portion by portion, on any number of ranks.

    Args:
        dim: D.
        num: images of the set, over all ranks.
        keep: of how many the features are kept whole.
        seed: draws those.
    """

    def __init__(self, dim: int, num: int, keep: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.kept = torch.randperm(num, generator=generator)[:keep].sort().values
        self.moments = distances.Moments(dim)
        # The empty ones are what a rank has that gets no portion.
        self.positions = [torch.empty(0, dtype=torch.int64)]
        self.features = [torch.empty(0, dim)]

    def add_(self, features: torch.Tensor, positions: Iterable[int]) -> None:
        """Features `[B, D]` of the images at `positions` (of 0 .. num - 1, each to be shown once)."""
        features = features.detach().cpu().float()
        self.moments.add_(features)
        positions = torch.as_tensor(list(positions))
        wanted = torch.isin(positions, self.kept)
        self.positions.append(positions[wanted])
        self.features.append(features[wanted])

    def finish(
        self,
        all_reduce_: Callable[[torch.Tensor], object] = lambda x: None,
        all_gather_object: Callable[[object], list] = lambda x: [x],
        **meta,
    ) -> Statistics:
        """The statistics of all ranks' images; the same on every rank, whatever their number."""
        self.moments.all_reduce_(all_reduce_)
        parts = all_gather_object((torch.cat(self.positions), torch.cat(self.features)))
        positions = torch.cat([p for p, _ in parts])
        features = torch.cat([f for _, f in parts])[positions.argsort()]
        num = self.moments.num
        return Statistics(self.moments.mu, self.moments.sigma, num, features if len(features) else None, meta)


def save_statistics(path: str | Path, statistics: Statistics) -> None:
    """Write the `.npz`: whole under its name, or not at all."""
    arrays = {'mu': statistics.mu, 'sigma': statistics.sigma}
    if statistics.features is not None:
        arrays['features'] = statistics.features.numpy()
    meta = json.dumps(redacted({**statistics.meta, 'num': statistics.num}))
    with atomic_write(path) as file:
        np.savez(file, **arrays, meta=np.array(meta))


def load_statistics(path: str | Path) -> Statistics:
    """Read a reference, ours or EDM's (then `num` and `features` are None).

    Raises:
        ValueError: in one line, if it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if not hasattr(file, 'files') or not {'mu', 'sigma'} <= set(file.files):
                raise ValueError('it has no mu and sigma')
            mu, sigma = (np.asarray(file[key], dtype=np.float64) for key in ('mu', 'sigma'))
            features = torch.from_numpy(file['features']) if 'features' in file.files else None
            meta = json.loads(str(file['meta'])) if 'meta' in file.files else {}
    except (ValueError, KeyError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path} is no file of reference statistics (npz with mu and sigma): {_line(error)}') from None
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f'{path} is no file of reference statistics: mu is {mu.shape}, sigma is {sigma.shape}')
    if features is not None and (features.ndim != 2 or features.shape[1] != len(mu)):
        raise ValueError(f'{path}: its features are {tuple(features.shape)}, but mu is {mu.shape}')
    return Statistics(mu, sigma, meta.pop('num', None), features, meta)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def short_number(n: int) -> str:
    """5000 -> 5k, 1234 -> 1234: how many images a number was made of, for its name."""
    return f'{n // 1000}k' if n >= 1000 and n % 1000 == 0 else str(n)


def compare(real: Statistics, fake: Statistics, seed: int = 0, prefix: str = '') -> tuple[dict[str, float], list[str]]:
    """Every number that these statistics allow, by name, and what a reader of them must know.

    Names carry n: `FID-5k` is of 5000 images of `fake`; KID and the others of so many kept features of each side.

    Raises ValueError where the two are not of the same features.
    """
    D = len(real.mu)
    if len(fake.mu) != D:
        raise ValueError(f'the reference has {D} features, the detector gives {len(fake.mu)}')
    notes = []
    n = fake.num
    smaller = min(x for x in (n, real.num) if x is not None)
    if smaller <= D:
        notes.append(
            f'{smaller} images leave a covariance of {D} features singular (rank {smaller - 1} at most): '
            f'FID-{short_number(n)} is far too high; use it only against another at the same n, and trust KID more'
        )
    elif smaller < FEW:
        notes.append(
            f'FID of {smaller} images, fewer than {FEW}: its bias is large, so it compares only with others at the '
            'same n; KID has no such bias'
        )
    numbers = {f'{prefix}FID-{short_number(n)}': distances.frechet_distance(real.mu, real.sigma, fake.mu, fake.sigma)}
    if real.features is None:
        notes.append(
            'the reference holds no features (EDM\'s do not): FID alone. For KID, precision and recall make one of the '
            'images: fid.py ref --data DATA --dest NPZ'
        )
        return numbers, notes
    if fake.features is None:
        notes.append('no features of the images were kept (--keep=0): FID alone')
        return numbers, notes
    x, y = real.features.float(), fake.features.float()
    kept = min(len(x), len(y))
    if kept <= 2 * K_DENSITY:
        notes.append(f'{kept} kept features are too few for KID, precision and recall')
        return numbers, notes
    # Precision and recall depend on the sizes of both sets, so these are made equal.
    generator = torch.Generator().manual_seed(seed)
    x, y = (z[torch.randperm(len(z), generator=generator)[:kept].sort().values] for z in (x, y))
    kid = distances.kernel_distance(x, y, seed=seed)
    name = short_number(kept)
    numbers[f'{prefix}KID-{name}'] = kid.mean
    numbers[f'{prefix}KID-{name} standard error'] = kid.standard_error
    manifold = distances.manifold_metrics(x, y, k_density=K_DENSITY)
    numbers |= {f'{prefix}{key}-{name}': value for key, value in manifold._asdict().items()}
    return numbers, notes
