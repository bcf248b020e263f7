"""The tab Guide: what is painted arrives as painted, and results are those of the Python API for the same guides."""

import io
import threading

import numpy as np
import torch
from conftest import Brightness
from PIL import Image
from visitors import WAIT, disc, drop, fill, from_uri, press, settled, stroke, wait_for, wait_until_checked

from ddn_networks import black_boxes, guided_sampling, guides, pixel_maps
from dnnlib.images import to_float, to_uint8
from page import guide as guide_tab

EXAMPLE_SEED = 2**31 - 4


def check(page, *names: str) -> None:
    for name in names:
        page.locator('#tasks').get_by_label(name, exact=True).check()


def given(page, index: int = 0) -> np.ndarray:
    """The picture that the results follow."""
    return from_uri(page.locator('#given img').nth(index).get_attribute('src'))


def example(net) -> torch.Tensor:
    """The example picture as it comes back from the page."""
    return to_float(to_uint8(net.sample(1, seed=EXAMPLE_SEED)[0]))


def paint_green(page) -> torch.Tensor:
    """Paint a stroke on a canvas of 16x16 pixels: [1, 4, 16, 16]."""
    page.locator('#canvas input[type=color]').fill('#20c040')
    stroke(page, 'canvas', [(4.5 / 16, 3.5 / 16), (12.5 / 16, 3.5 / 16)])
    alpha = disc(16, [(x, 3) for x in range(4, 13)], 1)
    colour = to_float(torch.tensor([0x20, 0xC0, 0x40]))[None, :, None, None]
    return torch.cat([torch.where(alpha > 0, colour, torch.tensor(-1.0)), alpha * 2 - 1], 1)


def test_strokes_arrive_as_painted(everything, visit, tiny):
    page = visit(everything, 'Guide')
    strokes = paint_green(page)
    settled(page, 'results', tiny.sample(4, guide=guides.strokes(strokes))[0])
    assert (given(page)[3] == to_uint8(strokes)[0, 3].numpy()).all()
    assert page.locator('#tasks').get_by_label('Strokes').is_checked()
    fill(page, 'guide-seed', 9)
    page.locator('#guide-seed input').press('Enter')
    settled(page, 'results', tiny.sample(4, seed=9, guide=guides.strokes(strokes))[0])
    press(page, 'Four others')
    settled(page, 'results', tiny.sample(4, seed=13, guide=guides.strokes(strokes))[0])
    press(page, 'Undo the last stroke')
    page.get_by_text('Strokes waits: paint on the canvas.').wait_for()
    wait_for(page, 'results', 0)


def test_each_task_and_several_at_once(everything, visit, tiny):
    page = visit(everything, 'Guide')
    photo = example(tiny)
    page.locator('#guide-example').click()
    settled(page, 'results', tiny.sample(4, guide=guides.superres(pixel_maps.box(photo, (2, 2))))[0])
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    tasks = {
        'Whole canvas': guides.l2(photo),
        'Colourise': guides.colorization(pixel_maps.to_channels(photo, 1)),
        'Remove noise': guides.denoise(photo + 0.5 * noise),
        'Outline': guides.edges(photo),
    }
    page.locator('#tasks').get_by_label('Enlarge').uncheck()
    for name, guide in tasks.items():
        check(page, name)
        settled(page, 'results', tiny.sample(4, guide=guide)[0])
        if name == 'Remove noise':
            fill(page, 'noise', 0.2)
            settled(page, 'results', tiny.sample(4, guide=guides.denoise(photo + 0.2 * noise))[0])
        page.locator('#tasks').get_by_label(name).uncheck()
    check(page, 'Colourise', 'Enlarge')
    fill(page, 'side', 4)
    low, grey = guides.superres(pixel_maps.box(photo, (4, 4))), tasks['Colourise']
    settled(page, 'results', tiny.sample(4, guide=[grey, low])[0])
    page.get_by_text('Weights').click()
    fill(page, 'weight-Enlarge', 3)
    settled(page, 'results', tiny.sample(4, guide=[grey, low._replace(weight=3)])[0])
    page.locator('#weight-Enlarge input[type=range]').press('ArrowRight')
    settled(page, 'results', tiny.sample(4, guide=[grey, low._replace(weight=3.1)])[0])
    page.locator('#tasks').get_by_label('Enlarge').uncheck()
    strokes = guides.strokes(paint_green(page))
    settled(page, 'results', tiny.sample(4, guide=[strokes, grey])[0])


def test_fill_in_a_given_picture(digits, visit, mnist):
    """A file of another size and other channels; the part that is painted over is invented."""
    page = visit(digits, 'Guide')
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format='png')
    drop(page, '#canvas canvas', 'mine.png', file.getvalue())
    luma = np.array(Image.fromarray(pixels).convert('L'))[:, 10:70]  # the middle
    photo = to_float(to_uint8(pixel_maps.fit(to_float(torch.from_numpy(luma))[None, None], (32, 32))))
    settled(page, 'results', mnist.sample(4, guide=guides.superres(pixel_maps.box(photo, (4, 4))))[0])
    press(page, 'Hide a part, which is then invented')
    stroke(page, 'canvas', [(4.5 / 32, 20.5 / 32), (28.5 / 32, 20.5 / 32)])
    wait_until_checked(page, 'Fill in')
    page.locator('#tasks').get_by_label('Enlarge').uncheck()
    known = 1 - disc(32, [(x, 20) for x in range(4, 29)], 1.5)
    settled(page, 'results', mnist.sample(4, guide=guides.inpaint(photo, known))[0])
    page.locator('#canvas').get_by_role('button', name='Empty the canvas').click()
    page.get_by_text('Fill in waits').wait_for()


def test_results_fill_in_while_they_are_made(digits, visit, mnist, monkeypatch):
    """Results of the first layer are shown while the others wait here until they were seen."""
    layers, seen = guided_sampling.layers, threading.Event()

    def waiting(*args, **kwargs):
        for step in layers(*args, **kwargs):
            yield step
            assert seen.wait(WAIT / 1000)

    photo = example(mnist)
    guide = guides.superres(pixel_maps.box(photo, (4, 4)))
    first = next(layers(mnist, [guide], range(4), uniform=True))[0]
    expected = mnist.sample(4, guide=guide)[0]
    monkeypatch.setattr(guided_sampling, 'layers', waiting)
    page = visit(digits, 'Guide')
    page.locator('#guide-example').click()
    settled(page, 'results', first)
    assert page.get_by_text(f'Layer 1 of {mnist.num_layers}').is_visible() and first.shape != expected.shape
    seen.set()
    settled(page, 'results', expected)


def test_what_was_asked_last_stays(digits, visit, mnist, monkeypatch):
    """A task is asked for, then a seed: the answer to the second may not overtake that to the first."""
    layers, asked, overtaken, ended = guided_sampling.layers, threading.Event(), threading.Event(), []

    def waiting(net, guides, seeds, *args, **kwargs):
        if seeds[0] == 0:
            assert asked.wait(WAIT / 1000)
            overtaken.wait(1)  # the longer, the surer is a fault found
        yield from layers(net, guides, seeds, *args, **kwargs)
        ended.append(seeds[0])
        overtaken.set()

    page = visit(digits, 'Guide')
    page.locator('#guide-example').click()
    page.get_by_text('Four results in').wait_for()
    monkeypatch.setattr(guided_sampling, 'layers', waiting)
    check(page, 'Outline')
    fill(page, 'guide-seed', 9)
    with page.expect_response('**/queue/join*'):
        page.locator('#guide-seed input').press('Enter')
    asked.set()
    photo = example(mnist)
    both = [guides.superres(pixel_maps.box(photo, (4, 4))), guides.edges(photo)]
    settled(page, 'results', mnist.sample(4, seed=9, guide=both)[0])
    assert ended == [0, 9]


def test_a_stroke_while_the_last_one_is_at_work(digits, visit, monkeypatch):
    """The server waits here until a stroke and a mask are on the canvas: results follow both."""
    chosen_by, painted = guide_tab.chosen_by, threading.Event()

    def waiting(*args):
        assert painted.wait(WAIT / 1000)
        return chosen_by(*args)

    monkeypatch.setattr(guide_tab, 'chosen_by', waiting)
    page = visit(digits, 'Guide')
    page.locator('#guide-example').click()
    page.get_by_text('Four results in').wait_for()
    stroke(page, 'canvas', [(4.5 / 32, 8.5 / 32), (12.5 / 32, 8.5 / 32)])
    press(page, 'Hide a part, which is then invented')
    stroke(page, 'canvas', [(8.5 / 32, 20.5 / 32), (24.5 / 32, 20.5 / 32)])
    painted.set()
    page.wait_for_function("document.querySelectorAll('#given img').length === 3")
    assert page.locator('#given .ddn-note').all_inner_texts() == ['Strokes', 'Fill in', 'Enlarge']


def test_a_class_by_a_classifier(everything, visit, tiny):
    page = visit(everything, 'Guide')
    check(page, 'Class')
    settled(page, 'results', tiny.sample(4, guide=black_boxes.classifier(Brightness(), 0))[0])
    page.locator('#wanted input').click()
    page.get_by_role('option', name='1', exact=True).click()
    settled(page, 'results', tiny.sample(4, guide=black_boxes.classifier(Brightness(), 1))[0])


def test_a_text(digits, visit, mnist, words):
    """By a small random CLIP where open_clip is installed."""
    page = visit(digits, 'Guide')
    check(page, 'Text')
    page.get_by_text('Text waits: write a text.').wait_for()
    for text in ('bright', 'dark'):
        page.get_by_label('Text to follow').fill(text)
        page.get_by_label('Text to follow').press('Enter')
        settled(page, 'results', mnist.sample(4, guide=words(text))[0])
