"""What every reader of a corpus yields, and how text from strangers is read.

A reader turns a corpus as it lies on disk into a sequence of `Utterance` (audio to encode) or `Sample` (codes) and,
for every item it cannot use, a `Failure`. The order is fixed by the source alone. It holds no more of the corpus than a
folder's names or a container's part, and opens no audio: an `Audio` says where it lies, and `content.open_audio` reads
it where it is decoded. A transcript that is a file of its own is read there too, by `read_transcript`.

Invariant: every item of the source appears once, as one of the three.

Example:
    for item in next(read_parts("libritts", Path("LibriTTS"), ReadOptions()))():
        match item:
            case Failure(): ...
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from slmkit.audio import TO_END
from slmkit.data.ledger import Failure, printable
from slmkit.errors import BadSample, UserError
from slmkit.texts import is_blank

MAX_TRANSCRIPT_BYTES = 2**20
LONGEST_SEC = 1e9  # of a recording: 30 years
LINE_BREAKS = re.compile(r" *[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+ *")
# Control characters, marks of reading direction, and byte order marks inside of a text.
UNSPOKEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]+")
QUALITIES = ("dnsmos", "speech_share")  # columns of numbers that a source may bring and slmkit can measure
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
    channel: int | None = None  # from 0; None: the mean of all


class Cut(NamedTuple):
    """The part of a long recording that an utterance is, in seconds from its beginning.

    The speech lies from `start_sec` to `end_sec`. From `earliest_sec` up to it, and after it up to `latest_sec`, nobody
    speaks, as far as the source's time stamps tell: the cut is made where it is quietest there.
    """

    start_sec: float
    end_sec: float  # TO_END, -1, where the recording ends
    earliest_sec: float  # at most start_sec
    latest_sec: float  # at least end_sec; TO_END where that is

    @property
    def seconds(self) -> float | None:
        """How long the speech lasts; None where only the recording tells."""
        return None if self.end_sec == TO_END else self.end_sec - self.start_sec


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
    extra: Mapping[str, Any] = {}  # further columns, kept beside the text; those of QUALITIES are finite numbers
    # The key is no more than the file's name: where another utterance has it too, the path in `source` is the key.
    named_by_file: bool = False

    @staticmethod
    def from_values(values: list[Any]) -> "Utterance":
        """Inverse of `json.loads(json.dumps(utterance, default=text_file))`."""
        key, audio, text, source, speaker, language, seconds, cut, extra, *named = values  # older plans lack the last
        text = Path(text["file"]) if isinstance(text, dict) else text
        cut = None if cut is None else Cut(*cut)
        return Utterance(key, Audio(*audio), text, source, speaker, language, seconds, cut, extra, *named)


SourcePart = Callable[[], Iterable["Utterance | Failure"]]  # reads a part of a source; it can be pickled


def text_file(path: object) -> dict[str, str]:
    """How JSON holds the file of a transcript."""
    assert isinstance(path, Path)
    return {"file": str(path)}


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


def path_key(utterance: Utterance) -> str:
    """The key of an utterance that is named by its file where another has that name: the path, as `source` has it,
    without its suffix."""
    return os.path.splitext(utterance.source)[0]


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
    """The text as `one_line`. Raises BadSample "empty_transcript" when nothing is left."""
    line = one_line(text)
    if not line:
        raise BadSample("empty_transcript", f"{where} has no text")
    return line


def one_line(text: str) -> str:
    """`text` with a space for every tab and end of a line, without other control characters and white space around it;
    "" where nothing is left that can be seen."""
    if not text.isprintable():
        text = UNSPOKEN.sub("", LINE_BREAKS.sub(" ", text))
    return "" if is_blank(text) else text.strip()


def text_field(record: dict[str, Any], name: str, *, required: bool = False) -> str:
    """A column as text: whole numbers are written out (also 7.0: pandas makes floats of a column with gaps), null and
    absent columns are "".

    Raises BadSample "malformed" when the value is of another kind, or required and not there.
    """
    value = record.get(name)
    if type(value) is str:  # the usual case, first
        return value
    if value is None and not required:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
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


def quality_fields(record: dict[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """The columns of QUALITIES that the record has; `names` gives the source's name of each that it may have.

    Raises BadSample "malformed" when one is no finite number.
    """
    found = {}
    for ours in QUALITIES:
        theirs = names.get(ours)
        if theirs is not None and (number := number_field(record, theirs)) is not None:
            found[ours] = number
    return found


def seconds_field(record: dict[str, Any], name: str) -> float | None:
    """A column as a length in seconds, None when unknown. Raises BadSample "malformed" when it is no length."""
    seconds = number_field(record, name)
    if seconds is not None and seconds <= 0:
        raise BadSample("malformed", f"the column {name} does not hold a length", got=seconds, expected="more than 0 s")
    return seconds


def checked_cut(start_sec: float, end_sec: float) -> Cut:
    """The part of a recording from one time to another, or to TO_END. What lies around it is not known.

    Raises BadSample "bad_times" for times that cannot be.
    """
    if not 0 <= start_sec < (LONGEST_SEC if end_sec == TO_END else end_sec) <= LONGEST_SEC:
        expected = f"0 <= start < end <= {LONGEST_SEC:.0e}, or -1 for the end of the recording"
        raise BadSample("bad_times", "impossible times", got=f"{start_sec} s to {end_sec} s", expected=expected)
    return Cut(start_sec, end_sec, start_sec, end_sec)


def check_columns(columns: Mapping[str, str], ours: Collection[str]) -> None:
    """Raise UserError for a name of a mapping that is neither one of `ours` nor good for a column of the samples."""
    if refused := sorted(columns.keys() & (RESERVED - set(ours))):
        raise UserError("columns maps names that have a meaning in a sample", got=", ".join(refused))
    for name in sorted(columns.keys() - set(ours)):
        if near := difflib.get_close_matches(name, ours, 1, cutoff=0.8):
            raise UserError("columns maps an unknown name", got=name, next_step=f"did you mean {near[0]}?")


def with_nested(record: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The record with fields of its objects as columns: `json.text` beside what is left of `json`.

    A column that itself has a dot in its name comes first.
    """
    for name in names:
        if name in record:
            continue
        *path, leaf = name.split(".")
        record = parent = dict(record)
        for step in path:
            inner = parent.get(step)
            if not isinstance(inner, dict):
                break
            parent[step] = parent = dict(inner)
        else:
            if leaf in parent:
                record[name] = parent.pop(leaf)
    return record


def extra_columns(record: dict[str, Any], ours: Collection[str], prefix: str) -> dict[str, Any]:
    """The columns beside `ours`. One whose name has a meaning in a sample gets a prefix."""
    extra = {name: value for name, value in record.items() if name not in ours}
    if RESERVED.isdisjoint(extra):
        return extra
    return {f"{prefix}_{name}" if name in RESERVED else name: value for name, value in extra.items()}
