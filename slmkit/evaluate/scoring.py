"""The second stage of an evaluation: scores of the outputs that are stored, utterance by utterance.

Each score is an amount and a weight (see `intervals`), or None where it cannot be had: that is counted, never hidden.
An utterance without speech is a failure in every metric that can say so: no success, every word lost, no frame equal,
silence in place of sound, no answer heard. Only a voice or a quality that nothing was heard of is None.

It knows no model: recognisers and the like are what has the right method, so that any can be put in.

Invariant: the scores of an utterance depend on its outputs, the corpus and the scorers alone.

Example:
    rows = score(finished("scores"), Truths(corpus, codec), Scorers(codec_voice=CodecVoice(codec)))
    rows[0]["scores"]["success"]        # (1.0, 1.0)
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from slmkit.audio.mel import log_mel_distance
from slmkit.data.shards import Sample
from slmkit.errors import BadSample, UserError
from slmkit.evaluate.alignment import Alignment
from slmkit.evaluate.answers import exact_match, f1
from slmkit.evaluate.codes import frame_agreement
from slmkit.evaluate.generation import COPY
from slmkit.evaluate.intervals import Score
from slmkit.evaluate.outputs import Finished, Record, codes_path, read_array, read_wave, voice_path, wav_path
from slmkit.evaluate.selection import OWN
from slmkit.evaluate.truth import Truths
from slmkit.evaluate.voices import cosine
from slmkit.evaluate.words import error_counts, normalized

NO_SPEECH = np.zeros(0, np.float32)

Wave = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float32]
Scores = dict[str, Score | None]
T = TypeVar("T")


class Hears(Protocol):
    """A recogniser of speech."""

    spellings: dict[str, str]

    def text(self, wave: Wave, sample_rate: int) -> str: ...


class KnowsVoices(Protocol):
    """Gives the vector of a voice."""

    def vector(self, wave: Wave, sample_rate: int) -> Vector: ...


class Judges(Protocol):
    """Gives a number to a wave."""

    def score(self, wave: Wave, sample_rate: int) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Scorers:
    """What scores; what is not given is not scored."""

    codec_voice: KnowsVoices | None = None
    recognizer: Hears | None = None
    wavlm: KnowsVoices | None = None
    utmos: Judges | None = None
    # Of copy synthesis: name of a metric -> (recording, copy, sample rate) to a number.
    copy_quality: Mapping[str, Callable[[Wave, Wave, int], float | None]] = dataclasses.field(default_factory=dict)
    alignment: Callable[[Sample], Alignment] | None = None  # of the model that spoke, of a sample with its true codes


@dataclass(frozen=True)
class _Spoken:
    """An output with its sound."""

    record: Record
    codes: npt.NDArray[np.int16]
    wave: Wave
    rate: int  # Hz

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.rate


def score(outputs: Finished, truths: Truths, scorers: Scorers) -> Iterator[dict[str, Any]]:
    """For each output its record, `scores` and, with a recogniser, what was `heard`.

    Raises UserError when the outputs belong to another corpus or codec, or cannot be read.
    """
    check_belongs(outputs, truths)
    references: dict[int, Vector | None] = {}  # vectors of recordings, which many utterances may share
    for record in outputs.records:
        if truths.sample(record.number).key != record.key:
            raise UserError("the outputs were generated for another corpus", got=record.key)
        codes = read_array(codes_path(outputs.directory, record.place))
        wave = read_wave(wav_path(outputs.directory, record.place)) if record.frames else NO_SPEECH
        spoken = _Spoken(record, codes, wave, truths.codec.spec.sample_rate)
        heard = scorers.recognizer.text(wave, spoken.rate) if scorers.recognizer and record.frames else ""
        scores = {
            **_decoding(spoken),
            **_likeness(spoken, truths),
            **_voice(spoken, outputs, truths, scorers, references),
            **_answer(record, heard, has_heard=scorers.recognizer is not None),
        }
        if scorers.recognizer:
            scores |= _words(record, heard, scorers.recognizer.spellings)
        if scorers.utmos:
            scores["utmos"] = _one(_measured(scorers.utmos.score, spoken))
        if outputs.settings["model"] == COPY and record.voice == OWN:
            scores |= _copy_quality(spoken, truths.source(record.number), scorers)
        if scorers.alignment:
            scores |= _alignment(truths, record, scorers.alignment)
        row = {**dataclasses.asdict(record), "scores": scores}
        yield {**row, "heard": heard} if scorers.recognizer else row


def check_belongs(outputs: Finished, truths: Truths) -> None:
    """Raise UserError when the outputs are of another corpus or codec."""
    if outputs.settings["corpus"] != truths.corpus.fingerprint:
        raise UserError(
            "the outputs were generated for another corpus",
            got=truths.corpus.directory,
            expected=outputs.names.get("corpus"),
        )
    if outputs.settings["codec"] != truths.codec.spec.to_dict():
        raise UserError(
            "the outputs were generated with another codec",
            got=truths.codec.spec.weights_sha256,
            expected=outputs.settings["codec"]["weights_sha256"],
        )


def _one(value: float | None) -> Score | None:
    """A value as a score of weight 1; None where it is not a finite number."""
    return None if value is None or not np.isfinite(value) else (float(value), 1.0)


def _decoding(spoken: _Spoken) -> Scores:
    record = spoken.record
    scores: Scores = {"success": _one(record.reason == "end" and record.frames > 0)}
    if record.steps is None or record.engine_sec is None:
        return scores
    return scores | {
        "frames_per_step": (record.frames, record.steps),
        "steps_per_sec": (record.steps, record.engine_sec),
        "real_time_factor": (record.engine_sec, spoken.seconds),
    }


def _likeness(spoken: _Spoken, truths: Truths) -> Scores:
    """Codes and sound against the true ones, where the sentence was spoken in its own voice."""
    if spoken.record.voice != OWN:
        return {}
    number = spoken.record.number
    shares = frame_agreement(truths.codes(number), spoken.codes)
    names = [stream.name for stream in truths.corpus.codec.lm_streams]
    by_stream = {f"frame_agreement:{name}": _one(share) for name, share in zip(names, shares, strict=True)}
    return {
        "frame_agreement": _one(float(shares.mean())),
        **by_stream,
        "log_mel_distance_db": _distance(truths.copy(number), spoken),
    }


def _distance(reference: Wave, spoken: _Spoken) -> Score | None:
    if not max(len(reference), len(spoken.wave)):
        return None
    return _one(log_mel_distance(reference, spoken.wave, spoken.rate))


def _voice(
    spoken: _Spoken,
    outputs: Finished,
    truths: Truths,
    scorers: Scorers,
    references: dict[int, Vector | None],
) -> Scores:
    record, scores = spoken.record, Scores()
    if scorers.codec_voice:
        vector = _measured(scorers.codec_voice.vector, spoken)
        scores["codec_similarity"] = _similarity(vector, _asked_vector(outputs, truths, record))
        if record.voice != OWN:
            scores["other_voice_similarity"] = _similarity(vector, truths.vector(record.number))
    if scorers.wavlm:
        number = record.voice_number
        if number is not None and number not in references:
            spoken_by = dataclasses.replace(spoken, wave=truths.recording(number))
            references[number] = _measured(scorers.wavlm.vector, spoken_by)
        reference = None if number is None else references[number]
        scores["wavlm_similarity"] = _similarity(_measured(scorers.wavlm.vector, spoken), reference)
    return scores


def _asked_vector(outputs: Finished, truths: Truths, record: Record) -> Vector:
    if record.voice_number is not None:
        return truths.vector(record.voice_number)
    names = list(outputs.settings["voices"])
    return read_array(voice_path(outputs.directory, names.index(record.voice)))


def _similarity(a: Vector | None, b: Vector | None) -> Score | None:
    return None if a is None or b is None else _one(cosine(a, b))


def _measured(measure: Callable[[Wave, int], T], spoken: _Spoken) -> T | None:
    """What `measure` says of the speech; None where there is none, or too little for it."""
    if not len(spoken.wave):
        return None
    try:
        return measure(spoken.wave, spoken.rate)
    except BadSample:
        return None


def _answer(record: Record, heard: str, *, has_heard: bool) -> Scores:
    """EM and F1 of a question's answer; None where the corpus has no true answer."""
    if not record.question:
        return {}
    found = {"": record.answer, "speech_": heard} if has_heard else {"": record.answer}
    scores: Scores = {}
    for kind, answer in found.items():
        truths = record.true_answers
        scores[f"{kind}exact_match"] = _one(exact_match(answer, truths)) if truths else None
        scores[f"{kind}f1"] = _one(f1(answer, truths)) if truths else None
    return scores


def _words(record: Record, heard: str, spellings: dict[str, str]) -> Scores:
    """Errors of what was heard against what was to be said: the sentence; or the model's own text answer, or the true
    one where it wrote none."""
    said = record.text
    if record.question:
        said = record.answer or next(iter(record.true_answers), "")
    reference, hypothesis = normalized(said, spellings), normalized(heard, spellings)
    words, chars = (error_counts(reference, hypothesis, unit) for unit in ("word", "char"))
    return {name: (sum(errors[:3]), errors.reference) for name, errors in (("wer", words), ("cer", chars))}


def _copy_quality(spoken: _Spoken, source: Wave | None, scorers: Scorers) -> Scores:
    if source is None:
        return dict.fromkeys(["source_distance_db", *scorers.copy_quality])
    scores: Scores = {"source_distance_db": _distance(source, spoken)}
    for name, measure in scorers.copy_quality.items():
        scores[name] = _one(_measured(functools.partial(measure, source), spoken))
    return scores


def _alignment(truths: Truths, record: Record, measure: Callable[[Sample], Alignment]) -> Scores:
    """Of the sentence and its true codes, whatever was spoken; None where the sample has too little of either."""
    try:
        found = measure(truths.sample(record.number))._asdict()
    except BadSample:
        found = dict.fromkeys(Alignment._fields)
    return {f"alignment_{name}": _one(value) for name, value in found.items()}
