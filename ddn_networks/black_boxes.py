"""Guides by a network or a function of the user's: classifiers, CLIP, features, any Python (Section 3.2, Fig. 2).

Legend: B images, K nodes, C channels, H x W pixels; m candidates seen at once; n pictures, classes or texts held.

A black box gets rendered candidates at the network's resolution, upsampled bilinearly from the smaller layers and
clamped to [-1, 1], at most ``max_candidates`` at a time, over images and nodes. It needs no gradient.
"""

import math
from collections.abc import Callable, Sequence

import torch

from ddn_networks import pixel_maps
from ddn_networks.candidates import Candidates
from ddn_networks.closed_forms import full_precision
from ddn_networks.guides import MAX_CANDIDATES, Guide, rendered

ImageFn = Callable[[torch.Tensor], torch.Tensor]
FeatureFn = Callable[[torch.Tensor], torch.Tensor | Sequence[torch.Tensor]]


def _black_box(
    name: str, score: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor], weight: float, max_candidates: int
) -> Guide:
    """A guide that scores (pictures [m, C, H, W] as they would be saved, rows [m], B) -> [m] at full size."""

    def distances(candidates: Candidates, layer: int) -> torch.Tensor:
        B = candidates.shape[0]
        return rendered(candidates, lambda images, rows: score(images.clamp(-1, 1), rows, B), max_candidates)

    return Guide(name, distances, weight, full_size=True)


def _by_features(
    name: str, feature_fn: FeatureFn, summary: ImageFn, target: torch.Tensor, weight: float, max_candidates: int
) -> Guide:
    target = pixel_maps.checked(target)
    made = {}  # the target's features at the network's resolution

    def features(images: torch.Tensor) -> list[torch.Tensor]:
        found = feature_fn(images)
        return [summary(x.float()) for x in ([found] if isinstance(found, torch.Tensor) else found)]

    def score(images: torch.Tensor, rows: torch.Tensor, batch: int) -> torch.Tensor:
        key = tuple(images.shape[1:])
        if key not in made:
            fitted = pixel_maps.to_channels(pixel_maps.fit(target, key[1:]), key[0]).to(images)
            made[key] = features(fitted.clamp(-1, 1))
        wanted = [pixel_maps.repeat(x, batch)[rows] for x in made[key]]
        pairs = zip(features(images), wanted, strict=True)
        return sum((x - y).square().flatten(1).mean(1) for x, y in pairs)

    return _black_box(name, score, weight, max_candidates)


def python(
    fn: Callable, weight: float = 1.0, numpy: bool = False, name: str = 'python', max_candidates: int = MAX_CANDIDATES
) -> Guide:
    """Any function of pictures: [m, C, H, W] float in [-1, 1] -> [m] scores, larger is better, tensors or not.

    ``numpy``: it takes NumPy arrays instead, uint8 [m, H, W, C].
    """

    def score(images: torch.Tensor, rows: torch.Tensor, batch: int) -> torch.Tensor:
        if numpy:
            images = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        scores = torch.as_tensor(fn(images))
        return -scores.to(torch.promote_types(scores.dtype, torch.float32))

    return _black_box(name, score, weight, max_candidates)


def classifier(
    fn: ImageFn, index: int | Sequence[int] | torch.Tensor, weight: float = 1.0, max_candidates: int = MAX_CANDIDATES
) -> Guide:
    """Class ``index`` (one, or n of them) by a classifier [m, C, H, W] in [-1, 1] -> logits [m, classes] (Eq. 5).

    The distance is the negative log odds of the class: it orders candidates as the probability does and does not
    saturate. Logarithms of probabilities are logits too.
    """
    index = torch.as_tensor(index).flatten()  # [n]

    def log_odds(images: torch.Tensor, rows: torch.Tensor, batch: int) -> torch.Tensor:
        logits = fn(images)  # [m, classes]
        logits = logits.to(torch.float32 if logits.device.type == 'mps' else torch.float64)  # MPS has no float64
        if logits.ndim != 2 or logits.shape[1] < 2 or not 0 <= index.min() <= index.max() < logits.shape[1]:
            raise ValueError(f'class {index.tolist()} is not in logits {list(logits.shape)}')
        chosen = pixel_maps.repeat(index, batch).to(logits.device)[rows][:, None]  # [m, 1]
        others = logits.scatter(1, chosen, -math.inf).logsumexp(1)
        return (others - logits.gather(1, chosen)[:, 0]).float()

    return _black_box('classifier', log_odds, weight, max_candidates)


def clip(
    encode_image: ImageFn,
    text_features: torch.Tensor,
    size: int | tuple[int, int] = 224,
    mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
    std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
    weight: float = 1.0,
    max_candidates: int = 64,
) -> Guide:
    """One minus the cosine of a picture's CLIP features and ``text_features`` [n, D] (Fig. 15; Radford et al. 2021).

    ``encode_image`` takes [m, 3, *size], pixels in [0, 1] normalised by ``mean`` and ``std``; candidates are resized to
    ``size``, the model's own, bilinearly.
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (mean, std))

    def score(images: torch.Tensor, rows: torch.Tensor, batch: int) -> torch.Tensor:
        images = (pixel_maps.fit(pixel_maps.to_channels(images[:, :3], 3), size) + 1) / 2
        found = encode_image((images - mean.to(images)) / std.to(images)).float()  # [m, D]
        text = pixel_maps.repeat(text_features, batch).to(found)[rows]
        return 1 - torch.cosine_similarity(found, text, dim=1)

    return _black_box('clip', score, weight, max_candidates)


def perceptual(
    feature_fn: FeatureFn, target: torch.Tensor, weight: float = 1.0, max_candidates: int = MAX_CANDIDATES
) -> Guide:
    """Mean squared error between features of the candidates and of ``target``, summed over the feature tensors.

    ``feature_fn`` takes [m, C, H, W] in [-1, 1] and gives [m, ...] or a list of such.
    """
    return _by_features('perceptual', feature_fn, lambda x: x, target, weight, max_candidates)


def style(
    feature_fn: FeatureFn, target: torch.Tensor, weight: float = 1.0, max_candidates: int = MAX_CANDIDATES
) -> Guide:
    """Mean squared error between Gram matrices of features [m, c, h, w] (Johnson et al. 2016): texture, not place."""

    def gram(x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2)
        with full_precision(x):
            return x @ x.mT / (x.shape[1] * x.shape[2])

    return _by_features('style', feature_fn, gram, target, weight, max_candidates)
