"""Turn a corpus of audio into shards of codec codes, once.

  slmkit tokenize run --config libritts /data/LibriTTS CODEC OUT

does all the work on this machine. On a cluster it has three steps. Each may be stopped and started again at any time:

  slmkit tokenize plan ...       decides which utterance goes to which shard
  slmkit tokenize run ...        encodes; with --task 3 --num-tasks 64 the shards of one task of 64
  slmkit tokenize finalize OUT   checks the shards, writes ledger and manifest

  slmkit tokenize submit ...     all three steps as a Slurm array
  slmkit tokenize status OUT     progress, failed tasks, time left
  slmkit tokenize verify OUT     reads all shards again, and writes a page with audio to compare

Utterances are left out by quality with filters.min_dnsmos and filters.min_speech_share: by the columns of the source,
or where it brings none by what is measured, before the codec:

  slmkit tokenize run ... measure=[dnsmos] filters.min_dnsmos=3.5      needs pip install 'slmkit[measure]'

Options come from a YAML recipe (--config), then from flags, then from KEY=VALUE; the last value of an option counts.
OUT/failures.jsonl lists the files that could not be used, OUT/outliers.jsonl those that look wrong. Exit codes: 0 done;
2 an error that you can fix; 75 stopped by SIGTERM, SIGINT or SIGUSR1: finished shards stay, and the same command
continues.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from slmkit import log
from slmkit.cli.arguments import (
    OVERRIDE,
    Parser,
    add_array_arguments,
    add_config_arguments,
    array_options,
)
from slmkit.errors import UserError
from slmkit.hub import local_path
from slmkit.texts import natural, share

if TYPE_CHECKING:
    from slmkit.config.tokenize import TokenizeConfig
    from slmkit.tokenization.plan import TokenizationPlan

PATHS = ("source", "codec", "out")
SHARE = ("devices", "task", "num_tasks")  # which differ for each process
FLAGS = (*PATHS, "num_workers", *SHARE)
logger = log.get_logger(__name__)
SUBMIT = """\
Tokenize as a Slurm array.

  slmkit tokenize submit --dry-run SOURCE CODEC OUT --config RECIPE --tasks 64 --limit 16 --gpus 1 --cpus 8
  slmkit tokenize submit --run     SOURCE CODEC OUT --config RECIPE --tasks 64 --limit 16 --gpus 1 --cpus 8

The corpus is planned first, so that errors of the source show at once. --dry-run then prints the tasks and the two
sbatch commands. --run submits them: the array (at most --limit tasks at once; tokenize_jobs/array.sbatch says how its
tasks requeue themselves), and a job that finalizes the corpus when all tasks have succeeded. The same command again
submits what is not done yet.
"""


def add_arguments(parser: Parser) -> None:
    """A sub-command for each step."""
    parser.add_argument("--status", metavar="OUT", help="the same as `slmkit tokenize status OUT`")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    plan = actions.add_parser("plan", help="decide which utterance goes to which shard")
    encode = actions.add_parser("run", help="encode; without --task also plan and finalize")
    submit = actions.add_parser("submit", help="plan, then encode and finalize as a Slurm array", description=SUBMIT)
    for sub in (plan, encode, submit):
        sub.add_argument("source", nargs="?", help="folder of audio, or file")
        sub.add_argument("codec", nargs="?", help="codec: a directory or a hub id")
        sub.add_argument("out", nargs="?", help="directory for the shards")
        add_config_arguments(sub, "slmkit.config.tokenize:TokenizeConfig")
        sub.add_argument(
            "--devices",
            type=lambda text: text.split(","),
            help="where the codec runs, one process each: cpu, or cuda:0,cuda:1, or cpu,cpu",
        )
        sub.add_argument("--num-workers", type=int, help="processes that decode audio, for each device")
        sub.help_parts.append(list_layouts)
    encode.add_argument("--no-progress", action="store_true", help="show no progress bar")
    encode.add_argument("--task", type=int, help="number of this task, from 0 to --num-tasks - 1; needs a plan")
    encode.add_argument("--num-tasks", type=int, help="number of tasks that share the job")
    which = submit.add_mutually_exclusive_group(required=True)
    which.add_argument("--dry-run", action="store_true", help="plan and print; submit nothing")
    which.add_argument("--run", action="store_true", dest="really", help="plan and submit")
    add_array_arguments(submit)
    status = actions.add_parser("status", help="show the progress of a job")
    status.add_argument("out", metavar="OUT", help="directory of the job")
    status.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    finalize = actions.add_parser("finalize", help="check all shards, write ledger and manifest")
    finalize.add_argument("out", metavar="OUT", help="directory of the job")
    finalize.add_argument(
        "--max-failure-share",
        type=share,
        default=0.05,
        help="largest share of bad items that is no error (default: %(default)s)",
    )
    verify = actions.add_parser("verify", help="read a corpus again, decode a sample, write a page to listen to")
    verify.add_argument("out", metavar="OUT", help="directory of the corpus")
    verify.add_argument("--codec", help="codec, a directory or a hub id; without it nothing is decoded")
    verify.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    verify.add_argument("--samples", type=natural, default=20, help="utterances to decode (default: %(default)s)")
    verify.add_argument("--seed", type=natural, default=0, help="seed of their choice (default: %(default)s)")
    verify.add_argument("--report", help="new directory for index.html and verify.json (default: OUT-verify)")


def list_layouts() -> str:
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


def with_codec(config: "TokenizeConfig") -> "TokenizeConfig":
    """The same with the codec's directory, fetched where it is a hub id. Raises UserError."""
    return config.model_copy(update={"codec": str(local_path(config.codec, what="the codec"))})


def run(args: argparse.Namespace) -> int:
    log.set_up()
    if args.status is not None:
        args = argparse.Namespace(action="status", out=args.status, json=False)
    if args.action == "run":
        return _run_here(args)
    if args.action == "submit":
        return _submit(args)
    if args.action == "plan":
        config = read_recipe(args)
        _refuse_early(config)
        _plan_corpus(with_codec(config))
    elif args.action == "status":
        from slmkit.tokenization.corpus_job import CorpusJob
        from slmkit.tokenization.plan import TokenizationPlan
        from slmkit.tokenization.progress import look

        status = look(CorpusJob.open(args.out), TokenizationPlan.open(args.out))
        print(json.dumps(status.to_dict(), indent=2) if args.json else "\n".join(log.table(status.rows())))
    elif args.action == "finalize":
        from slmkit.tokenization.job import finalize_corpus

        finalize_corpus(args.out, args.max_failure_share)
    elif args.action == "verify":
        from slmkit.codec.open import open_codec
        from slmkit.tokenization.verify import verify_corpus

        codec = open_codec(local_path(args.codec, what="the codec"), args.device) if args.codec else None
        report = args.report or f"{args.out.rstrip('/')}-verify"
        found = verify_corpus(args.out, codec, samples=args.samples, seed=args.seed, report=report)
        print("\n".join([f"{args.out} is whole", *found.lines(), f"see {report}/index.html"]))
    else:
        raise UserError("no action is given", expected="plan, run, submit, status, finalize or verify")
    return 0


def _refuse_early(config: "TokenizeConfig") -> None:
    """Check what needs no torch before it is loaded. Raises UserError."""
    from slmkit.corpora.layouts import ReadOptions, check_source
    from slmkit.tokenization.corpus_job import check_job_directory
    from slmkit.tokenization.plan import TokenizationPlan
    from slmkit.tokenization.screen import job_settings

    if not TokenizationPlan.exists(config.out):
        check_source(config.kind, config.source, ReadOptions(columns=config.columns))
    check_job_directory(config.out, {"settings": job_settings(config)})


def _plan_corpus(config: "TokenizeConfig") -> "TokenizationPlan":
    from slmkit.codec.open import open_codec
    from slmkit.tokenization.job import plan_corpus

    return plan_corpus(open_codec(config.codec).spec, config)


def _run_here(args: argparse.Namespace) -> int:
    from slmkit.stopping import STOPPED, Stopped, stopping

    config = read_recipe(args)
    try:
        with stopping():
            _refuse_early(config)
            config = with_codec(config)
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
        print(f"stopped by {signal_name}; the same command continues", file=sys.stderr)
        return STOPPED


def _run_on_devices(words: Sequence[str], config: "TokenizeConfig", *, show: bool) -> int:
    """A process for each device, which takes a part of the task's shards; 0, or the first exit code that is not.

    Device i of n does what task `task * n + i` of `num_tasks * n` would. When one fails, the others go on: what they
    finish is not lost. Raises Stopped when this process is told to stop, after all of them have ended.
    """
    from slmkit.cli.devices import run_processes
    from slmkit.jobs import ProgressBar
    from slmkit.tokenization.corpus_job import CorpusJob
    from slmkit.tokenization.plan import TokenizationPlan
    from slmkit.tokenization.progress import LINE_EVERY_SEC, done_by

    plan = TokenizationPlan.open(config.out)
    missing = CorpusJob.open(config.out).missing(len(plan.shards))
    num_items = sum(plan.shards[shard].items for shard in missing if shard % config.num_tasks == config.task)
    count = len(config.devices)
    commands = [
        [
            *("tokenize", "run", *words, "--devices", device, "--no-progress"),
            *("--task", str(config.task * count + i), "--num-tasks", str(config.num_tasks * count)),
        ]
        for i, device in enumerate(config.devices)
    ]
    with contextlib.ExitStack() as stack:
        bar = None
        if show and num_items:
            bar = stack.enter_context(ProgressBar(num_items, "utterances", logger, line_every_sec=LINE_EVERY_SEC))

        def look(pids: set[int]) -> None:
            done = done_by(config.out, pids)
            if bar is not None and done is not None:
                bar.show(done.items, done.figures)

        return run_processes(commands, look)


def _submit(args: argparse.Namespace) -> int:
    """Plan the corpus, then print or submit the two jobs."""
    from slmkit.cluster import slurm
    from slmkit.cluster.array import describe as describe_array
    from slmkit.cluster.array import plan_array, submit_both

    config, words = read_recipe(args), _words(args)
    _refuse_early(config)
    config = with_codec(config)
    if "devices" in config.model_fields_set:  # else the script of the array chooses
        words += ["--devices", ",".join(config.devices)]
    options = array_options(args)
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


def _words(args: argparse.Namespace) -> list[str]:
    """The command's words but for the device and the task."""
    words = [word for name in PATHS if (word := getattr(args, name)) is not None]
    words += ["--config", args.config] if args.config else []
    words += ["--num-workers", str(args.num_workers)] if args.num_workers is not None else []
    return words + [text for text in args.overrides if text.partition("=")[0].strip() not in SHARE]
