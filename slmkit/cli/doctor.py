"""Check this machine, its processes and a run's files before training.

Each check prints ok, warn or FAIL, and what it found; a check that is not ok also prints what was expected and what to
do. Exit code 0, or 2 if any check fails. Start it in the way that training will be started:

  slmkit doctor --config RUN.yaml
  deepspeed --num_gpus 2 --module slmkit doctor --run-dir RUN
  torchrun --nproc-per-node 2 -m slmkit doctor

It takes less than a minute, except the first time on a machine, when DeepSpeed compiles an operator. Its files are
removed again.
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
from slmkit.stopping import USER_ERROR
from slmkit.world import World

if TYPE_CHECKING:
    from slmkit.train.doctor import CheckResult


def add_arguments(parser: Parser) -> None:
    add_config_arguments(parser, "slmkit.config.train:TrainConfig")
    parser.add_argument("--run-dir", help="measure writing to this directory (default: run_dir of the config)")
    parser.add_argument("--json", action="store_true", help="print one JSON object with all checks, for programs")
    parser.add_argument(
        "--limit-sec",
        type=float,
        default=300.0,
        help="end with an error after this many seconds, if processes wait for each other (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    world = World.from_env()
    log.set_up(world.rank)
    with deadline(args.limit_sec, world) as checked:
        from slmkit.config.train import load_run

        config, refused = None, None  # first of all, since torch takes seconds
        try:
            config = load_run(args.config, args.overrides) if args.config else None
        except UserError as error:
            if world.size == 1:  # needs no torch
                raise
            refused = error
        from slmkit.train.doctor import examine
        from slmkit.train.names import with_commits
        from slmkit.train.peers import together

        with together(world):
            if refused is not None:
                raise refused
            config = with_commits(config, world) if config else None
            checks, is_ok = list["CheckResult"](), False
            try:
                for result in examine(world, run_dir=args.run_dir, config=config):
                    checks.append(result)
                    checked.append(result.name)
                    if not args.json and (world.is_first or result.status != "ok"):
                        print(as_text(result, world), flush=True)
                is_ok = all(result.status != "FAIL" for result in checks)
            finally:
                # One object from the first process, and from each other process that found something wrong.
                if args.json and (world.is_first or any(result.status != "ok" for result in checks)):
                    listed = [dataclasses.asdict(result) for result in checks]
                    print(json.dumps({"rank": world.rank, "ok": is_ok, "checks": listed}), flush=True)
    return 0 if is_ok else USER_ERROR


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
def deadline(limit_sec: float, world: World) -> Iterator[list[str]]:
    """End the process with an error if the block takes longer: a process that never starts would be waited for.

    The block puts the names of the checks that are done into the list.
    """
    checked: list[str] = []

    def expire() -> None:
        done = f"rank {world.rank} of {world.size} has done the checks: {', '.join(checked) or 'none'}"
        message = f"slmkit doctor: not done within {limit_sec:g} s; {done}"
        advice = (
            "  next:     check that every process runs and can reach the others; where a corpus of many shards takes "
            "longer, raise --limit-sec"
        )
        print(f"{message}\n{advice}", file=sys.stderr, flush=True)
        os._exit(USER_ERROR)

    timer = threading.Timer(limit_sec, expire)
    timer.daemon = True
    timer.start()
    try:
        yield checked
    finally:
        timer.cancel()
