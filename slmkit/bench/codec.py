"""Times FACodec against its plain twin: the same network, module by module, weight norm unfolded, batch 1.

Both run in one process on the same utterances, for each of the batch sizes in turn. Without the published files it uses
random weights of the same shapes; speed does not depend on what the weights are.

Invariant: a result is printed with the share of equal codes beside the speed, for a fast wrong codec is worth nothing.

Example:
    slmkit bench codec --device cuda --batch 1 16 64 --seconds 10 --shorter 0.99
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from slmkit.bench.race import race, twin
from slmkit.codec.base import Codec
from slmkit.codec.facodec.checkpoint import FILES, check_state, published_layout
from slmkit.codec.facodec.codec import FACodec
from slmkit.codec.weights import Weights, fold
from slmkit.errors import UserError
from slmkit.precision import exact_float32
from slmkit.texts import above_zero, positive
from slmkit.weights import read_weights

SUMMARY = "seconds of audio per second, FACodec against its plain twin"
PLAIN_ORDER = (2, 0, 1, 3, 4, 5)  # the codec's stream for each row of the plain twin's codes
LM_STREAMS = 3
REQUIRED_RATIO = 2.0
SHORTER = 0.9  # of the lengths of utterances in a batch: each against the one before
States = Mapping[str, Mapping[str, torch.Tensor]]  # "encoder" and "decoder" state dicts as published


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--codec", metavar="DIR", help="directory of the published files; default: random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=above_zero, default=4.0, help="of the longest utterance (default: 4)")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1], help="utterances at a time (default: 1)")
    parser.add_argument(
        "--shorter", type=float, default=SHORTER, help="length of each against the one before (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=positive, default=3, help="timed rounds, of which the best counts (default: 3)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    if not 0 < args.shorter <= 1:
        raise UserError("--shorter is out of range", got=args.shorter, expected="above 0, at most 1")
    states = read_states(args.codec) if args.codec else random_states()
    device, cases = torch.device(args.device), []
    for batch in args.batch:
        case = bench_codec(states, device, args.seconds, batch=batch, shorter=args.shorter, rounds=args.repeats)
        cases.append(case)
        if not args.json:
            print(describe(case), flush=True)
    if args.json:
        print(json.dumps({"weights": args.codec or "random", "cases": cases}, indent=2))
    return 0


def bench_codec(
    states: States,
    device: torch.device,
    seconds: float,
    *,
    batch: int = 1,
    shorter: float = SHORTER,
    rounds: int = 3,
) -> dict[str, Any]:
    """Speed of codec and plain twin with the same weights, and whether they agree.

    seconds: of the longest of `batch` utterances, each `shorter` times the one before. Raises UserError when the
    utterances are too short to encode or nothing would be timed.
    """
    codec, plain = make_codec(states, device), twin("facodec").PlainFACodec()
    for part, state in states.items():
        getattr(plain, part).load_state_dict(state)
    plain.to(device)
    waves, num_samples = make_waves(codec, seconds, batch, shorter)
    waves, rows = waves.to(device), [row[:count] for row, count in zip(waves.to(device), num_samples, strict=True)]
    with exact_float32(device):
        encoded, plain_encoded = race(
            [lambda: codec.encode(waves, num_samples), lambda: [plain.encode(row) for row in rows]],
            rounds=rounds,
            device=device,
        )
        codes, speaker = encoded.result.codes[:, :LM_STREAMS], encoded.result.speaker
        pairs = list(zip(codes[:, list(PLAIN_ORDER[:LM_STREAMS])].long(), speaker, strict=True))
        decoded, plain_decoded = race(
            [lambda: codec.decode(codes, speaker), lambda: [plain.decode(*pair) for pair in pairs]],
            rounds=rounds,
            device=device,
        )

    def speeds(audio_sec: float, fast_sec: float, plain_sec: float) -> dict[str, float]:
        return {
            "audio_sec_per_sec": audio_sec / fast_sec,
            "plain_audio_sec_per_sec": audio_sec / plain_sec,
            "ratio": plain_sec / fast_sec,
        }

    audio_sec = float(num_samples.sum()) / codec.spec.sample_rate
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "batch": batch,
        "audio_sec": audio_sec,
        "equal_codes": equal_share(encoded.result.codes, [codes for codes, _ in plain_encoded.result]),
        "wave_difference": float((decoded.result - torch.stack(plain_decoded.result)).abs().max()),
        "encode": speeds(audio_sec, encoded.seconds, plain_encoded.seconds),
        "decode": speeds(batch * codes.shape[2] / codec.spec.frame_rate, decoded.seconds, plain_decoded.seconds),
    }


def describe(result: Mapping[str, Any]) -> str:
    """The result in a few lines."""
    lines = [
        f"{result['device']}, {result['threads']} threads, batch {result['batch']}, {result['audio_sec']:.1f} s audio"
    ]
    for task in ("encode", "decode"):
        speed = result[task]
        lines.append(
            f"{task}: {speed['audio_sec_per_sec']:.2f} s of audio per second, plain "
            f"{speed['plain_audio_sec_per_sec']:.2f}, ratio {speed['ratio']:.2f} (required: {REQUIRED_RATIO})"
        )
    lines.append(f"equal codes: {100 * result['equal_codes']:.3f} %, waves within {result['wave_difference']:.1e}")
    return "\n".join(lines)


def read_states(directory: str | Path) -> dict[str, dict[str, torch.Tensor]]:
    """The published files' state dicts. Raises UserError as `FACodec.from_directory` does."""
    paths = {part: Path(directory) / name for part, name in FILES.items()}
    return {
        part: check_state(read_weights(paths[part]), layout, paths[part]) for part, layout in published_layout().items()
    }


def random_states(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """State dicts as published in keys and shapes, with random weights that keep the activations of order one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain = twin("facodec")
        states = {"encoder": plain.PlainEncoder().state_dict(), "decoder": plain.PlainDecoder().state_dict()}
        for state in states.values():
            for key, value in state.items():
                if key.endswith(("weight_v", "in_proj_weight", "bias")):
                    value.normal_(std=1 / math.sqrt(value[0].numel()) if value.dim() > 1 else 0.02)
                if key.endswith("weight_v"):
                    norm = value.norm(dim=tuple(range(1, value.dim())), keepdim=True)
                    state[key[:-1] + "g"].copy_(norm)
    return states


def write_files(states: States, directory: str | Path) -> None:
    """The two published files with these weights, in an existing directory."""
    for part, state in states.items():
        torch.save(dict(state), Path(directory) / FILES[part])


def make_codec(states: States, device: torch.device) -> FACodec:
    """The codec with all six streams."""
    weights = {part: Weights({k: v.to(device) for k, v in fold(state).items()}) for part, state in states.items()}
    return FACodec(weights["encoder"], weights["decoder"], device, detail=True)


def make_waves(codec: Codec, seconds: float, batch: int, shorter: float = SHORTER) -> tuple[torch.Tensor, torch.Tensor]:
    """`batch` noisy hums of falling length, float32 [B, N], and their lengths int64 [B]."""
    counts = [int(seconds * shorter**i * codec.spec.sample_rate) for i in range(batch)]
    if not counts or codec.num_frames(counts[-1]) == 0:
        raise UserError(
            "the utterances are too short to encode",
            got=f"{batch} of at most {seconds} s, each {shorter} times as long as the one before",
            next_step="give more --seconds, and a --batch of 1 or more",
        )
    generator = torch.Generator().manual_seed(0)
    time_sec = torch.arange(counts[0]) / codec.spec.sample_rate
    pitch = 100 * 2 ** torch.rand(batch, 1, generator=generator)  # Hz
    hum = sum(torch.sin(2 * math.pi * k * pitch * time_sec) / k for k in range(1, 8))
    return 0.1 * hum + 0.01 * torch.randn(batch, counts[0], generator=generator), torch.tensor(counts)


def equal_share(codes: torch.Tensor, plain: Sequence[torch.Tensor]) -> float:
    """Share of equal codes of [B, K, T] and, per utterance, the plain twin's [K, T]."""
    equal = [row[list(PLAIN_ORDER), : other.shape[1]] == other for row, other in zip(codes, plain, strict=True)]
    return float(torch.cat([one.flatten() for one in equal]).double().mean())
