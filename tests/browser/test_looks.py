"""Every tab on a desktop and on a phone, empty and used: nothing sticks out. ``--screenshots=docs/img`` keeps them."""

import os

import pytest
from conftest import DESKTOP, PHONE
from visitors import press, stroke, wait_for, wait_until_checked


def use_sample(page) -> None:
    press(page, 'Make pictures')
    wait_for(page, 'samples', 16)
    page.locator('#samples button').nth(3).click()
    page.locator('#chosen canvas').wait_for()
    press(page, 'More like this')
    wait_for(page, 'variations', 8)


def use_guide(page) -> None:
    page.locator('#guide-example').click()
    page.get_by_text('Four results in').wait_for()
    press(page, 'Hide a part, which is then invented')
    stroke(page, 'canvas', [(0.15, 0.7), (0.85, 0.7), (0.85, 0.8), (0.15, 0.8), (0.15, 0.9), (0.85, 0.9)])
    wait_until_checked(page, 'Fill in')
    page.locator('#tasks').get_by_label('Enlarge').uncheck()
    page.locator('#given').get_by_text('Enlarge').wait_for(state='detached')
    page.get_by_text('Four results in').wait_for()


def use_tree(page) -> None:
    press(page, 'Start at the root')
    for depth in range(2):
        page.locator('#children button').nth(depth).click()
        wait_for(page, 'path', depth + 2)
    press(page, 'Complete')
    page.locator('#layers button').nth(3).click()
    page.locator('#others button').nth(1).click()
    wait_for(page, 'changed', 2)


def use_compress(page) -> None:
    page.locator('#compress-example').click()
    wait_for(page, 'decoded', 4)
    whole = page.locator('#decoded .ddn-note').nth(1).text_content()
    slider = page.locator('#bytes input[type=range]')
    box = slider.bounding_box()
    page.mouse.click(box['x'] + box['width'] * 0.4, box['y'] + box['height'] / 2)
    page.wait_for_function("old => document.querySelectorAll('#decoded .ddn-note')[1].textContent !== old", arg=whole)


USES = {'Sample': use_sample, 'Guide': use_guide, 'Tree': use_tree, 'Compress': use_compress}


@pytest.mark.parametrize('size', [DESKTOP, PHONE], ids=['desktop', 'phone'])
def test_nothing_sticks_out(digits, visit, pytestconfig, size):
    folder = pytestconfig.getoption('--screenshots', None)
    page = visit(digits, size=size)

    def fits() -> None:
        page.wait_for_function('width => document.documentElement.scrollWidth <= width', arg=size[0])

    for tab, use in USES.items():
        page.get_by_role('tab', name=tab, exact=True).click()
        fits()
        use(page)
        fits()
        if folder:
            page.evaluate('window.scrollTo(0, 0)')
            page.mouse.move(2, 2)
            page.wait_for_timeout(300)  # for what moves
            name = f'demo-{tab.lower()}-{"phone" if size == PHONE else "desktop"}.png'
            page.screenshot(path=os.path.join(folder, name), full_page=size == DESKTOP)
