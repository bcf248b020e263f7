"""The augment pipe against slow versions that treat one image, one pixel, at a time."""

import math

import pytest
import torch

from training import augment
from training.augment import COLUMNS, AugmentPipe, P

EDM = {'xflip': 1e8, 'yflip': 1, 'scale': 1, 'rotate_frac': 1, 'aniso': 1, 'translate_frac': 1}
COLORS = {'brightness': 1, 'contrast': 1, 'lumaflip': 1, 'hue': 1, 'saturation': 1}
ALL = {**EDM, 'translate_int': 1, **COLORS}
COLUMN = {name: i for i, name in enumerate(COLUMNS)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(*shape, generator=generator(1), dtype=dtype) * 2 - 1


def table(**columns: float) -> torch.Tensor:
    """A table of one row."""
    row = torch.zeros(1, P)
    for name, value in columns.items():
        row[0, COLUMN[name]] = value
    return row


def slow_mirror(i: float, n: int) -> float:
    """A position within the n pixels [-0.5, n - 0.5], folded at the edges by walking."""
    while not -0.5 <= i <= n - 0.5:
        i = -1 - i if i < -0.5 else 2 * n - 1 - i
    return i


def slow_warp(plane: list[list[float]], inverse: list[list[float]], move: list[float]) -> list[list[float]]:
    """The definition, for one channel: raise, look up, lower."""
    T = augment.T
    tap = [*augment.HALF_FILTER, *reversed(augment.HALF_FILTER)]
    tap = [t / sum(tap) for t in tap]
    H, W = len(plane), len(plane[0])

    def raised(j: int, i: int) -> float:
        """Row j and column i of twice the resolution; 0 is the left or upper half of pixel 0."""
        total = 0.0
        for y in range(-T, H + T):
            for x in range(-T, W + T):
                v, u = j - 2 * y + T // 2 - 1, i - 2 * x + T // 2 - 1
                if 0 <= v < T and 0 <= u < T:
                    total += 4 * tap[v] * tap[u] * plane[round(slow_mirror(y, H))][round(slow_mirror(x, W))]
        return total

    known: dict[tuple[int, int], float] = {}

    def at(y: float, x: float) -> float:
        """Bilinear, between the pixels of twice the resolution."""
        j, i = 2 * slow_mirror(y, H) + 0.5, 2 * slow_mirror(x, W) + 0.5
        j0, i0 = math.floor(j), math.floor(i)
        total = 0.0
        for b, wb in ((j0, j0 + 1 - j), (j0 + 1, j - j0)):
            for a, wa in ((i0, i0 + 1 - i), (i0 + 1, i - i0)):
                if (b, a) not in known:
                    known[b, a] = raised(b, a)
                total += wb * wa * known[b, a]
        return total

    def moved(j: int, i: int) -> float:
        x, y = (i + 0.5) / 2 - 0.5 - (W - 1) / 2 - move[0], (j + 0.5) / 2 - 0.5 - (H - 1) / 2 - move[1]
        return at(
            inverse[1][0] * x + inverse[1][1] * y + (H - 1) / 2, inverse[0][0] * x + inverse[0][1] * y + (W - 1) / 2
        )

    first, end_y, end_x = 1 - T // 2, 2 * H - 1 + T // 2, 2 * W - 1 + T // 2
    halves = [[moved(j, i) for i in range(first, end_x)] for j in range(first, end_y)]
    return [
        [sum(tap[v] * tap[u] * halves[2 * y + v][2 * x + u] for v in range(T) for u in range(T)) for x in range(W)]
        for y in range(H)
    ]


def slow_matrix(scale: float, angle: float, aniso: float, axis: float) -> list[list[float]]:
    """The inverse of: zoom, then turn, then stretch; found by solving, from what each does to a point."""

    def turned(x: float, y: float, a: float) -> tuple[float, float]:
        return x * math.cos(a) + y * math.sin(a), -x * math.sin(a) + y * math.cos(a)  # counterclockwise where y is down

    def forward(x: float, y: float) -> tuple[float, float]:
        x, y = x * 2**scale, y * 2**scale
        x, y = turned(x, y, angle)
        x, y = turned(x, y, -axis)
        return turned(x * 2**aniso, y / 2**aniso, axis)

    (a, c), (b, d) = forward(1, 0), forward(0, 1)
    det = a * d - b * c
    return [[d / det, -b / det], [-c / det, a / det]]


@pytest.mark.parametrize('size', [(6, 5), (3, 7), (1, 4)])
def test_warp_is_the_slow_warp(size):
    pipe = AugmentPipe(**EDM)
    images = noise(2, 1, *size, dtype=torch.float64)
    params = torch.cat([
        table(scale=1.3, rotate=0.7, aniso=-0.8, aniso_angle=2.0, translate_x=1.1, translate_y=-0.6),
        table(scale=-2.0, rotate=-2.5, aniso=1.5, aniso_angle=-1.0, translate_x=-9.0, translate_y=3.0),
    ])  # fmt: skip
    result, _ = pipe.apply(images, params)
    for image, row, new in zip(images, params.tolist(), result, strict=True):
        _, _, _, _, scale, angle, aniso, axis, x, y, *_ = row
        move = [x * 0.125 * size[1], y * 0.125 * size[0]]
        expected = slow_warp(image[0].tolist(), slow_matrix(0.2 * scale, angle, 0.2 * aniso, axis), move)
        torch.testing.assert_close(new[0], torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize('size', [(5, 8), (8, 8), (1, 1)])
def test_flips_and_whole_steps_copy_pixels(size):
    H, W = size
    pipe = AugmentPipe(xflip=1, yflip=1, translate_int=1, translate_int_max=0.9)
    params = pipe.draw(16, generator())
    images = noise(16, 3, H, W)
    result, labels = pipe.apply(images, params)
    moved = set()
    for image, row, new, label in zip(images, params.tolist(), result, labels.tolist(), strict=True):
        right, down = round(row[2] * 0.9 * W), round(row[3] * 0.9 * H)
        moved.add((right, down))
        image = image.flip(2) if row[0] else image
        image = image.flip(1) if row[1] else image
        for y in range(H):
            for x in range(W):
                source = image[:, round(slow_mirror(y - down, H)), round(slow_mirror(x - right, W))]
                assert torch.equal(new[:, y, x], source)
        assert label == pytest.approx([row[0], row[1], right / (0.9 * W), down / (0.9 * H)], abs=1e-6)
    assert size == (1, 1) or len(moved) > 5


def test_colors_are_the_slow_colors():
    pipe = AugmentPipe(**COLORS)
    params = pipe.draw(12, generator())
    assert (params[:, augment.COLOR] != 0).any(0).all()
    images = noise(12, 4, 3, 2, dtype=torch.float64)
    result, _ = pipe.apply(images, params)
    grey, _ = pipe.apply(images[:, :1], params)
    axis = [1 / math.sqrt(3)] * 3
    for image, row, new, new_grey in zip(images, params[:, augment.COLOR].tolist(), result, grey, strict=True):

        def slow(c, row=row):
            brightness, contrast, lumaflip, hue, saturation = row
            c = [(v + 0.2 * brightness) * 2 ** (0.5 * contrast) for v in c]
            luma = sum(a * v for a, v in zip(axis, c, strict=True))
            if lumaflip:
                c = [v - 2 * luma * a for a, v in zip(axis, c, strict=True)]
                luma = -luma
            chroma = [v - luma * a for a, v in zip(axis, c, strict=True)]
            across = [axis[1] * chroma[2] - axis[2] * chroma[1], axis[2] * chroma[0] - axis[0] * chroma[2],
                      axis[0] * chroma[1] - axis[1] * chroma[0]]  # fmt: skip
            chroma = [math.cos(hue) * u + math.sin(hue) * v for u, v in zip(chroma, across, strict=True)]
            return [luma * a + 2**saturation * u for a, u in zip(axis, chroma, strict=True)]

        for y in range(3):
            for x in range(2):
                assert new[:3, y, x].tolist() == pytest.approx(slow(image[:3, y, x].tolist()), abs=1e-9)
                assert new_grey[:, y, x].tolist() == pytest.approx([slow([image[0, y, x].item()] * 3)[0]], abs=1e-9)
    assert torch.equal(result[:, 3], images[:, 3])  # alpha


def test_mirror_images_and_quarter_turns():
    pipe = AugmentPipe(**EDM)
    images = noise(1, 3, 9, 9)
    flipped, labels = pipe.apply(images, table(xflip=1))
    assert torch.equal(flipped, images.flip(3)) and labels.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0, 0]]
    flipped, labels = pipe.apply(images, table(yflip=1))
    assert torch.equal(flipped, images.flip(2)) and labels.tolist() == [[0, 1, 0, 0, 0, 0, 0, 0, 0]]
    for k in (1, 2, -1):
        turned, labels = pipe.apply(images, table(rotate=k * math.pi / 2))
        torch.testing.assert_close(turned, torch.rot90(images, k, (2, 3)), atol=0.01, rtol=0)  # white noise, range 2
        told = [0, 0, 0, math.cos(k * math.pi / 2) - 1, math.sin(k * math.pi / 2), 0, 0, 0, 0]
        assert labels[0].tolist() == pytest.approx(told, abs=1e-6)


def test_directions():
    """Zooming in enlarges, translation goes right and down, aniso stretches along its axis (0: left-right)."""
    y, x = torch.meshgrid(torch.arange(21) - 10.0, torch.arange(31) - 15.0, indexing='ij')
    blob = torch.exp(-(x**2 + y**2) / 8)[None, None]  # width 2

    def spread(image):
        mass = image[0, 0] / image.sum()
        mx, my = (mass * x).sum(), (mass * y).sum()
        return [v.item() for v in (mx, my, (mass * (x - mx) ** 2).sum().sqrt(), (mass * (y - my) ** 2).sum().sqrt())]

    pipe = AugmentPipe(**EDM)
    assert spread(blob) == pytest.approx([0, 0, 2, 2], abs=0.01)
    assert spread(pipe.apply(blob, table(scale=2))[0]) == pytest.approx([0, 0, 2 * 2**0.4, 2 * 2**0.4], abs=0.05)
    assert spread(pipe.apply(blob, table(aniso=2))[0]) == pytest.approx([0, 0, 2 * 2**0.4, 2 / 2**0.4], abs=0.05)
    moved = pipe.apply(blob, table(translate_x=1, translate_y=-0.5))[0]
    assert spread(moved) == pytest.approx([31 / 8, -21 / 16, 2, 2], abs=0.05)


@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_inactive_is_bit_identical(channels, dtype):
    pipe = AugmentPipe(p=0.05, **{**ALL, 'xflip': 1})
    params = pipe.draw(24, generator())
    idle = (params == 0).all(1)
    assert 0 < idle.sum() < 24
    images = noise(24, channels, 7, 10).to(dtype)
    result, labels = pipe.apply(images, params)
    assert result.dtype == dtype and result.shape == images.shape and labels.dtype == torch.float32
    assert torch.equal(result[idle], images[idle])
    assert torch.equal((labels == 0).all(1), idle)
    changed = (result != images).flatten(1).any(1)
    if channels == 1:  # a change of hue or saturation alone leaves grey as it is
        assert not (changed & idle).any()
    else:
        assert torch.equal(changed, ~idle)
    assert result.isfinite().all()


def test_p_zero_changes_nothing():
    pipe = AugmentPipe(p=0, **ALL)
    images = noise(5, 3, 6, 6)
    result, labels = pipe(images, generator())
    assert torch.equal(result, images) and torch.equal(labels, torch.zeros(5, pipe.label_dim))


def test_no_augmentation_has_no_labels():
    pipe = AugmentPipe()
    images = noise(2, 3, 4, 4)
    result, labels = pipe(images, generator())
    assert pipe.label_dim == 0 and labels.shape == (2, 0) and torch.equal(result, images)


def test_label_dims():
    assert AugmentPipe(**EDM).label_dim == 9
    assert AugmentPipe(**ALL).label_dim == 9 + 2 + 6
    assert AugmentPipe(xflip=1).label_dim == 1


def test_a_cut_batch_gets_the_same():
    pipe = AugmentPipe(p=0.5, **ALL)
    images = noise(8, 3, 6, 9)
    params = pipe.draw(8, generator())
    assert torch.equal(pipe.draw(8, generator()), params) and not torch.equal(pipe.draw(8, generator(1)), params)
    assert torch.equal(pipe.draw(3, generator()), params[:3])
    whole, labels = pipe.apply(images, params)
    for rows in (slice(0, 1), slice(1, 5), slice(5, 8)):
        part, part_labels = pipe.apply(images[rows], params[rows])
        torch.testing.assert_close(part, whole[rows], atol=1e-6, rtol=0)
        assert torch.equal(part_labels, labels[rows])


def test_what_is_drawn():
    """Probabilities, ranges and moments over many rows; one chance for the columns of one augmentation."""
    N = 20000
    pipe = AugmentPipe(p=0.4, **ALL)
    params = pipe.draw(N, generator())
    for name, columns in augment.OWNED.items():
        given = params[:, list(columns)] != 0
        if name in ('xflip', 'yflip', 'lumaflip'):
            expected = 0.5 if name == 'xflip' else 0.2
        else:
            expected = 0.4
            assert torch.equal(given.any(1), given.all(1))
        assert given.any(1).double().mean().item() == pytest.approx(expected, abs=0.015)
    always = AugmentPipe(p=1, **ALL).draw(N, generator())
    for i, kind in enumerate(COLUMNS.values()):
        column = always[:, i].double()
        low, high, std = {
            'bit': (0, 1, 0.5),
            'uniform': (-1, 1, 1 / math.sqrt(3)),
            'normal': (-8, 8, 1),
            'angle': (-math.pi - 1e-6, math.pi + 1e-6, math.pi / math.sqrt(3)),
        }[kind]
        assert low <= column.min() and column.max() <= high
        assert column.mean().item() == pytest.approx(0.5 if kind == 'bit' else 0, abs=0.05)
        assert column.std().item() == pytest.approx(std, rel=0.03)
    together = torch.corrcoef(always.double().T) - torch.eye(P)
    assert together.abs().max() < 0.05


def test_values_stay_bounded():
    """Geometry mixes pixels with weights that nearly sum to one in magnitude; colours of a plain image are plain."""
    pipe = AugmentPipe(p=1, **EDM)
    result, labels = pipe(noise(64, 3, 16, 12), generator())
    assert result.abs().max() < 2 and labels.abs().max() < 8
    flat, _ = pipe(torch.full((16, 1, 8, 8), 0.5), generator())
    torch.testing.assert_close(flat, torch.full((16, 1, 8, 8), 0.5), atol=2e-3, rtol=0)


def test_errors_name_the_fix():
    pipe = AugmentPipe(**EDM)
    with pytest.raises(ValueError, match=r'need a table \[2, 15\]'):
        pipe.apply(noise(2, 3, 4, 4), table())
    with pytest.raises(ValueError, match='1, 3 or 4 channels, not 2'):
        pipe.apply(noise(1, 2, 4, 4), table())
    with pytest.raises(ValueError, match='not negative'):
        AugmentPipe(xflip=-1)


def test_the_filter():
    """Nearly orthogonal to its shifts by two, so that raising and lowering the resolution gives the image back."""
    kernel = AugmentPipe().kernel
    assert torch.equal(kernel, kernel.flip(0))
    for shift in range(augment.T // 2):
        overlap = 2 * (kernel[2 * shift :] * kernel[: augment.T - 2 * shift]).sum()
        assert overlap.item() == pytest.approx(float(shift == 0), abs=2e-3)
    images = noise(1, 2, 5, 6, dtype=torch.float64)
    raised = augment.twice(augment.mirror_pad(images, augment.PAD), kernel)
    cut = 2 * augment.PAD  # pixel 0 begins 2 PAD + T/2 - 1 further in, the kernel T/2 - 1 before it
    lowered = augment.halve(raised[:, :, cut:-cut, cut:-cut], kernel)
    torch.testing.assert_close(lowered, images, atol=0.01, rtol=0)
