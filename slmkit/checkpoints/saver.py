"""Checkpoints written while training goes on.

`save` only notes what is to be saved; a thread of each process copies it into host memory while the next step goes
forward and backward, and then writes it. Before that step changes a weight, it waits for the copy. Over
the store that torch's process group met at, on a connection of their own, the threads tell the first process what they
have written. That one writes the marker when all are done, or removes what there is when any has failed, and tells
the others. No collective operation is involved, so none can get between those of training.

What a save has come to is known in every process when the next `save` or a `wait` begins. There a failure raises the
same UserError in all ("stop") or is counted in `failures` by all ("continue").

Invariant: a checkpoint is declared complete only when every file of every process is on the disk. The checkpoints
before it are there until then.

Example:
    with Saver(run_dir, world, keep_last=2) as saver:
        saver.prepare(trainer)
        ...
        stall_sec = saver.save(trainer, step, {"facts": facts})
        ...
        saver.wait()
"""

import contextlib
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch.distributed as dist

from slmkit.checkpoints import checkpoint
from slmkit.checkpoints.host_copy import HostCopy
from slmkit.config import run_dir as runs
from slmkit.errors import UserError
from slmkit.log import get_logger
from slmkit.world import World

logger = get_logger(__name__)
GRACE_SEC = 10.0  # how long a save goes on waiting for other processes once training has ended with an error
PAUSES_SEC = (0.005, 0.5)  # the first and the longest pause between two looks at the store
_count = itertools.count()  # of the savers of this process, which every process makes in the same order
Report = dict[str, Any]  # {"files": {name: (bytes, SHA-256)}} or {"error": {field: text}}; plain JSON
Parts = list[tuple[str, Any]]  # (file name, value)


class Trainer(Protocol):
    """What is saved: a `TrainEngine`. It calls `before_update` before it changes anything of what `parts` gave."""

    before_update: Callable[[], None]

    def parts(self, path: Path, copy: Callable[[Any], Any]) -> Parts: ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a save has come to, in all processes together."""

    step: int
    seconds: float  # from the call of `save` to the marker
    num_bytes: int
    error: UserError | None


class Saver:
    """Writes the checkpoints of a run. Every process has one, and calls the same methods in the same order."""

    def __init__(
        self,
        run_dir: str | Path,
        world: World,
        *,
        keep_last: int,
        keep_every_steps: int = 0,
        asynchronous: bool = True,
        on_error: Literal["stop", "continue"] = "stop",
    ) -> None:
        """With more than one process, inside torch's process group. Not `asynchronous`: `save` returns when all is
        written, and nothing is copied."""
        self.failures = 0
        self.last_error: UserError | None = None  # of the last save that has ended
        self.stall_sec = 0.0  # for which training was stopped by all saves so far
        self._run_dir, self._world, self._on_error = Path(run_dir), world, on_error
        self._keep = (keep_last, keep_every_steps)
        self._copy = HostCopy() if asynchronous else None
        self._ballot = _Ballot(world, next(_count))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[Outcome] | None = None
        self._outcomes: deque[Outcome] = deque()
        self._saved_step: int | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def is_writing(self) -> bool:
        """Whether this process has not heard yet that the last save has ended."""
        return self._writing is not None and not self._writing.done()

    def prepare(self, trainer: Trainer) -> None:
        """Take the host memory now, so that the first save does not stop training for longer than the others."""
        if self._copy is not None:
            self._take(trainer, runs.root(self._run_dir) / runs.name(0))
            self._copy.make()

    def save(self, trainer: Trainer, step: int, state: dict[str, Any]) -> float:
        """Begin the checkpoint of `step`; returns the seconds this took. `stall_sec` counts the wait for the copy too.

        A save still going on is finished first, which counts. Nothing happens if that was of the same step. `state`,
        plain JSON, is the first process's. Raises as `wait` does.
        """
        start = time.monotonic()
        self.wait()
        if step != self._saved_step:
            parts = self._take(trainer, runs.root(self._run_dir) / runs.name(step))
            parts.append((checkpoint.random_file(self._world.rank), checkpoint.random_state()))
            self._writing = self._thread.submit(self._write, step, parts, state)
            if self._copy is None:
                self.wait()
        seconds = time.monotonic() - start
        self.stall_sec += seconds
        return seconds

    def poll(self) -> list[Outcome]:
        """The saves that have ended since the last call. It asks nobody, so processes may learn at different steps."""
        return [self._outcomes.popleft() for _ in range(len(self._outcomes))]

    def wait(self) -> None:
        """Finish what is being written. With `on_error` "stop", a failure raises its UserError in every process."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        outcome = writing.result()
        self.last_error = outcome.error
        if outcome.error is None:
            self._saved_step = outcome.step
            return
        self.failures += 1
        if self._on_error == "stop":
            raise outcome.error
        if self._world.is_first:
            logger.error("training goes on without the checkpoint of step %d: %s", outcome.step, outcome.error)

    def close(self) -> None:
        """The end, also after an error: finish what is being written, unless the other processes no longer answer."""
        self._ballot.deadline = time.monotonic() + GRACE_SEC
        self._thread.shutdown()

    def _take(self, trainer: Trainer, path: Path) -> Parts:
        """The files of this process, as they are to be at this moment."""
        if self._copy is None:
            return trainer.parts(path, lambda value: value)
        self._copy.begin()
        trainer.before_update = self._hold
        return trainer.parts(path, self._copy)

    def _hold(self) -> None:
        """Keep training from changing what is not yet copied."""
        assert self._copy is not None
        start = time.monotonic()
        self._copy.wait()
        self.stall_sec += time.monotonic() - start

    def _write(self, step: int, parts: Parts, state: dict[str, Any]) -> Outcome:
        """The work of the thread: copy, write, agree, tell."""
        start = time.monotonic()
        if self._copy is not None:
            self._copy.make()
        report = self._ballot.of(
            lambda: {"files": self._write_parts(step, parts)},
            lambda reports: {"num_bytes": self._complete(step, state, reports)},
            lambda: self._discard(step),
        )
        error = UserError(**report["error"]) if "error" in report else None
        num_bytes = 0 if error else report["num_bytes"]
        outcome = Outcome(step=step, seconds=time.monotonic() - start, num_bytes=num_bytes, error=error)
        self._outcomes.append(outcome)
        return outcome

    def _write_parts(self, step: int, parts: Parts) -> dict[str, checkpoint.Written]:
        path = runs.root(self._run_dir) / runs.name(step)
        return {file: checkpoint.write(path / file, value) for file, value in parts}

    def _complete(self, step: int, state: dict[str, Any], reports: Sequence[Report]) -> int:
        """Declare the checkpoint complete; returns its bytes. Only the first process does it."""
        path = runs.root(self._run_dir) / runs.name(step)
        written = {file: checkpoint.Written(*of) for report in reports for file, of in report["files"].items()}
        with checkpoint.writing(path):
            found = {file.name: file.stat().st_size for file in path.iterdir()}
        for file, (size, _) in written.items():
            if found.get(file) != size:
                raise UserError(
                    f"{path / file} differs from what another process wrote",
                    got=found.get(file, "no such file"),
                    expected=f"{size} bytes",
                    next_step="put run_dir on a file system that all nodes share",
                )
        checkpoint.finish(self._run_dir, step, state, {file: of.sha256 for file, of in written.items()})
        with self._warned():
            checkpoint.prune(self._run_dir, *self._keep)
        logger.info("saved %s", path)
        return sum(of.num_bytes for of in written.values())

    def _discard(self, step: int) -> None:
        with self._warned():
            checkpoint.discard(self._run_dir, step)

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        """What cannot be removed does no harm yet."""
        try:
            yield
        except OSError as error:
            logger.warning("cannot remove old files in %s: %s", runs.root(self._run_dir), error)


class _Ballot:
    """How the threads of all processes find one answer, save after save, over a store.

    Invariant: when every process has read an answer, the store holds no key of it.
    """

    def __init__(self, world: World, saver: int) -> None:
        self.deadline: float | None = None  # when to stop waiting for others; set by another thread
        self._world, self._round, self._store = world, itertools.count(), None
        if world.size > 1:
            store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]  # own connection
            self._store = dist.PrefixStore(f"slmkit/saver/{saver}", store)

    def of(
        self, work: Callable[[], Report], decide: Callable[[Sequence[Report]], Report], undo: Callable[[], None]
    ) -> Report:
        """Do `work` everywhere. The first process, when all are done, makes the answer from what each of them reported:
        what `decide` returns, or the first error, after `undo`.

        A UserError of `work` or `decide` is such an error. Another exception is raised here, and an error elsewhere.
        """
        key = str(next(self._round))
        if not self._world.is_first:
            with _told(lambda mine: self._tell(key, mine)) as told:
                told.append(_attempt(work))
            return self._answer(key)
        with _told(lambda answer: self._publish(key, answer)) as told:
            reports = [_attempt(work), *self._reports(key)]
            failed = [report for report in reports if "error" in report]
            answer = failed[0] if failed else _attempt(lambda: decide(reports))
            if "error" in answer:
                undo()
            told.append(answer)
        return answer

    def _tell(self, key: str, mine: Report) -> None:
        assert self._store is not None
        self._store.set(f"{key}/{self._world.rank}", json.dumps(mine))
        self._store.add(f"{key}/done", 1)

    def _reports(self, key: str) -> list[Report]:
        """Those of the others."""
        if self._store is None:
            return []
        store, others = self._store, range(1, self._world.size)
        self._wait(lambda: store.add(f"{key}/done", 0) == len(others))
        return [json.loads(store.get(f"{key}/{rank}")) for rank in others]

    def _publish(self, key: str, answer: Report) -> None:
        if self._store is not None:
            self._store.set(f"{key}/answer", json.dumps(answer))
            self._leave(key)

    def _answer(self, key: str) -> Report:
        assert self._store is not None
        store = self._store
        self._wait(lambda: store.check([f"{key}/answer"]))
        answer: Report = json.loads(store.get(f"{key}/answer"))
        self._leave(key)
        return answer

    def _leave(self, key: str) -> None:
        """The last one to have read the answer removes the keys."""
        assert self._store is not None
        if self._store.add(f"{key}/read", 1) == self._world.size:
            for name in ("done", "answer", "read", *range(1, self._world.size)):
                self._store.delete_key(f"{key}/{name}")

    def _wait(self, is_ready: Callable[[], bool]) -> None:
        pause, longest = PAUSES_SEC
        while not is_ready():
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise UserError("a checkpoint was not written: the other processes do not answer")
            time.sleep(pause)
            pause = min(2 * pause, longest)


@contextlib.contextmanager
def _told(tell: Callable[[Report], None]) -> Iterator[list[Report]]:
    """Tells the others what the block has put into the list, or that it has ended with an exception."""
    told: list[Report] = []
    try:
        yield told
    finally:
        tell(told[0] if told else {"error": {"what": "the process that was writing a checkpoint has failed"}})


def _attempt(work: Callable[[], Report]) -> Report:
    """The report of `work`, or of the UserError it raised."""
    try:
        return work()
    except UserError as error:
        fields = {"got": error.got, "expected": error.expected, "next_step": error.next_step}
        return {"error": {"what": error.what, **{name: str(text) for name, text in fields.items() if text}}}
