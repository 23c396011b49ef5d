"""Times the offline stage: the whole way from audio files to shards.

It is `slmkit tokenize run` as users start it, on --device with one process and with two, each with one thread and
--num-workers processes that decode audio, on a corpus made of copies of the audio in --audio (links to a file each of
FLAC and WAV, so the disk's own speed does not count). The speed of a process is what it did after its first shard, by
the times of its index files, so that start-up, planning and the end count for nothing; speeds of processes add up.
`wall_sec` has all of it. On a machine with other work look at `cpu_sec`, the time of processors it took. Peak memory is
the one process's, with a corpus and with four times as much. Shares of time are of one process that reads, encodes and
writes in turns, which the command does partly at once. `slmkit bench codecs` times the codecs alone.

Random weights of the right shapes stand in for a codec that is not given; speed does not depend on what they are.

Invariant: on a CPU no figure is given unless one and two processes made the same shards. On a GPU, whose
kernels may add in another order, it is said whether they did.

Example:
    OMP_NUM_THREADS=1 slmkit bench tokenize --utterances 1000
    slmkit bench tokenize --device cuda --num-workers 8
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import slmkit
from slmkit.audio.io import read_audio, write_wav
from slmkit.audio.units import seconds_to_samples
from slmkit.bench import codec as facodec
from slmkit.bench.race import command_alone
from slmkit.codec.base import Codec
from slmkit.codec.melvq import NUM_BANDS, NUM_ENTRIES, SAMPLE_RATE, STREAM_NAMES, MelVQ
from slmkit.codec.open import open_codec
from slmkit.config.tokenize import TokenizeConfig
from slmkit.data.index import Corpus, ShardIndex, index_path
from slmkit.errors import UserError
from slmkit.texts import natural, positive
from slmkit.tokenization.corpus_job import CorpusJob
from slmkit.tokenization.decode import Decoding, decode_in_order
from slmkit.tokenization.encode import encode_in_order
from slmkit.tokenization.job import plan_corpus
from slmkit.tokenization.plan import TokenizationPlan

SUMMARY = "the offline stage: audio files to shards with one process and two"
PACKAGE = Path(slmkit.__file__).parent
AUDIO = PACKAGE.parent / "tokenize_jobs" / "sample_corpus"
TRANSCRIPT = ".normalized.txt"
CORPUS = "bench"
REQUIRED = {"processes_ratio": 1.7, "peak_ratio": 1.1}
TIMES_MORE = 4  # utterances of the larger corpus


@dataclass(frozen=True, kw_only=True)
class StageSizes:
    """How much is done, and where."""

    utterances: int  # of the smaller corpus
    shard_samples: int
    device: str = "cpu"
    num_workers: int = 0  # that decode audio, for each process


FULL = StageSizes(utterances=2000, shard_samples=250)
QUICK = StageSizes(utterances=8, shard_samples=4)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--codec", metavar="DIR", help="default: a melvq of random weights, on a GPU FACodec of random weights"
    )
    parser.add_argument("--audio", metavar="DIR", help="LibriTTS-like folder of FLAC files; default: the sample corpus")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--num-workers", type=natural, default=0, help="processes that decode audio (default: %(default)s)"
    )
    parser.add_argument("--utterances", type=positive, help=f"of the smaller corpus (default: {FULL.utterances})")
    parser.add_argument("--shard-samples", type=positive, help=f"utterances of a shard (default: {FULL.shard_samples})")
    parser.add_argument("--quick", action="store_true", help="toy sizes that take seconds; their figures mean little")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    sizes = QUICK if args.quick else FULL
    changes = {name: value for name in ("utterances", "shard_samples") if (value := getattr(args, name)) is not None}
    sizes = replace(sizes, **changes, device=args.device, num_workers=args.num_workers)
    if sizes.utterances < 2 * sizes.shard_samples:
        got = f"{sizes.utterances} utterances in shards of {sizes.shard_samples}"
        raise UserError("too few shards to time the stage", got=got, expected="utterances for 2 shards or more")
    with tempfile.TemporaryDirectory(prefix="slmkit-bench-") as directory:
        result = bench_stage(find_audio(args.audio), args.codec, Path(directory), sizes)
    print(json.dumps(result, indent=2) if args.json else describe(result))
    return 0


def find_audio(directory: str | None) -> list[Path]:
    """The FLAC files below `directory`. Raises UserError when there are none."""
    found = sorted(Path(directory or AUDIO).rglob("*.flac"))
    if not found:
        where = directory or AUDIO
        raise UserError(f"no FLAC files below {where}", next_step="give --audio, a folder laid out like LibriTTS")
    return found


def random_melvq() -> MelVQ:
    generator = torch.Generator().manual_seed(0)
    codebooks = torch.randn(len(STREAM_NAMES), NUM_ENTRIES, NUM_BANDS, generator=generator)
    return MelVQ(codebooks, torch.zeros(NUM_BANDS))


def bench_stage(audio: list[Path], codec_dir: str | None, directory: Path, sizes: StageSizes) -> dict[str, Any]:
    """Figures of the stage, with files in the empty `directory`."""
    on_cpu = torch.device(sizes.device).type == "cpu"
    if codec_dir is None:
        codec_dir = str(directory / "codec")
        if on_cpu:
            random_melvq().save(codec_dir)
        else:
            Path(codec_dir).mkdir()
            facodec.write_files(facodec.random_states(), codec_dir)
    more = TIMES_MORE * sizes.utterances
    small, large = directory / "small", directory / "large"
    link_corpus(audio, small, sizes.utterances)
    link_corpus(audio, large, more)
    runs = {
        name: run_stage(source, codec_dir, directory / f"shards-{name}", sizes, processes)
        for name, source, processes in (("small", small, 1), ("one", large, 1), ("two", large, 2))
    }
    one, two = (Corpus.open(directory / f"shards-{name}") for name in ("one", "two"))
    assert len(one) == more, "the stage lost utterances"
    equal = one.fingerprint == two.fingerprint
    assert equal or not on_cpu, "two processes made other shards than one"
    speed = {name: part.audio_sec_per_sec for name, part in runs.items()}
    return {
        "codec": one.codec.name,
        "device": sizes.device,
        "num_workers": sizes.num_workers,
        "equal_shards": equal,
        "utterances": more,
        "audio_sec": one.seconds,
        "audio_sec_per_sec": speed["one"],
        "two_audio_sec_per_sec": speed["two"],
        "processes_ratio": speed["two"] / speed["one"],
        "wall_sec": runs["one"].wall_sec,
        "two_wall_sec": runs["two"].wall_sec,
        "cpu_sec": runs["one"].cpu_sec,
        "two_cpu_sec": runs["two"].cpu_sec,
        "shares": time_shares(small, codec_dir, directory / "shards-timed", sizes),
        "peak_mib": runs["small"].peak_mib,
        "peak_mib_of_more": runs["one"].peak_mib,
        "peak_ratio": runs["one"].peak_mib / runs["small"].peak_mib,
    }


def link_corpus(audio: list[Path], directory: Path, utterances: int) -> None:
    """A folder like LibriTTS with so many utterances: the files of `audio` under new names, every other one as WAV."""
    originals = directory.parent / "originals"
    if not originals.exists():
        originals.mkdir()
        for i, path in enumerate(audio):
            shutil.copyfile(path.with_suffix(TRANSCRIPT), originals / (path.stem + TRANSCRIPT))
            if i % 2:
                write_wav(originals / f"{path.stem}.wav", read_audio(path, SAMPLE_RATE), SAMPLE_RATE)
            else:
                shutil.copyfile(path, originals / path.name)
    files = sorted(path for path in originals.iterdir() if not path.name.endswith(TRANSCRIPT))
    for i in range(utterances):
        copy, file = i // len(files), files[i % len(files)]
        folder = directory / str(copy)
        folder.mkdir(parents=True, exist_ok=True)
        for path in (file, file.with_suffix(TRANSCRIPT)):
            os.link(path, folder / f"{copy}_{path.name}")


class StageRun(NamedTuple):
    """What a run of the stage took."""

    audio_sec_per_sec: float  # of all processes, each from its first shard's end to its last's
    wall_sec: float  # of the whole command
    cpu_sec: float  # of all its processes
    peak_mib: float  # resident memory, of the largest process


def run_stage(source: Path, codec_dir: str, out: Path, sizes: StageSizes, processes: int) -> StageRun:
    """Run the command and time it from outside."""
    used = command_alone(command(source, codec_dir, out, sizes, processes))
    shards = Corpus.open(out).shards.listed
    paths = [index_path(out, tar) for tar, _, _ in shards]
    speed = sum(speed_of(paths[task::processes]) for task in range(processes))
    return StageRun(speed, used.wall_sec, used.cpu_sec, used.peak_mib)


def command(source: Path, codec_dir: str, out: Path, sizes: StageSizes, processes: int) -> list[str]:
    """The words of the stage after `slmkit`."""
    settings = {"corpus": CORPUS, "kind": "libritts", "shard_samples": str(sizes.shard_samples)}
    return [
        *("tokenize", "run", str(source), codec_dir, str(out)),
        *("--num-workers", str(sizes.num_workers), "--devices", ",".join([sizes.device] * processes)),
        *(word for name, value in settings.items() for word in ("--set", f"{name}={value}")),
    ]


def speed_of(indexes: list[Path]) -> float:
    """Seconds of audio per second of the process that wrote these indexes in turn, from the first to the last."""
    ended = [path.stat().st_mtime for path in indexes]
    audio_sec = sum(ShardIndex.read(path).seconds for path in indexes[1:])
    return audio_sec / (ended[-1] - ended[0])


def time_shares(source: Path, codec_dir: str, out: Path, sizes: StageSizes) -> dict[str, float]:
    """Shares of time in each step, in this process, one step after the other."""
    config = TokenizeConfig(
        corpus=CORPUS, source=str(source), codec=codec_dir, out=str(out), shard_samples=sizes.shard_samples
    )
    codec: Codec = open_codec(config.codec, sizes.device)
    plan_corpus(codec.spec, config)
    plan, job = TokenizationPlan.open(out), CorpusJob.open(out)
    decoding = Decoding(sample_rate=codec.spec.sample_rate, min_sec=config.min_sec, max_sec=config.max_sec)
    batch_samples = seconds_to_samples(config.batch_sec, codec.spec.sample_rate)
    spent = dict.fromkeys(("reading and decoding", "encoding", "writing"), 0.0)
    for shard in range(len(plan.shards)):
        times = [time.perf_counter()]
        tagged = ((shard, item) for item in plan.items(shard))
        decoded = [result for _, result in decode_in_order(tagged, decoding, num_workers=0, ahead=0)]
        times.append(time.perf_counter())
        encoded = list(encode_in_order(codec, decoded, window=config.window, batch_samples=batch_samples))
        times.append(time.perf_counter())
        job.write(shard, encoded, plan.shards[shard].sha256)
        times.append(time.perf_counter())
        for name, start, end in zip(spent, times, times[1:], strict=False):
            spent[name] += end - start
    return {name: seconds / sum(spent.values()) for name, seconds in spent.items()}


def describe(result: Mapping[str, Any]) -> str:
    """The result as lines for a reader, with what is required."""
    lines = [
        f"stage, {result['codec']} on {result['device']}, {result['utterances']} utterances, "
        f"{result['audio_sec']:.0f} s of audio: "
        f"{result['audio_sec_per_sec']:.1f} s of audio per second with one process, "
        f"{result['two_audio_sec_per_sec']:.1f} with two, {result['processes_ratio']:.2f} times (required: "
        f"{REQUIRED['processes_ratio']}); whole commands {result['wall_sec']:.1f} s and "
        f"{result['two_wall_sec']:.1f} s, of processors {result['cpu_sec']:.1f} s and {result['two_cpu_sec']:.1f} s; "
        f"{'equal' if result['equal_shards'] else 'other'} shards",
        "  time: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in result["shares"].items()),
        f"  peak memory {result['peak_mib']:.0f} MiB, with {TIMES_MORE} times the corpus "
        f"{result['peak_mib_of_more']:.0f} MiB: {result['peak_ratio']:.2f} times (required: at most "
        f"{REQUIRED['peak_ratio']})",
    ]
    return "\n".join(lines)
