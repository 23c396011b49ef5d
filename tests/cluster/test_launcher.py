"""A launch ends whole, whatever dies between it and the ranks, and says so with an exit code of the documented ones; no
secret reaches a command line of DeepSpeed's launcher."""

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
from slmkit.cluster.hosts import Host, read_hostfile
from slmkit.cluster.launch import LaunchRequest, plan_hosts, plan_local

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


def test_the_exit_code_is_one_of_those_that_are_documented() -> None:
    """Those of the ranks, and 1 for whatever else DeepSpeed's launcher ends with. It ends with 0, too, where the one
    below it was killed, which the ranks may have noticed: 0 is what the first rank has noted as well."""
    end = "import os, sys; sys.argv[1] == 'kill' and os.kill(os.getpid(), 9); "
    end += "sys.argv[2] and open(os.environ['SLMKIT_LAUNCH_END'], 'w').write(sys.argv[2]); sys.exit(int(sys.argv[1]))"
    cases = ("0", "0", 0), ("0", "", 1), ("0", "75", 1), ("2", "", 2), ("75", "75", 75), ("3", "", 1), ("kill", "", 1)
    for ended, noted, code in cases:
        plan = dataclasses.replace(plan_of(), command=(sys.executable, "-c", end, ended, noted))
        assert launcher.start(plan, None, os.environ) == code, (ended, noted)


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


def test_deepspeed_gets_a_hostfile_without_what_windows_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in for its launcher fails where a line is not as DeepSpeed wants it."""
    given = tmp_path / "hosts"
    given.write_bytes(b"\xef\xbb\xbfnode1 slots=2\r\nnode2 slots=2  # new\r\n")
    job, machines = LaunchRequest(config="run.yaml", overrides=()), read_hostfile(given)
    plan = plan_hosts(job, machines, str(given), batch=(4, 1), env={})
    check = "import sys; text = open(sys.argv[sys.argv.index('--hostfile') + 1], newline='').read(); "
    check += "sys.exit(text != 'node1 slots=2\\nnode2 slots=2\\n' and 3)"
    monkeypatch.setattr(launcher, "ask", lambda *words: [])
    assert launcher.start(dataclasses.replace(plan, command=(sys.executable, "-c", check, *plan.command)), 1, {}) == 0


def test_no_secret_reaches_a_command_line_through_deepspeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / ".deepspeed_env").write_text("MY_TOKEN=abc123\nPLAIN=1\n")
    env = {"MLFLOW_TRACKING_PASSWORD": "abc123", "HF_TOKEN": "abc123", "NCCL_DEBUG": "INFO", "PATH": os.environ["PATH"]}
    plan = plan_hosts(LaunchRequest(config="run.yaml"), [Host(name="node1", slots=1)], "hosts", batch=(1, 1), env=env)
    child = launcher._Launch(plan, 29500, env)._child_env(tmp_path)
    written = Path(child["DS_ENV_FILE"]).read_text()
    assert "abc123" not in written
    assert "PLAIN=1\n" in written
    assert "NCCL_DEBUG=INFO\n" in written
    assert "MLFLOW_TRACKING_PASSWORD" not in child
    assert "MY_TOKEN of .deepspeed_env stays here" in caplog.text
    assert "abc123" not in caplog.text
