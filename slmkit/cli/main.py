"""The `slmkit` command: finds the sub-command, loads only its file, turns user errors into exit code 2.

Each sub-command is a module of `slmkit.cli` with `SUMMARY` (a line), `add_arguments(parser)` and `run(args) -> int`.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from slmkit import __version__
from slmkit.errors import UserError

COMMANDS = {
    "init-base": "init_base",
    "codec": "codec",
    "tokenize": "tokenize",
    "import": "import_codes",
    "import-model": "import_model",
    "doctor": "doctor",
    "train": "train",
    "launch": "launch",
    "inspect": "inspect",
    "consolidate": "consolidate",
    "synthesize": "synthesize",
    "answer": "answer",
    "serve": "serve",
    "evaluate": "evaluate",
    "bench": "bench",
}
# Libraries below speak only of errors; models come from local directories alone.
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
ORDER = """\
A first run, in order:
  slmkit codec fit AUDIO CODEC        fit the built-in codec to a folder of audio (or use the FACodec files)
  slmkit tokenize ...                 audio to shards of codes
  slmkit init-base ...                a tiny base model, where Qwen2.5-0.5B is not at hand
  slmkit doctor --config RUN.yaml     check machine, DeepSpeed and data; under the same launcher as train
  slmkit launch --config RUN.yaml     train on this machine, the machines of a hostfile, or through Slurm; it starts
                                      `slmkit train`, which also runs alone or under any launcher
  slmkit inspect RUN                  how far a run is, how well and how fast; also while it goes on
  slmkit consolidate RUN OUT          checkpoint to safetensors
  slmkit synthesize OUT ...           text to a WAV file
  slmkit answer OUT ...               a question to words and a WAV file
  slmkit serve OUT ...                the same over HTTP, with a page to try it on
  slmkit evaluate OUT ...             scores, and a page to hear what was said; several models side by side
`slmkit COMMAND --help` explains each."""


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser; with `command` given, only that sub-command's module is imported."""
    parser = argparse.ArgumentParser(
        prog="slmkit",
        description="Train speech language models on codec codes and speak with them.",
        epilog=ORDER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"slmkit {__version__}")
    choices = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module_name in COMMANDS.items():
        if command in COMMANDS and name != command:
            continue
        module = importlib.import_module(f"slmkit.cli.{module_name}")
        sub = choices.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns its exit code: 0 done, 2 user error, 130 interrupted."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # DeepSpeed's launcher puts --local_rank=N in front of everything; LOCAL_RANK says the same.
    words = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("--local_rank=")]
    args = build_parser(words[0] if words else None).parse_args(words)
    try:
        return int(args.run(args) or 0)
    except UserError as error:
        print(f"slmkit {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
