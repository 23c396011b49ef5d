"""Turn a checkpoint of a run into a directory that stands alone: weights, config, tokenizer, vocabulary, codec spec.

What was written is compared with the checkpoint before the directory takes its name. DeepSpeed's checkpoints are
pickles: use this only on runs that you trust.
"""

import argparse

SUMMARY = "checkpoint to safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN", help="directory of the run")
    parser.add_argument("out_dir", metavar="OUT", help="directory to write; must not exist")
    parser.add_argument("--step", type=int, help="checkpoint to take; default: the newest complete one")
    parser.add_argument(
        "--format",
        choices=("slmkit", "hf", "published"),
        default="slmkit",
        help="slmkit (default); hf: refuse what AutoModelForCausalLM cannot load; published: keys of the paper's code",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights; default float32"
    )


def run(args: argparse.Namespace) -> int:
    from slmkit.export.consolidate import consolidate

    checkpoint = consolidate(args.run_dir, args.out_dir, step=args.step, format=args.format, dtype=args.dtype)
    print(f"{args.out_dir}: weights of {checkpoint.path} in {args.dtype}, read back and equal")
    return 0
