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
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slmkit import log
from slmkit.cli.arguments import OVERRIDE, Parser, add_config_arguments
from slmkit.cli.tokenize_submit import add_submit_arguments, submit
from slmkit.errors import UserError

if TYPE_CHECKING:
    from slmkit.config.tokenize import TokenizeConfig
    from slmkit.tokenization.plan import Plan

PATHS = ("source", "codec", "out")
SHARE = ("devices", "task", "num_tasks")  # which differ for each process
FLAGS = (*PATHS, "num_workers", *SHARE)


def add_arguments(parser: Parser) -> None:
    """A sub-command for each step."""
    parser.add_argument("--status", metavar="OUT", help="the same as `slmkit tokenize status OUT`")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    plan = actions.add_parser("plan", help="fix which utterance goes to which shard")
    run_parser = actions.add_parser("run", help="encode; alone it plans before and finalizes after")
    submit_parser = actions.add_parser("submit", help="plan, then encode and finalize as a Slurm array")
    for sub in (plan, run_parser, submit_parser):
        add_recipe_arguments(sub)
    add_submit_arguments(submit_parser)
    run_parser.add_argument("--task", type=int, help="number of this task among --num-tasks; the plan must be there")
    run_parser.add_argument("--num-tasks", type=int, help="tasks sharing the job")
    for name, text in (("status", "how far a job is"), ("finalize", "check all shards, write ledger and manifest")):
        sub = actions.add_parser(name, help=text)
        sub.add_argument("out", metavar="OUT", help="directory of the job")
        if name == "finalize":
            sub.add_argument("--max-failure-share", type=float, default=0.05, help="of bad items (%(default)s)")
    verify = actions.add_parser("verify", help="read a corpus again, decode a sample, write a page to look at and hear")
    verify.add_argument("out", metavar="OUT", help="directory of the corpus")
    verify.add_argument("--codec", help="directory of the codec; without it nothing is decoded")
    verify.add_argument("--device", default="cpu", help="where the codec runs (default: %(default)s)")
    verify.add_argument("--samples", type=int, default=20, help="utterances to decode (default: %(default)s)")
    verify.add_argument("--seed", type=int, default=0, help="of the choice of utterances (default: %(default)s)")
    verify.add_argument("--report", help="new directory for index.html and verify.json (default: OUT-verify)")


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
        return _status(args.status)
    if args.action is None:
        raise UserError("no action is given", expected=", ".join(ACTIONS))
    return ACTIONS[args.action](args)


def _plan(args: argparse.Namespace) -> int:
    _plan_corpus(read_recipe(args))
    return 0


def _plan_corpus(config: "TokenizeConfig") -> "Plan":
    from slmkit.codec.open import open_codec
    from slmkit.tokenization.job import plan_corpus

    return plan_corpus(open_codec(config.codec).spec, config)


def _run(args: argparse.Namespace) -> int:
    from slmkit.stopping import STOPPED, Stopped, stopping
    from slmkit.tokenization.share import run_on_devices

    config = read_recipe(args)
    try:
        with stopping():
            from slmkit.codec.open import open_codec  # these two take seconds
            from slmkit.tokenization.job import finalize_corpus, tokenize

            if len(config.devices) == 1:
                tokenize(open_codec(config.codec, config.devices[0]), config)
                return 0
            if config.num_tasks == 1:
                _plan_corpus(config)
            code = run_on_devices(_words(args), config.devices, task=config.task, num_tasks=config.num_tasks)
            if code == 0 and config.num_tasks == 1:
                finalize_corpus(config.out, config.max_failure_share)
            return code
    except Stopped as signal:
        print(f"stopped by {signal}; the same command goes on", file=sys.stderr)
        return STOPPED


def _submit(args: argparse.Namespace) -> int:
    config, words = read_recipe(args), _words(args)
    if args.devices or any(_option(text) == "devices" for text in args.overrides):
        words += ["--devices", ",".join(config.devices)]
    return submit(args, config, words, _plan_corpus)


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


def _status_of(args: argparse.Namespace) -> int:
    return _status(args.out)


def _status(out: str) -> int:
    from slmkit.tokenization.corpus_job import CorpusJob
    from slmkit.tokenization.plan import Plan
    from slmkit.tokenization.progress import look

    print("\n".join(look(CorpusJob.open(out), Plan.open(out)).lines()))
    finished = (Path(out) / "manifest.json").is_file()
    print("finalized" if finished else "not finalized yet: `slmkit tokenize finalize` when no shard is missing")
    return 0


ACTIONS = {
    "plan": _plan,
    "run": _run,
    "submit": _submit,
    "status": _status_of,
    "finalize": _finalize,
    "verify": _verify,
}
