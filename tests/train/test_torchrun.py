"""A run whose processes torchrun starts, and starts again after one of them was killed."""

import os
from pathlib import Path

import pytest
import yaml
from forked import run
from train.place import Place
from train.ranks import ROOT
from train.two_ranks import SCRIPT, STEPS

from slmkit.config import run_dir

KILLED_STEP, SAVED_STEP = 6, 4


@pytest.mark.full
def test_a_restarted_run_ends_with_all_steps(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(place.config("run", save_every_steps=SAVED_STEP)))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    options = ["die", "1", str(KILLED_STEP), "--config", str(config)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = run([*words, SCRIPT, *options], env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Signal 9 (SIGKILL)" in done.stderr or "exitcode: -9" in done.stderr, done.stderr[-4000:]
    steps = [line["step"] for line in place.metrics("run") if "loss" in line]
    # Steps that were taken after the checkpoint are taken again.
    assert steps[-(STEPS - SAVED_STEP) :] == list(range(SAVED_STEP + 1, STEPS + 1))
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    assert run_dir.complete_steps(tmp_path / "run")[-1] == STEPS
