"""Stopping signals are noted at once, even while the main thread is inside a call that does not return."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, threading, time
from slmkit.train.signals import Signals

signals = Signals.installed().__enter__()
assert signals.received is None
main, got = threading.get_ident(), []

def watch():
    signal.pthread_kill(main, getattr(signal, sys.argv[1]))
    time.sleep(0.2)
    got.append(signals.received)  # the main thread waits in a call to the system
    os.write(ready, b"x")

wait, ready = os.pipe()
threading.Thread(target=watch).start()

os.read(wait, 1)
print(got[0], signals.received)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_is_noted(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [name, name]


def test_the_first_counts_and_others_do_nothing() -> None:
    script = """
import os, signal
from slmkit.train.signals import Signals
signals = Signals.installed().__enter__()
os.kill(os.getpid(), signal.SIGUSR1)
print(signals.received)
os.kill(os.getpid(), signal.SIGTERM)
print(signals.received)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["SIGUSR1", "SIGUSR1"]
