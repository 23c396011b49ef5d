"""What a run directory holds, and which of its checkpoints are complete.

`RUN/config.yaml`, `RUN/provenance.json`, `RUN/metrics.jsonl`, `RUN/tensorboard/`, `RUN/cache/` (lengths of examples),
`RUN/model/` (config, tokenizer, vocabulary and codec spec: all an export needs besides weights) and
`RUN/checkpoints/step-N/` with a marker `complete.json`, written last, that holds the size of every other file and the
state of the run. A directory without marker is left from a save that was interrupted. `RUN/universal/` is there only
while a run starts on another number of processes than wrote its checkpoint.

It knows no training: `train` writes these files, `export` reads them.

Invariant: a checkpoint without marker is never returned.

Example:
    checkpoint = newest(run_dir)        # None when the run has none
    checkpoint.step, checkpoint.state["facts"]
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmkit.errors import UserError
from slmkit.files import check_directory, read_json

CONFIG, METRICS, TENSORBOARD, CACHE, MODEL = "config.yaml", "metrics.jsonl", "tensorboard", "cache", "model"
UNIVERSAL = "universal"
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
    return sorted(step for step, path in directories(run_dir) if (path / MARKER).is_file())


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
        what = "the save of the checkpoint was interrupted" if path.exists() else "there is no such checkpoint"
        known = f"newest complete: {root(run_dir) / name(steps[-1])}" if steps else f"none in {run_dir} is complete"
        raise UserError(what, got=path, expected=known)
    marker = read_json(path / MARKER)
    try:
        sizes, state = {str(file): int(size) for file, size in marker["files"].items()}, dict(marker["state"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path / MARKER} is not the marker of a checkpoint: {error!r}") from error
    for file, size in sizes.items():
        found = (path / file).stat().st_size if (path / file).is_file() else None
        if found != size:
            raise UserError(
                f"checkpoint {path} is damaged: {file}",
                got="missing" if found is None else f"{found} bytes",
                expected=f"{size} bytes",
                next_step="remove this checkpoint; training continues from the one before",
            )
    return Checkpoint(path, step, state)


def directories(run_dir: str | Path) -> list[tuple[int, Path]]:
    """(step, directory) of everything that looks like a checkpoint, complete or not."""
    found = root(run_dir).glob(f"{PREFIX}*") if root(run_dir).is_dir() else ()
    return [(int(path.name[len(PREFIX) :]), path) for path in found if path.name[len(PREFIX) :].isdecimal()]


def check_model_directory(path: str | Path) -> None:
    """Raise UserError where an exported model is wanted and `path` is missing or a run, which it says how to export."""
    path = Path(path)
    check_directory("the model", path)
    run = next((place for place in (path, *path.resolve().parents[:2]) if root(place).is_dir()), None)
    is_part = run is not None and (path == run or path.parent == root(run) or path.name in (MODEL, "checkpoints"))
    if run is not None and is_part and not any(path.glob("*.safetensors")):
        raise UserError(
            f"{path} is {'a run' if path == run else 'a part of a run'}, not an exported model",
            expected="a directory that `slmkit consolidate` wrote",
            next_step=f"run `slmkit consolidate {run} MODEL`, and give MODEL",
        )
