"""report.html and stats.jsonl: what they hold, and that nothing in a run folder breaks them."""

import base64
import html.parser
import io
import json
import math
import os
import re

import numpy as np
import pytest
import torch
from mutations import mutations
from PIL import Image

from ddn_networks import DDN
from training import charts, report
from training.report_html import write_report

L = 127
BLOCKS = (1, 2, 4, 8, 16, 32, 64)


def tick(nimg: int, num_layers: int = L) -> dict:
    return {
        'nimg': nimg, 'tick': nimg // 1000, 'loss': 1 / nimg, 'loss_layers': [1 / (1 + l) for l in range(num_layers)],
        'val_psnr': 20.0, 'usage_entropy': [0.5] * num_layers, 'dead': [0.25] * num_layers,
        'splits': list(range(num_layers)), 'lr': 1e-3, 'images_per_sec': 100.0, 'seconds': 60.0, 'seconds_left': 3600.0,
        'grad_norm': 1.0, 'skipped_steps': 0, 'cpu_mem_gb': 1.0, 'peak_gpu_mem_gb': None,
    }  # fmt: skip


def options() -> dict:
    ends = np.cumsum(BLOCKS).tolist()
    scales = [{'height': 2**i, 'width': 2**i, 'first': end - n, 'last': end - 1}
              for i, (n, end) in enumerate(zip(BLOCKS, ends, strict=True))]  # fmt: skip
    return {
        'command': 'python train.py --data=a.zip', 'changed': {'lr_ramp': 0.5},
        'options': {'batch': 16, 'lr_ramp': 0.5},
        'loop': {'total_nimg': 8000, 'dataset_kwargs': {'path': '/data/a.zip'}, 'network_class': 'DDN'},
        'data': {'num': 70_000, 'shape': [3, 64, 64]}, 'dataset': 'a', 'preset': 'faces64', 'git_revision': 'abc123',
        'torch': '2.9', 'ranks': 8,
        'network': {'num_layers': L, 'bits': 1079.0, 'parameters': 109_379_712, 'scales': scales, 'table': 'T'},
    }  # fmt: skip


def save_sheet(path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> None:
    Image.fromarray(np.random.RandomState(seed).randint(0, 256, size, dtype=np.uint8)).save(path)


def fill(folder, num_ticks: int = 8, sheets: int = 3, num_layers: int = L) -> None:
    folder.mkdir(exist_ok=True)
    ticks = [tick(1000 * (i + 1), num_layers) for i in range(num_ticks)]
    (folder / 'stats.jsonl').write_text(''.join(json.dumps(t) + '\n' for t in ticks))
    (folder / 'training_options.json').write_text(json.dumps(options()))
    for i in range(sheets):
        for kind in ('samples', 'reconstructions', 'layers'):
            save_sheet(folder / f'{kind}-{1000 * (i + 1):09d}.png', i)


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced and that nothing is fetched; collects text and the names of pictures in order."""

    VOID = ('meta', 'img', 'br')

    def __init__(self, source: str):
        super().__init__()
        self.open, self.text, self.pictures, self.titles, self.sources = [], '', [], [], 0
        self.feed(source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        for name in ('src', 'href', 'data', 'action', 'poster', 'srcset', 'style'):
            if (value := attrs.get(name)) is not None:
                assert '//' not in value or value.startswith('data:image/png;base64,'), value[:80]
                assert 'url(' not in value
        if tag == 'img':
            self.pictures.append(attrs['alt'])
        assert tag not in ('link', 'iframe', 'object', 'embed', 'base', 'form')
        assert not [name for name in attrs if name.startswith('on')]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ('script', 'style'):
            self.text += data
            if self.open[-1] == 'h2':
                self.titles.append(data)
        else:
            assert not re.search(r'https?:|//\w|@import|url\(', data), data[:200]


def read(folder) -> Page:
    write_report(str(folder))
    return Page((folder / 'report.html').read_text(encoding='utf-8'))


def figures(folder) -> dict[str, dict]:
    """The numbers that the charts show, by their titles."""
    source = (folder / 'report.html').read_text()
    chart = r'<figure class="chart">.*?<b>(.*?)</b>.*?<script type="application/json">(.*?)</script>'
    found = re.findall(chart, source)
    return {title: json.loads(data) for title, data in found}


# --------------------------------------------------------------------------------------------------------------- charts


@pytest.mark.parametrize(
    'low, high, expected',
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (3, 97, [20, 40, 60, 80]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0.1, 0.13, [0.1, 0.11, 0.12, 0.13]),
        (1000, 87_000, [20_000, 40_000, 60_000, 80_000]),
        (5, 5, [5]),
        (0, 1e-7, [0, 2e-8, 4e-8, 6e-8, 8e-8, 1e-7]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert charts.ticks(low, high, 6) == pytest.approx(expected, abs=1e-20)


def test_ticks_of_any_range_are_few_and_inside():
    rng = np.random.RandomState(0)
    for _ in range(500):
        low = rng.randn() * 10.0 ** rng.randint(-8, 9)
        high = low + abs(rng.randn()) * 10.0 ** rng.randint(-3, 9) + abs(low) * 1e-3
        for found in (charts.ticks(low, high), charts.log_ticks(abs(low) + 1e-9, abs(low) + high - low)):
            assert 1 <= len(found) <= 5 and found == sorted(set(found))
        room = 1e-6 * (high - low)
        assert all(low - room <= v <= high + room for v in charts.ticks(low, high))


@pytest.mark.parametrize(
    'low, high, expected',
    [
        (0.01, 1, [0.01, 0.1, 1]),
        (0.3, 4, [0.5, 1, 2]),
        (1e-6, 1e6, [1e-6, 1e-3, 1, 1e3, 1e6]),
        (0.11, 0.14, [0.11, 0.12, 0.13, 0.14]),
    ],
)
def test_ticks_of_logarithmic_axes(low, high, expected):
    assert charts.log_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    'value, text', [(0, '0'), (0.002, '0.002'), (15_000, '15k'), (2_500_000, '2.5M'), (-1e9, '-1G'), (1e-7, '1e-07')]
)
def test_numbers_on_axes_are_short(value, text):
    assert charts.short(value) == text


def test_a_curve_is_where_its_axes_say():
    made = charts.curves('T', 'good', [0, 50, 100], {'a': [0, None, 4], 'b': [1, 2, 3]}, 'layer')
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    grid = {float(v): float(y) for y, v in re.findall(r'y2="([\d.]+)"/><text x="49" [^>]*>([\d.]+)</text>', made)}
    assert sorted(grid) == [0, 1, 2, 3, 4]
    dots = re.findall(r'<circle class="s0" cx="([\d.]+)" cy="([\d.]+)"', made)
    assert [(float(x), float(y)) for x, y in dots] == [(left, grid[0]), (right, grid[4])]  # a gap between them
    (line,) = re.findall(r'<polyline class="curve s1" points="(.*?)"', made)
    points = [tuple(map(float, p.split(','))) for p in line.split()]
    assert points == [(left, grid[1]), ((left + right) / 2, grid[2]), (right, grid[3])]


@pytest.mark.parametrize(
    'values, marks',
    [
        ([0.0, 0.0], ['0 %', '1 %']),
        ([0.5, 3.9], ['1 %', '2 %', '3 %', '4 %']),
        ([154, 156, 156], ['154 %', '155 %', '156 %']),  # whole numbers have no halves between them
        ([-1, 1], ['-1 %', '0 %', '1 %']),
        ([0, 0.01], ['0 %', '0.005 %', '0.01 %']),
    ],
)
def test_axes_end_at_zero_where_no_value_is_negative(values, marks):
    made = charts.curves('T', 'good', list(range(len(values))), {'a': values}, unit=' %')
    assert re.findall(r'text-anchor="end">([^<]*)<', made) == marks


@pytest.mark.parametrize(
    'values', [[1.0], [0.0, 0.0], [5, 5, 5], [None, None, 3.0], [-1, 1e29], [1e-29, 1e29], [1e300, 1]]
)
@pytest.mark.parametrize('log', [False, True])
def test_curves_of_odd_values(values, log):
    made = charts.curves('T', 'good', list(range(len(values))), {'a': values}, log=log)
    assert 'nan' not in made and 'inf' not in made
    assert bool(made) == any(v is not None and v < 1e30 and (v > 0 or not log) for v in values)


def test_a_map_shows_every_layer(tmp_path):
    rows = [[None if l == 3 else l / (L - 1)] * 2 for l in range(L)]
    made = charts.layer_map('T', 'good', [1000, 2000], rows, charts.HEAT, 0, 1)
    height = float(re.search(r'<image [^>]* height="([\d.]+)"', made)[1])
    assert height >= 2 * L
    data = re.search(r'base64,([^"]*)', made)[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert pixels.shape == (L, 2, 3)
    assert tuple(pixels[0, 0]) == charts.HEAT[0] and tuple(pixels[-1, 0]) == charts.HEAT[-1]
    assert tuple(pixels[3, 0]) == charts.GREY and 'too few images' in made


def test_many_ticks_are_thinned_and_the_last_is_kept():
    assert charts.thinned(5, 10) == [0, 1, 2, 3, 4] and charts.thinned(0, 10) == []
    found = charts.thinned(4001, 300)
    assert len(found) == 300 and found[0] == 0 and found[-1] == 4000


# ------------------------------------------------------------------------------------------------------------- the page


def test_the_page_begins_with_the_newest_pictures(tmp_path):
    fill(tmp_path / '00000-run')
    page = read(tmp_path / '00000-run')
    assert page.pictures == [f'{kind}-000003000.png' for kind in ('samples', 'reconstructions', 'layers')] + [
        'samples-000002000.png', 'samples-000001000.png',  # fmt: skip
    ]
    assert page.titles == [
        'Samples', 'Reconstructions', 'Layer by layer', 'Earlier samples', 'Training', 'Layers', 'This run',
    ]  # fmt: skip
    for words in ('00000-run', 'faces64', '8,000', 'finished', '20.00 dB', '25.0%', '127', '1,079', '109,379,712',
                  'python train.py --data=a.zip', '--lr-ramp', '70,000, 3 x 64 x 64', 'abc123', '/data/a.zip',
                  ):  # fmt: skip
        assert words in page.text, words
    assert page.text.index('--lr-ramp') < page.text.index('--batch')  # what differs from the defaults comes first
    shown = figures(tmp_path / '00000-run')
    assert shown['Training loss']['series'] == [[float(f'{1 / n:.5g}') for n in range(1000, 9000, 1000)]]
    assert len(shown['Dead nodes']['rows']) == L and shown['Dead nodes']['rows'][126] == [25.0] * 8
    assert shown['Splits since the moment before']['rows'][5] == [5] + 7 * [0]
    source = (tmp_path / '00000-run' / 'report.html').read_text()
    assert '>64x64</text>' in source and '>32x32</text>' in source


def test_the_page_stays_small(tmp_path):
    fill(tmp_path, num_ticks=400, sheets=30)
    save_sheet(tmp_path / 'samples-000031000.png', size=(2000, 2200))  # 4 MB of noise
    page = read(tmp_path)
    assert len(page.pictures) == 9
    assert page.pictures[3:] == [f'samples-{n:09d}.png' for n in (30_000, 24_000, 18_000, 13_000, 7_000, 1_000)]
    assert os.path.getsize(tmp_path / 'report.html') < 5_000_000


def test_text_from_the_run_is_escaped(tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>\'&\udcff'
    folder = tmp_path / '<b onclick=x>&run'
    fill(folder)
    changed = options() | {'command': evil, 'preset': evil, 'dataset': evil, 'git_revision': evil, 'torch': evil}
    changed |= {'changed': {evil: evil}, 'options': {evil: [evil, {evil: evil}]}}
    changed['loop'] |= {'dataset_kwargs': {'path': evil}, 'network_class': evil}
    changed['data']['shape'] = changed['data']['num'] = [evil]
    changed['network']['table'] = evil
    (folder / 'training_options.json').write_text(json.dumps(changed))
    save_sheet(folder / 'samples-000009000.png<b>.png')
    page = read(folder)
    assert page.text.count('<script>alert(1)') >= 8 and '<b onclick=x>&run' in page.text
    source = (folder / 'report.html').read_text()
    assert '<script>alert' not in source and '<img src=x' not in source and '<b onclick' not in source


def test_an_empty_run_has_a_report(tmp_path):
    page = read(tmp_path)
    assert 'Nothing is measured yet' in page.text and not page.pictures
    (tmp_path / 'stats.jsonl').write_text('')
    (tmp_path / 'training_options.json').write_text('[1]')
    read(tmp_path)


def test_pictures_that_cannot_be_read_are_left_out(tmp_path):
    fill(tmp_path)
    whole = (tmp_path / 'samples-000003000.png').read_bytes()
    (tmp_path / 'samples-000003000.png').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'reconstructions-000003000.png').write_bytes(b'')
    (tmp_path / 'layers-000003000.png').unlink()
    (tmp_path / 'layers-000003000.png').symlink_to(tmp_path / 'missing')
    (tmp_path / 'layers-000004000.png').mkdir()
    os.mkfifo(tmp_path / 'samples-000004000.png')
    save_sheet(tmp_path / 'samples-00²0.png')
    page = read(tmp_path)
    assert page.pictures[:3] == [f'{kind}-000002000.png' for kind in ('samples', 'reconstructions', 'layers')]


def test_a_run_of_one_tick_and_one_layer_and_of_shared_nodes(tmp_path):
    (tmp_path / 'stats.jsonl').write_text(json.dumps(tick(16, 1)))
    assert 'Layers' in read(tmp_path).titles  # of another number of layers than the options say
    shared = tick(32, 10) | {'dead': [None], 'usage_entropy': [0.5], 'splits': [7]}
    (tmp_path / 'stats.jsonl').write_text(json.dumps(shared))
    assert '1 sets of nodes serve 10 layers' in read(tmp_path).text
    assert figures(tmp_path)['Dead nodes']['row_name'] == 'set'


def test_facts_of_a_network():
    net = DDN(8, 1, [8, 8], [1, 2], [4, 2])
    facts = json.loads(json.dumps(report.network_facts(net)))
    assert facts['num_layers'] == 3 and facts['bits'] == 4
    assert facts['parameters'] == sum(p.numel() for p in net.parameters())
    assert facts['scales'] == [
        {'height': 4, 'width': 4, 'first': 0, 'last': 0}, {'height': 8, 'width': 8, 'first': 1, 'last': 2},  # fmt: skip
    ]


@pytest.mark.parametrize('num_layers, rows, columns, last', [(3, 1, 4, 2), (10, 2, 6, 9), (127, 2, 9, 126)])
def test_layers_are_shown_beside_the_original(tmp_path, monkeypatch, num_layers, rows, columns, last):
    sheets = []
    monkeypatch.setattr(report, 'draw_sheet', lambda rows: sheets.append(rows) or Image.new('L', (1, 1)))
    selected = [torch.full([2, 1, 2 if l < 2 else 4, 2 if l < 2 else 4], l / 200) for l in range(num_layers)]
    originals = torch.rand(2, 1, 4, 4)
    report.write_layers(str(tmp_path), 1000, originals, selected)
    assert os.listdir(tmp_path) == ['layers-000001000.png']
    (made,) = sheets
    assert len(made) == 2 * rows + 1 and made[rows] == () and len(made[0]) == columns
    assert torch.equal(made[rows + 1][0].picture, originals[1])
    tiles = [tile for row in made[:rows] for tile in row]
    numbers = [int(tile.caption.split()[1]) for tile in tiles[1:]]
    assert numbers[0] == 0 and numbers[-1] == last and numbers == sorted(set(numbers)) and len(numbers) <= 17
    for number, tile in zip(numbers, tiles[1:], strict=True):
        assert tile.picture.shape == (1, 4, 4) and torch.equal(tile.picture, torch.full([1, 4, 4], number / 200))


# ---------------------------------------------------------------------------------------------------------- stats.jsonl

BAD_LINES = {
    'truncated': json.dumps(tick(5000))[:-9].encode(),
    'not JSON': b'tick 5',
    'list': b'[1, 2]',
    'number': b'5000',
    'null': b'null',
    'deep': b'[' * 100_000,
    'not UTF-8': json.dumps(tick(5000) | {'note': 'x'}).encode().replace(b'"x"', b'"\xff"'),
    'NUL': b'\0' * 4096,
    'digits': b'{"nimg": ' + b'9' * 5000 + b'}',
    'missing keys': b'{"nimg": 5000}',
    'no nimg': json.dumps({k: v for k, v in tick(5000).items() if k != 'nimg'}).encode(),
    **{f'nimg {nimg}': json.dumps(tick(5000) | {'nimg': nimg}).encode()
       for nimg in (-1, 1.5, '5000', True, None, 2**63, [5])},
    **{f'{key} {value}': json.dumps(tick(5000) | {key: value}).encode()
       for key, value in (('loss', 'x'), ('loss', [1]), ('val_psnr', {}), ('loss_layers', []), ('loss_layers', 3),
                          ('dead', ['x']), ('dead', [[1]]), ('splits', None), ('usage_entropy', [True]))},
}  # fmt: skip


@pytest.mark.parametrize('line', BAD_LINES.values(), ids=BAD_LINES)
def test_bad_lines_of_statistics_are_passed_over(tmp_path, line):
    lines = [json.dumps(tick(4000)).encode(), line, json.dumps(tick(6000)).encode()]
    (tmp_path / 'stats.jsonl').write_bytes(b'\n'.join(lines))
    assert report.read_stats(str(tmp_path)) == [tick(4000), tick(6000)]
    assert '1 lines of stats.jsonl could not be read' in read(tmp_path).text


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 10**400, 1e300])
def test_numbers_that_are_not_finite_are_gaps(tmp_path, value):
    odd = tick(5000) | {'loss': value, 'val_psnr': value, 'images_per_sec': value, 'grad_norm': value, 'lr': value,
                        'seconds_left': value, 'loss_layers': [value] * L, 'dead': [value] * L,
                        'usage_entropy': [value] * L, 'splits': [value] * L, 'seconds': value}  # fmt: skip
    (tmp_path / 'stats.jsonl').write_text(json.dumps(tick(4000)) + '\n' + json.dumps(odd))
    assert report.read_stats(str(tmp_path))[1] == odd | {
        key: None if not isinstance(entry, list) else [None] * L
        for key, entry in odd.items() if key != 'nimg' and (entry is value or isinstance(entry, list))
    }  # fmt: skip
    read(tmp_path)
    (tmp_path / 'stats.jsonl').write_text('')
    report.append_stats(str(tmp_path), odd)
    assert report.read_stats(str(tmp_path))[0]['loss'] is None  # null in JSON, which knows no NaN
    assert not re.search('nan|infinity', (tmp_path / 'stats.jsonl').read_text(), re.IGNORECASE)


def test_damaged_statistics_and_options_never_break_the_report(tmp_path):
    fill(tmp_path, num_ticks=3, sheets=0, num_layers=2)
    for name in ('stats.jsonl', 'training_options.json'):
        whole = (tmp_path / name).read_bytes()
        for damaged in mutations(whole, 100):
            (tmp_path / name).write_bytes(damaged)
            read(tmp_path)
        (tmp_path / name).write_bytes(whole)


@pytest.mark.parametrize('value', [None, 3, -1.5, 1e400, 'x', [], [1], {}, True, '\udcff'])
def test_options_of_any_type_never_break_the_report(tmp_path, value):
    (tmp_path / 'stats.jsonl').write_text(json.dumps(tick(4000, 2)))

    def places(tree, path=()):
        for key, entry in tree.items():
            yield (*path, key)
            if isinstance(entry, dict):
                yield from places(entry, (*path, key))

    for path in places(options()):
        changed = part = options()
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        (tmp_path / 'training_options.json').write_text(json.dumps(changed))
        read(tmp_path)
    changed = options()
    for scale in changed['network']['scales']:
        scale['last'] = value
    (tmp_path / 'training_options.json').write_text(json.dumps(changed))
    read(tmp_path)


# ------------------------------------------------------------------------------------------------------------ own prior


def test_nats_of_the_prior_are_charted_against_those_of_uniform_choices(tmp_path):
    fill(tmp_path, sheets=0)
    ticks = [{**tick(1000 * (i + 1)), 'prior_nats': 2.0 - i / 10, 'val_prior_nats': 2.1 - i / 10,
              'val_bits': 1234.5, 'val_code_bits': [1.0] * L} for i in range(3)]  # fmt: skip
    (tmp_path / 'stats.jsonl').write_text(''.join(json.dumps(t) + '\n' for t in ticks))
    content = options()
    content.setdefault('network', {})['bits_of_codes'] = [3.0] * L
    (tmp_path / 'training_options.json').write_text(json.dumps(content))
    read(tmp_path)
    found = figures(tmp_path)
    assert found['Nats per code by the prior']['names'] == ['training', 'validation']
    assert found['Nats per code by the prior']['series'][1] == pytest.approx([2.1, 2.0, 1.9])
    bits = found['Bits of a code of each layer']
    assert bits['names'] == ['coded', 'log2 K'] and bits['series'] == [[1.0] * L, [3.0] * L]
    assert '<b>1,234</b><small>bits per image, coded</small>' in (tmp_path / 'report.html').read_text()
    for wrong in ('x', [1.0], [True] * L, ['x'] * L):
        ticks[-1]['val_code_bits'] = wrong
        (tmp_path / 'stats.jsonl').write_text(json.dumps(ticks[-1]) + '\n')
        read(tmp_path)
        assert 'Bits of a code of each layer' not in figures(tmp_path)


def test_a_prior_that_overfits_is_named():
    watch = report.PriorWatch(DDN(8, 1, [8, 8], [1, 2], [4, 4], prior_width=4))  # uniform: log 4 = 1.386 nats

    def warns(training: float | None, held_out: float | None) -> bool:
        stats = {'prior_nats': training, 'val_prior_nats': held_out}
        return watch.warning({k: v for k, v in stats.items() if v is not None}) is not None

    assert not warns(None, None) and not warns(1.0, 1.386)  # the average lags behind
    assert not warns(0.9, 1.1) and not warns(0.8, 1.11)  # below the least and 1 % of 1.386
    assert warns(0.8, 1.13) and not warns(1.1, 1.13) and not warns(0.7, 1.05) and warns(0.7, 1.07)


def test_the_layer_table_has_the_bits_that_the_coder_spends():
    net = DDN(8, 1, [8, 8], [1, 2], [4, 2], grids=[1, 2])
    assert 'coded' not in report.layer_table(net)
    lines = report.layer_table(net, [1.0, 0.5, 0.25]).splitlines()
    assert lines[0].split()[-1] == 'coded'
    assert [line.split()[-1] for line in lines[1:]] == ['1.0', '3.0', '4.0']  # 1; (1/2 + 1/4) of 4 cells; the sum
