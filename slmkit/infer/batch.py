"""Speaking many texts into a directory, in batches, over as many starts as it takes: the lines of a file, or the
utterances of an evaluation.

    OUT/wav/ID.wav        one answer
    OUT/codes/ID.npy      its codes uint16 [K, T], where they are to be scored
    OUT/outputs.jsonl     a line for each of them, in order: id, wav, seconds, frames, steps, reason, limit, warning,
                          attempts, runaways, request (a hash of what was asked); of questions the answer in words; of a
                          text of several sentences "sentences", a `SpokenSentence` each, in order
    OUT/failures.jsonl    a line for each line of a file that gave no speech, with its reason
    OUT/job.json          model, codec and task; and the engines that did the work

`jobs` says how a job that was killed continues. Whatever is wrong with a line, it is that line's failure and stops no
other; the next start tries it again. An engine that fails at one line after the other ends the start instead: that is
the machine's fault. Lines may be added to a file, and failed ones corrected; a change to a line that
was spoken is an error, since nothing is replaced unasked.

Law: an answer depends on its item, the model, the codec and the engine (slots, positions, threads, device), not on what
else is in the job or how often it was interrupted. Another engine may round otherwise; `job.json` lists all.

Invariant: lines of the file = lines of outputs.jsonl + lines of failures.jsonl.

Example:
    listed = read_items("sentences.jsonl", "tts", SpeakingSettings(), speaker="voice.wav")
    speak_all(synthesizer, listed, "out", task="tts", model=export_sha256("exports/mtp3"))
"""

import contextlib
import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from slmkit.audio.encode import encoded
from slmkit.codec.base import Codec, Codes
from slmkit.data.ledger import FAILURES_FILE, Failure, most_common
from slmkit.errors import BadSample, UserError
from slmkit.files import atomic_write
from slmkit.infer.engine import MAX_LONE_FAILURES
from slmkit.infer.items import Listed, SpeakingTask, SpeechItem
from slmkit.infer.passage import Passage, SpokenSentence, joined, joined_wave, unspoken
from slmkit.infer.request import NOT_FINITE, SHOWN_WORDS_CHARS, Output, Request, without_speech
from slmkit.infer.shares import (
    WAVES_DIR,
    Share,
    Spoken,
    check_all_spoken,
    failures_in,
    is_whole,
    move_shares,
    read_shares,
    remove_shares,
    spoken_elsewhere,
)
from slmkit.infer.synthesizer import Synthesizer, Vector
from slmkit.jobs import ELSEWHERE, JobRecord, ProgressBar, ResumableJob, check_same, read_description
from slmkit.log import get_logger
from slmkit.texts import counted, excerpt

CODES_DIR = "codes"
ENGINE_FAILED = "engine_failed"  # the reason for what the machine failed at, as for want of memory
MACHINE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)
log = get_logger(__name__)


class Summary(NamedTuple):
    """What came of a file."""

    num_outputs: int  # in all, those of earlier starts too
    num_limited: int  # of them, stopped by a limit
    failures: Sequence[Failure]
    spoken_sec: float  # of speech, by this start alone
    took_sec: float
    num_runaways: int = 0  # of the outputs, stopped by the watch in their best attempt
    num_short: int = 0  # far shorter than their text
    num_retried: int = 0  # tried more than once
    is_joined: bool = False  # other processes spoke them

    def line(self) -> str:
        """For people."""
        notes = [f"{self.num_limited} stopped by a limit"]
        notes += [counted(self.num_runaways, "runaway")] * (self.num_runaways > 0)
        notes += [f"{self.num_short} far too short"] * (self.num_short > 0)
        notes += [f"{self.num_retried} tried again"] * (self.num_retried > 0)
        words = f"{counted(self.num_outputs, 'answer')} ({', '.join(notes)}), "
        words += f"{counted(len(self.failures), 'failure')}; "
        if not self.spoken_sec:
            return words + ("joined from what tasks have spoken" if self.is_joined else "nothing was left to speak")
        factor = self.took_sec / self.spoken_sec
        return f"{words}{self.spoken_sec:.1f} s of speech in {self.took_sec:.1f} s, real-time factor {factor:.3f}"


def speak_all(
    synthesizer: Synthesizer,
    listed: Listed,
    out_dir: str | Path,
    *,
    task: SpeakingTask,
    model: str,
    max_failure_share: float = 0.05,
    share: Share | None = None,
) -> Summary:
    """Speak what is not spoken yet; `model` is the hash of the synthesizer's model. Of a `share` its lines alone, to be
    joined by `join_shares`, which also judges the failures; without one what tasks have spoken is joined first.

    Raises UserError when `out_dir` is not of this work or another process is at it, the disk refuses, or more than
    `max_failure_share` of the lines give no speech: at the end, when all that could be spoken is there.
    """
    settings = {"task": task, "model": model, "codec": synthesizer.codec.spec.weights_sha256}
    voices, began = synthesizer.voices, time.perf_counter()
    with ResumableJob.open(out_dir if share is None else share.directory(out_dir), settings) as job:
        items, asked = listed.items, {item.id: item.digest for item in listed.items}
        _check_same_lines(out_dir, asked, job.records)
        forget_lost(job)
        if share is None:
            _take_in(job, asked, read_shares(out_dir))
        else:
            others = spoken_elsewhere(out_dir, share)
            items = [item for item in items[share.number :: share.total] if item.id not in others]
        _note_engines(job, [engine_shape(synthesizer)])
        speaker = BatchSpeaker(synthesizer, job, task=task, vector_of=lambda item: voices.vector(item.speaker))
        speaker.run(items, len(items))
        if share is not None:
            speaker.check_engine()  # whoever joins the tasks would take the failure for the line's
        failures = [speaker.failures[item.id] for item in items if item.id in speaker.failures]
        failures = [*(listed.failures if share is None else ()), *failures]
        records = _finish(job, [*asked], failures)
    if share is None:
        remove_shares(out_dir)
    summary = _summary(records, failures, speaker.spoken_sec, began)
    if share is None:
        _check_failure_share(failures, len(records), max_failure_share, Path(out_dir))
    return summary


def join_shares(listed: Listed, out_dir: str | Path, *, task: SpeakingTask, max_failure_share: float = 0.05) -> Summary:
    """Make one job of what the tasks have spoken of the lines; the model is not needed.

    Raises UserError when they have not tried all lines, or spoken others; a task is at work; or too many lines failed:
    then all is joined.
    """
    began, spoken = time.perf_counter(), read_shares(out_dir)
    settings = spoken.settings or read_description(out_dir)["settings"]
    check_same(out_dir, {"task": settings.get("task")}, {"task": task})
    with ResumableJob.open(out_dir, settings) as job:
        asked = {item.id: item.digest for item in listed.items}
        _check_same_lines(out_dir, asked, job.records)
        failed = {**failures_in(job.directory), **spoken.failures}
        known = {*job.records, *spoken.records, *failed}
        check_all_spoken(out_dir, [name for name in asked if name not in known], len(asked))
        _take_in(job, asked, spoken)
        failures = [*listed.failures, *(failed[name] for name in asked if name not in job.records)]
        records = _finish(job, [*asked], failures)
    remove_shares(out_dir)
    summary = _summary(records, failures, 0.0, began)._replace(is_joined=bool(spoken.records))
    _check_failure_share(failures, len(records), max_failure_share, Path(out_dir))
    return summary


def _take_in(job: ResumableJob, asked: Mapping[str, str], spoken: Spoken) -> None:
    """Make the answers of the tasks those of `job`; until it is finished, their own records stay."""
    if spoken.settings is None:
        return
    check_same(job.directory, job.description["settings"], spoken.settings)
    _check_same_lines(job.directory, asked, spoken.records)
    move_shares(job.directory, spoken)
    job.records.update(spoken.records)
    _note_engines(job, spoken.engines)


def _note_engines(job: ResumableJob, shapes: Sequence[Any]) -> None:
    """Keep which engines were at work, and warn where there are several."""
    engines = job.description.get("engines")
    engines = engines if isinstance(engines, list) else []
    new = [shape for shape in shapes if shape not in engines]
    if new:
        engines = [*engines, *new]
        job.describe(engines=engines)
    if len(engines) > 1:
        log.warning("answers in %s are of several engines and may differ in roundings: %s", job.directory, engines)


def _check_same_lines(out_dir: str | Path, asked: Mapping[str, str], records: Mapping[str, JobRecord]) -> None:
    """Raise UserError where a record is not the answer to what its line asks; `asked` has digests by id."""
    for name, record in records.items():
        if asked.get(name) != record.get("request"):
            raise UserError(
                f"{out_dir} holds the answer to another line: {name}",
                got=f"a line with another text, speaker or setting, or no line {name}",
                next_step=ELSEWHERE,
            )


def _finish(job: ResumableJob, ids: Sequence[str], failures: Iterable[Failure]) -> list[JobRecord]:
    with atomic_write(job.directory / FAILURES_FILE, replace=True) as file:
        file.writelines(failure.line() for failure in failures)
    return job.finish(ids)


def _summary(records: Sequence[JobRecord], failures: Sequence[Failure], spoken_sec: float, began: float) -> Summary:
    limited, runaways = (sum(record.get("reason") == reason for record in records) for reason in ("limit", "runaway"))
    short = sum(record.get("warning") == "short" for record in records)
    retried = sum(record.get("attempts", 1) != 1 for record in records)
    took_sec = time.perf_counter() - began
    return Summary(len(records), limited, failures, spoken_sec, took_sec, runaways, short, retried)


def engine_shape(synthesizer: Synthesizer) -> dict[str, Any]:
    """What roundings may depend on."""
    engine, device = synthesizer.engine, synthesizer.model.device.type
    shape: dict[str, Any] = {"slots": engine.num_slots, "positions": engine.num_positions}
    shape |= {"device": device, "threads": torch.get_num_threads()}
    dtype = str(synthesizer.model.dtype).removeprefix("torch.")
    return shape if dtype == "float32" else {**shape, "dtype": dtype}


class _Begun:
    """An item of which the engine has sentences, or answers."""

    def __init__(self, item: SpeechItem, vector: Vector, passage: Passage) -> None:
        self.item, self.vector, self.passage = item, vector, passage
        self.outputs: dict[int, Output] = {}  # by place of the sentence
        self.engine_sec = 0.0

    @property
    def is_done(self) -> bool:
        return len(self.outputs) == len(self.passage.requests)


class BatchSpeaker:
    """One start of a job: speaks the items that have no record yet.

    Whatever is wrong with an item, or with the answer to it, is that item's failure, and the others go on. Where
    answers are to be scored, texts are read in one piece, as in training; their codes are kept, and failures are
    records, too: "refused", and why. What the engine failed at has no record: another start may be luckier.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        job: ResumableJob,
        *,
        task: SpeakingTask,
        vector_of: Callable[[SpeechItem], Vector],
        is_scored: bool = False,
    ) -> None:
        """`vector_of` gives the voice of an item, float32 [D], or raises UserError."""
        self.failures: dict[str, Failure] = {}
        self.spoken_sec = 0.0
        self._synthesizer, self._job, self._task = synthesizer, job, task
        self._vector_of, self._is_scored = vector_of, is_scored
        self._begun: dict[str, _Begun] = {}  # by id
        self._asked: dict[int, tuple[_Begun, int]] = {}  # item and place of the sentence, by number of the request
        self._began, self._preparing_sec = time.perf_counter(), 0.0
        self._num_lone_failures = 0  # since the engine gave an answer

    def run(self, items: Iterable[SpeechItem], total: int) -> None:
        """Speak them; `total` counts them all. Raises UserError when the disk refuses, or the engine fails at
        `MAX_LONE_FAILURES` answers in a row; and where answers are to be scored as `check_engine`."""
        if self._job.records:
            log.info("%d of %d are spoken already", len(self._job.records), total)
        waiting = iter(items)
        with ProgressBar(total, "answers", log, initial=len(self._job.records)) as bar:
            while not self._run_engine(self._requests(waiting), bar):
                # Which of them it was is not known. An answer depends on its request alone, so each is computed again
                # without company, and whoever fails then is the one.
                for begun in list(self._begun.values()):
                    for place, request in enumerate(begun.passage.requests):
                        if place in begun.outputs:
                            continue
                        self._asked = {0: (begun, place)}
                        if not self._run_engine(iter([request]), bar):
                            why = "the engine failed at it; the log says how"
                            self._fail(begun.item, BadSample(ENGINE_FAILED, why))
                            self._num_lone_failures += 1
                            if self._num_lone_failures == MAX_LONE_FAILURES:
                                self.check_engine()
                            break
                self._asked, self._begun = {}, {}
        if self._is_scored:
            self.check_engine()

    def check_engine(self) -> None:
        """Raise UserError where the engine failed at items, which then have no record."""
        names = [name for name, failure in self.failures.items() if failure.reason == ENGINE_FAILED]
        if names:
            raise UserError(
                f"the engine failed at {counted(len(names), 'answer')}; the log says how",
                got=f"{names[0]} was the first",
                next_step="start the same command again, perhaps with fewer --slots: all else that is spoken is kept",
            )

    def _run_engine(self, requests: Iterator[Request], bar: ProgressBar) -> bool:
        """Keep what the engine answers. False when it fails; `_asked` then has those who were in it."""
        with contextlib.closing(self._synthesizer.engine.run(requests)) as outputs:
            while True:
                began, self._preparing_sec = time.perf_counter(), 0.0
                try:
                    number, output = next(outputs, (-1, None))
                except (RuntimeError, ValueError):  # torch's, as for want of memory
                    log.exception("the engine failed with %s", counted(len(self._asked), "answer"))
                    return False
                engine_sec = time.perf_counter() - began - self._preparing_sec
                if output is None:
                    return True
                self._num_lone_failures = 0
                begun, place = self._asked.pop(number)
                begun.outputs[place] = output
                begun.engine_sec += engine_sec
                if not begun.is_done:
                    continue
                del self._begun[begun.item.id]
                try:
                    self._keep(begun)
                except BadSample as error:
                    self._fail(begun.item, error)
                took_sec = time.perf_counter() - self._began
                factor = f", real-time factor {took_sec / self.spoken_sec:.3f}" if self.spoken_sec else ""
                bar.show(len(self._job.records) + len(self.failures), f"{self.spoken_sec:.1f} s of speech{factor}")

    def _requests(self, items: Iterator[SpeechItem]) -> Iterator[Request]:
        """Requests as the engine has room for them; what cannot be asked is a failure."""
        numbers = itertools.count()
        for item in items:
            if item.id in self._job.records:
                continue
            began = time.perf_counter()
            reason = "bad_speaker"
            try:
                vector = self._vector_of(item)
                reason = "refused"
                passage = self._passage(item, vector)
            except UserError as error:
                self._fail(item, BadSample(reason, error.what, got=error.got, expected=error.expected))
                continue
            except (RuntimeError, ValueError, OSError) as error:  # whatever libraries find odd about a strange file
                reason = ENGINE_FAILED if isinstance(error, MACHINE_ERRORS) else reason
                self._fail(item, BadSample(reason, f"it cannot be asked: {error}"))
                continue
            finally:
                self._preparing_sec += time.perf_counter() - began
            begun = self._begun[item.id] = _Begun(item, vector, passage)
            for place, request in enumerate(passage.requests):
                self._asked[next(numbers)] = begun, place
                yield request

    def _passage(self, item: SpeechItem, vector: Vector) -> Passage:
        """Raises UserError where it cannot be asked."""
        options = dataclasses.asdict(item.settings)
        if self._task == "tts" and not self._is_scored:
            return self._synthesizer.passage(item.text, vector, normalize=item.normalize, **options)
        ask = self._synthesizer.reading if self._task == "tts" else self._synthesizer.answering
        passage = Passage.of(item.text, ask(item.text, vector, **options))
        self._synthesizer.engine.check(passage.requests[0])
        return passage

    def _keep(self, begun: _Begun) -> None:
        """Write the files of an answer, then its record. Raises BadSample where there is nothing to keep."""
        item, outputs = begun.item, [begun.outputs[place] for place in range(len(begun.outputs))]
        if any(output.limit == "not_finite" for output in outputs):
            raise BadSample("not_finite", NOT_FINITE)
        output, sentences = joined(outputs), begun.passage.told(outputs)
        words = self._synthesizer.words_of(output).text
        columns: JobRecord = {"steps": output.num_steps, "reason": output.reason, "limit": output.limit}
        columns |= {"warning": output.warning, "attempts": output.attempts, "runaways": output.runaways}
        if self._is_scored:
            columns |= {"why": "", "answer": words, "engine_sec": begun.engine_sec}
        elif not output.codes.shape[1]:
            said = f"; its words: {excerpt(words, SHOWN_WORDS_CHARS)}" if self._task == "qa" else ""
            raise BadSample("no_speech", without_speech(output.limit) + said)
        elif self._task == "qa":
            columns["answer"] = words
        elif len(sentences) > 1:
            columns["sentences"] = [sentence._asdict() for sentence in sentences]
            if silent := unspoken(sentences):
                log.warning("%s: %s", item.id, silent)
        codec = self._synthesizer.codec
        record = store(self._job, codec, item, begun.vector, output.codes, columns, self._is_scored, sentences)
        self.spoken_sec += record["seconds"]

    def _fail(self, item: SpeechItem, error: BadSample) -> None:
        if not self._is_scored or error.reason == ENGINE_FAILED:
            self.failures[item.id] = Failure.of(item.id, error)
            return
        columns = {"steps": 0, "reason": "refused", "limit": None, "why": error.what, "answer": "", "engine_sec": 0.0}
        codec = self._synthesizer.codec
        no_codes = np.zeros((len(codec.spec.lm_streams), 0), np.uint16)
        store(self._job, codec, item, np.zeros(codec.spec.speaker_dim, np.float32), no_codes, columns, True)


def forget_lost(job: ResumableJob, *, is_scored: bool = False) -> None:
    """Leave out damaged records, and those whose wave, or codes where they are scored, is not there any more."""
    for name, record in list(job.records.items()):
        has_codes = not is_scored or (job.directory / CODES_DIR / f"{name}.npy").is_file()
        if not (has_codes and is_whole(record, job.directory)):
            del job.records[name]


def store(
    job: ResumableJob,
    codec: Codec,
    item: SpeechItem,
    vector: Vector,
    codes: Codes,
    columns: JobRecord,
    is_scored: bool,
    sentences: Sequence[SpokenSentence] = (),
) -> JobRecord:
    """Write the wave of codes uint16 [K, T] in the voice `vector`, float32 [D], those of `sentences` where there are
    several; the codes, if they are to be scored; and then the record.

    Raises UserError when the disk refuses, and BadSample where the codec makes no sound of the codes, or the machine
    fails at that. To be scored, the former is a record, too, without frames.
    """
    record: JobRecord = {"id": item.id, "wav": None, "seconds": 0.0, "frames": codes.shape[1]}
    content = b""
    if codes.shape[1]:
        rate = codec.spec.sample_rate
        try:
            wave = joined_wave(codec, codes, vector, sentences)
            content = encoded(wave, rate, "wav")
            record |= {"wav": f"{WAVES_DIR}/{item.id}.wav", "seconds": len(wave) / rate}
        except MACHINE_ERRORS as error:
            raise BadSample(ENGINE_FAILED, f"the machine failed to turn the codes into sound: {error}") from error
        except (RuntimeError, ValueError) as error:
            failure = BadSample("no_sound", f"the codec could not turn the codes into sound: {error}")
            if not is_scored:
                raise failure from error
            codes, columns = codes[:, :0], {**columns, "reason": "refused", "why": failure.what}
            record["frames"] = 0
    if content:
        # A wave without a record is of a start that was killed. Its bytes are made above and not by calls from a
        # library in C, which would swallow the signal to stop.
        with atomic_write(job.directory / record["wav"], replace=True) as file:
            file.write(content)
    if is_scored:
        with atomic_write(job.directory / CODES_DIR / f"{item.id}.npy", replace=True) as file:
            np.save(file, codes, allow_pickle=False)
    record |= {**columns, "request": item.digest, **item.columns}
    job.add(record)
    return record


def _check_failure_share(failures: Sequence[Failure], num_spoken: int, most: float, out_dir: Path) -> None:
    total = num_spoken + len(failures)
    if len(failures) <= most * total:
        return
    first, spoken = failures[0], "all else is spoken" if num_spoken else "nothing was spoken"
    raise UserError(
        f"{len(failures)} of {counted(total, 'line')} failed ({first.key}: {first.detail})",
        got=most_common(Counter(failure.reason for failure in failures)),
        expected=f"a share of at most {most}",
        next_step=f"fix them, or allow more with --max-failure-share; see {out_dir / FAILURES_FILE}; {spoken}",
    )
