"""Signals: those that ask a run to stop, and an alarm for what takes too long."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from SDMatte.errors import DataError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# A shell or a scheduler often sends one signal to a process and to its parent, which passes it on.
_SAME_SECONDS = 1.0


def exit_status(number: int) -> int:
    """The exit status of a process that ends because of a signal, as shells have it."""
    return 128 + number


@contextlib.contextmanager
def handling(handler: Callable[[int], None]) -> Iterator[None]:
    """Has a function called with the number of each stop signal that arrives inside.

    Only a main thread can do that; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        signal.signal(number, lambda received, frame: handler(received))
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous or signal.SIG_DFL)


class _TooLong(BaseException):
    """No `Exception`: what hangs might take that for an error of its own, and go on."""


@contextlib.contextmanager
def time_limit(seconds: float, describe: Callable[[], str]) -> Iterator[None]:
    """Ends what is inside when it takes too long, unless it waits deep in the system.

    Only a main thread can do that; in another one there is no limit.

    Args:
        seconds: The limit; 0: none.
        describe: Called at the limit, where it was reached; gives the message.

    Raises:
        DataError: The limit was reached.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise _TooLong(describe())

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TooLong as late:
        raise DataError(str(late)) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class StopRequest:
    """Notes a stop signal, for the training to look at between its steps.

    A second signal, later than a second after the first, ends the process at once.

    Attributes:
        received: The number of the signal; None: go on.
        leave: Called by the first signal where there is nothing to wait for, because the state
            is saved; it raises what ends the run.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.leave: Callable[[int], NoReturn] | None = None
        self._since = 0.0
        self._pid = os.getpid()

    def listen(self) -> contextlib.AbstractContextManager[None]:
        """Takes the signals that arrive inside."""
        return handling(self._take)

    def _take(self, number: int) -> None:
        if os.getpid() != self._pid:  # a loader's worker, forked; its parent sees to it
            return
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = number, now
            if self.leave is not None:
                self.leave(number)
        elif now - self._since > _SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
