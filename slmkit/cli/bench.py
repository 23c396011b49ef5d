"""Measure slmkit on this machine.

  slmkit bench codec       speed of FACodec against its plain twin
  slmkit bench codecs      table of converted codecs: speed, agreement with the plain loop, streams, reach
  slmkit bench memory      peak memory of tokenizing long recordings, for each codec
  slmkit bench tokenize    speed of tokenizing audio files into shards
  slmkit bench train       speed of training
  slmkit bench steps       training steps of a recipe through DeepSpeed: tokens/s, MFU, kernels
  slmkit bench roofline    what bounds training and decoding on a GPU, from arithmetic
  slmkit bench decode      speed of generation
  slmkit bench serve       what clients of the server hear: first sound, gaps
  slmkit bench data        speed of finding, planning and loading training data
  slmkit bench plan        speed of planning and finalizing a large corpus
  slmkit bench checkpoint  how long training stops for a checkpoint

`slmkit bench NAME --help` lists the options of each.
"""

import argparse
import importlib

from slmkit.cli.arguments import Parser

# slmkit.bench.NAME has SUMMARY, add_arguments(parser), run(args)
BENCHES = (
    *("codec", "codecs", "memory", "tokenize", "train", "steps", "roofline"),
    *("decode", "serve", "data", "plan", "checkpoint"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bench", choices=BENCHES, metavar="BENCH", help="what to measure, as above")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of that benchmark")


def run(args: argparse.Namespace) -> int:
    """Import the chosen benchmark alone, parse its options and run it."""
    module = importlib.import_module(f"slmkit.bench.{args.bench}")
    parser = Parser(prog=f"slmkit bench {args.bench}", description=module.SUMMARY)
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(args.options)) or 0)
