"""Store images as the codes of a Discrete Distribution Network: files of tens to hundreds of bytes.

\b
  # one picture, or many in an archive; pictures larger than the network are cut into tiles
  python codec.py encode photo.png --network=NET --dest=photo.ddn
  python codec.py encode photos/ --network=NET --dest=photos.ddn
  python codec.py decode photos.ddn --network=NET --outdir=out
\b
  # at most so many bits per picture, at least so many dB, the first layers only
  python codec.py encode photo.png --network=NET --dest=photo.ddn --bits=1152
  python codec.py encode photo.png --network=NET --dest=photo.ddn --psnr=25
  python codec.py encode photo.png --network=NET --dest=photo.ddn --layers=8
\b
  # what a file is; whether it is whole; the start of one that is still arriving; what is left of a damaged archive
  python codec.py info photo.ddn
  python codec.py verify photo.ddn --network=NET
  python codec.py decode photo.ddn --network=NET --outdir=out --partial
  python codec.py decode photos.ddn --network=NET --outdir=out --recover
\b
  # shorter files from a network without a prior: count its codes once
  python codec.py count --network=mnist --data=datasets/mnist.zip --dest=mnist-counts.safetensors

Each command has a --help. NET is a network-snapshot-*.safetensors, as a path or URL, or a run folder. The same network
decodes what it encoded. docs/codec.md says how it works.
"""

import cli.environment  # noqa: F401  # before torch is loaded

# isort: split
import math
import os
from collections.abc import Iterator

import click
import torch
from tqdm import tqdm

from cli import codec_files
from cli.latent_options import one_line
from cli.networks import load_network
from cli.options import BATCH, BEAM, REFINE, command_group, network_options, option_group
from ddn_networks import Network, sampling, snapshots
from ddn_networks.code_rates import Rate
from ddn_networks.code_streams import MODELS, Codec, default_model
from ddn_networks.codec import ArchiveWriter, drawings, encoded
from dnnlib.images import save_image, to_uint8
from dnnlib.readers import printable
from dnnlib.util import atomic_write, require_writable
from torch_utils import distributed as dist
from torch_utils import misc

main, command = command_group(__file__)
FILE = click.argument('file', metavar='FILE', type=click.Path(exists=True, dir_okay=False))


def open_codec(
    network: str, ema: str | None, steps: int | None, device: str | None, finish: bool, model: str | None
) -> Codec:
    """The codec of ``network_options``. The prior is computed on the CPU, so with it the network is there, too."""
    net = load_network(network, ema, 'cpu', steps, finish)
    if net.conditions.channels and not net.conditions.optional:
        raise ValueError(f'--network={network}: it is conditioned on {net.conditions}; codec.py takes no condition, '
                         'ddn_networks.codec does')  # fmt: skip
    model = model or default_model(net)
    if model != 'prior':
        net = net.to(dist.device_for_rank(device))
    return Codec(net, model)


@command('encode')
@click.argument('images', metavar='IMAGES...', nargs=-1, required=True)
@network_options
@option_group(
    'File',
    click.option('--dest', metavar='FILE', required=True, help='File to write (.ddn): an archive for several pictures'),
    click.option('--model', type=click.Choice(MODELS), help='Entropy model  [default: the best that the network has]'),
    click.option('--batch', metavar='INT', type=BATCH, default=64, help='Pictures at a time'),
)
@option_group(
    'Rate of each picture',
    click.option('--layers', metavar='INT', type=click.IntRange(min=0), help='Keep the first layers only'),
    click.option('--bits', metavar='INT', type=click.IntRange(min=1), help='Most bits of a file, header included'),
    click.option('--psnr', metavar='DB', type=click.FloatRange(min=0), help='Least PSNR, if the network reaches it'),
    click.option('--tradeoff', metavar='FLOAT', type=click.FloatRange(min=0), default=0.0,
                 help='Squared error (pixels in [-1, 1]) that saving a bit may cost'),
    click.option('--beam', metavar='INT', type=BEAM, default=1, help='Partial images kept in the search'),
    click.option('--refine', metavar='INT', type=REFINE, default=0,
                 help='Other nodes that each cell tries, without the options above'),
)
@one_line
def encode_command(
    images, network, ema, steps, device, finish, dest, model, batch, layers, bits, psnr, tradeoff, beam, refine
) -> None:
    """Encode pictures (files, folders, zips): one picture into a file, several into an archive.

    Grey and colour are converted to what the network has. Pictures of another size than the network's are cut into
    tiles that overlap; larger ones cost as many bits as their tiles, and --layers, --bits and --psnr are of the whole
    picture. Without options for the rate each layer takes the nearest node.
    """
    codec = open_codec(network, ema, steps, device, finish, model)
    pictures = codec_files.Originals(images, codec.net.img_channels)
    require_writable('--dest', dest, [*pictures.files, network])
    rate = Rate(layers, bits, psnr, tradeoff, beam)
    total, error, values = 0, 0.0, 0
    with atomic_write(dest) as file:
        archive = ArchiveWriter(file, codec) if len(pictures) > 1 else None
        with tqdm(total=len(pictures), desc='encode', unit='img', delay=2, leave=False) as bar:
            for names, originals in pictures.batches(batch, math.prod(codec.net.img_resolution)):
                found = encoded(codec, originals.to(codec.net.device), rate=rate, refine=refine)
                if archive:
                    archive.add(found, names)
                else:
                    file.write(codec.file(found[0]))
                drawn = torch.stack(codec.draw(found, finish=False)).cpu().clamp(-1, 1)
                error += (drawn - originals).double().square().sum().item()
                values += originals.numel()
                total += len(found)
                bar.update(len(found))
        if archive:
            archive.close()
        length = file.tell()
    click.echo(printable(
        f'{total} image{"s" * (total != 1)}, {length:,} bytes ({length / total:.1f} each) by {codec.model} '
        f'probabilities, PSNR {misc.psnr(error / values):.2f} dB: {dest}'
    ))  # fmt: skip


@command('decode')
@FILE
@network_options
@option_group(
    'Images',
    click.option('--outdir', metavar='DIR', required=True, help='Folder for the images'),
    click.option('--partial', is_flag=True, help='The file may be cut off: draw what its first bytes decide'),
    click.option('--recover', is_flag=True, help='Of a damaged archive write every whole picture before the damage'),
    click.option('--overwrite', is_flag=True, help='Replace pictures that are in the folder'),
)
@one_line
def decode_command(file, network, ema, steps, device, finish, outdir, partial, recover, overwrite) -> None:
    """Draw the pictures of a file: FILE.png, or those of an archive under the names that it has for them. Pictures that
    are in the folder are not replaced without --overwrite."""
    header = codec_files.header(file)
    codec = open_codec(network, ema, steps, device, finish, header.model)
    require_writable('--outdir', os.path.join(outdir, 'picture.png'))
    there = next((name for name in codec_files.outputs(file, outdir) if os.path.lexists(name)), None)
    if there and not overwrite:
        raise ValueError(f'{there} is there already: give another --outdir, or --overwrite to replace it')
    num = 0
    with codec_files.named(file, recover) as damage:
        for image, name in drawings(codec, codec_files.pictures(file, codec, partial, 'decode')):
            save_image(to_uint8(image).cpu().numpy(), outdir, f'{name}.png')
            num += 1
    click.echo(printable(f'{num} image{"s" * (num != 1)}: {outdir}'))
    if damage:
        raise click.ClickException(printable(f'{damage[0]}; the {num} pictures before are written'))


@command('info')
@FILE
@one_line
def info_command(file) -> None:
    """Print what a file says of itself: kind, entropy model, network, pictures and bytes. Needs no network."""
    with codec_files.named(file):
        for line in codec_files.description(file):
            click.echo(printable(line))


@command('verify')
@FILE
@network_options
@one_line
def verify_command(file, network, ema, steps, device, finish) -> None:
    """Decode the codes of all pictures and compare their checksums: whether a file is whole and of this network."""
    codec = open_codec(network, ema, steps, device, finish, codec_files.header(file).model)
    with codec_files.named(file):
        num = sum(1 for _ in codec_files.pictures(file, codec, title='verify'))
    click.echo(printable(f'{file} is whole: {num} image{"s" * (num != 1)}'))


@command('count')
@network_options
@option_group(
    'Images',
    click.option('--data', metavar='ZIP|DIR', required=True, help='Training images'),
    click.option('--dest', metavar='FILE', required=True, help='Snapshot to write (.safetensors), with the counts'),
    click.option('--max-images', metavar='INT', type=click.IntRange(min=1), default=10_000, help='Images to count'),
    click.option('--batch', metavar='INT', type=BATCH, default=128, help='Images at a time'),
)
@one_line
def count_command(network, ema, steps, device, finish, data, dest, max_images, batch) -> None:
    """Count how often each node is the nearest, and keep the counts in a snapshot: the entropy model of a network
    without a prior. Training with a prior ends with it."""
    if not finish:
        raise ValueError('--finish=0 does nothing here: the snapshot keeps its finisher; leave it out')
    net = load_network(network, ema, dist.device_for_rank(device), steps)
    originals = codec_files.Originals([data], net.img_channels, max_images)
    counts = sampling.measured_counts(net, sized(net, originals, batch))
    facts = {k: v for k, v in net.snapshot_meta.items() if k not in ('class_name', 'kwargs', 'emas', 'sampling')}
    net.sampling = net.sampling._replace(counts=counts)
    snapshots.save_network(dest, net.cpu(), meta=facts)
    click.echo(printable(f'{len(originals):,} images counted: {dest}'))


def sized(net: Network, originals: codec_files.Originals, batch: int) -> Iterator:
    """Batches for ``measured_counts``. ValueError for an image of another size."""
    with tqdm(total=len(originals), desc='count', unit='img', delay=2, leave=False) as bar:
        for names, images in originals.batches(batch, math.prod(net.img_resolution)):
            if tuple(images.shape[2:]) != net.img_resolution:
                H, W = net.img_resolution
                raise ValueError(f'--data: {names[0]} is {images.shape[3]}x{images.shape[2]}, the network {W}x{H}: see '
                                 'dataset_tool.py --resolution')  # fmt: skip
            yield images.to(net.device), None
            bar.update(len(images))


if __name__ == '__main__':
    main()
