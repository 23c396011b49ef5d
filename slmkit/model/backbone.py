"""Running the decoder layers of the backbone, and of heads that are made of the same layers.

The layers are transformers' own Qwen2 layers; only the loop over them is here, so that packed training, prefill and
cached decoding take one path and no attention mask is ever built behind our back.

Shapes: B batch (1 when packed), S positions, D width.

Example:
    hidden = run_layers(model.layers, model.rotary_emb, inputs_embeds, position_ids, packing=packing)
"""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import Cache, Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

from slmkit.model.attention import NAME, Packing


def packed_config(values: dict[str, Any]) -> Qwen2Config:
    """The Qwen2 config of plain values, set to packed attention."""
    return Qwen2Config(**{**values, "attn_implementation": NAME})


def extra_layers(config: Qwen2Config, count: int, first_index: int) -> torch.nn.ModuleList:
    """`count` more decoder layers of the kind `config` describes, with cache entries from `first_index` on."""
    num_layers = first_index + count
    longer = packed_config(
        {**config.to_dict(), "num_hidden_layers": num_layers, "layer_types": ["full_attention"] * num_layers}
    )
    return torch.nn.ModuleList(Qwen2DecoderLayer(longer, first_index + i) for i in range(count))


def run_layers(
    layers: Iterable[torch.nn.Module],
    rotary: Qwen2RotaryEmbedding,
    hidden: torch.Tensor,
    position_ids: torch.Tensor,
    *,
    packing: Packing | None = None,
    cache: Cache | None = None,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hidden states float [B, S, D] behind `layers`, of hidden float [B, S, D] at position_ids int64 [B, S].

    `packing`: utterances side by side (B = 1). `cache`: the S positions follow those in it, and are added to it.
    `attention_mask` bool [B, 1, S, K] names the visible ones of the K positions of the cache; without it, all before.
    """
    rotation = rotary(hidden, position_ids)
    for layer in layers:
        hidden = layer(
            hidden,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
            position_embeddings=rotation,
            packing=packing,
        )
    return hidden
