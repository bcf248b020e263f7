"""The tab Tree: the pictures that each choice leads to, from the first layer to a full picture."""

from collections.abc import Sequence
from typing import NamedTuple

import gradio as gr
import torch

from ddn_networks import pixel_maps, samplers
from page import pictures
from page.pictures import picture_grid
from page.subject import Subject
from page.words import number, sentences

SHOWN = 64  # children or alternatives at a time


class Place(NamedTuple):
    """Where a visitor is: the codes from the root to a node; and the latent of a full picture below it, [D], or None;
    which of its layers and cells is looked at, or None; the alternatives that are shown for it, as they stand."""

    path: tuple[int, ...] = ()
    latent: tuple[int, ...] | None = None
    layer: int | None = None
    cell: int = 0
    order: tuple[int, ...] = ()
    others: tuple[int, ...] = ()
    tries: int = 0


def percent(probability: float) -> str:
    return f'{100 * probability:.0f} %' if probability >= 0.095 else f'{100 * probability:.1f} %'


def captions(order: Sequence[int], log_p: torch.Tensor, prior: bool) -> tuple[list[str], list[str], list[float]]:
    """Names, notes and bars of choices: with a prior how likely they are, against the likeliest."""
    names = [f'Choice {code}' for code in order]
    if not prior:
        return names, [str(code) for code in order], []
    p = log_p[list(order)].exp()
    return names, [percent(q) for q in p.tolist()], (p / p.max()).tolist()


def picked(options: Sequence, event: gr.EventData) -> int:
    if not options:
        raise ValueError('Start at the root first.')
    return int(number(event.index, 0, len(options) - 1))


def build(subject: Subject) -> None:
    """Add the components of the tab to the ``gr.Blocks`` around it."""
    net = subject.net
    depth = net.num_whole_layers
    gr.Markdown(
        'Every choice leads to a picture, and each of those to the next ones. Click a picture to choose it, or a '
        'picture of the path to go back there. **Complete** makes the rest of the choices by chance.' + (
            f' The first {depth} layers choose for the whole picture, the others for parts of it.'
            if depth < net.num_layers else ''
        )
    )
    label = gr.Dropdown(
        subject.classes, value=(subject.classes or [None])[0], label='Class', visible=bool(subject.num_classes),
        info='Every class has a tree of its own.', elem_id='tree-class',
    )
    path = picture_grid('', side=64, elem_id='path')
    with gr.Row():
        root = gr.Button('Start at the root', variant='primary')
        complete = gr.Button('Complete', elem_id='complete')
    say = gr.Markdown('', elem_id='tree-say')
    children = picture_grid('Press “Start at the root”.', side=84, elem_id='children', elem_classes='ddn-scroll')
    with gr.Column(visible=False) as below:
        gr.Markdown('### A full picture below this place, layer by layer\nClick a layer to change its choice.')
        layers = picture_grid('', side=84, elem_id='layers')
        cell = gr.Slider(
            0, 1, 0, step=1, label='Cell', info='This layer chooses for every cell of a grid, row by row.',
            visible=False, elem_id='cell',
        )
        about_others = gr.Markdown('', elem_id='others-say')
        others = picture_grid('', side=84, elem_id='others', elem_classes='ddn-scroll')
        changed = picture_grid('', side=150, clickable=False, elem_id='changed')
    place = gr.State(Place())

    def full(image: torch.Tensor) -> torch.Tensor:
        return pixel_maps.upsample(image, net.img_resolution)

    def node(place: Place, label: str | None) -> tuple:
        """What is shown of a node: its path and its children, the likeliest first."""
        condition = subject.condition(label)
        prefix = torch.tensor([place.path], dtype=torch.int64).view(1, -1)
        first = net.branches(prefix[:, :0], condition)[0]  # [K, C, h, w]
        trail = [full(first.mean(0, keepdim=True))[0]]
        trail += [
            full(net.branches(prefix[:, :d], condition)[0, code : code + 1])[0] for d, code in enumerate(place.path)
        ]
        crumbs = pictures.items(
            trail, ['The root', *(f'Layer {d}: choice {code}' for d, code in enumerate(place.path))],
            ['start', *map(str, place.path)], chosen=len(place.path),
        )
        if len(place.path) == depth:
            order, items = [], {'items': []}
            words = 'A full picture.' if depth == net.num_layers else 'The last layer for the whole picture.'
        else:
            log_p = net.next_log_prior(prefix, condition)[0]  # [K]
            order = log_p.argsort(descending=True, stable=True)[:SHOWN].tolist()
            images = full(net.branches(prefix, condition)[0][order])
            items = pictures.items(images, *captions(order, log_p, bool(net.prior)))
            K = net.num_nodes[len(place.path)]
            words = f'Layer {len(place.path)}: {K} choices'
            words += ', the likeliest first.' if net.prior else '.'
            words += f' The first {SHOWN} are shown.' if K > SHOWN else ''
        return place._replace(order=tuple(order)), crumbs, items, words

    def picture(place: Place, label: str | None) -> tuple:
        """What is shown of a full picture: its layers, and the alternatives of one of them."""
        latent = torch.tensor([place.latent])
        condition = subject.condition(label)
        steps = [step.image for step in net.walk(samplers.given(latent), 1, condition)]
        steps = [full(image)[0] for image in steps[:-1]] + [net.decode(latent, condition)[0]]
        names = [f'Layer {i}' for i in range(net.num_layers)]
        strip = pictures.items(steps, names, names, chosen=place.layer)
        if place.layer is None:
            return place, strip, gr.update(visible=False), '', {'items': []}, gr.update(visible=True)
        columns, spec = net.code_slices[place.layer], net.specs[place.layer]
        place = place._replace(cell=min(place.cell, spec.num_cells - 1))
        at = columns.start + place.cell
        log_p = net.next_log_prior(latent[:, : columns.start], condition).view(spec.num_nodes, -1)[:, place.cell]
        order = log_p.argsort(descending=True, stable=True)[:SHOWN].tolist()
        tried = latent.repeat(len(order), 1)
        tried[:, at] = torch.tensor(order)
        images = net.decode(tried, condition)
        own = int(latent[0, at])
        chosen = order.index(own) if own in order else None
        items = pictures.items(images, *captions(order, log_p, bool(net.prior)), chosen=chosen)
        where = f'layer {place.layer}' + (f', cell {place.cell}' if spec.num_cells > 1 else '')
        words = f'The picture with other choices of {where}; all later choices stay. Marked: its own.'
        slider = gr.update(
            maximum=max(1, spec.num_cells - 1), value=place.cell, visible=spec.num_cells > 1,
            label=f'Cell of {spec.grid[0]} x {spec.grid[1]}',
        )
        return place._replace(others=tuple(order)), strip, slider, words, items, gr.update(visible=True)

    nothing = {'items': []}

    def shown(place: Place, label: str | None) -> tuple:
        place, *upper = node(place, label)
        if place.latent is None:
            return place, *upper, nothing, gr.update(visible=False), '', nothing, gr.update(visible=False), nothing
        return place, *upper, *picture(place, label)[1:], nothing

    def moved(place: Place, path: Sequence[int]) -> Place:
        latent = tuple(path) if len(path) == net.num_codes else None
        return Place(tuple(path), latent, tries=place.tries)

    @sentences
    def start(place: Place, label):
        return shown(Place(), label)

    @sentences
    def down(place: Place, label, event: gr.EventData):
        code = place.order[picked(place.order, event)]
        return shown(moved(place, (*place.path, code)), label)

    @sentences
    def up(place: Place, label, event: gr.EventData):
        return shown(moved(place, place.path[: picked((0, *place.path), event)]), label)

    @sentences
    def finish(place: Place, label):
        partial = torch.full((1, net.num_codes), -1)
        partial[0, : len(place.path)] = torch.tensor(place.path)
        latent = net.sample(seeds=[place.tries], codes=partial, condition=subject.condition(label))[1][0]
        return shown(place._replace(latent=tuple(latent.tolist()), layer=None, tries=place.tries + 1), label)

    @sentences
    def look(place: Place, label, event: gr.EventData):
        layer = picked(net.specs if place.latent else (), event)
        return *picture(place._replace(layer=layer, cell=0), label), nothing

    @sentences
    def turn(place: Place, label, cell):
        cells = net.specs[place.layer or 0].num_cells
        place, strip, _, *rest = picture(place._replace(cell=int(number(cell, 0, cells - 1))), label)
        return place, strip, gr.skip(), *rest, nothing  # the slider may have moved on

    @sentences
    def change(place: Place, label, event: gr.EventData):
        code = place.others[picked(place.others, event)]
        latent = list(place.latent)
        latent[net.code_slices[place.layer].start + place.cell] = code
        both = net.decode(torch.tensor([place.latent, latent]), subject.condition(label))
        path = tuple(latent[: len(place.path)])
        new = place._replace(latent=tuple(latent), path=path)
        compared = pictures.items(both, ['Before', 'After'], ['before', 'after'])
        if path == place.path:
            return *(gr.skip(),) * 3, *picture(new, label), compared
        new, *upper = node(new, label)
        return *upper, *picture(new, label), compared

    inputs = [place, label]
    lower = [layers, cell, about_others, others, below, changed]
    made = {'show_progress': 'minimal', 'concurrency_id': 'network'}
    for event, function in (
        (root.click, start), (label.input, start), (children.select, down), (path.select, up), (complete.click, finish)
    ):
        event(function, inputs, [place, path, children, say, *lower], show_progress_on=children, **made)
    made['show_progress_on'] = others
    layers.select(look, inputs, [place, *lower], **made)
    cell.input(turn, [*inputs, cell], [place, *lower], trigger_mode='always_last', **made)
    others.select(change, inputs, [path, children, say, place, *lower], **made)
