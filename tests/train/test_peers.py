"""A failure anywhere ends every process, with one message; who holds the others up, on a made-up clock."""

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from train.ranks import finish_ranks, free_port, start_ranks

from slmkit.errors import UserError
from slmkit.stopping import CRASH
from slmkit.train import peers
from slmkit.train.peers import SILENCE_SEC, _Jury, _Watch, together
from slmkit.world import World

SCRIPT = """
import sys, time
from slmkit.cli.main import UserError
from slmkit.train.peers import together
from slmkit.world import World

case, world = sys.argv[1], World.from_env()
try:
    with together(world) as peers:
        if case == "all":
            raise UserError("nobody can go on")
        if case == "one" and world.rank == 1:
            raise UserError("rank one cannot go on")
        if case == "crash" and world.rank == 1:
            peers.at("reading a\\x1b[2Jb", 3)
            raise RuntimeError("a bug")
        if case == "killed" and world.rank == 0:
            import os
            os.kill(os.getpid(), 9)
        if case != "none":
            time.sleep(100)
    print("done")
except UserError as error:
    print(f"user error: {error}")
    sys.exit(2)
"""


@pytest.mark.parametrize(
    ("case", "codes", "messages"),
    [
        ("none", [0, 0], ["done"] * 2),
        ("all", [2, 2], ["user error: nobody can go on"]),
        ("one", [2, 2], ["user error: rank one cannot go on"]),
        ("crash", [1, 1], []),
        ("killed", [-9, 1], []),
    ],
)
def test_all_end_together(tmp_path: Path, case: str, codes: list[int], messages: list[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    start = time.monotonic()
    done = finish_ranks(start_ranks(2, [str(script), case]))
    assert [code for code, _, _ in done] == codes, done
    if case == "crash":  # what is printed of others cannot clear the screen
        assert all(r"a\x1b[2Jb" in errors and "\x1b[2J" not in errors for _, _, errors in done), done
    assert not any("TCPStore" in errors for _, _, errors in done if case != "killed")
    assert [line for _, output, _ in done for line in output.splitlines()] == messages
    assert time.monotonic() - start < 60


def test_alone_it_does_nothing() -> None:
    with pytest.raises(UserError, match="mine"), together(World()):
        raise UserError("mine")


@pytest.mark.parametrize("variables", [{}, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "70000"}])
def test_a_world_without_a_meeting_place_is_refused(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="the 2 processes cannot connect"), together(World(rank=0, size=2)):
        pass


def test_a_first_process_that_does_not_answer_is_not_waited_for_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was stopped while this one asks it for something."""
    asked, answers, codes = threading.Event(), threading.Event(), list[int]()

    def ask(*_: object) -> int:
        asked.set()
        answers.wait(10)
        return 0

    def end(watch: _Watch, code: int, reason: str = "") -> None:
        codes.append(code)
        answers.set()

    for name, seconds in (("POLL_SEC", 0.01), ("SILENCE_SEC", 0.1), ("LINGER_SEC", 0.1)):
        monkeypatch.setattr(peers, name, seconds)
    monkeypatch.setattr(_Watch, "_exit", end)
    watch = _Watch(peers.Peers(World(rank=1, size=2)))
    watch.store = SimpleNamespace(set=ask, add=ask, check=lambda keys: False)  # type: ignore[assignment]
    watch.thread.start()
    threading.Thread(target=watch._guard, daemon=True).start()
    assert asked.wait(10)
    watch.leave()
    assert set(codes) == {CRASH}


STRANGER = """
import sys, time
from slmkit.errors import UserError
from slmkit.train import peers
from slmkit.world import World

try:
    with peers.together(World.from_env()):
        print("met", flush=True)
        time.sleep(float(sys.argv[1]))
    print("left")
except UserError as error:
    print(f"user error: {error}")
    sys.exit(2)
"""


@pytest.mark.parametrize(
    ("launch", "what"),
    [
        ("b", "rank 1 was started for another launch than the one at"),
        pytest.param("a", "rank 1 of the launch at", marks=pytest.mark.full),
    ],
)
def test_a_stranger_at_the_same_port_is_refused_and_the_launch_goes_on(tmp_path: Path, launch: str, what: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(STRANGER)
    port = str(free_port())
    ours = start_ranks(2, [str(script), "6"], SLMKIT_LAUNCH_ID="a", MASTER_PORT=port)
    for process in ours:
        assert process.stdout is not None
        assert process.stdout.readline() == "met\n"
    (_, stranger) = start_ranks(2, [str(script), "0"], SLMKIT_LAUNCH_ID=launch, MASTER_PORT=port)
    told, errors = stranger.communicate(60)
    assert stranger.returncode == 2, errors
    assert f"user error: {what}" in told
    done = finish_ranks(ours)
    assert [(code, output) for code, output, _ in done] == [(0, "left\n")] * 2, done


def test_processes_that_do_not_come_are_named(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"from slmkit.train import peers\npeers.MEET_TIMEOUT = peers.timedelta(seconds=1)\n{STRANGER}")
    first, *others = start_ranks(3, [str(script), "0"])
    others[1].kill()
    told, errors = first.communicate(60)
    assert first.returncode == 2, errors
    assert "ranks 2 of 3 did not come to 127.0.0.1:" in told
    finish_ranks(others)


def sign(number: int, calls: int, doing: str = "reading data", step: int = 7, is_timed: bool = True) -> str:
    return json.dumps([number, calls, doing, step, is_timed, "node", 100 + calls])


def heard(jury: _Jury, now: float, signs: dict[int, str], timeout_sec: float | None = 10.0) -> list[int]:
    jury.hear(signs, timeout_sec, now)
    return jury.blamed


def test_the_one_behind_is_named() -> None:
    jury = _Jury(3)
    for second in range(11):
        assert not heard(jury, second, {r: sign(second, 5 if r == 1 else 6) for r in range(3)})
    assert heard(jury, 11, {r: sign(11, 5 if r == 1 else 6) for r in range(3)}) == [1]
    assert jury.reason == "no progress for 10 s from rank 1 (node, process 105), reading data at step 7; the run ends"


def test_progress_of_the_slowest_is_progress() -> None:
    jury = _Jury(2)
    for second in range(0, 100, 5):
        assert not heard(jury, second, {0: sign(second, 1000), 1: sign(second, second)})


def test_a_long_wait_before_training_is_none() -> None:
    jury = _Jury(2)
    for second in range(0, 1000, 5):
        assert not heard(jury, second, {r: sign(second, 0) for r in range(2)}, None)


def test_without_a_time_limit_standing_still_is_allowed() -> None:
    jury = _Jury(1)
    for second in range(0, 1000, 5):
        assert not heard(jury, second, {0: sign(0, 0)}, 0)


def test_a_disk_may_take_longer_but_who_does_not_come_to_it_is_named() -> None:
    jury = _Jury(2)
    for second in range(0, 1000, 5):
        writing, moved_on = sign(second, 6, is_timed=False), sign(second, 7)
        assert not heard(jury, second, {0: writing, 1: writing if second < 500 else moved_on})
    assert heard(jury, 1000, {0: sign(0, 6, is_timed=False), 1: sign(1000, 5)}) == []
    assert heard(jury, 1011, {0: sign(1, 6, is_timed=False), 1: sign(1011, 5)}) == [1]


def test_the_silent_are_named_rather_than_those_who_wait_for_them() -> None:
    jury = _Jury(6)
    for second in range(12):
        signs = {r: sign(3 if r < 5 else second, 4) for r in range(6)}
        blamed = heard(jury, second, signs)
    assert blamed == [0, 1, 2, 3, 4]
    assert jury.reason.startswith("no sign of life for 10 s from rank 0 (")
    assert "and 1 more; the run ends" in jury.reason


def test_before_training_silence_counts_too() -> None:
    jury = _Jury(2)
    assert not heard(jury, 0, {0: sign(0, 0), 1: sign(0, 0)}, None)
    assert heard(jury, SILENCE_SEC + 1, {0: sign(1, 0), 1: sign(0, 0)}, None) == [1]
