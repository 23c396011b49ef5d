"""The `slmkit` command: finds the sub-command, loads only its file, turns user errors into exit code 2.

Each sub-command is a module of `slmkit.cli` with a docstring (its help), `add_arguments(parser)` and
`run(args) -> int`. At its top it imports only what takes milliseconds: help and wrong arguments are answered at once.
"""

import contextlib
import importlib
import os
import select
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from slmkit import __version__
from slmkit.cli.arguments import Parser, parse
from slmkit.errors import UserError
from slmkit.texts import visible

# Command: module and one line of what it does.
COMMANDS = {
    "init-base": ("init_base", "make a tiny base model, to try things out"),
    "codec": ("codec", "fit the built-in codec, or copy a recording through a codec"),
    "tokenize": ("tokenize", "turn audio into shards of codec codes"),
    "import": ("import_codes", "turn published codes (JSONL) into shards"),
    "import-model": ("import_model", "convert a published or transformers model for slmkit"),
    "recipe": ("recipe", "list or copy the recipes and settings that come with slmkit"),
    "doctor": ("doctor", "check machine, DeepSpeed and data before training"),
    "train": ("train", "train a model on shards of codes, with one process or many"),
    "launch": ("launch", "check, then start training on one machine, several, or Slurm"),
    "inspect": ("inspect", "show progress, scores and speed of a run"),
    "consolidate": ("consolidate", "export a checkpoint to safetensors"),
    "synthesize": ("synthesize", "speak text into WAV files"),
    "answer": ("answer", "answer questions in text and WAV files"),
    "serve": ("serve", "serve a model over HTTP, with a demo page"),
    "evaluate": ("evaluate", "score a model on a corpus; compare models"),
    "study": ("study", "tokenize, train and evaluate many models; one table of all"),
    "bench": ("bench", "measure speed on this machine"),
}
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # libraries report errors only
STANDARD_OUTPUTS = (1, 2)
READER_GONE = 141  # exit code when the reader of a pipe has closed it, as in shells (128 + SIGPIPE)
ORDER = """\
A first run, in order:
  slmkit codec fit AUDIO CODEC        fit the built-in codec to a folder of audio (or use the FACodec files)
  slmkit tokenize run ...             turn audio into shards of codes
  slmkit init-base ...                a tiny base model, where no pretrained one is at hand
  slmkit recipe list                  run configs to start from
  slmkit doctor --config RUN.yaml     check machine, DeepSpeed and data; under the same launcher as train
  slmkit launch --config RUN.yaml     train on this machine, the machines of a hostfile, or through Slurm; it starts
                                      `slmkit train`, which also runs alone or under any launcher
  slmkit inspect RUN                  show progress, scores and speed of a run, also while it trains
  slmkit consolidate RUN OUT          export a checkpoint to safetensors
  slmkit synthesize OUT ...           speak text into a WAV file
  slmkit answer OUT ...               answer a question in text and a WAV file
  slmkit serve OUT ...                the same over HTTP, with a demo page
  slmkit evaluate OUT ...             scores, and a page to listen to the speech; compare models
  slmkit study run STUDY.yaml         all of this for many models, and one table

`slmkit COMMAND --help` explains a command."""


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
            sub.set_defaults(run=module.run, parser=sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns its exit code: 0 done, 2 user error, 130 interrupted, 141 nobody reads the output."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # DeepSpeed's launcher puts --local_rank=N in front of everything; LOCAL_RANK says the same.
    words = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("--local_rank=")]
    command = next((word for word in words if not word.startswith("-")), None)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started it; the next file opened would take its place
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the end
    output = VisibleOutput(sys.stdout)
    try:
        with contextlib.redirect_stdout(output):
            try:
                args = parse(build_parser(command), words)
                args.words = words
                return int(args.run(args) or 0)
            except UserError as error:
                return _refuse(command, error)
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                return 130
            finally:
                output.flush()
    except UserError as error:  # of the last flush
        return _refuse(command, error)
    except BrokenPipeError:
        gone = [fd for fd in STANDARD_OUTPUTS if _reader_is_gone(fd)]
        if not gone:
            raise
        for fd in gone:
            _discard(fd)
        return READER_GONE


def _refuse(command: str | None, error: UserError) -> int:
    try:
        print(visible(f"slmkit {command}: {error}"), file=sys.stderr)
    except BrokenPipeError:
        raise
    except OSError:  # a full disk; the exit code is all that can be told
        _discard(2)
    return 2


def _discard(fd: int) -> None:
    """From now on what is written there goes nowhere; Python would complain when it flushes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


class VisibleOutput:
    """Standard output of every command. Control characters in the texts of strangers are shown, not obeyed; characters
    that the terminal's encoding lacks are escaped; a full disk behind it is an error of the user's, told once."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure") and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        with self._naming_a_full_disk():
            return int(self._stream.write(visible(text)))

    def flush(self) -> None:
        with self._naming_a_full_disk():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _naming_a_full_disk(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            _discard(self._stream.fileno())  # what is left would fail again
            what = f"cannot write to standard output: {error.strerror or error}"
            raise UserError(what, next_step="free space, or send the output elsewhere") from error


def _reader_is_gone(fd: int) -> bool:
    """Whether `fd` is a pipe (or socket) that nobody reads any more."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
