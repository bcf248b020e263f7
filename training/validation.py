"""The validation images, and what the averaged network makes of them: PSNR, sheets of reconstructions and samples."""

from collections.abc import Sequence

import torch

from ddn_networks import Network, prior, samplers
from ddn_networks.code_rates import head_bits, mean_code_bits
from ddn_networks.code_streams import Codec
from ddn_networks.network import Output
from dnnlib.images import to_float
from training import report
from training.ema import EMA
from training.loss import prior_loss

ROWS, COLUMNS = 10, 10  # of the sample sheet; as many validation images
LAYERS_OF = 4  # validation images that are shown layer by layer


@torch.no_grad()
def condition_of(
    net: Network,
    images: torch.Tensor,
    labels: torch.Tensor,
    pairs: torch.Tensor | None = None,
    draws: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """The condition [B, c, H, W] of images that may be augmented, their labels, and uint8 pairs; None for a network
    without. ``draws``: as ``net.conditions.draw`` returns."""
    if not net.conditions:
        return None
    if pairs is not None:
        pairs = to_float(pairs.to(images.device, non_blocking=True))
    sources = net.conditions.sources(images, pairs)
    return net.make_condition(labels if net.conditions.labels else None, sources, draws)


class Validation:
    """Validation images and their condition; all passes use the first averaged weights.

    Args:
        net, ema: the network in training.
        batch: as a ``Loader`` brings them: uint8 images [N, C, H, W], labels, and pairs if any.
    """

    def __init__(self, net: Network, ema: EMA, batch: Sequence[torch.Tensor]):
        self.net, self.ema = net, ema
        self.images = to_float(batch[0]).to(net.device)
        self.condition = condition_of(net, self.images, *batch[1:])

    def stats(self) -> dict[str, float | list[float]]:
        """'val_psnr' of the reconstructions, 'val_bits' of an image as the codec stores it, without the header of the
        file; of a network with a prior 'val_prior_nats' per code, and 'val_code_bits', bits of a code of each layer."""
        output = self._reconstruct(len(self.images), keep=bool(self.net.prior))
        found = {'val_psnr': report.psnr(output.images, self.images)}
        codec, log_prior = Codec(self.net), output.log_prior or [None] * self.net.num_layers
        code_bits = mean_code_bits(codec, output.codes, log_prior)
        layers = zip(code_bits, self.net.specs, strict=True)
        found['val_bits'] = head_bits(codec) + sum(bits * spec.num_cells for bits, spec in layers)
        if self.net.prior:
            found['val_prior_nats'] = prior_loss(output.log_prior, output.distances).item()
            found['val_code_bits'] = code_bits
        return found

    def write_pictures(self, run_dir: str, cur_nimg: int) -> None:
        """samples-N.png, reconstructions-N.png and layers-N.png."""
        reconstructions = self._reconstruct(len(self.images)).images
        report.write_sheets(run_dir, cur_nimg, self._samples(), self.images, reconstructions, columns=COLUMNS)
        layers = self._reconstruct(LAYERS_OF, keep=True).selected
        report.write_layers(run_dir, cur_nimg, self.images[:LAYERS_OF], layers)

    def _reconstruct(self, num: int, keep: bool = False) -> Output:
        images = self.images[:num]
        condition = None if self.condition is None else self.condition[:num]
        sampler = samplers.nearest(images)
        sampler = samplers.with_log_prior(sampler) if keep and self.net.prior else sampler
        return self._averaged(sampler, len(images), condition, keep)

    @torch.no_grad()
    def _averaged(
        self, sampler: samplers.Sampler, num: int, condition: torch.Tensor | None, keep: bool = False
    ) -> Output:
        training = self.net.training
        self.net.eval()
        weights = next(iter(self.ema.copies.values()), {})
        output = torch.func.functional_call(self.net, weights, (sampler, num, condition), {'keep': keep})
        self.net.train(training)
        return output

    def _samples(self) -> torch.Tensor:
        """With a condition one row for each of several classes, or for the condition of each of several validation
        images; where that is a picture, it is on the left, and the image on the right."""
        net, rows, columns = self.net, ROWS, COLUMNS
        condition = shown = None
        if self.condition is not None:
            num_classes = net.conditions.num_classes
            if num_classes is not None:
                rows = min(rows, num_classes)
                condition = net.make_condition(torch.linspace(0, num_classes - 1, rows).long())
            else:
                rows = min(rows, len(self.images))
                chosen = torch.linspace(0, len(self.images) - 1, rows).long()
                condition, originals = self.condition[chosen], self.images[chosen]
                shown = net.conditions.look(condition, net.img_resolution)
                columns -= 0 if shown is None else 2
            condition = condition.repeat_interleave(columns, 0)
        seeds = list(range(rows * columns))
        if net.prior:
            sampler = prior.from_prior(samplers.uniforms(net.num_codes, seeds))
        else:
            sampler = samplers.given(samplers.uniform_codes(net.code_nodes, seeds).to(self.images.device))
        samples = self._averaged(sampler, len(seeds), condition).images
        if shown is None:
            return samples
        samples = samples.unflatten(0, (rows, columns))
        return torch.cat([shown[:, None], samples, originals[:, None]], 1).flatten(0, 1)
