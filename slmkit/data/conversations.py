"""Text dialogues from a JSONL file in the published `conversations` format.

A line is `{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}, ...]}`, human and
assistant in turn, the human first. A line that is not is left out and counted. Of the file only the places of its lines
stay in memory.

Invariant: dialogue i is the same line on every machine, and its bytes are those that were there when the file was
opened, or `read` says that they are not.

Example:
    texts = Conversations.open("dialogues.jsonl")
    texts.read(0).meta["turns"]                    # [["Who wrote it?", "Nobody knows."]]
    texts.counts, list(texts.failures())           # {"malformed": 1}, [Failure("dialogues:7", "malformed", ...)]
"""

import hashlib
import os
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmkit.data.ledger import Failure
from slmkit.data.lines import MAX_LINE_BYTES, parse_record
from slmkit.data.shards import Sample
from slmkit.errors import BadSample, DamagedSample, UserError

HUMAN, ASSISTANT = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True, eq=False)
class Conversations:
    """The dialogues of a file. Safe to fork, to pickle and to use from threads."""

    path: Path
    fingerprint: str  # SHA-256 of the file
    offsets: np.ndarray  # int64 [n]: first byte of every line that is used
    lines: np.ndarray  # int64 [n]: its number, from 1
    lengths: np.ndarray  # int64 [n]: its bytes, without what ends it
    crc32: np.ndarray  # uint32 [n]
    counts: dict[str, int]  # lines that are left out, by reason
    codec: None = None  # there is no speech

    @staticmethod
    def open(path: str | Path) -> "Conversations":
        """Read the file once and check every line. Raises UserError when it cannot be read."""
        digest = hashlib.sha256()
        columns = [array("q") for _ in range(4)]
        counts: Counter[str] = Counter()
        for number, offset, line in _lines(Path(path), digest):
            try:
                _turns(line)
            except BadSample as error:
                counts[error.reason] += 1
                continue
            for column, value in zip(columns, (offset, number, len(line or b""), zlib.crc32(line or b"")), strict=True):
                column.append(value)
        offsets, lines, lengths, crc32 = (np.array(column, dtype=np.int64) for column in columns)
        reasons = dict(sorted(counts.items()))
        return Conversations(Path(path), digest.hexdigest(), offsets, lines, lengths, crc32.astype(np.uint32), reasons)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def frames(self) -> np.ndarray:
        """int32 [n] of zeros."""
        return np.zeros(len(self), dtype=np.int32)

    def key(self, i: int) -> str:
        """Key of dialogue `i`: the name of the file and the line."""
        return f"{self.path.stem}:{self.lines[i]}"

    def read(self, i: int) -> Sample:
        """Dialogue `i`, with codes of shape [0, 0]. Raises DamagedSample naming file and line when it has changed."""
        return Sample(self.key(i), np.zeros((0, 0), dtype=np.int16), None, self.read_meta(i))

    def read_meta(self, i: int) -> dict[str, Any]:
        """The `turns` of dialogue `i`, [[instruction, response], ...]. Raises DamagedSample like `read`."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                line = os.pread(file.fileno(), int(self.lengths[i]), int(self.offsets[i]))
            if zlib.crc32(line) != self.crc32[i]:
                raise BadSample("changed", "its bytes have changed")
            return {"turns": _turns(line)}
        except (OSError, BadSample) as error:
            what = error.what if isinstance(error, BadSample) else error.strerror
            raise DamagedSample(
                self.key(i),
                self.path,
                f"{self.path}, line {self.lines[i]}, cannot be read: {what}",
                expected=f"a file with sha256 {self.fingerprint}",
                next_step=f"run `sha256sum {self.path}`; if it differs, restore the file or start a new run with it",
            ) from error

    def failures(self) -> Iterator[Failure]:
        """The lines that are left out, with their reasons; reads the file again."""
        for number, _, line in _lines(self.path, hashlib.sha256()):
            try:
                _turns(line)
            except BadSample as error:
                yield Failure.of(f"{self.path.stem}:{number}", error)


def _lines(path: Path, digest: Any) -> Iterator[tuple[int, int, bytes | None]]:
    """Number from 1, first byte and content of every line that is not blank; no content where it is too long."""
    number = offset = 0
    try:
        with open(path, "rb") as file:
            while line := file.readline(MAX_LINE_BYTES):
                number, start = number + 1, offset
                digest.update(line)
                offset += len(line)
                whole, more = line, line
                while more and not more.endswith(b"\n"):
                    more = file.readline(MAX_LINE_BYTES)
                    digest.update(more)
                    offset += len(more)
                content = whole.rstrip(b"\r\n") if offset - start == len(whole) else None
                if content is None or content.strip():
                    yield number, start, content
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", expected="a JSONL file of conversations") from error


def _turns(line: bytes | None) -> list[list[str]]:
    """(instruction, response) of every turn. Raises BadSample "malformed", "no_turns", "bad_turns" or "empty_turn"."""
    said = parse_record(line).get("conversations")
    if not isinstance(said, list) or not said:
        raise BadSample("no_turns", "the line has no list of conversations", got=repr(said)[:100])
    values = []
    for i, part in enumerate(said):
        names = ASSISTANT if i % 2 else HUMAN
        if not isinstance(part, dict) or part.get("from") not in names or not isinstance(part.get("value"), str):
            raise BadSample("bad_turns", f"part {i + 1} is not text from {' or '.join(names)}", got=repr(part)[:100])
        if not part["value"].strip():
            raise BadSample("empty_turn", f"part {i + 1} is empty")
        values.append(part["value"])
    if len(values) % 2:
        raise BadSample("bad_turns", "the last part has no response", got=f"{len(values)} parts")
    return [[ask, reply] for ask, reply in zip(values[::2], values[1::2], strict=True)]
