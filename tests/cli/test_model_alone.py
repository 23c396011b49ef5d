"""Commands that get a model and nothing else: it knows its codec and its voices."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from forked import PIPE, Process
from hub_server import HubServer
from spoken import make_spoken
from synthetic import WORDS
from tiny_whisper import save_tiny_whisper

from slmkit import Synthesizer
from slmkit.cli.main import main
from slmkit.codec.melvq import MelVQ
from slmkit.codec.open import open_codec
from slmkit.data.sources import open_source
from slmkit.errors import UserError
from slmkit.files import read_json
from slmkit.model.companions import SOURCE_FILE, Voice, choose_voices, write_companions
from slmkit.model.pretrained import export_sha256

SENTENCE = "The river froze"
SHORT = ["--max-sec", "0.2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make_spoken(tmp_path_factory.mktemp("alone"))
    spec, source = open_codec(place / "codec").spec, open_source(place / "corpus", "tts")
    (first,) = choose_voices(source)
    second = Voice("second", first.vector[::-1].copy(), {})
    write_companions(place / "model", spec, codec_source=str(place / "codec"), voices=[first, second])
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the model notes the codec of the copy."""
    shutil.copytree(made, tmp_path / "place")
    noted = read_json(tmp_path / "place" / "model" / SOURCE_FILE)
    noted["source"] = str(tmp_path / "place" / "codec")
    (tmp_path / "place" / "model" / SOURCE_FILE).write_text(json.dumps(noted))
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


@pytest.fixture
def hub(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.connect(monkeypatch, place / "home")
        yield server


def speak(*words: str, out: str = "out.wav") -> bytes:
    assert main(["synthesize", "model", SENTENCE, *SHORT, "--out", out, "--overwrite", *words]) == 0
    return Path(out).read_bytes()


def test_a_sentence_needs_the_model_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voices = [["--speaker", "s"], ["--speaker", "corpus:u3"], ["--codec", "codec"]]
    assert len({speak(), *(speak(*words) for words in voices)}) == 1  # u3 is the longest utterance
    assert len({speak(), speak("--speaker", "second"), speak("--speaker", "voice.wav")}) == 3
    (place / "lines.jsonl").write_text(json.dumps({"text": SENTENCE}) + '\n{"text": "A clock", "speaker": "second"}\n')
    assert main(["synthesize", "model", "--jsonl", "lines.jsonl", *SHORT, "--out", "out"]) == 0
    assert len(list(place.glob("out/wav/*.wav"))) == 2
    assert main(["answer", "model", "Who?", *SHORT]) == 0
    capsys.readouterr()
    assert main(["synthesize", "model", SENTENCE, "--speaker", "nobody"]) == 2
    assert "cannot use nobody as a voice" in (said := capsys.readouterr().err)
    assert "the model has s, second" in said


def test_a_synthesizer_needs_the_model_alone(place: Path) -> None:
    synthesizer = Synthesizer.load("model")
    assert synthesizer.voices.names == ("s", "second")
    assert np.array_equal(synthesizer.read_speaker(), synthesizer.read_speaker("corpus:u3"))
    given = Synthesizer.load("model", "codec").speak(SENTENCE, synthesizer.read_speaker("s"), max_sec=0.2)
    assert np.array_equal(synthesizer.speak(SENTENCE, synthesizer.read_speaker(), max_sec=0.2).wave, given.wave)


@pytest.mark.full
def test_an_evaluation_needs_no_codec(place: Path) -> None:
    words = ["--corpus", "corpus", "--limit", "1", *SHORT]
    assert main(["evaluate", "model", *words, "--voices", "own", "second", "--out", "scores"]) == 0
    assert main(["evaluate", "--copy", *words, "--out", "ceiling"]) == 0
    assert read_json("scores/report.json")["names"]["model"] == "model"
    manifest = read_json("corpus/manifest.json")
    Path("corpus/manifest.json").write_text(json.dumps({**manifest, "codec_source": ""}))
    assert main(["evaluate", "--copy", *words, "--out", "again"]) == 2
    assert main(["evaluate", "model", *words, "--out", "third"]) == 0


@pytest.mark.full
def test_a_server_lists_the_voices_of_the_model(place: Path) -> None:
    process = Process(["-m", "slmkit", "serve", "model", "--port", "0"], stdout=PIPE, stderr=PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().endswith("with 2 voices: s, second\n")
    finally:
        process.terminate()
        process.communicate(60)
    shutil.rmtree("model/voices")
    assert main(["serve", "model", "--port", "0"]) == 2


def test_a_codec_that_is_gone_or_another_one_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.rename("codec", "elsewhere")
    assert main(["synthesize", "model", SENTENCE]) == 2
    said = capsys.readouterr().err
    assert "the codec of model is not where it was" in said
    assert f"no directory {place}/codec" in said
    assert "give the codec with --codec, or export the model again with --with-codec" in said
    speak("--codec", "elsewhere")
    wave = np.random.default_rng(9).normal(0, 0.2, 8000).astype(np.float32)
    MelVQ.fit([wave], 1, num_entries=16).save(place / "codec")
    capsys.readouterr()
    assert main(["synthesize", "model", SENTENCE]) == 2
    assert f"{place}/codec is not the codec any more that model was made with" in capsys.readouterr().err
    os.remove(Path("model") / SOURCE_FILE)
    assert main(["synthesize", "model", SENTENCE]) == 2
    assert "model does not say where its codec is" in capsys.readouterr().err


def test_an_export_with_its_codec_can_be_moved(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = speak()
    assert main(["consolidate", "model", "whole", "--with-codec"]) == 0
    assert "codec: codec; voices: s, second" in capsys.readouterr().out
    assert export_sha256("whole") == export_sha256("model")
    shutil.rmtree("codec")
    shutil.rmtree("model")
    Path("far").mkdir()
    os.rename("whole", "far/model")
    os.chdir("far")
    assert speak() == before
    assert main(["consolidate", "model", "plain", "--dtype", "bfloat16"]) == 0
    assert read_json(f"plain/{SOURCE_FILE}")["source"] == f"{place}/far/model/codec"
    assert main(["consolidate", "plain", "published", "--format", "published"]) == 0
    assert sorted(os.listdir("published/voices")) == ["s.npy", "second.npy", "voices.json"]
    assert main(["consolidate", "plain", "gone", "--codec", "nowhere"]) == 2
    assert "the codec does not exist" in capsys.readouterr().err


@pytest.mark.full
def test_model_and_codec_by_the_names_of_the_hub(
    place: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = speak()
    codec = hub.publish("org/codec", Path("codec"))
    assert main(["consolidate", "model", "named", "--codec", "org/codec"]) == 0
    assert f"codec: org/codec@{codec}; voices: s, second" in capsys.readouterr().out
    model = hub.publish("org/model", Path("named"))
    for name in ("codec", "model", "named"):
        shutil.rmtree(name)
    assert main(["synthesize", "org/model", SENTENCE, *SHORT, "--out", "hub.wav"]) == 0
    assert Path("hub.wav").read_bytes() == before
    assert main(["evaluate", "org/model", "--corpus", "corpus", "--limit", "1", *SHORT, "--out", "scores"]) == 0
    assert read_json("scores/report.json")["names"]["model"] == f"org/model@{model}"
    save_tiny_whisper(place / "whisper", steps=0)
    heard = hub.publish("org/whisper", place / "whisper")
    assert main(["evaluate", "--only", "score", "--corpus", "corpus", "--out", "scores", "--asr", "org/whisper"]) == 0
    assert read_json("scores/report.json")["measured_with"] == {"asr": f"org/whisper@{heard}"}
    hub.connect(monkeypatch, place / "empty", offline=True)
    with pytest.raises(UserError, match=r"the model org/model is no directory here, and the hub may not be asked"):
        Synthesizer.load("org/model")
    hub.connect(monkeypatch, place / "home", offline=True)
    assert Synthesizer.load("org/model").voices.names == ("s", "second")


def test_nothing_is_asked_of_the_hub_for_directories(place: Path, hub: HubServer) -> None:
    speak()
    assert main(["evaluate", "model", "--corpus", "corpus", "--limit", "1", *SHORT, "--out", "scores"]) == 0
    Path("words.txt").write_text("\n".join(WORDS))
    assert main(["init-base", "base", "--text", "words.txt", "--hidden-size", "16", "--num-layers", "1"]) == 0
    assert hub.requests == []
