"""Hugging Face data sets in parquet files, with a column of audio. The only file that knows pyarrow.

The column of audio holds structs {bytes, path} (either may be absent or null: a path is used where there are no
bytes), bytes, or paths relative to the file. `columns` maps ours to theirs: `audio` and `text`, which must be there,
and `speaker`, `language`, `key`, `seconds`, `dnsmos`, `speech_share` where they are; any other name (`question`) gives
a column of the sample that name, and `json.text` is the field `text` of the structs in `json`. What is left of the
columns travels with the sample if JSON can hold its type. The default key is the file's name and the number of the row.

Arrow has several types for one thing (text: string, large_string, string_view, a dictionary of them, and in files of
old programs bytes; ClassLabel of Hugging Face: numbers of names in the file's metadata). `_cast` makes one of
them, so that nothing behind it need know.

Planning reads every column but the audio. `read_cell` reads that where it is decoded, with a cursor that stays where it
was, so that the rows of a worker, which only go up, are read once.

Invariant: the order is that of the files by folder and name, then of the rows; every row is an item. A file whose
footer is damaged does not tell how many it has lost: that is an error, not a ledger line.
Memory: `ROWS_READ` rows without their audio, and in a worker `CELLS_READ` cells of audio.

Example:
    parquet_parts(Path("RoleTriviaQA"), ReadOptions(columns={"text": "answer", "question": "question"}))
"""

import functools
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slmkit.corpora.base import (
    QUALITIES,
    Audio,
    SourcePart,
    Utterance,
    check_columns,
    checked_text,
    extra_columns,
    quality_fields,
    seconds_field,
    text_field,
    with_nested,
)
from slmkit.corpora.folders import files_under, unread_under
from slmkit.corpora.layouts import ReadOptions, layout
from slmkit.data.ledger import Failure, printable
from slmkit.errors import BadSample, UserError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

REQUIRED = ("audio", "text")
OURS = (*REQUIRED, "speaker", "language", "key", "seconds", *QUALITIES)
ROWS_READ = 1024  # at a time, without audio
MAX_GROUP_ROWS = 2**24  # more are not believed
CELLS_READ = 8  # cells of audio at a time
BUFFER_BYTES = 2**20  # of a column, so that a row group is not read as a whole


@layout(
    "parquet",
    files="""\
FILE.parquet, or DIR/train-00000-of-00002.parquet and others, with the columns audio and text
audio: structs {bytes, path} as Hugging Face has them, bytes, or paths relative to the file
other names by columns.audio=NAME, columns.text=NAME, columns.question=NAME, columns.text=json.text""",
    takes_columns=True,
)
def parquet_parts(source: Path, options: ReadOptions) -> Iterator[SourcePart]:
    """A part for each file.

    Raises UserError when pyarrow is not installed, there is no file, or one is damaged or lacks a column.
    """
    _pyarrow()
    check_columns(options.columns, OURS)
    mapped = dict(options.columns)
    if "path" in mapped and "audio" not in mapped:  # as manifests call it
        mapped["audio"] = mapped.pop("path")
    found = False
    for path, name in [(str(source), source.name)] if os.path.isfile(source) else files_under(source, (".parquet",)):
        found = True
        yield partial(_read_file, path, name, mapped, options.language)
    if not found:
        raise UserError(
            f"no .parquet files under {source}", next_step="check the path, and `kind`, the layout of the source"
        )
    if failures := unread_under(source):
        yield partial(iter, failures)


def _pyarrow() -> Any:
    """The library, loaded when a parquet file is read: it takes a while, and is an extra that few need."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        next_step = "pip install 'slmkit[parquet]'"
        raise UserError("reading parquet files needs pyarrow", got=error, next_step=next_step) from error
    return pyarrow


class _Columns(NamedTuple):
    """What is read of a file to plan, and as what."""

    names: dict[str, str]  # ours -> theirs, of the columns that are there
    nested: list[str]  # of theirs, those that are fields of structs
    kinds: "dict[str, pyarrow.DataType]"  # the type that each column is cast to
    labels: dict[str, list[str]]  # the names that the numbers of a column stand for
    read: list[str]  # columns, and fields of structs that JSON cannot hold as a whole


def _read_file(path: str, name: str, mapped: Mapping[str, str], language: str) -> Iterator[Utterance | Failure]:
    with _open(path) as file:
        columns = _columns(path, file.schema_arrow, mapped)
        names, by_path = columns.names, _pyarrow().types.is_string(_type_of(file.schema_arrow, columns.names["audio"]))
        stem, number = printable(name.removesuffix(".parquet")), 0
        for group in range(file.num_row_groups):
            for row, values in enumerate(_rows(path, file, group, columns)):
                key = f"{stem}_{number:08d}"
                number += 1
                try:
                    if isinstance(values, BadSample):
                        raise values
                    if columns.nested:
                        values = with_nested(values, columns.nested)
                    if by_path:
                        audio = Audio(_beside(path, text_field(values, names["audio"])))
                    else:
                        audio = Audio(path, row_group=group, row=row, column=names["audio"])
                    yield _utterance(values, names, key, audio, f"{printable(name)}:{number}", language)
                except BadSample as error:
                    yield Failure.of(key, error)


def _open(path: str) -> "pyarrow.parquet.ParquetFile":
    """The file. Raises UserError when it is damaged."""
    pyarrow = _pyarrow()
    try:
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a parquet file, or is damaged",
            got=printable(str(error))[:200],
            next_step="fetch it again, or remove it: the number of its rows is not known",
        ) from error


def _columns(path: str, schema: "pyarrow.Schema", mapped: Mapping[str, str]) -> _Columns:
    """Raises UserError when a column is missing, or of a type that is of no use for what it is mapped to."""
    pyarrow, types = _pyarrow(), _pyarrow().types
    wanted = {name: mapped.get(name, name) for name in REQUIRED} | dict(mapped)
    if "audio" not in {*mapped, *schema.names} and "file_name" in schema.names:  # metadata.parquet of an audio folder
        wanted["audio"] = "file_name"
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise UserError(f"{path} has two columns with the same name", got=", ".join(map(printable, twice)))
    missing = [f"{theirs} (our {ours})" for ours, theirs in wanted.items() if _type_of(schema, theirs) is None]
    if missing:
        raise UserError(
            f"{path} lacks columns: {', '.join(sorted(missing))}",
            got=", ".join(map(printable, schema.names))[:500],
            next_step="map the names with `columns`, ours: theirs",
        )
    audio = wanted["audio"]
    kind = _type_of(schema, audio)
    if not (types.is_string(kind) or types.is_binary(kind) or _holds_audio(kind)):
        expected = "{bytes, path}, bytes or paths"
        raise UserError(f"{path}: the column {audio} holds no audio", got=kind, expected=expected)
    names = {name: name for name in OURS if name in schema.names} | wanted
    nested = [theirs for theirs in names.values() if theirs not in schema.names]
    found = _Columns(names, nested, {}, _labels(schema), [])
    for field in schema:
        kind, read = _logical(field.type), [field.name]
        if field.name == audio and not types.is_string(kind):
            continue
        if field.name in found.labels or (field.name in names.values() and types.is_binary(kind)):
            kind = pyarrow.string()
        elif not _is_plain(kind):
            fields = [name for name in nested if name.startswith(f"{field.name}.")]
            read = [name for name in fields if _is_plain(_type_of(schema, name))]
            if not read:
                continue
            kind = _only(kind, [name.split(".")[1:] for name in read])
        found.kinds[field.name] = kind
        found.read.extend(read)
    for ours, theirs in wanted.items():
        kind = found.kinds.get(theirs) or _type_of(schema, theirs)
        if ours == "text" and not types.is_string(kind):
            raise UserError(f"{path}: the column {theirs} holds no text", got=kind)
        if ours != "audio" and not _is_plain(kind):
            what = f"{path}: the column {theirs} (our {ours}) holds what JSON cannot hold"
            raise UserError(what, got=kind, expected="text, numbers, or lists or structs of them")
    return found


def _type_of(schema: "pyarrow.Schema", name: str) -> "pyarrow.DataType | None":
    """The type of a column, or of a field of a struct (`json.text`); None where there is none."""
    if name in schema.names:
        return _logical(schema.field(name).type)
    top, *steps = name.split(".")
    kind = _logical(schema.field(top).type) if steps and top in schema.names else None
    for step in steps:
        if kind is None or not _pyarrow().types.is_struct(kind) or kind.get_field_index(step) < 0:
            return None
        kind = kind.field(step).type
    return kind


def _logical(kind: "pyarrow.DataType") -> "pyarrow.DataType":
    """The one type for all of Arrow's that mean the same."""
    pyarrow, types = _pyarrow(), _pyarrow().types
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _logical(kind.storage_type)
    if types.is_dictionary(kind):
        return _logical(kind.value_type)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pyarrow.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind):
        return pyarrow.binary()
    if types.is_decimal(kind):
        return pyarrow.float64()
    is_list = (
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    )
    if any(is_one(kind) for is_one in is_list):
        return pyarrow.list_(_logical(kind.value_type))
    if types.is_struct(kind):
        return pyarrow.struct([(field.name, _logical(field.type)) for field in kind.fields])
    return kind


def _holds_audio(kind: "pyarrow.DataType") -> bool:
    """Whether this is a struct with bytes or a path, or both. Where all are null, Arrow gives either the type null."""
    types = _pyarrow().types
    wanted = {"bytes": types.is_binary, "path": types.is_string}
    fields = kind.fields if types.is_struct(kind) else []
    found = [wanted[f.name](f.type) for f in fields if f.name in wanted and not types.is_null(f.type)]
    return bool(found) and all(found)


def _is_plain(kind: "pyarrow.DataType") -> bool:
    """Whether JSON holds values of this logical type."""
    types = _pyarrow().types
    if types.is_struct(kind):
        return all(_is_plain(field.type) for field in kind.fields)
    if types.is_list(kind):
        return _is_plain(kind.value_type)
    simple = (types.is_string, types.is_boolean, types.is_integer, types.is_floating, types.is_null)
    return any(is_one(kind) for is_one in simple)


def _only(kind: "pyarrow.DataType", paths: list[list[str]]) -> "pyarrow.DataType":
    """A struct with the fields at these paths alone."""
    fields = []
    for field in kind.fields:
        below = [path[1:] for path in paths if path[0] == field.name]
        if below:
            fields.append((field.name, field.type if [] in below else _only(field.type, below)))
    return _pyarrow().struct(fields)


def _labels(schema: "pyarrow.Schema") -> dict[str, list[str]]:
    """For each column of numbers that Hugging Face's metadata calls a ClassLabel, the names they stand for."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return {}
    types = _pyarrow().types
    kinds = {field.name: _logical(field.type) for field in schema}
    numbers = {name for name, kind in kinds.items() if types.is_integer(kind) or types.is_floating(kind)}
    return {name: list(map(str, names)) for name, names in found.items() if name in numbers and isinstance(names, list)}


def _rows(
    path: str, file: "pyarrow.parquet.ParquetFile", group: int, columns: _Columns
) -> Iterator[dict[str, Any] | BadSample]:
    """The rows of a row group, of which the footer says how many there are, whatever can be read of them."""
    left = file.metadata.row_group(group).num_rows
    if left > MAX_GROUP_ROWS:
        raise UserError(
            f"{path}: row group {group} says that it has {left} rows",
            expected=f"at most {MAX_GROUP_ROWS}",
            next_step="fetch the file again, or write it with smaller row groups",
        )
    what = "the rows end early"
    try:
        for batch in file.iter_batches(ROWS_READ, row_groups=[group], columns=columns.read, use_threads=False):
            for row in _plain_rows(batch, columns):
                left -= 1
                yield row
    except (_pyarrow().ArrowException, OSError) as error:
        what = printable(str(error))[:200]
    for _ in range(left):
        yield BadSample("damaged", f"row group {group} cannot be read: {what}")


def _plain_rows(batch: "pyarrow.RecordBatch", columns: _Columns) -> Iterator[dict[str, Any] | BadSample]:
    pyarrow = _pyarrow()
    try:
        cast = [_cast(batch.column(i), name, columns) for i, name in enumerate(batch.schema.names)]
        whole = pyarrow.RecordBatch.from_arrays(cast, names=batch.schema.names)
        rows = whole.to_pylist() if batch.num_columns else [{}] * batch.num_rows
    except (UnicodeDecodeError, pyarrow.ArrowInvalid) as error:
        if batch.num_rows == 1:
            yield BadSample("malformed", f"a text is not UTF-8, or a number is none: {printable(str(error))[:200]}")
        else:
            for row in range(batch.num_rows):
                yield from _plain_rows(batch.slice(row, 1), columns)
        return
    yield from ({name: _finite(value) for name, value in row.items()} for row in rows)


def _cast(column: "pyarrow.Array", name: str, columns: _Columns) -> "pyarrow.Array":
    """The column as its logical type; numbers that stand for names as these, or null (-1 is none)."""
    pyarrow = _pyarrow()
    labels = columns.labels.get(name)
    if labels is None:
        return column if column.type == columns.kinds[name] else column.cast(columns.kinds[name])
    numbers = (None if number is None or number != number else int(number) for number in column.to_pylist())
    return pyarrow.array(
        [None if number is None or not 0 <= number < len(labels) else labels[number] for number in numbers],
        pyarrow.string(),
    )


def _finite(value: Any) -> Any:
    """The value with null for numbers that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return value


def _utterance(
    values: dict[str, Any], names: Mapping[str, str], key: str, audio: Audio, source: str, language: str
) -> Utterance:
    def text(ours: str) -> str:
        return text_field(values, names[ours]) if ours in names else ""

    extra = extra_columns(values, set(names.values()), "parquet")
    extra |= {ours: values.get(theirs) for ours, theirs in names.items() if ours not in OURS}
    extra |= quality_fields(values, names)
    return Utterance(
        key=text("key") or key,
        audio=audio,
        text=checked_text(text("text"), "the row"),
        source=source,
        speaker=text("speaker"),
        language=text("language") or language,
        seconds=seconds_field(values, names["seconds"]) if "seconds" in names else None,
        extra=extra,
    )


def _beside(path: str, name: str) -> str:
    """The path of audio that a row of the file at `path` names."""
    if not name or "\0" in name:
        raise BadSample("missing", "the row has no audio")
    return os.path.join(os.path.dirname(path), name)


def read_cell(audio: Audio) -> io.BytesIO | Path:
    """The audio in a cell, or the file that it names. Raises BadSample "missing" or "damaged"."""
    where = f"{audio.path}, row group {audio.row_group}, row {audio.row}"
    try:
        cell = _cursor(audio.path, audio.row_group, audio.column).read(audio.row)
    except (_pyarrow().ArrowException, OSError, UserError, ValueError, IndexError) as error:
        _cursor.cache_clear()
        raise BadSample("damaged", f"{printable(where)} cannot be read: {printable(str(error))[:200]}") from error
    content, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if content:
        return io.BytesIO(content)
    path = Path(_beside(audio.path, name or ""))
    if not os.path.isfile(path):
        raise BadSample("missing", f"{printable(where)} has no audio, and {printable(str(path))} is not a file")
    return path


class _Cursor:
    """The cells of a column in a row group, read from the first to the last, a few at a time."""

    def __init__(self, path: str, row_group: int, column: str) -> None:
        self.file, self.row_group, self.column = _open(path), row_group, column
        self.steps = [] if column in self.file.schema_arrow.names else column.split(".")[1:]
        self._rewind()

    def _rewind(self) -> None:
        self.first, self.cells = 0, _pyarrow().array([])
        self.batches = self.file.iter_batches(
            CELLS_READ, row_groups=[self.row_group], columns=[self.column], use_threads=False
        )

    def read(self, row: int) -> Any:
        """The value of a cell, null and all. Going back begins anew. Raises IndexError when there is no such row."""
        if row < self.first:
            self._rewind()
        while row >= self.first + len(self.cells):
            self.first += len(self.cells)
            batch = next(self.batches, None)
            if batch is None:
                raise IndexError("there is no such row")
            self.cells = batch.column(0)
        cell = self.cells[row - self.first].as_py()
        for step in self.steps:
            cell = cell.get(step) if isinstance(cell, dict) else None
        return cell


_cursor = functools.lru_cache(maxsize=1)(_Cursor)
