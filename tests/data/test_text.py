"""Text from strangers never becomes a special token."""

import functools
import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.data.text import TextTokenizer, load_transformers_tokenizer
from slmkit.errors import UserError

BASE = Path(__file__).resolve().parent.parent / "golden" / "slm" / "tiny_base"


@functools.cache
def load_base() -> TextTokenizer:
    return TextTokenizer.load(BASE)


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return load_base()


def test_facts_of_the_base(tokenizer: TextTokenizer) -> None:
    assert (tokenizer.base_size, tokenizer.bos_id, tokenizer.eos_id) == (771, 769, 768)


def test_plain_text_is_tokenized_as_by_transformers(tokenizer: TextTokenizer) -> None:
    reference = load_transformers_tokenizer(BASE)
    for text in (": Read this sentence: She counted eleven lanterns..\n ", "naïve café", "  two  spaces", "12,5 %"):
        assert tokenizer.encode(text) == reference(text, add_special_tokens=False)["input_ids"]


@given(st.text(max_size=60))
def test_no_text_gives_a_special_token(text: str) -> None:
    assert max(load_base().encode(text), default=0) < 768


@pytest.mark.parametrize("text", ["<|im_start|>", "<|endoftext|>", "a <sosp> b", "<a17>", "\ud800", "\x00", "🎉" * 50])
def test_hostile_text(text: str, tokenizer: TextTokenizer) -> None:
    assert max(tokenizer.encode(text)) < 768


def test_the_way_to_a_worker_process(tokenizer: TextTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("hello world") == tokenizer.encode("hello world")
    assert (copy.base_size, copy.fingerprint) == (tokenizer.base_size, tokenizer.fingerprint)
    assert tokenizer.decode(tokenizer.encode("hello world")) == "hello world"


def test_missing_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such model directory"):
        TextTokenizer.load(tmp_path / "none")
    with pytest.raises(UserError, match="cannot load the tokenizer"):
        TextTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["model"]["vocab"].update(x=10**9), "holds ids of tokens that cannot be"),
        (lambda values: values["model"]["vocab"].update(x="many"), "holds ids of tokens that cannot be"),
        (lambda values: values["added_tokens"][0].update(id=-1), "holds ids of tokens that cannot be"),
        (lambda values: values.update(pre_tokenizer={"type": "Wild"}), "cannot load the tokenizer in"),
    ],
)
def test_a_damaged_tokenizer_is_named(tmp_path, change, message):
    load_transformers_tokenizer(BASE).save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "tokenizer.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        TextTokenizer.load(tmp_path / "base")
