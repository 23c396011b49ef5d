"""Checkpoints in the published format (arXiv 2506.12537), both ways.

Published weights have the names this package uses itself, a copy of the tied embedding under `lm_model.lm_head`, and
three lookup buffers per head: `bias` (the smallest token id of the head), `small_to_orig` (class to token id) and
`orig_to_small` (token id minus bias to class, -100 where there is none). The buffers follow from the vocabulary; on
import they are compared with it, so that weights of another vocabulary are refused.

Invariant: `from_published(to_published(model))` is the same model, in the same float type.

Example:
    model = from_published("checkpoint.safetensors", base_dir="Qwen2.5-0.5B", codec=spec)
"""

import functools
from pathlib import Path

import torch

from slmkit.codec.base import CodecSpec
from slmkit.data.sequence import head_classes
from slmkit.data.text import TextTokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.model.config import SpeechLMConfig
from slmkit.model.heads.kinds import HEADS
from slmkit.model.pretrained import (
    backbone_values,
    base_layout,
    check_finite,
    check_float_type,
    read_base_config,
)
from slmkit.model.slm import SpeechLM
from slmkit.weights import read_weights

StateDict = dict[str, torch.Tensor]
NO_CLASS = -100
EMBEDDING, LM_HEAD = "lm_model.model.embed_tokens.weight", "lm_model.lm_head.weight"
SPEAKER = "spk_emb_proj.0.weight"  # [inner width, speaker_dim]


def to_published(model: SpeechLM) -> StateDict:
    """The published state dict of a model. Raises UserError when it has parts the format lacks."""
    check_published(model.config)
    state = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    return state | lookup_buffers(model.layout, model.group)


def check_published(config: SpeechLMConfig) -> None:
    """Raise UserError for a model with parts that the format lacks."""
    _check_group(config.group, config.vocab_layout.num_streams)
    if config.group and config.fusion != "mean":
        raise UserError("the published format has no mlp fusion", got="fusion mlp", expected="fusion mean")


def lookup_buffers(layout: VocabLayout, group: int) -> StateDict:
    """The lookup buffers of all heads, int64. Raises UserError where a head has several streams."""
    _check_group(group, layout.num_streams)
    buffers, last = {}, [layout.id_of("<eosp>"), layout.id_of("<|speech_pad|>")] if group else []
    for i, classes in enumerate(head_classes(group, layout.codebook_sizes)):
        _, first, size = layout.streams[classes.streams[0]]
        ids = torch.tensor([*range(first, first + size), *last][: classes.size])
        lowest = ids.min()
        to_class = torch.full((int(ids.max() - lowest) + 2,), NO_CLASS)
        to_class[ids - lowest] = torch.arange(len(ids))
        prefix = f"speech_heads.{i}"
        buffers[f"{prefix}.bias"] = lowest
        buffers[f"{prefix}.small_to_orig"] = ids
        buffers[f"{prefix}.orig_to_small"] = to_class
    return buffers


def _check_group(group: int, num_streams: int) -> None:
    if group % num_streams:
        raise UserError(
            "the published format has heads of one stream only",
            got=f"group {group} of {num_streams} streams",
            expected=f"0 or a multiple of {num_streams}",
            next_step="use slmkit's own format",
        )


def from_published(checkpoint: str | Path, *, base_dir: str | Path, codec: CodecSpec) -> SpeechLM:
    """The model of a published checkpoint (.safetensors, or a torch file of tensors) that grew on `base_dir`.

    Raises UserError when the file cannot be read, or its keys, shapes or lookup buffers are not those of such a model.
    """
    state = read_weights(Path(checkpoint))
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{checkpoint} does not hold a state dict", expected="tensors by name")
    for name in (EMBEDDING, SPEAKER) if SPEAKER in state else (EMBEDDING,):
        if name not in state or state[name].ndim != 2 or not state[name].is_floating_point():
            raise UserError(f"{checkpoint} is not a published checkpoint", expected=f"a matrix of floats {name}")
    types = {value.dtype for value in state.values() if value.is_floating_point()}
    for dtype in types:
        check_float_type(dtype, checkpoint)
    group = sum(name.startswith("speech_heads.") and name.endswith(".small_to_orig") for name in state)
    kinds = [kind for kind, head in HEADS.items() if f"speech_heads.0.{head.published_key}" in state]
    _check_group(group, len(codec.lm_streams))
    layout = base_layout(TextTokenizer.load(base_dir), codec, group)
    config = SpeechLMConfig(
        backbone=backbone_values(read_base_config(base_dir).to_dict(), layout, len(state[EMBEDDING])),
        layout=layout.to_dict(),
        codec=codec.to_dict(),
        group=group,
        head=kinds[0] if kinds else "linear",
        speaker_dim=state[SPEAKER].shape[1] if SPEAKER in state else 0,
    )
    model = SpeechLM(config)
    # The narrowest float type that holds every weight exactly.
    torch.nn.Module.to(model, functools.reduce(torch.promote_types, types))
    buffers = lookup_buffers(model.layout, model.group)
    for name, expected in buffers.items():
        found = state.get(name)
        if found is None or not torch.equal(found.long(), expected):
            raise UserError(
                f"the vocabulary of {checkpoint} is not that of the base model and codec: {name} differs",
                next_step="give the base model and codec that the checkpoint was trained with",
            )
    weights = {name: value for name, value in state.items() if name not in buffers}
    if model.config.tie_word_embeddings:  # the published value of a tied pair is that of the head
        weights[EMBEDDING] = weights[LM_HEAD] = weights.get(LM_HEAD, weights[EMBEDDING])
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(own.keys() | theirs.keys()):
        if own.get(name) != theirs.get(name):
            raise UserError(
                f"{checkpoint} does not fit the base model and codec: {name}",
                got=theirs.get(name, "absent"),
                expected=own.get(name, "absent"),
            )
    model.load_state_dict(weights)
    check_finite(model, checkpoint)
    return model
