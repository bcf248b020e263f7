"""Damaged training_options.json: a resume says what is wrong in one line, or it is the run with these options."""

import json
import random
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import TINY_RUN, invoke, write_zip
from mutations import mutations, outcome

import train
from cli.training_options import read_stored

PATHS = ('condition', 'data', 'val_data', 'val_pairs', 'transfer', 'temperature_from')
VALUES = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**53, 2**63, 10**30, 0.5, -0.0, 1e-300, 1e308, '', 'x', '1', '8,8', 'é\n\0',
    '9' * 400, '../..', 'help', [], [1], ['color'], [[]], {}, {'a': 1},
)  # fmt: skip


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    """The folder of a finished run with conditions and an augmentation."""
    folder = tmp_path_factory.mktemp('fuzz')
    data = write_zip(folder / 'data.zip', 16, (3, 8, 8))
    more = ['--channels=16,16,16', '--blocks=1,2,1', '--condition=class,color', '--augment=0.1']
    invoke(train.main, f'--data={data}', *TINY_RUN, *more, f'--outdir={folder / "run"}', '--nosubdir',
           '--duration=0.000016')  # fmt: skip
    return folder / 'run'


@pytest.fixture
def text(run) -> str:
    path = run / 'training_options.json'
    text = path.read_text()
    yield text
    path.write_text(text)


def resume(run: Path, content: bytes) -> bool:
    """Whether a resume with these options works; if not, it must say why in one line. The run is finished, so that it
    takes no step."""
    (run / 'training_options.json').write_bytes(content)
    args = [f'--resume={run}', '--duration=0.000016', '--device=cpu', '--workers=0']
    result = CliRunner().invoke(train.main, args)
    assert isinstance(result.exception, SystemExit | None), (content[:2000], result.exception)
    if result.exit_code == 0:
        return True
    errors = [line for line in result.output.splitlines() if line.startswith('Error: ')]
    assert result.exit_code == 1 and len(errors) == 1 == result.output.count('Error'), result.output
    assert errors[0].isprintable()
    return False


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The keys that lead to every value in nested JSON."""
    found = [path] if path else []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        found += places(entry, (*path, key))
    return found


def changed(content: dict, path: tuple, rng: random.Random) -> dict:
    """A copy with another value at ``path``, none, or a strange key beside it."""
    content = json.loads(json.dumps(content))
    *above, last = path
    parent = content
    for key in above:
        parent = parent[key]
    kind = rng.random()
    if kind < 0.75:
        parent[last] = rng.choice(VALUES)
    elif kind < 0.9 or isinstance(parent, list):
        del parent[last]
    else:
        parent[f'{last}?'] = parent[last]
    return content


def test_damaged_bytes(run, text):
    works = [resume(run, damaged) for damaged in mutations(text.encode(), 150, seed=1)]
    assert 10 < sum(works) < 140


def test_changed_values(run, text):
    rng, content = random.Random(2), json.loads(text)
    paths = [path for path in places(content) if path[0] != 'network']
    works = [resume(run, json.dumps(changed(content, path, rng)).encode()) for path in rng.sample(paths, 60)]
    assert 5 < sum(works) < 55


def test_every_option_with_every_value(run, text):
    """As far as they are read."""
    content = json.loads(text)
    accepted = set()
    for name in content['options']:
        for i, value in enumerate(VALUES):
            options = {**content['options'], name: value}
            (run / 'training_options.json').write_text(json.dumps({**content, 'options': options}))
            found = outcome(lambda: read_stored(str(run), set()))
            if not isinstance(found, Exception):
                accepted.add((name, i))
                kept = found.options.get(name)
                assert kept == value or name in PATHS, name
            assert not isinstance(found, click.ClickException)
    assert {name for name, _ in accepted} >= {'nodes', 'batch', 'lr', 'cond', 'condition'}
    refused = len(content['options']) * len(VALUES) - len(accepted)
    assert refused > 2 * len(accepted)


def test_a_huge_network_takes_no_memory(run, text):
    """The state is of a small one."""
    content = json.loads(text)
    for name, value in {'channels': '100000', 'blocks': '2500', 'nodes': '1000000'}.items():
        options = {**content['options'], name: value}
        assert not resume(run, json.dumps({**content, 'options': options}).encode())
