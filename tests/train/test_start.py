"""Which checkpoint a start continues from, when the newest is not what its marker says."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import yaml
from train.place import Place

from slmkit.config import run_dir
from slmkit.config.run_dir import MARKER, OWN_DIGEST, marker_digest
from slmkit.files import sha256_file

STEPS = 4
OPTIMIZER = "zero_pp_rank_0_mp_rank_00_optim_states.pt"


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
    name = request.node.name.replace("/", "-")
    shutil.copytree(place.directory / "whole", place.directory / name)
    return run_dir.root(place.directory / name)


def flip(checkpoints: Path) -> None:
    file = checkpoints / "step-4" / OPTIMIZER
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


def swap(checkpoints: Path) -> None:
    shutil.copy(checkpoints / "step-2" / OPTIMIZER, checkpoints / "step-4")


def evil(checkpoints: Path) -> None:
    """A pickle that would run a command, under a marker that says it belongs there."""

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {checkpoints.parent / 'trace'}",)

    path = checkpoints / "step-4"
    torch.save({"optimizer_state_dict": Evil()}, path / OPTIMIZER)
    marker = json.loads((path / MARKER).read_text())
    marker["files"][OPTIMIZER] = (path / OPTIMIZER).stat().st_size
    marker["sha256"][OPTIMIZER] = sha256_file(path / OPTIMIZER)
    (path / MARKER).write_text(json.dumps({**marker, OWN_DIGEST: marker_digest(marker)}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (flip, f"damaged: {OPTIMIZER} does not hold what was written"),
        (swap, f"damaged: {OPTIMIZER} does not hold what was written"),
        (evil, "it asks for posix.system"),
    ],
)
def test_a_checkpoint_that_is_not_what_its_marker_says_stops_the_run(
    place: Place, copied: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(copied)
    done = start(place, copied.parent.name, "steps=6")
    assert done.returncode == 2, done.stderr[-4000:]
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    done = forked.run(["-m", "slmkit", "consolidate", str(copied.parent), str(copied.parent / "model")])
    assert done.returncode == 2
    assert words in done.stderr
    assert not (copied.parent / "trace").exists()


def test_the_one_before_is_used_where_that_is_wanted(place: Place, copied: Path) -> None:
    """The end is that of the run that was left alone."""
    flip(copied)
    (copied / "notes").mkdir()
    done = start(place, copied.parent.name, "on_damaged_checkpoint=previous")
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"damaged: {OPTIMIZER} does not hold what was written" in done.stderr
    assert "the checkpoint before it is used; this one is now" in done.stderr
    assert "notes is not a checkpoint of this run; it is left alone" in done.stderr
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
    assert "step-4 does not say of which run it is" in done.stderr
