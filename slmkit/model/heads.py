"""The speech heads of multi-token prediction: one per token of a speech step.

Head i = K * frame + stream predicts the code of one stream in one frame of the step. Its classes are the codes of the
stream, then `<eosp>`, then, from the second frame of the step on, `<|speech_pad|>`. Module names are the published
ones (`speech_heads.{i}.head...`), so that published weights load by name.

Shapes: B batch (1 when packed), S positions, Q of them that matter, D width, C classes.

`OutputLayer` is the last layer of every head and of the text model. Its weight is read inside its own `forward` alone:
ZeRO-3 puts a weight together only there.

Example:
    SpeechHead("mlp", config, num_classes=1025, first_layer=24)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import Cache, Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from slmkit.data.vocab import VocabLayout
from slmkit.model import losses
from slmkit.model.attention import Packing
from slmkit.model.backbone import extra_layers, run_layers

HEAD_LAYERS = 2  # decoder layers of a transformer head (published code)
MLP_FACTOR = 2  # width of an mlp head, in hidden sizes (published code)


def class_token_ids(layout: VocabLayout, head: int) -> list[int]:
    """Token id of every class of head number `head`, in order: codes, `<eosp>`, and after the first frame the pad."""
    frame, stream = divmod(head, layout.num_streams)
    _, first, size = layout.streams[stream]
    ids = [*range(first, first + size), layout.id_of("<eosp>")]
    return [*ids, layout.id_of("<|speech_pad|>")] if frame else ids


class OutputLayer(nn.Linear):
    """Features to logits, or straight to their cross-entropy, without all logits at once."""

    @classmethod
    def of(cls, linear: nn.Linear) -> "OutputLayer":
        """The same layer with the very parameters of `linear`, so that ties stay."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer

    def forward(
        self,
        features: torch.Tensor,
        *,
        targets: torch.Tensor | None = None,
        scales: torch.Tensor | None = None,
        segments: Sequence[losses.Segment] | None = None,
    ) -> Any:
        """Logits float [..., C] of features float [..., D], or their cross-entropy with targets.

        targets, scales and segments are those of `losses.cross_entropy`, whose CrossEntropy of features float [M, D]
        they give.
        """
        if targets is None:
            return super().forward(features)
        assert scales is not None
        assert segments is not None
        return losses.cross_entropy(features, self.weight, self.bias, targets, scales, segments)


class SpeechHead(nn.Module):
    """Linear; mlp (Linear, SiLU, Linear); or transformer (decoder layers, LayerNorm, Linear)."""

    def __init__(self, kind: str, config: Qwen2Config, *, num_classes: int, first_layer: int) -> None:
        """`first_layer`: the number of a transformer head's first entry in the key-value cache."""
        super().__init__()
        self.kind = kind
        width = config.hidden_size
        if kind == "linear":
            self.head: nn.Module = OutputLayer(width, num_classes)
        elif kind == "mlp":
            inner = MLP_FACTOR * width
            self.head = nn.Sequential(nn.Linear(width, inner), nn.SiLU(), OutputLayer(inner, num_classes))
        else:
            self.head_layers = extra_layers(config, HEAD_LAYERS, first_layer)
            self.head_norm = nn.LayerNorm(width, eps=config.rms_norm_eps)
            self.head_proj = OutputLayer(width, num_classes)

    @property
    def output(self) -> OutputLayer:
        """The last linear map, features to class logits."""
        if self.kind == "transformer":
            return self.head_proj
        last = self.head[-1] if isinstance(self.head, nn.Sequential) else self.head
        assert isinstance(last, OutputLayer)
        return last

    def attend(
        self,
        hidden: torch.Tensor,
        position_ids: torch.Tensor,
        rotary: Qwen2RotaryEmbedding,
        *,
        packing: Packing | None = None,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Features float [B, S, D] that look at other positions; only a transformer head does."""
        if self.kind != "transformer":
            return hidden
        return run_layers(
            self.head_layers, rotary, hidden, position_ids, packing=packing, cache=cache, attention_mask=attention_mask
        )

    def features(self, attended: torch.Tensor) -> torch.Tensor:
        """Input of `output`, float [..., D or 2D], from what `attend` gave at the positions that matter."""
        if self.kind == "mlp":
            return self.head[1](self.head[0](attended))  # type: ignore[index]
        return self.head_norm(attended) if self.kind == "transformer" else attended
