"""The first stage of an evaluation: utterances of a corpus spoken or answered, everything that came out stored.

Speaking them is `infer.batch`'s; here is what it is asked for, and what scoring needs to know of each utterance.

Also copy synthesis: the true codes decoded by the codec, scored like the outputs of a model. It is the ceiling of what
a model of these codes can reach.

A directory takes more utterances later, in more voices: those that are there stay as they are.

What cannot be asked of a model (an empty text, a prompt that fills all positions) is stored as refused, with the
reason, and counts as a failure; nothing is left out.

Invariant: the output of an utterance is a function of model, settings and utterance alone, however often the run was
interrupted. Its seed comes from the run's seed, its key and its voice, so it is the same in any choice.

Example:
    synthesizer = Synthesizer.load("MODEL", "CODEC", num_slots=8)
    selected, model = select(corpus, limit=8), export_sha256("MODEL")
    generate(synthesizer, corpus, selected, SpeakingSettings(), "scores", model=model)
"""

import dataclasses
import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slmkit.codec.base import Codec, Codes
from slmkit.data.index import Corpus
from slmkit.data.shards import Sample, ShardReader
from slmkit.errors import UserError
from slmkit.evaluate.outputs import read_voice, utterance_id, voice_path
from slmkit.evaluate.results import COPY, SEVERAL_MACHINES
from slmkit.evaluate.selection import NamedVoice, Selected, numbers_of
from slmkit.files import atomic_write
from slmkit.infer.batch import BatchSpeaker, engine_shape, forget_lost, store
from slmkit.infer.items import SpeakingTask, SpeechItem
from slmkit.infer.request import SpeakingSettings
from slmkit.infer.synthesizer import Synthesizer, Vector
from slmkit.jobs import JOB, ProgressBar, ResumableJob, read_description
from slmkit.log import get_logger
from slmkit.model.trained_on import TrainedOn
from slmkit.texts import counted

SEED_BYTES = 8
GROWING = ("utterances", "voices")  # settings of a job that may have more than before
log = get_logger(__name__)


def generate(
    synthesizer: Synthesizer,
    corpus: Corpus,
    selected: Sequence[Selected],
    settings: SpeakingSettings,
    out: str | Path,
    *,
    model: str,
    task: SpeakingTask = "tts",
    voices: Sequence[NamedVoice] = (),
    name: str = "",
    trained_on: TrainedOn | None = None,
) -> None:
    """Store the outputs of all utterances that are not in `out` yet. `model` is the hash of the model, `name` is for
    people, `trained_on` what it was trained on, where that is known. SpeakingTask "tts" reads the texts; "qa" answers
    the questions in text and speech.

    Raises UserError when the corpus or a voice is not of the model's codec, or the corpus lacks questions for qa; or as
    `ResumableJob` does.
    """
    _check_codec(corpus, synthesizer.codec)
    for voice in voices:
        if voice.vector.shape != (corpus.codec.speaker_dim,):
            raise UserError(
                f"the voice {voice.name} is not of this codec",
                got=voice.vector.shape,
                expected=corpus.codec.speaker_dim,
            )
    selected, known_voices = _with_earlier(out, corpus, selected, voices)
    stored = _job_settings(task, settings, corpus, selected, known_voices, synthesizer.codec)
    stored = {"model": model, **engine_shape(synthesizer), **stored}
    names = {"model": name, "corpus": str(corpus.directory)}
    with ResumableJob.open(out, stored, growing=GROWING, names=names) as job:
        machine = _machine(synthesizer.model.device)
        if job.records and job.description.get("machine") != machine:
            machine = {"cpu": SEVERAL_MACHINES}
        job.describe(machine=machine, trained_on=_described(trained_on, corpus))
        for voice in voices:
            number = list(known_voices).index(voice.name)
            with atomic_write(voice_path(job.directory, number), replace=True) as file:
                np.save(file, voice.vector, allow_pickle=False)
        items, vectors = _items(job, task, settings, corpus, selected, voices, trained_on)
        speaker = BatchSpeaker(synthesizer, job, task=task, vector_of=lambda item: vectors[item.id], is_scored=True)
        speaker.run(items, len(selected))
        job.finish([utterance_id(place) for place in range(len(selected))])


def copy_synthesis(
    codec: Codec,
    corpus: Corpus,
    selected: Sequence[Selected],
    settings: SpeakingSettings,
    out: str | Path,
    *,
    task: SpeakingTask = "tts",
) -> None:
    """Store the true codes of all utterances, decoded in their voices, as if a model had chosen them.

    Raises UserError as `generate` does.
    """
    _check_codec(corpus, codec)
    selected, _ = _with_earlier(out, corpus, selected, ())
    stored = {"model": COPY, **_job_settings(task, settings, corpus, selected, {}, codec)}
    reader, names = ShardReader(corpus), {"model": COPY, "corpus": str(corpus.directory)}
    with ResumableJob.open(out, stored, growing=GROWING, names=names) as job:
        items, vectors = _items(job, task, settings, corpus, selected, (), None)
        with ProgressBar(len(selected), "utterances", log, initial=len(job.records)) as bar:
            for item in items:
                answer = next(iter(item.columns["true_answers"]), "")
                columns = {"steps": None, "reason": "end", "limit": None, "why": "", "answer": answer}
                codes = true_codes(reader.read(item.columns["number"]), corpus)
                store(job, codec, item, vectors[item.id], codes, {**columns, "engine_sec": None}, is_scored=True)
                bar.show(len(job.records), "copied")
        job.finish([utterance_id(place) for place in range(len(selected))])


def true_codes(sample: Sample, corpus: Corpus) -> Codes:
    """The codes of a sample that a model predicts, uint16 [K, T]: no detail streams."""
    return sample.codes[: len(corpus.codec.lm_streams)]


def seed_of(seed: int, key: str, voice: str) -> int:
    """The seed of one utterance in a run with `seed`."""
    digest = hashlib.sha256(repr((seed, key, voice)).encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest[:SEED_BYTES], "little")


def _with_earlier(
    out: str | Path, corpus: Corpus, selected: Sequence[Selected], voices: Sequence[NamedVoice]
) -> tuple[list[Selected], dict[str, str]]:
    """What is in `out` already, followed by what is new; and the hashes of the voices from outside, likewise.

    An utterance that is there in a voice is not new: another choice may give it another speaker's voice to swap with.
    """
    hashes = {voice.name: hashlib.sha256(voice.vector.tobytes()).hexdigest() for voice in voices}
    if not os.path.isfile(Path(out) / JOB):
        return list(selected), hashes
    settings = read_description(out)["settings"]
    try:
        listed = [(str(key), str(voice), str(voice_key)) for key, voice, voice_key in settings["utterances"]]
        keys = dict.fromkeys([*(key for key, _, _ in listed), *(other for *_, other in listed if other)])
        number_of = dict(zip(keys, numbers_of(corpus, list(keys)), strict=True))
        before = [Selected(number_of[key], key, voice, number_of.get(other), other) for key, voice, other in listed]
        hashes = {**settings["voices"], **hashes}
    except (KeyError, TypeError, ValueError, UserError):  # another job, which opening it will tell
        return list(selected), hashes
    known = {(one.key, one.voice) for one in before}
    new = [one for one in selected if (one.key, one.voice) not in known]
    if before and new:
        log.info("%s has %s, and gets %d more", out, counted(len(before), "utterance"), len(new))
    return [*before, *new], hashes


def _described(trained_on: TrainedOn | None, corpus: Corpus) -> dict[str, Any]:
    """What a model was trained on, for people."""
    if trained_on is None:
        return {"is_known": False}
    sources = [source.model_dump() for source in trained_on.sources]
    return {
        "is_known": True,
        "is_all": trained_on.is_all,
        "sources": sources,
        "held_out": trained_on.held_out,
        "is_same_corpus": corpus.fingerprint in {source["sha256"] for source in sources},
    }


def _machine(device: torch.device) -> dict[str, str]:
    """What speeds depend on, besides the settings of a job: they are compared only where this is equal."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    found = {"cpu": next(named, platform.machine())}
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def _check_codec(corpus: Corpus, codec: Codec) -> None:
    corpus.codec.check_compatible(codec.spec, this=str(corpus.directory), that="the evaluation")
    if corpus.codec.speaker_dim != codec.spec.speaker_dim:
        raise UserError(
            f"{corpus.directory} cannot be evaluated: its speaker vectors are not the codec's",
            got=f"width {corpus.codec.speaker_dim}",
            expected=f"width {codec.spec.speaker_dim}",
            next_step="give the codec directory that the corpus was tokenized with",
        )


def _job_settings(
    task: SpeakingTask,
    settings: SpeakingSettings,
    corpus: Corpus,
    selected: Sequence[Selected],
    voices: Mapping[str, str],
    codec: Codec,
) -> dict[str, Any]:
    return {
        "task": task,
        "seed": settings.seed,
        "max_sec": settings.max_sec,
        "max_text_tokens": settings.max_text_tokens,
        "watch": settings.watch,
        "max_retries": settings.max_retries,
        "sampling": dataclasses.asdict(settings.sampling),
        "text_sampling": dataclasses.asdict(settings.text_sampling),
        "codec": codec.spec.to_dict(),
        "corpus": corpus.fingerprint,
        "voices": dict(voices),
        "utterances": [[one.key, one.voice, one.voice_key] for one in selected],
    }


def _items(
    job: ResumableJob,
    task: SpeakingTask,
    settings: SpeakingSettings,
    corpus: Corpus,
    selected: Sequence[Selected],
    voices: Sequence[NamedVoice],
    trained_on: TrainedOn | None,
) -> tuple[list[SpeechItem], dict[str, Vector]]:
    """What is to be spoken and has no whole record yet, with all that is known of it before; and the voices by id."""
    forget_lost(job, is_scored=True)
    reader, items, vectors = ShardReader(corpus), [], {}
    outside, known_voices = {voice.name: voice.vector for voice in voices}, list(job.description["settings"]["voices"])
    for place, one in enumerate(selected):
        name = utterance_id(place)
        if name in job.records:
            continue
        sample = reader.read(one.number)
        text = str(sample.meta.get("text", ""))
        question, true_answers = _question(sample, corpus) if task == "qa" else ("", ())
        speaker, vector = one.voice, outside.get(one.voice)
        if one.voice_number is not None:
            spoken_by = sample if one.voice_number == one.number else reader.read(one.voice_number)
            speaker, vector = str(spoken_by.meta.get("speaker", "")), spoken_by.speaker
        elif vector is None and one.voice in known_voices:  # of an earlier start
            number = known_voices.index(one.voice)
            vector = outside[one.voice] = read_voice(job.directory, number, corpus.codec.speaker_dim)
        if vector is None:
            vector = np.zeros(corpus.codec.speaker_dim, np.float32)
        voice = f"{one.voice} {one.voice_key}"
        seed = seed_of(settings.seed, one.key, voice)
        known: dict[str, Any] = {"trained_on": None, "trained_voice": None}
        if trained_on is not None:
            known["trained_on"] = bool(trained_on.has_keys([one.key])[0])
            if one.voice_number is not None and speaker:
                known["trained_voice"] = bool(trained_on.has_speakers([speaker])[0])
        known |= {"speaker": speaker, "text": text, "seed": seed, "question": question, "true_answers": true_answers}
        columns = {"place": place, **one._asdict(), **known}
        wanted = dataclasses.replace(settings, seed=seed)
        items.append(SpeechItem(name, question if task == "qa" else text, voice, wanted, columns))
        vectors[name] = vector
    return items, vectors


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
