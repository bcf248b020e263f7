"""What --help of the scripts says: the examples of their docstrings, and every default."""

import importlib
import os
from pathlib import Path

import click
import forks
import pytest
from click.testing import CliRunner

import fid

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    f'{path.parent.name}.{path.stem}'
    for path in sorted([*ROOT.glob('experiments/*.py'), *ROOT.glob('benchmarks/*.py')])
    if '@click.command' in path.read_text() or '@script(' in path.read_text()
]


def assert_defaults_are_told(command: click.Command, parent: click.Context | None = None) -> None:
    ctx = command.make_context('script', [], parent, resilient_parsing=True)
    for option in command.params:
        if type(option.default) in (int, float, str) or option.name == 'duration':
            assert '[default: ' in option.get_help_record(ctx)[1], option.name


@pytest.mark.parametrize('name', SCRIPTS)
def test_help_has_the_examples_and_the_defaults(name):
    module = importlib.import_module(name)
    text = CliRunner().invoke(module.main, ['--help'], max_content_width=200).output.splitlines()
    examples = [line for line in module.__doc__.splitlines() if line.startswith('  ') and 'python ' in line]
    assert examples or 'python ' not in module.__doc__
    assert not [line for line in examples if f'  {line}' not in text]
    assert_defaults_are_told(module.main)


@pytest.mark.parametrize('name', fid.main.commands)
def test_commands_of_fid_tell_their_defaults(name):
    assert_defaults_are_told(fid.main.commands[name], fid.main.make_context('fid.py', [], resilient_parsing=True))


@pytest.mark.parametrize('name', [*(path.stem for path in sorted(ROOT.glob('*.py'))), *SCRIPTS])
def test_help_without_docstrings(name):
    """Compiled as by ``python -OO``, which keeps no docstrings, a script and its commands say what they do."""
    path = ROOT / f'{name.replace(".", "/")}.py'
    code = compile(path.read_text(), path, 'exec', optimize=2)
    scope = {'__name__': name, '__file__': str(path)}
    exec(code, scope)
    main = scope['main']
    for command in [main, *getattr(main, 'commands', {}).values()]:
        result = CliRunner().invoke(command, ['--help'])
        assert result.exit_code == 0 and len((command.help or '').split()) > 4, (name, command.name, result.output)


@pytest.mark.parametrize('command', ['fid.py', 'latents.py', 'latents.py tree', 'train.py'])
@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_help_that_cannot_be_written_is_one_line(command):
    with open('/dev/full', 'w') as full:
        result = forks.run(*command.split(), '--help', stdout=full)
    assert result.returncode == 1 and result.stderr.startswith('Error: ') and result.stderr.count('\n') == 1
