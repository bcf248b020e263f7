"""References and files of weights that are damaged: refused in one line, or read as they are. Never a traceback."""

import json
import math
import os
import time
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import fid
from metrics import distances, reference
from metrics.detectors import load_detector
from metrics.lenet import LeNet
from metrics.weights import read_state
from tests.mutations import mutations, outcome

D, N = 6, 20
NUM = 150  # mutations of each format


@pytest.fixture(scope='module')
def room(tmp_path_factory):
    """A reference with 20 features of 6 numbers, and a file of LeNet's weights in each format."""
    path = tmp_path_factory.mktemp('fuzz')
    features = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    collector = reference.FeatureCollector(D, N, keep=N)
    collector.add_(features, range(N))
    reference.save_statistics(path / 'ref.npz', collector.finish(detector={'digest': 'abc', 'precision': 'float32'}))
    with np.load(path / 'ref.npz') as file:
        np.savez_compressed(path / 'packed.npz', **file)
    torch.manual_seed(0)
    torch.save(LeNet().state_dict(), path / 'net.pt')
    torch.save(LeNet().state_dict(), path / 'old.pt', _use_new_zipfile_serialization=False)
    save_file(LeNet().state_dict(), path / 'net.safetensors')
    return path


def compared(path) -> dict:
    """All numbers of a reference against good features; every one of them finite."""
    real = reference.load_statistics(path)
    fake = reference.FeatureCollector(len(real.mu), 40, keep=40)
    fake.add_(torch.randn(40, len(real.mu), generator=torch.Generator().manual_seed(1)), range(40))
    numbers, _ = reference.compare(real, fake.finish())
    assert all(math.isfinite(value) for value in numbers.values()), numbers
    return numbers


@pytest.mark.parametrize('name', ['ref.npz', 'packed.npz'])
def test_a_damaged_reference_is_one_line_or_a_number(room, tmp_path, name):
    whole, refused = compared(room / name), 0
    for data in mutations((room / name).read_bytes(), NUM):
        (tmp_path / 'x.npz').write_bytes(data)
        began = time.monotonic()
        found = outcome(lambda: compared(tmp_path / 'x.npz'))
        assert time.monotonic() - began < 10
        refused += isinstance(found, Exception)
        # A stored .npz has a checksum of each array, so what is read is what was written.
        assert isinstance(found, Exception) or found == whole or found.keys() != whole.keys()
    assert refused > NUM / 2


@pytest.mark.parametrize('name', ['net.pt', 'old.pt', 'net.safetensors'])
def test_damaged_weights_are_one_line_or_a_detector(room, tmp_path, name):
    images, path, refused = torch.zeros(2, 1, 28, 28), tmp_path / f'x{os.path.splitext(name)[1]}', 0
    for data in mutations((room / name).read_bytes(), NUM):
        path.write_bytes(data)
        began = time.monotonic()
        found = outcome(lambda: load_detector(str(path)).features(images))
        assert time.monotonic() - began < 10
        refused += isinstance(found, Exception)
        assert isinstance(found, Exception) or found.isfinite().all()
    assert refused > NUM / 4


# ------------------------------------------------------------------------------------ what no flipped bit would make


def with_negative_eigenvalue():
    sigma = np.eye(D)
    sigma[0, 1] = sigma[1, 0] = 2
    return sigma


def changed(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[(1,) * array.ndim] = value
    return array


CASES = [
    ('features', lambda a: changed(a, np.nan), 'features holds numbers that are not finite'),
    ('features', lambda a: changed(a, -np.inf), 'features holds numbers that are not finite'),
    ('features', lambda a: a.astype(np.float16), 'features holds float16, wanted float32 or float64'),
    ('features', lambda a: a.astype(np.int64), 'features holds int64'),
    ('features', lambda a: a.astype(np.complex64), 'features holds complex64'),
    ('features', lambda a: a.astype(object), 'not an .npz file that can be read'),
    ('features', lambda a: a[:, :3], 'features are (20, 3), wanted (N, 6)'),
    ('features', lambda a: a[0], 'features are (6,)'),
    ('features', lambda a: np.array('features'), 'features holds <U8'),
    ('mu', lambda a: changed(a, np.nan), 'mu holds numbers that are not finite'),
    ('mu', lambda a: a.astype(np.int32), 'mu holds int32'),
    ('mu', lambda a: a[:0], 'mu is (0,)'),
    ('mu', lambda a: a[None], 'mu is (1, 6)'),
    ('mu', lambda a: a[0], 'mu is ()'),
    ('sigma', lambda a: changed(a, np.inf), 'sigma holds numbers that are not finite'),
    ('sigma', lambda a: changed(a, -1.0), 'a covariance must be positive semi-definite'),
    ('sigma', lambda a: np.triu(a), 'a covariance must be symmetric'),
    ('sigma', lambda a: -a, 'a covariance must be positive semi-definite'),
    ('sigma', lambda a: with_negative_eigenvalue(), 'a covariance must be positive semi-definite'),
    ('sigma', lambda a: a.astype(bool), 'sigma holds bool'),
    ('sigma', lambda a: a[:3], 'sigma is (3, 6)'),
    ('meta', lambda a: np.array('not JSON'), 'meta is not JSON'),
    ('meta', lambda a: np.array('[' * 100_000), 'meta is not JSON (nested too deeply)'),
    ('meta', lambda a: np.array('[1, 2]'), 'meta is JSON, but does not describe a reference'),
    ('meta', lambda a: np.array('{"detector": 5}'), 'meta is JSON, but does not describe a reference'),
    ('meta', lambda a: np.array('{"num": NaN}'), 'meta is not JSON'),
    ('meta', lambda a: np.array([b'\xff\xfe']), 'meta is |S2 (1,), wanted a text'),
    ('meta', lambda a: np.array(b'\xff\xfe'), 'meta is not JSON'),
    ('meta', lambda a: np.zeros(3), 'meta is float64 (3,), wanted a text'),
    *(('meta', lambda a, n=n: np.array(json.dumps({'num': n})), f'num, the number of images, is {n!r}')
      for n in (-5, 0, 1, 19, 2.5, True, '20', [20])),
]  # fmt: skip


@pytest.mark.parametrize('key, change, words', CASES, ids=lambda x: x if isinstance(x, str) else '')
def test_a_reference_that_cannot_be_one_is_named(room, tmp_path, key, change, words):
    with np.load(room / 'ref.npz') as file:
        arrays = dict(file)
    np.savez(tmp_path / 'x.npz', **{**arrays, key: change(arrays[key])})
    error = outcome(lambda: reference.load_statistics(tmp_path / 'x.npz'))
    assert isinstance(error, ValueError) and str(error).startswith(f'{tmp_path}/x.npz') and words in str(error)


def test_references_of_other_kinds_are_read(room, tmp_path):
    whole = reference.load_statistics(room / 'ref.npz')
    with np.load(room / 'ref.npz') as file:
        arrays = dict(file)
    for change in ('<f4', '>f8', '>f4'):  # as other programs or machines write them
        np.savez(tmp_path / 'x.npz', **{k: v.astype(change) for k, v in arrays.items() if k != 'meta'})
        found = reference.load_statistics(tmp_path / 'x.npz')
        np.testing.assert_allclose(found.sigma, whole.sigma, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.features.float(), whole.features)
        assert found.num is None and found.meta == {}
    few = whole.features[:4].double()  # fewer images than features: eigenvalues are zero but for rounding
    np.savez(tmp_path / 'x.npz', mu=few.mean(0), sigma=np.cov(few.T))
    assert reference.load_statistics(tmp_path / 'x.npz').mu.shape == (D,)
    np.savez(tmp_path / 'x.npz', mu=few.mean(0).float(), sigma=np.cov(few.T).astype(np.float32))
    assert reference.load_statistics(tmp_path / 'x.npz').mu.shape == (D,)


def test_a_reference_is_refused_before_features_are_made(room, tmp_path, monkeypatch):
    with np.load(room / 'ref.npz') as file:
        arrays = dict(file)
    np.savez(tmp_path / 'x.npz', **{**arrays, 'sigma': -arrays['sigma']})
    monkeypatch.setattr('metrics.evaluate.statistics', lambda *_: pytest.fail('features were made'))
    args = ['calc', f'--images={tmp_path}', f'--ref={tmp_path}/x.npz', f'--detector={room}/net.pt', '--device=cpu']
    result = CliRunner().invoke(fid.main, args)
    assert result.exit_code == 1 and f'{tmp_path}/x.npz' in result.output and 'semi-definite' in result.output


def test_numbers_that_overflow_are_refused():
    x, y = torch.randn(20, 4), torch.randn(20, 4)
    with pytest.raises(ValueError, match='KID overflows'):
        distances.kernel_distance(x * 1e30, y)
    with pytest.raises(ValueError, match='distances between features overflow'):
        distances.manifold_metrics(x * 1e30, y)
    with pytest.raises(ValueError, match='Frechet distance overflows'):
        distances.frechet_distance(np.full(2, 1e200), np.eye(2), np.zeros(2), np.eye(2))


def test_weights_that_are_not_numbers_of_the_network_are_named(room, tmp_path):
    state = LeNet().state_dict()
    name = 'fc.f7.weight'
    for value, words in [
        (state[name] * math.nan, f'{name} holds numbers that are not finite'),
        (state[name].masked_fill(torch.eye(10, 84).bool(), math.inf), f'{name} holds numbers that are not finite'),
        (state[name].long(), f'{name} holds torch.int64, wanted floats'),
        (state[name][:, :3], f'{name} is (10, 3), wanted (10, 84)'),
        (state[name].to_sparse(), f'{name} is not a dense tensor'),
        (torch.zeros(1).expand(1 << 40), f'{name} has more numbers than the file'),
    ]:
        torch.save({**state, name: value}, tmp_path / 'x.pt')
        error = outcome(lambda: load_detector(str(tmp_path / 'x.pt')))
        assert isinstance(error, ValueError) and f'{tmp_path}/x.pt' in str(error) and words in str(error)
    half = {name: value.half() for name, value in state.items()}  # fits, rounded
    torch.save(half, tmp_path / 'x.pt')
    assert torch.equal(load_detector(str(tmp_path / 'x.pt')).net.fc['f7'].bias, half['fc.f7.bias'].float())


@pytest.mark.parametrize('error', [MemoryError('no'), RecursionError('deep'), KeyError('x'), Warning('odd')])
def test_whatever_a_reader_raises_is_one_line(room, monkeypatch, error):
    def raises(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(torch, 'load', raises)
    assert str(room / 'net.pt') in str(outcome(lambda: read_state(room / 'net.pt')))
    monkeypatch.setattr(zipfile, 'ZipFile', raises)
    assert str(room / 'ref.npz') in str(outcome(lambda: reference.load_statistics(room / 'ref.npz')))


def test_features_that_are_not_finite_name_the_weights(room, tmp_path):
    state = LeNet().state_dict()
    torch.save({**state, 'fc.f6.weight': state['fc.f6.weight'].sign() * 3e38}, tmp_path / 'x.pt')
    detector = load_detector(str(tmp_path / 'x.pt'))
    with pytest.raises(ValueError, match='x.pt: features of these weights are not finite'):
        detector.features(torch.rand(2, 1, 28, 28) * 2 - 1)


def test_nan_never_leaves_as_a_number(monkeypatch, capsys):
    with pytest.raises(ValueError, match='KID-5 is not a number'):
        fid.report('calc', {'FID-5': 1.0, 'KID-5': math.nan}, [], {}, None)
    assert 'FID-5' not in capsys.readouterr().out
    fid.report('calc', {'PSNR': math.inf, 'SSIM': None}, ['no SSIM'], {}, None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ['PSNR  inf', 'SSIM  -'] and json.loads(lines[2])['numbers'] == {'PSNR': None, 'SSIM': None}
