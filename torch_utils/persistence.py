"""Snapshots, for training and scripts: ``ddn_networks.snapshots``, where a network may also be a URL."""

from pathlib import Path

import torch

from ddn_networks import snapshots
from ddn_networks.aliases import old_names
from dnnlib.downloads import is_url, local_path


def network_path(network: str) -> Path:
    """Where a network is on this machine: what ``snapshots.network_path`` finds, or the download of a URL."""
    return local_path(network) if is_url(network) else snapshots.network_path(network)


def load_network(network: str, ema: str | float | None = None) -> torch.nn.Module:
    """``snapshots.load_network`` of a path, a name, or a URL."""
    return snapshots.load_network(network_path(network), ema)


__getattr__ = old_names(__name__)
