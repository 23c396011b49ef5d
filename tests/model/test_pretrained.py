"""Base models, exports and published checkpoints: what goes out comes back."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic import codec_spec
from tiny_models import tiny_layout, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from slmkit.data.text import TextTokenizer
from slmkit.errors import UserError
from slmkit.model.config import SpeechLMConfig
from slmkit.model.init_base import init_base
from slmkit.model.pretrained import (
    extended_tokenizer,
    from_base,
    from_export,
    load,
    read_base_config,
    save,
)
from slmkit.model.published import from_published, lookup_buffers, to_published
from slmkit.model.slm import SpeechLM

TEXTS = ["the river froze before the last boat could leave the harbour", "eleven lanterns along the wall"] * 5
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"group": 0},
    "stream": {"group": 0, "softmax": "stream"},
    "speaker": {"group": 0, "speaker": True},
    "mtp3": {"group": 3, "head": "mlp"},
    "mtp6": {"group": 6, "head": "transformer", "speaker": True, "text_loss_weight": 0.3},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "tiny"
    init_base(TEXTS, path, hidden_size=32, num_layers=2, num_heads=4, vocab_size=300, seed=1)
    return path


def assert_same(one: SpeechLM, two: SpeechLM) -> None:
    mine, theirs = one.state_dict(), two.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name


def test_a_base_model_loads_like_any_other(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert model.config.vocab_size == len(tokenizer) <= 300
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") == model.config.bos_token_id
    assert tokenizer.eos_token_id == model.config.eos_token_id
    text = "The river, 17 löwen\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(" lanterns")) < len(" lanterns")
    assert TextTokenizer.load(base).encode("the river") == tokenizer.encode("the river")


def test_equal_seeds_give_equal_base_models(base: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 300}
    init_base(TEXTS, tmp_path / "same", **sizes, seed=1)
    init_base(TEXTS, tmp_path / "other", **sizes, seed=2)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "same" / name).read_bytes() == (base / name).read_bytes(), name
    weights = "model.safetensors"
    assert (tmp_path / "other" / weights).read_bytes() != (base / weights).read_bytes()
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("width", "heads", "shared"), [(320, 5, 1), (200, 2, 1), (576, 9, 3), (256, 4, 2)])
def test_heads_that_nobody_named_fit(width: int, heads: int, shared: int, tmp_path: Path) -> None:
    init_base(TEXTS, tmp_path / "base", hidden_size=width, num_layers=1, vocab_size=300)
    config = AutoConfig.from_pretrained(tmp_path / "base")
    assert (config.num_attention_heads, config.num_key_value_heads) == (heads, shared)


def test_base_models_that_cannot_be(tmp_path: Path, base: Path) -> None:
    for sizes in (
        {"hidden_size": 30, "num_heads": 4},
        {"num_heads": -4},
        {"num_heads": 0},
        {"num_key_value_heads": -1},
    ):
        with pytest.raises(UserError, match="sizes of the base model do not fit"):
            init_base(TEXTS, tmp_path / "a", **sizes)
    with pytest.raises(UserError, match="vocabulary is too small"):
        init_base(TEXTS, tmp_path / "a", vocab_size=100)
    with pytest.raises(UserError, match="the directory already exists"):
        init_base(TEXTS, base)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", KINDS)
def test_a_model_grows_on_a_base(name: str, base: Path) -> None:
    model = from_base(base, codec=codec_spec(), seed=3, **KINDS[name])
    assert_same(model, from_base(base, codec=codec_spec(), seed=3, **KINDS[name]))
    text = load_file(base / "model.safetensors")
    state = model.state_dict()
    table = state.pop("lm_model.model.embed_tokens.weight")
    size = model.layout.base_size
    assert torch.equal(table[:size], text.pop("model.embed_tokens.weight"))
    assert all(torch.equal(state[f"lm_model.{key}"], weight) for key, weight in text.items())
    assert len(table) == model.layout.size
    new = table[size:]
    assert len(torch.unique(new, dim=0)) == len(new)
    np.testing.assert_allclose(new.std(), table[:size].std(), rtol=0.2)
    assert model.lm_model.lm_head.weight is model.lm_model.model.embed_tokens.weight
    other = from_base(base, codec=codec_spec(), seed=4, **KINDS[name])
    assert not torch.equal(other.lm_model.lm_head.weight, table)


def test_an_embedding_with_room_is_not_resized(base: Path, tmp_path: Path) -> None:
    """Qwen2.5 has more rows than tokens; only what does not fit is added."""
    plain = AutoModelForCausalLM.from_pretrained(base)
    plain.resize_token_embeddings(600, mean_resizing=False)
    shutil.copytree(base, tmp_path / "roomy")
    plain.save_pretrained(tmp_path / "roomy")
    model = from_base(tmp_path / "roomy", codec=codec_spec())
    assert model.lm_model.config.vocab_size == 600
    known = model.layout.base_size
    assert torch.equal(model.lm_model.lm_head.weight[:known], plain.lm_head.weight[:known])


def test_bases_that_do_not_fit(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="codec gives no speaker vector"):
        from_base(base, codec=codec_spec(speaker_dim=0), speaker=True)
    shutil.copytree(base, tmp_path / "no_weights")
    (tmp_path / "no_weights" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "no_weights" / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load the base model in"):
        from_base(tmp_path / "no_weights", codec=codec_spec())
    shutil.copytree(base, tmp_path / "gpt2")
    values = json.loads((base / "config.json").read_text())
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps({**values, "model_type": "gpt2"}))
    with pytest.raises(UserError, match="architecture gpt2 does not fit"):
        from_base(tmp_path / "gpt2", codec=codec_spec())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KINDS)
def test_save_and_load(name: str, dtype: torch.dtype, base: Path, tmp_path: Path) -> None:
    model = from_base(base, codec=codec_spec(), seed=3, **KINDS[name]).to(dtype)
    save(model, tmp_path / "out", tokenizer=extended_tokenizer(base, model.layout))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"vocab_layout.json", "codec_spec.json", "provenance.json", "tokenizer.json"} <= names
    for back in (load(tmp_path / "out", layout=model.layout), SpeechLM.from_pretrained(tmp_path / "out")):
        assert back.dtype == dtype
        assert_same(model, back)
        assert back.lm_model.lm_head.weight is back.lm_model.model.embed_tokens.weight
        for field in ("backbone", "layout", "codec", "group", "head", "fusion", "softmax", "text_loss_weight"):
            assert getattr(back.config, field) == getattr(model.config, field), field
        rotary = (m.lm_model.model.rotary_emb.inv_freq for m in (model, back))
        assert torch.equal(*rotary)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens(range(model.layout.base_size, len(tokenizer))) == model.layout.added_tokens()
    tied = [key for key in load_file(tmp_path / "out" / "model.safetensors") if "lm_head" in key]
    assert not tied, "the tied weight is stored once"


def test_a_plain_export_is_a_qwen2_model(base: Path, tmp_path: Path) -> None:
    model = from_base(base, codec=codec_spec()).eval()
    save(model, tmp_path / "out", tokenizer=extended_tokenizer(base, model.layout))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.randint(0, model.layout.size, (1, 12))
    ours = model.lm_model.lm_head(model.hidden(model.embed(ids[..., None]), torch.arange(12)[None]))
    torch.testing.assert_close(plain(ids).logits, ours, atol=1e-5, rtol=1e-5)


def test_another_layout_is_refused_with_the_first_difference(base: Path, tmp_path: Path) -> None:
    model = from_base(base, codec=codec_spec())
    save(model, tmp_path / "out", tokenizer=extended_tokenizer(base, model.layout))
    with pytest.raises(UserError, match="base_size differs"):
        load(tmp_path / "out", layout=tiny_layout(0))
    path = tmp_path / "out" / "vocab_layout.json"
    path.write_text(path.read_text().replace("<sosp>", "<sospx>"))
    with pytest.raises(UserError, match="id of <sospx> differs"):
        load(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot load the model in"):
        load(tmp_path / "out")


@pytest.mark.parametrize("change", ["missing", "more", "shape"])
def test_incomplete_weights_are_refused(change: str, base: Path, tmp_path: Path) -> None:
    model = from_base(base, codec=codec_spec(), group=3)
    save(model, tmp_path / "out", tokenizer=extended_tokenizer(base, model.layout))
    path, name = tmp_path / "out" / "model.safetensors", "speech_heads.1.head.bias"
    state = load_file(path)
    if change == "missing":
        state.pop(name)
    else:
        state[name if change == "shape" else "speech_heads.9.bias"] = torch.zeros(5)
    save_file(state, path, metadata={"format": "pt"})
    message = "cannot load the model in" if change == "shape" else "are not those of its config"
    with pytest.raises(UserError, match=message):
        load(tmp_path / "out")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(value: float, base: Path, tmp_path: Path) -> None:
    model = from_base(base, codec=codec_spec(), group=3)
    save(model, tmp_path / "out", tokenizer=extended_tokenizer(base, model.layout))
    path, name = tmp_path / "out" / "model.safetensors", "speech_heads.1.head.bias"
    state = load_file(path)
    state[name][2] = value
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"the weights in .*out are not finite\n.*1 of {len(state[name])} numbers of "):
        load(tmp_path / "out")
    with pytest.raises(UserError, match="are not finite"):
        from_export(tmp_path / "out", model.config, seed=0)
    shutil.copytree(base, tmp_path / "base")
    state = load_file(tmp_path / "base" / "model.safetensors")
    next(iter(state.values())).view(-1)[3] = value
    save_file(state, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the weights in .*base are not finite"):
        from_base(tmp_path / "base", codec=codec_spec(), group=3)


@pytest.mark.parametrize(("name", "value"), [("hidden_size", 2**40), ("vocab_size", 10**12), ("head_dim", "wide")])
def test_absurd_sizes_are_named_before_anything_is_built(name: str, value: Any, base: Path, tmp_path: Path) -> None:
    """Of a base, and of the backbone of a model."""
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(UserError, match=rf"config\.json: 1 problem\n.*{name}: got {value!r}, expected a whole number"):
        read_base_config(tmp_path)
    values = tiny_model(3).config.to_dict()
    values["backbone"][name] = value
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        UserError, match=rf"config\.json: 1 problem\n.*backbone\.{name}: got {value!r}, expected a whole"
    ):
        SpeechLMConfig.from_pretrained(tmp_path)


def test_a_base_without_a_weight_of_its_config_is_refused(base: Path, tmp_path: Path) -> None:
    spoilt = shutil.copytree(base, tmp_path / "base")
    state = load_file(spoilt / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, spoilt / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"base lacks weights of its config\n  got: +model\.norm\.weight"):
        from_base(spoilt, codec=codec_spec(), group=3)


def test_save_overwrites_nothing_and_leaves_nothing(base: Path, tmp_path: Path) -> None:
    model = from_base(base, codec=codec_spec())
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="the directory already exists"):
        save(model, tmp_path / "out", tokenizer=None)
    with pytest.raises(AttributeError):
        save(model, tmp_path / "new", tokenizer=None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_tokenizer_of_another_base_is_refused(base: Path) -> None:
    layout = from_base(base, codec=codec_spec()).layout
    assert len(extended_tokenizer(base, layout)) == layout.size
    with pytest.raises(UserError, match="is not the one of this model"):
        extended_tokenizer(base, tiny_layout(0))


@pytest.mark.parametrize("name", [name for name in KINDS if name != "stream"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_published_round_trip(name: str, suffix: str, base: Path, tmp_path: Path) -> None:
    model = from_base(base, codec=codec_spec(), seed=5, **KINDS[name])
    path = tmp_path / f"published{suffix}"
    if suffix == ".bin":
        torch.save(to_published(model), path)
    else:
        save_file(to_published(model), path)
    back = from_published(path, base_dir=base, codec=codec_spec())
    assert_same(model, back)
    assert (back.group, back.config.head) == (model.group, model.config.head)


def test_lookup_buffers_invert_each_other() -> None:
    layout = tiny_layout(6)
    buffers = lookup_buffers(layout, 6)
    for i in range(6):
        bias, ids, classes = (
            buffers[f"speech_heads.{i}.{name}"] for name in ("bias", "small_to_orig", "orig_to_small")
        )
        assert bias == ids.min()
        assert torch.equal(classes[ids - bias], torch.arange(len(ids)))
        assert (classes == -100).sum() == len(classes) - len(ids)


def test_published_checkpoints_that_do_not_fit(base: Path, tmp_path: Path) -> None:
    model = from_base(base, codec=codec_spec(), group=3)
    state = to_published(model)
    path = tmp_path / "published.safetensors"

    def refused(changed: dict[str, torch.Tensor], message: str) -> None:
        save_file({name: value.clone() for name, value in changed.items()}, path)
        with pytest.raises(UserError, match=message):
            from_published(path, base_dir=base, codec=codec_spec())

    embedding, projector = "lm_model.model.embed_tokens.weight", "spk_emb_proj.0.weight"
    for changed in ({"x": torch.zeros(1)}, {embedding: torch.ones(4, 4).long()}, {**state, projector: torch.ones(1)}):
        refused(changed, "is not a published checkpoint")
    refused({**state, "speech_heads.1.bias": torch.tensor(7)}, "speech_heads.1.bias differs")
    refused(
        {**state, "speech_heads.1.head.bias": torch.zeros(3)}, "does not fit the base model and codec: speech_heads"
    )
    refused({**state, "speech_heads.1.head.bias": state["speech_heads.1.head.bias"] / 0}, "are not finite")
    for dtype in (torch.float8_e4m3fn, torch.float64):
        changed = {**state, "speech_heads.1.head.bias": state["speech_heads.1.head.bias"].to(dtype)}
        refused(changed, "are of a float type that slmkit does not write")
    refused({k: v for k, v in state.items() if "q_proj" not in k}, "does not fit the base model and codec: lm_model")
    path.write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot read"):
        from_published(path, base_dir=base, codec=codec_spec())
    for content, message in (([1], "does not hold weights by name"), ({"a": 1}, "does not hold a state dict")):
        torch.save(content, tmp_path / "other.bin")
        with pytest.raises(UserError, match=message):
            from_published(tmp_path / "other.bin", base_dir=base, codec=codec_spec())
    with pytest.raises(UserError, match="published format has no mlp fusion"):
        to_published(tiny_model(3, fusion="mlp"))


def test_a_checkpoint_with_code_in_it_is_not_run(base: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path / "sprung").touch, ()

    torch.save({"x": Trap()}, tmp_path / "trap.bin")
    with pytest.raises(UserError, match="cannot read"):
        from_published(tmp_path / "trap.bin", base_dir=base, codec=codec_spec())
    assert not (tmp_path / "sprung").exists()
