"""The decoder layers of the text model, and the attention they use.

The layers are transformers' own. Here are the loop over them (`run_layers`; for a decoding step `infer/decoder.py`
gives it copies that share the weights), and the attention of training and of reading a prompt: causal, never
across an utterance border. It serves every architecture through transformers' attention interface.

An architecture fits where a decoder layer is made of linear layers, norms and one full attention with rotary positions
(`check_config`, `check_modules`). `TESTED` names those that the tests run.

Utterances lie back to back in one row of N positions. Each attends to itself alone, so the cost is the sum of the
squares of the utterances, not the square of the row, and no mask is ever built. `packing` tells training (given) from
decoding (absent), and how training runs the layers: compiled (`compiled.py`), or with their activations computed again
in the backward pass. The model's own weights and modules are the same in every case.

Kernels: on CUDA in half precision what `kernels.py` finds; everywhere else scaled_dot_product_attention, one call per
utterance, which is exact.

Shapes: B batch (1 when packed), S positions, D width, H query heads, J key-value heads, Q queries, K keys, E head
width, N positions of a packed row, U utterances.

Invariant: the output at a position depends on its own utterance up to that position, whatever lies beside it.

Example:
    model = new_causal_lm(backbone_config(values)).model
    hidden = run_layers(model.layers, model.rotary_emb, embedded, position_ids, packing=Packing(cu_seqlens, N))
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, AutoConfig, Cache, PreTrainedConfig

from slmkit.errors import UserError
from slmkit.model.kernels import packed_kernel

ATTENTION = "slmkit_packed"  # under this name transformers builds no mask of its own
DEFAULT_TYPE = "qwen2"  # of backbone values that name no model_type
TESTED = ("qwen2", "qwen3", "llama", "smollm3")  # architectures, as transformers calls their `model_type`
FULL_ATTENTION = "full_attention"  # transformers' name of a layer that sees all positions before it
# Kinds of rotary positions whose frequencies are the same for every length; those of "dynamic" and "longrope" are not.
FIXED_ROTARY = ("default", "linear", "yarn", "llama3")
BACKBONE_PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")
NORM_EPSILON = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
# What transformers passes to an attention function where the result is not that of plain causal attention.
OTHER_ATTENTION = ("sliding_window", "softcap", "s_aux", "position_bias")
HALF_TYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the decoder layers are run over packed utterances. The losses are the same in every case, to rounding."""

    compiled: bool = False  # by torch.compile
    recomputed: bool = False  # activations are computed again in the backward pass, in place of being kept


@dataclass(frozen=True)
class Packing:
    """Where the utterances of a row begin and end, and how the layers are run over them."""

    cu_seqlens: torch.Tensor  # int32 [U + 1], first 0, last N
    num_positions: int  # N; no utterance is longer
    known_lengths: tuple[int, ...] | None = None  # positions of each utterance, where the host knows them
    execution: Execution = Execution()

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Positions of each utterance, on the host; unless they are known, the device is waited for."""
        known = self.known_lengths
        return torch.diff(self.cu_seqlens).tolist() if known is None else list(known)

    @property
    def longest(self) -> int:
        """No utterance is longer. A kernel starts work for so many positions of every utterance, there or not; so where
        lengths are known this is less than twice the longest, a power of two, for few different values."""
        known = self.known_lengths
        return self.num_positions if known is None else min(self.num_positions, 1 << (max(known) - 1).bit_length())


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


def attention_of(layer: nn.Module) -> Any:
    """The attention of a decoder layer that `check_modules` accepted."""
    (attention,) = _attentions(layer)
    return attention


def _attentions(layer: nn.Module) -> list[nn.Module]:
    """Modules within a layer that know their entry of the key-value cache."""
    return [module for module in layer.modules() if module is not layer and hasattr(module, "layer_idx")]


def head_width(config: Any) -> int:
    """Numbers of a query, key or value of one head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def num_key_value_heads(config: Any) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def norm_epsilon(config: PreTrainedConfig) -> float:
    """What the norms of the backbone add to a variance, by the names that architectures have for it."""
    found = [getattr(config, name) for name in NORM_EPSILON if getattr(config, name, None) is not None]
    return found[0] if found else 1e-6


def check_config(config: PreTrainedConfig) -> None:
    """Raise UserError where a backbone's config asks for what this package does not compute."""
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", window is not None):
        raise does_not_fit(config, "it has sliding-window attention")
    others = sorted({str(kind) for kind in getattr(config, "layer_types", None) or ()} - {FULL_ATTENTION})
    if others:
        raise does_not_fit(config, f"it has layers of {', '.join(others)}")
    rotary = getattr(config, "rope_parameters", None)
    kind = rotary.get("rope_type") if isinstance(rotary, dict) else None
    if kind not in FIXED_ROTARY:
        raise does_not_fit(config, f"its rotary positions are of the kind {kind}, not {', '.join(FIXED_ROTARY)}")


def check_modules(causal_lm: Any) -> None:
    """Raise UserError where a causal language model has parts this package does not know how to run.

    The weights themselves are not looked at: they may be on the device "meta".
    """
    config = causal_lm.config
    backbone: Any = getattr(causal_lm, "model", None)
    missing = [f"model.{name}" for name in BACKBONE_PARTS if not hasattr(backbone, name)]
    missing += [] if isinstance(getattr(causal_lm, "lm_head", None), nn.Linear) else ["lm_head"]
    if missing:
        raise does_not_fit(config, f"it has no {' and no '.join(missing)}")
    if causal_lm.lm_head.bias is not None:
        raise does_not_fit(config, "its output layer has a bias")
    for number, layer in enumerate(backbone.layers):
        kind: Any = type(layer)
        known = inspect.signature(kind.forward).parameters
        if "position_embeddings" not in known or cache_argument(kind) not in known:
            raise does_not_fit(config, f"layer {number} takes no rotary positions, or has no key-value cache")
        if len(_attentions(layer)) != 1:
            raise does_not_fit(config, f"layer {number} has {len(_attentions(layer))} attentions")
        for name, module in layer.named_modules():
            own = [weight for weight in module.parameters(recurse=False) if not isinstance(module, nn.Linear)]
            is_leaf = not list(module.children())
            if isinstance(module, nn.ModuleList) or any(weight.ndim != 1 or not is_leaf for weight in own):
                raise does_not_fit(config, f"layer {number} has a part of another kind, {type(module).__name__} {name}")


def does_not_fit(config: Any, found: str) -> UserError:
    """What to raise for an architecture in which `found` was found."""
    return UserError(
        f"a base model of the architecture {config.model_type} does not fit: {found}",
        expected="decoder layers of linear layers, norms and one full attention with rotary positions",
        next_step=f"use a base of another architecture; tested are {', '.join(TESTED)}",
    )


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


@functools.cache
def cache_argument(layer: Any) -> str:
    """What a class of transformers' layers calls the cache: "cache" from 5.24 on."""
    return "cache" if "cache" in inspect.signature(layer.forward).parameters else "past_key_values"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    packing: Packing | None = None,
    attend: Callable[..., torch.Tensor] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention output [B, Q, H, E] of query [B, H, Q, E], key and value [B, J, K, E], float.

    With `packing` B is 1 and Q = K = N. Without, the queries are the last Q of the K keys unless `attention_mask`
    [B, 1, Q, K] says which keys each query sees: bool, or float that is added to the scores. `attend`, in place of
    `packing`: what gives the output [N, H, E] of query [N, H, E], key and value [N, J, E], and the scaling. Raises
    UserError where `options` asks for another attention, such as one with a window.
    """
    check_plain(module, options)
    if attend is not None:
        rows = [x[0].transpose(0, 1) for x in (query, key, value)]
        return attend(*rows, scaling)[None], None
    if packing is None:
        return _attend_cached(query, key, value, attention_mask, scaling), None
    on_gpu = query.is_cuda and query.dtype in HALF_TYPES and not dropout
    kernel = packed_kernel(query.shape[-1]) if on_gpu else None
    if kernel is None:
        return attend_by_utterance(query, key, value, packing.lengths, scaling, dropout), None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return kernel.attend(q, k, v, packing.cu_seqlens, packing.longest, scaling)[None], None


def attend_by_utterance(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention output [1, N, H, E] of query [1, H, N, E], key and value [1, J, N, E], one utterance after the other.

    `lengths`: positions of each utterance, N together.
    """
    key, value = _per_query_head(query, key), _per_query_head(query, value)
    pieces = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    outputs = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout) for q, k, v in pieces
    ]
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1)


def check_plain(module: Any, options: Mapping[str, Any]) -> None:
    """Raise UserError where transformers asks an attention function for more than causal attention."""
    asked = [name for name in OTHER_ATTENTION if options.get(name) is not None]
    if asked:
        raise does_not_fit(module.config, f"its attention has {', '.join(asked)}")


def _attend_cached(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    batch, heads, num_queries, width = query.shape
    num_keys = key.shape[2]
    if num_queries == 1:  # the query heads that share keys stand in for queries: no copies of the cache
        shared = query.reshape(batch, key.shape[1], -1, width)
        output = F.scaled_dot_product_attention(shared, key, value, attn_mask=mask, scale=scaling)
        return output.reshape(batch, 1, heads, width)
    whole = mask is None and num_queries == num_keys
    if mask is None and not whole:
        visible = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
        mask = visible.tril(num_keys - num_queries)
    key, value = _per_query_head(query, key), _per_query_head(query, value)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=whole, scale=scaling)
    return output.transpose(1, 2)


def _per_query_head(query: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Keys or values [B, J, K, E] repeated to [B, H, K, E]."""
    return shared.repeat_interleave(query.shape[1] // shared.shape[1], dim=1)
