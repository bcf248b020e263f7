"""One state for all images that made the same choices so far.

What a network knows after l layers is a function of the l codes alone: images of a batch with the same first codes are
one partial image, and features for the next layer need be made for it once. In a batch of B images the first layer has
1 partial image, the second at most K, the third at most K^2: K = 8 and L = 3 take 73 passes of a block in place of 3 B.
Nothing changes but the order of sums. Where every image brings something of its own (a row of the condition,
augment labels, dropout of features) there is nothing to share.

Legend: B images, U distinct partial images.
"""

from typing import NamedTuple

import torch

from ddn_networks.samplers import Choice


class Sharing(NamedTuple):
    """rows: [B] int64, which of the U partial images each image continues. first: [U] int64, for each of them an image
    of the batch that it is the beginning of."""

    rows: torch.Tensor
    first: torch.Tensor


def start(batch_size: int, device: torch.device) -> Sharing:
    """Before the first layer: all images are one."""
    zeros = torch.zeros(batch_size, dtype=torch.int64, device=device)
    return Sharing(zeros, zeros[:1])


def split(sharing: Sharing, choice: Choice, num_nodes: int) -> Sharing:
    """After a layer's choice: images stay together where they were together and chose the same of ``num_nodes``. On a
    GPU this waits for the device, as U has to be known."""
    rows = sharing.rows if choice.parents is None else sharing.rows[choice.parents]
    distinct, rows = torch.unique(rows * num_nodes + choice.codes, return_inverse=True)
    images = torch.arange(len(rows), device=rows.device)
    return Sharing(rows, images.new_empty(len(distinct)).scatter_(0, rows, images))
