"""How far a job is: each task keeps a small file in `OUT/tasks/`, and `look` reads them all beside the shards.

Invariant: a task's file never decides what is done; the shards do.

Example:
    report = Report("out", task=3, num_tasks=8)
    report.add(seconds=12.5)
    print("\\n".join(look(job, plan).lines()))
"""

import os
import socket
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

from slmkit.errors import UserError
from slmkit.files import read_json, write_json
from slmkit.tokenization.corpus_job import CorpusJob
from slmkit.tokenization.finalize import missing_shards, ranges
from slmkit.tokenization.plan import Plan

TASKS = "tasks"
EVERY_SEC = 5.0  # how often a task writes its file
LOST_SEC = 120.0  # a task that has not written for so long is not running any more
State = Literal["running", "done", "stopped", "failed"]


class Report:
    """One task's file, rewritten every few seconds."""

    def __init__(self, out: str | Path, *, task: int, num_tasks: int, shards: int) -> None:
        """`shards` of this task are not done yet."""
        self._path = Path(out) / TASKS / f"{task}-of-{num_tasks}.json"
        self._started, self._written = time.time(), 0.0
        self._values: dict[str, Any] = {
            "state": "running",
            "task": task,
            "num_tasks": num_tasks,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "shards_left": shards,
            "shards_done": 0,
            "seconds_done": 0.0,
        }
        self._write()

    def add(self, seconds: float) -> None:
        """So much more audio is encoded (seconds)."""
        self._values["seconds_done"] += seconds
        if time.time() - self._written > EVERY_SEC:
            self._write()

    def shard_done(self) -> None:
        """One shard more is written."""
        self._values["shards_left"] -= 1
        self._values["shards_done"] += 1
        self._write()

    def end(self, state: State, error: str = "") -> None:
        """The task ends."""
        self._values |= {"state": state, "error": error} if error else {"state": state}
        self._write()

    def _write(self) -> None:
        self._written = time.time()
        write_json(self._path, {**self._values, "started": self._started, "updated": self._written}, replace=True)


class Task(NamedTuple):
    """What a task's file says."""

    name: str  # such as "3-of-8"
    state: str  # of `State`, or "lost": it says running, but has not written for a while
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

    def lines(self) -> list[str]:
        """For people."""
        done = self.num_shards - len(self.missing)
        counts = {state: sum(task.state == state for task in self.tasks) for state in ("running", "failed", "lost")}
        words = ", ".join(f"{count} {state}" for state, count in counts.items())
        lines = [f"shards: {done} of {self.num_shards} done", f"tasks:  {words}"]
        if self.missing:
            lines.append(f"missing: shard {ranges(self.missing)}")
        if self.time_left_sec is not None:
            lines.append(f"time left: {_duration(self.time_left_sec)}")
        else:
            lines.append("time left: not known yet")
        for task in self.tasks:
            if task.state != "done":
                lines.append(f"  task {task.name} on {task.host}: {_describe(task)}")
        return lines


def look(job: CorpusJob, plan: Plan, now: float | None = None) -> Status:
    """How far the job is at `now` (seconds since 1970)."""
    now = time.time() if now is None else now
    missing = missing_shards(job, len(plan.shards))
    known = all(plan.shards[shard].seconds > 0 for shard in missing)
    seconds_left = sum(plan.shards[shard].seconds for shard in missing) if known else None
    paths = sorted((job.directory / TASKS).glob("*-of-*.json"))
    tasks = [task for task in (_read_task(path, now) for path in paths) if task is not None]
    return Status(len(plan.shards), missing, seconds_left, tasks)


def _read_task(path: Path, now: float) -> Task | None:
    """None where the file cannot be read: it is of no use then, and decides nothing."""
    try:
        values = read_json(path)
        lasted = float(values["updated"]) - float(values["started"])
        seconds, state = float(values["seconds_done"]), str(values["state"])
        if state == "running" and now - float(values["updated"]) > LOST_SEC:
            state = "lost"
        rate, shard_rate = (done / lasted if lasted > 0 else 0.0 for done in (seconds, float(values["shards_done"])))
        error, left = str(values.get("error", "")), int(values["shards_left"])
        return Task(path.stem, state, str(values["host"]), left, seconds, rate, shard_rate, error)
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _describe(task: Task) -> str:
    if task.state == "failed":
        return f"failed: {task.error.splitlines()[0] if task.error else 'see its log'}"
    words = {"lost": f"silent for more than {LOST_SEC:.0f} s, start it again", "stopped": "stopped, start it again"}
    return words.get(task.state, f"{task.rate:.1f} s of audio per second, {task.shards_left} shards left")


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{hours:.1f} h"
