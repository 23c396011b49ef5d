"""What an utterance of a corpus should sound like: its recording, where the corpus job knows it, and its copy.

Example:
    truths = Truths(corpus, codec)
    truths.copy(3), truths.source(3)      # waves; the second is None where the recording is not to be had
"""

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmkit.codec.base import Codec, decode_alone
from slmkit.data.index import Corpus
from slmkit.data.ledger import Failure
from slmkit.data.shards import ShardReader
from slmkit.evaluate.copies import OpenSource
from slmkit.evaluate.generation import true_codes
from slmkit.tokenization.corpus_job import CorpusJob
from slmkit.tokenization.decode import Decoding
from slmkit.tokenization.decode import decode as decode_item
from slmkit.tokenization.plan import Plan

KEPT = 4  # waves of each kind in memory

Wave = npt.NDArray[np.float32]


def planned_audio(directory: str | Path, sample_rate: int) -> OpenSource:
    """Opens the audio an utterance was made of, at `sample_rate`; gives None where the corpus has no plan, or the file
    is gone."""
    if not Plan.exists(directory):
        return lambda shard, key: None
    plan, settings = Plan.open(directory), CorpusJob.open(directory).settings
    # With the job's own max_sec, which bounds where a long recording is cut.
    decoding = Decoding(sample_rate=sample_rate, max_sec=settings.get("max_sec"))

    def open_source(shard: int, key: str) -> Wave | None:
        item = next((item for item in plan.items(shard) if item.key == key), None)
        if item is None:
            return None
        decoded = decode_item(item, decoding)
        return None if isinstance(decoded, Failure) else decoded.wave

    return open_source


class Truths:
    """Samples of a corpus with their waves. The codec must be that of the corpus."""

    def __init__(self, corpus: Corpus, codec: Codec) -> None:
        self.corpus, self.codec, self._reader = corpus, codec, ShardReader(corpus)
        self._open_source = planned_audio(corpus.directory, codec.spec.sample_rate)
        self.sample = functools.lru_cache(KEPT)(self._reader.read)
        self.copy = functools.lru_cache(KEPT)(self._copy)
        self.source = functools.lru_cache(KEPT)(self._source)

    def codes(self, number: int) -> npt.NDArray[np.int16]:
        """int16 [K, T], what a model predicts."""
        return true_codes(self.sample(number), self.corpus)

    def vector(self, number: int) -> npt.NDArray[np.float32]:
        """The voice of a sample, float32 [D]."""
        speaker = self.sample(number).speaker
        assert speaker is not None, "outputs are made of a corpus with speaker vectors"
        return speaker

    def recording(self, number: int) -> Wave:
        """The recording, or the copy where there is none."""
        source = self.source(number)
        return self.copy(number) if source is None else source

    def _copy(self, number: int) -> Wave:
        return decode_alone(self.codec, self.codes(number), self.vector(number))

    def _source(self, number: int) -> Wave | None:
        shard, _ = self.corpus.locate(number)
        return self._open_source(shard, self.corpus.key(number))
