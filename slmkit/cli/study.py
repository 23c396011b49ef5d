"""Many models side by side: tokenize, train, consolidate and evaluate each of them, and put the scores into one table.

  slmkit study plan STUDY.yaml        what it makes, what is shared, what is wrong with it; starts nothing
  slmkit study run STUDY.yaml         does it on this machine; the same command goes on after any interruption
  slmkit study run STUDY.yaml --slurm --sbatch=--partition=gpu      the same as Slurm jobs
  slmkit study status STUDY.yaml      how far each step is, and why one failed
  slmkit study table STUDY.yaml       writes OUT/table and prints the scores there are

`slmkit recipe list` shows the studies that come with slmkit, which are those of the paper's tables and `quick`, which
runs on a laptop. Each step is a command of slmkit (`slmkit study plan --commands` prints them) and is done once; the
log of a step is OUT/steps/NAME.log. A step that fails leaves those that do not need it; `run` tries it again. Several
`run`s of a study, on several machines with one disk, share its steps.

Exit codes of `run`: 0 all is done; 2 an error that you can fix, or a step failed; 75 stopped by a signal, with what is
done kept.
"""

import argparse
import contextlib
import io
import os
import sys
import time
from typing import TYPE_CHECKING

from slmkit import log
from slmkit.cli.arguments import Parser, add_config_arguments, parse
from slmkit.errors import UserError
from slmkit.stopping import STOPPED, Signals

if TYPE_CHECKING:
    from slmkit.study.plan import StudyPlan

POLL_SEC = 0.1
ACTIONS = {
    "plan": "show models and steps, and check the commands; start nothing",
    "run": "do all steps on this machine, or submit them to Slurm",
    "status": "show how each step stands",
    "table": "write and print the table of what is there",
    "step": "do one step; what the jobs of --slurm run",
}


def add_arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    subs = {name: actions.add_parser(name, help=summary) for name, summary in ACTIONS.items()}
    for name, sub in subs.items():
        sub.add_argument("study", metavar="STUDY", type=study_file, help="YAML file, or the name of a study")
        if name == "step":
            sub.add_argument("step", metavar="STEP", help="as `slmkit study status` shows it")
        add_config_arguments(sub, "slmkit.study.config:StudyConfig", with_option=False)
    subs["plan"].add_argument("--commands", action="store_true", help="also print the command of each step")
    subs["run"].add_argument("--slurm", action="store_true", help="submit a job for each step that is not done")
    subs["run"].add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="for all jobs, as in --sbatch=--account=me"
    )
    subs["status"].add_argument("--json", action="store_true", help="print one JSON object, for programs")


def study_file(given: str) -> str:
    """The path of a study, given as a path or by name."""
    from slmkit.assets import config_file

    return config_file(given, "study")


def run(args: argparse.Namespace) -> int:
    log.set_up()
    from slmkit.study.config import load_study
    from slmkit.study.plan import describe, plan_study

    plan = plan_study(load_study(args.study, args.overrides))
    if args.action == "step":
        return _step(plan, args.step)
    if args.action in ("plan", "run"):
        _check_commands(plan)
    if args.action == "plan":
        print("\n".join(describe(plan, commands=args.commands)))
    elif args.action == "run" and args.slurm:
        _submit(plan, args)
    elif args.action == "run":
        return _run_here(plan)
    elif args.action == "status":
        _status(plan, as_json=args.json)
    else:
        _table(plan)
    return 0


def _check_commands(plan: "StudyPlan") -> None:
    """Let each command look at its words, and each training at its options, before the first of them starts.

    Raises UserError naming the step whose command would refuse them.
    """
    from slmkit.cli.main import build_parser
    from slmkit.config.train import load_run
    from slmkit.train.settings import check_files
    from slmkit.world import World

    parsers = {command: build_parser(command) for command in {step.words[0] for step in plan.steps}}
    for step in plan.steps:
        told = io.StringIO()
        try:
            with contextlib.redirect_stderr(told):
                parsed = parse(parsers[step.words[0]], step.words)
        except SystemExit as error:
            lines = told.getvalue().strip().splitlines()
            what = f"{step.name}: `slmkit {step.words[0]}` refuses its options"
            raise UserError(what, got=lines[-1] if lines else None, next_step="see `plan --commands`") from error
        except UserError as error:
            raise UserError(f"{step.name}: {error.what}", got=error.got, expected=error.expected) from error
        if step.kind == "train":
            try:
                asked = plan.resources(step)
                config = load_run(parsed.config, parsed.overrides)
                check_files(config, World(size=asked.processes * asked.nodes), is_elsewhere=True)
            except UserError as error:
                raise UserError(f"{step.name}: {error}") from error


def _run_here(plan: "StudyPlan") -> int:
    from slmkit.study.local import run_study

    with Signals.installed() as signals:
        statuses = run_study(plan, os.environ, is_told_to_stop=lambda: signals.received is not None)
        signals.is_obeyed = signals.received is not None
    if signals.is_obeyed:
        print(f"stopped by {signals.received}; the same command continues", file=sys.stderr)
        return STOPPED
    _table(plan)
    failed = {name: status for name, status in statuses.items() if status.state in ("failed", "changed")}
    for name, status in failed.items():
        print(f"{name} {status.state}: {status.why}", file=sys.stderr)
    left = sum(status.state != "done" for status in statuses.values())
    if left:
        what = f"{left} of {len(statuses)} steps are not done; the same command tries them again"
        print(what, file=sys.stderr)
    return 2 if left else 0


def _submit(plan: "StudyPlan", args: argparse.Namespace) -> None:
    from slmkit.study.slurm import submit_study

    ids = submit_study(plan, args.study, args.overrides, more=args.sbatch, env=os.environ)
    for name, job in ids.items():
        print(f"job {job}: {name}")
    print(f"next: slmkit study status {args.study}" if ids else "all steps are done")


def _step(plan: "StudyPlan", name: str) -> int:
    """Do one step, as one process or as one of several of a launcher; the command's exit code."""
    from slmkit.study.work import look_at, take
    from slmkit.world import World

    step, world = plan.step(name), World.from_env()
    if look_at(plan, step, is_mine=True).state == "done":
        return 0
    missing = [need for need in step.needs if look_at(plan, plan.step(need), is_mine=True).state != "done"]
    if missing:  # where Slurm took the end of a dying node for a success
        raise UserError(f"{name} needs {missing[0]}, which is not done", next_step=f"do {missing[0]} first")
    work = take(plan, step, is_first=world.is_first)
    if work is None:
        raise UserError(f"another process is doing {name}", next_step="wait for it")
    with Signals.installed() as signals:
        work.start(os.environ)
        while not work.has_ended():
            if signals.received is not None and not work.is_told:
                work.stop()
            time.sleep(POLL_SEC)
        signals.is_obeyed = work.is_told
        state, why, code = work.finish()
    if world.is_first:
        print(f"{name}: {state}{f'; {why}' if why else ''}", flush=True)
    if state == "stopped":  # also where the command does not answer signals itself: it goes on all the same
        return STOPPED
    return code if code >= 0 else 128 - code


def _status(plan: "StudyPlan", *, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from slmkit.study.slurm import queued_jobs
    from slmkit.study.work import STATES, look

    statuses, jobs = look(plan), dict[str, str]()
    with contextlib.suppress(UserError):  # a machine without Slurm
        jobs = queued_jobs(plan, os.environ)
    if as_json:
        told = {name: asdict(status) | {"job": jobs.get(name)} for name, status in statuses.items()}
        print(json.dumps(told, indent=2))
        return
    width = max(map(len, statuses))
    for name, status in statuses.items():
        took = log.duration(status.seconds) if status.seconds else ""
        starts = f"{status.starts} starts" if status.starts > 1 else ""
        job = f"job {jobs[name]}" if name in jobs else ""
        parts = [STATES[status.state], status.why if status.state != "done" else "", took, starts, job]
        print(f"{name:{width}}  {', '.join(part for part in parts if part)}")
    done = sum(status.state == "done" for status in statuses.values())
    print(f"{done} of {len(statuses)} steps are done")


def _table(plan: "StudyPlan") -> None:
    from slmkit.study.table import text_table, write_table
    from slmkit.study.work import look

    statuses = look(plan)
    page = write_table(plan, statuses)
    print("\n".join(text_table(plan, statuses)))
    print(f"see {page}, and table.md and table.tex beside it")
