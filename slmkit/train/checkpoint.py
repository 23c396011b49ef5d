"""Writing and removing checkpoints so that they are complete or not there at all.

A checkpoint is DeepSpeed's files, the random states of every rank and, written last of all, the marker (see
`config.run_dir`). Debris of interrupted saves and starts is removed when training starts again.

It does not know what DeepSpeed's files hold. `save_random`, `load_random` and `sync` are for every process, the rest
for one.

Invariant: whatever moment a save or a removal is interrupted at, the newest directory with a marker is whole.

Example:
    sync(path)                          # every process, then a barrier, then one process:
    finish(run_dir, step, {"facts": facts})
    prune(run_dir, keep_last=2)
"""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slmkit.config.run_dir import MARKER, UNIVERSAL, complete_steps, directories, name, root
from slmkit.files import sync_directory, write_json


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
    """Remove what interrupted saves, and conversions for another number of processes, left; returns what it was."""
    debris = [path for _, path in directories(run_dir) if not (path / MARKER).is_file()]
    debris += [path for path in [Path(run_dir) / UNIVERSAL] if path.is_dir()]
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


def _remove(path: Path) -> None:
    """The marker goes first, so that an interrupted removal leaves debris, not a checkpoint."""
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)
