"""The 2D densities of ``distribution_playground``, fitted by ``sddn`` and by us: KL and time.

    PYTHONPATH=peers python -m benchmarks.toy_density_peer --out=benchmarks/results/toy_density_peer

Both peers (MIT) are on PyPI: pip install --no-deps sddn==0.0.2 distribution_playground==0.1.2, and what they import
(boxx, OpenCV, pandas, matplotlib and more). All get the same 72,000 samples and the same first positions of K = 2000
nodes. ``sddn`` takes them in 1800 iterations of 40, as its authors do, by gradient descent at the best of several
rates, and again in three passes, as our ``trimmed`` does. Our other ways use each sample once; batches and rates of
ours are those of experiments/points.py. Times are CPU seconds of one thread, training alone, so that they hold on a
busy machine; MALLOC_* of benchmarks/common.py makes ``sddn`` a third faster.
"""

import time
import warnings

import click
import numpy as np
import torch
from tqdm import tqdm

from benchmarks import common
from cli.options import script
from cli.tables import markdown, write_results
from experiments.points import METHODS, measure, problem
from metrics import density as densities

DENSITIES = ('gaussian', 'blur_circles', 'QR_code', 'sprial', 'words')  # the peer's names


def peer_densities(size: int) -> dict[str, np.ndarray]:
    """The peer's five densities, [size, size] each."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        from distribution_playground.density_maps import density_map_builders
    return {name: density_map_builders[name](size)['density'] for name in DENSITIES}


def train_sddn(
    start: np.ndarray, samples: np.ndarray, batch: int, rate: float, passes: int
) -> tuple[np.ndarray, float]:
    """Train sddn's layer as K points: one constant feature, C = 2, 1 x 1 pixels. Returns nodes [K, 2] and CPU seconds.

    Its loss is the mean over two coordinates, so ``rate`` is the fraction of the way to a sample that a node moves.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        import sddn
    np.seterr(invalid='ignore')  # it divides by zero
    K = len(start)
    layer = sddn.DiscreteDistributionOutput(K, last_c=1, predict_c=2, leak_choice=False, size=1)
    layer.learn_residual = False
    with torch.no_grad():
        layer.multi_out_conv1x1.weight.copy_(torch.tensor(start, dtype=torch.float32).reshape(2 * K, 1, 1, 1))
    optimizer = torch.optim.SGD(layer.parameters(), rate)
    data = torch.tensor(samples, dtype=torch.float32)[:, :, None, None]
    feature = torch.ones(batch, 1, 1, 1)
    began = time.process_time()
    per_pass = len(data) // batch
    for i in range(per_pass * passes):
        at = i % per_pass * batch
        out = layer({'feat_last': feature, 'target': data[at : at + batch]})
        optimizer.zero_grad()
        out['loss'].sum().backward()
        optimizer.step()
        layer.try_split(optimizer)
    seconds = time.process_time() - began
    return layer.multi_out_conv1x1.weight.detach().reshape(K, 2).double().numpy(), seconds


@script(__file__)
@click.option('--out', metavar='PATH', help='Write PATH.md and PATH.json')
@click.option('--nodes', default=2000, type=click.IntRange(min=2), help='K')
@click.option('--samples', default=72000, type=click.IntRange(min=40), help='Samples of the density')
@click.option('--seed', default=0, type=click.IntRange(min=0), help='Random seed of samples and first positions')
@click.option('--rate', 'rates', multiple=True, type=float, default=(0.05, 0.1, 0.2),
              help='Learning rate of sddn, of which the best is taken; may be repeated')
@click.option('--passes', multiple=True, type=click.IntRange(min=1), default=(1, 3),
              help='Passes of sddn over the samples, a column each; times are against the first. May be repeated')
@click.option('--density', 'names', multiple=True, default=DENSITIES, type=click.Choice(DENSITIES),
              help='Density to fit; may be repeated')
def main(
    out: str | None,
    nodes: int,
    samples: int,
    seed: int,
    rates: tuple[float, ...],
    passes: tuple[int, ...],
    names: tuple[str, ...],
) -> None:
    torch.set_num_threads(1)
    facts = common.machine(clock='cpu')
    try:
        maps = {name: d for name, d in peer_densities(100).items() if name in names}
        import sddn  # noqa: F401
    except ImportError as error:
        raise click.ClickException(f'{error}: install the peers first, see --help') from None
    theirs = [f'sddn, {n} pass{"es" if n > 1 else ""}' for n in passes]
    results, kl_rows, time_rows = [], [], []
    bar = tqdm(total=len(maps) * len(rates) * sum(passes), unit='pass', desc='sddn', disable=None)
    for name, density in maps.items():
        given = problem(density, nodes, samples, seed)
        result, _ = measure(name, density, given, list(METHODS))
        result['sddn'] = []
        for number in passes:
            runs = []
            for rate in rates:
                runs.append(train_sddn(given.start, given.data, 40, rate, number))
                bar.update(number)
            kls = [densities.kl(points, density) for points, _ in runs]
            best = int(np.argmin(kls))
            result['sddn'].append({
                'passes': number, 'rate': rates[best], 'kl': kls[best], 'cpu_seconds': runs[best][1],
                'kl_of_rates': dict(zip(map(str, rates), kls, strict=True)),
            })  # fmt: skip
        results.append(result)
        ours, peers = result['methods'], result['sddn']
        kl_rows.append({
            'KL, nats': name, 'real samples': result['real_samples']['kl'],
            **{f'{t} (best rate)': f'{r["kl"]:.3f} ({r["rate"]:g})' for t, r in zip(theirs, peers, strict=True)},
            **{m: ours[m]['kl'] for m in METHODS},
            'half way': (peers[0]['kl'] + result['floor']) / 2, 'floor': result['floor'],
        })  # fmt: skip
        row = {'CPU s': name} | {t: r['cpu_seconds'] for t, r in zip(theirs, peers, strict=True)}
        for m in METHODS:
            seconds = ours[m]['cpu_seconds']
            row |= {m: seconds, f'{m}, times faster': f'{peers[0]["cpu_seconds"] / seconds:.0f}'}
        time_rows.append(row)
    bar.close()
    text = '\n\n'.join([
        common.in_words(facts),
        f'K = {nodes:,}, {samples:,} samples, seed {seed}. sddn in steps of 40 at the best of the rates '
        f'{", ".join(f"{rate:g}" for rate in rates)}; trimmed takes three passes over the samples, our other ways one. '
        f'Half way is between {theirs[0]} and the floor; times faster are against {theirs[0]}.',
        markdown(kl_rows, '.3f'),
        markdown(time_rows, '.2f'),
    ])  # fmt: skip
    click.echo(text)
    if out:
        settings = {'nodes': nodes, 'samples': samples, 'bins': 100, 'seed': seed, 'threads': 1}
        write_results(out, text, {**settings, 'results': results, 'machine': facts})


if __name__ == '__main__':
    main()
