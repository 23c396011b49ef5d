"""A loss curve on the GPU beside the CPU's: the run of launch/quickstart.yaml, which learns eight sentences by heart.

Codec, shards and base model are made here, from the recordings that come with slmkit. Then `slmkit train` takes the
same steps on the CPU in float32 and on the device in float32 and in bfloat16, all three at once. Printed is one JSON
object: the losses of every step, and for each run the largest difference from the CPU's and the step it comes at.

Example:
    python tests/gpu/curve.py --device cuda --steps 100
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
AUDIO = ROOT / "tokenize_jobs" / "sample_corpus"
REFERENCE = "cpu, float32"
THREADS = 4  # of a process: the tensors are small
SHOWN_LINES = 8  # of a command that failed
DEEPSPEED = {"float32": "zero2_fp32", "bfloat16": "zero2_bf16"}


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare a loss curve with the CPU's.")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=100, help="default: %(default)s")
    args = parser.parse_args()
    runs = list(dict.fromkeys([REFERENCE, f"{args.device}, float32", f"{args.device}, bfloat16"]))
    with tempfile.TemporaryDirectory(prefix="slmkit-curve-") as name:
        place = Path(name)
        make_corpus(place)
        with ThreadPoolExecutor(len(runs)) as pool:
            seconds = list(pool.map(lambda run: train(place, run, args.steps), runs))
        losses = {run: read_losses(directory_of(place, run)) for run in runs}
    print(json.dumps(compare(losses, dict(zip(runs, seconds, strict=True)))))
    return 0


def make_corpus(place: Path) -> None:
    """Codec, shards and base model in the empty directory `place`."""
    codec, shards, base = (str(place / name) for name in ("codec", "shards", "base"))
    slmkit(["codec", "fit", str(AUDIO), codec])
    slmkit(["tokenize", "run", str(AUDIO), codec, shards, "--no-progress"])
    slmkit(["init-base", base, "--corpus", shards, "--hidden-size", "128", "--num-layers", "4"])


def train(place: Path, run: str, steps: int) -> float:
    """Train a run, named by device and float type; its seconds, with all that a start takes."""
    device, kind = run.split(", ")
    words = [
        *("train", "--config", str(ROOT / "launch" / "quickstart.yaml")),
        *(f"run_dir={directory_of(place, run)}", f"base={place / 'base'}", f"data.corpus={place / 'shards'}"),
        *(f"deepspeed={DEEPSPEED[kind]}", f"steps={steps}", "log_every_steps=1", f"save_every_steps={steps}"),
        *("speak_every_steps=0", "codec=null", "global_rows=4", "micro_rows=2"),
    ]
    return slmkit(words, on_gpu=device == "cuda")


def directory_of(place: Path, run: str) -> Path:
    return place / run.replace(", ", "-")


def slmkit(words: Sequence[str], *, on_gpu: bool = False) -> float:
    """Run `slmkit WORDS` in a process that sees the GPUs, or none; its seconds. Ends this program when it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(min(THREADS, os.cpu_count() or 1))}
    if not on_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "slmkit", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-SHOWN_LINES:])
        sys.exit(f"slmkit {' '.join(words[:2])} ended with {done.returncode}:\n{last}")
    return time.perf_counter() - begin


def read_losses(run_dir: Path) -> list[float]:
    """The loss of every step, from the first."""
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record["loss"] for record in records if "loss" in record]


def compare(losses: Mapping[str, Sequence[float]], seconds: Mapping[str, float]) -> dict[str, Any]:
    """Every run beside the reference: its first and last loss, the largest difference, and the step of that."""
    reference, runs = losses[REFERENCE], []
    for run, values in losses.items():
        differences = [abs(ours - theirs) for ours, theirs in zip(values, reference, strict=True)]
        worst = max(range(len(differences)), key=differences.__getitem__)
        runs.append(
            {
                "run": run,
                "steps": len(values),
                "first": values[0],
                "last": values[-1],
                "largest_difference": differences[worst],
                "at_step": worst + 1,
                "sec": seconds[run],
            }
        )
    return {"runs": runs, "losses": dict(losses)}


if __name__ == "__main__":
    sys.exit(main())
