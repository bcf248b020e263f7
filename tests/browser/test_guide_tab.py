"""The tab Guide: what is painted arrives as painted, and results are those of the Python API for the same guides."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from visitors import disc, fill, from_uri, press, settled, stroke, wait_for

from ddn_networks import black_boxes, guides, pixel_maps
from dnnlib.images import to_float, to_uint8

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


def test_strokes_arrive_as_painted(serve, visit, tiny, tiny_file):
    page = visit(serve(f'--network={tiny_file}'), 'Guide')
    page.locator('#canvas input[type=color]').fill('#20c040')
    stroke(page, 'canvas', [(4.5 / 16, 3.5 / 16), (12.5 / 16, 3.5 / 16)])
    alpha = disc(16, [(x, 3) for x in range(4, 13)], 1)
    colour = to_float(torch.tensor([0x20, 0xC0, 0x40]))[None, :, None, None]
    strokes = torch.cat([torch.where(alpha > 0, colour, torch.tensor(-1.0)), alpha * 2 - 1], 1)
    settled(page, 'results', tiny.sample(4, guide=guides.strokes(strokes))[0])
    assert (given(page)[3] == alpha[0, 0].numpy() * 255).all()
    assert page.locator('#tasks').get_by_label('Strokes').is_checked()
    fill(page, 'guide-seed', 9)
    page.locator('#guide-seed input').press('Enter')
    settled(page, 'results', tiny.sample(4, seed=9, guide=guides.strokes(strokes))[0])
    press(page, 'Four others')
    settled(page, 'results', tiny.sample(4, seed=13, guide=guides.strokes(strokes))[0])
    press(page, 'Undo the last stroke')
    page.get_by_text('Strokes waits: paint on the canvas.').wait_for()
    wait_for(page, 'results', 0)


def test_each_task_and_several_at_once(serve, visit, tiny, tiny_file):
    page = visit(serve(f'--network={tiny_file}'), 'Guide')
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
        page.locator('#tasks').get_by_label(name).uncheck()
    check(page, 'Colourise', 'Enlarge')
    low, grey = guides.superres(pixel_maps.box(photo, (2, 2))), tasks['Colourise']
    settled(page, 'results', tiny.sample(4, guide=[grey, low])[0])
    page.get_by_text('Weights').click()
    fill(page, 'weight-Enlarge', 3)
    settled(page, 'results', tiny.sample(4, guide=[grey, low._replace(weight=3)])[0])
    page.locator('#weight-Enlarge input[type=range]').press('ArrowRight')
    settled(page, 'results', tiny.sample(4, guide=[grey, low._replace(weight=3.1)])[0])


def test_fill_in_a_given_picture(serve, visit, mnist):
    """A file of another size and other channels; the part that is painted over is invented."""
    page = visit(serve('--network=mnist'), 'Guide')
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format='png')
    page.locator('input[type=file]').first.set_input_files(
        {'name': 'mine.png', 'mimeType': 'image/png', 'buffer': file.getvalue()}
    )
    luma = np.array(Image.fromarray(pixels).convert('L'))[:, 10:70]  # the middle
    photo = to_float(to_uint8(pixel_maps.fit(to_float(torch.from_numpy(luma))[None, None], (32, 32))))
    settled(page, 'results', mnist.sample(4, guide=guides.superres(pixel_maps.box(photo, (4, 4))))[0])
    press(page, 'Hide a part, which is then invented')
    stroke(page, 'canvas', [(4.5 / 32, 20.5 / 32), (28.5 / 32, 20.5 / 32)])
    page.locator('#tasks').get_by_label('Enlarge').uncheck()
    known = 1 - disc(32, [(x, 20) for x in range(4, 29)], 1.5)
    settled(page, 'results', mnist.sample(4, guide=guides.inpaint(photo, known))[0])
    page.locator('#canvas').get_by_role('button', name='Empty the canvas').click()
    page.get_by_text('Fill in waits').wait_for()


def test_results_fill_in_while_they_are_made(serve, visit, tiny, tiny_file):
    """Pictures of the first layers, which are smaller, are shown before the last."""
    page = visit(serve(f'--network={tiny_file}'), 'Guide')
    page.evaluate(
        """() => {
            window.sizes = [];
            new MutationObserver(() => {
                const image = document.querySelector('#results img');
                if (image) image.decode().then(() => window.sizes.push(image.naturalWidth)).catch(() => {});
            }).observe(document.querySelector('#results'), {subtree: true, childList: true, attributes: true});
        }"""
    )
    page.locator('#guide-example').click()
    photo = example(tiny)
    settled(page, 'results', tiny.sample(4, guide=guides.superres(pixel_maps.box(photo, (2, 2))))[0])
    sizes = page.evaluate('window.sizes')
    assert sizes == sorted(sizes) and sizes[0] < 16 and sizes[-1] == 16


class Brightness(torch.nn.Module):
    """Logits of dark and bright."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_a_class_by_a_classifier(serve, visit, mnist, tmp_path_factory):
    file = tmp_path_factory.mktemp('classifier') / 'bright.pt'
    torch.jit.save(torch.jit.script(Brightness()), str(file))
    page = visit(serve('--network=mnist', f'--classifier={file}'), 'Guide')
    check(page, 'Class')
    settled(page, 'results', mnist.sample(4, guide=black_boxes.classifier(Brightness(), 0))[0])
    page.locator('#wanted input').click()
    page.get_by_role('option', name='1', exact=True).click()
    settled(page, 'results', mnist.sample(4, guide=black_boxes.classifier(Brightness(), 1))[0])
