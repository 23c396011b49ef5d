"""Answer a question, or every question of a file, in text and speech, with an exported model.

  slmkit answer MODEL "Who wrote it?"
  slmkit answer MODEL "Who wrote it?" --speaker voice.wav --out answer.wav
  slmkit answer MODEL --jsonl FILE --speaker voice.wav --out DIR

The model must have been trained for the task qa. It knows its codec (another one: --codec) and holds some voices.
--speaker names one of them, or gives another: an audio file, a .npy vector, or CORPUS:KEY (a sample of a tokenized
corpus). Where neither the model nor the codec takes a voice, leave it out. The first line printed is the text of the
answer.

Each line of FILE is an object such as {"question": "Who wrote it?"}. The rest is as for `slmkit synthesize --jsonl`.
outputs.jsonl has the text of each answer as "answer".

Exit codes: 0 done; 2 an error, or a larger share of failures than --max-failure-share; 75 stopped by SIGTERM, SIGINT or
SIGUSR1.
"""

import argparse
import sys
import time

from slmkit.cli.speaking import MODEL, add_speaking_arguments, prepare_answer, speak_file
from slmkit.errors import UserError
from slmkit.texts import excerpt

DEFAULT_ANSWER_WAV = "answer.wav"
UNMARKED = "the answer has no marks [ta] and [ua], which the task qa teaches; this is all that the model wrote"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL)
    question = parser.add_argument("question", help="question to answer; not with --jsonl")
    parser.add_argument("--out", help=f"WAV file to write (default: {DEFAULT_ANSWER_WAV}), or with --jsonl a directory")
    parser.add_argument("--overwrite", action="store_true", help="replace the WAV file if it exists")
    add_speaking_arguments(parser, question)


def run(args: argparse.Namespace) -> int:
    if args.jsonl is not None:
        if args.question is not None:
            got = f"{excerpt(args.question)!r} and --jsonl"
            raise UserError("got a question and a file of questions", got=got, expected="one of the two")
        if args.out is None or args.overwrite:
            raise UserError("--jsonl writes into a directory", expected="--out DIR, without --overwrite")
        return speak_file(args, "qa")
    out = args.out or DEFAULT_ANSWER_WAV
    synthesizer, speaker, options = prepare_answer(args, out)
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
