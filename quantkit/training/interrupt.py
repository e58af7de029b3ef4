"""How does a run end that is told to end?

On the first Ctrl-C or SIGTERM the step is finished and a checkpoint saved; on the second the run stops at once. Dying on
the first, Python's habit, loses the steps since the last checkpoint; ignoring it takes the terminal away from its user.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NOTICE = b"\nfinishing this step and saving a checkpoint; once more to stop at once\n"


class Interruption:
    """Whether a signal came."""

    def __init__(self, *, notice: bool) -> None:
        self.requested = False
        self._notice = notice

    def handle(self, _number: int, _frame: FrameType | None) -> None:
        """Note the first signal; raise `KeyboardInterrupt` on the second."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self._notice:
            os.write(2, NOTICE)  # a handler may run inside a print, where printing again is an error


def left_to_the_parent(_worker: int = 0) -> None:
    """Ignore both signals: a terminal sends them to the workers of a data loader as well, and the step needs its batches."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def interruptible(*, notice: bool = True) -> Iterator[Interruption]:
    """Catch SIGINT and SIGTERM while inside; outside the main thread, where Python delivers none, catch nothing."""
    interruption = Interruption(notice=notice)
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.signal(number, interruption.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
