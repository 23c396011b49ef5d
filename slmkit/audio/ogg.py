"""Ogg files that hold several streams one after another, of which libsndfile reads the first and says nothing.

Example:
    is_chained(open("radio.ogg", "rb"))       # True where a second stream begins after the first ended
"""

import io
import struct
from typing import BinaryIO

SEARCHED_BYTES = 2**17  # at the end; a page has at most 65307 bytes
BEGINS = 2  # the flag of a stream's first page; those of all streams of one link come before any other page


def is_chained(file: BinaryIO) -> bool:
    """Whether the last page belongs to a stream that does not begin at the beginning."""
    first, place = set(), 0
    while True:
        file.seek(place)
        header = file.read(27)
        if len(header) < 27 or header[:4] != b"OggS" or not header[5] & BEGINS:
            break
        first.add(_serial(header))
        place += len(header) + header[26] + sum(file.read(header[26]))
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - SEARCHED_BYTES))
    searched = file.read()
    last = searched.rfind(b"OggS")
    return bool(first) and 0 <= last <= len(searched) - 27 and _serial(searched[last:]) not in first


def _serial(page: bytes) -> int:
    """The number of the stream a page belongs to."""
    serial: int = struct.unpack_from("<I", page, 14)[0]
    return serial
