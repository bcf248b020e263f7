"""Averages of the weights over training, several half-lives at once."""

from collections.abc import Mapping, Sequence

import torch


class EMA:
    """Exponential moving averages of ``params``, one copy per half-life.

    Split-and-Prune moves rows of these copies too (``SplitAndPrune.follow``): the average of a node that was reborn is
    that of the node it split from, not a mixture of two lives.

    Args:
        params: {name: parameter} to follow.
        halflives_nimg: half-lives in images, one copy each. 0 is the weights themselves.
        rampup_ratio: a half-life is at most this share of the images seen, so that the start is forgotten.
    """

    def __init__(
        self,
        params: Mapping[str, torch.Tensor],
        halflives_nimg: Sequence[float],
        rampup_ratio: float | None = 0.05,
    ):
        self.params = dict(params)
        self.halflives_nimg = list(halflives_nimg)
        self.rampup_ratio = rampup_ratio
        self.copies = {ema_label(h): {n: p.detach().clone() for n, p in self.params.items()} for h in halflives_nimg}

    @torch.no_grad()
    def update_(self, cur_nimg: int, batch_size: int) -> None:
        """Move every copy towards the weights after a step of ``batch_size`` images, ``cur_nimg`` seen before it."""
        for halflife, copy in zip(self.halflives_nimg, self.copies.values(), strict=True):
            if self.rampup_ratio is not None:
                halflife = min(halflife, cur_nimg * self.rampup_ratio)
            beta = 0.5 ** (batch_size / halflife) if halflife > 0 else 0.0
            torch._foreach_lerp_(list(copy.values()), [p.detach() for p in self.params.values()], 1 - beta)


def ema_label(halflife_nimg: float) -> str:
    """The name of a copy in snapshots: its half-life in millions of images, as ``--ema`` takes it."""
    return f'{halflife_nimg / 1e6:g}'
