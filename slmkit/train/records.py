"""The lines of `RUN/metrics.jsonl`, as plain values: one per logged step, evaluation or start.

A line of a step holds "step", "time" (Unix seconds) and numbers under grouped names: "loss", "loss/a1", "accuracy/a1",
"optimizer/lr", "speed/tokens_per_sec", "memory/...", "faults/...". Those of an evaluation start with "eval/". A line of
a start has "event": "start", the step it continued from, and the number of processes.

It knows neither torch nor TensorBoard, so that a run can be looked at from anywhere while it goes on.

Invariant: steps never fall from line to line; a last line without its end is being written, or was never finished,
and is not there.

Example:
    records = read_records("RUN/metrics.jsonl")
    starts = [record for record in records if is_start(record)]
"""

import json
from pathlib import Path
from typing import Any

from slmkit.errors import UserError
from slmkit.files import atomic_write

Record = dict[str, float | int | None]
START = "start"


def is_start(record: dict[str, Any]) -> bool:
    """Whether a line tells of a start."""
    return record.get("event") == START


def read_records(path: Path) -> list[dict[str, Any]]:
    """All lines. Raises UserError naming the line that is none of ours, or the file that cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}", expected="the metrics of a run") from error
    return [_parsed(line, f"{path}, line {i + 1}") for i, line in enumerate(lines) if line.endswith("\n")]


def cut(path: Path, last_step: int) -> None:
    """Remove lines beyond `last_step`, and a last line that an interruption left half-written.

    Lines of starts from `last_step` or before stay. Raises UserError as `read_records` does.
    """
    if not path.exists():
        return
    kept = [record for record in read_records(path) if record["step"] <= last_step]
    with atomic_write(path, replace=True) as file:
        file.write("".join(map(as_line, kept)).encode())


def as_line(record: dict[str, Any]) -> str:
    """The line of a record. Raises ValueError for a number that is not finite: JSON has none."""
    return json.dumps(record, allow_nan=False) + "\n"


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        raise UserError(f"{where} is not a line of metrics", got=line.strip()[:80], expected='{"step": ...}')
    return record
