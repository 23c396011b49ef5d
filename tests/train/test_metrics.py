"""What the first process writes of a run: lines, numbers and texts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from slmkit.train.metrics import MetricsLog, per_term, start_texts, term_names
from slmkit.train.records import read_records

MADE = {
    "config": {"model": {"group": 3, "head": "mlp"}, "seed": 7, "epochs": None, "run_dir": "runs/a|b"},
    "commit": "abc123",
    "versions": {"torch": "2.13", "slmkit": "0.1"},
}


def lines(path: Path) -> list[dict[str, Any]]:
    """But for the times."""
    return [{k: v for k, v in line.items() if k != "time"} for line in read_records(path / "metrics.jsonl")]


def test_terms_are_named_as_the_streams_and_heads() -> None:
    assert term_names("abc", 0) == ["text", "a", "b", "c"]
    assert term_names("abc", 6) == ["text", "a1", "b1", "c1", "a2", "b2", "c2"]


def test_a_term_without_targets_is_null() -> None:
    values = torch.tensor([1.0, 0.0]) / torch.tensor([2.0, 0.0])
    assert per_term(values, ["text", "a"], "loss") == {"loss/text": 0.5, "loss/a": None}


def test_lines_beyond_the_checkpoint_are_cut_and_starts_before_it_stay(tmp_path: Path) -> None:
    for resumed in (0, 2, 2):
        log = MetricsLog(tmp_path, resumed, is_first=True)
        log.start(resumed, processes=2 + resumed, total_steps=9, made=MADE)
        for step in range(resumed + 1, 5):
            log.write(step, {"loss": step / 2, "loss/a": None})
        log.close()
    starts = [{"step": step, "event": "start", "processes": step + 2, "total_steps": 9} for step in (0, 2, 2)]
    steps = [{"step": step, "loss": step / 2, "loss/a": None} for step in range(1, 5)]
    assert lines(tmp_path) == [starts[0], *steps[:2], *starts[1:], *steps[2:]]
    assert all(line["time"] > 1e9 for line in read_records(tmp_path / "metrics.jsonl"))


def test_tensorboard_has_the_numbers_and_the_texts(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, is_first=True)
    log.start(0, processes=2, total_steps=9, made=MADE)
    log.write(1, {"loss": 0.5, "speed/mfu": None})
    assert log.has(1, "loss")
    assert not log.has(1, "eval/loss")
    assert not log.has(2, "loss")
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert tags["scalars"] == ["loss"]
    assert sorted(tags["tensors"]) == [f"run/{name}/text_summary" for name in ("config", "hyperparameters", "start")]
    assert events.Scalars("loss")[0].value == 0.5
    (text,) = events.Tensors("run/start/text_summary")[0].tensor_proto.string_val
    assert text.decode() == "started at step 0 of 9 on 2 processes, commit abc123, torch 2.13, slmkit 0.1"


def test_the_texts_of_a_start() -> None:
    texts = start_texts(4, 1, 9, {**MADE, "commit": ""})
    assert texts["start"].startswith("started at step 4 of 9 on 1 process, commit unknown, ")
    assert "run_dir: runs/a|b" in texts["config"]
    rows = ["| option | value |", "|---|---|", "| model.group | 3 |", "| model.head | mlp |", "| seed | 7 |"]
    assert texts["hyperparameters"].splitlines() == rows
    piped = start_texts(0, 1, 1, {**MADE, "config": {"data": "a|b"}})["hyperparameters"]
    assert piped.endswith("\n| data | a&#124;b |")


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, is_first=False)
    log.start(0, processes=2, total_steps=9, made=MADE)
    log.write(1, {"loss": 1.0})
    log.close()
    assert log.tensorboard is None
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_not_finite_is_no_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, is_first=True)
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write(1, {"loss": float("nan")})
    log.close()
    assert not (tmp_path / "metrics.jsonl").exists()
