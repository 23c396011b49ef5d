"""Commands refuse at once what needs no torch: nothing that takes seconds is imported for it."""

import json
import subprocess
import sys
from pathlib import Path

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
SPEAK = ["--codec", "codec", "--speaker", "voice.wav"]
REFUSED = [
    (["synthesize", "nowhere", "Hello", *SPEAK], "the model is not there"),
    (["synthesize", "model", "Hello", "--codec", "nowhere", "--speaker", "voice.wav"], "the codec is not there"),
    (["synthesize", "model", "Hello", "--codec", "codec"], "no voice was given"),
    (["synthesize", "model", "Hello", "--codec", "codec", "--speaker", "x.wav"], "cannot take the voice of x.wav"),
    (
        ["synthesize", "model", "Hello", "--codec", "codec", "--speaker", "gone:key"],
        "cannot take the voice of gone:key",
    ),
    (["synthesize", "model", "Hello", *SPEAK, "--out", "voice.wav"], "the WAV file exists"),
    (["synthesize", "model", "--jsonl", "nothing", *SPEAK, "--out", "out"], "cannot read nothing"),
    (["answer", "model", "Who?", *SPEAK, "--out", "voice.wav"], "the WAV file exists"),
    (["answer", "model", "--jsonl", "nothing", *SPEAK, "--out", "out"], "cannot read nothing"),
    (["evaluate", "nowhere", "--corpus", "codec", "--codec", "codec", "--out", "out"], "the model is not there"),
    (["evaluate", "model", "--corpus", "nowhere", "--codec", "codec", "--out", "out"], "nowhere does not exist"),
    (["consolidate", "nowhere", "out"], "the run or export is not there"),
    (["consolidate", "model", "codec"], "the directory already exists"),
    (["import-model", "nothing.safetensors", "out", "--base", "model"], "the checkpoint is not there"),
    (["import-model", "voice.wav", "codec", "--base", "model"], "the directory already exists"),
    (["import-model", "voice.wav", "out"], "needs the text model it started from"),
    (["import-model", "model", "out", "--codec", "codec"], "has its own tokenizer and codec"),
    (["init-base", "out", "--text", "nothing"], "cannot read nothing"),
    (["init-base", "codec", "--text", "voice.wav"], "the directory already exists"),
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
