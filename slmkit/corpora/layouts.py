"""The layouts of corpora that can be read, by name: one entry per reader, made where the reader is written.

A reader is a function that gives a corpus in parts (`base.SourcePart`); `@layout` enters it under the name that
`kind` has in a recipe. The readers of this package are imported by `slmkit.corpora`; one from elsewhere need only be
imported before the job starts, and by a module that worker processes can import too if it gives several parts.

Example:
    @layout("pairs", files="DIR/a.wav beside DIR/a.txt")
    def read_pairs(source: Path, options: ReadOptions) -> Iterator[SourcePart]: ...

    for part in read_parts("librispeech", "LibriSpeech/dev-clean", ReadOptions(language="en")):
        for item in part(): ...
"""

import difflib
import itertools
import math
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from slmkit.corpora.base import SourcePart, Utterance
from slmkit.corpora.folders import is_audio, walk
from slmkit.data.ledger import printable
from slmkit.errors import UserError

TRIED_FILES, TRIED_ITEMS = 20, 100  # of a source, to find out which layout it has


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What a reader may be told. `max_sec` bounds the utterances cut from recordings with time stamps."""

    columns: Mapping[str, str] = field(default_factory=dict)  # our column -> theirs
    language: str = ""  # where the source gives none
    max_sec: float = math.inf


PartsOf = Callable[[Path, ReadOptions], Iterable[SourcePart]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One layout: `files` shows what a source looks like, a line for each form of it; `parts` reads it."""

    name: str
    files: str
    takes_columns: bool
    parts: PartsOf


LAYOUTS: dict[str, Layout] = {}


def layout(name: str, *, files: str, takes_columns: bool = False) -> Callable[[PartsOf], PartsOf]:
    """Decorator that enters a reader under `name`."""

    def enter(parts: PartsOf) -> PartsOf:
        LAYOUTS[name] = Layout(name=name, files=files, takes_columns=takes_columns, parts=parts)
        return parts

    return enter


def describe_layouts() -> list[str]:
    """The name of each layout, followed by what its files look like, indented."""
    shown = (f"{entry.name}\n{textwrap.indent(entry.files, '  ')}" for entry in LAYOUTS.values())
    return "\n".join(shown).split("\n")


def check_source(kind: str, source: str | Path, options: ReadOptions) -> Layout:
    """The layout of this name. Opens nothing.

    Raises UserError when there is no such layout, nothing at `source`, or the layout takes no columns.
    """
    entry = LAYOUTS.get(kind)
    if entry is None:
        near = difflib.get_close_matches(kind, LAYOUTS, n=1)
        raise UserError(
            "unknown kind of source",
            got=kind,
            expected=", ".join(LAYOUTS),
            next_step=f"did you mean {near[0]}?" if near else "`slmkit tokenize run --help` shows them",
        )
    path = str(source)
    if printable(path) != path or "\0" in path:
        raise UserError("the path of the source is not valid UTF-8", got=printable(repr(path)))
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist", next_step="check the path of the source")
    if options.columns and not entry.takes_columns:
        names = " and ".join(other.name for other in LAYOUTS.values() if other.takes_columns)
        raise UserError(
            f"columns have no meaning for the kind {kind}",
            got=", ".join(options.columns),
            expected=f"columns only for {names}",
        )
    return entry


def other_layout(kind: str, source: str | Path, options: ReadOptions) -> str:
    """The settings with which most of the source's first items can be used, in another layout than `kind`, such as
    "kind=emilia"; "" where no layout reads them. A file in the source folder may be what should have been given."""
    source = Path(source)
    top = next(walk(source)).names if os.path.isdir(source) else []
    files = [source / name for name in top if not is_audio(name)][:TRIED_FILES]
    for place in (source, *files):
        for entry in LAYOUTS.values():
            if entry.name == kind:
                continue
            try:
                parts = entry.parts(place, options if entry.takes_columns else replace(options, columns={}))
                items = list(itertools.islice((item for part in parts for item in part()), TRIED_ITEMS))
            except UserError:
                continue
            if sum(isinstance(item, Utterance) for item in items) * 2 >= max(1, len(items)):
                return (
                    f"kind={entry.name}" if place == source else f"kind={entry.name} and source={printable(str(place))}"
                )
    return ""


def read_parts(kind: str, source: str | Path, options: ReadOptions) -> Iterator[SourcePart]:
    """The corpus in parts that may be read side by side, in the order of the source.

    Raises UserError as `check_source` does, and while it is read, when nothing there has that layout.
    """
    return iter(check_source(kind, source, options).parts(Path(source), options))
