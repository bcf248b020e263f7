"""The notebook, the citation and the site: what is written beside the code fits it."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / 'docs' / 'tour.ipynb'


def test_the_notebook_keeps_the_outputs_of_one_run():
    cells = json.loads(NOTEBOOK.read_text())['cells']
    code = [cell for cell in cells if cell['cell_type'] == 'code']
    assert [cell['execution_count'] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell['outputs']]
    assert not [output for output in outputs if output['output_type'] == 'error']
    assert sum('image/png' in output.get('data', {}) for output in outputs) >= 8
    texts = [''.join(output.get('text', [])) for output in outputs]
    assert not [text for text in texts if re.search(r'/(home|root|tmp|Users)/', text)]
    assert NOTEBOOK.stat().st_size < 2 << 20


def test_the_notebook_installs_what_is_beside_it(tmp_path, monkeypatch):
    """As in Colab: the first cell unpacks an archive of the checkout and installs it; again, it does nothing more."""
    with zipfile.ZipFile(tmp_path / 'ddn.zip', 'w') as archive:
        archive.writestr('train.py', '')
    started = []
    monkeypatch.setattr(subprocess, 'run', lambda command, check: started.append(command))
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setenv('PATH', os.environ['PATH'])
    monkeypatch.chdir(tmp_path)
    source = ''.join(json.loads(NOTEBOOK.read_text())['cells'][2]['source'])
    for _ in range(2):
        exec(source, {})
        assert Path.cwd() == tmp_path / 'ddn' and started == [
            [sys.executable, '-m', 'pip', 'install', '-q', '-e', '.[train,codec]']
        ]
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(AssertionError, match=r'upload ddn\.zip, or set REPOSITORY'):
        exec(source, {})


def test_versions_agree():
    text = (ROOT / 'pyproject.toml').read_text()
    version = re.search(r'^version = "(.+)"', text, re.MULTILINE)[1]
    assert f'\nversion: {version}\n' in (ROOT / 'CITATION.cff').read_text()
    workflow = (ROOT / '.github' / 'workflows' / 'test.yml').read_text()
    oldest = re.search(r"python: \['(.+)', '.+'\]", workflow)[1]
    assert f'requires-python = ">={oldest}"' in text and '- run: .ci/run\n' in workflow


@pytest.mark.skipif(importlib.util.find_spec('mkdocstrings') is None, reason="needs the extra 'docs'")
def test_the_site_has_every_guide_and_the_package(tmp_path):
    """Built without warnings; every guide is a chapter, and docstrings are on the pages of the package."""
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '-d', str(tmp_path / 'site')]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    chapters = (tmp_path / 'site' / 'index.html').read_text()
    for guide in (ROOT / 'docs').glob('*.md'):
        assert f'href="{guide.stem}.html"' in chapters and (tmp_path / 'site' / f'{guide.stem}.html').is_file()
    assert 'Write a folder that' in (tmp_path / 'site' / 'api' / 'networks.html').read_text()
    assert (tmp_path / 'site' / 'experiments' / 'results' / 'zscg_faces' / 'zscg-faces-tasks.png').is_file()
    pages = ''.join(path.read_text() for path in (tmp_path / 'site').rglob('*.html'))
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="?https?://(?!arxiv)[^>]*\.(js|css|woff2?|png)', pages)
