"""A tiny codec without speaker vectors, of the kind that `slmkit codec add` takes in: loudness, crossings and peak of
blocks of 50 ms, decoded as tones of that loudness and about that pitch.

    python plain_codec.py WORDS     # slmkit WORDS, with this codec registered
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

from slmkit.codec.added import Added, Source, identity
from slmkit.codec.base import CodecSpec, Reach, Stream
from slmkit.codec.open import register_codec
from slmkit.codec.single import SingleCodec
from slmkit.codec.stages import Stage, Windowed

RATE, HOP, SIZE = 8000, 400, 16
NAMES = ("loudness", "crossings", "peak")


class PlainCodec(SingleCodec):
    """`gain` scales the loudness."""

    def __init__(self, added: Added, device: torch.device) -> None:
        streams = tuple(Stream(name, SIZE, "coupled") for name in NAMES[: added.streams])
        shape = {"sample_rate": RATE, "hop_samples": HOP, "speaker_dim": 0}
        super().__init__(CodecSpec(name="plain", streams=streams, weights_sha256=identity(added), **shape), device)
        self._gain = float(added.weights["gain"])

    def num_frames(self, num_samples: int) -> int:
        return num_samples // HOP

    def encoding_stages(self) -> Sequence[Stage]:
        return (Windowed(self._measure, Reach(0, 0), inputs_per_frame=HOP),)

    def _measure(self, wave: torch.Tensor) -> torch.Tensor:
        count = wave.shape[2] // HOP
        blocks = wave[0, 0, : count * HOP].view(count, HOP)
        crossings = (blocks[:, 1:].sign() != blocks[:, :-1].sign()).float().mean(1)
        rows = [blocks.abs().mean(1) * self._gain, crossings * 40, blocks.abs().amax(1) * 15]
        return torch.stack(rows[: len(self.spec.streams)])[None]

    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[0].clamp(0, SIZE - 1).long()

    def decoding_stages(self) -> Sequence[Stage]:
        return (Windowed(self._sound, Reach(0, 0), outputs_per_frame=HOP),)

    def _sound(self, codes: torch.Tensor) -> torch.Tensor:
        loudness, hertz = codes[0, :2, :, None].float() * torch.tensor([1 / self._gain, 100.0])[:, None, None]
        return (loudness * torch.sin(2 * torch.pi * hertz / RATE * torch.arange(HOP))).reshape(1, 1, -1)


def read(source: Source) -> Added | None:
    if source.config.get("model_type") != "plain":
        return None
    return Added(streams=source.chosen_streams(len(NAMES)), config={}, weights={"gain": source.weights["gain"]})


register_codec("plain", read=read, build=PlainCodec)


def write_plain(directory: Path) -> Path:
    """`directory` with the codec as it would be published."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "plain"}')
    safetensors.torch.save_file({"gain": torch.tensor(60.0)}, directory / "model.safetensors")
    return directory


if __name__ == "__main__":
    from slmkit.cli.main import main

    sys.exit(main(sys.argv[1:]))
