"""Train a speech language model with DeepSpeed, from a run config to checkpoints.

The same command works alone and under launchers, each process being one rank:

  slmkit train --config RUN.yaml
  deepspeed --num_gpus 2 --module slmkit train --config RUN.yaml
  torchrun --nproc-per-node 2 -m slmkit train --config RUN.yaml
  srun ... slmkit train --config RUN.yaml        (MASTER_ADDR and MASTER_PORT exported)

A run continues from its newest complete checkpoint: start the same command again.

To check a run of 8 processes without starting it:

  slmkit train --config RUN.yaml --dry-run --processes 8

To find how many rows a process should take at once, on the machines of the run:

  slmkit train --config RUN.yaml --fit
  slmkit launch --config RUN.yaml --processes 8 --fit

This takes steps with the fullest rows of the plan, more and more of them at once until the memory is full, and shows
peak memory, positions per second of a process and MFU of each. Nothing is trained, no checkpoint is read or written.
The last line is the option to add to the command or the config, such as micro_rows=4: the fewest rows that reach 97 %
of the best speed and leave 8 % of the memory free. What a step computes is the same with any. On a CPU the memory of
the process counts, and the host should keep 30 % of what it has left. (Other tools shrink batches when they run out;
here the number is found before the run, so that starts and machines agree on it.)

Models that the config names by hub ids are fetched by that, too, so that machines without a network find them in the
cache. RUN/config.yaml notes their commits.

Options of the config can be given here too; the last value of an option counts:

  slmkit train --config libritts_mtp12 run_dir=/scratch/run model.group=6 optimizer.lr=1e-4

After SIGTERM, SIGINT or SIGUSR1 to any process the run finishes its step, writes a checkpoint and stops.

Exit codes: 0 the run is finished; 2 an error that you can fix; 75 stopped by a signal, start it again; 1 another error.
"""

import argparse
import contextlib
import os
from pathlib import Path

from slmkit import log
from slmkit.cli.arguments import Parser, add_config_arguments
from slmkit.errors import UserError
from slmkit.stopping import STOPPED, Signals, stop_with_parent
from slmkit.world import LAUNCH_END, LAUNCH_ID, World


def add_arguments(parser: Parser) -> None:
    add_config_arguments(parser, "slmkit.config.train:TrainConfig", required=True)
    parser.add_argument(
        "--print-config", action="store_true", help="print the config with all its options; start nothing"
    )
    parser.add_argument("--dry-run", action="store_true", help="check the run and print its sizes; start nothing")
    parser.add_argument("--fit", action="store_true", help="measure which micro_rows is best here; train nothing")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="with --dry-run: processes of the run (default: as started)"
    )
    parser.add_argument("--verbose", action="store_true", help="more messages, also from DeepSpeed")


def run(args: argparse.Namespace) -> int:
    with Signals.installed() as signals:  # before torch is imported, which takes seconds
        if LAUNCH_ID in os.environ:
            stop_with_parent()  # else it would train on when its launcher is killed
        world = World.from_env()
        log.set_up(world.rank, args.verbose)
        if args.processes is not None and not args.dry_run:
            raise UserError(
                "--processes is for --dry-run only",
                next_step="start several processes with `slmkit launch`",
            )
        if args.fit and (args.dry_run or args.print_config):
            raise UserError("--fit measures, and cannot be given with --dry-run or --print-config")
        from slmkit.config.load import to_yaml
        from slmkit.config.train import load_run
        from slmkit.train.settings import check_files

        planned = world if args.processes is None else World(size=args.processes)
        refused: UserError | None = None
        try:
            config = load_run(args.config, args.overrides)
            config = config.model_copy(update={"micro_rows": 1}) if args.fit else config
            if not args.print_config:
                check_files(config, planned)
        except UserError as error:
            if world.size == 1 or args.print_config:
                raise
            refused = error  # shown below, by one of the processes
        if args.print_config:
            if world.is_first:
                print(to_yaml(config), end="")
            return 0
        from slmkit.train.peers import together

        with together(world, signals) as peers:
            if refused is not None:
                raise refused
            from slmkit.train.doctor import warn_at_start
            from slmkit.train.loop import train
            from slmkit.train.names import with_commits
            from slmkit.train.run import prepare_run, run_table

            warn_at_start(world, config.run_dir)
            if args.fit:
                from slmkit.train.fit import fit

                best = fit(config)
                if world.is_first:
                    print(f"micro_rows={best}")
            elif not args.dry_run:
                signals.is_obeyed = not train(config, peers)
            elif world.is_first:
                config = with_commits(config, World())
                print("\n".join(log.table(run_table(prepare_run(config, World(size=planned.size))))))
    code = STOPPED if signals.is_obeyed else 0
    if world.is_first and LAUNCH_END in os.environ:
        with contextlib.suppress(OSError):
            Path(os.environ[LAUNCH_END]).write_text(str(code))
    return code
