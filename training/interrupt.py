"""SIGINT and SIGTERM as a request: finish the step, save, say how to go on."""

import signal

import torch

from torch_utils import distributed as dist


class StopRequest:
    """While it is entered, the first SIGINT or SIGTERM is remembered; a second one ends the process as usual."""

    def __init__(self):
        self.number = 0
        self._asked = torch.zeros((), dtype=torch.int64)  # any rank's number, once the reduction on its way is done
        self._on_its_way = None

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
        """Whether any rank was asked to stop; all ranks must ask after each of their steps.

        With several ranks it is what they were asked before the last step, so that none waits for the slowest.
        """
        if dist.get_world_size() == 1:
            return self.number != 0
        if self._on_its_way is not None:
            self._on_its_way.wait()
            if self._asked:
                self.number = int(self._asked)
                return True
        self._asked.fill_(self.number)
        self._on_its_way = dist.all_reduce_(self._asked, 'max', wait=False)
        return False

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        return 128 + self.number
