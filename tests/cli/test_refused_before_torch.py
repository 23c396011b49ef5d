"""Commands refuse at once what needs no torch: nothing that takes seconds is imported for it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from slmkit.cli.main import main

CODE = """
import contextlib, io, json, sys
from slmkit.cli.main import main
found = []
for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main(words)
    found.append([code, said.getvalue()])
print(json.dumps([found, [name for name in ("torch", "transformers", "numpy") if name in sys.modules]]))
"""
LONG = "a sentence where a path is wanted, " * 20  # at which pathlib raises
SPEAK = ["--codec", "codec", "--speaker", "voice.wav"]
REFUSED = [
    (["synthesize", "nowhere", "Hello", *SPEAK], "the model does not exist"),
    (["synthesize", "model", "Hello", "--codec", "nowhere", "--speaker", "voice.wav"], "the codec does not exist"),
    (["synthesize", "model", "Hello", "--codec", "codec"], "no voice was given"),
    (["synthesize", "model", "Hello", "--codec", "codec", "--speaker", "x.wav"], "cannot use x.wav as a voice"),
    (
        ["synthesize", "model", "Hello", "--codec", "codec", "--speaker", "gone:key"],
        "cannot use gone:key as a voice",
    ),
    (["synthesize", "model", "Hello", *SPEAK, "--out", "voice.wav"], "the WAV file exists"),
    (["synthesize", "model", "--jsonl", "nothing", *SPEAK, "--out", "out"], "cannot read nothing"),
    (["answer", "model", "Who?", *SPEAK, "--out", "voice.wav"], "the WAV file exists"),
    (["answer", "model", "--jsonl", "nothing", *SPEAK, "--out", "out"], "cannot read nothing"),
    (["evaluate", "nowhere", "--corpus", "codec", "--codec", "codec", "--out", "out"], "the model does not exist"),
    (["evaluate", "model", "--corpus", "nowhere", "--codec", "codec", "--out", "out"], "nowhere does not exist"),
    (["consolidate", "nowhere", "out"], "the run or export does not exist"),
    (["consolidate", "model", "codec"], "the directory already exists"),
    (["import-model", "nothing.safetensors", "out", "--base", "model"], "the checkpoint does not exist"),
    (["import-model", "voice.wav", "codec", "--base", "model"], "the directory already exists"),
    (["import-model", "voice.wav", "out"], "needs the text model it started from"),
    (["import-model", "model", "out", "--codec", "codec"], "has its own tokenizer and codec"),
    (["init-base", "out", "--text", "nothing"], "cannot read nothing"),
    (["init-base", "codec", "--text", "voice.wav"], "the directory already exists"),
    (["init-base", "out", "--text", LONG], "there is no such file"),
    (["recipe", "copy", "zero2_bf16", LONG], "File name too long"),
    (["synthesize", "model", "--jsonl", LONG, *SPEAK, "--out", "out"], "there is no such file"),
    (["synthesize", "nowhere", "Hello", *SPEAK, "--out", LONG], "the model does not exist"),
]
TOO_LONG = [
    (["inspect", LONG], "is not the directory of a run"),
    (["launch", "--config", "libritts_ntp", "--slurm", "--script", LONG], "there is no sbatch script"),
    (["tokenize", "status", LONG], "holds no job"),
    (["tokenize", "finalize", LONG], "holds no plan"),
    (["tokenize", "verify", LONG], "holds no finished corpus"),
    (["codec", "fit", LONG, "out"], "the audio folder does not exist"),
    (["codec", "fit", ".", LONG], "no usable audio file"),
    (["codec", "copy", "nowhere", "voice.wav", LONG], "the codec does not exist"),
    (["evaluate", "--copy", "--corpus", LONG, "--codec", "codec", "--out", "out"], "does not exist"),
    (["evaluate", "--compare", LONG, "codec", "--out", "out"], "holds no scores"),
]


def test_what_is_not_there_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    for name in ("model", "codec"):
        (tmp_path / name).mkdir()
    (tmp_path / "voice.wav").touch()
    words = json.dumps([words for words, _ in REFUSED])
    done = subprocess.run([sys.executable, "-c", CODE, words], capture_output=True, text=True, check=True, cwd=tmp_path)
    found, imported = json.loads(done.stdout)
    for (words, message), (code, said) in zip(REFUSED, found, strict=True):
        assert code == 2, words
        assert message in said, words
    assert imported == []
    assert {path.name for path in tmp_path.iterdir()} == {"model", "codec", "voice.wav"}


@pytest.mark.parametrize(("words", "message"), TOO_LONG)
def test_a_name_too_long_is_refused_in_words(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "codec").mkdir()
    assert main(words) == 2
    assert message in capsys.readouterr().err
