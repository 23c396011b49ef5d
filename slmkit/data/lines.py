"""Lines of text files from strangers, and the JSON records in them.

Every table, list, transcript of many lines and hostfile is read by `read_lines`: what Windows and spreadsheets add to
UTF-8 (a byte order mark, CR before LF) is taken off here, and nowhere else. Any length of file in bounded memory; a
line or a record that cannot be used raises BadSample and leaves the next alone.

Example:
    for number, line in read_lines("corpus.jsonl"):
        record = parse_record(line)
"""

import codecs
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from slmkit.errors import BadSample, UserError

MAX_LINE_BYTES = 2**26  # of a manifest; longer lines are refused without being read into memory
BLOCK_BYTES = 2**22  # of lines that are read together
BLOCK_CHARS = 2**20  # of a JSON array that are read together
MAX_DEPTH = 64  # of lists and objects within each other in a record


class Lines(NamedTuple):
    """Some whole lines of a file."""

    path: str
    start_byte: int = 0
    end_byte: float = math.inf
    first_number: int = 1  # of the first line


@contextmanager
def open_named(path: str | os.PathLike[str], mode: str = "rb", **options: Any) -> Iterator[IO[Any]]:
    """The open file. Raises UserError, naming it, where it cannot be opened, or read inside the block."""
    try:
        with open(path, mode, **options) as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", next_step="check the path and the disk") from error


def line_blocks(path: str | Path) -> Iterator[Lines]:
    """The lines of a file in parts of a few megabytes, in order. Raises UserError when the file cannot be read."""
    with open_named(path) as file:
        start, number = 0, 1
        while block := file.read(BLOCK_BYTES):
            newlines = block.count(b"\n")
            while block and not block.endswith(b"\n"):
                block = file.readline(MAX_LINE_BYTES)
                newlines += block.endswith(b"\n")
            yield Lines(str(path), start, file.tell(), number)
            start, number = file.tell(), number + newlines


def read_lines(source: str | Path | Lines, *, max_line_bytes: int | None = None) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, content) of every line that is not blank; None in place of a line that is too long.

    A byte order mark is no part of a line: where files were joined, there is one in the middle too. `max_line_bytes`
    counts what ends a line; by default MAX_LINE_BYTES. Raises UserError when the file cannot be read, or is UTF-16.
    """
    max_line_bytes = max_line_bytes or MAX_LINE_BYTES
    lines = source if isinstance(source, Lines) else Lines(str(source))
    with open_named(lines.path) as file:
        place = file.seek(lines.start_byte)
        number = lines.first_number - 1
        while place < lines.end_byte and (line := file.readline(max_line_bytes)):
            place += len(line)
            number += 1
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise UserError(
                    f"{lines.path} is written in UTF-16", expected="UTF-8", next_step="save it again as UTF-8"
                )
            whole = len(line) < max_line_bytes or line.endswith(b"\n")
            while line and not line.endswith(b"\n") and not whole:
                line = file.readline(max_line_bytes)
                place += len(line)
            line = line.removeprefix(codecs.BOM_UTF8)
            if not whole or line.strip():
                yield number, line.strip(b"\r\n") if whole else None


def read_json_array(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, JSON text) of every item of a file that holds one array, in whatever lines it is written.

    Raises UserError when the file cannot be read, or is damaged: then it is not known how many items follow.
    """
    # A byte that is not UTF-8 is passed on, so that `parse_record` refuses its own item alone.
    with open_named(path, "r", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        text, number = "", 0
        while not text and (more := file.read(BLOCK_CHARS)):
            text = more.lstrip()
        if not text.startswith("["):
            raise _damaged_array(path, number)
        place = 1
        while found := _BETWEEN_ITEMS.match(text, place):
            start = found.end()
            try:
                end = start if text[start : start + 1] == "]" else _EXTENT.raw_decode(text, start)[1]
                is_whole = end < len(text)  # a number at the end of what was read may go on
            except (ValueError, RecursionError):
                is_whole = False
            if not is_whole:
                more = file.read(max(BLOCK_CHARS, len(text) - start))
                if not more or len(text) - start > MAX_LINE_BYTES:
                    raise _damaged_array(path, number)
                text, place = text[start:] + more, 0
            elif end == start:
                if (text[end + 1 :] + file.read(BLOCK_CHARS)).strip():
                    raise _damaged_array(path, number)
                return
            else:
                number += 1
                yield number, text[start:end].encode("utf-8", "surrogateescape")
                place = end


def _damaged_array(path: str | Path, number: int) -> UserError:
    return UserError(
        f"{path} is no JSON array, or is damaged behind item {number}",
        expected='[{"path": "a.wav", "text": "Some words."}, ...]',
        next_step="write it again, or as JSONL with an object on each line",
    )


def parse_line(line: bytes | None) -> str:
    """The text of a line. Raises BadSample "malformed" when it is too long or not UTF-8."""
    if line is None:
        raise BadSample("malformed", "the line is too long", expected=f"fewer than {MAX_LINE_BYTES} bytes")
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSample("malformed", f"the line is not UTF-8: {error}") from error


def parse_record(line: bytes | None) -> dict[str, Any]:
    """The JSON object in a line. Raises BadSample "malformed" when it is none, or could not be written again.

    Of what JSON may hold, half a surrogate pair, numbers that are not finite and lists without end cannot be written.
    Each is looked for where it can be alone: a corpus has millions of lines.
    """
    text = parse_line(line)
    try:
        record = _parse(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(record, ensure_ascii=False).encode()
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(record)
    except (ValueError, RecursionError) as error:
        raise BadSample("malformed", f"the line is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadSample("malformed", "the line is not a JSON object", got=type(record).__name__)
    return record


def _finite(literal: str) -> float:
    number = float(literal)
    if number - number != 0:
        raise ValueError(f"{literal[:20]} is not a finite number")
    return number


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
_BETWEEN_ITEMS = re.compile(r"[\s,]*")
_EXTENT = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)  # to see where a value ends


def _parse(text: str) -> Any:
    """The value in `text`. `decode` alone would look for white space around it twice."""
    if text[:1] == "{":
        value, end = _DECODER.raw_decode(text)
        if end == len(text):
            return value
    return _DECODER.decode(text)


def _check_depth(record: Any) -> None:
    level = [record]
    for _ in range(MAX_DEPTH):
        inner = (value.values() if isinstance(value, dict) else value for value in level)
        level = [child for children in inner for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(f"lists and objects more than {MAX_DEPTH} deep")
