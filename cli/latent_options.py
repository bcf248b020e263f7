"""What the commands of latents.py share: their options, opening the network and the file of codes, writing a sheet."""

import functools
from collections.abc import Callable, Sequence

import click
import torch

from cli.code_files import CodeFile, read_code_file
from cli.condition_arguments import ConditionArguments
from cli.networks import load_network
from cli.options import Numbers, network_options, one_line_errors, option_group
from cli.regions import Region
from ddn_networks import Network
from dnnlib.readers import printable
from dnnlib.sheets import draw_sheet, save_png
from dnnlib.util import require_writable
from torch_utils import distributed as dist


def open_network(
    network: str, ema: str | None, device: str | None, steps: int | None, finish: bool, class_: int | None,
    label: Sequence[float] | None, condition_image: Sequence[str],
) -> tuple[Network, ConditionArguments]:  # fmt: skip
    """The network of ``net_options``, and what they give for its condition."""
    net = load_network(network, ema, dist.device_for_rank(device), steps, finish)
    return net, ConditionArguments(net, None if class_ is None else [class_], label, condition_image)


def load_codes(path: str, net: Network | None = None) -> tuple[CodeFile, torch.Tensor]:
    """A file of codes and its codes [N, D] as a tensor, which must fit the network, if there is one."""
    file = read_code_file(path)
    table = torch.from_numpy(file.codes)
    return file, table if net is None else net.check_codes(table)


def rows_of(table: torch.Tensor, rows: Sequence[int], path: str, option: str) -> torch.Tensor:
    """``table[rows]``. ValueError with the option for a row that is not there."""
    wrong = [row for row in rows if row >= len(table)]
    if wrong:
        raise ValueError(f'{option}: {path} holds rows 0 to {len(table) - 1}, not {wrong[0]}')
    return table[list(rows)]


def write_sheet(rows: Sequence[Sequence], path: str, columns: int = 0) -> None:
    save_png(draw_sheet(rows, columns), path)
    click.echo(printable(f'Sheet: {path}'))


def one_line(command: Callable) -> Callable:
    """Report user errors in one line, and a file that cannot be written before the work."""

    @functools.wraps(command)
    def wrapped(**options):
        with one_line_errors():
            for name in ('dest', 'sheet'):
                if options.get(name):
                    require_writable(f'--{name}', options[name])
            return command(**options)

    return wrapped


def net_options(command: Callable) -> Callable:
    """Arguments of ``open_network``."""
    condition = option_group(
        'Condition',
        click.option('--class', 'class_', metavar='INT', type=click.IntRange(min=0),
                     help="Class  [default: each image's own label]"),
        click.option('--label', metavar='LIST', type=Numbers(),
                     help="Label vector: 0.5,-1  [default: each image's own]"),
        click.option('--condition-image', metavar='[KIND:]PATH', multiple=True,
                     help='Picture, folder or zip  [default: each image itself]'),
    )  # fmt: skip
    return network_options(condition(command))


CODES = click.option('--codes', 'codes_file', metavar='FILE', required=True, help='Codes from `latents.py encode`')
DATA = click.option('--data', metavar='ZIP|DIR', help='Their images  [default: the archive that the file names]')
REGION = click.option('--region', metavar='X,Y,W,H', type=Region(), multiple=True,
                      help='Change only cells that lie wholly in this rectangle of pixels')  # fmt: skip
SHEET = click.option('--sheet', metavar='FILE', required=True, help='Picture to write (.png)')
