"""Orderly stops: Ctrl-C, SIGTERM, SIGHUP, or an output that is lost."""

import errno
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxnet.devices.processes import several

GRACE_SECONDS = 2.0
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
SIGPIPE = 13


class Stopped(SystemExit):
    """A run stopped on request, its state saved.

    Exit status: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP, 141 for a closed pipe, 2 for an output that fails.
    """


class StillRunningError(Exception):
    """A call had not ended when the time to wait for it was over; it goes on in its thread."""


class Stop:
    """A request to stop: its exit status and its time."""

    def __init__(self):
        self.status: int | None = None
        self.since = 0.0

    def ask(self, number: int, frame: Any = None) -> None:
        """The handler. A second Ctrl-C stops at once, as Python does by itself."""
        if self.status is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.status, self.since = 128 + number, time.monotonic()

    def output_lost(self, error: OSError) -> None:
        """Asks for a stop because stdout cannot be written: its reader is gone, or its disk is full."""
        if self.status is None:
            self.status, self.since = (128 + SIGPIPE if error.errno == errno.EPIPE else 2), time.monotonic()

    @property
    def overdue(self) -> bool:
        """Whether the time to wait for the current call is over."""
        # Of several processes none may leave a call that the others are in.
        return not several() and self.status is not None and time.monotonic() - self.since > GRACE_SECONDS

    def patiently(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, computed in another thread so that signals are heard meanwhile.

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
    """A `Stop` that hears SIGINT, SIGTERM and SIGHUP inside; outside the main thread it hears nothing.

    A signal that is ignored stays ignored: so `nohup` keeps a run from SIGHUP.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop.ask) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
