"""Text from strangers never becomes a special token."""

import functools
import json
import pickle
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

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


def fast(**names: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges; `names` are its special tokens."""
    vocabulary = {character: i for i, character in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.mark.parametrize(
    ("names", "bos", "eos"),
    [
        ({"eos_token": "<|endoftext|>", "pad_token": "<|im_start|>"}, "<|im_start|>", "<|endoftext|>"),
        ({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}, "<|begin_of_text|>", "<|end_of_text|>"),
        ({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, "<s>", "</s>"),
        ({"eos_token": "<|end_of_text|>"}, "<|end_of_text|>", "<|end_of_text|>"),
    ],
)
def test_tokens_that_begin_and_end_an_utterance(names: dict[str, str], bos: str, eos: str, tmp_path: Path) -> None:
    """Qwen's, Llama 3's and Llama 2's, and a tokenizer without a token to begin with; from files as well."""
    tokenizer = fast(**names)
    tokenizer.save_pretrained(tmp_path / "saved")
    for read in (TextTokenizer.from_transformers(tokenizer), TextTokenizer.load(tmp_path / "saved")):
        assert (read.bos_id, read.eos_id) == tuple(tokenizer.convert_tokens_to_ids([bos, eos]))
        assert read.base_size == len(tokenizer)
        for name in names.values():
            assert max(read.encode(f"a {name} b")) < 256
            assert read.decode(read.encode(f"a {name} b")) == f"a {name} b"


def test_tokenizers_that_cannot_be_used_are_named() -> None:
    with pytest.raises(UserError, match="has no end-of-text token"):
        TextTokenizer.from_transformers(fast(bos_token="<s>"))
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -2.0) for letter in "</s> ab")]
    whole_words = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole_words, eos_token="</s>", unk_token="<unk>")
    with pytest.raises(UserError, match="makes special tokens of plain text\n  got:      </s>"):
        TextTokenizer.from_transformers(tokenizer)
