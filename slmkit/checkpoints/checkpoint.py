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

import hashlib
import os
import pickle
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from slmkit.config.run_dir import (
    MARKER,
    OWN_DIGEST,
    REMOVE,
    SET_ASIDE,
    UNIVERSAL,
    complete_steps,
    directories,
    marker_digest,
    name,
    root,
)
from slmkit.errors import UserError, is_out_of_memory
from slmkit.files import disk_error, sha256_file, sync_directory, write_json

UNREADABLE = (OSError, RuntimeError, EOFError, LookupError, ValueError, pickle.UnpicklingError)  # torch.load of garbage
NO_DAMAGE = (dist.DistError, torch.AcceleratorError, ConnectionError)
GLOO = "gloo/transport"  # in what it says of a lost process, for which torch has no error of its own
FORBIDDEN = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module)")  # how torch refuses a pickle


class Written(NamedTuple):
    """A file of a checkpoint, as it was meant to be written."""

    num_bytes: int
    sha256: str


class _Hashed:
    """What torch.save writes to, one piece after the other."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sha256, self._num_bytes = file, hashlib.sha256(), 0

    def write(self, content: Any) -> int:
        self._sha256.update(content)
        self._num_bytes += len(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()

    @property
    def written(self) -> Written:
        return Written(self._num_bytes, self._sha256.hexdigest())


def write(path: Path, value: Any) -> Written:
    """Write `value` as torch does and make it durable. Raises UserError when the disk refuses."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:  # torch itself would hide why the system refuses
            hashed = _Hashed(file)
            torch.save(value, hashed)  # type: ignore[arg-type]  # it needs no more than these two methods
            file.flush()
            os.fsync(file.fileno())
            return hashed.written


@contextmanager
def no_code_runs() -> Iterator[None]:
    """Inside, torch.load gives tensors and plain values and a few classes of DeepSpeed, whoever calls it and how.

    DeepSpeed itself reads checkpoints as pickles, which may call any function.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    load = torch.load

    def safe(*args: Any, **options: Any) -> Any:
        return load(*args, **{**options, "weights_only": True})

    torch.load = safe
    try:
        with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        torch.load = load


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


def finish(run_dir: str | Path, step: int, state: dict[str, Any], digests: Mapping[str, str] | None = None) -> None:
    """Declare a checkpoint complete, once every process has written its files. `state` is plain JSON.

    `digests` are the SHA-256 of the files as they were meant to be written; by default those of what is there. Raises
    UserError when the disk refuses.
    """
    path = root(run_dir) / name(step)
    with writing(path):
        sync_directory(path)
        sync_directory(path.parent)  # else a power cut could take this checkpoint and keep the removal of older ones
        files = {file.name: file.stat().st_size for file in sorted(path.iterdir())}
        if digests is None:
            digests = {file: sha256_file(path / file) for file in files}
    marker = {"step": step, "files": files, "sha256": dict(sorted(digests.items())), "state": state}
    write_json(path / MARKER, {**marker, OWN_DIGEST: marker_digest(marker)})


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
        with writing(path):
            _remove(path)
    return debris


def set_aside(run_dir: str | Path, step: int) -> Path:
    """Give a damaged checkpoint a name under which nothing finds it; returns it. One from before is removed."""
    path = root(run_dir) / name(step)
    target = path.with_name(f"{SET_ASIDE}{path.name}")
    with writing(path):
        if target.exists():
            _remove(target)
        path.rename(target)
    return target


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
    """Restore what `random_state` gave, from `random_file` in checkpoint `path`. Raises UserError if it is not that."""
    file = path / random_file(rank)
    try:
        state = torch.load(file, weights_only=True)
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        keys, *rest = state["numpy"]
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
        random.setstate(state["python"])
    except (*UNREADABLE, TypeError, AttributeError, OverflowError) as error:
        raise unreadable(file, error) from error


def unreadable(path: Path, reason: object) -> UserError:
    """For a checkpoint, or a file of it, that cannot be loaded, because of an error or another reason.

    An error that is no fault of the files is raised again: too little memory, a device or another process that failed.
    """
    if isinstance(reason, Exception) and (
        is_out_of_memory(reason) or isinstance(reason, NO_DAMAGE) or GLOO in str(reason)
    ):
        raise reason
    forbidden = FORBIDDEN.search(str(reason))
    what = str(reason).partition("\n")[0]
    if forbidden:
        what = f"it asks for {forbidden[1]}, which is no tensor and no plain value; nothing of it was run"
    return UserError(f"cannot load {path}: {what}", next_step=REMOVE)


def random_file(rank: int) -> str:
    """Name of the file with the random states of a process."""
    return f"random_rank_{rank}.pt"


def _remove(path: Path) -> None:
    """The marker goes first, so that an interrupted removal leaves debris, not a checkpoint."""
    if path.is_symlink():
        path.unlink()
        return
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path)
