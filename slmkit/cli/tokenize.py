"""Turn a corpus of audio into shards of codec codes, once.

  slmkit tokenize run --config tokenize_jobs/libritts.yaml /data/LibriTTS CODEC OUT

does all of it on this machine. On a cluster the same work is split in three, each of which may be stopped and started
again at any time:

  slmkit tokenize plan     --config R.yaml SOURCE CODEC OUT      which utterance goes to which shard; nothing is encoded
  slmkit tokenize run      --config R.yaml SOURCE CODEC OUT --task 3 --num-tasks 64        one task's shards
  slmkit tokenize finalize OUT                                   check the shards, write ledger and manifest

  slmkit tokenize submit   ...                                   all three as a Slurm array
  slmkit tokenize status   OUT                                   what is done, what runs, what failed, time left
  slmkit tokenize verify   OUT --codec CODEC --report DIR        read everything again, compare and hear a sample

Options come from a YAML recipe (--config), from the flags and from words KEY=VALUE, the later ones winning. Bad files
are counted in OUT/failures.jsonl, odd ones listed in OUT/outliers.jsonl. Exit codes: 0 done, 2 an error to mend, 75
told to stop (SIGTERM, SIGINT, SIGUSR1): finished shards stay, and the same command goes on.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from slmkit import log
from slmkit.cli.arguments import OVERRIDE, Parser, add_config_arguments, positive
from slmkit.errors import UserError

if TYPE_CHECKING:
    from slmkit.config.tokenize import TokenizeConfig
    from slmkit.tokenization.plan import TokenizationPlan

PATHS = ("source", "codec", "out")
SHARE = ("devices", "task", "num_tasks")  # which differ for each process
FLAGS = (*PATHS, "num_workers", *SHARE)
logger = log.get_logger(__name__)
POLL_SEC = 0.5  # between two looks at the processes of several devices
SUBMIT = """\
Tokenize as a Slurm array.

  slmkit tokenize submit --dry-run SOURCE CODEC OUT --config RECIPE --tasks 64 --limit 16 --gpus 1 --cpus 8
  slmkit tokenize submit --run     SOURCE CODEC OUT --config RECIPE --tasks 64 --limit 16 --gpus 1 --cpus 8

The corpus is planned first, into OUT, so that what is wrong with the source shows before anything waits in a queue.
--dry-run then prints who would do what and the two sbatch commands. --run submits them: the array (at most --limit
tasks at once; see tokenize_jobs/array.sbatch for what its tasks do by themselves) and the job that finalizes the
corpus when all tasks have succeeded. The same command again submits what is not done yet.
"""


def add_arguments(parser: Parser) -> None:
    """A sub-command for each step."""
    parser.add_argument("--status", metavar="OUT", help="the same as `slmkit tokenize status OUT`")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    plan = actions.add_parser("plan", help="fix which utterance goes to which shard")
    run_parser = actions.add_parser("run", help="encode; alone it plans before and finalizes after")
    submit_parser = actions.add_parser("submit", help="plan, then encode and finalize as a Slurm array")
    for sub in (plan, run_parser, submit_parser):
        add_recipe_arguments(sub)
    _add_submit_arguments(submit_parser)
    run_parser.add_argument(
        "--no-progress", action="store_true", help="do not show how far it is; `slmkit tokenize status` still does"
    )
    run_parser.add_argument("--task", type=int, help="number of this task among --num-tasks; the plan must be there")
    run_parser.add_argument("--num-tasks", type=int, help="tasks sharing the job")
    for name, text in (("status", "how far a job is"), ("finalize", "check all shards, write ledger and manifest")):
        sub = actions.add_parser(name, help=text)
        sub.add_argument("out", metavar="OUT", help="directory of the job")
        if name == "status":
            sub.add_argument("--json", action="store_true", help="print it as JSON")
        else:
            sub.add_argument("--max-failure-share", type=float, default=0.05, help="of bad items (%(default)s)")
    verify = actions.add_parser("verify", help="read a corpus again, decode a sample, write a page to look at and hear")
    verify.add_argument("out", metavar="OUT", help="directory of the corpus")
    verify.add_argument("--codec", help="directory of the codec; without it nothing is decoded")
    verify.add_argument("--device", default="cpu", help="where the codec runs (default: %(default)s)")
    verify.add_argument("--samples", type=int, default=20, help="utterances to decode (default: %(default)s)")
    verify.add_argument("--seed", type=int, default=0, help="of the choice of utterances (default: %(default)s)")
    verify.add_argument("--report", help="new directory for index.html and verify.json (default: OUT-verify)")


def _add_submit_arguments(parser: argparse.ArgumentParser) -> None:
    """What `submit` takes beside the recipe, its overrides and the paths."""
    parser.description = SUBMIT
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


def add_recipe_arguments(parser: Parser) -> None:
    """What `plan`, `run` and `submit` take; every option of the recipe can be given as KEY=VALUE."""
    parser.add_argument("source", nargs="?", help="folder of audio, or file")
    parser.add_argument("codec", nargs="?", help="directory of the codec")
    parser.add_argument("out", nargs="?", help="directory for the shards")
    add_config_arguments(parser, "slmkit.config.tokenize:TokenizeConfig")
    parser.add_argument(
        "--devices",
        type=lambda text: text.split(","),
        help="where the codec runs, a process for each: cpu, or cuda:0,cuda:1, or cpu,cpu",
    )
    parser.add_argument("--num-workers", type=int, help="processes that decode audio, for each device")
    parser.help_parts.append(_layouts)


def _layouts() -> str:
    from slmkit.corpora.layouts import describe_layouts

    return "\n  ".join(["Layouts of a source, as in kind=manifest:", *describe_layouts()])


def read_recipe(args: argparse.Namespace) -> "TokenizeConfig":
    """The options of `plan`, `run` and `submit`. Raises ConfigError."""
    from slmkit.config.load import load_config
    from slmkit.config.tokenize import TokenizeConfig

    for name in reversed(PATHS):  # where the recipe holds the paths, argparse takes the overrides for them
        if OVERRIDE.match(getattr(args, name) or ""):
            args.overrides.insert(0, getattr(args, name))
            setattr(args, name, None)
    given = [(name, getattr(args, name, None)) for name in FLAGS]
    flags = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given if value is not None]
    return load_config(TokenizeConfig, args.config, [*flags, *args.overrides])


def run(args: argparse.Namespace) -> int:
    log.set_up()
    if args.status is not None:
        return _print_status(args.status, as_json=False)
    if args.action is None:
        raise UserError("no action is given", expected=", ".join(ACTIONS))
    return ACTIONS[args.action](args)


def _plan(args: argparse.Namespace) -> int:
    config = read_recipe(args)
    _refuse_early(config)
    _plan_corpus(config)
    return 0


def _refuse_early(config: "TokenizeConfig") -> None:
    """What can be found wrong at once, before torch and the codec are loaded. Raises UserError."""
    from slmkit.corpora.layouts import ReadOptions, check_source
    from slmkit.tokenization.corpus_job import check_directory
    from slmkit.tokenization.plan import TokenizationPlan

    if not TokenizationPlan.exists(config.out):
        check_source(config.kind, config.source, ReadOptions(columns=config.columns))
    check_directory(config.out, {"settings": config.settings()})


def _plan_corpus(config: "TokenizeConfig") -> "TokenizationPlan":
    from slmkit.codec.open import open_codec
    from slmkit.tokenization.job import plan_corpus

    return plan_corpus(open_codec(config.codec).spec, config)


def _run(args: argparse.Namespace) -> int:
    from slmkit.stopping import STOPPED, Stopped, stopping

    config = read_recipe(args)
    try:
        with stopping():
            _refuse_early(config)
            from slmkit.codec.open import open_codec  # these two take seconds
            from slmkit.tokenization.job import finalize_corpus, tokenize

            if len(config.devices) == 1:
                tokenize(open_codec(config.codec, config.devices[0]), config, show=not args.no_progress)
                return 0
            if config.num_tasks == 1:
                _plan_corpus(config)
            code = _run_on_devices(_words(args), config, show=not args.no_progress)
            if code == 0 and config.num_tasks == 1:
                finalize_corpus(config.out, config.max_failure_share)
            return code
    except Stopped as signal_name:
        print(f"stopped by {signal_name}; the same command goes on", file=sys.stderr)
        return STOPPED


def _run_on_devices(words: Sequence[str], config: "TokenizeConfig", *, show: bool) -> int:
    """A process for each device, which takes a part of the task's shards; 0, or the first exit code that is not.

    Device i of n does what task `task * n + i` of `num_tasks * n` would. When one fails, the others go on: what they
    finish is not lost. Raises Stopped when this process is told to stop, after all of them have ended.
    """
    from slmkit.jobs import ProgressBar
    from slmkit.stopping import Stopped
    from slmkit.tokenization.corpus_job import CorpusJob
    from slmkit.tokenization.plan import TokenizationPlan
    from slmkit.tokenization.progress import LINE_EVERY_SEC, done_by

    plan = TokenizationPlan.open(config.out)
    missing = CorpusJob.open(config.out).missing(len(plan.shards))
    num_items = sum(plan.shards[shard].items for shard in missing if shard % config.num_tasks == config.task)
    count = len(config.devices)
    threads = str(max(1, len(os.sched_getaffinity(0)) // count))  # else each would take all CPUs
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "slmkit", "tokenize", "run", *words, "--devices", device, "--no-progress"),
                *("--task", str(config.task * count + i), "--num-tasks", str(config.num_tasks * count)),
            ],
            env=environment,
            stderr=subprocess.PIPE,  # so that their lines do not break the bar
            text=True,
            errors="replace",
        )
        for i, device in enumerate(config.devices)
    ]
    try:
        with contextlib.ExitStack() as stack:
            bar = None
            if show and num_items:
                bar = stack.enter_context(ProgressBar(num_items, "utterances", logger, line_every_sec=LINE_EVERY_SEC))
            readers = [threading.Thread(target=_pass_on, args=(process.stderr,)) for process in processes]
            for reader in readers:
                reader.start()
            while any(process.poll() is None for process in processes):
                time.sleep(POLL_SEC)
                done = done_by(config.out, {process.pid for process in processes})
                if bar is not None and done is not None:
                    bar.show(done.items, done.figures)
            for reader in readers:
                reader.join()
    except Stopped:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()
        raise
    return next((process.returncode for process in processes if process.returncode), 0)


def _pass_on(lines: IO[str]) -> None:
    """What a process says, line by line, above the bar."""
    from tqdm import tqdm

    for line in lines:
        tqdm.write(line, file=sys.stderr, end="")


def _submit(args: argparse.Namespace) -> int:
    """Plan the corpus, then print or submit the two jobs."""
    from slmkit.cluster import slurm
    from slmkit.cluster.array import ArrayOptions, plan_array, submit_both
    from slmkit.cluster.array import describe as describe_array

    config, words = read_recipe(args), _words(args)
    _refuse_early(config)
    if args.devices or any(_option(text) == "devices" for text in args.overrides):
        words += ["--devices", ",".join(config.devices)]
    options = ArrayOptions(
        tasks=args.tasks,
        limit=args.limit,
        cpus=args.cpus,
        gpus=args.gpus,
        time=args.time,
        partition=args.partition,
        more=tuple(args.sbatch),
    )
    shard_sec = [shard.seconds for shard in _plan_corpus(config).shards]
    finalize_words = [config.out, "--max-failure-share", str(config.max_failure_share)]
    jobs = plan_array(options, words, finalize_words, shard_sec)
    if args.dry_run:
        print("\n".join(describe_array(jobs)))
        return 0
    array_id, finalize_id = submit_both(jobs, lambda command: slurm.submit(command, os.environ))
    print(f"submitted array {array_id} of {len(jobs.shares)} tasks, then job {finalize_id} to finalize the corpus")
    print(f"next: slmkit tokenize status {config.out}")
    return 0


def _status(args: argparse.Namespace) -> int:
    return _print_status(args.out, as_json=args.json)


def _print_status(out: str, *, as_json: bool) -> int:
    from slmkit.tokenization.corpus_job import CorpusJob
    from slmkit.tokenization.plan import TokenizationPlan
    from slmkit.tokenization.progress import look

    status = look(CorpusJob.open(out), TokenizationPlan.open(out))
    print(json.dumps(status.to_dict(), indent=2) if as_json else "\n".join(status.lines()))
    return 0


def _finalize(args: argparse.Namespace) -> int:
    from slmkit.tokenization.job import finalize_corpus

    finalize_corpus(args.out, args.max_failure_share)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from slmkit.codec.open import open_codec
    from slmkit.tokenization.verify import verify_job

    codec = open_codec(args.codec, args.device) if args.codec else None
    report = args.report or f"{args.out.rstrip('/')}-verify"
    found = verify_job(args.out, codec, samples=args.samples, seed=args.seed, report=report)
    print("\n".join([f"{args.out} is whole", *found.lines(), f"see {report}/index.html"]))
    return 0


def _words(args: argparse.Namespace) -> list[str]:
    """The command's words but for the device and the task."""
    words = [word for name in PATHS if (word := getattr(args, name)) is not None]
    words += ["--config", args.config] if args.config else []
    words += ["--num-workers", str(args.num_workers)] if args.num_workers is not None else []
    kept = [text for text in args.overrides if _option(text) not in SHARE]
    return words + kept


def _option(override: str) -> str:
    """The option that an override names."""
    return override.partition("=")[0].strip()


ACTIONS = {
    "plan": _plan,
    "run": _run,
    "submit": _submit,
    "status": _status,
    "finalize": _finalize,
    "verify": _verify,
}
