"""The chain with one codec, each step the command that users give, until a model knows two sentences by heart.

    python chain.py [NAME ...]      # tiny codecs of `families.py`, or architectures of a base; default: all of them

prints for NTP and groups of 3 and 12 the smallest share, over the streams, of codes that a greedy answer has right.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import soundfile
import yaml
from codec.families import family_directory, family_names
from forked import run

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = sorted((ROOT / "tokenize_jobs" / "sample_corpus").rglob("*.flac"))
SENTENCES = ("A small boat.", "Eleven lanterns.")
SECONDS = 0.8  # of each sentence
ARCHITECTURES = ("qwen2", "qwen3", "llama", "smollm3")
GROUPS = (0, 3, 12)


def command(*words: Any) -> str:
    """What `slmkit WORDS` prints."""
    done = run(["-m", "slmkit", *map(str, words)])
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


def make_audio(out: Path) -> Path:
    """A manifest of two recordings, cut short, below `out`."""
    (out / "audio").mkdir(parents=True)
    lines = []
    for i, (path, text) in enumerate(zip(RECORDINGS, SENTENCES, strict=False)):
        wave, rate = soundfile.read(path)
        start = len(wave) // 4
        soundfile.write(out / "audio" / f"{i}.wav", wave[start : start + int(SECONDS * rate)], rate)
        lines.append(json.dumps({"audio": f"audio/{i}.wav", "text": text, "speaker": str(i)}))
    (out / "list.jsonl").write_text("\n".join(lines) + "\n")
    return out / "list.jsonl"


def make_shards(codec: Path, out: Path, arch: str) -> None:
    """A tokenized corpus that was verified, and a tiny base model."""
    command("tokenize", "run", make_audio(out), codec, out / "shards", "kind=manifest", "num_workers=0")
    command("tokenize", "verify", out / "shards")  # without decoding: what random networks say is like nothing
    shape = ("--hidden-size", 64, "--num-layers", 2, "--num-heads", 4)
    command("init-base", out / "base", "--corpus", out / "shards", "--arch", arch, *shape)


def learn(out: Path, group: int) -> float:
    """Train until both sentences are known by heart; the smallest share of equal codes, over the streams."""
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
        "steps": 160 if group else 320,  # a step of NTP says less
        "global_rows": 1,
        "micro_rows": 1,
        "save_every_steps": 1000,
    }
    (place / "run.yaml").write_text(yaml.safe_dump(config))
    command("train", "--config", place / "run.yaml")
    command("consolidate", place / "run", place / "model")
    command(
        "evaluate", place / "model", "--trained", "--corpus", out / "shards", "--out", place / "scores", "--max-sec", 2
    )
    metrics = json.loads((place / "scores" / "report.json").read_text())["summary"]["all"]["metrics"]
    return min(value["mean"] for name, value in metrics.items() if name.startswith("frame_agreement:"))


def built_in(place: Path) -> Path:
    """melvq, fitted to the recordings of the sample corpus."""
    command("codec", "fit", ROOT / "tokenize_jobs" / "sample_corpus", place)
    return place


def chain(name: str, out: Path, groups: tuple[int, ...] = GROUPS) -> list[float]:
    """What `learn` gives with a tiny codec of that name, or with a base of that architecture and the built-in codec."""
    if name in ARCHITECTURES:
        make_shards(built_in(out / "codec"), out, name)
    else:
        make_shards(family_directory(name), out, "qwen2")
    return [learn(out, group) for group in groups]


if __name__ == "__main__":
    print(f"{'codec or base':<20} {'NTP':>6} {'MTP-3':>6} {'MTP-12':>6}")
    known = [*family_names(), *ARCHITECTURES]
    worst = 1.0
    for name in sys.argv[1:] or known:
        with tempfile.TemporaryDirectory() as place:
            shares = chain(name, Path(place) / "out")
        worst = min(worst, *shares)
        print(f"{name:<20} " + " ".join(f"{share:>6.1%}" for share in shares), flush=True)
    sys.exit(worst < 1)
