"""Hugging Face data sets in parquet files, with a column of audio. The only file that knows pyarrow.

The column of audio holds structs {bytes, path}, bytes, or paths relative to the file. `columns` maps ours to theirs:
`audio` and `text`, which must be there, and `speaker`, `language`, `key`, `seconds`, `dnsmos` where they are; any other
name (`question`) gives a column of the sample that name. What is left of the columns travels with the sample if JSON
can hold its type. The default key is the file's name and the number of the row.

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
import math
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmkit.corpora.base import (
    RESERVED,
    Audio,
    SourcePart,
    Utterance,
    checked_text,
    extra_columns,
    number_field,
    seconds_field,
    text_field,
)
from slmkit.corpora.folders import files_under, unread_under
from slmkit.corpora.layouts import ReadOptions, layout
from slmkit.data.ledger import Failure, printable
from slmkit.errors import BadSample, UserError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

REQUIRED = ("audio", "text")
OURS = (*REQUIRED, "speaker", "language", "key", "seconds", "dnsmos")
ROWS_READ = 1024  # at a time, without audio
MAX_GROUP_ROWS = 2**24  # more are not believed
CELLS_READ = 8  # cells of audio at a time
BUFFER_BYTES = 2**20  # of a column, so that a row group is not read as a whole


@layout(
    "parquet",
    files="FILE.parquet, or DIR/train-00000-of-00002.parquet and others, with columns of audio and text",
    takes_columns=True,
)
def parquet_parts(source: Path, options: ReadOptions) -> Iterator[SourcePart]:
    """A part for each file.

    Raises UserError when pyarrow is not installed, there is no file, or one is damaged or lacks a column.
    """
    _pyarrow()
    if refused := sorted(options.columns.keys() & (RESERVED - set(OURS))):
        raise UserError("columns maps names that have a meaning in a sample", got=", ".join(refused))
    found = False
    for path, name in [(str(source), source.name)] if source.is_file() else files_under(source, (".parquet",)):
        found = True
        yield partial(_read_file, path, name, dict(options.columns), options.language)
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


def _read_file(path: str, name: str, mapped: Mapping[str, str], language: str) -> Iterator[Utterance | Failure]:
    with _open(path) as file:
        schema = file.schema_arrow
        names = _checked_names(path, schema, mapped)
        kept = [field.name for field in schema if field.name != names["audio"] and _is_plain(field.type)]
        by_path = _is_text(schema.field(names["audio"]).type)
        if by_path:
            kept.append(names["audio"])
        stem, number = printable(name.removesuffix(".parquet")), 0
        for group in range(file.num_row_groups):
            for row, values in enumerate(_rows(path, file, group, kept)):
                key = f"{stem}_{number:08d}"
                number += 1
                try:
                    if isinstance(values, BadSample):
                        raise values
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


def _checked_names(path: str, schema: "pyarrow.Schema", mapped: Mapping[str, str]) -> dict[str, str]:
    """Ours -> theirs, of the columns that are there."""
    wanted = {name: mapped.get(name, name) for name in REQUIRED} | dict(mapped)
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise UserError(f"{path} has two columns with the same name", got=", ".join(map(printable, twice)))
    if missing := sorted(f"{theirs} (our {ours})" for ours, theirs in wanted.items() if theirs not in schema.names):
        raise UserError(
            f"{path} lacks columns: {', '.join(missing)}",
            got=", ".join(map(printable, schema.names))[:500],
            next_step="map the names with `columns`, ours: theirs",
        )
    kind = schema.field(wanted["audio"]).type
    if not (_is_text(kind) or _is_bytes(kind) or _is_struct(kind)):
        raise UserError(
            f"{path}: the column {wanted['audio']} holds no audio", got=kind, expected="{bytes, path}, bytes or paths"
        )
    if not _is_text(schema.field(wanted["text"]).type):
        raise UserError(f"{path}: the column {wanted['text']} holds no text", got=schema.field(wanted["text"]).type)
    return {name: name for name in OURS if name in schema.names} | wanted


def _is_text(kind: "pyarrow.DataType") -> bool:
    types = _pyarrow().types
    return types.is_string(kind) or types.is_large_string(kind)


def _is_bytes(kind: "pyarrow.DataType") -> bool:
    types = _pyarrow().types
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_struct(kind: "pyarrow.DataType") -> bool:
    fields = kind.fields if _pyarrow().types.is_struct(kind) else []
    return any(field.name == "bytes" and _is_bytes(field.type) for field in fields)


def _is_plain(kind: "pyarrow.DataType") -> bool:
    """Whether JSON holds values of this type."""
    types = _pyarrow().types
    if types.is_struct(kind):
        return all(_is_plain(field.type) for field in kind.fields)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    simple = (types.is_boolean, types.is_integer, types.is_floating, types.is_null)
    return _is_text(kind) or any(is_one(kind) for is_one in simple)


def _rows(
    path: str, file: "pyarrow.parquet.ParquetFile", group: int, names: list[str]
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
        for batch in file.iter_batches(ROWS_READ, row_groups=[group], columns=names, use_threads=False):
            for row in _plain_rows(batch):
                left -= 1
                yield row
    except (_pyarrow().ArrowException, OSError) as error:
        what = printable(str(error))[:200]
    for _ in range(left):
        yield BadSample("damaged", f"row group {group} cannot be read: {what}")


def _plain_rows(batch: "pyarrow.RecordBatch") -> Iterator[dict[str, Any] | BadSample]:
    try:
        rows = batch.to_pylist() if batch.num_columns else [{}] * batch.num_rows
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield BadSample("malformed", f"a text is not UTF-8: {error}")
        else:
            for row in range(batch.num_rows):
                yield from _plain_rows(batch.slice(row, 1))
        return
    yield from ({name: _finite(value) for name, value in row.items()} for row in rows)


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
    if "dnsmos" in names and (dnsmos := number_field(values, names["dnsmos"])) is not None:
        extra["dnsmos"] = dnsmos
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
    if content is not None:
        return io.BytesIO(content)
    path = Path(_beside(audio.path, name or ""))
    if not path.is_file():
        raise BadSample("missing", f"{printable(where)} has no audio, and {printable(str(path))} is not a file")
    return path


class _Cursor:
    """The cells of a column in a row group, read from the first to the last, a few at a time."""

    def __init__(self, path: str, row_group: int, column: str) -> None:
        self.file, self.row_group, self.column = _open(path), row_group, column
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
        return self.cells[row - self.first].as_py()


_cursor = functools.lru_cache(maxsize=1)(_Cursor)
