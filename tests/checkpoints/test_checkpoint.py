"""Checkpoints: complete or not there at all, whatever moment they were interrupted at."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from slmkit.checkpoints import checkpoint
from slmkit.config.run_dir import MARKER, UNIVERSAL, complete_steps, name, newest, read, root
from slmkit.errors import UserError

STATE = {"facts": {"seed": 1}}


def saved(run_dir: Path, step: int, *, complete: bool = True) -> Path:
    path = root(run_dir) / name(step)
    path.mkdir(parents=True)
    (path / "weights.pt").write_bytes(b"x" * 10)
    if complete:
        checkpoint.finish(run_dir, step, STATE)
    return path


def test_the_newest_is_found_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        saved(tmp_path, step)
    found = newest(tmp_path)
    assert found is not None
    assert (found.step, found.path.name, found.state) == (100, "step-100", STATE)


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "run") is None
    assert checkpoint.clean(tmp_path / "run") == []


def test_a_directory_without_marker_is_never_found_and_is_removed(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    debris = saved(tmp_path, 6, complete=False)
    (root(tmp_path) / "notes").mkdir()
    converted = tmp_path / UNIVERSAL / "step-5"
    converted.mkdir(parents=True)
    (converted / "half").write_bytes(b"x")
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 5
    assert checkpoint.clean(tmp_path) == [debris, tmp_path / UNIVERSAL]
    assert not (tmp_path / UNIVERSAL).exists()
    assert sorted(path.name for path in root(tmp_path).iterdir()) == ["notes", "step-5"]


@pytest.mark.parametrize("exists", [True, False])
def test_reading_an_incomplete_one_names_the_newest_complete(tmp_path: Path, exists: bool) -> None:
    saved(tmp_path, 5)
    if exists:
        saved(tmp_path, 6, complete=False)
    message = "the save of the checkpoint was interrupted" if exists else "there is no such checkpoint"
    with pytest.raises(UserError, match=f"{message}(.|\n)*newest complete: .*step-5"):
        read(tmp_path, 6)


def test_reading_from_a_run_without_any_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none in .* is complete"):
        read(tmp_path, 1)


def test_a_file_that_lost_bytes_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, 5)
    (path / "weights.pt").write_bytes(b"x" * 9)
    with pytest.raises(UserError, match=r"damaged: weights.pt\n  got:      9 bytes\n  expected: 10 bytes"):
        newest(tmp_path)
    (path / "weights.pt").unlink()
    with pytest.raises(UserError, match="got:      missing"):
        newest(tmp_path)


@pytest.mark.parametrize("marker", ["[]", "{}", '{"files": 1, "state": {}}', '{"files": {"a": "b"}, "state": {}}'])
def test_a_foreign_marker_is_named(tmp_path: Path, marker: str) -> None:
    (saved(tmp_path, 5) / MARKER).write_text(marker)
    with pytest.raises(UserError, match=r"step-5/complete.json is not the marker of a checkpoint"):
        newest(tmp_path)


def test_prune_keeps_the_newest_and_touches_no_debris(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        saved(tmp_path, step)
    saved(tmp_path, 4, complete=False)
    checkpoint.prune(tmp_path, 2)
    assert complete_steps(tmp_path) == [3, 10]
    assert (root(tmp_path) / "step-4").is_dir()


def test_prune_keeps_multiples_for_good(tmp_path: Path) -> None:
    for step in (3, 10, 15, 20, 25, 27):
        saved(tmp_path, step)
    checkpoint.prune(tmp_path, 1, keep_every_steps=10)
    assert complete_steps(tmp_path) == [10, 20, 27]
    checkpoint.prune(tmp_path, 1, keep_every_steps=0)
    assert complete_steps(tmp_path) == [27]


def test_an_interrupted_removal_leaves_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        saved(tmp_path, step)

    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.prune(tmp_path, 1)
    assert complete_steps(tmp_path) == [2]


def test_random_states_return(tmp_path: Path) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    np.random.standard_normal()  # leaves a second one in store
    checkpoint.write(tmp_path / checkpoint.random_file(7), checkpoint.random_state())

    def draw() -> list[float]:
        return [torch.rand(1).item(), float(np.random.standard_normal()), np.random.rand(), random.random()]

    expected = draw()
    torch.manual_seed(4)
    assert draw() != expected
    checkpoint.load_random(tmp_path, 7)
    assert draw() == expected
