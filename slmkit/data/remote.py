"""Corpora at URLs: files read as streams, and the bounded cache through which shards on slow storage are read.

http and https are read by the standard library; every other scheme (s3, gs, hf, memory, ...) by fsspec with the driver
that it names. fsspec's own http would bring an event loop and its thread into the worker processes of the loader, and
its caches on disk have no bound.

All processes of a node, and several runs, may share a cache. A tar is copied on first use, under the name of its
SHA-256, which is checked while it is copied. Two processes never copy the same tar at once. When the next tar does not
fit, the least recently used ones are deleted. A process that is reading one of them is not disturbed, since Linux keeps
the content of a deleted file until its last handle closes; close it soon, for the space is only free then.

Invariants: copies and partial copies together never exceed `max_bytes`; a file that is missing and one that cannot be
reached now are told apart, since only the first is a damaged corpus.

Example:
    cache = ShardCache("/scratch/shards", max_bytes=50 * 2**30)
    handle = cache.open("s3://bucket/libritts/libritts-000000.tar", sha256)
    os.pread(handle, 512, 0); os.close(handle)
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

from filelock import FileLock, Timeout

from slmkit.data.index import MANIFEST, ShardIndex, index_path
from slmkit.errors import UserError
from slmkit.files import atomic_write, disk_error, disk_errors_named, sha256_file

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
ATTEMPTS = 4  # at a URL; a file system is asked once
FIRST_PAUSE_SEC = 0.5  # between two attempts, doubled each time
TIMEOUT_SEC = 60.0  # without a byte from an http server
GONE = (404, 410)  # http states of a file that is not there
CHUNK_BYTES = 2**20
POLL_SEC = 0.05  # between two looks for a lock, or for space that other processes' copies take
FETCHERS = 8  # indexes fetched at once
SHA256 = re.compile(r"[0-9a-f]{64}")
METADATA = "metadata"  # folder of a cache with manifests and indexes: few, not counted and kept
T = TypeVar("T")


class DamagedTar(UserError):
    """A whole tar is missing, or is not the one that was written."""


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether `place` is a URL rather than a path."""
    return SCHEME.match(str(place)) is not None


def join(directory: str, name: str) -> str:
    """The place of the file `name` in a directory or at a URL. A query (a signature) stays at the end."""
    if not is_url(directory):
        return os.path.join(directory, name)
    if not _is_http(directory):
        return f"{directory.rstrip('/')}/{name}"
    parts = urlsplit(directory)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def _is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


@contextmanager
def _open_place(place: str) -> Iterator[tuple[int, IO[bytes]]]:
    """Size in bytes and content of the file at `place`.

    Raises OSError when it cannot be reached or read, FileNotFoundError when it is not there, UserError when there is
    no way to read such a URL.
    """
    if _is_http(place):
        try:
            with urllib.request.urlopen(place, timeout=TIMEOUT_SEC) as response:
                size = response.headers.get("Content-Length", "")
                if not size.isdigit():
                    raise UserError(
                        f"{place}: the server gives no size", next_step="use a server that sends Content-Length"
                    )
                yield int(size), response
        except urllib.error.HTTPError as error:
            if error.code in GONE:
                raise FileNotFoundError(str(error)) from error
            raise
        except http.client.HTTPException as error:
            raise OSError(f"the server broke off: {error!r}") from error
    elif is_url(place):
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(place)
        except (ImportError, ValueError) as error:
            next_step = "install the fsspec driver of this scheme"
            raise UserError(f"cannot read {place}: {error}", next_step=next_step) from error
        with system.open(path, "rb") as stream:
            yield int(system.size(path)), stream
    else:
        with open(place, "rb") as file:
            yield os.fstat(file.fileno()).st_size, file


def _read_bytes(place: str) -> bytes:
    """The whole content. Raises DamagedTar when the file is missing, UserError when it cannot be reached."""

    def read() -> bytes:
        with _open_place(place) as (size, stream):
            content = stream.read()
        if len(content) != size:
            raise OSError(f"{len(content)} of {size} bytes came")
        return content

    return _patiently(place, read)


def _patiently(place: str, action: Callable[[], T]) -> T:
    """The result of `action`, which reads `place`; at a URL it is tried again when it fails.

    Raises DamagedTar when the file is missing or damaged, UserError when it cannot be reached.
    """
    attempts = ATTEMPTS if is_url(place) else 1
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except FileNotFoundError as error:
            raise DamagedTar(f"{place} is missing", next_step="restore it, or make the shard again") from error
        except DamagedTar:
            if attempt == attempts:
                raise
        except OSError as error:
            if attempt < attempts:
                pass
            elif is_url(place):
                next_step = "check the address and the network, then start the run again; it continues by itself"
                got = f"{ATTEMPTS} failed attempts"
                raise UserError(f"cannot fetch {place}: {error}", got=got, next_step=next_step) from error
            else:
                raise DamagedTar(f"{place} cannot be read: {error.strerror or error}") from error
        time.sleep(FIRST_PAUSE_SEC * 2 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")


@dataclass(frozen=True)
class ShardCache:
    """The directory and the most it may hold. Safe to fork, to pickle and to use from threads.

    The directory must be on a local disk. `{sha256}.tar` is a copy, its modification time the time of its last use.
    `{sha256}.part` is being copied by the process that holds the lock of its first two digits; one without such a
    process was left by one that was killed. `.lock` is held for a moment, to count, to delete and to rename.
    """

    directory: Path
    max_bytes: int

    def open(self, source: str, sha256: str) -> int:
        """A handle for reading the copy of the tar at `source` (a path or URL), copied now if need be.

        The caller closes it. Raises DamagedTar when the tar is missing or has another SHA-256, UserError when it
        cannot be fetched or the disk refuses.
        """
        if not SHA256.fullmatch(sha256):
            raise DamagedTar(f"the index of {source} has no SHA-256", got=repr(sha256), expected="64 hex digits")
        tar = self.directory / f"{sha256}.tar"
        part = tar.with_suffix(".part")
        try:
            with contextlib.suppress(FileNotFoundError):
                return _open_used(tar)
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._copying(sha256):
                with contextlib.suppress(FileNotFoundError):
                    return _open_used(tar)  # another process has copied it meanwhile
                try:
                    _patiently(source, lambda: self._copy(source, sha256, part))
                    with self._locked():
                        part.replace(tar)
                        return os.open(tar, os.O_RDONLY)  # before another process may delete it
                finally:
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(self.directory, error) from error

    def discard_damaged(self, sha256: str) -> bool:
        """Delete the copy if its bytes have changed. True if a new one would be fetched."""
        tar = self.directory / f"{sha256}.tar"
        with disk_errors_named(self.directory), self._locked():
            if tar.exists() and sha256_file(tar) == sha256:
                return False
            tar.unlink(missing_ok=True)
        return True

    def _locked(self) -> FileLock:
        return FileLock(self.directory / ".lock", mode=0o666, poll_interval=POLL_SEC)

    def _copying(self, sha256: str) -> FileLock:
        """The lock of those who copy tars with these first two digits: 256 files at most are left lying there."""
        return FileLock(self.directory / f".copy-{sha256[:2]}.lock", mode=0o666, poll_interval=POLL_SEC)

    def _copy(self, source: str, sha256: str, part: Path) -> None:
        """Write the tar into `part`.

        Raises DamagedTar when it is not the one with this SHA-256, OSError when the source cannot be read, UserError
        when the cache's own disk refuses.
        """
        digest, num_bytes = hashlib.sha256(), 0
        with _open_place(source) as (size, stream):
            with disk_errors_named(self.directory):
                self._reserve(source, size, part)
                file = open(part, "r+b")  # noqa: SIM115 - closed below
            with file:
                while chunk := stream.read(CHUNK_BYTES):
                    digest.update(chunk)
                    num_bytes += len(chunk)
                    if num_bytes <= size:
                        with self._full_disk_named(source, size):
                            file.write(chunk)
                            file.flush()
        if digest.hexdigest() != sha256:
            raise DamagedTar(
                f"{source} is not the tar that its index describes",
                got=f"sha256 {digest.hexdigest()}, {num_bytes} bytes",
                expected=f"sha256 {sha256}",
                next_step="restore it from a copy, or make the shard again",
            )

    def _reserve(self, source: str, size: int, part: Path) -> None:
        """Give the partial file all its blocks, deleting copies and waiting for other processes as needed."""
        if size > self.max_bytes:
            raise UserError(
                f"{source} is larger than the shard cache {self.directory}",
                got=f"{size} bytes",
                expected=f"at most {self.max_bytes} bytes",
                next_step="raise data.shard_cache_gib",
            )
        while True:
            with self._locked():
                part.unlink(missing_ok=True)
                if self._make_room(size, part):
                    with self._full_disk_named(source, size), open(part, "wb") as file:
                        os.posix_fallocate(file.fileno(), 0, max(size, 1))
                        file.truncate(size)
                    return
            time.sleep(POLL_SEC)

    def _make_room(self, size: int, mine: Path) -> bool:
        """Delete what killed processes left, then the least recently used copies, until `size` bytes fit.

        False when too much is being copied at this moment. Raises OSError when what cannot be deleted takes too much.
        The directory must be locked.
        """
        held = []
        for path in (*self.directory.glob("*.part"), *self.directory.glob("*.tar")):
            with contextlib.suppress(FileNotFoundError):
                held.append((path.stat(), path))
        used, staying = size + sum(stat.st_size for stat, _ in held), size
        refused: OSError | None = None
        for stat, path in sorted(held, key=lambda file: (file[1].suffix == ".tar", file[0].st_mtime_ns)):
            try:
                if path.suffix == ".part" and path.stem[:2] != mine.stem[:2]:
                    with self._copying(path.stem).acquire(blocking=False):
                        path.unlink(missing_ok=True)
                elif path.suffix == ".part" or used > self.max_bytes:  # this thread holds the lock of the part
                    path.unlink(missing_ok=True)
                else:
                    continue
                used -= stat.st_size
            except Timeout:  # it is being copied
                pass
            except OSError as error:  # it may be another user's
                refused, staying = error, staying + stat.st_size
        if refused is not None and staying > self.max_bytes:
            raise refused
        return used <= self.max_bytes

    @contextmanager
    def _full_disk_named(self, source: str, size: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the shard cache {self.directory} cannot take {source}: {error.strerror}",
                got=f"{shutil.disk_usage(self.directory).free / 2**20:.0f} MiB free",
                expected=f"{size / 2**20:.0f} MiB, and {self.max_bytes / 2**20:.0f} MiB for the whole cache",
                next_step="free space, lower data.shard_cache_gib, or put data.shard_cache on a larger disk",
            ) from error


def _open_used(tar: Path) -> int:
    """A handle of a copy, whose modification time becomes now. Raises FileNotFoundError."""
    handle = os.open(tar, os.O_RDONLY)
    with contextlib.suppress(PermissionError):  # the copy may belong to another user
        os.utime(handle)
    return handle


def fetch_metadata(url: str, directory: str | Path) -> Path:
    """A local directory with the manifest and every index of the corpus at `url`, but no tars.

    It lies in `directory`/metadata, named by the manifest's hash, and is never deleted; what is there already is not
    fetched again. Raises UserError when an index is not the one that the manifest lists, or the disk refuses.
    """
    try:
        manifest = _read_bytes(join(url, MANIFEST))
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
    with FileLock(local / ".lock", mode=0o666, poll_interval=POLL_SEC):
        if (local / MANIFEST).exists():  # written last
            return local
        missing = [shard for shard in _listed(manifest, url) if not index_path(local, shard[0]).exists()]
        with ThreadPoolExecutor(FETCHERS) as pool:
            list(pool.map(lambda shard: _fetch_index(url, local, *shard), missing))
        with atomic_write(local / MANIFEST) as file:
            file.write(manifest)
    return local


def _listed(manifest: bytes, url: str) -> list[tuple[str, str]]:
    """Tar and SHA-256 of every shard in a manifest."""
    try:
        listed = [(str(shard["tar"]), str(shard["sha256"])) for shard in json.loads(manifest)["shards"]]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{join(url, MANIFEST)} is not the manifest of a corpus: {error!r}") from error
    if bad := [tar for tar, _ in listed if Path(tar).name != tar]:
        raise UserError(f"{join(url, MANIFEST)} lists {bad[0]!r}, which is not a file name")
    return listed


def _fetch_index(url: str, local: Path, tar: str, sha256: str) -> None:
    path = index_path(local, tar)
    source, unchecked = join(url, path.name), path.with_suffix(".part")
    with atomic_write(unchecked, replace=True) as file:
        file.write(_read_bytes(source))
    index = ShardIndex.read(unchecked)
    if (index.tar, index.sha256) != (tar, sha256):
        raise UserError(
            f"{source} is not the index that {MANIFEST} lists",
            got=f"{index.tar}, sha256 {index.sha256}",
            expected=f"{tar}, sha256 {sha256}",
            next_step="restore it from a copy of the corpus",
        )
    unchecked.replace(path)
