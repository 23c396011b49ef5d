"""Check this machine, its processes and a run's files before training.

A line per check: ok, warn or FAIL, then what was found, expected, and what to do. Exit code 0, or 2 if any check fails.
Start it as training will be started:

  slmkit doctor --config RUN.yaml
  deepspeed --num_gpus 2 --module slmkit doctor --run-dir RUN
  torchrun --nproc-per-node 2 -m slmkit doctor

It takes less than a minute, but for the first time on a machine, when DeepSpeed compiles an operator. Nothing it writes
stays.
"""

import argparse
import dataclasses
import json
import os
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from slmkit import log
from slmkit.cli.arguments import Parser, add_config_arguments
from slmkit.errors import UserError
from slmkit.world import World

if TYPE_CHECKING:
    from slmkit.train.doctor import CheckResult

FAILED = 2  # exit code


def add_arguments(parser: Parser) -> None:
    add_config_arguments(parser, "slmkit.config.train:TrainConfig")
    parser.add_argument("--run-dir", help="write to this directory and measure it (default: run_dir of the config)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per check, for programs")
    parser.add_argument(
        "--limit-sec",
        type=float,
        default=300.0,
        help="end with an error after this long, when processes wait for each other (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    world = World.from_env()
    log.set_up(world.rank)
    with deadline(args.limit_sec, world):
        from slmkit.config.train import load_run

        config, refused = None, None
        try:
            config = load_run(args.config, args.overrides) if args.config else None
        except UserError as error:
            if world.size == 1:  # torch is not needed to say so
                raise
            refused = error
        from slmkit.train.doctor import examine
        from slmkit.train.peers import together

        with together(world):
            if refused is not None:
                raise refused
            num_failed = 0
            for result in examine(world, run_dir=args.run_dir, config=config):
                num_failed += result.status == "FAIL"
                if world.is_first or result.status != "ok":
                    print(as_json(result, world) if args.json else as_text(result, world), flush=True)
    return FAILED if num_failed else 0


def as_json(result: "CheckResult", world: World) -> str:
    return json.dumps({"rank": world.rank, **dataclasses.asdict(result)})


def as_text(result: "CheckResult", world: World) -> str:
    """The printed form, in 80 columns; other processes than the first say which they are."""
    where = "" if world.is_first else f"[rank {world.rank}] "
    texts = [
        (f"{result.status:4}  ", f"{where}{result.name}: {result.what}"),
        (f"{'':8}got:      ", result.got),
        (f"{'':8}expected: ", result.expected),
        (f"{'':8}next:     ", result.next_step),
    ]
    lines = []
    for start, text in texts:
        if text:
            indent, width = " " * len(start), log.COLUMNS - len(start)
            wrapped = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
            lines += [f"{start if i == 0 else indent}{line}" for i, line in enumerate(wrapped)]
    return "\n".join(lines)


@contextmanager
def deadline(limit_sec: float, world: World) -> Iterator[None]:
    """End the process with an error if the block takes longer: a process that never came would be waited for."""

    def expire() -> None:
        message = f"slmkit doctor: not done within {limit_sec:g} s; rank {world.rank} of {world.size} was still waiting"
        advice = "  next:     see the last check above; look whether every process and port is there, or --limit-sec"
        print(f"{message}\n{advice}", file=sys.stderr, flush=True)
        os._exit(FAILED)

    timer = threading.Timer(limit_sec, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
