"""`slmkit codec fit` and `slmkit codec copy`, as a user types them."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from codec.tiny_snac import write_published
from hub_server import HubServer

from slmkit.cli.main import main
from slmkit.codec.melvq import MelVQ
from slmkit.codec.open import open_codec
from slmkit.files import read_json

CORPUS = Path(__file__).parents[2] / "tokenize_jobs" / "sample_corpus"
SPOKEN = CORPUS / "11" / "101" / "11_101_000000_000000.flac"


@pytest.fixture(scope="module")
def codec_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("fit") / "codec"
    assert main(["codec", "fit", str(CORPUS), str(out)]) == 0
    return out


def test_fit_writes_a_codec_with_its_origin(codec_folder):
    assert sorted(file.name for file in codec_folder.iterdir()) == [
        "codec_spec.json",
        "melvq.safetensors",
        "provenance.json",
    ]
    assert open_codec(codec_folder).spec.name == "melvq"
    origin = read_json(codec_folder / "provenance.json")
    assert origin["config"]["seed"] == 0
    assert origin["counts"]["files"] == 32
    assert 50 < origin["counts"]["seconds"] < 70


def test_add_notes_the_commit_of_a_hub_id(tmp_path, monkeypatch):
    with HubServer() as hub:
        hub.connect(monkeypatch, tmp_path / "home")
        commit = hub.publish("org/snac", write_published(tmp_path / "snac", "convolutions"))
        assert main(["codec", "add", "org/snac", str(tmp_path / "out")]) == 0
    assert read_json(tmp_path / "out" / "codec.json")["source"] == f"org/snac@{commit}"


def test_copy_writes_the_copy_and_says_how_far_it_is(codec_folder, tmp_path, capsys):
    assert main(["codec", "copy", str(codec_folder), str(SPOKEN), str(tmp_path / "a.wav")]) == 0
    report = capsys.readouterr().out
    assert 2 < float(re.search(r"log-mel distance ([\d.]+) dB", report)[1]) < 8
    assert re.search(r"encode [\d.]+, decode [\d.]+ seconds of audio per second", report)
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
    assert abs(info.duration - soundfile.info(SPOKEN).duration) < 0.0125
    assert main(["codec", "copy", str(codec_folder), str(SPOKEN), str(tmp_path / "a.wav")]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["codec", "copy", str(codec_folder), str(SPOKEN), str(tmp_path / "a.wav"), "--replace"]) == 0


def test_bad_files_are_reported_and_skipped(tmp_path, capsys):
    shutil.copytree(CORPUS, tmp_path / "audio")
    (tmp_path / "audio" / "11" / "text.WAV").write_text("not audio")
    soundfile.write(tmp_path / "audio" / "silent.wav", np.zeros(8000), 16000)
    soundfile.write(tmp_path / "audio" / "long.flac", np.random.default_rng(0).normal(0, 0.1, 60000), 16000)
    (tmp_path / "audio" / "cut.flac").write_bytes(SPOKEN.read_bytes()[:9000])
    out = tmp_path / "codec"
    assert main(["codec", "fit", str(tmp_path / "audio"), str(out), "--max-sec", "3"]) == 0
    captured = capsys.readouterr()
    skipped = {"silent": 1, "too_long": 1, "truncated": 1, "unreadable": 1}
    assert re.findall(r"skipped, (\w+): (\d)", captured.out) == [(name, "1") for name in skipped]
    assert "text.WAV cannot be read as audio" in captured.err
    assert read_json(out / "provenance.json")["counts"]["skipped"] == skipped


def test_fit_stops_at_max_hours(tmp_path):
    hours = 20 / 3600
    assert main(["codec", "fit", str(CORPUS), str(tmp_path / "codec"), "--max-hours", str(hours)]) == 0
    assert 20 <= read_json(tmp_path / "codec" / "provenance.json")["counts"]["seconds"] < 23


def test_fit_overwrites_only_when_asked(codec_folder, tmp_path, capsys):
    shutil.copytree(codec_folder, tmp_path / "codec")
    before = (tmp_path / "codec" / "melvq.safetensors").read_bytes()
    words = ["codec", "fit", str(CORPUS), str(tmp_path / "codec"), "--seed", "1"]
    assert main(words) == 2
    assert "holds a codec already" in capsys.readouterr().err
    assert (tmp_path / "codec" / "melvq.safetensors").read_bytes() == before
    assert main([*words, "--replace"]) == 0
    assert (tmp_path / "codec" / "melvq.safetensors").read_bytes() != before
    assert open_codec(tmp_path / "codec").spec.name == "melvq"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "{tmp}/nowhere", "{tmp}/out"], "the audio folder does not exist"),
        (["fit", "{tmp}", "{tmp}/out"], "no usable audio file below"),
        (["fit", str(CORPUS), "{tmp}/text.wav"], "OUT is a file"),
        (["fit", str(CORPUS), "{tmp}/rest"], "holds a codec already"),
        (["fit", str(SPOKEN.parent), "{tmp}/out"], "too little audio to fit a codec"),
        (["copy", "{tmp}", str(SPOKEN), "{tmp}/out.wav"], "is not a codec directory"),
        (["copy", "{codec}", "{tmp}/text.wav", "{tmp}/out.wav"], "cannot be read as audio"),
        (["copy", "{codec}", "{tmp}/short.flac", "{tmp}/out.wav"], "is too short for the codec"),
        (["copy", "{codec}", str(SPOKEN), "{tmp}/out.wav", "--device", "gpu"], "cannot use device gpu"),
    ],
)
def test_user_errors_have_exit_code_2(codec_folder, tmp_path, capsys, monkeypatch, words, message):
    if words[1] == str(CORPUS):
        monkeypatch.delattr(MelVQ, "fit")  # refused before
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "rest").mkdir()
    (tmp_path / "rest" / "provenance.json").touch()
    if "short" in " ".join(words):
        soundfile.write(tmp_path / "short.flac", [0.5, -0.5, 0.5], 16000)
    assert main(["codec", *(word.format(tmp=tmp_path, codec=codec_folder) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.wav").exists()
