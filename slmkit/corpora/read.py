"""The reader of a layout, by its name.

Example:
    for part in read_parts("librispeech", "LibriSpeech/dev-clean", columns={}, language="en", max_sec=30.0):
        for item in part(): ...
"""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from slmkit.corpora.base import Part
from slmkit.corpora.content import pyarrow_missing
from slmkit.corpora.emilia import emilia_parts
from slmkit.corpora.kaldi import read_kaldi
from slmkit.corpora.librispeech import read_librispeech
from slmkit.corpora.libritts import read_folder
from slmkit.corpora.manifest import manifest_parts
from slmkit.data.ledger import printable
from slmkit.errors import UserError

KINDS = ("libritts", "librispeech", "emilia", "parquet", "kaldi", "manifest")
WITH_COLUMNS = ("parquet", "manifest")


def read_parts(
    kind: str, source: str | Path, *, columns: Mapping[str, str], language: str, max_sec: float
) -> Iterator[Part]:
    """The corpus in parts that may be read side by side. `max_sec` bounds the pieces of recordings with time stamps.

    Raises UserError when there is nothing at `source`, or, while it is read, when nothing there is of that kind.
    """
    path = Path(source)
    if printable(str(path)) != str(path) or "\0" in str(path):
        raise UserError("the path of the source is not valid UTF-8", got=printable(repr(str(path))))
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist", next_step="check the path of the source")
    if columns and kind not in WITH_COLUMNS:
        raise UserError(
            f"columns have no meaning for the kind {kind}",
            got=", ".join(columns),
            expected=f"columns only for {' and '.join(WITH_COLUMNS)}",
        )
    if kind == "libritts":
        return iter([partial(read_folder, path, language)])
    if kind == "librispeech":
        return iter([partial(read_librispeech, path, language)])
    if kind == "emilia":
        return emilia_parts(path, language)
    if kind == "kaldi":
        return iter([partial(read_kaldi, path, language)])
    if kind == "parquet":
        return _parquet_parts(path, columns, language)
    if kind == "manifest":
        return manifest_parts(path, columns, language, max_sec)
    raise UserError("unknown kind of source", got=kind, expected=", ".join(KINDS))


def _parquet_parts(path: Path, columns: Mapping[str, str], language: str) -> Iterator[Part]:
    try:
        from slmkit.corpora.parquet import parquet_parts
    except ImportError as error:
        raise pyarrow_missing(error) from error
    return parquet_parts(path, columns, language)
