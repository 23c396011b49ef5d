"""Stopping signals are noted at once, from any thread, and the handlers of before come back."""

import os
import signal
import subprocess
import sys

import pytest

from slmkit.stopping import STOPPING, Signals

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
