"""Networks from snapshots, as the command lines name them."""

import torch

from ddn_networks import Network, RecurrentDDN
from torch_utils import persistence


def load_network(
    path: str,
    ema: str | None = None,
    device: str | torch.device = 'cpu',
    steps: int | None = None,
    finish: bool = True,
) -> Network:
    """The network of a snapshot, in evaluation mode.

    Args:
        path: file, URL, run folder, or the name of a shipped network.
        ema: label of the averaged weights, or 'none' for the raw ones; None takes the first.
        device: where the network is to be.
        steps: L of a recurrent network; None as it was trained.
        finish: keep its finisher, if it has one.

    Raises:
        ValueError, OSError: a snapshot that cannot be read, averaged weights that it lacks, steps of a fixed network.
    """
    net = Network.from_pretrained(persistence.network_path(path), ema=ema, device=device)
    if steps is not None:
        if not isinstance(net, RecurrentDDN):
            raise ValueError(f'--steps={steps}: {path} is not recurrent, its {net.num_layers} layers are fixed')
        net.num_layers = steps
    if not finish:
        net.finisher = None
    return net
