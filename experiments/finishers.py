"""Finishers of one network at equal seconds: what LPIPS, the network's picture and frozen layers are worth.

    python -m experiments.finishers --network=mnist --detector=lenet
    python -m experiments.finishers --network=faces.safetensors --data=faces64-train.zip --held-out=faces64-test.zip

Rows: the picture before; the finisher as train.py --fit-finisher trains it; without LPIPS; the same generator, which
gets noise in place of the network's picture and features, so that it learns from the adversarial loss alone; and the
finisher while its adversarial loss on samples also trains the blocks of the last scale. Each is trained for the same
CPU seconds, alone on one core. A row that was trained on LPIPS has looked at AlexNet: LPIPS and distances of AlexNet's
features are no evidence for it. Rows that are finished are kept in --outdir.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from cli.finisher_fits import made_by, new_network, perceptual_loss
from cli.networks import load_network
from cli.options import script
from cli.prior_fits import fit_of
from cli.tables import markdown, write_results
from ddn_networks import Network, samplers, snapshots
from ddn_networks.finisher import code_noise
from ddn_networks.network import Output
from dnnlib.archives import ImageArchive
from dnnlib.images import to_uint8
from dnnlib.sheets import draw_sheet, in_rows, save_png
from dnnlib.util import file_sha256
from experiments import ablation, digits
from experiments.ablation import Scoring
from experiments.common import as_saved, features_of, pictures, reference, trained_on
from metrics import evaluate
from metrics.detectors import Detector, load_detector
from metrics.image_sets import Files
from metrics.lpips import LPIPS
from metrics.reconstruction import psnr
from metrics.reference import Statistics
from torch_utils import persistence
from training.dataset import ImageFolderDataset
from training.finisher_fitting import Drawn, FinisherFit, Weights, high_frequencies

BATCH, LR, EMA_NIMG = 32, 8e-4, 2000.0  # as train.py --fit-finisher has them
TOP_SHARE = 0.1  # learning rate of the top blocks over that of the finisher
PART = 50  # images of a pass in evaluation
SHEET = 64  # samples and reconstructions shown; seeds 0 to 63


class Timed(FinisherFit):
    """A fit that lasts for ``seconds`` of CPU time, whatever its ``total_nimg``."""

    seconds = started = 0.0

    @property
    def progress(self) -> float:
        return (time.process_time() - self.started) / self.seconds

    def train(self, seconds: float) -> None:
        self.seconds, self.started = seconds, time.process_time()
        while not self.done:
            self.step_()

    @torch.no_grad()
    def reconstructions(self, images: torch.Tensor) -> torch.Tensor:
        with self.averaged_weights():
            return self.net.reconstruct(images).images

    @torch.no_grad()
    def samples(self, seeds: list[int]) -> torch.Tensor:
        with self.averaged_weights():
            return self.net.sample(seeds=seeds)[0]


class FromNoise(Timed):
    """The generator gets a grey picture, and noise in place of the network's features. Hashes of the codes, so that
    nothing of the network is left but its seeds. Its pictures are clamped with the gradient of what they were before:
    without squared error nothing else brings back a pixel below -1, and on digits they soon were all black."""

    def finished(self, pictures: Drawn) -> torch.Tensor:
        drawn = super().finished(pictures)
        return drawn.detach().clamp(-1, 1) + (drawn - drawn.detach())

    def _pictures(self, output: Output) -> Drawn:
        codes, size = output.codes, output.features.shape[2:]
        channels = []
        for channel in range(output.features.shape[1]):
            salted = torch.cat([codes.new_full((len(codes), 1), channel + 1), codes], 1)
            channels.append(code_noise(salted, [(1, 1), *(spec.grid for spec in self.net.specs)], tuple(size)))
        return Drawn(torch.zeros_like(output.images).half(), torch.cat(channels, 1).half(), codes)

    @torch.no_grad()
    def reconstructions(self, images: torch.Tensor) -> torch.Tensor:
        return self.averaged(self.drawn(images, None))

    @torch.no_grad()
    def samples(self, seeds: list[int]) -> torch.Tensor:
        codes = self.net.sample(seeds=seeds, finish=False)[1]
        return self.averaged(self._pictures(self.net(samplers.given(codes), len(codes))))


class IntoTheTop(Timed):
    """The adversarial loss on samples also trains the blocks of the last scale."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        specs, uses = self.net.specs, self.net.ddl_of_layer
        last = sorted({use for use, spec in zip(uses, specs, strict=True) if spec.size == specs[-1].size})
        top = {f'{use}.{name}': p for use in last for name, p in self.net.blocks[use].named_parameters()}
        self.top = torch.optim.Adam([p.requires_grad_(True) for p in top.values()], 0.0, (0.0, 0.99))
        self.averages.update({name: p.detach().clone() for name, p in top.items()})
        self.ema.params.update(top)

    def finished_samples(self, pictures: Drawn) -> torch.Tensor:
        return self.net.finished(self.net(samplers.given(pictures.codes), len(pictures.codes)))

    def step_(self) -> dict[str, torch.Tensor]:
        found = super().step_()
        for group in self.top.param_groups:
            group['lr'] = TOP_SHARE * self.optimizers[0].param_groups[0]['lr']
        self.top.step()
        self.top.zero_grad(set_to_none=True)
        return found


class Variant(NamedTuple):
    """A finisher to train. lpips: whether it also learns from it."""

    name: str
    kind: type[Timed]
    weights: Weights = Weights()
    lpips: bool = True


ROWS = (
    Variant('finisher', Timed),
    Variant('without LPIPS', Timed, lpips=False),
    Variant('from noise', FromNoise, Weights(squared=0.0), lpips=False),
    Variant('adversarial gradient into the top blocks', IntoTheTop),
)


class Setting(NamedTuple):
    """What all rows share."""

    network: str
    scoring: Scoring
    width: int
    seconds: float
    xflip: bool
    lpips: str


def fitted(row: Variant, setting: Setting) -> tuple[Timed, str]:
    """A row, trained, and its LPIPS in words ('none')."""
    dataset = ImageFolderDataset(setting.scoring.data)
    torch.manual_seed(0)
    net = new_network(load_network(setting.network), setting.width, dataset)
    images = {'data': setting.scoring.data, 'val_data': setting.scoring.held_out, 'xflip': setting.xflip}
    shape = (net.img_channels, *net.img_resolution)
    perceptual, lpips = perceptual_loss(setting.lpips if row.lpips else 'none', shape, net.device, click.echo)
    of_images = fit_of(net, {**images, 'cache': True, 'condition_dropout': 0.0}, 0)
    fit = row.kind(of_images, perceptual, BATCH, LR, 1, EMA_NIMG, row.weights)
    fit.train(setting.seconds)
    return fit, lpips


# ------------------------------------------------------------------------------------------------------------- numbers


def distance(images: torch.Tensor, real: Statistics, detector: Detector) -> float:
    """Frechet distance of images [N, C, H, W] to the training images."""
    return ablation.starting(evaluate.compare(real, features_of(images, detector))[0], 'FID')


@torch.no_grad()
def numbers(
    again: torch.Tensor, held_out: torch.Tensor, made: torch.Tensor, real: Statistics, detector: Detector,
    lpips: LPIPS | None,
) -> dict[str, float | None]:  # fmt: skip
    """Of reconstructions ``again`` of ``held_out`` images, and of samples ``made``."""
    pairs = list(zip(again.split(PART), held_out.split(PART), strict=True))
    found = {
        'PSNR dB': psnr(to_uint8(held_out), to_uint8(again)).mean().item(),
        'LPIPS': None if lpips is None else torch.cat([lpips(a, b) for a, b in pairs]).mean().item(),
        'detail': (high_frequencies(again) / high_frequencies(held_out)).item(),
        'FD of reconstructions': distance(again, real, detector),
        'FD of samples': distance(made, real, detector),
    }
    if detector.name == 'lenet':
        found['p >= 0.9'] = digits.legible(digits.probabilities(detector.net, made))
    return found


def by_parts(draw: Any, parts: Any) -> torch.Tensor:
    """Pictures as PNGs would hold them, drawn part by part."""
    return as_saved(torch.cat([draw(part) for part in parts])).clamp(-1, 1)


def before(net: Network, held_out: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstructions and samples of the network without a finisher."""
    net.finisher = None
    again = by_parts(lambda part: net.reconstruct(part).images, held_out.split(PART))
    return again, by_parts(lambda seeds: net.sample(seeds=seeds.tolist())[0], torch.arange(num).split(PART))


def measured(row: Variant | None, setting: Setting, held_out: torch.Tensor, folder: Path) -> dict[str, Any]:
    """The numbers of a row (None: of the picture before), and its sheets."""
    scoring, name = setting.scoring, ablation.slug(row.name if row else 'before')
    detector = load_detector(scoring.detector)
    real = reference(scoring.data, detector, folder, keep=0)
    lpips, _ = evaluate.find_lpips([Files(scoring.held_out, len(held_out))], torch.device('cpu'))
    facts = {'images': None, 'trained on': '-'}
    if row is None:
        again, made = before(load_network(setting.network), held_out, scoring.num)
    else:
        fit, own_lpips = fitted(row, setting)
        fit.net.snapshot_meta = {'finisher': made_by(setting.network, own_lpips)}
        facts = {'images': fit.nimg, 'trained on': trained_on(fit.net) or '-'}
        with fit.averaged_weights():
            snapshots.save_network(folder / f'{name}.safetensors', fit.net, meta=fit.net.snapshot_meta)
        again = by_parts(fit.reconstructions, held_out.split(PART))
        made = by_parts(lambda seeds: fit.samples(seeds.tolist()), torch.arange(scoring.num).split(PART))
    save_png(draw_sheet(in_rows(made[:SHEET], 16), 16), str(folder / f'samples-{name}.png'))
    save_png(draw_sheet(in_rows(again[:SHEET], 16), 16), str(folder / f'reconstructions-{name}.png'))
    return facts | numbers(again, held_out, made, real, detector, lpips)


def words(setting: Setting) -> str:
    """What the columns are."""
    scoring = setting.scoring
    return ' '.join(
        f"""{setting.seconds:g} CPU seconds a row, {setting.width} channels. images: that the finisher learned from.
        PSNR, LPIPS, detail (high-frequency energy over that of the images) and FD of {scoring.num_reconstructed:,}
        held-out images reconstructed; FD of {scoring.num:,} samples at the network's default temperatures. FD: Frechet
        distance of {scoring.detector} features to the training images. p >= 0.9: share of samples that the LeNet
        classifies so. trained on: LPIPS and distances of AlexNet's features are no evidence for what was trained on
        LPIPS.""".split()
    )


@script(__file__)
@click.option('--network', required=True, metavar='FILE|URL|NAME', help='Network to finish')
@ablation.DATA
@ablation.HELD_OUT
@ablation.ONLY
@click.option('--detector', default='alex', metavar='NAME|FILE', help='Detector of the distances, as fid.py takes it')
@click.option('--seconds', type=click.FloatRange(min=0, min_open=True), default=600, help='CPU seconds of each row')
@click.option('--finisher-width', 'width', type=click.IntRange(min=1), default=24, help='Channels at full size')
@click.option('--xflip', type=bool, default=False, metavar='BOOL', help='Mirror images at random')
@click.option('--lpips', metavar='auto|none|FILE', default='auto', help='As train.py --fit-finisher takes it')
@click.option('--num', type=click.IntRange(min=2), default=2000, help='Samples of a distance')
@click.option('--num-reconstructed', type=click.IntRange(min=2), default=1000, help='Held-out images to reconstruct')
@click.option('--outdir', metavar='DIR', default='out/finishers', help='Folder of numbers, networks and sheets')
@click.option('--results', metavar='DIR', help='Folder of the table  [default: --outdir]')
def main(
    network, data, held_out, only, detector, seconds, width, xflip, lpips, num, num_reconstructed, outdir, results
):  # fmt: skip
    folder = Path(outdir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    data, held_out = ablation.images_or_digits(data, held_out, ablation.Study(folder, folder, torch.device('cpu'), {}))
    num_reconstructed = min(num_reconstructed, len(ImageArchive(held_out)))
    setting = Setting(network, Scoring(data, held_out, detector, num, num_reconstructed), width, seconds, xflip, lpips)
    images = pictures(held_out, load_network(network), range(num_reconstructed))
    digests = {'data': ImageArchive(data).digest(), 'held_out': ImageArchive(held_out).digest()}
    digests |= {'detector': load_detector(detector).digest, 'network': file_sha256(persistence.network_path(network))}
    key = {**setting.scoring._asdict(), **digests, 'width': width}
    rows, found = [None, *(ablation.chosen(ROWS, only) if only else ROWS)], []
    for row in rows:
        name = row.name if row else 'before'
        click.echo(f'{name}: {"training and evaluation" if row else "evaluation"}')
        own = key | ({'seconds': seconds, 'xflip': xflip, 'lpips': lpips} if row else {})
        kept_at = folder / f'{ablation.slug(name)}.json'
        numbers_of_row = ablation.kept(kept_at, own, lambda: measured(row, setting, images, folder))  # noqa: B023
        found.append({'row': name, **numbers_of_row})
        text = f'# Finishers of {Path(network).stem}\n\n{words(setting)}\n\n{markdown(found)}'
        place = Path(results or outdir) / f'finishers-{Path(network).stem}'
        write_results(place, text, {'rows': found, 'seconds': seconds, 'width': width})
    click.echo(text)


if __name__ == '__main__':
    main()
