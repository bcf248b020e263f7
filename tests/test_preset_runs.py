"""The table of preset runs, against a real tiny run."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from conftest import unpadded, write_zip
from PIL import Image

import train as train_script
from cli.presets import PRESETS
from cli.training_arguments import network_options
from cli.training_options import parsed
from ddn_networks.snapshots import WithoutWeights, rebuild
from experiments import preset_runs


@pytest.fixture
def run(tmp_path):
    write_zip(tmp_path / 'a.zip', 24, (3, 8, 8), 0, labels=False)
    args = ['--preset=mnist-cpu', f'--data={tmp_path / "a.zip"}', f'--outdir={tmp_path / "tiny"}', '--nosubdir',
            '--device=cpu', '--workers=0', '--channels=8,8', '--blocks=1,1', '--nodes=4', '--batch=16',
            '--duration=0.00016', '--tick=0.016', '--ema=0.0001', '--seed=0']  # fmt: skip
    outcome = CliRunner().invoke(train_script.main, args)
    assert outcome.exit_code == 0, outcome.output
    return tmp_path / 'tiny'


def test_a_run_becomes_a_table_with_its_pictures(run, tmp_path):
    outdir = tmp_path / 'results'
    outcome = CliRunner().invoke(preset_runs.main, [str(run), f'--outdir={outdir}', '--ticks=4', '--reconstructions'])
    assert outcome.exit_code == 0, outcome.output
    ticks = [json.loads(line) for line in (run / 'stats.jsonl').read_text().splitlines()]
    written = json.loads((outdir / 'presets.json').read_text())[0]
    assert [row['images'] for row in written['ticks']] == [16, 64, 112, 160]
    for row in written['ticks']:
        tick = next(t for t in ticks if t['nimg'] == row['images'])
        assert row['steps'] == row['images'] // 16 and row['loss'] == tick['loss'] == pytest.approx(
            sum(tick['loss_layers']) / 2
        )
    assert written['ticks'][0]['dead nodes, %'] is None  # 16 images tell nothing about 4 nodes
    assert written['ticks'][-1]['dead nodes, %'] is not None
    assert written['preset'] == 'mnist-cpu' and written['other than the preset']['nodes'] == '4'
    assert 'lr' not in written['other than the preset']
    text = (outdir / 'presets.md').read_text()
    assert 'Preset mnist-cpu --channels=8,8 --blocks=1,1 --nodes=4' in text
    assert text.strip() in outcome.output and '## tiny' in text and 'a.zip' in text and '| 160 | 10 |' in unpadded(text)
    for sheet in ('samples', 'reconstructions'):
        newest = sorted(run.glob(f'{sheet}-*.png'))[-1]
        with Image.open(newest) as whole, Image.open(outdir / f'tiny-{sheet}.png') as upper:
            height = min(whole.height, preset_runs.TALL)
            assert upper.tobytes() == whole.crop((0, 0, whole.width, height)).tobytes() and f'tiny-{sheet}.png' in text


def test_what_is_no_run_is_named(tmp_path):
    outcome = CliRunner().invoke(preset_runs.main, [str(tmp_path)])
    assert outcome.exit_code == 1 and f'{tmp_path} is not a run folder' in outcome.output


def table() -> dict[str, list[str]]:
    """The rows of docs/presets.md by preset."""
    text = (Path(__file__).resolve().parents[1] / 'docs' / 'presets.md').read_text()
    text = text[: text.index('\n# Networks that come with the code')]
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('| `')]
    return {cells[0].strip('`'): cells for cells in rows}


def test_every_preset_is_in_the_table_with_how_long_it_trains():
    images = {name: int(cells[5].replace(',', '')) for name, cells in table().items()}
    assert images == {name: round(preset.options['duration'] * 1e6) for name, preset in PRESETS.items()}


@pytest.mark.parametrize('name', [name for name in PRESETS if name.endswith(('-cpu', '-gpu'))])
def test_its_layers_and_parameters_are_in_the_table(name):
    preset, cells = PRESETS[name], table()[name]
    size, channels = int(cells[1].split('x')[0]), 1 if 'grey' in cells[1] else 3
    plain = {k: v for k, v in preset.options.items() if k != 'condition'}
    data = SimpleNamespace(resolution=(size, size), num_channels=channels)
    spec = network_options(parsed({}).params | plain, data)
    with WithoutWeights():
        net = rebuild({'class_name': spec['network_class'], 'kwargs': spec['network_kwargs']})
    parameters = sum(p.numel() for p in net.parameters())
    assert (net.num_layers, f'{parameters:,}') == (int(cells[3]), cells[4])
    assert list(dict.fromkeys(net.num_nodes))[0] == int(cells[2].split(';')[0].split(',')[0])
    assert parameters <= 25e6
