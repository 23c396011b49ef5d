"""The checkpoint benchmark with its toy model: it saves, goes on training meanwhile, and reads back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from train.ranks import ROOT

from slmkit.bench import checkpoint


@pytest.mark.full
def test_training_stops_for_less_than_a_save(tmp_path: Path) -> None:
    """In a process of its own, which ends its process group."""
    command = [
        sys.executable,
        "-m",
        "slmkit",
        "bench",
        "checkpoint",
        "--quick",
        "--json",
        "--saves",
        "3",
        "--steps",
        "2",
        "--dtype",
        "bfloat16",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--directory", str(tmp_path)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout[done.stdout.index("{") :])
    assert 0 < result["stall_sec"] < result["at_once_sec"]
    assert result["share"] == pytest.approx(result["stall_sec"] / result["at_once_sec"])
    assert result["dtype"] == "bfloat16"
    assert result["checkpoint_bytes"] > 14 * result["parameters"]  # weights in 2 bytes; in 4 and two moments of 4
    assert "times" in checkpoint.describe(result)
    assert list(tmp_path.iterdir()) == []
