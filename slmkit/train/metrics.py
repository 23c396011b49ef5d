"""What a run reports: `RUN/metrics.jsonl`, the same numbers in TensorBoard, and a line on the console.

A line of `metrics.jsonl` is a logged step, an evaluation or a start. That of a step holds "step" (1 is the first),
"time" (Unix seconds), what was measured at that step alone under grouped names ("loss", "loss/a1", "accuracy/a1",
"optimizer/lr", "faults/...") and how fast the steps since the line before went ("speed/tokens_per_sec", "memory/...").
"loss/speech" is the mean over all speech targets. Names of an evaluation start with "eval/". A line of a start has
"event": "start", the step it continued from, and the number of processes. A number that is not there (a term without
targets) is null.

TensorBoard, in `RUN/tensorboard/NAME` with the name of the run, shows losses and accuracies under train/ and eval/, all
other numbers under their names, the options that runs differ in as HParams, and as text the run config and how each
start was made. The console:

    step 1200/10000  loss 3.412  acc 0.41  12.3k tok/s  410x real time  mfu 38 %  data wait 1 %  left 2 h 13 min

This module needs no torch, so that a run can be looked at from anywhere while it goes on.

Invariant: steps never fall from line to line; a last line without its end is being written, or was never finished,
and is not there. After a resume, lines beyond the checkpoint's step are gone, and but for times, speeds, memory and
lines of starts the file is that of an uninterrupted run.

Example:
    log = MetricsLog("RUN", resume_step=0, is_first=True)
    log.write(1, {"loss": 3.4, "loss/text": 2.9})
    losses = [record["loss"] for record in read_metrics(Path("RUN/metrics.jsonl")) if "loss" in record]
"""

import contextlib
import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml

from slmkit.config.run_dir import METRICS, STEP_DIGITS, TENSORBOARD
from slmkit.errors import UserError
from slmkit.files import atomic_write, disk_errors_named
from slmkit.log import duration, get_logger

logger = get_logger(__name__)
Record = dict[str, float | int | None]
MOST_WAITING = 10_000  # lines that wait for a disk, about 10 MB
START = "start"
COMPARED = ("model", "optimizer", "schedule", "data", "global_rows", "micro_rows", "steps", "epochs", "seed")
TRAIN_GROUPS = ("loss", "accuracy")  # first words of names that TensorBoard has under train/
RECENT = 10  # records whose pace counts for the time left


def is_start(record: dict[str, Any]) -> bool:
    """Whether a line tells of a start."""
    return record.get("event") == START


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines. Raises UserError naming the line that is none of ours, or the file that cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}", expected="the metrics of a run") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            continue
        try:
            record = json.loads(line, parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or type(record.get("step")) is not int or record["step"] >= 10**STEP_DIGITS:
            where = f"{path}, line {number}"
            raise UserError(f"{where} is not a line of metrics", got=line.strip()[:80], expected='{"step": ...}')
        records.append(record)
    return records


def _finite(text: str) -> float:
    """A number of JSON. Raises ValueError for those that JSON has not, or that are too large for a float."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def as_line(record: dict[str, Any]) -> str:
    """The line of a record. Raises ValueError for a number that is not finite: JSON has none."""
    return json.dumps(record, allow_nan=False) + "\n"


class MetricsLog:
    """The files of the first process; in the others nothing is written."""

    def __init__(
        self,
        run_dir: str | Path,
        resume_step: int,
        *,
        is_first: bool,
        on_error: Literal["stop", "continue"] = "stop",
    ) -> None:
        """Cuts what lies beyond `resume_step`. When the disk refuses a write, here or later, that is a UserError, or
        with `on_error` "continue" a warning; lines of metrics then wait for the disk. Raises UserError as
        `read_metrics` does.
        """
        self._is_first, self._on_error = is_first, on_error
        self._writer: Any = None
        self._purge_step: int | None = resume_step + 1
        self._waiting: deque[str] = deque(maxlen=MOST_WAITING)  # lines that are not yet in the file
        self._refused: set[Path] = set()  # places that have refused, and were named
        if not is_first:
            return
        self._path = Path(run_dir) / METRICS
        self._directory = Path(run_dir) / TENSORBOARD / Path(run_dir).resolve().name
        if self._path.exists():
            kept = [record for record in read_metrics(self._path) if record["step"] <= resume_step]
            with self.allowed(self._path), atomic_write(self._path, replace=True) as file:
                file.write("".join(map(as_line, kept)).encode())
        _leave_to_caller()
        self.plot(lambda writer: None)

    def start(
        self, step: int, *, processes: int, total_steps: int, made: dict[str, Any], changes: Sequence[str] = ()
    ) -> None:
        """Note a start that continues from `step`. `made` is its provenance, with the resolved config.

        `changes` say what is not as before.
        """
        if not self._is_first:
            return
        from torch.utils.tensorboard.summary import hparams

        changed = {"changes": list(changes)} if changes else {}
        self._append({"step": step, "event": START, "processes": processes, "total_steps": total_steps, **changed})
        config = made["config"] or {}
        versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
        where = f"started at step {step} of {total_steps} on {processes} process{'es' if processes != 1 else ''}"
        commit = made["commit"] or "unknown"
        listed = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        options = {name: value for part in COMPARED for name, value in _options(part, config.get(part)).items()}
        experiment, session, _ = hparams(options, {"train/loss": 0.0, "eval/loss": 0.0})  # the metrics' names count

        def show(writer: Any) -> None:
            writer.add_text("run/start", f"{where}, commit {commit}, {versions}", step)
            writer.add_text("run/config", f"```yaml\n{listed}```", step)
            for summary in (experiment, session):
                writer._get_file_writer().add_summary(summary)

        self.plot(show)

    def has(self, step: int, name: str) -> bool:
        """Whether a line of `step` has the number `name`; known in the first process only."""
        if not self._is_first or not self._path.exists():
            return False
        return any(record["step"] == step and name in record for record in read_metrics(self._path))

    def write(self, step: int, record: Record) -> None:
        """Append a line and plot its numbers."""
        if not self._is_first:
            return
        self._append({"step": step, **record})

        def show(writer: Any) -> None:
            for name, value in record.items():
                if value is not None:
                    in_training = name.partition("/")[0] in TRAIN_GROUPS
                    writer.add_scalar(f"train/{name}" if in_training else name, value, step)

        self.plot(show)

    def plot(self, show: Callable[[Any], None]) -> None:
        """Let `show` write to TensorBoard; in the first process only."""
        if not self._is_first:
            return
        with self.allowed(self._directory):
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self._directory), purge_step=self._purge_step)
                self._purge_step = None  # not of what this start has written
            try:
                show(self._writer)
                self._writer.flush()
            except OSError:  # a writer that has failed once fails for ever
                failed, self._writer = self._writer, None
                with contextlib.suppress(OSError):
                    failed.close()
                raise

    def close(self) -> None:
        """The end; lines that still wait are tried once more."""
        if self._waiting:
            with self.allowed(self._path):
                self._write_waiting()
        if self._writer is not None:
            with self.allowed(self._directory):
                self._writer.close()

    @contextmanager
    def allowed(self, path: Path) -> Iterator[None]:
        """Around a write to `path`: names the disk that refuses it, once, and goes on where that is wanted."""
        try:
            with disk_errors_named(path):
                yield
        except UserError as error:
            if self._on_error == "stop":
                raise
            if path not in self._refused:
                logger.error("training goes on without this: %s", error)
            self._refused.add(path)
        else:
            if path in self._refused:
                logger.warning("%s can be written again", path)
            self._refused.discard(path)

    def _append(self, record: dict[str, Any]) -> None:
        self._waiting.append(as_line({**record, "time": round(time.time(), 3)}))
        with self.allowed(self._path):
            self._write_waiting()

    def _write_waiting(self) -> None:
        """All lines or none: a part of a line would spoil the next."""
        content = "".join(self._waiting).encode()
        with open(self._path, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise
        self._waiting.clear()


def _leave_to_caller() -> None:
    """Keep TensorBoard's thread from printing the error that its next call raises."""
    before = threading.excepthook

    def hook(failed: Any) -> None:
        if type(failed.thread).__name__ != "_AsyncWriterThread":
            before(failed)

    threading.excepthook = hook


def _options(name: str, value: Any) -> dict[str, bool | int | float | str]:
    """An option, or those inside it, by dotted name, as HParams takes them."""
    if isinstance(value, dict):
        return {inner: kept for key, part in value.items() for inner, kept in _options(f"{name}.{key}", part).items()}
    if value is None:
        return {}
    return {name: value if isinstance(value, bool | int | float) else str(value)}


class RunProgress:
    """How far a run is, as a line per logged step. Create it where its first step begins.

    The time left comes from the pace of the last records of this start, which knows only steps, and from the time that
    all else (evaluation, speech samples, saving) took per step of this start so far.
    """

    def __init__(self, *, total_steps: int, done_steps: int) -> None:
        self._total, self._first, self._last = total_steps, done_steps, done_steps
        self._start, self._paced_sec = time.monotonic(), 0.0
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)

    def line(self, step: int, record: dict[str, Any]) -> str:
        """The line of a logged step; to be called once for each, in order. What is null or absent is left out."""
        num_steps, self._last = step - self._last, step
        paced_sec = num_steps * record["speed/sec_per_step"]
        self._recent.append((num_steps, paced_sec))
        self._paced_sec += paced_sec
        other_sec = max(0.0, time.monotonic() - self._start - self._paced_sec) / (step - self._first)
        steps, seconds = (sum(column) for column in zip(*self._recent, strict=True))
        left_sec = (self._total - step) * (seconds / steps + other_sec)
        forms = {
            "loss": lambda value: f"loss {value:.3f}",
            "accuracy": lambda value: f"acc {value:.2f}",
            "speed/tokens_per_sec": lambda value: f"{thousands(value)} tok/s",
            "speed/audio_hours_per_hour": lambda value: f"{thousands(value)}x real time",
            "speed/mfu": lambda value: f"mfu {100 * value:.0f} %",
            "speed/data_wait_share": lambda value: f"data wait {100 * value:.0f} %",
        }
        shown = [form(record[name]) for name, form in forms.items() if record.get(name) is not None]
        return "  ".join([f"step {step}/{self._total}", *shown, f"left {duration(left_sec)}"])


def thousands(value: float) -> str:
    """12300 as 12.3k, 4560000 as 4.56M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
