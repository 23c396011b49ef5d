"""The chain with one codec, each step the command that users give: shards, a model that knows two sentences by heart.

Example:
    shards = make_shards(codec, out)
    learn(codec, out, group=3)      # {"frame_agreement:a": 1.0, ...}
"""

import json
from pathlib import Path
from typing import Any

import soundfile
import yaml
from forked import run

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = sorted((ROOT / "tokenize_jobs" / "sample_corpus").rglob("*.flac"))
SENTENCES = ("A small boat.", "Eleven lanterns.")
SECONDS = 0.8  # of each sentence


def command(*words: Any) -> None:
    done = run(["-m", "slmkit", *map(str, words)])
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-3000:]}"


def make_shards(codec: Path, out: Path, *arch: str) -> None:
    """Two recordings, cut short, as a tokenized corpus that was verified; and a base model of `arch`."""
    (out / "audio").mkdir(parents=True)
    lines = []
    for i, (path, text) in enumerate(zip(RECORDINGS, SENTENCES, strict=False)):
        wave, rate = soundfile.read(path)
        start = len(wave) // 4
        soundfile.write(out / "audio" / f"{i}.wav", wave[start : start + int(SECONDS * rate)], rate)
        lines.append(json.dumps({"audio": f"audio/{i}.wav", "text": text, "speaker": str(i)}))
    (out / "list.jsonl").write_text("\n".join(lines) + "\n")
    command("tokenize", "run", out / "list.jsonl", codec, out / "shards", "kind=manifest", "num_workers=0")
    command("tokenize", "verify", out / "shards")  # what a random network decodes is like nothing
    shape = ("--hidden-size", 64, "--num-layers", 2, "--num-heads", 4)
    command("init-base", out / "base", "--corpus", out / "shards", *arch, *shape)


def learn(codec: Path, out: Path, group: int) -> dict[str, float]:
    """Train until both sentences are known by heart; the share of equal codes of every stream, of greedy answers."""
    place = out / f"group-{group}"
    place.mkdir()
    config = {
        "run_dir": str(place / "run"),
        "base": str(out / "base"),
        "deepspeed": "zero2_fp32",
        "data": {"corpus": str(out / "shards"), "row_tokens": 4096, "num_workers": 0},
        "model": {"group": group},
        "optimizer": {"lr": 5e-3},
        "schedule": {"warmup_steps": 10},
        "steps": 160,
        "global_rows": 1,
        "micro_rows": 1,
        "save_every_steps": 1000,
    }
    (place / "run.yaml").write_text(yaml.safe_dump(config))
    command("train", "--config", place / "run.yaml")
    command("consolidate", place / "run", place / "model")
    scores = place / "scores"
    command("evaluate", place / "model", "--corpus", out / "shards", "--codec", codec, "--out", scores, "--max-sec", 2)
    metrics = json.loads((scores / "report.json").read_text())["summary"]["all"]["metrics"]
    print(sorted(metrics))
    return {name: value["mean"] for name, value in metrics.items() if name.startswith("frame_agreement:")}
