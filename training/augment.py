"""Augmentations that do not leak: labels tell the network what was done to each image.

After Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (2022), Appendix F.2, Table 6;
the colours after Karras et al., "Training Generative Adversarial Networks with Limited Data" (2020), Appendix B.
All-zero labels mean an untouched image; generation uses those.

Two pure functions: ``draw`` makes a table of parameters, one row per image of the whole batch; ``apply`` does what the
rows say. Ranks and rounds of a step each take their rows of the same table, so that how a batch is cut changes nothing.
The table is on the CPU, and nothing waits for the device.

Legend: B images, C channels, H x W pixels, P columns of the table, D labels, T taps.
"""

import math

import torch
import torch.nn.functional as F

# The table: what one image gets. Angles in radians, 'bit' is 0 or 1, 'uniform' is within -1..1. Zeros change nothing.
COLUMNS = {
    'xflip': 'bit',
    'yflip': 'bit',
    'translate_int_x': 'uniform',
    'translate_int_y': 'uniform',
    'scale': 'normal',
    'rotate': 'angle',
    'aniso': 'normal',
    'aniso_angle': 'angle',
    'translate_x': 'normal',
    'translate_y': 'normal',
    'brightness': 'normal',
    'contrast': 'normal',
    'lumaflip': 'bit',
    'hue': 'angle',
    'saturation': 'normal',
}
P = len(COLUMNS)
BLIT, WARP, COLOR = slice(0, 4), slice(4, 10), slice(10, 15)

# Which columns an augmentation owns; one random number switches them all.
OWNED = {
    'xflip': (0,),
    'yflip': (1,),
    'translate_int': (2, 3),
    'scale': (4,),
    'rotate_frac': (5,),
    'aniso': (6, 7),
    'translate_frac': (8, 9),
    'brightness': (10,),
    'contrast': (11,),
    'lumaflip': (12,),
    'hue': (13,),
    'saturation': (14,),
}

# A symmetric low-pass filter of 12 taps, half of it, that is nearly orthogonal to its own shifts by two: raising the
# resolution with it and lowering it again is the identity to 0.0016 of the range, and mirror images stay mirror images.
# Found by least squares on those conditions and on the energy above 0.72 of the band.
HALF_FILTER = (-0.008116, 0.033880, -0.007909, -0.126116, 0.133548, 0.681819)
T = 2 * len(HALF_FILTER)
PAD = T // 4 + 2  # pixels around an image that the filter and the bilinear look-up can reach

LUMA = torch.ones(3, dtype=torch.float64) / math.sqrt(3)  # the grey axis of RGB


class AugmentPipe:
    """Draws and applies augmentations; calling it does both.

        pipe = AugmentPipe(p=0.12, xflip=1e8, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1)

    is EDM's for CIFAR-10 (p = 0.15 for faces), with 9 labels. An augmentation of strength s is given to an image with
    probability min(1, p s); with strength 0 it does not exist and has no label.

    Args:
        p: overall probability.
        xflip, yflip: mirror left-right, upside down (in half of the cases where it is given).
        translate_int: move by whole pixels, up to ``translate_int_max`` of the size.
        scale: zoom, log-normal with deviation ``scale_std`` octaves.
        rotate_frac: turn by any angle.
        aniso: stretch along any axis and shrink across it, log-normal with deviation ``aniso_std`` octaves.
        translate_frac: move, normal with deviation ``translate_frac_std`` of the size.
        brightness, contrast, lumaflip, hue, saturation: of the colour channels; values may leave [-1, 1].
    """

    def __init__(
        self,
        p: float = 1.0,
        xflip: float = 0,
        yflip: float = 0,
        translate_int: float = 0,
        scale: float = 0,
        rotate_frac: float = 0,
        aniso: float = 0,
        translate_frac: float = 0,
        brightness: float = 0,
        contrast: float = 0,
        lumaflip: float = 0,
        hue: float = 0,
        saturation: float = 0,
        translate_int_max: float = 0.125,
        scale_std: float = 0.2,
        aniso_std: float = 0.2,
        translate_frac_std: float = 0.125,
        brightness_std: float = 0.2,
        contrast_std: float = 0.5,
        saturation_std: float = 1.0,
    ):
        given = locals()
        self.strengths = {name: float(given[name]) for name in OWNED}
        if p < 0 or min(self.strengths.values()) < 0:
            raise ValueError(f'probability and strengths of augmentations are not negative: p={p}, {self.strengths}')
        self.p = float(p)
        self.translate_int_max = translate_int_max
        self.scale_std = scale_std
        self.aniso_std = aniso_std
        self.translate_frac_std = translate_frac_std
        self.brightness_std = brightness_std
        self.contrast_std = contrast_std
        self.saturation_std = saturation_std
        half = torch.tensor(HALF_FILTER, dtype=torch.float64)
        kernel = torch.cat([half, half.flip(0)])
        self.kernel = kernel / kernel.sum()  # [T]

    @property
    def label_dim(self) -> int:
        """D: the number of labels of an image."""
        return self.labels(torch.zeros(0, P), (1, 1)).shape[1]

    def draw(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """A table [B, P] float32 on the CPU, from a CPU generator. Row i does not depend on ``batch_size``."""
        chance, u = torch.rand(batch_size, 2, P, generator=generator, dtype=torch.float64).unbind(1)  # [B, P] each
        signed = 2 * u - 1
        drawn = {
            'bit': (u >= 0.5).double(),
            'uniform': signed,
            'normal': signed.clamp(-1 + 1e-12, 1 - 1e-12).erfinv() * math.sqrt(2),
            'angle': signed * math.pi,
        }
        table = torch.stack([drawn[kind][:, i] for i, kind in enumerate(COLUMNS.values())], 1)  # [B, P]
        for name, columns in OWNED.items():
            given = chance[:, columns[0]] < self.p * self.strengths[name]
            table[:, list(columns)] *= given[:, None]
        return table.float()

    @torch.no_grad()
    def apply(self, images: torch.Tensor, params: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Do to images [B, C, H, W] what the rows of ``params`` [B, P] say; C is 1, 3, or 4 with alpha last.

        Returns the new images, of the same shape and dtype, and labels [B, D] float32 on the device of the images. What
        is outside an image is its mirror image. An image whose row is zero comes back bit by bit.
        """
        B, C, H, W = images.shape
        if params.shape != (B, P):
            raise ValueError(f'{B} images need a table [{B}, {P}], not {list(params.shape)}')
        if C not in (1, 3, 4):
            raise ValueError(f'images have 1, 3 or 4 channels, not {C}')
        labels = self.labels(params, (H, W))
        table = params.double()
        if table[:, BLIT].any():
            images = blit(images, *self._blit_indices(table, (H, W)))
        rows = table[:, WARP].any(1).nonzero()[:, 0]
        if len(rows):
            index = rows.to(images.device, non_blocking=True)
            warped = warp(images[index], *self._warp_maps(table[rows], (H, W)), self.kernel)
            images = images.index_copy(0, index, warped)
        rows = table[:, COLOR].any(1).nonzero()[:, 0]
        if len(rows):
            index = rows.to(images.device, non_blocking=True)
            images = images.index_copy(0, index, recolor(images[index], *self._color_maps(table[rows])))
        return images, labels.to(images.device, non_blocking=True)

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """``draw`` and ``apply`` at once: images [B, C, H, W] -> the new images and their labels [B, D]."""
        return self.apply(images, self.draw(len(images), generator))

    def labels(self, params: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Labels of rows [B, P] for images of (H, W): [B, D] float32, zeros for an untouched image.

        Angles are given as (cos - 1, sin), so that nothing jumps where they wrap around.
        """
        t = params.double()
        most = [max(self.translate_int_max * n, 1e-8) for n in size[::-1]]
        labels = {
            'xflip': (t[:, 0],),
            'yflip': (t[:, 1],),
            'translate_int': [n / m for n, m in zip(self._whole_pixels(t, size), most, strict=True)],
            'scale': (t[:, 4],),
            'rotate_frac': (t[:, 5].cos() - 1, t[:, 5].sin()),
            'aniso': (t[:, 6] * t[:, 7].cos(), t[:, 6] * t[:, 7].sin()),
            'translate_frac': (t[:, 8], t[:, 9]),
            'brightness': (t[:, 10],),
            'contrast': (t[:, 11],),
            'lumaflip': (t[:, 12],),
            'hue': (t[:, 13].cos() - 1, t[:, 13].sin()),
            'saturation': (t[:, 14],),
        }
        columns = [column for name in OWNED if self.strengths[name] > 0 for column in labels[name]]
        return torch.stack(columns, 1).float() if columns else params.new_zeros(len(params), 0).float()  # [B, D]

    # From a row of the table to what is done with pixels, on the CPU in float64.

    def _whole_pixels(self, t: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """How far an image moves right and down, [B] each."""
        H, W = size
        return (t[:, 2] * self.translate_int_max * W).round(), (t[:, 3] * self.translate_int_max * H).round()

    def _blit_indices(self, t: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Which column [B, W] and which row [B, H] each pixel comes from: flips first, then whole steps."""
        indices = []
        for n, flip, moved in zip(size[::-1], t[:, :2].unbind(1), self._whole_pixels(t, size), strict=True):
            index = torch.arange(n) - moved.long()[:, None]
            index = index.remainder(2 * n)
            index = torch.minimum(index, 2 * n - 1 - index)  # mirrored
            indices.append(torch.where(flip[:, None] > 0, n - 1 - index, index))
        return indices[0], indices[1]

    def _warp_maps(self, t: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The inverse of scaling, then rotation, then stretching [B, 2, 2], and the move after them [B, 2], in pixels.

        Vectors are (x right, y down) from the centre of the image; a positive angle turns counterclockwise.
        """
        unscale = torch.exp2(-self.scale_std * t[:, 4])[:, None, None]
        stretch = torch.exp2(self.aniso_std * t[:, 6])
        axis = rotation(t[:, 7])
        unstretch = axis @ torch.diag_embed(torch.stack([1 / stretch, stretch], 1)) @ axis.mT
        H, W = size
        move = t[:, 8:10] * self.translate_frac_std * torch.tensor([W, H])
        return unscale * rotation(-t[:, 5]) @ unstretch, move

    def _color_maps(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Brightness, contrast, luma flip, hue, saturation, in this order: matrix [B, 3, 3] and offset [B, 3]."""
        brightness, contrast, lumaflip, hue, saturation = t[:, COLOR, None, None].unbind(1)  # [B, 1, 1] each
        eye, grey = torch.eye(3, dtype=t.dtype), LUMA.outer(LUMA)
        x, y, z = LUMA.tolist()
        cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=t.dtype)
        turn = hue.cos() * eye + hue.sin() * cross + (1 - hue.cos()) * grey
        saturate = grey + (eye - grey) * torch.exp2(self.saturation_std * saturation)
        matrix = torch.exp2(self.contrast_std * contrast) * saturate @ turn @ (eye - 2 * lumaflip * grey)
        return matrix, (matrix * self.brightness_std * brightness).sum(2)


def rotation(angle: torch.Tensor) -> torch.Tensor:
    """[B] -> [B, 2, 2]: turns (x right, y down) counterclockwise."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, sin, -sin, cos], 1).unflatten(1, (2, 2))


def blit(images: torch.Tensor, columns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Copies of pixels: out[b, c, i, j] = images[b, c, rows[b, i], columns[b, j]]."""
    columns, rows = (i.to(images.device, non_blocking=True) for i in (columns, rows))
    images = images.gather(3, columns[:, None, None, :].expand_as(images))
    return images.gather(2, rows[:, None, :, None].expand_as(images))


def warp(images: torch.Tensor, inverse: torch.Tensor, move: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Resample images [B, C, H, W] at ``inverse`` [B, 2, 2] (p - ``move`` [B, 2]) for each p of the output.

    Bilinearly, but from twice the resolution to twice the resolution, with the low-pass ``kernel`` [T] (sum 1) on the
    way there and on the way back, so that the image neither blurs nor aliases.
    """
    H, W = images.shape[2:]
    dtype = torch.promote_types(images.dtype, torch.float32)
    kernel, inverse, move = (t.to(images.device, dtype, non_blocking=True) for t in (kernel, inverse, move))
    field = twice(mirror_pad(images.to(dtype), PAD), kernel)  # [B, C, 2H + 4 PAD + T - 2, ...]
    x, y = (torch.arange(2 * n - 2 + T, device=images.device, dtype=dtype) / 2 - T / 4 + 0.25 for n in (W, H))
    x, y = x - (W - 1) / 2 - move[:, 0, None], y - (H - 1) / 2 - move[:, 1, None]  # from the centre: [B, X], [B, Y]
    source = inverse[:, None, None, :, 0] * x[:, None, :, None] + inverse[:, None, None, :, 1] * y[:, :, None, None]
    source = torch.stack([_to_grid(source[..., i], n, field.shape[3 - i]) for i, n in enumerate((W, H))], 3)
    field = F.grid_sample(field, source, mode='bilinear', padding_mode='border', align_corners=False)  # [B, C, Y, X]
    return halve(field, kernel).to(images.dtype)


def _to_grid(source: torch.Tensor, n: int, field_n: int) -> torch.Tensor:
    """Pixels from the centre of n pixels, as where ``grid_sample`` finds them, mirrored, in a field of ``field_n``."""
    edge = (source + n / 2).remainder(2 * n)  # from the edge of the image
    edge = torch.minimum(edge, 2 * n - edge)
    index = 2 * edge - 0.5 + 2 * PAD + T / 2 - 1
    return (2 * index + 1) / field_n - 1


def mirror_pad(images: torch.Tensor, pad: int) -> torch.Tensor:
    """``pad`` pixels on every side, mirrored at the edge (which is repeated), again and again for small images."""
    for dim in (2, 3):
        n = images.shape[dim]
        index = torch.arange(-pad, n + pad, device=images.device).remainder(2 * n)
        images = images.index_select(dim, torch.minimum(index, 2 * n - 1 - index))
    return images


def twice(images: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, C, 2H - 2 + T, 2W - 2 + T]: zeros between the pixels, then the kernel, both ways."""
    planes = images.flatten(0, 1)[:, None]  # [B C, 1, H, W]
    planes = F.conv_transpose2d(planes, 2 * kernel[None, None, :, None], stride=(2, 1))
    planes = F.conv_transpose2d(planes, 2 * kernel[None, None, None, :], stride=(1, 2))
    return planes[:, 0].unflatten(0, images.shape[:2])


def halve(images: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """[B, C, 2H - 2 + T, 2W - 2 + T] -> [B, C, H, W]: the kernel, then every other pixel, both ways."""
    planes = images.flatten(0, 1)[:, None]
    planes = F.conv2d(planes, kernel[None, None, :, None], stride=(2, 1))
    planes = F.conv2d(planes, kernel[None, None, None, :], stride=(1, 2))
    return planes[:, 0].unflatten(0, images.shape[:2])


def recolor(images: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Colours c of images [B, C, H, W] become matrix [B, 3, 3] c + offset [B, 3]; grey is R = G = B, alpha stays."""
    dtype = torch.promote_types(images.dtype, torch.float32)
    if images.shape[1] == 1:
        matrix, offset = matrix.sum((1, 2))[:, None, None] / 3, offset.mean(1, keepdim=True)
    matrix, offset = (t.to(images.device, dtype, non_blocking=True) for t in (matrix, offset))
    color, alpha = images[:, :3], images[:, 3:]
    color = torch.baddbmm(offset[:, :, None], matrix, color.to(dtype).flatten(2)).view(color.shape)
    return torch.cat([color.to(images.dtype), alpha], 1)
