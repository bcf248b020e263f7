"""Turn the authors' published weights, which are pickles, into a network of this project, without running the pickles.

    python import_published.py cifar-ddn.pkl --dest=cifar-ddn.safetensors
    python import_published.py coloring-ddn.pkl --dest=coloring-ddn.safetensors --condition=color
    python generate.py --network=cifar-ddn.safetensors --outdir=out --seeds=0-63

Loading a pickle runs the code in it. This reads it as a description of objects, of which only tensors are built. A
condition has no weights, so the file does not show it: name it with --condition. More: docs/network.md.
"""

import cli.environment  # noqa: F401  # before torch is loaded

# isort: split
import click

from cli.options import script
from ddn_networks import from_published, snapshots
from dnnlib.downloads import is_url, local_path
from dnnlib.readers import one_line, printable
from dnnlib.util import file_sha256, redacted, require_writable
from torch_utils.published_files import read_state


@script(__file__)
@click.argument('file', metavar='FILE|URL')
@click.option('--dest', help='Snapshot to write', metavar='NET.safetensors', required=True, type=click.Path())
@click.option('--condition', help='Condition that the network was trained with: class:10, color, edge or lowres:N',
              metavar='NAME')  # fmt: skip
def main(file: str, dest: str, condition: str | None) -> None:
    path = local_path(file)
    require_writable('--dest', dest, [str(path)])
    state = read_state(path)
    with one_line(f'{redacted(file)} cannot be imported'):
        net = from_published(state, conditions=[condition] if condition else [])
    source = redacted(file) if is_url(file) else path.name
    snapshots.save_network(dest, net, meta={'published': {'file': source, 'sha256': file_sha256(path)}})
    height, width = net.img_resolution
    count = sum(p.numel() for p in net.parameters())
    click.echo(f'{printable(dest)}: {height}x{width}, L = {net.num_layers}, K up to {max(net.num_nodes)}, '
               f'{count / 1e6:.1f} M parameters')  # fmt: skip


if __name__ == '__main__':
    main()
