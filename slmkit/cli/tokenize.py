"""Turn a corpus of audio into shards of codec codes, once.

Options come from a YAML recipe (--config), from the flags below and from --set, the later ones winning:

  slmkit tokenize --config tokenize_jobs/libritts.yaml /data/LibriTTS CODEC OUT
  slmkit tokenize SOURCE CODEC OUT --set kind=manifest --set corpus=mine --set num_workers=8

An interrupted job goes on when the same command is given again. Bad files are counted in OUT/failures.jsonl.
"""

import argparse
import json

from slmkit import log
from slmkit.config.load import describe, load_config
from slmkit.config.tokenize import TokenizeConfig

SUMMARY = "audio to shards of codes"
FLAGS = ("source", "codec", "out", "devices", "num_workers", "task", "num_tasks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments; every option of the recipe can be given with --set."""
    parser.add_argument("source", nargs="?", help="folder of audio, or manifest")
    parser.add_argument("codec", nargs="?", help="directory of the codec")
    parser.add_argument("out", nargs="?", help="directory for the shards")
    parser.add_argument("--config", help="YAML recipe")
    parser.add_argument(
        "--devices", type=lambda text: text.split(","), help="where the codec runs: cpu, or cuda:0,cuda:1"
    )
    parser.add_argument("--num-workers", type=int, help="processes that decode audio")
    parser.add_argument("--task", type=int, help="number of this process among --num-tasks (Slurm array)")
    parser.add_argument("--num-tasks", type=int, help="processes sharing the job")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="any option")
    parser.epilog = "options for --set and the recipe:\n  " + "\n  ".join(describe(TokenizeConfig))


def run(args: argparse.Namespace) -> int:
    given = [(name, getattr(args, name)) for name in FLAGS]
    flags = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given if value is not None]
    config = load_config(TokenizeConfig, args.config, [*flags, *args.overrides])
    log.set_up()
    from slmkit.codec.open import open_codec
    from slmkit.tokenization.job import tokenize

    tokenize(open_codec(config.codec, config.devices[0]), config)
    return 0
