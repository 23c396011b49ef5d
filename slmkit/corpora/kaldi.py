"""Kaldi data directories: `wav.scp` and `text`; optional `segments`, `utt2spk`, `utt2dur` and `utt2lang`.

Each file has a line `KEY VALUE` per utterance, sorted by key as Kaldi demands (by bytes), so that all are read side by
side without being held. With `segments`, whose lines are `KEY RECORDING START END`, each utterance is a part of a
recording, and `wav.scp` says where the recordings lie: it is held then, as recordings are few beside utterances. END
-1 stands for the end of the recording. A fifth word of the line is the channel, from 0.

A value of `wav.scp` is a path, or `FILE.ark:123`, audio that begins at a byte of a file. Paths are relative to the
directory. Commands (`sph2pipe ... |`) are never run.

Invariant: an item is a key of `text`, `wav.scp` or `segments` (where there is one, the recordings alone are none), or a
line of these or of the optional files without a usable key.

Example:
    next(read_kaldi("data/train")).key      # "BAC009S0002W0122"
"""

import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from slmkit.corpora.base import Audio, Cut, SourcePart, Utterance, checked_cut, checked_text, seconds_field
from slmkit.corpora.layouts import ReadOptions, layout
from slmkit.data.ledger import Failure, printable
from slmkit.data.lines import read_lines
from slmkit.errors import BadSample, UserError

OPTIONAL_TABLES = ("utt2spk", "utt2dur", "utt2lang")
MAX_CHANNEL_DIGITS = 4
OFFSET = re.compile(r"(.+):(\d{1,18})")


@layout(
    "kaldi",
    files="""\
DIR/wav.scp: u1 wav/u1.flac, or u1 part.ark:1234
DIR/text: u1 Hello.
DIR/segments, where utterances are parts of recordings: u1 rec1 2.0 3.5, or 2.0 -1: to the end, or 2.0 3.5 1: channel 1
DIR/utt2spk, utt2dur, utt2lang, where they are: u1 speaker7""",
)
def kaldi_parts(source: Path, options: ReadOptions) -> list[SourcePart]:
    """One part: the files are read side by side."""
    return [partial(read_kaldi, source, options.language)]


def read_kaldi(directory: str | Path, language: str = "") -> Iterator[Utterance | Failure]:
    """Every utterance. `language` stands where utt2lang gives none.

    Raises UserError when `wav.scp` or `text` is missing, a file cannot be read, or is not sorted.
    """
    directory = Path(directory)
    for name in ("wav.scp", "text"):
        if not os.path.isfile(directory / name):
            raise UserError(
                f"{directory} has no file {name}",
                expected="a Kaldi data directory: wav.scp, text, and optionally segments, utt2spk, utt2dur, utt2lang",
                next_step="check the path, and `kind`, the layout of the source",
            )
    places = "segments" if os.path.isfile(directory / "segments") else "wav.scp"
    recordings: dict[bytes, bytes] = {}
    if places == "segments":
        scp = _Table(directory / "wav.scp")
        while scp.key is not None:
            recordings[scp.key] = scp.value
            scp.advance()
        yield from scp.take_failures()
    tables = {name: _Table(directory / name) for name in (places, "text")}
    tables |= {name: _Table(directory / name) for name in OPTIONAL_TABLES if os.path.isfile(directory / name)}
    for key, row in _side_by_side(tables):
        if isinstance(row, Failure):
            yield row
        elif row.keys() & {places, "text"}:
            yield _item(key, row, directory, recordings if places == "segments" else None, language)


class _Table:
    """A file of lines `KEY VALUE`, at one of them. `key` is None behind the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key: bytes | None = None
        self.value = b""
        self._lines = read_lines(path)
        self._failures: list[Failure] = []
        self.advance()

    def advance(self) -> None:
        """Go to the next line with a key of its own. Raises UserError when it is not sorted behind this one."""
        before = self.key
        for number, line in self._lines:
            where = f"{self.path.name}:{number}"
            words = line.split(maxsplit=1) if line is not None else []
            if not words:
                self._failures.append(Failure(where, "malformed", "the line is too long"))
            elif words[0] == before:
                key = printable(os.fsdecode(words[0]))
                self._failures.append(Failure(key, "duplicate_key", f"{where}: the line before has this key"))
            elif before is not None and words[0] < before:
                raise UserError(
                    f"{self.path} is not sorted: line {number} belongs before the line above it",
                    got=printable(os.fsdecode(words[0])),
                    expected="keys in the order of their bytes",
                    next_step=f"sort every file of the directory: LC_ALL=C sort -o {self.path.name} {self.path.name}",
                )
            else:
                self.key, self.value = words[0], words[1].strip() if len(words) > 1 else b""
                return
        self.key, self.value = None, b""

    def take_failures(self) -> list[Failure]:
        """The lines passed over since the last call."""
        found, self._failures = self._failures, []
        return found


def _side_by_side(tables: Mapping[str, _Table]) -> Iterator[tuple[bytes, dict[str, bytes] | Failure]]:
    """(key, value in each table that has it) in the order of the keys; failures where they occur."""
    while True:
        for table in tables.values():
            for failure in table.take_failures():
                yield b"", failure
        keys = [table.key for table in tables.values() if table.key is not None]
        if not keys:
            return
        key, row = min(keys), {}
        for name, table in tables.items():
            if table.key == key:
                row[name] = table.value
                table.advance()
        yield key, row


def _item(
    key: bytes, row: dict[str, bytes], directory: Path, recordings: Mapping[bytes, bytes] | None, language: str
) -> Utterance | Failure:
    """The utterance of a key; `recordings` where it is a part of one."""
    try:
        cut = channel = None
        if "text" not in row:
            raise BadSample("missing_transcript", "text has no line with this key")
        if recordings is None:
            place = row.get("wav.scp")
        else:
            recording, cut, channel = _part(row.get("segments"))
            place = recordings.get(recording)
        if place is None:
            raise BadSample("missing", "wav.scp has no line for this recording")
        audio = _audio(place, directory)._replace(channel=channel)
        seconds = seconds_field({"utt2dur": _text(row.get("utt2dur", b""), "utt2dur")}, "utt2dur")
        return Utterance(
            key=_text(key, "key", "bad_key"),
            audio=audio,
            text=checked_text(_text(row["text"], "text", "transcript_not_utf8"), "the line of text"),
            source=_text(place, "wav.scp"),
            speaker=_text(row.get("utt2spk", b""), "utt2spk"),
            language=_text(row.get("utt2lang", b""), "utt2lang") or language,
            seconds=seconds if cut is None or cut.seconds is None else cut.seconds,
            cut=cut,
        )
    except BadSample as error:
        return Failure.of(os.fsdecode(key), error)


def _part(value: bytes | None) -> tuple[bytes, Cut, int | None]:
    """Recording, times and channel in a line of `segments`."""
    if value is None:
        raise BadSample("missing", "segments has no line with this key")
    words = value.split()
    if len(words) not in (3, 4):
        raise BadSample(
            "malformed",
            "a line of segments is not KEY RECORDING START END, or with a CHANNEL",
            got=printable(repr(value)[:100]),
        )
    channel = None
    if len(words) == 4:
        if not words[3].isdigit() or len(words[3]) > MAX_CHANNEL_DIGITS:
            raise BadSample("malformed", "the channel in segments is not a number from 0", got=repr(words[3])[:100])
        channel = int(words[3])
    try:
        start, end = float(words[1]), float(words[2])
    except ValueError as error:
        raise BadSample("malformed", f"the times in segments are not numbers: {error}") from error
    return words[0], checked_cut(start, end), channel


def _audio(value: bytes, directory: Path) -> Audio:
    """What a value of `wav.scp` names."""
    place = _text(value, "wav.scp")
    if place.endswith("|") or place.startswith("|"):
        raise BadSample("pipe", "wav.scp names a command, and commands are not run", got=place[:200])
    if not place or "\0" in place:
        raise BadSample("malformed", "the path in wav.scp is empty or holds a zero byte", got=repr(place)[:100])
    offset = OFFSET.fullmatch(place)
    if offset:
        return Audio(os.path.join(directory, offset[1]), start_byte=int(offset[2]))
    return Audio(os.path.join(directory, place))


def _text(value: bytes, where: str, reason: str = "malformed") -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise BadSample(reason, f"the {where} is not UTF-8: {error}") from error
