"""The chain of commands from audio to scores with a codec that has no speaker vectors, alone or with a voice encoder.

    python voiceless.py MANIFEST OUT [VOICE]

MANIFEST lists recordings and their texts; a0.wav lies beside it. OUT gets codec, shards, base, run, model and more.
With VOICE, the vectors of that encoder go all the way.
"""

import sys
from pathlib import Path

import yaml
from plain_codec import write_plain

from slmkit.cli.main import main

TEXT = "One two."


def chain(manifest: Path, out: Path, voice: str = "") -> None:
    codec, shards, base, model = (str(out / name) for name in ("codec", "shards", "base", "model"))
    config = {
        "run_dir": str(out / "run"),
        "base": base,
        "codec": codec,
        "deepspeed": "zero2_fp32",
        "data": {"corpus": shards, "row_tokens": 256, "num_workers": 0},
        "model": {"group": 3, "speaker": bool(voice)},
        "optimizer": {"lr": 1e-2},
        "steps": 80,
        "global_rows": 2,
        "micro_rows": 2,
        "save_every_steps": 80,
        "speak_every_steps": 80,
    }
    out.mkdir(parents=True)
    (out / "run.yaml").write_text(yaml.safe_dump(config))
    (out / "lines.jsonl").write_text('{"id": "a", "text": "One two."}\n')
    published, recording = str(write_plain(out / "published")), str(manifest.with_name("a0.wav"))
    speak, ask = ["--codec", codec, "--max-sec", "1"], ["--speaker", f"{shards}:a0"] if voice else []
    for words in (
        ["codec", "add", published, codec, *(["--speaker", voice] if voice else [])],
        ["codec", "copy", codec, recording, str(out / "copy.wav")],
        ["tokenize", "run", str(manifest), codec, shards, "kind=manifest", "num_workers=0"],
        ["tokenize", "verify", shards, "--codec", codec, "--report", str(out / "verified")],
        ["init-base", base, "--corpus", shards, "--hidden-size", "32", "--num-layers", "1"],
        ["train", "--config", str(out / "run.yaml")],
        ["consolidate", str(out / "run"), model],
        ["synthesize", model, TEXT, *speak, *ask, "--out", str(out / "a.wav")],
        ["synthesize", model, TEXT, *speak, *ask, "--stream", "--out", str(out / "streamed.wav")],
        ["synthesize", model, "--jsonl", str(out / "lines.jsonl"), *speak, *ask, "--out", str(out / "spoken")],
        ["evaluate", model, "--trained", "--corpus", shards, *speak, "--limit", "2", "--out", str(out / "scores")],
        ["evaluate", "--copy", "--corpus", shards, "--codec", codec, "--limit", "2", "--out", str(out / "ceiling")],
    ):
        code = main(words)
        assert code == 0, (words, code)


if __name__ == "__main__":
    chain(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
