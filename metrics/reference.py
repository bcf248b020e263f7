"""Statistics of a set of images, their file, and all numbers that compare two of them.

The file is EDM's ``.npz`` with ``mu`` [D] and ``sigma`` [D, D] in float64, so each project reads the files of the
other. Ours also holds ``features`` [N, D] (those of some images, for KID, precision and recall) and ``meta``, a text of
JSON.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dnnlib.readers import one_line, printable, read_json, read_npz
from dnnlib.util import atomic_write, redacted
from metrics import distances

FEW = 10_000  # images; the bias of an FID of fewer is so large that it compares only with others at the same n
K_DENSITY = 5


class Statistics(NamedTuple):
    """Moments of the features of ``num`` images (None: unknown), and the features [n, D] of some of them (or None)."""

    mu: np.ndarray
    sigma: np.ndarray
    num: int | None
    features: torch.Tensor | None
    meta: dict


class FeatureCollector:
    """Statistics of the features of a set of images, which come in batches, on any number of ranks.

    Args:
        dim: D.
        num: number of images of the set, over all ranks.
        keep: number of images whose features are kept whole.
        seed: of the choice of these.
    """

    def __init__(self, dim: int, num: int, keep: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.kept = torch.randperm(num, generator=generator)[:keep].sort().values
        self.moments = distances.Moments(dim)
        # The empty ones are for a rank that gets no batch.
        self.positions = [torch.empty(0, dtype=torch.int64)]
        self.features = [torch.empty(0, dim)]

    def add_(self, features: torch.Tensor, positions: Iterable[int]) -> None:
        """Add the features [B, D] of the images at ``positions``, each of 0 .. num - 1 once."""
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
        """The statistics of all ranks' images, the same on every rank."""
        self.moments.all_reduce_(all_reduce_)
        parts = all_gather_object((torch.cat(self.positions), torch.cat(self.features)))
        positions = torch.cat([p for p, _ in parts])
        features = torch.cat([f for _, f in parts])[positions.argsort()]
        num = self.moments.num
        return Statistics(self.moments.mu, self.moments.sigma, num, features if len(features) else None, meta)


def save_statistics(path: str | Path, statistics: Statistics) -> None:
    """Write the ``.npz``, whole or not at all."""
    arrays = {'mu': statistics.mu, 'sigma': statistics.sigma}
    if statistics.features is not None:
        arrays['features'] = statistics.features.numpy()
    meta = json.dumps(redacted({**statistics.meta, 'num': statistics.num}))
    with atomic_write(path) as file:
        np.savez(file, **arrays, meta=np.array(meta))


def load_statistics(path: str | Path) -> Statistics:
    """Read a reference, ours or EDM's (then ``num`` and ``features`` are None).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or what is in it cannot be statistics of images; in one line with the path.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no such file: {printable(path)}')
    arrays = read_npz(path, ('mu', 'sigma', 'features', 'meta'))
    with one_line(f'{path} is not a file of reference statistics'):
        if not {'mu', 'sigma'} <= arrays.keys():
            raise ValueError('it has no mu and sigma')
        mu, sigma = (_floats(arrays[name], name).astype(np.float64) for name in ('mu', 'sigma'))
        if mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
            raise ValueError(f'mu is {mu.shape}, sigma is {sigma.shape}, wanted (D,) and (D, D)')
        distances.require_covariance(torch.from_numpy(sigma))
        features = None
        if 'features' in arrays:
            features = _floats(arrays['features'], 'features')
            if features.ndim != 2 or features.shape[1] != len(mu):
                raise ValueError(f'features are {features.shape}, wanted (N, {len(mu)})')
            features = torch.from_numpy(features)
        meta = _read_meta(arrays.get('meta', np.array('{}')))
        num = meta.pop('num', None)
        if num is not None and (type(num) is not int or num < max(2, 0 if features is None else len(features))):
            raise ValueError(f'num, the number of images, is {num!r}')
    return Statistics(mu, sigma, num, features, meta)


def _floats(array: np.ndarray, name: str) -> np.ndarray:
    """The array in native byte order. ValueError unless it holds finite float32 or float64."""
    if array.dtype.kind != 'f' or array.dtype.itemsize not in (4, 8):
        raise ValueError(f'{name} holds {array.dtype}, wanted float32 or float64')
    if not np.isfinite(array).all():
        raise ValueError(f'{name} holds numbers that are not finite (NaN or infinite)')
    return np.asarray(array, array.dtype.newbyteorder('='), order='C')


def _read_meta(array: np.ndarray) -> dict:
    """The dict of the JSON text that an array of one element holds. ValueError where it is something else."""
    if array.shape != () or array.dtype.kind not in 'US':
        raise ValueError(f'meta is {array.dtype} {array.shape}, wanted a text')
    text = array.item()
    meta = read_json(text if isinstance(text, bytes) else text.encode('utf-8', 'surrogatepass'), 'meta')
    if not isinstance(meta, dict) or not isinstance(meta.get('detector', {}), dict):
        raise ValueError('meta is JSON, but does not describe a reference')
    return meta


def short_number(n: int) -> str:
    """A sample count for the name of a number: 5000 -> 5k, 1234 -> 1234."""
    return f'{n // 1000}k' if n >= 1000 and n % 1000 == 0 else str(n)


def compare(real: Statistics, fake: Statistics, seed: int = 0, prefix: str = '') -> tuple[dict[str, float], list[str]]:
    """(numbers by name, notes for their reader) of all comparisons that the statistics allow.

    Names include the sample count: ``FID-5k`` is of 5000 images of ``fake``; KID and the others are of so many kept
    features of each side.

    Raises ValueError where the two have different features, or numbers overflow.
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
            "the reference has no features (EDM's have none), so only FID is computed. For KID, precision and recall "
            'make one of the images: fid.py ref --data=DATA --dest=NPZ'
        )
        return numbers, notes
    if fake.features is None:
        notes.append('no features of the images were kept (--keep=0), so only FID is computed')
        return numbers, notes
    x, y = real.features.float(), fake.features.float()
    kept = min(len(x), len(y))
    if kept <= 2 * K_DENSITY:
        notes.append(f'{kept} kept features are too few for KID, precision and recall')
        return numbers, notes
    # Precision and recall depend on the sizes of the sets, so both are cut to the same size.
    generator = torch.Generator().manual_seed(seed)
    x, y = (z[torch.randperm(len(z), generator=generator)[:kept].sort().values] for z in (x, y))
    kid = distances.kernel_distance(x, y, seed=seed)
    name = short_number(kept)
    numbers[f'{prefix}KID-{name}'] = kid.mean
    numbers[f'{prefix}KID-{name} standard error'] = kid.standard_error
    manifold = distances.manifold_metrics(x, y, k_density=K_DENSITY)
    numbers |= {f'{prefix}{key}-{name}': value for key, value in manifold._asdict().items()}
    return numbers, notes
