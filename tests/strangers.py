"""A small directory with a file of every kind that slmkit reads, and ways to damage them.

directory = make_place(Path("somewhere"))
content = damaged(directory / "run.yaml", random.Random(3))
"""

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import yaml
from forked import run
from spoken import make_spoken

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "tokenize_jobs" / "sample_corpus" / "11" / "101"
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 1.5, -0.0, 1e300, 10**9, 10**12, 10**30, -(10**18), float("inf"), float("nan")),
    *("", "x" * 5000, "x" * 300, "\u00e9" * 200, "x/" * 1000, "../../etc/passwd", "a\0b", "auto", "1e400", "nan"),
    *("\ud800", "\u202e", "\x1b[2J", "<eosp>", [], {}, [[]], [{}], {"": ""}, {"a": {"b": {"c": 1}}}),
    *(list(range(2000)), [["a", 0, 10**12]], json.loads("[" * 60 + "]" * 60)),
]


def make_place(directory: Path) -> Path:
    """Corpora, jobs, a run, models and scores in `directory`, made by the commands themselves; paths are relative."""
    make_spoken(directory)  # codec, corpus, model, voice.npy
    (directory / "raw").mkdir()
    for path in sorted(RAW.iterdir())[:4]:
        shutil.copy(path, directory / "raw")
    names = sorted(path.name for path in (directory / "raw").glob("*.flac"))
    lines = [json.dumps({"path": f"raw/{name}", "text": "Good morning.", "speaker": "a"}) for name in names]
    (directory / "list.jsonl").write_text("\n".join(lines) + "\n")
    recipe = {"corpus": "raw", "kind": "libritts", "source": "raw", "codec": "codec", "out": "shards"}
    write_yaml(directory / "recipe.yaml", {**recipe, "num_workers": 0, "shard_samples": 1, "max_failure_share": 0.5})
    listed = {"kind": "manifest", "source": "list.jsonl", "columns": {"text": "text"}}
    write_yaml(directory / "listed.yaml", {**recipe, **listed, "num_workers": 0})
    (directory / "lines.jsonl").write_text('{"text": "A clock", "id": "a"}\n{"text": "The river froze", "seed": 3}\n')
    (directory / "hosts").write_text("localhost slots=2\n")
    shutil.copy(ROOT / "ds_configs" / "zero2_fp32.json", directory / "ds.json")
    data = {"sources": [{"path": "corpus", "task": "tts", "weight": 1.0}], "row_tokens": 160, "num_workers": 0}
    config = {
        **{"run_dir": "run", "base": "base", "deepspeed": "ds.json", "data": data, "model": {"group": 3}},
        **{"optimizer": {"lr": 2e-3, "betas": [0.9, 0.95]}, "schedule": {"kind": "cosine", "warmup_steps": 1}},
        **{"steps": 2, "global_rows": 2, "log_every_steps": 1, "save_every_steps": 1},
    }
    write_yaml(directory / "run.yaml", config)
    speak = ["--codec", "codec", "--speaker", "voice.npy", "--max-sec", "0.2"]
    for words in (
        ["init-base", "base", "--corpus", "corpus", "--hidden-size", "32", "--num-layers", "2"],
        ["tokenize", "run", "--config", "recipe.yaml"],
        ["tokenize", "plan", "--config", "recipe.yaml", "out=half"],
        ["tokenize", "run", "--config", "recipe.yaml", "out=half", "--task", "0", "--num-tasks", "2"],
        ["train", "--config", "run.yaml"],
        ["consolidate", "run", "export"],
        ["synthesize", "model", "--jsonl", "lines.jsonl", "--out", "spoken", *speak],
        ["evaluate", "--copy", "--corpus", "corpus", "--codec", "codec", "--out", "copied", "--limit", "2"],
        ["evaluate", "model", "--corpus", "corpus", "--codec", "codec", "--out", "scores", "--limit", "2"],
    ):
        done = run(["-m", "slmkit", *words], cwd=directory)
        assert done.returncode == 0, (words, done.stderr[-3000:])
    return directory


def write_yaml(path: Path, values: Any) -> None:
    path.write_text(yaml.safe_dump(values))


def damaged(path: Path, rng: random.Random) -> bytes:
    """The content of a file, changed at random: what JSON or YAML says, most times, or bytes of it."""
    content = path.read_bytes()
    if path.suffix in (".json", ".yaml", ".jsonl") and rng.random() < 0.8:
        return _rewritten(content, path.suffix, rng).encode("utf-8", "surrogatepass")
    return torn(content, rng)


def _rewritten(content: bytes, suffix: str, rng: random.Random) -> str:
    if suffix == ".yaml":
        return yaml.safe_dump(mutated(yaml.safe_load(content), rng), allow_unicode=False)
    if suffix == ".json":
        return json.dumps(mutated(json.loads(content), rng))
    lines = [json.loads(line) for line in content.splitlines()]
    place = rng.randrange(len(lines))
    changed = [*lines[:place], mutated(lines[place], rng), *lines[place + 1 :]]
    if rng.random() < 0.2:
        changed = rng.choice([changed * 2, changed[1:], changed[::-1]])
    return "".join(json.dumps(line) + "\n" for line in changed)


def mutated(value: Any, rng: random.Random) -> Any:
    """`value` with one to three changes: another value, a key gone, misspelled or new, a list cut or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places = [(None, None), *_places(value)]
        inside, key = rng.choice(places[1:] if len(places) > 1 and rng.random() < 0.97 else places)
        if inside is None:
            value = copy.deepcopy(rng.choice(ODD))
            continue
        change = rng.random()
        if change < 0.7:
            inside[key] = copy.deepcopy(rng.choice(ODD))
        elif change < 0.8:
            del inside[key]
        elif isinstance(inside, dict):
            inside[rng.choice([f"{key}s", str(key)[:-1], "zebra", "\u00e9"])] = inside.pop(key) if change < 0.9 else 3
        else:
            inside[:] = inside[:key] if change < 0.9 else inside * 2
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in list(pairs) for place in [(value, key), *_places(part)]]


def torn(content: bytes, rng: random.Random) -> bytes:
    """`content` with some bytes changed, or cut, or with more in its middle."""
    place, choice = rng.randrange(len(content)), rng.random()
    if choice < 0.3:
        return content[:place]
    if choice < 0.5:
        return content[:place] + rng.choice([b"\0", b"\xff", b"[" * 5000, b"&a ", b"*a", b"9" * 5000]) + content[place:]
    flipped = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        flipped[rng.randrange(len(flipped))] = rng.randrange(256)
    return bytes(flipped)
