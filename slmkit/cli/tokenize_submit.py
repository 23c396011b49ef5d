"""`slmkit tokenize submit`: tokenizing as a Slurm array.

  slmkit tokenize submit --dry-run SOURCE CODEC OUT --config RECIPE --tasks 64 --limit 16 --gpus 1 --cpus 8
  slmkit tokenize submit --run     SOURCE CODEC OUT --config RECIPE --tasks 64 --limit 16 --gpus 1 --cpus 8

The corpus is planned first, into OUT, so that what is wrong with the source shows before anything waits in a queue.
--dry-run then prints who would do what and the two sbatch commands. --run submits them: the array (at most --limit
tasks at once; see tokenize_jobs/array.sbatch for what its tasks do by themselves) and the job that finalizes the
corpus when all tasks have succeeded. The same command again submits what is not done yet.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from slmkit.cli.arguments import positive
from slmkit.cluster import slurm

if TYPE_CHECKING:
    from slmkit.config.tokenize import TokenizeConfig
    from slmkit.tokenization.plan import Plan


def add_submit_arguments(parser: argparse.ArgumentParser) -> None:
    """What `submit` takes beside the recipe, its overrides and the paths."""
    parser.description = __doc__
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--dry-run", action="store_true", help="plan and print; submit nothing")
    which.add_argument("--run", action="store_true", dest="really", help="plan and submit")
    parser.add_argument("--tasks", type=positive, default=64, help="tasks of the array (default: 64)")
    parser.add_argument("--limit", type=positive, default=16, help="tasks that may run at once (default: 16)")
    parser.add_argument("--cpus", type=positive, default=4, help="CPUs of each task (default: 4)")
    parser.add_argument("--gpus", type=int, choices=(0, 1), default=0, help="GPUs of each task (default: 0)")
    parser.add_argument("--time", help="time limit, as sbatch takes it; a task continues after it by itself")
    parser.add_argument("--partition", help="partition of both jobs")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="for both jobs, as in --sbatch=--account=me"
    )


def submit(
    args: argparse.Namespace,
    config: "TokenizeConfig",
    run_words: Sequence[str],
    plan: "Callable[[TokenizeConfig], Plan]",
) -> int:
    """Plan the corpus with `plan`, then print or submit the two jobs; `run_words` are for `slmkit tokenize run`."""
    from slmkit.cluster.array import ArrayOptions, describe, plan_array, submit_both

    options = ArrayOptions(
        tasks=args.tasks,
        limit=args.limit,
        cpus=args.cpus,
        gpus=args.gpus,
        time=args.time,
        partition=args.partition,
        more=tuple(args.sbatch),
    )
    shard_sec = [shard.seconds for shard in plan(config).shards]
    finalize_words = [config.out, "--max-failure-share", str(config.max_failure_share)]
    jobs = plan_array(options, run_words, finalize_words, shard_sec)
    if args.dry_run:
        print("\n".join(describe(jobs)))
        return 0
    array_id, finalize_id = submit_both(jobs, lambda command: slurm.submit(command, os.environ))
    print(f"submitted array {array_id} of {len(jobs.shares)} tasks, then job {finalize_id} to finalize the corpus")
    print(f"next: slmkit tokenize status {config.out}")
    return 0
