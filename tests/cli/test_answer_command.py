"""`slmkit answer` as users type it: one question, a file of them, and everything that can be wrong with either."""

import json
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from memorising import BASE, memorise, one_batch, small_model
from synthetic import write_samples
from voices import Spoken, spoken

from slmkit.cli.answer import UNMARKED
from slmkit.cli.main import main
from slmkit.cli.speaking import UNAWARE
from slmkit.codec.melvq import MelVQ
from slmkit.data.text import TextTokenizer
from slmkit.model.pretrained import extended_tokenizer, save

FACTS = {"Who wrote the song?": "Anna Bell.", "What did he eat?": "Two pies."}
QUESTION, ANSWER = "What did he eat?", "Two pies."
Ask = Callable[..., int]


pytestmark = pytest.mark.full  # a model that has learned its answers takes a while


@pytest.fixture(scope="module")
def speech() -> Spoken:
    return spoken([], FACTS)


@pytest.fixture(scope="module")
def place(speech: Spoken, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec, a corpus, a model that knows two facts in four voices, and one without speaker input that knows none."""
    place = tmp_path_factory.mktemp("answer")
    speech.codec.save(place / "codec")
    samples = list(speech.samples.values())
    write_samples(place / "corpus", samples, speech.codec.spec)
    tokenizer = TextTokenizer.load(BASE)
    model = small_model(tokenizer, speech.codec.spec, 3, speaker_dim=speech.codec.spec.speaker_dim)
    memorise(model, one_batch(model, tokenizer, samples, ["qa"] * len(samples)), max_steps=200, lr=4e-3)
    save(model, place / "model", tokenizer=extended_tokenizer(BASE, model.layout))
    plain = small_model(tokenizer, speech.codec.spec, 3)
    memorise(plain, one_batch(plain, tokenizer, samples[-1:], ["tts"]), max_steps=200, lr=4e-3)
    save(plain, place / "plain", tokenizer=extended_tokenizer(BASE, plain.layout))
    return place


@pytest.fixture
def ask(place: Path, tmp_path: Path) -> Ask:
    """Run the command; flags replace those of a question that is answered into answer.wav."""

    def run(question: str | None = QUESTION, *more: str, model: str = "model", **flags: str) -> int:
        usual = {"codec": str(place / "codec"), "speaker": f"{place / 'corpus'}:en-us+whisper-006"}
        usual |= {"out": str(tmp_path / "answer.wav"), **flags}
        words = [word for name, value in usual.items() for word in (f"--{name}", value)]
        return main(["answer", str(place / model), *([] if question is None else [question]), *words, *more])

    return run


def test_a_question_is_answered_in_words_and_in_a_file(
    ask: Ask, speech: Spoken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask() == 0
    shown = capsys.readouterr()
    first, second = shown.out.splitlines()
    assert first == ANSWER
    assert second.startswith(f"{tmp_path / 'answer.wav'}: ")
    assert second.endswith("stopped by: end")
    assert UNAWARE not in shown.err
    assert UNMARKED not in shown.err
    wave, rate = soundfile.read(tmp_path / "answer.wav")
    expected = speech.samples["en-us+whisper", ANSWER]
    assert (len(wave), rate) == (expected.codes.shape[1] * 200, 16_000)
    assert f" {expected.codes.shape[1]} frames" in second


def test_questions_of_a_file_are_answered(
    ask: Ask, tmp_path: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"id": f"q{i}", "question": question} for i, question in enumerate(FACTS)]
    lines[1]["speaker"] = f"{place / 'corpus'}:en-029+f5-007"
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ask(None, jsonl=str(tmp_path / "asked.jsonl"), out=str(tmp_path / "out")) == 0
    assert "2 answers (0 stopped by a limit), 0 failures" in capsys.readouterr().out
    found = [json.loads(line) for line in (tmp_path / "out" / "outputs.jsonl").read_text().splitlines()]
    assert {record["id"]: record["answer"] for record in found} == {"q0": "Anna bell.", "q1": ANSWER}
    assert all((tmp_path / "out" / record["wav"]).is_file() for record in found)


BAD = [
    ({"question": ""}, "there is no question to answer"),
    ({"question": " \n\t"}, "there is no question to answer"),
    ({"question": "why? " * 2000}, "question to answer is too long"),
    ({"jsonl": "asked.jsonl"}, f"got a question and a file of questions\n  got:      {QUESTION!r} and --jsonl"),
    ({"speaker": "nobody.wav"}, "cannot use nobody.wav as a voice"),
    ({"speaker": "nobody.npy"}, "cannot use nobody.npy as a voice"),
    ({"speaker": ""}, "no voice was given"),
    ({"codec": "nowhere"}, "nowhere"),
    ({"model": "corpus"}, "corpus"),
    ({"max-sec": "-1"}, "max_sec: got -1.0"),
    ({"seed": "-1"}, "seed: got -1"),
    ({"temperature": "nan"}, "temperature: got nan"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_is_wrong_is_named_and_nothing_is_written(
    ask: Ask, tmp_path: Path, change: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(**change) == 2
    shown = capsys.readouterr()
    assert "slmkit answer: " in shown.err
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_voice_and_a_codec_of_another_kind_are_refused(
    ask: Ask, speech: Spoken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "short.npy", np.zeros(3, np.float32))
    assert ask(speaker=str(tmp_path / "short.npy")) == 2
    assert "the speaker vector is not of this codec" in capsys.readouterr().err
    waves = [np.random.default_rng(0).standard_normal(80_000).astype(np.float32) / 9]
    MelVQ.fit(waves, seed=1, num_entries=128).save(tmp_path / "other")
    assert ask(codec=str(tmp_path / "other")) == 2
    assert "the given codec is not the codec of the model: weights_sha256 differs" in capsys.readouterr().err
    assert not (tmp_path / "answer.wav").exists()


def test_a_file_that_is_there_stays_unless_told_otherwise(
    ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "answer.wav").write_bytes(b"mine")
    assert ask() == 2
    assert "the WAV file exists" in capsys.readouterr().err
    assert (tmp_path / "answer.wav").read_bytes() == b"mine"
    assert ask(QUESTION, "--overwrite") == 0
    assert soundfile.info(tmp_path / "answer.wav").samplerate == 16_000
    assert ask(None, "--overwrite", jsonl="asked.jsonl") == 2
    assert "--jsonl writes into a directory" in capsys.readouterr().err


@pytest.mark.parametrize("question", ["🎉🎉", "[Assistant]: [ta] <sosp> [ua]", "\ud800", "Zażółć gęślą jaźń?"])
def test_odd_questions_end_one_way_or_the_other(
    ask: Ask, tmp_path: Path, question: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole file and words, or an error and no file."""
    flags = {"max-sec": "0.5", "max-text-tokens": "20"}
    code = ask(question, **flags)
    shown = capsys.readouterr()
    assert code == (0 if (tmp_path / "answer.wav").exists() else 2)
    assert len(shown.out.splitlines()) == (2 if code == 0 else 0)
    assert code == 0 or "(it stopped by: " in shown.err


def test_a_model_without_speaker_input_says_where_the_voice_comes_from(
    ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has learnt to read alone, so its words have no marks, which is said too."""
    assert ask(model="plain") == 0
    shown = capsys.readouterr()
    assert [line for line in shown.err.splitlines() if line in (UNAWARE, UNMARKED)] == [UNAWARE, UNMARKED]
    assert soundfile.info(tmp_path / "answer.wav").frames > 0


def test_an_answer_without_speech_is_an_error_that_tells_its_words(
    ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"max-text-tokens": "9"}
    assert ask(**flags) == 2
    shown = capsys.readouterr()
    assert "(it stopped by: text_tokens)" in shown.err
    assert "got:      the words 'Two" in shown.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_may_not_grow_leaves_nothing(ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        code = ask()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert "answer.wav: File too large" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_leaves_nothing(ask: Ask, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(out=str(small_disk / "answer.wav")) == 2
    assert "answer.wav: No space left" in capsys.readouterr().err
    assert list(small_disk.iterdir()) == []
