"""Similarity of reconstructions and originals: PSNR and SSIM."""

import torch
import torch.nn.functional as F

from torch_utils import misc

WINDOW, SIGMA = 11, 1.5  # of SSIM, Wang et al. 2004
K1, K2 = 0.01, 0.03


def psnr(a: torch.Tensor, b: torch.Tensor, peak: float = 255.0) -> torch.Tensor:
    """Peak signal-to-noise ratio [B] in dB, float64; images [B, C, H, W], range ``peak`` wide; inf where equal."""
    check(a, b)
    return misc.psnr((a.double() - b.double()).square().mean((1, 2, 3)), peak)


def ssim(a: torch.Tensor, b: torch.Tensor, peak: float = 255.0) -> torch.Tensor:
    """Structural similarity [B], float64, in [-1, 1], 1 where equal: Wang et al. 2004, as its authors compute it.

    Gaussian window 11x11 with deviation 1.5, only where it fits whole, covariances over n (not n - 1), mean over pixels
    and channels.

    Args:
        a, b: images [B, C, H, W], at least 11x11, whose range is ``peak`` wide.

    Raises:
        ValueError: shapes that differ, or a picture smaller than the window.
    """
    check(a, b)
    if min(a.shape[2:]) < WINDOW:
        raise ValueError(f'SSIM needs pictures of at least {WINDOW}x{WINDOW}, not {[*a.shape[2:]]}')
    at = torch.arange(WINDOW, dtype=torch.float64, device=a.device) - WINDOW // 2
    window = (-at.square() / (2 * SIGMA**2)).exp()
    window = window / window.sum()

    def blur(x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x.flatten(0, 1)[:, None], window.view(1, 1, -1, 1))
        return F.conv2d(x, window.view(1, 1, 1, -1)).unflatten(0, a.shape[:2])[:, :, 0]  # [B, C, H', W']

    a, b = a.double(), b.double()
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (light * structure).mean((1, 2, 3))


def check(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(f'wanted two batches of images of one shape [B, C, H, W], got {[*a.shape]} and {[*b.shape]}')
