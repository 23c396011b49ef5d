"""What the commands that speak have in common: the options of speaking, and a whole file of lines at a time.

Example:
    add_speaking_arguments(parser)
    settings = settings_of(args)
    return speak_file(args, "read")
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmkit.cli.arguments import positive

if TYPE_CHECKING:
    from slmkit.infer.lines import Settings, Task
    from slmkit.infer.synthesizer import Synthesizer, Vector

UNAWARE = "the model has no speaker input: the voice is what the codec makes of it"
STDOUT = "-"
NUM_SLOTS = 8  # of a file of lines, unless asked otherwise
LIMITS = ("seed", "max_sec", "max_text_tokens")
CHOICES = ("temperature", "text_temperature", "top_k", "top_p", "repetition_penalty", "repetition_window")


def add_speaking_arguments(parser: argparse.ArgumentParser) -> None:
    """Codec, voice, device and sampling."""
    parser.add_argument("--codec", required=True, help="directory of the codec the model was trained on")
    parser.add_argument("--speaker", help="voice: an audio file, a .npy vector, or CORPUS:KEY")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--text-temperature", type=float, help="of the words around the speech (default: the same)")
    parser.add_argument("--top-k", type=int, default=0, help="keep the k most probable classes, 0 all (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="keep this share of the probability (default: all)")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="above 1, what came lately comes less (default: 1, none)"
    )
    parser.add_argument(
        "--repetition-window", type=int, default=50, help="frames or words that count as lately (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is sampled (default: %(default)s)")
    parser.add_argument("--max-sec", type=float, default=30.0, help="longest speech, seconds (default: %(default)s)")
    parser.add_argument(
        "--max-text-tokens", type=int, default=256, help="longest text of an answer (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")


class _Instead(argparse.Action):
    """An option that stands for an argument, which is then not asked for any more.

    An argument with nargs "?" would not do: before Python 3.12 it is only found right behind the one before it.
    """

    def __init__(self, *args: Any, of: argparse.Action, **options: Any) -> None:
        super().__init__(*args, **options)
        self._of = of

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values)
        self._of.nargs, self._of.required = "?", False


def add_file_arguments(parser: argparse.ArgumentParser, text: argparse.Action) -> None:
    """A file of lines instead of the argument `text`."""
    parser.add_argument("--jsonl", metavar="FILE", action=_Instead, of=text, help="speak every line of this file")
    parser.add_argument(
        "--slots", type=positive, metavar="N", help=f"with --jsonl: answers at a time (default: {NUM_SLOTS})"
    )
    parser.add_argument(
        "--max-failure-share",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="with --jsonl: share of lines that may give no speech (default: %(default)s)",
    )


def settings_of(args: argparse.Namespace) -> "Settings":
    """The flags as settings. Raises UserError for numbers out of range."""
    from slmkit.errors import UserError
    from slmkit.infer.lines import Settings

    try:
        return Settings(speaker=args.speaker or "", **{name: getattr(args, name) for name in LIMITS + CHOICES})
    except (ValueError, OverflowError) as error:
        raise UserError(str(error)) from error


def prepare(
    args: argparse.Namespace, out: str, *, is_stream: bool = False
) -> "tuple[Synthesizer, Vector, dict[str, Any]]":
    """Synthesizer, voice and options of one answer into the WAV file `out`. Raises UserError for what does not fit.

    A stream may go to standard output, a device or a pipe, which are no files to replace.
    """
    from slmkit.errors import UserError

    settings, path = settings_of(args), Path(out)
    if not settings.speaker:
        raise UserError("whose voice?", expected="--speaker with an audio file, a .npy vector, or CORPUS:KEY")
    if not (is_stream and out == STDOUT):
        if path.exists() and not args.overwrite:
            raise UserError("the WAV file exists", got=out, next_step="give another --out, or --overwrite")
        if not is_stream and (out == STDOUT or (path.exists() and not path.is_file())):
            raise UserError("only --stream writes to what is no file", got=out)
    synthesizer = open_synthesizer(args, num_slots=1, longest_sec=settings.max_sec)
    if not synthesizer.is_speaker_aware:
        print(UNAWARE, file=sys.stderr)
    return synthesizer, synthesizer.read_speaker(settings.speaker), settings.options


def open_synthesizer(args: argparse.Namespace, *, num_slots: int, longest_sec: float) -> "Synthesizer":
    """Model and codec of the flags, with room for speech of `longest_sec` seconds, and no less than usual."""
    from slmkit.infer.engine import DEFAULT_SEC
    from slmkit.infer.synthesizer import Synthesizer

    room_sec = max(DEFAULT_SEC, longest_sec)
    return Synthesizer.load(args.model, args.codec, args.device, num_slots=num_slots, max_sec=room_sec)


def speak_file(args: argparse.Namespace, task: "Task") -> int:
    """Speak the lines of `args.jsonl` into the directory `args.out`; 0, or 75 when told to stop."""
    from slmkit import log
    from slmkit.stopping import STOPPED, Stopped, stopping

    log.set_up()
    try:
        with stopping():
            from slmkit.infer.batch import fingerprint, speak_all  # these take seconds
            from slmkit.infer.lines import read_items

            listed = read_items(args.jsonl, task, settings_of(args))
            longest_sec = max((item.settings.max_sec for item in listed.items), default=0.0)
            synthesizer = open_synthesizer(args, num_slots=args.slots or NUM_SLOTS, longest_sec=longest_sec)
            model, share = fingerprint(args.model), args.max_failure_share
            summary = speak_all(synthesizer, listed, args.out, task=task, model=model, max_failure_share=share)
    except Stopped as signal:
        print(f"stopped by {signal}; the same command goes on", file=sys.stderr)
        return STOPPED
    print(f"{args.out}: {summary.line()}")
    return 0
