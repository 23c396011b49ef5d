"""Steps of a study on disk: what is done, what is being done by some process, and the doing of one.

    OUT/steps/NAME.json     how the last start of a step went, with the digest of what it was to do
    OUT/steps/NAME.log      what its command printed, start after start
    OUT/steps/NAME.lock     locked by whoever does the step, and by its command, which may outlive that process

A command is started in a session of its own, so that a signal reaches it once, and gets SIGTERM when the process that
started it ends, however that happens. It then leaves with exit code 75 and goes on at its next start.

Invariant: a step is done when its command left with exit code 0 and its record says so for the digest of today; a
directory that appears whole at the command's end says it too. Nothing is removed.

Example:
    look(plan)["train-melvq1-tiny-ntp-main"].state      # "done"
    work = take(plan, step)                             # None where another process holds it
    work.start(os.environ)
    state, why = work.finish()                          # "done", ""
"""

import contextlib
import fcntl
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slmkit.errors import UserError
from slmkit.files import disk_errors_named, read_json, write_json
from slmkit.log import get_logger
from slmkit.stopping import STOPPED, stop_with_parent
from slmkit.study.plan import Step, StudyPlan
from slmkit.texts import visible
from slmkit.world import World

State = Literal["done", "running", "failed", "stopped", "changed", "ready", "waiting", "blocked"]
STATES: dict[State, str] = {
    "done": "done",
    "running": "being done",
    "stopped": "stopped, goes on at the next start",
    "ready": "can begin",
    "waiting": "waits for others",
    "failed": "failed",
    "changed": "was made with other settings",
    "blocked": "needs a step that failed",
}
PROGRAM = (sys.executable, "-m", "slmkit")
WHY_LINES, WHY_BYTES = 6, 4096  # of a log, that say why a step failed
log = get_logger(__name__)


@dataclass(frozen=True)
class Status:
    """How a step stands."""

    state: State
    why: str = ""  # of "failed": what its log says last; of "blocked": the step that failed
    seconds: float = 0.0  # that its commands took, all starts together
    starts: int = 0


def paths(plan: StudyPlan, step: Step) -> tuple[Path, Path, Path]:
    """Record, log and lock of a step."""
    base = Path(plan.config.out) / "steps"
    return base / f"{step.name}.json", base / f"{step.name}.log", base / f"{step.name}.lock"


def look(plan: StudyPlan) -> dict[str, Status]:
    """How every step stands, by name, in the order of the plan."""
    found: dict[str, Status] = {}
    for step in plan.steps:
        status = look_at(plan, step)
        needs = {need: found[need].state for need in step.needs}
        if status.state in ("ready", "stopped", "failed") and any(state != "done" for state in needs.values()):
            bad = [need for need, state in needs.items() if state in ("failed", "changed", "blocked")]
            first = found[bad[0]].why if bad and found[bad[0]].state == "blocked" else "".join(bad[:1])
            status = Status("blocked", first) if bad else Status("waiting")
        found[step.name] = status
    return found


def look_at(plan: StudyPlan, step: Step, *, is_mine: bool = False) -> Status:
    """How a step stands by itself; `is_mine` where this process holds it. Raises UserError when a record is damaged."""
    record_path, _, lock_path = paths(plan, step)
    record = read_json(record_path) if os.path.exists(record_path) else {}
    try:
        seconds, starts = float(record.get("seconds", 0.0)), int(record.get("starts", 0))
        state, why, is_same = record.get("state"), str(record.get("why", "")), record.get("digest") == step.digest
    except (AttributeError, TypeError, ValueError) as error:
        next_step = "remove it; the step is then done again"
        raise UserError(f"{record_path} is damaged: {error!r}", next_step=next_step) from error
    is_there = os.path.isdir(step.directory)
    if not is_mine and _is_locked(lock_path):
        return Status("running", seconds=seconds, starts=starts)
    if record and not is_same and is_there and step.appears_whole:
        return Status("changed", f"remove {step.directory}, and it is made again", seconds, starts)
    if is_same and is_there and (state == "done" or step.appears_whole):
        return Status("done", seconds=seconds, starts=starts)
    if is_same and state == "failed":
        return Status("failed", why, seconds, starts)
    return Status("stopped" if is_same else "ready", seconds=seconds, starts=starts)


@dataclass
class Work:
    """A step that this process alone is doing."""

    plan: StudyPlan
    step: Step
    lock: int | None  # file descriptor; None: another process of the same launch records how it goes
    process: "subprocess.Popen[bytes] | None" = None
    began: float = 0.0  # Unix seconds
    is_told: bool = False  # to stop

    def start(self, env: Mapping[str, str], *, program: tuple[str, ...] = PROGRAM) -> None:
        """Start the command."""
        record, log_path, _ = paths(self.plan, self.step)
        self.began = time.time()
        before = look_at(self.plan, self.step, is_mine=True)
        starts, seconds = before.starts + 1, before.seconds
        if self.lock is not None:
            write_json(record, self._record("started", starts, seconds), replace=True)
        with disk_errors_named(log_path), open(log_path, "ab") as output:
            output.write(f"== start {starts}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            output.flush()
            self.process = subprocess.Popen(
                [*program, *self.words()],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=() if self.lock is None else (self.lock,),
                start_new_session=True,
                preexec_fn=functools.partial(stop_with_parent, os.getpid()),
            )

    def words(self) -> tuple[str, ...]:
        """The command's words here: several processes of one machine are started by `slmkit launch`."""
        processes = self.plan.resources(self.step).processes
        if self.step.kind == "train" and processes > 1 and World.from_env().size == 1:
            return ("launch", *self.step.words[1:], "--processes", str(processes))
        return self.step.words

    def stop(self) -> None:
        """Tell the command to stop, which it may do at its own pace."""
        self.is_told = True
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)

    def has_ended(self) -> bool:
        """Whether the command has."""
        return self.process is None or self.process.poll() is not None

    def finish(self) -> tuple[State, str, int]:
        """Wait for the command's end, record it and let the step go; gives its state, why, and the exit code."""
        if self.process is None:  # it could not be started
            self.release()
            return "stopped", "", STOPPED
        code = self.process.wait()
        record, log_path, _ = paths(self.plan, self.step)
        before = look_at(self.plan, self.step, is_mine=True)
        seconds = before.seconds + time.time() - self.began
        state: State = "done" if code == 0 else "stopped" if code == STOPPED or self.is_told else "failed"
        why = "" if state == "done" else f"{_code_words(code)}{_last_words(log_path)}"
        told = self._record(state, before.starts, seconds)
        if self.lock is not None:
            write_json(record, {**told, "code": code, "why": why}, replace=True)
        self.release()
        return state, why, code

    def release(self) -> None:
        """Let the step go."""
        if self.lock is not None:
            os.close(self.lock)

    def _record(self, state: str, starts: int, seconds: float) -> dict[str, object]:
        return {"step": self.step.name, "digest": self.step.digest, "words": list(self.step.words)} | {
            "state": state,
            "starts": starts,
            "seconds": round(seconds, 3),
        }


def take(plan: StudyPlan, step: Step, *, is_first: bool = True) -> "Work | None":
    """The step for this process alone; None where another process, or a command that it left, holds it.

    Of the processes of a launcher only the first one holds it, and records how it went.
    """
    if not is_first:
        return Work(plan, step, None)
    path = paths(plan, step)[2]
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return Work(plan, step, handle)


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        # Shared: two that look at the same time do not take each other for one that works.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _code_words(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _last_words(path: Path) -> str:
    """The end of a log, as it stands behind a sentence."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - WHY_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    begin = max((number for number, line in enumerate(lines) if line.startswith("== start")), default=-1)
    told = [visible(line.strip()) for line in lines[begin + 1 :] if line.strip()]
    return f": {' '.join(told[-WHY_LINES:])[-500:]}" if told else ""
