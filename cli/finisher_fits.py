"""Train a finisher for the network of a snapshot, as ``train.py --fit-finisher`` does."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cli import prior_fits
from cli.networks import load_network
from ddn_networks import Network, snapshots
from dnnlib.readers import reason
from dnnlib.sheets import draw_sheet, in_rows, save_png
from dnnlib.util import atomic_write, file_sha256, format_time
from metrics.detectors import load_lpips, weights_path
from metrics.lpips import MIN_SIZE
from torch_utils import distributed as dist
from torch_utils import misc
from training import finisher_report, report
from training.checkpoint import remove_old_states, state_path
from training.dataset import ImageFolderDataset
from training.finisher_fitting import FinisherFit, Perceptual, Watched, train, warning
from training.interrupt import StopRequest

# Options that training and fitting have in common, and other defaults here: minutes of one core.
DEFAULTS = {'duration': 0.03, 'batch': 32, 'lr': 8e-4, 'ema': '0.002', 'tick': 2.0, 'snap': 2, 'finisher_width': 24}
# What has no meaning for a network whose layers stay as they are, or is not read here.
READ = ('resume', 'ema', 'fit_finisher', 'finisher_width', 'lpips', 'tick', 'snap')
FOREIGN = (
    *(name for name in (*prior_fits.FOREIGN, *prior_fits.UNREAD) if name not in READ), 'prior', 'fit_prior',
    'prior_width', 'prior_clean', 'prior_soft', 'temperature_from', 'chain_dropout', 'condition', 'cond',
    'condition_dropout', 'condition_to', 'workers',
)  # fmt: skip
COLUMNS = 16  # of sheets


def options(o: dict[str, Any], given: set[str], resumed: bool) -> dict[str, Any]:
    """The options with the defaults of fitting. ValueError for one that means nothing here."""
    for name in FOREIGN:
        if name in given:
            raise ValueError(f'--{name.replace("_", "-")} does nothing with --fit-finisher: leave it out')
    return o if resumed else {**o, **{name: value for name, value in DEFAULTS.items() if name not in given}}


def new_network(source: Network, width: int, dataset: ImageFolderDataset) -> Network:
    """The network of ``source`` with a new finisher. ValueError where the images do not fit it."""
    net = prior_fits.with_new(source, 'finisher', {'finisher_width': width}, dataset)
    net.sampling = source.sampling
    return net


def perceptual_loss(
    lpips: str, shape: Sequence[int], device: torch.device, say: Callable[[str], None]
) -> tuple[Perceptual | None, str]:
    """LPIPS for images of ``shape`` (C, H, W), and what it was, in words. ValueError or OSError where weights that are
    named cannot be used."""
    channels, *size = shape
    if lpips == 'none':
        return None, 'none'
    if min(size) < MIN_SIZE or channels not in (1, 3):
        unfit = f'LPIPS needs grey or RGB images of {MIN_SIZE}x{MIN_SIZE} pixels or more'
        if lpips != 'auto':
            raise ValueError(f'--lpips={lpips}: {unfit}; leave it out')
        say(f'Without LPIPS: {unfit}')
        return None, 'none'
    try:
        backbone = None if lpips == 'auto' else lpips
        net = load_lpips(device, backbone)
    except OSError as error:
        if lpips != 'auto':
            raise
        say(f'Without LPIPS: {reason(error)}')
        return None, 'none'
    path = weights_path('lpips-alex', backbone)
    return net, f'{path.name}, sha256 {file_sha256(path)}'


def made_by(network: str, lpips: str) -> dict[str, str | None]:
    """What a snapshot says of its finisher: the network it was fitted to, and its LPIPS in the words of
    ``perceptual_loss``, None for none."""
    return {'network': network, 'lpips': None if lpips == 'none' else lpips}


def fitted(
    o: dict[str, Any],
    seed: int,
    device: torch.device,
    run_dir: str,
    state: str | None,
    stored: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Train in ``run_dir``, from ``state`` on if there is one. ``o``: as ``options`` returns them; ``stored``: what
    training_options.json gets."""
    if dist.get_world_size() > 1:
        raise ValueError('--fit-finisher runs in one process: start it by python, not torchrun')
    source = load_network(o['fit_finisher'], device=device)
    torch.manual_seed(seed)
    net = new_network(source, o['finisher_width'], ImageFolderDataset(o['data']))
    perceptual, words = perceptual_loss(o['lpips'], (net.img_channels, *net.img_resolution), device, say)
    total = max(o['batch'], int(o['duration'] * 1e6))
    fit = FinisherFit(
        prior_fits.fit_of(net, o, seed), perceptual, o['batch'], o['lr'], total, float(o['ema']) * 1e6
    )
    if state is not None:
        fit.load_state(state)
        say(f'Resuming at {fit.nimg:,} images')
    with atomic_write(os.path.join(run_dir, 'training_options.json'), 'w') as f:
        json.dump(stored, f, indent=2)
    num = sum(p.numel() for p in net.finisher.parameters())
    say(f'Training a finisher of {num:,} weights for {o["fit_finisher"]}; LPIPS: {words}')
    facts = {'git_revision': misc.git_revision(), 'finisher': made_by(o['fit_finisher'], words)}
    ticks = 0

    def on_tick(stats: dict[str, float], watched: Watched) -> None:
        nonlocal ticks
        ticks += 1
        report.append_stats(run_dir, stats)
        say(tick_line(stats))
        if line := warning(stats):
            say(line)
        if ticks % o['snap'] == 0 or fit.done or stopping.number:
            keep(fit, watched, run_dir, facts)

    with StopRequest() as stopping:
        train(fit, o['tick'] * 1000, on_tick, stopping.agreed)
        if stopping.number:
            say(stopping.message(run_dir, fit.nimg))
            raise SystemExit(stopping.exit_code)
    say(f'Network with its finisher: {snapshots.network_path(run_dir)}')


def tick_line(stats: dict[str, float]) -> str:
    """One tick in one line."""
    lpips = f'LPIPS {stats["lpips_after"]:.4f} ({stats["lpips_before"]:.4f})  ' if 'lpips_after' in stats else ''
    return (
        f'{stats["nimg"] / 1000:>8.1f} kimg  {stats["images_per_sec"]:>6.1f} img/s  {lpips}'
        f'PSNR {stats["psnr_after"]:.2f} ({stats["psnr_before"]:.2f})  '
        f'detail {stats["detail_after"]:.2f} ({stats["detail_before"]:.2f})  '
        f'logits {stats["gap"]:+.2f} {stats["gap_samples"]:+.2f} apart  '
        f'{format_time(stats["seconds"])} done, {format_time(stats["seconds_left"])} left'
    )


def keep(fit: FinisherFit, watched: Watched, run_dir: str, facts: dict[str, Any]) -> None:
    """Write snapshot, sheets, report and state; of the states the newest ones stay."""
    path = os.path.join(run_dir, f'network-snapshot-{fit.nimg:09d}.safetensors')
    with fit.averaged_weights():
        snapshots.save_network(path, fit.net, meta={**facts, 'cur_nimg': fit.nimg})
    n = 2 * COLUMNS
    rows = {
        'samples': (watched.sampled.images.float(), fit.averaged(watched.sampled)),
        'reconstructions': (watched.real[:n], watched.drawn.images[:n].float(), fit.averaged(watched.drawn)[:n]),
    }
    for name, kinds in rows.items():
        parts = [part for some in zip(*(in_rows(k, COLUMNS) for k in kinds), strict=True) for part in (*some, ())]
        save_png(draw_sheet(parts[:-1]), os.path.join(run_dir, f'{name}-{fit.nimg:09d}.png'))
    finisher_report.write_report(run_dir)
    fit.save_state(state_path(run_dir, fit.nimg))
    remove_old_states(run_dir)
