"""Ctrl-C and SIGTERM: a run is asked to stop, and stops in order."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

GRACE_SECONDS = 2.0


class Stopped(SystemExit):
    """A run stopped on request, its state saved; exit status 128 + the signal: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, number: int):
        super().__init__(128 + number)


class StillRunningError(Exception):
    """A call had not ended when the time to wait for it was over; it goes on in its thread."""


class Stop:
    """Whether a stop has been asked for: by which signal, and when."""

    def __init__(self):
        self.number: int | None = None
        self.since = 0.0

    def ask(self, number: int, frame: Any = None) -> None:
        """The handler. A second Ctrl-C stops at once, as Python does by itself."""
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number, self.since = number, time.monotonic()

    @property
    def overdue(self) -> bool:
        """Whether the grace for a call under way is over."""
        return self.number is not None and time.monotonic() - self.since > GRACE_SECONDS

    def patiently(self, work: Callable[[], Any]) -> Any:
        """What `work` gives, done in another thread so that a signal is heard meanwhile.

        Raises StillRunningError where a stop was asked for and the work did not end within the grace.
        """
        done = threading.Event()
        result: list[Any] = []
        error: list[BaseException] = []

        def worker():
            try:
                result.append(work())
            except BaseException as problem:
                error.append(problem)
            finally:
                done.set()

        threading.Thread(target=worker, daemon=True).start()
        while not done.wait(0.2):
            if self.overdue:
                raise StillRunningError
        if error:
            raise error[0]
        return result[0]


@contextmanager
def stopping() -> Iterator[Stop]:
    """A `Stop` that hears SIGINT and SIGTERM inside; outside the main thread it hears nothing."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
