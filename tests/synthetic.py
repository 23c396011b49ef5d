"""Small corpora of random codes, written as real shards."""

import json
from pathlib import Path

import numpy as np

from slmkit.codec.base import CodecSpec, Stream
from slmkit.data.index import Corpus, write_manifest
from slmkit.data.shards import Sample, ShardWriter

WORDS = [
    "river",
    "lantern",
    "harbour",
    "clock",
    "bakery",
    "winter",
    "garden",
    "letter",
    "copper",
    "window",
    "silver",
    "engine",
]


def codec_spec(sizes: tuple[int, ...] = (16, 16, 16), speaker_dim: int = 8) -> CodecSpec:
    streams = tuple(Stream(f"stream_{i}", size, "coupled") for i, size in enumerate(sizes))
    return CodecSpec(
        name="random", sample_rate=16000, hop_samples=200, streams=streams, speaker_dim=speaker_dim, weights_sha256="0"
    )


def write_corpus(
    directory: Path,
    num_samples: int = 24,
    *,
    seed: int = 0,
    frames: tuple[int, int] = (5, 30),
    shard_samples: int = 10,
    spec: CodecSpec | None = None,
) -> Corpus:
    """`num_samples` utterances of random codes, `frames` long, of words that differ from one another."""
    spec = spec or codec_spec()
    rng = np.random.default_rng(seed)
    limits = np.array([stream.size for stream in spec.streams])[:, None]
    samples = []
    for i in range(num_samples):
        length = int(rng.integers(*frames, endpoint=True))
        codes = rng.integers(0, limits, (len(spec.streams), length)).astype(np.uint16)
        speaker = rng.standard_normal(spec.speaker_dim).astype(np.float32) if spec.speaker_dim else None
        text = " ".join(rng.choice(WORDS, 4)) + f" {i}"
        meta = {"text": text, "speaker": "s", "language": "en", "seconds": length / 80, "source": ""}
        samples.append(Sample(f"utterance-{i:04d}", codes, speaker, meta))
    return write_samples(directory, samples, spec, shard_samples)


def write_voices(directory: Path, num_samples: int, num_voices: int) -> Path:
    """Utterances by the voices v0, v1, ... in turn."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(num_samples):
        codes = rng.integers(0, 16, (3, 8)).astype(np.uint16)
        meta = {"text": f"{WORDS[i % 12]} {i}", "speaker": f"v{i % num_voices}", "language": "en", "seconds": 0.1}
        vector = rng.standard_normal(8).astype(np.float32)
        samples.append(Sample(f"utterance-{i:04d}", codes, vector, {**meta, "source": ""}))
    return write_samples(directory, samples, codec_spec()).directory


def write_samples(
    directory: Path, samples: list[Sample], spec: CodecSpec, shard_samples: int = 10, codec_source: str = ""
) -> Corpus:
    """A finished corpus of the given samples."""
    shards = []
    for start in range(0, len(samples), shard_samples):
        writer = ShardWriter(directory, "synthetic", start // shard_samples)
        for sample in samples[start : start + shard_samples]:
            writer.add(sample)
        shards.append(writer.commit())
    summaries = [shard.summary for shard in shards]
    write_manifest(directory, "synthetic", spec, summaries, {}, codec_source=codec_source)
    return Corpus.open(directory)


def write_conversations(path: Path, turns: list[list[list[str]]]) -> Path:
    """Dialogues of [instruction, response] turns as a JSONL file in the published format."""
    names = ("human", "gpt")
    dialogues = [
        [{"from": name, "value": value} for turn in dialogue for name, value in zip(names, turn, strict=True)]
        for dialogue in turns
    ]
    path.write_text("".join(json.dumps({"conversations": said}) + "\n" for said in dialogues))
    return path
