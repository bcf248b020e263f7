"""From a stroke to its pictures on the page of demo.py, in a headless Chromium.

    python demo.py --network=mnist --no-browser & python -m benchmarks.page_latency; kill $!

Several pages, each with a network of its own, make a table each:

    for n in "mnist 7861" "digits 7862" "fashion 7863" "cifar10 7864"; do set -- $n
        python demo.py --network=$1 --port=$2 --no-browser & pages="$pages $!"; ports="$ports --port=$2"; done
    python -m benchmarks.page_latency $ports --out=benchmarks/results/page_latency; kill $pages

Waits until the pages are served, then paints a stroke on the canvas of the tab Guide in every round. Times are of the
browser's own clock: from the last mouse-up to the frame that shows the first of the four results, all four, and all
four finished (results appear after the first layer and are refined by every other). CPU seconds are of the same time:
where other programs keep the cores busy, they say more than the clock. The first round is a row of its own: what
PyTorch and the browser do once is in it. Needs the extra browser and Chromium (--chromium).
"""

import contextlib
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import click
import psutil

from benchmarks import common
from cli.options import script

START_SECONDS = 300  # that a page has to be served in
WATCH = """() => {
    const view = document.querySelector('#canvas canvas');
    view.addEventListener('pointerup', () => {
        const start = performance.now(), timing = window.timing = {};
        const look = () => {
            const images = [...document.querySelectorAll('#results img')].filter((x) => x.complete && x.naturalWidth);
            const passed = (performance.now() - start) / 1000;
            if (images.length >= 1) timing.first ??= passed;
            if (images.length >= 4) timing.fourth ??= passed;
            if (document.querySelector('#guide-say').textContent.includes('Four results in')) timing.finished = passed;
            else requestAnimationFrame(look);
        };
        requestAnimationFrame(look);
    });
}"""


class Round(NamedTuple):
    """Seconds from the last mouse-up to the first and to the fourth result, and to the last layer of all four; CPU
    seconds of the server and of the browser until then."""

    first: float
    fourth: float
    finished: float
    server_cpu: float
    browser_cpu: float


def cpu_seconds(processes: Iterable[psutil.Process]) -> dict[int, float]:
    """CPU seconds so far of those processes that are still there, by their numbers."""
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process.pid] = sum(process.cpu_times()[:2])
    return found


def spent(before: dict[int, float], after: dict[int, float]) -> float:
    """CPU seconds between the two, of processes that are in both: a browser ends some of its own."""
    return sum(seconds - before[pid] for pid, seconds in after.items() if pid in before)


def server_of(port: int, patience: float = START_SECONDS) -> psutil.Process:
    """The process that listens at a port of this machine; ValueError where there is none after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while True:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.AccessDenied, psutil.NoSuchProcess):
                found = process.net_connections('tcp')
                if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in found):
                    return process
        if time.monotonic() >= deadline:
            raise ValueError(f'--port={port}: no process listens there; start python demo.py --port={port}')
        time.sleep(1)


def measured(page: Any, server: psutil.Process, rounds: int) -> list[Round]:
    """Times of strokes, one after the other, on the tab Guide of a browser's page (a ``Page`` of Playwright)."""
    browser = [p for p in psutil.Process().children(recursive=True) if p != server]
    found = []
    view = page.locator('#canvas canvas')
    view.wait_for()
    page.evaluate(WATCH)
    box = view.bounding_box()
    for i in range(rounds):
        page.mouse.move(box['x'] + box['width'] * (0.3 + 0.3 * i / rounds), box['y'] + box['height'] * 0.25)
        page.mouse.down()
        page.mouse.move(box['x'] + box['width'] * 0.5, box['y'] + box['height'] * 0.75, steps=8)
        before = cpu_seconds([server]), cpu_seconds(browser)
        page.mouse.up()
        page.wait_for_function('window.timing && window.timing.finished')
        cpu = [spent(b, cpu_seconds(of)) for b, of in zip(before, ([server], browser), strict=True)]
        times = page.evaluate('window.timing')
        found.append(Round(times['first'], times['fourth'], times['finished'], *cpu))
        page.get_by_role('button', name='Empty the canvas').click()
        page.wait_for_function("document.querySelectorAll('#results img').length === 0")
    return found


def row(name: str, rounds: Sequence[Round], of: Callable = statistics.median) -> dict[str, Any]:
    """A row of the table: the median, or another function, of each time over the rounds."""
    titles = ('first result, s', 'all four, s', 'all four finished, s', 'server, CPU s', 'browser, CPU s')
    return {'stroke': name, **dict(zip(titles, map(of, zip(*rounds, strict=True)), strict=True))}


@script(__file__)
@click.option('--port', 'ports', help='Port that demo.py serves; may be repeated', type=int, multiple=True,
              default=[7860])
@click.option('--rounds', help='Strokes', type=click.IntRange(min=2), default=10)
@click.option('--chromium', help='Browser', default='chromium')
@common.OUT
def main(ports, rounds, chromium, out):
    from playwright.sync_api import sync_playwright

    path = shutil.which(chromium)
    if path is None:
        raise ValueError(f'--chromium={chromium}: not found; apt-get install chromium')
    servers = [server_of(port) for port in ports]  # all have started before anything is measured
    facts, tables = common.machine(), {}
    with sync_playwright() as playwright:
        for port, server in zip(ports, servers, strict=True):
            browser = playwright.chromium.launch(executable_path=path, args=['--headless', '--no-sandbox'])
            page = browser.new_page(viewport={'width': 1280, 'height': 900})
            page.set_default_timeout(180_000)
            page.goto(f'http://127.0.0.1:{port}/')
            page.get_by_role('tab', name='Guide', exact=True).click()
            found = measured(page, server, rounds)
            network = page.locator('h1 + p strong').inner_text()
            browser.close()
            tables[f'The network {network}, four results that follow strokes; from the last mouse-up:'] = [
                row('the first', found[:1]),
                row(f'{rounds - 1} others, median', found[1:]),
                row('the same, slowest', found[1:], max),
            ]
    common.report('From a stroke to its pictures', facts, tables, out)


if __name__ == '__main__':
    main()
