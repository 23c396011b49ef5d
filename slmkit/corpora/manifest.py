"""Manifests: a table with a row per utterance. Its name says what it is:

    .jsonl, .json     an object on each line
    .json             one array of objects
    .tsv, .csv        a header line, then a row on each line; cells with quotes as spreadsheets write them (a quoted
                      cell may hold line breaks); where a .csv is separated by semicolons, tabs or | its header shows it
    a folder          with metadata.jsonl, metadata.csv or metadata.tsv in it, as Hugging Face's audio folders have

Columns: `path` (relative to the manifest) and `text`; optional
    speaker, language     as text
    key                   default: the path without its suffix, and the times where the row has some
    seconds               length of the audio, for filters and balance
    dnsmos                quality from 1 to 5, for filters
    speech_share          share of the audio that is speech, from 0 to 1, for filters
    start, end            in seconds: the utterance is that part of the file. Without `end` it ends `seconds` behind
                          `start`; an end of -1 is the end of the file
    segments              a list of {start, end, text}, in place of `text`: time stamps of a long recording, which is
                          cut into excerpts of up to `max_sec` (see long_audio) called {key}_0000, {key}_0001, ...
Where they have other names, `columns` maps ours to theirs; a name that is not ours (`question`) gives a column of the
samples that name, and `json.text` is the field `text` of the objects in `json`. Without a mapping, `file_name` (Hugging
Face), `audio_filepath` (NeMo, with its `offset` and `duration`) or `audio`, in this order, stand in for `path`; audio
may be an object {"path": ...}. Columns that are left travel with the sample.

Invariant: the order is that of the rows; a row that cannot be used is a `Failure` that names its line (in an array: its
number). A row with segments is an item for every excerpt and every segment that cannot be used, or one if it has none.

Example:
    manifest_parts(Path("train.jsonl"), ReadOptions(columns={"path": "wav", "text": "transcript"}))
"""

import csv
import os
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from slmkit.corpora.base import (
    QUALITIES,
    Audio,
    Cut,
    SourcePart,
    Utterance,
    check_columns,
    checked_cut,
    checked_text,
    extra_columns,
    number_field,
    quality_fields,
    seconds_field,
    text_field,
    with_nested,
)
from slmkit.corpora.layouts import ReadOptions, layout
from slmkit.corpora.long_audio import Excerpt, excerpts
from slmkit.data.ledger import Failure
from slmkit.data.lines import Lines, line_blocks, open_named, parse_line, parse_record, read_json_array, read_lines
from slmkit.errors import BadSample, UserError

COLUMNS = ("path", "text", "speaker", "language", "key", "seconds", *QUALITIES, "start", "end", "segments")
PATH_COLUMNS = ("path", "file_name", "audio_filepath", "audio")
NEMO = "audio_filepath", {"seconds": "duration", "start": "offset"}
SUFFIXES = {".jsonl": "", ".json": "", ".tsv": "\t,;|", ".csv": ",;\t|"}  # what may separate the cells of a table
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
MAX_CELL_LINES = 100
SCAN_BYTES = 2**20


class _Names(NamedTuple):
    """Their name of each column of ours."""

    path: str
    text: str
    speaker: str
    language: str
    key: str
    seconds: str
    dnsmos: str
    speech_share: str
    start: str
    end: str
    segments: str
    required: frozenset[str] = frozenset()  # which a table must have
    qualities: Mapping[str, str] = {}  # those of QUALITIES
    extra: Mapping[str, str] = {}  # further columns of the samples
    taken: frozenset[str] = frozenset()  # all of theirs
    nested: tuple[str, ...] = ()  # those with a dot


class _Header(NamedTuple):
    """The first line of a table."""

    number: int
    cells: list[str]
    separator: str


@layout(
    "manifest",
    files="""\
FILE.jsonl, FILE.json (also as an array): {"path": "a.wav", "text": "Hello.", "speaker": "s1"}
FILE.tsv, FILE.csv with a header line: path,text,speaker; cells in quotes as spreadsheets write them
DIR/metadata.csv, metadata.jsonl (Hugging Face's audio folder): file_name,text
NeMo: {"audio_filepath": "talk.wav", "offset": 2.0, "duration": 1.5, "text": "Hello."}
a part of a file: {"path": "talk.wav", "start": 2.0, "end": 3.5, "text": "Hello."}; end -1: to the end
a long recording: {"path": "talk.wav", "segments": [{"start": 2.0, "end": 3.5, "text": "Hello."}, ...]}
other names by columns.path=NAME, columns.text=NAME, columns.question=NAME, columns.text=json.text""",
    takes_columns=True,
)
def manifest_parts(path: Path, options: ReadOptions) -> Iterator[SourcePart]:
    """A part for some thousand lines each; one for an array, or a table with quotes, whose rows may have more lines.

    Raises UserError when the file cannot be read, is of an unknown kind, or its header lacks a column.
    """
    if os.path.isdir(path):
        path = next((path / name for name in METADATA if os.path.isfile(path / name)), path)
    separators = SUFFIXES.get(path.suffix.lower())
    if separators is None or os.path.isdir(path):
        expected = f"{', '.join(SUFFIXES)}, or a folder with {' or '.join(METADATA)}"
        raise UserError(f"{path} is not a manifest", got=path.suffix or "no suffix", expected=expected)
    forms = _forms(options.columns)
    rest = (forms, options.language, options.max_sec)
    if not separators:
        line = next(read_lines(path), (0, b""))[1]
        first = b"[" if line is None else line.strip()  # an object has no line that is too long
        if path.suffix.lower() == ".json" and first == b"{":
            raise UserError(
                f"{path} holds one object that is written in several lines",
                expected="an object on each line, or an array of objects",
                next_step="if an array is in it, take it out: jq .NAME FILE.json > ARRAY.json",
            )
        if path.suffix.lower() == ".json" and first.startswith(b"["):
            yield partial(_read_part, str(path), None, *rest)
        else:
            yield from (partial(_read_part, lines, None, *rest) for lines in line_blocks(path))
        return
    header = _read_header(path, separators, forms)
    whole = [Lines(str(path))] if _has_quotes(path) else line_blocks(path)
    yield from (partial(_read_part, lines, header, *rest) for lines in whole)


def _forms(columns: Mapping[str, str]) -> tuple[_Names, ...]:
    """The names of every form of a row; the first whose path a row has is its form."""
    check_columns(columns, (*COLUMNS, "audio"))
    mapped = dict(columns)
    if "audio" in mapped:  # as parquet files call it
        mapped.setdefault("path", mapped.pop("audio"))
    # A recipe may list what is so anyway.
    mapped = {ours: theirs for ours, theirs in mapped.items() if ours != theirs or ours not in COLUMNS}
    forms = []
    for path in [mapped["path"]] if "path" in mapped else PATH_COLUMNS:
        names = {name: name for name in COLUMNS} | (NEMO[1] if path == NEMO[0] else {}) | mapped | {"path": path}
        extra = {ours: theirs for ours, theirs in names.items() if ours not in COLUMNS}
        forms.append(
            _Names(
                **{name: names[name] for name in COLUMNS},
                required=frozenset({path, names["text"], *mapped.values()}),
                qualities={name: names[name] for name in QUALITIES},
                extra=extra,
                taken=frozenset(names.values()),
                nested=tuple(name for name in names.values() if "." in name),
            )
        )
    return tuple(forms)


def _has_quotes(path: Path) -> bool:
    with open_named(path) as file:
        return any(b'"' in block for block in iter(partial(file.read, SCAN_BYTES), b""))


def _read_part(
    lines: Lines | str, header: _Header | None, forms: tuple[_Names, ...], language: str, max_sec: float
) -> Iterator[Utterance | Failure]:
    """The items of some lines, or of the array in a file."""
    path = Path(lines.path if isinstance(lines, Lines) else lines)
    folder = os.path.join(path.parent, "")
    if header is not None:
        assert isinstance(lines, Lines)
        records = _table_records(lines, header)
    else:
        records = _json_records(read_lines(lines) if isinstance(lines, Lines) else read_json_array(lines))
    for number, record in records:
        try:
            if isinstance(record, BadSample):
                raise record
            names = next((form for form in forms if record.get(form.path) is not None), forms[0])
            if names.nested:
                record = with_nested(record, names.nested)
            if record.get(names.segments) in (None, ""):
                yield _utterance(record, names, folder, language)
            else:
                yield from _cut(record, names, folder, language, max_sec)
        except BadSample as error:
            yield Failure.of(f"{path.name}:{number}", error)


def _json_records(lines: Iterator[tuple[int, bytes | None]]) -> Iterator[tuple[int, dict[str, Any] | BadSample]]:
    for number, line in lines:
        try:
            yield number, parse_record(line)
        except BadSample as error:
            yield number, error


def _table_records(lines: Lines, header: _Header) -> Iterator[tuple[int, dict[str, Any] | BadSample]]:
    rows = read_lines(lines)
    waiting: deque[tuple[int, bytes | None]] = deque()  # lines that were looked at and are rows of their own
    width = len(header.cells)
    while (row := waiting.popleft() if waiting else next(rows, None)) is not None:
        number, line = row
        if number == header.number:
            continue
        try:
            cells = _cells(parse_line(line), header, rows, waiting)
            if len(cells) > width and not any(cells[width:]):
                cells = cells[:width]
            if len(cells) != width:
                raise BadSample("malformed", "wrong number of columns", got=len(cells), expected=width)
        except BadSample as error:
            yield number, error
            continue
        record = dict(zip(header.cells, cells, strict=True))
        record.pop("", None)  # the numbers of the rows, which pandas writes
        yield number, record


def _cells(
    text: str, header: _Header, rows: Iterator[tuple[int, bytes | None]], waiting: deque[tuple[int, bytes | None]]
) -> list[str]:
    """The cells of the row that begins with the line `text`. Further lines of it are taken from `waiting` and `rows`.

    Quotes that do not enclose whole cells are part of the text: in tables of sentences a line may open or close one.
    """
    plain, width = text.split(header.separator), len(header.cells)
    cells = _unquoted(text, header.separator)
    taken = 0
    while cells is None and taken < MAX_CELL_LINES:  # the last cell is not closed yet
        if taken == len(waiting):
            waiting.extend([row] if (row := next(rows, None)) else [])
        line = waiting[taken][1] if taken < len(waiting) else None
        if line is None:
            break
        more = line.decode(errors="replace")
        # A row of its own, more likely than a cell that holds a line break and tabs behind it.
        if header.separator == "\t" and more.count("\t") == width - 1:
            break
        text, taken = f"{text}\n{more}", taken + 1
        cells = _unquoted(text, header.separator)
    if not cells or (len(cells) != width and len(plain) == width):
        return plain
    for _ in range(taken):
        waiting.popleft()
    return cells


def _unquoted(text: str, separator: str) -> list[str] | None:
    """The cells of a row without their quotes; none where the quotes are not a table's, None where one is open."""
    if '"' not in text:
        return text.split(separator)
    try:
        return next(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error as error:
        return None if str(error) == "unexpected end of data" else []


def _read_header(path: Path, separators: str, forms: tuple[_Names, ...]) -> _Header:
    """The first line that is not blank; of an empty file, none."""
    for number, line in read_lines(path):
        try:
            text = parse_line(line)
        except BadSample as error:
            raise UserError(f"{path}: the header line cannot be read: {error.what}") from error
        found = []
        for separator in separators:
            cells = [cell.strip() for cell in _unquoted(text, separator) or text.split(separator)]
            while cells and not cells[-1]:
                cells.pop()
            found.append(_Header(number, cells, separator))
            for form in forms:
                if form.required <= set(cells) and len(set(cells)) == len(cells):
                    return found[-1]
        by = "tabs" if separators[0] == "\t" else "commas"
        raise UserError(
            f"{path}: the first line must name the columns, each once",
            got=", ".join(found[0].cells)[:200],
            expected=f"{', '.join(sorted(forms[0].required))} among them, separated by {by}",
            next_step="add a header line, or map the names with `columns`",
        )
    return _Header(0, [], separators[0])


def _utterance(record: dict[str, Any], names: _Names, folder: str, language: str, text: str | None = None) -> Utterance:
    """The utterance of a row; `text` stands in for the column."""
    if isinstance(place := record.get(names.path), dict):
        if place.get("path") is None:
            raise BadSample("missing", "the audio is an object without a path; bytes in JSON are not read")
        source = text_field(place, "path", required=True)
    else:
        source = text_field(record, names.path, required=True)
    if not source or "\0" in source:
        raise BadSample("malformed", "the path is empty or holds a zero byte", got=repr(source)[:100])
    key = text_field(record, names.key)
    seconds, cut = seconds_field(record, names.seconds), None
    if names.start in record or names.end in record:
        cut = _part(record, names, seconds)
    if cut is not None:
        end = "end" if cut.seconds is None else f"{cut.end_sec * 1000:08.0f}"
        key = key or f"{_stem(source)}_{cut.start_sec * 1000:08.0f}_{end}"
        seconds = cut.seconds
    extra = {} if record.keys() <= names.taken else extra_columns(record, names.taken, "manifest")
    for ours, theirs in names.extra.items():
        extra[ours] = record.get(theirs)
    extra |= quality_fields(record, names.qualities)
    if text is None:
        text = checked_text(text_field(record, names.text, required=True), "the line")
    return Utterance(
        key=key or _stem(source),
        audio=Audio(source if source[0] == "/" else folder + source),
        text=text,
        source=source,
        speaker=text_field(record, names.speaker),
        language=text_field(record, names.language) or language,
        seconds=seconds,
        cut=cut,
        extra=extra,
    )


def _part(record: dict[str, Any], names: _Names, seconds: float | None) -> Cut | None:
    """The part of a file that a row names, None when it names none."""
    start, end = number_field(record, names.start), number_field(record, names.end)
    if end is None and start is not None:
        if seconds is None and start == 0:
            return None
        end = None if seconds is None else start + seconds
    if start is None and end is None:
        return None
    if start is None or end is None:
        what = "a part of a file lacks its start, or its end"
        raise BadSample("bad_times", what, got=f"{start} s to {end} s", expected="0 <= start < end, or seconds")
    return checked_cut(start, end)


def _cut(
    record: dict[str, Any], names: _Names, folder: str, language: str, max_sec: float
) -> Iterator[Utterance | Failure]:
    """The excerpts of a line that is a long recording."""
    segments = record[names.segments]
    if not isinstance(segments, list):
        raise BadSample("malformed", f"the column {names.segments} does not hold a list", got=repr(segments)[:100])
    whole = _utterance(record, names, folder, language, text="")
    if whole.cut is not None:
        raise BadSample("malformed", f"the line has both {names.segments} and the times of a part")
    if not segments:
        raise BadSample("empty_transcript", "the recording has no segments")
    for i, found in enumerate(excerpts(segments, max_sec, whole.seconds)):
        key = f"{whole.key}_{i:04d}"
        if isinstance(found, Excerpt):
            yield whole._replace(key=key, text=found.text, seconds=found.cut.seconds, cut=found.cut)
        else:
            yield Failure.of(key, found)


def _stem(path: str) -> str:
    """The path without its suffix; a name that begins or ends with its only dot has none."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return path[: len(path) - len(name) + dot] if 0 < dot < len(name) - 1 else path
