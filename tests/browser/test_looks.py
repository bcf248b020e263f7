"""Every tab on a desktop and on a phone, empty and used: nothing sticks out. ``--screenshots=docs/img`` keeps them."""

import os

import pytest
from conftest import DESKTOP, PHONE
from visitors import press, stroke, wait_for


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
    page.locator('#tasks').get_by_label('Enlarge').uncheck()
    wait_for(page, 'given', 1)
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
    slider = page.locator('#bytes input[type=range]')
    box = slider.bounding_box()
    page.mouse.click(box['x'] + box['width'] * 0.4, box['y'] + box['height'] / 2)
    page.wait_for_timeout(1000)


USES = {'Sample': use_sample, 'Guide': use_guide, 'Tree': use_tree, 'Compress': use_compress}


@pytest.mark.parametrize('size', [DESKTOP, PHONE], ids=['desktop', 'phone'])
@pytest.mark.parametrize('tab', USES)
def test_nothing_sticks_out(serve, visit, pytestconfig, tab, size):
    folder, network = pytestconfig.getoption('--screenshots', None), pytestconfig.getoption('--network', 'mnist')
    page = visit(serve(f'--network={network}'), tab, size)

    def fits() -> None:
        wide = page.evaluate('document.documentElement.scrollWidth')
        assert wide <= size[0], f'{tab} is {wide} pixels wide'

    fits()
    USES[tab](page)
    page.wait_for_timeout(300)
    fits()
    if folder:
        page.evaluate('window.scrollTo(0, 0)')
        page.mouse.move(2, 2)
        name = f'demo-{tab.lower()}-{"phone" if size == PHONE else "desktop"}.png'
        page.screenshot(path=os.path.join(folder, name), full_page=size == DESKTOP)
