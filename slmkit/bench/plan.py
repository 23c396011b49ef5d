"""Times planning and finalizing at the size of large corpora.

Two parts, each in a process of its own, so that its memory is its alone:

- plan: `slmkit tokenize plan` of a .jsonl manifest of 10 million utterances with speakers, durations and DNSMOS, a part
  of which the filters refuse. Nothing is encoded, so the audio need not exist.
- finalize: `slmkit tokenize finalize` of 10 000 shards of 1000 utterances each, with checks and failures. The tars are
  empty: finalizing looks whether they are there, and reads the indexes.

Example:
    slmkit bench plan --part finalize
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from slmkit.bench.race import alone, peak_gib
from slmkit.bench.synthetic import codec_spec
from slmkit.config.tokenize import FilterConfig, TokenizeConfig
from slmkit.data.index import ShardIndex, index_path, shard_name
from slmkit.data.ledger import Failure
from slmkit.texts import positive
from slmkit.tokenization.corpus_job import CorpusJob, finalize
from slmkit.tokenization.job import plan_corpus
from slmkit.tokenization.plan import ShardPlan

SUMMARY = "planning and finalizing a corpus of ten million utterances"
PARTS = ("plan", "finalize")
SHARD_SAMPLES = 1000
ITEMS, SHARDS = 10_000_000, 10_000
QUICK_ITEMS, QUICK_SHARDS = 5_000, 20
REQUIRED = {"plan_sec": 180.0, "plan_peak_gib": 4.0, "finalize_sec": 120.0}
FAILED = 3  # utterances of each shard
LINE = (
    '{{"path": "EN/B{b:05d}/EN_B{b:05d}_S{s:05d}_W{i:08d}.mp3", "text": "He hoped there would be stew for dinner, '
    'turnips and carrots.", "speaker": "EN_B{b:05d}_S{s:05d}", "language": "en", "seconds": {seconds:.2f}, '
    '"dnsmos": {dnsmos:.2f}}}\n'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be repeated")
    parser.add_argument("--items", type=positive, help=f"utterances to plan (default: {ITEMS})")
    parser.add_argument("--shards", type=positive, help=f"shards to finalize (default: {SHARDS})")
    parser.add_argument("--quick", action="store_true", help="toy sizes that take seconds; their figures mean little")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    items = args.items or (QUICK_ITEMS if args.quick else ITEMS)
    shards = args.shards or (QUICK_SHARDS if args.quick else SHARDS)
    result: dict[str, Any] = {}
    for part in args.part or PARTS:
        with tempfile.TemporaryDirectory(prefix="slmkit-bench-") as directory:
            if part == "plan":
                result |= {"plan_items": items, **alone(time_corpus_plan, Path(directory), items)}
            else:
                make_shards(Path(directory), shards)
                result |= {"finalize_shards": shards, **alone(time_finalize, Path(directory), shards)}
    print(json.dumps(result, indent=2) if args.json else describe(result))
    return 0


def time_corpus_plan(directory: Path, items: int) -> dict[str, Any]:
    """Plan a manifest of `items` lines. Writing the manifest is not timed and keeps one line in memory."""
    with open(directory / "manifest.jsonl", "w") as file:
        for i in range(items):
            batch, seconds, dnsmos = i // 2000, 0.3 + i % 97 / 10, 3.0 + i % 11 / 10
            file.write(LINE.format(b=batch, s=i % 2000 // 20, i=i, seconds=seconds, dnsmos=dnsmos))
    config = TokenizeConfig(
        kind="manifest",
        source=str(directory / "manifest.jsonl"),
        codec="none",
        out=str(directory / "out"),
        min_sec=0.5,
        filters=FilterConfig(min_dnsmos=3.1, languages=("en",)),
        shard_samples=SHARD_SAMPLES,
    )
    started = time.perf_counter()
    plan = plan_corpus(codec_spec(), config)
    seconds = time.perf_counter() - started
    return {"plan_sec": seconds, "plan_kept": plan.num_items, "plan_peak_gib": peak_gib()}


def make_shards(directory: Path, shards: int) -> None:
    """Indexes as `run` writes them, and empty tars."""
    rng, kept = np.random.default_rng(0), SHARD_SAMPLES - FAILED
    spec = codec_spec()
    seconds = rng.lognormal(1.7, 0.7, kept).round(3)
    frames = (80 * seconds).astype(np.int32)
    sizes = {suffix: rng.integers(300, 4000, kept) for suffix in ("codes.npy", "json", "speaker.npy")}
    sizes["codes.npy"] += 2 * frames
    first = ShardIndex(
        tar=shard_name("bench", 0),
        sha256="0" * 64,
        seconds=float(seconds.sum()),
        keys=(),
        frames=frames,
        text_chars=rng.integers(10, 200, kept).astype(np.int32),
        offsets={suffix: rng.integers(0, 10_000_000, kept) for suffix in sizes},
        sizes=sizes,
        crc32=rng.integers(0, 2**32, kept).astype(np.uint32),
        checks={
            "seconds": seconds.astype(np.float32),
            "silence": rng.uniform(0, 0.61, kept).astype(np.float32),
            "clipped": np.zeros(kept, np.float32),
            "dc": np.zeros(kept, np.float32),
            "frames_off": np.zeros(kept, np.float32),
            "chars_per_sec": rng.normal(15, 2, kept).astype(np.float32),
        },
        plan_sha256="1" * 64,
    )
    CorpusJob(directory, "bench", spec, {"corpus": "bench"})
    for shard in range(shards):
        keys = tuple(f"EN_B{shard:05d}_S{i // 20:05d}_W{i:06d}" for i in range(SHARD_SAMPLES))
        failures = tuple(Failure(key, "truncated", "is cut short") for key in keys[kept:])
        tar = shard_name("bench", shard)
        (directory / tar).touch()
        replace(first, tar=tar, keys=keys[:kept], failures=failures).write(index_path(directory, tar))


def time_finalize(directory: Path, shards: int) -> dict[str, Any]:
    planned = [ShardPlan(SHARD_SAMPLES, 0.0, 0, 0, "1" * 64)] * shards
    started = time.perf_counter()
    finalize(CorpusJob.open(directory), planned, max_failure_share=0.05)
    return {"finalize_sec": time.perf_counter() - started, "finalize_peak_gib": peak_gib()}


def describe(result: dict[str, Any]) -> str:
    """The result as lines for a reader, with what is required."""
    lines = []
    if "plan_sec" in result:
        lines.append(
            f"plan, {result['plan_items']:,} utterances, {result['plan_kept']:,} kept: {result['plan_sec']:.1f} s, "
            f"peak memory {result['plan_peak_gib']:.2f} GiB (required: below {REQUIRED['plan_sec']:.0f} s and "
            f"{REQUIRED['plan_peak_gib']:.0f} GiB)"
        )
    if "finalize_sec" in result:
        lines.append(
            f"finalize, {result['finalize_shards']:,} shards: {result['finalize_sec']:.1f} s, peak memory "
            f"{result['finalize_peak_gib']:.2f} GiB (required: below {REQUIRED['finalize_sec']:.0f} s)"
        )
    return "\n".join(lines)
