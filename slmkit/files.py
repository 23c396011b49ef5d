"""Files that appear whole or not at all, and the record of where an artefact came from.

Every write goes to a temporary name in the same directory, is flushed to disk and renamed. Nothing that exists is
replaced unless the caller asks.

Example:
    with atomic_write("out.json") as file:
        file.write(b"{}")
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, TYPE_CHECKING, Any

from slmkit.errors import UserError

if TYPE_CHECKING:
    import numpy.typing as npt

MAX_JSON_BYTES = 2**30  # of indexes of shards and manifests; descriptions are far smaller
VERSIONED = ("slmkit", "torch", "deepspeed", "transformers", "webdataset", "soundfile", "soxr", "numpy")


@contextmanager
def atomic_write(path: str | Path, *, replace: bool = False) -> Iterator[IO[bytes]]:
    """Open a binary file that takes its name only when the block ends without an error.

    Raises UserError if `path` exists and `replace` is not set, or the disk refuses (full, read-only, no permission).
    """
    path = Path(path)
    if path.exists() and not replace:
        raise UserError("the file already exists", got=path, next_step="remove it or choose another name")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_new_directory(path: str | Path) -> None:
    """Raise UserError where a directory to be made exists. Commands ask before they import what takes seconds."""
    if os.path.exists(path):
        raise UserError("the directory already exists", got=path, next_step="remove it or choose another name")


def check_directory(what: str, path: str | Path) -> None:
    """Raise UserError where a directory to be read is not one; `what` it holds is named: "the model"."""
    if not os.path.isdir(path):  # False also for names that are too long, at which pathlib raises
        raise UserError(
            f"{what} does not exist", got=f"{path!s:.300}", expected="a directory", next_step="check the path"
        )


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """A temporary directory that takes the name `path` when the block ends without an error.

    Raises UserError if `path` exists, or the disk refuses to make or rename the directory.
    """
    path = Path(path)
    check_new_directory(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with _disk_errors_named(path):
            temporary.mkdir(parents=True)
        yield temporary
        with _disk_errors_named(path):
            sync_directory(temporary)
            os.replace(temporary, path)
            sync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _disk_errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def nearest_existing(path: str | Path) -> Path:
    """`path` if it exists, or the nearest of its parents that does: the disk on which it would be made."""
    return next(p for p in [Path(path), *Path(path).absolute().parents] if p.exists())


def disk_error(path: str | Path, error: OSError) -> UserError:
    """The named form of a failed write, with the free space where the path lies."""
    parent = nearest_existing(path)
    free = shutil.disk_usage(parent).free / 2**20
    return UserError(
        f"cannot write {path}: {error.strerror or error}",
        got=f"{free:.0f} MiB free in {parent}",
        next_step="free space, check the permissions, or choose another directory; finished files are kept",
    )


def sync_directory(path: str | Path) -> None:
    """Make renames inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str | Path, value: Any, *, replace: bool = False) -> None:
    """Write `value` as indented UTF-8 JSON, whole or not at all."""
    with atomic_write(path, replace=replace) as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_bounded(path: str | Path, max_bytes: int) -> bytes:
    """The bytes of a file. Raises UserError where there are more than `max_bytes`; the others are not read."""
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UserError(f"{path} is too large", got=f"more than {max_bytes:,} bytes", expected=f"at most {max_bytes:,}")
    return content


def read_json(path: str | Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse a JSON file.

    Raises UserError naming the file if it is missing, larger than `max_bytes`, not UTF-8 or not JSON.
    """
    try:
        return json.loads(read_bounded(path, max_bytes).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}", expected="a UTF-8 JSON file") from error


def read_npy(path: str | Path, *, what: str, max_values: int) -> "npt.NDArray[Any]":
    """The array in a .npy file of strangers; `what` it holds is named in errors.

    Raises UserError where it cannot be read, holds objects, or says that it holds more than is there or wanted.
    """
    import numpy as np  # by few callers, and slower to import than all else here

    try:
        if not Path(path).is_file():
            raise OSError("there is no such file")
        # Mapped: a header that names an absurd shape is compared with the file's size, and no memory is taken for it.
        with np.errstate(over="ignore"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays")
        if array.size > max_values:
            raise ValueError(f"it holds {array.size} numbers, more than {max_values}")
        return np.array(array)
    except (OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, SyntaxError, TokenError) as error:
        raise UserError(f"cannot read {path} as {what}: {str(error)[:300]}", expected="a .npy file") from error


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(config: Any = None) -> dict[str, Any]:
    """What made an artefact: resolved config, slmkit commit, versions, command. No times or host names, so that equal
    work gives equal bytes."""
    versions = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"config": config, "commit": git_commit(), "versions": versions, "command": [Path(sys.argv[0]).name]}


@functools.cache
def git_commit() -> str:
    """Commit of the working tree that this process runs from, "+dirty" if it has changes, "" when it is an installed
    copy or the machine has no git."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return ""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "HEAD") + ("+dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
