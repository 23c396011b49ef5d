"""A launch ends whole, whatever dies between it and the ranks, and says so with an exit code of the documented ones."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch.machines import wait_for

from slmkit.cluster import launcher
from slmkit.cluster.launch import LaunchRequest, plan_local

# In the place of DeepSpeed's launcher: starts two ranks, of which `kind` says whether they hear SIGTERM, and ends with
# `code` before them.
MIDDLE = """
import os, subprocess, sys
kind, code, place = sys.argv[1:]
rank = "import sys, time; from signal import *; sys.argv[1] == 'deaf' and signal(SIGTERM, SIG_IGN); time.sleep(60)"
for number in range(2):
    process = subprocess.Popen([sys.executable, "-c", rank, kind], env={**os.environ, "RANK": str(number)})
    open(f"{place}/{process.pid}", "w").close()
if code == "wait":
    import time
    time.sleep(60)
if code == "kill":
    os.kill(os.getpid(), 9)
sys.exit(int(code))
"""
LAUNCH = """
import os, sys
from cluster.test_launcher import plan_of
from slmkit.cluster import launcher
launcher.SURVIVED_GRACE_SEC = 1.0
sys.exit(launcher.start(plan_of(*sys.argv[1:]), None, os.environ))
"""


def plan_of(*words: str) -> launcher.LaunchPlan:
    plan = plan_local(LaunchRequest(config="run.yaml", overrides=(), processes=2), (2, 1), {})
    return dataclasses.replace(plan, command=(sys.executable, "-c", MIDDLE, *words))


def are_gone(place: Path) -> bool:
    return not any(Path(f"/proc/{file.name}/exe").exists() for file in place.iterdir())


@pytest.mark.parametrize(("kind", "code"), [("good", "0"), ("deaf", "kill"), ("good", "75"), ("good", "3")])
def test_ranks_that_outlive_their_launcher_are_ended_and_it_is_no_success(
    tmp_path: Path, kind: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "CRASH_GRACE_SEC", 0.5)
    assert launcher.start(plan_of(kind, code, str(tmp_path)), None, os.environ) == 1
    assert len(list(tmp_path.iterdir())) == 2
    wait_for(lambda: are_gone(tmp_path), 5, lambda: "ranks are left")


@pytest.mark.parametrize("kind", ["good", "deaf"])
def test_ranks_end_when_the_launch_itself_is_killed(tmp_path: Path, kind: str) -> None:
    path = f"{Path(__file__).parent.parent}:{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, "-c", LAUNCH, kind, "wait", str(tmp_path)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2, 60, lambda: f"no ranks: {process.poll()}")
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    wait_for(lambda: are_gone(tmp_path), 15, lambda: "ranks are left")
