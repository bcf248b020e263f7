"""report.html: what a run shows, newest pictures first, in one file that needs no other."""

import base64
import html
import io
import os
import re
from collections.abc import Sequence
from typing import Any

from PIL import Image

from dnnlib.images import open_image
from dnnlib.readers import read_bytes, read_json
from dnnlib.util import atomic_write, format_time
from torch_utils import misc
from training import charts
from training.report import mean_or_none, parse_stats

MAX_PICTURE = 64 << 20  # bytes of the largest PNG that is shown
EMBEDDED = 3 << 20  # bytes of a PNG that is embedded as it is; larger ones are made smaller
LARGE, SMALL = 1300, 320  # pixels of the longer side of pictures that are made smaller
EARLIER = 6  # sheets of samples that show the progress
SHEET = re.compile(r'(samples|reconstructions|layers)-(\d{1,18})\.png')
NEWEST = {
    'samples': (
        'Samples',
        'Images for random choices at every layer. Good: each could be from the data, no two the same.',
    ),
    'reconstructions': (
        'Reconstructions',
        'Validation images, and below each the nearest candidates, layer after layer. Good: hard to tell apart.',
    ),
    'layers': (
        'Layer by layer',
        'The same choices, one layer after the other. Good: the shape is there early, later layers add detail.',
    ),
}

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5c6670; --line: #d9dee3; --paper: #fff; --card: #f6f8fa;
  --blue: #1f6feb; --orange: #d9730d }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa5b1; --line: #3a424b; --paper: #15181c;
  --card: #1e2329; --blue: #6cb0ff; --orange: #f5a34c } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 2rem) 3rem; max-width: 86rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.2; margin: .5rem 0 }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; border-top: 1px solid var(--line); padding-top: 1rem }
p { margin: .3rem 0; max-width: 46rem }
small { color: var(--soft); font-size: .85rem }
a { color: inherit }
img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line) }
figure { margin: .6rem 0 }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(6.4rem, 1fr)); gap: .5rem; margin: 1rem 0 }
.facts div { background: var(--card); border-radius: .4rem; padding: .4rem .5rem; line-height: 1.3 }
.facts b { display: block; white-space: nowrap; font-variant-numeric: tabular-nums }
pre.wide { white-space: pre; overflow-x: auto }
.pictures { display: grid; gap: 0 2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)) }
.pictures .reconstructions { grid-row: span 2 }
.row { display: grid; gap: 0 1rem; grid-template-columns: repeat(auto-fill, minmax(min(45%, 11.5rem), 1fr)) }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 0 2rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
td, th { text-align: left; vertical-align: top; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--line) }
th { font-weight: normal; color: var(--soft); width: min(11rem, 35vw) }
pre { white-space: pre-wrap; background: var(--card); padding: .6rem .8rem; border-radius: .4rem; margin: .5rem 0 }
pre span { display: inline-block; max-width: 100% }
summary { cursor: pointer; padding: .3rem 0 }
@media print { body { max-width: none } h2 { break-after: avoid } figure { break-inside: avoid } }
"""


def write_report(run_dir: str) -> None:
    """Write ``report.html`` from what lies in the run folder: stats.jsonl, training_options.json and pictures. What is
    missing or cannot be read is left out. OSError where the report cannot be written."""
    ticks, num_bad = parse_stats(run_dir)
    options = read_options(run_dir)
    name = os.path.basename(os.path.abspath(run_dir))
    sheets = find_sheets(run_dir)
    parts = [f'<h1>{_text(name)}</h1>', _where(options), _summary(ticks, options)]
    parts += _newest_pictures(run_dir, sheets) + _earlier_samples(run_dir, sheets.get('samples', []))
    if num_bad:
        parts.append(f'<p><small>{num_bad} lines of stats.jsonl could not be read and are left out.</small></p>')
    if ticks:
        parts += _training_charts(ticks) + _layer_charts(ticks, options)
    parts += about(options)
    write_page(run_dir, parts)


def write_page(run_dir: str, parts: Sequence[str]) -> None:
    """Write ``report.html`` of these parts, HTML each."""
    name = os.path.basename(os.path.abspath(run_dir))
    with atomic_write(os.path.join(run_dir, 'report.html'), 'w', sync=False) as f:
        f.write(
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{_text(name)}: DDN training</title>'
            f'<style>{STYLE}{charts.STYLE}</style></head><body>\n' + '\n'.join(parts)
            + f'\n<script>{charts.SCRIPT}</script></body></html>\n'
        )  # fmt: skip


def _text(value: Any) -> str:
    return html.escape(str(value).encode('utf-8', 'backslashreplace').decode())


def read_options(run_dir: str) -> dict[str, Any]:
    try:
        options = read_json(os.path.join(run_dir, 'training_options.json'))
    except ValueError:
        return {}
    return options if isinstance(options, dict) else {}


def _part(options: Any, *keys: str, kind: type | tuple[type, ...] = dict) -> Any:
    """What nested dicts hold, if it is of the kind; else an empty dict, or None for other kinds."""
    for key in keys:
        options = options.get(key) if isinstance(options, dict) else None
    return options if isinstance(options, kind) else {} if kind is dict else None


# -------------------------------------------------------------------------------------------------------------- numbers


def _where(options: dict[str, Any]) -> str:
    """One line: data, preset, code, and the way to the rest."""
    if not options:
        return ''
    shape = _part(options, 'data', 'shape', kind=list) or []
    words = [options.get('dataset'), 'x'.join(map(str, shape[1:])), options.get('preset')]
    words = [_text(word) for word in words if word]
    return f'<p><small>{" &middot; ".join(words)} &middot; <a href="#run">command and options</a></small></p>'


def _summary(ticks: Sequence[dict[str, Any]], options: dict[str, Any]) -> str:
    facts = []
    total = _part(options, 'loop', 'total_nimg', kind=int)
    if ticks:
        last = ticks[-1]
        dead = mean_or_none(last['dead'])
        left = last.get('seconds_left')
        of = f'of {total:,} ' if total else ''
        facts += [
            (f'{last["nimg"]:,}', f'{of}images seen'),
            ('finished', 'training') if total and last['nimg'] >= total else
            (format_time(left) if left else '-', 'time left'),
            ('-' if last['val_psnr'] is None else f'{last["val_psnr"]:.2f} dB', 'validation PSNR'),
            ('-' if last['loss'] is None else f'{last["loss"]:.4g}', 'training loss'),
            ('-' if dead is None else f'{dead:.1%}', 'dead nodes'),
            ('-' if last['images_per_sec'] is None else f'{last["images_per_sec"]:,.1f}', 'images per second'),
        ]
        if _is_number(last.get('val_bits')):
            facts.append((f'{last["val_bits"]:,.0f}', 'bits per image, coded'))
    network = _part(options, 'network')
    for key, words, form in (('num_layers', 'layers (L)', '{:,}'), ('bits', 'bits per image, log2 K', '{:,.0f}'),
                             ('parameters', 'parameters', '{:,}')):  # fmt: skip
        if (value := _part(network, key, kind=(int, float))) is not None:
            facts.append((form.format(value), words))
    return fact_boxes(facts) if facts else '<p>Nothing is measured yet.</p>'


def fact_boxes(facts: Sequence[tuple[str, str]]) -> str:
    """(value, what it is) in boxes."""
    cells = ''.join(f'<div><b>{_text(value)}</b><small>{_text(words)}</small></div>' for value, words in facts)
    return f'<div class="facts">{cells}</div>'


def _training_charts(ticks: Sequence[dict[str, Any]]) -> list[str]:
    x = [t['nimg'] for t in ticks]

    def column(name: str, factor: float = 1) -> list[float | None]:
        values = [t.get(name) for t in ticks]
        return [v * factor if _is_number(v) else None for v in values]

    means = {name: [mean_or_none(t[name]) for t in ticks] for name in ('usage_entropy', 'dead')}
    splits = [sum(v for v in t['splits'] if v) for t in ticks]
    errors = [t['loss_layers'][-1] for t in ticks]
    trained = [None if error is None or error < 0 else misc.psnr(error) for error in errors]
    made = [
        charts.curves('Reconstruction, PSNR', 'Good: both rise. Training is lower where Chain Dropout chooses.', x,
                      {'training': trained, 'validation': column('val_psnr')}, unit=' dB'),
        charts.curves('Training loss', 'Mean squared error over all layers. Good: it falls steadily.', x,
                      {'loss': column('loss')}, log=True),
        charts.curves('Evenness of node usage', '1: all nodes of a layer are chosen equally often. Good: above 0.9.', x,
                      {'entropy': means['usage_entropy']}),
        charts.curves('Dead nodes', 'Share that no recent image chose. Good: near 0.', x,
                      {'dead': [None if v is None else 100 * v for v in means['dead']]}, unit=' %'),
        charts.curves('Splits so far', 'Split-and-Prune moves unused nodes. Good: steep at first, then it flattens.', x,
                      {'splits': splits}),
        charts.curves('Learning rate', 'As --lr, --lr-ramp and --lr-decay set it.', x, {'rate': column('lr')}),
        charts.curves('Gradient norm', 'Good: no jumps by orders of magnitude.', x, {'norm': column('grad_norm')},
                      log=True),
        charts.curves('Images per second', 'Good: constant.', x, {'speed': column('images_per_sec')}),
        charts.curves('Nats per code by the prior', 'How surprising codes are. Good: both fall; where they part, the '
                      'prior overfits.', x, {'training': column('prior_nats'), 'validation': column('val_prior_nats')}),
    ]  # fmt: skip
    note = '<p><small>Point at a chart to read its values.</small></p>'
    return ['<h2>Training</h2>', note, '<div class="charts">', *filter(None, made), '</div>']


def _layer_charts(ticks: Sequence[dict[str, Any]], options: dict[str, Any]) -> list[str]:
    last = ticks[-1]
    num_layers, num_sets = len(last['loss_layers']), len(last['dead'])
    scales = _scales(options, num_layers)
    shared = num_sets != num_layers
    row_name = 'set' if shared else 'layer'
    of_rows = () if shared else scales
    alike = [t for t in ticks if all(len(t[k]) == num_sets for k in ('dead', 'usage_entropy', 'splits'))]
    shown = [alike[i] for i in charts.thinned(len(alike), charts.MOST_COLUMNS)]
    x = [t['nimg'] for t in shown]

    def rows(name: str) -> list[list[float | None]]:
        return [list(row) for row in zip(*(t[name] for t in shown), strict=True)]

    dead = [[None if v is None else 100 * v for v in row] for row in rows('dead')]
    splits = [[_difference(a, b) for a, b in zip([0, *row], row, strict=False)] for row in rows('splits')]
    most = max((v for row in splits for v in row if v is not None), default=0)
    rest = {'row_name': row_name, 'scales': of_rows}
    made = [
        charts.curves('Loss of each layer', 'At the newest tick. Good: among layers of one size it falls.',
                      list(range(num_layers)), {'loss': last['loss_layers']}, 'layer', log=True, scales=scales),
        _prior_chart(last, options, scales),
        charts.layer_map('Dead nodes', 'Good: light nearly everywhere.', x, dead, charts.HEAT, 0, 100, ' %', **rest),
        charts.layer_map('Evenness of node usage', '1: all nodes are chosen equally often. Good: light.', x,
                         rows('usage_entropy'), charts.HEAT[::-1], 0, 1, **rest),
        charts.layer_map('Splits since the moment before', 'Good: dark at the start, then lighter.', x, splits,
                         charts.COUNTS, 0, max(most, 1), log=True, **rest),
    ]  # fmt: skip
    words = 'Layers from coarse (top) to fine (bottom), training from left to right.'
    if shared:
        words += f' {num_sets} sets of nodes serve {num_layers} layers.'
    return ['<h2>Layers</h2>', f'<p>{words}</p>', '<div class="charts">', *filter(None, made), '</div>']


def _prior_chart(last: dict[str, Any], options: dict[str, Any], scales: Sequence[charts.Scale]) -> str:
    """Bits of a code of each layer, as the codec stores it and by uniform choices; nothing without a prior."""
    coded, bits = last.get('val_code_bits'), _part(options, 'network', 'bits_of_codes', kind=list)
    num_layers = len(last['loss_layers'])
    if not (isinstance(coded, list) and bits and len(coded) == len(bits) == num_layers):
        return ''
    if not all(v is None or _is_number(v) for v in (*coded, *bits)):
        return ''
    series = {'coded': coded, 'log2 K': bits}
    good = 'Of validation images, as codec.py stores them by the prior. Good: fewer than log2 K.'
    return charts.curves('Bits of a code of each layer', good, list(range(num_layers)), series, 'layer', scales=scales)


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None or after < before else after - before


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _scales(options: dict[str, Any], num_layers: int) -> list[charts.Scale]:
    """Layers of equal size, from training_options.json; none where they do not fit."""
    found = []
    for entry in _part(options, 'network', 'scales', kind=list) or ():
        values = [_part(entry, key, kind=int) for key in ('height', 'width', 'first', 'last')]
        if None in values or values[2] != (found[-1].last + 1 if found else 0) or values[3] < values[2]:
            return []
        found.append(charts.Scale(f'{values[0]}x{values[1]}', *values[2:]))
    return found if found and found[-1].last == num_layers - 1 else []


# ------------------------------------------------------------------------------------------------------------- pictures


def find_sheets(run_dir: str) -> dict[str, list[tuple[int, str]]]:
    """(images seen, file name) of the sheets of each kind, oldest first."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in os.listdir(run_dir):
        if match := SHEET.fullmatch(name):
            found.setdefault(match[1], []).append((int(match[2]), name))
    return {kind: sorted(sheets) for kind, sheets in found.items()}


def _newest_pictures(run_dir: str, sheets: dict[str, list[tuple[int, str]]]) -> list[str]:
    parts = []
    for kind, (title, good) in NEWEST.items():
        for nimg, name in reversed(sheets.get(kind, [])):  # the newest that can be read
            if figure := picture(run_dir, name, LARGE, f'after {nimg:,} images'):
                parts.append(f'<section class="{kind}"><h2>{title}</h2><p>{good}</p>{figure}</section>')
                break
    return ['<div class="pictures">', *parts, '</div>'] if parts else []


def _earlier_samples(run_dir: str, sheets: list[tuple[int, str]]) -> list[str]:
    earlier = [sheets[:-1][i] for i in charts.thinned(len(sheets) - 1, EARLIER)] if len(sheets) > 1 else []
    figures = [picture(run_dir, name, SMALL, f'{nimg:,} images') for nimg, name in reversed(earlier)]
    words = '<p>The same random choices at earlier moments, newest first. Good: each better than the next.</p>'
    found = [figure for figure in figures if figure]
    return ['<h2>Earlier samples</h2>', words, '<div class="row">', *found, '</div>'] if found else []


def picture(run_dir: str, name: str, longest: int, words: str) -> str:
    """A figure with the picture, made smaller where it is larger than ``longest`` pixels and many bytes, and linked to
    its file; nothing if it cannot be read."""
    try:
        data = read_bytes(os.path.join(run_dir, name), MAX_PICTURE)
        image = open_image(data, name)
    except ValueError:
        return ''
    if len(data) > EMBEDDED or longest == SMALL:
        image.thumbnail((longest, longest), Image.Resampling.BOX)
        buffer = io.BytesIO()
        image.save(buffer, 'png')
        data = buffer.getvalue()
    encoded = base64.b64encode(data).decode()
    return (
        f'<figure><a href="{_text(name)}"><img alt="{_text(name)}" width="{image.width}" height="{image.height}" '
        f'src="data:image/png;base64,{encoded}"></a>'
        f'<figcaption><small>{_text(name)}, {_text(words)}</small></figcaption></figure>'
    )


# -------------------------------------------------------------------------------------------------------------- options


def about(options: dict[str, Any]) -> list[str]:
    """The command, data, network and code of the run, and its options, those that differ from the defaults first."""
    if not options:
        return []
    parts = ['<h2 id="run">This run</h2>']
    if command := _part(options, 'command', kind=str):
        parts.append(f'<pre>{" ".join(f"<span>{_text(word)}</span>" for word in command.split(" "))}</pre>')
    shape = _part(options, 'data', 'shape', kind=list)
    num = _part(options, 'data', 'num', kind=int)
    facts = {
        'Preset': options.get('preset'),
        'Data': _part(options, 'loop', 'dataset_kwargs', 'path', kind=str),
        'Images': None if num is None else f'{num:,}' + (f', {" x ".join(map(str, shape))} (C, H, W)' if shape else ''),
        'Validation data': _part(options, 'options', 'val_data', kind=str),
        'Network': _part(options, 'loop', 'network_class', kind=str),
        'Git revision': options.get('git_revision'),
        'PyTorch': options.get('torch'),
        'Ranks': options.get('ranks'),
    }
    parts.append(_table({key: value for key, value in facts.items() if value is not None}))
    given, every = _part(options, 'changed'), _part(options, 'options')
    if given:
        parts.append(_folded(f'Options that differ from the defaults: {len(given)}', _table(_options(given)), 'open'))
    if every:
        parts.append(_folded(f'All options: {len(every)}', _table(_options(every))))
    if layers := _part(options, 'network', 'table', kind=str):
        parts.append(_folded('Layers of the network', f'<pre class="wide">{_text(layers)}</pre>'))
    return parts


def _folded(title: str, body: str, state: str = '') -> str:
    return f'<details {state}><summary>{_text(title)}</summary>{body}</details>'


def _options(values: dict[str, Any]) -> dict[str, Any]:
    return {f'--{str(key).replace("_", "-")}': value for key, value in values.items()}


def _table(values: dict[str, Any]) -> str:
    rows = ''.join(f'<tr><th>{_text(key)}</th><td>{_text(_words(value))}</td></tr>' for key, value in values.items())
    return f'<table>{rows}</table>'


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, list):
        return ', '.join(map(_words, value)) or '-'
    return '-' if value is None else str(value)
