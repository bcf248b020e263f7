"""Two pictures of networks that come with the code: images layer by layer, and conditions that they never saw.

    python -m experiments.shipped_networks --data=fashion=fashion-test.zip --data=cifar10=cifar10-test.zip

--data names a network and held-out images for it; the pictures show some, evenly spread. Rows of layers.png: an image,
what its codes decode to after some of the layers and after all, and with the finisher, where the network has one. Rows
of tasks.png: for each image what the guide knows of it, images of seeds 0 on, and the image itself.
"""

import os

import click
import torch

from cli.networks import load_network
from cli.options import script
from ddn_networks import Network, guides, samplers
from dnnlib.sheets import Tile, draw_sheet, save_png
from experiments import zscg
from experiments.common import as_saved, pictures, spread
from experiments.face_tasks import box_mask, low, luma

COLUMNS = 7  # layers shown, evenly spread


def tasks(net: Network) -> list[zscg.Task]:
    def known(x: torch.Tensor) -> torch.Tensor:
        return box_mask(x, 0.5, 1.0, 0.0, 1.0)

    found = [
        zscg.Task('from 8x8 pixels', lambda x: guides.superres(low(x, 8)), lambda x: low(x, 8)),
        zscg.Task('lower half hidden', lambda x: guides.inpaint(x, known(x)), lambda x: x * known(x)),
    ]
    if net.img_channels == 3:
        found.append(zscg.Task('colorization', lambda x: guides.colorization(luma(x)), luma))
    return found


def by_layers(net: Network, originals: torch.Tensor) -> list[list[Tile]]:
    """A row for each image [B, C, H, W]: itself, after some layers, after all, finished."""
    output = net(samplers.nearest(originals), len(originals), keep=True)
    last = net.num_layers - 1
    chosen = sorted({round(last * i / (COLUMNS - 1)) for i in range(COLUMNS)})
    columns = {'image': originals, **{f'layer {layer + 1}': output.selected[layer] for layer in chosen}}
    if net.finisher is not None:
        columns['finished'] = net.reconstruct(originals).images
    sized = [zscg.pixels_of(column, originals) for column in columns.values()]
    rows = [[Tile(image) for image in row] for row in zip(*sized, strict=True)]
    rows[0] = [tile._replace(caption=name) for tile, name in zip(rows[0], columns, strict=True)]
    return rows


def by_tasks(net: Network, originals: torch.Tensor, seeds: int) -> dict[str, list[torch.Tensor]]:
    """A row for each task: of each image what is known, images of seeds, and the image."""
    rows = {}
    for task in tasks(net):
        drawn = as_saved(net.sample(len(originals) * seeds, guide=task.guide(originals))[0]).split(seeds)
        known = zscg.pixels_of(task.condition(originals), originals)
        rows[task.name] = [x for i, images in enumerate(drawn) for x in (known[i], *images, originals[i])]
    return rows


@script(__file__)
@click.option('--data', required=True, multiple=True, metavar='NETWORK=ZIP|DIR', help='A network and images for it')
@click.option('--images', type=click.IntRange(min=1), default=2, help='Images of each network')
@click.option('--seeds', type=click.IntRange(min=1), default=4, help='Results of each task')
@click.option('--outdir', metavar='DIR', default='out/shipped_networks', help='Folder for the pictures')
@torch.no_grad()
def main(data, images, seeds, outdir):
    layers, guided, names = [], [], []
    for spec in data:
        name, is_pair, path = spec.partition('=')
        if not is_pair:
            raise click.UsageError(f'--data={spec}: name the network as well, as in fashion={spec}')
        net = load_network(name)
        originals = pictures(path, net, spread(path, images))
        layers += by_layers(net, originals)
        rows = by_tasks(net, originals, seeds)
        guided += rows.values()
        names += rows
    os.makedirs(outdir, exist_ok=True)
    sheets = {'layers': draw_sheet(layers, scale=2), 'tasks': draw_sheet(guided, names=names, scale=2)}
    for name, sheet in sheets.items():
        path = os.path.join(outdir, f'{name}.png')
        save_png(sheet, path)
        click.echo(path)


if __name__ == '__main__':
    main()
