"""FACodec V2 as published, module by module: one module per published key, weight norm unfolded, one utterance.

Its state dicts are the layout of the published files, key by key and shape by shape. It is the slow, obvious twin of
`slmkit/codec/facodec/network.py`: the tests compare the two and `slmkit bench codec` times them. It knows nothing of
batches, devices or files.

Shapes: C channels, N samples (or positions), T frames, D = 256 the width of the latents.

Invariant: the codes of `PlainFACodec.encode` are those of the public implementation for one utterance.

Example:
    plain = PlainFACodec()
    codes, speaker = plain.encode(wave)  # [6, T], [256]
    wave = plain.decode(codes, speaker)  # [200 * T]
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from slmkit.audio.mel import Grid, LogMel, mel_filterbank
from slmkit.codec.facodec.dimensions import (
    CODEBOOK_SIZE,
    CODEBOOKS,
    DECODER_STRIDES,
    ENCODER_LAST_KERNEL,
    ENCODER_STRIDES,
    FEED_FORWARD_KERNEL,
    FFT,
    HEADS,
    HOP,
    LATENT,
    LAYERS,
    MAGNITUDE_EPSILON,
    MEL_BANDS_USED,
    MEL_FLOOR,
    MEL_PADDING,
    SAMPLE_RATE,
    WINDOW,
)
from slmkit.codec.snake import DILATIONS, FILTER_TAPS, KERNEL, SNAKE_EPSILON, padding_of
from slmkit.codec.snake.activation import kaiser_sinc_filter

ENCODER_WIDTH = 32  # channels before the first stage; each stage doubles them
DECODER_WIDTH = 1024  # channels before the first stage; each stage halves them
MEL_BANDS, MEL_TOP = 80, 8000.0  # Hz
FEED_FORWARD = 1024
MAX_POSITIONS = 5000  # rows of the positional buffer, of which the first is used
CODE_DIM = 8


class WeightNorm(nn.Module):
    """A weight as a direction `weight_v` and a length `weight_g` per first index, and a bias."""

    def __init__(self, shape: tuple[int, ...], bias: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(bias))
        self.weight_g = nn.Parameter(torch.ones(shape[0], *[1] * (len(shape) - 1)))
        self.weight_v = nn.Parameter(torch.ones(shape))

    @property
    def weight(self) -> torch.Tensor:
        others = tuple(range(1, self.weight_v.dim()))
        return self.weight_v * (self.weight_g / self.weight_v.norm(dim=others, keepdim=True))


def load_folded(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load `weights` of which weight norm is folded: each kernel becomes a direction and a length.

    What is not among them, such as filters, stays as it is.
    """
    state = {}
    for key, value in module.state_dict().items():
        if key.endswith(("weight_g", "weight_v")):
            kernel = weights[key[:-2]]
            norm = kernel.norm(dim=tuple(range(1, kernel.dim())), keepdim=True)
            state[key] = kernel if key.endswith("weight_v") else norm
        else:
            state[key] = weights.get(key, value)
    module.load_state_dict(state)


class Conv(WeightNorm):
    def __init__(self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, padding: int = 0, dilation: int = 1):
        super().__init__((c_out, c_in, kernel), c_out)
        self.how = {"stride": stride, "padding": padding, "dilation": dilation}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x, self.weight, self.bias, **self.how)


class TransposedConv(WeightNorm):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__((c_in, c_out, 2 * stride), c_out)
        self.how = {"stride": stride, "padding": padding_of(stride), "output_padding": stride % 2}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose1d(x, self.weight, self.bias, **self.how)


class NormLinear(WeightNorm):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__((c_out, c_in), c_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class Snake(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alpha, beta = self.alpha.exp()[:, None], self.beta.exp()[:, None]
        return x + torch.sin(x * alpha) ** 2 / (beta + SNAKE_EPSILON)


class Filter(nn.Module):
    """The 12-tap low-pass, as a doubling of the rate or (`forward`) a halving."""

    filter: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", kaiser_sinc_filter().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (FILTER_TAPS // 2 - 1, FILTER_TAPS // 2), mode="replicate")
        return F.conv1d(x, self.filter.expand(x.shape[1], -1, -1), stride=2, groups=x.shape[1])

    def doubled(self, x: torch.Tensor) -> torch.Tensor:
        extra = FILTER_TAPS // 2 - 1
        x = F.pad(x, (extra, extra), mode="replicate")
        x = 2 * F.conv_transpose1d(x, self.filter.expand(x.shape[1], -1, -1), stride=2, groups=x.shape[1])
        return x[..., 3 * extra : -3 * extra]


class Activation(nn.Module):
    """Snake at twice the rate."""

    downsample: nn.ModuleDict

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = Snake(channels)
        self.upsample = Filter()
        self.downsample = nn.ModuleDict({"lowpass": Filter()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.downsample["lowpass"](self.act(self.upsample.doubled(x)))


class Residual(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        same = dilation * (KERNEL - 1) // 2
        wide = Conv(channels, channels, KERNEL, padding=same, dilation=dilation)
        self.block = nn.Sequential(Activation(channels), wide, Activation(channels), Conv(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x)


class Block(nn.Module):
    """Modules under the key `block`."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*modules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)


def down_stage(channels: int, stride: int) -> Block:
    shrink = Conv(channels, 2 * channels, 2 * stride, stride=stride, padding=padding_of(stride))
    return Block(*[Residual(channels, dilation) for dilation in DILATIONS], Activation(channels), shrink)


def up_stage(channels: int, stride: int) -> Block:
    half = channels // 2
    residuals = [Residual(half, dilation) for dilation in DILATIONS]
    return Block(Activation(channels), TransposedConv(channels, half, stride), *residuals)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * LATENT, LATENT))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * LATENT))
        self.out_proj = nn.Linear(LATENT, LATENT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.reshape(len(x), 3, HEADS, LATENT // HEADS).permute(1, 2, 0, 3)
        weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(LATENT // HEADS), dim=-1)
        return self.out_proj((weights @ v).transpose(0, 1).reshape(len(x), LATENT))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ffn_1 = nn.Conv1d(LATENT, FEED_FORWARD, FEED_FORWARD_KERNEL, padding=FEED_FORWARD_KERNEL // 2)
        self.ffn_2 = nn.Linear(FEED_FORWARD, LATENT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ffn_2(F.relu(self.ffn_1(x.T)).T)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(LATENT), nn.LayerNorm(LATENT)
        self.self_attn, self.ffn = Attention(), FeedForward()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.ln_1(x))
        return x + self.ffn(self.ln_2(x))


class Positions(nn.Module):
    pe: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(MAX_POSITIONS)[:, None] * 10000.0 ** (-torch.arange(0, LATENT, 2) / LATENT)
        self.register_buffer("pe", torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(-1, 1, LATENT))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position_emb = Positions()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.last_ln = nn.LayerNorm(LATENT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, D] -> [T, D]. Every frame gets the term of position 0, as in the published codes."""
        x = x + self.position_emb.pe[0]
        for layer in self.layers:
            x = layer(x)
        return self.last_ln(x)


class Codebook(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_proj, self.out_proj = NormLinear(LATENT, CODE_DIM), NormLinear(CODE_DIM, LATENT)
        self._codebook = nn.Embedding(CODEBOOK_SIZE, CODE_DIM)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Codes [T] of latents [T, D]."""
        entries = F.normalize(self._codebook.weight)
        return torch.cdist(F.normalize(self.in_proj(x)), entries).argmin(dim=1)

    def look_up(self, codes: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self._codebook(codes))


class Quantizer(nn.Module):
    layers: Any  # of Codebook

    def __init__(self, num_codebooks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Codebook() for _ in range(num_codebooks))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [codebooks, T] and quantized latents [T, D] of latents [T, D]."""
        codes, total = [], torch.zeros_like(x)
        for layer in self.layers:
            codes.append(layer(x - total))
            total = total + layer.look_up(codes[-1])
        return torch.stack(codes), total


class MelTransform(nn.Module):
    mel_basis: torch.Tensor
    hann_window: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        bank = mel_filterbank(SAMPLE_RATE, FFT, MEL_BANDS, top_hz=MEL_TOP, slaney=True)
        self.register_buffer("mel_basis", torch.from_numpy(bank).float())
        self.register_buffer("hann_window", torch.hann_window(WINDOW))

    def forward(self, reflected: torch.Tensor) -> torch.Tensor:
        """[1, N + 824] -> [1, T, bands]."""
        grid, epsilon = Grid(n_fft=FFT, window=WINDOW, hop=HOP), MAGNITUDE_EPSILON
        window, bank = grid.centred(self.hann_window), self.mel_basis[:MEL_BANDS_USED]
        return LogMel(grid=grid, window=window, bank=bank, floor=MEL_FLOOR, power_epsilon=epsilon)(reflected)


class PlainEncoder(nn.Module):
    """The modules of the encoder file."""

    def __init__(self) -> None:
        super().__init__()
        widths = [ENCODER_WIDTH * 2**stage for stage in range(len(ENCODER_STRIDES) + 1)]
        self.block = nn.Sequential(
            Conv(1, widths[0], KERNEL, padding=KERNEL // 2),
            *[down_stage(width, stride) for width, stride in zip(widths, ENCODER_STRIDES, strict=False)],
            Activation(widths[-1]),
            Conv(widths[-1], LATENT, ENCODER_LAST_KERNEL, padding=ENCODER_LAST_KERNEL // 2),
        )
        self.mel_transform = MelTransform()


class PlainDecoder(nn.Module):
    """The modules of the decoder file, without those that serve training losses."""

    quantizer: Any  # of Quantizer

    def __init__(self) -> None:
        super().__init__()
        widths = [DECODER_WIDTH // 2**stage for stage in range(len(DECODER_STRIDES) + 1)]
        self.quantizer = nn.ModuleList(Quantizer(count) for count in CODEBOOKS)
        self.model = nn.Sequential(
            Conv(LATENT, widths[0], KERNEL, padding=KERNEL // 2),
            *[up_stage(width, stride) for width, stride in zip(widths, DECODER_STRIDES, strict=False)],
            Activation(widths[-1]),
            Conv(widths[-1], 1, KERNEL, padding=KERNEL // 2),
        )
        self.timbre_encoder, self.timbre_linear = Transformer(), nn.Linear(LATENT, 2 * LATENT)
        self.melspec_linear, self.melspec_encoder = nn.Linear(MEL_BANDS_USED, LATENT), Transformer()


class PlainFACodec(nn.Module):
    """Both files together, for one utterance on one device. Code order: prosody, content 1-2, detail 1-3."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = PlainEncoder(), PlainDecoder()

    @torch.inference_mode()
    def encode(self, wave: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes int64 [6, T] and speaker float32 [D] of a wave float32 [N]."""
        decoder = self.decoder
        latents = self.encoder.block(wave[None, None])[0].T
        reflected = F.pad(wave[None], (MEL_PADDING, MEL_PADDING), mode="reflect")
        mel = self.encoder.mel_transform(reflected)[0]
        mel = F.pad(mel, (0, 0, 0, len(latents) - len(mel)))
        prosody, total = decoder.quantizer[0](decoder.melspec_encoder(decoder.melspec_linear(mel)))
        content, quantized = decoder.quantizer[1](latents)
        detail, _ = decoder.quantizer[2](latents - (total + quantized))
        return torch.cat([prosody, content, detail]), decoder.timbre_encoder(latents).mean(dim=0)

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        """Wave float32 [200 * T] of codes int64 [3 or 6, T] and a speaker float32 [D]."""
        books = [layer for quantizer in self.decoder.quantizer for layer in quantizer.layers]
        x = torch.stack([book.look_up(row) for book, row in zip(books, codes, strict=False)]).sum(dim=0)
        scale, shift = self.decoder.timbre_linear(speaker).chunk(2)
        x = F.layer_norm(x, (LATENT,)) * scale + shift
        return torch.tanh(self.decoder.model(x.T[None]))[0, 0]
