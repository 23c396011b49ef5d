"""A model goes on from the weights of an export, and only from those of its own kind."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from synthetic import WORDS, codec_spec

from slmkit.errors import UserError
from slmkit.model.init_base import init_base
from slmkit.model.pretrained import (
    check_export,
    config_on_base,
    export_sha256,
    extended_tokenizer,
    from_base,
    from_export,
    load,
    save,
)
from slmkit.model.published import to_published

SIZES = {"hidden_size": 16, "num_layers": 1, "vocab_size": 280}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"group": 0},
    "mtp": {"group": 6, "head": "mlp", "fusion": "mlp", "speaker": True},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, other bases, and exports "plain" and "mtp" on `base` whose weights no seed gives."""
    place = tmp_path_factory.mktemp("stages")
    init_base(WORDS, place / "base", **SIZES)
    init_base(WORDS, place / "deeper", **{**SIZES, "num_layers": 2})
    init_base(WORDS, place / "larger", **{**SIZES, "vocab_size": 281})
    init_base([word[::-1] for word in WORDS], place / "reversed", **SIZES)
    for name, options in KINDS.items():
        model = from_base(place / "base", codec=codec_spec(), seed=5, **options)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(1.0)
        save(model, place / name, tokenizer=extended_tokenizer(place / "base", model.layout))
    return place


def check(place: Path, export: str | Path, base: str = "base", codec: Any = None, **options: Any) -> list[str]:
    config = config_on_base(place / base, codec=codec or codec_spec(), **options)
    return check_export(place / export, config, base_dir=place / base)


@pytest.mark.parametrize("name", KINDS)
def test_every_weight_arrives(place: Path, name: str) -> None:
    assert check(place, name, **KINDS[name]) == []
    config = config_on_base(place / "base", codec=codec_spec(), **KINDS[name])
    model, source = from_export(place / name, config, seed=0), load(place / name)
    assert model.training
    assert model.lm_model.lm_head.weight is model.lm_model.model.embed_tokens.weight
    assert model.state_dict().keys() == source.state_dict().keys()
    for key, weight in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], weight), key


def test_weights_become_float32(place: Path, tmp_path: Path) -> None:
    narrow = load(place / "plain").to(torch.bfloat16)
    save(narrow, tmp_path / "out", tokenizer=extended_tokenizer(place / "base", narrow.layout))
    assert check(place, tmp_path / "out") == []
    model = from_export(tmp_path / "out", config_on_base(place / "base", codec=codec_spec()), seed=0)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    weight = model.lm_model.lm_head.weight
    assert torch.equal(weight, load(place / "plain").lm_model.lm_head.weight.bfloat16().float())


def test_a_model_without_speaker_input_gets_one(place: Path) -> None:
    (change,) = check(place, "plain", speaker=True)
    assert "had no speaker input: its projector starts from new weights" in change
    config = config_on_base(place / "base", codec=codec_spec(), speaker=True)
    one, same, other = (from_export(place / "plain", config, seed=seed) for seed in (1, 1, 2))
    assert one.spk_emb_proj is not None
    assert same.spk_emb_proj is not None
    assert other.spk_emb_proj is not None
    assert torch.equal(one.spk_emb_proj[0].weight, same.spk_emb_proj[0].weight)
    assert not torch.equal(one.spk_emb_proj[0].weight, other.spk_emb_proj[0].weight)
    for key, weight in load(place / "plain").state_dict().items():
        assert torch.equal(other.state_dict()[key], weight), key


def test_another_loss_is_allowed_and_named(place: Path) -> None:
    changes = check(place, "plain", softmax="stream", text_loss_weight=0.5)
    assert [change.split(" in ")[0] for change in changes] == [
        "softmax is stream, and was full",
        "text_loss_weight is 0.5, and was 0.2",
    ]
    config = config_on_base(place / "base", codec=codec_spec(), softmax="stream")
    assert from_export(place / "plain", config, seed=0).config.softmax == "stream"


@pytest.mark.parametrize(
    ("export", "change", "message"),
    [
        ("plain", {"group": 3}, "model.group differs\n  got:      0\n  expected: 3"),
        ("mtp", {"group": 3}, "model.group differs\n  got:      6\n  expected: 3"),
        ("mtp", {"head": "linear"}, "model.head differs\n  got:      mlp\n  expected: linear"),
        ("mtp", {"fusion": "mean"}, "model.fusion differs\n  got:      mlp\n  expected: mean"),
        ("mtp", {"speaker": False}, "model.speaker differs\n  got:      True\n  expected: False"),
        ("mtp", {"codec": codec_spec((16, 16, 32))}, "is not the codec of this run: streams differs"),
        ("mtp", {"codec": codec_spec(speaker_dim=9)}, "is not the codec of this run: speaker_dim differs"),
        ("plain", {"base": "larger"}, "is not the vocabulary of this run: base_size differs"),
        ("plain", {"base": "deeper"}, "num_hidden_layers of the base model differs\n  got:      1\n  expected: 2"),
        ("plain", {"base": "reversed"}, "the tokenizer (sha256) differs"),
    ],
)
def test_the_first_difference_is_named(place: Path, export: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check(place, export, **{**KINDS[export], **change})
    assert message in str(caught.value)


def test_what_is_no_export_is_refused(place: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", place / "base"):
        with pytest.raises(UserError, match="init_from is not the directory of an exported model"):
            check(place, path)
    published = tmp_path / "published"
    shutil.copytree(place / "mtp", published)
    save_file(to_published(from_base(place / "base", codec=codec_spec(), group=3)), published / "model.safetensors")
    (published / "config.json").write_text((place / "base" / "config.json").read_text())
    with pytest.raises(UserError, match=r"is not in slmkit's format(.|\n)*slmkit import-model"):
        check(place, published)
    (published / "config.json").write_text(json.dumps([]))
    with pytest.raises(UserError, match="is not in slmkit's format"):
        check(place, published)


def test_an_export_is_known_by_its_hash(place: Path, tmp_path: Path) -> None:
    """Of all that makes it the model it is, and not of the record of its making."""
    copy, parts = tmp_path / "copy", tmp_path / "parts"
    shutil.copytree(place / "mtp", copy)
    whole = export_sha256(copy)
    (copy / "provenance.json").write_text("{}")
    assert export_sha256(copy) == whole == export_sha256(place / "mtp") != export_sha256(place / "plain")
    (copy / "tokenizer.json").write_text("{}")
    assert export_sha256(copy) != whole
    load(place / "mtp").save_pretrained(parts, max_shard_size="20KB")
    whole = export_sha256(parts)
    max(parts.glob("*.safetensors")).unlink()
    assert export_sha256(parts) != whole
    with pytest.raises(UserError, match="holds no model"):
        export_sha256(tmp_path)
