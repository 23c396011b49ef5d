"""Times the order of data at the size of large corpora, and the loader against the training it feeds.

Three parts, each in a process of its own, so that start-up and memory are its alone:

- resume: a corpus of 10 million utterances in shards of 1000, of which only the manifest and the length table exist.
  Opening both, finding a step in the middle of an epoch with a cursor and planning its window.
- plan: all windows of an epoch of 60 million utterances, and the peak resident memory of the process. Pages of the
  table that the system keeps for it count.
- loader: micro-batches of real shards with the quickstart's settings (rows of 768, two at once, MTP-3, a model of width
  128 with 4 layers), read in the training process by one of two ranks; against forward, backward and AdamW of that
  model in one process with one thread, times two. Real training also waits for DeepSpeed and the other rank, so it
  needs less than what is compared here.

Lengths of utterances are those of synthetic.py.

Example:
    slmkit bench data --part loader
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch

from slmkit.bench.race import alone, peak_gib
from slmkit.bench.synthetic import (
    ANSWER_TOKENS,
    FRAME_RATE,
    LONGEST_SEC,
    MEDIAN_SEC,
    PROMPT_TOKENS,
    SHORTEST_SEC,
    SIGMA,
    TEXT_RATE,
    codec_spec,
)
from slmkit.data.batch import Batch
from slmkit.data.examples import ExampleFormat, TrainingData
from slmkit.data.index import MANIFEST, Corpus, shard_name, write_manifest
from slmkit.data.lengths import RECORD, Wording, table_path, table_writer
from slmkit.data.loader import micro_batches
from slmkit.data.shards import Sample, ShardWriter
from slmkit.data.sources import of_corpus
from slmkit.data.steps import Cursor, Steps
from slmkit.data.text import TextTokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.files import write_json
from slmkit.model.init_base import init_base
from slmkit.model.pretrained import base_layout, from_base
from slmkit.texts import positive
from slmkit.world import BatchSplit

SUMMARY = "finding and planning steps of large corpora, and the loader's speed"
PARTS = ("resume", "plan", "loader")
SHARD_SAMPLES = 1000
CHUNK = 1_000_000  # simulated samples written at once
ROW_TOKENS, GLOBAL_ROWS, EVAL_SHARE = 2048, 64, 0.001  # of the simulated runs
QUICKSTART = {"row_tokens": 768, "global_rows": 4, "micro_rows": 2, "group": 3, "hidden_size": 128, "num_layers": 4}
WORLD_SIZE = 2
REQUIRED = {"resume_sec": 1.0, "plan_peak_gib": 4.0, "loader_ratio": 20.0}
WORDS = ("the", "river", "ran", "past", "an", "old", "bakery", "where", "someone", "read", "letters")


@dataclass(frozen=True, kw_only=True)
class DataSizes:
    """How much is done."""

    resume_samples: int
    plan_samples: int
    utterances: int  # of the real shards
    loaded_steps: int
    trained_steps: int


FULL = DataSizes(
    resume_samples=10_000_000, plan_samples=60_000_000, utterances=2000, loaded_steps=300, trained_steps=20
)
QUICK = DataSizes(resume_samples=50_000, plan_samples=100_000, utterances=40, loaded_steps=4, trained_steps=1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be repeated")
    parser.add_argument("--quick", action="store_true", help="toy sizes that take seconds; their figures mean little")
    parser.add_argument(
        "--resume-samples", type=positive, help=f"utterances of resume (default: {FULL.resume_samples})"
    )
    parser.add_argument("--plan-samples", type=positive, help=f"utterances of plan (default: {FULL.plan_samples})")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    base = QUICK if args.quick else FULL
    sizes = DataSizes(
        resume_samples=args.resume_samples or base.resume_samples,
        plan_samples=args.plan_samples or base.plan_samples,
        utterances=base.utterances,
        loaded_steps=base.loaded_steps,
        trained_steps=base.trained_steps,
    )
    result: dict[str, Any] = {}
    for part in args.part or PARTS:
        with tempfile.TemporaryDirectory(prefix="slmkit-bench-") as directory:
            result |= bench_part(part, Path(directory), sizes)
    print(json.dumps(result, indent=2) if args.json else describe(result))
    return 0


def bench_part(part: str, directory: Path, sizes: DataSizes) -> dict[str, Any]:
    """Figures of one part, with files in the empty `directory`."""
    if part == "resume":
        cursors = alone(make_simulated, directory, sizes.resume_samples, True)
        return {"resume_samples": sizes.resume_samples, **alone(time_resume, directory, cursors)}
    if part == "plan":
        alone(make_simulated, directory, sizes.plan_samples, False)
        return {"plan_samples": sizes.plan_samples, **alone(time_epoch_plan, directory)}
    return alone(time_loader, directory, sizes)


def make_simulated(directory: Path, num_samples: int, with_cursors: bool) -> list[tuple[float, int, Cursor]]:
    """A manifest and a length table; (eval share, steps taken, cursor) in the middle of the first epoch."""
    shards = [
        {"tar": shard_name("simulated", i), "sha256": f"{i:064x}", "samples": min(SHARD_SAMPLES, num_samples - start)}
        for i, start in enumerate(range(0, num_samples, SHARD_SAMPLES))
    ]
    manifest = {"codec": codec_spec().to_dict(), "shards": shards, "counts": {"seconds": num_samples * MEDIAN_SEC}}
    write_json(directory / MANIFEST, manifest)
    source = of_corpus(Corpus.open(directory))
    with table_writer(table_path(directory, source, wording()), num_samples) as file:
        for start in range(0, num_samples, CHUNK):
            file.write(simulated(start, min(CHUNK, num_samples - start)).tobytes())
    found = []
    for share in (0.0, EVAL_SHARE) if with_cursors else ():
        steps = open_steps(directory, share)
        middle, rows = steps.plan.num_windows(0) // 2, 0
        for window in islice(steps.plan.windows(0), middle + 1):
            rows += window.num_rows
        done = rows // GLOBAL_ROWS - 1
        next(steps.walk(done))
        found.append((share, done, steps.cursor(done)))
    return found


def simulated(start: int, number: int) -> np.ndarray:
    """RECORDs of utterances."""
    rng = np.random.default_rng((0, start))
    seconds = np.clip(rng.lognormal(np.log(MEDIAN_SEC), SIGMA, number), SHORTEST_SEC, LONGEST_SEC)
    records = np.zeros(number, RECORD)
    records["text_positions"] = PROMPT_TOKENS + ANSWER_TOKENS + np.round(TEXT_RATE * seconds)
    records["text_targets"] = ANSWER_TOKENS
    records["frames"] = np.round(FRAME_RATE * seconds)
    records["key_hash"] = rng.integers(0, 2**64, number, dtype=np.uint64)
    records["speech"] = records["labelled"] = 1
    return records


def open_steps(directory: Path, eval_share: float) -> Steps:
    """What a start of training opens of its data."""
    words, form = wording(), ExampleFormat(task="tts", group=3)
    source = of_corpus(Corpus.open(directory))
    data = TrainingData.open(source, words.tokenizer, words.layout, form, cache_dir=directory)
    if eval_share:
        data, _ = data.split(eval_share)
    return Steps(data.plan(seed=0, row_tokens=ROW_TOKENS), GLOBAL_ROWS, data.fingerprint)


def time_resume(directory: Path, cursors: list[tuple[float, int, Cursor]]) -> dict[str, Any]:
    """Seconds to the samples of the next step, without and with a held-out share."""
    seconds = []
    for share, done, cursor in cursors:
        start = time.perf_counter()
        steps = open_steps(directory, share)
        step = next(steps.walk(done, cursor))
        seconds.append(time.perf_counter() - start)
        planned = steps.plan.window.cache_info().misses
        assert sum(map(len, step.rows))
        assert planned <= 2, f"{planned} windows were planned: the cursor was not believed"
    return {"resume_sec": seconds[0], "resume_held_out_sec": seconds[1]}


def time_epoch_plan(directory: Path) -> dict[str, Any]:
    """Seconds and peak memory of planning an epoch."""
    start = time.perf_counter()
    steps = open_steps(directory, 0.0)
    rows = steps.plan.num_rows(0)
    seconds = time.perf_counter() - start
    return {"plan_sec": seconds, "plan_rows": rows, "plan_peak_gib": peak_gib()}


def time_loader(directory: Path, sizes: DataSizes) -> dict[str, Any]:
    """Rows a second of the loader, and of the two processes it would feed."""
    torch.set_num_threads(1)
    source = of_corpus(write_random_corpus(directory / "corpus", sizes.utterances))
    texts = (source.reader.read_meta(i)["text"] for i in range(len(source)))
    size: dict[str, Any] = {name: QUICKSTART[name] for name in ("hidden_size", "num_layers")}
    init_base(texts, directory / "base", **size)
    tokenizer = TextTokenizer.load(directory / "base")
    assert source.codec is not None
    layout = base_layout(tokenizer, source.codec, QUICKSTART["group"])
    form = ExampleFormat(task="tts", group=QUICKSTART["group"], speaker=True)
    data = TrainingData.open(source, tokenizer, layout, form)
    split = BatchSplit(
        global_rows=QUICKSTART["global_rows"], micro_rows=QUICKSTART["micro_rows"], world_size=WORLD_SIZE
    )
    steps = Steps(data.plan(seed=0, row_tokens=QUICKSTART["row_tokens"]), split.global_rows).walk()
    model = from_base(directory / "base", codec=source.codec, seed=0, group=form.group, speaker=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def train(batch: Batch) -> None:
        model(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    batches = micro_batches(data, split, steps, rank=0, row_tokens=QUICKSTART["row_tokens"])
    loaded: list[float] = []
    kept: list[Batch] = []
    for _ in range(1 + sizes.loaded_steps):
        start = time.perf_counter()
        kept = [*kept[-sizes.trained_steps :], next(batches)[2]]
        loaded.append(time.perf_counter() - start)
    trained = []
    for batch in islice(cycle(kept), 1 + sizes.trained_steps):
        start = time.perf_counter()
        train(batch)
        trained.append(time.perf_counter() - start)
    rows = split.micro_rows
    loader = rows / statistics.fmean(loaded[1:])  # the first of each warms up
    training = WORLD_SIZE * rows / statistics.fmean(trained[1:])
    return {
        "loader_rows_per_sec": loader,
        "training_rows_per_sec": training,
        "loader_ratio": loader / training,
    }


def write_random_corpus(directory: Path, utterances: int) -> Corpus:
    """Real shards of random codes and words, of about 60 to 150 characters each."""
    spec, rng, indexes = codec_spec(speaker_dim=80), np.random.default_rng(0), []
    for shard, start in enumerate(range(0, utterances, SHARD_SAMPLES)):
        writer = ShardWriter(directory, "bench", shard)
        for i in range(start, min(start + SHARD_SAMPLES, utterances)):
            seconds = float(np.clip(rng.lognormal(np.log(MEDIAN_SEC), SIGMA), SHORTEST_SEC, 8.0))
            codes = rng.integers(0, 1024, (3, round(FRAME_RATE * seconds))).astype(np.uint16)
            text = " ".join(rng.choice(WORDS, max(1, round(3 * seconds))))
            speaker = rng.standard_normal(80).astype(np.float32)
            writer.add(Sample(f"utterance {i}", codes, speaker, {"text": text, "seconds": seconds}))
        indexes.append(writer.commit())
    write_manifest(directory, "bench", spec, [index.summary for index in indexes], {})
    return Corpus.open(directory)


def wording() -> Wording:
    """A task with the smallest of tokenizers: nothing is tokenized."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE()).to_str()
    tokenizer = TextTokenizer(backend, base_size=256, bos_id=0, eos_id=1)
    layout = VocabLayout.published("mtp", base_size=256, bos_id=0, eos_id=1, codebook_sizes=(1024,) * 3)
    return Wording(task="tts", speaker=False, tokenizer=tokenizer, layout=layout)


def describe(result: dict[str, Any]) -> str:
    """The result as lines for a reader, with what is required."""
    lines = []
    if "resume_sec" in result:
        lines.append(
            f"resume, {result['resume_samples']:,} utterances: {result['resume_sec']:.3f} s to the next step's plan "
            f"(with a held-out share {result['resume_held_out_sec']:.3f} s; required: below "
            f"{REQUIRED['resume_sec']:.0f} s)"
        )
    if "plan_sec" in result:
        lines.append(
            f"plan, {result['plan_samples']:,} utterances: {result['plan_rows']:,} rows in {result['plan_sec']:.1f} s, "
            f"peak memory {result['plan_peak_gib']:.2f} GiB (required: below {REQUIRED['plan_peak_gib']:.0f} GiB)"
        )
    if "loader_ratio" in result:
        lines.append(
            f"loader: {result['loader_rows_per_sec']:.0f} rows/s, two training processes take "
            f"{result['training_rows_per_sec']:.1f}: {result['loader_ratio']:.1f} times "
            f"(required: {REQUIRED['loader_ratio']:.0f})"
        )
    return "\n".join(lines)
