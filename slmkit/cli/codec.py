"""Take in a published codec, fit the built-in one to a folder of audio, or hear what a codec makes of a recording.

slmkit codec list                        the codecs that can be used
slmkit codec add SOURCE OUT              converts a published checkpoint once; OUT is then a codec for every command
                                         (--speaker VOICE: with speaker vectors of a voice encoder)
slmkit codec fit AUDIO_DIR OUT           writes melvq.safetensors, codec_spec.json and provenance.json to OUT
slmkit codec copy CODEC IN.wav OUT.wav   encodes IN.wav, decodes it again, and prints the distance of the copy
"""

import argparse
import itertools
import os
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from slmkit import log
from slmkit.audio import AUDIO_SUFFIXES
from slmkit.corpora.folders import files_under
from slmkit.errors import BadSample, UserError
from slmkit.files import check_new_directory
from slmkit.hub import local_path
from slmkit.texts import above_zero, counted, positive, seed

if TYPE_CHECKING:
    import numpy as np

DEFAULT_MAX_HOURS = 2.0
DEFAULT_MAX_SEC = 60.0
SECONDS_PER_HOUR = 3600.0
PROVENANCE_FILE = "provenance.json"

logger = log.get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`list`, `add`, `fit` and `copy`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="show the codecs that can be used")
    add = actions.add_parser("add", help="convert a published codec")
    add.add_argument(
        "source", metavar="SOURCE", help="codec: a directory, a checkpoint file, a hub id, or ORG/NAME:FILE"
    )
    add.add_argument("out", metavar="OUT", help="new directory for the codec")
    add.add_argument("--streams", type=positive, metavar="N", help="streams to use (default: as published, at most 32)")
    add.add_argument(
        "--speaker",
        metavar="VOICE",
        help="voice encoder for a codec without speaker vectors: a WavLM model with an x-vector head, or pretrained.pt "
        "of the package resemblyzer; SOURCE may then be a codec that was added before",
    )
    fit = actions.add_parser("fit", help="fit the built-in codec to the audio below a folder")
    fit.add_argument("audio_dir", type=Path, metavar="AUDIO_DIR", help="folder of audio files, searched at any depth")
    fit.add_argument("out", type=Path, metavar="OUT", help="directory for the codec")
    fit.add_argument(
        "--streams", type=int, choices=(1, 2, 3), default=3, metavar="N", help="streams, 1 to 3 (default: %(default)s)"
    )
    fit.add_argument("--seed", type=seed, default=0, help="random seed (default: %(default)s)")
    fit.add_argument(
        "--max-hours",
        type=above_zero,
        default=DEFAULT_MAX_HOURS,
        help="hours of audio to read at most (default: %(default)s)",
    )
    fit.add_argument(
        "--max-sec",
        type=above_zero,
        default=DEFAULT_MAX_SEC,
        help="skip files longer than this, in seconds (default: %(default)s)",
    )
    fit.add_argument("--replace", action="store_true", help="replace the codec in OUT")
    copy = actions.add_parser("copy", help="encode a recording and decode it again")
    copy.add_argument("codec", metavar="CODEC", help="directory or hub id of the codec")
    copy.add_argument("source", type=Path, metavar="IN", help="audio file")
    copy.add_argument("out", type=Path, metavar="OUT.wav", help="WAV file to write, 16 bit")
    copy.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    copy.add_argument("--replace", action="store_true", help="replace OUT.wav if it exists")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    log.set_up()
    actions = {"list": _list, "add": _add, "fit": _fit, "copy": _copy_recording}
    return actions[args.action](args)


def _list(_: argparse.Namespace) -> int:
    from slmkit.codec.open import codec_families

    row = "{:<42} {:>5} {:>5}  {:<17} {}"
    print(row.format("codec", "Hz", "per s", "streams", "streaming"))
    licences: dict[str, list[str]] = {}
    for family in codec_families().values():
        for one in family.presets:
            rate = f"{one.sample_rate / one.hop_samples:.4g}"
            print(row.format(one.name, one.sample_rate, rate, one.streams, "yes" if one.streaming else "no"))
            licences.setdefault(one.licence, []).append(one.name)
    print("\nper s: frames per second. Licences of the published weights, as far as known:")
    for licence, names in sorted(licences.items()):
        line = f"  {licence}: {', '.join(names)}"
        print(textwrap.fill(line, 80, subsequent_indent="    ", break_on_hyphens=False))
    return 0


def _add(args: argparse.Namespace) -> int:
    check_new_directory(args.out)
    from slmkit.codec.added import add_codec

    source = local_path(args.source, what="the codec")
    speaker = local_path(args.speaker, what="the voice encoder") if args.speaker else None
    spec = add_codec(source, args.out, num_streams=args.streams, speaker=speaker)
    streams = f"{counted(len(spec.streams), 'stream')} of {spec.streams[0].size}"
    voice = f"speaker vectors of width {spec.speaker_dim}" if spec.speaker_dim else "no speaker vectors"
    rates = f"{spec.sample_rate} Hz, {spec.frame_rate:.4g} frames per second"
    print(f"{args.out}: {spec.name}, {rates}, {streams}, {voice}")
    return 0


def _fit(args: argparse.Namespace) -> int:
    from slmkit.audio.io import read_audio
    from slmkit.codec.melvq import SAMPLE_RATE, SPEC_FILE, WEIGHTS_FILE, MelVQ
    from slmkit.files import provenance, write_json

    if not os.path.isdir(args.audio_dir):
        raise UserError("the audio folder does not exist", got=args.audio_dir, next_step="give a folder of audio files")
    if os.path.isfile(args.out):
        raise UserError("OUT is a file", got=args.out, expected="a directory, new or not")
    taken = [name for name in (WEIGHTS_FILE, SPEC_FILE, PROVENANCE_FILE) if os.path.exists(args.out / name)]
    if taken and not args.replace:
        raise UserError(f"{args.out} holds a codec already", got=", ".join(taken), next_step="add --replace")
    started = time.perf_counter()
    paths = [path for path, _ in files_under(args.audio_dir, AUDIO_SUFFIXES)]
    used_sec: list[float] = []
    skipped: Counter[str] = Counter()

    def waves() -> "Iterator[np.ndarray]":
        """The waves of the usable files, in the order of their paths, up to --max-hours."""
        for path in paths:
            if sum(used_sec) >= args.max_hours * SECONDS_PER_HOUR:
                logger.info("stopped reading after %.1f hours of audio (--max-hours)", args.max_hours)
                return
            try:
                wave = read_audio(path, SAMPLE_RATE, max_sec=args.max_sec)
            except BadSample as problem:
                skipped[problem.reason] += 1
                logger.warning("skipped: %s", problem)
                continue
            used_sec.append(len(wave) / SAMPLE_RATE)
            yield wave
        if not used_sec:
            raise UserError(
                f"no usable audio file below {args.audio_dir}",
                got=f"{len(paths)} files, skipped: {dict(skipped)}",
                expected=f"files ending in {', '.join(AUDIO_SUFFIXES)}",
            )

    codec = MelVQ.fit(waves(), args.seed, num_streams=args.streams)
    config = {"streams": args.streams, "seed": args.seed, "max_sec": args.max_sec, "max_hours": args.max_hours}
    counts = {"files": len(used_sec), "seconds": round(sum(used_sec), 3), "skipped": dict(sorted(skipped.items()))}
    codec.save(args.out, replace=args.replace)
    write_json(args.out / PROVENANCE_FILE, {**provenance(config), "counts": counts}, replace=args.replace)
    took_sec = time.perf_counter() - started
    print(f"{args.out}: fitted to {len(used_sec)} files, {sum(used_sec):.1f} s of audio, in {took_sec:.1f} s")
    for reason, number in sorted(skipped.items()):
        print(f"  skipped, {reason}: {number}")
    return 0


def _copy_recording(args: argparse.Namespace) -> int:
    import torch

    from slmkit.audio.io import read_audio, write_wav
    from slmkit.audio.mel import log_mel_distance
    from slmkit.codec.open import open_codec

    if os.path.exists(args.out) and not args.replace:
        raise UserError("the file already exists", got=args.out, next_step="add --replace or choose another name")
    codec = open_codec(local_path(args.codec, what="the codec"), args.device)
    rate = codec.spec.sample_rate
    wave = read_audio(args.source, rate)
    seconds = len(wave) / rate
    if codec.num_frames(len(wave)) < 1:
        raise UserError(f"{args.source} is too short for the codec", got=f"{seconds:.4f} s")
    times = [time.perf_counter()]
    encoded = codec.encode(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
    times.append(time.perf_counter())
    copied = codec.decode(encoded.codes, encoded.speaker)[0].cpu().numpy()
    times.append(time.perf_counter())
    encode, decode = (seconds / (end - start) for start, end in itertools.pairwise(times))
    write_wav(args.out, copied, rate, replace=args.replace)
    print(f"{args.out}: {seconds:.2f} s, {encoded.codes.shape[-1]} frames of {codec.spec.name}")
    print(f"log-mel distance {log_mel_distance(wave, copied, rate):.2f} dB")
    print(f"speed: encode {encode:.1f}, decode {decode:.1f} seconds of audio per second")
    return 0
