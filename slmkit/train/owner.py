"""One start at a time owns a run directory.

The first process locks `RUN/lock`, every other process a byte of it, and the system takes each lock back when its
process ends, however that happens. So a second start finds the first one, and what is left of a start whose first
process was killed. The locks are those of POSIX, which a network file system shares between its machines.

Some are mounted so that each machine locks for itself. So the owner also writes who it is to `RUN/owner.json`, again
and again, and a start on another machine looks whether that goes on.

Invariant: of the starts that are inside `owned` for the same directory, none writes there but one.

Example:
    with owned("runs/tts", world):      # UserError, in every process, when another start owns it
        ...
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slmkit.errors import UserError
from slmkit.files import disk_errors_named
from slmkit.group import in_first
from slmkit.log import get_logger
from slmkit.world import World

logger = get_logger(__name__)
LOCK, OWNER = "lock", "owner.json"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # a file system without any
LEAVE_SEC = 20.0  # how long processes of an earlier start may take to notice that their first one is gone
BEAT_SEC = 5.0  # between two writes of the owner
POLL_SEC = 0.2


@contextmanager
def owned(run_dir: str | Path, world: World) -> Iterator[None]:
    """Own `run_dir` for the block. Every process of the run enters it.

    Raises UserError, in every process, when another start owns it or the disk refuses.
    """
    run_dir = Path(run_dir)
    with contextlib.ExitStack() as stack:

        def take() -> None:
            with disk_errors_named(run_dir):
                run_dir.mkdir(parents=True, exist_ok=True)
                handle = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, handle)
            _take(run_dir, handle)
            _write(run_dir, who := _myself(), beat=0)
            done = threading.Event()
            beating = threading.Thread(target=_beat, args=(run_dir, who, done), name="owner", daemon=True)
            beating.start()
            stack.callback(beating.join)
            stack.callback(done.set)

        in_first(take)
        if not world.is_first:
            with disk_errors_named(run_dir):
                handle = os.open(run_dir / LOCK, os.O_RDWR)
            stack.callback(os.close, handle)
            _lock(handle, first=world.rank, length=1)
        yield


def _take(run_dir: Path, handle: int) -> None:
    """Lock the directory for the first process. Raises UserError when another start owns it."""
    if not _lock(handle, first=0, length=1):
        raise _owned_by(run_dir, "by another start")
    if not _within(LEAVE_SEC, lambda: _lock(handle, first=1, length=0)):  # all the other bytes
        raise _owned_by(run_dir, "by processes of an earlier start, which have not ended")
    with contextlib.suppress(OSError):
        fcntl.lockf(handle, fcntl.LOCK_UN, 0, 1)  # for the other processes of this start
    before = _read(run_dir)
    if before and f'"host": "{socket.gethostname()}"' not in before:
        logger.info("the last owner of %s did not say that it ended: %s; looking whether it goes on", run_dir, before)
        if _within(3 * BEAT_SEC, lambda: _read(run_dir) != before):
            raise _owned_by(run_dir, "by a start on another machine")


def _lock(handle: int, *, first: int, length: int) -> bool:
    """Whether this process has these bytes of the file now. Without locks in the file system it is taken to have."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, length, first)
    except OSError as error:
        if error.errno in NO_LOCKS:
            logger.warning("the file system of run_dir has no locks: nothing keeps a second start out of it")
            return True
        return False
    return True


def _within(seconds: float, is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SEC)
    return True


def _beat(run_dir: Path, who: dict[str, Any], done: threading.Event) -> None:
    """Say who owns the directory until that ends."""
    beat = 1
    while not done.wait(BEAT_SEC):
        _write(run_dir, who, beat)
        beat += 1
    with contextlib.suppress(OSError):
        (run_dir / OWNER).unlink()


def _myself() -> dict[str, Any]:
    return {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _write(run_dir: Path, who: dict[str, Any], beat: int) -> None:
    with contextlib.suppress(OSError):  # a full disk is noticed where something is lost
        (run_dir / OWNER).write_text(json.dumps({**who, "beat": beat}) + "\n")


def _read(run_dir: Path) -> str:
    try:
        return (run_dir / OWNER).read_text(errors="replace").strip()
    except OSError:
        return ""


def _owned_by(run_dir: Path, whom: str) -> UserError:
    return UserError(
        f"{run_dir} is being written {whom}",
        got=_read(run_dir) or "an owner that has not said who it is",
        expected="one training at a time in a run directory",
        next_step="wait for it, stop it, or choose another run_dir",
    )
