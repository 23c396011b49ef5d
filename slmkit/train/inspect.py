"""A run seen from outside, from its files alone: what it is, how far, how well, how fast, and what it left on disk.

It needs no GPU and disturbs nothing, so it may look at a run that goes on: a line that is being written is not there
yet, a checkpoint without marker is unfinished.

Invariant: it only reads; what a run does not record (an old one, one that never logged) is left out, not guessed.

Example:
    view = RunView.read("RUN")
    print("\n".join(table(run_rows(view, now=time.time()))))
"""

import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmkit import plot
from slmkit.config import run_dir
from slmkit.config.load import read_yaml
from slmkit.errors import UserError
from slmkit.log import duration
from slmkit.train.metrics import is_start, read_metrics, thousands

Records = list[dict[str, Any]]
SHOWN_STARTS = 8
LARGEST = 1e11  # as a time it is in the year 5138
SPEEDS = ("tokens_per_sec", "audio_hours_per_hour", "mfu", "data_wait_share", "padding_share")
MAX_EVALUATED_CURVES = 5  # with more terms than these, training curves alone are drawn


@dataclass(frozen=True, kw_only=True)
class RunView:
    """What the files of a run say."""

    directory: Path
    config: dict[str, Any]
    steps: Records  # lines of logged steps
    evaluations: Records
    starts: Records
    checkpoints: list[tuple[int, bool, int]]  # step, whether it is complete, bytes

    @staticmethod
    def read(directory: str | Path) -> "RunView":
        """Raises UserError when it is no directory of a run, or its files are damaged."""
        directory = Path(directory)
        if not os.path.isfile(directory / run_dir.CONFIG):
            raise UserError(
                f"{directory} is not the directory of a run",
                got="no such directory" if not os.path.isdir(directory) else f"no {run_dir.CONFIG} in it",
                expected="the run_dir of a run that `slmkit train` has started",
            )
        metrics = directory / run_dir.METRICS
        lines = read_metrics(metrics) if os.path.exists(metrics) else []
        sized = [
            (step, os.path.isfile(path / run_dir.MARKER), _bytes(path)) for step, path in run_dir.directories(directory)
        ]
        return RunView(
            directory=directory,
            config=read_yaml(directory / run_dir.CONFIG),
            steps=[numbers for numbers in map(_numbers, lines) if "loss" in numbers],
            evaluations=[numbers for numbers in map(_numbers, lines) if "eval/loss" in numbers],
            starts=[_numbers(line) for line in lines if is_start(line)],
            checkpoints=sorted(sized),
        )

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run; None when it runs for epochs and no start has counted them."""
        counted = [start["total_steps"] for start in self.starts if "total_steps" in start]
        return counted[-1] if counted else _numbers(self.config).get("steps")

    @property
    def done_steps(self) -> int:
        """The last step anything is known of."""
        complete = [step for step, is_complete, _ in self.checkpoints if is_complete]
        return max([0, *complete, *(line["step"] for line in [*self.starts, *self.steps])])

    @property
    def current(self) -> Records:
        """Logged steps of the last start."""
        begin = self.starts[-1]["step"] if self.starts else 0
        return [line for line in self.steps if line["step"] > begin]

    @property
    def best_evaluation(self) -> dict[str, Any] | None:
        """That with the lowest loss."""
        return min(self.evaluations, key=lambda line: line["eval/loss"], default=None)

    @property
    def faults(self) -> dict[str, float]:
        """The last known value of every count."""
        last: dict[str, float] = {}
        for line in self.steps:
            last |= {name: value for name, value in line.items() if name.startswith("faults/")}
        return last


def run_rows(view: RunView, *, now: float) -> list[tuple[str, str]]:
    """Rows (name, text) for a reader; `now` in Unix seconds."""
    total, done = view.total_steps, view.done_steps
    progress = f"step {done}{f' of {total} ({done / total:.0%})' if total else ''}"
    if view.steps and "epoch" in view.steps[-1]:
        progress += f", epoch {view.steps[-1]['epoch']}"
    if view.steps and "time" in view.steps[-1]:
        progress += f", last line {duration(now - view.steps[-1]['time'])} ago"
    left = time_left_sec(view)
    rest = "finished" if total and done >= total else "" if left is None else f"about {duration(left)} left"
    optimizer = view.config.get("optimizer")
    batch = {name: view.config.get(name) for name in ("global_rows", "micro_rows")}
    batch["lr"] = optimizer.get("lr") if isinstance(optimizer, dict) else None
    batch["deepspeed"] = Path(str(view.config.get("deepspeed", ""))).name or None
    evaluation = ["none yet"]
    best = view.best_evaluation
    if best is not None:
        evaluation = _losses(view.evaluations[-1], "eval/")
        evaluation.append(f"best: loss {best['eval/loss']:.4f} at step {best['step']}")
    texts = {
        "run": [str(view.directory)],
        "model": [_options(view.config.get("model"))],
        "data": [_options(view.config.get("data"))],
        "batch": [_options(batch)],
        "progress": [progress, rest],
        "training": _losses(view.steps[-1], "") if view.steps else ["no step logged yet"],
        "evaluation": evaluation,
        "speed": [_speeds(view)],
        "starts": _starts(view),
        "checkpoints": [
            f"step {step}: {size / 2**20:.1f} MiB, {'complete' if is_complete else 'unfinished or interrupted'}"
            for step, is_complete, size in view.checkpoints
        ]
        or ["none"],
        "faults": [f"{name.removeprefix('faults/')} {value:g}" for name, value in view.faults.items() if value],
    }
    rows: list[tuple[str, str]] = []
    for name, lines in texts.items():
        kept = [line for line in lines if line]
        rows += [(name if i == 0 else "", line) for i, line in enumerate(kept)]
    return rows


def run_json(view: RunView, *, now: float) -> dict[str, Any]:
    """The same for programs; what is not known is null."""
    seen = view.steps[-1].get("time") if view.steps else None
    return {
        "run": str(view.directory),
        "config": view.config,
        "step": view.done_steps,
        "total_steps": view.total_steps,
        "finished": bool(view.total_steps and view.done_steps >= view.total_steps),
        "left_sec": time_left_sec(view),
        "last_line_sec_ago": None if seen is None else now - seen,
        "training": view.steps[-1] if view.steps else None,
        "evaluation": view.evaluations[-1] if view.evaluations else None,
        "best_evaluation": view.best_evaluation,
        "speed": {name: _median(view, name) for name in SPEEDS},
        "starts": view.starts,
        "checkpoints": [
            {"step": step, "complete": is_complete, "bytes": size} for step, is_complete, size in view.checkpoints
        ],
        "faults": {name.removeprefix("faults/"): value for name, value in view.faults.items()},
    }


def time_left_sec(view: RunView) -> float | None:
    """From the first logged step of the last start to the last, with all that came between; None before the second."""
    timed = [line for line in view.current if "time" in line]
    if view.total_steps is None or len(timed) < 2 or timed[0]["step"] == timed[-1]["step"]:
        return None
    (first, last) = timed[0], timed[-1]
    return (last["time"] - first["time"]) / (last["step"] - first["step"]) * max(0, view.total_steps - last["step"])


def run_picture(view: RunView) -> bytes:
    """PNG of losses, accuracies and throughput over steps, with restarts marked. Raises UserError without a step."""
    if not view.steps:
        raise UserError(f"{view.directory} has no logged step to draw yet", next_step="wait for the first one")
    names = dict.fromkeys(name for line in view.steps for name in line if name.startswith("accuracy/"))
    accuracies = {name.removeprefix("accuracy/"): _curve(view.steps, name) for name in names}
    evaluated = {f"{key}, held out": _curve(view.evaluations, f"eval/accuracy/{key}") for key in accuracies}
    if len(accuracies) > MAX_EVALUATED_CURVES:
        evaluated = {}
    losses = {"training": _curve(view.steps, "loss"), "held out": _curve(view.evaluations, "eval/loss")}
    panels = [
        plot.Panel("loss", _filled(losses), frozenset({"held out"})),
        plot.Panel("accuracy", _filled(accuracies | evaluated), frozenset(evaluated)),
        plot.Panel("tokens / s", _filled({"all processes": _curve(view.steps, "speed/tokens_per_sec")})),
    ]
    marks = {start["step"]: f" {_processes(start)}" for start in view.starts if start["step"]}
    return plot.curves(panels, title=str(view.directory), marks=marks)


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    """What of a line is a number, of a size that times, speeds and losses have."""
    return {name: value for name, value in record.items() if isinstance(value, int | float) and abs(value) < LARGEST}


def _options(values: Any) -> str:
    """Options that are set, in a line."""
    if not isinstance(values, dict):
        return ""
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in (None, [], {}))


def _losses(record: dict[str, Any], prefix: str) -> list[str]:
    """Loss in all, then loss and accuracy per term."""
    lines = [f"loss {record[f'{prefix}loss']:.4f} at step {record['step']}"]
    for kind in ("loss", "accuracy"):
        start = f"{prefix}{kind}/"
        known = {name.removeprefix(start): value for name, value in record.items() if name.startswith(start)}
        shown = "  ".join(f"{name} {value:.3f}" for name, value in known.items())
        lines.append(f"{kind}: {shown}" if shown else "")
    return lines


def _speeds(view: RunView) -> str:
    tokens, hours, mfu, wait, padding = (_median(view, name) for name in SPEEDS)
    shown = [
        "" if tokens is None else f"{thousands(tokens)} tok/s",
        "" if hours is None else f"{thousands(hours)} hours of audio per hour",
        "" if mfu is None else f"mfu {mfu:.0%}",
        "" if wait is None else f"waiting for data {wait:.0%}",
        "" if padding is None else f"padding {padding:.0%}",
    ]
    text = ", ".join(part for part in shown if part)
    return f"{text} (median of the last start)" if text else ""


def _median(view: RunView, name: str) -> float | None:
    """Of a speed over the last start."""
    values = [line[f"speed/{name}"] for line in view.current if f"speed/{name}" in line]
    return statistics.median(values) if values else None


def _starts(view: RunView) -> list[str]:
    hidden = max(0, len(view.starts) - SHOWN_STARTS)
    shown = []
    for start in view.starts[hidden:]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(start["time"])) if "time" in start else "?"
        shown.append(f"{when}  from step {start['step']}, {_processes(start)}")
    return [f"{hidden} more before" if hidden else "", *shown]


def _processes(start: dict[str, Any]) -> str:
    number = start.get("processes", "?")
    return f"{number} process" + ("es" if number != 1 else "")


def _curve(records: Records, name: str) -> tuple[list[float], list[float]]:
    """(steps, values) where there is a value."""
    known = [(line["step"], line[name]) for line in records if name in line]
    return [step for step, _ in known], [value for _, value in known]


def _filled(named: dict[str, tuple[list[float], list[float]]]) -> dict[str, tuple[list[float], list[float]]]:
    return {name: curve for name, curve in named.items() if curve[0]}


def _bytes(path: Path) -> int:
    """Size of a directory; a file that goes while we look counts nothing."""
    sizes = []
    for file in path.rglob("*"):
        try:
            sizes.append(file.stat().st_size if file.is_file() else 0)
        except FileNotFoundError:
            continue
    return sum(sizes)
