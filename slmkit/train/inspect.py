"""A run seen from outside, from its files alone: what it is, how far, how well, how fast, and what it left on disk.

It needs no GPU and disturbs nothing, so it may look at a run that goes on: a line that is being written is not there
yet, a checkpoint without marker is unfinished.

Invariant: it only reads; what a run does not record (an old one, one that never logged) is left out, not guessed.

Example:
    view = RunView.read("RUN")
    print("\n".join(summary(view, now=time.time())))
"""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmkit import plot
from slmkit.config import run_dir
from slmkit.config.load import read_yaml
from slmkit.errors import UserError
from slmkit.train.console import duration, thousands
from slmkit.train.records import is_start, read_records

Records = list[dict[str, Any]]
SHOWN_STARTS = 8
MAX_EVALUATED_CURVES = 4  # more heads than these have their training curves alone


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
        if not (directory / run_dir.CONFIG).is_file():
            raise UserError(
                f"{directory} is not the directory of a run",
                got="no such directory" if not directory.is_dir() else f"no {run_dir.CONFIG} in it",
                expected="the run_dir of a run that `slmkit train` has started",
            )
        metrics = directory / run_dir.METRICS
        lines = read_records(metrics) if metrics.exists() else []
        sized = [
            (step, (path / run_dir.MARKER).is_file(), _bytes(path)) for step, path in run_dir.directories(directory)
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


def summary(view: RunView, *, now: float) -> list[str]:
    """Lines for a reader; `now` in Unix seconds."""
    total, done = view.total_steps, view.done_steps
    share = f" of {total} ({done / total:.0%})" if total else ""
    epoch = f", epoch {view.steps[-1]['epoch']}" if view.steps and "epoch" in view.steps[-1] else ""
    seen = (
        f", last line {duration(now - view.steps[-1]['time'])} ago" if view.steps and "time" in view.steps[-1] else ""
    )
    left = time_left_sec(view)
    rest = "finished" if total and done >= total else "" if left is None else f"about {duration(left)} left"
    return [
        *_rows("run", [str(view.directory)]),
        *_rows("model", [_options(view.config.get("model"))]),
        *_rows("data", [_options(view.config.get("data"))]),
        *_rows("batch", [_batch(view.config)]),
        *_rows("progress", [f"step {done}{share}{epoch}{seen}", rest]),
        *_rows("training", _scores(view.steps[-1], "") if view.steps else ["no step logged yet"]),
        *_rows("evaluation", _evaluation(view.evaluations)),
        *_rows("speed", _speeds(view.current)),
        *_rows("starts", _starts(view)),
        *_rows("checkpoints", [_checkpoint(*each) for each in view.checkpoints] or ["none"]),
        *_rows("faults", _faults(view)),
    ]


def time_left_sec(view: RunView) -> float | None:
    """From the first logged step of the last start to the last, with all that came between; None before the second."""
    timed = [line for line in view.current if "time" in line]
    if view.total_steps is None or len(timed) < 2:
        return None
    (first, last) = timed[0], timed[-1]
    return (last["time"] - first["time"]) / (last["step"] - first["step"]) * max(0, view.total_steps - last["step"])


def picture(view: RunView) -> bytes:
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
    """What of a line is a number."""
    return {name: value for name, value in record.items() if isinstance(value, int | float)}


def _rows(name: str, texts: Iterable[str]) -> list[str]:
    """Texts below each other, the name beside the first."""
    kept = [text for text in texts if text]
    return [f"{name if i == 0 else '':12} {text}" for i, text in enumerate(kept)]


def _options(values: Any) -> str:
    """Options that are set, in a line."""
    if not isinstance(values, dict):
        return ""
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in (None, [], {}))


def _batch(config: dict[str, Any]) -> str:
    optimizer = config.get("optimizer")
    lr = optimizer.get("lr") if isinstance(optimizer, dict) else None
    deepspeed = Path(str(config.get("deepspeed", ""))).name
    shown = {"global_rows": config.get("global_rows"), "micro_rows": config.get("micro_rows"), "lr": lr}
    return _options({**shown, "deepspeed": deepspeed or None})


def _scores(record: dict[str, Any], prefix: str) -> list[str]:
    """Loss in all, then loss and accuracy per term."""
    lines = [f"loss {record[f'{prefix}loss']:.4f} at step {record['step']}"]
    for kind in ("loss", "accuracy"):
        start = f"{prefix}{kind}/"
        known = {name.removeprefix(start): value for name, value in record.items() if name.startswith(start)}
        shown = "  ".join(f"{name} {value:.3f}" for name, value in known.items())
        lines.append(f"{kind}: {shown}" if shown else "")
    return lines


def _evaluation(evaluations: Records) -> list[str]:
    if not evaluations:
        return ["none yet"]
    best = min(evaluations, key=lambda line: line["eval/loss"])
    return [*_scores(evaluations[-1], "eval/"), f"best: loss {best['eval/loss']:.4f} at step {best['step']}"]


def _speeds(steps: Records) -> list[str]:
    """Medians over the last start."""

    def median(name: str) -> float | None:
        values = [line[name] for line in steps if name in line]
        return statistics.median(values) if values else None

    tokens, hours, mfu = (median(f"speed/{name}") for name in ("tokens_per_sec", "audio_hours_per_hour", "mfu"))
    wait, padding = (median(f"speed/{name}") for name in ("data_wait_share", "padding_share"))
    shown = [
        "" if tokens is None else f"{thousands(tokens)} tok/s",
        "" if hours is None else f"{thousands(hours)} hours of audio per hour",
        "" if mfu is None else f"mfu {mfu:.0%}",
        "" if wait is None else f"waiting for data {wait:.0%}",
        "" if padding is None else f"padding {padding:.0%}",
    ]
    text = ", ".join(part for part in shown if part)
    return [f"{text} (median of the last start)" if text else ""]


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


def _checkpoint(step: int, is_complete: bool, size: int) -> str:
    return f"step {step}: {size / 2**20:.1f} MiB, " + ("complete" if is_complete else "unfinished or interrupted")


def _faults(view: RunView) -> list[str]:
    """The last known value of every count that is not 0."""
    last: dict[str, Any] = {}
    for line in view.steps:
        last |= {name: value for name, value in line.items() if name.startswith("faults/")}
    return [f"{name.removeprefix('faults/')} {value:g}" for name, value in last.items() if value]


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
