"""The operations we compute are those that torch counts in a real forward pass."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import tiny_batch, tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from slmkit.model.flops import BatchSizes, Flops, peak_tflops
from slmkit.model.slm import SpeechLM

FRAMES = (5, 0, 12, 7)
WIDE = {"head_dim": 24, "num_attention_heads": 4, "num_key_value_heads": 1}  # heads that are not width / number
MODELS: dict[str, dict[str, Any]] = {
    "ntp": {},
    "ntp, stream softmax": {"softmax": "stream"},
    "ntp, speaker": {"speaker_dim": 8},
    "mtp-3": {"group": 3},
    "mtp-6, mlp heads and fusion": {"group": 6, "head": "mlp", "fusion": "mlp"},
    "mtp-3, transformer heads, speaker": {"group": 3, "head": "transformer", "speaker_dim": 8},
    "mtp-12, mlp fusion": {"group": 12, "fusion": "mlp", "speaker_dim": 8},
    "ntp, other head width": {"backbone": WIDE},
    "qwen3, ntp": {"arch": "qwen3"},
    "llama, mtp-3, transformer heads": {"arch": "llama", "group": 3, "head": "transformer"},
    "smollm3, mtp-6, transformer heads": {"arch": "smollm3", "group": 6, "head": "transformer"},
    "mtp-4, unequal codebooks": {"group": 4, "head": "mlp", "sizes": (16, 5, 9)},
}


def counted(model: SpeechLM, batch: Any) -> int:
    """Torch counts the products of the attention only where it is computed by plain products: all pairs of each."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch)
    return counter.get_total_flops()


def squared(sizes: BatchSizes, batch: Any) -> BatchSizes:
    """As if each position saw its whole utterance."""
    return replace(sizes, attention_pairs=int(torch.diff(batch.cu_seqlens).long().square().sum()))


@pytest.mark.parametrize("name", MODELS)
def test_they_are_those_of_a_real_forward_pass(name: str) -> None:
    """Exactly."""
    config = tiny_config(**MODELS[name])
    model, batch = SpeechLM(config), tiny_batch(config, FRAMES)
    sizes = BatchSizes.of(batch)
    parts = Flops(model).parts(squared(sizes, batch))
    assert sum(parts.values()) == counted(model, batch)
    assert (parts["speech heads"] > 0) == (config.group > 0)
    assert (parts["fusion"] > 0) == (config.group > 0 and config.fusion == "mlp")
    assert (parts["speaker"] > 0) == (config.speaker_dim > 0)


def test_heads_may_have_any_width() -> None:
    """Also where an architecture takes the width without declaring it."""
    model = SpeechLM(tiny_config(backbone=WIDE))
    assert model.backbone.layers[0].self_attn.head_dim == WIDE["head_dim"]
    assert SpeechLM(tiny_config(arch="qwen3")).backbone.layers[0].self_attn.head_dim == 12


def test_training_is_three_forward_passes() -> None:
    """Exactly, but that torch does not count the in-place products with which the loss computes its own gradients."""
    config = tiny_config(3)
    model, batch = SpeechLM(config), tiny_batch(config, FRAMES)
    costs, sizes = Flops(model), squared(BatchSizes.of(batch), batch)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch).loss.backward()
    parts = costs.parts(sizes)
    assert costs.training(sizes) == counter.get_total_flops() + 2 * (parts["text logits"] + parts["speech heads"])


def test_attention_pairs_are_causal_and_stay_within_utterances() -> None:
    config = tiny_config()
    batch = tiny_batch(config, FRAMES)
    utterance = torch.searchsorted(batch.cu_seqlens, torch.arange(batch.num_tokens), right=True)
    sees = (utterance[:, None] == utterance[None]).tril()
    assert BatchSizes.of(batch).attention_pairs == int(sees.sum())


def test_a_batch_on_a_device_is_counted_from_what_the_host_knows() -> None:
    """There is nothing to read on this device."""
    for group in (0, 3):
        batch = tiny_batch(tiny_config(group), FRAMES)
        assert BatchSizes.of(batch.to("meta")) == BatchSizes.of(batch)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Tesla V100-SXM2-32GB", None),
        ("", None),
    ],
)
def test_only_known_devices_have_a_peak(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak
