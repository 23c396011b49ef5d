"""Where the files in a tar lie, found without reading them.

Nothing is extracted, so that the names, links and modes in a tar can do no harm: only plain files are named at all.
Zero blocks are passed over (tars may be joined). Where a header is damaged, or a file is said to go on beyond the end
of the tar, reading goes on at the next header that is whole, wherever it begins.

Invariant: a whole header with its content is given, whatever lies before and behind it.

Not done: where more than a block is missing from the last but one member, its length may cover the last one, which is
then lost without a word.

Example:
    for found in members("EN-B000000.tar"): found      # Member("EN_B00000_S00000_W000000.mp3", 1536, 40960)
"""

import os
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from slmkit.errors import UserError

BLOCK_BYTES = tarfile.BLOCKSIZE
SCAN_BYTES = 2**20
MAGIC, MAGIC_AT = b"ustar", 257  # of every header that the tars of today have
MAX_NAME_BYTES = 2**16
LONG_NAME, LONG_LINK, EXTENDED, GLOBAL = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"x", b"g"
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
WITHOUT_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
)


class Member(NamedTuple):
    """A plain file in a tar. A name that is not UTF-8 holds escapes, as file names do in Python."""

    name: str
    start_byte: int
    num_bytes: int
    whole: bool = True  # False: the tar ends before


class Header(NamedTuple):
    """What a block says of the content behind it."""

    name: str
    size: int  # bytes
    kind: bytes  # of `tarfile`'s types


class Damage(NamedTuple):
    """A place where no header is."""

    start_byte: int
    what: str


def members(path: str | os.PathLike[str]) -> Iterator[Member | Damage]:
    """The plain files of a tar, in order. Raises UserError when the tar cannot be read."""
    try:
        with open(path, "rb") as file:
            yield from _members(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", next_step="check the path and the disk") from error


def _members(file: IO[bytes], tar_bytes: int) -> Iterator[Member | Damage]:
    at = content = 0  # `content`: behind the last whole header; if bytes are gone, the next one begins before `at`
    known: dict[str, str] = {}  # what extended headers say of the next file: its path, its size
    while at < tar_bytes:
        file.seek(at)
        block = file.read(BLOCK_BYTES)
        header = parse_header(block)
        if header is None and not block.strip(b"\0"):
            at = _first_nonzero_block(file, at, tar_bytes)
            continue
        if header is None:
            yield Damage(at, "no header is there")
            at, known = _next_header(file, content, tar_bytes), {}
            continue
        content, size = at + BLOCK_BYTES, _size(header, known)
        whole = content + size <= tar_bytes
        after = content + -(-size // BLOCK_BYTES) * BLOCK_BYTES
        if header.kind in (LONG_NAME, LONG_LINK, EXTENDED, GLOBAL):
            if whole and header.kind in (LONG_NAME, EXTENDED):
                known |= _read_extended(file, header.kind, size)
            at = after if whole else _next_header(file, content, tar_bytes)
            continue
        if header.kind in PLAIN:
            yield Member(known.get("path", header.name), content, size, whole)
        elif not whole:
            yield Damage(at, "its content goes on beyond the end of the tar")
        at, known = after if whole else _next_header(file, content, tar_bytes), {}


def parse_header(block: bytes) -> Header | None:
    """The header in a block, None when its checksum does not hold or it is none.

    Its magic is looked at too (the oldest tars have zeros there): the checksum alone may hold one byte beside it.
    """
    magic = block[MAGIC_AT : MAGIC_AT + 6]
    if len(block) < BLOCK_BYTES or not (magic.startswith(MAGIC) or not block[MAGIC_AT:].strip(b"\0")):
        return None
    size, total = _number(block[124:136]), _number(block[148:156])
    if size is None or total is None or total not in _checksums(block):
        return None
    kind, name = block[156:157], block[:100].partition(b"\0")[0]
    if magic == MAGIC + b"\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    if kind == tarfile.AREGTYPE and name.endswith(b"/"):
        kind = tarfile.DIRTYPE  # as the oldest tars have folders
    return Header(name.decode("utf-8", "surrogateescape"), size, kind)


def _number(field: bytes) -> int | None:
    """Octal digits, or a binary number after 0x80; None for others and for negative ones."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.partition(b"\0")[0].strip() or b"0"
    return int(digits, 8) if digits.isdigit() and max(digits) < ord("8") else None


def _checksums(block: bytes) -> tuple[int, int]:
    """The sum of the bytes with spaces in place of the sum itself; as unsigned bytes, and as signed ones."""
    others = block[:148] + block[156:]
    total = sum(others) + 8 * ord(" ")
    return total, total if block.isascii() else total - 256 * sum(byte > 127 for byte in others)


def _size(header: Header, known: dict[str, str]) -> int:
    """Bytes of content behind a header."""
    if header.kind in WITHOUT_CONTENT:
        return 0
    digits = known.get("size", "") if header.kind in PLAIN else ""
    return int(digits) if digits.isdecimal() and len(digits) < 20 else header.size


def _read_extended(file: IO[bytes], kind: bytes, size: int) -> dict[str, str]:
    """`path` and `size` in the content of an extended header, which begins where the file stands."""
    content = file.read(min(size, MAX_NAME_BYTES))
    if kind == LONG_NAME:
        return {"path": os.fsdecode(content.rstrip(b"\0"))}
    found = {}
    while content:
        digits, space, _ = content[:20].partition(b" ")
        if not space or not digits.isdigit() or int(digits) <= len(digits) + 1:
            break
        name, _, value = content[len(digits) + 1 : int(digits)].rstrip(b"\n").partition(b"=")
        if name in (b"path", b"size"):
            found[name.decode()] = value.decode("utf-8", "surrogateescape")
        content = content[int(digits) :]
    return found


def _first_nonzero_block(file: IO[bytes], at: int, tar_bytes: int) -> int:
    """Where the first block from `at` on lies that is not all zeros, or the end."""
    while at < tar_bytes:
        file.seek(at)
        content = file.read(SCAN_BYTES)
        zeros = len(content) - len(content.lstrip(b"\0"))
        if zeros < len(content):
            return at + zeros // BLOCK_BYTES * BLOCK_BYTES
        at += len(content) or tar_bytes
    return tar_bytes


def _next_header(file: IO[bytes], at: int, tar_bytes: int) -> int:
    """Where the first whole header from `at` on begins, or the end."""
    while at < tar_bytes:
        file.seek(at)
        content = file.read(SCAN_BYTES + BLOCK_BYTES)
        found = content.find(MAGIC, MAGIC_AT)
        while found >= 0:
            start = found - MAGIC_AT
            if parse_header(content[start : start + BLOCK_BYTES]) is not None:
                return at + start
            found = content.find(MAGIC, found + 1)
        at += SCAN_BYTES
    return tar_bytes
