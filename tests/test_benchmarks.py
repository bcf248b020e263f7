"""The benchmarks still run: what they measure is for no test to judge."""

import importlib

import pytest
from click.testing import CliRunner

from benchmarks import common


@pytest.mark.parametrize('command, words', [
    ('ddl --quick', 'ours MB'),
    ('ddl --quick --methods', 'chosen / fastest'),
    ('generate --quick --nodes=8', 'cpu, batch 2, bf16'),
    ('train_step --quick --nodes=8 --precisions=fp32', '| ours K 8'),
    ('changed_codes --quick', 'images that changed'),
    ('waiting_threads --rounds=1 --images=512 --size=8 --busy=1', '| one thread'),
])  # fmt: skip
def test_a_quick_run_prints_its_table(command, words, monkeypatch):
    name, *options = command.split()
    module = importlib.import_module(f'benchmarks.{name}')
    monkeypatch.setattr(common, 'in_fresh_process', lambda fn, *args: fn(*args))  # which would import PyTorch again
    if name == 'changed_codes':
        monkeypatch.setattr(module, 'THREADS', (1,))  # more threads than quiet cores would spin
    if name == 'waiting_threads':
        rows = {row: module.ENVIRONMENTS[row] for row in (module.SPIN, module.ONE)}
        monkeypatch.setattr(module, 'ENVIRONMENTS', rows)
    result = CliRunner().invoke(module.main, options)
    assert result.exit_code == 0, result.output
    assert words in result.output


def test_a_quick_run_compares_cells():
    module = importlib.import_module('benchmarks.ddl')
    result = CliRunner().invoke(module.main, ['--quick', '--cells', '--no-memory', '--shapes=2,8,4,4'])
    assert result.exit_code == 0, result.output
    assert '4x4 / whole' in result.output
