"""What several tests need: tiny datasets and runs."""

import json
import os
import re
import zipfile

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ddn_networks import tensor_files

# One thread everywhere: some tests compare bits of runs in this process with those of runs in others, and sums depend
# on the number of threads. It is also faster for networks this small.
os.environ['OMP_NUM_THREADS'] = '1'
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def write_zip(path, count: int, shape: tuple[int, int, int], seed: int = 0, labels: bool = True) -> str:
    """A dataset zip of ``count`` smooth random images of ``shape`` (C, H, W)."""
    rng = np.random.default_rng(seed)
    C, H, W = shape
    names = [f'00000/img{i:08d}.png' for i in range(count)]
    with zipfile.ZipFile(path, 'w') as archive:
        for name in names:
            small = rng.integers(0, 256, (3, 3, C), dtype=np.uint8)
            image = Image.fromarray(small[:, :, 0] if C == 1 else small).resize((W, H), Image.BICUBIC)
            with archive.open(name, 'w') as f:
                image.save(f, format='png')
        if labels:
            archive.writestr('dataset.json', json.dumps({'labels': [[n, i % 3] for i, n in enumerate(names)]}))
    return str(path)


@pytest.fixture(scope='session')
def tiny_zip(tmp_path_factory) -> str:
    """40 grey images, 8x8."""
    return write_zip(tmp_path_factory.mktemp('data') / 'tiny.zip', 40, (1, 8, 8))


def invoke(command: click.Command, *args, expect: int = 0) -> str:
    """What a script prints; its exit code must be ``expect``."""
    result = CliRunner().invoke(command, [str(a) for a in args])
    assert result.exit_code == expect, result.output + repr(result.exception)
    return result.output


def unpadded(text: str) -> str:
    """Text whose Markdown tables have one space around each cell."""
    return re.sub(' +', ' ', text)


def final(run_dir, kind: str = 'training-state') -> dict[str, torch.Tensor]:
    """The tensors of a run's newest state or ('network-snapshot') snapshot."""
    name = sorted(n for n in os.listdir(run_dir) if n.startswith(kind))[-1]
    return tensor_files.load_tensors(os.path.join(run_dir, name))[0]


def seeing(sampler, see, seen: list):
    """``sampler``, but what ``see(candidates, choice)`` makes of each layer is added to ``seen``: candidates are of the
    moment they are asked about."""

    def asked(candidates, layer, codes):
        choice = sampler(candidates, layer, codes)
        seen.append(see(candidates, choice))
        return choice

    return asked


TINY_NET = ['--channels=8,8,8,8', '--blocks=1,2,1,2', '--nodes=5']
TINY_RUN = [
    *TINY_NET, '--batch=16', '--lr=0.01', '--lr-ramp=0', '--seed=1', '--workers=0', '--device=cpu', '--ema=0.0001',
]  # fmt: skip
