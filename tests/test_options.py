"""What command lines share: options under headings, errors in one line, lists of numbers."""

import click
import pytest
import torch
from click.testing import CliRunner

import dataset_tool
import fid
import generate
import latents
import train
from cli.options import Classes, GroupedCommand, Ints, Layers, Numbers, one_line_errors, option_group


@click.command(cls=GroupedCommand)
@option_group('What', click.option('--data', help='Images'), click.option('--out', help='Folder'))
@option_group('How', click.option('--seed', type=int, default=0, show_default=True, help='Random seed'))
@click.option('--quiet', is_flag=True, help='Print nothing')
def command(**options):
    """Do it."""
    click.echo(sorted(options.items()))


def test_options_are_under_their_headings_in_the_order_of_the_file():
    first_words = [line.split()[0] for line in CliRunner().invoke(command, ['--help']).output.splitlines() if line]
    assert first_words == ['Usage:', 'Do', 'What:', '--data', '--out', 'How:', '--seed', 'Other', '--quiet', '--help']


def test_options_of_a_group_are_passed():
    expected = "[('data', 'a'), ('out', None), ('quiet', False), ('seed', 3)]\n"
    assert CliRunner().invoke(command, ['--data=a', '--seed=3']).output == expected


@click.command()
@click.option('--batch', type=int, default=1)
@click.option('--raises', required=True)
def failing(batch, raises):
    errors = {
        'memory': MemoryError(),
        'cpu': RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        'cuda': torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'),
        'value': ValueError('x\udcff:\n  not a number'),
        'bug': RuntimeError('a bug'),
    }
    with one_line_errors():
        raise errors[raises]


@pytest.mark.parametrize('raises, words', [
    ('memory', 'not enough memory: give a smaller --batch (not enough memory)'),
    ('cpu', 'not enough memory: give a smaller --batch ([enforce fail at'),
    ('cuda', 'not enough memory: give a smaller --batch (CUDA out of memory'),
    ('value', r'x\udcff: not a number'),
])  # fmt: skip
def test_errors_that_users_can_mend_are_one_line(raises, words):
    result = CliRunner().invoke(failing, [f'--raises={raises}'])
    assert result.exit_code == 1 and result.output.startswith(f'Error: {words}') and result.output.count('\n') == 1


def test_other_errors_keep_their_traceback():
    assert isinstance(CliRunner().invoke(failing, ['--raises=bug']).exception, RuntimeError)


def test_scripts_whose_options_are_lists():
    assert Ints().convert('0-3,7', None, None) == [0, 1, 2, 3, 7]
    assert Classes().convert('all', None, None) == 'all' and Layers().convert('3-60', None, None) == (3, 60)
    assert Numbers().convert('0.5,-1', None, None) == [0.5, -1.0]
    for text in ('0-1000000', '0-499999,0-500000', '0-99999999999'):
        with pytest.raises(click.BadParameter, match='more than 1,000,000'):
            Ints().convert(text, None, None)
    assert len(Ints().convert('0-999999', None, None)) == 1_000_000


@pytest.mark.parametrize(
    'command, args, option',
    [
        (generate.main, ['--network=mnist', '--outdir=nowhere'], '--codes='),
        (generate.main, ['--network=mnist', '--outdir=nowhere', '--seeds=0'], '--guide='),
        (fid.main, ['calc', '--images=a.zip', '--ref=a.npz'], '--network='),
        (latents.main, ['encode', '--network=mnist', '--data=a.zip', '--dest=a.npz'], '--bits='),
        (train.main, ['--data=a.zip', '--outdir=nowhere'], '--val-data='),
        (dataset_tool.main, ['--source=a.zip', '--dest=b.zip'], '--transform='),
    ],
)
def test_an_option_without_a_value_is_not_one_that_is_left_out(command, args, option):
    result = CliRunner().invoke(command, [*args, option])
    assert result.exit_code == 2 and option.rstrip('=') in result.output.splitlines()[-1]
