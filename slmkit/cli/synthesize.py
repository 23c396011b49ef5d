"""Speak a sentence, or a file of sentences, with an exported model.

  slmkit synthesize MODEL "Good morning." --codec CODEC --speaker voice.wav --out hello.wav
  slmkit synthesize MODEL "Good morning." --codec CODEC --speaker voice.wav --stream --out - | aplay
  slmkit synthesize MODEL --jsonl FILE --codec CODEC --speaker voice.wav --out DIR

The voice comes from --speaker: an audio file, a .npy vector, or CORPUS:KEY (a sample of a tokenized corpus). A model
trained with speaker input follows it; any other model needs it all the same, because the codec does.

With --stream the sound is written while it is spoken, to a WAV file that grows or (-) to standard output.

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
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from slmkit.cli.speaking import STDOUT, add_speaking_arguments, prepare, speak_file
from slmkit.errors import UserError

if TYPE_CHECKING:
    from slmkit.infer.request import Request
    from slmkit.infer.synthesizer import Synthesizer, Vector

DEFAULT_OUT = "speech.wav"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory that `slmkit consolidate` wrote")
    text = parser.add_argument("text", help="the text to speak; not with --jsonl")
    parser.add_argument("--out", help=f"WAV file to write (default: {DEFAULT_OUT}), or with --jsonl a directory")
    parser.add_argument("--overwrite", action="store_true", help="replace the WAV file if it exists")
    parser.add_argument("--stream", action="store_true", help="write the sound while it is spoken")
    add_speaking_arguments(parser, text)


def run(args: argparse.Namespace) -> int:
    if args.jsonl is not None:
        if args.text is not None:
            got = f"{args.text!r} and --jsonl"
            raise UserError("a text and a file of texts were given", got=got, expected="one of them")
        if args.out is None or args.overwrite or args.stream:
            expected = "--out DIR, no --overwrite, no --stream"
            raise UserError("a file of sentences needs a directory of its own", expected=expected)
        return speak_file(args, "tts")
    out = args.out or DEFAULT_OUT
    synthesizer, speaker, options = prepare(args, out, is_stream=args.stream)
    if args.stream:
        return _stream(synthesizer, synthesizer.reading(args.text, speaker, **options), speaker, out)
    from slmkit.audio.io import write_wav

    began = time.perf_counter()
    speech = synthesizer.speak(args.text, speaker, **options)
    took_sec = time.perf_counter() - began
    write_wav(out, speech.wave, speech.sample_rate, replace=args.overwrite)
    print(f"{out}: {speech.line(took_sec)}")
    return 0


def _stream(synthesizer: "Synthesizer", request: "Request", speaker: "Vector", out: str) -> int:
    """Write pieces as they come; of a file the header says at the end how long it is."""
    from slmkit.audio.encode import pcm16, wav_header

    rate, num_samples = synthesizer.codec.spec.sample_rate, 0
    began = time.perf_counter()
    with contextlib.closing(synthesizer.stream(request, speaker)) as speaking:
        if (first_wave := next(speaking, None)) is None:
            raise UserError("the model gave no speech", next_step="train it longer, or give it other texts")
        with _sink(out) as file:
            file.write(wav_header(rate, None))
            for wave in itertools.chain([first_wave], speaking):
                file.write(pcm16(wave).tobytes())
                file.flush()
                num_samples += len(wave)
            if file.seekable():
                file.seek(0)
                file.write(wav_header(rate, num_samples))
        output = speaking.output
    took_sec = time.perf_counter() - began
    assert output is not None, "the last piece has come"
    first = f"first audio after {speaking.first_audio_sec:.3f} s"
    print(f"{out}: {num_samples / rate:.2f} s of speech in {took_sec:.2f} s, {first}, {output.line()}", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _sink(out: str) -> Iterator[BinaryIO]:
    """The file or standard output. A file in which nothing could be written is taken away."""
    try:
        with open(1, "wb", closefd=False) if out == STDOUT else open(out, "wb") as file:
            yield file
    except OSError as error:
        what = f"cannot write {out}: {error.strerror or error}"
        raise UserError(what, next_step="what was written before is kept") from error
    finally:
        with contextlib.suppress(OSError):
            if out != STDOUT and os.path.isfile(out) and not os.path.getsize(out):  # and no device or pipe
                os.unlink(out)
