"""The Chromium of these tests. As a script: exit 0 where it starts and shows a page, else say why not in one line."""

import shutil
import sys
from typing import Any

PATH = shutil.which('chromium')
START_MS = 60_000
ARGUMENTS = [
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync',
    '--process-per-site', '--renderer-process-limit=1',  # scripts of a page that is open elsewhere are not read again
]  # fmt: skip


def launch(playwright: Any) -> Any:
    """A running browser, of a ``Playwright``."""
    return playwright.chromium.launch(executable_path=PATH, args=ARGUMENTS, timeout=START_MS)


def problem() -> str | None:
    """Why no page can be shown here, in one line; None where one can."""
    try:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            browser = launch(playwright)
            page = browser.new_page()
            page.set_content('<p>shown</p>')
            text = page.locator('p').inner_text()
            browser.close()
        return None if text == 'shown' else f'a page shows {text!r}'
    except Exception as error:  # whatever a machine lacks
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = [line.partition('[err] ')[2] for line in lines if '[err] ' in line]  # by Chromium itself
        told = [line for line in said if 'error' in line.lower()] or said or lines[:1] or [type(error).__name__]
        return told[-1][:300]


if __name__ == '__main__':
    sys.exit(problem())
