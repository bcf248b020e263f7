"""What command lines share: options under headings."""

import click
from click.testing import CliRunner

from cli.options import GroupedCommand, option_group


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
