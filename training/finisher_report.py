"""report.html of a finisher's run: what it made of held-out images and samples, before and after."""

import html
import json
import os
from collections.abc import Sequence
from typing import Any

from dnnlib.util import format_time
from training import charts
from training.finisher_fitting import warning
from training.report_html import LARGE, about, fact_boxes, find_sheets, picture, read_options, write_page

SHEETS = {
    'samples': (
        'Samples',
        'Seeds 0 to 63, in each pair of rows the picture before and the finished one. Good: sharper, the same '
        'picture, no texture that repeats from sample to sample.',
    ),
    'reconstructions': (
        'Reconstructions',
        'In each group held-out images, their reconstructions before, and finished. Good: as sharp as the images.',
    ),
}


def write_report(run_dir: str) -> None:
    """Write ``report.html`` from stats.jsonl, training_options.json and the sheets of the run folder. OSError where it
    cannot be written."""
    with open(os.path.join(run_dir, 'stats.jsonl')) as file:
        ticks = [json.loads(line) for line in file]
    parts = [f'<h1>{html.escape(os.path.basename(os.path.abspath(run_dir)))}: finisher</h1>', _summary(ticks[-1])]
    if words := warning(ticks[-1]):
        parts.append(f'<p><b>{html.escape(words)}</b></p>')
    sheets = find_sheets(run_dir)
    for kind, (title, good) in SHEETS.items():
        if sheets.get(kind):
            nimg, name = sheets[kind][-1]
            figure = picture(run_dir, name, LARGE, f'after {nimg:,} images')
            parts.append(f'<section><h2>{title}</h2><p>{good}</p>{figure}</section>')
    parts += ['<h2>Training</h2>', '<div class="charts">', *filter(None, _charts(ticks)), '</div>']
    write_page(run_dir, parts + about(read_options(run_dir)))


def _summary(last: dict[str, Any]) -> str:
    facts = [(f'{last["nimg"]:,}', 'images seen'), (format_time(last['seconds_left']), 'time left')]
    for key, words, form in (('psnr', 'PSNR', '{:.2f} dB'), ('lpips', 'LPIPS', '{:.4f}'),
                             ('detail', 'high-frequency energy over that of real images', '{:.2f}')):  # fmt: skip
        if f'{key}_after' in last:
            before, after = (form.format(last[f'{key}_{when}']) for when in ('before', 'after'))
            facts.append((after, f'{words}, {before} before'))
    return fact_boxes(facts)


def _charts(ticks: Sequence[dict[str, Any]]) -> list[str]:
    x = [tick['nimg'] for tick in ticks]

    def both(key: str) -> dict[str, list[float | None]]:
        return {when: [tick.get(f'{key}_{when}') for tick in ticks] for when in ('before', 'after')}

    gaps = {name: [tick.get(key) for tick in ticks]
            for name, key in (('reconstructions', 'gap'), ('samples', 'gap_samples'))}  # fmt: skip
    return [
        charts.curves('LPIPS of held-out images', 'Good: far below the line before.', x, both('lpips')),
        charts.curves('PSNR of held-out images', 'Good: at most 1 dB below the line before.', x, both('psnr'),
                      unit=' dB'),
        charts.curves('High-frequency energy', 'Over that of real images. Good: near 1.', x, both('detail')),
        charts.curves('Logits, real minus finished', 'How well the discriminator tells them apart. Good: below 2.', x,
                      gaps),
        charts.curves('Images per second', 'Good: constant.', x,
                      {'speed': [tick.get('images_per_sec') for tick in ticks]}),
    ]  # fmt: skip
