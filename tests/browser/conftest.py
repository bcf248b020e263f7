"""The page in a headless Chromium: servers as users start them, and pages that must load nothing from elsewhere."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlparse

import chromium
import pytest
import torch
from visitors import WAIT

from cli.code_files import write_codes
from ddn_networks import DDN, Network, black_boxes, snapshots
from ddn_networks.guides import Guide
from ddn_networks.sampling import Sampling, measured_residuals

ROOT = Path(__file__).resolve().parents[2]
DESKTOP, PHONE = (1280, 900), (390, 844)
LOOPBACK = ('127.0.0.1', 'localhost')
START_SECONDS = 900  # of a server: never what decides
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
MACHINE = re.compile(r'/(tmp|root|home|usr|work|var|private)/')  # a path of this machine


def pytest_addoption(parser):
    parser.addoption('--screenshots', help='folder for pictures of the page')
    parser.addoption('--network', default='mnist', help='network of these pictures')


def pytest_ignore_collect(collection_path):
    """Nothing here without a browser and the page's packages."""
    if chromium.PATH is None:
        return True
    return True if not all(map(importlib.util.find_spec, ('gradio', 'playwright'))) else None


def pytest_collection_modifyitems(items):
    """A server shares this process: warnings of Gradio and of its packages are not ours, and must not stop it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings('ignore'))


# ---------------------------------------------------------------------------------------------------------- networks


def tiny_network() -> Network:
    """16x16 RGB with cells, a prior, a finisher and classes, of random weights whose choices can be told apart."""
    torch.manual_seed(0)
    net = DDN(
        16, 3, [16, 16, 16], [2, 2, 3], [8, 8, 8], grids=[1, 1, 1, 2, 2, 4, 4], prior_width=16, finisher_width=8,
        conditions=['class:3'], condition_optional=True,
    )  # fmt: skip
    with torch.no_grad():
        for head in net.prior:
            torch.nn.init.normal_(head.out.weight, std=0.2)
            torch.nn.init.normal_(head.out.bias, std=0.5)
        torch.nn.init.normal_(net.finisher.leave.weight, std=0.05)
    net.eval()
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    net.sampling = Sampling(residuals=measured_residuals(net, [(images, None)]))
    return net


@pytest.fixture(scope='session')
def tiny_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('networks') / 'tiny.safetensors'
    snapshots.save_network(path, tiny_network())
    return path


@pytest.fixture(scope='session')
def tiny(tiny_file) -> Network:
    return Network.from_pretrained(str(tiny_file))


@pytest.fixture(scope='session')
def table(tiny) -> torch.Tensor:
    """Codes [40, D] of pictures of the tiny network."""
    return tiny.sample(40, seed=100)[1]


@pytest.fixture(scope='session')
def mnist() -> Network:
    return Network.from_pretrained('mnist')


def brightness(text: str) -> Guide:
    """A guide that knows two words."""
    sign = {'bright': 1, 'dark': -1}[text]
    return black_boxes.python(lambda images: sign * images.mean((1, 2, 3)))


@pytest.fixture(scope='session')
def words(tmp_path_factory, mnist) -> Callable[[str], Guide]:
    """text -> its guide: by a small random CLIP where open_clip is installed, else by brightness."""
    if importlib.util.find_spec('open_clip') is None:
        return brightness
    from tiny_clip import tiny_open_clip

    from page.subject import text_guides

    _, _, weights = tiny_open_clip(tmp_path_factory.mktemp('clip'), 'ddn-tiny-page')
    return text_guides(f'ddn-tiny-page,pretrained={weights}', mnist)


# ----------------------------------------------------------------------------------------------------------- servers


def start(folder: Path, *options: str) -> tuple[subprocess.Popen, str]:
    """A server of demo.py in a process of its own, and its address."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / 'demo.py'), '--device=cpu', '--no-browser', f'--port={port}', *options]
    log = folder / f'{port}.txt'
    env = {**os.environ, 'TMPDIR': str(folder)}
    with log.open('w') as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=env)
    address = f'http://127.0.0.1:{port}/'
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if process.poll() is not None:
            raise RuntimeError(log.read_text())
        try:
            OPENER.open(address).close()
            return process, address
        except OSError:
            continue
    process.kill()
    raise RuntimeError(f'no server after {START_SECONDS} seconds: {log.read_text()}')


class Brightness(torch.nn.Module):
    """Logits of dark and bright."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)


@pytest.fixture(scope='session')
def everything(tmp_path_factory, tiny_file, table) -> Iterator[str]:
    """Address of demo.py, as users start it, with the tiny network, a classifier and the codes ``table``."""
    folder = tmp_path_factory.mktemp('server')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # of TorchScript, which classifiers come as
        torch.jit.save(torch.jit.script(Brightness()), str(folder / 'bright.pt'))
    write_codes(str(folder / 'codes.npz'), table.numpy())
    process, address = start(
        folder, f'--network={tiny_file}', f'--codes={folder / "codes.npz"}', f'--classifier={folder / "bright.pt"}'
    )
    yield address
    given = list(folder.glob('ddn-page-*'))  # what visitors gave
    with OPENER.open(f'{address}gradio_api/heartbeat/visitor'):  # a page that is still open
        process.terminate()
        assert process.wait(WAIT / 1000) == 128 + signal.SIGTERM
    assert given and not any(path.exists() for path in given)
    assert 'shutdown exceeded' not in next(folder.glob('*.txt')).read_text()


@pytest.fixture(scope='session')
def digits(pytestconfig, words) -> Iterator[str]:
    """Address of the same page in this process, with the shipped digits (or ``--network``) and guides of texts."""
    import uvicorn

    from page.app import application
    from page.subject import Subject

    network = pytestconfig.getoption('--network', 'mnist')
    if pytestconfig.getoption('--screenshots', None):
        words = None  # as the page is without --clip
    app = application(Subject(Network.from_pretrained(network), Path(network).stem, clip=words), '127.0.0.1')
    server = uvicorn.Server(uvicorn.Config(app, '127.0.0.1', 0, log_level='warning'))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), 'no server'
        time.sleep(0.05)
    yield f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/'
    server.should_exit = True
    thread.join(START_SECONDS)
    app.state.folder.cleanup()


# ---------------------------------------------------------------------------------------------------------- browsers


@pytest.fixture(scope='session')
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = chromium.launch(playwright)
        yield running
        running.close()


@pytest.fixture(scope='session')
def shared(browser, digits):
    """A browser's memory that most visits share, with a page that stays open: scripts are read and compiled once."""
    context = browser.new_context()
    context.new_page().goto(f'{digits}config')
    yield context
    context.close()


@pytest.fixture
def visit(browser, shared):
    """(address, tab, size) -> a page of a visitor, with a browser's memory of its own if ``apart``. At the end of the
    test: everything was asked of this machine, no script failed, and no path of the machine is on a page."""
    contexts, pages, asked, failures = [], [], [], []

    def page(address: str, tab: str = 'Sample', size: tuple[int, int] = DESKTOP, apart: bool = False):
        if apart:
            contexts.append(browser.new_context())
        opened = contexts[-1].new_page() if apart else shared.new_page()
        pages.append(opened)
        opened.set_viewport_size({'width': size[0], 'height': size[1]})
        opened.set_default_timeout(WAIT)
        opened.on('request', lambda request: asked.append(request.url))
        opened.on('pageerror', lambda error: failures.append(str(error)))
        opened.on('console', lambda message: failures.append(message.text) if message.type == 'error' else None)
        opened.goto(address)
        opened.get_by_role('tab', name=tab, exact=True).click()
        return opened

    yield page
    texts = [opened.locator('body').inner_text() for opened in pages]
    for opened in [*pages, *contexts]:
        opened.close()
    elsewhere = [url for url in asked if urlparse(url).scheme not in ('data', 'blob')]
    elsewhere = [url for url in elsewhere if urlparse(url).hostname not in LOOPBACK]
    assert asked and not elsewhere
    assert not failures
    assert not [text for text in texts if MACHINE.search(text)]
