"""The run that every way of launching repeats, to the same losses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from train.place import Place
from train.ranks import ROOT

STEPS = 40
REFERENCE = "reference"


def make_place(directory: Path) -> Place:
    """A tiny base, corpus and run.yaml."""
    place = Place.make(directory)
    (directory / "run.yaml").write_text(yaml.safe_dump(place.config(REFERENCE, steps=STEPS)))
    return place


def words(place: Place, name: str, **change: Any) -> list[str]:
    """Options of the run called `name`."""
    values = {"run_dir": place.directory / name, **change}
    overrides = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return ["--config", str(place.directory / "run.yaml"), *overrides]


def environment(**variables: str) -> dict[str, str]:
    """No rank and no job but this Python's `slmkit` in front."""
    gone = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    env = {name: value for name, value in os.environ.items() if name not in gone and not name.startswith("SLURM_")}
    path = f"{Path(sys.executable).parent}:{env['PATH']}"
    return env | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables


def launch_words(*options: str) -> list[str]:
    return [sys.executable, "-m", "slmkit", "launch", *options]


def launch(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`slmkit launch` to its end."""
    return subprocess.run(
        launch_words(*options), env=environment(**variables), capture_output=True, text=True, timeout=300, check=False
    )


def num_logged(place: Place, name: str) -> int:
    """Steps in the metrics of a run so far."""
    path = place.directory / name / "metrics.jsonl"
    return path.read_text().count('"loss":') if path.exists() else 0


def losses(place: Place, name: str) -> dict[int, float]:
    """Step -> loss."""
    records = [json.loads(line) for line in (place.directory / name / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}
