"""What better encoding is worth: decibels gained and seconds per image of beams and refinement, against greedy choices.

    OMP_NUM_THREADS=1 python -m benchmarks.encoding --network=runs/faces --data=datasets/faces-test.zip --clock=cpu

Every batch of images is encoded in all ways in turn, so that other load affects all of them the same way.
"""

import click
from tqdm import tqdm

from benchmarks import common
from cli.networks import load_network
from cli.options import Ints, script
from ddn_networks import Network
from dnnlib.images import to_float
from metrics.image_sets import Files, require_no_condition
from torch_utils import misc


def ways(beams: list[int], refine: list[int]) -> dict[str, dict[str, int]]:
    """{name: arguments of ``Network.reconstruct``}, greedy first."""
    found = {'greedy': {}} | {f'beam {b}': {'beam': b} for b in beams} | {f'refine {r}': {'refine': r} for r in refine}
    if beams and refine:
        found[f'beam {beams[0]}, refine {refine[0]}'] = {'beam': beams[0], 'refine': refine[0]}
    return found


def measure(net: Network, images: Files, batch: int, how: dict[str, dict[str, int]], clock: str) -> list[dict]:
    """A row for each way: PSNR, what it gained, seconds per image."""
    squared, seconds = dict.fromkeys(how, 0.0), dict.fromkeys(how, 0.0)
    device, now = str(net.device), common.CLOCKS[clock]
    read = images.batches(range(images.num), batch)
    for nth, (_, pixels) in enumerate(tqdm(read, desc='encode', unit='batch', total=-(-images.num // batch))):
        target = to_float(pixels).to(net.device)
        if not nth:
            net.reconstruct(target)  # the first pass takes longer
        for name, arguments in how.items():
            common.synchronize(device)
            start = now()
            output = net.reconstruct(target, share_prefixes=True, **arguments)
            common.synchronize(device)
            seconds[name] += now() - start
            squared[name] += (output.images.clamp(-1, 1) - target).square().mean((1, 2, 3)).double().sum().item()
    rows = []
    for name in how:
        decibels = misc.psnr(squared[name] / images.num)
        gained = decibels - misc.psnr(squared['greedy'] / images.num)
        more = (seconds[name] - seconds['greedy']) / images.num
        rows.append({
            'encoding': name,
            'PSNR dB': f'{decibels:.2f}',
            'gained dB': f'{gained:.2f}',
            's an image': seconds[name] / images.num,
            'times greedy': seconds[name] / seconds['greedy'],
            'dB per second more': None if name == 'greedy' else gained / more,
        })  # fmt: skip
    return rows


@script(__file__)
@click.option('--network', help='Snapshot, run folder or shipped name', metavar='FILE|URL', required=True)
@click.option('--data', help='Folder or zip of images that it was not trained on', metavar='PATH|ZIP', required=True)
@click.option('--num', help='Number of images', metavar='INT', type=click.IntRange(min=1), default=128)
@click.option('--batch', help='Images at a time', metavar='INT', type=click.IntRange(min=1), default=32)
@click.option('--beams', help='Beams to try', metavar='LIST', type=Ints(), default='2,4,8')
@click.option('--refine', help='Numbers of other nodes to try (refinement)', metavar='LIST', type=Ints(), default='1,2')
@click.option('--device', help='cuda, mps or cpu', metavar='NAME', default='cpu')
@common.CLOCK
@common.OUT
def main(network, data, num, batch, beams, refine, device, clock, out):
    net = load_network(network, device=device)
    require_no_condition(net, network)
    images = Files(data, num)
    images.require_shape(net)
    facts = common.machine(device, clock)
    rows = measure(net, images, batch, ways(beams, refine), clock)
    grids = [f'{rows}x{columns}' for rows, columns in (spec.grid for spec in net.specs)]
    caption = (
        f'{network}: {net.img_resolution[0]}x{net.img_resolution[1]}, L = {net.num_layers}, D = {net.num_codes}, grids '
        f'{" ".join(grids)}, {net.num_bits:.0f} bits; {images.num} images of {data}, batch {batch}.'
    )
    common.report('Better encoding', facts, {caption: rows}, out)


if __name__ == '__main__':
    main()
