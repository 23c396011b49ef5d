"""Speak a sentence, or a file of sentences, with an exported model.

  slmkit synthesize MODEL "Good morning." --codec CODEC --speaker voice.wav --out hello.wav
  slmkit synthesize MODEL --jsonl FILE --codec CODEC --speaker voice.wav --out DIR

The voice comes from --speaker: an audio file, a .npy vector, or CORPUS:KEY (a sample of a tokenized corpus). A model
trained with speaker input follows it; any other model needs it all the same, because the codec does.

A line of FILE is {"text": "Some words."} and may have an "id" that names its WAV (default: its number), and "speaker",
"seed", "max_sec" and the fields of sampling ("temperature", "top_k", ...) where it wants others than the flags say.
--slots of them are spoken at a time. DIR gets wav/ID.wav, outputs.jsonl (a line for each answer: how long, how many
steps, why it stopped) and failures.jsonl (lines that cannot be read, speakers that are not there, answers without
speech). Killed or stopped, the same command goes on; with the same --slots, threads and device the files are the same,
byte for byte, as if nothing had happened, with others they may differ in roundings.

Exit codes: 0 done; 2 an error to mend, or more failures than --max-failure-share; 75 told to stop (SIGTERM, SIGINT,
SIGUSR1).
"""

import argparse
import time

from slmkit.cli.speaking import add_file_arguments, add_speaking_arguments, prepare, speak_file

SUMMARY = "text to WAV files with an exported model"
DEFAULT_OUT = "speech.wav"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory that `slmkit consolidate` wrote")
    text = parser.add_argument("text", help="what to say; not with --jsonl")
    parser.add_argument("--out", help=f"WAV file to write (default: {DEFAULT_OUT}), or with --jsonl a directory")
    parser.add_argument("--overwrite", action="store_true", help="replace the WAV file if it exists")
    add_file_arguments(parser, text)
    add_speaking_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from slmkit.errors import UserError

    if args.jsonl is None:
        return _speak(args)
    if args.text is not None:
        raise UserError("what to say?", got=f"{args.text!r} and --jsonl", expected="one of them")
    if args.out is None or args.overwrite:
        raise UserError("a file of sentences needs a directory of its own", expected="--out DIR, no --overwrite")
    return speak_file(args, "read")


def _speak(args: argparse.Namespace) -> int:
    from slmkit.audio.io import write_wav

    out = args.out or DEFAULT_OUT
    synthesizer, speaker, options = prepare(args, out)
    began = time.perf_counter()
    speech = synthesizer.speak(args.text, speaker, **options)
    took = time.perf_counter() - began
    write_wav(out, speech.wave, speech.sample_rate, replace=args.overwrite)
    said = speech.output
    print(
        f"{out}: {speech.seconds:.2f} s of speech in {took:.2f} s, {said.num_steps} steps, "
        f"{said.codes.shape[1]} frames, stopped by: {said.limit or said.reason}"
    )
    return 0
