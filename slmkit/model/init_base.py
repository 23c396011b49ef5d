"""A tiny base model, for where no pretrained one is at hand: tokenizer and random weights in the form of Qwen2.5.

The tokenizer is a byte-level byte-pair encoding trained on the user's own text, with Qwen's three special tokens. The
directory loads wherever a Qwen2.5 directory does. It has learnt nothing: use a pretrained model for real work.

Invariant: equal texts, sizes and seed give equal files.

Example:
    init_base(["the text of a corpus", ...], "tiny-base", hidden_size=256, num_layers=6, vocab_size=4096, seed=0)
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from slmkit.errors import UserError
from slmkit.files import new_directory
from slmkit.model.pretrained import seeded

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NUM_BYTES = 256
FEATURES_PER_HEAD = 64  # as in Qwen2.5-0.5B
MLP_RATIO = 4
CONTEXT_POSITIONS = 32768
ROPE_BASE = 1_000_000.0  # as in Qwen2.5


def init_base(
    texts: Iterable[str],
    out_dir: str | Path,
    *,
    hidden_size: int = 256,
    num_layers: int = 6,
    num_heads: int | None = None,
    num_key_value_heads: int | None = None,
    vocab_size: int = 4096,
    seed: int = 0,
) -> None:
    """Write config, tokenizer and float32 weights to `out_dir`, which must not exist.

    `vocab_size` is the most tokens the tokenizer may have; little text gives fewer. Without `num_heads`, heads are 64
    wide where that divides hidden_size, else there is one; key-value heads default to half of them. Raises UserError
    when the sizes do not fit.
    """
    heads = num_heads or max(1, hidden_size // FEATURES_PER_HEAD)
    shared = num_key_value_heads or max(1, heads // 2)
    if min(hidden_size, num_layers) < 1 or hidden_size % (2 * heads) or heads % shared:
        raise UserError(
            "the sizes of the base model do not fit",
            got=f"hidden_size {hidden_size}, {num_layers} layers, {heads} heads, {shared} key-value heads",
            expected="an even number of features per head, heads a multiple of key-value heads",
        )
    if vocab_size < NUM_BYTES + len(SPECIAL_TOKENS):
        raise UserError(
            "the vocabulary is too small", got=vocab_size, expected=f"{NUM_BYTES + len(SPECIAL_TOKENS)} or more"
        )
    tokenizer = train_tokenizer(texts, vocab_size)
    bos, eos = tokenizer.convert_tokens_to_ids("<|im_start|>"), tokenizer.eos_token_id
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=MLP_RATIO * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        max_position_embeddings=CONTEXT_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
    )
    with new_directory(Path(out_dir)) as temporary:
        with seeded(seed):
            Qwen2ForCausalLM(config).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A Qwen2 tokenizer of at most `vocab_size` tokens, learnt from `texts`."""
    backend = Qwen2Tokenizer(vocab={}, merges=[]).backend_tokenizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.normalizer, learner.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    merges: list[Any] = [tuple(pair) for pair in model["merges"]]  # the class takes pairs, its hints say otherwise
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS[1:])})
    return tokenizer
