"""The 2D densities of `distribution_playground`, fitted by `sddn` and by us: KL and time, side by side.

    PYTHONPATH=peers python benchmarks/toy_density_peer.py --outdir=out/toy_density_peer

Both peers (MIT) are on PyPI: pip install --no-deps sddn==0.0.2 distribution_playground==0.1.2, beside what they import
(boxx, OpenCV, pandas, matplotlib and more). Everyone gets the same 72,000 samples and the same first positions of K
2000 nodes. `sddn` takes them in 1800 iterations of 40, as its authors do, by gradient descent at the best of several
rates, and again three times over, as our `trimmed` does. Our other ways use each sample once; batches and rates of ours
are those of experiments/toy_density.py. Times are CPU seconds of one thread, training alone, so that they hold on a
busy machine; MALLOC_* of benchmarks/common.py makes `sddn` a third faster.
"""

import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import click
import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402
from cli.options import script_help  # noqa: E402
from metrics import density as densities  # noqa: E402

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
    """sddn's layer as K points: one constant feature, C = 2, 1 x 1 pixels. Returns nodes [K, 2] and CPU seconds.

    Its loss is the mean over two coordinates, so ``rate`` is how much of the way to a sample a node goes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        import sddn
    np.seterr(invalid='ignore')  # it divides by zero on its way
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


@click.command(help=script_help(__file__), context_settings={'show_default': True})
@click.option('--outdir', default='out/toy_density_peer', help='Where results.json and results.md go.')
@click.option('--nodes', default=2000, help='K.')
@click.option('--samples', default=72000, help='Samples of the density.')
@click.option('--seed', default=0, help='Of samples and first positions.')
@click.option('--rate', 'rates', multiple=True, type=float, default=(0.05, 0.1, 0.2),
              help='Learning rate of sddn, the best is taken; repeatable.')
@click.option('--passes', multiple=True, type=click.IntRange(min=1), default=(1, 3),
              help='How often sddn uses each sample, a column each; the first is compared with. Repeatable.')
@click.option('--density', 'names', multiple=True, default=DENSITIES, type=click.Choice(DENSITIES))
def main(
    outdir: str,
    nodes: int,
    samples: int,
    seed: int,
    rates: tuple[float, ...],
    passes: tuple[int, ...],
    names: tuple[str, ...],
) -> None:
    torch.set_num_threads(1)
    facts = common.machine(clock='cpu')
    out = Path(outdir)
    out.mkdir(parents=True, exist_ok=True)
    try:
        maps = {name: d for name, d in peer_densities(100).items() if name in names}
        import sddn  # noqa: F401
    except ImportError as e:
        raise click.ClickException(f'{e}: install the peers first (see the top of this file)') from None
    archive = out / 'densities.npz'
    np.savez_compressed(archive, **maps)
    ours = ROOT / 'experiments' / 'toy_density.py'
    budget = [f'--nodes={nodes}', f'--samples={samples}', f'--seed={seed}', '--threads=1']
    command = [sys.executable, str(ours), f'--densities={archive}', f'--outdir={out}', '--animate=none', *budget]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report = json.loads((out / 'results.json').read_text())
    methods = list(report['results'][0]['methods'])
    rows = []
    bar = tqdm(total=len(maps) * len(rates) * sum(passes), unit='pass', desc='sddn', disable=None)
    for result in report['results']:
        density = maps[result['density']]
        rng = np.random.default_rng(seed)  # the samples that ours had
        densities.sample(density, nodes, rng)
        data = densities.sample(density, samples, rng)
        start = rng.uniform(-1, 1, (nodes, 2))
        result['sddn'] = []
        for number in passes:
            runs = []
            for rate in rates:
                runs.append(train_sddn(start, data, 40, rate, number))
                bar.update(number)
            kls = [densities.kl(points, density) for points, _ in runs]
            best = int(np.argmin(kls))
            result['sddn'].append({
                'passes': number, 'rate': rates[best], 'kl': kls[best], 'cpu_seconds': runs[best][1],
                'kl_of_rates': dict(zip(map(str, rates), kls, strict=True)),
            })  # fmt: skip
        half = (result['sddn'][0]['kl'] + result['floor']) / 2
        cells = [result['density'], f'{result["real_samples"]["kl"]:.3f}']
        cells += [f'{run["kl"]:.3f} ({run["rate"]:g})' for run in result['sddn']]
        cells += [f'{result["methods"][m]["kl"]:.3f}' for m in methods]
        rows.append([*cells, f'{half:.3f}', f'{result["floor"]:.3f}'])
    bar.close()
    theirs = [f'sddn, {n} pass{"es" if n > 1 else ""}' for n in passes]
    head = ['KL, nats', 'real samples', *(f'{name} (best rate)' for name in theirs), *methods, 'half way', 'floor']
    report['machine'] = facts
    text = [
        common.in_words(facts),
        '',
        f'K = {nodes:,}, {samples:,} samples, seed {seed}. sddn in steps of 40 at the best of the rates '
        f'{", ".join(f"{rate:g}" for rate in rates)}; trimmed passes over the samples three times, the rest of ours '
        f'once. Half way is between {theirs[0]} and the floor; times faster are beside {theirs[0]}.',
        '',
    ]
    text += ['| ' + ' | '.join(line) + ' |' for line in (head, ['---'] * len(head), *rows)]
    text += ['', f'| CPU s | {" | ".join(theirs)} | ' + ' | '.join(f'{m} | times faster' for m in methods) + ' |']
    text += ['| --- ' * (1 + len(theirs) + 2 * len(methods)) + '|']
    for result in report['results']:
        times = [run['cpu_seconds'] for run in result['sddn']]
        cells = [f'{result["methods"][m]["cpu_seconds"]:.2f} | {times[0] / result["methods"][m]["cpu_seconds"]:.0f}'
                 for m in methods]
        text.append(f'| {result["density"]} | {" | ".join(f"{t:.2f}" for t in times)} | ' + ' | '.join(cells) + ' |')
    (out / 'results.json').write_text(json.dumps(report, indent=1) + '\n')
    (out / 'results.md').write_text('\n'.join(text) + '\n')
    archive.unlink()
    click.echo('\n'.join(text))


if __name__ == '__main__':
    main()
