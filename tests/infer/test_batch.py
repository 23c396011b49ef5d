"""A file of sentences into a directory: interrupted, mended, with voices that are not there and disks that are full."""

import fcntl
import json
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spoken import hashes, make_spoken

from slmkit.audio.io import read_audio
from slmkit.data.ledger import FAILURES_FILE
from slmkit.errors import UserError
from slmkit.files import read_json
from slmkit.infer import batch, synthesizer
from slmkit.infer.batch import Summary, join_shares, speak_all
from slmkit.infer.items import SpeakingTask, read_items
from slmkit.infer.request import SpeakingSettings
from slmkit.infer.shares import SHARES_DIR, Share, spoken_elsewhere
from slmkit.infer.synthesizer import Synthesizer
from slmkit.jobs import JOB, NOTES, RECORDS

VOICE = "voice.npy"
Lines = list[dict[str, Any]]
LINES: Lines = [
    {"id": "river", "text": "The river froze"},
    {"text": "Eleven lanterns along the wall", "seed": 5, "temperature": 1.0, "text_temperature": 0.0},
    {"id": "boat", "text": "The last boat left", "speaker": "corpus:u3"},
    {"text": "🎉 party 🎉", "max_sec": 0.1},
    {"id": "wav", "text": "A clock", "speaker": "voice.wav"},
    {"text": "Zażółć gęślą jaźń", "temperature": 0.8, "top_k": 5, "repetition_penalty": 1.2, "text_temperature": 0},
    {"id": "mute", "text": "A clock", "max_text_tokens": 1},
    {"id": "gone", "text": "A clock", "speaker": "nobody.wav"},
    {"id": "none", "text": "A clock", "speaker": "corpus:nobody"},
    {"text": ""},
    {"id": "whose", "text": "A clock", "speaker": ""},
]
FAILED = {"mute": "no_speech", "gone": "bad_speaker", "none": "bad_speaker", "000010": "empty_text"}
FAILED["whose"] = "bad_speaker"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_spoken(tmp_path_factory.mktemp("spoken"))


@pytest.fixture(scope="module")
def loaded(place: Path) -> dict[int, Synthesizer]:
    """By number of slots."""
    return {slots: Synthesizer.load(place / "model", place / "codec", num_slots=slots) for slots in (1, 4)}


@pytest.fixture
def speak(
    place: Path, loaded: dict[int, Synthesizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Summary]:
    """Speak lines into `out`."""
    monkeypatch.chdir(place)

    def speak(
        out: str, lines: Lines | None = None, *, slots: int = 4, task: SpeakingTask = "tts", **options: Any
    ) -> Summary:
        lines = LINES if lines is None else lines
        path = tmp_path / "lines.jsonl"
        path.write_text("\n".join(json.dumps(line) for line in lines))
        listed = read_items(path, task, SpeakingSettings(max_sec=0.5), speaker=VOICE)
        settings = {"model": "a hash", "max_failure_share": 0.5, **options}
        return speak_all(loaded[slots], listed, tmp_path / out, task=task, **settings)

    return speak


def read_jsonl(path: Path) -> Lines:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_is_in_the_manifest_or_in_the_ledger(
    speak: Callable[..., Summary], loaded: dict[int, Synthesizer], tmp_path: Path
) -> None:
    summary = speak("out")
    assert {failure.key: failure.reason for failure in summary.failures} == FAILED
    listed = [line["key"] for line in read_jsonl(tmp_path / "out" / FAILURES_FILE)]
    assert listed == ["000010", "mute", "gone", "none", "whose"]
    outputs = read_jsonl(tmp_path / "out" / RECORDS)
    assert [output["id"] for output in outputs] == ["river", "000002", "boat", "000004", "wav", "000006"]
    for output in outputs:
        wave = read_audio(tmp_path / "out" / output["wav"], 16_000)
        assert len(wave) == 16_000 * output["seconds"] == 200 * output["frames"]
        assert (output["reason"], output["limit"]) in [("end", None), ("limit", "seconds")]
    party = outputs[3]
    assert (party["frames"], party["limit"]) == (8, "seconds")
    speech = loaded[4].speak("The river froze", loaded[4].read_speaker(VOICE), max_sec=0.5)
    assert (speech.output.num_steps, speech.seconds) == (outputs[0]["steps"], outputs[0]["seconds"])
    assert np.abs(speech.wave - read_audio(tmp_path / "out" / outputs[0]["wav"], 16_000)).max() < 1e-4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"wav", RECORDS, FAILURES_FILE, JOB}
    assert "6 answers (" in summary.line()
    assert "5 failures; " in summary.line()
    assert "real-time factor" in summary.line()


def test_four_at_a_time_say_what_one_says(speak: Callable[..., Summary], tmp_path: Path) -> None:
    """The engine promises it but for roundings; for this model no choice is so close that they matter."""
    speak("four")
    speak("one", slots=1)
    assert hashes(tmp_path / "four") == hashes(tmp_path / "one")


class Killed(BaseException):
    """Stands for a process that ends without another word."""


@contextmanager
def counted(dies_after: int = 10**6) -> Iterator[Counter[str]]:
    """Counts waves and voices; the process dies at the wave after so many."""
    seen = Counter[str]()
    decode, read = batch.joined_wave, synthesizer.read_audio

    def counting_decode(*args: Any) -> Any:
        seen["waves"] += 1
        if seen["waves"] > dies_after:
            raise Killed
        return decode(*args)

    def counting_read(source: str, *args: Any, **options: Any) -> Any:
        seen[source] += 1
        return read(source, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "joined_wave", counting_decode)
        patch.setattr(synthesizer, "read_audio", counting_read)
        yield seen


def test_an_interrupted_job_goes_on(
    speak: Callable[..., Summary], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is noted is not spoken again; a wave that is lost, or of which half a note is left, is."""
    speak("whole")
    with counted(dies_after=3), pytest.raises(Killed):
        speak("out")
    out = tmp_path / "out"
    assert not (out / RECORDS).exists()
    notes = read_jsonl(out / NOTES)
    assert len(notes) == 3
    (out / notes[0]["wav"]).unlink()
    with open(out / NOTES, "a") as file:
        file.write('{"id": "boat", "wa')
    (out / "wav" / "000006.wav").write_bytes(b"half a wa")
    for name in ("wav/.000012.wav.51cdeb68.part", ".outputs.jsonl.0123abcd.part"):
        (out / name).touch()
    with counted() as seen, caplog.at_level("INFO"):
        speak("out")
    assert seen["waves"] == 6 - 2
    assert "2 of 10 are spoken already" in caplog.text
    assert hashes(out) == hashes(tmp_path / "whole")


def test_a_finished_job_is_done_at_once(speak: Callable[..., Summary], tmp_path: Path) -> None:
    lines = LINES[:3]
    speak("out", lines)
    before = hashes(tmp_path / "out")
    with counted() as seen:
        summary = speak("out", lines)
    assert seen["waves"] == 0
    assert hashes(tmp_path / "out") == before
    assert summary.line() == "3 answers (0 stopped by a limit), 0 failures; nothing was left to speak"


def test_each_voice_is_read_once_and_each_corpus(speak: Callable[..., Summary]) -> None:
    lines = [{"text": "A clock", "speaker": name} for name in ("voice.wav", "corpus:u1", "bad.wav", "corpus:u2") * 2]
    Path("bad.wav").write_text("no sound")
    with counted() as seen:
        speak("out", lines)
    assert seen == {"voice.wav": 1, "bad.wav": 1, "waves": 6}


def test_failed_lines_can_be_mended_and_others_added(speak: Callable[..., Summary], tmp_path: Path) -> None:
    lines: Lines = [{"id": "a", "text": "A clock"}, {"id": "b", "text": " "}]
    assert [failure.key for failure in speak("out", lines).failures] == ["b"]
    lines = [{"id": "b", "text": "The river froze"}, lines[0], {"id": "c", "text": "A clock"}]
    with counted() as seen:
        assert speak("out", lines).failures == []
    assert seen["waves"] == 2
    assert [output["id"] for output in read_jsonl(tmp_path / "out" / RECORDS)] == ["b", "a", "c"]


@pytest.mark.parametrize("change", [{"wav": 3}, {"wav": "x" * 300}, {"wav": "a\0b"}, {"reason": None}])
def test_a_damaged_record_is_spoken_again(
    speak: Callable[..., Summary], tmp_path: Path, change: dict[str, Any]
) -> None:
    lines: Lines = [{"id": "a", "text": "A clock"}, {"id": "b", "text": "The river froze"}]
    speak("out", lines)
    whole = read_jsonl(tmp_path / "out" / RECORDS)
    (tmp_path / "out" / RECORDS).write_text("".join(json.dumps({**r, **change}) + "\n" for r in whole[:1] + whole[1:]))
    with counted() as seen:
        assert speak("out", lines).failures == []
    assert seen["waves"] == 2
    assert [record["wav"] for record in read_jsonl(tmp_path / "out" / RECORDS)] == [r["wav"] for r in whole]


def test_what_was_spoken_is_never_replaced(speak: Callable[..., Summary], tmp_path: Path) -> None:
    line = {"id": "a", "text": "A clock"}
    speak("out", [line])
    before = hashes(tmp_path / "out")
    for changed in ({**line, "text": "Another"}, {**line, "seed": 8}, {**line, "id": "b"}):
        with pytest.raises(UserError, match="holds the answer to another line: a"):
            speak("out", [changed])
    with pytest.raises(UserError, match="holds another job: model differs"):
        speak("out", [line], model="other")
    with pytest.raises(UserError, match="holds another job: task differs"):
        speak("out", [{"id": "a", "question": "Who?"}], task="qa")
    assert {name: value for name, value in hashes(tmp_path / "out").items() if name != NOTES} == before
    (tmp_path / "out" / RECORDS).write_text("[]\n")
    with pytest.raises(UserError, match=r"outputs\.jsonl is damaged"):
        speak("out", [line])
    (tmp_path / "out" / JOB).write_text("{}")
    with pytest.raises(UserError, match=r"job\.json is damaged"):
        speak("out", [line])


def test_a_directory_of_something_else_is_left_alone(speak: Callable[..., Summary], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for name in ("out", "file"):
        with pytest.raises(UserError, match="the output directory exists and holds something else"):
            speak(name)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match=r"cannot write .*\.outputs\.part: Not a directory"):
        speak("file/below")


def test_two_processes_are_not_at_one_directory(speak: Callable[..., Summary], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / NOTES, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing to this directory"):
            speak("out")
    speak("out", LINES[:1])


def test_another_engine_is_told(
    speak: Callable[..., Summary], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    speak("out", LINES[:1])
    assert "several engines" not in caplog.text
    speak("out", LINES[:2], slots=1)
    assert "are of several engines and may differ in roundings" in caplog.text
    assert [engine["slots"] for engine in read_json(tmp_path / "out" / JOB)["engines"]] == [4, 1]


def test_too_many_failures_are_an_error(speak: Callable[..., Summary], tmp_path: Path) -> None:
    """Once all that could be spoken is there, whether the lines themselves are wrong or the voices are not there."""
    with pytest.raises(UserError, match=r"1 of 3 lines failed \(000002: there is no text(.|\n)*all else is spoken"):
        speak("early", [{"text": "A clock"}, {"text": ""}, {"text": "A clock"}], max_failure_share=0.2)
    assert [output["id"] for output in read_jsonl(tmp_path / "early" / RECORDS)] == ["000001", "000003"]
    with pytest.raises(UserError, match=r"1 of 1 line failed \(000001: there is no text(.|\n)*nothing was spoken"):
        speak("none", [{"text": ""}], max_failure_share=0.2)
    assert [line["reason"] for line in read_jsonl(tmp_path / "none" / FAILURES_FILE)] == ["empty_text"]
    lines: Lines = [{"text": "A clock"}, {"text": "A clock", "speaker": "gone.wav"}]
    with pytest.raises(UserError, match=r"1 of 2 lines failed(.|\n)*bad_speaker 1(.|\n)*all else is spoken"):
        speak("late", lines, max_failure_share=0.2)
    assert [output["id"] for output in read_jsonl(tmp_path / "late" / RECORDS)] == ["000001"]
    assert speak("late", lines).num_outputs == 1


def test_a_prompt_without_room_is_a_failure(speak: Callable[..., Summary]) -> None:
    """2000 emoji are 8000 tokens for this tokenizer, the backbone knows 4096 positions."""
    lines: Lines = [{"id": "long", "question": "🎉" * 2000}, {"question": "A clock"}]
    failure = speak("out", lines, task="qa", max_failure_share=1).failures[0]
    assert (failure.key, failure.reason) == ("long", "refused")
    assert "the prompt leaves no room for an answer" in failure.detail


@pytest.fixture
def join(tmp_path: Path) -> Callable[..., Summary]:
    """Join the shares of the lines that were spoken last."""

    def join(out: str, **options: Any) -> Summary:
        listed = read_items(tmp_path / "lines.jsonl", "tts", SpeakingSettings(max_sec=0.5), speaker=VOICE)
        return join_shares(listed, tmp_path / out, **{"task": "tts", "max_failure_share": 0.5, **options})

    return join


def test_shares_are_joined_to_the_bytes_of_one_process(
    speak: Callable[..., Summary], join: Callable[..., Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three tasks is killed; one more line is spoken by a task of another number of tasks."""
    whole = speak("whole")
    speak("out", share=Share(0, 3))
    with counted(dies_after=1), pytest.raises(Killed):
        speak("out", share=Share(2, 3))
    with pytest.raises(UserError, match=r"is incomplete: \d of 10 lines are not spoken\n.*nothing of 000002"):
        join("out")
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {JOB, SHARES_DIR}
    speak("out", share=Share(1, 2))
    before = spoken_elsewhere(tmp_path / "out", Share(0, 9))
    with counted() as seen:
        speak("out", share=Share(1, 3))
        speak("out", share=Share(2, 3))
    assert seen["waves"] == whole.num_outputs - len(before) < 3
    with monkeypatch.context() as patch:  # a file that is there when looked for, and gone when it is read
        patch.setattr(Path, "is_file", lambda path: path.name in (NOTES, RECORDS) or path.exists())
        assert len(spoken_elsewhere(tmp_path / "out", Share(0, 9))) == whole.num_outputs
    joined = join("out")
    assert "joined from what tasks have spoken" in joined.line()
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert joined.failures == whole.failures
    assert (joined.num_outputs, joined.num_limited) == (whole.num_outputs, whole.num_limited)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"wav", RECORDS, FAILURES_FILE, JOB}
    again = join("out")
    assert (again.num_outputs, again.failures) == (joined.num_outputs, joined.failures)
    with pytest.raises(UserError, match=r"5 of 11 lines failed"):
        join("out", max_failure_share=0.1)
    with pytest.raises(UserError, match="holds another job: task differs"):
        join("out", task="qa")


def test_one_process_goes_on_where_tasks_were(speak: Callable[..., Summary], tmp_path: Path) -> None:
    speak("whole")
    speak("out", share=Share(0, 2))
    with pytest.raises(UserError, match="holds the answer to another line"):
        speak("out", [{"text": "Another"}, *LINES[1:]])
    with counted() as seen:
        speak("out")
    assert seen["waves"] == 3
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


PASSAGE = "The river froze. A clock! Eleven lanterns along the wall?"


def test_a_text_of_several_sentences_is_one_answer(
    speak: Callable[..., Summary], loaded: dict[int, Synthesizer], tmp_path: Path
) -> None:
    """Among other lines; with pauses between its sentences, which have the frames that they have alone."""
    texts = PASSAGE.replace("! ", "!|").replace(". ", ".|").split("|")
    lines: Lines = [{"id": "all", "text": PASSAGE}, *({"text": text} for text in texts)]
    speak("out", lines)
    speak("one", lines, slots=1)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "out")
    whole, *alone = read_jsonl(tmp_path / "out" / RECORDS)
    assert [sentence["text"] for sentence in whole["sentences"]] == texts
    assert [sentence["frames"] for sentence in whole["sentences"]] == [record["frames"] for record in alone]
    assert (whole["frames"], whole["steps"]) == tuple(sum(r[name] for r in alone) for name in ("frames", "steps"))
    assert all("sentences" not in record for record in alone)
    wave, *others = (read_audio(tmp_path / "out" / record["wav"], 16_000) for record in (whole, *alone))
    pause = np.zeros(4800, np.float32)
    assert np.array_equal(wave, np.concatenate([others[0], pause, others[1], pause, others[2]]))


def test_an_engine_that_fails_amid_a_text(
    speak: Callable[..., Summary], loaded: dict[int, Synthesizer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A text goes on behind the sentences that it has; one with a sentence at which the engine fails is a failure."""
    lines: Lines = [{"id": "good", "text": PASSAGE}, {"id": "bad", "text": f"A clock. {'x' * 200}. A clock."}]
    lines.append({"id": "last", "text": PASSAGE})
    speak("whole", [lines[0], lines[2]])
    engine, admit = loaded[4].engine, loaded[4].engine.admit

    def failing_admit(request: Any, number: int) -> None:
        if len(request.prompt.tokens) > 200:
            raise RuntimeError("no memory")
        admit(request, number)

    monkeypatch.setattr(engine, "admit", failing_admit)
    (failure,) = speak("out", lines).failures
    assert (failure.key, failure.reason) == ("bad", "engine_failed")
    expected = hashes(tmp_path / "whole")
    assert {name: value for name, value in hashes(tmp_path / "out").items() if name != FAILURES_FILE} == {
        name: value for name, value in expected.items() if name != FAILURES_FILE
    }


def test_numbers_become_words_where_a_line_asks_for_it(speak: Callable[..., Summary], tmp_path: Path) -> None:
    lines: Lines = [{"text": "A clock at 5. Dr. A.", "normalize": "english"}, {"text": "A", "normalize": "latin"}]
    (failure,) = speak("out", lines).failures
    assert failure.reason == "bad_setting"
    (record,) = read_jsonl(tmp_path / "out" / RECORDS)
    assert [sentence["text"] for sentence in record["sentences"]] == ["A clock at five.", "Doctor A."]


def test_what_is_wrong_with_one_answer_ends_no_other(speak: Callable[..., Summary], tmp_path: Path) -> None:
    """A voice so loud that the codec's wave overflows, a setting that is 0 in float32, and a good line at each side."""
    np.save(tmp_path / "loud.npy", np.full(80, 200.0, np.float32))
    lines: Lines = [
        {"text": "A clock"},
        {"id": "loud", "text": "A clock", "speaker": str(tmp_path / "loud.npy")},
        {"id": "cold", "text": "A clock", "temperature": 1e-40},
        {"text": "The river froze"},
    ]
    summary = speak("out", lines)
    assert {failure.key: failure.reason for failure in summary.failures} == {"loud": "no_sound", "cold": "bad_setting"}
    assert [output["id"] for output in read_jsonl(tmp_path / "out" / RECORDS)] == ["000001", "000004"]


def test_a_line_at_which_the_engine_fails_fails_alone(
    speak: Callable[..., Summary], loaded: dict[int, Synthesizer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those beside it are answered as ever, in this start, whatever the step and the prompt that failed."""
    lines: Lines = [{"text": text, "seed": number} for number, text in enumerate(["A clock", "The river froze"] * 4)]
    speak("whole", [line for line in lines if line["seed"] not in (1, 6)])
    engine, step, admit = loaded[4].engine, loaded[4].engine.step, loaded[4].engine.admit

    def failing_step() -> list:
        if any(answer.request.seed == 1 and answer.num_steps > 9 for answer in engine._active.values()):
            raise torch.OutOfMemoryError("no memory")
        return step()

    def failing_admit(request: Any, number: int) -> None:
        if request.seed == 6:
            raise RuntimeError("no memory")
        admit(request, number)

    monkeypatch.setattr(engine, "step", failing_step)
    monkeypatch.setattr(engine, "admit", failing_admit)
    summary = speak("out", lines)
    assert {failure.key: failure.reason for failure in summary.failures} == dict.fromkeys(
        ["000002", "000007"], "engine_failed"
    )
    spoken = {path.name: path.read_bytes() for path in (tmp_path / "out" / "wav").iterdir()}
    assert sorted(spoken) == [f"00000{number}.wav" for number in (1, 3, 4, 5, 6, 8)]
    expected = [path.read_bytes() for path in sorted((tmp_path / "whole" / "wav").iterdir())]
    assert [spoken[name] for name in sorted(spoken)] == expected
    monkeypatch.undo()


@pytest.mark.parametrize(("share", "number"), [(None, 8), (Share(0, 1), 1)])
def test_what_the_machine_failed_at_is_tried_again(
    share: Share | None,
    number: int,
    speak: Callable[..., Summary],
    loaded: dict[int, Synthesizer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A start ends where the machine fails at all; a task that has lost a line is no success."""
    lines: Lines = [{"text": "A clock", "max_sec": 0.1} for _ in range(1 if share else 10)]

    def failing_step() -> list:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(loaded[4].engine, "step", failing_step)
        with pytest.raises(UserError, match=f"the engine failed at {number} answer"):
            speak("out", lines, share=share)
    assert not list((tmp_path / "out").rglob(FAILURES_FILE))
    assert speak("out", lines, share=share).failures == []


ODD: Lines = [
    {"speaker": "x" * 5000},
    {"speaker": "\ud800.wav"},
    {"speaker": "a\0b.npy"},
    {"speaker": "/dev/zero"},
    {"speaker": "."},
    {"speaker": f"{'y' * 5000}:key"},
    {"temperature": 1e-40},
    {"temperature": 10**300},
    {"top_p": 1e-50},
    {"max_sec": 10**400},
    {"max_sec": 1e300},
    {"seed": 2**64},
    {"text": "\u200b"},
]


def test_whatever_is_wrong_with_a_line_it_fails_alone(
    speak: Callable[..., Summary], place: Path, tmp_path: Path
) -> None:
    """And again at the next start, which does nothing else."""
    huge = {"speaker": str(tmp_path / "huge.npy")}
    np.save(tmp_path / "huge.npy", np.full(80, 1e300))
    lines = [line for odd in [*ODD, huge] for line in ({"text": "A clock", **odd}, {"text": "A clock", "max_sec": 0.1})]
    for start in range(2):
        summary = speak("out", lines)
        assert [len(summary.failures), summary.num_outputs] == [len(ODD) + 1] * 2, summary.failures
        assert (summary.spoken_sec == 0) == (start == 1)
    ledger = read_jsonl(tmp_path / "out" / FAILURES_FILE)
    assert {line["key"] for line in ledger} == {f"{number:06d}" for number in range(1, len(lines), 2)}
    assert max(len(line["detail"]) for line in ledger) < 500


def test_damaged_weights_are_failures(
    speak: Callable[..., Summary], place: Path, loaded: dict[int, Synthesizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Synthesizer.load(place / "model", place / "codec")
    with torch.no_grad():
        broken.model.heads[1].output.bias.fill_(torch.nan)
    monkeypatch.setitem(loaded, 4, broken)
    summary = speak("out", LINES[:2], max_failure_share=1.0)
    assert [failure.reason for failure in summary.failures] == ["not_finite"] * 2


def test_answers_have_words(speak: Callable[..., Summary], tmp_path: Path) -> None:
    """The model was never asked anything; it goes on in its own words, and those are kept."""
    lines = [{"id": "q", "question": "Who?"}, {"id": "mute", "question": "Who?", "max_text_tokens": 1}]
    (failure,) = speak("out", lines, task="qa").failures
    (output,) = read_jsonl(tmp_path / "out" / RECORDS)
    assert "speech is" in output["answer"]
    assert "its words: " in failure.detail


def test_a_full_disk_keeps_what_is_spoken(speak: Callable[..., Summary], tmp_path: Path) -> None:
    """No file may grow beyond one of the longer waves; with room again the job goes on."""
    lines = [{**line, "max_sec": 0.1} for line in LINES[:2]]
    lines += [{"id": "long", "text": "The last boat left the harbour", "speaker": "corpus:u3"}]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    speak("whole", lines)
    size = (tmp_path / "whole" / "wav" / "long.wav").stat().st_size
    assert size > (tmp_path / "whole" / "wav" / "river.wav").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*long\.wav: "):
            speak("out", lines, slots=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [note["id"] for note in read_jsonl(tmp_path / "out" / NOTES)] == ["river", "000002"]
    speak("out", lines, slots=1)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_notes_that_cannot_be_written_are_an_error(speak: Callable[..., Summary], tmp_path: Path) -> None:
    """A disk with room for the wave and not for its note."""
    lines = [{"id": f"{i:02d}" + "x" * 90, "text": "A clock", "max_sec": 0.02} for i in range(20)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*\.outputs\.part: "):
            speak("out", lines)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert speak("out", lines).num_outputs == 20
