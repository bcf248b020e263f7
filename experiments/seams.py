"""Whether tiles leave seams: the shipped portraits by a network of smaller pictures.

    python -m experiments.seams --network=NET --sheet=docs/img/codec-tiles.png

NET is a network of pictures smaller than 64x64. A row of the sheet is a portrait, and what the codec makes of it with
the first --layers layers and with all: in tiles side by side, and as it cuts them, which overlap and are blended.
Printed are bytes, PSNR, and seams: the mean difference between the pixels on the two sides of a tile's edge, divided by
that between all neighbouring pixels, and then by the same ratio in the original. 1 means that edges look like the rest.
"""

import click
import torch

from cli.networks import load_network
from cli.options import script
from cli.tables import markdown
from ddn_networks import codec, pixel_maps, tiles
from ddn_networks.code_rates import Rate
from ddn_networks.code_streams import Codec
from dnnlib.archives import ImageArchive
from dnnlib.images import to_float, to_uint8
from dnnlib.sheets import Tile, draw_sheet, save_png
from experiments.common import PORTRAITS
from torch_utils import misc

SCALE = 3  # pixels of the sheet for one of a picture


def steps_at(image: torch.Tensor, rows: list[int], columns: list[int]) -> float:
    """Mean absolute difference of neighbours of an image [C, H, W] across the lines before these rows and columns,
    divided by that of all neighbours."""
    down, across = image.diff(dim=1).abs(), image.diff(dim=2).abs()
    at = torch.cat([down[:, [y - 1 for y in rows]].flatten(), across[:, :, [x - 1 for x in columns]].flatten()])
    return (at.mean() / torch.cat([down.flatten(), across.flatten()]).mean()).item()


def edges(size: tuple[int, int], tile: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Rows and columns at which tiles of the codec begin or end, within a picture."""
    places = tiles.places(size, tile)
    lines = [{p[axis] for p in places} | {p[axis] + tile[axis] for p in places} for axis in (0, 1)]
    rows, columns = (sorted(x for x in lines[axis] if 0 < x < size[axis]) for axis in (0, 1))
    return rows, columns


def side_by_side(made: Codec, image: torch.Tensor, rate: Rate) -> torch.Tensor:
    """An image [C, H, W] whose sides are multiples of the network's, each tile encoded and drawn alone."""
    (h, w), C = made.net.img_resolution, len(image)
    parts = image.unflatten(2, (-1, w)).unflatten(1, (-1, h))  # [C, r, h, c, w]
    cut = parts.permute(1, 3, 0, 2, 4).flatten(0, 1)  # [r c, C, h, w]
    drawn = torch.stack(made.draw(codec.encoded(made, cut, rate=rate))).unflatten(0, (parts.shape[1], parts.shape[3]))
    return drawn.permute(2, 0, 3, 1, 4).reshape(C, *image.shape[1:])


@script(__file__)
@click.option('--network', metavar='FILE|URL', required=True, help='Snapshot, run folder or shipped name')
@click.option('--layers', type=click.IntRange(min=1), default=8, help='Layers of the coarser pictures')
@click.option('--sheet', metavar='FILE', required=True, help='Picture to write')
def main(network, layers, sheet):
    net = load_network(network)
    made, archive, rows, lines = Codec(net), ImageArchive(PORTRAITS), [], []
    for i in range(len(archive)):
        image = pixel_maps.to_channels(to_float(torch.from_numpy(archive.image(i)))[None], net.img_channels)[0]
        size = tuple(image.shape[1:])
        if any(a % b or a == b for a, b in zip(size, net.img_resolution, strict=True)):
            raise ValueError(f'--network={network}: its pictures are not a half, a third, ... of {size[1]}x{size[0]}')
        h, w = net.img_resolution
        rows.append([Tile(to_uint8(image).numpy(), 'original')])
        for num in (layers, net.num_layers):
            data = codec.encode(net, image[None], rate=Rate(layers=num))
            apart = side_by_side(made, image, Rate(layers=num))
            together = codec.decode(net, data)[0]
            for name, drawn, at in (
                ('apart', apart, (range(h, size[0], h), range(w, size[1], w))),
                ('blended', together, edges(size, (h, w))),
            ):
                drawn = drawn.clamp(-1, 1)
                rows[-1].append(Tile(to_uint8(drawn).numpy(), f'{num} layers, {name}'))
                lines.append({
                    'portrait': archive.names()[i], 'layers': num, 'tiles': name,
                    'bytes': len(data) if name == 'blended' else None,
                    'PSNR dB': misc.psnr((drawn - image).square().mean().item()),
                    'seams': steps_at(drawn, *map(list, at)) / steps_at(image, *map(list, at)),
                })  # fmt: skip
    save_png(draw_sheet(rows, scale=SCALE), sheet)
    click.echo(markdown(lines))


if __name__ == '__main__':
    main()
