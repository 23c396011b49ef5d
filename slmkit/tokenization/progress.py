"""How far a job is: on the screen while it runs, and for `slmkit tokenize status` from anywhere.

Each task keeps a small file in `OUT/tasks/`, and `look` reads them all beside the shards.

Invariant: a task's file never decides what is done; the shards do.

Example:
    with Progress("out", plan, shards, task=3, num_tasks=8) as progress:
        progress.advance(items=8, seconds=12.5)
    print("\\n".join(look(job, plan).lines()))
"""

import math
import os
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from slmkit.data.index import MANIFEST
from slmkit.errors import UserError
from slmkit.files import read_json, write_json
from slmkit.jobs import ProgressBar
from slmkit.log import duration
from slmkit.stopping import Stopped
from slmkit.tokenization.corpus_job import TASKS, CorpusJob, ranges
from slmkit.tokenization.plan import TokenizationPlan

EVERY_SEC = 5.0  # how often a task writes its file
LINE_EVERY_SEC = 60.0  # how often a line of the log says how far it is, where there is no terminal
LOST_SEC = 120.0  # a task that has not written for so long is not running any more


class Done(NamedTuple):
    """How much of some shards is done."""

    items: int  # utterances, failed ones included
    num_items: int
    seconds: float  # of audio
    num_seconds: float | None  # None where the source does not tell: then it is guessed from what is done
    elapsed_sec: float

    @property
    def figures(self) -> str:
        """Such as "1.2 of about 3.3 h audio, 41x real time"."""
        if not self.seconds:
            return "starting"
        total, about = self.num_seconds, ""
        if total is None:
            total, about = self.seconds * self.num_items / self.items, "about "
        unit, unit_sec = ("min", 60) if total < 7200 else ("h", 3600)
        speed = self.seconds / max(1e-3, self.elapsed_sec)
        return f"{self.seconds / unit_sec:.1f} of {about}{total / unit_sec:.1f} {unit} audio, {speed:.3g}x real time"


class Progress:
    """How far one task is: in its file, which is rewritten every few seconds, and on the screen where one is given.

    A context; its end says whether the task is done, failed (a UserError) or was stopped.
    """

    def __init__(
        self,
        out: str | Path,
        plan: TokenizationPlan,
        shards: Sequence[int],
        *,
        task: int = 0,
        num_tasks: int = 1,
        bar: ProgressBar | None = None,
    ) -> None:
        """`shards` are those of this task that are not done yet."""
        self._path = Path(out) / TASKS / f"{task}-of-{num_tasks}.json"
        self._started, self._written, self._bar = time.time(), 0.0, bar
        planned = [plan.shards[shard] for shard in shards]
        known = all(shard.seconds > 0 for shard in planned)
        self._values: dict[str, Any] = {
            "state": "running",
            "task": task,
            "num_tasks": num_tasks,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "shards_left": len(shards),
            "shards_done": 0,
            "items": sum(shard.items for shard in planned),
            "items_done": 0,
            "seconds": sum(shard.seconds for shard in planned) if known else None,
            "seconds_done": 0.0,
        }

    def __enter__(self) -> "Progress":
        try:
            self._write()
        except Stopped as error:  # at this very moment, before the block that `__exit__` ends
            self.__exit__(Stopped, error, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError):
            self._values |= {"state": "failed", "error": str(error)}
        else:
            self._values["state"] = "done" if error is None else "stopped"
        try:
            self._write()
        except Stopped:  # told so while this was written; further signals are ignored
            self._write()
            raise

    def advance(self, items: int, seconds: float) -> None:
        """So many more utterances are encoded or have failed, with so much audio (seconds)."""
        self._values["items_done"] += items
        self._values["seconds_done"] += seconds
        if self._bar is not None:
            done = _done([self._values], time.time() - self._started)
            self._bar.show(done.items, done.figures)
        if time.time() - self._written > EVERY_SEC:
            self._write()

    def shard_done(self) -> None:
        """One shard more is written."""
        self._values["shards_left"] -= 1
        self._values["shards_done"] += 1
        self._write()

    def _write(self) -> None:
        self._written = time.time()
        write_json(self._path, {**self._values, "started": self._started, "updated": self._written}, replace=True)


def done_by(out: str | Path, processes: Collection[int]) -> Done | None:
    """What the tasks that run in these processes have done together; None when one has not begun."""
    here = socket.gethostname()
    try:
        found = [read_json(path) for path in (Path(out) / TASKS).glob("*-of-*.json")]
        tasks = [values for values in found if values.get("process") in processes and values["host"] == here]
        if len(tasks) < len(processes):
            return None
        started, updated = min(values["started"] for values in tasks), max(values["updated"] for values in tasks)
        return _done(tasks, updated - started)
    except (UserError, KeyError, TypeError, ValueError, AttributeError, OverflowError):  # of no use, as in `_read_task`
        return None


def _done(tasks: Sequence[Mapping[str, Any]], elapsed_sec: float) -> Done:
    seconds = [values["seconds"] for values in tasks]
    return Done(
        items=sum(values["items_done"] for values in tasks),
        num_items=sum(values["items"] for values in tasks),
        seconds=math.fsum(values["seconds_done"] for values in tasks),
        num_seconds=None if None in seconds else math.fsum(seconds),
        elapsed_sec=elapsed_sec,
    )


class Task(NamedTuple):
    """What a task's file says."""

    name: str  # such as "3-of-8"
    state: str  # running, done, stopped, failed, or lost: it says running, but has not written for a while
    host: str
    shards_left: int
    seconds_done: float  # of audio, since the task was last started
    rate: float  # seconds of audio per second
    shard_rate: float  # shards per second
    error: str


class Status(NamedTuple):
    """How far a job is."""

    num_shards: int
    missing: list[int]  # shards that are not done
    seconds_left: float | None  # of audio, None where the source does not say
    tasks: list[Task]
    is_finalized: bool

    @property
    def time_left_sec(self) -> float | None:
        """At the rate of the tasks that run: of audio where the source gives durations, else of shards.

        None when nothing runs, or nothing is done yet.
        """
        running = [task for task in self.tasks if task.state == "running"]
        if self.seconds_left is not None:
            left, rate = self.seconds_left, sum(task.rate for task in running)
        else:
            left, rate = float(len(self.missing)), sum(task.shard_rate for task in running)
        return left / rate if rate > 0 else 0.0 if not self.missing else None

    def rows(self) -> list[tuple[str, str]]:
        """Rows (name, text) of a table for people; see `log.table`."""
        counts = {state: sum(task.state == state for task in self.tasks) for state in ("running", "failed", "lost")}
        rows = [
            ("shards", f"{self.num_shards - len(self.missing)} of {self.num_shards} done"),
            ("tasks", ", ".join(f"{count} {state}" for state, count in counts.items())),
        ]
        if self.missing:
            rows.append(("missing", f"shard {ranges(self.missing)}"))
            rows.append(("time left", "unknown" if self.time_left_sec is None else duration(self.time_left_sec)))
        for task in self.tasks:
            if task.state == "running":
                text = f"{task.rate:.1f} s of audio per second, {task.shards_left} shards left"
            elif task.state == "failed":
                text = f"failed: {task.error.splitlines()[0] if task.error else 'see its log'}"
            elif task.state == "lost":
                text = f"silent for more than {LOST_SEC:.0f} s, start it again"
            else:
                text = "stopped, start it again"
            if task.state != "done":
                rows.append((f"task {task.name}", f"on {task.host}: {text}"))
        finalize = "no; run `slmkit tokenize finalize` when no shard is missing"
        return [*rows, ("finalized", "yes" if self.is_finalized else finalize)]

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        tasks = [task._asdict() for task in self.tasks]
        return {**self._asdict(), "time_left_sec": self.time_left_sec, "tasks": tasks}


def look(job: CorpusJob, plan: TokenizationPlan, now: float | None = None) -> Status:
    """How far the job is at `now` (seconds since 1970)."""
    now = time.time() if now is None else now
    missing = job.missing(len(plan.shards))
    known = all(plan.shards[shard].seconds > 0 for shard in missing)
    seconds_left = sum(plan.shards[shard].seconds for shard in missing) if known else None
    paths = sorted((job.directory / TASKS).glob("*-of-*.json"))
    tasks = [task for path in paths if (task := _read_task(path, now, missing)) is not None]
    is_finalized = os.path.isfile(job.directory / MANIFEST)
    return Status(len(plan.shards), missing, seconds_left, tasks, is_finalized)


def _read_task(path: Path, now: float, missing: Sequence[int]) -> Task | None:
    """None where the file cannot be read: it is of no use then, and decides nothing. None also for a task that ended
    early and of which no shard is missing: others have done its work."""
    try:
        values = read_json(path)
        lasted = float(values["updated"]) - float(values["started"])
        seconds, state = float(values["seconds_done"]), str(values["state"])
        if state == "running" and now - float(values["updated"]) > LOST_SEC:
            state = "lost"
        number, num_tasks = int(values["task"]), int(values["num_tasks"])
        if state not in ("running", "done") and not any(shard % num_tasks == number for shard in missing):
            return None
        rate, shard_rate = (done / lasted if lasted > 0 else 0.0 for done in (seconds, float(values["shards_done"])))
        error, left = str(values.get("error", "")), int(values["shards_left"])
        if not all(map(math.isfinite, (rate, shard_rate, seconds))):
            return None
        return Task(path.stem, state, str(values["host"]), left, seconds, rate, shard_rate, error)
    except (UserError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
        return None
