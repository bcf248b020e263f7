"""The tab Sample: pictures from seeds, and what can be done with one of them."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
import torch

from ddn_networks import codes, generate, guides
from page import pictures
from page.canvas import Painted, canvas, showing
from page.pictures import picture_grid
from page.subject import Subject
from page.words import bits_of, number, sentences

MOST = 64  # pictures to make
AT_ONCE = 8  # that appear together
VARIATIONS = 8
NEIGHBOURS = 8
SEEDS = 2**31  # seeds of the page are below


class Chosen:
    """The picture that a visitor chose: its latent [1, D] and the class that it was made with."""

    def __init__(self, latent: torch.Tensor, label: str | None):
        self.latent, self.label = latent, label


def build(subject: Subject) -> None:
    """Add the components of the tab to the ``gr.Blocks`` around it."""
    net = subject.net
    gr.Markdown(
        'Every seed makes one picture. Click a picture to see the choices that made it, and to make others like it.'
    )
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            seed = gr.Number(
                0, label='Seed', info='The number that the pictures are made from: the same seed, the same pictures.',
                precision=0, minimum=0, maximum=SEEDS - 1, elem_id='seed',
            )
            count = gr.Slider(
                1, MOST, 16, step=1, label='How many', info='Pictures to make, from consecutive seeds.',
                elem_id='count',
            )
            label = gr.Dropdown(
                subject.classes, value=(subject.classes or [None])[0], label='Class',
                info='What the pictures should show.', visible=bool(subject.num_classes), elem_id='class',
            )
            how = gr.Radio(
                ['Likely', 'Uniform'], value='Likely', label='How to choose', visible=bool(net.prior),
                info='Likely: as the network learned that choices follow each other. Uniform: every choice as often.',
                elem_id='how',
            )
            variety = gr.Slider(
                0, 1.5, 1.0, step=0.05, label='Variety', visible=bool(net.prior),
                info='1: as the network was tuned. Less: safer and more alike. More: bolder.', elem_id='variety',
            )
            finish = gr.Checkbox(
                True, label='Finish', info='Let the finisher sharpen the pictures.', visible=subject.has_finisher,
                elem_id='finish',
            )
            if not net.prior:
                gr.Markdown(
                    'This network has learned no likelihoods, so it chooses uniformly.', elem_classes='ddn-remark'
                )
            with gr.Row():
                draw = gr.Button('Make pictures', variant='primary', elem_id='make')
                other = gr.Button('Other seeds')
        with gr.Column(scale=3, min_width=320):
            grid = picture_grid('Press “Make pictures”.', label='Pictures', elem_id='samples')
    with gr.Column(visible=False) as details:
        gr.Markdown('### The chosen picture')
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                painting = canvas(net, colours=False, elem_id='chosen')
                again = gr.Button('Redraw the painted part', elem_id='again')
            with gr.Column(scale=1, min_width=280):
                facts = gr.HTML(elem_id='facts')
                keep = gr.Slider(
                    0, net.num_layers - 1, net.num_layers // 2, step=1, label='Layers to keep',
                    info='More like this: the first layers, which decide the most, stay; the rest is drawn anew.',
                    elem_id='keep',
                )
                alike = gr.Button('More like this')
            with gr.Column(scale=2, min_width=320):
                varied = picture_grid(
                    'Paint on the picture and redraw that part, or make more like it.', label='Variations',
                    elem_id='variations',
                )
        with gr.Column(visible=subject.table is not None):
            gr.Markdown('### Nearest in the file of codes: those with the longest common prefix')
            neighbours = picture_grid('', clickable=False, elem_id='neighbours')

    shown, changed, chosen, tries = gr.State([]), gr.State([]), gr.State(None), gr.State(0)

    def arguments(how: str, variety: float, finish: bool) -> dict[str, Any]:
        found = {'finish': bool(finish)}
        if not net.prior:
            return found
        if how == 'Uniform':
            return {**found, 'uniform': True}
        own = net.sampling.temperatures_of(net.num_layers)
        return {**found, 'temperature': [number(variety, 0, 1.5) * t for t in own]}

    @sentences
    def make(seed, count, label, how, variety, finish) -> Iterator[tuple]:
        first, count = int(number(seed, 0, SEEDS - 1)), int(number(count, 1, MOST))
        condition, latents, images = subject.condition(label), [], []
        hidden = gr.update(visible=False)
        for batch in generate.samples(
            net, range(first, first + count), AT_ONCE, condition, **arguments(how, variety, finish)
        ):
            images += batch.images.cpu()
            latents += [Chosen(row, label) for row in batch.codes.cpu().split(1)]
            names = [f'Picture of seed {first + i}' for i in range(len(images))]
            yield pictures.items(images, names), latents, hidden
            hidden = gr.skip()

    @sentences
    def choose(shown: list[Chosen], finish: bool, event: gr.EventData) -> tuple:
        picked = shown[int(number(event.index, 0, len(shown) - 1))]
        condition = subject.condition(picked.label)
        image = net.decode(picked.latent, condition, finish=bool(finish))[0]
        near = {'items': []}
        if subject.table is not None:
            rows = codes.nearest(picked.latent, subject.table, NEIGHBOURS)[0]
            shared = codes.common_prefix(picked.latent, subject.table[rows])[0].tolist()
            names = [f'Row {row} of the file' for row in rows.tolist()]
            notes = [f'row {row}: {n} in common' for row, n in zip(rows.tolist(), shared, strict=True)]
            near = pictures.items(net.decode(subject.table[rows], condition).cpu(), names, notes)
        return (
            picked, bits_of(net, picked.latent, condition), showing(image), {'items': []}, near,
            gr.update(visible=True),
        )

    def vary(picked: Chosen | None, tries: int, how: str, variety: float, finish: bool, partial, guide=None) -> tuple:
        """Other pictures that share the codes ``partial`` [1, D], or that ``guide`` asks for."""
        seeds = range(tries * VARIATIONS + 1, (tries + 1) * VARIATIONS + 1)
        images, latents = net.sample(
            seeds=seeds, condition=subject.condition(picked.label), guide=guide, codes=partial,
            **arguments(how, variety, finish),
        )
        names = [f'Variation {i + 1}' for i in range(len(images))]
        return pictures.items(images.cpu(), names), [Chosen(row, picked.label) for row in latents.cpu().split(1)], \
            tries + 1

    @sentences
    def more(picked, tries, how, variety, finish, keep) -> tuple:
        layers = int(number(keep, 0, net.num_layers - 1))
        partial = picked.latent.clone()
        partial[:, net.code_slices[layers].start :] = -1
        return vary(picked, tries, how, variety, finish, partial)

    @sentences
    def redraw(picked, tries, how, variety, finish, painted) -> tuple:
        hidden = Painted(painted, net).hidden
        if hidden is None:
            raise ValueError('Paint over the part of the picture that should be drawn anew, then press the button.')
        cells = torch.tensor([spec.num_cells > 1 for spec in net.specs for _ in range(spec.num_cells)])
        if cells.any():
            touched = codes.touching(hidden[0, 0] > 0, [spec.grid for spec in net.specs])
            return vary(picked, tries, how, variety, finish, torch.where(touched & cells, -1, picked.latent))
        image = net.decode(picked.latent, subject.condition(picked.label), finish=bool(finish))
        return vary(picked, tries, how, variety, finish, None, guides.inpaint(image.clamp(-1, 1), 1 - hidden))

    settings = [how, variety, finish]
    made = {
        'outputs': [grid, shown, details], 'show_progress': 'minimal', 'show_progress_on': grid,
        'concurrency_id': 'network', 'trigger_mode': 'always_last',  # a press while pictures appear counts
    }
    draw.click(make, [seed, count, label, *settings], **made)
    other.click(lambda seed, count: (int(seed or 0) + int(count)) % SEEDS, [seed, count], seed, queue=False).then(
        make, [seed, count, label, *settings], **made
    )
    for source, state in ((grid, shown), (varied, changed)):
        source.select(
            choose, [state, finish], [chosen, facts, painting, varied, neighbours, details], show_progress='hidden',
            concurrency_id='network',
        )
    made = {
        'outputs': [varied, changed, tries], 'show_progress': 'minimal', 'show_progress_on': varied,
        'concurrency_id': 'network',
    }
    alike.click(more, [chosen, tries, *settings, keep], **made)
    again.click(redraw, [chosen, tries, *settings, painting], **made)
