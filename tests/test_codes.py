"""The tree of latents at its root; the rest of ``ddn_networks.codes`` is tested in test_latents.py."""

import torch

from ddn_networks import codes


def test_all_images_are_under_the_root():
    for table in (torch.tensor([[1, 2], [0, 1], [1, 2]]), torch.zeros(0, 2, dtype=torch.int64)):
        prefixes, counts, at = codes.groups(table, 0)
        roots = min(len(table), 1)
        assert prefixes.shape == (roots, 0) and prefixes.dtype == torch.int64
        assert counts.tolist() == [len(table)] * roots and at.tolist() == [0] * len(table)
