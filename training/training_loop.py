"""The training loop: one flat function.

A step: images -> one pass that selects the nearest candidates -> per-layer L2 -> backward -> Adam -> Split-and-Prune ->
EMA. All randomness and the data position are functions of (seed, images seen), so a resumed run equals one that never
stopped, and a batch is the same batch on any number of ranks.

Legend: B images of a micro-batch, L layers, K nodes, C image channels, H x W pixels.
"""

import contextlib
import json
import os
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import torch

import ddn_networks
from ddn_networks import prior, samplers
from ddn_networks.network import Output
from dnnlib.images import to_float
from dnnlib.util import atomic_write, format_time
from torch_utils import distributed as dist
from torch_utils import misc, persistence, training_stats
from training import checkpoint, report
from training.augment import AugmentPipe
from training.dataset import ImageFolderDataset, PairedDataset
from training.ema import EMA
from training.interrupt import StopRequest
from training.loader import BatchStream, Loader
from training.loss import layer_losses, prior_loss, total_loss
from training.monitor import Health, UsageWindow
from training.report_html import write_report

GRID = (10, 10)  # rows and columns of the sample sheet
LAYERS_OF = 4  # validation images that are shown layer by layer
BALANCERS = {
    'split-prune': ddn_networks.SplitAndPrune,
    'prefix': ddn_networks.PrefixBalancing,
    'bias': ddn_networks.LossFreeBalancing,
    'none': ddn_networks.UsageCounter,
}
LOOK_EVERY = 16  # steps between two looks at what costs a wait for the device


def training_loop(
    run_dir: str,
    dataset_kwargs: dict[str, Any],
    network_kwargs: dict[str, Any],
    network_class: str = 'ddn_networks.single_shot.DDN',
    seed: int = 0,
    batch_size: int = 512,
    batch_gpu: int | None = None,
    total_nimg: int = 200_000_000,
    lr: float = 1e-3,
    lr_rampup_nimg: int = 10_000_000,
    lr_decay: str = 'none',
    betas: Sequence[float] = (0.9, 0.999),
    ema_halflives_nimg: Sequence[float] = (500_000,),
    chain_dropout: float = 0.05,
    balance: str = 'split-prune',
    balance_kwargs: dict[str, Any] | None = None,
    augment_kwargs: dict[str, Any] | None = None,
    condition_dropout: float = 0.0,
    pair_data: str | None = None,
    val_pairs: str | None = None,
    precision: str = 'fp32',
    loss_scale: float | None = None,
    on_nan: str = 'stop',
    compile_blocks: bool = False,
    grad_checkpoint: bool = False,
    share_prefixes: bool = False,
    prior_clean: float = 0.5,
    prior_softness: float = 0.0,
    tick_nimg: int = 50_000,
    snapshot_ticks: int = 50,
    state_ticks: int = 50,
    val_data: str | None = None,
    num_workers: int = 1,
    tensorboard: bool = False,
    cudnn_benchmark: bool = True,
    device: torch.device | str = 'cpu',
    transfer: str | None = None,
    resume_state: str | None = None,
    resume_unchanged: bool = False,
    snapshot_meta: dict[str, Any] | None = None,
    run_options: dict[str, Any] | None = None,
) -> None:
    """Train a DDN and leave logs, snapshots, training states and pictures in ``run_dir``.

    Args:
        run_dir: an existing folder.
        dataset_kwargs, network_kwargs: arguments of ``ImageFolderDataset`` and of the network.
        network_class: of ``persistence.ALLOWED_CLASSES``.
        seed: of the weights, the order of the data, Chain Dropout and dropout.
        batch_size: images per step over all ranks; ``batch_gpu``: images per rank that pass at once (accumulation
            gives the same result), None for all.
        total_nimg: images to train for. Units of all ``*_nimg``: images.
        lr, lr_rampup_nimg, lr_decay: Adam's learning rate after a linear ramp; 'none' keeps it, 'cosine' takes it to
            zero at ``total_nimg``.
        ema_halflives_nimg: half-lives of the averaged copies; the first one draws the pictures.
        chain_dropout: probability that chance makes a layer's choice (Section 3.3).
        balance: a key of ``BALANCERS``: 'split-prune' (Algorithm 1), 'prefix' (the same, also given the choices
            before), 'bias' (Loss-Free Balancing, Appendix E), 'none'; with ``balance_kwargs`` for its class.
        augment_kwargs: arguments of ``AugmentPipe``, or None for no augmentation.
        condition_dropout: probability that an image gets no condition; the conditions are the network's own.
        pair_data, val_pairs: the pictures of condition 'image:C', of the training and of the validation images.
        precision: 'fp32', 'bf16' or 'fp16' of the blocks; distances, images, losses and counts stay float32 or wider.
        loss_scale: the first scale of the loss with fp16; it then adapts. None for 65536.
        on_nan: 'stop' or 'skip' a step whose loss or gradient is not finite.
        compile_blocks, grad_checkpoint: torch.compile of the blocks; recompute blocks in the backward pass.
        share_prefixes: make features once for the images of a batch that made the same choices so far: the same
            numbers, and faster where the batch is large against the K of the first layers.
        prior_clean: of a network with a prior, the share of each batch without Chain Dropout; with many cells no other
            image has a clean prefix. ``prior_softness``: see ``prior_loss``.
        tick_nimg: images between two lines of progress; ``snapshot_ticks``, ``state_ticks``: ticks between snapshots
            with pictures, and between training states.
        val_data: images of the validation batch; None takes the training set's.
        transfer: a snapshot whose weights to begin with, where names and shapes fit.
        resume_state: a training state to go on from; ``resume_unchanged``: with the data and options that the run had.
        snapshot_meta: JSON-able facts for the snapshots' headers.
        run_options: JSON-able; they are in training_options.json once nothing of them stands against the run.

    Raises:
        SystemExit: after SIGINT, SIGTERM or SIGHUP; the state is saved.
        ValueError, OSError: bad data or options, in one line.
        FloatingPointError: a loss or gradient is not finite.
    """
    start_time = time.time()
    device = torch.device(device)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.backends.cudnn.benchmark = cudnn_benchmark
    torch.manual_seed(seed)

    # Data.
    dataset = ImageFolderDataset(**dataset_kwargs)
    image_shape = (dataset.num_channels, *dataset.resolution)  # (C, H, W)
    val_set = dataset if val_data is None else ImageFolderDataset(val_data, dataset_kwargs.get('use_labels', False))
    if (val_set.num_channels, *val_set.resolution) != image_shape:
        raise ValueError(f'{val_data} has images {val_set.num_channels, *val_set.resolution}, training {image_shape}')
    num_shown = min(GRID[0] * GRID[1], len(val_set))
    shown = [int(i) for i in np.linspace(0, len(val_set) - 1, num_shown)]
    loaded = dataset
    if pair_data is not None:
        loaded = PairedDataset(dataset, pair_data, dataset.cached)
        val_set = loaded if val_data is None else PairedDataset(val_set, val_pairs or pair_data)
    val_batch = [torch.from_numpy(np.stack(x)) for x in zip(*(val_set[i] for i in shown), strict=True)]
    val_images = to_float(val_batch[0]).to(device)

    # Network, optimizer, balance, averages.
    pipe = AugmentPipe(**augment_kwargs) if augment_kwargs else None
    augment_dim = pipe.label_dim if pipe else 0
    net = persistence.rebuild({'class_name': network_class, 'kwargs': {**network_kwargs, 'augment_dim': augment_dim}})
    net = net.to(device, memory_format=misc.memory_format(device, precision)).train()
    val_condition = _condition(net, val_images, *val_batch[1:]) if net.conditions else None
    if transfer is not None and resume_state is None:
        left = misc.copy_params_and_buffers_(persistence.load_network(transfer).state_dict(), net, allow_missing=True)
        dist.print0(f'Weights from {transfer}' + ''.join(f'\n  left at random: {line}' for line in left))
    if compile_blocks:
        for block in net.blocks:
            block.compile()
    # The fused step is one kernel on CUDA; what it brings on a CPU: benchmarks/backbone_options.py.
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, betas=tuple(betas), eps=1e-8, fused=device.type != 'mps')
    balancer = BALANCERS[balance](
        net.node_weights,
        net.ddl_of_layer,
        num_cells=[spec.num_cells for spec in net.specs],
        reduce_fn=dist.all_reduce_ if world_size > 1 else None,
        dtype=torch.float32 if device.type == 'mps' else torch.float64,
        **(balance_kwargs or {}),
    )
    ema = EMA(dict(net.named_parameters()), ema_halflives_nimg)
    for copy in ema.copies.values():
        balancer.follow([copy[name] for name, _ in _node_weights(net)])
    heads = {name: p for name, p in net.named_parameters() if name.startswith('prior.')}
    balancer.follow_prior(net.prior_heads, [{p: copy[n] for n, p in heads.items()} for copy in ema.copies.values()])
    balancer.attach(optimizer)
    autocast_dtype = misc.PRECISIONS[precision]
    scaler = torch.amp.GradScaler(device.type, init_scale=loss_scale or 2**16, enabled=precision == 'fp16')
    ddp = net
    if world_size > 1:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', FutureWarning)  # 2.13 has another name for broadcast_buffers
            ddp = torch.nn.parallel.DistributedDataParallel(net, broadcast_buffers=False, gradient_as_bucket_view=True)

    # Where to begin.
    cur_nimg = 0
    if resume_state is not None:
        meta = checkpoint.load_state(resume_state, net, ema, optimizer, balancer)
        cur_nimg = meta['cur_nimg']
        if meta.get('scaler') and meta.get('loss_scale') == loss_scale:  # a new --ls begins anew
            scaler.load_state_dict(meta['scaler'])
        dist.print0(f'Resuming from {resume_state} at {cur_nimg:,} images.')
    stream = BatchStream(len(dataset), seed, cur_nimg, batch_size, batch_gpu, rank, world_size)
    data = Loader(loaded, stream, device, num_workers)
    events = report.open_events(run_dir) if tensorboard and rank == 0 else None
    if rank == 0:
        aside = checkpoint.set_newer_aside(run_dir, cur_nimg, resume_unchanged)
        if aside:
            print(f'{aside} states, snapshots and pictures of later than {cur_nimg:,} images are kept as *.old')
        with atomic_write(os.path.join(run_dir, 'training_options.json'), 'w') as f:
            json.dump({**(run_options or {}), 'network': report.network_facts(net)}, f, indent=2)
        print(report.layer_table(net), flush=True)
    rounds, B = stream.num_accumulation_rounds, stream.batch_gpu
    dist.print0(
        f'Training on {device.type} x {world_size}: {len(dataset):,} images of {dataset.name}, batch {batch_size}'
        f'{f" in {rounds} rounds" if rounds > 1 else ""}, {precision}, {total_nimg:,} images in all.'
    )

    usage = UsageWindow(balancer)
    losses = torch.zeros(net.num_layers, device=device)  # of the step
    loss_sum, loss_steps = torch.zeros_like(losses), 0  # since the last tick
    health = Health(net, watch_gradients=precision != 'fp16')
    collector = training_stats.Collector(device)
    tick, tick_start_nimg, tick_start_time = cur_nimg // tick_nimg, cur_nimg, time.time()
    first_nimg, run_seconds = cur_nimg, 0.0
    stop = StopRequest()
    progress = report.ProgressLine(total_nimg, cur_nimg, enabled=rank == 0)

    def save_state() -> None:
        path = checkpoint.state_path(run_dir, cur_nimg)
        if rank == 0 and not os.path.exists(path):
            health.raise_if_bad(run_dir)
            meta = {'cur_nimg': cur_nimg, 'scaler': scaler.state_dict(), 'loss_scale': loss_scale}
            checkpoint.save_state(path, net, ema, optimizer, balancer, meta)

    def maintain() -> None:
        """What is due after ``cur_nimg`` images: a line, pictures, a snapshot, a training state."""
        nonlocal tick, tick_start_nimg, tick_start_time, loss_steps, run_seconds
        done = cur_nimg >= total_nimg
        if not (done or cur_nimg >= (tick + 1) * tick_nimg):
            return
        health.raise_if_bad(run_dir)
        last_tick, tick = tick, cur_nimg // tick_nimg
        dist.all_reduce_(loss_sum)
        usage.reduce_()
        collected = collector.update()
        seconds = time.time() - tick_start_time
        run_seconds += seconds
        mean_losses = (loss_sum / loss_steps / world_size).tolist()  # NaN where every step was skipped
        loss_sum.zero_()
        loss_steps = 0
        if rank == 0:
            stats = {
                'nimg': cur_nimg,
                'tick': tick,
                'loss': float(np.mean(mean_losses)),
                'loss_layers': mean_losses,
                'loss_std': collected['loss'].std,
                'grad_norm': collected['grad_norm'].mean,
                'skipped_steps': health.num_skipped,
                'val_psnr': _validation_psnr(net, ema, val_images, val_condition),
                **_prior_stats(net, ema, collected, val_images, val_condition),
                **usage.stats(),
                'splits': balancer.num_splits.tolist(),
                'lr': learning_rate(cur_nimg, lr, lr_rampup_nimg, lr_decay, total_nimg),
                'images_per_sec': (cur_nimg - tick_start_nimg) / seconds,
                'seconds': time.time() - start_time,
                'seconds_left': (total_nimg - cur_nimg) * run_seconds / (cur_nimg - first_nimg),
                'cpu_mem_gb': psutil.Process().memory_info().rss / 2**30,
                'peak_gpu_mem_gb': torch.cuda.max_memory_allocated(device) / 2**30 if device.type == 'cuda' else None,
            }
            progress.clear()
            print(report.tick_line(stats), flush=True)
            report.append_stats(run_dir, stats)
            if events is not None:
                report.write_events(events, stats)
            if done or tick // snapshot_ticks > last_tick // snapshot_ticks:
                _write_pictures(run_dir, cur_nimg, net, ema, val_images, val_condition)
                persistence.save_network(
                    os.path.join(run_dir, f'network-snapshot-{cur_nimg:09d}.safetensors'),
                    net,
                    ema.copies,
                    {**(snapshot_meta or {}), 'cur_nimg': cur_nimg},
                )
                write_report(run_dir)
            if done or tick // state_ticks > last_tick // state_ticks:
                save_state()
        usage.next_tick()
        dist.barrier()
        tick_start_nimg, tick_start_time = cur_nimg, time.time()

    with contextlib.closing(data), stop:
        step = 0
        while cur_nimg < total_nimg:
            # What chance decides in this step, for the whole batch; this rank takes its rows.
            chance = torch.Generator().manual_seed(_step_seed(seed, cur_nimg))
            table = samplers.chain_dropout_codes(net.code_nodes, chain_dropout, batch_size, chance)
            if net.prior:
                table[: round(prior_clean * batch_size)] = -1
            table = table.view(world_size, rounds, B, -1)[rank].to(device, non_blocking=True)  # [rounds, B, L]
            changes = pipe.draw(batch_size, chance).view(world_size, rounds, B, -1)[rank] if pipe else None
            told = None
            if net.conditions:
                told = net.conditions.draw(batch_size, condition_dropout, chance).view(world_size, rounds, B, -1)[rank]
            torch.manual_seed(_step_seed(seed, cur_nimg, rank))
            if not stop.wait(data.ready):
                save_state()
                progress.clear()
                dist.print0(stop.message(run_dir, cur_nimg))
                raise SystemExit(stop.exit_code)
            micro_batches = next(data)

            optimizer.zero_grad(set_to_none=True)
            losses.zero_()
            for r, (images, *facts) in enumerate(micro_batches):
                images = to_float(images.to(device, non_blocking=True))  # [B, C, H, W]
                labels = condition = None
                if pipe is not None:
                    images, labels = pipe.apply(images, changes[r])
                if told is not None:
                    condition = _condition(net, images, *facts, draws=told[r])  # [B, c, H, W]
                target = samplers.target_pyramid(images)
                sampler = samplers.chain_dropout(samplers.nearest_to(target, balancer.penalty), table[r])
                sampler = samplers.with_log_prior(sampler) if net.prior else sampler
                sync = ddp.no_sync() if world_size > 1 and r < rounds - 1 else contextlib.nullcontext()
                with sync:
                    with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
                        output = ddp(
                            sampler, len(images), condition, keep=True, augment_labels=labels,
                            share_prefixes=share_prefixes, grad_checkpoint=grad_checkpoint,
                        )  # fmt: skip
                    per_layer = layer_losses(output.selected, target)  # [L]
                    loss = total_loss(per_layer, image_shape)
                    if net.prior:
                        nats = prior_loss(output.log_prior, output.distances, prior_softness)
                        collector.report('prior_nats', nats.detach())
                        loss = loss + nats
                    scaler.scale(loss / rounds).backward()
                losses += per_layer.detach() / rounds
                balancer.observe(output.codes, output.dropped, output.distances, output.evidence)
                usage.observe(output.codes, output.dropped)
                del output, per_layer

            for group in optimizer.param_groups:
                group['lr'] = learning_rate(cur_nimg, lr, lr_rampup_nimg, lr_decay, total_nimg)
            scaler.unscale_(optimizer)
            health.observe(losses, cur_nimg)
            collector.report('loss', losses.mean())
            collector.report('grad_norm', health.grad_norm)
            if on_nan == 'stop' or health.step_is_finite():
                scaler.step(optimizer)  # ends with Split-and-Prune
                ema.update_(cur_nimg, batch_size)
                loss_sum += losses
                loss_steps += 1
            scaler.update()
            cur_nimg += batch_size
            step += 1
            if device.type == 'cpu' or step % LOOK_EVERY == 0:
                health.raise_if_bad(run_dir)
                progress.update(cur_nimg, losses, usage)
            maintain()
            if stop.agreed():
                save_state()
                dist.barrier()
                progress.clear()
                dist.print0(stop.message(run_dir, cur_nimg))
                raise dist.AgreedExit(stop.exit_code)
    progress.close()
    dist.print0(f'Done: {cur_nimg:,} images in {format_time(time.time() - start_time)}. See {run_dir}')


def learning_rate(cur_nimg: int, lr: float, rampup_nimg: int, decay: str, total_nimg: int) -> float:
    """Adam's rate after ``cur_nimg`` images: a linear ramp to ``lr``, then constant ('none') or a cosine to zero."""
    rate = lr * min(1.0, cur_nimg / max(rampup_nimg, 1e-8))
    return rate * 0.5 * (1 + np.cos(np.pi * min(1.0, cur_nimg / total_nimg))) if decay == 'cosine' else rate


def _step_seed(*key: int) -> int:
    """A seed for one step (and rank), a function of its key alone."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def _node_weights(net: ddn_networks.Network) -> list[tuple[str, torch.Tensor]]:
    nodes = {id(w) for w in net.node_weights}
    return [(name, p) for name, p in net.named_parameters() if id(p) in nodes]


@torch.no_grad()
def _condition(
    net: ddn_networks.Network,
    images: torch.Tensor,
    labels: torch.Tensor,
    pairs: torch.Tensor | None = None,
    draws: torch.Tensor | None = None,
) -> torch.Tensor:
    """The condition [B, c, H, W] of images that may be augmented, their labels, and uint8 pairs."""
    if pairs is not None:
        pairs = to_float(pairs.to(images.device, non_blocking=True))
    sources = net.conditions.sources(images, pairs)
    return net.make_condition(labels if net.conditions.labels else None, sources, draws)


@torch.no_grad()
def _averaged(
    net: ddn_networks.Network,
    ema: EMA,
    sampler: samplers.Sampler,
    num: int,
    condition: torch.Tensor | None = None,
    keep: bool = False,
) -> Output:
    """A pass with the first averaged copy of the weights."""
    training = net.training
    net.eval()
    weights = next(iter(ema.copies.values()), {})
    output = torch.func.functional_call(net, weights, (sampler, num, condition), {'keep': keep})
    net.train(training)
    return output


def _validation_psnr(
    net: ddn_networks.Network, ema: EMA, images: torch.Tensor, condition: torch.Tensor | None
) -> float:
    reconstruction = _averaged(net, ema, samplers.nearest(images), len(images), condition).images
    return report.psnr(reconstruction, images)


@torch.no_grad()
def _prior_stats(
    net: ddn_networks.Network,
    ema: EMA,
    collected: dict[str, training_stats.Stat],
    images: torch.Tensor,
    condition: torch.Tensor | None,
) -> dict[str, float]:
    """Nats per code of the own prior, of the tick and of the validation images; nothing without a prior."""
    if not net.prior:
        return {}
    output = _averaged(net, ema, samplers.with_log_prior(samplers.nearest(images)), len(images), condition, keep=True)
    nats = prior_loss(output.log_prior, output.distances)
    return {'prior_nats': collected['prior_nats'].mean, 'val_prior_nats': nats.item()}


def _write_pictures(
    run_dir: str,
    cur_nimg: int,
    net: ddn_networks.Network,
    ema: EMA,
    val_images: torch.Tensor,
    val_condition: torch.Tensor | None,
) -> None:
    reconstructions = _averaged(net, ema, samplers.nearest(val_images), len(val_images), val_condition).images
    samples = _sample_sheet(net, ema, val_images, val_condition)
    report.write_sheets(run_dir, cur_nimg, samples, val_images, reconstructions, columns=GRID[1])
    few = val_images[:LAYERS_OF]
    condition = None if val_condition is None else val_condition[:LAYERS_OF]
    layers = _averaged(net, ema, samplers.nearest(few), len(few), condition, keep=True).selected
    report.write_layers(run_dir, cur_nimg, few, layers)


def _sample_sheet(
    net: ddn_networks.Network, ema: EMA, val_images: torch.Tensor, val_condition: torch.Tensor | None
) -> torch.Tensor:
    """Samples. With a condition one row for each of several classes, or for the condition of each of several validation
    images; where that is a picture, it is on the left, and the image on the right."""
    rows, columns = GRID
    condition, shown = None, None
    if val_condition is not None:
        num_classes = net.conditions.num_classes
        if num_classes is not None:
            rows = min(rows, num_classes)
            classes = torch.linspace(0, num_classes - 1, rows).long()
            condition = net.make_condition(classes)
        else:
            rows = min(rows, len(val_images))
            of = torch.linspace(0, len(val_images) - 1, rows).long()
            condition, originals = val_condition[of], val_images[of]
            shown = net.conditions.look(condition, net.img_resolution)
            columns -= 0 if shown is None else 2
        condition = condition.repeat_interleave(columns, 0)
    seeds = list(range(rows * columns))
    if net.prior:
        sampler = prior.from_prior(samplers.uniforms(net.num_codes, seeds))
    else:
        sampler = samplers.given(samplers.uniform_codes(net.code_nodes, seeds).to(val_images.device))
    samples = _averaged(net, ema, sampler, len(seeds), condition).images
    if shown is None:
        return samples
    samples = samples.unflatten(0, (rows, columns))
    return torch.cat([shown[:, None], samples, originals[:, None]], 1).flatten(0, 1)
