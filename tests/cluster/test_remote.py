"""What runs on a machine that takes part."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slmkit.cluster.remote import LAUNCH_ID, main, problem_here, signal_processes

SLEEP = "import os, sys, time; os.fork() if sys.argv[1:] else 0; time.sleep(60)"


def start(launch_id: str, *words: str, **variables: str) -> subprocess.Popen[bytes]:
    outside = {name: value for name, value in os.environ.items() if name != "RANK"}  # other tests may have set it
    return subprocess.Popen([sys.executable, "-c", SLEEP, *words], env={**outside, LAUNCH_ID: launch_id, **variables})


def count_of(launch_id: str, *, ranks_only: bool = False) -> int:
    return signal_processes(launch_id, 0, ranks_only=ranks_only)


def test_a_signal_reaches_the_ranks_of_one_launch_only() -> None:
    mine, other = f"mine-{os.getpid()}", f"other-{os.getpid()}"
    launcher, stranger = start(mine), start(other, RANK="0")
    rank = start(mine, "with a worker", RANK="0")
    try:
        deadline = time.monotonic() + 20
        while count_of(mine) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert count_of(mine) == 3
        assert count_of(mine, ranks_only=True) == 1
        assert main(["signal", mine, "TERM", "ranks"]) == 0
        assert rank.wait(10) == -signal.SIGTERM
        assert launcher.poll() is None
        assert main(["signal", mine, "KILL", "all"]) == 0
        assert launcher.wait(10) == -signal.SIGKILL
        deadline = time.monotonic() + 20
        while count_of(mine) and time.monotonic() < deadline:  # its worker is not our child to wait for
            time.sleep(0.05)
        assert count_of(mine) == 0
        assert stranger.poll() is None
    finally:
        signal_processes(mine, signal.SIGKILL, ranks_only=False)
        signal_processes(other, signal.SIGKILL, ranks_only=False)
        stranger.wait(10)


def test_a_machine_that_can_take_part_names_a_free_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "127.0.0.1", str(tmp_path)]) == 0
    assert 1024 <= int(capsys.readouterr().out) < 65536


def test_what_is_missing_on_a_machine_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "127.0.0.1", str(tmp_path), str(tmp_path / "x"), "/y"]) == 1
    assert capsys.readouterr().err == f"cannot read {tmp_path / 'x'}, /y\n"
    problem = problem_here("nowhere.invalid", [])
    assert problem is not None
    assert problem.startswith("does not know the master address nowhere.invalid: ")
