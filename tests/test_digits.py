"""The built-in digits as datasets, and what classifiers say of them."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dataset_tool
from ddn_networks import DDN
from dnnlib.archives import ImageArchive
from dnnlib.labels import read_labels
from experiments import digits
from metrics.lenet import LeNet


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('digits')
    digits.datasets(folder)
    return folder


@pytest.mark.parametrize('which, cuts', [(0, ['--skip-images=9700']), (1, ['--max-images=300'])])
def test_datasets_are_those_of_dataset_tool(folder, tmp_path, which, cuts):
    args = [f'--source={digits.BUILT_IN}', f'--dest={tmp_path}/tool.zip', '--shuffle', *cuts]
    assert CliRunner().invoke(dataset_tool.main, args).exit_code == 0
    ours, tools = ImageArchive(digits.datasets(folder)[which]), ImageArchive(tmp_path / 'tool.zip')
    assert len(ours) == (8000, 2000)[which] and ours.names()[:300] == tools.names()
    first = len(ours) - 300 if which == 0 else 0
    np.testing.assert_array_equal(read_labels(ours).values[first:][:300], read_labels(tools).values)
    for i in (0, 7, 299):
        np.testing.assert_array_equal(ours.image(first + i), tools.image(i))


def test_datasets_are_written_once(folder):
    before = (folder / 'digits-train.zip').stat().st_mtime_ns
    assert digits.datasets(folder) == (f'{folder}/digits-train.zip', f'{folder}/digits-held-out.zip')
    assert (folder / 'digits-train.zip').stat().st_mtime_ns == before


def test_quality_counts_what_is_legible(folder):
    assert digits.legible(torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.05, 0.95], [0.2, 0.8]])) == 0.5
    held_out = f'{folder}/digits-held-out.zip'
    torch.manual_seed(0)
    net = DDN(32, 1, [8], [1], [4]).eval()
    net.snapshot_meta = {'cur_nimg': 7}
    found = digits.quality(net, LeNet(), held_out, num=10)
    assert found['num_samples'] == sum(found['samples_per_class']) == 10 and found['num_real'] == digits.HELD_OUT
    assert found['network']['cur_nimg'] == 7 and found['held_out_psnr'] > 0
    judge = digits.nearest_digit(held_out, net)
    archive = ImageArchive(held_out)
    real = torch.from_numpy(np.stack([archive.image(i) for i in (3, 5)])).float() / 127.5 - 1
    assert judge(real).tolist() == read_labels(archive).values[[3, 5]].tolist()
    with pytest.raises(ValueError, match='has no labels'):
        digits.nearest_digit(str(digits.BUILT_IN.parents[1] / 'faces'), net)
