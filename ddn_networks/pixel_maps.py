"""Maps of pictures that guides and conditions use: sizes, channels, blurs, edges.

Legend: B images, C channels, H x W pixels, n pictures that a guide holds. All but ``sobel`` and ``soft_edges`` are
linear: a layer's candidates stay an affine family under them (see ``Candidates``), and guides need not render K images.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ddn_networks.candidates import Candidates, area_resize
from ddn_networks.closed_forms import full_precision

LUMA = (0.299, 0.587, 0.114)  # Rec. 601, as image files are converted to grey


def fit(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[B, C, H, W] at ``size``: area-resized along a side that shrinks, bilinear along one that grows."""
    smaller = tuple(min(a, b) for a, b in zip(images.shape[2:], size, strict=True))
    images = area_resize(images, smaller)
    return images if smaller == tuple(size) else upsample(images, size)


def upsample(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[B, C, H, W] at ``size``, bilinear, half-pixel centres."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode='bilinear', align_corners=False)


def enlarge(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[B, C, H, W] at ``size``, bicubic, half-pixel centres: smoother than ``upsample``, and may overshoot."""
    return F.interpolate(images, size=size, mode='bicubic', align_corners=False)


def box(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[B, C, H, W] down to ``size``, which need not divide it: each pixel the mean over exactly the area it covers."""
    if all(a % b == 0 for a, b in zip(images.shape[2:], size, strict=True)):
        return area_resize(images, size)
    rows, columns = (box_matrix(a, b).to(images) for a, b in zip(images.shape[2:], size, strict=True))
    with full_precision(images):
        return rows @ images @ columns.mT


def box_matrix(length: int, parts: int) -> torch.Tensor:
    """[parts, length] float64, rows that average ``length`` pixels over ``parts`` equal intervals."""
    edges = torch.arange(parts + 1, dtype=torch.float64) * (length / parts)
    pixel = torch.arange(length, dtype=torch.float64)
    covered = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    return covered.clamp(min=0) * (parts / length)


def gaussian_blur(images: torch.Tensor, sigma: tuple[float, float]) -> torch.Tensor:
    """[B, C, H, W] blurred by a Gaussian of (vertical, horizontal) deviation in pixels; borders are repeated."""
    rows, columns = (gaussian_matrix(n, s).to(images) for n, s in zip(images.shape[2:], sigma, strict=True))
    with full_precision(images):
        return rows @ images @ columns.mT


def gaussian_matrix(length: int, sigma: float) -> torch.Tensor:
    """[length, length] float64, rows that sum to 1; the kernel reaches 4 deviations, its part outside counts for the
    border."""
    if sigma < 1e-3:
        return torch.eye(length, dtype=torch.float64)
    reach = int(4 * sigma) + 1
    offsets = torch.arange(-reach, reach + 1)
    kernel = (-0.5 * (offsets.double() / sigma).square()).exp()
    at = (torch.arange(length)[:, None] + offsets).clamp(0, length - 1)  # [length, 2 reach + 1]
    matrix = torch.zeros(length, length, dtype=torch.float64)
    return matrix.scatter_add_(1, at, (kernel / kernel.sum()).expand(length, -1))


def grey_matrix(channels: int) -> torch.Tensor:
    """[1, C] that makes one grey channel of C = 1 (itself), 3 or 4 (Rec. 601 luma of the colours; alpha is ignored)."""
    return torch.tensor([{1: (1.0,), 3: LUMA, 4: (*LUMA, 0.0)}[channels]])


def to_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """[B, C, H, W] with another number of channels: RGB to grey by luma, grey to RGB by repeating, RGBA made opaque.

    Raises ValueError where information of an unknown meaning would be lost (RGBA to fewer, or an unusual number).
    """
    C = images.shape[1]
    if C == channels:
        return images
    if C not in (1, 3) or channels not in (1, 3, 4):
        raise ValueError(f'a picture of {C} channels does not convert to the {channels} of the network')
    if channels == 1:
        with full_precision(images):
            return torch.einsum('dc,bchw->bdhw', grey_matrix(C).to(images), images)
    images = images.expand(-1, 3, -1, -1)
    return images if channels == 3 else F.pad(images, (0, 0, 0, 0, 0, 1), value=1.0)


def sobel(grey: torch.Tensor) -> torch.Tensor:
    """[B, 1, H, W] -> the same shape: the magnitude of the Sobel gradient; borders are repeated."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).to(grey)
    padded = F.pad(grey, (1, 1, 1, 1), mode='replicate')
    with full_precision(grey):
        gradient = F.conv2d(padded, torch.stack([kernel, kernel.t()])[:, None])  # [B, 2, H, W]
    return gradient.norm(dim=1, keepdim=True)


def soft_edges(grey: torch.Tensor, threshold: float, softness: float) -> torch.Tensor:
    """[B, 1, H, W] in [-1, 1] -> the same shape: 1 where the Sobel magnitude is well above ``threshold``, -1 below."""
    return torch.tanh((sobel(grey) - threshold) / (2 * softness))


def checked(pictures: torch.Tensor) -> torch.Tensor:
    """``pictures`` as [n, C, H, W] float. Raises ValueError for anything else."""
    pictures = torch.as_tensor(pictures)
    if pictures.ndim != 4 or not pictures.is_floating_point() or not pictures.numel():
        raise ValueError(
            f'a guide holds pictures [n, C, H, W], float in [-1, 1], not {list(pictures.shape)} {pictures.dtype}'
        )
    if not torch.isfinite(pictures).all():
        raise ValueError('the pictures of a guide hold NaN or infinite values')
    return pictures.detach()


def repeat(rows: torch.Tensor, batch: int) -> torch.Tensor:
    """n rows for a batch of n m: each serves m consecutive images."""
    if not len(rows) or batch % len(rows):
        raise ValueError(f'its {len(rows)} pictures or classes do not go evenly into a batch of {batch}')
    return rows.expand(batch, *rows.shape[1:]) if len(rows) == 1 else rows.repeat_interleave(batch // len(rows), 0)


def like(pictures: torch.Tensor, candidates: Candidates, channels: int | None = None) -> torch.Tensor:
    """n pictures with the device, dtype, batch and (or so many) channels of the candidates: [B, C, H, W]."""
    pictures = pictures.to(candidates.device, candidates.dtype)
    return repeat(to_channels(pictures, channels or candidates.shape[1]), candidates.shape[0])


def held(pictures: torch.Tensor) -> Callable[..., torch.Tensor]:
    """A function of candidates (and a number of channels) that gives ``pictures`` fitted to them, each size made
    once."""
    pictures = checked(pictures)
    made = {}

    def at(candidates: Candidates, channels: int | None = None) -> torch.Tensor:
        size = tuple(candidates.shape[2:])
        if size not in made:
            made[size] = fit(pictures, size)
        return like(made[size], candidates, channels)

    return at
