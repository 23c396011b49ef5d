"""Files that appear whole or not at all, and the record of where an artefact came from.

Every write goes to a temporary name in the same directory, is flushed to disk and renamed. Nothing that exists is
replaced unless the caller asks.

Example:
    with atomic_write("out.json") as file:
        file.write(b"{}")
"""

import contextlib
import functools
import glob
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, TYPE_CHECKING, Any

from slmkit.errors import UserError

if TYPE_CHECKING:
    import numpy.typing as npt

BLOCK_BYTES = 2**20
MAX_JSON_BYTES = 2**30  # of indexes of shards and manifests; descriptions are far smaller
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as libraries in Rust end their messages
# What numpy raises at the header of a damaged .npy file, which it reads as an expression of Python.
NPY_ERRORS = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, SyntaxError, TokenError),
    *(RecursionError, MemoryError),
)
PART = re.compile(r"\.([0-9a-f]+)-([0-9a-f]+)-[0-9a-f]{4}\.part$")  # machine and process that made it
LEFT_SEC = 24 * 3600.0  # after which a temporary file of another machine is taken to be left
VERSIONED = ("slmkit", "torch", "deepspeed", "transformers", "webdataset", "soundfile", "soxr", "numpy")


class _Output(io.FileIO):
    """A new file whose writes name it when the disk refuses; other errors inside a block keep their own names."""

    def __init__(self, path: Path, shown: Path) -> None:
        super().__init__(path, "wb")
        self._shown = shown

    def write(self, content: Any) -> int:
        with disk_errors_named(self._shown):
            return super().write(content) or 0


@contextmanager
def atomic_write(path: str | Path, *, replace: bool = False) -> Iterator[IO[bytes]]:
    """Open a binary file that takes its name only when the block ends without an error.

    Raises UserError if `path` exists and `replace` is not set, or the disk refuses (full, read-only, no permission).
    An error of the block, such as of another file that it reads, stays what it is.
    """
    path = Path(path)
    if os.path.exists(path) and not replace:
        raise UserError("the file already exists", got=path, next_step="remove it or choose another name")
    temporary = _temporary(path)
    try:
        with disk_errors_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            output = io.BufferedWriter(_Output(temporary, path))
        with output:
            try:
                yield output
            except OSError as error:
                if error.errno is None:  # numpy writes past the file object, and says no more
                    raise disk_error(path, error) from error
                raise
            output.flush()
            with disk_errors_named(path):
                os.fsync(output.fileno())
        with disk_errors_named(path):
            os.replace(temporary, path)
            sync_directory(path.parent)
    finally:
        with contextlib.suppress(OSError):  # a place that refuses has been named already
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A name beside `path` that says which process made it."""
    return path.with_name(f".{path.name}.{_here()}-{os.getpid():x}-{secrets.token_hex(2)}.part")


@functools.cache
def _here() -> str:
    """The machine, and whose process numbers are meant: a container has its own, and so has each start of a machine."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux has them
        facts += [os.readlink("/proc/self/ns/pid"), Path("/proc/sys/kernel/random/boot_id").read_text()]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:8]


def clean_parts(directory: str | Path, pattern: str = ".*.part") -> list[Path]:
    """Remove temporary files and directories whose process has ended, in `directory` alone; returns what it was.

    Those of other machines and containers, from before a restart and of an older slmkit, count as left when they have
    not changed for a day.
    """
    removed = []
    for path in Path(directory).glob(pattern):
        made_by = PART.search(path.name)
        with contextlib.suppress(OSError):  # gone meanwhile, or a place that refuses: what is there does no harm
            if made_by and made_by[1] == _here():
                is_left = not _is_running(int(made_by[2], 16))
            else:
                is_left = time.time() - path.stat().st_mtime > LEFT_SEC
            if not is_left:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed.append(path)
    return removed


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


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

    All files in it get the permissions that the umask gives to new ones, whoever wrote them. Raises UserError if `path`
    exists, or the disk refuses to make, flush or rename the directory.
    """
    path = Path(path)
    check_new_directory(path)
    temporary = _temporary(path)
    clean_parts(path.parent, f".{glob.escape(path.name)}.*.part")
    try:
        with disk_errors_named(path):
            temporary.mkdir(parents=True)
        yield temporary
        with disk_errors_named(path):
            permissions = temporary.stat().st_mode & 0o666  # safetensors lets nobody but the owner read its files
            for inner in temporary.rglob("*"):
                if inner.is_file():
                    inner.chmod(permissions)
                sync_directory(inner)  # flushes files, too
            sync_directory(temporary)
            os.replace(temporary, path)
            sync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def disk_errors_named(path: str | Path) -> Iterator[None]:
    """Turns what the system says about a disk that refuses inside the block into a UserError about `path`.

    Also what libraries in Rust make of it, which raise errors of their own. To be put around writes alone.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error
    except Exception as error:
        number = OS_ERROR.search(str(error))
        if isinstance(error, UserError) or number is None:
            raise
        raise disk_error(path, OSError(int(number[1]), os.strerror(int(number[1])))) from error


def nearest_existing(path: str | Path) -> Path:
    """`path` if it exists, or the nearest of its parents that does: the disk on which it would be made."""
    return next(p for p in [Path(path), *Path(path).absolute().parents] if os.path.exists(p))


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
    content = bytearray()
    with open(path, "rb") as file:  # in pieces: a read of `max_bytes` takes memory for all of them at once
        while len(content) <= max_bytes and (block := file.read(min(BLOCK_BYTES, max_bytes + 1 - len(content)))):
            content += block
    if len(content) > max_bytes:
        raise UserError(f"{path} is too large", got=f"more than {max_bytes:,} bytes", expected=f"at most {max_bytes:,}")
    return bytes(content)


def read_json(path: str | Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse a JSON file.

    Raises UserError naming the file if it is missing, larger than `max_bytes`, not UTF-8 or not JSON.
    """
    try:
        return json.loads(read_bounded(path, max_bytes).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}", expected="a UTF-8 JSON file") from error


def read_npy(path: str | Path, *, what: str, max_values: int) -> "npt.NDArray[Any]":
    """The array in a .npy file of strangers; `what` it holds is named in errors.

    Raises UserError where it cannot be read, holds objects, or says that it holds more than is there or wanted.
    """
    import numpy as np  # by few callers, and slower to import than all else here

    try:
        if not os.path.isfile(path):  # Path takes some names from strangers for errors
            raise OSError("there is no such file")
        # Mapped: a header that names an absurd shape is compared with the file's size, and no memory is taken for it.
        with np.errstate(over="ignore"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays")
        if array.size > max_values:
            raise ValueError(f"it holds {array.size} numbers, more than {max_values}")
        return np.array(array)
    except NPY_ERRORS as error:
        name = str(path)[:200]
        raise UserError(f"cannot read {name} as {what}: {str(error)[:300]}", expected="a .npy file") from error


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(config: Any = None) -> dict[str, Any]:
    """What made an artefact: resolved config, slmkit commit, versions, command. No times or host names, so that equal
    work gives equal bytes."""
    return {"config": config, "commit": git_commit(), "versions": versions(), "command": [Path(sys.argv[0]).name]}


@functools.cache
def code_sha256() -> str:
    """SHA-256 of slmkit's own source files: equal where processes run the same code."""
    root, found = Path(__file__).resolve().parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return found.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of what decides results."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


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
