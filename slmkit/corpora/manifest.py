"""Manifests: a line per utterance, as JSON objects (.jsonl) or tab-separated with a header line (.tsv).

Columns: `path` (relative to the manifest) and `text`; optional
    speaker, language     as text
    key                   default: the path without its suffix, and the times where the line has some
    seconds               length of the audio, for filters and balance
    dnsmos                quality from 1 to 5, for filters
    start, end            in seconds: the utterance is that part of the file
    segments              a list of {start, end, text}, in place of `text`: time stamps of a long recording, which is
                          cut into excerpts of up to `max_sec` (see long_audio) called {key}_0000, {key}_0001, ...
Other columns travel with the sample. Where they have other names, `columns` maps ours to theirs.

Invariant: the order is that of the lines; a line that cannot be used is a `Failure` that names its number. A line with
segments is an item for every excerpt and every segment that cannot be used, or one if it has none.

Example:
    manifest_parts(Path("train.jsonl"), ReadOptions(columns={"path": "wav", "text": "transcript"}))
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from slmkit.corpora.base import (
    Audio,
    Cut,
    SourcePart,
    Utterance,
    checked_text,
    extra_columns,
    number_field,
    seconds_field,
    text_field,
)
from slmkit.corpora.layouts import ReadOptions, layout
from slmkit.corpora.long_audio import Excerpt, excerpts
from slmkit.data.ledger import Failure
from slmkit.data.lines import Lines, line_blocks, parse_line, parse_record, read_lines
from slmkit.errors import BadSample, UserError

COLUMNS = ("path", "text", "speaker", "language", "key", "seconds", "dnsmos", "start", "end", "segments")
SUFFIXES = {".jsonl": "jsonl", ".json": "jsonl", ".tsv": "tsv"}


class _Names(NamedTuple):
    """Their name of each column of ours."""

    path: str
    text: str
    speaker: str
    language: str
    key: str
    seconds: str
    dnsmos: str
    start: str
    end: str
    segments: str


@layout("manifest", files="FILE.jsonl or FILE.tsv, with at least the columns path and text", takes_columns=True)
def manifest_parts(path: Path, options: ReadOptions) -> Iterator[SourcePart]:
    """A part for some thousand lines each.

    Raises UserError when the file cannot be read, is of an unknown kind, or its header lacks a column.
    """
    given = {name: name for name in COLUMNS} | dict(options.columns)
    if unknown := sorted(given.keys() - set(COLUMNS)):
        raise UserError("columns maps unknown names", got=", ".join(unknown), expected=", ".join(COLUMNS))
    form = SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise UserError(f"{path} is not a manifest", got=path.suffix, expected=" or ".join(SUFFIXES))
    names = _Names(**given)
    header = _read_header(path, names) if form == "tsv" else None
    for lines in line_blocks(path):
        yield partial(_read_part, lines, header, names, options.language, options.max_sec)


def _read_part(
    lines: Lines, header: tuple[int, list[str]] | None, names: _Names, language: str, max_sec: float
) -> Iterator[Utterance | Failure]:
    path = Path(lines.path)
    folder, ours = os.path.join(path.parent, ""), frozenset(names)
    for number, record in _json_records(lines) if header is None else _tsv_records(lines, *header):
        try:
            if isinstance(record, BadSample):
                raise record
            if record.get(names.segments) is None:
                yield _utterance(record, names, ours, folder, language)
            else:
                yield from _cut(record, names, ours, folder, language, max_sec)
        except BadSample as error:
            yield Failure.of(f"{path.name}:{number}", error)


def _json_records(lines: Lines) -> Iterator[tuple[int, dict[str, Any] | BadSample]]:
    for number, line in read_lines(lines):
        try:
            yield number, parse_record(line)
        except BadSample as error:
            yield number, error


def _tsv_records(
    lines: Lines, header_number: int, header: list[str]
) -> Iterator[tuple[int, dict[str, Any] | BadSample]]:
    for number, line in read_lines(lines):
        if number == header_number:
            continue
        try:
            cells = parse_line(line).split("\t")
            if len(cells) != len(header):
                raise BadSample("malformed", "wrong number of columns", got=len(cells), expected=len(header))
        except BadSample as error:
            yield number, error
            continue
        yield number, dict(zip(header, cells, strict=True))


def _read_header(path: Path, names: _Names) -> tuple[int, list[str]]:
    """(line number, cells) of the first line that is not blank; of an empty file, none."""
    for number, line in read_lines(path):
        try:
            return number, _checked_header(path, parse_line(line).split("\t"), names)
        except BadSample as error:
            raise UserError(f"{path}: the header line cannot be read: {error.what}") from error
    return 0, []


def _checked_header(path: Path, header: list[str], names: _Names) -> list[str]:
    required = {names.path, names.text}
    if not required <= set(header) or len(set(header)) != len(header):
        raise UserError(
            f"{path}: the first line must name the columns, each once",
            got=", ".join(header)[:200],
            expected=f"{', '.join(sorted(required))} among them, separated by tabs",
            next_step="add a header line, or map the names with `columns`",
        )
    return header


def _utterance(
    record: dict[str, Any], names: _Names, ours: frozenset[str], folder: str, language: str, text: str | None = None
) -> Utterance:
    """The utterance of a line; `text` stands in for the column."""
    source = text_field(record, names.path, required=True)
    if not source or "\0" in source:
        raise BadSample("malformed", "the path is empty or holds a zero byte", got=repr(source)[:100])
    key = text_field(record, names.key)
    seconds, cut = seconds_field(record, names.seconds), None
    if names.start in record or names.end in record:
        cut = _part(record, names)
    if cut is not None:
        key = key or f"{_stem(source)}_{cut.start_sec * 1000:08.0f}_{cut.end_sec * 1000:08.0f}"
        seconds = cut.end_sec - cut.start_sec
    extra = {} if record.keys() <= ours else extra_columns(record, ours, "manifest")
    if (dnsmos := number_field(record, names.dnsmos)) is not None:
        extra["dnsmos"] = dnsmos
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


def _part(record: dict[str, Any], names: _Names) -> Cut | None:
    """The part of a file that a line names, None when it names none. What lies around it is not known."""
    start, end = number_field(record, names.start), number_field(record, names.end)
    if start is None and end is None:
        return None
    if start is None or end is None or not 0 <= start < end:
        raise BadSample("bad_times", "impossible times", got=f"{start} s to {end} s", expected="0 <= start < end")
    return Cut(start, end, start, end)


def _cut(
    record: dict[str, Any], names: _Names, ours: frozenset[str], folder: str, language: str, max_sec: float
) -> Iterator[Utterance | Failure]:
    """The excerpts of a line that is a long recording."""
    segments = record[names.segments]
    if not isinstance(segments, list):
        raise BadSample("malformed", f"the column {names.segments} does not hold a list", got=repr(segments)[:100])
    whole = _utterance(record, names, ours, folder, language, text="")
    if whole.cut is not None:
        raise BadSample("malformed", f"the line has both {names.segments} and the times of a part")
    if not segments:
        raise BadSample("empty_transcript", "the recording has no segments")
    for i, found in enumerate(excerpts(segments, max_sec, whole.seconds)):
        key = f"{whole.key}_{i:04d}"
        if isinstance(found, Excerpt):
            seconds = found.cut.end_sec - found.cut.start_sec
            yield whole._replace(key=key, text=found.text, seconds=seconds, cut=found.cut)
        else:
            yield Failure.of(key, found)


def _stem(path: str) -> str:
    """The path without its suffix; a name that begins or ends with its only dot has none."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return path[: len(path) - len(name) + dot] if 0 < dot < len(name) - 1 else path
