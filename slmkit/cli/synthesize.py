"""Speak a text, or every line of a file, with an exported model.

  slmkit synthesize MODEL "Good morning."
  slmkit synthesize MODEL "Good morning." --speaker voice.wav --out hello.wav
  slmkit synthesize MODEL "Good morning." --speaker voice.wav --stream --out - | aplay
  slmkit synthesize MODEL --jsonl FILE --speaker voice.wav --out DIR

MODEL knows its codec (another one: --codec) and holds some voices. --speaker names one of them, or gives another: an
audio file, a .npy vector, or CORPUS:KEY (a sample of a tokenized corpus). A model without speaker input needs a voice
too where the codec decodes with it; where neither takes one, leave it out.

Speech that will not end is stopped (reason "runaway") and tried again, --max-retries times at most; the best attempt is
kept. It is far longer than its text, in a loop, or silent. A stream is tried once. --no-watch leaves speech to itself.

--stream writes the sound while it is generated: to a WAV file, or to standard output (--out -).

A text may have up to 50 000 characters. It is spoken sentence by sentence (long sentences in parts), each as it would
be alone, with pauses between them; what gives no speech is named. --normalize english says numbers, dates and
abbreviations in words: for models that were trained on words alone.

Each line of FILE is an object such as {"text": "Some words."}. It may also have "id", the name of its WAV file
(default: the number of the line), and "speaker", "seed", "max_sec", "temperature", "normalize" and other options
of this command, which then count for this line. DIR gets

  wav/ID.wav       the speech of a line
  outputs.jsonl    a line for each WAV file: its length, the steps and attempts it took, why it stopped, a warning
                   where it is far shorter than its text, its sentences
  failures.jsonl   a line for each line of FILE that gave no speech, with the reason

A bad line does not stop the others: all that can be spoken is spoken before the exit code says whether too many lines
failed. --devices cuda:0,cuda:1 speaks on several devices. --submit run does it as a Slurm array of --tasks tasks, which
requeue themselves, and joins what they have spoken; by hand: --task T --num-tasks N for each task, then --join.

After an interruption the same command continues. With the same --slots, threads
and device the files are the same, byte for byte, as without the interruption; otherwise they may differ by rounding.

Exit codes: 0 done; 2 an error, or a larger share of failures than --max-failure-share; 75 stopped by SIGTERM, SIGINT or
SIGUSR1.
"""

import argparse
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from slmkit.cli.speaking import MODEL, STDOUT, add_speaking_arguments, prepare_answer, speak_file
from slmkit.errors import UserError
from slmkit.infer.spoken_form import LANGUAGES, check_spoken_form
from slmkit.texts import excerpt, visible

if TYPE_CHECKING:
    from slmkit.infer.passage import Passage, SpokenSentence
    from slmkit.infer.synthesizer import Synthesizer, Vector

DEFAULT_SPEECH_WAV = "speech.wav"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help=MODEL)
    text = parser.add_argument("text", help="text to speak; not with --jsonl")
    parser.add_argument("--out", help=f"WAV file to write (default: {DEFAULT_SPEECH_WAV}), or with --jsonl a directory")
    parser.add_argument("--overwrite", action="store_true", help="replace the WAV file if it exists")
    parser.add_argument("--stream", action="store_true", help="write the sound while it is generated")
    parser.add_argument(
        "--normalize", choices=LANGUAGES, default="", help="say numbers and abbreviations in words of this language"
    )
    add_speaking_arguments(parser, text)


def run(args: argparse.Namespace) -> int:
    check_spoken_form(args.normalize)
    if args.jsonl is not None:
        if args.text is not None:
            got = f"{excerpt(args.text)!r} and --jsonl"
            raise UserError("got a text and a file of texts", got=got, expected="one of the two")
        if args.out is None or args.overwrite or args.stream:
            expected = "--out DIR, without --overwrite and --stream"
            raise UserError("--jsonl writes into a directory", expected=expected)
        return speak_file(args, "tts")
    out = args.out or DEFAULT_SPEECH_WAV
    synthesizer, speaker, options = prepare_answer(args, out, is_stream=args.stream)
    options["normalize"] = args.normalize
    if args.stream:
        return _stream(synthesizer, synthesizer.passage(args.text, speaker, **options), speaker, out)
    from slmkit.audio.io import write_wav

    began = time.perf_counter()
    speech = synthesizer.speak(args.text, speaker, **options)
    took_sec = time.perf_counter() - began
    write_wav(out, speech.wave, speech.sample_rate, replace=args.overwrite)
    _warn(speech.sentences)
    print(f"{out}: {speech.line(took_sec)}")
    return 0


def _warn(sentences: "Sequence[SpokenSentence]") -> None:
    """Name the sentences that gave no speech, and those that a limit cut short."""
    from slmkit.infer.passage import cut_short, unspoken

    for warning in filter(None, (unspoken(sentences), cut_short(sentences))):
        print(visible(f"warning: {warning}"), file=sys.stderr)


def _stream(synthesizer: "Synthesizer", passage: "Passage", speaker: "Vector", out: str) -> int:
    """Write pieces as they come; of a file the header says at the end how long it is."""
    from slmkit.audio.encode import pcm16, wav_header

    rate, num_samples = synthesizer.codec.spec.sample_rate, 0
    began = time.perf_counter()
    with contextlib.closing(synthesizer.stream(passage, speaker)) as speaking:
        first_wave = next(speaking)
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
    done = f"{num_samples / rate:.2f} s of speech in {took_sec:.2f} s, {first}, {output.line()}"
    _warn(speaking.spoken)
    print(visible(f"{out}: {done}"), file=sys.stderr)
    return 0


@contextlib.contextmanager
def _sink(out: str) -> Iterator[BinaryIO]:
    """The file or standard output. A file that stays empty is removed."""
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with open(1, "wb", closefd=False) if out == STDOUT else open(out, "wb") as file:
            yield file
    except OSError as error:
        if out == STDOUT and isinstance(error, BrokenPipeError):  # nobody reads any more, which is no error
            raise
        what = f"cannot write {out}: {error.strerror or error}"
        raise UserError(what, next_step="free space or check the path; what was written is kept") from error
    finally:
        with contextlib.suppress(OSError):
            if out != STDOUT and os.path.isfile(out) and not os.path.getsize(out):  # and no device or pipe
                os.unlink(out)
