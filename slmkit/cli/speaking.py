"""What the commands that generate speech share: their options, and the work on a file of lines (--jsonl).

Example:
    add_speaking_arguments(parser)
    settings = settings_of(args)
    return speak_file(args, "tts")
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmkit import log
from slmkit.cli.arguments import add_array_arguments, array_options, given
from slmkit.config.run_dir import check_model_directory
from slmkit.errors import UserError
from slmkit.files import check_directory, read_json
from slmkit.hub import local_path, shown
from slmkit.model.companions import codec_beside, voices_beside
from slmkit.texts import excerpt, natural, positive, share

if TYPE_CHECKING:
    from slmkit.codec.base import Codec
    from slmkit.infer.items import SpeakingTask
    from slmkit.infer.request import SpeakingSettings
    from slmkit.infer.shares import Share
    from slmkit.infer.synthesizer import Dtype, Synthesizer, Vector

UNAWARE = "the model has no speaker input: only the codec uses the voice"
MODEL = "directory that `slmkit consolidate` wrote, or a hub id"
CODEC = "codec of the model, a directory or a hub id (default: the one that the model notes)"
DTYPES = ("float32", "bfloat16")
DTYPE = "of the weights; bfloat16 has half the bytes, and rounds some codes otherwise (default: as they were saved)"
STDOUT = "-"
CODEC_FILE = "codec_spec.json"  # of an exported model
SHOWN_CHARS = 200  # of an error about a number, which may have thousands of digits
NUM_SLOTS = 8  # of a file of lines, unless asked otherwise
OF_FILES = {"slots", "max_failure_share", "devices", "task", "num_tasks", "join", "submit"}  # flags that need --jsonl
OF_FILES |= {"tasks", "limit", "cpus", "gpus", "time", "partition", "sbatch"}
VOICE = "an audio file, a .npy vector, CORPUS:KEY, or the name of a voice of the model"
SPEAKING_FLAGS: dict[str, tuple[Any, Any, str]] = {  # of `SpeakingSettings`: type, default, help
    "temperature": (
        float,
        0.0,
        "0: always the most probable token; 1: sample from the model's probabilities (default: 0)",
    ),
    "text_temperature": (float, None, "the same for the text of an answer (default: as --temperature)"),
    "top_k": (int, 0, "sample among the K most probable tokens only; 0: all (default: 0)"),
    "top_p": (
        float,
        1.0,
        "sample among the most probable tokens that together have this probability (default: 1, all)",
    ),
    "repetition_penalty": (float, 1.0, "above 1: recent tokens become less probable (default: 1, off)"),
    "repetition_window": (int, 50, "frames of speech, or tokens of text, that are recent (default: %(default)s)"),
    "seed": (int, 0, "random seed (default: %(default)s)"),
    "max_sec": (float, 30.0, "longest speech, of a text that of a sentence, in seconds (default: %(default)s)"),
    "max_text_tokens": (int, 256, "longest text of an answer, in tokens (default: %(default)s)"),
    "max_retries": (int, 2, "tries after speech that would not end, or is far too short (default: %(default)s)"),
}


def add_sampling_arguments(parser: Any) -> None:
    """How the next token is chosen, and when an answer is stopped; `settings_of` reads them."""
    for name, (kind, default, meaning) in SPEAKING_FLAGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=meaning)
    unwatched = "do not stop speech that would not end (silence, loops, far longer than its text), nor try it again"
    parser.add_argument("--no-watch", dest="watch", action="store_false", help=unwatched)


def settings_of(args: argparse.Namespace) -> "SpeakingSettings":
    """The flags as settings. Raises UserError for numbers out of range."""
    from slmkit.infer.request import SpeakingSettings

    try:
        return SpeakingSettings(**{name: getattr(args, name) for name in (*SPEAKING_FLAGS, "watch")})
    except (ValueError, OverflowError) as error:
        raise UserError(excerpt(error, SHOWN_CHARS)) from error


def add_speaking_arguments(parser: argparse.ArgumentParser, text: argparse.Action) -> None:
    """Codec, voice, sampling and device; and --jsonl, a file of lines instead of the argument `text`."""
    parser.add_argument("--codec", help=CODEC)
    parser.add_argument("--speaker", metavar="VOICE", help=f"{VOICE} (default: the first voice of the model)")
    parser.add_argument("--jsonl", metavar="FILE", action=_Instead, of=text, help="do every line of this file instead")
    parser.add_argument(
        "--slots",
        type=positive,
        metavar="N",
        help=f"with --jsonl: lines spoken at the same time (default: {NUM_SLOTS})",
    )
    parser.add_argument(
        "--max-failure-share",
        type=share,
        default=0.05,
        metavar="SHARE",
        help="with --jsonl: largest share of failed lines that is no error (default: %(default)s)",
    )
    parser.add_argument(
        "--devices",
        type=lambda text: text.split(","),
        metavar="LIST",
        help="with --jsonl: where to speak, one process each: cuda:0,cuda:1, or cpu,cpu",
    )
    parser.add_argument("--task", type=natural, metavar="T", help="with --jsonl: speak the lines of task T, from 0 on")
    parser.add_argument("--num-tasks", type=positive, metavar="N", help="of so many tasks that share the file")
    parser.add_argument("--join", action="store_true", help="join what the tasks have spoken; needs no model in memory")
    parser.add_argument(
        "--submit",
        choices=("no", "dry-run", "run"),
        default="no",
        help="with --jsonl: print, or submit, a Slurm array whose tasks share the file and a job that joins them",
    )
    add_array_arguments(parser)
    add_sampling_arguments(parser)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, help=DTYPE)


class _Instead(argparse.Action):
    """An option in place of an argument, which is then not required any more.

    An argument with nargs "?" would not do: before Python 3.12 it is found only directly after the one before it.
    """

    def __init__(self, *args: Any, of: argparse.Action, **options: Any) -> None:
        super().__init__(*args, **options)
        self._of = of

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values)
        self._of.nargs, self._of.required = "?", False


def may_need_no_voice(model: str) -> bool:
    """Whether an exported model may speak without a voice; for certain that is known when it is loaded."""
    try:
        codec = read_json(Path(model, CODEC_FILE))
    except UserError:
        return False
    return isinstance(codec, dict) and (codec.get("speaker_dim") == 0 or bool(codec.get("speaker_sha256")))


def find_model(args: argparse.Namespace) -> None:
    """Put the directories of model and codec into `args`, fetched where they are hub ids.

    Raises UserError when one is not there.
    """
    directory = local_path(args.model, what="the model")
    check_model_directory(directory)
    codec = local_path(args.codec, what="the codec") if args.codec else codec_beside(directory)
    check_directory("the codec", codec)
    args.model_name, args.model = shown(args.model, directory), str(directory)
    args.codec = str(codec) if args.codec else None  # else its hash is compared with the one that the model notes


def check_voice(source: str, model: str) -> None:
    """Raise UserError where a voice is neither a file that exists nor one of the model's; or there is none at all, and
    the model needs one."""
    named = voices_beside(model)
    if not source and (named or may_need_no_voice(model)):
        return
    directory, colon, _ = source.rpartition(":")
    if not source:
        raise UserError("no voice was given", expected=f"--speaker with {VOICE}")
    if not os.path.isfile(source) and not (colon and os.path.isdir(directory)) and source not in named:
        names = f"; the model has {', '.join(named)}" if named else ""
        raise UserError(f"cannot use {source} as a voice: there is no such file", expected=f"{VOICE}{names}")


def prepare_answer(
    args: argparse.Namespace, out: str, *, is_stream: bool = False
) -> "tuple[Synthesizer, Vector, dict[str, Any]]":
    """Synthesizer, voice and options of one answer into the WAV file `out`. Raises UserError for what does not fit.

    A stream may go to standard output, a device or a pipe, which are no files to replace.
    """
    if of_files := [flag for name, flag in given(args).items() if name in OF_FILES]:
        raise UserError(f"{', '.join(of_files)}: there is no file of lines", expected="--jsonl FILE with it")
    path = Path(out)
    if not (is_stream and out == STDOUT):
        if os.path.exists(path) and not args.overwrite:
            raise UserError("the WAV file exists", got=out, next_step="give another --out, or --overwrite")
        if not is_stream and (out == STDOUT or (os.path.exists(path) and not os.path.isfile(path))):
            raise UserError("only --stream writes to standard output, a device or a pipe", got=out)
    log.set_up()
    find_model(args)
    check_voice(args.speaker or "", args.model)
    settings = settings_of(args)
    synthesizer = open_synthesizer(args, num_slots=1, longest_sec=settings.max_sec, dtype=args.dtype)
    speaker = synthesizer.read_speaker(args.speaker or "")
    if synthesizer.takes_voice and not synthesizer.is_speaker_aware:
        print(UNAWARE, file=sys.stderr)
    return synthesizer, speaker, dataclasses.asdict(settings)


def open_synthesizer(
    args: argparse.Namespace,
    *,
    num_slots: int,
    longest_sec: float,
    codec: "Codec | None" = None,
    dtype: "Dtype | None" = None,
) -> "Synthesizer":
    """Model and codec of the flags, with room for speech of `longest_sec` seconds, and no less than usual.

    `codec` is the one of the flags where it is open already.
    """
    from slmkit.infer.engine import DEFAULT_SEC
    from slmkit.infer.synthesizer import Synthesizer

    room_sec = max(DEFAULT_SEC, longest_sec)
    options: dict[str, Any] = {"num_slots": num_slots, "max_sec": room_sec, "dtype": dtype}
    return Synthesizer.load(args.model, codec or args.codec, args.device, **options)


def speak_file(args: argparse.Namespace, task: "SpeakingTask") -> int:
    """Speak the lines of `args.jsonl` into the directory `args.out`; 0, or 75 when told to stop.

    With several devices, or as a task of several, each process has a share of the lines, and then they are joined.
    """
    from slmkit.cli.devices import run_processes
    from slmkit.stopping import STOPPED, Stopped, stopping

    if not os.path.exists(args.jsonl):
        raise UserError(f"cannot read {args.jsonl}: there is no such file", next_step="check the path")
    log.set_up()
    find_model(args)
    if args.speaker:
        check_voice(args.speaker, args.model)
    try:
        with stopping():
            devices, share = args.devices or [args.device], _share_of(args)
            if len(devices) > 1 and not args.join and args.submit == "no":
                number, total = share or (0, 1)
                first, total = number * len(devices), total * len(devices)
                commands = [
                    [*args.words, "--devices", device, "--task", str(first + i), "--num-tasks", str(total)]
                    for i, device in enumerate(devices)
                ]
                if code := run_processes(commands):
                    return code
            from slmkit.infer.batch import join_shares, speak_all
            from slmkit.infer.items import read_items
            from slmkit.model.pretrained import export_sha256  # these take seconds

            given = {"speaker": args.speaker or "", "normalize": getattr(args, "normalize", "")}
            listed = read_items(args.jsonl, task, settings_of(args), **given)
            if args.submit != "no":
                return _submit(args, task, len(listed.items))
            if args.join or (len(devices) > 1 and share is None):
                summary = join_shares(listed, args.out, task=task, max_failure_share=args.max_failure_share)
                print(f"{args.out}: {summary.line()}")
                return 0
            if len(devices) > 1:
                return 0
            args.device = devices[0]
            longest_sec = max((item.settings.max_sec for item in listed.items), default=0.0)
            num_slots = args.slots or NUM_SLOTS
            synthesizer = open_synthesizer(args, num_slots=num_slots, longest_sec=longest_sec, dtype=args.dtype)
            options = {"max_failure_share": args.max_failure_share, "share": share}
            summary = speak_all(synthesizer, listed, args.out, task=task, model=export_sha256(args.model), **options)
    except Stopped as signal:
        print(f"stopped by {signal}; the same command continues", file=sys.stderr)
        return STOPPED
    print(f"{args.out}: {summary.line()}")
    return 0


def _share_of(args: argparse.Namespace) -> "Share | None":
    """The task of the flags. Raises UserError where they do not go together."""
    from slmkit.infer.shares import Share

    number, total = args.task, args.num_tasks
    if (number is None) != (total is None):
        raise UserError("--task and --num-tasks go together", got=f"task {number}, num_tasks {total}")
    if number is not None and number >= total:
        raise UserError("there is no such task", got=f"{number} of {total}", expected="0 <= task < num_tasks")
    return None if number is None else Share(number, total)


def _submit(args: argparse.Namespace, task: "SpeakingTask", num_lines: int) -> int:
    """Print or submit the array that speaks the lines, and the job that joins what its tasks have spoken."""
    from slmkit.cluster import slurm
    from slmkit.cluster.array import ArrayWork, describe, plan_array, submit_both

    command, *words = args.words
    work = ArrayWork(command, "lines", "joins what they have spoken")
    words += ["--submit", "no"]
    jobs = plan_array(array_options(args), words, words, [0.0] * num_lines, work)
    if args.submit == "dry-run":
        print("\n".join(describe(jobs)))
        return 0
    array_id, join_id = submit_both(jobs, lambda command: slurm.submit(command, os.environ))
    print(f"submitted array {array_id} of {len(jobs.shares)} tasks, then job {join_id} to join what they have spoken")
    return 0
