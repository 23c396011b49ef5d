"""What `slmkit tokenize submit` would hand to Slurm: an array whose tasks encode the shards, then a job that finalizes.

An `ArrayPlan` is a plain value; making one starts nothing and asks Slurm nothing. `submit_both` hands it over.

Invariant: every shard of the corpus belongs to exactly one task of the array, and no task is without a shard.

Example:
    plan = plan_array(ArrayOptions(tasks=64, limit=16), ["LibriTTS", "melvq", "out"], ["out"], shard_sec=[3600.0] * 100)
    "\\n".join(describe(plan))
    array_id, finalize_id = submit_both(plan, lambda command: slurm.submit(command, os.environ))
"""

import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from slmkit.assets import folder
from slmkit.cluster.launch import check_no_secrets, masked
from slmkit.errors import UserError

ARRAY, FINALIZE = "array.sbatch", "finalize.sbatch"
AFTER, UNKNOWN_ID = "--dependency=afterok:", "ID_OF_THE_ARRAY"
SEC_PER_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class ArrayOptions:
    """What is asked of Slurm; None leaves it to the scripts and the cluster."""

    tasks: int = 64
    limit: int = 16  # tasks that may run at once
    cpus: int = 4  # of each task
    gpus: int = 0  # of each task
    time: str | None = None
    partition: str | None = None
    more: tuple[str, ...] = ()  # further words for sbatch, of both jobs
    scripts: Path = field(default_factory=lambda: folder("tokenize_jobs"))


class ArrayWork(NamedTuple):
    """What the tasks of an array do. The scripts know it by its name."""

    name: str
    unit: str  # what is shared out
    ending: str  # what the second job does


TOKENIZING = ArrayWork("tokenize", "shards", "finalizes the corpus")


class Share(NamedTuple):
    """A task's part of the corpus."""

    shards: int
    seconds: float  # of audio, as far as the source tells


@dataclass(frozen=True, kw_only=True)
class ArrayPlan:
    """Everything that is decided before anything is submitted."""

    shares: tuple[Share, ...]  # of task 0, 1, ...
    limit: int
    cpus: int
    gpus: int
    work: ArrayWork
    array: tuple[str, ...]  # sbatch command line
    finalize: tuple[str, ...]  # sbatch command line, with UNKNOWN_ID for the array's id
    notes: tuple[str, ...]  # where it is not what was asked for

    def finalize_after(self, array_id: str) -> tuple[str, ...]:
        """The command line of the second job when the first has this id."""
        return tuple(f"{AFTER}{array_id}" if word == f"{AFTER}{UNKNOWN_ID}" else word for word in self.finalize)


def plan_array(
    options: ArrayOptions,
    run_words: Sequence[str],
    finalize_words: Sequence[str],
    shard_sec: Sequence[float],
    work: ArrayWork = TOKENIZING,
) -> ArrayPlan:
    """Share out the shards, whose known seconds of audio are `shard_sec`; or what else there is, of 0 seconds each.

    The words are what `slmkit tokenize run` and `slmkit tokenize finalize` are given, or another `work`. Raises
    UserError when there are no shards, the scripts are not there, or a word for sbatch holds a secret.
    """
    check_no_secrets(options.more)
    for script in (ARRAY, FINALIZE):
        if not os.path.isfile(options.scripts / script):
            raise UserError("there is no sbatch script", got=options.scripts / script)
    if not shard_sec:
        raise UserError(f"the plan has no {work.unit}", next_step="look at the source and the filters of the recipe")
    tasks = min(options.tasks, len(shard_sec))
    limit = min(options.limit, tasks)
    notes = []
    if tasks < options.tasks:
        notes.append(f"{tasks} tasks, not {options.tasks}: there are no more {work.unit} to share")
    array_names, finalize_names, export = [], [], ""
    if work != TOKENIZING:  # whose names stand in the scripts
        export = f",WORK={work.name}"
        array_names = [f"--job-name=slmkit-{work.name}", f"--output=slmkit-{work.name}-%A_%a.log"]
        finalize_names = [f"--export=ALL{export}", f"--job-name=slmkit-{work.name}-join"]
        finalize_names.append(f"--output=slmkit-{work.name}-join-%j.log")
    return ArrayPlan(
        shares=tuple(Share(len(shard_sec[task::tasks]), math.fsum(shard_sec[task::tasks])) for task in range(tasks)),
        limit=limit,
        cpus=options.cpus,
        gpus=options.gpus,
        work=work,
        array=(
            *("sbatch", f"--array=0-{tasks - 1}%{limit}", f"--export=ALL,NUM_TASKS={tasks}{export}"),
            *array_names,
            f"--cpus-per-task={options.cpus}",
            *([f"--gpus-per-node={options.gpus}"] if options.gpus else []),
            *_asked(options),
            *(str(options.scripts / ARRAY), *run_words),
        ),
        finalize=(
            *("sbatch", f"{AFTER}{UNKNOWN_ID}", *finalize_names, *_asked(options)),
            *(str(options.scripts / FINALIZE), *finalize_words),
        ),
        notes=tuple(notes),
    )


def _asked(options: ArrayOptions) -> list[str]:
    """What both jobs ask for."""
    asked = {"time": options.time, "partition": options.partition}
    return [*(f"--{name}={value}" for name, value in asked.items() if value is not None), *options.more]


def describe(plan: ArrayPlan) -> list[str]:
    """What `--dry-run` prints."""
    tasks = len(plan.shares)
    shards, hours = [share.shards for share in plan.shares], [share.seconds / SEC_PER_HOUR for share in plan.shares]
    audio = f"{min(hours):.2f} to {max(hours):.2f} h, of {math.fsum(hours):.2f} h, as far as the source says"
    heard = f"  audio of a task: {audio if any(hours) else 'the source does not say'}"
    gpus = f"{plan.gpus} GPU" if plan.gpus else "no GPU"
    lines = [
        f"{tasks} tasks, at most {plan.limit} at once, each with {plan.cpus} CPUs and {gpus}",
        f"  {plan.work.unit} of a task: {min(shards)} to {max(shards)}, of {sum(shards)}; task T has T, T + {tasks}, "
        f"T + {2 * tasks}, ...",
        *([heard] if plan.work == TOKENIZING else []),
        f"a job after them, when all have succeeded, {plan.work.ending}",
        *(f"note: {note}" for note in plan.notes),
        "commands:",
        f"  {shlex.join(plan.array)}",
        f"  {shlex.join(plan.finalize)}",
    ]
    return [masked(line) for line in lines]


def submit_both(plan: ArrayPlan, submit: Callable[[Sequence[str]], str]) -> tuple[str, str]:
    """Hand over the array, then the job that waits for it; gives their ids.

    `submit` hands over a command line and gives the job's id, or raises UserError. Raises UserError naming the array
    when the second is not taken.
    """
    array_id = submit(plan.array)
    command = plan.finalize_after(array_id)
    try:
        return array_id, submit(command)
    except UserError as error:
        raise UserError(
            f"the array is submitted as job {array_id}, but not the job that finalizes: {error.what}",
            got=error.got,
            next_step=f"scancel {array_id} to take the array back, or leave it and submit the second again:\n"
            f"            {masked(shlex.join(command))}",
        ) from error
