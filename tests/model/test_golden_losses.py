"""Losses of the published code, computed with seeded weights (the file says how), in all its configurations.

Both sides work in float32 with sums in another order; 1e-4 is the agreement the golden file promises, 2e-6 is seen.
"""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_examples import TEXTS, published_codes, published_speaker
from seeded_weights import seed_state

from slmkit.codec.base import CodecSpec, Stream
from slmkit.data.batch import Batch
from slmkit.data.loader import ExampleFormat, collate
from slmkit.data.prompt import tts
from slmkit.data.sequence import build, tokenize
from slmkit.data.shards import Sample
from slmkit.data.text import TextTokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.model.config import SpeechLMConfig
from slmkit.model.pretrained import base_layout
from slmkit.model.published import to_published
from slmkit.model.slm import SpeechLM

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "slm"
EXPECTED = json.loads((GOLDEN / "golden_synthetic.json").read_text())
NAMES = [name for name in EXPECTED if name.endswith(("_spk0", "_spk1"))]
ROLES = (("content_1", "content"), ("content_2", "content"), ("prosody", "prosody"))
SPEC = CodecSpec(
    name="facodec_v2",
    sample_rate=16000,
    hop_samples=200,
    streams=tuple(Stream(name, 1024, role) for name, role in ROLES),
    speaker_dim=256,
    weights_sha256="",
)
TOLERANCE = 1e-4


@functools.cache
def tokenizer() -> TextTokenizer:
    return TextTokenizer.load(GOLDEN / "tiny_base")


def golden_model(name: str) -> SpeechLM:
    kind, *head, speaker = name.split("_")
    group = int(kind.removeprefix("mtp")) if kind != "ntp" else 0
    layout = base_layout(tokenizer(), SPEC, group)
    base = json.loads((GOLDEN / "tiny_base" / "config.json").read_text())
    config = SpeechLMConfig(
        backbone={**base, "vocab_size": layout.size},
        layout=layout.to_dict(),
        codec=SPEC.to_dict(),
        group=group,
        head=head[0] if head else "linear",
        speaker_dim=SPEC.speaker_dim if speaker == "spk1" else 0,
    )
    model = SpeechLM(config)
    state = seed_state(model.state_dict())
    state["lm_model.model.embed_tokens.weight"] = state["lm_model.lm_head.weight"]
    model.load_state_dict(state)
    return model.eval()


def golden_batch(i: int, layout: VocabLayout, group: int, speaker_dim: int) -> Batch:
    codes, vector = published_codes(i), published_speaker(i)
    speaker = speaker_dim > 0
    pieces = tokenize(tts(TEXTS[i], speaker=speaker), tokenizer().encode, layout)
    example = build(pieces, codes, layout, group)
    counts = np.bincount(example.lm_groups, minlength=1 + (group or 3)).astype(np.float64)
    if group:
        counts[1:] = len(example.head_positions)
    return collate(
        [(example, Sample(str(i), codes.astype(np.uint16), vector, {}))],
        layout,
        ExampleFormat(task="tts", group=group, speaker=speaker),
        speaker_dim=speaker_dim,
        global_counts=counts,
    )


@pytest.mark.parametrize("name", NAMES)
def test_losses_agree_with_the_published_code(name: str) -> None:
    model = golden_model(name)
    for i, expected in enumerate(EXPECTED[name]):
        batch = golden_batch(i, model.layout, model.group, model.config.speaker_dim)
        assert batch.num_tokens == expected["n"]
        with torch.no_grad():
            output = model(batch)
        assert output.loss.item() == pytest.approx(expected["loss"], abs=TOLERANCE)
        if model.group:
            text, *heads = (output.sums / batch.global_counts).tolist()
            assert text == pytest.approx(expected["loss_text"], abs=TOLERANCE)
            assert heads == pytest.approx(expected["head_losses"], abs=TOLERANCE)
            assert np.mean(heads) == pytest.approx(expected["loss_speech"], abs=TOLERANCE)
        else:
            assert batch.tokens[:40, 0].tolist() == expected["head_ids"]


def test_all_published_configurations_are_covered() -> None:
    assert len(NAMES) == 14
    assert all(len(EXPECTED[name]) == len(TEXTS) for name in NAMES)


def expected_keys(name: str) -> dict[str, Any]:
    """Published keys and shapes; those of the backbone are listed for NTP, of an mlp head for the first head only."""
    kind = "_".join(name.split("_")[:-1])
    if kind == "ntp":
        return EXPECTED["ntp_keys"]
    return EXPECTED[f"{kind}_keys" if f"{kind}_keys" in EXPECTED else f"{kind.split('_')[0]}_keys"]


@pytest.mark.parametrize("name", [name for name in NAMES if "transformer" not in name])
def test_published_keys_and_shapes(name: str) -> None:
    state = to_published(golden_model(name))
    for key, shape in expected_keys(name).items():
        assert list(state[key].shape) == shape, key
    if name.endswith("spk1"):
        for key, shape in EXPECTED["ntp_spk_keys"].items():
            assert list(state[key].shape) == shape, key
