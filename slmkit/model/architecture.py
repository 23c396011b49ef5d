"""Which decoders of transformers can be a base, and the facts of them that others need.

An architecture fits where a decoder layer is made of linear layers, norms and one full attention with rotary positions
(`check_config`, `check_modules`). `TESTED` names those that the tests run.

Example:
    check_config(config)
    check_modules(causal_lm)
"""

import functools
import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from slmkit.errors import UserError

TESTED = ("qwen2", "qwen3", "llama", "smollm3")  # architectures, as transformers calls their `model_type`
FULL_ATTENTION = "full_attention"  # transformers' name of a layer that sees all positions before it
# Kinds of rotary positions whose frequencies are the same for every length; those of "dynamic" and "longrope" are not.
FIXED_ROTARY = ("default", "linear", "yarn", "llama3")
BACKBONE_PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")
NORM_EPSILON = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")


def head_width(config: Any) -> int:
    """Numbers of a query, key or value of one head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def num_key_value_heads(config: Any) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def norm_epsilon(config: PreTrainedConfig) -> float:
    """What the norms of the backbone add to a variance, by the names that architectures have for it."""
    found = [getattr(config, name) for name in NORM_EPSILON if getattr(config, name, None) is not None]
    return found[0] if found else 1e-6


def attention_of(layer: nn.Module) -> Any:
    """The attention of a decoder layer that `check_modules` accepted."""
    (attention,) = _attentions(layer)
    return attention


def _attentions(layer: nn.Module) -> list[nn.Module]:
    """Modules within a layer that know their entry of the key-value cache."""
    return [module for module in layer.modules() if module is not layer and hasattr(module, "layer_idx")]


@functools.cache
def cache_argument(layer: Any) -> str:
    """What a class of transformers' layers calls the cache: "cache" from 5.24 on."""
    return "cache" if "cache" in inspect.signature(layer.forward).parameters else "past_key_values"


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
