"""The tab Guide: pictures that follow what a visitor painted or gave."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import gradio as gr
import torch

from ddn_networks import Network, guided_sampling, guides, pixel_maps
from ddn_networks.guides import Guide
from page import pictures
from page.canvas import Painted, canvas, showing
from page.pictures import picture_grid
from page.subject import Subject
from page.words import number, sentences

RESULTS = 4
HEAVIEST = 4.0  # weight of a task
SEEDS = 2**31


class Task(NamedTuple):
    """Something that results can follow. explanation: in one line; needs: what must be there, in words."""

    explanation: str
    needs: str


TASKS = {
    'Whole canvas': Task('all of the canvas as it is; black where it is empty', 'paint, or give a picture'),
    'Strokes': Task('the colours that you painted; the rest is invented', 'paint on the canvas'),
    'Fill in': Task('the picture but for the hidden part, which is invented', 'give a picture and hide a part of it'),
    'Colourise': Task('how light and dark the picture is; colours are invented', 'give a picture'),
    'Enlarge': Task('a tiny copy of the picture; details are invented', 'give a picture'),
    'Remove noise': Task('the picture below the noise', 'give a picture'),
    'Outline': Task(
        'the outlines of the picture or, on an empty canvas, the lines that you painted', 'give a picture, or paint '
        'lines'
    ),
    'Class': Task('a class, as a classifier sees it', 'choose a class'),
    'Text': Task('a text, as CLIP sees it', 'write a text'),
}


class Settings(NamedTuple):
    """Numbers and words of the tasks. side: of the tiny copy, pixels; noise: its deviation."""

    side: int
    noise: float
    label: str | None
    text: str


class Followed(NamedTuple):
    """guide: of one task; look: what it is given, [C, H, W] to look at, or None."""

    guide: Guide
    look: torch.Tensor | None


def over(photo: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """A picture [1, C, H, W] that is transparent where ``shown`` [1, 1, H, W] is 0: [4, H, W]."""
    return torch.cat([photo.expand(-1, 3, -1, -1), shown * 2 - 1], 1)[0]


def followed(subject: Subject, task: str, painted: Painted, settings: Settings) -> Followed | None:
    """The guide of a task; None where what it needs is not there."""
    photo, net = painted.photo, subject.net
    if task == 'Whole canvas' and (photo is not None or painted.strokes is not None):
        whole = painted.together()
        return Followed(guides.l2(whole), whole[0])
    if task == 'Strokes' and painted.strokes is not None:
        return Followed(guides.strokes(painted.strokes), painted.strokes[0])
    if task == 'Outline' and (photo is not None or painted.strokes is not None):
        if photo is None:
            lines = painted.strokes[:, 3:]
            return Followed(guides.edges(lines, drawn=True), lines[0])
        grey = pixel_maps.to_channels(photo, 1)
        return Followed(guides.edges(photo), pixel_maps.soft_edges(grey, 0.75, 0.25)[0])
    if task == 'Class' and subject.classifier is not None and settings.label is not None:
        return Followed(subject.classifier.guide(int(settings.label)), None)
    if task == 'Text' and subject.clip is not None and settings.text.strip():
        return Followed(subject.clip(settings.text.strip()), None)
    if photo is None:
        return None
    if task == 'Fill in' and painted.hidden is not None:
        known = 1 - painted.hidden
        if not known.any():
            raise ValueError('Everything is hidden: leave some of the picture to follow.')
        return Followed(guides.inpaint(photo, known), over(photo, known))
    if task == 'Colourise' and net.img_channels > 1:
        grey = pixel_maps.to_channels(photo, 1)
        return Followed(guides.colorization(grey), grey[0])
    if task == 'Enlarge':
        size = tuple(max(1, round(settings.side * s / max(net.img_resolution))) for s in net.img_resolution)
        low = pixel_maps.box(photo, size)
        return Followed(guides.superres(low), low[0])
    if task == 'Remove noise':
        noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
        noisy = photo + settings.noise * noise
        return Followed(guides.denoise(noisy), noisy[0])
    return None


def offered(subject: Subject) -> list[str]:
    """The tasks that there are for a network and what was given with it."""
    missing = {
        'Colourise': subject.net.img_channels == 1, 'Class': subject.classifier is None, 'Text': subject.clip is None,
    }
    return [task for task in TASKS if not missing.get(task)]


def chosen_by(painted: Painted, tasks: Sequence[str], grey: bool) -> list[str]:
    """The tasks, and those that follow what was just painted: on a grey canvas, black is a ground to draw on."""
    found = list(tasks)
    if painted.strokes is not None and not {'Whole canvas', 'Strokes', 'Outline'} & set(found):
        found.append('Whole canvas' if grey and painted.photo is None else 'Strokes')
    if painted.hidden is not None and painted.photo is not None and 'Fill in' not in found:
        found = [task for task in found if task != 'Whole canvas'] + ['Fill in']  # it would show what is hidden
    return found


def stream(
    subject: Subject, found: Sequence[Guide], seed: int, label: str | None
) -> Iterator[tuple[int, torch.Tensor]]:
    """The four results while they are made: the number of layers done, and images [4, C, h, w]."""
    net, seeds = subject.net, range(seed, seed + RESULTS)
    uniform = not net.sampling.residuals  # which weigh a prior against guides
    steps = guided_sampling.layers(net, list(found), seeds, subject.condition(label), uniform=uniform)
    for layer, (images, _) in enumerate(steps):
        yield layer + 1, images.cpu()


def build(subject: Subject) -> None:
    """Add the components of the tab to the ``gr.Blocks`` around it."""
    net: Network = subject.net
    there = offered(subject)
    smallest = max(net.img_resolution)
    gr.Markdown('Paint, or give a picture, and choose what the results should follow.')
    with gr.Row():
        with gr.Column(scale=2, min_width=300, elem_classes='ddn-given'):
            painting = canvas(net, drop='guide-upload', elem_id='canvas')
            with gr.Row():
                example = gr.Button('Example picture', size='sm', min_width=120, elem_id='guide-example')
                upload = gr.UploadButton(
                    'Your picture …', size='sm', type='binary', min_width=120, elem_id='guide-upload'
                )
            tasks = gr.CheckboxGroup(
                there, label='Results follow', elem_id='tasks',
                info='What the four results are made to follow: one or several.',
            )
            gr.Markdown(
                '\n'.join(f'* **{task}**: {TASKS[task].explanation}' for task in there), elem_classes='ddn-explained'
            )
            side = gr.Slider(
                1, smallest // 2, max(1, smallest // 8), step=1, label='Size of the tiny copy', visible=False,
                elem_id='side',
                info='Pixels a side: the fewer, the more is invented.',
            )
            noise = gr.Slider(
                0, 1, 0.5, step=0.05, label='Noise to add', visible=False, elem_id='noise',
                info='0: the picture is noisy already. 0.5: hard to see through.',
            )
            labels = subject.classifier.names if subject.classifier is not None else []
            wanted = gr.Dropdown(
                labels, value=(labels or [None])[0], label='Class to follow', visible=False,
                info='What the classifier should see in the results.', elem_id='wanted',
            )
            text = gr.Textbox(
                '', label='Text to follow', visible=False, info='A few words, then Enter: a smiling woman'
            )
            if net.prior and not net.sampling.residuals:
                gr.Markdown(
                    'Results follow the tasks alone: this snapshot does not say how to weigh them against what the '
                    'network finds likely.', elem_classes='ddn-explained'
                )
            with gr.Accordion('Weights', open=False, visible=False) as heavier:
                gr.Markdown('How much each task counts against the others.', elem_classes='ddn-remark')
                weights = {
                    task: gr.Slider(
                        0.1, HEAVIEST, 1, step=0.1, label=task, visible=False,
                        elem_id=f'weight-{task}'.replace(' ', '-'),
                    )
                    for task in there
                }
        with gr.Column(scale=3, min_width=320, elem_classes='ddn-results'):
            say = gr.Markdown('', elem_id='guide-say')
            results = picture_grid(
                'Paint on the canvas, or give a picture: four results appear here.', clickable=False, four=True,
                elem_id='results',
            )
            with gr.Row():
                label = gr.Dropdown(
                    subject.classes, value=(subject.classes or [None])[0], label='Class', scale=1,
                    info='What the network is asked for.', visible=bool(subject.num_classes),
                )
                seed = gr.Number(
                    0, label='Seed', info='Other seeds make other results.', precision=0, minimum=0,
                    maximum=SEEDS - RESULTS, scale=1,
                    elem_id='guide-seed',
                )
                others = gr.Button('Four others', scale=1)
            given = picture_grid('', side=96, clickable=False, elem_id='given')

    inputs = [painting, tasks, side, noise, wanted, text, label, seed, *weights.values()]

    @sentences
    def run(
        value: Mapping, tasks: Sequence[str], side, noise, wanted, text, label, seed, *weights
    ) -> Iterator[tuple]:
        painted = Painted(value, net)
        settings = Settings(
            int(number(side, 1, smallest // 2)), number(noise, 0, 1), wanted, str(text or '')[:200]
        )
        by_task = dict(zip(there, weights, strict=True))
        found, looks, names, missing = [], [], [], []
        for task in (task for task in there if task in tasks):
            one = followed(subject, task, painted, settings)
            if one is None:
                missing.append(f'**{task}** waits: {TASKS[task].needs}.')
                continue
            found.append(one.guide._replace(weight=number(by_task[task], 0.1, HEAVIEST)))
            if one.look is not None:
                looks.append(one.look)
                names.append(f'{task}: what the results follow')
        waiting = ' '.join(missing)
        if not found:
            yield {'items': []}, {'items': []}, waiting
            return
        notes = [name.partition(':')[0] for name in names]
        shown = pictures.items(looks, names, notes)
        start = time.perf_counter()
        for layer, images in stream(subject, found, int(number(seed, 0, SEEDS - RESULTS)), label):
            items = pictures.items(images, [f'Result {i + 1}' for i in range(RESULTS)])
            yield items, shown, f'{waiting} Layer {layer} of {net.num_layers}'
        yield items, shown, f'{waiting} Four results in {time.perf_counter() - start:.1f} seconds'

    def show_options(tasks: Sequence[str]) -> list:
        several = len(tasks) > 1
        visible = [task in tasks for task in ('Enlarge', 'Remove noise', 'Class', 'Text')]
        visible += [several, *(several and task in tasks for task in there)]
        return [gr.update(visible=flag) for flag in visible]

    @sentences
    def paint(value: Mapping, tasks: Sequence[str]) -> list[str]:
        return chosen_by(Painted(value, net), tasks, net.img_channels == 1)

    @sentences
    def take(data: bytes | None, tasks: Sequence[str]) -> tuple:
        return showing(pictures.read_file(data, net)[0]), list(tasks) or ['Enlarge']

    @sentences
    def make_example(seed, tasks: Sequence[str], label) -> tuple:
        first = int(number(seed, 0, SEEDS - RESULTS))
        images, _ = net.sample(1, seed=SEEDS - RESULTS - first, condition=subject.condition(label))
        return showing(images[0].cpu()), list(tasks) or ['Enlarge']

    made = {
        'outputs': [results, given, say], 'show_progress': 'minimal', 'show_progress_on': results,
        'concurrency_id': 'network', 'trigger_mode': 'always_last',
    }
    options = {'outputs': [side, noise, wanted, text, heavier, *weights.values()], 'show_progress': 'hidden'}
    quiet = {'show_progress': 'hidden', 'queue': False}
    painting.painted(
        paint, [painting, tasks], tasks, trigger_mode='always_last', **quiet  # quick strokes: the last counts
    ).then(run, inputs, **made)
    upload.upload(take, [upload, tasks], [painting, tasks], show_progress='hidden').success(run, inputs, **made)
    example.click(
        make_example, [seed, tasks, label], [painting, tasks], show_progress='minimal', show_progress_on=results,
        concurrency_id='network',
    ).success(run, inputs, **made)
    tasks.change(show_options, tasks, **options)
    tasks.input(run, inputs, **made)
    for slider in (side, noise, *weights.values()):
        slider.input(run, inputs, **made)
    for control in (wanted, label):
        control.input(run, inputs, **made)
    for control in (text, seed):
        control.submit(run, inputs, **made)
    others.click(
        lambda seed: (int(seed or 0) + RESULTS) % (SEEDS - RESULTS), seed, seed, **quiet
    ).then(run, inputs, **made)
