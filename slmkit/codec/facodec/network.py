"""The networks of FACodec V2 on padded batches, with weight norm folded: convolutional encoder and decoder, and the
transformer over frames.

It knows nothing of codes or files.

Shapes: B utterances, C channels, N samples or positions, T frames, D = 256.

Invariant (law): an utterance's latents, codes and transformer outputs do not depend on the batch it travels in, its
place there, or its padding.

Example:
    latents, ends = ConvEncoder(weights)(waves, Ends([16000, 12345], device))  # [B, D, T]
    waves = ConvDecoder(weights)(latents)  # [B, D, T] -> [B, 200 * T]
"""

import torch
import torch.nn.functional as F

from slmkit.codec.base import Reach
from slmkit.codec.facodec.dimensions import (
    DECODER_STRIDES,
    ENCODER_LAST_KERNEL,
    ENCODER_STRIDES,
    FEED_FORWARD_KERNEL,
    HEADS,
    HOP,
    LATENT,
    LAYERS,
)
from slmkit.codec.fields import reach
from slmkit.codec.snake.activation import Activation, Ends
from slmkit.codec.snake.units import ACTIVATED, SIDE, WIDE, DownStage, UpStage, uniform, up_layers
from slmkit.codec.weights import Weights


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


def decoder_reach() -> Reach:
    """Frames before and after a frame whose latents its samples depend on in `ConvDecoder`."""
    stages = [layer for stride in DECODER_STRIDES for layer in up_layers(stride)]
    return reach([WIDE, *stages, ACTIVATED, WIDE], 1, HOP)


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
