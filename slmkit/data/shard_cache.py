"""A bounded directory on a fast local disk through which shards on slow or remote storage are read.

All processes of a node, and several runs, may share it. A tar is copied on first use, under the name of its SHA-256,
which is checked while it is copied. Two processes never copy the same tar at once: the partial file is locked with
flock, so the disk must be a local one. A partial file that nobody has locked is what a killed process left; the next
copy removes it.

When the next tar does not fit, the least recently used ones are deleted. A process that is reading one of them is not
disturbed, since Linux keeps the content of a deleted file until its last handle closes; close it soon, for the space
is only free then. Manifests and indexes of remote corpora lie beside the tars; they are few, not counted and kept.

Invariant: copies and partial copies together never exceed `max_bytes`.

Example:
    cache = ShardCache("/scratch/shards", max_bytes=50 * 2**30)
    handle = cache.open("s3://bucket/libritts/libritts-000000.tar", sha256)
    os.pread(handle, 512, 0); os.close(handle)
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slmkit.data.index import MANIFEST, ShardIndex, index_path
from slmkit.data.remote import DamagedTar, join, open_place, patiently, read_bytes
from slmkit.errors import UserError
from slmkit.files import atomic_write, disk_error, read_json

CHUNK_BYTES = 2**20
POLL_SEC = 0.05  # between two looks for space that other processes' copies take
FETCHERS = 8  # indexes fetched at once
SHA256 = re.compile(r"[0-9a-f]{64}")
LOCK, METADATA = ".lock", "metadata"


@dataclass(frozen=True)
class ShardCache:
    """The directory and the most it may hold. Safe to fork, to pickle and to use from threads."""

    directory: Path
    max_bytes: int

    def open(self, source: str, sha256: str) -> int:
        """A handle for reading the copy of the tar at `source` (a path or URL), copied now if need be.

        The caller closes it. Raises DamagedTar when the tar is missing or has another SHA-256, UserError when it
        cannot be fetched or the disk refuses.
        """
        if not SHA256.fullmatch(sha256):
            raise DamagedTar(f"the index of {source} has no SHA-256", got=repr(sha256), expected="64 hex digits")
        try:
            while True:
                handle = self._open_copy(sha256)
                if handle is None:
                    handle = self._fetch(source, sha256)
                if handle is not None:
                    return handle
        except OSError as error:
            raise disk_error(self.directory, error) from error

    def discard_damaged(self, sha256: str) -> bool:
        """Delete the copy if its bytes have changed. True if a new one would be fetched."""
        handle = self._open_copy(sha256)
        if handle is None:
            return True
        with open(handle, "rb") as copy:
            if hashlib.file_digest(copy, "sha256").hexdigest() == sha256:
                return False
            with _locked(self.directory / LOCK):
                if _is_at(copy.fileno(), self._tar(sha256)):
                    self._tar(sha256).unlink()
        return True

    def _tar(self, sha256: str) -> Path:
        return self.directory / f"{sha256}.tar"

    def _open_copy(self, sha256: str) -> int | None:
        try:
            handle = os.open(self._tar(sha256), os.O_RDONLY)
        except FileNotFoundError:
            return None
        with contextlib.suppress(PermissionError):  # the copy may belong to another user
            os.utime(handle)  # the modification time tells when a copy was last used
        return handle

    def _fetch(self, source: str, sha256: str) -> int | None:
        """Copy the tar. None when another process has had the lock meanwhile, so that one has to look again."""
        part = self.directory / f"{sha256}.part"
        self.directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
        done = False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_at(handle, part):
                return None
            if not self._tar(sha256).exists():
                patiently(source, lambda: self._copy(source, sha256, handle))
                with _locked(self.directory / LOCK):
                    part.replace(self._tar(sha256))
                done = True
        finally:
            with _locked(self.directory / LOCK):
                if _is_at(handle, part):
                    part.unlink()
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing alone would not unlock it if a child has inherited the handle
            if not done:
                os.close(handle)
        return handle if done else None

    def _copy(self, source: str, sha256: str, handle: int) -> None:
        """Write the tar into `handle`. Raises DamagedTar when it is not the one with this SHA-256."""
        digest, num_bytes = hashlib.sha256(), 0
        with open_place(source) as (size, stream):
            if size is None:
                raise UserError(f"{source}: the server does not tell its size", next_step="use one that does")
            self._reserve(source, size, handle)
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                num_bytes += len(chunk)
                if num_bytes <= size:
                    self._write(source, size, handle, chunk, num_bytes - len(chunk))
        if digest.hexdigest() != sha256:
            raise DamagedTar(
                f"{source} is not the tar that its index describes",
                got=f"sha256 {digest.hexdigest()}, {num_bytes} bytes",
                expected=f"sha256 {sha256}",
                next_step="restore it from a copy, or make the shard again",
            )

    def _write(self, source: str, size: int, handle: int, chunk: bytes, offset: int) -> None:
        try:
            while chunk:
                written = os.pwrite(handle, chunk, offset)
                chunk, offset = chunk[written:], offset + written
        except OSError as error:
            raise self._full(source, size, error) from error

    def _reserve(self, source: str, size: int, handle: int) -> None:
        """Give the partial file `handle` all its blocks, deleting copies and waiting for other processes as needed."""
        if size > self.max_bytes:
            raise UserError(
                f"{source} is larger than the shard cache {self.directory}",
                got=f"{size} bytes",
                expected=f"at most {self.max_bytes} bytes",
                next_step="raise data.shard_cache_gib",
            )
        while True:
            with _locked(self.directory / LOCK):
                os.ftruncate(handle, 0)
                if self._make_room(size, handle):
                    try:
                        os.posix_fallocate(handle, 0, max(size, 1))
                        os.ftruncate(handle, size)
                    except OSError as error:
                        raise self._full(source, size, error) from error
                    return
            time.sleep(POLL_SEC)

    def _make_room(self, size: int, mine: int) -> bool:
        """Delete what killed processes left, then the least recently used copies, until `size` bytes fit.

        False when too much is being copied at this moment. The directory must be locked.
        """
        for part in self.directory.glob("*.part"):
            _remove_if_unlocked(part, mine)
        stats = {path: path.stat() for path in self.directory.iterdir() if path.suffix in (".tar", ".part")}
        used = sum(stat.st_size for stat in stats.values())
        copies = sorted((stat.st_mtime_ns, path) for path, stat in stats.items() if path.suffix == ".tar")
        if used - sum(stats[path].st_size for _, path in copies) + size > self.max_bytes:
            return False
        for _, path in copies:
            if used + size <= self.max_bytes:
                break
            path.unlink()
            used -= stats[path].st_size
        return True

    def _full(self, source: str, size: int, error: OSError) -> UserError:
        free = shutil.disk_usage(self.directory).free
        return UserError(
            f"the shard cache {self.directory} cannot take {source}: {error.strerror}",
            got=f"{free / 2**20:.0f} MiB free",
            expected=f"{size / 2**20:.0f} MiB, and {self.max_bytes / 2**20:.0f} MiB for the whole cache",
            next_step="free space, lower data.shard_cache_gib, or put data.shard_cache on a larger disk",
        )


def fetch_metadata(url: str, directory: str | Path) -> Path:
    """A local directory with the manifest and every index of the corpus at `url`, but no tars.

    It lies in `directory`/metadata, named by the manifest's hash, and is never deleted; what is there already is not
    fetched again. An index that is not the one the manifest lists is refused with a UserError.
    """
    try:
        manifest = read_bytes(join(url, MANIFEST))
    except DamagedTar as error:
        raise UserError(
            f"{url} holds no finished corpus: {MANIFEST} is missing",
            next_step="give the address of a directory that `slmkit tokenize` or `slmkit import` wrote",
        ) from error
    local = Path(directory) / METADATA / hashlib.sha256(manifest).hexdigest()[:24]
    try:
        local.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(local, error) from error
    with _locked(local / LOCK):
        if (local / MANIFEST).exists():
            return local
        for left in local.glob(".*.part"):
            left.unlink()
        with atomic_write(local / f"{MANIFEST}.unchecked", replace=True) as file:
            file.write(manifest)
        missing = [shard for shard in _listed(local, url) if not index_path(local, shard[0]).exists()]
        with ThreadPoolExecutor(FETCHERS) as pool:
            list(pool.map(lambda shard: _fetch_index(url, local, *shard), missing))
        (local / f"{MANIFEST}.unchecked").replace(local / MANIFEST)
    return local


def _listed(local: Path, url: str) -> list[tuple[str, str]]:
    """Tar and SHA-256 of every shard in the fetched manifest."""
    manifest = read_json(local / f"{MANIFEST}.unchecked")
    try:
        listed = [(str(shard["tar"]), str(shard["sha256"])) for shard in manifest["shards"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{join(url, MANIFEST)} is not the manifest of a corpus: {error!r}") from error
    if bad := [tar for tar, _ in listed if Path(tar).name != tar]:
        raise UserError(f"{join(url, MANIFEST)} lists {bad[0]!r}, which is not a file name")
    return listed


def _fetch_index(url: str, local: Path, tar: str, sha256: str) -> None:
    path = index_path(local, tar)
    source = join(url, path.name)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with atomic_write(temporary) as file:
        file.write(read_bytes(source))
    index = ShardIndex.read(temporary)
    if (index.tar, index.sha256) != (tar, sha256):
        raise UserError(
            f"{source} is not the index that {MANIFEST} lists",
            got=f"{index.tar}, sha256 {index.sha256}",
            expected=f"{tar}, sha256 {sha256}",
            next_step="restore it from a copy of the corpus",
        )
    temporary.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, one process or thread at a time."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether `path` still names the open file `handle`."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _remove_if_unlocked(part: Path, mine: int) -> None:
    """Delete a partial file that no process is writing."""
    if _is_at(mine, part):
        return
    handle = os.open(part, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(handle, part):
            part.unlink()
    except BlockingIOError:
        pass
    finally:
        os.close(handle)
