"""One output of a model beside what it should be: what the metrics look at.

Example:
    truths = Truths(corpus, codec)
    utterance = Spoken(record=record, outputs=outputs, truths=truths, tools=Tools(recognizer=recognizer))
    spoken.wave, spoken.heard, truths.copy(record.number), truths.source(record.number)
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from slmkit.audio.dnsmos import Dnsmos
from slmkit.audio.mel import log_mel_distance
from slmkit.codec.base import Codec, Codes, decode_alone
from slmkit.data.index import Corpus
from slmkit.data.shards import ShardReader
from slmkit.errors import BadSample
from slmkit.evaluate.generation import true_codes
from slmkit.evaluate.metrics import Score, single
from slmkit.evaluate.outputs import Finished, OutputRecord, read_codes, read_voice, read_wave, wav_path
from slmkit.evaluate.results import COPY
from slmkit.evaluate.selection import DEFAULT
from slmkit.tokenization.copies import planned_audio

KEPT = 4  # samples, and waves of each kind, in memory

Wave = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float32]
T = TypeVar("T")


class Recognizes(Protocol):
    """A recognizer of speech; `spellings` maps British words to American ones, for `words.normalized`."""

    spellings: dict[str, str]

    def text(self, wave: Wave, sample_rate: int) -> str: ...


class TellsVoices(Protocol):
    """Gives the speaker vector of a wave; raises BadSample when it is too short to have one."""

    def vector(self, wave: Wave, sample_rate: int) -> Vector: ...


class Judges(Protocol):
    """Gives a number to a wave; raises BadSample when it is too short to have one."""

    def score(self, wave: Wave, sample_rate: int) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What metrics need beside outputs, corpus and codec. Metrics whose needs are not given are not computed."""

    recognizer: Recognizes | None = None
    wavlm: TellsVoices | None = None
    utmos: Judges | None = None
    distillmos: Judges | None = None
    dnsmos: Dnsmos | None = None
    copy_quality: bool = False  # whether copies are compared with their recordings by STOI and PESQ
    model: tuple[Any, Any] | None = None  # the SpeechLM that spoke and its TextTokenizer
    # By the number of a sample, what `wavlm` says of its recording, since many utterances may share a voice.
    recorded_voices: dict[int, Vector | None] = field(default_factory=dict)


class Truths:
    """Samples of a corpus with their waves. The codec must be that of the corpus."""

    def __init__(self, corpus: Corpus, codec: Codec) -> None:
        self.corpus, self.codec, self._reader = corpus, codec, ShardReader(corpus)
        self._open_source = planned_audio(corpus.directory, codec.spec.sample_rate)
        self.sample = functools.lru_cache(KEPT)(self._reader.read)
        self.copy = functools.lru_cache(KEPT)(self._copy)
        self.source = functools.lru_cache(KEPT)(self._source)

    def codes(self, number: int) -> Codes:
        """uint16 [K, T], what a model predicts."""
        return true_codes(self.sample(number), self.corpus)

    def vector(self, number: int) -> Vector:
        """The voice of a sample, float32 [D]; zeros, or nothing, where the corpus has no vectors."""
        speaker = self.sample(number).speaker
        return np.zeros(self.codec.spec.speaker_dim, np.float32) if speaker is None else speaker

    def _copy(self, number: int) -> Wave:
        """The true codes decoded, float32 [samples]."""
        return decode_alone(self.codec, self.codes(number), self.vector(number))

    def _source(self, number: int) -> Wave | None:
        """The recording, float32 [samples]; None where the corpus does not know it."""
        shard, _ = self.corpus.locate(number)
        return self._open_source(shard, self.corpus.key(number))


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """See the module. Waves and codes are read each time; what a recognizer heard is kept."""

    record: OutputRecord
    outputs: Finished
    truths: Truths
    tools: Tools
    heard_before: str | None = None  # by the same recognizer

    @property
    def codes(self) -> Codes:
        """uint16 [K, T]."""
        return read_codes(self.outputs.directory, self.record, len(self.truths.corpus.codec.lm_streams))

    @property
    def wave(self) -> Wave:
        """The speech, float32 [samples]; empty where there is none."""
        if not self.record.frames:
            return np.zeros(0, np.float32)
        return read_wave(wav_path(self.outputs.directory, self.record.place))

    @property
    def rate(self) -> int:
        """Sample rate in Hz, of `wave` and the waves of `truths`."""
        return self.truths.codec.spec.sample_rate

    @property
    def seconds(self) -> float:
        """Of the speech."""
        return len(self.wave) / self.rate

    @property
    def is_copy(self) -> bool:
        """Whether it is the codec's copy of the true codes, and no model spoke."""
        return bool(self.outputs.settings["model"] == COPY)

    @property
    def is_voice_asked(self) -> bool:
        """Whether the speech was to be in a certain voice; there are models and codecs that take none."""
        return self.record.voice != DEFAULT

    @functools.cached_property
    def heard(self) -> str:
        """What the recognizer hears in the speech, "" where there is none."""
        assert self.tools.recognizer is not None, "asked for by metrics that need it"
        if self.heard_before is not None:
            return self.heard_before
        return self.tools.recognizer.text(self.wave, self.rate) if self.record.frames else ""

    @property
    def asked_vector(self) -> Vector:
        """The speaker vector float32 [D] that the model was given."""
        if self.record.voice_number is not None:
            return self.truths.vector(self.record.voice_number)
        number = list(self.outputs.settings["voices"]).index(self.record.voice)
        return read_voice(self.outputs.directory, number, self.truths.corpus.codec.speaker_dim)

    def measured(self, measure: Callable[[Wave, int], T], wave: Wave | None = None) -> T | None:
        """What `measure(wave, sample_rate)` says of the speech, or of another wave; None where there is too little."""
        wave = self.wave if wave is None else wave
        if not len(wave):
            return None
        try:
            return measure(wave, self.rate)
        except BadSample:
            return None

    def distance_db(self, reference: Wave) -> Score | None:
        """Log-mel distance of the speech to `reference`, float32 [samples]; None where both are empty."""
        wave = self.wave
        return single(log_mel_distance(reference, wave, self.rate)) if len(reference) or len(wave) else None
