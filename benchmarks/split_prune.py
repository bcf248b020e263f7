"""Cost of a Split-and-Prune step: the 127 weights of the 64x64 network with Adam's states and two averages.

    python -m benchmarks.split_prune

Prints milliseconds, the least of several rounds: with nothing to move, with one pair to move in every weight, and
moving the same rows weight by weight with counts on the host, as Algorithm 1 is written. On CUDA also the number of
kernels per step; fails if a step waits for the device.
"""

import time

import click
import torch

from cli.options import script
from ddn_networks import DDN, SplitAndPrune, published_config


def one_by_one_(weights, states, counts) -> None:
    """Algorithm 1 layer by layer, with the counts read on the host."""
    for weight, tensors, c in zip(weights, states, counts, strict=True):
        c = c.cpu()
        most, least, n = c.argmax().item(), c.argmin().item(), c.sum().item()
        if c[most] / n > 2 / len(c) or c[least] / n < 0.5 / len(c):
            with torch.no_grad():
                for t in (weight, *tensors):
                    t[least] = t[most]


def least_ms(fn, prepare, device: torch.device, rounds: int = 15) -> float:
    best = float('inf')
    for _ in range(rounds):
        prepare()
        if device.type == 'cuda':
            torch.cuda.synchronize()
        began = time.perf_counter()
        fn()
        if device.type == 'cuda':
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 1000 * best


@script(__file__)
def main() -> None:
    torch.set_num_threads(1)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    with torch.device('meta'):
        shapes = [w.shape for w in DDN(**published_config(64)).node_weights]
    weights = [torch.nn.Parameter(torch.randn(s, device=device)) for s in shapes]
    optimizer = torch.optim.Adam(weights)
    for w in weights:
        w.grad = torch.zeros_like(w)
    optimizer.step()
    averages = [[w.detach().clone() for w in weights] for _ in range(2)]
    states = [[optimizer.state[w]['exp_avg'], optimizer.state[w]['exp_avg_sq'], *(a[i] for a in averages)]
              for i, w in enumerate(weights)]
    balance = SplitAndPrune(weights)
    for a in averages:
        balance.follow(a)

    def even() -> None:
        balance.counts.copy_(balance.exists * 10)

    def skewed() -> None:
        even()
        balance.counts[:, 0] = 1000

    def step() -> None:
        balance.step_(optimizer)

    counts = [torch.cat([torch.full((1,), 1000.0), torch.full((len(w) - 1,), 10.0)]).to(device) for w in weights]
    click.echo(f'{device}: nothing to move {least_ms(step, even, device):.2f} ms, '
          f'a pair in each of {len(weights)} weights {least_ms(step, skewed, device):.2f} ms, '
          f'one by one {least_ms(lambda: one_by_one_(weights, states, counts), skewed, device):.2f} ms')
    if device.type == 'cuda':
        skewed()
        torch.cuda.set_sync_debug_mode('error')
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
        torch.cuda.set_sync_debug_mode('default')
        click.echo(f'kernels a step: {sum(e.count for e in profile.key_averages())}, no wait for the device')


if __name__ == '__main__':
    main()
