"""SIGINT, SIGTERM and SIGHUP as a request: finish the step, save, say how to resume."""

import os
import shlex
import signal
import threading
import time
from collections.abc import Callable

import torch

from torch_utils import distributed as dist

PATIENCE = 5.0  # seconds that a rank which is asked to stop waits for images, since other ranks may be in the step


class StopRequest:
    """While it is entered, the first SIGINT, SIGTERM or SIGHUP is remembered; a second one ends the process as usual.

    A closed terminal sends SIGHUP twice (the shell and the system do), so all but the first are ignored.
    """

    def __init__(self):
        self.number = 0
        self._asked = torch.zeros((), dtype=torch.int64)  # any rank's number, once the reduction on its way is done
        self._on_its_way = None

    def __enter__(self) -> 'StopRequest':
        numbers = [signal.SIGINT, signal.SIGTERM]
        hangup = getattr(signal, 'SIGHUP', None)
        if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:  # nohup ignores it
            numbers.append(hangup)
        if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
            numbers = []
        self._before = {number: signal.signal(number, self._remember) for number in numbers}
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame) -> None:
        self.number = self.number or number
        for s, handler in self._before.items():
            if s in (signal.SIGINT, signal.SIGTERM):
                signal.signal(s, handler)

    def wait(self, ready: Callable[[float], bool]) -> bool:
        """Wait for ``ready(seconds)``, which itself waits for at most so many seconds. False where the process is asked
        to stop and it is still not ready, with several ranks after ``PATIENCE`` more seconds."""
        patience = PATIENCE if dist.get_world_size() > 1 else 0.0
        asked = None
        while not ready(0.1):
            asked = asked or (time.monotonic() if self.number else None)
            if asked is not None and time.monotonic() - asked >= patience:
                return False
        return True

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

    def message(self, run_dir: str, cur_nimg: int) -> str:
        name = signal.Signals(self.number).name
        command = f'python train.py --resume={shlex.quote(os.path.abspath(run_dir))}'
        return f'Stopped by {name} at {cur_nimg:,} images; the state is saved. To resume:\n  {command}'

    @property
    def exit_code(self) -> int:
        return 128 + self.number
