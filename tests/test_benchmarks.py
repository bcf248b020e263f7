"""The benchmarks still run: what they measure is for no test to judge."""

import importlib

import pytest
from click.testing import CliRunner


@pytest.mark.parametrize('name', ['ddl', 'generate', 'train_step'])
def test_a_quick_run_prints_its_table(name):
    module = importlib.import_module(f'benchmarks.{name}')
    result = CliRunner().invoke(module.main, ['--quick'])
    assert result.exit_code == 0, result.output
    assert '| ours' in result.output or 'ours ms' in result.output


def test_a_quick_run_compares_cells():
    module = importlib.import_module('benchmarks.ddl')
    result = CliRunner().invoke(module.main, ['--quick', '--cells', '--no-memory', '--shapes=2,8,4,4'])
    assert result.exit_code == 0, result.output
    assert '4x4 / whole' in result.output
