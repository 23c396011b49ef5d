"""Files of strangers, changed at random, through the commands that read them: each is used or refused in words.

A command ends with exit code 0 or 2 and prints no traceback; no file is lost, and none changes but what the command
writes. It runs in a fork of a process that has torch loaded, with limits on its CPU seconds and memory.
`MUTATIONS=9 bash tests/run.sh --all -k mutated_commands` tries 9 of each kind.
"""

import fnmatch
import hashlib
import os
import random
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from forked import run
from strangers import damaged, make_place

CPU_SEC, MEMORY_BYTES = 20, 5 * 2**30  # of one command, beyond what the process has at its start
MAX_SAID = 20_000  # characters
SEEDS = int(os.environ.get("MUTATIONS", "1"))  # of each kind
LIMITED = f"""
import resource, sys
from slmkit.cli.main import main
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + {MEMORY_BYTES},) * 2)
resource.setrlimit(resource.RLIMIT_CPU, ({CPU_SEC}, {CPU_SEC}))
sys.exit(main(sys.argv[1:]))
"""


class Command(NamedTuple):
    """A command line, and the files that it may write or change, as patterns; `new` is always one."""

    line: str
    writes: tuple[str, ...] = ()


PRINT = Command("train --config run.yaml --print-config")
DRY = Command("train --config run.yaml --dry-run", ("run/cache/*",))
FRESH = Command("train --config run.yaml --dry-run run_dir=new/run")
TRAIN = Command("train --config run.yaml steps=3", ("run/*",))
BEGIN = Command("train --config run.yaml steps=1 run_dir=new/run")
LAUNCH = Command("launch --config run.yaml --dry-run --processes 2")
HOSTS = Command("launch --config run.yaml --dry-run --hostfile hosts")
INSPECT = Command("inspect run")
INSPECT_JSON = Command("inspect run --json --plot new/curves.png")
CONSOLIDATE = Command("consolidate run new/model")
PLAN = Command("tokenize plan --config recipe.yaml out=new/shards")
TOKENIZE = Command("tokenize run --config recipe.yaml out=new/shards --no-progress")
LISTED = Command("tokenize run --config listed.yaml out=new/shards --no-progress")
STATUS, STATUS_JSON = Command("tokenize status half"), Command("tokenize status half --json")
GO_ON = Command("tokenize run --config recipe.yaml out=half --no-progress", ("half/*",))
FINALIZE_HALF = Command("tokenize finalize half", ("half/*",))
FINALIZE = Command("tokenize finalize shards", ("shards/*.json*",))
VERIFY = Command("tokenize verify shards --codec codec --report new/report")
VERIFY_CORPUS = Command("tokenize verify corpus --codec codec --report new/report")
SPEAK = Command("synthesize model Hello. --codec codec --speaker voice.npy --max-sec 0.2 --out new/a.wav")
SPEAK_LIKE = Command("synthesize model Hello. --codec codec --speaker voice.wav --max-sec 0.2 --out new/a.wav")
SPEAK_AS = Command("synthesize model Hello. --codec codec --speaker corpus:u0 --max-sec 0.2 --out new/a.wav")
SPEAK_LINES = Command("synthesize model --jsonl lines.jsonl --codec codec --speaker voice.npy --out new/spoken")
SPEAK_ON = Command(
    "synthesize model --jsonl lines.jsonl --codec codec --speaker voice.npy --max-sec 0.2 --out spoken", ("spoken/*",)
)
EXPORT = Command("consolidate export new/model --format published")
EXPORT_AGAIN = Command("consolidate model new/model")
TUNE = Command("train --config run.yaml --dry-run run_dir=new/run init_from=export")
COPY = Command("codec copy codec voice.wav new/copy.wav")
EVALUATE = Command("evaluate --copy --corpus corpus --codec codec --out new/scores --limit 2")
SCORE = Command("evaluate --only score --corpus corpus --codec codec --out scores", ("scores/*",))
COMPARE = Command("evaluate --compare scores copied --out new/table")

CORPUS = (FRESH, VERIFY_CORPUS, EVALUATE, SPEAK_AS, BEGIN)
HALF = (STATUS, GO_ON, FINALIZE_HALF, STATUS_JSON)
RUN = (CONSOLIDATE, TRAIN, DRY, INSPECT)
KINDS: dict[str, tuple[Command, ...]] = {
    "run.yaml": (PRINT, DRY, LAUNCH, FRESH),
    "ds.json": (DRY, FRESH),
    "hosts": (HOSTS,),
    "recipe.yaml": (PLAN, TOKENIZE),
    "listed.yaml": (LISTED,),
    "list.jsonl": (LISTED,),
    "raw/*.flac": (TOKENIZE,),
    "raw/*.txt": (TOKENIZE,),
    "corpus/*.index.json": CORPUS,
    "corpus/manifest.json": CORPUS,
    "corpus/*.tar": CORPUS,
    "half/job.json": HALF,
    "half/plan/plan.json": HALF,
    "half/plan/items.jsonl": HALF,
    "half/tasks/*.json": HALF,
    "half/*-000000.index.json": HALF,
    "half/*-000000.tar": HALF,
    "shards/job.json": (VERIFY, FINALIZE),
    "shards/manifest.json": (VERIFY, FINALIZE),
    "shards/*-000001.index.json": (VERIFY, FINALIZE),
    "shards/*-000001.tar": (VERIFY, FINALIZE),
    "base/config.json": (FRESH, BEGIN),
    "base/generation_config.json": (BEGIN,),
    "base/tokenizer.json": (FRESH,),
    "base/tokenizer_config.json": (FRESH,),
    "base/model.safetensors": (BEGIN,),
    "model/config.json": (SPEAK, EXPORT_AGAIN),
    "model/vocab_layout.json": (SPEAK, EXPORT_AGAIN),
    "model/codec_spec.json": (SPEAK, EXPORT_AGAIN),
    "model/tokenizer.json": (SPEAK, EXPORT_AGAIN),
    "model/tokenizer_config.json": (SPEAK, EXPORT_AGAIN),
    "model/model.safetensors": (SPEAK, EXPORT_AGAIN),
    "export/config.json": (TUNE, EXPORT),
    "export/vocab_layout.json": (TUNE, EXPORT),
    "export/provenance.json": (EXPORT,),
    "codec/codec_spec.json": (SPEAK, COPY),
    "codec/melvq.safetensors": (SPEAK, COPY),
    "voice.npy": (SPEAK,),
    "voice.wav": (SPEAK_LIKE, COPY),
    "lines.jsonl": (SPEAK_LINES,),
    "spoken/job.json": (SPEAK_ON,),
    "spoken/outputs.jsonl": (SPEAK_ON,),
    "scores/job.json": (SCORE, COMPARE),
    "scores/outputs.jsonl": (SCORE, COMPARE),
    "scores/report.json": (SCORE, COMPARE),
    "scores/codes/00000.npy": (SCORE,),
    "scores/wav/00000.wav": (SCORE, COMPARE),
    "run/checkpoints/step-2/complete.json": RUN,
    "run/checkpoints/step-2/mp_rank*.pt": RUN,
    "run/checkpoints/step-2/zero*.pt": RUN,
    "run/checkpoints/step-2/random*.pt": RUN,
    "run/metrics.jsonl": (INSPECT, INSPECT_JSON, TRAIN),
    "run/config.yaml": (INSPECT, CONSOLIDATE),
    "run/provenance.json": (INSPECT, CONSOLIDATE, DRY),
    "run/model/config.json": (CONSOLIDATE, INSPECT),
    "run/model/vocab_layout.json": (CONSOLIDATE,),
    "run/model/codec_spec.json": (CONSOLIDATE,),
    "run/model/tokenizer.json": (CONSOLIDATE,),
    "run/cache/lengths*.npy": (DRY, TRAIN),
    "run/cache/left-out*": (DRY, TRAIN),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


def hashes(directory: Path) -> dict[str, str]:
    """Every file below `directory`, by its path."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Tried(NamedTuple):
    """What a command did with a changed file."""

    told: str  # for the message of a test that fails
    code: int
    said: str
    changed: list[str]  # files that it may not write, and wrote
    lost: list[str]


def tried(place: Path, directory: Path, kind: str, seed: int) -> Tried:
    """Change a file of the kind in a copy of `place`, and run one of the commands that read it."""
    rng, command = random.Random(f"{kind} {seed}"), KINDS[kind][seed % len(KINDS[kind])]
    here = directory / "in" / "here"
    shutil.copytree(place, here)
    (here / "new").mkdir()
    victim = min(here.glob(kind))
    victim.write_bytes(damaged(victim, rng))
    before = hashes(directory)
    done = run(["-c", LIMITED, *command.line.split()], cwd=here, timeout=300)
    after, said = hashes(directory), done.stdout + done.stderr
    shutil.rmtree(directory / "in")
    allowed = [f"in/here/{pattern}" for pattern in ("new/*", *command.writes)]
    changed = [name for name in before | after if before.get(name) != after.get(name)]
    # A page chooses its sounds anew, and a run that goes on keeps its two newest checkpoints.
    goes = ("/listen/", "/run/checkpoints/step-1/") if command is TRAIN else ("/listen/",)
    return Tried(
        told=f"{kind}, seed {seed}: slmkit {command.line}: exit code {done.returncode}\n{said[-4000:]}",
        code=done.returncode,
        said=said,
        changed=[name for name in changed if not any(fnmatch.fnmatch(name, pattern) for pattern in allowed)],
        lost=[name for name in before.keys() - after.keys() if not any(part in name for part in goes)],
    )


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_is_used_or_refused(place: Path, tmp_path: Path, kind: str) -> None:
    """Few for each, since each is a command; `test_mutated_files.py` tries many inside this process."""
    for seed in range(SEEDS):
        outcome = tried(place, tmp_path, kind, seed)
        assert outcome.code in (0, 2), outcome.told
        assert "Traceback" not in outcome.said, outcome.told
        assert len(outcome.said) < MAX_SAID, outcome.told
        assert all(c.isprintable() or c in "\n\t" for c in outcome.said), outcome.told
        assert outcome.changed == [], outcome.told
        assert outcome.lost == [], outcome.told
