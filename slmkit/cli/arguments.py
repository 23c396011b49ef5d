"""What the commands share: the parser, the layout of help, numbers, and options of the config.

Example:
    parser.add_argument("--tasks", type=positive, default=64, help="tasks of the array")
    add_config_arguments(parser, "slmkit.config.train:TrainConfig", required=True)
    ...
    config = load_run(args.config, args.overrides)
"""

import argparse
import difflib
import importlib
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from slmkit.assets import config_file
from slmkit.texts import natural, positive
from slmkit.world import MAX_PORT

if TYPE_CHECKING:
    from slmkit.cluster.array import ArrayOptions

OVERRIDE = re.compile(r"[A-Za-z_][\w.\[\]]*=")
CONTINUED = 4  # columns by which the further lines of a long one are indented


def port_number(text: str) -> int:
    """A port, or 0 for a free one. argparse names the argument where ValueError is raised."""
    number = natural(text)
    if number > MAX_PORT:
        raise ValueError
    return number


def add_config_arguments(parser: "Parser", kind: str, *, required: bool = False, with_option: bool = True) -> None:
    """`--config FILE` and overrides KEY=VALUE; the help lists the options of `kind`, as in "package.module:Class".

    The class is imported only for the help. `args.config` is a path, `args.overrides` a list of "key=value". Without
    `with_option` there is no --config: the command takes its file otherwise.
    """

    def options() -> str:
        from slmkit.config.load import describe_options

        module, name = kind.split(":")
        title = "Options of the config, as lines of the file or as KEY=VALUE:"
        return "\n".join([title, *describe_options(getattr(importlib.import_module(module), name))])

    parser.has_overrides = True
    parser.help_parts.append(options)
    if with_option:
        parser.add_argument(
            "--config", required=required, type=config_file, metavar="FILE", help="YAML file, or the name of a recipe"
        )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=argparse.SUPPRESS)
    parser.add_argument(
        "overrides", nargs="*", type=key_value, metavar="KEY=VALUE", help="change an option, as in model.group=12"
    )


def key_value(text: str) -> str:
    """An override, as in model.group=12. Raises ArgumentTypeError for other text."""
    if not OVERRIDE.match(text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected KEY=VALUE such as model.group=12")
    return text


def add_array_arguments(parser: Any) -> None:
    """What is asked of Slurm for an array; `array_options` reads it."""
    parser.add_argument("--tasks", type=positive, default=64, help="tasks of the array (default: 64)")
    parser.add_argument("--limit", type=positive, default=16, help="tasks that may run at once (default: 16)")
    parser.add_argument("--cpus", type=positive, default=4, help="CPUs of each task (default: 4)")
    parser.add_argument("--gpus", type=int, choices=(0, 1), default=0, help="GPUs of each task (default: 0)")
    parser.add_argument("--time", help="time limit of a task, as in sbatch; the task requeues itself after it")
    parser.add_argument("--partition", help="partition of both jobs")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="for both jobs, as in --sbatch=--account=me"
    )


def array_options(args: argparse.Namespace) -> "ArrayOptions":
    """Of the arguments of `add_array_arguments`."""
    from slmkit.cluster.array import ArrayOptions

    names = ("tasks", "limit", "cpus", "gpus", "time", "partition")
    return ArrayOptions(**{name: getattr(args, name) for name in names}, more=tuple(args.sbatch))


def given(args: argparse.Namespace) -> dict[str, str]:
    """Arguments and options of the command that have other values than without them: as they are typed, by name."""
    actions = [action for action in args.parser._actions if hasattr(args, action.dest)]
    changed = [action for action in actions if getattr(args, action.dest) != action.default]
    return {one.dest: one.option_strings[-1] if one.option_strings else one.dest.upper() for one in changed}


def parse(parser: "Parser", words: Sequence[str]) -> argparse.Namespace:
    """The arguments. Overrides may stand anywhere; `args.overrides` has them in the order of the words."""
    args, unknown = parser.parse_known_args(words)
    if hasattr(args, "overrides"):
        # argparse fills a list of words from one stretch of the command line only, and leaves the others.
        given = [*args.set, *args.overrides, *filter(OVERRIDE.match, unknown)]
        args.overrides = [*(word for word in args.set if word not in words), *(word for word in words if word in given)]
        unknown = [word for word in unknown if not OVERRIDE.match(word)]
    if unknown:
        parser.chosen.error(f"unknown arguments: {' '.join(unknown)}{parser.chosen.suggestion(unknown)}")
    return args


class Parser(argparse.ArgumentParser):
    """A parser with our help, for a command and each of its sub-commands."""

    has_overrides = False
    last_used: "Parser | None" = None  # the innermost that has begun to parse

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, **options})
        self.words: list[str] = []  # that are being parsed
        self.help_parts: list[Callable[[], str]] = []  # put at the end of the help, and made only for it

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        Parser.last_used, self.words = self, list(args or ())
        if self.has_overrides and args is not None:
            # Overrides go behind the other words, of which argparse could take them for one. What follows an option
            # stays, since it may be its value.
            moved = [index for index, word in enumerate(args) if OVERRIDE.match(word)]
            moved = [index for index in moved if index == 0 or not args[index - 1].startswith("-")]
            args = [word for index, word in enumerate(args) if index not in moved] + [args[index] for index in moved]
        return super().parse_known_args(args, namespace)

    @property
    def chosen(self) -> "Parser":
        """The parser of the sub-command that was last chosen, or this one."""
        return Parser.last_used or self

    def suggestion(self, words: Sequence[str]) -> str:
        """ "; did you mean --option?" where one of the words nearly is an option of this command."""
        for word in words:
            near = difflib.get_close_matches(word.partition("=")[0], self._option_string_actions, 1)
            if word.startswith("--") and near:
                return f"; did you mean {near[0]}?"
        if self.has_overrides and any(word.startswith("--") for word in words):
            return "; options of the config are written as KEY=VALUE"
        return ""

    def format_help(self) -> str:
        self.epilog = "\n\n".join([*([self.epilog] if self.epilog else []), *(make() for make in self.help_parts)])
        return super().format_help()

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        near = difflib.get_close_matches(str(value), map(str, action.choices), 1)
        expected = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(map(str, action.choices))}"
        raise argparse.ArgumentError(action, f"there is no {value!r}; {expected}")

    def error(self, message: str) -> NoReturn:
        if "KEY=VALUE" in message:  # the value of an unknown option is taken for an override
            message += self.suggestion([word for word in self.words if word not in self._option_string_actions])
        self.exit(2, f"{self.format_usage()}{self.prog}: {message}\n")


class HelpFormatter(argparse.HelpFormatter):
    """Help that fits the terminal: text is wrapped, tables keep their columns, and defaults are shown.

    A table is any line that is indented or has three spaces inside: what stands before two or more spaces is its first
    column. Lines that begin under the second column continue it.
    """

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_default = action.default is not argparse.SUPPRESS and action.default not in (None, False, True, [], ())
        return text + (" (default: %(default)s)" if has_default and "default" not in text else "")

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment  # argparse forgets that the names are indented

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in fill(text, width - len(indent))) + "\n"


def fill(text: str, width: int) -> list[str]:
    """The lines of a help text, none wider than `width` where words allow it."""
    lines: list[str] = []
    for block in _blocks(text.strip("\n").split("\n")):
        match = re.match(r"( *)(\S.*?\S|\S)(  +)(\S.*)$", block)
        is_row = match is not None and (match[1] or len(match[3]) > 2)
        if not is_row:
            inner = " " * (len(block) - len(block.lstrip()))
            inner += " " * (CONTINUED if inner else 2 if block.startswith("- ") else 0)
            lines += textwrap.wrap(block, width, subsequent_indent=inner, break_on_hyphens=False) or [""]
            continue
        assert match is not None
        first, column = match[1] + match[2], len(match[1] + match[2] + match[3])
        if column <= width // 2:
            first, inner = f"{first}{match[3]}", " " * column
            lines += textwrap.wrap(f"{first}{match[4]}", width, subsequent_indent=inner, break_on_hyphens=False)
            continue
        inner = match[1] + " " * CONTINUED
        if len(block) <= width:
            lines.append(block)
        else:
            lines += textwrap.wrap(first, width, subsequent_indent=inner, break_on_hyphens=False)
            inner += " " * CONTINUED
            lines += textwrap.wrap(match[4], width, initial_indent=inner, subsequent_indent=inner)
    return lines


def _blocks(lines: Sequence[str]) -> Iterator[str]:
    """Paragraphs and rows of a table, each on one line; an empty line is a block of its own."""
    block, column = "", -1
    for line in lines:
        indent = len(line) - len(line.lstrip())
        continues_row = indent == column and block and indent > 2
        is_text = not indent and "   " not in line and not line.startswith("- ")
        continues_text = is_text and block and not block.startswith(" ") and "   " not in block
        if line.strip() and (continues_row or continues_text):
            block += " " + line.strip()
            continue
        if block:
            yield block
        if not line.strip():
            yield ""
        block = line.rstrip()
        row = re.match(r" *\S.*?  +(?=\S)", block)
        column = row.end() if row else -1
    if block:
        yield block
