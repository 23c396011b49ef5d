"""Speaking a whole file of sentences or questions into a directory, in batches, over as many starts as it takes.

    OUT/wav/ID.wav        one answer
    OUT/outputs.jsonl     a line for each of them, in the order of the file: id, wav, seconds, frames, steps, reason,
                          limit, request (a hash of what was asked), and for questions the words of the answer
    OUT/failures.jsonl    a line for each item that gave no speech, with its reason
    OUT/job.json          model, codec and engines that did the work

`outputs.jsonl` is written last. Until then finished answers are noted in `OUT/.outputs.part` as they come, so that the
same call goes on where a killed one was: what is noted is kept, failures are tried again. Lines may be added to the
file, or mended where they failed; a change to one that was spoken is an error, for nothing is replaced unasked.

Law: an answer depends on its line, the model, the codec and the engine (slots, positions, threads, device), not on what
else is in the file or how often the work was interrupted. Another engine may round otherwise; `job.json` lists all.

Invariant: lines of the file = lines of outputs.jsonl + lines of failures.jsonl.

Example:
    listed = read_lines("sentences.jsonl", "read", Settings(speaker="voice.wav"))
    speak_all(synthesizer, listed, "out", task="read", model=fingerprint("exports/mtp3"))
"""

import fcntl
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from slmkit.audio.encode import encoded
from slmkit.data.ledger import Failure
from slmkit.errors import BadSample, UserError
from slmkit.files import atomic_write, disk_error, provenance, read_json, sha256_file, write_json
from slmkit.infer.answer import answer_words
from slmkit.infer.lines import Item, Listed, Task
from slmkit.infer.request import Output, Request
from slmkit.infer.synthesizer import Synthesizer
from slmkit.infer.voices import Voices
from slmkit.log import get_logger

OUTPUTS, FAILURES, JOB, WAVES, NOTES = "outputs.jsonl", "failures.jsonl", "job.json", "wav", ".outputs.part"
REPORT_EVERY_SEC = 5.0
SHOWN_REASONS = 5
ELSEWHERE = "choose another output directory"
Record = dict[str, Any]
log = get_logger(__name__)


class Summary(NamedTuple):
    """What came of a file."""

    num_outputs: int  # in all, those of earlier starts too
    num_limited: int  # of them, stopped by a limit
    failures: Sequence[Failure]
    spoken_sec: float  # of speech, by this start alone
    took_sec: float

    def line(self) -> str:
        """For people."""
        words = f"{self.num_outputs} answers ({self.num_limited} stopped by a limit), {len(self.failures)} failures; "
        if not self.spoken_sec:
            return words + "nothing was left to speak"
        factor = self.took_sec / self.spoken_sec
        return f"{words}{self.spoken_sec:.1f} s of speech in {self.took_sec:.1f} s, real-time factor {factor:.3f}"


def fingerprint(model_dir: str | Path) -> str:
    """A hash of the weights of an export."""
    files = sorted(Path(model_dir).glob("*.safetensors"))
    return ",".join(sha256_file(file)[:16] for file in files)


def speak_all(
    synthesizer: Synthesizer,
    listed: Listed,
    out_dir: str | Path,
    *,
    task: Task,
    model: str,
    max_failure_share: float = 0.05,
) -> Summary:
    """Speak what is not spoken yet; `model` is the `fingerprint` of the synthesizer's model.

    Raises UserError when `out_dir` is not of this work or another process is at it, the disk refuses, or more than
    `max_failure_share` of the lines give no speech: at the start where the lines themselves say so, else at the end,
    when all that could be spoken is there.
    """
    total = len(listed.items) + len(listed.failures)
    _check_share(listed.failures, total, max_failure_share, "nothing was spoken")
    with _job(Path(out_dir), synthesizer, task, model) as notes:
        work = _Work(synthesizer, Path(out_dir), task, notes, _done(Path(out_dir), listed.items))
        work.run(listed.items)
        summary = _finish(Path(out_dir), listed, work)
    _check_share(summary.failures, total, max_failure_share, f"see {Path(out_dir) / FAILURES}; all else is spoken")
    return summary


class _Work:
    """One start: what was spoken before, what is spoken now, what failed."""

    def __init__(
        self, synthesizer: Synthesizer, out_dir: Path, task: Task, notes: IO[bytes], records: dict[str, Record]
    ) -> None:
        self.synthesizer, self.out_dir, self.task, self.notes, self.records = synthesizer, out_dir, task, notes, records
        self.failures: dict[str, Failure] = {}
        self.spoken_sec, self.began, self._reported = 0.0, time.perf_counter(), time.perf_counter()
        self._voices = Voices(synthesizer.read_speaker)
        self._asked: list[Item] = []  # by number of the request

    def run(self, items: Sequence[Item]) -> None:
        waiting = [item for item in items if item.id not in self.records]
        if len(waiting) < len(items):
            log.info("%d of %d are spoken already", len(items) - len(waiting), len(items))
        for number, output in self.synthesizer.run(self._requests(waiting)):
            item = self._asked[number]
            try:
                self.records[item.id] = record = self._spoken(item, output)
                self._note(record)
            except BadSample as error:
                self.failures[item.id] = Failure.of(item.id, error)
            self._report(len(items))

    def _requests(self, items: Sequence[Item]) -> Iterator[Request]:
        """Requests as the engine has room for them; what cannot be asked is a failure."""
        for item in items:
            try:
                request = self._request(item)
            except BadSample as error:
                self.failures[item.id] = Failure.of(item.id, error)
                continue
            self._asked.append(item)
            yield request

    def _request(self, item: Item) -> Request:
        """Raises BadSample where speaker or text cannot be used."""
        settings = item.settings
        ask = self.synthesizer.reading if self.task == "read" else self.synthesizer.answering
        try:
            speaker = self._voices.vector(settings.speaker)
        except UserError as error:
            raise _refused("bad_speaker", error) from error
        try:
            request = ask(item.text, speaker, **settings.options)
            self.synthesizer.engine.check(request)
        except UserError as error:
            raise _refused("refused", error) from error
        return request

    def _spoken(self, item: Item, output: Output) -> Record:
        """Write the wave. Raises BadSample where there is none."""
        words = {"text": self._words(output)} if self.task == "answer" else {}
        if not output.codes.shape[1]:
            said = f"; its words: {words['text']}" if words else ""
            raise BadSample("no_speech", f"the model gave no speech (it stopped by: {output.limit or 'its end'}){said}")
        speaker = torch.from_numpy(self._voices.vector(item.settings.speaker))
        wave, rate = self.synthesizer.decode(output.codes, speaker), self.synthesizer.codec.spec.sample_rate
        name = f"{WAVES}/{item.id}.wav"
        # A wave without a note is of a start that was killed. Its bytes are made here and not by calls from a library
        # in C, which would swallow the signal to stop.
        with atomic_write(self.out_dir / name, replace=True) as file:
            file.write(encoded(wave, rate, "wav"))
        self.spoken_sec += len(wave) / rate
        return {
            "id": item.id,
            "wav": name,
            "seconds": len(wave) / rate,
            "frames": output.codes.shape[1],
            "steps": output.num_steps,
            "reason": output.reason,
            "limit": output.limit,
            **words,
            "request": item.digest,
        }

    def _words(self, output: Output) -> str:
        return answer_words(output.text_ids, self.synthesizer.model.layout, self.synthesizer.tokenizer.decode).text

    def _note(self, record: Record) -> None:
        line = _line(record)
        try:
            while line:  # a disk that is nearly full takes a part
                line = line[self.notes.write(line) :]
        except OSError as error:
            raise disk_error(self.out_dir / NOTES, error) from error

    def _report(self, total: int) -> None:
        now = time.perf_counter()
        if now - self._reported < REPORT_EVERY_SEC or not self.spoken_sec:
            return
        self._reported = now
        factor = (now - self.began) / self.spoken_sec
        done = len(self.records) + len(self.failures)
        log.info("%d of %d done, %.1f s of speech, real-time factor %.3f", done, total, self.spoken_sec, factor)


@contextmanager
def _job(out_dir: Path, synthesizer: Synthesizer, task: Task, model: str) -> Iterator[IO[bytes]]:
    """The open file of notes of a job that is ours alone."""
    made = {"task": task, "model": model, "codec": synthesizer.codec.spec.weights_sha256}
    before = _earlier(out_dir, made)
    engine = synthesizer.engine
    shape: Record = {"slots": engine.num_slots, "positions": engine.num_positions}
    shape |= {"threads": torch.get_num_threads(), "device": synthesizer.model.device.type}
    engines = [*before["engines"], *([] if shape in before["engines"] else [shape])]
    if len(engines) > 1:
        log.warning("answers in %s are of several engines and may differ in roundings: %s", out_dir, engines)
    with _notes(out_dir) as notes:
        write_json(out_dir / JOB, {**before, "engines": engines}, replace=True)
        yield notes


def _earlier(out_dir: Path, made: Record) -> Record:
    """What job.json says, or would say of a new job. Raises UserError where the directory is not of this job."""
    if (out_dir / JOB).is_file():
        before: Record = read_json(out_dir / JOB)
        if not isinstance(before, dict) or not isinstance(before.get("engines"), list):
            raise UserError(f"{out_dir / JOB} is damaged", next_step=ELSEWHERE)
        for name, value in made.items():
            if before.get(name) != value:
                what, expected = f"{out_dir} was made with another {name}", before.get(name)
                raise UserError(what, got=value, expected=expected, next_step=ELSEWHERE)
        return before
    if out_dir.exists() and (not out_dir.is_dir() or {path.name for path in out_dir.iterdir()} - {NOTES}):
        raise UserError("the output directory exists and holds something else", got=out_dir, next_step=ELSEWHERE)
    return {**made, "made_by": provenance(), "engines": []}


@contextmanager
def _notes(out_dir: Path) -> Iterator[IO[bytes]]:
    """The file of notes, open at its end, for one process at a time. What is written is there at once."""
    path = out_dir / NOTES
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise disk_error(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError("another process is at work there", got=out_dir, next_step="wait for it") from error
        file.truncate(path.read_bytes().rfind(b"\n") + 1)  # a killed process may leave half a line
        yield file


def _done(out_dir: Path, items: Sequence[Item]) -> dict[str, Record]:
    """Records of earlier starts by id. Raises UserError where one was asked for something else."""
    asked = {item.id: item.digest for item in items}
    records = {}
    for path in (out_dir / OUTPUTS, out_dir / NOTES):
        for line in path.read_bytes().splitlines() if path.is_file() else []:
            try:
                record = json.loads(line)
                name, digest, wave = record["id"], record["request"], out_dir / record["wav"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} is damaged: {error!r}", next_step=ELSEWHERE) from error
            if asked.get(name) != digest:
                raise UserError(
                    f"{out_dir} holds an answer to something else: {name}",
                    got=f"a line with another text, speaker or setting, or no line {name}",
                    next_step=ELSEWHERE,
                )
            if wave.is_file():
                records[name] = record
    return records


def _finish(out_dir: Path, listed: Listed, work: _Work) -> Summary:
    """Write ledger and manifest, in the order of the file."""
    took_sec = time.perf_counter() - work.began
    failures = [*listed.failures, *(work.failures[item.id] for item in listed.items if item.id in work.failures)]
    records = [work.records[item.id] for item in listed.items if item.id in work.records]
    with atomic_write(out_dir / FAILURES, replace=True) as file:
        file.writelines(failure.line() for failure in failures)
    with atomic_write(out_dir / OUTPUTS, replace=True) as file:
        file.writelines(_line(record) for record in records)
    for part in out_dir.rglob(".*.*.part"):  # of processes that were killed
        part.unlink(missing_ok=True)
    (out_dir / NOTES).unlink()
    limited = sum(record["reason"] == "limit" for record in records)
    return Summary(len(records), limited, failures, work.spoken_sec, took_sec)


def _line(record: Record) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def _refused(reason: str, error: UserError) -> BadSample:
    return BadSample(reason, error.what, got=error.got, expected=error.expected)


def _check_share(failures: Sequence[Failure], total: int, most: float, note: str) -> None:
    if len(failures) <= most * total:
        return
    reasons = Counter(failure.reason for failure in failures)
    first = failures[0]
    raise UserError(
        f"{len(failures)} of {total} lines failed ({first.key}: {first.detail})",
        got=", ".join(f"{reason} {count}" for reason, count in reasons.most_common(SHOWN_REASONS)),
        expected=f"a share of at most {most}",
        next_step=f"mend them, or allow a larger share with --max-failure-share; {note}",
    )
