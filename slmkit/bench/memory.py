"""Peak memory of tokenizing one long recording, for each of several codecs and two lengths.

`slmkit tokenize run` as users start it, in one process with one thread. The wave itself is in memory, 4 bytes a sample,
two and a half times while it is read and twice when it is encoded; what a minute more takes beyond that is the codec's.
A short recording should be long enough for several pieces: 5 minutes or more.

Invariant: a peak is the largest resident memory that the system saw of the whole command, not an estimate.

Example:
    slmkit bench memory codecs/encodec-8 codecs/mimi --minutes 10 60
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmkit.audio.encode import pcm16, wav_header
from slmkit.bench.codec import make_waves
from slmkit.bench.codecs import NAME_CHARS
from slmkit.bench.race import command_alone
from slmkit.codec.open import open_codec
from slmkit.errors import UserError
from slmkit.texts import above_zero

SUMMARY = "peak memory of tokenizing a short and a long recording, for each codec"
MINUTES = (10.0, 60.0)
BYTES = 4  # of a sample
BLOCK_SEC = 10.0  # of sound, repeated to the whole length
ROW = "{:<28} {:>7} {:>11} {:>11} {:>12} {:>12} {:>9}"
HEAD = ("codec", "Hz", "MiB short", "MiB long", "MiB/min", "of waves", "CPU s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("codec", nargs="+", type=Path, metavar="DIR", help="directories of codecs")
    parser.add_argument(
        "--minutes", nargs=2, type=above_zero, default=MINUTES, metavar="M", help="of both recordings (default: 10 60)"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(args: argparse.Namespace) -> int:
    short, long = args.minutes
    if not 0 < short < long < 24 * 60:
        raise UserError("there is nothing to compare", got=f"--minutes {short:g} {long:g}", expected="a longer second")
    if not args.json:
        print(
            f"tokenizing {short:g} and {long:g} minutes: what a minute more takes, and how many times its wave that is"
        )
        print(ROW.format(*HEAD))
    results = []
    for path in args.codec:
        results.append(bench_directory(path, short, long))
        if not args.json:
            print(describe(results[-1]), flush=True)
    if args.json:
        print(json.dumps(results, indent=2))
    return 0


def bench_directory(path: Path, short: float, long: float) -> dict[str, Any]:
    """Of the codec in `path` and recordings of so many minutes. Raises UserError where it cannot be tokenized with."""
    codec = open_codec(path)
    rate = codec.spec.sample_rate
    block = pcm16(make_waves(codec, BLOCK_SEC, 1)[0][0])
    used = []
    with tempfile.TemporaryDirectory(prefix="slmkit-bench-") as place:
        for minutes in (short, long):
            directory = Path(place) / f"{minutes:g}"
            directory.mkdir()
            num_samples = round(minutes * 60 * rate)
            with (directory / "one.wav").open("wb") as file:
                file.write(wav_header(rate, num_samples))
                for left in range(num_samples, 0, -len(block)):
                    file.write(block[:left].tobytes())
            (directory / "list.jsonl").write_text(json.dumps({"audio": "one.wav", "text": "Some words."}) + "\n")
            words = ["tokenize", "run", str(directory / "list.jsonl"), str(path), str(directory / "shards")]
            settings = ("kind=manifest", "num_workers=0", f"max_sec={minutes * 60 + 1}")
            used.append(command_alone([*words, *settings]))
    per_minute = (used[1].peak_mib - used[0].peak_mib) / (long - short)
    return {
        "codec": str(path),
        "kind": codec.spec.name,
        "sample_rate": rate,
        "minutes": [short, long],
        "peak_mib": [one.peak_mib for one in used],
        "mib_per_minute": per_minute,
        "waves": per_minute * 2**20 / (60 * rate * BYTES),
        "cpu_sec": used[1].cpu_sec,
    }


def describe(result: Mapping[str, Any]) -> str:
    """A row of the table."""
    return ROW.format(
        f"{result['kind']} {Path(result['codec']).name}"[:NAME_CHARS],
        result["sample_rate"],
        *(f"{peak:.0f}" for peak in result["peak_mib"]),
        f"{result['mib_per_minute']:.1f}",
        f"{result['waves']:.1f}",
        f"{result['cpu_sec']:.0f}",
    )
