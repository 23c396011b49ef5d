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
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from slmkit import log
from slmkit.cli.arguments import Parser, add_config_arguments
from slmkit.world import World

if TYPE_CHECKING:
    from slmkit.train.doctor import CheckResult

FAILED = 2  # exit code


def add_arguments(parser: Parser) -> None:
    add_config_arguments(parser, "slmkit.config.train:TrainConfig")
    parser.add_argument("--run-dir", help="write to this directory and measure it (default: run_dir of the config)")
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
        from slmkit.train.doctor import examine
        from slmkit.train.peers import together

        with together(world):
            config = load_run(args.config, args.overrides) if args.config else None
            num_failed = 0
            for result in examine(world, run_dir=args.run_dir, config=config):
                num_failed += result.status == "FAIL"
                if world.is_first or result.status != "ok":
                    print(lines(result, world), flush=True)
    return FAILED if num_failed else 0


def lines(result: "CheckResult", world: World) -> str:
    """The printed form; other processes than the first say which they are."""
    details = [("got:", result.got), ("expected:", result.expected), ("next:", result.next_step)]
    where = "" if world.is_first else f"[rank {world.rank}] "
    shown = [f"{result.status:4}  {where}{result.name}: {result.what}"]
    return "\n".join(shown + [f"        {label:9} {value}" for label, value in details if value])


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
