"""A training step rehearsed for a GPU: its branches, and nothing in it that waits for the device or is left behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rehearsal import DEVICE, Slip, Watch, on_device, rehearsal
from tiny_models import ARCHITECTURES, tiny_batch, tiny_config

from slmkit.data.batch import Batch
from slmkit.model.architecture import TESTED
from slmkit.model.attention import Execution
from slmkit.model.heads.kinds import HEADS
from slmkit.model.slm import SpeechLM

FRAMES = (9, 4, 0, 13)
# Every kind of head, fusion and softmax, with and without speaker.
KINDS: dict[str, dict[str, Any]] = {
    "ntp": {"group": 0, "softmax": "full", "speaker_dim": 8},
    "ntp_stream": {"group": 0, "softmax": "stream"},
    "mtp3_linear": {"group": 3, "head": "linear", "fusion": "mean", "speaker_dim": 8},
    "mtp2_mlp_fused": {"group": 2, "head": "mlp", "fusion": "mlp", "sizes": (16, 5, 9)},
    "mtp1_transformer": {"group": 1, "head": "transformer", "fusion": "mean"},
}

CASES = [
    pytest.param(name, arch, marks=() if arch == "qwen2" or name == "mtp1_transformer" else pytest.mark.full)
    for name in KINDS
    for arch in TESTED
]


def step(model: SpeechLM, batch: Batch) -> Watch:
    """Forward and backward pass."""
    with rehearsal() as watch:
        model(batch).loss.backward()
    return watch


def rehearsed(
    name: str, arch: str = "qwen2", frames: tuple[int, ...] = FRAMES, **options: Any
) -> tuple[SpeechLM, Batch]:
    """A model and a micro-batch on the device."""
    # Of the layers of smollm3, not all have rotary positions. The kernel serves heads of 8, 16, ... numbers.
    backbone = {"qwen3": {"num_hidden_layers": 1, "head_dim": 16}, "smollm3": {}}.get(arch, {"num_hidden_layers": 1})
    config = tiny_config(arch=arch, backbone=backbone, **KINDS[name])
    return on_device(config, **options), tiny_batch(config, frames).to(DEVICE)


@pytest.mark.parametrize(("name", "arch"), CASES)
def test_a_step_waits_for_nothing(name: str, arch: str) -> None:
    """In bfloat16, with the GPU's kernel for packed utterances and its products of half precision in float32."""
    model, batch = rehearsed(name, arch)
    watch = step(model, batch)
    num_layers = len(model.backbone.layers) + sum(head.num_layers for head in model.heads)
    assert watch.operators["torch_attn._varlen_attn.default"] == num_layers
    assert watch.operators["torch_attn._varlen_attn_backward.default"] == num_layers
    assert watch.operators["aten.mm.dtype_out"]
    assert watch.operators["aten.mm.dtype"]
    for key, weight in model.named_parameters():
        assert weight.grad is not None, key
        assert (weight.grad.device, weight.grad.dtype) == (DEVICE, torch.bfloat16), key


def test_all_kinds_are_rehearsed() -> None:
    assert set(TESTED) == set(ARCHITECTURES)
    for option, values in {"head": HEADS, "fusion": ("mean", "mlp"), "softmax": ("full", "stream")}.items():
        assert {options.get(option) for options in KINDS.values()} >= set(values)


@pytest.mark.parametrize("frames", [(), (0, 0)], ids=["nothing", "text"])
@pytest.mark.parametrize("name", ["ntp_stream", "mtp2_mlp_fused"])
def test_nor_does_one_without_targets(name: str, frames: tuple[int, ...]) -> None:
    model, batch = rehearsed(name, frames=frames)
    assert not step(model, batch).reads


@pytest.mark.parametrize("name", ["ntp_stream", "mtp1_transformer"])
def test_nor_does_one_in_float32(name: str) -> None:
    """Which has no kernel for packed utterances: the host knows their lengths."""
    model, batch = rehearsed(name, dtype=torch.float32)
    watch = step(model, batch)
    assert not watch.operators["torch_attn._varlen_attn.default"]


def test_nor_does_one_that_computes_activations_again() -> None:
    model, batch = rehearsed("mtp2_mlp_fused")
    model.execution = Execution(recomputed=True)
    watch = step(model, batch)
    assert watch.operators["torch_attn._varlen_attn.default"] == 2 * len(model.backbone.layers)


PLACES: dict[str, Callable[[SpeechLM], Any]] = {
    "embedding": lambda model: model.backbone.embed_tokens,
    "fusion": lambda model: model.fusion[0],
    "attention": lambda model: model.backbone.layers[0].self_attn.o_proj,
    "norm": lambda model: model.backbone.norm,
    "head": lambda model: model.heads[0].head[0],
    "loss": lambda model: model.lm_model.lm_head,
    "backward pass": lambda model: model.fusion[2].weight,
}


def number(states: torch.Tensor) -> torch.Tensor:
    return states * states.mean().item()


def left_behind(states: torch.Tensor) -> torch.Tensor:
    return states * torch.ones(states.shape[-1])


@pytest.mark.parametrize(("slip", "message"), [(number, "is waited for"), (left_behind, "tensors on several devices")])
@pytest.mark.parametrize("place", PLACES)
def test_a_slip_anywhere_is_noticed(place: str, slip: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    """A read of a number, and a tensor left in host memory, put into every hot path of a step."""
    model, batch = rehearsed("mtp2_mlp_fused")
    spoilt = PLACES[place](model)
    if place == "loss":
        spoilt.register_forward_pre_hook(lambda module, given: (slip(given[0]),))
    elif place == "backward pass":
        spoilt.register_hook(slip)
    else:
        spoilt.register_forward_hook(lambda module, given, output: slip(output))
    with pytest.raises(Slip, match=message):
        step(model, batch)
