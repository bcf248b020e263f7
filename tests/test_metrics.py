"""The numbers of `metrics/` against closed forms and slow, obvious oracles."""

import copy
import io
import math
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F

from metrics import distances, reconstruction, reference
from metrics.detectors import load_detector, load_lpips, weights_path
from metrics.inception import ConvBN, Inception, MixedA, MixedE, mean_pool, resize_tf1
from metrics.lenet import LeNet
from metrics.lpips import LPIPS, PooledAlexNet
from metrics.weights import load_, read_state, state_digest

GOLDEN = Path(__file__).parent / 'data' / 'inception_features.npz'


def rand(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def covariance(dim, rank, seed):
    a = rand(dim, rank, seed=seed)
    return (a @ a.T / rank).numpy()


def weights_or_skip(kind):
    """The path of a detector's weights; the test is skipped where this machine has none (it downloads nothing)."""
    import metrics.detectors as detectors

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(detectors, 'INCEPTION_URL', 'file-that-is-nowhere')
            return weights_path(kind)
    except OSError as error:
        pytest.skip(f'needs the weights of {kind}: {error}')


# ----------------------------------------------------------------------------------------------------------- moments


def test_moments_in_portions_equal_numpy_whole():
    x = rand(57, 5) + 1e4  # a mean that would eat the digits of a naive sum of squares
    moments = distances.Moments(5)
    for part in x.split([1, 20, 0, 7, 29]):
        moments.add_(part)
    assert moments.num == 57
    np.testing.assert_allclose(moments.mu, x.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.sigma, np.cov(x.numpy().T), atol=1e-10)


def test_moments_of_ranks_equal_one_rank():
    """`all_reduce_` with ranks that are threads: the third has seen nothing."""
    from threading import Barrier, Lock, Thread

    x = rand(40, 4)
    ranks = [distances.Moments(4).add_(part) for part in x.split([13, 27, 0])]
    barrier, lock, total = Barrier(3), Lock(), {}

    def all_reduce_for(rank):
        calls = iter(range(10))

        def all_reduce_(tensor):
            key = next(calls)
            with lock:
                total[key] = total.get(key, 0) + tensor.clone()
            barrier.wait()
            tensor.copy_(total[key])

        return lambda: ranks[rank].all_reduce_(all_reduce_)

    threads = [Thread(target=all_reduce_for(rank)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in ranks:
        assert rank.num == 40
        np.testing.assert_allclose(rank.mu, x.numpy().mean(0), atol=1e-14)
        np.testing.assert_allclose(rank.sigma, np.cov(x.numpy().T), atol=1e-14)


def test_moments_refuse_what_is_no_features():
    with pytest.raises(ValueError, match=r'\[N, 4\]'):
        distances.Moments(4).add_(torch.zeros(3, 5))
    with pytest.raises(ValueError, match='finite'):
        distances.Moments(2).add_(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match='at least 2'):
        _ = distances.Moments(2).add_(torch.zeros(1, 2)).sigma


# --------------------------------------------------------------------------------------------------------------- FID


def test_frechet_of_one_dimension():
    """N(0, 1) and N(3, 4): 3^2 + (1 - 2)^2."""
    assert distances.frechet_distance([0.0], [[1.0]], [3.0], [[4.0]]) == pytest.approx(10, abs=1e-12)


def test_frechet_of_commuting_covariances():
    q = torch.linalg.qr(rand(30, 30))[0]
    a, b = rand(30, seed=1).square(), rand(30, seed=2).square()
    a[20:], b[:5] = 0, 0  # each is singular, and not in the same directions
    s1, s2 = (q * a) @ q.T, (q * b) @ q.T
    expected = (a.sqrt() - b.sqrt()).square().sum().item()
    zero = torch.zeros(30)
    # Entries of q a q^T differ from their mirror images by rounding; the function takes that.
    assert distances.frechet_distance(zero, s1, zero, s2) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('ranks', [(200, 200), (20, 200), (20, 15)], ids=['full', 'one singular', 'both singular'])
def test_frechet_equals_sqrtm(ranks):
    dim = 48
    s1, s2 = (covariance(dim, rank, seed) for seed, rank in enumerate(ranks))
    mu1, mu2 = rand(2, dim, seed=9).numpy()
    # sqrtm needs a regular matrix, and is off by the root of what makes it so: 1e-13 costs it 1e-6.
    eps = 0 if min(ranks) > dim else 1e-13
    eye = np.eye(dim) * eps
    root = scipy.linalg.sqrtm((s1 + eye) @ (s2 + eye)).real
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(s1 + s2 - 2 * root)
    found = distances.frechet_distance(mu1, s1, mu2, s2)
    assert found == pytest.approx(expected, abs=1e-9 if eps == 0 else 5e-5)
    assert distances.frechet_distance(mu2, s2, mu1, s1) == pytest.approx(found, abs=1e-10)


def test_frechet_takes_no_root_of_rounding_errors():
    """[[1, 1], [1, 1 + eps]] has rank 1 but for rounding, and its Cholesky factor an entry of 1.5e-8."""
    one = np.array([[1, 1], [1, 1 + 2.3e-16]])
    other = np.array([[1.0, -1], [-1, 1]])
    assert distances.frechet_distance(np.zeros(2), one, np.zeros(2), other) == pytest.approx(4, abs=1e-12)


def test_frechet_of_itself_is_zero():
    for rank in (100, 7):
        s = covariance(20, rank, seed=rank)
        assert distances.frechet_distance(np.ones(20), s, np.ones(20), s) < 1e-12


def test_frechet_of_translated_samples():
    """Moving a sample changes nothing but the mean, also with fewer vectors than features."""
    x = rand(10, 30)
    a, b = distances.Moments(30).add_(x), distances.Moments(30).add_(x + 0.5)
    assert distances.frechet_distance(a.mu, a.sigma, b.mu, b.sigma) == pytest.approx(30 * 0.25, abs=1e-10)


def test_frechet_refuses():
    eye = np.eye(3)
    with pytest.raises(ValueError, match='of one D'):
        distances.frechet_distance(np.zeros(3), eye, np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match='finite'):
        distances.frechet_distance(np.zeros(3), eye * np.nan, np.zeros(3), eye)
    with pytest.raises(ValueError, match='symmetric'):
        distances.frechet_distance(np.zeros(3), np.triu(np.ones((3, 3))), np.zeros(3), eye)


# --------------------------------------------------------------------------------------------------------------- KID


def test_mmd_equals_double_loop():
    x, y = rand(6, 4), rand(5, 4, seed=1) + 0.3
    k = lambda a, b: (float(a @ b) / 4 + 1) ** 3  # noqa: E731
    xx = [k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    yy = [k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    xy = [k(a, b) for a in x for b in y]
    assert distances.polynomial_mmd(x, y) == pytest.approx(np.mean(xx) + np.mean(yy) - 2 * np.mean(xy), abs=1e-12)


@pytest.mark.parametrize('shift', [0, 1])
def test_kid_is_unbiased_and_its_error_is_true(shift):
    """Over many draws: without a difference the mean is 0, and the scatter is no more than the standard error says."""
    draws = [(rand(120, 3, seed=i), rand(120, 3, seed=1000 + i) + shift) for i in range(60)]
    found = [distances.kernel_distance(x, y, num_subsets=40, subset_size=20) for x, y in draws]
    means = np.array([kid.mean for kid in found])
    if shift == 0:
        assert abs(means.mean()) < 3 * means.std() / math.sqrt(60)
    ratio = means.std() / np.mean([kid.standard_error for kid in found])
    # Equal distributions scatter less than disjoint subsets of theirs suggest: the error is then on the safe side.
    assert (0.3 < ratio < 1.1) if shift == 0 else (0.7 < ratio < 1.4)


def test_kid_sees_a_difference_and_repeats():
    x, y = rand(200, 3), rand(200, 3, seed=1) + 1
    kid = distances.kernel_distance(x, y)
    assert kid.mean > 5 * kid.standard_error > 0
    assert kid.subset_size == 50
    assert kid == distances.kernel_distance(x, y)
    assert kid != distances.kernel_distance(x, y, seed=1)
    with pytest.raises(ValueError, match='at least 8'):
        distances.kernel_distance(x[:7], y)


# --------------------------------------------------------------------------------------------------------- neighbours


def table(x, y):
    return np.array([[math.dist(a, b) for b in y.tolist()] for a in x.tolist()])


def test_square_distances_in_pieces_keep_their_digits(monkeypatch):
    x, y = rand(7, 3, dtype=torch.float32) + 300, rand(5, 3, seed=1, dtype=torch.float32) + 300
    monkeypatch.setattr(distances, 'TABLE_BYTES', 2 * 5 * 4)  # two rows a piece
    pieces = list(distances.square_distances(x, y))
    assert [i for i, _ in pieces] == [0, 2, 4, 6]
    np.testing.assert_allclose(torch.cat([t for _, t in pieces]).sqrt(), table(x, y), rtol=2e-4)


def test_neighbour_radii_do_not_count_the_vector_itself():
    x = torch.tensor([[0.0], [1.0], [3.0], [3.0]])
    one, three = distances.neighbour_radii(x, 1, 3)
    assert one.tolist() == [1, 1, 0, 0]
    assert three.tolist() == [9, 4, 9, 9]
    with pytest.raises(ValueError, match='no 4 nearest'):
        distances.neighbour_radii(x, 4)


def test_nearest_in_portions_equals_sorting(monkeypatch):
    monkeypatch.setattr(distances, 'TABLE_BYTES', 100)
    queries, gallery = rand(6, 3), rand(31, 3, seed=1)
    search = distances.Nearest(queries, 4)
    for part in gallery.split([2, 1, 20, 8]):
        search.add_(part)
    full = table(queries, gallery)
    np.testing.assert_array_equal(search.indices, full.argsort(1)[:, :4])
    np.testing.assert_allclose(search.distances, np.sort(full, 1)[:, :4], rtol=1e-12)
    few = distances.Nearest(queries, 3).add_(gallery[:2])
    assert few.indices[:, 2].tolist() == [-1] * 6 and few.distances[:, 2].isinf().all()


def test_nearest_finds_an_exact_copy_at_distance_zero():
    gallery = rand(50, 8, dtype=torch.float32) + 1000
    search = distances.Nearest(gallery[[7, 3]], 1).add_(gallery)
    assert search.indices.tolist() == [[7], [3]] and search.distances.tolist() == [[0], [0]]


def test_closeness_counts_pairs():
    s, h = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([2.0, 3.0])
    close = distances.closeness(s, h)
    assert close.closer == pytest.approx((1 + 1 + 0.5 + 1 + 0 + 0) / 6)
    assert close.copies == pytest.approx(2 / 3)  # below 2.01
    assert distances.closeness(h, h).closer == 0.5
    assert distances.closeness(torch.zeros(4), h).closer == 1
    assert distances.closeness(torch.full([4], 7.0), h).closer == 0


def manifold_by_loops(real, fake, k, kd):
    radius = lambda x, k: [sorted(row)[k] for row in table(x, x).tolist()]  # [0] is the vector itself  # noqa: E731
    near, r3, r5, f3 = table(fake, real), radius(real, k), radius(real, kd), radius(fake, k)
    N, M = len(real), len(fake)
    precision = sum(any(near[j][i] <= r3[i] for i in range(N)) for j in range(M)) / M
    recall = sum(any(near[j][i] <= f3[j] for j in range(M)) for i in range(N)) / N
    density = sum(near[j][i] <= r5[i] for j in range(M) for i in range(N)) / (kd * M)
    coverage = sum(any(near[j][i] <= r5[i] for j in range(M)) for i in range(N)) / N
    return precision, recall, density, coverage


@pytest.mark.parametrize('shift', [0.0, 1.2])
def test_manifold_metrics_equal_loops(shift, monkeypatch):
    monkeypatch.setattr(distances, 'TABLE_BYTES', 1000)
    real, fake = rand(40, 2), rand(30, 2, seed=1) * 0.7 + shift
    found = distances.manifold_metrics(real, fake, 3, 5)
    assert found == pytest.approx(manifold_by_loops(real, fake, 3, 5), abs=1e-12)
    assert len({round(x, 6) for x in found}) == 4  # four numbers that could be mixed up


def test_manifold_metrics_at_the_edges():
    x = rand(30, 4)
    same = distances.manifold_metrics(x, x)
    assert same[:2] == (1, 1) and same.coverage == 1
    assert distances.manifold_metrics(x, x + 100) == (0, 0, 0, 0)
    collapsed = distances.manifold_metrics(x, x[:1].repeat(30, 1))  # one real image, repeated
    assert collapsed.precision == 1 and collapsed.recall <= 2 / 30 and collapsed.coverage < 0.5
    with pytest.raises(ValueError, match='no 5 nearest'):
        distances.manifold_metrics(x[:5], x)


# ---------------------------------------------------------------------------------------------------------- Inception


@pytest.mark.parametrize('shape', [(5, 7), (13, 4), (299, 8), (310, 401)])
def test_resize_equals_tensorflow_1_pixel_by_pixel(shape):
    H, W = shape
    image = rand(1, 2, H, W, dtype=torch.float32)
    found = resize_tf1(image)[0].double().numpy()
    assert found.shape == (2, 299, 299)
    scale = [np.float32(n / 299) for n in (H, W)]
    for i, j in [(0, 0), (298, 298), (0, 298), (150, 7), (31, 222), (297, 1)]:
        y, x = np.float32(i) * scale[0], np.float32(j) * scale[1]
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, H - 1), min(x0 + 1, W - 1)
        dy, dx = float(y) - y0, float(x) - x0
        p = image[0].double().numpy()
        above = p[:, y0, x0] * (1 - dx) + p[:, y0, x1] * dx
        below = p[:, y1, x0] * (1 - dx) + p[:, y1, x1] * dx
        np.testing.assert_allclose(found[:, i, j], above * (1 - dy) + below * dy, atol=1e-5)


def test_mean_pool_does_not_count_its_padding():
    x = rand(1, 1, 4, 5)
    for i, j in [(0, 0), (0, 2), (3, 4), (2, 2)]:
        window = x[0, 0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        assert mean_pool(x)[0, 0, i, j].item() == pytest.approx(window.mean().item())


def randomise_(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                spread = 0.1 if name.endswith('conv.weight') else 0.3
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)
                if name.endswith(('running_var', 'bn.weight')):
                    tensor.abs_().add_(0.5)
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize(
    'block, num_in',
    [(lambda: MixedA(24, 32), 24), (lambda: MixedE(16, False), 16), (lambda: MixedE(16, True), 16)],
    ids=['A', 'E, mean pool', 'E, max pool'],
)
def test_folding_and_joining_change_nothing(block, num_in):
    block = randomise_(block().double())
    x = rand(2, num_in, 5, 6)
    before = block(x)
    for module in block.modules():
        if isinstance(module, ConvBN):
            module.fold_()
    torch.testing.assert_close(block(x), before, rtol=1e-10, atol=1e-10)
    block.join_()
    assert block.joint is not None
    torch.testing.assert_close(block(x), before, rtol=1e-10, atol=1e-10)


def test_parameters_are_named_and_shaped_as_pytorch_fid_does():
    """All 94 convolutions, by the channels in and out that the Inception-v3 of Szegedy et al. (2015) has."""
    state = {k: tuple(v.shape) for k, v in Inception().state_dict().items() if not k.endswith('num_batches_tracked')}
    convs = {k.removesuffix('.conv.weight'): v for k, v in state.items() if k.endswith('.conv.weight')}
    assert len(convs) == 94 and len(state) == 5 * 94
    for name, shape in convs.items():
        for part in ('weight', 'bias', 'running_mean', 'running_var'):
            assert state[f'{name}.bn.{part}'] == shape[:1]
    # torchvision's whole network without its auxiliary head, less the classifier, less the norms' two vectors.
    assert sum(map(math.prod, convs.values())) == 23_834_568 - 2_049_000 - 34_432
    some = {
        'Conv2d_1a_3x3': (32, 3, 3, 3),
        'Conv2d_4a_3x3': (192, 80, 3, 3),
        'Mixed_5b.branch5x5_2': (64, 48, 5, 5),
        'Mixed_5b.branch_pool': (32, 192, 1, 1),
        'Mixed_5d.branch_pool': (64, 288, 1, 1),
        'Mixed_6a.branch3x3': (384, 288, 3, 3),
        'Mixed_6b.branch7x7_2': (128, 128, 1, 7),
        'Mixed_6d.branch7x7dbl_2': (160, 160, 7, 1),
        'Mixed_6e.branch7x7dbl_5': (192, 192, 1, 7),
        'Mixed_7a.branch7x7x3_4': (192, 192, 3, 3),
        'Mixed_7b.branch3x3dbl_3a': (384, 384, 1, 3),
        'Mixed_7c.branch1x1': (320, 2048, 1, 1),
    }
    assert {name: convs[name] for name in some} == some


def test_convolution_and_norm_by_hand():
    layer = randomise_(ConvBN(3, 2, 1).double())
    x = rand(1, 3, 1, 1)
    y = layer.conv.weight[:, :, 0, 0] @ x[0, :, 0, 0]
    y = (y - layer.bn.running_mean) / (layer.bn.running_var + 0.001).sqrt() * layer.bn.weight + layer.bn.bias
    torch.testing.assert_close(layer(x).flatten(), y.relu())


def test_inception_scales_pixels_as_tensorflow_did(monkeypatch):
    monkeypatch.setattr(Inception, 'stem', Inception.resized)
    monkeypatch.setattr(Inception, 'blocks', lambda self, x: x)
    monkeypatch.setattr(Inception, '__init__', lambda self: torch.nn.Module.__init__(self))
    net = Inception()
    net.Conv2d_1a_3x3 = ConvBN(3, 32, 3)
    pixels = torch.tensor([0, 100, 255]).view(1, 3, 1, 1).expand(1, 3, 5, 5)
    seen = net(pixels.float() / 127.5 - 1)  # [1, 3, 299, 299]
    torch.testing.assert_close(seen[0, :, 7, 9], (torch.tensor([0.0, 100, 255]) - 128) / 128, rtol=0, atol=1e-6)
    grey = net(pixels[:, 1:2].float() / 127.5 - 1)
    assert grey.shape == seen.shape and torch.equal(grey[0, 0], grey[0, 2])


def test_inception_takes_a_batch_in_parts_on_a_cpu(monkeypatch):
    sizes = {'stem': [], 'blocks': []}
    for name in sizes:
        monkeypatch.setattr(Inception, name, lambda self, x, name=name: sizes[name].append(len(x)) or x)
    monkeypatch.setattr(Inception, '__init__', lambda self: torch.nn.Module.__init__(self))
    images = rand(37, 3, 1, 1, dtype=torch.float32)
    torch.testing.assert_close(Inception()(images), (images * 127.5 - 0.5) / 128, rtol=0, atol=0)
    assert sum(sizes['stem']) == sum(sizes['blocks']) == 37
    assert max(sizes['stem']) < max(sizes['blocks']) < 37


def test_inception_weights_that_do_not_fit_are_named():
    state = Inception().state_dict()
    extra = {**state, 'fc.weight': torch.zeros(3), 'AuxLogits.conv0.conv.weight': torch.zeros(1)}
    net, first = Inception(), 'Conv2d_1a_3x3.conv.weight'
    load_(net, extra, 'x.pth')
    with pytest.raises(ValueError, match='x.pth does not fit Inception .*Mixed_6c.branch_pool.bn.bias is missing'):
        load_(net, {k: v for k, v in state.items() if k != 'Mixed_6c.branch_pool.bn.bias'}, 'x.pth')
    with pytest.raises(ValueError, match=r'Conv2d_1a_3x3.conv.weight is \(1,\)'):
        load_(net, {**state, first: torch.zeros(1)}, 'x.pth')
    with pytest.raises(ValueError, match='holds torch.int64, wanted floats'):
        load_(net, {**state, first: state[first].long()}, 'x.pth')
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match='not finite'):
            load_(net, {**state, first: state[first] * bad}, 'x.pth')
    with pytest.raises(ValueError, match='Inception wants float images'):
        Inception()(torch.zeros(1, 4, 8, 8))


def test_inception_features_are_the_golden_ones():
    detector = load_detector('inception', weights_or_skip('inception'))
    with np.load(GOLDEN, allow_pickle=False) as golden:
        for name in ('cifar', 'faces'):
            images = torch.from_numpy(golden[f'{name}_images']).permute(0, 3, 1, 2).float() / 127.5 - 1
            features = detector.features(images[:2])
            np.testing.assert_allclose(features, golden[f'{name}_features'][:2], atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------------------------- LeNet


def test_lenet_pads_digits_and_reads_grey_as_colour():
    net = randomise_(LeNet(), 1)
    # Pixels are multiples of 1/128, so the mean of three equal channels is exact in float32, in any order of summation:
    # the convolutions then see the same numbers, and nothing that they round can differ.
    images = (rand(3, 1, 28, 28, dtype=torch.float32).clamp(-1, 1) * 128).round() / 128
    assert torch.equal(net(images), net(F.pad(images, (2, 2, 2, 2), value=-1)))
    assert torch.equal(net(images), net(images.repeat(1, 3, 1, 1)))
    assert net(images).shape == (3, 84)
    torch.testing.assert_close(net.probabilities(images).sum(1), torch.ones(3))
    with pytest.raises(ValueError, match='up to 32x32, not 40x33'):
        net(torch.zeros(1, 1, 33, 40))
    with pytest.raises(ValueError, match='float images'):
        net(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))


def test_lenet_equals_its_layers_one_by_one():
    net = randomise_(LeNet(), 1)
    image = rand(1, 1, 32, 32, dtype=torch.float32).clamp(-1, 1)
    x = ((image[0] + 1) / 2 - 0.1307) / 0.3081  # MNIST's mean and deviation
    c, f = net.convnet, net.fc
    x = F.max_pool2d(F.conv2d(x, c['c1'].weight, c['c1'].bias).relu(), 2)
    x = F.max_pool2d(F.conv2d(x, c['c3'].weight, c['c3'].bias).relu(), 2)
    x = F.conv2d(x, c['c5'].weight, c['c5'].bias).relu().flatten()
    x = (f['f6'].weight @ x + f['f6'].bias).relu()
    torch.testing.assert_close(net(image)[0], x)
    torch.testing.assert_close(net.logits(image)[0], f['f7'].weight @ x + f['f7'].bias)


def test_lenet_reads_digits():
    """A one and a seven, drawn by hand on 28x28."""
    net = load_detector('lenet', weights_or_skip('lenet')).net
    digits = torch.full((2, 1, 28, 28), -1.0)
    digits[0, 0, 4:24, 13:16] = 1
    digits[1, 0, 5:8, 7:20] = 1
    for row in range(8, 24):
        middle = 18 - (row - 8) * 7 // 16
        digits[1, 0, row, middle - 1 : middle + 2] = 1
    assert net.probabilities(digits).argmax(1).tolist() == [1, 7]


def test_the_alex_detector_pools_the_last_two_convolutions(tmp_path):
    weights = randomise_(PooledAlexNet(), 3)
    torch.save(weights.state_dict(), tmp_path / 'alex.pth')
    detector = load_detector('alex', tmp_path / 'alex.pth')
    assert detector.name == load_detector(str(tmp_path / 'alex.pth')).name == 'alex' and detector.dim == 512
    images = rand(2, 3, 64, 64, dtype=torch.float32).clamp(-1, 1)
    c = weights.features
    shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[..., None, None]
    x = (images - shift) / scale
    x = F.relu(F.conv2d(x, c['0'].weight, c['0'].bias, stride=4, padding=2))
    x = F.relu(F.conv2d(F.max_pool2d(x, 3, 2), c['3'].weight, c['3'].bias, padding=2))
    x = F.relu(F.conv2d(F.max_pool2d(x, 3, 2), c['6'].weight, c['6'].bias, padding=1))
    fourth = F.relu(F.conv2d(x, c['8'].weight, c['8'].bias, padding=1))
    fifth = F.relu(F.conv2d(fourth, c['10'].weight, c['10'].bias, padding=1))
    wanted = torch.cat([fourth.mean((2, 3)), fifth.mean((2, 3))], 1)
    torch.testing.assert_close(detector.features(images), wanted)
    grey = images[:, :1]
    assert torch.equal(detector.features(grey), detector.features(grey.expand(-1, 3, -1, -1)))
    assert detector.features(images[..., :32, :32]).shape == (2, 512)


# ------------------------------------------------------------------------------------------------------------- LPIPS


def random_lpips():
    net = randomise_(LPIPS(), 2)
    for i in range(5):
        getattr(net, f'lin{i}').abs_()
    for module in net.features.values():
        module.weight.mul_(0.1)
    return net


def lpips_by_steps(net, a, b):
    """The published recipe, one pair at a time, AlexNet as a list of layers."""
    c = net.features
    layers = [
        lambda x: F.relu(F.conv2d(x, c['0'].weight, c['0'].bias, stride=4, padding=2)),
        lambda x: F.relu(F.conv2d(F.max_pool2d(x, 3, 2), c['3'].weight, c['3'].bias, padding=2)),
        lambda x: F.relu(F.conv2d(F.max_pool2d(x, 3, 2), c['6'].weight, c['6'].bias, padding=1)),
        lambda x: F.relu(F.conv2d(x, c['8'].weight, c['8'].bias, padding=1)),
        lambda x: F.relu(F.conv2d(x, c['10'].weight, c['10'].bias, padding=1)),
    ]
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    scaled = [torch.stack([(x[i] - shift[i]) / scale[i] for i in range(3)])[None].float() for x in (a, b)]
    total = 0.0
    for i, layer in enumerate(layers):
        scaled = [layer(x) for x in scaled]
        x, y = (s[0].double() for s in scaled)
        for h in range(x.shape[1]):
            for w in range(x.shape[2]):
                u, v = (z[:, h, w] / (z[:, h, w].norm() + 1e-10) for z in (x, y))
                total += float((getattr(net, f'lin{i}') * (u - v) ** 2).sum()) / (x.shape[1] * x.shape[2])
    return total


def test_lpips_equals_the_recipe_and_its_embedding():
    net = random_lpips()
    a, b = (rand(2, 3, 35, 40, seed=s, dtype=torch.float32).clamp(-1, 1) for s in (1, 2))
    expected = [lpips_by_steps(net, x, y) for x, y in zip(a, b, strict=True)]
    assert min(expected) > 1e-3
    torch.testing.assert_close(net(a, b).double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close((net.embed(a) - net.embed(b)).square().sum(1), net(a, b), rtol=1e-4, atol=1e-7)
    assert net(a, a).tolist() == [0, 0]
    grey = a[:, :1]
    torch.testing.assert_close(net.embed(grey), net.embed(grey.repeat(1, 3, 1, 1)))


def test_lpips_refuses():
    net = random_lpips()
    with pytest.raises(ValueError, match='at least 31x31'):
        net.embed(torch.zeros(1, 3, 30, 64))
    assert net.embed(torch.zeros(1, 3, 31, 31)).shape[0] == 1
    with pytest.raises(ValueError, match='one shape'):
        net(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 33, 32))


def test_lpips_weights_that_do_not_fit_are_named(tmp_path, monkeypatch):
    net = random_lpips()
    lin = {f'lin{i}.model.1.weight': getattr(net, f'lin{i}').view(1, -1, 1, 1) for i in range(5)}

    def load(lin):
        torch.save(dict(net.named_parameters()), tmp_path / 'alex.pth')
        torch.save(lin, tmp_path / 'lin.pth')
        monkeypatch.setenv('DDN_LPIPS_ALEX', str(tmp_path / 'alex.pth'))
        monkeypatch.setenv('DDN_LPIPS_LIN', str(tmp_path / 'lin.pth'))
        return load_lpips()

    images = rand(1, 3, 32, 32, dtype=torch.float32)
    assert torch.equal(load(lin).embed(images), net.embed(images))
    with pytest.raises(ValueError, match='lin.pth does not fit LPIPS .*lin0 is missing'):
        load({})
    with pytest.raises(ValueError, match='lin.pth: negative'):
        load({k: -v for k, v in lin.items()})


# ----------------------------------------------------------------------------------------------------- PSNR and SSIM


def test_psnr_closed_form():
    a = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    b = a.clone()
    b[0] += 10
    assert reconstruction.psnr(a, b)[0].item() == pytest.approx(20 * math.log10(25.5))
    assert reconstruction.psnr(a, b)[1].item() == math.inf
    with pytest.raises(ValueError, match='one shape'):
        reconstruction.psnr(a, a[:1])


def test_ssim_equals_windows_by_hand():
    a, b = (rand(1, 2, 12, 13, seed=s).mul(60).add(128).clamp(0, 255) for s in (1, 2))
    b = (a + b) / 2
    at = np.arange(11) - 5
    g = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    g /= g.sum()
    values = []
    for c in range(2):
        for i in range(2):
            for j in range(3):
                x, y = (z[0, c, i : i + 11, j : j + 11].numpy() for z in (a, b))
                mx, my = (g * x).sum(), (g * y).sum()
                vx, vy, cov = (g * (x - mx) ** 2).sum(), (g * (y - my) ** 2).sum(), (g * (x - mx) * (y - my)).sum()
                c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert reconstruction.ssim(a, b).item() == pytest.approx(np.mean(values), abs=1e-10)
    assert reconstruction.ssim(a, a).item() == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match='at least 11x11'):
        reconstruction.ssim(a[..., :10], b[..., :10])


# ------------------------------------------------------------------------------------------------ statistics, weights


def test_collector_does_not_depend_on_ranks_or_batches():
    x = rand(23, 4, dtype=torch.float32)
    whole = reference.FeatureCollector(4, 23, keep=9, seed=3)
    whole.add_(x, range(23))
    expected = whole.finish()
    assert expected.features.shape == (9, 4) and expected.num == 23
    mixed = reference.FeatureCollector(4, 23, keep=9, seed=3)
    for positions in torch.arange(23).flip(0).split(5):
        mixed.add_(x[positions], positions.tolist())
    found = mixed.finish()
    assert torch.equal(found.features, expected.features)
    np.testing.assert_allclose(found.sigma, expected.sigma, atol=1e-12)
    idle, parts = reference.FeatureCollector(4, 23, keep=9, seed=3), []  # a rank that gets no batch
    idle.moments = copy.deepcopy(whole.moments)
    idle.finish(all_gather_object=lambda part: parts.append(part) or parts)
    assert torch.equal(whole.finish(all_gather_object=lambda part: [*parts, part]).features, expected.features)
    other = reference.FeatureCollector(4, 23, keep=9, seed=4)
    other.add_(x, range(23))
    assert not torch.equal(other.finish().features, expected.features)


def test_statistics_survive_the_disk_and_edm_reads_them(tmp_path):
    collector = reference.FeatureCollector(3, 20, keep=5)
    collector.add_(rand(20, 3), range(20))
    written = collector.finish(made='by a test')
    reference.save_statistics(tmp_path / 'ref.npz', written)
    with np.load(tmp_path / 'ref.npz', allow_pickle=False) as file:
        assert file['mu'].dtype == file['sigma'].dtype == np.float64
        np.testing.assert_array_equal(file['sigma'], written.sigma)
    found = reference.load_statistics(tmp_path / 'ref.npz')
    assert found.num == 20 and found.meta == {'made': 'by a test'} and torch.equal(found.features, written.features)


def statistics(n, dim, seed, keep=None):
    collector = reference.FeatureCollector(dim, n, keep=n if keep is None else keep)
    collector.add_(rand(n, dim, seed=seed), range(n))
    return collector.finish()


def test_compare_names_what_it_measured():
    real, fake = statistics(2000, 6, 0, keep=50), statistics(1000, 6, 1)
    numbers, notes = reference.compare(real, fake)
    assert list(numbers) == [
        'FID-1k', 'KID-50', 'KID-50 standard error', 'precision-50', 'recall-50', 'density-50', 'coverage-50',
    ]  # fmt: skip
    assert len(notes) == 1 and 'fewer than 10000' in notes[0]
    fid = distances.frechet_distance(real.mu, real.sigma, fake.mu, fake.sigma)
    assert numbers['FID-1k'] == fid
    assert reference.compare(real, fake) == (numbers, notes)


def test_compare_says_when_the_covariance_is_singular_or_the_reference_bare():
    real, fake = statistics(40, 12, 0), statistics(12, 12, 1)
    numbers, notes = reference.compare(real, fake, prefix='r')
    assert 'singular (rank 11 at most)' in notes[0] and 'rFID-12' in numbers
    edm = reference.Statistics(real.mu, real.sigma, None, None, {})
    numbers, notes = reference.compare(edm, statistics(40, 12, 1))
    assert list(numbers) == ['FID-40'] and 'only FID is computed' in notes[-1]
    with pytest.raises(ValueError, match='12 features, the detector gives 6'):
        reference.compare(real, statistics(40, 6, 1))


def test_names_carry_n():
    assert [reference.short_number(n) for n in (50000, 5000, 1234, 999, 1000)] == ['50k', '5k', '1234', '999', '1k']


def test_weight_files_that_are_none(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ('touch ' + str(tmp_path / 'ran'),)

    torch.save({'a': Evil()}, tmp_path / 'evil.pth')
    (tmp_path / 'text.pth').write_text('no weights')
    (tmp_path / 'text.safetensors').write_text('no weights')
    torch.save([1, 2], tmp_path / 'list.pth')
    torch.save({'a': torch.zeros(1)}, tmp_path / 'other.pth')
    for name in ('evil.pth', 'text.pth', 'text.safetensors', 'list.pth'):
        with pytest.raises(ValueError, match=name) as error:
            read_state(tmp_path / name)
        assert '\n' not in str(error.value)
    assert not (tmp_path / 'ran').exists()
    with pytest.raises(ValueError, match='does not hold the weights of a detector'):
        load_detector(str(tmp_path / 'other.pth'))
    with pytest.raises(FileNotFoundError, match='nowhere'):
        load_detector('inception', str(tmp_path / 'nowhere.pth'))


def test_a_detector_file_names_its_network_and_its_digest_is_of_the_weights(tmp_path):
    from safetensors.torch import save_file

    state = randomise_(LeNet()).state_dict()
    torch.save(state, tmp_path / 'a.pth')
    save_file(state, tmp_path / 'b.safetensors')
    a, b = (load_detector(str(tmp_path / name)) for name in ('a.pth', 'b.safetensors'))
    assert a.name == b.name == 'lenet' and a.dim == 84
    assert a.digest == b.digest == state_digest(state) and a.sha256 != b.sha256
    with pytest.raises(ValueError, match='--detector-weights: .* is a file of weights itself'):
        load_detector(str(tmp_path / 'a.pth'), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=r'weights of a detector \(inception\)'):
        load_detector('inception', tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='float32 only'):
        load_detector(str(tmp_path / 'a.pth'), precision='bfloat16')


@pytest.mark.parametrize('damage', [lambda data: data[:-100], lambda data: b'', lambda data: b'x' * len(data)])
def test_kept_features_are_those_of_the_images_and_the_detector_or_none(tmp_path, damage):
    torch.save(randomise_(LeNet()).state_dict(), tmp_path / 'a.pth')
    plain, kept = (load_detector(str(tmp_path / 'a.pth'), folder=f) for f in (None, tmp_path / 'new' / 'features'))
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    wanted = plain.features(images)
    assert torch.equal(kept.features(images), wanted)
    (file,) = kept.folder.iterdir()
    assert kept.describe() == plain.describe() and 'folder' not in kept.describe()
    np.save(file, wanted.numpy() + 1)
    assert torch.equal(kept.features(images), wanted + 1)  # read, not computed
    for other in (images[:2], images + 1e-6, images.view(3, 1, 8, 32), images.flip(0)):
        assert torch.equal(kept.features(other), plain.features(other))
    state = torch.load(tmp_path / 'a.pth')
    state['fc.f6.bias'][0] += 1e-3
    torch.save(state, tmp_path / 'b.pth')
    other = load_detector(str(tmp_path / 'b.pth'), folder=kept.folder)
    assert torch.equal(other.features(images), other.computed(images))
    keys = {detector.key(images) for detector in (kept, other, kept._replace(precision='bfloat16'))}
    assert len(keys) == 3
    for wrong in (damage(file.read_bytes()), npy(wanted[:2]), npy(wanted.double()), npy(wanted * math.inf)):
        file.write_bytes(wrong)
        assert torch.equal(kept.features(images), wanted)
        assert torch.equal(torch.from_numpy(np.load(file)), wanted)


def npy(features) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, features.numpy())
    return buffer.getvalue()


def test_missing_weights_are_named_with_the_place_to_put_them(tmp_path, monkeypatch):
    import metrics.detectors as detectors

    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr(detectors, '__file__', str(tmp_path / 'a' / 'b' / 'detectors.py'))
    for variable in detectors.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(FileNotFoundError, match=r'put khushbujpatel_lenet_mnist_cnn.pt at .*\$DDN_LENET'):
        weights_path('lenet')

    def offline(*args, **kwargs):
        raise OSError('offline')

    monkeypatch.setattr(detectors, 'local_path', offline)
    with pytest.raises(FileNotFoundError, match=r'put pt_inception.* --detector-weights or \$DDN_INCEPTION') as error:
        weights_path('inception')
    assert '\n' not in str(error.value)
    (tmp_path / 'inception.pth').write_bytes(b'')
    assert weights_path('inception') == tmp_path / 'inception.pth'
