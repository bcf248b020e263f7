"""Hooks of ``make docs``: pages of the site that are not in ``docs/``.

The README becomes the first page, the notebook a chapter, docstrings pages of the package. Results that a page links
to are copied, with what they link to.
"""

import base64
import json
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r'\]\((?!\w+:|#)([^)#\s]+)')
OUTSIDE = ('experiments/', 'benchmarks/', 'assets/', 'LICENSE', 'CHANGELOG.md', 'CONTRIBUTING.md')  # of docs/

# Pages of the package: title, and what each shows.
API = {
    'networks': ('Networks', ['network.Network', 'network.Output', 'single_shot.DDN', 'recurrent.RecurrentDDN',
                              'published.from_published', 'published.published_config', 'pictures.show']),
    'guides': ('Guides', ['guides', 'black_boxes', 'guided_sampling']),
    'samplers': ('Samplers and priors', ['samplers', 'sampling', 'prior', 'code_priors', 'generate', 'search']),
    'layers': ('Layers and training', ['ddl', 'candidates', 'cells', 'finisher', 'split_prune', 'balance',
                                        'prefix_balance']),
    'files': ('Files', ['snapshots', 'hub', 'pictures', 'codec', 'codes']),
}  # fmt: skip


def on_config(config):
    """Guides that ``mkdocs.yml`` does not list come after those that it does."""
    listed = json.dumps(config.nav)
    guides = next(part['Guides'] for part in config.nav if 'Guides' in part)
    guides += [path.name for path in sorted((ROOT / 'docs').glob('*.md')) if f'"{path.name}"' not in listed]
    return config


def on_files(files: Files, config) -> Files:
    """Add the pages and the files that they link to."""
    pages = {'index.md': (ROOT / 'README.md').read_text(), 'tour.md': notebook(ROOT / 'docs' / 'tour.ipynb')}
    for name, (title, shown) in API.items():
        pages[f'api/{name}.md'] = '\n\n'.join([f'# {title}', *(f'::: ddn_networks.{part}' for part in shown)])
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    waiting = [file for file in files if file.src_uri.endswith('.md')] + [copied(config, 'CHANGELOG.md')]
    files.append(waiting[-1])
    while waiting:
        page = waiting.pop()
        for link in LINK.findall(page.content_string):
            uri = outside(page.src_uri, link)
            if uri and files.get_file_from_path(uri) is None:
                files.append(copied(config, uri))
                waiting += [files.get_file_from_path(uri)] if uri.endswith('.md') else []
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Links out of ``docs/`` lead to the copies in the site."""

    def moved(match: re.Match) -> str:
        uri = outside(page.file.src_uri, match[1])
        return f']({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")}' if uri else match[0]

    markdown = re.sub(r'\]\(docs/', '](', markdown)  # of files at the root, which are pages beside those of docs/
    return LINK.sub(moved, markdown.replace('](tour.ipynb)', '](tour.md)'))


def outside(page: str, link: str) -> str | None:
    """The path in the repository of what a page links to, where it is outside of ``docs/``; None where it is not."""
    found = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    found = re.sub(r'^\.\./', '', found)
    return found if found.startswith(OUTSIDE) and (ROOT / found).is_file() else None


def copied(config, uri: str) -> File:
    return File.generated(config, uri, abs_src_path=str(ROOT / uri))


def notebook(path: Path) -> str:
    """A notebook with its outputs, as Markdown."""
    parts = []
    for cell in json.loads(path.read_text())['cells']:
        source = ''.join(cell['source'])
        parts.append(source if cell['cell_type'] == 'markdown' else f'```python\n{source}\n```')
        for output in cell.get('outputs', ()):
            data = output.get('data', {})
            if 'image/png' in data:
                picture = base64.b64encode(base64.b64decode(''.join(data['image/png']))).decode()
                parts.append(f'<img alt="output" src="data:image/png;base64,{picture}">')
            elif 'text' in output or 'text/plain' in data:
                parts.append(f'```text\n{"".join(output.get("text") or data["text/plain"]).rstrip()}\n```')
    return '\n\n'.join(parts) + '\n'
