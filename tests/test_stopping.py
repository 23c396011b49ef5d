"""Stopping signals are noted at once, from any thread, and the handlers of before come back."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from slmkit.cli import train
from slmkit.cli.main import main
from slmkit.stopping import STOPPING, Signals, stop_with_parent
from slmkit.world import LAUNCH_ID

SCRIPT = """
import os, signal, sys, threading, time
from slmkit.stopping import Signals

main, got = threading.get_ident(), []
wait, ready = os.pipe()

def watch(signals):
    signal.pthread_kill(main, getattr(signal, sys.argv[1]))
    time.sleep(0.2)
    got.append(signals.received)
    os.write(ready, b"x")

with Signals.installed() as signals:
    assert signals.received is None
    threading.Thread(target=watch, args=[signals]).start()
    os.read(wait, 1)  # the main thread waits in a call to the system
    print(got[0], signals.received)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_is_noted(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [name, name]


def test_the_first_counts_and_others_do_nothing() -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    with Signals.installed() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received == "SIGUSR1"
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == "SIGUSR1"
    assert [signal.getsignal(number) for number in STOPPING] == before


def test_after_one_is_obeyed_others_change_nothing() -> None:
    """The exit code stays what the process says, to its very end, where Python has put its handlers away."""
    script = """
import os, signal, sys
from slmkit.stopping import Signals
with Signals.installed() as signals:
    os.kill(os.getpid(), signal.SIGTERM)
    signals.is_obeyed = signals.received == "SIGTERM"
os.kill(os.getpid(), signal.SIGTERM)
ignored = all(signal.getsignal(number) == signal.SIG_IGN for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))
sys.exit(75 if ignored else 1)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 75


CHILD = """
import os, time
from slmkit.stopping import Signals, stop_with_parent
with Signals.installed() as signals:
    stop_with_parent()
    print("ready", flush=True)
    while signals.received is None:
        time.sleep(0.01)
    os.write(2, signals.received.encode())
"""
PARENT = """
import os, subprocess, sys
process = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(process.stdout.readline(), end="", flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_a_process_is_told_to_stop_when_the_one_that_started_it_is_killed() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT, CHILD], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-9, "ready\n", "SIGTERM")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
@pytest.mark.parametrize(("parent", "code"), [(1, 0), (2, -signal.SIGTERM)], ids=["first of a container", "ended"])
def test_a_command_stops_where_its_parent_has_ended_and_tells_nobody(
    parent: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 1)  # what the command sees before it begins
    with Signals.installed() as signals:
        done = subprocess.run(["true"], check=False, preexec_fn=partial(stop_with_parent, parent))
        assert (done.returncode, signals.received) == (code, None)


@pytest.mark.parametrize("launch", [[], ["abc"]])
def test_a_rank_of_a_launch_ends_with_its_launcher(launch: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(train, "stop_with_parent", lambda: asked.append("abc"))
    monkeypatch.delenv(LAUNCH_ID, raising=False)
    for name in launch:
        monkeypatch.setenv(LAUNCH_ID, name)
    assert main(["train", "--config", "libritts_ntp", "--print-config"]) == 0
    assert asked == launch
