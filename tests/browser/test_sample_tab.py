"""The tab Sample, used as a visitor would; pixels against the Python API."""

import math

import torch
from visitors import disc, fill, press, settled, shown, stroke, told, wait_for

from ddn_networks import codes, guides
from dnnlib.images import to_uint8


def test_pictures_of_seeds(digits, visit, mnist):
    page = visit(digits)
    assert page.get_by_text('Press “Make pictures”.').is_visible()
    press(page, 'Make pictures')
    settled(page, 'samples', mnist.sample(16)[0])
    fill(page, 'seed', 7)
    fill(page, 'count', 3)
    press(page, 'Make pictures')
    settled(page, 'samples', mnist.sample(3, seed=7)[0])
    press(page, 'Other seeds')
    settled(page, 'samples', mnist.sample(3, seed=10)[0])
    for name in ('how', 'variety', 'finish', 'class'):  # this network has none of these
        assert not page.locator(f'#{name}').is_visible()


def test_how_pictures_are_chosen(everything, visit, tiny):
    page = visit(everything)
    fill(page, 'count', 4)
    press(page, 'Make pictures')
    settled(page, 'samples', tiny.sample(4)[0])
    fill(page, 'variety', 0.5)
    press(page, 'Make pictures')
    settled(page, 'samples', tiny.sample(4, temperature=0.5)[0])
    page.locator('#finish input').uncheck()
    press(page, 'Make pictures')
    settled(page, 'samples', tiny.sample(4, temperature=0.5, finish=False)[0])
    page.locator('#class input').click()
    page.get_by_role('option', name='2', exact=True).click()
    press(page, 'Make pictures')
    settled(page, 'samples', tiny.sample(4, temperature=0.5, finish=False, condition=tiny.make_condition(2))[0])
    page.get_by_label('Uniform').check()
    press(page, 'Make pictures')
    expected = tiny.sample(4, uniform=True, finish=False, condition=tiny.make_condition(2))[0]
    settled(page, 'samples', expected)


def test_a_chosen_picture(everything, visit, tiny, table):
    """Its codes, its bits, its neighbours, and more like it."""
    page = visit(everything)
    press(page, 'Make pictures')
    images, latents = tiny.sample(16)
    settled(page, 'samples', images)
    page.locator('#samples button').nth(5).click()
    latent = latents[5:6]
    rows = codes.nearest(latent, table, 8)[0]
    settled(page, 'neighbours', tiny.decode(table[rows]))
    assert page.get_by_text('Nearest in the file of codes').is_visible()
    text = page.locator('#facts').inner_text()
    assert page.locator('#facts li').all_inner_texts() == [
        ' '.join(map(str, latent[0, columns].tolist())) for columns in tiny.code_slices
    ]
    assert codes.to_bits(latent, tiny.code_nodes)[0] in text
    bits = -tiny.log_prob(latent).item() / math.log(2)
    assert f'{tiny.num_bits:g} bits; {bits:.1f} bits by how likely' in text
    fill(page, 'keep', 4)
    press(page, 'More like this')
    partial = latent.clone()
    partial[:, tiny.code_slices[4].start :] = -1
    images, changed = tiny.sample(seeds=range(1, 9), codes=partial)
    settled(page, 'variations', images)
    press(page, 'More like this')
    settled(page, 'variations', tiny.sample(seeds=range(9, 17), codes=partial)[0])
    page.locator('#variations button').nth(2).click()  # a variation can be chosen, too
    latent = tiny.sample(seeds=range(9, 17), codes=partial)[1][2:3]
    settled(page, 'neighbours', tiny.decode(table[codes.nearest(latent, table, 8)[0]]))


def test_redraw_a_part(everything, digits, visit, tiny, mnist):
    """By cells where there are some: what is outside of them stays to the bit. By a guide elsewhere."""
    page = visit(everything)
    press(page, 'Make pictures')
    wait_for(page, 'samples', 16)
    page.locator('#finish input').uncheck()
    page.locator('#samples button').nth(2).click()
    page.locator('#chosen canvas').wait_for()
    press(page, 'Redraw the painted part')
    page.get_by_text('Paint over the part of the picture').wait_for()
    stroke(page, 'chosen', [(2.5 / 16, 2.5 / 16)])
    press(page, 'Redraw the painted part')
    hidden = disc(16, [(2, 2)], 1)  # the brush is 2 pixels wide
    latent = tiny.sample(16)[1][2:3]
    grids = [spec.grid for spec in tiny.specs]
    free = codes.touching(hidden[0, 0] > 0, grids)
    free &= torch.tensor([spec.num_cells > 1 for spec in tiny.specs for _ in range(spec.num_cells)])
    expected, _ = tiny.sample(seeds=range(1, 9), codes=torch.where(free, -1, latent), finish=False)
    settled(page, 'variations', expected)
    first = to_uint8(tiny.decode(latent, finish=False))[0].numpy()
    assert (shown(page, 'variations')[:, :, :, 12:] == first[:, :, 12:]).all()

    page = visit(digits)
    press(page, 'Make pictures')
    wait_for(page, 'samples', 16)
    page.locator('#samples button').nth(2).click()
    page.locator('#chosen canvas').wait_for()
    assert not page.get_by_text('Nearest in the file of codes').is_visible()  # without --codes
    stroke(page, 'chosen', [(16.5 / 32, 8.5 / 32), (16.5 / 32, 24.5 / 32)])
    press(page, 'Redraw the painted part')
    known = 1 - disc(32, [(16, y) for y in range(8, 25)], 1.5)
    image = mnist.decode(mnist.sample(16)[1][2:3]).clamp(-1, 1)
    settled(page, 'variations', mnist.sample(seeds=range(1, 9), guide=guides.inpaint(image, known))[0])


def test_a_wrong_seed_leaves_the_page_usable(digits, visit, mnist):
    page = visit(digits)
    field = page.locator('#seed input[type=number]')
    for seed, says in {
        '-1': 'less than minimum', '': 'Give a number from 0 to 2147483647.', '99999999999': 'greater than maximum',
        'words': 'Give a number from 0 to 2147483647.',
    }.items():
        field.focus()
        field.press('ControlOrMeta+a')
        page.keyboard.press('Delete')
        page.keyboard.type(seed)
        press(page, 'Make pictures')
        told(page, says)
    fill(page, 'seed', 3)
    press(page, 'Make pictures')
    settled(page, 'samples', mnist.sample(16, seed=3)[0])


def test_visitors_get_their_own(digits, visit, mnist):
    pages = [visit(digits, apart=apart) for apart in (False, False, True)]
    for i, page in enumerate(pages):
        fill(page, 'seed', 100 * i)
        fill(page, 'count', 32)
    for page in pages:
        press(page, 'Make pictures')
    for i, page in enumerate(pages):
        settled(page, 'samples', mnist.sample(32, seed=100 * i)[0])
    for i, page in enumerate(pages):
        page.locator('#samples button').nth(i).click()
    for i, page in enumerate(pages):
        latent = mnist.sample(32, seed=100 * i)[1][i]
        page.locator('#facts li').nth(0).wait_for()
        assert page.locator('#facts li').all_inner_texts() == [str(k) for k in latent.tolist()]
