"""The line of a logged step and the time that is left."""

import itertools
from typing import Any

import pytest

from slmkit.train.console import Progress, duration, thousands

RECORD: dict[str, Any] = {
    "loss": 3.4121,
    "accuracy": 0.412,
    "speed/tokens_per_sec": 12_310.0,
    "speed/audio_hours_per_hour": 410.4,
    "speed/mfu": 0.384,
    "speed/data_wait_share": 0.011,
    "speed/sec_per_step": 2.0,
}


def clock(monkeypatch: pytest.MonkeyPatch, *times: float) -> None:
    ticks = itertools.chain(times)
    monkeypatch.setattr("time.monotonic", lambda: next(ticks))


def test_a_line_has_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, 0.0, 20.0, 40.0)
    progress = Progress(total_steps=5000, done_steps=1000)
    assert progress.line(1010, RECORD) == (
        "step 1010/5000  loss 3.412  acc 0.41  12.3k tok/s  410 h/h  mfu 38 %  wait 1 %  left 2 h 13 min"
    )
    assert "mfu" not in progress.line(1020, {**RECORD, "speed/mfu": None})


def test_the_time_left_counts_only_this_start_and_all_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 steps of 2 s and 10 s of evaluation: 3 s a step for the 80 that are left."""
    clock(monkeypatch, 0.0, 30.0)
    assert Progress(total_steps=100, done_steps=10).line(20, RECORD).endswith("left 4 min 0 s")


def test_the_pace_is_that_of_the_last_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow first step is forgotten; all time is accounted for by the pace."""
    clock(monkeypatch, 0.0, 100.0, *(100.0 + 2 * step for step in range(1, 12)))
    progress = Progress(total_steps=112, done_steps=0)
    first = progress.line(1, {**RECORD, "speed/sec_per_step": 100.0})
    assert first.endswith("left 3 h 5 min")
    assert [progress.line(step, RECORD) for step in range(2, 13)][-1].endswith("left 3 min 20 s")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (8000, "2 h 13 min"), (86400 * 3 + 3600 * 4, "3 d 4 h"), (-5, "0 s")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(("value", "words"), [(3.21, "3.21"), (999, "999"), (12_300, "12.3k"), (4.56e6, "4.56M")])
def test_thousands(value: float, words: str) -> None:
    assert thousands(value) == words
