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
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from slmkit.audio.units import seconds_to_samples
from slmkit.codec.base import Codec, Codes, decode_alone
from slmkit.infer.request import Output, Request
from slmkit.infer.sentences import Sentence
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
