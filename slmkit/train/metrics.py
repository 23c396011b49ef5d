"""What a run reports: `RUN/metrics.jsonl`, a line per logged step, and the same numbers in TensorBoard.

A line (see `train.records`) holds the step (1 is the first), what was measured at that step alone (loss, per-term loss
and accuracy, learning rate, gradient norm) and how fast the steps since the line before went. Evaluations have lines of
their own whose names start with "eval/", and so have starts. Numbers that are not there (a term without targets) are
null. TensorBoard shows each number under its name, whose first word is its group, and as text the run config, the
numbers of it that are compared between runs, and how each start was made.

Sums stay on the device until a step is logged; then one all-reduce brings those of all ranks together.

Invariant: after a resume, lines beyond the checkpoint's step are gone, and but for times, speeds, memory and lines of
starts the file is that of an uninterrupted run.

Example:
    meter.add(output, batch)
    loss, terms = meter.result(names)
    log.write(step, {"loss": loss, **terms})
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from slmkit.config.run_dir import METRICS, TENSORBOARD
from slmkit.train.engine import sum_over_ranks
from slmkit.train.records import START, Record, as_line, cut, read_records

COMPARED = ("model", "optimizer", "schedule", "data", "global_rows", "micro_rows", "steps", "epochs", "seed")


def term_names(letters: Sequence[str], group: int) -> list[str]:
    """Names of the loss terms: text, then one per stream (group 0) or per head: a1 b1 c1 a2 ..."""
    frames = group // len(letters)
    return ["text", *(letters if group == 0 else [f"{letter}{n + 1}" for n in range(frames) for letter in letters])]


def per_term(values: torch.Tensor, names: Sequence[str], prefix: str) -> Record:
    """`values` [1 + T] under "prefix/name"; null where a term had no targets (NaN)."""
    pairs = zip(names, values.tolist(), strict=True)
    return {f"{prefix}/{name}": None if math.isnan(value) else value for name, value in pairs}


class StepMeter:
    """Sums of one optimizer step over the micro-batches of this rank, kept on the device until `result`."""

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None

    def add(self, output: Any, batch: Any) -> None:
        """Count a micro-batch in: its loss, sums and correct answers per term."""
        parts = torch.cat([output.loss.detach()[None], output.sums.detach(), output.correct.detach()]).double()
        self._total = parts if self._total is None else self._total + parts
        self._counts = batch.global_counts

    def result(self, names: Sequence[str]) -> tuple[float, Record]:
        """Loss of the global batch; accuracy over all its targets; mean loss and accuracy of each term.

        Every rank must call it.
        """
        assert self._total is not None
        assert self._counts is not None
        total = sum_over_ranks(self._total.clone()).cpu()
        counts = self._counts.cpu()
        sums, correct = total[1:].chunk(2)
        terms = {**per_term(sums / counts, names, "loss"), **per_term(correct / counts, names, "accuracy")}
        return total[0].item(), {"accuracy": (correct.sum() / counts.sum()).item(), **terms}


class MetricsLog:
    """The files of the first process; in the others nothing is written."""

    def __init__(self, run_dir: str | Path, resume_step: int, *, is_first: bool) -> None:
        self._writer: Any = None
        if not is_first:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._path = Path(run_dir) / METRICS
        cut(self._path, resume_step)
        self._writer = SummaryWriter(str(Path(run_dir) / TENSORBOARD), purge_step=resume_step + 1)

    def start(self, step: int, *, processes: int, total_steps: int, made: dict[str, Any]) -> None:
        """Note a start that continues from `step`. `made` is its provenance, with the resolved config."""
        if self._writer is None:
            return
        self._append({"step": step, "event": START, "processes": processes, "total_steps": total_steps})
        for name, text in start_texts(step, processes, total_steps, made).items():
            self._writer.add_text(f"run/{name}", text, step)
        self._writer.flush()

    def has(self, step: int, name: str) -> bool:
        """Whether a line of `step` has the number `name`; known in the first process only."""
        if self._writer is None or not self._path.exists():
            return False
        return any(record["step"] == step and name in record for record in read_records(self._path))

    def write(self, step: int, record: Record) -> None:
        """Append a line and plot its numbers."""
        if self._writer is None:
            return
        self._append({"step": step, **record})
        for name, value in record.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    @property
    def tensorboard(self) -> Any:
        """TensorBoard's writer for speech samples; None but in the first process."""
        return self._writer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _append(self, record: dict[str, Any]) -> None:
        line = as_line({**record, "time": round(time.time(), 3)})
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(line)


def start_texts(step: int, processes: int, total_steps: int, made: dict[str, Any]) -> dict[str, str]:
    """What TensorBoard says of a start, as Markdown: in words, the whole config, and what runs differ in as a table."""
    config = made["config"] or {}
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    plural = "es" if processes != 1 else ""
    commit = made["commit"] or "unknown"
    rows = [row for name in COMPARED for row in _flat(name, config.get(name))]
    return {
        "start": f"started at step {step} of {total_steps} on {processes} process{plural}, commit {commit}, {versions}",
        "config": f"```yaml\n{yaml.safe_dump(config, sort_keys=False, allow_unicode=True)}```",
        "hyperparameters": "\n".join(["| option | value |", "|---|---|", *rows]),
    }


def _flat(name: str, value: Any) -> list[str]:
    """Rows of a Markdown table for an option, or for those inside it."""
    if isinstance(value, dict):
        return [row for inner, part in value.items() for row in _flat(f"{name}.{inner}", part)]
    return [] if value is None else [f"| {name} | {str(value).replace('|', '&#124;')} |"]
