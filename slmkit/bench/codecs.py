"""A table of converted codecs: speed beside the plain loop, agreement with it, streams against the whole, reach.

The plain loop is the public implementation, one utterance after the other (tests/twins/plain_codecs.py). Both run in
one process on the same utterances. Without trained weights the numbers of speed and agreement hold as well.

Invariant: a speed stands beside the agreement with the plain loop, for a fast wrong codec is worth nothing.

Example:
    slmkit bench codecs codecs/encodec-8 codecs/mimi --seconds 10
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from slmkit.bench.codec import make_waves
from slmkit.bench.race import race, twin
from slmkit.codec.base import Codec, Reach
from slmkit.codec.open import CODEC_JSON, open_codec
from slmkit.codec.stream import StreamDecoder
from slmkit.errors import UserError
from slmkit.files import read_json
from slmkit.texts import above_zero, positive

SUMMARY = "table of codecs: seconds of audio per second, agreement with the plain loop, streams, reach"
STREAM_FRAMES = 25  # of one push
NAME_CHARS = 28
ROW = "{:<28} {:>6} {:>6} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>12}"
HEAD = ("codec", "Hz", "per s", "streams", "encode", "plain", "decode", "plain", "equal %", "wave", "stream", "reach")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("codec", nargs="+", type=Path, metavar="DIR", help="directories of codecs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=above_zero, default=4.0, help="of the longest utterance (default: 4)")
    parser.add_argument("--batch", type=positive, default=1, help="utterances (default: 1)")
    parser.add_argument(
        "--repeats", type=positive, default=3, help="timed rounds, of which the best counts (default: 3)"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(args: argparse.Namespace) -> int:
    results = []
    if not args.json:
        print(f"seconds of audio per second on {args.device} with {torch.get_num_threads()} threads")
        print(ROW.format(*HEAD).rstrip())
    for path in args.codec:
        results.append(bench_directory(path, args.device, args.seconds, batch=args.batch, rounds=args.repeats))
        if not args.json:
            print(describe(results[-1]), flush=True)
    if args.json:
        print(json.dumps(results, indent=2))
    return 0


def bench_directory(
    path: Path, device: str | torch.device, seconds: float, *, batch: int = 1, rounds: int = 3
) -> dict[str, Any]:
    """What the table says of the codec in `path`; None where there is no plain loop or no stream.

    seconds: of the longest of `batch` utterances, each `SHORTER` times as long as the one before. Raises UserError when
    the directory holds no codec, the utterances are too short, or nothing would be timed.
    """
    codec = open_codec(path, device)
    waves, num_samples = make_waves(codec, seconds, batch)
    waves = waves.to(codec.device)
    rows = [row[:count] for row, count in zip(waves, num_samples.tolist(), strict=True)]
    described = read_json(path / CODEC_JSON) if (path / CODEC_JSON).is_file() else {}
    make_plain = twin("plain_codecs").PLAIN.get(described.get("kind"))
    plain = make_plain(path, codec.device) if make_plain else None

    encoding = race(
        [lambda: codec.encode(waves, num_samples), *([lambda: [plain.encode(row) for row in rows]] if plain else [])],
        rounds=rounds,
        device=codec.device,
    )
    encoded = encoding[0].result
    pairs = [
        (codes[None, :, :frames], speaker[None])
        for codes, frames, speaker in zip(encoded.codes, encoded.num_frames.tolist(), encoded.speaker, strict=True)
    ]
    decoding = race(
        [
            lambda: [codec.decode(*pair) for pair in pairs],
            *([lambda: [plain.decode(codes[0].long()) for codes, _ in pairs]] if plain else []),
        ],
        rounds=rounds,
        device=codec.device,
    )
    result: dict[str, Any] = {
        "codec": str(path),
        "kind": codec.spec.name,
        "sample_rate": codec.spec.sample_rate,
        "frame_rate": codec.spec.frame_rate,
        "streams": len(codec.spec.streams),
        "entries": codec.spec.streams[0].size,
        "reach_frames": list(codec.reach_frames),
        "stream_difference": stream_difference(codec, *pairs[0]),
        "equal_codes": None,
        "wave_difference": None,
    }
    audio_sec = float(num_samples.sum()) / codec.spec.sample_rate
    for task, laps in (("encode", encoding), ("decode", decoding)):
        result[f"{task}_audio_sec_per_sec"] = audio_sec / laps[0].seconds
        result[f"plain_{task}_audio_sec_per_sec"] = audio_sec / laps[1].seconds if plain else None
    if plain:
        mine = torch.cat([codes.flatten() for codes, _ in pairs])
        theirs = torch.cat([codes.flatten() for codes in encoding[1].result])
        result["equal_codes"] = float((mine == theirs).double().mean()) if len(mine) == len(theirs) else 0.0
        result["wave_difference"] = max(
            float((wave[0, : len(other)] - other.clamp(-1, 1)).abs().max())
            for wave, other in zip(decoding[0].result, decoding[1].result, strict=True)
        )
    return result


def stream_difference(codec: Codec, codes: torch.Tensor, speaker: torch.Tensor) -> float | None:
    """Largest difference of a sample between codes [1, K, T] decoded as a stream and at once; None without streams."""
    try:
        stream = StreamDecoder(codec, speaker[0])
    except UserError:
        return None
    parts = [stream.push(part) for part in codes[0].split(STREAM_FRAMES, dim=1)]
    return float((torch.cat([*parts, stream.finish()]) - codec.decode(codes, speaker)[0]).abs().max())


def describe(result: Mapping[str, Any]) -> str:
    """A row of the table."""

    def shown(name: str, form: str) -> str:
        return "-" if result[name] is None else format(result[name], form)

    tasks = ("encode", "plain_encode", "decode", "plain_decode")
    speeds = [shown(f"{task}_audio_sec_per_sec", ".2f") for task in tasks]
    equal = "-" if result["equal_codes"] is None else f"{100 * result['equal_codes']:.2f}"
    return ROW.format(
        f"{result['kind']} {Path(result['codec']).name}"[:NAME_CHARS],
        result["sample_rate"],
        f"{result['frame_rate']:.4g}",
        f"{result['streams']}",
        *speeds,
        equal,
        shown("wave_difference", ".1e"),
        shown("stream_difference", ".1e"),
        reach_in_words(result["reach_frames"]),
    ).rstrip()


def reach_in_words(reach: Reach | Sequence[int | None]) -> str:
    """Frames before and after: "10 + 10", "all + 6", "all"."""
    if all(side is None for side in reach):
        return "all"
    return " + ".join("all" if side is None else str(side) for side in reach)
