"""The training loop: one flat function.

A step: images -> one pass that selects the nearest candidates -> per-layer L2 -> backward -> Adam -> Split-and-Prune ->
EMA. All randomness and the data position are functions of (seed, images seen), so a resumed run equals one that never
stopped, and a batch is the same batch on any number of ranks.

Legend: B images of a micro-batch, L layers, K nodes, C image channels, H x W pixels.
"""

import contextlib
import functools
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import ddn_networks
from ddn_networks import samplers, snapshots
from dnnlib.images import to_float
from dnnlib.util import atomic_write, format_time
from torch_utils import distributed as dist
from torch_utils import misc
from training import checkpoint, report
from training.augment import AugmentPipe
from training.dataset import open_training_data
from training.ema import EMA
from training.interrupt import StopRequest
from training.loader import BatchStream, Loader
from training.loss import layer_losses, prior_loss, total_loss
from training.monitor import Health, Meter
from training.report_html import write_report
from training.validation import Validation, condition_of

NUM_VALIDATION = 100  # images
BALANCERS = {
    'split-prune': ddn_networks.SplitAndPrune,
    'prefix': ddn_networks.PrefixBalancing,
    'bias': ddn_networks.LossFreeBalancing,
    'none': ddn_networks.UsageCounter,
}
LOOK_EVERY = 16  # steps between two looks at what costs a wait for the device


def training_loop(  # noqa: C901  # one flat function, in the order of a step
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
    held_out: float = 0.0,
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
        network_class: of ``snapshots.ALLOWED_CLASSES``.
        seed: random seed of the weights, the order of the data, Chain Dropout, dropout and augmentation.
        batch_size: images per step, all ranks; ``batch_gpu``: images per rank in one pass (gradients are accumulated,
            with the same result), None for all.
        total_nimg: images to train for. Units of all ``*_nimg``: images.
        lr, lr_rampup_nimg, lr_decay: Adam's learning rate after a linear ramp; 'none' keeps it, 'cosine' takes it to
            zero at ``total_nimg``.
        ema_halflives_nimg: half-lives of the averaged copies; pictures are of the first one.
        chain_dropout: probability that a layer's choice is random (Section 3.3).
        balance: a key of ``BALANCERS``: 'split-prune' (Algorithm 1), 'prefix' (the same, also given the choices
            before), 'bias' (Loss-Free Balancing, Appendix E), 'none'; with ``balance_kwargs`` for its class.
        augment_kwargs: arguments of ``AugmentPipe``, or None for no augmentation.
        condition_dropout: probability of dropping an image's condition.
        pair_data, val_pairs: pairs of the training and of the validation images, for condition 'image:C'.
        precision: 'fp32', 'bf16' or 'fp16' of the blocks; distances, images, losses and counts stay float32 or wider.
        loss_scale: initial loss scale of fp16, which then adapts; None for 65536.
        on_nan: 'stop' or 'skip' a step whose loss or gradient is not finite.
        compile_blocks, grad_checkpoint: torch.compile of the blocks; recompute blocks in the backward pass.
        share_prefixes: compute features once for images with the same choices so far: the same numbers, and faster
            where the batch is large against the K of the first layers.
        prior_clean: for a network with a prior, the share of each batch without Chain Dropout: with many cells, other
            images hardly have clean prefixes. ``prior_softness``: see ``prior_loss``.
        held_out: share of the images that training does not see (``dataset.held_out``), for validation.
        tick_nimg: images between progress lines; ``snapshot_ticks``, ``state_ticks``: ticks between snapshots with
            pictures, and between training states.
        val_data: images of the validation batch; None takes what is held out, or else the training set's.
        transfer: a snapshot whose weights to start from, where names and shapes fit.
        resume_state: a training state to resume from; ``resume_unchanged``: with the run's own data and options.
        snapshot_meta: JSON-able facts for the snapshots' headers.
        run_options: JSON-able; written to training_options.json once they are validated.

    Raises:
        SystemExit: after SIGINT, SIGTERM or SIGHUP; the state is saved.
        ValueError, OSError: bad data or options, in one line.
        FloatingPointError: a loss or gradient is not finite.
    """
    started = time.time()
    device = torch.device(device)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.backends.cudnn.benchmark = cudnn_benchmark
    torch.manual_seed(seed)

    # Network, optimizer, balance, averages.
    data = open_training_data(dataset_kwargs, NUM_VALIDATION, val_data, pair_data, val_pairs, held_out)
    pipe = AugmentPipe(**augment_kwargs) if augment_kwargs else None
    augment_dim = pipe.label_dim if pipe else 0
    spec = {'class_name': network_class, 'kwargs': {**network_kwargs, 'augment_dim': augment_dim}}
    if resume_state is not None:
        checkpoint.check_network(resume_state, spec)
    net = snapshots.rebuild(spec)
    net = net.to(device, memory_format=misc.memory_format(device, precision)).train()
    if transfer is not None and resume_state is None:
        left = misc.copy_params_and_buffers_(snapshots.load_network(transfer).state_dict(), net, allow_missing=True)
        dist.print0(f'Weights from {transfer}' + ''.join(f'\n  left at random: {line}' for line in left))
    network_facts = report.network_facts(net)
    if compile_blocks:
        misc.compile_(net.blocks)
    # The fused step is one kernel on CUDA; for its effect on a CPU see benchmarks/backbone_options.py.
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, betas=tuple(betas), eps=1e-8, fused=device.type != 'mps')
    ema = EMA(dict(net.named_parameters()), ema_halflives_nimg)
    reduce_fn = dist.all_reduce_ if world_size > 1 else None
    balancer = attached_balancer(net, optimizer, ema, balance, balance_kwargs, reduce_fn)
    autocast_dtype = misc.PRECISIONS[precision]
    scaler = torch.amp.GradScaler(device.type, init_scale=loss_scale or 2**16, enabled=precision == 'fp16')
    validation = Validation(net, ema, data.validation)
    ddp = net if world_size == 1 else _distributed(net)

    # Where to begin.
    cur_nimg = 0
    if resume_state is not None:
        meta = checkpoint.load_state(resume_state, net, ema, optimizer, balancer)
        cur_nimg = meta['cur_nimg']
        if meta.get('scaler') and meta.get('loss_scale') == loss_scale:  # a new --ls begins anew
            scaler.load_state_dict(meta['scaler'])
        dist.print0(f'Resuming from {resume_state} at {cur_nimg:,} images.')
    stream = BatchStream(len(data.loaded), seed, cur_nimg, batch_size, batch_gpu, rank, world_size)
    rounds = stream.num_accumulation_rounds
    loader = Loader(data.loaded, stream, device, num_workers)
    events = report.open_events(run_dir) if tensorboard and rank == 0 else None
    if rank == 0:
        facts = {**(run_options or {}), 'network': network_facts}
        _prepare_folder(run_dir, cur_nimg, resume_unchanged, facts)
    dist.print0(
        f'{network_facts["table"]}\n'
        f'Training on {device.type} x {world_size}: {len(data.loaded):,} images of {data.images.name}, batch '
        f'{batch_size}{f" in {rounds} rounds" if rounds > 1 else ""}, {precision}, {total_nimg:,} images in all.'
    )

    losses = torch.zeros(net.num_layers, device=device)  # of the step
    health = Health(net, watch_gradients=precision != 'fp16')
    meter = Meter(balancer, health, losses, cur_nimg, total_nimg, started)
    progress = report.ProgressLine(total_nimg, cur_nimg, enabled=rank == 0)
    attempt = report.Attempts()
    watch = report.PriorWatch(net)
    stop = StopRequest()
    rate_at = functools.partial(
        learning_rate, lr=lr, rampup_nimg=lr_rampup_nimg, decay=lr_decay, total_nimg=total_nimg
    )
    of_rank = functools.partial(_rows, rank=rank, world_size=world_size, rounds=rounds)

    def due(ticks: int = 1) -> bool:
        """Whether the last step ended training, or a tick whose number is a multiple of ``ticks``."""
        tick, before = cur_nimg // tick_nimg, (cur_nimg - batch_size) // tick_nimg
        return cur_nimg >= total_nimg or tick // ticks > before // ticks

    def save_state() -> None:
        path = checkpoint.state_path(run_dir, cur_nimg)
        if rank == 0 and not os.path.exists(path):
            health.raise_if_bad(run_dir)
            meta = {'cur_nimg': cur_nimg, 'scaler': scaler.state_dict(), 'loss_scale': loss_scale}
            checkpoint.save_state(path, net, ema, optimizer, balancer, meta)

    def save_snapshot() -> None:
        """The network, and pictures of it; where the snapshot is there, the run that it belongs to has made both."""
        path = os.path.join(run_dir, f'network-snapshot-{cur_nimg:09d}.safetensors')
        if rank == 0 and not os.path.exists(path):
            snapshots.save_network(path, net, ema.copies, {**(snapshot_meta or {}), 'cur_nimg': cur_nimg})
            attempt('the pictures', validation.write_pictures, run_dir, cur_nimg)

    def show(stats: dict[str, Any]) -> None:
        """The numbers of a tick."""
        stats |= {'tick': cur_nimg // tick_nimg, 'lr': rate_at(cur_nimg), **validation.stats()}
        progress.clear()
        print(report.tick_line(stats), flush=True)
        if warning := watch.warning(stats):
            print(warning, flush=True)
        if cur_nimg >= total_nimg and net.prior:
            print(report.layer_table(net, stats['val_code_bits']), flush=True)
        attempt('stats.jsonl', report.append_stats, run_dir, stats)
        if events is not None and 'the TensorBoard events' not in attempt.failed:
            attempt('the TensorBoard events', report.write_events, events, stats)
        if due(snapshot_ticks):
            attempt('report.html', write_report, run_dir)

    if resume_state is not None and due(snapshot_ticks):
        save_snapshot()  # where the run ended between its state and its snapshot

    with contextlib.closing(loader), stop:
        step = 0
        while cur_nimg < total_nimg:
            # Random numbers of this step, for the whole batch; this rank takes its rows.
            generator = torch.Generator().manual_seed(_step_seed(seed, cur_nimg))
            table = samplers.chain_dropout_codes(net.code_nodes, chain_dropout, batch_size, generator)
            table[: round(prior_clean * batch_size) if net.prior else 0] = -1
            table = of_rank(table).to(device, non_blocking=True)  # [rounds, B, D]
            changes = of_rank(pipe.draw(batch_size, generator) if pipe else None)
            draws = of_rank(net.conditions.draw(batch_size, condition_dropout, generator) if net.conditions else None)
            torch.manual_seed(_step_seed(seed, cur_nimg, rank))
            if not stop.wait(loader.ready):
                save_state()
                dist.print0(stop.message(run_dir, cur_nimg))
                raise SystemExit(stop.exit_code)
            try:
                micro_batches = next(loader)
            except Exception:  # an image that cannot be used, for example: the steps before are not lost
                if step:
                    save_state()
                raise

            optimizer.zero_grad(set_to_none=True)
            losses.zero_()
            for r, (images, *facts) in enumerate(micro_batches):
                images = to_float(images.to(device, non_blocking=True))  # [B, C, H, W]
                images, labels = pipe.apply(images, changes[r]) if pipe else (images, None)
                condition = condition_of(net, images, *facts, draws=draws[r])  # [B, c, H, W]
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
                    loss = total_loss(per_layer, images.shape[1:])
                    if net.prior:
                        nats = prior_loss(output.log_prior, output.distances, prior_softness)
                        meter.collector.report('prior_nats', nats.detach())
                        loss = loss + nats
                    scaler.scale(loss / rounds).backward()
                losses += per_layer.detach() / rounds
                balancer.observe(output.codes, output.dropped, output.distances, output.evidence)
                meter.usage.observe(output.codes, output.dropped)
                del output, per_layer

            for group in optimizer.param_groups:
                group['lr'] = rate_at(cur_nimg)
            scaler.unscale_(optimizer)
            health.observe(losses, cur_nimg)
            if taken := on_nan == 'stop' or health.step_is_finite():
                scaler.step(optimizer)  # ends with Split-and-Prune
                ema.update_(cur_nimg, batch_size)
            meter.observe(losses, taken)
            scaler.update()
            cur_nimg += batch_size
            step += 1
            if device.type == 'cpu' or step % LOOK_EVERY == 0:
                health.raise_if_bad(run_dir)
                progress.update(cur_nimg, losses, meter.usage)

            # The state comes first: an error after it loses nothing.
            if due():
                health.raise_if_bad(run_dir)
                stats = meter.collect(cur_nimg)
                if due(state_ticks):
                    save_state()
                if due(snapshot_ticks):
                    save_snapshot()
                if rank == 0:
                    show(stats)
                dist.barrier()
                meter.next_tick(cur_nimg)
            if stop.agreed():
                save_state()
                dist.barrier()
                progress.clear()
                dist.print0(stop.message(run_dir, cur_nimg))
                raise dist.AgreedExit(stop.exit_code)
    progress.close()
    dist.print0(f'Done: {cur_nimg:,} images in {format_time(meter.seconds())}. See {run_dir}')


def attached_balancer(
    net: ddn_networks.Network,
    optimizer: torch.optim.Optimizer,
    ema: EMA,
    balance: str,
    balance_kwargs: dict[str, Any] | None,
    reduce_fn: Callable[[torch.Tensor], Any] | None = None,
) -> Any:
    """The balancer of a network's nodes (a key of ``BALANCERS``), which works in the optimizer's step, also on the
    averages and on the prior's heads. ``reduce_fn``: adds up a tensor over ranks, in place."""
    balancer = BALANCERS[balance](
        net.node_weights,
        net.ddl_of_layer,
        num_cells=[spec.num_cells for spec in net.specs],
        reduce_fn=reduce_fn,
        dtype=torch.float32 if net.device.type == 'mps' else torch.float64,
        **(balance_kwargs or {}),
    )
    for copy in ema.copies.values():
        balancer.follow([copy[name] for name in _node_weight_names(net)])
    heads = {name: p for name, p in net.named_parameters() if name.startswith('prior.')}
    balancer.follow_prior(net.prior_heads, [{p: copy[n] for n, p in heads.items()} for copy in ema.copies.values()])
    balancer.attach(optimizer)
    return balancer


def learning_rate(cur_nimg: int, lr: float, rampup_nimg: int, decay: str, total_nimg: int) -> float:
    """Adam's rate after ``cur_nimg`` images: a linear ramp to ``lr``, then constant ('none') or a cosine to zero."""
    rate = lr * min(1.0, cur_nimg / max(rampup_nimg, 1e-8))
    return rate * 0.5 * (1 + np.cos(np.pi * min(1.0, cur_nimg / total_nimg))) if decay == 'cosine' else rate


def _step_seed(*key: int) -> int:
    """A seed for one step (and rank), a function of its key alone."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def _rows(table: torch.Tensor | None, rank: int, world_size: int, rounds: int) -> torch.Tensor | list[None]:
    """[rounds, B, n]: a rank's rows of a table [batch, n] of the whole step, by micro-batch; None for each without."""
    return [None] * rounds if table is None else table.unflatten(0, (world_size, rounds, -1))[rank]


def _prepare_folder(run_dir: str, cur_nimg: int, unchanged: bool, options: dict[str, Any]) -> None:
    """Rename what is newer than the state of ``cur_nimg`` images; write training_options.json."""
    aside = checkpoint.set_newer_aside(run_dir, cur_nimg, unchanged)
    if aside:
        print(f'{aside} states, snapshots and pictures of later than {cur_nimg:,} images are kept as *.old')
    with atomic_write(os.path.join(run_dir, 'training_options.json'), 'w') as f:
        json.dump(options, f, indent=2)


def _node_weight_names(net: ddn_networks.Network) -> list[str]:
    nodes = {id(weight) for weight in net.node_weights}
    return [name for name, param in net.named_parameters() if id(param) in nodes]


def _distributed(net: ddn_networks.Network) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # 2.13 has another name for broadcast_buffers
        return torch.nn.parallel.DistributedDataParallel(net, broadcast_buffers=False, gradient_as_bucket_view=True)
