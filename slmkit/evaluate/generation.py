"""The first stage of an evaluation: utterances of a corpus spoken or answered, everything that came out stored.

Also copy synthesis: the true codes decoded by the codec, scored like the outputs of a model. It is the ceiling of what
a model of these codes can reach.

What cannot be asked of a model (an empty text, a prompt that fills all positions) is stored as refused, with the
reason, and counts as a failure; nothing is left out.

Invariant: the output of an utterance is a function of model, settings and utterance alone, however often the run was
interrupted. Its seed comes from the run's seed, its key and its voice, so it is the same in any choice.

Example:
    synthesizer = Synthesizer.load("MODEL", "CODEC", num_slots=8)
    generate(synthesizer, corpus, select(corpus, limit=8), Settings(), "scores", model=identity("MODEL"))
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from slmkit.codec.base import Codec, decode_alone
from slmkit.data.index import Corpus
from slmkit.data.shards import Sample, ShardReader
from slmkit.errors import UserError
from slmkit.evaluate.outputs import Outputs, Record
from slmkit.evaluate.selection import Item, Voice
from slmkit.files import sha256_file
from slmkit.infer.request import Output, Request
from slmkit.infer.sampling import Sampling
from slmkit.infer.synthesizer import Synthesizer

COPY = "copy synthesis"
SEED_BYTES = 8

Vector = npt.NDArray[np.float32]
Tell = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is asked of a model. tts: read the text; qa: answer the question in text and speech."""

    task: Literal["tts", "qa"] = "tts"
    sampling: Sampling = Sampling()  # of speech
    text_sampling: Sampling | None = None  # None: as of speech
    seed: int = 0
    max_sec: float = 30.0  # of speech
    max_text_tokens: int = 256

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that no request may have."""
        Request(prompt=(0,), seed=self.seed, max_sec=self.max_sec, max_text_tokens=self.max_text_tokens)


def identity(model: str | Path) -> dict[str, str]:
    """The hash of each file of an export that makes it the model it is. Raises UserError when it holds no weights."""
    files = sorted([*Path(model).glob("*.safetensors"), *Path(model).glob("*.json")])
    if not any(file.suffix == ".safetensors" for file in files):
        raise UserError(f"{model} holds no model", expected="a directory that `slmkit consolidate` wrote")
    return {file.name: sha256_file(file) for file in files if file.name != "provenance.json"}


def generate(
    synthesizer: Synthesizer,
    corpus: Corpus,
    items: Sequence[Item],
    settings: Settings,
    out: str | Path,
    *,
    model: dict[str, str],
    voices: Sequence[Voice] = (),
    name: str = "",
    tell: Tell = silent,
) -> None:
    """Store the outputs of all items that are not in `out` yet. `model` identifies the weights, `name` is for people;
    `tell` hears how many of how many are there.

    Raises UserError when the corpus or a voice is not of the model's codec, or the corpus lacks speaker vectors or, for
    qa, questions; or as `Outputs.open` does.
    """
    _check_codec(corpus, synthesizer.codec)
    for voice in voices:
        if voice.vector.shape != (corpus.codec.speaker_dim,):
            raise UserError(
                f"the voice {voice.name} is not of this codec",
                got=voice.vector.shape,
                expected=corpus.codec.speaker_dim,
            )
    engine = {"slots": synthesizer.engine.num_slots, "positions": synthesizer.engine.num_positions}
    machine = {"device": synthesizer.model.device.type, "threads": torch.get_num_threads()}
    stored = {"model": model, **engine, **machine, **_stored(settings, corpus, items, voices, synthesizer.codec)}
    vectors = {voice.name: voice.vector for voice in voices}
    reader = ShardReader(corpus)
    with Outputs.open(out, stored, names=_names(name, corpus), voices=voices) as outputs:
        asked: list[tuple[Record, Vector]] = []
        requests: list[Request] = []
        for place, item in enumerate(items):
            if place in outputs.done:
                continue
            record, vector = _record(place, item, reader, settings, vectors)
            request = _request(synthesizer, record, vector, settings)
            if isinstance(request, UserError):
                refused = dataclasses.replace(record, reason="refused", why=request.what, steps=0, engine_sec=0.0)
                _store(outputs, refused, _no_codes(corpus), vector, synthesizer)
                continue
            asked.append((record, vector))
            requests.append(request)
        for (record, vector), output, seconds in _timed(synthesizer, asked, requests):
            done = dataclasses.replace(
                record,
                steps=output.num_steps,
                reason=output.reason,
                limit=output.limit,
                answer=synthesizer.words_of(output).text,
                engine_sec=seconds,
            )
            _store(outputs, done, output.codes, vector, synthesizer)
            tell(len(outputs.records), len(items))


def copy_synthesis(
    codec: Codec,
    corpus: Corpus,
    items: Sequence[Item],
    settings: Settings,
    out: str | Path,
    *,
    tell: Tell = silent,
) -> None:
    """Store the true codes of all items, decoded in their voices, as if a model had chosen them.

    Raises UserError as `generate` does.
    """
    _check_codec(corpus, codec)
    stored = {"model": COPY, **_stored(settings, corpus, items, (), codec)}
    reader = ShardReader(corpus)
    with Outputs.open(out, stored, names=_names(COPY, corpus)) as outputs:
        for place, item in enumerate(items):
            if place in outputs.done:
                continue
            record, vector = _record(place, item, reader, settings, {})
            codes = true_codes(reader.read(item.number), corpus)
            answer = record.true_answers[0] if record.true_answers else ""
            record = dataclasses.replace(record, frames=codes.shape[1], answer=answer)
            wave = decode_alone(codec, codes, vector)
            outputs.add(record, codes, wave, sample_rate=codec.spec.sample_rate)
            tell(len(outputs.records), len(items))


def true_codes(sample: Sample, corpus: Corpus) -> npt.NDArray[np.int16]:
    """The codes of a sample that a model predicts, int16 [K, T]: no detail streams."""
    return sample.codes[: len(corpus.codec.lm_streams)]


def seed_of(seed: int, key: str, voice: str) -> int:
    """The seed of one utterance in a run with `seed`."""
    digest = hashlib.sha256(repr((seed, key, voice)).encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest[:SEED_BYTES], "little")


def _check_codec(corpus: Corpus, codec: Codec) -> None:
    corpus.codec.check_compatible(codec.spec, this=str(corpus.directory), that="the evaluation")
    if corpus.codec.speaker_dim != codec.spec.speaker_dim or not codec.spec.speaker_dim:
        raise UserError(
            f"{corpus.directory} cannot be evaluated: its speaker vectors are not the codec's",
            got=f"width {corpus.codec.speaker_dim}",
            expected=f"width {codec.spec.speaker_dim}, above 0",
        )


def _stored(
    settings: Settings, corpus: Corpus, items: Sequence[Item], voices: Sequence[Voice], codec: Codec
) -> dict[str, Any]:
    return {
        **dataclasses.asdict(settings),
        "codec": codec.spec.to_dict(),
        "corpus": corpus.fingerprint,
        "voices": {voice.name: hashlib.sha256(voice.vector.tobytes()).hexdigest() for voice in voices},
        "utterances": [[item.key, item.voice, item.voice_key] for item in items],
    }


def _names(model: str, corpus: Corpus) -> dict[str, str]:
    return {"model": model, "corpus": str(corpus.directory)}


def _record(
    place: int, item: Item, reader: ShardReader, settings: Settings, vectors: dict[str, Vector]
) -> tuple[Record, Vector]:
    """What is known of an item before it is spoken, and the vector of its voice."""
    sample = reader.read(item.number)
    question, answers = "", tuple[str, ...]()
    if settings.task == "qa":
        question, answers = _question(sample, reader.corpus)
    speaker, vector = item.voice, vectors.get(item.voice)
    if item.voice_number is not None:
        asked = sample if item.voice_number == item.number else reader.read(item.voice_number)
        speaker, vector = str(asked.meta.get("speaker", "")), asked.speaker
    assert vector is not None, "checked against the codec, or given"
    record = Record(
        place=place,
        **item._asdict(),
        speaker=speaker,
        text=str(sample.meta.get("text", "")),
        seed=seed_of(settings.seed, item.key, f"{item.voice} {item.voice_key}"),
        frames=0,
        steps=None,
        reason="end",
        question=question,
        true_answers=answers,
    )
    return record, vector


def _question(sample: Sample, corpus: Corpus) -> tuple[str, tuple[str, ...]]:
    """The question and its true answers: `answers` with `answer` first, or the text where the corpus has neither."""
    question, answers = sample.meta.get("question"), sample.meta.get("answers", [])
    if not isinstance(question, str):
        raise UserError(
            f"{corpus.directory}: sample {sample.key!r} has no question",
            next_step="--task qa needs samples with question and answer",
        )
    first = sample.meta.get("answer", "" if answers else sample.meta.get("text", ""))
    listed = [first, *(answers if isinstance(answers, list) else [answers])]
    return question, tuple(dict.fromkeys(text for text in listed if isinstance(text, str) and text.strip()))


def _request(synthesizer: Synthesizer, record: Record, vector: Vector, settings: Settings) -> Request | UserError:
    """What to ask of the model, or why it cannot be asked."""
    options = {name: getattr(settings, name) for name in ("sampling", "text_sampling", "max_sec", "max_text_tokens")}
    ask, words = (
        (synthesizer.answering, record.question) if settings.task == "qa" else (synthesizer.reading, record.text)
    )
    try:
        request = ask(words, vector, **options, seed=record.seed)
        synthesizer.engine.check(request)
    except UserError as error:
        return error
    return request


def _timed(
    synthesizer: Synthesizer, asked: Sequence[tuple[Record, Vector]], requests: Iterable[Request]
) -> Iterator[tuple[tuple[Record, Vector], Output, float]]:
    """Each output with the seconds of decoding since the one before it."""
    outputs = synthesizer.run(requests)
    while True:
        began = time.perf_counter()
        found = next(outputs, None)
        seconds = time.perf_counter() - began
        if found is None:
            return
        number, output = found
        yield asked[number], output, seconds


def _no_codes(corpus: Corpus) -> npt.NDArray[np.int16]:
    return np.zeros((len(corpus.codec.lm_streams), 0), np.int16)


def _store(
    outputs: Outputs, record: Record, codes: npt.NDArray[np.int16], vector: Vector, synthesizer: Synthesizer
) -> None:
    record = dataclasses.replace(record, frames=codes.shape[1])
    wave = decode_alone(synthesizer.codec, codes, vector) if record.frames else None
    outputs.add(record, codes, wave, sample_rate=synthesizer.codec.spec.sample_rate)
