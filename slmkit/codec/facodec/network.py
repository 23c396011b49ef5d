"""The networks of FACodec V2 on padded batches, with weight norm folded: convolutional encoder and decoder, residual
vector quantizers, and the transformer over frames.

It knows nothing of codes or files. Each activation leaves zeros around every utterance, so the convolutions run without
padding of their own. A transposed convolution of stride s is a convolution of two taps that makes s outputs at a time.

Shapes: B utterances, C channels, N samples or positions, T frames, D = 256.

Invariant (law): an utterance's latents, codes and transformer outputs do not depend on the batch it travels in, its
place there, or its padding. `ResidualQuantizer`'s quantized latents are the sum of its tables' entries.

Example:
    latents, ends = ConvEncoder(weights)(waves, Ends([16000, 12345], device))  # [B, D, T]
    waves = ConvDecoder(weights)(latents)  # [B, D, T] -> [B, 200 * T]
"""

import torch
import torch.nn.functional as F

from slmkit.codec.facodec.activation import SEEN, Activation, Ends
from slmkit.codec.facodec.checkpoint import Weights
from slmkit.codec.facodec.dimensions import (
    DECODER_STRIDES,
    DILATIONS,
    ENCODER_LAST_KERNEL,
    ENCODER_STRIDES,
    FEED_FORWARD_KERNEL,
    HEADS,
    HOP,
    KERNEL,
    LATENT,
    LAYERS,
    padding_of,
)

SIDE = KERNEL // 2  # zeros a wide convolution needs at each end


class Residual:
    """Adds narrow(activation(wide(activation(x)))) to x, in place."""

    def __init__(self, weights: Weights, dilation: int) -> None:
        self.dilation = dilation
        self.activations = Activation(weights / "block.0"), Activation(weights / "block.2")
        self.wide, narrow = weights / "block.1", weights / "block.3"
        self.narrow, self.bias = narrow["weight"][:, :, 0], narrow["bias"][:, None]

    def __call__(self, x: torch.Tensor, ends: Ends) -> torch.Tensor:
        h = self.activations[0](x, ends, SIDE * self.dilation)
        h = F.conv1d(h, self.wide["weight"], self.wide["bias"], dilation=self.dilation)
        h = self.activations[1](h, ends, 0)
        return x.add_(self.bias).baddbmm_(self.narrow.expand(len(x), -1, -1), h)


class DownStage:
    """Three residual units, then fewer positions with twice the channels."""

    def __init__(self, weights: Weights, stride: int) -> None:
        self.stride = stride
        self.residuals = [Residual(weights / f"block.{i}", dilation) for i, dilation in enumerate(DILATIONS)]
        self.activation = Activation(weights / f"block.{len(DILATIONS)}")
        self.shrink = weights / f"block.{len(DILATIONS) + 1}"

    def __call__(self, x: torch.Tensor, ends: Ends) -> tuple[torch.Tensor, Ends]:
        for residual in self.residuals:
            x = residual(x, ends)
        x = self.activation(x, ends, padding_of(self.stride))
        return F.conv1d(x, self.shrink["weight"], self.shrink["bias"], stride=self.stride), ends.strided(self.stride)


class UpStage:
    """More positions with half the channels, then three residual units."""

    def __init__(self, weights: Weights, stride: int) -> None:
        self.stride = stride
        self.activation = Activation(weights / "block.0")
        grow = weights / "block.1"
        self.weight, self.bias = two_tap_weight(grow["weight"], stride), grow["bias"].repeat_interleave(stride)
        self.residuals = [Residual(weights / f"block.{2 + i}", dilation) for i, dilation in enumerate(DILATIONS)]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, length = x.shape
        x = F.conv1d(self.activation(x, uniform(x), 1), self.weight, self.bias)
        x = x.view(batch, -1, self.stride, length + 1).transpose(2, 3).reshape(batch, -1, self.stride * (length + 1))
        x = x[..., padding_of(self.stride) :][..., : self.stride * length]
        for residual in self.residuals:
            x = residual(x, uniform(x))
        return x


class ConvEncoder:
    """Waves to latents."""

    def __init__(self, weights: Weights) -> None:
        self.first = weights / "block.0"
        self.stages = [DownStage(weights / f"block.{1 + i}", stride) for i, stride in enumerate(ENCODER_STRIDES)]
        self.activation = Activation(weights / f"block.{len(ENCODER_STRIDES) + 1}")
        self.last = weights / f"block.{len(ENCODER_STRIDES) + 2}"

    def __call__(self, waves: torch.Tensor, ends: Ends) -> tuple[torch.Tensor, Ends]:
        """Latents float32 [B, D, T] and their ends, of float32 [B, N], zero after each utterance."""
        x = F.conv1d(F.pad(waves[:, None], (SIDE, SIDE)), self.first["weight"], self.first["bias"])
        for stage in self.stages:
            x, ends = stage(x, ends)
        x = self.activation(x, ends, ENCODER_LAST_KERNEL // 2)
        return F.conv1d(x, self.last["weight"], self.last["bias"]), ends


class ConvDecoder:
    """Latents to waves."""

    def __init__(self, weights: Weights) -> None:
        self.first = weights / 0
        self.stages = [UpStage(weights / (1 + i), stride) for i, stride in enumerate(DECODER_STRIDES)]
        self.activation = Activation(weights / (len(DECODER_STRIDES) + 1))
        self.last = weights / (len(DECODER_STRIDES) + 2)

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Waves float32 [B, 200 * T] in [-1, 1] of float32 [B, D, T]."""
        x = F.conv1d(latents, self.first["weight"], self.first["bias"], padding=SIDE)
        for stage in self.stages:
            x = stage(x)
        x = self.activation(x, uniform(x), SIDE)
        return torch.tanh(F.conv1d(x, self.last["weight"], self.last["bias"]))[:, 0]


def decoder_reach() -> tuple[int, int]:
    """Frames before and after a frame whose latents its samples depend on in `ConvDecoder`."""
    first, last = -(SIDE + SEEN), HOP - 1 + SIDE + SEEN  # of the positions that samples 0 .. HOP - 1 depend on
    side = sum(SIDE * dilation + 2 * SEEN for dilation in DILATIONS)
    for stride in reversed(DECODER_STRIDES):
        first, last = first - side + padding_of(stride), last + side + padding_of(stride)
        first, last = (
            first // stride - 1 - SEEN,
            last // stride + SEEN,
        )  # output i takes inputs i // stride - 1 and that
    return SIDE - first, SIDE + last


def uniform(x: torch.Tensor) -> Ends:
    """The ends of a batch without padding."""
    return Ends([x.shape[-1]] * len(x), x.device)


def two_tap_weight(weight: torch.Tensor, stride: int) -> torch.Tensor:
    """[C_in, C_out, 2 * stride] of a transposed convolution -> [C_out * stride, C_in, 2] of a convolution.

    Output position stride * i + r takes tap r of input i and tap stride + r of input i - 1.
    """
    taps = weight.unflatten(2, (2, stride)).permute(1, 3, 0, 2).flip(3)
    return taps.flatten(0, 1).contiguous()


class Codebook:
    """One codebook with its projections.

    It projects a latent to eight numbers and takes the entry of nearest direction. What the entry stands for in the
    latent space does not depend on the input, so it is one table, computed once.
    """

    def __init__(self, weights: Weights) -> None:
        entries = weights["_codebook.weight"]
        self.weight, self.bias = weights["in_proj.weight"], weights["in_proj.bias"]
        self.directions = F.normalize(entries).T.contiguous()
        self.table = F.linear(entries, weights["out_proj.weight"], weights["out_proj.bias"])  # [1024, D]

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes int64 [B, T] of latents [B, T, D].

        For unit vectors the smallest distance is the largest inner product, and the latent's length changes no order.
        """
        return (F.linear(latents, self.weight, self.bias) @ self.directions).argmax(dim=-1)


class ResidualQuantizer:
    """Codebooks of which each quantizes what the ones before left."""

    def __init__(self, weights: Weights, num_codebooks: int) -> None:
        self.codebooks = [Codebook(weights / f"layers.{i}") for i in range(num_codebooks)]

    def quantize(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes int64 [B, K, T] and their quantized latents [B, T, D] of latents [B, T, D]."""
        codes, quantized = [], torch.zeros_like(latents)
        for codebook in self.codebooks:
            codes.append(codebook.nearest(latents - quantized))
            quantized = quantized + F.embedding(codes[-1], codebook.table)
        return torch.stack(codes, dim=1), quantized


class Transformer:
    """Layers of self-attention and a convolutional feed-forward network, pre-norm, for prosody and the speaker vector.

    Every frame of every utterance gets the positional term of position 0. The public implementation indexes the term by
    the place in the batch, and published codes were made one utterance at a time.
    """

    def __init__(self, weights: Weights) -> None:
        self.position = weights["position_emb.pe"][0]
        self.layers = [weights / f"layers.{i}" for i in range(LAYERS)]
        self.last = weights / "last_ln"

    def __call__(self, x: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """float32 [B, T, D] -> [B, T, D]. valid: bool [B, 1, T], or None when there is no padding."""
        x = x + self.position
        for layer in self.layers:
            x = x + self_attention(norm(x, layer / "ln_1"), layer / "self_attn", valid)
            x = x + feed_forward(norm(x, layer / "ln_2"), layer / "ffn", valid)
        return norm(x, self.last)


def norm(x: torch.Tensor, weights: Weights) -> torch.Tensor:
    return F.layer_norm(x, (LATENT,), weights["weight"], weights["bias"])


def self_attention(x: torch.Tensor, weights: Weights, valid: torch.Tensor | None) -> torch.Tensor:
    """Self-attention of [B, T, D] to the valid frames."""
    projected = F.linear(x, weights["in_proj_weight"], weights["in_proj_bias"])
    q, k, v = projected.unflatten(2, (3, HEADS, LATENT // HEADS)).permute(2, 0, 3, 1, 4)
    mask = None if valid is None else valid[:, None]
    heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return F.linear(heads.transpose(1, 2).flatten(2), weights["out_proj.weight"], weights["out_proj.bias"])


def feed_forward(x: torch.Tensor, weights: Weights, valid: torch.Tensor | None) -> torch.Tensor:
    """A convolution over [B, T, D] that sees zeros outside the valid frames, then a linear layer."""
    x = x.transpose(1, 2)
    if valid is not None:
        x = x.where(valid, 0)
    x = F.conv1d(x, weights["ffn_1.weight"], weights["ffn_1.bias"], padding=FEED_FORWARD_KERNEL // 2)
    return F.linear(x.relu_().transpose(1, 2), weights["ffn_2.weight"], weights["ffn_2.bias"])
