"""SpeechTokenizer as published, module by module: one module per published key, weight norm unfolded, one utterance.

The slow, obvious twin of `slmkit/codec/speechtokenizer`: its state dict is the published file without what serves
training. The sizes can be chosen; without any they are the published ones.

Shapes: N samples, T frames, C channels, D width of the latents, K codebooks.

Invariant: the codes of `PlainSpeechTokenizer.encode` are those of the public implementation.

Example:
    plain = PlainSpeechTokenizer()
    wave = plain.decode(plain.encode(wave)[:5])  # [8, T], [320 * T]
"""

import json
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from slmkit.bench.race import twin

plain_modules = twin("facodec")


def named(module: nn.Module, *names: str) -> nn.Module:
    """`module` under a path of names."""
    for name in reversed(names):
        holder = nn.Module()
        setattr(holder, name, module)
        module = holder
    return module


class Conv(nn.Module):
    """A centred convolution that reflects its input at the ends; ceil(N / stride) outputs."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = named(plain_modules.WeightNorm((c_out, c_in, kernel), c_out), "conv")
        self.kernel, self.stride = kernel, stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.kernel - self.stride
        left, right = total - total // 2, total // 2 + -x.shape[-1] % self.stride
        missing = max(0, max(left, right) - x.shape[-1] + 1)
        x = F.pad(F.pad(x, (0, missing)), (left, right), mode="reflect")
        layer = self.conv.conv
        return F.conv1d(x[..., : x.shape[-1] - missing], layer.weight, layer.bias, stride=self.stride)


class TransposedConv(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.convtr = named(plain_modules.WeightNorm((c_in, c_out, 2 * stride), c_out), "convtr")
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer, right = self.convtr.convtr, self.stride // 2
        x = F.conv_transpose1d(x, layer.weight, layer.bias, stride=self.stride)
        return x[..., self.stride - right : x.shape[-1] - right]


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.shortcut = Conv(channels, channels, 1)
        self.block = nn.Sequential(nn.ELU(), Conv(channels, half, 3), nn.ELU(), Conv(half, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shortcut(x) + self.block(x)


class Lstm(nn.Module):
    """Adds to its input what the LSTM makes of it; where it goes both ways, to the input repeated."""

    def __init__(self, width: int, layers: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, layers, bidirectional=bidirectional)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.lstm(x.permute(2, 0, 1))[0].permute(1, 2, 0)
        return found + x.repeat(1, found.shape[1] // x.shape[1], 1)


class PlainSpeechTokenizer(nn.Module):
    """All of the file, for one utterance on one device."""

    def __init__(
        self,
        *,
        filters: int = 64,
        strides: Sequence[int] = (8, 5, 4, 2),
        dimension: int = 1024,
        layers: int = 2,
        entries: int = 1024,
        codebooks: int = 8,
    ) -> None:
        super().__init__()
        widths = [filters * 2**stage for stage in range(len(strides) + 1)]
        encoder: list[nn.Module] = [Conv(1, filters, 7)]
        for width, stride in zip(widths, strides[::-1], strict=False):
            encoder += [Residual(width), nn.ELU(), Conv(width, 2 * width, 2 * stride, stride)]
        encoder += [Lstm(widths[-1], layers, bidirectional=True), nn.ELU(), Conv(2 * widths[-1], dimension, 7)]
        decoder: list[nn.Module] = [Conv(dimension, widths[-1], 7), Lstm(widths[-1], layers, bidirectional=False)]
        for width, stride in zip(widths[-2::-1], strides, strict=True):
            decoder += [nn.ELU(), TransposedConv(2 * width, width, stride), Residual(width)]
        decoder += [nn.ELU(), Conv(filters, 1, 7)]
        self.encoder = named(nn.Sequential(*encoder), "model")
        self.decoder = named(nn.Sequential(*decoder), "model")
        self.quantizer = named(nn.ModuleList(self._book(entries, dimension) for _ in range(codebooks)), "vq", "layers")

    @staticmethod
    def from_directory(directory: Path, device: torch.device | str = "cpu") -> "PlainSpeechTokenizer":
        """Of what `slmkit codec add` wrote, with the streams that are used."""
        described = json.loads((directory / "codec.json").read_text())
        config = described["config"]
        plain = PlainSpeechTokenizer(
            filters=config["n_filters"],
            strides=config["strides"],
            dimension=config["dimension"],
            layers=config["lstm_layers"],
            entries=config["codebook_size"],
            codebooks=described["streams"],
        )
        plain_modules.load_folded(plain, safetensors.torch.load_file(directory / "model.safetensors"))
        return plain.eval().to(device)

    @staticmethod
    def _book(entries: int, dimension: int) -> nn.Module:
        table = nn.Module()
        table.register_buffer("embed", torch.zeros(entries, dimension))
        return named(table, "_codebook")

    def books(self) -> list[torch.Tensor]:
        """Entries [E, D] of each codebook."""
        return [layer._codebook.embed for layer in self.quantizer.vq.layers]

    def latents(self, wave: torch.Tensor) -> torch.Tensor:
        """[T, D] of a wave float32 [N]."""
        return self.encoder.model(wave[None, None])[0].T

    @torch.inference_mode()
    def encode(self, wave: torch.Tensor) -> torch.Tensor:
        """Codes int64 [K, T] of a wave float32 [N]."""
        left, codes = self.latents(wave), []
        for book in self.books():
            distances = left.square().sum(1, keepdim=True) - 2 * left @ book.T + book.square().sum(1)
            codes.append(distances.argmin(dim=1))
            left = left - book[codes[-1]]
        return torch.stack(codes)

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Wave float32 [hop * T] of codes int64 [k, T] of the first k codebooks, not clipped."""
        total = torch.stack([book[row] for book, row in zip(self.books(), codes, strict=False)]).sum(dim=0)
        return self.decoder.model(total.T[None])[0, 0]
