"""`slmkit train --fit`: which micro-batches are tried, what ends that, which is chosen, and what it leaves behind."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from forked import run as run_forked
from hypothesis import given
from hypothesis import strategies as st
from train.ranks import ROOT, free_port, run_ranks
from train.tiny_run import make_tiny, tiny_config

from slmkit.config.load import to_dict
from slmkit.data.loader import micro_batches
from slmkit.errors import UserError
from slmkit.train import fit, pace
from slmkit.train.fit import FITS, NOT_TRIED, OUT, TOO_FULL, Trial, Trials, chosen, expected_gib, fullest_rows
from slmkit.train.run import Run, prepare_run
from slmkit.world import BatchSplit, World

ROW_TOKENS = 160
SIZES = [1, 2, 3, 4, 6, 12]  # what divides the rows of a step


class StandIn:
    """An engine that runs out of memory with more than so many rows: in the forward pass, or behind it."""

    def __init__(self, forward: int, backward: int | None = None) -> None:
        self.forward, self.backward = forward, forward if backward is None else backward
        self.steps: list[int] = []  # rows of each micro-batch that was run whole

    def module(self, batch: Any) -> None:
        self.hold(batch, self.forward)

    def micro_step(self, batch: Any, *, lr: float) -> None:
        assert lr == 0.0
        self.hold(batch, self.backward)
        self.steps.append(batch.row_tokens // ROW_TOKENS)

    def hold(self, batch: Any, most: int) -> None:
        if batch.row_tokens > most * ROW_TOKENS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("fit"))


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    return prepare_run(tiny_config(place, global_rows=12, data={"row_tokens": ROW_TOKENS}), World())


def trials_of(run: Run, engine: Any, processes: int = 1) -> Trials:
    split = BatchSplit(global_rows=12 * processes, micro_rows=1, world_size=processes)
    trials = Trials(dataclasses.replace(run, split=split), engine, torch.device("cpu"), None, None)
    trials.memory.limit_gib = trials.memory.total_gib = float("inf")  # whatever this machine has
    return trials


@pytest.mark.parametrize(("forward", "backward"), [(12, 12), (5, 5), (12, 5), (1, 1)])
def test_more_rows_are_tried_until_the_memory_is_full(run: Run, forward: int, backward: int) -> None:
    engine = StandIn(forward, backward)
    trials = trials_of(run, engine)
    best = trials.choose()
    fitting = [rows for rows in SIZES if rows <= backward]
    assert [(t.micro_rows, t.outcome) for t in trials.trials] == [
        *((rows, FITS) for rows in fitting),
        *((rows, OUT) for rows in SIZES[len(fitting) : len(fitting) + 1]),
    ]
    assert engine.steps == [rows for rows in fitting for _ in range((1 + fit.TIMED_STEPS) * fit.ACCUMULATION)]
    assert best in fitting
    assert all(t.micro_rows * t.accumulation == 12 for t in trials.trials)


def test_where_not_one_row_fits_it_is_said(run: Run) -> None:
    with pytest.raises(UserError, match=r"(?s)one row of data\.row_tokens = 160 does not fit.*out of memory"):
        trials_of(run, StandIn(0)).choose()
    trials = trials_of(run, StandIn(12))
    trials.memory.limit_gib = 0.0
    with pytest.raises(UserError, match=f"(?s)does not fit.*{TOO_FULL}"):
        trials.choose()
    trials.trials, trials.memory.total_gib = [trial(1, 1.0, peak_gib=1.0)], 0.5
    assert trials.trial(2).outcome == NOT_TRIED


def test_a_process_that_cannot_tell_the_others_ends_with_what_fits(run: Run) -> None:
    trials = trials_of(run, StandIn(12, backward=3), processes=2)
    with pytest.raises(UserError, match=r"(?s)while gradients were exchanged.*train with micro_rows=3"):
        trials.choose()


def test_a_model_that_does_not_fit_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(fit, "process_group", lambda world: contextlib.nullcontext(torch.device("cpu")))
    monkeypatch.setattr(fit, "check_agreement", lambda *_: None)
    monkeypatch.setattr(fit, "start_engine", full)
    with pytest.raises(UserError, match="out of memory while loading the model"):
        fit.fit(tiny_config(place))


def test_another_error_is_none_of_memory(run: Run) -> None:
    class Broken(StandIn):
        def hold(self, batch: Any, most: int) -> None:
            raise RuntimeError("an illegal memory access")

    with pytest.raises(RuntimeError, match="illegal"):
        trials_of(run, Broken(1)).choose()


def trial(micro_rows: int, speed: float, outcome: str = FITS, peak_gib: float = 0.0) -> Trial:
    return Trial(micro_rows=micro_rows, accumulation=1, outcome=outcome, peak_gib=peak_gib, positions_per_sec=speed)


@pytest.mark.parametrize(
    ("speeds", "best"),
    [([10.0, 19.0, 30.0], 4), ([10.0, 29.5, 30.0], 2), ([30.0, 29.0, 28.0], 1), ([10.0, 30.0, 20.0], 2)],
)
def test_the_fewest_rows_at_nearly_the_best_speed_are_chosen(speeds: list[float], best: int) -> None:
    tried = [trial(rows, speed) for rows, speed in zip((1, 2, 4), speeds, strict=True)]
    assert chosen([*tried, trial(8, 99.0, TOO_FULL), trial(8, 99.0, OUT)], 1024) == best


@given(st.floats(0, 9), st.floats(0, 9), st.floats(0, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_no_peak_is_below_the_expected_one(
    rest: float, base: float, each: float, rows: int, more: int, still_more: int
) -> None:
    def peak(rows: int) -> float:
        """What is always there, such as the optimizer's step, or what grows."""
        return max(rest, base + each * rows)

    tried = [(number, peak(number)) for number in (rows, rows + more)]
    assert expected_gib(tried, rows + more + still_more) <= peak(rows + more + still_more) * (1 + 1e-9) + 1e-9
    assert expected_gib(tried[:1], rows + more) <= peak(rows + more)


@pytest.mark.parametrize("group", [0, 3])
def test_the_fullest_rows_are_those_of_the_plan(place: Path, group: int) -> None:
    """Counted from the batches that training would read."""
    run = prepare_run(tiny_config(place, model={"group": group}, data={"row_tokens": ROW_TOKENS}), World())

    def fullness(row: Any) -> int:
        split, step = BatchSplit(global_rows=1, micro_rows=1), next(run.walk(0))._replace(rows=[row])
        ((_, _, batch),) = micro_batches(run.data, split, [step], rank=0, row_tokens=ROW_TOKENS)
        return batch.num_tokens + len(batch.lm_targets) + len(batch.head_targets) + int(batch.cu_seqlens.diff().max())

    rows = [row for step in run.walk(0) if step.epoch == 0 for row in step.rows if len(row)]
    found = fullest_rows(run, 3)
    assert [fullness(row) for row in found] == sorted(map(fullness, rows), reverse=True)[:3]
    assert len(fullest_rows(run, 1000)) == len(rows)
    assert len(np.unique(np.concatenate(fullest_rows(run, 1000)))) == len(run.data)


def test_what_the_host_has_left_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(pace, "CGROUP", tmp_path)
    assert pace.host_bytes_left() == float("inf")
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    4000 kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert pace.host_bytes_left() == 4000 * 1024
    (tmp_path / "memory.max").write_text("3000\n")
    assert pace.host_bytes_left() == 2000


@pytest.mark.full
def test_alone_and_with_two_processes(place: Path) -> None:
    """On the real engine. Nothing of a run is written but its cache."""
    config = tiny_config(place, place / "fitted", global_rows=4, micro_rows=3, data={"num_workers": 0})
    file = place / "run.yaml"
    file.write_text(yaml.safe_dump(to_dict(config)))
    words = ["-m", "slmkit", "train", "--config", str(file), "--fit"]
    env = {**os.environ, "MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    alone = run_forked(words, env=env)
    assert alone.returncode == 0, alone.stderr[-4000:]
    assert alone.stdout in {f"micro_rows={rows}\n" for rows in (1, 2, 4)}
    assert "positions/s" in alone.stderr
    two = run_ranks(2, words)
    assert two[0][1] in {f"micro_rows={rows}\n" for rows in (1, 2)}
    assert two[1][1] == ""
    assert [path.name for path in (place / "fitted").iterdir()] == ["cache"]
