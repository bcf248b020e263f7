"""Evaluate samples and reconstructions: what fid.py does, as functions.

    from metrics import evaluate
    from metrics.detectors import load_detector
    from metrics.image_sets import Files, Samples

    detector = load_detector('lenet')
    real = evaluate.statistics(Files('train.zip'), detector)
    numbers, notes = evaluate.compare(real, evaluate.statistics(Samples(net, 5000), detector))

Every function works on one rank or on several, which share the images, and returns the same on each. Numbers have names
that include the sample count (FID-5k); notes are sentences for the reader of the numbers.
"""

from collections.abc import Callable, Sequence

import torch

from ddn_networks import Network
from dnnlib.images import to_float
from metrics import distances
from metrics.detectors import Detector, load_lpips
from metrics.image_sets import Files, ImageSet, rounded, shares
from metrics.lpips import LPIPS, MIN_SIZE
from metrics.reconstruction import WINDOW, psnr, ssim
from metrics.reference import FeatureCollector, Statistics, compare, short_number
from torch_utils import distributed as dist

KEEP = 10_000  # features kept whole, for KID, precision and recall

Scores = dict[str, float | None]  # None: it cannot be computed, and a note says why

__all__ = ['KEEP', 'compare', 'find_lpips', 'neighbours', 'reconstruction', 'require_same_detector', 'statistics']


def statistics(
    source: ImageSet, detector: Detector, batch: int = 64, keep: int = KEEP, title: str = 'features'
) -> Statistics:
    """Statistics of the features of a source's images.

    Args:
        batch: images at a time on each rank.
        keep: number of images whose features are kept whole.
        title: of the progress bar.
    """
    collector = FeatureCollector(detector.dim, source.num, keep)
    for positions, images in shares(source, batch, title):
        collector.add_(detector.features(to_float(images)), positions)
    return collector.finish(dist.all_reduce_, dist.all_gather_object)


def require_same_detector(reference: Statistics, name: str, detector: Detector) -> list[str]:
    """Notes on a reference that was made differently. Raises ValueError where it is of another detector."""
    if len(reference.mu) != detector.dim:
        raise ValueError(f'{name} holds {len(reference.mu)} features, the detector {detector.name} has {detector.dim}')
    made = reference.meta.get('detector') or {}
    if made and made.get('digest') != detector.digest:
        raise ValueError(f'{name} was made with another detector ({made.get("path")}) than {detector.path}')
    if made and made.get('precision') != detector.precision:
        return [f'the reference was made in {made.get("precision")}, this in {detector.precision}']
    return [] if made else [f'{name} does not say how it was made: assuming the detector {detector.name}']


def find_lpips(sources: Sequence[ImageSet], device: torch.device | str = 'cpu') -> tuple[LPIPS | None, list[str]]:
    """(LPIPS, []) for sources whose images are to be compared, or (None, [the reason why there is none])."""
    sizes = sorted({f'{source.resolution[1]}x{source.resolution[0]}' for source in sources})
    if len(sizes) > 1:
        return None, [f'no LPIPS: it compares pictures of one size, and these are {" and ".join(sizes)}']
    if min(sources[0].resolution) < MIN_SIZE:
        return None, [f'no LPIPS: it needs pictures of at least {MIN_SIZE}x{MIN_SIZE}']
    try:
        return load_lpips(device), []
    except (ValueError, OSError) as error:
        return None, [f'no LPIPS: {error}']


def reconstruction(
    net: Network,
    source: Files,
    detector: Detector,
    lpips: LPIPS | None = None,
    batch: int = 64,
    title: str = '',
    beam: int = 1,
    refine: int = 0,
) -> tuple[Scores, list[str]]:
    """(numbers, notes) of images against their reconstructions in 8 bits: rFID and the other numbers of ``compare``,
    PSNR, SSIM, LPIPS, bits per pixel. ``beam``, ``refine``: see ``Network.reconstruct``."""
    source.require_shape(net)
    collectors = [FeatureCollector(detector.dim, source.num, KEEP) for _ in range(2)]
    sums = torch.zeros(3, dtype=torch.float64)
    height, width = source.resolution
    big_enough = min(height, width) >= WINDOW
    for positions, images in shares(source, batch, title):
        again = rounded(net.reconstruct(to_float(images), beam=beam, refine=refine).images, 'reconstructions')
        for collector, pictures in zip(collectors, (images, again), strict=True):
            collector.add_(detector.features(to_float(pictures)), positions)
        sums[0] += psnr(images, again).sum()
        if big_enough:
            sums[1] += ssim(images, again).sum()
        if lpips is not None:
            device = lpips.lin0.device
            sums[2] += lpips(to_float(images).to(device), to_float(again).to(device)).double().sum().cpu()
    dist.all_reduce_(sums)
    mean = (sums / source.num).tolist()
    real, fake = (collector.finish(dist.all_reduce_, dist.all_gather_object) for collector in collectors)
    numbers, notes = compare(real, fake, prefix='r')
    n = short_number(source.num)
    numbers |= {f'PSNR-{n} dB': mean[0], f'SSIM-{n}': mean[1] if big_enough else None}
    if not big_enough:
        notes.append(f'no SSIM: it needs pictures of at least {WINDOW}x{WINDOW}')
    if lpips is not None:
        numbers[f'LPIPS-{n}'] = mean[2]
    return numbers | {'bits per pixel': net.num_bits / (height * width)}, notes


def neighbours(
    samples: ImageSet,
    gallery: ImageSet,
    held_out: ImageSet | None,
    detector: Detector,
    lpips: LPIPS | None = None,
    k: int = 6,
    batch: int = 64,
) -> tuple[Scores, dict[str, torch.Tensor]]:
    """How near samples come to the images of a gallery, against how near held-out images come.

    Returns:
        Numbers, and {measure: indices [samples, k] of the nearest images, nearest first}, by LPIPS (where given) and by
        the detector.
    """
    embeddings: dict[str, Callable] = {detector.name: detector.features}
    if lpips is not None:
        embeddings = {'LPIPS': lambda images: lpips.embed(images.to(lpips.lin0.device))} | embeddings
    sets = [samples] if held_out is None else [samples, held_out]
    numbers, found = {}, {}
    for name, embed in embeddings.items():
        near = nearest(sets, gallery, embed, k, batch, name)
        found[name] = near[0].indices
        # An LPIPS distance is the square of the embedding's.
        first = [n.distances[:, 0].square() if name == 'LPIPS' else n.distances[:, 0] for n in near]
        numbers[f'{name}: median distance of samples to the nearest training image'] = first[0].median().item()
        if held_out is not None:
            close = distances.closeness(*first)
            numbers[f'{name}: the same of held-out images'] = close.median_held_out
            numbers[f'{name}: share of samples closer than a held-out image (new: 0.5)'] = close.closer
            numbers[f'{name}: share of samples closer than 99 % of held-out images (new: 0.01)'] = close.copies
    return numbers, found


def nearest(
    sets: Sequence[ImageSet], gallery: ImageSet, embed: Callable, k: int, batch: int, title: str
) -> list[distances.Nearest]:
    """For each set the k nearest images of the gallery to each of its images, by Euclidean distance of embeddings."""
    searches = []
    for source in sets:
        parts = [(positions, embed(to_float(images)).cpu()) for positions, images in shares(source, batch, title)]
        parts = sorted((p for rank in dist.all_gather_object(parts) for p in rank), key=lambda part: part[0][0])
        searches.append(distances.Nearest(torch.cat([x for _, x in parts]), k))
    shown: list[int] = []
    waiting: list[torch.Tensor] = []  # each search is a pass over all queries, so show many images at a time

    def show() -> None:
        for search in searches if waiting else []:
            search.add_(torch.cat(waiting))
        waiting.clear()

    for positions, images in shares(gallery, batch, f'{title} of the training images'):
        waiting.append(embed(to_float(images)).cpu())
        shown += positions
        if sum(map(torch.numel, waiting)) * 4 > distances.TABLE_BYTES:
            show()
    show()
    places = torch.tensor(shown + [-1])  # -1 stays -1
    for search in searches:
        parts = dist.all_gather_object((search.distances, places[search.indices]))
        every, indices = (torch.cat(x, 1) for x in zip(*parts, strict=True))
        order = every.argsort(dim=1, stable=True)[:, :k]
        search.distances, search.indices = every.gather(1, order), indices.gather(1, order)
    return searches
