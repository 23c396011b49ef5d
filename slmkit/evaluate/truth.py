"""What an utterance of a corpus should sound like: its recording, where the corpus job knows it, and its copy.

Example:
    truths = Truths(corpus, codec)
    truths.copy(3), truths.source(3)      # waves; the second is None where the recording is not to be had
"""

import functools

import numpy as np
import numpy.typing as npt

from slmkit.codec.base import Codec, decode_alone
from slmkit.data.index import Corpus
from slmkit.data.shards import ShardReader
from slmkit.evaluate.generation import true_codes
from slmkit.tokenization.copies import planned_audio

KEPT = 4  # waves of each kind in memory

Wave = npt.NDArray[np.float32]


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
