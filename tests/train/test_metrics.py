"""What a run reports: lines of metrics.jsonl, also of a run that goes on or was cut off, TensorBoard, the console."""

import builtins
import io
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from slmkit.errors import UserError
from slmkit.log import duration
from slmkit.train.evaluation import means_of, per_term, term_names
from slmkit.train.metrics import MetricsLog, RunProgress, is_start, read_metrics, thousands

MADE = {
    "config": {"model": {"group": 3, "head": "mlp"}, "seed": 7, "epochs": None, "run_dir": "runs/a|b"},
    "commit": "abc123",
    "versions": {"torch": "2.13", "slmkit": "0.1"},
}


def lines(path: Path) -> list[dict[str, Any]]:
    """But for the times."""
    return [{k: v for k, v in line.items() if k != "time"} for line in read_metrics(path / "metrics.jsonl")]


def test_terms_are_named_as_the_streams_and_heads() -> None:
    assert term_names("abc", 0) == ["text", "a", "b", "c"]
    assert term_names("abc", 6) == ["text", "a1", "b1", "c1", "a2", "b2", "c2"]


def test_a_term_without_targets_is_null() -> None:
    means = means_of(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([2.0, 0.0, 4.0]))
    expected = {"loss/text": 0.5, "loss/speech": 0.75, "loss/a": None, "loss/b": 0.75}
    assert per_term(means, ["text", "a", "b"], "loss") == expected


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
    assert all(line["time"] > 1e9 for line in read_metrics(tmp_path / "metrics.jsonl"))


def test_tensorboard_has_the_numbers_the_options_and_the_texts(tmp_path: Path) -> None:
    """Under the name of the run; losses of training and of evaluation in groups of their own."""
    log = MetricsLog(tmp_path / "pilot", 0, is_first=True)
    log.start(0, processes=2, total_steps=9, made=MADE)
    log.write(1, {"loss": 0.5, "loss/a": 0.25, "speed/mfu": None, "optimizer/lr": 0.125})
    log.write(1, {"eval/loss": 2.0})
    assert log.has(1, "loss")
    assert not log.has(1, "eval/loss/a")
    assert not log.has(2, "loss")
    log.close()
    events = EventAccumulator(str(tmp_path / "pilot" / "tensorboard" / "pilot"))
    events.Reload()
    tags = events.Tags()
    assert sorted(tags["scalars"]) == ["eval/loss", "optimizer/lr", "train/loss", "train/loss/a"]
    assert events.Scalars("train/loss")[0].value == 0.5
    assert sorted(tags["tensors"]) == ["run/config/text_summary", "run/start/text_summary"]
    (start,) = events.Tensors("run/start/text_summary")[0].tensor_proto.string_val
    assert start.decode() == "started at step 0 of 9 on 2 processes, commit abc123, torch 2.13, slmkit 0.1"
    (config,) = events.Tensors("run/config/text_summary")[0].tensor_proto.string_val
    assert "run_dir: runs/a|b" in config.decode()
    session = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    options = session.session_start_info.hparams
    assert {name: value.WhichOneof("kind") for name, value in options.items()} == {
        "model.group": "number_value",
        "model.head": "string_value",
        "seed": "number_value",
    }
    assert options["model.group"].number_value == 3


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, is_first=False)
    log.start(0, processes=2, total_steps=9, made=MADE)
    log.write(1, {"loss": 1.0})
    log.plot(lambda writer: writer.add_scalar("a", 1.0, 1))
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_not_finite_is_no_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, is_first=True)
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write(1, {"loss": float("nan")})
    log.close()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_half_written_line_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "event": "start"}\n{"step": 1}\n{"step": 2, "lo')
    assert [(record["step"], is_start(record)) for record in read_metrics(path)] == [(0, True), (1, False)]
    MetricsLog(tmp_path, 9, is_first=True).close()
    assert path.read_text() == '{"step": 0, "event": "start"}\n{"step": 1}\n'


ABSURD = ['{"step": 2, "loss": NaN}', '{"step": 2, "loss": 1e999}', f'{{"step": 1{"0" * 400}}}']


@pytest.mark.parametrize(
    "line", ["hello", "[1]", "{}", '{"step": "1"}', '{"step": true}', "\0\0", "[" * 100_000, *ABSURD]
)
def test_a_line_of_something_else_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    for read in (read_metrics, lambda path: MetricsLog(path.parent, 9, is_first=True)):
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is not a line of metrics"):
            read(path)
    assert path.read_text().startswith('{"step": 1}\n')


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match=r"cannot read .*metrics\.jsonl"):
        read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl"):
        read_metrics(tmp_path / "none.jsonl")


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
    progress = RunProgress(total_steps=5000, done_steps=1000)
    assert progress.line(1010, RECORD) == (
        "step 1010/5000  loss 3.412  acc 0.41  12.3k tok/s  410x real time  mfu 38 %  data wait 1 %  left 2 h 13 min"
    )
    assert "mfu" not in progress.line(1020, {**RECORD, "speed/mfu": None})


def test_the_time_left_counts_only_this_start_and_all_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 steps of 2 s and 10 s of evaluation: 3 s a step for the 80 that are left."""
    clock(monkeypatch, 0.0, 30.0)
    assert RunProgress(total_steps=100, done_steps=10).line(20, RECORD).endswith("left 4 min 0 s")


def test_the_pace_is_that_of_the_last_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow first step is forgotten; all time is accounted for by the pace."""
    clock(monkeypatch, 0.0, 100.0, *(100.0 + 2 * step for step in range(1, 12)))
    progress = RunProgress(total_steps=112, done_steps=0)
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


class Disk:
    """A disk that takes no more bytes while it is full, and what was put into it before is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        whole = open

        def refusing(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if self.is_full and mode[0] in "aw":
                opened = whole(file, mode, *args, **options)
                os.dup2(os.open("/dev/full", os.O_WRONLY), opened.fileno())
                return opened
            return whole(file, mode, *args, **options)

        monkeypatch.setattr(builtins, "open", refusing)
        monkeypatch.setattr(io, "open", refusing)  # by which TensorBoard calls it


def test_a_full_disk_ends_the_run_by_name_or_its_lines_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the lines none is lost, no half of one is written, and TensorBoard goes on in a new file."""
    disk = Disk(monkeypatch)
    strict = MetricsLog(tmp_path / "strict", 0, is_first=True)
    lenient = MetricsLog(tmp_path / "lenient", 0, is_first=True, on_error="continue")
    strict.write(1, {"loss": 4.0})
    lenient.write(1, {"loss": 4.0})
    disk.is_full = True
    with pytest.raises(UserError, match=r"cannot write .*strict/metrics.jsonl: No space left on device"):
        strict.write(2, {"loss": 3.0})
    for step in (2, 3):
        lenient.write(step, {"loss": 3.0})
    assert caplog.text.count("training goes on without this: cannot write") == 2
    disk.is_full = False
    lenient.write(4, {"loss": 2.0})
    lenient.close()
    assert "metrics.jsonl can be written again" in caplog.text
    assert [line["step"] for line in read_metrics(tmp_path / "lenient" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [line["step"] for line in read_metrics(tmp_path / "strict" / "metrics.jsonl")] == [1]
    events = EventAccumulator(str(tmp_path / "lenient" / "tensorboard" / "lenient"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 4]


def test_lines_that_waited_are_tried_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    log = MetricsLog(tmp_path, 0, is_first=True, on_error="continue")
    disk.is_full = True
    log.write(1, {"loss": 1.0})
    disk.is_full = False
    log.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]
