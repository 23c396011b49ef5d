"""Which checkpoint a start continues from, when the newest is not what its marker says."""

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import pytest
import torch
import yaml
from train.place import Place

from slmkit import files
from slmkit.config import run_dir
from slmkit.config.load import from_dict
from slmkit.config.run_dir import MARKER, OWN_DIGEST, Checkpoint, marker_digest
from slmkit.config.train import TrainConfig
from slmkit.errors import UserError
from slmkit.files import sha256_file
from slmkit.train.changes import written_by
from slmkit.train.metrics import MetricsLog, read_metrics
from slmkit.train.run import Run, prepare_run
from slmkit.train.start import record_start
from slmkit.world import World

STEPS = 4
OPTIMIZER, WEIGHTS = "zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run of four steps with checkpoints of steps 2 and 4."""
    place = Place.make(tmp_path_factory.mktemp("start"))
    done = start(place, "whole")
    assert done.returncode == 0, done.stderr[-4000:]
    return place


def start(place: Place, name: str, *options: str) -> Any:
    file = place.directory / f"{name}.yaml"
    file.write_text(yaml.safe_dump(place.config(name, steps=STEPS, save_every_steps=2)))
    return forked.run(["-m", "slmkit", "train", "--config", str(file), *options])


@pytest.fixture
def copied(place: Place, request: pytest.FixtureRequest) -> Path:
    """A copy of the run, and of where its checkpoints are."""
    name = re.sub(r"\W+", "-", request.node.name)  # DeepSpeed takes brackets in a path for a pattern
    shutil.copytree(place.directory / "whole", place.directory / name)
    return run_dir.root(place.directory / name)


def flip(checkpoints: Path) -> None:
    file = checkpoints / "step-4" / OPTIMIZER
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


def swap(checkpoints: Path) -> None:
    shutil.copy(checkpoints / "step-2" / OPTIMIZER, checkpoints / "step-4")


def evil(checkpoints: Path, file: str = OPTIMIZER) -> None:
    """A pickle that would run a command, under a marker that says it belongs there."""

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {checkpoints.parent / 'trace'}",)

    path = checkpoints / "step-4"
    torch.save({"optimizer_state_dict": Evil()}, path / file)
    marker = json.loads((path / MARKER).read_text())
    marker["files"][file] = (path / file).stat().st_size
    marker["sha256"][file] = sha256_file(path / file)
    (path / MARKER).write_text(json.dumps({**marker, OWN_DIGEST: marker_digest(marker)}))


CONVERT = """
import sys
from pathlib import Path
from slmkit.checkpoints.universal import to_universal
from slmkit.errors import UserError
try:
    to_universal(Path(sys.argv[1]), Path(sys.argv[2]))
except UserError as error:
    print(error)
"""


@pytest.mark.full
def test_nothing_of_a_checkpoint_is_run_when_it_is_converted_for_other_processes(copied: Path, tmp_path: Path) -> None:
    evil(copied)
    done = forked.run(["-c", CONVERT, str(copied / "step-4"), str(tmp_path / "universal")])
    assert "it asks for posix.system" in done.stdout, done.stderr[-4000:]
    assert not (copied.parent / "trace").exists()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (flip, f"damaged: {OPTIMIZER} does not hold what was written"),
        (swap, f"damaged: {OPTIMIZER} does not hold what was written"),
        (evil, "it asks for posix.system"),
        pytest.param(functools.partial(evil, file=WEIGHTS), "it asks for posix.system", marks=pytest.mark.full),
    ],
    ids=["flip", "swap", "evil", "evil_weights"],  # a part of the path of the run, which is printed with every error
)
def test_a_checkpoint_that_is_not_what_its_marker_says_stops_the_run(
    place: Place, copied: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(copied)
    done = start(place, copied.parent.name, "steps=6")
    assert done.returncode == 2, done.stderr[-4000:]
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    done = forked.run(["-m", "slmkit", "consolidate", str(copied.parent), str(copied.parent / "export")])
    assert done.returncode == 2
    assert words in done.stderr
    assert not (copied.parent / "trace").exists()


def process_that_ended() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_the_one_before_is_used_where_that_is_wanted(place: Place, copied: Path) -> None:
    """The end is that of the run that was left alone."""
    flip(copied)
    (copied / "notes").mkdir()
    left = copied.parent / f".config.yaml.{files._here()}-{process_that_ended():x}-0123.part"
    left.write_text("half")
    done = start(place, copied.parent.name, "on_damaged_checkpoint=previous")
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"damaged: {OPTIMIZER} does not hold what was written" in done.stderr
    assert "the checkpoint before it is used; this one is now" in done.stderr
    assert "notes is not a checkpoint of this run; it is left alone" in done.stderr
    assert f"removed {left}: it was never finished" in done.stderr
    assert not left.exists()
    assert sorted(path.name for path in copied.iterdir()) == ["damaged-step-4", "notes", "step-2", "step-4"]
    assert place.metrics(copied.parent.name) == place.metrics("whole")


def test_without_another_one_the_damage_stops_the_run_all_the_same(place: Place, copied: Path) -> None:
    shutil.rmtree(copied / "step-2")
    flip(copied)
    done = start(place, copied.parent.name, "on_damaged_checkpoint=previous")
    assert done.returncode == 2
    assert "does not hold what was written" in done.stderr


def test_a_marker_that_does_not_say_of_which_run_it_is_is_named(place: Place, copied: Path) -> None:
    marker = json.loads((copied / "step-4" / MARKER).read_text())
    marker["state"]["facts"]["processes"] = "two"
    (copied / "step-4" / MARKER).write_text(json.dumps({**marker, OWN_DIGEST: marker_digest(marker)}))
    done = start(place, copied.parent.name)
    assert done.returncode == 2
    assert (
        "step-4/complete.json is not the marker of a checkpoint: ValueError('it does not say of which run it is')"
        in done.stderr
    )


class FullDisk:
    """In the place of an engine: the config of its model cannot be written."""

    def __init__(self) -> None:
        self.module = SimpleNamespace(config=self)

    def save_pretrained(self, directory: Path) -> None:
        raise OSError(28, "No space left on device")


def prepared(place: Place, name: str, **change: Any) -> Run:
    return prepare_run(from_dict(TrainConfig, place.config(name, **change)), World())


def test_what_cannot_be_written_at_the_start_ends_the_run_by_name_or_is_told(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    engine: Any = FullDisk()
    for on_error in ("stop", "continue"):
        run = prepared(place, f"full-{on_error}", on_save_error=on_error)
        run.directory.mkdir(exist_ok=True)
        log = MetricsLog(run.directory, 0, is_first=True, on_error=run.config.on_save_error)
        if on_error == "stop":
            with pytest.raises(UserError, match=r"cannot write .*full-stop/model: No space left on device"):
                record_start(run, engine, None, log)
            continue
        for name in ("config.yaml", "provenance.json"):
            (run.directory / name).mkdir()
        record_start(run, engine, None, log)
        for name in ("config.yaml", "provenance.json", "model"):
            assert f"training goes on without this: cannot write {run.directory / name}: " in caplog.text
        assert read_metrics(run.directory / "metrics.jsonl")[0]["event"] == "start"


def test_what_changed_since_the_checkpoint_is_told_and_noted(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    before, run = prepared(place, "changed"), prepared(place, "changed", optimizer={"lr": 1e-5})
    found = Checkpoint(run.directory / "step-2", 2, written_by(before.config, before.total_steps))
    (run.directory / "model").mkdir(parents=True)
    engine: Any = FullDisk()
    record_start(run, engine, found, MetricsLog(run.directory, 2, is_first=True))
    noted = read_metrics(run.directory / "metrics.jsonl")[0]["changes"]
    assert "optimizer.lr was 0.002, and is 1e-05" in noted
    assert any(change.startswith("the learning rate jumps from ") for change in noted)
    for change in noted:
        assert f"changed since {found.path}: {change}" in caplog.text
