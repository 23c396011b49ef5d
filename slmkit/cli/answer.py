"""Ask an exported model a question, or a file of questions: it answers in words, then aloud.

  slmkit answer MODEL "Who wrote it?" --codec CODEC --speaker voice.wav --out answer.wav
  slmkit answer MODEL --jsonl FILE --codec CODEC --speaker voice.wav --out DIR

The model must have been trained with the task qa. It answers in the voice of --speaker: an audio file, a .npy vector,
or CORPUS:KEY (a sample of a tokenized corpus). A model trained with speaker input follows it; any other model needs it
all the same, because the codec does. The words of the answer are printed first, on a line of their own.

A line of FILE is {"question": "Who wrote it?"}; all else is as for `slmkit synthesize --jsonl`. The words of each
answer stand in outputs.jsonl as "text".

Exit codes: 0 done; 2 an error to mend, or more failures than --max-failure-share; 75 told to stop (SIGTERM, SIGINT,
SIGUSR1).
"""

import argparse
import sys
import time

from slmkit.cli.speaking import add_file_arguments, add_speaking_arguments, prepare, speak_file

DEFAULT_OUT = "answer.wav"
UNMARKED = "the model did not write [ta] and [ua] around its words, as the task qa teaches; these are all of them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory that `slmkit consolidate` wrote")
    question = parser.add_argument("question", help="what to ask; not with --jsonl")
    parser.add_argument("--out", help=f"WAV file to write (default: {DEFAULT_OUT}), or with --jsonl a directory")
    parser.add_argument("--overwrite", action="store_true", help="replace the WAV file if it exists")
    add_file_arguments(parser, question)
    add_speaking_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from slmkit.errors import UserError

    if args.jsonl is None:
        return _answer(args)
    if args.question is not None:
        raise UserError("what to ask?", got=f"{args.question!r} and --jsonl", expected="one of them")
    if args.out is None or args.overwrite:
        raise UserError("a file of questions needs a directory of its own", expected="--out DIR, no --overwrite")
    return speak_file(args, "answer")


def _answer(args: argparse.Namespace) -> int:
    import torch

    from slmkit.audio.io import write_wav
    from slmkit.errors import UserError

    out = args.out or DEFAULT_OUT
    synthesizer, speaker, options = prepare(args, out)
    began = time.perf_counter()
    (said,) = synthesizer.engine.generate([synthesizer.answering(args.question, speaker, **options)])
    words = synthesizer.words_of(said)
    stopped = said.limit or said.reason
    if not said.codes.shape[1]:
        raise UserError(
            f"the model gave no speech (it stopped by: {stopped})",
            got=f"the words {words.text!r}",
            next_step="use a model trained with the task qa, or train it longer",
        )
    wave, rate = synthesizer.decode(said.codes, torch.from_numpy(speaker)), synthesizer.codec.spec.sample_rate
    took = time.perf_counter() - began
    write_wav(out, wave, rate, replace=args.overwrite)
    if not words.is_marked:
        print(UNMARKED, file=sys.stderr)
    print(" ".join(words.text.split()))
    print(
        f"{out}: {len(wave) / rate:.2f} s of speech in {took:.2f} s, {said.num_steps} steps, "
        f"{said.codes.shape[1]} frames, stopped by: {stopped}"
    )
    return 0
