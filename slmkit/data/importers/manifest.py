"""Manifests: a line per utterance, as JSON objects (.jsonl) or tab-separated with a header line (.tsv).

Columns: `path` (relative to the manifest) and `text`; optional `speaker`, `language`, `key` (default: the path without
its suffix). Other columns travel with the sample. Where they have other names, `columns` maps ours to theirs.

Invariant: the order is that of the lines; a line that cannot be used is a `Failure` that names its number.

Example:
    list(read_manifest("train.jsonl", columns={"path": "wav", "text": "transcript"}))
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from slmkit.data.importers.base import (
    Audio,
    Utterance,
    checked_text,
    parse_line,
    parse_record,
    read_lines,
    text_field,
)
from slmkit.data.ledger import Failure
from slmkit.errors import BadSample, UserError

COLUMNS = ("path", "text", "speaker", "language", "key")
RESERVED = ("text", "speaker", "language", "seconds", "source", "key")  # names in the json of a sample
KINDS = {".jsonl": "jsonl", ".json": "jsonl", ".tsv": "tsv"}


def read_manifest(
    path: str | Path, columns: Mapping[str, str] | None = None, language: str = ""
) -> Iterator[Utterance | Failure]:
    """Every line of the manifest. `language` stands where the column is missing or empty.

    Raises UserError when the file cannot be read, is of an unknown kind, or its header lacks a column.
    """
    path = Path(path)
    names = {name: name for name in COLUMNS} | dict(columns or {})
    if unknown := sorted(names.keys() - set(COLUMNS)):
        raise UserError("columns maps unknown names", got=", ".join(unknown), expected=", ".join(COLUMNS))
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path} is not a manifest", got=path.suffix, expected=" or ".join(KINDS))
    for number, record in _json_records(path) if kind == "jsonl" else _tsv_records(path, names):
        key = f"{path.name}:{number}"
        try:
            if isinstance(record, BadSample):
                raise record
            yield _utterance(record, names, path.parent, language)
        except BadSample as error:
            yield Failure.of(key, error)


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadSample]]:
    for number, line in read_lines(path):
        try:
            yield number, parse_record(line)
        except BadSample as error:
            yield number, error


def _tsv_records(path: Path, names: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any] | BadSample]]:
    header: list[str] = []
    for number, line in read_lines(path):
        try:
            cells = parse_line(line).split("\t")
            if header and len(cells) != len(header):
                raise BadSample("malformed", "wrong number of columns", got=len(cells), expected=len(header))
        except BadSample as error:
            if not header:
                raise UserError(f"{path}: the header line cannot be read: {error.what}") from error
            yield number, error
            continue
        if header:
            yield number, dict(zip(header, cells, strict=True))
        else:
            header = _checked_header(path, cells, names)


def _checked_header(path: Path, header: list[str], names: Mapping[str, str]) -> list[str]:
    required = {names["path"], names["text"]}
    if not required <= set(header) or len(set(header)) != len(header):
        raise UserError(
            f"{path}: the first line must name the columns, each once",
            got=", ".join(header)[:200],
            expected=f"{', '.join(sorted(required))} among them, separated by tabs",
            next_step="add a header line, or map the names with `columns`",
        )
    return header


def _utterance(record: dict[str, Any], names: Mapping[str, str], root: Path, language: str) -> Utterance:
    source = text_field(record, names["path"], required=True)
    if not source or "\0" in source:
        raise BadSample("malformed", "the path is empty or holds a zero byte", got=repr(source)[:100])
    ours = set(names.values())
    extra = {name: value for name, value in record.items() if name not in ours}
    return Utterance(
        key=text_field(record, names["key"]) or source.removesuffix(PurePosixPath(source).suffix),
        audio=Audio(str(root / source)),
        text=checked_text(text_field(record, names["text"], required=True), "the line"),
        source=source,
        speaker=text_field(record, names["speaker"]),
        language=text_field(record, names["language"]) or language,
        extra={f"manifest_{name}" if name in RESERVED else name: value for name, value in extra.items()},
    )
