"""A run seen from its files: whole, going on, damaged, or no run at all."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from slmkit.checkpoints import checkpoint
from slmkit.cli.main import main
from slmkit.errors import UserError
from slmkit.log import table
from slmkit.train.inspect import RunView, run_json, run_picture, run_rows
from slmkit.train.metrics import as_line

CONFIG = """\
base: /models/base
deepspeed: ds_configs/zero2_bf16.json
data: {corpus: /data/corpus, row_tokens: 2048, eval_corpus: null}
model: {group: 3, head: mlp}
optimizer: {lr: 0.001}
global_rows: 8
micro_rows: 2
steps: null
epochs: 2
"""


def step_line(step: int, **more: Any) -> dict[str, Any]:
    """2 s a step until the restart after step 20, then 1 s."""
    return {
        "step": step,
        "epoch": step // 25,
        "loss": 4 - step / 20,
        "accuracy": 0.5,
        "loss/text": 3.0,
        "loss/a1": 4 - step / 10,
        "accuracy/text": 0.25,
        "accuracy/a1": step / 50,
        "accuracy/b1": None,
        "speed/tokens_per_sec": 12_000 if step > 20 else 6000,
        "speed/audio_hours_per_hour": 40.0,
        "speed/mfu": 0.375,
        "speed/data_wait_share": 0.02,
        "speed/padding_share": 0.05,
        "faults/skipped_steps": step // 30,
        "faults/damaged_samples": 0,
        "time": 1_760_000_000.0 + (2 * step if step <= 20 else 1000 + step),
        **more,
    }


def evaluation(step: int, loss: float) -> dict[str, Any]:
    return {"step": step, "eval/loss": loss, "eval/loss/a1": loss, "eval/accuracy/a1": 0.125, "time": 1_760_000_000.0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """40 of 50 steps, the last 20 on two processes more; one checkpoint whole, one not."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.yaml").write_text(CONFIG)
    lines: list[dict[str, Any]] = []
    for first, processes in ((0, 2), (20, 4)):
        began = 1_760_000_000.0 + 1000 * (first > 0)
        start = {"event": "start", "processes": processes, "total_steps": 50, "time": began}
        lines += [{"step": first, **start}, *(step_line(step) for step in range(first + 1, first + 21))]
        lines.append(evaluation(first + 20, 3.5 + first / 100))
    (directory / "metrics.jsonl").write_text("".join(map(as_line, lines)) + '{"step": 41, "lo')
    for step in (20, 40):
        (directory / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (directory / "checkpoints" / f"step-{step}" / "weights.pt").write_bytes(bytes(3 * 2**20))
    checkpoint.finish(directory, 20, {})
    return directory


def summary(view: RunView, *, now: float) -> list[str]:
    return table(run_rows(view, now=now))


@pytest.mark.parametrize(
    "line",
    [
        {"step": 20, "event": "start", "processes": 2, "total_steps": 50, "time": 1e30},
        {"step": 21, "loss": 1.0, "time": 10**400, "epoch": 0},
        {"step": 10**14, "loss": 10**400, "loss/a1": 1.0, "time": 5.0},
    ],
)
def test_absurd_numbers_are_left_out(run: Path, line: dict[str, Any]) -> None:
    (run / "metrics.jsonl").write_text("".join(map(as_line, [step_line(20), line, line])))
    view = RunView.read(run)
    assert summary(view, now=1_760_001_040.0)
    assert run_json(view, now=1_760_001_040.0)["left_sec"] is None
    assert view.done_steps == max(20, line["step"] if "loss" in line and line["loss"] == 1.0 else 20)


def test_two_lines_of_a_step_have_no_pace(run: Path) -> None:
    start = {"step": 20, "event": "start", "total_steps": 50}
    (run / "metrics.jsonl").write_text(as_line(start) + as_line(step_line(21)) * 2)
    assert run_json(RunView.read(run), now=1_760_001_040.0)["left_sec"] is None


def test_the_summary_tells_how_it_stands(run: Path) -> None:
    lines = summary(RunView.read(run), now=1_760_001_040.0 + 90)
    assert lines[1:] == [
        "model        group 3, head mlp",
        "data         corpus /data/corpus, row_tokens 2048",
        "batch        global_rows 8, micro_rows 2, lr 0.001, deepspeed zero2_bf16.json",
        "progress     step 40 of 50 (80%), epoch 1, last line 1 min 30 s ago",
        "             about 10 s left",
        "training     loss 2.0000 at step 40",
        "             loss: text 3.000  a1 0.000",
        "             accuracy: text 0.250  a1 0.800",
        "evaluation   loss 3.7000 at step 40",
        "             loss: a1 3.700",
        "             accuracy: a1 0.125",
        "             best: loss 3.5000 at step 20",
        "speed        12k tok/s, 40 hours of audio per hour, mfu 38%, waiting for data",
        "             2%, padding 5% (median of the last start)",
        *lines[15:17],
        "checkpoints  step 20: 3.0 MiB, complete",
        "             step 40: 3.0 MiB, unfinished or interrupted",
        "faults       skipped_steps 1",
    ]
    assert lines[15].startswith("starts ")
    assert lines[15].endswith("from step 0, 2 processes")
    assert lines[16].endswith("from step 20, 4 processes")


def test_a_program_gets_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run), "--json"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert (view["run"], view["step"], view["total_steps"], view["finished"]) == (str(run), 40, 50, False)
    assert view["left_sec"] == pytest.approx(10)
    assert (view["training"]["loss"], view["best_evaluation"]["eval/loss"]) == (2.0, 3.5)
    assert view["speed"]["mfu"] == 0.375
    assert [start["processes"] for start in view["starts"]] == [2, 4]
    assert [checkpoint["complete"] for checkpoint in view["checkpoints"]] == [True, False]
    assert view["faults"] == {"skipped_steps": 1, "damaged_samples": 0}


def test_a_finished_run_has_nothing_left(run: Path) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.write('ss": 1}\n' + as_line(step_line(50)))  # the line that was half written, too
    assert "             finished" in summary(RunView.read(run), now=0)


def test_many_starts_are_shortened(run: Path) -> None:
    (run / "metrics.jsonl").write_text("".join(as_line({"step": 5, "event": "start"}) for _ in range(10)))
    lines = summary(RunView.read(run), now=0)
    assert "starts       2 more before" in lines
    assert sum("from step 5, ? processes" in line for line in lines) == 8


def test_a_run_that_has_logged_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("steps: 9\n")
    lines = summary(RunView.read(tmp_path), now=0)
    assert "progress     step 0 of 9 (0%)" in lines
    assert "training     no step logged yet" in lines
    with pytest.raises(UserError, match="has no logged step to draw yet"):
        run_picture(RunView.read(tmp_path))


def test_lines_of_others_are_no_numbers_of_ours(run: Path) -> None:
    (run / "metrics.jsonl").write_text(as_line({"step": 1, "loss": "much", "eval/loss": None, "time": "now"}))
    assert "training     no step logged yet" in summary(RunView.read(run), now=0)


@pytest.mark.full
def test_the_picture_has_panels_and_marks(run: Path) -> None:
    """The same without the restart differs in a dotted line over the height of all panels."""
    view = RunView.read(run)
    image = np.asarray(Image.open(io.BytesIO(run_picture(view))).convert("RGB")).astype(int)
    assert image.shape[0] > 800
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace('"event": "start"', '"event": "x"'))
    bare = np.asarray(Image.open(io.BytesIO(run_picture(RunView.read(run)))).convert("RGB")).astype(int)
    rows = np.flatnonzero(np.abs(image - bare).sum(axis=(1, 2)))
    assert image.shape == bare.shape
    assert rows.max() - rows.min() > 0.75 * len(image)


def test_the_command_prints_draws_and_overwrites_only_when_asked(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    assert main(["inspect", str(run), "--plot", str(out)]) == 0
    assert "step 40 of 50" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
    out.write_bytes(b"mine")
    assert main(["inspect", str(run), "--plot", str(out)]) == 2
    assert "the file already exists" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert main(["inspect", str(run), "--plot", str(out), "--force"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_what_is_no_run_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not the directory of a run\n  got:      no such directory"):
        RunView.read(tmp_path / "none")
    with pytest.raises(UserError, match=r"is not the directory of a run\n  got:      no config.yaml"):
        RunView.read(tmp_path)
    (run / "metrics.jsonl").write_text("hello\n")
    with pytest.raises(UserError, match="line 1 is not a line of metrics"):
        RunView.read(run)
    (run / "config.yaml").write_text("[1, 2")
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"config\.yaml"):
        RunView.read(run)
