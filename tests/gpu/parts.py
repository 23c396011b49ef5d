"""What `measure.py` runs: the parts, their commands, and how what those print becomes rows of tables.

The parts stand in the order of their value. On a GPU a command may take nearly twice as long as is expected; without
one it runs in a tiny shape, to see that it runs.

Example:
    [part.name for part in all_parts(on_gpu=True)]
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

REHEARSED_SEC = 400.0  # that a command may take without a GPU
KERNELS, NAME_CHARS = 8, 70  # of a step, and of a kernel's name, in the table
Row = dict[str, str]


class Command(NamedTuple):
    """`slmkit ...` or `python ...`, and the seconds that it may take."""

    words: tuple[str, ...]
    allowed_sec: float


class Table(NamedTuple):
    """Rows with the same columns; the title may be empty."""

    title: str
    rows: list[Row]


class Output(NamedTuple):
    """What the commands of a part have printed so far."""

    text: str
    objects: list[Any]  # the JSON objects in it


@dataclass(frozen=True, kw_only=True)
class Part:
    """Commands that are measured together."""

    name: str
    title: str
    commands: tuple[Command, ...]
    tables: Callable[[Output], list[Table]]
    is_timed: bool = True  # the others are run first, all at once


def all_parts(*, on_gpu: bool) -> list[Part]:
    device = "cuda" if on_gpu else "cpu"

    def part(
        name: str,
        title: str,
        tables: Callable[[Output], list[Table]],
        *commands: tuple[str, float],
        is_timed: bool = True,
    ) -> Part:
        limited = tuple(Command(tuple(words.split()), sec if on_gpu else REHEARSED_SEC) for words, sec in commands)
        return Part(name=name, title=title, commands=limited, tables=tables, is_timed=is_timed)

    tests = "python -m pytest tests/gpu -rfE -p no:cacheprovider -p no:xdist --continue-on-collection-errors"
    tests += " --ignore tests/gpu/test_measure.py"
    steps = "slmkit bench steps {} --json --variant compile=false --variant compile=true"
    fused = "--variant compile=false,fused_kernels=true"  # the last, for liger-kernel may be missing
    decode = f"slmkit bench decode --json --device {device} --dtype bfloat16 --plain 1"
    if on_gpu:
        step_commands = [(f"{steps.format(f'libritts_{kind}')} {fused}", 100) for kind in ("ntp", "mtp12", "mtp3")]
        decode_commands = [(f"{decode} --group {group} --batch 1 8 64", 65) for group in (12, 0, 3, 6)]
        codec = "--batch 1 8 64 --seconds 10 --shorter 0.99 --repeats 2"
        stage = "--utterances 400 --shard-samples 100 --num-workers 8"
        save, curve_steps = "--size 0.5B --saves 2 --steps 3", 100
    else:
        step_commands = [(f"{steps.format(f'libritts_{kind}')} --quick --laps 1", 0) for kind in ("ntp", "mtp12")]
        decode_commands = [(f"{decode} --repeats 1 --group 0 12 --batch 1 2 --quick --steps 6", 0)]
        codec = "--batch 1 2 --seconds 0.2 --repeats 1"
        stage, save, curve_steps = "--quick", "--quick --saves 1 --steps 1", 3
    stage_command = f"slmkit bench tokenize --json --device {device} {stage}"
    curve = f"python tests/gpu/curve.py --device {device} --steps {curve_steps}"
    return [
        part("tests", "Tests on the GPU (`tests/gpu`)", of_tests, (tests, 110), is_timed=False),
        part("steps", "Training steps (`slmkit bench steps`)", of_steps, *step_commands),
        part("decode", "Decoding (`slmkit bench decode`)", of_decode, *decode_commands),
        part(
            "codec",
            "FACodec (`slmkit bench codec`)",
            of_codec,
            (f"slmkit bench codec --json --device {device} {codec}", 50),
        ),
        part("tokenize", "Audio files to shards (`slmkit bench tokenize`)", of_stage, (stage_command, 100)),
        part(
            "checkpoint",
            "Checkpoints (`slmkit bench checkpoint`)",
            of_checkpoint,
            (f"slmkit bench checkpoint --json --dtype bfloat16 {save}", 80),
        ),
        part("curve", "A loss curve beside the CPU's (`tests/gpu/curve.py`)", of_curve, (curve, 110), is_timed=False),
    ]


def figure(value: float | None, form: str = ",.3g") -> str:
    """A number for a table."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if form == ",.3g" and abs(value) >= 1000 else format(value, form)


def of_tests(output: Output) -> list[Table]:
    counts = {word.rstrip("s"): n for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", output.text)}
    if not counts:
        return []
    failed = re.findall(r"^(?:FAILED|ERROR) (?:\S*/)?(\S+)", output.text, re.MULTILINE)
    row = {name: counts.get(name, "0") for name in ("passed", "failed", "skipped", "error")}
    return [Table("", [{**row, "which": ", ".join(failed) or "-"}])]


def of_steps(output: Output) -> list[Table]:
    speeds, kernels = [], []
    for case in output.objects:
        which, look = {"recipe": case["recipe"], "options": case["variant"] or "as it is"}, case["profile"]
        speeds.append(
            {
                **which,
                "positions a step": figure(case["positions_per_step"], ",.0f"),
                "ms a step": figure(1000 * case["sec_per_step"]),
                "positions/s": figure(case["positions_per_sec"]),
                "tokens/s": figure(case["tokens_per_sec"]),
                "TFLOP/s": figure(case["tflops"]),
                "MFU": figure(case["mfu"], ".1%"),
                "against the first": figure(case["ratio"], ".2f"),
                "loss difference": figure(case["loss_difference"], ".1e"),
                "GiB": figure(case["memory_gib"], ".1f"),
                "launches a step": figure(look and look["launches"], ",.0f"),
                "device idle": figure(look and look["idle_share"], ".1%"),
                "first 4 steps, s": figure(case["first_lap_sec"], ".1f"),
            }
        )
        kernels += [
            {
                **which,
                "kernel": f"`{kernel['name'][:NAME_CHARS]}`",
                "ms": figure(1000 * kernel["sec"], ".2f"),
                "calls": str(kernel["calls"]),
                "share": figure(kernel["share"], ".1%"),
            }
            for kernel in (look["kernels"][:KERNELS] if look else [])
        ]
    return [Table("", speeds), Table("The longest kernels of one step:", kernels)]


def of_decode(output: Output) -> list[Table]:
    rows = [
        {
            "model": f"MTP-{case['group']}" if case["group"] else "NTP",
            "slots": str(case["batch"]),
            "ms a step": figure(1000 * case["batch"] / case["steps_per_sec"]),
            "steps/s, all slots": figure(case["steps_per_sec"]),
            "frames/s": figure(case["frames_per_sec"]),
            "RTF without codec": figure(case["real_time_factor"], ".4f"),
            "first audio, s": figure(case["first_audio_sec"], ".3f"),
            "floor, steps/s": figure(case["floor_steps_per_sec"]),
            "against the plain loop": figure(case["ratio"], ".2f"),
            "equal to it": f"{case['equal_answers']} of {case['plain_answers']}",
            "choices of float32": figure(case["same_choices"], ".2%"),
        }
        for result in output.objects
        for case in result["cases"]
    ]
    return [Table("", rows)]


def of_codec(output: Output) -> list[Table]:
    rows = []
    for case in (case for result in output.objects for case in result["cases"]):
        row = {"utterances": str(case["batch"]), "audio, s": figure(case["audio_sec"], ".1f")}
        for task in ("encode", "decode"):
            row[f"{task}, s of audio/s"] = figure(case[task]["audio_sec_per_sec"])
            row[f"{task}, against plain modules"] = figure(case[task]["ratio"], ".2f")
        rows.append({**row, "equal codes": figure(case["equal_codes"], ".3%")})
    return [Table("", rows)]


def of_stage(output: Output) -> list[Table]:
    rows = [
        {
            "codec": stage["codec"],
            "audio, s": figure(stage["audio_sec"], ",.0f"),
            "s of audio/s, one process": figure(stage["audio_sec_per_sec"]),
            "two": figure(stage["two_audio_sec_per_sec"]),
            "whole command, s": figure(stage["wall_sec"], ".1f"),
            "equal shards": "yes" if stage["equal_shards"] else "no",
            **{name: figure(share, ".0%") for name, share in stage["shares"].items()},
        }
        for stage in output.objects
    ]
    return [Table("", rows)]


def of_checkpoint(output: Output) -> list[Table]:
    rows = [
        {
            "parameters, M": figure(result["parameters"] / 1e6, ".1f"),
            "checkpoint, GiB": figure(result["checkpoint_bytes"] / 2**30, ".2f"),
            "at once, s": figure(result["at_once_sec"], ".2f"),
            "stall in the background, s": figure(result["stall_sec"], ".3f"),
            "share": figure(result["share"], ".1%"),
            "writing, s": figure(result["write_sec"], ".2f"),
            "steps meanwhile, times as long": figure(result["slower"], ".2f"),
        }
        for result in output.objects
    ]
    return [Table("", rows)]


def of_curve(output: Output) -> list[Table]:
    rows = [
        {
            "run": run["run"],
            "steps": str(run["steps"]),
            "first loss": figure(run["first"], ".4f"),
            "last loss": figure(run["last"], ".4f"),
            "largest difference from the CPU": figure(run["largest_difference"], ".1e"),
            "at step": str(run["at_step"]),
            "whole command, s": figure(run["sec"], ".0f"),
        }
        for result in output.objects
        for run in result["runs"]
    ]
    return [Table("", rows)]
