"""Writing and removing checkpoints so that they are complete or not there at all.

A checkpoint is DeepSpeed's files, the random states of every rank and, written last of all, the marker (see
`config.run_dir`). Debris of interrupted saves and starts is removed when training starts again.

It does not know what DeepSpeed's files hold, nor who writes when: that is `saver`'s.

Invariant: whatever moment a save or a removal is interrupted at, the newest directory with a marker is whole.

Example:
    write(path / file, value)           # every process its files; when all have done so, the first one:
    finish(run_dir, step, {"facts": facts})
    prune(run_dir, keep_last=2)
"""

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slmkit.config.run_dir import MARKER, UNIVERSAL, complete_steps, directories, name, root
from slmkit.files import disk_error, sync_directory, write_json


def write(path: Path, value: Any) -> int:
    """Write `value` as torch does and make it durable; returns its size. Raises UserError when the disk refuses."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:  # torch itself would hide why the system refuses
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system and torch.save say about a disk that refuses into a UserError."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error
    except RuntimeError as error:  # how torch.save names a full disk
        if isinstance(error.__context__, OSError):
            raise disk_error(path, error.__context__) from error
        writes = "PytorchStreamWriter" in str(error) or "inline_container" in str(error)
        if "PytorchStreamReader" in str(error) or not writes:
            raise
        raise disk_error(path, OSError(str(error).partition("\n")[0])) from error


def finish(run_dir: str | Path, step: int, state: dict[str, Any]) -> None:
    """Declare a checkpoint complete, once every process has written its files. `state` is plain JSON.

    Raises UserError when the disk refuses.
    """
    path = root(run_dir) / name(step)
    with writing(path):
        sync_directory(path)
        sync_directory(path.parent)  # else a power cut could take this checkpoint and keep the removal of older ones
        files = {file.name: file.stat().st_size for file in sorted(path.iterdir())}
    write_json(path / MARKER, {"step": step, "files": files, "state": state})


def prune(run_dir: str | Path, keep_last: int, keep_every_steps: int = 0) -> None:
    """Remove all complete checkpoints but the newest `keep_last` and those of multiples of `keep_every_steps`."""
    for step in complete_steps(run_dir)[:-keep_last]:
        if not (keep_every_steps and step % keep_every_steps == 0):
            _remove(root(run_dir) / name(step))


def clean(run_dir: str | Path) -> list[Path]:
    """Remove what interrupted saves, and conversions for another number of processes, left; returns what it was."""
    debris = [path for _, path in directories(run_dir) if not (path / MARKER).is_file()]
    debris += [path for path in [Path(run_dir) / UNIVERSAL] if path.is_dir()]
    for path in debris:
        _remove(path)
    return debris


def discard(run_dir: str | Path, step: int) -> None:
    """Remove what a failed save left, if anything, once no process writes any more."""
    path = root(run_dir) / name(step)
    if path.is_dir():
        _remove(path)


def random_state() -> dict[str, Any]:
    """The state of every random generator of this process."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }


def load_random(path: Path, rank: int) -> None:
    """Restore what `random_state` gave, from `random_file` in checkpoint `path`."""
    state = torch.load(path / random_file(rank), weights_only=True)
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def random_file(rank: int) -> str:
    """Name of the file with the random states of a process."""
    return f"random_rank_{rank}.pt"


def _remove(path: Path) -> None:
    """The marker goes first, so that an interrupted removal leaves debris, not a checkpoint."""
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)
