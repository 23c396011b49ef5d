"""Each architecture beside transformers' own model of the same weights, and what does not fit is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from synthetic import codec_spec
from tiny_models import ARCHITECTURES, tiny_batch, tiny_config, tiny_model, untied
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
)
from twins.padded import pad

from slmkit.errors import UserError
from slmkit.export import convert, from_causal_lm, is_export
from slmkit.model import backbone
from slmkit.model.architecture import TESTED, check_config, check_modules
from slmkit.model.attention import packed_attention
from slmkit.model.backbone import new_causal_lm
from slmkit.model.config import SpeechLMConfig
from slmkit.model.init_base import ROTARY, init_base
from slmkit.model.losses import coefficients
from slmkit.model.pretrained import check_export, config_on_base, extended_tokenizer, from_base, load, save
from slmkit.model.published import from_published, to_published
from slmkit.model.slm import SpeechLM

FRAMES = (9, 4, 0, 13)
TEXTS = ["the river froze before the last boat could leave the harbour", "eleven lanterns along the wall"] * 5
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def test_every_architecture_is_tested() -> None:
    assert tuple(ARCHITECTURES) == TESTED == tuple(ROTARY)


def plain_twin(model: SpeechLM) -> Any:
    """Transformers' own model of the same weights, with its own attention."""
    values = {**(model.config.backbone or {}), "attn_implementation": "eager"}
    config = AutoConfig.for_model(values.pop("model_type", "qwen2"), **values)
    twin = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)  # type: ignore[misc]
    twin.load_state_dict(model.lm_model.state_dict())
    return twin.eval()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_packed_loss_is_that_of_transformers_one_by_one(arch: str, tied: bool) -> None:
    model = tiny_model(0, arch=arch, backbone={"tie_word_embeddings": tied}).eval()
    batch = tiny_batch(model.config, FRAMES)
    tokens, mask, places = pad(batch)
    logits = []
    for row, known in zip(tokens[..., 0], mask, strict=True):
        logits.append(F.pad(plain_twin(model)(row[None, known]).logits[0], (0, 0, 0, int((~known).sum()))))
    flat = torch.stack(logits).flatten(0, 1)[places[batch.lm_positions]]
    each = F.cross_entropy(flat, batch.lm_targets, reduction="none")
    shares = coefficients(batch.global_counts, group=0, text_weight=0.2)
    output = model(batch)
    torch.testing.assert_close(output.loss, (each * shares[batch.lm_groups]).sum().float())
    assert output.loss.item() > 3
    assert (model.lm_model.lm_head.weight is model.backbone.embed_tokens.weight) == tied


def test_what_sets_an_architecture_apart_shows_in_the_loss() -> None:
    """So that the test above would notice it missing: norms of queries, scaled rotary positions, layers without."""
    changes: dict[str, dict[str, Any]] = {
        "qwen3": {"model_type": "llama"},
        "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}},
        "smollm3": {"no_rope_layers": [1, 1, 1]},
    }
    for arch, change in changes.items():
        model, other = tiny_model(arch=arch), SpeechLM(tiny_config(arch=arch, backbone=change))
        other.load_state_dict(model.state_dict(), strict=False)
        batch = tiny_batch(model.config, FRAMES)
        assert abs((model(batch).loss - other(batch).loss).item()) > 1e-3, arch


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / request.param
    init_base(TEXTS, path, arch=request.param, hidden_size=32, num_layers=4, num_heads=4, vocab_size=300, seed=1)
    return path


def test_a_base_model_is_one_of_its_architecture(base: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    assert model.config.model_type == base.name
    assert model.config.bos_token_id in (tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("<|im_start|>"))
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.vocab_size == len(tokenizer)
    text = "The river, 17 löwen\n"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def assert_same(one: SpeechLM, two: SpeechLM) -> None:
    mine, theirs = one.state_dict(), two.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("otherwise", [False, pytest.param(True, marks=pytest.mark.full)])
def test_exports_load_in_transformers_with_equal_logits_and_come_back(
    otherwise: bool, base: Path, tmp_path: Path
) -> None:
    """Llama's output layer untied and all others' tied, or otherwise."""
    tied = (base.name == "llama") == otherwise
    if not tied:
        base = untied(base, tmp_path / base.name)
    model = from_base(base, codec=codec_spec(), seed=2).eval()
    tables = (model.lm_model.lm_head.weight, model.lm_model.model.embed_tokens.weight)
    assert (tables[0] is tables[1]) == torch.equal(*tables) == tied
    save(model, tmp_path / "out", tokenizer=extended_tokenizer(base, model.layout))
    assert is_export(tmp_path / "out")
    convert(tmp_path / "out", tmp_path / "hf", format="hf")
    ids = torch.randint(0, model.layout.size, (1, 40))
    ours = model.lm_model.lm_head(model.hidden(model.embed(ids[..., None]), torch.arange(40)[None]))
    for name in ("out", "hf"):
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert plain.config.model_type == base.name
        torch.testing.assert_close(plain(ids).logits, ours, atol=1e-5, rtol=1e-5)
    back = load(tmp_path / "out", layout=model.layout)
    assert_same(model, back)
    assert back.config.backbone == model.config.backbone
    assert_same(model, from_causal_lm(tmp_path / "hf"))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["rope_theta"] == ROTARY[base.name]["rope_theta"]
    assert config.get("rope_scaling", {}).get("rope_type", "default") == ROTARY[base.name]["rope_type"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Hi."}], tokenize=False)
    begin = tokenizer.convert_ids_to_tokens(model.layout.bos_id)
    assert asked.startswith(f"{begin}[Human]: Hi.")


@pytest.mark.parametrize("head", ["linear", "transformer"])
def test_published_and_speaking_models_come_back(head: str, base: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"group": 3, "head": head, "speaker": True}
    model = from_base(base, codec=codec_spec(), seed=2, **options).eval()
    assert model.config.backbone == config_on_base(base, codec=codec_spec(), **options).backbone
    save(model, tmp_path / "out", tokenizer=extended_tokenizer(base, model.layout))
    assert_same(model, load(tmp_path / "out"))
    save_file(to_published(model), tmp_path / "published.safetensors")
    assert_same(model, from_published(tmp_path / "published.safetensors", base_dir=base, codec=codec_spec()))


def test_a_run_on_another_architecture_does_not_start_from_an_export(tmp_path: Path) -> None:
    """Of the same sizes and tokenizer; nor on one whose heads have another width."""
    bases: dict[str, Any] = {"qwen2": {}, "qwen3": {}, "wide": {"num_heads": 2, "num_key_value_heads": 2}}
    for name, sizes in bases.items():
        arch = "qwen2" if name == "qwen2" else "qwen3"
        init_base(TEXTS, tmp_path / name, arch=arch, hidden_size=32, num_layers=1, vocab_size=300, **sizes)
    for ours, theirs in (("qwen2", "qwen3"), ("qwen3", "qwen2")):
        model = from_base(tmp_path / theirs, codec=codec_spec())
        save(model, tmp_path / f"of-{theirs}", tokenizer=extended_tokenizer(tmp_path / theirs, model.layout))
        config = config_on_base(tmp_path / ours, codec=codec_spec())
        with pytest.raises(UserError, match=r"(head_dim|model_type) of the base model differs"):
            check_export(tmp_path / f"of-{theirs}", config, base_dir=tmp_path / ours)
    with pytest.raises(UserError, match=r"(head_dim|num_attention_heads) of the base model differs"):
        check_export(
            tmp_path / "of-qwen3", config_on_base(tmp_path / "wide", codec=codec_spec()), base_dir=tmp_path / "wide"
        )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rotary_frequencies_stay_float32(arch: str) -> None:
    model = tiny_model(arch=arch)
    before = {name: buffer.clone() for name, buffer in model.backbone.rotary_emb.named_buffers()}
    torch.nn.Module.to(model, torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert before
    for name, buffer in model.backbone.rotary_emb.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_heads_take_layers_like_the_first_ones() -> None:
    """SmolLM3's second layer here has no rotary positions, and so has the second of every head."""
    model = tiny_model(3, arch="smollm3", head="transformer")
    kinds = [[layer.self_attn.use_rope for layer in head.head_layers] for head in model.heads]
    assert kinds == [[1, 0]] * 3
    entries = [layer.self_attn.layer_idx for head in model.heads for layer in head.head_layers]
    assert entries == list(range(3, 9))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, "it has sliding-window attention"),
    ("mistral", {"sliding_window": 8}, "it has sliding-window attention"),
    ("qwen3", {"layer_types": ["full_attention", "linear_attention"]}, "it has layers of linear_attention"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "of the kind dynamic"),
    ("gpt2", {}, "its rotary positions are of the kind None"),
    ("qwen3_moe", {"num_experts": 2, "moe_intermediate_size": 8}, "layer 0 has a part of another kind"),
    ("mixtral", {"sliding_window": None, "num_local_experts": 2}, "layer 0 has a part of another kind"),
    ("bert", {}, "its rotary positions are of the kind None"),
]


@pytest.mark.parametrize(("arch", "values", "message"), REFUSED)
def test_what_does_not_fit_is_named(arch: str, values: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Before weights are read; the tested ones are told."""
    init_base(["a"], tmp_path / "base", hidden_size=16, num_layers=1)
    told = {**TINY, "intermediate_size": 48, "vocab_size": 771, "pad_token_id": None, **values, "model_type": arch}
    (tmp_path / "base" / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=f"a base model of the architecture {arch} does not fit: .*{message}") as error:
        config_on_base(tmp_path / "base", codec=codec_spec())
    assert "qwen2, qwen3, llama, smollm3" in str(error.value)


def test_parts_of_another_kind_are_named() -> None:
    config = backbone.backbone_config({**TINY, "vocab_size": 20, "intermediate_size": 48})
    model = new_causal_lm(config)
    model.lm_head = torch.nn.Linear(32, 20)
    with pytest.raises(UserError, match="its output layer has a bias"):
        check_modules(model)
    model = new_causal_lm(config)
    model.model.layers[1].second = model.model.layers[0].self_attn
    with pytest.raises(UserError, match="layer 1 has 2 attentions"):
        check_modules(model)
    model = new_causal_lm(config)
    model.model.layers[1] = torch.nn.Linear(32, 32)
    with pytest.raises(UserError, match="layer 1 takes no rotary positions"):
        check_modules(model)
    del model.model.rotary_emb
    with pytest.raises(UserError, match=r"it has no model\.rotary_emb"):
        check_modules(model)
    with pytest.raises(UserError, match="transformers has no decoder of this kind"):
        new_causal_lm(AutoConfig.for_model("vit"))
    check_config(config)


def test_an_attention_that_asks_for_more_is_refused() -> None:
    module: Any = torch.nn.Module()
    module.config = backbone.backbone_config({**TINY, "vocab_size": 20})
    query = torch.zeros(1, 4, 3, 8)
    with pytest.raises(UserError, match="its attention has softcap"):
        packed_attention(module, query, query, query, None, scaling=1.0, softcap=30.0, sliding_window=None)


def test_a_base_that_transformers_runs_otherwise_is_refused(tmp_path: Path) -> None:
    """Granite multiplies embeddings and logits outside its layers; with factors of 1 it is a base like others."""
    factors = ("embedding_multiplier", "logits_scaling", "residual_multiplier")
    for name, factor in (("plain", 1.0), ("scaled", 3.0)):
        init_base(TEXTS, tmp_path / name, hidden_size=32, num_layers=1, vocab_size=300)
        values = {**TINY, "intermediate_size": 48, "vocab_size": 300, "pad_token_id": None}
        values |= {**dict.fromkeys(factors, factor), "attention_multiplier": 0.3}
        config = AutoConfig.for_model("granite", **values)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
    assert from_base(tmp_path / "plain", codec=codec_spec(), group=3).config.backbone["model_type"] == "granite"
    with pytest.raises(UserError, match="gives other logits here than in transformers"):
        from_base(tmp_path / "scaled", codec=codec_spec(), group=3)


def test_a_base_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    """Transformers would draw them at random."""
    init_base(TEXTS, tmp_path / "base", hidden_size=16, num_layers=1)
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tie_word_embeddings": False}))
    with pytest.raises(UserError, match=r"lacks weights of its config\n.*lm_head\.weight"):
        from_base(tmp_path / "base", codec=codec_spec())


def test_an_old_config_without_an_architecture_is_qwen2() -> None:
    values = tiny_config().backbone or {}
    assert "model_type" not in values
    assert SpeechLMConfig(backbone=values).backbone_config.model_type == "qwen2"
    assert (tiny_config(arch="llama").backbone or {})["model_type"] == "llama"
