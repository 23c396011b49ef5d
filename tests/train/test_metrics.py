"""The lines and names of metrics.jsonl."""

import json
from pathlib import Path

import pytest
import torch

from slmkit.train.metrics import MetricsLog, Pace, cut, per_term, term_names


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_terms_are_named_as_the_streams_and_heads() -> None:
    assert term_names("abc", 0) == ["text", "a", "b", "c"]
    assert term_names("abc", 6) == ["text", "a1", "b1", "c1", "a2", "b2", "c2"]


def test_a_term_without_targets_is_null() -> None:
    values = torch.tensor([1.0, 0.0]) / torch.tensor([2.0, 0.0])
    assert per_term(values, ["text", "a"], "loss") == {"loss/text": 0.5, "loss/a": None}


def test_lines_beyond_the_checkpoint_are_cut(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, is_first=True)
    for step in range(1, 5):
        log.write(step, {"loss": step / 2, "loss/a": None})
    log.close()
    MetricsLog(tmp_path, 2, is_first=True).close()
    assert lines(tmp_path / "metrics.jsonl") == [{"step": s, "loss": s / 2, "loss/a": None} for s in (1, 2)]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_half_written_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    cut(path, 9)
    assert path.read_text() == '{"step": 1}\n'


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, is_first=False)
    log.write(1, {"loss": 1.0})
    log.close()
    assert log.tensorboard is None
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_not_finite_is_no_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, is_first=True)
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write(1, {"loss": float("nan")})
    log.close()


def test_waiting_counts_only_the_time_inside_next(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 10.0, 10.5, 20.0, 20.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    pace = Pace()
    assert list(pace.timed(iter("xy"))) == ["x", "y"]
    assert pace._wait_sec == pytest.approx(2.0 + 0.5)
