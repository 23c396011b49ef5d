"""Reading files at a URL, or on a path, as a stream of bytes.

http and https are read with the standard library; every other scheme (s3, gs, hf, memory, ...) goes through fsspec and
needs the driver that fsspec names. Passing faults of a network are tried again.

It keeps nothing: what was read is the caller's.

Invariant: what is missing and what cannot be reached now are told apart, since only the first is a damaged corpus.

Example:
    read_bytes("http://storage.local/libritts/manifest.json")
"""

import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

from slmkit.errors import UserError

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
ATTEMPTS = 4  # at a URL; a file system is asked once
FIRST_PAUSE_SEC = 0.5  # between two attempts, doubled each time
TIMEOUT_SEC = 60.0  # without a byte from an http server
GONE = (404, 410)  # http states of a file that is not there
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


@contextmanager
def open_place(place: str) -> Iterator[tuple[int | None, IO[bytes]]]:
    """Size in bytes, None if it is not told, and content of the file at `place`.

    Raises OSError when it cannot be reached or read, FileNotFoundError when it is not there, UserError when there is
    no way to read such a URL.
    """
    if not is_url(place):
        with open(place, "rb") as file:
            yield os.fstat(file.fileno()).st_size, file
    elif _is_http(place):
        yield from _open_http(place)
    else:
        yield from _open_fsspec(place)


def read_bytes(place: str) -> bytes:
    """The whole content. Raises DamagedTar when the file is missing, UserError when it cannot be reached."""

    def read() -> bytes:
        with open_place(place) as (size, stream):
            content = stream.read()
        if size is not None and len(content) != size:
            raise OSError(f"{len(content)} of {size} bytes came")
        return content

    return patiently(place, read)


def patiently(place: str, action: Callable[[], T]) -> T:
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
            if attempt == attempts:
                raise _unreachable(place, error) from error
        time.sleep(FIRST_PAUSE_SEC * 2 ** (attempt - 1))
    raise AssertionError("the last attempt returns or raises")


def _unreachable(place: str, error: OSError) -> UserError:
    if not is_url(place):
        return DamagedTar(f"{place} cannot be read: {error.strerror or error}")
    return UserError(
        f"cannot fetch {place}: {error}",
        got=f"{ATTEMPTS} failed attempts",
        next_step="check the address and the network, then start the run again; it continues by itself",
    )


def _is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _open_http(url: str) -> Iterator[tuple[int | None, IO[bytes]]]:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SEC) as response:
            size = response.headers.get("Content-Length")
            yield int(size) if size and size.isdigit() else None, response
    except urllib.error.HTTPError as error:
        if error.code in GONE:
            raise FileNotFoundError(str(error)) from error
        raise
    except http.client.HTTPException as error:
        raise OSError(f"the server broke off: {error!r}") from error


def _open_fsspec(url: str) -> Iterator[tuple[int | None, IO[bytes]]]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot read {url}: {error}", next_step="install the fsspec driver of this scheme") from error
    size = system.info(path).get("size")
    with system.open(path, "rb") as stream:
        yield size, stream
