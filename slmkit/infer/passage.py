"""A text of any length, read sentence by sentence: what is asked of the engine, and the one answer that comes of it.

Every sentence is a request of its own, with the voice, settings and seed of the whole; several may be in the engine at
once. Their waves follow each other in order, with the pauses of the text between them.

Law: the codes of a sentence are those of the same sentence asked for alone. A text of one sentence is one request, and
its answer that of the request.

Invariant: what came of each sentence is told (`SpokenSentence`), also where that is no speech.

Example:
    passage = synthesizer.passage("It rained. Nobody came.", speaker)
    outputs = synthesizer.engine.generate(passage.requests)
    spoken = passage.told(outputs)
    wave = joined_wave(codec, joined(outputs).codes, speaker, spoken)
"""

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from slmkit.audio.units import seconds_to_samples
from slmkit.codec.base import Codec, Codes, decode_alone
from slmkit.errors import UserError
from slmkit.infer.request import Output, Request
from slmkit.infer.sentences import Sentence
from slmkit.infer.stream import Speaking
from slmkit.texts import counted, excerpt

Wave = npt.NDArray[np.float32]
MAX_TEXT_CHARS = 50_000  # some 8000 words, nearly an hour of speech
SHOWN_SENTENCES = 20  # in a warning


class SpokenSentence(NamedTuple):
    """What came of one sentence."""

    text: str
    frames: int  # 0: it gave no speech
    steps: int
    reason: str  # as of `Output`
    limit: str | None
    warning: str | None
    attempts: int
    pause_sec: float  # of silence before it


@dataclasses.dataclass(frozen=True)
class Passage:
    """The sentences of a text, and a request for each."""

    sentences: tuple[Sentence, ...]
    requests: tuple[Request, ...]

    @staticmethod
    def of(text: str, request: Request) -> "Passage":
        """Of one request, whose text is not cut."""
        return Passage((Sentence(text, 0.0),), (request,))

    def told(self, outputs: Sequence[Output]) -> list[SpokenSentence]:
        """What came of the first sentences; `outputs` are theirs, in order."""
        spoken, pause_sec = [], 0.0
        for sentence, output in zip(self.sentences, outputs, strict=False):
            frames = output.codes.shape[1]
            facts = (frames, output.num_steps, output.reason, output.limit, output.warning, output.attempts)
            spoken.append(SpokenSentence(sentence.text, *facts, pause_sec if frames else 0.0))
            pause_sec = sentence.pause_sec if frames else pause_sec
        return spoken


def joined(outputs: Sequence[Output]) -> Output:
    """One output of those of all sentences: it came to its end if all did, else to what stopped the first that did
    not. `attempts` are those of the sentence that was tried most often."""
    if len(outputs) == 1:
        return outputs[0]
    worst = next((output for output in outputs if output.reason != "end"), outputs[0])
    warnings = [output.warning for output in outputs if output.warning is not None]
    return dataclasses.replace(
        worst,
        codes=np.concatenate([output.codes for output in outputs], axis=1),
        text_ids=tuple(token for output in outputs for token in output.text_ids),
        num_steps=sum(output.num_steps for output in outputs),
        warning=warnings[0] if warnings else None,
        attempts=max(output.attempts for output in outputs),
        runaways=sum(output.runaways for output in outputs),
    )


def joined_wave(codec: Codec, codes: Codes, speaker: Wave, spoken: Sequence[SpokenSentence]) -> Wave:
    """Wave float32 [samples] of the codes uint16 [K, T] of all sentences, each decoded alone in the voice `speaker`,
    float32 [D], with their pauses. Raises as `decode_alone`."""
    if len(spoken) < 2:
        return decode_alone(codec, codes, speaker)
    waves, first = [np.zeros(0, np.float32)], 0
    for sentence in spoken:
        own = codes[:, first : first + sentence.frames]
        if sentence.frames:
            waves += [silence(sentence.pause_sec, codec.spec.sample_rate), decode_alone(codec, own, speaker)]
        first += sentence.frames
    return np.concatenate(waves)


def silence(seconds: float, rate: int) -> Wave:
    return np.zeros(seconds_to_samples(seconds, rate), np.float32)


def unspoken(spoken: Sequence[SpokenSentence]) -> str:
    """A line for people that names the sentences without speech among others; "" where there are none."""
    return _named("no speech for", spoken, [sentence for sentence in spoken if not sentence.frames])


def cut_short(spoken: Sequence[SpokenSentence]) -> str:
    """As `unspoken`, of sentences that have speech and did not come to their end, or too soon."""
    some = [sentence for sentence in spoken if sentence.frames and (sentence.limit or sentence.warning)]
    return _named("perhaps not whole:", spoken, some)


def _named(what: str, spoken: Sequence[SpokenSentence], some: Sequence[SpokenSentence]) -> str:
    if not some or len(spoken) < 2:
        return ""
    named = ", ".join(f"{excerpt(sentence.text)!r}" for sentence in some[:SHOWN_SENTENCES])
    more = f" and {len(some) - SHOWN_SENTENCES} more" if len(some) > SHOWN_SENTENCES else ""
    return f"{what} {len(some)} of {counted(len(spoken), 'sentence')}: {named}{more}"


class PassageSpeaking(Iterator[Wave]):
    """The pieces of the wave of a passage, in order, none of them empty; as `Speaking`, which each sentence is.

    Held in memory: what one sentence needs, and the codes of those that were heard.
    """

    def __init__(self, passage: Passage, stream: Callable[[Request], Speaking], codec: Codec) -> None:
        """`stream` speaks one request. Raises UserError as it does, before anything is spoken."""
        self.output: Output | None = None  # of the whole, once the last frame is decoded
        self.spoken: list[SpokenSentence] = []  # sentences that have come to their end
        self.first_audio_sec: float | None = None  # from the first call for a piece
        self._passage, self._rate = passage, codec.spec.sample_rate
        self._pieces = self._run([stream(request) for request in passage.requests])

    def __next__(self) -> Wave:
        """Raises UserError as `Speaking` does; where there are several sentences, for want of speech only if none of
        them gave any."""
        return next(self._pieces)

    def close(self) -> None:
        """Give up what is not decoded yet."""
        self._pieces.close()

    def _run(self, sentences: Sequence[Speaking]) -> Generator[Wave]:
        outputs: list[Output] = []
        began, pause_sec = time.perf_counter(), 0.0
        for sentence, speaking in zip(self._passage.sentences, sentences, strict=True):
            pause = silence(pause_sec, self._rate)
            try:
                for wave in speaking:
                    if self.first_audio_sec is None:
                        self.first_audio_sec = time.perf_counter() - began
                    yield np.concatenate([pause, wave]) if len(pause) else wave
                    pause, pause_sec = pause[:0], sentence.pause_sec
            except UserError:
                output = speaking.output
                if output is None or output.codes.shape[1] or output.limit == "not_finite" or len(sentences) == 1:
                    raise
            finally:
                speaking.close()
            assert speaking.output is not None, "the last piece has come"
            outputs.append(speaking.output)
            self.spoken = self._passage.told(outputs)
        self.output = joined(outputs)
        self.output.check_speech()
