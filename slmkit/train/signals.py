"""Signals that ask a run to stop: SIGTERM, SIGINT and SIGUSR1, noted and never acted upon here.

Schedulers send them before a time limit or a preemption, to any process, at any moment. A handler of Python runs only
between two steps of the interpreter, not while the main thread waits inside a collective operation; the system's part
of it writes the number into a pipe at once, and whoever asks `received` reads it there, from any thread.

Kept free of heavy imports: it is set up before they begin.

Example:
    with Signals.installed() as signals:
        signals.received        # None, or "SIGTERM"
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Signals:
    """The first stopping signal this process got."""

    def __init__(self) -> None:
        self.is_obeyed = False  # the process is about to end because of one
        self._first: str | None = None
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    @staticmethod
    @contextmanager
    def installed() -> "Iterator[Signals]":
        """Take over the stopping signals of this process for the block. To be entered in its main thread.

        When one of them is obeyed it is for good: launchers send more while the process ends, which must not change its
        exit code. They are ignored by the system then: an ending Python puts its own handlers away.
        """
        signals = Signals()
        before = {number: signal.signal(number, _noted) for number in STOPPING}
        pipe = signal.set_wakeup_fd(signals._write, warn_on_full_buffer=False)
        try:
            yield signals
        finally:
            signal.set_wakeup_fd(pipe)
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if signals.is_obeyed else handler)

    @property
    def received(self) -> str | None:
        """Name of the first stopping signal so far."""
        if self._first is None:
            try:
                numbers = os.read(self._read, 4096)
            except BlockingIOError:
                return None
            self._first = next((s.name for s in STOPPING if s in numbers), None)
        return self._first


def _noted(number: int, frame: FrameType | None) -> None:
    """The pipe has it already."""
