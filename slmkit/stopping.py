"""How work is stopped: by SIGTERM, SIGINT or SIGUSR1, with exit code 75 where another start continues it.

Schedulers send them before a time limit or a preemption, to any process, at any moment, and sometimes twice. Work
either asks between its steps (`Signals`) or is interrupted where it is (`stopping`); in both cases the first signal
decides, and later ones do not change the exit code.

Kept free of heavy imports: it is set up before they begin.

Example:
    with Signals.installed() as signals:
        signals.received        # None, or "SIGTERM"
    with stopping():
        ...                     # Stopped is raised here
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STOPPED = 75  # exit code; EX_TEMPFAIL of sysexits.h: try again
USER_ERROR, CRASH = 2, 1  # exit codes: what another start does not mend, and all else
PR_SET_PDEATHSIG = 1  # of prctl(2)
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Signals:
    """The first stopping signal this process got, noted and not acted upon.

    A handler of Python runs only between two steps of the interpreter, not while the main thread waits inside a
    collective operation. The system writes the number of the signal into a pipe at once (`signal.set_wakeup_fd`), and
    whoever asks `received` reads it there, from any thread.
    """

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

        def handler(number: int, frame: FrameType | None) -> None:
            pass  # the pipe has the number; without a handler the signal would end the process

        signals = Signals()
        before = {number: signal.signal(number, handler) for number in STOPPING}
        pipe = signal.set_wakeup_fd(signals._write, warn_on_full_buffer=False)
        try:
            yield signals
        finally:
            signal.set_wakeup_fd(pipe)
            for number, earlier in before.items():
                signal.signal(number, signal.SIG_IGN if signals.is_obeyed else earlier)

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


def stop_with_parent(parent: int | None = None) -> None:
    """Get SIGTERM when the process that started this one ends, however that happens. Linux alone can do it.

    `parent` is the id of that process where this is called between fork and exec; it may be 1, as in a container.
    """
    if sys.platform == "linux":
        if parent is not None:  # the handler of `Signals` would tell the parent, and exec would go on
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == 1 if parent is None else os.getppid() != parent:  # it has ended already
            os.kill(os.getpid(), signal.SIGTERM)


class Stopped(BaseException):
    """This process was told to stop. Not an Exception: nothing may take it for an error of a file."""


@contextmanager
def stopping() -> Iterator[None]:
    """Inside, the first stopping signal raises Stopped, with its name, in the main thread; further ones are ignored
    until the process ends. Without a signal the handlers are as before afterwards."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for known in STOPPING:
            signal.signal(known, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        yield
    finally:
        for number, earlier in before.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, earlier)
