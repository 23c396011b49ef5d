"""Check, then start `slmkit train` on this machine, on the machines of a hostfile, or through Slurm.

  slmkit launch --config RUN.yaml --processes 8
  slmkit launch --config RUN.yaml --hostfile HOSTS [--nodes 2]
  slmkit launch --config RUN.yaml --slurm --nodes 2 --processes 8 --time 24:00:00

--dry-run prints what would run where and starts nothing. A run that cannot start is refused before anything is started
or submitted; with --slurm its files are looked for on this machine (`sbatch launch/train.sbatch` leaves that to the
nodes). With a hostfile all machines are checked first; an error names
those that do not answer. SIGTERM, SIGINT (Ctrl-C), SIGHUP or SIGUSR1 to this command: the run writes a checkpoint and
ends with exit code 75; start the same command again to continue. A second signal ends the run at once. Other exit codes
are those of `slmkit train`; 1 if a machine is lost, or a process of the run or between it and this one was killed. When
this process is killed, the run writes a checkpoint and ends within 10 s.

These variables are passed on to other machines: PYTHONPATH, PATH, LD_LIBRARY_PATH, OMP_NUM_THREADS, VIRTUAL_ENV,
TOKENIZERS_PARALLELISM, TRITON_CACHE_DIR, CUDA_HOME, all that begin with HF_, TRANSFORMERS_, TORCH_, TORCHINDUCTOR_,
DS_, NCCL_, GLOO_, UCX_ or SLMKIT_, and those in ~/.deepspeed_env or ./.deepspeed_env. They
stand in command lines, so that none whose name looks like a token, key or password is: set those on the machines.
PDSH_SSH_ARGS_APPEND holds options for ssh, such as "-p 2222".
"""

import argparse
import os

from slmkit import log
from slmkit.assets import deepspeed_file
from slmkit.cli.arguments import Parser, add_config_arguments, port_number
from slmkit.cluster.slurm import submit
from slmkit.errors import UserError
from slmkit.hub import parse
from slmkit.texts import natural, positive
from slmkit.world import World


def add_arguments(parser: Parser) -> None:
    add_config_arguments(parser, "slmkit.config.train:TrainConfig", required=True)
    parser.add_argument("--dry-run", action="store_true", help="print what would run where; start nothing")
    parser.add_argument("--fit", action="store_true", help="measure which micro_rows is best there; see `slmkit train`")
    parser.add_argument(
        "--processes",
        type=positive,
        help="processes on each machine, one per GPU (default: 1, or the hostfile's slots)",
    )
    parser.add_argument(
        "--nodes", type=positive, help="number of machines: the first N of the hostfile, or those of the Slurm job"
    )
    parser.add_argument("--master-port", type=port_number, help="port of the first process (default: a free one)")
    parser.add_argument("--verbose", action="store_true", help="more messages, also from DeepSpeed and its launcher")
    hosts = parser.add_argument_group("several machines over ssh")
    hosts.add_argument("--hostfile", metavar="FILE", help='DeepSpeed hostfile, lines such as "node1 slots=8"')
    hosts.add_argument("--master-addr", help="address of the first process (default: the first name of the hostfile)")
    slurm = parser.add_argument_group("Slurm")
    slurm.add_argument("--slurm", action="store_true", help="submit the job script train.sbatch")
    slurm.add_argument("--time", help="time limit of the job, as in sbatch; the job requeues itself after it")
    slurm.add_argument("--partition", help="partition of the job")
    slurm.add_argument("--gpus", type=natural, help="GPUs on each machine; 0: none (default: as many as processes)")
    slurm.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="one more option for sbatch, as in --sbatch=--account=me",
    )
    slurm.add_argument("--script", help="sbatch script (default: the train.sbatch that comes with slmkit)")


def run(args: argparse.Namespace) -> int:
    from slmkit.cluster import launcher
    from slmkit.cluster.hosts import read_hostfile
    from slmkit.cluster.launch import LaunchRequest, SlurmOptions, plan_hosts, plan_lines, plan_local, plan_slurm
    from slmkit.config.train import load_run
    from slmkit.train.settings import check_files

    log.set_up(verbose=args.verbose)
    if args.slurm and (args.hostfile or args.master_addr):
        raise UserError(
            "--slurm takes its machines from the job", got="--hostfile or --master-addr", next_step="leave them out"
        )
    config = load_run(args.config, args.overrides)
    config = config.model_copy(update={"micro_rows": 1}) if args.fit else config  # one row at a time is tried, too
    batch = (config.global_rows, config.micro_rows)
    request = LaunchRequest(
        config=args.config,
        overrides=tuple(args.overrides),
        processes=args.processes,
        nodes=args.nodes,
        master_addr=args.master_addr,
        master_port=args.master_port,
        verbose=args.verbose,
        fit=args.fit,
    )
    if args.slurm:
        options = SlurmOptions(
            time=args.time, partition=args.partition, gpus=args.gpus, script=args.script, more=tuple(args.sbatch)
        )
        plan = plan_slurm(request, options, batch, os.environ)
    elif args.hostfile:
        plan = plan_hosts(request, read_hostfile(args.hostfile), args.hostfile, batch=batch, env=os.environ)
    else:
        plan = plan_local(request, batch, os.environ)
    # The machines of a hostfile are asked for the files below; a plan for them or for Slurm may be made on any machine.
    is_elsewhere = bool(args.hostfile or (args.slurm and args.dry_run))
    check_files(config, World(size=plan.split.world_size), is_elsewhere=is_elsewhere)
    if args.dry_run:
        print("\n".join(plan_lines(plan)))
        return 0
    if args.slurm:
        environment = {**os.environ, **({"MASTER_PORT": str(plan.master_port)} if plan.master_port else {})}
        print(f"submitted job {submit(plan.command, environment)}")
        return 0
    port = args.master_port
    if plan.hosts:
        deepspeed = str(deepspeed_file(config.deepspeed))
        base = () if parse(config.base) else (config.base,)
        files = (args.config, deepspeed, *base, *(source.path for source in config.data.all_sources))
        free = launcher.check_hosts(plan, tuple(file for file in files if "://" not in file), os.environ)
        port = port or free
    return launcher.start(plan, port, os.environ)
