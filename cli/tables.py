"""Tables of results: Markdown, and JSON of the same name with every digit."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnnlib.util import atomic_write


def markdown(rows: Sequence[Mapping[str, Any]], form: str = '.4g') -> str:
    """Rows as a Markdown table. The keys of the first row are the columns; columns of numbers are aligned right. Floats
    are formatted by ``form``; what a row lacks, or None, is '-'."""
    table = []
    for column in rows[0]:
        cells = [_cell(row.get(column), form) for row in rows]
        numbers = all(re.match(r'-$|[-+]?[\d.]', text) for text in cells)
        width = max(map(len, [column, *cells]))
        rule = '-' * (width - numbers) + ':' * numbers
        table.append([text.rjust(width) if numbers else text.ljust(width) for text in (column, rule, *cells)])
    return '\n'.join(f'| {" | ".join(line)} |' for line in zip(*table, strict=True))


def _cell(value: Any, form: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return '-' if value is None else str(value)
    if isinstance(value, int):
        return f'{value:,}'
    return f'{value:,.0f}' if form.endswith('g') and abs(value) >= 1000 else f'{value:{form}}'


def write_results(path: str | os.PathLike, text: str, facts: Any) -> None:
    """Write ``path``.md and ``path``.json, each whole or not at all, in a folder that is made if there is none."""
    os.makedirs(Path(path).parent, exist_ok=True)
    with atomic_write(f'{path}.md', 'w') as file:
        file.write(text.rstrip() + '\n')
    write_json(f'{path}.json', facts)


def write_json(path: str | os.PathLike, facts: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_write(path, 'w') as file:
        file.write(json.dumps(facts, indent=1) + '\n')
