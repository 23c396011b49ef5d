"""The processes of a run stop together, whatever makes one of them stop.

- A user error on any of them is shown once and gives every one exit code 2.
- A process that crashed, died or makes no progress ends all within the time-out, and is named with where it was.
- A signal (`stopping`) on any of them before training began ends all with exit code 75: nothing is lost yet.
  During training the loop asks for it between steps and writes a checkpoint first.

Without this, the others wait inside a collective operation until it times out. The processes meet at
MASTER_ADDR:MASTER_PORT, which every launcher sets; a thread of each writes there how far its main thread is and looks
for failures, and the thread of the first process judges. It works before and beside torch's process group. A process
alone needs no meeting and has the rest.

Progress is counted in calls of `at`. Every process makes the same calls in the same order, so those with the lowest
count are the ones the others wait for.

Invariant: inside `together`, every process leaves by the end of the block or within seconds of the first failure.

Example:
    with Signals.installed() as signals, together(World.from_env(), signals) as peers:
        with peers.watched(timeout_sec=600):
            peers.at("reading data", step=12)
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import torch.distributed as dist

from slmkit.errors import UserError
from slmkit.stopping import CRASH, STOPPED, USER_ERROR, Signals
from slmkit.texts import visible
from slmkit.world import MAX_PORT, World, agent_attempt, launch_identity

POLL_SEC = 0.5
LINGER_SEC = 10.0  # the longest wait for the others to notice a failure
DEAD_SEC = 6 * POLL_SEC  # a process that gives no sign for so long after another one failed is dead
STACK_SEC = 5.0  # the longest wait for the stack of a process that hangs
MEET_TIMEOUT = timedelta(minutes=10)
SILENCE_SEC = 120.0  # before training, how long a process may give no sign of life
FAILURES, CODE, REASON, BLAMED = "slmkit/failures", "slmkit/code", "slmkit/reason", "slmkit/blamed"
SIGN, STACK, PLACE = "slmkit/sign", "slmkit/stack", "slmkit/place"  # of a rank
LAUNCH = "slmkit/launch"  # whose store it is
STACKS_SHOWN = 4


class Activity(NamedTuple):
    """What the main thread of a process does, and how far it is."""

    calls: int = 0  # of `at`
    doing: str = "starting"
    step: int = 0
    is_timed: bool = True  # whether standing still in it counts

    def __str__(self) -> str:
        return f"{self.doing} at step {self.step}" if self.step else self.doing


class Peers:
    """What a process knows of the others. Without `together` around it, it only remembers where it is."""

    def __init__(self, world: World, signals: Signals | None = None) -> None:
        self.world, self._signals = world, signals or Signals()
        self.activity = Activity()
        self.timeout_sec: float | None = None  # of progress; None before and after training
        self.ends_on_signal = True  # until training begins

    def at(self, doing: str, step: int, *, is_timed: bool = True) -> None:
        """Say what the main thread does next; every process says the same in the same order.

        What is not timed may take as long as it takes, such as waiting for a disk.
        """
        self.activity = Activity(self.activity.calls + 1, doing, step, is_timed)

    @property
    def signal(self) -> str | None:
        """The stopping signal this process got, if any."""
        return self._signals.received

    @contextlib.contextmanager
    def watched(self, timeout_sec: float) -> Iterator[None]:
        """Signals no longer end the process, which asks for them itself; standing still for `timeout_sec` does.

        With 0, standing still does not.
        """
        self.ends_on_signal = False
        self.timeout_sec = timeout_sec
        yield
        self.timeout_sec = None


@contextlib.contextmanager
def together(world: World, signals: Signals | None = None) -> Iterator[Peers]:
    """Run the block as one of `world.size` processes.

    The first UserError of all is raised again where it happened; everywhere else the process leaves without a word.
    """
    peers = Peers(world, signals)
    watch = _Watch(peers)
    watch.start()
    reported = False
    try:
        yield peers
        watch.leave()
        reported = True
    except UserError:
        reported = True
        if not watch.fail(USER_ERROR):
            sys.exit(USER_ERROR)
        raise
    finally:
        if not reported:
            watch.fail(CRASH, watch.diagnosis())


class _Watch:
    """The thread beside the main thread, and its connection to the store all processes share."""

    def __init__(self, peers: Peers) -> None:
        self.peers, self.world = peers, peers.world
        self.store: dist.Store | None = None
        self.jury: _Jury | None = None
        self.answered_at = time.monotonic()  # when the store last did what it was asked
        self.done, self.left = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._watch, name="peers", daemon=True)

    def start(self) -> None:
        """Watch for signals, then meet the others and watch them, too."""
        self.thread.start()
        world = self.world
        if world.size == 1:
            return
        try:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            if not 0 < port <= MAX_PORT:
                raise ValueError(f"MASTER_PORT is {port}")
            self.store = self._meet(address, port)
        except (KeyError, ValueError, dist.DistError) as error:
            raise UserError(
                f"the {world.size} processes cannot connect: {error!r}",
                expected="MASTER_ADDR and MASTER_PORT naming a free port of the first process",
                next_step="start through `slmkit launch`, deepspeed or torchrun, or export both in the sbatch script",
            ) from error
        self.answered_at = time.monotonic()
        if not world.is_first:
            threading.Thread(target=self._guard, name="peers-guard", daemon=True).start()

    def _meet(self, address: str, port: int) -> dist.Store:
        """The store of this launch, once every process has taken its place in it.

        Whoever comes to the store of another launch writes nothing into it. Raises UserError for that, for a place that
        is taken, and naming the processes that did not come.
        """
        world, attempt, where = self.world, agent_attempt(), f"{address}:{port}"
        # The server lives as long as this object; torch's process group shares it later, under the same port.
        self.server = dist.TCPStore(
            address,
            port,
            world.size,
            is_master=world.is_first and attempt is None,
            timeout=MEET_TIMEOUT,
            wait_for_workers=False,
            multi_tenant=True,
        )
        # A connection of its own, so that looking for failures never waits behind another request.
        store: dist.Store = dist.TCPStore(
            address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=SILENCE_SEC)
        )
        if attempt is not None:
            store = dist.PrefixStore(f"attempt {attempt}", store)
        mine, deadline = f"{world.size} processes {launch_identity()}".strip(), time.monotonic() + MEET_TIMEOUT.seconds
        if world.is_first:
            store.compare_set(LAUNCH, "", mine)
        while not store.check([LAUNCH]) and time.monotonic() < deadline:
            time.sleep(POLL_SEC / 10)
        found = store.get(LAUNCH).decode() if store.check([LAUNCH]) else "no launch of slmkit"
        if found != mine:
            raise UserError(
                f"rank {world.rank} was started for another launch than the one at {where}",
                got=found,
                expected=mine,
                next_step="choose another port (`slmkit launch --master-port`, MASTER_PORT) for one of the two",
            )
        place, me = f"{PLACE}/{world.rank}", f"{socket.gethostname()}, process {os.getpid()}"
        taken = store.compare_set(place, "", me).decode()
        if taken != me:
            raise UserError(
                f"rank {world.rank} of the launch at {where} is there already",
                got=f"{taken}; this is {me}",
                expected="every rank once",
                next_step="choose another port for a second launch, or give each process a RANK of its own",
            )
        places = {rank: f"{PLACE}/{rank}" for rank in range(world.size)}
        while not store.check(list(places.values())):
            if time.monotonic() > deadline:
                missing = ", ".join(str(rank) for rank, place in places.items() if not store.check([place]))
                raise UserError(f"ranks {missing} of {world.size} did not come to {where} within {MEET_TIMEOUT}")
            time.sleep(POLL_SEC / 10)
        return store

    def diagnosis(self) -> str:
        """Why the main thread failed, as far as the others' signs of life tell: it may be that one of them died."""
        reason = f"rank {self.world.rank} failed while {self.peers.activity}"
        if self.store is None:
            return reason
        try:
            before = self._signs(self.store)
            time.sleep(DEAD_SEC)
            after = self._signs(self.store)
        except dist.DistError:
            return f"{reason}: lost the first process of the run"
        dead = [_named(rank, json.loads(sign)) for rank, sign in after.items() if before.get(rank) == sign]
        return f"{reason}: no sign of life from {'; '.join(dead)}" if dead else reason

    def fail(self, code: int, reason: str = "") -> bool:
        """Tell the others. True if no one failed before; then the caller is the one to report."""
        self._stop()
        if reason:
            self._say(reason)
        if self.store is None:
            return True
        try:
            is_first = _tell(self.store, code, reason)
            self._linger("slmkit/seen")
        except dist.DistError:
            is_first = True
        self.left.set()
        return is_first

    def leave(self) -> None:
        """The end of the block."""
        self._stop()
        self._linger("slmkit/left")
        self.left.set()

    def _stop(self) -> None:
        self.done.set()
        if self.thread is not threading.current_thread():
            self.thread.join()

    def _watch(self) -> None:
        """Twice a second: look for a signal, give a sign of life, look for failures; the first process judges."""
        sign, here = 0, (socket.gethostname(), os.getpid())
        while not self.done.wait(POLL_SEC):
            if self.peers.ends_on_signal and self.peers.signal is not None:
                reason = f"rank {self.world.rank} got {self.peers.signal} before training began"
                with contextlib.suppress(dist.DistError):
                    if self.store is not None:
                        _tell(self.store, STOPPED, reason)
                        self._linger("slmkit/seen")
                self._exit(STOPPED, reason)  # the main thread may be waiting for something
            if self.jury is None and (self.store is not None or self.world.size == 1):
                self.jury = _Jury(self.world.size)
            if self.jury is None:
                continue
            sign += 1
            text = json.dumps([sign, *self.peers.activity, *here])
            try:
                if self.store is None:
                    self.jury.hear({0: text}, self.peers.timeout_sec)
                else:
                    self.store.set(f"{SIGN}/{self.world.rank}", text)
                    if self.store.add(FAILURES, 0):
                        self._follow(self.store)
                    if self.world.is_first:
                        self.jury.hear(self._signs(self.store), self.peers.timeout_sec)
                if self.jury.blamed:
                    self._accuse(self.jury)
            except dist.DistError:
                self._exit(CRASH, self._lost())
            self.answered_at = time.monotonic()

    def _guard(self) -> None:
        """A request to a first process that is there but does not run waits for ever: watch the thread that asks."""
        while not self.left.wait(POLL_SEC):
            timeout_sec = self.peers.timeout_sec
            limit_sec = SILENCE_SEC if timeout_sec is None else timeout_sec
            if limit_sec and time.monotonic() - self.answered_at > limit_sec:
                self._exit(CRASH, self._lost())

    def _lost(self) -> str:
        return f"lost the first process of the run (rank 0), which does not answer, while {self.peers.activity}"

    def _signs(self, store: dist.Store) -> dict[int, str]:
        """The last sign of every process that has given one."""
        known = [rank for rank in range(self.world.size) if store.check([f"{SIGN}/{rank}"])]
        signs = store.multi_get([f"{SIGN}/{rank}" for rank in known])
        return {rank: sign.decode() for rank, sign in zip(known, signs, strict=True)}

    def _accuse(self, jury: "_Jury") -> None:
        """Name the processes that hold the others up, and end."""
        if self.store is None:
            self._exit(CRASH, f"{jury.reason}\n{_stack()}")
            return
        self.store.set(BLAMED, json.dumps(jury.blamed))
        _tell(self.store, CRASH, jury.reason)
        stacks, deadline = [], time.monotonic() + STACK_SEC
        for rank in jury.blamed[:STACKS_SHOWN]:
            key = f"{STACK}/{rank}"
            while rank and not self.store.check([key]) and time.monotonic() < deadline:
                time.sleep(POLL_SEC / 10)
            if rank == 0 or self.store.check([key]):
                stacks.append(f"rank {rank} stands at:\n{_stack() if rank == 0 else self.store.get(key).decode()}")
        self._say("\n".join([jury.reason, *stacks]))
        self._linger("slmkit/seen")
        self._exit(CRASH)

    def _follow(self, store: dist.Store) -> None:
        """Another process failed."""
        code, reason = int(store.get(CODE)), store.get(REASON).decode()
        if store.check([BLAMED]) and self.world.rank in json.loads(store.get(BLAMED)):
            store.set(f"{STACK}/{self.world.rank}", _stack())
        if reason:
            self._say(f"ends too: {reason}")
        self._linger("slmkit/seen")
        self._exit(code)

    def _say(self, reason: str) -> None:
        print(visible(f"[rank {self.world.rank}] {reason}"), file=sys.stderr)

    def _exit(self, code: int, reason: str = "") -> None:
        if reason:
            self._say(reason)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _linger(self, key: str) -> None:
        """Wait until every process is here, but not for ever; the first one, which serves the store, leaves last."""
        store, deadline = self.store, time.monotonic() + LINGER_SEC
        if store is None:
            return

        def wait(name: str, count: int) -> None:
            while store.add(name, 0) < count and time.monotonic() < deadline:
                time.sleep(POLL_SEC / 10)

        with contextlib.suppress(dist.DistError):  # the first process was killed
            store.add(key, 1)
            wait(key, self.world.size)
            if self.world.is_first:
                wait(f"{key}/gone", self.world.size - 1)
            else:
                store.add(f"{key}/gone", 1)


class _Jury:
    """Finds out from the signs of life which processes hold the others up. Pure but for the clock."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.reason, self.blamed = "", list[int]()
        self._heard: dict[int, tuple[int, float]] = {}  # rank -> its last sign, when it came
        self._lowest = (-1, 0.0)  # the lowest count of progress, since when

    def hear(self, signs: dict[int, str], timeout_sec: float | None, now: float | None = None) -> None:
        """Take in the signs of all ranks; sets `blamed` and `reason` when the time-out is over."""
        now = time.monotonic() if now is None else now
        parsed: dict[int, list[Any]] = {rank: json.loads(text) for rank, text in signs.items()}
        for rank, (sign, *_) in parsed.items():
            if rank not in self._heard or self._heard[rank][0] != sign:
                self._heard[rank] = (sign, now)
        limit_sec = SILENCE_SEC if timeout_sec is None else timeout_sec
        silent = [rank for rank, (_, since) in self._heard.items() if limit_sec and now - since > limit_sec]
        if silent:
            self._blame(silent, parsed, f"no sign of life for {limit_sec:.0f} s")
        if timeout_sec is None or len(parsed) < self.size:
            self._lowest = (-1, now)
            return
        lowest = min(calls for _, calls, *_ in parsed.values())
        slow = [rank for rank, (_, calls, *_) in parsed.items() if calls == lowest]
        is_timed = all(_activity(parsed[rank]).is_timed for rank in slow)
        if lowest != self._lowest[0] or not is_timed:
            self._lowest = (lowest, now)
        elif timeout_sec and not silent and now - self._lowest[1] > timeout_sec:
            self._blame(slow, parsed, f"no progress for {timeout_sec:.0f} s")

    def _blame(self, ranks: list[int], parsed: dict[int, list[Any]], what: str) -> None:
        self.blamed = ranks
        named = [_named(rank, parsed[rank]) for rank in ranks[:STACKS_SHOWN]]
        more = f" and {len(ranks) - STACKS_SHOWN} more" if len(ranks) > STACKS_SHOWN else ""
        self.reason = f"{what} from {'; '.join(named)}{more}; the run ends"


def _tell(store: dist.Store, code: int, reason: str) -> bool:
    """Record a failure for all to see; whether it is the first."""
    is_first = store.add(f"{FAILURES}/claimed", 1) == 1
    if is_first:
        store.set(CODE, str(code))
        store.set(REASON, reason)
        store.add(FAILURES, 1)  # last, since it is what the others look for
    return is_first


def _activity(sign: list[Any]) -> Activity:
    return Activity(*sign[1:-2])


def _named(rank: int, sign: list[Any]) -> str:
    """A process in words, from its sign of life."""
    *_, host, pid = sign
    return f"rank {rank} ({host}, process {pid}), {_activity(sign)}"


def _stack() -> str:
    """Where the main thread is."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    return "".join(traceback.format_stack(frame))
