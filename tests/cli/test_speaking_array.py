"""A real Slurm array speaks the lines of a file, and a second job joins what its tasks have spoken."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from launch.machines import wait_for
from launch.slurm import slurm
from spoken import hashes, make_spoken

from slmkit.cli.main import main
from slmkit.infer.shares import SHARES_DIR
from slmkit.jobs import NOTES

pytestmark = pytest.mark.full


def test_a_preempted_array_leaves_the_bytes_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two tasks is told to stop once it has spoken something: it requeues itself, and goes on."""
    place = make_spoken(tmp_path)
    monkeypatch.chdir(place)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    lines = [json.dumps({"text": f"The boat number {i} froze", "max_sec": 0.2}) for i in range(40)]
    (place / "lines.jsonl").write_text("\n".join(lines))
    words = ["--codec", "codec", "--speaker", "voice.npy", "--jsonl", "lines.jsonl", "--slots", "2"]
    with slurm() as cluster:
        asked = ["--submit", "run", "--tasks", "2", "--cpus", "1", "--time", "10", f"--sbatch={cluster.array_output}"]
        command = [sys.executable, "-m", "slmkit", "synthesize", "model", *words, "--out", "out", *asked]
        done = subprocess.run(command, env=cluster.env, capture_output=True, text=True, check=False)
        found = re.fullmatch(r"submitted array (\d+) of 2 tasks, then job (\d+) to join what .*\n", done.stdout)
        assert found is not None, done.stdout + done.stderr
        array, join = found.groups()
        share = place / "out" / SHARES_DIR / "0001-of-0002"
        notes = share / NOTES
        wait_for(lambda: notes.is_file() and notes.stat().st_size > 0, 400, lambda: cluster.log(f"{array}_1"))
        cluster.call("scancel", "--signal=USR1", f"{array}_1.0")
        assert cluster.finish(join) == "COMPLETED", cluster.log(f"{array}_1")
        for task in ("0", "1"):
            assert "the task's lines are done" in cluster.log(f"{array}_{task}")
        assert "told to stop, finished lines stay: requeueing" in cluster.log(f"{array}_1")
    assert main(["synthesize", "model", *words, "--out", "whole"]) == 0
    assert hashes(place / "out") == hashes(place / "whole")
