"""The network of SNAC (arXiv 2410.14411): convolutions, attention within windows, and codebooks of several rates.

The quantizer's levels have fewer codes per second the earlier they come: level i has one code for `stride` latents. A
frame holds the latents of one code of the first level; its codes become streams in the order of their time, and of the
level where the time is equal. Three levels of strides 4, 2, 1 give 7 streams: 1.1, 2.1, 3.1, 3.2, 2.2, 3.3, 3.4.

The decoder adds noise, which the network scales. It is a function of the layer and the place in time alone, so that a
code sequence always gives the same wave, and any part of it can be computed by itself.

The names of modules are those of the published weights, weight norm folded.

Shapes: B batch, C channels, N positions, T frames, L latents (L / T of a frame), K streams, D width of the latents.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

KERNEL = 7  # taps of the convolutions that keep the rate
DILATIONS = (1, 3, 9)  # of a stage's residual units
HEAD_WIDTH = 64  # of attention
ROTARY_BASE = 10_000.0
SNAKE_EPSILON = 1e-9
NOISE_KEY = 0x534E4143  # of the random numbers, with the layer's number added


class Snake(nn.Module):
    """x + sin(a x)^2 / a, with a learned per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(x, (self.alpha + SNAKE_EPSILON).reciprocal(), (self.alpha * x).sin().square())


class ResidualUnit(nn.Module):
    """A dilated and a pointwise convolution beside the identity."""

    def __init__(self, channels: int, dilation: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Snake(channels),
            same_rate(channels, channels, groups, dilation),
            Snake(channels),
            pointwise(channels, channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x)


class EncoderBlock(nn.Module):
    """Residual units, then a lower rate. [B, C, N] -> [B, 2C, N / stride]."""

    def __init__(self, channels: int, stride: int, *, depthwise: bool) -> None:
        super().__init__()
        units = (ResidualUnit(channels, dilation, channels if depthwise else 1) for dilation in DILATIONS)
        lower = nn.Conv1d(channels, 2 * channels, 2 * stride, stride, padding=math.ceil(stride / 2))
        self.block = nn.Sequential(*units, Snake(channels), lower)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


class DecoderBlock(nn.Module):
    """A higher rate, noise, then residual units. [B, C, N] -> [B, C / 2, N * stride]."""

    def __init__(self, channels: int, stride: int, noise: "Noise | None", *, depthwise: bool) -> None:
        super().__init__()
        half = channels // 2
        higher = nn.ConvTranspose1d(
            channels, half, 2 * stride, stride, padding=math.ceil(stride / 2), output_padding=stride % 2
        )
        units = (ResidualUnit(half, dilation, half if depthwise else 1) for dilation in DILATIONS)
        self.block = nn.Sequential(Snake(channels), higher, *([noise] if noise else []), *units)

    def forward(self, x: torch.Tensor, first_frame: int) -> torch.Tensor:
        """`first_frame`: the frame at which x begins."""
        for module in self.block:
            x = module(x, first_frame) if isinstance(module, Noise) else module(x)
        return x


class Noise(nn.Module):
    """Adds normal noise, equal in all channels, times what a pointwise layer makes of the signal."""

    def __init__(self, channels: int, layer: int, positions_per_frame: int) -> None:
        super().__init__()
        self._layer, self._positions_per_frame = layer, positions_per_frame
        self.linear = nn.Conv1d(channels, channels, 1, bias=False)

    def forward(self, x: torch.Tensor, first_frame: int) -> torch.Tensor:
        noise = normal_noise(self._layer, first_frame * self._positions_per_frame, x.shape[2])
        return torch.addcmul(x, self.linear(x), noise.to(x))


class WindowAttention(nn.Module):
    """Attention within windows that follow each other, beside the identity. [1, C, N] -> [1, C, N].

    x begins where a window does. The published network takes whole windows only; here the last may be shorter, and
    looks at what there is.
    """

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.window, self._heads = window, channels // HEAD_WIDTH
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x[0].T
        whole = len(rows) - len(rows) % self.window
        attended = [self._attend(rows[:whole].unflatten(0, (-1, self.window)))] if whole else []
        if whole < len(rows):
            attended.append(self._attend(rows[None, whole:]))
        return x + torch.cat([part.flatten(0, 1) for part in attended]).T

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        """[windows, n, C] -> [windows, n, C]."""
        query, key, value = (
            part.transpose(1, 2)
            for part in self.to_qkv(self.norm(x)).unflatten(2, (3, self._heads, HEAD_WIDTH)).unbind(2)
        )
        found = F.scaled_dot_product_attention(rotated(query), rotated(key), value)
        return self.to_out(found.transpose(1, 2).flatten(2))


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions from 0 (arXiv 2104.09864), halves paired. [..., n, HEAD_WIDTH] -> the same."""
    rates = ROTARY_BASE ** -(torch.arange(0, HEAD_WIDTH, 2, device=x.device) / HEAD_WIDTH)
    angles = torch.outer(torch.arange(x.shape[-2], device=x.device, dtype=torch.float32), rates).repeat(1, 2)
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


class Level(nn.Module):
    """One codebook, in a space of few dimensions, where entries are compared by their direction."""

    def __init__(self, width: int, entries: int, entry_width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.in_proj, self.out_proj = pointwise(width, entry_width), pointwise(entry_width, width)
        self.codebook = nn.Embedding(entries, entry_width)

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes int64 [L / stride] of latents [1, D, L]. The length of what is compared changes no order."""
        return (self.projected(latents)[0].T @ F.normalize(self.codebook.weight).T).argmax(1)

    def projected(self, latents: torch.Tensor) -> torch.Tensor:
        """What is compared with the codebook: [1, D, L] -> [1, entry width, L / stride]."""
        return self.in_proj(F.avg_pool1d(latents, self.stride, self.stride))

    def latents_of(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [n] -> [1, D, n * stride]."""
        return self.out_proj(self.codebook(codes).T[None]).repeat_interleave(self.stride, dim=2)


class Quantizer(nn.Module):
    """The levels, each of what those before leave."""

    def __init__(self, width: int, entries: int, entry_width: int, strides: Sequence[int], num_levels: int) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(Level(width, entries, entry_width, stride) for stride in strides[:num_levels])
        places = stream_places(strides, num_levels)
        per_level = [strides[0] // stride for stride in strides[:num_levels]]
        self._per_level = per_level
        self._order = [sum(per_level[:level]) + place for level, place in places]  # of streams, level by level
        self._from_order = [self._order.index(i) for i in range(len(places))]

    @property
    def levels(self) -> list[Level]:
        return [level for level in self.quantizers if isinstance(level, Level)]

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes int64 [1, K, T] of latents [1, D, L]."""
        found = []
        for level, number in zip(self.levels, self._per_level, strict=True):
            codes = level.nearest(latents)
            latents = latents - level.latents_of(codes)
            found.append(codes.unflatten(0, (-1, number)))
        columns = torch.cat(found, dim=1).unbind(dim=1)
        return torch.stack([columns[i] for i in self._order])[None]

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Latents [1, D, L] of codes int64 [1, K, T]."""
        rows = codes[0].unbind()  # a list as an index would be sent to the device
        parts = torch.stack([rows[i] for i in self._from_order], dim=1).split(self._per_level, dim=1)
        pairs = zip(self.levels, parts, strict=True)
        return torch.stack([level.latents_of(part.flatten()) for level, part in pairs]).sum(0)


class Encoder(nn.Module):
    """From a wave [1, 1, N] to latents [1, D, L], as a list of modules."""

    def __init__(self, channels: int, rates: Sequence[int], window: int | None, *, depthwise: bool) -> None:
        super().__init__()
        width = channels * 2 ** len(rates)
        blocks = (EncoderBlock(channels * 2**i, rate, depthwise=depthwise) for i, rate in enumerate(rates))
        attention = [WindowAttention(width, window)] if window else []
        last = same_rate(width, width, width if depthwise else 1)
        self.block = nn.Sequential(same_rate(1, channels), *blocks, *attention, last)


class Decoder(nn.Module):
    """From latents [1, D, L] to a wave [1, 1, N], as a list of modules."""

    def __init__(
        self,
        width: int,
        channels: int,
        rates: Sequence[int],
        window: int | None,
        latents_per_frame: int,
        *,
        depthwise: bool,
        noise: bool,
    ) -> None:
        super().__init__()
        first = (
            [same_rate(width, width, width), pointwise(width, channels)] if depthwise else [same_rate(width, channels)]
        )
        attention = [WindowAttention(channels, window)] if window else []
        blocks, per_frame = [], latents_per_frame
        for i, rate in enumerate(rates):
            per_frame *= rate
            added = Noise(channels // 2 ** (i + 1), i, per_frame) if noise else None
            blocks.append(DecoderBlock(channels // 2**i, rate, added, depthwise=depthwise))
        last = channels // 2 ** len(rates)
        self.model = nn.Sequential(*first, *attention, *blocks, Snake(last), same_rate(last, 1), nn.Tanh())


class Network(nn.Module):
    """All of it."""

    def __init__(self, encoder: Encoder, quantizer: Quantizer, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder


def same_rate(channels: int, out: int, groups: int = 1, dilation: int = 1) -> nn.Conv1d:
    """A convolution whose output is as long as its input."""
    return nn.Conv1d(channels, out, KERNEL, padding=KERNEL // 2 * dilation, dilation=dilation, groups=groups)


def pointwise(channels: int, out: int) -> nn.Conv1d:
    """A linear layer at each position."""
    return nn.Conv1d(channels, out, 1)


def stream_places(strides: Sequence[int], num_levels: int) -> list[tuple[int, int]]:
    """(level, place among the level's codes of a frame), both from 0, of each stream."""
    places = [(level, i) for level in range(num_levels) for i in range(strides[0] // strides[level])]
    return sorted(places, key=lambda place: (place[1] * strides[place[0]], place[0]))


def normal_noise(layer: int, first: int, number: int) -> torch.Tensor:
    """Standard normal numbers float32 [number] of the positions from `first`, independent of each other.

    Each is made of 64 bits of a counter-based generator (Philox), so that any position can be asked for (Box-Muller).
    """
    generator = np.random.Philox(key=NOISE_KEY + layer)
    generator.advance(first // 4)  # which gives four numbers a step
    bits = generator.random_raw(first % 4 + number)[first % 4 :]
    radius = np.sqrt(-2 * np.log(((bits >> 32) + 1.0) / 2**32))
    return torch.from_numpy((radius * np.cos(2 * np.pi * (bits & 0xFFFFFFFF) / 2**32)).astype(np.float32))
