"""Lines of text files from strangers, and the JSON records in them.

Any length of file in bounded memory; a line or a record that cannot be used raises BadSample and leaves the next alone.

Example:
    for number, line in read_lines("corpus.jsonl"):
        record = parse_record(line)
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from slmkit.errors import BadSample, UserError

MAX_LINE_BYTES = 2**26  # of a manifest; longer lines are refused without being read into memory
BLOCK_BYTES = 2**22  # of lines that are read together
MAX_DEPTH = 64  # of lists and objects within each other in a record


class Lines(NamedTuple):
    """Some whole lines of a file."""

    path: str
    start_byte: int = 0
    end_byte: float = math.inf
    first_number: int = 1  # of the first line


def line_blocks(path: str | Path) -> Iterator[Lines]:
    """The lines of a file in parts of a few megabytes, in order. Raises UserError when the file cannot be read."""
    try:
        with open(path, "rb") as file:
            start, number = 0, 1
            while block := file.read(BLOCK_BYTES):
                newlines = block.count(b"\n")
                while block and not block.endswith(b"\n"):
                    block = file.readline(MAX_LINE_BYTES)
                    newlines += block.endswith(b"\n")
                yield Lines(str(path), start, file.tell(), number)
                start, number = file.tell(), number + newlines
    except OSError as error:
        raise _cannot_read(path, error) from error


def read_lines(source: str | Path | Lines, *, max_line_bytes: int | None = None) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, content) of every line that is not blank; None in place of a line that is too long.

    `max_line_bytes` counts what ends a line; by default MAX_LINE_BYTES. Raises UserError when the file cannot be read.
    """
    max_line_bytes = max_line_bytes or MAX_LINE_BYTES
    lines = source if isinstance(source, Lines) else Lines(str(source))
    try:
        with open(lines.path, "rb") as file:
            place = file.seek(lines.start_byte)
            number = lines.first_number - 1
            while place < lines.end_byte and (line := file.readline(max_line_bytes)):
                place += len(line)
                number += 1
                whole = len(line) < max_line_bytes or line.endswith(b"\n")
                while line and not line.endswith(b"\n") and not whole:
                    line = file.readline(max_line_bytes)
                    place += len(line)
                if not whole or line.strip():
                    yield number, line.strip(b"\r\n") if whole else None
    except OSError as error:
        raise _cannot_read(lines.path, error) from error


def _cannot_read(path: str | Path, error: OSError) -> UserError:
    return UserError(f"cannot read {path}: {error.strerror}", next_step="check the path")


def parse_line(line: bytes | None) -> str:
    """The text of a line. Raises BadSample "malformed" when it is too long or not UTF-8."""
    if line is None:
        raise BadSample("malformed", "the line is too long", expected=f"fewer than {MAX_LINE_BYTES} bytes")
    try:
        return line.decode().removeprefix("\ufeff")
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
