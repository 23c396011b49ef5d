"""SNAC (arXiv 2410.14411) module by module, one utterance after the other, weight norm computed in every call.

The noise of its decoder is slmkit's, a function of the place in time: the published code draws new noise in each call,
so that two of its waves differ. What a level of codes has for a frame is put side by side, as slmkit does.

Example:
    plain = PlainSnac.from_directory(Path("codecs/snac_24khz"))
    wave = plain.decode(plain.encode(wave))  # codes int64 [K, T]
"""

import json
import math
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from slmkit.codec.snac.network import normal_noise

HEAD = 64


def conv(*sizes: int, **options: Any) -> nn.Module:
    return weight_norm(nn.Conv1d(*sizes, **options))


class Snake(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.sin(self.alpha * x) ** 2 / (self.alpha + 1e-9)


class Unit(nn.Module):
    def __init__(self, channels: int, dilation: int, groups: int) -> None:
        super().__init__()
        wide = conv(channels, channels, 7, padding=3 * dilation, dilation=dilation, groups=groups)
        self.block = nn.Sequential(Snake(channels), wide, Snake(channels), conv(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x)


class Noise(nn.Module):
    def __init__(self, channels: int, layer: int) -> None:
        super().__init__()
        self.layer, self.linear = layer, conv(channels, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + normal_noise(self.layer, 0, x.shape[2]).to(x) * self.linear(x)


class Block(nn.Module):
    """A stage that lowers or raises the rate."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*modules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


class Attention(nn.Module):
    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.window, self.norm = window, nn.LayerNorm(channels)
        self.to_qkv, self.to_out = nn.Linear(channels, 3 * channels, bias=False), nn.Linear(channels, channels, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.to_qkv(self.norm(x.transpose(1, 2))).chunk(3, dim=2)
        windows = [part[0].view(-1, self.window, part.shape[2] // HEAD, HEAD).transpose(1, 2) for part in parts]
        query, key, value = turned(windows[0]), turned(windows[1]), windows[2]
        weights = (query @ key.transpose(2, 3) / math.sqrt(HEAD)).softmax(dim=3)
        found = (weights @ value).transpose(1, 2).flatten(2).flatten(0, 1)
        return x + self.to_out(found).T[None]


def turned(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions."""
    places = torch.arange(x.shape[2], device=x.device).float()
    angles = torch.outer(places, 1 / 10000 ** (torch.arange(0, HEAD, 2, device=x.device).float() / HEAD))
    angles = torch.cat([angles, angles], dim=1)
    first, second = x.chunk(2, dim=3)
    return x * angles.cos() + torch.cat([-second, first], dim=3) * angles.sin()


class Level(nn.Module):
    def __init__(self, width: int, entries: int, entry_width: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = conv(width, entry_width, 1), conv(entry_width, width, 1)
        self.codebook = nn.Embedding(entries, entry_width)

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes int64 [n] of [1, D, n]."""
        found, books = F.normalize(self.in_proj(latents)[0].T), F.normalize(self.codebook.weight)
        distances = found.pow(2).sum(1, keepdim=True) - 2 * found @ books.T + books.pow(2).sum(1)
        return distances.argmin(dim=1)

    def latents_of(self, codes: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.codebook(codes).T[None])


class PlainSnac(nn.Module):
    """See the module."""

    def __init__(self, config: dict[str, Any], num_levels: int) -> None:
        super().__init__()
        self.strides, window = config["vq_strides"][:num_levels], config["attn_window_size"]
        self.filling = math.prod(config["encoder_rates"]) * math.lcm(config["vq_strides"][0], window or 1)
        depthwise, channels = config["depthwise"], config["encoder_dim"]
        modules = [conv(1, channels, 7, padding=3)]
        for rate in config["encoder_rates"]:
            units = [Unit(channels, dilation, channels if depthwise else 1) for dilation in (1, 3, 9)]
            lower = conv(channels, 2 * channels, 2 * rate, stride=rate, padding=math.ceil(rate / 2))
            modules.append(Block(*units, Snake(channels), lower))
            channels *= 2
        modules += [Attention(channels, window)] if window else []
        modules.append(conv(channels, channels, 7, padding=3, groups=channels if depthwise else 1))
        self.encoder = Block(*modules)
        sizes = channels, config["codebook_size"], config["codebook_dim"]
        self.quantizer = nn.Module()
        self.quantizer.quantizers = nn.ModuleList(Level(*sizes) for _ in self.strides)
        width, channels = channels, config["decoder_dim"]
        first = [conv(width, width, 7, padding=3, groups=width), conv(width, channels, 1)]
        modules = first if depthwise else [conv(width, channels, 7, padding=3)]
        modules += [Attention(channels, window)] if window else []
        for layer, rate in enumerate(config["decoder_rates"]):
            half = channels // 2
            sizes = {"stride": rate, "padding": math.ceil(rate / 2), "output_padding": rate % 2}
            higher = weight_norm(nn.ConvTranspose1d(channels, half, 2 * rate, **sizes))
            units = [Unit(half, dilation, half if depthwise else 1) for dilation in (1, 3, 9)]
            noise = [Noise(half, layer)] if config["noise"] else []
            modules.append(Block(Snake(channels), higher, *noise, *units))
            channels = half
        self.decoder = nn.Module()
        self.decoder.model = nn.Sequential(*modules, Snake(channels), conv(channels, 1, 7, padding=3), nn.Tanh())

    @classmethod
    def from_directory(cls, directory: Path, device: torch.device | str = "cpu") -> "PlainSnac":
        """Of what `slmkit codec add` wrote, whose weights have no weight norm any more."""
        described = json.loads((directory / "codec.json").read_text())
        weights = safetensors.torch.load_file(directory / "model.safetensors")
        levels = {name.split(".")[2] for name in weights if name.startswith("quantizer.")}
        plain = cls(described["config"], len(levels)).eval().requires_grad_(False)
        with torch.no_grad():
            for name, module in plain.named_modules():
                for kind in ("weight", "bias", "alpha"):
                    if f"{name}.{kind}" in weights:
                        value = weights.pop(f"{name}.{kind}")
                        if nn.utils.parametrize.is_parametrized(module, kind):
                            module.weight = value
                        else:
                            getattr(module, kind).copy_(value)
        assert not weights, f"without a place: {sorted(weights)[:4]}"
        return plain.to(device)

    @torch.inference_mode()
    def encode(self, wave: torch.Tensor) -> torch.Tensor:
        latents = self.encoder(F.pad(wave, (0, -len(wave) % self.filling))[None, None])
        levels = []
        for level, stride in zip(self.quantizer.quantizers, self.strides, strict=True):
            codes = level.nearest(F.avg_pool1d(latents, stride, stride) if stride > 1 else latents)
            latents = latents - level.latents_of(codes).repeat_interleave(stride, dim=2)
            levels.append(codes.view(-1, self.strides[0] // stride))
        return torch.stack([levels[level][:, place] for _, level, place in self.places()])

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        latents: Any = 0
        places = self.places()
        for number, (level, stride) in enumerate(zip(self.quantizer.quantizers, self.strides, strict=True)):
            rows = [codes[k] for k, (_, of_level, _) in enumerate(places) if of_level == number]
            latents = latents + level.latents_of(torch.stack(rows, dim=1).flatten()).repeat_interleave(stride, dim=2)
        return self.decoder.model(latents)[0, 0]

    def places(self) -> list[tuple[int, int, int]]:
        """Of each stream: its time within the frame, its level, its place among the codes of the level."""
        first = self.strides[0]
        return sorted((i * stride, n, i) for n, stride in enumerate(self.strides) for i in range(first // stride))
