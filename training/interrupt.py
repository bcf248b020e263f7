"""SIGINT and SIGTERM as a request: finish the step, save, say how to go on."""

import signal

import torch

from torch_utils import distributed as dist


class StopRequest:
    """While it is entered, the first SIGINT or SIGTERM is remembered; a second one ends the process as usual."""

    def __init__(self):
        self.number = 0

    def __enter__(self) -> 'StopRequest':
        self._before = {s: signal.signal(s, self._remember) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame) -> None:
        self.number = number
        for s, handler in self._before.items():
            signal.signal(s, handler)

    def agreed(self) -> bool:
        """Whether any rank was asked to stop; all ranks must ask at the same step."""
        if dist.get_world_size() > 1:
            number = torch.tensor(self.number)
            dist.all_reduce_(number, 'max')
            self.number = int(number)
        return self.number != 0

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        return 128 + self.number
