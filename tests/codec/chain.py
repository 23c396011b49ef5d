"""The chain with one codec, each step the command that users give, until a model knows two sentences by heart.

    python chain.py [--groups N ...] [NAME ...]      # codecs or architectures of a base; default: all of them

prints for each group (0: NTP) the smallest share, over the streams, of codes that a greedy answer has right. And
how far the sound of the first sentence, of 16 bits, is from what the codec makes of its codes: by `slmkit synthesize`,
and as a server sends it, whole and streamed ("-": the codec decodes no stream).
"""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import soundfile
import yaml
from codec.families import family_names, published
from forked import PIPE, Process, run
from seeded_facodec import write_files

from slmkit.audio.encode import pcm16
from slmkit.codec.base import Codec, CodecSpec, decode_alone
from slmkit.codec.open import open_codec
from slmkit.codec.stream import JOINED_BOUND
from slmkit.data.index import Corpus
from slmkit.data.shards import Sample, ShardReader

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = sorted((ROOT / "tokenize_jobs" / "sample_corpus").rglob("*.flac"))
SENTENCES = ("A small boat.", "Eleven lanterns.")
SECONDS = 0.8  # of each sentence
ARCHITECTURES = ("qwen2", "qwen3", "llama", "smollm3")
FACODEC = "facodec"  # of the real size: it has no other
FEWER = ("mimi:8",)  # the first 8 streams of 32
GROUPS = (0, 3, 12)
WAIT_SEC = 300


class Learned(NamedTuple):
    """How well a model knows the sentences by heart; differences are the largest of a sample in [-1, 1]."""

    codes: float  # smallest share of equal codes, over the streams
    spoken: float
    served: float
    streamed: float | None  # None: the codec decodes no stream

    @property
    def is_whole(self) -> bool:
        return self.codes == 1 and max(self.spoken, self.served, self.streamed or 0) <= JOINED_BOUND


def command(*words: Any) -> str:
    """What `slmkit WORDS` prints."""
    done = run(["-m", "slmkit", *map(str, words)])
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


def make_audio(out: Path) -> Path:
    """A manifest of two recordings, cut short, below `out`."""
    (out / "audio").mkdir(parents=True)
    lines = []
    for i, (path, text) in enumerate(zip(RECORDINGS, SENTENCES, strict=False)):
        wave, rate = soundfile.read(path)
        start = len(wave) // 4
        soundfile.write(out / "audio" / f"{i}.wav", wave[start : start + int(SECONDS * rate)], rate)
        lines.append(json.dumps({"audio": f"audio/{i}.wav", "text": text, "speaker": str(i)}))
    (out / "list.jsonl").write_text("\n".join(lines) + "\n")
    return out / "list.jsonl"


def make_codec(name: str, out: Path) -> Path:
    """The codec NAME or NAME:STREAMS of `families` or FACodec; melvq for an architecture."""
    if name in ARCHITECTURES:
        command("codec", "fit", ROOT / "tokenize_jobs" / "sample_corpus", out)
    elif name == FACODEC:
        out.mkdir()
        write_files(out)
    else:
        family, _, streams = name.partition(":")
        command("codec", "add", published(family), out, *(("--streams", streams) if streams else ()))
    return out


def make_shards(codec: Path, out: Path, arch: str) -> None:
    """A tokenized corpus that was verified, and a tiny base model."""
    command("tokenize", "run", make_audio(out), codec, out / "shards", "kind=manifest", "num_workers=0")
    command("tokenize", "verify", out / "shards")  # without decoding: what random networks say is like nothing
    shape = ("--hidden-size", 64, "--num-layers", 2, "--num-heads", 4)
    command("init-base", out / "base", "--corpus", out / "shards", "--arch", arch, *shape)


def learn(out: Path, group: int) -> Learned:
    """Train until both sentences are known by heart, and speak the first."""
    place = out / f"group-{group}"
    place.mkdir()
    config = {
        "run_dir": str(place / "run"),
        "base": str(out / "base"),
        "deepspeed": "zero2_fp32",
        "data": {"corpus": str(out / "shards"), "row_tokens": 4096, "num_workers": 0},
        "model": {"group": group},
        "optimizer": {"lr": 5e-3},
        "schedule": {"warmup_steps": 10},
        "steps": 160 if group else 320,  # a step of NTP says less
        "global_rows": 1,
        "micro_rows": 1,
        "save_every_steps": 1000,
    }
    (place / "run.yaml").write_text(yaml.safe_dump(config))
    command("train", "--config", place / "run.yaml")
    command("consolidate", place / "run", place / "model")
    command(
        "evaluate", place / "model", "--trained", "--corpus", out / "shards", "--out", place / "scores", "--max-sec", 2
    )
    metrics = json.loads((place / "scores" / "report.json").read_text())["summary"]["all"]["metrics"]
    codes = min(value["mean"] for name, value in metrics.items() if name.startswith("frame_agreement:"))
    sample, codec = first_sentence(out / "shards"), open_codec(out / "codec")
    return Learned(codes, *speak(place, sample, codec))


def first_sentence(shards: Path) -> Sample:
    corpus = Corpus.open(shards)
    samples = map(ShardReader(corpus).read, range(len(corpus)))
    return next(sample for sample in samples if sample.meta["text"] == SENTENCES[0])


def speak(place: Path, sample: Sample, codec: Codec) -> tuple[float, float, float | None]:
    """How far what `synthesize` and `serve` say is from the sound of the codes of `sample`."""
    voice = np.zeros(0, np.float32) if sample.speaker is None else sample.speaker
    wanted = pcm16(decode_alone(codec, sample.codes, voice))

    def difference(found: np.ndarray) -> float:
        return float(np.abs(found / 2**15 - wanted / 2**15).max()) if found.shape == wanted.shape else 2.0

    def heard(path: Path) -> float:
        found, rate = soundfile.read(path, dtype="int16")
        assert rate == codec.spec.sample_rate
        return difference(found)

    limit_sec = 2
    has_voice = (place / "model" / "voices").is_dir()
    speaker = ("--speaker", sample.meta["speaker"]) if has_voice else ()
    spoken, served = place / "spoken.wav", place / "served.wav"
    command("synthesize", place / "model", SENTENCES[0], *speaker, "--out", spoken, "--max-sec", limit_sec)
    body = {"input": SENTENCES[0], "voice": sample.meta["speaker"] if has_voice else "default", "max_sec": limit_sec}
    with serving(place) as client:
        whole = client.post("/v1/audio/speech", json=body)
        assert whole.status_code == 200, whole.text
        served.write_bytes(whole.content)
        streamed = client.post("/v1/audio/speech", json={**body, "stream": True, "response_format": "pcm"})
    can_stream = codec.reach_frames.after is not None
    assert streamed.status_code == (200 if can_stream else 400), streamed.text
    found = difference(np.frombuffer(streamed.content, "<i2")) if can_stream else None
    return heard(spoken), heard(served), found


@contextmanager
def serving(place: Path) -> Iterator[httpx.Client]:
    """`slmkit serve` of the model in `place`, which is told to stop at the end, and has to stop well."""
    with (place / "serve.log").open("w") as log:
        server = Process(["-m", "slmkit", "serve", str(place / "model"), "--port", "0"], stdout=PIPE, stderr=log)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        assert said.startswith("listening at "), (place / "serve.log").read_text()[-3000:]
        with httpx.Client(base_url=said.split()[2], timeout=WAIT_SEC, trust_env=False) as client:
            yield client
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT_SEC) == 0, (place / "serve.log").read_text()[-3000:]
    finally:
        server.kill()


def chain(name: str, out: Path, groups: tuple[int, ...] = GROUPS) -> list[Learned]:
    """What `learn` gives with the codec of that name; or with a base of that architecture, and the built-in codec."""
    out.mkdir()
    make_shards(make_codec(name, out / "codec"), out, name if name in ARCHITECTURES else "qwen2")
    return [learn(out, group) for group in groups]


def chain_names() -> list[str]:
    """All that `chain` takes."""
    return [*family_names(), *FEWER, FACODEC, *ARCHITECTURES]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(chain_names())} (default: all)")
    parser.add_argument("--groups", nargs="+", type=int, default=GROUPS, metavar="N", help="tokens per step (0: NTP)")
    args = parser.parse_args()
    shares = "".join(f" {f'MTP-{group}' if group else 'NTP':>6}" for group in args.groups)
    head = f"{'codec or base':<18} {'streams':>7} {'per s':>6} {'Hz':>6}{shares}"
    print(f"{head} {'synthesize':>10} {'serve':>10} {'stream':>10}", flush=True)
    is_whole = True
    for name in args.names or chain_names():
        with tempfile.TemporaryDirectory() as place:
            learned = chain(name, Path(place) / "out", tuple(args.groups))
            print(row(name, Corpus.open(Path(place) / "out" / "shards").codec, learned), flush=True)
        is_whole = is_whole and all(one.is_whole for one in learned)
    return 0 if is_whole else 1


def row(name: str, spec: CodecSpec, learned: list[Learned]) -> str:
    """A line of the table; of the sounds the worst over the groups."""
    shares = "".join(f" {one.codes:>6.1%}" for one in learned)
    streamed = [one.streamed for one in learned if one.streamed is not None]
    worst = [max(one.spoken for one in learned), max(one.served for one in learned), max(streamed, default=None)]
    sounds = "".join(f" {'-' if sound is None else format(sound, '.1e'):>10}" for sound in worst)
    return f"{name:<18} {len(spec.lm_streams):>7} {spec.frame_rate:>6.4g} {spec.sample_rate:>6}{shares}{sounds}"


if __name__ == "__main__":
    sys.exit(main())
