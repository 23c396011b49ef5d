"""Corpora for the tests of the job, good files among one of each kind that is bad or odd, and what is looked at."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import soundfile
from tiny_codec import TinyCodec, make_config

from slmkit.tokenization.job import tokenize

RATE = 16000
# key -> reason; the keys of `hostile_corpus` that give no sample
EXPECTED_FAILURES = {
    "empty": "unreadable",
    "header": "empty",
    "hour": "too_long",
    "latin": "transcript_not_utf8",
    "nan": "non_finite",
    "nowords": "empty_transcript",
    "one": "too_short",
    "silent": "silent",
    "text": "unreadable",
    "truncated": "truncated",
    "two_formats": "duplicate_key",
    "ape": "unsupported",
    "unheard": "missing",
    "old/archive.tar.gz": "unsupported",
    "unsaid": "missing_transcript",
    "pipe.old": "missing",
}
GOOD = {
    "8bit",
    "48k",
    "stereo",
    "a/twice",
    "b/twice",
    "two_formats",
    "a.key with. dots",
    "ogg",
    *(f"19_7_{i:06d}_000000" for i in range(12)),
}


def noise(seconds, seed, rate=RATE):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * rate)).astype(np.float32)


def add(path, wave, rate=RATE, text="Some words.", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, **options)
    if text is not None:
        path.with_suffix(".normalized.txt").write_bytes(text if isinstance(text, bytes) else text.encode())


def make_hostile(root):
    """A folder of good files among one of each kind that is bad or odd."""
    for i in range(12):
        add(root / f"19/7/19_7_{i:06d}_000000.wav", noise(0.3 + 0.11 * (i * 5 % 12), i), text=f"Words {i} é.\n")
    add(root / "8bit.wav", noise(0.5, 20), subtype="PCM_U8")
    add(root / "48k.flac", noise(0.5, 21, 48000), 48000)
    add(root / "ogg.ogg", noise(0.5, 21))
    add(root / "stereo.wav", np.stack([noise(0.5, 22), noise(0.5, 23)], axis=1))
    add(root / "a.key with. dots.wav", noise(0.4, 24))
    add(root / "hour.flac", np.zeros(3600 * 8000, np.int16), 8000)
    add(root / "latin.wav", noise(0.3, 25), text=b"caf\xe9")
    add(root / "nan.wav", np.where(np.arange(8000) == 4000, np.nan, noise(0.5, 26)), subtype="FLOAT")
    add(root / "nowords.wav", noise(0.3, 27), text=" \n")
    add(root / "one.wav", np.array([0.5]))
    add(root / "silent.wav", np.zeros(8000))
    add(root / "truncated.wav", noise(0.5, 28))
    os.truncate(root / "truncated.wav", 9000)
    add(root / "a/twice.wav", noise(0.3, 29))
    add(root / "b/twice.wav", noise(0.6, 30))
    add(root / "two_formats.flac", noise(0.3, 32))
    add(root / "two_formats.wav", noise(0.3, 32))
    (root / "old").mkdir()
    for name in ("ape.ape", "ape.normalized.txt", "unheard.normalized.txt", "old/archive.tar.gz"):
        (root / name).write_text("x")
    add(root / "unsaid.wav", noise(0.3, 31), text=None)
    add(root / "header.wav", np.zeros(0))
    for name, content in (("empty", b""), ("text", b"this is not audio\n" * 50)):
        (root / f"{name}.wav").write_bytes(content)
        (root / f"{name}.normalized.txt").write_text("x")
    os.mkfifo(root / "pipe.old.wav")
    (root / "pipe.old.normalized.txt").write_text("x")
    return root


def run(source, out, codec=None, **changes):
    tokenize(codec or TinyCodec(), make_config(source, out, **changes))
    return hashes(out)


def hashes(out):
    """Name -> sha256; of the manifest and job.json without the commit, which may change while the tests run. Without
    the reports of the tasks, which tell the time."""
    found = {}
    for path in sorted(path for path in Path(out).rglob("*") if path.is_file() and path.parent.name != "tasks"):
        content = path.read_bytes()
        if path.name in ("manifest.json", "job.json"):
            values = json.loads(content)
            del values["made_by"]["commit"], values["made_by"]["command"]
            content = json.dumps(values).encode()
        found[path.name] = hashlib.sha256(content).hexdigest()
    return found


def ledger(out):
    return [json.loads(line) for line in (Path(out) / "failures.jsonl").read_text().splitlines()]
