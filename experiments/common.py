"""What the experiments share: pictures of an archive as a network takes them, records, reference statistics."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from ddn_networks import Network, pixel_maps
from dnnlib.archives import ImageArchive
from dnnlib.images import to_float, to_uint8
from dnnlib.labels import read_labels
from dnnlib.readers import printable, read_json
from metrics import evaluate
from metrics.detectors import Detector
from metrics.image_sets import Files
from metrics.reference import FeatureCollector, Statistics, load_statistics, save_statistics
from torch_utils import distributed as dist

PORTRAITS = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'assets', 'faces')

PORTRAITS_OPTION = click.option(
    '--portraits', 'portrait_folder', metavar='ZIP|DIR', default=PORTRAITS, show_default='assets/faces',
    help='Faces of the sheets, fitted to the network',
)  # fmt: skip


def pictures(path: str, net: Network, chosen: Sequence[int] | None = None) -> torch.Tensor:
    """[N, C, H, W] in [-1, 1] of the chosen images (None: all) of a zip or folder of images of the network's shape.

    Raises ValueError where there are too few, or one has another shape.
    """
    archive = ImageArchive(path)
    chosen = range(len(archive)) if chosen is None else chosen
    if max(chosen) >= len(archive):
        raise ValueError(f'{path} holds {len(archive)} images, {max(chosen) + 1} are needed')
    return to_float(torch.from_numpy(archive.images(chosen, (net.img_channels, *net.img_resolution))))


def spread(path: str, num: int) -> list[int]:
    """``num`` places evenly over an archive: where it is in the order of its classes, as many of each class.

    Raises ValueError where it holds fewer.
    """
    held = len(ImageArchive(path))
    if num > held:
        raise ValueError(f'{path} holds {held} images, {num} are needed')
    return [i * held // num for i in range(num)]


def class_labels(path: str, chosen: Sequence[int]) -> torch.Tensor:
    """[N] int64: classes of the chosen images of an archive. Raises ValueError where it has no class labels."""
    labels = read_labels(ImageArchive(path))
    if labels is None or labels.values.ndim != 1:
        raise ValueError(f'{path} has no class labels')
    return torch.from_numpy(labels.values)[list(chosen)]


def portraits(path: str, net: Network) -> torch.Tensor:
    """[n, C, H, W] of all pictures of a folder, fitted to the network: for sheets, which show only what may be
    published."""
    archive = ImageArchive(path)
    images = [to_float(torch.from_numpy(archive.image(i)))[None] for i in range(len(archive))]
    fitted = [pixel_maps.to_channels(pixel_maps.fit(x, net.img_resolution), net.img_channels) for x in images]
    return torch.cat(fitted)


def as_saved(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1], rounded to 8 bits as a PNG would hold them."""
    return to_float(to_uint8(images))


def trained_on(net: Network) -> str:
    """The metrics that the finisher of a network was trained on."""
    if net.finisher is None:
        return ''
    made = net.snapshot_meta.get('finisher')  # see cli.finisher_fits
    return 'not known' if made is None else 'LPIPS (AlexNet)' if made['lpips'] else ''


def on_rank_0(make: Callable[[], Any]) -> Any:
    """What ``make`` returns on rank 0, on all ranks; it runs there only."""
    return dist.all_gather_object(make() if dist.get_rank() == 0 else None)[0]


def reference(
    data: str, detector: Detector, folder: Path, num: int | None = None, keep: int = evaluate.KEEP
) -> Statistics:
    """Statistics of the features of training images (``num`` of them), kept in ``folder`` and computed once for each
    zip and detector; of a folder of images, whose files may change, each time. All ranks call it. ``keep``: see
    ``evaluate.statistics``."""
    archive = ImageArchive(data)
    of = f'{archive.digest()[:12]}-{detector.digest[:12]}-{detector.precision}-{num or "all"}'
    path = folder / f'reference-{of}{"" if keep else "-moments"}.npz'
    if archive.is_zip and on_rank_0(path.is_file):
        return load_statistics(path)
    made = evaluate.statistics(Files(data, num), detector, keep=keep, title='training images')
    if dist.get_rank() == 0:
        save_statistics(path, made._replace(meta={'detector': detector.describe()}))
    return made


def features_of(images: torch.Tensor, detector: Detector, keep: int = 0, batch: int = 64) -> Statistics:
    """Statistics of the features of images [N, C, H, W] in [-1, 1], with the features of ``keep`` of them."""
    collector = FeatureCollector(detector.dim, len(images), keep)
    for part in torch.arange(len(images)).split(batch):
        collector.add_(detector.features(images[part]), part.tolist())
    return collector.finish()


def read_record(path: str | os.PathLike, *keys: str) -> dict[str, Any]:
    """The dict that a JSON file holds. Raises ValueError where it is damaged or lacks one of the keys."""
    record = read_json(path)
    if not isinstance(record, dict) or not record.keys() >= set(keys):
        raise ValueError(f'{printable(path)} does not hold {", ".join(keys)}')
    return record
