"""Processes of one command on several devices: none outlives it."""

import os
import sys

import pytest

from slmkit.cli import devices
from slmkit.errors import UserError


def test_an_error_of_the_parent_ends_the_children(tmp_path, monkeypatch):
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(devices, "POLL_SEC", 0.01)
    seen = set()

    def look(pids):
        seen.update(pids)
        raise UserError("a file cannot be read")

    with pytest.raises(UserError, match="a file cannot be read"):
        devices.run_processes([["a"], ["b"]], look)
    assert len(seen) == 2
    for pid in seen:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
