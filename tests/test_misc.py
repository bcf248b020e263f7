"""The small helpers of the loop."""

import math
import re
import subprocess

import pytest
import torch
from torch import nn

from torch_utils import misc


def test_copy_params_and_buffers():
    source, target = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2))
    source[1].running_mean.fill_(7)
    assert misc.copy_params_and_buffers_(source.state_dict(), target) == []
    assert all(torch.equal(target.state_dict()[name], t) for name, t in source.state_dict().items())
    assert not any(a.data_ptr() == b.data_ptr() for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_copy_params_and_buffers_says_what_does_not_fit():
    source, target = nn.Linear(3, 4), nn.Linear(5, 4)
    before = target.weight.clone()
    with pytest.raises(ValueError, match=re.escape('weight (there [4, 3], here [4, 5])')):
        misc.copy_params_and_buffers_(source.state_dict(), target)
    assert not torch.equal(target.bias, source.bias)  # nothing happens before the check
    left = misc.copy_params_and_buffers_(source.state_dict(), target, allow_missing=True)
    assert left == ['weight (there [4, 3], here [4, 5])']
    assert torch.equal(target.bias, source.bias) and torch.equal(target.weight, before)
    with pytest.raises(ValueError, match=re.escape('2 of 2 weights do not fit, the first of them weight (missing)')):
        misc.copy_params_and_buffers_({'other': torch.zeros(1)}, target, allow_missing=True)


def test_psnr_of_numbers_and_of_tensors():
    for mse in (0.25, 0.013, 3.7e-5):
        assert misc.psnr(mse) == 10 * math.log10(4 / mse)  # images in [-1, 1]
        assert misc.psnr(mse, peak=255.0) == pytest.approx(20 * math.log10(255) - 10 * math.log10(mse))
        assert misc.psnr(torch.tensor([mse, 1.0]).double()).tolist() == pytest.approx([misc.psnr(mse), misc.psnr(1.0)])
    assert misc.psnr(0.0) == 10 * math.log10(4e12) and misc.psnr(torch.zeros(1)).item() == math.inf


def test_git_revision(monkeypatch, tmp_path):
    revision = misc.git_revision()
    assert revision is None or re.fullmatch(r'[0-9a-f]{7,40}(-dirty)?', revision)
    installed = tmp_path / 'misc.py'
    installed.write_text('')
    monkeypatch.setattr(misc, '__file__', str(installed))
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    assert misc.git_revision() is None
    git = ['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b']
    subprocess.run([*git, 'init', '-q'], check=True)
    subprocess.run([*git, 'commit', '-q', '--allow-empty', '-m', 'somebody else'], check=True)
    assert misc.git_revision() is None  # not a file of that checkout
    subprocess.run([*git, 'add', 'misc.py'], check=True)
    subprocess.run([*git, 'commit', '-q', '-m', 'ours'], check=True)
    assert re.fullmatch('[0-9a-f]{7,40}', misc.git_revision())
    installed.write_text('changed')
    assert misc.git_revision().endswith('-dirty')
    monkeypatch.setenv('PATH', str(tmp_path))
    assert misc.git_revision() is None  # no git


def test_host_syncs_without_cuda():
    if torch.cuda.is_available():
        pytest.skip('there is a CUDA device: see the test below')
    with misc.host_syncs() as places:
        torch.ones(1).item()
    assert places == []


def test_memory_format_is_contiguous_for_bf16_on_a_cpu_alone():
    formats = {(d, p): misc.memory_format(torch.device(d), p) for d in ('cpu', 'cuda') for p in ('fp32', 'bf16')}
    assert formats.pop(('cpu', 'bf16')) == torch.contiguous_format
    assert set(formats.values()) == {torch.channels_last}
