"""The command as users run it: one sentence; a file of sixty, killed and stopped on the way."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch.machines import end, processes_with, wait_for
from spoken import hashes, make_spoken

from slmkit.audio.io import read_audio
from slmkit.cli.main import main
from slmkit.cli.speaking import add_sampling_arguments, open_synthesizer, settings_of
from slmkit.cli.synthesize import _sink
from slmkit.codec.melvq import MelVQ
from slmkit.errors import UserError
from slmkit.infer import batch
from slmkit.infer.request import SpeakingSettings
from slmkit.infer.shares import SHARES_DIR
from slmkit.jobs import NOTES
from slmkit.stopping import STOPPING

NUM_LINES = 60
BAD = {"000007": "empty_text", "line 20": "not_json", "ghost": "bad_speaker", "000040": "too_long"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_spoken(tmp_path_factory.mktemp("spoken"))


@pytest.fixture(scope="module", autouse=True)
def other_codec(place: Path) -> None:
    wave = np.random.default_rng(9).normal(0, 0.2, 8000).astype(np.float32)
    MelVQ.fit([wave], 1, num_entries=16).save(place / "other")


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def options(out: Path, *more: str) -> list[str]:
    return ["--codec", "codec", "--speaker", "voice.npy", "--out", str(out), *more]


@pytest.mark.full
def test_a_file_of_sixty_killed_and_stopped(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """kill -9, then SIGTERM, then the rest: as if nothing had happened. Four lines are bad, one is an emoji."""
    lines = [json.dumps({"text": f"The boat number {i} froze", "max_sec": 0.2}) for i in range(NUM_LINES)]
    lines[6] = json.dumps({"text": "  "})
    lines[19] = "{oops"
    lines[29] = json.dumps({"text": "The river 🎉 froze", "id": "party"})
    lines[34] = json.dumps({"text": "The river froze", "id": "ghost", "speaker": "nobody.wav"})
    lines[39] = json.dumps({"text": "x" * 50_001})
    (tmp_path / "lines.jsonl").write_text("\n".join(lines) + "\n")

    flags = ["--jsonl", str(tmp_path / "lines.jsonl"), "--slots", "4", "--max-failure-share", "0.1"]

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "slmkit", "synthesize", "model", *options(tmp_path / "out", *flags)]
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def noted(least: int, process: subprocess.Popen[str]) -> int:
        path = tmp_path / "out" / NOTES
        for _ in range(1200):
            count = path.read_bytes().count(b"\n") if path.exists() else 0
            if count >= least or process.poll() is not None:
                return count
            time.sleep(0.05)
        raise AssertionError("nothing is noted")

    process = start()
    assert noted(10, process) < 50
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    first = noted(0, process)
    process = start()
    assert first < noted(first + 10, process) < 54
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM; the same command continues" in process.communicate()[1]
    assert process.returncode == 75
    assert not (tmp_path / "out" / "outputs.jsonl").exists()
    capsys.readouterr()
    assert main(["synthesize", "model", *options(tmp_path / "out", *flags)]) == 0
    said, told = capsys.readouterr()
    assert f"{NUM_LINES - len(BAD)} answers (" in said
    assert "4 failures; " in said
    assert "real-time factor" in said
    assert "of 57 are spoken already" in told
    assert main(["synthesize", "model", *options(tmp_path / "whole", *flags)]) == 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    ledger = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in ledger} == BAD
    outputs = [json.loads(line) for line in (tmp_path / "out" / "outputs.jsonl").read_text().splitlines()]
    assert [output["id"] for output in outputs[26:28]] == ["000029", "party"]


@pytest.mark.full
def test_two_devices_of_which_one_is_killed(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one goes on; the same command continues; joined it is what one process speaks."""
    lines = [json.dumps({"text": f"The boat number {i} froze. A clock", "max_sec": 0.2}) for i in range(24)]
    lines[5] = "{oops"
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    flags = ["--jsonl", str(tmp_path / "lines.jsonl"), "--slots", "2", "--max-failure-share", "0.1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = ["synthesize", "model", *options(tmp_path / "out", *flags), "--devices", "cpu,cpu"]
    process = subprocess.Popen([sys.executable, "-m", "slmkit", *command], stderr=subprocess.PIPE, text=True)
    try:
        notes = tmp_path / "out" / SHARES_DIR / "0001-of-0002" / NOTES
        wait_for(lambda: process.poll() is not None or (notes.is_file() and notes.stat().st_size > 0), 400, lambda: "")
        mine = {*processes_with(str(tmp_path / "out"))}
        for pid in mine.intersection(processes_with("\0".join(["--task", "1", "--num-tasks", "2"]))):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    finally:
        end(processes_with(str(tmp_path / "out")))
    assert process.returncode not in (0, 2, 75)
    assert (tmp_path / "out" / SHARES_DIR / "0000-of-0002" / "outputs.jsonl").is_file()
    assert not (tmp_path / "out" / "outputs.jsonl").exists()
    again = subprocess.run([sys.executable, "-m", "slmkit", *command], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "are spoken already" in again.stderr
    assert "23 answers (" in again.stdout
    assert main(["synthesize", "model", *options(tmp_path / "whole", *flags)]) == 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_an_array_is_planned_and_tasks_that_cannot_be_are_refused(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines.jsonl").write_text('{"text": "A clock"}\n' * 3)
    words = ["model", *options(tmp_path / "out", "--jsonl", str(tmp_path / "lines.jsonl"))]
    assert main(["synthesize", *words, "--submit", "dry-run", "--tasks", "9", "--gpus", "1"]) == 0
    *_, array, join = capsys.readouterr().out.splitlines()
    assert "--array=0-2%3 --export=ALL,NUM_TASKS=3,WORK=synthesize --job-name=slmkit-synthesize" in array
    assert f"tokenize_jobs/array.sbatch {' '.join(words)}" in array
    assert "--dependency=afterok:ID_OF_THE_ARRAY --export=ALL,WORK=synthesize" in join
    assert array.endswith("--submit no")
    assert join.endswith("--submit no")
    for flags, message in (
        (["--task", "3", "--num-tasks", "3"], "there is no such task"),
        (["--task", "3"], "--task and --num-tasks go together"),
        (["--join"], "cannot read"),
    ):
        assert main(["synthesize", *words, *flags]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def signals() -> Iterator[None]:
    """Handlers as before; a process that was told to stop ignores signals from then on."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_interrupt_is_a_stop(
    here: Path,
    tmp_path: Path,
    signals: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "lines.jsonl").write_text('{"text": "A clock"}\n' * 3)
    words = options(tmp_path / "out", "--jsonl", str(tmp_path / "lines.jsonl"), "--slots", "1")
    decode = batch.joined_wave

    def interrupted(*args: Any) -> Any:
        if (tmp_path / "out" / "wav" / "000001.wav").exists():
            signal.raise_signal(signal.SIGINT)
        return decode(*args)

    with monkeypatch.context() as patch:
        patch.setattr(batch, "joined_wave", interrupted)
        assert main(["synthesize", "model", *words]) == 75
    assert "stopped by SIGINT; the same command continues" in capsys.readouterr().err
    assert main(["synthesize", "model", *words]) == 0
    told = capsys.readouterr()
    assert "1 of 3 are spoken already" in told.err
    assert "3 answers" in told.out


def test_the_defaults_of_the_flags_are_those_of_the_settings() -> None:
    parser = argparse.ArgumentParser()
    add_sampling_arguments(parser)
    assert settings_of(parser.parse_args([])) == SpeakingSettings()
    assert not settings_of(parser.parse_args(["--no-watch"])).watch
    with pytest.raises(UserError, match="max_retries: got 21, expected 0 to 20"):
        settings_of(parser.parse_args(["--max-retries", "21"]))


def test_the_engine_has_room_for_the_longest_speech(here: Path) -> None:
    """80 positions a second, and 1024 for text; the backbone knows 4096."""
    args = argparse.Namespace(model="model", codec="codec", device="cpu")
    for longest_sec, positions in ((0.5, 3424), (35, 3824), (500, 4096)):
        opened = open_synthesizer(args, num_slots=2, longest_sec=longest_sec)
        assert (opened.engine.num_slots, opened.engine.num_positions) == (2, positions)


def test_a_sentence_is_spoken_as_it_is_in_a_file(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.wav"
    flags = ["--temperature", "0.9", "--text-temperature", "0", "--top-k", "8", "--top-p", "0.95", "--seed", "4"]
    flags += ["--repetition-penalty", "1.3", "--repetition-window", "6", "--max-sec", "0.2"]
    assert main(["synthesize", "model", "The river froze", *options(out, *flags)]) == 0
    assert "steps" in capsys.readouterr().out
    assert 0 < len(read_audio(out, 16_000)) <= 0.2 * 16_000
    (tmp_path / "lines.jsonl").write_text('{"text": "The river froze", "id": "x"}\n')
    words = options(tmp_path / "out", "--jsonl", str(tmp_path / "lines.jsonl"), "--slots", "1", *flags)
    assert main(["synthesize", "model", *words]) == 0
    assert "1 answer " in capsys.readouterr().out
    assert (tmp_path / "out" / "wav" / "x.wav").read_bytes() == out.read_bytes()
    assert main(["synthesize", "model", *[*words, "--seed", "5"]]) == 2
    assert "holds the answer to another line: x" in capsys.readouterr().err


def test_a_stream_is_what_is_spoken(here: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """To a file that says how long it is, and to standard output, which cannot."""
    whole, streamed = tmp_path / "whole.wav", tmp_path / "new" / "streamed.wav"
    text = "The last boat left the harbour"
    assert main(["synthesize", "model", text, *options(whole)]) == 0
    assert main(["synthesize", "model", text, *options(streamed, "--stream")]) == 0
    told = capfdbinary.readouterr().err.decode()
    assert re.search(r"s of speech in .* s, first audio after \d+\.\d+ s, \d+ steps", told)
    assert streamed.stat().st_size == whole.stat().st_size
    assert np.abs(read_audio(streamed, 16_000) - read_audio(whole, 16_000)).max() <= 2 / 32768
    assert main(["synthesize", "model", text, *options(Path("-"), "--stream")]) == 0
    out = capfdbinary.readouterr().out
    assert out[:4] == b"RIFF"
    assert out[44:] == streamed.read_bytes()[44:]


def test_a_stream_that_nobody_hears_and_one_without_a_sound(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")  # by which the device itself cannot be taken away
    assert main(["synthesize", "model", "A clock", *options(full, "--stream", "--overwrite")]) == 2
    assert "full: No space left on device" in capsys.readouterr().err
    assert full.is_char_device()
    assert main(["synthesize", "model", "A clock", *options(full, "--overwrite")]) == 2
    assert "only --stream writes to standard output" in capsys.readouterr().err
    for name, kind in (("-", BrokenPipeError), (str(tmp_path / "pipe"), UserError)):  # the first ends without a word
        with pytest.raises(kind), _sink(name):
            raise BrokenPipeError
    out = tmp_path / "mute.wav"
    assert main(["synthesize", "model", "A clock", *options(out, "--stream", "--max-text-tokens", "1")]) == 2
    assert "the model gave no speech" in capsys.readouterr().err
    assert not out.exists()
    out.write_bytes(b"an older one")
    flags = ("--stream", "--overwrite", "--max-text-tokens", "1")
    assert main(["synthesize", "model", "A clock", *options(out, *flags)]) == 2
    assert out.read_bytes() == b"an older one"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Hello", "--jsonl", "x"], "got a text and a file of texts"),
        (["Hello", "--out", "voice.wav"], "the WAV file exists"),
        (["Hello", "--out", "o.wav", "--temperature", "-1"], "temperature: got -1"),
        (["Hello", "--out", "o.wav", "--max-sec", "nan"], "max_sec: got nan"),
        (["Hello", "--out", "o.wav", "--speaker", ""], "no voice was given"),
        (["Hello", "--out", "o.wav", "--speaker", "nobody.wav"], "cannot use nobody.wav as a voice"),
        (["", "--out", "o.wav"], "there is no text to speak"),
        (["x" * 50_001, "--out", "o.wav"], "the text to speak is too long"),
        (["Hello", "--out", "o.wav", "--max-text-tokens", "1"], "the model gave no speech for 'Hello'"),
        (["Hello", "--out", "o.wav", "--codec", "model"], "model is not a codec directory"),
        (["Hello", "--out", "o.wav", "--codec", "other"], "the given codec is not the codec of the model"),
        (["Hello", "--out", "-"], "only --stream writes to standard output"),
        (["--jsonl", "x", "--out", "o", "--stream"], "--jsonl writes into a directory"),
        (["--jsonl", "voice.wav"], "--jsonl writes into a directory"),
        (["--jsonl", "missing", "--out", "o"], "cannot read missing"),
        (["--jsonl", "voice.npy", "--out", "corpus"], "the output directory exists and holds something else"),
        (["Hello", "--out", "o.wav", "--temperature", "1e-40"], "temperature: got 1e-40, expected 0, or 1e-06"),
        (["Hello", "--out", "o.wav", "--top-p", "1e-50"], "top_p: got 1e-50"),
        (["Hello", "--out", "o.wav", "--repetition-penalty", "1e-44"], "repetition_penalty: got 1e-44"),
        (["Hello", "--out", "o.wav", "--max-sec", "1e308"], "max_sec: got 1e+308"),
        (["Hello", "--out", "o.wav", "--seed", str(2**64)], "seed: got 18446744073709551616"),
        (["Hello", "--out", "o.wav", "--speaker", "x" * 5000], "as a voice: there is no such file"),
        (["\u200b\ufeff", "--out", "o.wav"], "there is no text to speak"),
        (["Hello", "--out", "o.wav", "--devices", "cpu,cpu", "--join"], "--devices, --join: there is no file of lines"),
        (["Hello", "--out", "o.wav", "--task", "0", "--num-tasks", "2"], "--task, --num-tasks: there is no file"),
        (["Hello", "--max-failure-share", "0.1", "--sbatch=-x"], "--max-failure-share, --sbatch: there is no file"),
        (["Hello", "--tasks", "2", "--limit", "1", "--cpus", "2"], "--tasks, --limit, --cpus: there is no file"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in here.iterdir())
    defaults = ["--codec", "codec", "--speaker", "voice.npy"]
    assert main(["synthesize", "model", *defaults, *words]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == before


def test_without_a_text_or_a_file_there_is_nothing_to_say(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["synthesize", "model", "--codec", "codec"])
    assert "the following arguments are required: text" in capsys.readouterr().err


def test_a_loud_voice_is_named_whole_and_streamed(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "loud.npy", np.full(80, 200.0, np.float32))
    for more in ([], ["--stream"]):
        out = tmp_path / "loud.wav"
        words = ["--codec", "codec", "--speaker", str(tmp_path / "loud.npy"), "--out", str(out), *more]
        assert main(["synthesize", "model", "A clock", *words]) == 2
        assert "the codec made a sound that is not finite" in capsys.readouterr().err
        assert not out.exists()


def test_one_bad_line_of_three_and_the_others_are_spoken(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines.jsonl").write_text('{"text": "A clock"}\n{oops\n{"text": "A clock"}\n')
    words = options(tmp_path / "out", "--jsonl", str(tmp_path / "lines.jsonl"), "--max-sec", "0.1")
    assert main(["synthesize", "model", *words]) == 2
    assert "1 of 3 lines failed (line 2: the line is not JSON" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out" / "wav").iterdir()) == ["000001.wav", "000003.wav"]
    assert main(["synthesize", "model", *words, "--max-failure-share", "0.5"]) == 0
    assert "2 answers (" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["synthesize", "model", *words, "--max-failure-share", "nan"])
    assert "argument --max-failure-share: invalid share value" in capsys.readouterr().err
