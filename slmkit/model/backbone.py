"""The decoder layers of the text model.

They are transformers' own (`architecture.py` says which fit), with the attention of `attention.py`. Here are the making
of them and the loop over them (`run_layers`; for a decoding step `infer/decoder.py` gives it copies that share the
weights). In training they run as they are, compiled (`compiled.py`), or with their activations computed again in the
backward pass; the model's own weights and modules are the same in every case.

Shapes: B batch (1 when packed), S positions, D width, N positions of a packed row.

Example:
    model = new_causal_lm(backbone_config(values)).model
    hidden = run_layers(model.layers, model.rotary_emb, embedded, position_ids, packing=Packing(cu_seqlens, N))
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, AutoConfig, Cache, PreTrainedConfig

from slmkit.model.architecture import attention_of, cache_argument, check_modules, does_not_fit
from slmkit.model.attention import Execution, Packing, packed_attention

ATTENTION = "slmkit_packed"  # under this name transformers builds no mask of its own
DEFAULT_TYPE = "qwen2"  # of backbone values that name no model_type


def backbone_config(values: dict[str, Any]) -> Any:
    """The transformers config of plain values, set to packed attention."""
    values = dict(values)
    kind = values.pop("model_type", DEFAULT_TYPE)
    return AutoConfig.for_model(kind, **{**values, "attn_implementation": ATTENTION})


def new_causal_lm(config: PreTrainedConfig) -> Any:
    """A transformers causal language model of `config` with new weights.

    Raises UserError when its architecture is not one that fits.
    """
    AttentionInterface.register(ATTENTION, packed_attention)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise does_not_fit(config, "transformers has no decoder of this kind")
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = model_class(config)
    check_modules(model)
    return model


def extra_layers(backbone: Any, count: int, first_index: int) -> nn.ModuleList:
    """`count` more decoder layers like the first ones of `backbone`, with cache entries from `first_index` on."""
    config = backbone.config
    layers = nn.ModuleList(type(backbone.layers[0])(config, i % config.num_hidden_layers) for i in range(count))
    for i, layer in enumerate(layers):
        attention_of(layer).layer_idx = first_index + i
    return layers


def run_layers(
    layers: Iterable[nn.Module],
    rotary: Callable[..., Any],
    hidden: torch.Tensor,
    position_ids: torch.Tensor,
    *,
    packing: Packing | None = None,
    cache: Cache | None = None,
    **options: Any,
) -> torch.Tensor:
    """Hidden states float [B, S, D] behind `layers`, of hidden float [B, S, D] at position_ids int64 [B, S].

    `packing`: utterances side by side (B = 1), and how the layers are run over them. `cache`: the S positions follow
    those in it, and are added to it. `options` reach the attention function.
    """
    execution = Execution() if packing is None else packing.execution
    if packing is not None and execution.compiled and hidden.shape[1] == 1:
        # A size of one is no size to torch.compile, and would be compiled for itself. That position goes in twice: no
        # process may run the layers in another way than the others, since it would sum its gradients in another order.
        twice = Packing(2 * packing.cu_seqlens, 2, execution=execution)
        return run_layers(layers, rotary, hidden.repeat(1, 2, 1), position_ids.repeat(1, 2), packing=twice)[:, :1]
    rotation = rotary(hidden, position_ids)

    def run_plain(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        kind: Any = type(layer)
        return layer(
            hidden,
            attention_mask=None,
            position_ids=position_ids,
            use_cache=cache is not None,
            position_embeddings=rotation,
            packing=packing,
            **{cache_argument(kind): cache},
            **options,
        )

    run: Callable[..., Any] = run_plain
    if packing is not None and execution.compiled:
        from slmkit.model.compiled import compiled_run  # loads torch's compiler, which takes seconds

        run = compiled_run(position_ids, rotation, packing)
        hidden = hidden.clone()  # embeddings are a view, what layers give is not: torch.compile would compile for both
    if execution.recomputed and torch.is_grad_enabled():
        run = functools.partial(checkpoint, run, use_reentrant=False)
    for layer in layers:
        hidden = run(layer, hidden)
    return hidden
