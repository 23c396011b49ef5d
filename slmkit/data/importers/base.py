"""What every importer yields, and how text from strangers is read.

An importer turns a corpus as it lies on disk into a sequence of `Utterance` (audio to encode) or `Sample` (codes) and,
for every item it cannot use, a `Failure`. The order is fixed by the source alone. It holds no more of the corpus than a
folder's names or a container's part, and opens no audio: an `Audio` says where it lies, and `content.open_audio` reads
it where it is decoded. A transcript that is a file of its own is read there too, by `read_transcript`.

Invariant: every item of the source appears once, as one of the three.

Example:
    for item in with_sound_keys(read_folder("LibriTTS")):
        match item:
            case Failure(): ...
"""

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from slmkit.data.ledger import Failure, printable
from slmkit.errors import BadSample, UserError

MAX_LINE_BYTES = 2**26  # of a manifest; longer lines are refused without being read into memory
BLOCK_BYTES = 2**22  # of lines that are read together
MAX_TRANSCRIPT_BYTES = 2**20
MAX_DEPTH = 64  # of lists and objects within each other in a record
RESERVED = frozenset({"text", "speaker", "language", "seconds", "source", "key", "checks"})  # in the json of a sample


class Audio(NamedTuple):
    """Where the audio of an utterance lies: a file, some bytes of one (the member of a tar), or a cell of a parquet
    file, of which `row` counts within the row group."""

    path: str
    start_byte: int = 0
    num_bytes: int | None = None  # None: to the end of the file
    row_group: int | None = None  # None: not a parquet file
    row: int = 0
    column: str = ""


class Cut(NamedTuple):
    """The part of a long recording that an utterance is, in seconds from its beginning.

    The speech lies from `start_sec` to `end_sec`. From `earliest_sec` up to it, and after it up to `latest_sec`, nobody
    speaks, as far as the source's time stamps tell: the cut is made where it is quietest there.
    """

    start_sec: float
    end_sec: float
    earliest_sec: float  # at most start_sec
    latest_sec: float  # at least end_sec


class Utterance(NamedTuple):
    """Audio to encode, with its text. `source` tells the reader of a shard where it came from.

    A NamedTuple since a corpus has millions: a frozen dataclass takes four times as long to make.
    """

    key: str
    audio: Audio
    text: str | Path  # the text, or the file that holds it
    source: str
    speaker: str = ""  # "" when unknown
    language: str = ""  # "" when unknown
    seconds: float | None = None  # of audio, as the source says; None when it does not
    cut: Cut | None = None  # None: the whole recording
    extra: Mapping[str, Any] = {}  # further columns, kept beside the text; `dnsmos`

    @staticmethod
    def from_values(values: list[Any]) -> "Utterance":
        """Inverse of `json.loads(json.dumps(utterance, default=text_file))`."""
        key, audio, text, source, speaker, language, seconds, cut, extra = values
        text = Path(text["file"]) if isinstance(text, dict) else text
        cut = None if cut is None else Cut(*cut)
        return Utterance(key, Audio(*audio), text, source, speaker, language, seconds, cut, extra)


Part = Callable[[], Iterable["Utterance | Failure"]]  # reads a part of a source; a process can be handed it


def text_file(path: object) -> dict[str, str]:
    """How JSON holds the file of a transcript."""
    assert isinstance(path, Path)
    return {"file": str(path)}


class Keyed(Protocol):
    """An item with a key: an `Utterance` or a `Sample`."""

    @property
    def key(self) -> str: ...


K = TypeVar("K", bound=Keyed)


def with_sound_keys(items: Iterable[K | Failure]) -> Iterator[K | Failure]:
    """The items, with a `Failure` in place of each that has no usable key or the key of an earlier one."""
    seen: set[str] = set()
    for item in items:
        yield item if isinstance(item, Failure) else key_refusal(item.key, seen) or item


def key_refusal(key: str, seen: set[str]) -> Failure | None:
    """Why an item of this key cannot be used; None when it can, and the key is then among `seen`."""
    if not key:
        return Failure("", "bad_key", "the key is empty")
    if not key.isascii() and printable(key) != key:
        return Failure(printable(key), "bad_key", "the key is not valid Unicode; rename the file in UTF-8")
    if key in seen:
        return Failure(key, "duplicate_key", "an earlier utterance has this key; only the first is kept")
    seen.add(key)
    return None


def read_transcript(path: Path) -> str:
    """The stripped text of a transcript file.

    Raises BadSample: "missing_transcript", "long_transcript", "transcript_not_utf8", "empty_transcript".
    """
    try:
        if not path.is_file():
            raise BadSample("missing_transcript", f"{path} does not exist")
        with open(path, "rb") as file:
            content = file.read(MAX_TRANSCRIPT_BYTES + 1)
    except OSError as error:
        raise BadSample("missing_transcript", f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_TRANSCRIPT_BYTES:
        raise BadSample("long_transcript", f"{path} is too long", expected=f"at most {MAX_TRANSCRIPT_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadSample("transcript_not_utf8", f"{path} is not UTF-8: {error}") from error
    return checked_text(text, str(path))


def checked_text(text: str, where: str) -> str:
    """`text` without surrounding white space. Raises BadSample "empty_transcript" when nothing is left."""
    stripped = text.strip()
    if not stripped:
        raise BadSample("empty_transcript", f"{where} has no text")
    return stripped


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


def text_field(record: dict[str, Any], name: str, *, required: bool = False) -> str:
    """A column as text: whole numbers are written out, null and absent columns are "".

    Raises BadSample "malformed" when the value is of another kind, or required and not there.
    """
    value = record.get(name)
    if type(value) is str:  # the usual case, first
        return value
    if value is None and not required:
        return ""
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadSample("malformed", f"the column {name} does not hold text", got=repr(value)[:100])
    return str(value)


def number_field(record: dict[str, Any], name: str) -> float | None:
    """A column as a finite number, written as one or as text; None where it is null, empty or absent.

    Raises BadSample "malformed" when it is something else.
    """
    value = record.get(name)
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(name)
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise BadSample("malformed", f"the column {name} does not hold a number", got=repr(value)[:100]) from error
    if not math.isfinite(number):
        raise BadSample("malformed", f"the column {name} does not hold a finite number", got=number)
    return number


def seconds_field(record: dict[str, Any], name: str) -> float | None:
    """A column as a length in seconds, None when unknown. Raises BadSample "malformed" when it is no length."""
    seconds = number_field(record, name)
    if seconds is not None and seconds <= 0:
        raise BadSample("malformed", f"the column {name} does not hold a length", got=seconds, expected="more than 0 s")
    return seconds


def extra_columns(record: dict[str, Any], ours: Collection[str], prefix: str) -> dict[str, Any]:
    """The columns beside `ours`. One whose name has a meaning in a sample gets a prefix."""
    extra = {name: value for name, value in record.items() if name not in ours}
    if RESERVED.isdisjoint(extra):
        return extra
    return {f"{prefix}_{name}" if name in RESERVED else name: value for name, value in extra.items()}
