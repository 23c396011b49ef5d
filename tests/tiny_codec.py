"""A minimal codec for the tests of the job: loudness and zero crossings of each frame, mean and peak as speaker."""

import time

import torch

from slmkit.codec.base import CodecSpec, Encoded, Stream
from slmkit.config.load import from_dict
from slmkit.config.tokenize import TokenizeConfig

SPEC = CodecSpec(
    name="tiny",
    sample_rate=16000,
    hop_samples=200,
    streams=(Stream("loudness", 1024, "prosody"), Stream("crossings", 256, "content")),
    speaker_dim=2,
    weights_sha256="tiny",
)


class TinyCodec:
    """Treats each utterance by itself. `memory_samples` is what fits on its device, `pause_sec` what a batch takes."""

    spec = SPEC
    device = torch.device("cpu")

    def __init__(self, memory_samples=10**9, pause_sec=0.0):
        self.memory_samples, self.pause_sec = memory_samples, pause_sec
        self.batch_shapes = []

    def num_frames(self, num_samples):
        return num_samples // self.spec.hop_samples

    def encode(self, waves, num_samples):
        self.batch_shapes.append(tuple(waves.shape))
        time.sleep(self.pause_sec)
        if waves.numel() > self.memory_samples:
            raise torch.OutOfMemoryError("out of memory")
        frames = num_samples // self.spec.hop_samples
        codes = torch.zeros(len(waves), 2, int(frames.max()), dtype=torch.int32)
        speaker = torch.zeros(len(waves), 2)
        for i, count in enumerate(frames.tolist()):
            wave = waves[i, : int(num_samples[i])]
            blocks = wave[: count * self.spec.hop_samples].reshape(count, -1)
            codes[i, 0, :count] = (blocks.abs().mean(1) * 1023).clamp(0, 1023).to(torch.int32)
            codes[i, 1, :count] = (blocks[:, 1:].sign() != blocks[:, :-1].sign()).sum(1).clamp(0, 255).to(torch.int32)
            speaker[i] = torch.stack([wave.mean(), wave.abs().max()])
        return Encoded(codes, frames, speaker)

    def decode(self, codes, speaker):
        raise NotImplementedError


def make_config(source, out, **changes):
    values = {
        "corpus": "hostile",
        "kind": "libritts",
        "source": str(source),
        "codec": "unused",
        "out": str(out),
        "num_workers": 0,
        "shard_samples": 6,
        "max_sec": 20.0,
        "max_failure_share": 0.6,
    }
    return from_dict(TokenizeConfig, values | changes)
