"""Mean and deviation of reported values over samples, steps and ranks, without host synchronisation in the step."""

from typing import NamedTuple

import torch

from torch_utils import distributed


class Stat(NamedTuple):
    """Mean, standard deviation (of the population) and number of all values of one name."""

    mean: float
    std: float
    num: int


class Collector:
    """Collects values by name on the device, then reduces them over ranks.

        collector.report('loss', loss)      # in the step: [anything], no host synchronisation
        stats = collector.update()          # at the tick: on every rank, or on none

    Count, sum and sum of squares are added up in float64 (float32 on MPS, which has no other). A value that is not
    finite makes its name's mean not finite until the next ``update``.

    Args:
        device: where sums live; the device whose tensors are reported.
    """

    def __init__(self, device: str | torch.device = 'cpu'):
        self.device = torch.device(device)
        self.dtype = torch.float32 if self.device.type == 'mps' else torch.float64
        self.moments: dict[str, torch.Tensor] = {}  # name -> [3]: count, sum, sum of squares
        self.names: list[str] = []  # what the ranks agreed on, sorted

    @torch.no_grad()
    def report(self, name: str, values: torch.Tensor | float) -> None:
        """Add every element of ``values``."""
        if not isinstance(values, torch.Tensor):
            values = torch.full((), values, dtype=self.dtype, device=self.device)  # a fill: no copy from the host
        values = values.to(self.device, self.dtype)
        count = torch.full((), values.numel(), dtype=self.dtype, device=self.device)
        moments = torch.stack([count, values.sum(), values.square().sum()])  # [3]
        if name in self.moments:
            self.moments[name] += moments
        else:
            self.moments[name] = moments

    def update(self) -> dict[str, Stat]:
        """Statistics over all ranks of what was reported since the last call; names without a value are left out.

        All ranks must call it. Costs one reduction of one flat tensor; one more, and a gather, when a rank comes with a
        name that the ranks have not yet agreed on.
        """
        new = sorted(self.moments.keys() - set(self.names))
        *sums, num_new = self._reduce(self.names, len(new))
        if num_new:
            new = sorted(set().union(*distributed.all_gather_object(new)))
            more = self._reduce(new, 0)[:-1]
            sums = [m for _, m in sorted(zip(self.names + new, sums + more, strict=True))]
            self.names = sorted(self.names + new)
        self.moments = {}
        return {name: _stat(*m) for name, m in zip(self.names, sums, strict=True) if m[0] > 0}

    def _reduce(self, names: list[str], extra: float) -> list:
        """Sums over ranks: [count, sum, sum of squares] of each name, then ``extra``."""
        zero = torch.zeros(3, dtype=self.dtype, device=self.device)
        extra = torch.full((1,), extra, dtype=self.dtype, device=self.device)
        flat = torch.cat([*(self.moments.get(name, zero) for name in names), extra])  # [3 * names + 1]
        distributed.all_reduce_(flat)
        *flat, extra = flat.tolist()
        return [flat[i : i + 3] for i in range(0, len(flat), 3)] + [extra]


def _stat(count: float, total: float, squares: float) -> Stat:
    mean = total / count
    variance = squares / count - mean**2
    return Stat(mean, max(variance, 0.0) ** 0.5 if variance == variance else variance, round(count))
