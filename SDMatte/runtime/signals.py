"""Signals that stop a run, and processes that end with their parent."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import NoReturn

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# Shells and schedulers often signal a process and its parent, which forwards the signal.
_SAME_SECONDS = 1.0


def exit_status(number: int) -> int:
    """Return the exit status of a process that a signal ended, as shells define it."""
    return 128 + number


@contextlib.contextmanager
def handling(handler: Callable[[int], None]) -> Iterator[None]:
    """Call a function with the number of each stop signal received in this context.

    This has no effect outside of the main thread.
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


@contextlib.contextmanager
def interrupted_once() -> Iterator[list[int]]:
    """Raise `KeyboardInterrupt` at the first stop signal; yield a list that records the signal.

    Later signals have no effect, so that they do not interrupt the handling of the first one.
    """
    received: list[int] = []

    def interrupt(number: int) -> None:
        if not received:
            received.append(number)
            raise KeyboardInterrupt

    with handling(interrupt):
        yield received


class StopRequest:
    """Record the first stop signal, which training checks between steps.

    Another signal, more than a second later, ends the process immediately.
    """

    def __init__(self) -> None:
        self.received: int | None = None  # number of the first signal
        # Set while the state is saved: raises an exception that ends the run at the first signal.
        self.leave: Callable[[int], NoReturn] | None = None
        self._since = 0.0
        self._pid = os.getpid()

    def listen(self) -> contextlib.AbstractContextManager[None]:
        """Record the signals received in the returned context."""
        return handling(self._take)

    def _take(self, number: int) -> None:
        if os.getpid() != self._pid:  # a forked loader worker; its parent handles the signal
            return
        now = time.monotonic()
        if self.received is None:
            self.received, self._since = number, now
            if self.leave is not None:
                self.leave(number)
        elif now - self._since > _SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def end_with_parent() -> None:
    """End this process when its parent ends, even if the parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
