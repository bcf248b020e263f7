"""What must be set before torch is loaded and before anything is printed: import this module first.

Threads of OpenMP that wait for each other spin by default, for milliseconds. With any other busy process they spin
instead of that process running, and training becomes many times slower. If they sleep at once, training on a quiet
machine takes a third longer. Here they spin for some microseconds and then sleep, unless the user has set how threads
wait (benchmarks/waiting_threads.py).

Ctrl-C while torch is being loaded ends the script without a traceback; later on, the commands handle it.

A stream that the process was started without (``2>&-``) goes nowhere.

Names of files need not be text that a terminal can show: what it cannot is printed as an escape.
"""

import io
import os
import sys
import types

# GNU's OpenMP (PyTorch's wheels) reads the first, a number of tries; LLVM's and Intel's (conda, macOS) the last, which
# is in milliseconds.
WAITING = {'GOMP_SPINCOUNT': '10000', 'KMP_BLOCKTIME': '0'}
BY_THE_USER = {*WAITING, 'OMP_WAIT_POLICY', 'KMP_LIBRARY'}

if not BY_THE_USER & os.environ.keys():
    os.environ.update(WAITING)


def _uncaught(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print('Aborted!', file=sys.stderr)  # the process still ends as by the signal
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _uncaught

for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
    if getattr(sys, name) is None:  # the lowest free number is its own, which no other file then gets
        setattr(sys, name, open(os.devnull, mode))

for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors='backslashreplace')
