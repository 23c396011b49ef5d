"""Which checkpoints of a run are whole, and what they say of the run that wrote them.

`RUN/checkpoints/step-N/` holds DeepSpeed's files, the random states of every rank and, written last of all, the marker
`complete.json` with the size of every file and the state of the run. A directory without marker is debris of a save
that was interrupted: it is never loaded, and removed when training starts again.

It does not know what DeepSpeed's files hold. All functions but `save_random` and `sync` are for one process.

Invariant: whatever moment a save or a removal is interrupted at, the newest directory with a marker is whole.

Example:
    checkpoint = newest(run_dir)        # None when the run has none
    checkpoint.step, checkpoint.state["epoch"]
"""

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slmkit.errors import UserError
from slmkit.files import read_json, sync_directory, write_json

MARKER = "complete.json"
PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int  # optimizer steps taken
    state: dict[str, Any]  # what `finish` was given


def root(run_dir: str | Path) -> Path:
    """Where the checkpoints of a run are."""
    return Path(run_dir) / "checkpoints"


def name(step: int) -> str:
    """Directory name of the checkpoint after `step` optimizer steps."""
    return f"{PREFIX}{step}"


def complete_steps(run_dir: str | Path) -> list[int]:
    """Steps of the complete checkpoints, oldest first."""
    return sorted(step for step, path in _directories(run_dir) if (path / MARKER).is_file())


def newest(run_dir: str | Path) -> Checkpoint | None:
    """The newest complete checkpoint."""
    steps = complete_steps(run_dir)
    return read(run_dir, steps[-1]) if steps else None


def read(run_dir: str | Path, step: int) -> Checkpoint:
    """The complete checkpoint of `step`.

    Raises UserError when it is missing or incomplete (naming the newest complete one), or a file has lost bytes.
    """
    path = root(run_dir) / name(step)
    if not (path / MARKER).is_file():
        steps = complete_steps(run_dir)
        raise UserError(
            "the checkpoint is incomplete: its save was interrupted"
            if path.exists()
            else "there is no such checkpoint",
            got=path,
            expected=f"newest complete: {root(run_dir) / name(steps[-1])}"
            if steps
            else f"none in {run_dir} is complete",
        )
    marker = read_json(path / MARKER)
    for file, size in marker["files"].items():
        found = (path / file).stat().st_size if (path / file).is_file() else None
        if found != size:
            raise UserError(
                f"checkpoint {path} is damaged: {file}",
                got="missing" if found is None else f"{found} bytes",
                expected=f"{size} bytes",
                next_step="remove this checkpoint; training continues from the one before",
            )
    return Checkpoint(path, step, marker["state"])


def finish(run_dir: str | Path, step: int, state: dict[str, Any]) -> None:
    """Declare a checkpoint complete, once every process has written and synced its files. `state` is plain JSON."""
    path = root(run_dir) / name(step)
    sync_directory(path)
    files = {file.name: file.stat().st_size for file in sorted(path.iterdir())}
    write_json(path / MARKER, {"step": step, "files": files, "state": state})


def prune(run_dir: str | Path, keep_last: int) -> None:
    """Remove all complete checkpoints but the newest `keep_last`."""
    for step in complete_steps(run_dir)[:-keep_last]:
        _remove(root(run_dir) / name(step))


def clean(run_dir: str | Path) -> list[Path]:
    """Remove what interrupted saves have left; returns what was removed."""
    debris = [path for _, path in _directories(run_dir) if not (path / MARKER).is_file()]
    for path in debris:
        _remove(path)
    return debris


def sync(path: Path) -> None:
    """Make what this process wrote into `path` durable. Every process calls it, before the barrier before `finish`."""
    for file in path.iterdir():
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_random(path: Path, rank: int) -> None:
    """Write the state of every random generator of this process."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }
    torch.save(state, path / _random_file(rank))


def load_random(path: Path, rank: int) -> None:
    """Inverse of `save_random`."""
    state = torch.load(path / _random_file(rank), weights_only=True)
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def _random_file(rank: int) -> str:
    return f"random_rank_{rank}.pt"


def _directories(run_dir: str | Path) -> list[tuple[int, Path]]:
    found = root(run_dir).glob(f"{PREFIX}*") if root(run_dir).is_dir() else ()
    return [(int(path.name[len(PREFIX) :]), path) for path in found if path.name[len(PREFIX) :].isdigit()]


def _remove(path: Path) -> None:
    """The marker goes first, so that an interrupted removal leaves debris, not a checkpoint."""
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)
