"""BigCodec as published, module by module: one module per published key, weight norm unfolded, one utterance.

The slow, obvious twin of `slmkit/codec/bigcodec`: its state dict, cut at `CodecEnc.` and `generator.`, is the published
file. The sizes can be chosen; without any they are the published ones.

Shapes: N samples, T frames, C channels, D width of the latents.

Invariant: the codes of `PlainBigCodec.encode` are those of the public implementation.

Example:
    plain = PlainBigCodec()
    wave = plain.decode(plain.encode(wave))  # [1, T], [200 * T]
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from slmkit.bench.race import twin

snake = twin("facodec")


class Lstm(nn.Module):
    """Adds to its input what the LSTM makes of it."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.lstm(x.permute(2, 0, 1))[0].permute(1, 2, 0)


class Codebook(nn.Module):
    """The nearest entry by direction, in a projected space."""

    def __init__(self, latent: int, entries: int, code_dim: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = snake.NormLinear(latent, code_dim), snake.NormLinear(code_dim, latent)
        self._codebook = nn.Embedding(entries, code_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Codes [T] of latents [T, D]."""
        return torch.cdist(F.normalize(self.in_proj(x)), F.normalize(self._codebook.weight)).argmin(dim=1)

    def look_up(self, codes: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self._codebook(codes))


class Generator(nn.Module):
    """Codebook and decoder."""

    def __init__(self, width: int, strides: Sequence[int], latent: int, entries: int, code_dim: int, layers: int):
        super().__init__()
        widths = [width * 2**stage for stage in range(len(strides) + 1)]
        self.quantizer = nn.Module()
        self.quantizer.layers = nn.ModuleList([Codebook(latent, entries, code_dim)])
        self.model = nn.Sequential(
            snake.Conv(latent, widths[-1], 7, padding=3),
            Lstm(widths[-1], layers),
            *[snake.up_stage(2 * width, stride) for width, stride in zip(widths[-2::-1], strides[::-1], strict=True)],
            snake.Activation(width),
            snake.Conv(width, 1, 7, padding=3),
        )


class PlainBigCodec(nn.Module):
    """Both parts, for one utterance on one device."""

    def __init__(
        self,
        *,
        width: int = 48,
        strides: Sequence[int] = (2, 2, 2, 5, 5),
        latent: int = 1024,
        entries: int = 8192,
        code_dim: int = 8,
        layers: int = 2,
    ) -> None:
        super().__init__()
        widths = [width * 2**stage for stage in range(len(strides) + 1)]
        self.hop = math.prod(strides)
        self.CodecEnc = snake.Block(
            snake.Conv(1, width, 7, padding=3),
            *[snake.down_stage(width, stride) for width, stride in zip(widths[:-1], strides, strict=True)],
            Lstm(widths[-1], layers),
            snake.Activation(widths[-1]),
            snake.Conv(widths[-1], latent, 3, padding=1),
        )
        self.generator = Generator(width, strides, latent, entries, code_dim, layers)

    @staticmethod
    def from_directory(directory: Path, device: torch.device | str = "cpu") -> "PlainBigCodec":
        """Of what `slmkit codec add` wrote."""
        config = json.loads((directory / "codec.json").read_text())["config"]
        names = {"lstm_layers": "layers", "codebook_size": "entries"}
        plain = PlainBigCodec(**{names.get(name, name): value for name, value in config.items()})
        snake.load_folded(plain, safetensors.torch.load_file(directory / "model.safetensors"))
        return plain.eval().to(device)

    def latents(self, wave: torch.Tensor) -> torch.Tensor:
        """[T, D] of a wave float32 [N]."""
        return self.CodecEnc(F.pad(wave, (0, self.hop - len(wave) % self.hop))[None, None])[0].T

    @torch.inference_mode()
    def encode(self, wave: torch.Tensor) -> torch.Tensor:
        """Codes int64 [1, T] of a wave float32 [N]."""
        return self.generator.quantizer.layers[0](self.latents(wave))[None]

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Wave float32 [hop * T] of codes int64 [1, T]."""
        entries = self.generator.quantizer.layers[0].look_up(codes[0])
        return torch.tanh(self.generator.model(entries.T[None]))[0, 0]
