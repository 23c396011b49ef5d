"""Work in processes of its own, since a file may crash a process or hold it for ever.

Each process has a pipe of its own to this one, and a thread here that waits at it: one call goes over, its result comes
back. So when a process dies (a crash in a decoder, a machine short of memory), the call it had is known, the others go
on, and nobody waits for the rest of a result that was being written. The pools of concurrent.futures have one pipe for
all results: a process that dies while it writes there leaves the job waiting for ever.

Processes are started afresh (not forked, so that no thread or device of this process is copied), ignore the signals
that are for this process, and end when it does.

Example:
    with contextlib.closing(Workers(4)) as workers:
        future = workers.submit(decode, item, decoding, limit_sec=120.0)
        future.result()                        # or WorkerDied
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from slmkit.errors import UserError
from slmkit.stopping import STOPPING

R = TypeVar("R")


class WorkerDied(Exception):
    """The process that did the work has ended before its result was there, or was ended since it took too long."""


class Workers:
    """`number` processes, each started when it is first needed and again after its death."""

    def __init__(self, number: int) -> None:
        self._threads = ThreadPoolExecutor(number)
        self._own = threading.local()  # `worker`: the process and the pipe of a thread
        self._lock = threading.Lock()
        self._processes: set[SpawnProcess] = set()
        self._is_closed = False

    def submit(self, function: Callable[..., R], *args: Any, limit_sec: float | None = None) -> "Future[R]":
        """Call a function of a module in a process, which is ended when that takes more than `limit_sec` seconds.

        A call whose process died is made once more. The result raises what the function raised, WorkerDied, or
        UserError when no process can be started.
        """
        return self._threads.submit(self._call, limit_sec, function, args)

    def close(self) -> None:
        """End the processes without waiting for what nobody asks for any more."""
        with self._lock:
            self._is_closed = True
            for process in self._processes:
                process.kill()
        self._threads.shutdown(cancel_futures=True)

    def _call(self, limit_sec: float | None, function: Callable[..., R], args: tuple[Any, ...]) -> R:
        died: Exception | None = None
        for _ in range(2):  # once more: the system may have ended the process for lack of memory
            if getattr(self._own, "worker", None) is None:
                self._own.worker = self._start()
            process, pipe = self._own.worker
            try:
                pipe.send((function, args))
                pipe.recv()  # the function and its module are loaded there: only now its time counts
                if not pipe.poll(limit_sec):
                    raise TimeoutError(f"no result after {limit_sec} s")
                failed, result = pipe.recv()
            except (EOFError, OSError) as error:
                self._own.worker = None
                self._end(process, pipe)
                died = error
                if isinstance(error, TimeoutError):
                    break
                continue
            if failed:
                raise result
            return result
        raise WorkerDied(f"the process of the call ended: {died}") from died

    def _start(self) -> tuple[SpawnProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        with self._lock:  # also so that no process is started when the others have been ended
            if self._is_closed:
                raise WorkerDied("closed")
            pipe, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # the only other end is the worker's: with it the pipe ends
            self._processes.add(process)
        try:
            pipe.recv()
        except (EOFError, OSError) as error:
            self._end(process, pipe)
            raise UserError(
                "worker processes cannot be started", next_step="check the memory left, or run with num_workers=0"
            ) from error
        return process, pipe

    def _end(self, process: SpawnProcess, pipe: Connection) -> None:
        pipe.close()
        process.kill()
        process.join()
        with self._lock:
            self._processes.discard(process)


def _serve(pipe: Connection) -> None:
    """What a worker does until the other end of its pipe is closed."""
    start_worker()
    pipe.send("ready")
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        pipe.send("begun")
        try:
            reply = (False, function(*args))
        except Exception as error:  # noqa: BLE001 - a bug, too, is raised where the result is wanted
            if not isinstance(error, UserError):
                error.add_note(traceback.format_exc())
            reply = (True, error)
        pipe.send(reply)


def start_worker() -> None:
    """Make this process a worker: signals do not end it, the death of its parent does, and C code is silent."""
    # Slurm and a terminal send them to all processes of a job, but the main process decides when work ends.
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    # Decoders in C write a line about each damaged frame to file descriptor 2.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
