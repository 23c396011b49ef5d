"""What a run directory holds, and which of its checkpoints are complete.

`RUN/config.yaml`, `RUN/provenance.json`, `RUN/metrics.jsonl`, `RUN/tensorboard/`, `RUN/cache/` (lengths of examples),
`RUN/model/` (config, tokenizer, vocabulary and codec spec: all an export needs besides weights) and
`RUN/checkpoints/step-N/` with a marker `complete.json`, written last, that holds the step, size and SHA-256 of every
other file and the state of the run. A directory without marker is left from a save that was interrupted, one named
`damaged-step-N` was set aside by a start that used the checkpoint before it. `RUN/universal/` is there only while a run
starts on another number of processes than wrote its checkpoint; `RUN/lock` and `RUN/owner.json` keep other starts out.

It knows no training: `train` writes these files, `export` reads them.

Invariant: a checkpoint without marker is never returned, nor one whose files are not those that the marker names.

Example:
    checkpoint = newest(run_dir)        # None when the run has none
    checkpoint.step, checkpoint.state["facts"]
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slmkit.errors import UserError
from slmkit.files import check_directory, read_json, sha256_file
from slmkit.log import get_logger

logger = get_logger(__name__)
CONFIG, METRICS, TENSORBOARD, CACHE, MODEL = "config.yaml", "metrics.jsonl", "tensorboard", "cache", "model"
UNIVERSAL = "universal"
MARKER, OWN_DIGEST = "complete.json", "marker_sha256"
PREFIX, SET_ASIDE = "step-", "damaged-"
STEP_DIGITS = 15  # the most that a step has
REMOVE = "remove this checkpoint, and training continues from the one before, or set on_damaged_checkpoint: previous"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int  # optimizer steps taken
    state: dict[str, Any]  # what `finish` was given
    digests: Mapping[str, str] = field(default_factory=dict)  # SHA-256 by file; an older slmkit wrote none


def root(run_dir: str | Path) -> Path:
    """Where the checkpoints of a run are."""
    return Path(run_dir) / "checkpoints"


def name(step: int) -> str:
    """Directory name of the checkpoint after `step` optimizer steps."""
    return f"{PREFIX}{step}"


def complete_steps(run_dir: str | Path) -> list[int]:
    """Steps of the complete checkpoints, oldest first."""
    return sorted(step for step, path in directories(run_dir) if os.path.isfile(path / MARKER))


def newest(run_dir: str | Path, *, skip_damaged: bool = False) -> Checkpoint | None:
    """The newest complete checkpoint. Raises UserError as `read`; with `skip_damaged` where all are damaged."""
    steps = complete_steps(run_dir)
    for step in reversed(steps):
        try:
            return read(run_dir, step)
        except UserError as error:
            if not skip_damaged or step == steps[0]:
                raise
            logger.warning("%s\n  the checkpoint before it counts", error)
    return None


def read(run_dir: str | Path, step: int) -> Checkpoint:
    """The complete checkpoint of `step`.

    Raises UserError when it is missing or incomplete (naming the newest complete one), its marker is another step's, or
    its files have not the names and sizes that the marker tells. What they hold is looked at by `check_contents`.
    """
    path = root(run_dir) / name(step)
    if not os.path.isfile(path / MARKER):
        steps = complete_steps(run_dir)
        what = "the save of the checkpoint was interrupted" if os.path.exists(path) else "there is no such checkpoint"
        known = f"newest complete: {root(run_dir) / name(steps[-1])}" if steps else f"none in {run_dir} is complete"
        raise UserError(what, got=path, expected=known)
    marker = read_json(path / MARKER)
    try:
        sizes, state = {str(file): int(size) for file, size in marker["files"].items()}, dict(marker["state"])
        digests = {str(file): str(digest) for file, digest in marker.get("sha256", {}).items()}
        of_step = int(marker["step"])
        if not isinstance(state["facts"]["vocabulary"], str) or type(state["facts"]["processes"]) is not int:
            raise ValueError("it does not say of which run it is")
        if digests and digests.keys() != sizes.keys():
            raise ValueError("a file has no SHA-256")
        if (digests or OWN_DIGEST in marker) and marker.get(OWN_DIGEST) != marker_digest(marker):
            raise ValueError("it was changed after it was written")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{path / MARKER} is not the marker of a checkpoint: {error!r}"
        raise UserError(what, next_step=REMOVE) from error
    if of_step != step:
        raise UserError(
            f"checkpoint {path} is damaged: its marker is that of another step",
            got=f"step {of_step}",
            expected=f"step {step}",
            next_step=f"give the directory its name {name(of_step)} again, or {REMOVE}",
        )
    others = {file.name for file in path.iterdir() if not file.name.startswith(".")} - {MARKER}
    for file in sorted(sizes.keys() | others):
        found = (path / file).stat().st_size if os.path.isfile(path / file) else None
        if file not in sizes or found != sizes[file]:
            raise UserError(
                f"checkpoint {path} is damaged: {file}",
                got="missing" if found is None else f"{found} bytes",
                expected=f"{sizes[file]} bytes" if file in sizes else "no such file: the marker does not name it",
                next_step=REMOVE,
            )
    return Checkpoint(path, step, state, digests)


def check_contents(checkpoint: Checkpoint, files: Iterable[str] | None = None) -> None:
    """Read files of a checkpoint, by default all, and compare them with their SHA-256.

    Raises UserError naming the first that is damaged. Those of an older slmkit have none, and pass.
    """
    for file in sorted(checkpoint.digests if files is None else files):
        try:
            found = sha256_file(checkpoint.path / file)
        except OSError as error:
            found = f"cannot be read: {error.strerror}"
        if found != checkpoint.digests[file]:
            raise UserError(
                f"checkpoint {checkpoint.path} is damaged: {file} does not hold what was written",
                got=f"sha256 {found}",
                expected=f"sha256 {checkpoint.digests[file]}",
                next_step=REMOVE,
            )


def marker_digest(marker: Mapping[str, Any]) -> str:
    """SHA-256 of what a marker says, but for itself."""
    said = {name: value for name, value in marker.items() if name != OWN_DIGEST}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def directories(run_dir: str | Path) -> list[tuple[int, Path]]:
    """(step, directory) of everything that looks like a checkpoint, complete or not."""
    found = []
    for path in root(run_dir).glob(f"{PREFIX}*") if os.path.isdir(root(run_dir)) else ():
        digits = path.name[len(PREFIX) :]
        if digits.isdecimal() and len(digits) <= STEP_DIGITS and path.name == name(int(digits)) and os.path.isdir(path):
            found.append((int(digits), path))
    return found


def odd_entries(run_dir: str | Path) -> list[Path]:
    """What lies among the checkpoints and is none, nor one that was set aside."""
    if not os.path.isdir(root(run_dir)):
        return []
    known = {path for _, path in directories(run_dir)}
    return sorted(
        path
        for path in root(run_dir).iterdir()
        if path not in known and not path.name.startswith((f"{SET_ASIDE}{PREFIX}", "."))
    )


def check_model_directory(path: str | Path) -> None:
    """Raise UserError where an exported model is wanted; where `path` is a run, it says how to export that."""
    path = Path(path)
    check_directory("the model", path)
    run = next((place for place in (path, *path.resolve().parents[:2]) if os.path.isdir(root(place))), None)
    is_part = run is not None and (path == run or path.parent == root(run) or path.name in (MODEL, "checkpoints"))
    if run is not None and is_part and not any(path.glob("*.safetensors")):
        raise UserError(
            f"{path} is {'a run' if path == run else 'a part of a run'}, not an exported model",
            expected="a directory that `slmkit consolidate` wrote",
            next_step=f"run `slmkit consolidate {run} MODEL`, and give MODEL",
        )
