"""--batch-gpu=auto."""

import torch

from ddn_networks import DDN
from training.memory import auto_batch_gpu, saved_bytes_per_image

KWARGS = {'img_resolution': 8, 'img_channels': 1, 'channels': [8] * 3, 'num_blocks': [1, 2, 2], 'num_nodes': [4] * 3}
LOOP = {
    'network_class': 'ddn_networks.single_shot.DDN', 'network_kwargs': KWARGS, 'grad_checkpoint': False,
    'precision': 'fp32', 'ema_halflives_nimg': [1],
}  # fmt: skip


def test_memory_grows_with_the_network_and_shrinks_with_checkpoints():
    small = DDN(**KWARGS).train()
    wide = DDN(**{**KWARGS, 'channels': [16] * 3}).train()
    pixels = 2 * 2 + 2 * 4 * 4 + 2 * 8 * 8  # of the five layers; each block keeps several maps of 8 float32 channels
    assert saved_bytes_per_image(small) > pixels * 8 * 4 * 4
    assert 1.5 < saved_bytes_per_image(wide) / saved_bytes_per_image(small) < 2.5
    before = saved_bytes_per_image(small)
    assert saved_bytes_per_image(small, grad_checkpoint=True) < before / 1.5


def test_the_largest_divisor_that_fits(monkeypatch):
    device = torch.device('cpu')
    assert auto_batch_gpu({**LOOP, 'batch_size': 12}, device) == 12
    per_image = saved_bytes_per_image(DDN(**KWARGS).train())
    states = sum(p.numel() for p in DDN(**KWARGS).parameters()) * 4 * 4

    class Memory:
        available = states + int(per_image * 5 / 0.5)  # 5 images

    monkeypatch.setattr('psutil.virtual_memory', Memory)
    assert auto_batch_gpu({**LOOP, 'batch_size': 12}, device) == 4
    Memory.available = 0
    assert auto_batch_gpu({**LOOP, 'batch_size': 12}, device) == 1
