"""The largest and the fastest micro-batch of a run on these devices, by measuring: `slmkit train --fit`.

Every number of rows that divides a process's share of the step is tried, from one row upwards until one does not fit.
The rows are the worst that the plan has: full, with long utterances and many targets. A trial takes whole optimizer
steps, with the moments in memory and a learning rate of 0, of two micro-batches: the second adds to gradients that are
there already. The forward pass goes first and alone: most memory is in use at its end, and processes exchange nothing
in it (ZeRO-1, ZeRO-2), so that one that runs out can tell the others.

Chosen are the fewest rows that reach nearly the best speed; what a step computes is the same with any (`world.py`).
Nothing of the run but its cache is written, and it is not owned.

Invariant: all processes choose the same, from the numbers of the slowest and the fullest of them.

Example:
    fit(load_config(TrainConfig, "launch/quickstart.yaml"))      # 2
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slmkit.config.train import TrainConfig
from slmkit.data.batch import Batch
from slmkit.data.loader import micro_batches
from slmkit.data.sequence import Size
from slmkit.data.steps import PlannedStep
from slmkit.errors import UserError, is_out_of_memory
from slmkit.group import is_grouped, largest
from slmkit.log import get_logger
from slmkit.model.flops import BatchSizes, Flops
from slmkit.train.engine import process_group
from slmkit.train.names import with_commits
from slmkit.train.pace import Memory, peak_of
from slmkit.train.run import Run, check_agreement, prepare_run
from slmkit.train.settings import zero_stage
from slmkit.train.start import out_of_memory_named, start_engine
from slmkit.world import BatchSplit, World

logger = get_logger(__name__)
LOOKED_AT = 4096  # rows at the beginning of the plan, of which the fullest are taken
NEARLY = 0.97  # of the best speed
ACCUMULATION = 2  # micro-batches of a measured step
TIMED_STEPS = 2  # after one that is not timed
FEW_POSITIONS = 16_384  # of a GPU and step; with far fewer it waits for what does not grow with them (model/README.md)
FITS, TOO_FULL, OUT, NOT_TRIED = "fits", "leaves too little memory", "out of memory", "needs more than there is"
HEAD = f"{'micro_rows':>10} {'micro-batches':>13} {'peak GiB':>9} {'positions/s':>11} {'MFU':>6}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Micro-batches of so many rows. Of those that were not measured there is no speed, and the peak is a guess."""

    micro_rows: int
    accumulation: int
    outcome: str
    peak_gib: float  # all that is in use on the device; on a CPU by the process
    positions_per_sec: float = 0.0  # of a process, over a whole step
    mfu: float | None = None

    def __str__(self) -> str:
        mfu = "" if self.mfu is None else f"{self.mfu:.1%}"
        counts = f"{self.micro_rows:>10} {self.accumulation:>13} {self.peak_gib:>9.2f}"
        return f"{counts} {self.positions_per_sec:>11,.0f} {mfu:>6}  {self.outcome}"


def fit(config: TrainConfig) -> int:
    """The best `micro_rows` of a run; that of `config` counts nothing. Every process calls it.

    Raises UserError for everything that `train` refuses, and when not even one row fits.
    """
    world = World.from_env()
    config = config.model_copy(update={"micro_rows": 1})
    with process_group(world) as device:
        check_agreement(config)
        config = with_commits(config, world)
        run = prepare_run(config, world)
        check_agreement(config, run)
        batch = {"train_batch_size": ACCUMULATION * world.size, "gradient_accumulation_steps": ACCUMULATION}
        with out_of_memory_named(lambda: "while loading the model"):
            engine = start_engine(dataclasses.replace(run, settings={**run.settings, **batch}), None)
        return Trials(run, engine, device, Flops(engine.module), peak_of(run, device)).choose()


def fullest_rows(run: Run, count: int) -> list[npt.NDArray[np.int64]]:
    """The samples of the `count` fullest of the first rows of the plan, fullest first; fewer where there are fewer."""
    epoch = itertools.takewhile(lambda step: step.epoch == 0, run.walk(0))
    rows = itertools.islice((row for step in epoch for row in step.rows if len(row)), LOOKED_AT)

    def fullness(row: npt.NDArray[np.int64]) -> int:
        """Positions, those with a target, and those of the longest utterance, which has the most attention."""
        sizes = Size(*run.data.sizes(row).T)
        speech = sizes.steps if run.model.group else sizes.frames * run.layout.num_streams + sizes.endings
        return int((sizes.positions + sizes.text_targets + speech).sum() + sizes.positions.max())

    return sorted(rows, key=fullness, reverse=True)[:count]


class Trials:
    """See the module. `engine` takes steps of ACCUMULATION micro-batches; `peak_tflops` is the device's, if known."""

    def __init__(
        self, run: Run, engine: Any, device: torch.device, costs: Flops | None, peak_tflops: float | None
    ) -> None:
        self.run, self.engine, self.device, self.costs, self.peak_tflops = run, engine, device, costs, peak_tflops
        self.share = run.split.global_rows // run.split.world_size  # rows of a process in a step
        self.rows = fullest_rows(run, self.share)
        self.memory = memory = Memory(device)
        least = agreed([-memory.total_gib, -memory.limit_gib])
        memory.total_gib, memory.limit_gib = -least[0], -least[1]
        self.trials: list[Trial] = []

    def choose(self) -> int:
        """Try all numbers of rows, log what they take, and give the best. Raises UserError where none fits."""
        logger.info(HEAD)
        for micro_rows in (rows for rows in range(1, self.share + 1) if self.share % rows == 0):
            self.trials.append(self.trial(micro_rows))
            logger.info(str(self.trials[-1]))
            if self.trials[-1].outcome != FITS:
                break
        row_tokens, memory = self.run.config.data.row_tokens, self.memory
        best = chosen(self.trials, row_tokens)
        room = f"{memory.limit_gib:.1f} of {memory.total_gib:.1f} GiB may be in use"
        logger.info("micro_rows=%d, the fewest rows at %.0f %% of the best speed; %s", best, 100 * NEARLY, room)
        if self.device.type == "cuda" and self.share * row_tokens < FEW_POSITIONS:
            few = "a GPU takes %d positions a step, which do not fill it; raise global_rows until it takes %d"
            logger.warning(few, self.share * row_tokens, FEW_POSITIONS)
        return best

    def trial(self, micro_rows: int) -> Trial:
        """Micro-batches of the fullest rows. Raises UserError where a process runs out and cannot tell the others."""
        accumulation = self.share // micro_rows
        peak_gib = expected_gib([(trial.micro_rows, trial.peak_gib) for trial in self.trials], micro_rows)
        unfit: dict[str, Any] = {"micro_rows": micro_rows, "accumulation": accumulation, "peak_gib": peak_gib}
        if peak_gib > self.memory.total_gib:
            return Trial(**unfit, outcome=NOT_TRIED)
        batch = self.batch(micro_rows)
        flops = self.costs.training(BatchSizes.of(batch)) if self.costs else 0
        on_device, is_alone = batch.to(self.device), self.run.split.world_size == 1
        seconds: list[list[float]] = []  # of each micro-batch of each step

        def steps() -> None:
            for _ in range(1 + TIMED_STEPS):
                seconds.append([self.timed(on_device) for _ in range(ACCUMULATION)])

        self.memory.restart()
        if is_alone or zero_stage(self.run.settings) < 3:
            is_out = not has_room(lambda: self.engine.module(on_device))
            if agreed([is_out]) != [0.0]:
                return Trial(**unfit, outcome=OUT)
        if not has_room(steps):
            if is_alone:
                return Trial(**unfit, outcome=OUT)
            raise UserError(
                "a process ran out of memory while gradients were exchanged",
                got=f"micro_rows={micro_rows} of data.row_tokens = {self.run.config.data.row_tokens}",
                next_step=f"train with micro_rows={self.trials[-1].micro_rows if self.trials else 1}, or shorter rows",
            )
        micro_sec, last_sec = (min(step[place] for step in seconds[1:]) for place in (0, -1))
        peak_gib, micro_sec, last_sec = agreed([self.memory.peak_gib(), micro_sec, last_sec])
        per_sec = accumulation / ((accumulation - 1) * micro_sec + last_sec)  # micro-batches
        return Trial(
            micro_rows=micro_rows,
            accumulation=accumulation,
            outcome=FITS if peak_gib <= self.memory.limit_gib else TOO_FULL,
            peak_gib=peak_gib,
            positions_per_sec=batch.num_tokens * per_sec,
            mfu=flops * per_sec / (self.peak_tflops * 1e12) if self.peak_tflops else None,
        )

    def batch(self, micro_rows: int) -> Batch:
        """The fullest rows as a micro-batch in host memory, which is a global batch by itself."""
        rows = self.rows[:micro_rows] + [np.zeros(0, np.int64)] * max(0, micro_rows - len(self.rows))
        split, step = BatchSplit(global_rows=micro_rows, micro_rows=micro_rows), PlannedStep(0, 0, rows)
        row_tokens = self.run.config.data.row_tokens
        ((_, _, batch),) = micro_batches(self.run.data, split, [step], rank=0, row_tokens=row_tokens)
        return batch

    def timed(self, batch: Batch) -> float:
        """Seconds of a micro-batch; with the last of a step come those of the update."""
        start = time.perf_counter()
        self.engine.micro_step(batch, lr=0.0)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start


def has_room(work: Callable[[], Any]) -> bool:
    """Whether `work` went through with the memory there is. What it gives is let go."""
    try:
        work()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def agreed(values: Sequence[float]) -> list[float]:
    """The largest of every value over all processes."""
    return largest(values) if is_grouped() else list(values)


def expected_gib(peaks: Sequence[tuple[int, float]], micro_rows: int) -> float:
    """The least peak to expect of `micro_rows` rows after those of fewer, (rows, GiB) each.

    Activations grow with the rows and all else stays, so that the curve of peaks bends upwards alone: no later peak is
    below the line through the last two.
    """
    if len(peaks) < 2:
        return peaks[-1][1] if peaks else 0.0
    (rows, peak), (more_rows, more_peak) = peaks[-2:]
    return more_peak + (micro_rows - more_rows) * (more_peak - peak) / (more_rows - rows)


def chosen(trials: Sequence[Trial], row_tokens: int) -> int:
    """The fewest rows that fit and reach nearly the best speed of those that do. Raises UserError where none fits."""
    fitting = {trial.micro_rows: trial.positions_per_sec for trial in trials if trial.outcome == FITS}
    if not fitting:
        raise UserError(
            f"one row of data.row_tokens = {row_tokens} does not fit",
            got=f"{trials[0].outcome}, {trials[0].peak_gib:.2f} GiB",
            next_step="lower data.row_tokens, choose an offload config, or take more GPUs",
        )
    return min(rows for rows, speed in fitting.items() if speed >= NEARLY * max(fitting.values()))
