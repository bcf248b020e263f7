"""How often batch size and threads change a code that the own prior samples.

    python -m benchmarks.changed_codes --network=runs/00000-digits-ddn-batch32
    python -m benchmarks.changed_codes --quick                             # seconds: does everything run?

All random numbers of an image are functions of its seed, and each choice is an inverse CDF. Sums in another order move
a boundary by rounding, so a number within that of a boundary chooses another node. The choices after it then differ,
too: counted is the first one of each image. Against batches of 64 on one thread.
"""

import click
import torch

from benchmarks import common
from cli.networks import load_network
from cli.options import script
from ddn_networks import DDN, Network

BATCHES, THREADS = (64, 1, 7, 250), (1, 2)


def sampled(net: Network, num: int, batch: int, threads: int) -> torch.Tensor:
    """Codes [num, D] of the seeds 0 to num - 1."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    codes = torch.cat([net.sample(seeds=part.tolist())[1] for part in torch.arange(num).split(batch)])
    torch.set_num_threads(before)
    return codes


def small_network() -> Network:
    """With cells and random heads, for --quick."""
    torch.manual_seed(0)
    net = DDN(8, 1, [8, 8], [1, 2], [4, 4], grids=[1, 4], prior_width=8).eval()
    for head in net.prior:
        torch.nn.init.normal_(head.out.weight)
    return net


@script(__file__)
@click.option('--network', metavar='FILE|URL|NAME', help='Network with a prior')
@click.option('--num', type=click.IntRange(min=1), default=1000, help='Images, from seeds 0 to num - 1')
@click.option('--quick', is_flag=True, help='A small random network and few images')
@common.OUT
def main(network, num, quick, out) -> None:
    if not quick and network is None:
        raise click.UsageError('--network is missing: give a snapshot with a prior, or --quick')
    net, num = (small_network(), 20) if quick else (load_network(network), num)
    if not net.prior:
        raise ValueError(f'{network} has no prior of its own: uniform codes are functions of the seed alone')
    base = sampled(net, num, BATCHES[0], THREADS[0])
    rows = []
    for threads in THREADS:
        for batch in BATCHES:
            changed = (sampled(net, num, batch, threads) != base).any(1).sum().item()
            rows.append({'threads': threads, 'batch': batch, 'images': num, 'images that changed': changed,
                         'per million choices': 1e6 * changed / base.numel()})  # fmt: skip
    tables = {f'{num:,} images of {net.num_codes} codes, {net.num_bits:.0f} bits': rows}
    common.report('Codes that batch size and threads change', common.machine('cpu', 'wall'), tables, out)


if __name__ == '__main__':
    main()
