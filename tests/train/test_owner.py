"""One start owns a run directory, and all its processes agree on the run before its first step."""

import errno
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import PIPE, Process
from synthetic import write_corpus
from train.place import FRAMES, Place
from train.two_ranks import start_two

from slmkit.errors import UserError
from slmkit.train import owner
from slmkit.world import World

HOLD = """
import sys, time
from pathlib import Path
from slmkit.train import owner
from slmkit.world import World
rank = int(sys.argv[2])
if rank:  # the first process of its start was here and is gone
    Path(sys.argv[1], owner.LOCK).touch()
    owner.in_first = lambda take: None
with owner.owned(sys.argv[1], World(rank=rank, size=8)):
    print("owned", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Any]:
    """Starts a process that owns the directory, or has the lock of another rank."""
    started = []

    def start(who: str) -> Process:
        process = Process(["-c", HOLD, str(tmp_path), who], stdout=PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "owned\n"
        return process

    yield start
    for process in started:
        process.kill()


def test_a_second_start_is_refused_and_told_by_whom(tmp_path: Path, hold: Any) -> None:
    first = hold("0")
    with pytest.raises(UserError, match=rf"is being written by another start\n  got: .*{first.pid}"):
        owner.owned(tmp_path, World()).__enter__()
    first.kill()
    first.wait(10)
    with owner.owned(tmp_path, World()):
        assert json.loads((tmp_path / owner.OWNER).read_text())["process"] != first.pid
    assert not (tmp_path / owner.OWNER).exists()
    with owner.owned(tmp_path, World()):
        pass


def test_what_is_left_of_an_earlier_start_is_waited_for(
    tmp_path: Path, hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = hold("3")
    monkeypatch.setattr(owner, "LEAVE_SEC", 0.5)
    with pytest.raises(UserError, match="processes of an earlier start, which have not ended"):
        owner.owned(tmp_path, World()).__enter__()
    other.kill()
    monkeypatch.setattr(owner, "LEAVE_SEC", 10.0)
    with owner.owned(tmp_path, World()):
        pass


def test_an_owner_on_another_machine_is_seen_where_locks_do_not_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "BEAT_SEC", 0.2)
    (tmp_path / owner.OWNER).write_text('{"host": "elsewhere", "process": 7, "beat": 1}')
    beats = iter(range(2, 10_000))
    monkeypatch.setattr(owner, "_read", lambda run_dir: f'{{"host": "elsewhere", "beat": {next(beats)}}}')
    with pytest.raises(UserError, match="is being written by a start on another machine"):
        owner.owned(tmp_path, World()).__enter__()
    monkeypatch.undo()
    monkeypatch.setattr(owner, "BEAT_SEC", 0.2)
    with owner.owned(tmp_path, World()):  # the machine crashed
        pass


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with owner.owned(tmp_path, World()):
        assert "has no locks" in caplog.text


def test_a_place_that_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*run: "):
        owner.owned(tmp_path / "run", World()).__enter__()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place.make(tmp_path_factory.mktemp("owner"))
    write_corpus(place.directory / "other", 10, frames=FRAMES, seed=1)
    return place


@pytest.mark.parametrize(
    ("fault", "what", "got"),
    [
        ("other_options", "options than rank 0: optimizer.lr, steps", "rank 1: optimizer.lr 0.5; steps 9"),
        ("other_files", "files or sources than rank 0: facts.data.sources", "rank 1: facts.data.sources"),
    ],
)
def test_processes_that_were_started_for_different_runs_end_before_the_first_step(
    place: Place, fault: str, what: str, got: str
) -> None:
    codes, errors = start_two(place, fault, fault, rank=1)
    assert codes == [2, 2], errors[-4000:]
    assert f"rank 1 has other {what}" in errors
    assert got in errors
    assert errors.count("slmkit train:") == 1
    assert not (place.directory / fault / "metrics.jsonl").exists()
