"""Hostfiles, the ssh command that agrees with pdsh's, and what runs on a machine that takes part."""

import getpass
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slmkit.cluster import hosts
from slmkit.cluster.hosts import (
    LAUNCH_ID,
    Host,
    ask,
    main,
    problem_here,
    read_hostfile,
    signal_processes,
    ssh_words,
)
from slmkit.errors import UserError


def hostfile(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hosts"
    path.write_text(text)
    return path


def test_machines_come_in_order_and_comments_are_left_out(tmp_path: Path) -> None:
    path = hostfile(tmp_path, "# two racks\nnode-b.cluster slots=8\n\n  node_a   slots=4  # old\n")
    assert read_hostfile(path) == (Host(name="node-b.cluster", slots=8), Host(name="node_a", slots=4))


def test_a_hostfile_from_windows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(b"\xef\xbb\xbfnode1 slots=8\r\nnode2 slots=8\r\n")
    assert [host.name for host in read_hostfile(path)] == ["node1", "node2"]


@pytest.mark.parametrize(
    "line",
    [
        "b",
        "b slots=",
        "b slots=0",
        "b slots=-1",
        "b slots=2 x",
        "b slots = 2",
        "-oProxyCommand=x slots=1",
        "a,b slots=1",
        f"b slots={10**5}",
    ],
)
def test_a_malformed_line_is_named_with_its_number(tmp_path: Path, line: str) -> None:
    with pytest.raises(UserError, match="hosts, line 3 is not a line of a hostfile") as caught:
        read_hostfile(hostfile(tmp_path, f"# head\na slots=1\n{line}\n"))
    assert repr(line) in str(caught.value)


@pytest.mark.parametrize("line", [f"b slots={'9' * 5000}", f"{'b' * 5000} slots=1"], ids=["slots", "name"])
def test_absurd_names_and_numbers_are_refused_in_few_words(tmp_path: Path, line: str) -> None:
    with pytest.raises(UserError, match="hosts, line 3 is not a line of a hostfile") as caught:
        read_hostfile(hostfile(tmp_path, f"# head\na slots=1\n{line}\n"))
    assert len(str(caught.value)) < 400


def test_a_machine_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 3 names a again\n.*also in line 1"):
        read_hostfile(hostfile(tmp_path, "a slots=1\nb slots=1\na slots=2\n"))


@pytest.mark.parametrize("text", ["", "\n# nothing\n"])
def test_a_hostfile_without_machines_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="names no machine"):
        read_hostfile(hostfile(tmp_path, text))


def test_a_hostfile_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the hostfile .*No such file"):
        read_hostfile(tmp_path / "hosts")
    (tmp_path / "hosts").write_bytes(b"\xff\xfea\0")
    with pytest.raises(UserError, match=r"cannot read the hostfile .*is written in UTF-16"):
        read_hostfile(tmp_path / "hosts")
    (tmp_path / "hosts").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"cannot read the hostfile .*utf-8"):
        read_hostfile(tmp_path / "hosts")


def test_ssh_gets_the_options_that_pdsh_gets_before_its_own() -> None:
    env = {"PDSH_SSH_ARGS": "-2 -l%u %h", "PDSH_SSH_ARGS_APPEND": "-p 2222 -o 'User me'"}
    words = ssh_words("node", "true", env)
    assert words[:6] == ["ssh", "-2", f"-l{getpass.getuser()}", "-p", "2222", "-o"]
    assert words[6] == "User me"
    assert words[-2:] == ["node", "true"]
    assert "BatchMode=yes" in words


def test_a_machine_without_ssh_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="there is no ssh on this machine"):
        ask([Host(name="a", slots=1)], "true", {})


def test_a_machine_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ssh").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(hosts, "REPLY_SEC", 0.2)
    (reply,) = ask([Host(name="a", slots=1)], "true", {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert reply.code == hosts.NO_CONNECTION
    assert reply.reason == "no answer within 0.2 s"


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
