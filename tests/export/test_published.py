"""The published format there and back for every kind of model it knows, against the published list of keys."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from memorising import BASE, small_model
from safetensors.torch import load_file, save_file

from slmkit.cli.main import main
from slmkit.corpora.published import SPEC
from slmkit.data.text import TextTokenizer
from slmkit.model.pretrained import extended_tokenizer, load, save
from slmkit.model.published import from_published, to_published
from slmkit.model.slm import SpeechLM

GOLDEN = json.loads((BASE.parent / "golden_synthetic.json").read_text())
CODEC = dataclasses.replace(SPEC, speaker_dim=256)
EMBEDDINGS = ("lm_model.model.embed_tokens.weight", "lm_model.lm_head.weight")
HEADS = ("linear", "mlp", "transformer")
KINDS = [(0, "linear"), *((group, head) for group in (3, 6, 12) for head in HEADS)]


def expected_shapes(group: int, head: str, speaker: int) -> dict[str, list[int]]:
    """Published keys and shapes: backbone, speaker projector and heads; of deep heads only what all kinds share."""
    if not group:
        heads: dict[str, Any] = {}
    elif head == "linear":
        heads = GOLDEN[f"mtp{group}_keys"]
    elif head == "mlp":
        heads = GOLDEN[f"mtp{group}_mlp_keys"]
    else:
        heads = {name: shape for name, shape in GOLDEN[f"mtp{group}_keys"].items() if ".head." not in name}
    rows = {name: [TextTokenizer.load(BASE).base_size + 3072 + (6 if group else 7), 64] for name in EMBEDDINGS}
    return {**GOLDEN["ntp_keys"], **rows, **(GOLDEN["ntp_spk_keys"] if speaker else {}), **heads}


def check_weights(state: dict[str, torch.Tensor], model: SpeechLM, dtype: torch.dtype) -> None:
    """The model's own weights, the keys and shapes that were published, and no others."""
    expected = expected_shapes(model.group, model.config.head, model.config.speaker_dim)
    for name, shape in expected.items():
        assert list(state[name].shape) == shape, name
    assert {name.split(".")[0] for name in state} == {name.split(".")[0] for name in expected}
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value.to(dtype)), name


@pytest.mark.parametrize("speaker", [0, 256])
@pytest.mark.parametrize(
    ("group", "head"), [*KINDS[:3], *(pytest.param(*kind, marks=pytest.mark.full) for kind in KINDS[3:])]
)
def test_there_and_back_bit_for_bit(group: int, head: Any, speaker: int, tmp_path: Path) -> None:
    model = small_model(TextTokenizer.load(BASE), CODEC, group, head=head, speaker_dim=speaker, like=BASE)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_file(to_published(model), first)
    check_weights(load_file(first), model, torch.float32)
    save_file(to_published(from_published(first, base_dir=BASE, codec=CODEC)), second)
    assert second.read_bytes() == first.read_bytes()


@pytest.mark.parametrize(
    ("group", "head", "speaker", "dtype"), [(0, "linear", 256, "float32"), (12, "transformer", 256, "bfloat16")]
)
def test_the_commands_go_there_and_back(group: int, head: Any, speaker: int, dtype: str, tmp_path: Path) -> None:
    """Export, import and export again: the same bytes, in the same float type."""
    model = small_model(TextTokenizer.load(BASE), CODEC, group, head=head, speaker_dim=speaker, like=BASE)
    save(model, tmp_path / "model", tokenizer=extended_tokenizer(BASE, model.layout))
    options = ["--format", "published", "--dtype", dtype]
    assert main(["consolidate", str(tmp_path / "model"), str(tmp_path / "first"), *options]) == 0
    first = tmp_path / "first" / "model.safetensors"
    check_weights(load_file(first), model, getattr(torch, dtype))
    assert main(["import-model", str(first), str(tmp_path / "back"), "--base", str(BASE)]) == 0
    assert load(tmp_path / "back").dtype == getattr(torch, dtype)
    assert main(["consolidate", str(tmp_path / "back"), str(tmp_path / "second"), *options[:2]]) == 0
    assert (tmp_path / "second" / "model.safetensors").read_bytes() == first.read_bytes()
