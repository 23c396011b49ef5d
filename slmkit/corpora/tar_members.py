"""Where the files in a tar lie, found without reading them.

Nothing is extracted, so that the names, links and modes in a tar can do no harm: only plain files are named at all. The
standard library reads the headers; which blocks it is asked to look at is decided here, so that a damaged place does
not end the reading. Zero blocks are passed over (tars may be joined).

Invariants: every member before a damaged place is given, and behind it every one whose header begins a block; what is
no part of a member and holds more than zeros is a `Damage`.

Not done: where bytes are missing, members behind that place do not begin a block, and are not sought; where whole
blocks are missing, the member that lacks them may cover the next one.

Example:
    for found in members("EN-B000000.tar"): found      # Member("EN_B00000_S00000_W000000.mp3", 1536, 40960)
"""

import os
import tarfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import IO, Any, NamedTuple

from slmkit.data.lines import open_named

BLOCK_BYTES = tarfile.BLOCKSIZE
# Headers of long names are read into memory, and searched in a time that grows with the square of their size.
MAX_EXTENDED_BYTES = 2**14
MAX_NESTED = 8  # headers of one member: a long name, a long link, further fields
EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
MAGICS = (b"ustar", bytes(5))  # of the tars of today, and of the oldest
# What tarfile raises for headers that are none: its own errors, and others that it lets through.
HEADER_ERRORS = (tarfile.HeaderError, ValueError, IndexError, OverflowError)


class Member(NamedTuple):
    """A plain file in a tar. A name that is not UTF-8 holds escapes, as file names do in Python."""

    name: str
    start_byte: int
    num_bytes: int
    whole: bool = True  # False: the tar ends before


class Damage(NamedTuple):
    """A place that is no part of a member."""

    start_byte: int
    what: str


class _Header(tarfile.TarInfo):
    """A header that is believed only with the magic of one, since a checksum alone may hold by chance."""

    @classmethod
    def fromtarfile(cls, tar: Any) -> "_Header":
        """The header at the place of the file. It calls itself for headers that belong to the next one."""
        tar.num_nested += 1
        try:
            if tar.num_nested > MAX_NESTED:
                raise tarfile.HeaderError("too many headers of one member")
            return super().fromtarfile(tar)
        finally:
            tar.num_nested -= 1

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if bytes(buf[257:262]) not in MAGICS or (header.type in EXTENDED and header.size > MAX_EXTENDED_BYTES):
            raise tarfile.HeaderError("no header of a tar")
        if header.type == tarfile.XGLTYPE:
            header.type = b"?"  # passed over: a name or a size for all members is nonsense
        return header


def members(path: str | os.PathLike[str]) -> Iterator[Member | Damage]:
    """The plain files of a tar, in order. Raises UserError when the tar cannot be read."""
    with open_named(path) as file:
        yield from _members(file, os.fstat(file.fileno()).st_size)


def _members(file: IO[bytes], tar_bytes: int) -> Iterator[Member | Damage]:
    # What `fromtarfile` wants of a TarFile, which itself would stop at the first damage.
    tar: Any = SimpleNamespace(
        fileobj=file, encoding="utf-8", errors="surrogateescape", offset=0, pax_headers={}, num_nested=0
    )
    at = 0
    damaged_at: int | None = None  # where the blocks begin that are no part of a member
    is_told = False  # that something is wrong there
    while at < tar_bytes:
        file.seek(at)
        try:
            header = _Header.fromtarfile(tar)
            if header.size < 0:
                raise tarfile.HeaderError("a negative size")
        except HEADER_ERRORS:
            file.seek(at)
            if damaged_at is None and file.read(BLOCK_BYTES).strip(b"\0"):
                damaged_at = at
            at += BLOCK_BYTES
            continue
        if damaged_at is not None and not is_told:
            yield Damage(damaged_at, "no header is there")
        content = header.offset_data
        whole = not _has_content(header) or content + header.size <= tar_bytes
        if header.isreg() and not header.issparse():
            yield Member(header.name, content, header.size, whole)
        elif not whole:
            yield Damage(at, "its content ends beyond the end of the tar")
        # A length that is not true may cover members, so that they are sought from where the content begins.
        at = tar.offset if whole else content
        damaged_at, is_told = (None, False) if whole else (content, True)
    if damaged_at is not None and not is_told:
        yield Damage(damaged_at, "no header is there")


def _has_content(header: tarfile.TarInfo) -> bool:
    return header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
