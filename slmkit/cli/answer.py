"""Ask an exported model a question, or a file of questions: it answers in words, then aloud.

  slmkit answer MODEL "Who wrote it?" --codec CODEC --speaker voice.wav --out answer.wav
  slmkit answer MODEL --jsonl FILE --codec CODEC --speaker voice.wav --out DIR

The model must have been trained with the task qa. It answers in the voice of --speaker: an audio file, a .npy vector,
or CORPUS:KEY (a sample of a tokenized corpus). A model trained with speaker input follows it; any other model needs it
all the same, because the codec does. The words of the answer are printed first, on a line of their own.

A line of FILE is {"question": "Who wrote it?"}; all else is as for `slmkit synthesize --jsonl`. The words of each
answer stand in outputs.jsonl as "answer".

Exit codes: 0 done; 2 an error to mend, or more failures than --max-failure-share; 75 told to stop (SIGTERM, SIGINT,
SIGUSR1).
"""

import argparse
import sys
import time

from slmkit.cli.speaking import add_speaking_arguments, prepare, speak_file
from slmkit.errors import UserError

DEFAULT_OUT = "answer.wav"
UNMARKED = "the model did not write [ta] and [ua] around its words, as the task qa teaches; these are all of them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory that `slmkit consolidate` wrote")
    question = parser.add_argument("question", help="the question to answer; not with --jsonl")
    parser.add_argument("--out", help=f"WAV file to write (default: {DEFAULT_OUT}), or with --jsonl a directory")
    parser.add_argument("--overwrite", action="store_true", help="replace the WAV file if it exists")
    add_speaking_arguments(parser, question)


def run(args: argparse.Namespace) -> int:
    if args.jsonl is not None:
        if args.question is not None:
            got = f"{args.question!r} and --jsonl"
            raise UserError("a question and a file of questions were given", got=got, expected="one of them")
        if args.out is None or args.overwrite:
            raise UserError("a file of questions needs a directory of its own", expected="--out DIR, no --overwrite")
        return speak_file(args, "qa")
    out = args.out or DEFAULT_OUT
    synthesizer, speaker, options = prepare(args, out)
    from slmkit.audio.io import write_wav

    began = time.perf_counter()
    speech = synthesizer.answer(args.question, speaker, **options)
    took_sec = time.perf_counter() - began
    write_wav(out, speech.wave, speech.sample_rate, replace=args.overwrite)
    if not speech.words.is_marked:
        print(UNMARKED, file=sys.stderr)
    print(" ".join(speech.words.text.split()))
    print(f"{out}: {speech.line(took_sec)}")
    return 0
