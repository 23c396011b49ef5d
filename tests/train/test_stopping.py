"""Signals stop a run after the step it is in, from any process, at any moment; what hangs or dies is named."""

import time
from typing import NamedTuple

import pytest
from synthetic import write_corpus
from train.place import FRAMES, Place
from train.two_ranks import STEPS, TIMEOUT_SEC, start_two

from slmkit.config import run_dir


class Start(NamedTuple):
    """One start of a run of two processes."""

    fault: str
    rank: int
    step: int  # at which it happens
    code: int  # exit code of every process
    saved: int  # step of the newest checkpoint afterwards


STARTS = (
    Start("signal_at_start", 1, 0, 75, 0),
    Start("signal_in_step", 1, 3, 75, 3),
    Start("signal_in_evaluation", 0, 0, 75, 5),
    Start("signal_in_save", 1, 0, 75, 9),
    Start("none", 0, 0, 0, STEPS),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place.make(tmp_path_factory.mktemp("stopping"))
    write_corpus(place.directory / "other", 10, frames=FRAMES, seed=1)
    return place


@pytest.fixture(scope="module")
def shown(place: Place) -> list[str]:
    """An uninterrupted run, and one that is stopped at every kind of moment; what the latter says at each start."""
    codes, errors = start_two(place, "whole", "none")
    assert codes == [0, 0], errors[-4000:]
    said = []
    for fault, rank, step, code, saved in STARTS:
        codes, errors = start_two(place, "stopped", fault, rank, step)
        assert codes == [code, code], errors[-4000:]
        newest = run_dir.newest(place.directory / "stopped")
        assert (newest.step if newest else 0) == saved, fault
        said.append(errors)
    return said


def test_a_stopped_run_ends_as_if_it_had_not_been(place: Place, shown: list[str]) -> None:
    """Evaluation that was left out comes with the next start."""
    assert place.metrics("stopped") == place.metrics("whole")
    evaluated = [r["step"] for r in place.metrics("stopped") if "eval/loss" in r]
    assert evaluated == [5, 10, STEPS]


def test_the_log_says_what_happened(shown: list[str]) -> None:
    at_start, in_step, in_evaluation, in_save, _ = shown
    assert "rank 1 got SIGTERM before training began" in at_start
    assert "rank 1 got SIGUSR1: the run stops after step 3" in in_step
    assert f"stopped at step 3 of {STEPS}; the same command continues from" in in_step
    assert "rank 0 got SIGINT" in in_evaluation
    assert "rank 1 got SIGTERM" in in_save


def test_a_process_that_hangs_is_named_with_its_stack(place: Place) -> None:
    begin = time.monotonic()
    codes, errors = start_two(place, "hung", "hang", rank=1)
    assert codes == [1, 1]
    assert f"no progress for {TIMEOUT_SEC} s from rank 1 (" in errors
    assert "reading data at step" in errors
    assert "rank 1 stands at:" in errors
    assert "in wait" in errors
    assert "[rank 1] ends too: no progress" in errors
    assert time.monotonic() - begin < 60


@pytest.mark.full
@pytest.mark.parametrize(
    ("rank", "message"),
    [
        pytest.param(1, "no sign of life for 4 s from rank 1 (", marks=pytest.mark.full),
        (0, "lost the first process"),
    ],
)
def test_a_process_that_stopped_running_is_named(place: Place, rank: int, message: str) -> None:
    codes, errors = start_two(place, f"silent{rank}", "stop", rank=rank, step=2)
    assert codes[1 - rank] == 1
    assert message in errors
    assert f"[rank {1 - rank}]" in errors


@pytest.mark.full
def test_a_process_that_died_is_named(place: Place) -> None:
    codes, errors = start_two(place, "dead", "die", rank=1, step=2)
    assert codes == [1, -9]
    assert "rank 0 failed while computing micro-batch 0 at step 2: no sign of life from rank 1 (" in errors


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("device_memory", "CUDA out of memory"),
        pytest.param("host_memory", "can't allocate memory", marks=pytest.mark.full),
    ],
)
def test_out_of_memory_names_the_batch(place: Place, fault: str, message: str) -> None:
    codes, errors = start_two(place, fault, fault, rank=1)
    assert codes == [2, 2]
    assert "out of memory at step 1" in errors
    assert message in errors
    assert "a micro-batch of 1 rows of data.row_tokens = 160" in errors
    assert "lower micro_rows" in errors
    assert errors.count("slmkit train:") == 1
