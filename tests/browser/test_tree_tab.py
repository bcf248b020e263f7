"""The tab Tree: children, their probabilities, the way down and up, and one choice changed."""

import torch
from visitors import press, settled, wait_for

from ddn_networks import pixel_maps, samplers


def likeliest(net, prefix: list[int]) -> tuple[list[int], torch.Tensor]:
    """The children of a node, the likeliest first: their codes and images."""
    prefix = torch.tensor([prefix], dtype=torch.int64).view(1, -1)
    order = net.next_log_prior(prefix)[0].argsort(descending=True, stable=True)
    return order.tolist(), pixel_maps.upsample(net.branches(prefix)[0][order], net.img_resolution)


def test_down_to_a_full_picture_and_up(everything, visit, tiny):
    page = visit(everything, 'Tree')
    assert page.get_by_text('Press “Start at the root”.').is_visible()
    press(page, 'Start at the root')
    path = []
    for place in (2, 0, 5):
        order, images = likeliest(tiny, path)
        settled(page, 'children', images)
        p = tiny.next_log_prior(torch.tensor([path], dtype=torch.int64).view(1, -1))[0].exp()[order]
        notes = page.locator('#children .ddn-note').all_inner_texts()
        shown = [float(note.removesuffix(' %')) / 100 for note in notes]
        torch.testing.assert_close(torch.tensor(shown), p, atol=0.0051, rtol=0)
        page.locator('#children button').nth(place).click()
        path.append(order[place])
        wait_for(page, 'path', len(path) + 1)
    assert page.locator('#path .ddn-note').all_inner_texts() == ['start', *map(str, path)]
    wait_for(page, 'children', 0)  # layers with cells have no tree
    press(page, 'Complete')
    partial = torch.full((1, tiny.num_codes), -1)
    partial[0, :3] = torch.tensor(path)
    latent = tiny.sample(seeds=[0], codes=partial)[1]
    steps = [step.image for step in tiny.walk(samplers.given(latent), 1)][:-1]
    steps = [pixel_maps.upsample(image, (16, 16)) for image in steps] + [tiny.decode(latent)]
    settled(page, 'layers', torch.cat(steps))
    page.locator('#path button').nth(1).click()
    settled(page, 'children', likeliest(tiny, path[:1])[1])
    assert not page.locator('#layers').is_visible()


def test_change_one_choice(everything, visit, tiny):
    """Of a whole layer on the path, and of a cell in the middle; later choices stay."""
    page = visit(everything, 'Tree')
    press(page, 'Start at the root')
    wait_for(page, 'children', 8)
    page.locator('#children button').nth(1).click()
    wait_for(page, 'path', 2)
    press(page, 'Complete')
    wait_for(page, 'layers', 7)
    partial = torch.full((1, tiny.num_codes), -1)
    partial[0, 0] = likeliest(tiny, [])[0][1]
    latent = tiny.sample(seeds=[0], codes=partial)[1]
    for layer, cell, place in ((0, 0, 3), (3, 2, 4)):
        page.locator('#layers button').nth(layer).click()
        at = tiny.code_slices[layer].start + cell
        page.get_by_text(f'other choices of layer {layer}').wait_for()
        if cell:
            page.locator('#cell input[type=range]').focus()
            for _ in range(cell):
                page.keyboard.press('ArrowRight')
        log_p = tiny.next_log_prior(latent[:, : tiny.code_slices[layer].start])[0].view(8, -1)[:, cell]
        order = log_p.argsort(descending=True, stable=True)
        tried = latent.repeat(8, 1)
        tried[:, at] = order
        settled(page, 'others', tiny.decode(tried))
        page.locator('#others button').nth(place).click()
        settled(page, 'changed', tiny.decode(torch.cat([latent, tried[place : place + 1]])))
        latent = tried[place : place + 1]
    assert page.locator('#path .ddn-note').all_inner_texts() == ['start', str(latent[0, 0].item())]


def test_a_network_without_prior_and_cells(digits, visit, mnist):
    """All choices in their order, the first 64; the tree goes down to pictures."""
    page = visit(digits, 'Tree')
    press(page, 'Start at the root')
    settled(page, 'children', pixel_maps.upsample(mnist.branches(torch.zeros(1, 0, dtype=torch.int64))[0], (32, 32)))
    assert page.locator('#children .ddn-note').all_inner_texts() == [str(k) for k in range(64)]
    for depth in range(mnist.num_layers):
        page.locator('#children button').nth(depth % 8).click()
        wait_for(page, 'path', depth + 2)
    latent = torch.tensor([[depth % 8 for depth in range(mnist.num_layers)]])
    settled(page, 'layers', torch.cat([
        *(pixel_maps.upsample(step.image, (32, 32)) for step in mnist.walk(samplers.given(latent), 1)),
    ]))  # fmt: skip
