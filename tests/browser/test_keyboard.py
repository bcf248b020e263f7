"""Every tab with the keyboard alone."""

import torch
from visitors import disc, settled, shown, wait_for

from ddn_networks import codec, guides
from dnnlib.images import to_float, to_uint8


def reach(page, wanted, key: str = 'Tab') -> None:
    """Press Tab, or Shift+Tab, until the focus is on an element, a locator of which there may be several."""
    for _ in range(100):
        page.keyboard.press(key)
        if any(wanted.evaluate_all('all => all.map((element) => element === document.activeElement)')):
            return
    raise AssertionError(f'{key} does not reach {wanted}')


def press(page, wanted, key: str = 'Tab') -> None:
    """Reach an element and press Enter."""
    reach(page, wanted, key)
    page.keyboard.press('Enter')


def paint(page, arrow: str, times: int) -> None:
    """Paint on the canvas that has the focus."""
    page.keyboard.down(' ')
    for _ in range(times):
        page.keyboard.press(arrow)
    page.keyboard.up(' ')


def test_sample(digits, visit, mnist):
    page = visit(digits)
    press(page, page.locator('#make'))
    settled(page, 'samples', mnist.sample(16)[0])
    press(page, page.locator('#samples button').nth(1))
    page.locator('#chosen canvas').wait_for()
    reach(page, page.locator('#chosen canvas'))
    page.keyboard.press('ArrowUp')
    paint(page, 'ArrowLeft', 6)
    press(page, page.locator('#again'))
    known = 1 - disc(32, [(x, 15) for x in range(10, 17)], 1.5)
    image = mnist.decode(mnist.sample(16)[1][1:2]).clamp(-1, 1)
    settled(page, 'variations', mnist.sample(seeds=range(1, 9), guide=guides.inpaint(image, known))[0])


def test_the_other_tabs(everything, visit, tiny):
    page = visit(everything)
    press(page, page.get_by_role('tab', name='Guide'))
    reach(page, page.locator('#canvas canvas'))
    paint(page, 'ArrowRight', 5)
    alpha = disc(16, [(x, 8) for x in range(8, 14)], 1)
    colour = to_float(torch.tensor([0xD0, 0x40, 0x30]))[None, :, None, None]
    strokes = guides.strokes(torch.cat([torch.where(alpha > 0, colour, torch.tensor(-1.0)), alpha * 2 - 1], 1))
    settled(page, 'results', tiny.sample(4, guide=strokes)[0])
    reach(page, page.locator('#guide-seed input'))
    page.keyboard.press('ControlOrMeta+a')
    page.keyboard.type('9')
    page.keyboard.press('Enter')
    settled(page, 'results', tiny.sample(4, seed=9, guide=strokes)[0])

    press(page, page.get_by_role('tab', name='Tree'))
    press(page, page.get_by_role('button', name='Start at the root'))
    wait_for(page, 'children', 8)
    press(page, page.locator('#children button').nth(1))
    wait_for(page, 'path', 2)
    press(page, page.locator('#complete'), 'Shift+Tab')
    wait_for(page, 'layers', tiny.num_layers)
    press(page, page.locator('#layers button').nth(3))
    wait_for(page, 'others', 8)
    press(page, page.locator('#others button').nth(1))
    wait_for(page, 'changed', 2)

    press(page, page.get_by_role('tab', name='Compress'))
    press(page, page.locator('#compress-example'))
    wait_for(page, 'decoded', 4)
    data = codec.encode(tiny, tiny.sample(1, seed=1)[0].clamp(-1, 1))
    reach(page, page.locator('#bytes input[type=range]'))
    page.keyboard.press('ArrowLeft')
    page.get_by_text(f'{len(data) - 1} of {len(data)} bytes').wait_for()
    expected = to_uint8(codec.decode(tiny, data[:-1], partial=True)[0]).numpy()
    assert (shown(page, 'decoded')[1] == expected).all()
