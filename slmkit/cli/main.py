"""The `slmkit` command: finds the sub-command, loads only its file, turns user errors into exit code 2.

Each sub-command is a module of `slmkit.cli` with a docstring (its help), `add_arguments(parser)` and
`run(args) -> int`. At its top it imports only what takes milliseconds: help and wrong arguments are answered at once.
"""

import importlib
import os
import select
import sys
from collections.abc import Sequence

from slmkit import __version__
from slmkit.cli.arguments import Parser, parse
from slmkit.errors import UserError

# Command: module and one line of what it does.
COMMANDS = {
    "init-base": ("init_base", "make a tiny base model from a corpus's text"),
    "codec": ("codec", "fit the built-in codec, or copy a recording through a codec"),
    "tokenize": ("tokenize", "audio to shards of codes"),
    "import": ("import_codes", "published JSONL codes to shards"),
    "import-model": ("import_model", "published checkpoint, or a model of transformers, to a model directory"),
    "recipe": ("recipe", "list or copy the recipes and settings that come with slmkit"),
    "doctor": ("doctor", "check machine, DeepSpeed and data before training"),
    "train": ("train", "train from shards of codes, on one process or many"),
    "launch": ("launch", "check and start training on one machine, several, or Slurm"),
    "inspect": ("inspect", "how far a run is, how well and how fast"),
    "consolidate": ("consolidate", "checkpoint to safetensors"),
    "synthesize": ("synthesize", "text to WAV files with an exported model"),
    "answer": ("answer", "questions to words and WAV files with an exported model"),
    "serve": ("serve", "an HTTP server that speaks, with a page to try it on"),
    "evaluate": ("evaluate", "speak or answer utterances of a corpus and score the results; compare models"),
    "bench": ("bench", "measure speed on this machine"),
}
# Libraries below speak only of errors; models come from local directories alone.
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
STANDARD_OUTPUTS = (1, 2)
READER_GONE = 141  # exit code of a command whose reader went away, as shells give it
ORDER = """\
A first run, in order:
  slmkit codec fit AUDIO CODEC        fit the built-in codec to a folder of audio (or use the FACodec files)
  slmkit tokenize ...                 audio to shards of codes
  slmkit init-base ...                a tiny base model, where Qwen2.5-0.5B is not at hand
  slmkit recipe list                  run configs to start from
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


def build_parser(command: str | None = None) -> Parser:
    """The parser; only the module of `command` is imported."""
    parser = Parser(
        prog="slmkit", description="Train speech language models on codec codes and speak with them.", epilog=ORDER
    )
    parser.add_argument("--version", action="version", version=f"slmkit {__version__}")
    choices = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module_name, summary) in COMMANDS.items():
        sub = choices.add_parser(name, help=summary)
        if name == command:
            module = importlib.import_module(f"slmkit.cli.{module_name}")
            sub.description = module.__doc__
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns its exit code: 0 done, 2 user error, 130 interrupted, 141 nobody reads the output."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # DeepSpeed's launcher puts --local_rank=N in front of everything; LOCAL_RANK says the same.
    words = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("--local_rank=")]
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        gone = [fd for fd in STANDARD_OUTPUTS if _reader_is_gone(fd)]
        if not gone:
            raise
        for fd in gone:  # or Python complains when it flushes them at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        return READER_GONE


def _run(words: Sequence[str]) -> int:
    command = next((word for word in words if not word.startswith("-")), None)
    try:
        args = parse(build_parser(command), words)
        return int(args.run(args) or 0)
    except UserError as error:
        print(f"slmkit {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _reader_is_gone(fd: int) -> bool:
    """Whether `fd` is a pipe (or socket) that nobody reads any more."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
