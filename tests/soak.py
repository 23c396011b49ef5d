"""The soak test: see soak.sh.

Each start of the run gets one disaster: SIGKILL of a random rank, a stopping signal to one, SIGKILL of a rank while a
checkpoint is being written, a second start in the same directory, which must be refused, or a bit that was flipped in
the newest checkpoint before, which must give way to the one before it. The other ranks must end by themselves. The run
then starts again on 1 to 4 processes.
"""

import argparse
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import yaml
from forked import Process
from synthetic import write_corpus
from train.place import FRAMES, Place
from train.ranks import start_ranks

from slmkit.config import run_dir
from slmkit.export import consolidate
from slmkit.model.pretrained import load
from slmkit.stopping import STOPPED

SCRIPT = str(Path(__file__).parent / "train" / "noting_train.py")
SAMPLES, STEPS, GLOBAL_ROWS = 90, 300, 12
PROCESSES = (1, 2, 3, 4)  # all divide the rows of a global batch
KINDS = ("kill", "kill in save", "stop", "second start", "bit flip")
DAMAGED = re.compile("is damaged: |is not the marker of a checkpoint|as JSON: ")
LEG_STEPS = 9  # the most steps from a start to its disaster
END_SEC = 90  # the others must be gone after
TOLERANCE = 1e-4  # of losses and weights: float32 sums in another order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin, rng = time.monotonic(), random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="slmkit-soak-") as directory:
        place = Place.make(Path(directory))
        write_corpus(place.directory / "many", SAMPLES, frames=FRAMES, seed=2)
        finish(place, "whole", 2)
        done = Counter[str]()
        while done.total() < args.kills:
            kind = disaster(place, rng)
            done[kind] += 1
            newest = run_dir.newest(place.directory / "soaked")
            where = newest.step if newest else 0
            print(f"{time.monotonic() - begin:6.0f} s  {done.total():2} {kind}, checkpoint of step {where}", flush=True)
        finish(place, "soaked", rng.choice(PROCESSES))
        report = compare(place)
    print(f"{done.total()} kills {dict(done)} in {time.monotonic() - begin:.0f} s; {report}")


def started(place: Place, name: str, processes: int) -> list[Process]:
    options = {"data": {"corpus": str(place.directory / "many")}, "optimizer": {"lr": 1e-3, "clip_norm": 0.3}}
    sizes = {"steps": STEPS, "global_rows": GLOBAL_ROWS, "save_every_steps": 4, "keep_every_steps": 100, "keep_last": 3}
    sizes["on_damaged_checkpoint"] = "previous"
    file = place.directory / f"{name}.yaml"
    file.write_text(yaml.safe_dump(place.config(name, **options, **sizes, hang_timeout_sec=60)))
    return start_ranks(processes, [SCRIPT, str(place.directory / name), "--config", str(file)])


def finish(place: Place, name: str, processes: int) -> None:
    ranks = started(place, name, processes)
    for rank in ranks:
        _, errors = rank.communicate(timeout=900)
        assert rank.returncode == 0, errors[-4000:]


def disaster(place: Place, rng: random.Random) -> str:
    """One start that is ended; returns how."""
    run, processes, kind = place.directory / "soaked", rng.choice(PROCESSES), rng.choice(KINDS)
    flipped = flip(run, rng) if kind == "bit flip" else None
    if kind == "bit flip" and flipped is None:
        kind = "stop"
    begin = len(notes(run, 0))
    ranks = started(place, "soaked", processes)
    victim, steps, delay = rng.randrange(processes), rng.randrange(1, LEG_STEPS), rng.random() / 10
    wait_for(ranks, lambda: len(notes(run, 0)) >= begin + steps * GLOBAL_ROWS // processes)
    if kind == "kill in save":
        wait_for(ranks, lambda: any(not (path / run_dir.MARKER).exists() for _, path in run_dir.directories(run)))
    elif kind == "second start":
        for second in started(place, "soaked", rng.choice((1, 2))):
            _, errors = second.communicate(timeout=END_SEC)
            assert second.returncode == 2, errors[-4000:]
            assert "is being written by another start" in errors or "slmkit train" not in errors, errors[-4000:]
    else:
        time.sleep(delay)
    is_killed = kind in ("kill", "kill in save")
    number = signal.SIGKILL if is_killed else rng.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))
    ranks[victim].send_signal(number)
    outputs = [rank.communicate(timeout=END_SEC) for rank in ranks]
    codes = [rank.returncode for rank in ranks]
    shown = "\n".join(errors[-2000:] for _, errors in outputs)
    assert flipped is None or DAMAGED.search("".join(errors for _, errors in outputs)), (flipped, shown)
    if not is_killed:
        assert codes == [STOPPED] * processes, (codes, shown)
    else:
        assert codes[victim] == -signal.SIGKILL, (codes, shown)
        assert all(code == 1 for i, code in enumerate(codes) if i != victim), (codes, shown)
    what = {
        "kill in save": " in save",
        "second start": " after a second start",
        "bit flip": f" after a flip in {flipped}",
    }
    return f"{number.name} to rank {victim} of {processes}{what.get(kind, '')}"


def flip(run: Path, rng: random.Random) -> str | None:
    """Flip a bit of a file of the newest checkpoint and name the file; None where there is none to fall back on."""
    steps = run_dir.complete_steps(run)
    if len(steps) < 2:
        return None
    file = rng.choice(sorted((run_dir.root(run) / run_dir.name(steps[-1])).iterdir()))
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return f"{file.parent.name}/{file.name}"


def wait_for(ranks: list[Process], is_time: Any) -> None:
    """Until it is time. The run must not end before."""
    while not is_time():
        for rank in ranks:
            assert rank.poll() is None, rank.communicate()[1][-4000:]
        time.sleep(0.005)


def notes(run: Path, rank: int) -> list[str]:
    file = run / f"samples-{rank}.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def samples(run: Path) -> dict[tuple[int, int, int, float], list[list[str]]]:
    """Keys of the micro-batches of (step, processes, rank, start), in the order in which they were read."""
    found: dict[tuple[int, int, int, float], list[list[str]]] = {}
    for rank in range(max(PROCESSES)):
        for line in map(json.loads, notes(run, rank)):
            found.setdefault((line["step"], line["processes"], rank, line["start"]), []).append(line["keys"])
    return found


def compare(place: Place) -> str:
    """Samples, losses and weights of both runs; raises AssertionError where they differ."""
    whole, soaked = place.directory / "whole", place.directory / "soaked"
    expected: dict[int, list[list[str]]] = {}
    for (step, *_), rows in sorted(samples(whole).items()):
        expected.setdefault(step, []).extend(rows)
    per_epoch = Counter[str](key for step in expected.values() for keys in step for key in keys)
    taken = samples(soaked)
    for (step, processes, rank, start), rows in taken.items():
        share = GLOBAL_ROWS // processes
        own = expected[step][rank * share : (rank + 1) * share]
        assert rows == own[: len(rows)], (step, processes, rank, start)  # all of it, but in the step of a disaster
    assert max(per_epoch.values()) - min(per_epoch.values()) <= 1, "an epoch has each sample once"
    assert len(per_epoch) == SAMPLES
    pairs = list(zip(place.metrics("whole"), place.metrics("soaked"), strict=True))
    assert [record["step"] for record, _ in pairs] == list(range(1, STEPS + 1))
    worst_loss = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
    models = [place.directory / "model-whole", place.directory / "model-soaked"]
    for run, model in zip((whole, soaked), models, strict=True):
        assert consolidate(run, model).step == STEPS
    weights, others = (load(model).state_dict() for model in models)
    worst_weight = max(float((weights[name] - others[name]).abs().max()) for name in weights)
    assert worst_loss <= TOLERANCE, worst_loss
    assert worst_weight <= TOLERANCE, worst_weight
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    return (
        f"samples of {len(taken)} steps of ranks equal, losses to {worst_loss:.0e}, weights to {worst_weight:.0e} "
        f"(first loss {pairs[0][0]['loss']:.3f}, last {pairs[-1][0]['loss']:.3f})"
    )


if __name__ == "__main__":
    sys.exit(main())
