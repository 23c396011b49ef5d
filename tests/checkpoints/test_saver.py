"""Checkpoints written in the background: right, whole or not there at all, and known to every process."""

import json
import os
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from checkpoints.saving import STATE, Weights, check_complete, saver_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from train.ranks import run_ranks

from slmkit.checkpoints import checkpoint
from slmkit.checkpoints.host_copy import HostCopy
from slmkit.config import run_dir as runs
from slmkit.errors import UserError

HERE = Path(__file__).parent


def test_training_overtakes_a_save_and_waits_for_it_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes are held back until they are let go; the copies as well, but for a moment only."""
    go, whole_write, whole_make = threading.Event(), checkpoint.write, HostCopy.make

    def write(path: Path, value: Any) -> checkpoint.Written:
        assert go.wait(60)
        return whole_write(path, value)

    def make(copy: HostCopy) -> None:
        time.sleep(0.2)
        whole_make(copy)

    monkeypatch.setattr(checkpoint, "write", write)
    monkeypatch.setattr(HostCopy, "make", make)
    weights = Weights()
    with saver_of(tmp_path) as saver:
        assert saver.save(weights.at(1), 1, STATE) < 0.15
        weights.at(2)  # waits for the copy
        assert 0.1 < saver.stall_sec < 10
        assert saver.is_writing
        assert (saver.poll(), check_complete(tmp_path)) == ([], [])
        threading.Timer(0.2, go.set).start()
        assert saver.save(weights, 2, STATE) > 0.1
        assert [outcome.step for outcome in saver.poll()] == [1]
        saver.wait()
        weights.at(3)
        assert not saver.is_writing
        (outcome,) = saver.poll()
        assert (outcome.step, outcome.error, outcome.num_bytes > 12_000) == (2, None, True)
    assert check_complete(tmp_path) == [1, 2]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_saving_a_step_twice_saves_it_once(tmp_path: Path, asynchronous: bool) -> None:
    """So that a run may save whatever its last step was, however it ends."""
    weights = Weights()
    with saver_of(tmp_path, asynchronous=asynchronous) as saver:
        saver.prepare(weights)
        for _ in range(2):
            saver.save(weights.at(1), 1, STATE)
        saver.wait()
        assert len(saver.poll()) == 1
    assert check_complete(tmp_path) == [1]


def test_what_is_being_written_when_training_fails_is_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyError), saver_of(tmp_path) as saver:
        saver.save(Weights().at(1), 1, STATE)
        raise KeyError
    assert check_complete(tmp_path) == [1]


def test_multiples_are_kept(tmp_path: Path) -> None:
    weights = Weights()
    with saver_of(tmp_path, keep_last=1, keep_every_steps=4) as saver:
        for step in range(2, 12, 2):
            saver.save(weights.at(step), step, STATE)
    assert check_complete(tmp_path) == [4, 8, 10]


def test_random_states_are_those_of_the_save(tmp_path: Path) -> None:
    with saver_of(tmp_path) as saver:
        torch.manual_seed(1)
        saver.save(Weights(), 1, STATE)
        expected = torch.rand(3)
        saver.wait()
    checkpoint.load_random(runs.root(tmp_path) / runs.name(1), 0)
    assert torch.equal(torch.rand(3), expected)


def test_a_bug_is_not_taken_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, value: Any) -> checkpoint.Written:
        raise ValueError("a bug")

    monkeypatch.setattr(checkpoint, "write", write)
    with saver_of(tmp_path, on_error="continue") as saver:
        saver.save(Weights(), 1, STATE)
        with pytest.raises(ValueError, match="a bug"):
            saver.wait()


def test_files_that_the_first_process_does_not_see_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_write = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda path, value: whole_write(path, value)._replace(num_bytes=1))
    with saver_of(tmp_path) as saver:
        saver.save(Weights(), 1, STATE)
        with pytest.raises(UserError, match=r"differs from what another process wrote(.|\n)*all nodes share"):
            saver.wait()
    assert list(runs.root(tmp_path).iterdir()) == []


def test_old_files_that_cannot_be_removed_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError("no")

    weights = Weights()
    with saver_of(tmp_path, keep_last=1) as saver, monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        for step in (1, 2):
            saver.save(weights.at(step), step, STATE)
        saver.wait()
    assert check_complete(tmp_path) == [2]
    assert "cannot remove old files" in caplog.text


@contextmanager
def small_files() -> Iterator[None]:
    """No file of this process may grow larger than a part of a checkpoint."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """A disk that holds one checkpoint and a half."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1900k", "none", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_a_full_disk(tmp_path: Path, asynchronous: bool, on_error: Any) -> None:
    """It is named, what it left is removed, the checkpoint before stays; with space again, the next save is whole."""
    weights, run_dir = Weights(num_values=100_000), tmp_path / "disk" / "run"
    with small_disk(tmp_path / "disk"), saver_of(run_dir, asynchronous=asynchronous, on_error=on_error) as saver:
        saver.save(weights.at(1), 1, STATE)
        message = ""
        try:
            saver.save(weights.at(2), 2, STATE)
            saver.wait()
        except UserError as error:
            message = str(error)
        outcome = saver.poll()[-1]
        assert (outcome.step, outcome.num_bytes, saver.failures) == (2, 0, 1)
        assert "No space left on device\n  got:      0 MiB free" in str(outcome.error)
        assert message == (str(outcome.error) if on_error == "stop" else "")
        assert [path.name for path in runs.root(run_dir).iterdir()] == ["step-1"]
        checkpoint.discard(run_dir, 1)
        saver.save(weights.at(3), 3, STATE)
        saver.wait()
        assert check_complete(run_dir) == [3]


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    weights = Weights(num_values=100_000)
    with saver_of(tmp_path) as saver:
        saver.save(weights.at(1), 1, STATE)
        saver.wait()
        with small_files():
            saver.save(weights.at(2), 2, STATE)
            with pytest.raises(UserError, match=r"cannot write .*step-2/part_0_rank_0.pt: File too large"):
                saver.wait()
    assert check_complete(tmp_path) == [1]
    assert checkpoint.clean(tmp_path) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint."""
    run_dir = tmp_path_factory.mktemp("whole")
    with saver_of(run_dir) as saver:
        saver.save(Weights(num_values=100).at(5), 5, STATE)
    return run_dir


@given(state=st.lists(st.one_of(st.none(), st.integers(0, 1)), min_size=5, max_size=5), cut=st.integers(2, 1000))
@example(state=[0] * 5, cut=2)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_set_of_files_that_is_not_whole_is_never_read(
    whole: Path, tmp_path: Path, state: list[int | None], cut: int
) -> None:
    """Each file missing (None), cut (1) by more than a line's end, or whole (0): read only if all are whole."""
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.copytree(whole, tmp_path / "run")
    path = runs.root(tmp_path / "run") / runs.name(5)
    for file, change in zip(sorted(path.iterdir()), state, strict=True):
        if change is None:
            file.unlink()
        elif change:
            with open(file, "r+b") as handle:
                handle.truncate(max(0, file.stat().st_size - cut))
    has_marker = (path / runs.MARKER).exists()
    if state == [0] * 5:
        assert check_complete(tmp_path / "run") == [5]
    elif not has_marker:
        assert runs.newest(tmp_path / "run") is None
        assert checkpoint.clean(tmp_path / "run") == [path]
    else:
        with pytest.raises(UserError, match=r"is damaged|as JSON"):
            runs.newest(tmp_path / "run")


@pytest.mark.parametrize(("world_size", "rounds"), [(1, 20), pytest.param(2, 5, marks=pytest.mark.full)])
def test_killed_at_random_moments(tmp_path: Path, world_size: int, rounds: int) -> None:
    """See kill_worker.py for what is checked; here, that the moments were of both kinds."""
    done = forked.run([HERE / "kill_worker.py", tmp_path / "runs", rounds, world_size])
    assert done.returncode == 0, done.stderr[-3000:]
    debris, newest = map(int, done.stdout.split())
    assert debris > 0
    assert newest > 0


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """See saver_worker.py."""
    directory = tmp_path_factory.mktemp("saver")
    (_, output, errors), _ = run_ranks(2, [str(HERE / "saver_worker.py"), str(directory)])
    return {**json.loads(output.splitlines()[-1]), "log": errors}


def test_two_processes_save(two_processes: dict[str, Any]) -> None:
    assert two_processes["good"] == {"steps": [1, 2, 3], "complete": [3, 4]}


def test_a_full_disk_of_one_is_a_failure_of_all(two_processes: dict[str, Any]) -> None:
    found = [[0, ["step-1"]], [1, ["step-1"]], [1, ["step-1", "step-3"]]]
    assert two_processes["full"] == {"found": found, "complete": [1, 3]}
    assert "training goes on without the checkpoint of step 2" in two_processes["log"]


def test_all_stop_with_one_message(two_processes: dict[str, Any]) -> None:
    first, second = two_processes["stop"]["messages"]
    assert first == second
    assert "step-2/part_0_rank_1.pt: File too large" in first
    assert two_processes["stop"]["complete"] == [1]


def test_a_bug_in_one_is_a_failure_of_the_other(two_processes: dict[str, Any]) -> None:
    messages = ["a bug", "the process that was writing a checkpoint has failed"]
    assert two_processes["bug"] == {"messages": messages, "complete": []}


def test_no_key_is_left_behind(two_processes: dict[str, Any]) -> None:
    assert two_processes["keys"] == []


def test_a_process_that_is_left_alone_gives_up(two_processes: dict[str, Any]) -> None:
    message = "a checkpoint was not written: the other processes do not answer"
    assert two_processes["alone"] == {"message": message, "complete": []}
