"""What a run reports: `RUN/metrics.jsonl`, one JSON line per logged step, and the same numbers in TensorBoard.

A line holds the step (1 is the first), what was measured at that step alone (loss, per-term loss and accuracy, learning
rate, gradient norm) and how fast the steps since the line before went. Evaluations have lines of their own whose names
start with "eval/". Numbers that are not there (a term without targets) are null.

Sums stay on the device until a step is logged; then one all-reduce brings those of all ranks together.

Invariant: after a resume, lines beyond the checkpoint's step are gone, and but for the speeds the file is that of an
uninterrupted run.

Example:
    meter.add(output, batch)
    loss, terms = meter.result(names)
    log.write(step, {"loss": loss, **terms})
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from slmkit.config.run_dir import METRICS, TENSORBOARD
from slmkit.files import atomic_write
from slmkit.train.engine import sum_over_ranks

T = TypeVar("T")
Record = dict[str, float | int | None]


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
        """Loss of the global batch; mean loss and accuracy of each term. Every rank must call it."""
        assert self._total is not None
        assert self._counts is not None
        total = sum_over_ranks(self._total.clone()).cpu()
        counts = self._counts.cpu()
        sums, correct = total[1:].chunk(2)
        terms = {**per_term(sums / counts, names, "loss"), **per_term(correct / counts, names, "accuracy")}
        return total[0].item(), terms


class Pace:
    """How fast this rank goes, and how long it waits for data, since the last `result`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was counted so far."""
        self._start, self._wait_sec = time.perf_counter(), 0.0
        self._tokens = self._frames = self._room = 0

    def timed(self, items: Iterator[T]) -> Iterator[T]:
        """`items`; the time each takes to come counts as waiting for data."""
        while True:
            start = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self._wait_sec += time.perf_counter() - start
            yield item

    def add(self, batch: Any) -> None:
        """Count a micro-batch in."""
        self._tokens += batch.num_tokens if batch.keys else 0
        self._frames += batch.num_frames
        self._room += batch.row_tokens

    def result(self, frame_rate: float, device: torch.device, world_size: int) -> Record:
        """Speeds of all ranks together. Every rank must call it."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        mine = [self._tokens, self._frames, self._room, self._wait_sec / seconds]
        tokens, frames, room, wait = sum_over_ranks(torch.tensor(mine, dtype=torch.float64, device=device)).tolist()
        self.restart()
        return {
            "tokens_per_sec": tokens / seconds,
            "audio_sec_per_sec": frames / frame_rate / seconds,
            "padding_share": 1 - tokens / room if room else 0.0,
            "data_wait_share": wait / world_size,
        }


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

    def write(self, step: int, record: Record) -> None:
        """Append a line and plot its numbers."""
        if self._writer is None:
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **record}, allow_nan=False) + "\n")
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


def cut(path: Path, last_step: int) -> None:
    """Remove lines beyond `last_step`, and a last line that an interruption left half-written."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > last_step:
            break
        kept.append(line)
    with atomic_write(path, replace=True) as file:
        file.write("".join(kept).encode())
