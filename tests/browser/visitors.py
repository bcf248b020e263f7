"""What a visitor does on the page, and sees."""

import base64
import io
import time

import numpy as np
import torch
from PIL import Image

from dnnlib.images import to_uint8

WAIT = 180_000  # milliseconds, for anything on a page: never what decides


def from_uri(uri: str) -> np.ndarray:
    """The pixels of a data URI, uint8 [C, H, W]."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2]))))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def shown(page, grid: str) -> np.ndarray:
    """The pictures of a grid, uint8 [B, C, H, W]."""
    return np.stack([from_uri(uri) for uri in page.locator(f'#{grid} img').evaluate_all('all => all.map(x => x.src)')])


def wait_for(page, grid: str, num: int) -> np.ndarray:
    """The pictures of a grid once there are ``num``."""
    page.wait_for_function(
        '([grid, num]) => document.querySelectorAll(`#${grid} img`).length === num', arg=[grid, num]
    )
    return shown(page, grid) if num else np.empty(0)


def settled(page, grid: str, expected: torch.Tensor) -> None:
    """Wait until the grid shows the images ``expected`` [B, C, H, W], to the pixel."""
    wanted, deadline = to_uint8(expected).numpy(), time.monotonic() + WAIT / 1000
    found = None
    while time.monotonic() < deadline:
        if page.locator(f'#{grid} img').count() == len(wanted):
            found = shown(page, grid)
            if found.shape == wanted.shape and (found == wanted).all():
                return
        page.wait_for_timeout(50)
    shape = None if found is None else found.shape
    raise AssertionError(f'{grid} shows {shape}, not the {wanted.shape} that were expected')


def stroke(page, canvas: str, points: list[tuple[float, float]]) -> None:
    """Paint through points (x, y), each in [0, 1] of the canvas."""
    view = page.locator(f'#{canvas} canvas')
    view.scroll_into_view_if_needed()
    box = view.bounding_box()
    for i, (x, y) in enumerate(points):
        page.mouse.move(box['x'] + x * box['width'], box['y'] + y * box['height'])
        if i == 0:
            page.mouse.down()
    page.mouse.up()


def fill(page, name: str, value: float) -> None:
    """Type a number into a control, and leave it."""
    field = page.locator(f'#{name} input[type=number]')
    field.fill(f'{value:g}')
    field.press('Tab')


def press(page, name: str) -> None:
    page.get_by_role('button', name=name, exact=True).click()


def drop(page, selector: str, name: str, data: bytes) -> None:
    """Drop a file on an element, as from a folder of the visitor's."""
    page.evaluate(
        """([selector, name, data]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), held = new DataTransfer();
            held.items.add(new File([bytes], name));
            const event = new DragEvent('drop', { dataTransfer: held, bubbles: true, cancelable: true });
            document.querySelector(selector).dispatchEvent(event);
        }""",
        [selector, name, base64.b64encode(data).decode()],
    )


def told(page, text: str) -> None:
    """Wait for an error of these words, and close it if it has not gone by itself."""
    page.get_by_text(text).first.wait_for()
    page.evaluate("document.querySelectorAll('.toast-close').forEach((button) => button.click())")
    page.locator('.toast-close').first.wait_for(state='detached')


def wait_until_checked(page, task: str) -> None:
    """Wait until the page has checked a task of the tab Guide, which it does for what was painted."""
    page.wait_for_function(
        """task => [...document.querySelectorAll('#tasks label')].some(
            (label) => label.textContent.trim() === task && label.querySelector('input').checked)""",
        arg=task,
    )


def disc(size: int, points: list[tuple[float, float]], radius: float) -> torch.Tensor:
    """[1, 1, size, size], 1 where a brush moved through points of pixels."""
    y, x = np.mgrid[:size, :size]
    found = np.zeros((size, size), dtype=bool)
    for px, py in points:
        found |= (x - px) ** 2 + (y - py) ** 2 <= radius**2
    return torch.from_numpy(found)[None, None].float()
