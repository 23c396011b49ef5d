"""The processes of a run end together: a user error on any of them is shown once and gives every one exit code 2.

Without this, a process that fails alone leaves the others waiting inside a collective operation until a time-out.
The processes meet at MASTER_ADDR:MASTER_PORT, which every launcher sets; a thread of each looks there for failures.
It works before and beside torch's process group, and with one process does nothing.

Invariant: inside `together`, every process leaves by the end of the block or within seconds of the first failure.

Example:
    with together(World.from_env()):
        train(load_config(TrainConfig, path))
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from slmkit.errors import UserError
from slmkit.world import World

POLL_SEC = 0.5
LINGER_SEC = 10.0  # the longest wait for the others to notice a failure
MEET_TIMEOUT = timedelta(minutes=10)
USER_ERROR, CRASH = 2, 1  # exit codes
FAILURES, CODE = "slmkit/failures", "slmkit/code"


@contextlib.contextmanager
def together(world: World) -> Iterator[None]:
    """Run the block as one of `world.size` processes.

    The first UserError of all is raised again where it happened; everywhere else the process leaves without a word.
    """
    if world.size == 1:
        yield
        return
    meeting = _Meeting(world)
    reported = False
    try:
        yield
        meeting.leave()
        reported = True
    except UserError:
        reported = True
        if not meeting.fail(USER_ERROR):
            sys.exit(USER_ERROR)
        raise
    finally:
        if not reported:
            meeting.fail(CRASH)


class _Meeting:
    """A connection to the store all processes share, and the thread that watches it."""

    def __init__(self, world: World) -> None:
        self.world = world
        try:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            # The server lives as long as this object; torch's process group shares it later, under the same port.
            self.server, _, _ = next(
                dist.rendezvous("env://", rank=world.rank, world_size=world.size, timeout=MEET_TIMEOUT)
            )
            # A connection of its own, so that looking for failures never waits behind another request.
            self.store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=MEET_TIMEOUT)
        except (KeyError, ValueError, dist.DistError) as error:
            raise UserError(
                f"the {world.size} processes cannot meet: {error!r}",
                expected="MASTER_ADDR and MASTER_PORT naming a free port of the first process",
                next_step="start through deepspeed or torchrun, or export both variables in the sbatch script",
            ) from error
        self.done = threading.Event()
        self.watcher = threading.Thread(target=self._watch, name="peers", daemon=True)
        self.watcher.start()

    def fail(self, code: int) -> bool:
        """Tell the others. True if no one failed before; then the caller is the one to report."""
        self.done.set()
        self.watcher.join()
        try:
            is_first = self.store.add(FAILURES, 1) == 1
            if is_first:
                self.store.set(CODE, str(code))
        except dist.DistError:
            return True
        self._linger("slmkit/seen")
        return is_first

    def leave(self) -> None:
        """The end of the block."""
        self.done.set()
        self.watcher.join()
        self._linger("slmkit/left")

    def _watch(self) -> None:
        while not self.done.wait(POLL_SEC):
            try:
                if self.store.add(FAILURES, 0) == 0:
                    continue
                code = int(self.store.get(CODE))
                self._linger("slmkit/seen")
            except dist.DistError:
                print(f"[rank {self.world.rank}] lost the first process of the run", file=sys.stderr)
                code = CRASH
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _linger(self, key: str) -> None:
        """Wait until every process is here, but not for ever; the first one, which serves the store, leaves last."""
        deadline = time.monotonic() + LINGER_SEC
        with contextlib.suppress(dist.DistError):  # the first process was killed
            self.store.add(key, 1)
            self._wait(key, self.world.size, deadline)
            if self.world.is_first:
                self._wait(f"{key}/gone", self.world.size - 1, deadline)
            else:
                self.store.add(f"{key}/gone", 1)

    def _wait(self, key: str, count: int, deadline: float) -> None:
        while self.store.add(key, 0) < count and time.monotonic() < deadline:
            time.sleep(POLL_SEC / 10)
