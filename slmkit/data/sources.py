"""Where samples come from: corpora of shards, and text dialogues that have no speech.

A `Source` is what the loader needs of either. Which of its samples are trained on, how often and with which prompt is
decided elsewhere.

Invariant: all sources of a run have one codec and agree on the streams of the vocabulary.

Example:
    sources = [open_source("shards/libritts", "tts"), open_source("dialogues.jsonl", "text")]
    common_codec(sources)
"""

import hashlib
import os
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slmkit.codec.base import CodecSpec
from slmkit.data.index import Corpus
from slmkit.data.lines import MAX_LINE_BYTES, parse_record
from slmkit.data.remote import ShardCache, fetch_metadata, is_url
from slmkit.data.shards import Sample, ShardReader
from slmkit.errors import BadSample, DamagedSample, UserError

TEXT_TASKS = ("text",)  # whose samples are dialogues
HUMAN, ASSISTANT = ("human", "user"), ("gpt", "assistant")  # names of the two sides in `conversations`


class Reader(Protocol):
    """Random access to samples. Can be pickled. Both methods raise DamagedSample for one that cannot be read."""

    def read(self, i: int) -> Sample:
        """Sample `i`; codes of no size where there is no speech."""

    def read_meta(self, i: int) -> dict[str, Any]:
        """Only what the prompt is made of."""


class Samples(Protocol):
    """A corpus or a file of dialogues."""

    def __len__(self) -> int: ...

    def key(self, i: int) -> str: ...

    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Samples 0 .. starts[-1] - 1, with their reader."""

    path: str
    samples: Samples
    reader: Reader
    codec: CodecSpec | None  # None: no speech
    starts: npt.NDArray[np.int64]  # [shards + 1] number of the first sample of each shard, then of all

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def fingerprint(self) -> str:
        """Equal for equal samples, wherever they lie."""
        return self.samples.fingerprint

    @property
    def remark(self) -> str:
        """What a reader of the log should know of it; empty where there is nothing."""
        if not isinstance(self.samples, Conversations) or not self.samples.counts:
            return ""
        reasons = ", ".join(f"{number} {reason}" for reason, number in self.samples.counts.items())
        return f"{self.path}: lines that are left out: {reasons}"

    def frames(self, shard: int) -> npt.NDArray[np.int32]:
        """Codec frames of the samples of a shard, int32 [n]; 0 where there is no speech."""
        if isinstance(self.samples, Corpus):
            frames: npt.NDArray[np.int32] = self.samples.shards[shard].frames
            return frames
        return np.zeros(int(self.starts[shard + 1] - self.starts[shard]), np.int32)

    def keys(self, shard: int) -> Sequence[str]:
        """Keys of the samples of a shard."""
        if isinstance(self.samples, Corpus):
            return self.samples.shards[shard].keys
        return [self.samples.key(i) for i in range(int(self.starts[shard]), int(self.starts[shard + 1]))]


def open_source(path: str | Path, task: str, cache: ShardCache | None = None) -> Source:
    """Open what `path` holds for `task`; shards are read through `cache`, those at a URL must be.

    Raises UserError when it is missing or of another kind.
    """
    if task in TEXT_TASKS:
        text = Conversations.open(path)
        return Source(path=str(path), samples=text, reader=text, codec=None, starts=np.array([0, len(text)]))
    if not is_url(str(path)):
        return of_corpus(Corpus.open(path), cache=cache)
    if cache is None:
        raise UserError(
            "shards at a URL are read through a shard cache, and there is none",
            got=path,
            next_step="set data.shard_cache to a directory on a fast disk",
        )
    return of_corpus(Corpus.open(fetch_metadata(str(path), cache.directory)), tars=str(path), cache=cache)


def of_corpus(corpus: Corpus, *, tars: str | None = None, cache: ShardCache | None = None) -> Source:
    """The source of a corpus that is open already, whose tars may lie elsewhere."""
    return Source(
        path=tars or str(corpus.directory),
        samples=corpus,
        reader=ShardReader(corpus, tars=tars, cache=cache),
        codec=corpus.codec,
        starts=corpus.starts,
    )


def common_codec(sources: Sequence[Source]) -> CodecSpec:
    """The codec of the sources with speech. Raises UserError when two differ, or none has speech."""
    spoken = [(source, source.codec) for source in sources if source.codec is not None]
    if not spoken:
        raise UserError(
            "no source has speech, so the vocabulary of the codes is not known",
            got=", ".join(source.path for source in sources),
            expected="at least one corpus of shards among data.sources",
        )
    first, codec = spoken[0]
    for source, other in spoken[1:]:
        codec.check_compatible(other, this=first.path, that=source.path)
    return codec


@dataclass(frozen=True, eq=False)
class Conversations:
    """Text dialogues of a JSONL file in the published `conversations` format. Safe to fork, to pickle and to use from
    threads.

    A line is `{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}, ...]}`, human and
    assistant in turn, the human first. A line that is not is left out and counted. Only the places of its lines stay
    in memory. Dialogue i is the same line on every machine, and its bytes are those that were there when the file was
    opened, or `read` says that they are not.
    """

    path: Path
    fingerprint: str  # SHA-256 of the file
    offsets: np.ndarray  # int64 [n]: first byte of every line that is used
    lines: np.ndarray  # int64 [n]: its number, from 1
    lengths: np.ndarray  # int64 [n]: its bytes, without what ends it
    crc32: np.ndarray  # uint32 [n]
    counts: dict[str, int]  # lines that are left out, by reason

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

    def key(self, i: int) -> str:
        """Key of dialogue `i`: the name of the file and the line."""
        return f"{self.path.stem}:{self.lines[i]}"

    def read(self, i: int) -> Sample:
        """Dialogue `i`, with codes of shape [0, 0]. Raises DamagedSample naming file and line when it has changed."""
        return Sample(self.key(i), np.zeros((0, 0), dtype=np.uint16), None, self.read_meta(i))

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
