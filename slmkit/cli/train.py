"""Train a speech language model with DeepSpeed, from a run config to checkpoints.

The same command works alone and under launchers, each process being one rank:

  slmkit train --config RUN.yaml
  deepspeed --num_gpus 2 --module slmkit train --config RUN.yaml
  torchrun --nproc-per-node 2 -m slmkit train --config RUN.yaml
  srun ... slmkit train --config RUN.yaml        (MASTER_ADDR and MASTER_PORT exported)

A run continues from its newest complete checkpoint: start the same command again.

SIGTERM, SIGINT or SIGUSR1 to any process stop the run after the step it is in, with a checkpoint.

Exit codes: 0 the run is complete; 2 something a user can mend, named; 75 stopped by a signal, start it again; 1 others.
"""

import argparse

from slmkit import log
from slmkit.config.load import describe, load_config
from slmkit.config.train import TrainConfig
from slmkit.train.signals import Signals
from slmkit.world import World

SUMMARY = "train from shards of codes, on one process or many"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="run config (YAML)")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override an option of the config")
    parser.add_argument("--verbose", action="store_true", help="more messages")
    options = "\n".join(f"  {line}" for line in describe(TrainConfig))
    parser.epilog = f"Options of the run config (default): meaning\n{options}"


def run(args: argparse.Namespace) -> int:
    signals = Signals.installed()  # before torch is imported, which takes seconds
    world = World.from_env()
    log.set_up(world.rank, args.verbose)
    from slmkit.train.peers import PREEMPTED, together

    with together(world, signals) as peers:
        from slmkit.infer.samples import SpeechSamples
        from slmkit.train.doctor import warn_of_versions
        from slmkit.train.loop import train

        warn_of_versions(world)
        config = load_config(TrainConfig, args.config, args.set)
        speak = None
        if config.codec is not None and config.speak_every_steps and world.is_first:
            spoken = [source.path for source in config.data.all_sources if source.task != "text"]
            speak = SpeechSamples(codec=config.codec, tokenizer=config.base, corpus=spoken[0]) if spoken else None
        is_complete = train(config, speak, peers)
    return 0 if is_complete else PREEMPTED
