"""Where samples come from: corpora of shards, and text dialogues that have no speech.

A `Source` is what the loader needs of either. Which of its samples are trained on, how often and with which prompt is
decided elsewhere.

Invariant: all sources of a run have one codec and agree on the streams of the vocabulary.

Example:
    sources = [open_source("shards/libritts", "tts"), open_source("dialogues.jsonl", "text")]
    common_codec(sources)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slmkit.codec.base import CodecSpec
from slmkit.data.conversations import Conversations
from slmkit.data.index import Corpus
from slmkit.data.remote import ShardCache, fetch_metadata, is_url
from slmkit.data.shards import Sample, ShardReader
from slmkit.errors import UserError

TEXT_TASKS = ("text",)  # whose samples are dialogues


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
