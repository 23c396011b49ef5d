"""What every importer yields, and how text from strangers is read.

An importer turns a corpus as it lies on disk into a sequence of `Utterance` (audio to encode) or `Sample` (codes) and,
for every item it cannot use, a `Failure`. The order is fixed by the source alone. It holds no more of the corpus than a
folder's names or a container's part, and opens no audio: an `Audio` says where it lies, and `content.open_audio` reads
it where it is decoded. A transcript that is a file of its own is read there too, by `read_transcript`.

Invariants: every item of the source appears once, as one of the three; an utterance survives JSON
(`Utterance.from_dict(json.loads(json.dumps(utterance.to_dict()))) == utterance`).

Example:
    for item in with_sound_keys(read_folder("LibriTTS")):
        match item:
            case Failure(): ...
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from slmkit.data.ledger import Failure, printable
from slmkit.errors import BadSample, UserError

MAX_LINE_BYTES = 2**26  # of a manifest; longer lines are refused without being read into memory
MAX_TRANSCRIPT_BYTES = 2**20
OPTIONAL = ("speaker", "language", "seconds", "cut", "extra")  # fields of an utterance that may be unknown


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


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """Audio to encode, with its text. `source` tells the reader of a shard where it came from."""

    key: str
    audio: Audio
    text: str | Path  # the text, or the file that holds it
    source: str
    speaker: str = ""  # "" when unknown
    language: str = ""  # "" when unknown
    seconds: float | None = None  # of audio, as the source says; None when it does not
    cut: Cut | None = None  # None: the whole recording
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)  # further columns, kept beside the text; `dnsmos`

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without what is not known."""
        text = {"text_file": str(self.text)} if isinstance(self.text, Path) else {"text": self.text}
        found: dict[str, Any] = {"key": self.key, "audio": self.audio, **text, "source": self.source}
        for name in OPTIONAL:
            if value := getattr(self, name):
                found[name] = value
        return found

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Utterance":
        """Inverse of `to_dict`. Raises KeyError or TypeError when the values are not an utterance's."""
        rest = {name: values[name] for name in OPTIONAL if name in values}
        if "cut" in rest:
            rest["cut"] = Cut(*rest["cut"])
        text = Path(values["text_file"]) if "text_file" in values else values["text"]
        audio = Audio(*values["audio"])
        return Utterance(key=values["key"], audio=audio, text=text, source=values["source"], **rest)


class Keyed(Protocol):
    """An item with a key: an `Utterance` or a `Sample`."""

    @property
    def key(self) -> str: ...


K = TypeVar("K", bound=Keyed)


def with_sound_keys(items: Iterable[K | Failure]) -> Iterator[K | Failure]:
    """The items, with a `Failure` in place of each that has no usable key or the key of an earlier one."""
    seen: set[str] = set()
    for item in items:
        if isinstance(item, Failure):
            yield item
            continue
        key = item.key
        if not key:
            yield Failure("", "bad_key", f"the key is empty: {printable(repr(item))[:200]}")
        elif not key.isascii() and printable(key) != key:
            yield Failure(printable(key), "bad_key", "the key is not valid Unicode; rename the file in UTF-8")
        elif key in seen:
            yield Failure(key, "duplicate_key", "an earlier utterance has this key; only the first is kept")
        else:
            seen.add(key)
            yield item


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
    if not text.strip():
        raise BadSample("empty_transcript", f"{where} has no text")
    return text.strip()


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, content) of every line that is not blank; None in place of a line that is too long.

    Raises UserError when the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                whole = len(line) < MAX_LINE_BYTES or line.endswith(b"\n")
                while line and not line.endswith(b"\n") and not whole:
                    line = file.readline(MAX_LINE_BYTES)
                if not whole or line.strip():
                    yield number, line.strip(b"\r\n") if whole else None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", next_step="check the path") from error


def parse_line(line: bytes | None) -> str:
    """The text of a line. Raises BadSample "malformed" when it is too long or not UTF-8."""
    if line is None:
        raise BadSample("malformed", "the line is too long", expected=f"fewer than {MAX_LINE_BYTES} bytes")
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSample("malformed", f"the line is not UTF-8: {error}") from error


def parse_record(line: bytes | None) -> dict[str, Any]:
    """The JSON object in a line. Raises BadSample "malformed" when it is none, or could not be written again."""
    text = parse_line(line)
    try:
        record = json.loads(text)
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadSample("malformed", f"the line is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadSample("malformed", "the line is not a JSON object", got=type(record).__name__)
    return record


def text_field(record: dict[str, Any], name: str, *, required: bool = False) -> str:
    """A column as text: whole numbers are written out, null and absent columns are "".

    Raises BadSample "malformed" when the value is of another kind, or required and not there.
    """
    value = record.get(name)
    if value is None and not required:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadSample("malformed", f"the column {name} does not hold text", got=repr(value)[:100])
    return str(value)
