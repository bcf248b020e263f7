"""How many images fit at once (``--batch-gpu=auto``)."""

from typing import Any

import psutil
import torch

import ddn_networks
from ddn_networks import samplers, snapshots
from torch_utils import distributed as dist
from torch_utils import misc
from training.loss import layer_losses

SHARE = 0.5  # of the free memory that saved activations may take; gradients of them and workspaces need the rest


def saved_bytes_per_image(
    net: ddn_networks.Network, autocast_dtype: torch.dtype | None = None, grad_checkpoint: bool = False
) -> int:
    """Memory that autograd keeps per image between forward and backward, measured on 2 random images."""
    seen = {}
    params = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in params:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.rand(2, net.img_channels, *net.img_resolution, device=net.device) * 2 - 1
    target = samplers.target_pyramid(images)
    condition = images.new_zeros(2, net.condition_channels, *net.img_resolution) if net.condition_channels else None
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast(net.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
            sampler = samplers.nearest_to(target)
            selected = net(sampler, len(images), condition, keep=True, grad_checkpoint=grad_checkpoint).selected
        layer_losses(selected, target)
    return sum(seen.values()) // len(images)


def auto_batch_gpu(loop: dict[str, Any], device: torch.device) -> int:
    """The largest divisor of a rank's batch that fits, the same on every rank.

    Args:
        loop: the arguments of ``training_loop``.
        device: where it will train.
    """
    batch = loop['batch_size'] // dist.get_world_size()
    net = snapshots.rebuild({'class_name': loop['network_class'], 'kwargs': loop['network_kwargs']})
    net = net.to(device, memory_format=misc.memory_format(device, loop['precision'])).train()
    dtype = misc.PRECISIONS[loop['precision']]
    per_image = saved_bytes_per_image(net, dtype, loop['grad_checkpoint'])
    if device.type == 'cuda':
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available // dist.get_world_size()
    states = sum(p.numel() * p.element_size() for p in net.parameters()) * (3 + len(loop['ema_halflives_nimg']))
    fits = max(1, int((free - states) * SHARE / per_image))
    best = torch.tensor(max(n for n in range(1, batch + 1) if batch % n == 0 and n <= fits))
    dist.all_reduce_(best, 'min')
    return int(best)
