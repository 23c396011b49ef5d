"""Fit the built-in codec to a folder of audio, or hear what a codec makes of a recording.

slmkit codec fit AUDIO_DIR OUT           fit; OUT then holds melvq.safetensors, codec_spec.json, provenance.json
slmkit codec copy CODEC IN.wav OUT.wav   encode IN and decode it again, and say how far the copy is
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from slmkit import log
from slmkit.audio import AUDIO_SUFFIXES
from slmkit.corpora.folders import files_under
from slmkit.errors import BadSample, UserError

if TYPE_CHECKING:
    import numpy as np

DEFAULT_MAX_HOURS = 2.0
DEFAULT_MAX_SEC = 60.0
SECONDS_PER_HOUR = 3600.0

logger = log.get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`fit` and `copy`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    fit = actions.add_parser("fit", help="fit the built-in codec to all audio below a folder")
    fit.add_argument("audio_dir", type=Path, metavar="AUDIO_DIR", help="folder searched for audio files, also below")
    fit.add_argument("out", type=Path, metavar="OUT", help="folder for the codec")
    fit.add_argument("--seed", type=int, default=0, help="seed of the fit (default %(default)s)")
    fit.add_argument(
        "--max-hours", type=float, default=DEFAULT_MAX_HOURS, help="stop reading after this much audio (%(default)s)"
    )
    fit.add_argument("--max-sec", type=float, default=DEFAULT_MAX_SEC, help="skip longer files (default %(default)s s)")
    fit.add_argument("--replace", action="store_true", help="replace a codec that is in OUT")
    copy = actions.add_parser("copy", help="encode a recording and decode it again")
    copy.add_argument("codec", type=Path, metavar="CODEC", help="codec folder")
    copy.add_argument("source", type=Path, metavar="IN", help="audio file")
    copy.add_argument("out", type=Path, metavar="OUT.wav", help="the copy, 16-bit WAV")
    copy.add_argument("--device", default="cpu", help="cpu, cuda, ... (default %(default)s)")
    copy.add_argument("--replace", action="store_true", help="replace OUT.wav")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    log.set_up()
    return _fit(args) if args.action == "fit" else _copy(args)


def _fit(args: argparse.Namespace) -> int:
    from slmkit.codec.melvq import SPEC_FILE, WEIGHTS_FILE, MelVQ
    from slmkit.files import provenance, write_json

    taken = [name for name in (WEIGHTS_FILE, SPEC_FILE) if (args.out / name).exists()]
    if taken and not args.replace:
        raise UserError(f"{args.out} holds a codec already", got=", ".join(taken), next_step="add --replace")
    started = time.perf_counter()
    corpus = _Corpus(args.audio_dir, args.max_sec, args.max_hours * SECONDS_PER_HOUR)
    codec = MelVQ.fit(corpus, args.seed)
    config = {"seed": args.seed, "max_sec": args.max_sec, "max_hours": args.max_hours}
    counts = {
        "files": corpus.used,
        "seconds": round(corpus.seconds, 3),
        "skipped": dict(sorted(corpus.skipped.items())),
    }
    write_json(args.out / "provenance.json", {**provenance(config), "counts": counts}, replace=args.replace)
    codec.save(args.out, replace=args.replace)
    print(f"{args.out}: fitted to {corpus.used} files, {corpus.seconds:.1f} s, in {_since(started):.1f} s")
    for reason, number in sorted(corpus.skipped.items()):
        print(f"  skipped, {reason}: {number}")
    return 0


def _copy(args: argparse.Namespace) -> int:
    import torch

    from slmkit.audio.io import read_audio, write_wav
    from slmkit.audio.mel import log_mel_distance
    from slmkit.codec.open import open_codec

    if args.out.exists() and not args.replace:
        raise UserError("the file already exists", got=args.out, next_step="add --replace or choose another name")
    codec = open_codec(args.codec, args.device)
    rate = codec.spec.sample_rate
    wave = read_audio(args.source, rate)
    if codec.num_frames(len(wave)) < 1:
        raise UserError(f"{args.source} is too short for the codec", got=f"{len(wave) / rate:.4f} s")
    started = time.perf_counter()
    encoded = codec.encode(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
    encode_sec, started = _since(started), time.perf_counter()
    copied = codec.decode(encoded.codes, encoded.speaker)[0].cpu().numpy()
    decode_sec = _since(started)
    write_wav(args.out, copied, rate, replace=args.replace)
    seconds = len(wave) / rate
    print(f"{args.out}: {seconds:.2f} s, {encoded.codes.shape[-1]} frames of {codec.spec.name}")
    print(f"log-mel distance {log_mel_distance(wave, copied, rate):.2f} dB")
    print(f"speed: encode {seconds / encode_sec:.1f}, decode {seconds / decode_sec:.1f} seconds of audio per second")
    return 0


def _since(started: float) -> float:
    return time.perf_counter() - started


class _Corpus:
    """The waves below a folder, in the order of their paths; files that cannot be used are counted and logged."""

    def __init__(self, folder: Path, max_sec: float, budget_sec: float) -> None:
        if not folder.is_dir():
            raise UserError("the audio folder is not there", got=folder, next_step="give a folder of audio files")
        self.folder, self.max_sec, self.budget_sec = folder, max_sec, budget_sec
        self.paths = [path for path, _ in files_under(folder, AUDIO_SUFFIXES)]
        self.used, self.seconds = 0, 0.0
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> "Iterator[np.ndarray]":
        from slmkit.audio.io import read_audio
        from slmkit.codec.melvq import SAMPLE_RATE

        for path in self.paths:
            if self.seconds >= self.budget_sec:
                logger.info("read %.1f hours of audio, enough", self.seconds / SECONDS_PER_HOUR)
                return
            try:
                wave = read_audio(path, SAMPLE_RATE, max_sec=self.max_sec)
            except BadSample as problem:
                self.skipped[problem.reason] += 1
                logger.warning("skipped: %s", problem)
                continue
            self.used, self.seconds = self.used + 1, self.seconds + len(wave) / SAMPLE_RATE
            yield wave
        if not self.used:
            raise UserError(
                f"no usable audio file below {self.folder}",
                got=f"{len(self.paths)} files, skipped: {dict(self.skipped)}",
                expected=f"files ending in {', '.join(AUDIO_SUFFIXES)}",
            )
