"""Checkpoints: complete or not there at all, whatever moment they were interrupted at."""

import contextlib
import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler

from slmkit.checkpoints import checkpoint
from slmkit.config.run_dir import (
    MARKER,
    UNIVERSAL,
    check_contents,
    complete_steps,
    name,
    newest,
    odd_entries,
    read,
    root,
)
from slmkit.errors import UserError

FACTS = {"vocabulary": "v", "processes": 1}
STATE = {"facts": {**FACTS, "seed": 1}}


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


@pytest.mark.parametrize("facts", [None, {"processes": 1}, {"vocabulary": "v"}, {**FACTS, "processes": "two"}])
def test_one_that_does_not_say_of_which_run_it_is_is_damaged(tmp_path: Path, facts: Any) -> None:
    saved(tmp_path, 1)
    saved(tmp_path, 2, complete=False)
    checkpoint.finish(tmp_path, 2, {"facts": facts})
    with pytest.raises(UserError, match="is not the marker of a checkpoint"):
        newest(tmp_path)
    before = newest(tmp_path, skip_damaged=True)
    assert before is not None
    assert before.step == 1


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


def test_what_cannot_be_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(30, "Read-only file system")

    saved(tmp_path, 6, complete=False)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(UserError, match=r"cannot write .*step-6: Read-only file system"):
        checkpoint.clean(tmp_path)


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


def test_a_flipped_bit_is_found_by_who_reads_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, 5)
    (path / "weights.pt").write_bytes(b"x" * 9 + b"y")
    found = read(tmp_path, 5)
    check_contents(found, [])
    with pytest.raises(UserError, match=r"damaged: weights.pt does not hold what was written\n  got: +sha256"):
        check_contents(found)
    (path / "weights.pt").unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        check_contents(found)


def test_files_of_no_checkpoint_and_of_another_step_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path, 5)
    path.rename(root(tmp_path) / "step-6")
    with pytest.raises(UserError, match=r"marker is that of another step\n  got: +step 5\n  expected: step 6"):
        newest(tmp_path)
    (root(tmp_path) / "step-6").rename(path)
    (path / "more.pt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"damaged: more.pt(.|\n)*the marker does not name it"):
        newest(tmp_path)
    (path / "more.pt").rename(path / ".nfs0001")
    assert newest(tmp_path) is not None


def test_a_changed_marker_is_named_and_an_old_one_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path, 5)
    marker = json.loads((path / MARKER).read_text())
    (path / MARKER).write_text(json.dumps({**marker, "state": {"facts": {**FACTS, "seed": 2}}}))
    with pytest.raises(UserError, match="it was changed after it was written"):
        newest(tmp_path)
    (path / MARKER).write_text(json.dumps({**marker, "sha256": {"other": "0"}}))
    with pytest.raises(UserError, match="a file has no SHA-256"):
        newest(tmp_path)
    old = {name: marker[name] for name in ("step", "files", "state")}
    (path / MARKER).write_text(json.dumps(old))
    found = newest(tmp_path)
    assert found is not None
    check_contents(found)


def test_odd_entries_are_told_from_checkpoints(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    for odd in ("step-007", "step-5 (copy)", "step-\u0663", "step-" + "9" * 5000, "notes"):
        with contextlib.suppress(OSError):  # the file system takes no name so long
            (root(tmp_path) / odd).mkdir()
    (root(tmp_path) / "step-6").write_text("no directory")
    for _ in range(2):
        saved(tmp_path, 4)
        assert checkpoint.set_aside(tmp_path, 4) == root(tmp_path) / "damaged-step-4"
    assert complete_steps(tmp_path) == [5]
    assert [path.name for path in odd_entries(tmp_path)] == [
        "notes",
        "step-007",
        "step-5 (copy)",
        "step-6",
        "step-\u0663",
    ]
    assert checkpoint.clean(tmp_path) == []
    assert odd_entries(tmp_path / "none") == []


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    path = saved(tmp_path / "other", 3)
    root(tmp_path).mkdir()
    (root(tmp_path) / "step-3").symlink_to(path)
    checkpoint.discard(tmp_path, 3)
    assert (path / MARKER).exists()


@pytest.mark.parametrize("content", [b"garbage", b""])
def test_random_states_that_are_none_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / checkpoint.random_file(0)).write_bytes(content)
    with pytest.raises(UserError, match=r"cannot load .*random_rank_0.pt"):
        checkpoint.load_random(tmp_path, 0)
    torch.save({"torch": 1}, tmp_path / checkpoint.random_file(0))
    with pytest.raises(UserError, match=r"cannot load .*random_rank_0.pt"):
        checkpoint.load_random(tmp_path, 0)


class Evil:
    """A pickle that would run a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.trace}",)


def test_no_code_runs_whoever_loads(tmp_path: Path) -> None:
    torch.save(Evil(tmp_path / "trace"), tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"it asks for posix.system, which is no tensor(.|\n)*nothing of it was run"):
        load_as_deepspeed_does(tmp_path / "evil.pt")
    shutil.copy(tmp_path / "evil.pt", tmp_path / checkpoint.random_file(0))
    with pytest.raises(UserError, match=r"it asks for posix.system"):
        checkpoint.load_random(tmp_path, 0)
    assert not (tmp_path / "trace").exists()
    with checkpoint.no_code_runs(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "evil.pt")
    torch.save({"a": torch.ones(2), "scaler": LossScaler(scale=2.0)}, tmp_path / "good.pt")
    assert load_as_deepspeed_does(tmp_path / "good.pt")["scaler"].cur_scale == 2.0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        torch.distributed.DistBackendError("NCCL error"),
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer"),
        ConnectionResetError("reset by peer"),
    ],
    ids=lambda error: str(error)[-12:],
)
def test_what_is_no_damage_is_not_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)) as caught:
        checkpoint.load_random(tmp_path, 0)
    assert caught.value is error


def load_as_deepspeed_does(file: Path) -> Any:
    try:
        with checkpoint.no_code_runs():
            return torch.load(file, weights_only=False)
    except checkpoint.UNREADABLE as error:
        raise checkpoint.unreadable(file, error) from error
