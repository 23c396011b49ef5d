"""The pre-norm transformer over frames that FACodec V2 uses for prosody and for the speaker vector.

Every frame of every utterance gets the positional term of position 0. The public implementation indexes the term by the
place in the batch, and published codes were made one utterance at a time.

Shapes: B utterances, T frames, D = 256, H heads.

Invariant (law): the valid frames of an utterance hold what they would hold alone.

Example:
    y = Transformer(weights / "timbre_encoder")(x, valid)  # [B, T, D] -> [B, T, D]
"""

import torch
import torch.nn.functional as F

from slmkit.codec.facodec.checkpoint import Weights
from slmkit.codec.facodec.dimensions import FEED_FORWARD_KERNEL, HEADS, LATENT, LAYERS


class Transformer:
    """Layers of self-attention and a convolutional feed-forward network."""

    def __init__(self, weights: Weights) -> None:
        self.position = weights["position_emb.pe"][0]
        self.layers = [weights / f"layers.{i}" for i in range(LAYERS)]
        self.last = weights / "last_ln"

    def __call__(self, x: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """float32 [B, T, D] -> [B, T, D]. valid: bool [B, 1, T], or None when there is no padding."""
        x = x + self.position
        for layer in self.layers:
            x = x + attend(norm(x, layer / "ln_1"), layer / "self_attn", valid)
            x = x + feed_forward(norm(x, layer / "ln_2"), layer / "ffn", valid)
        return norm(x, self.last)


def norm(x: torch.Tensor, weights: Weights) -> torch.Tensor:
    return F.layer_norm(x, (LATENT,), weights["weight"], weights["bias"])


def attend(x: torch.Tensor, weights: Weights, valid: torch.Tensor | None) -> torch.Tensor:
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
