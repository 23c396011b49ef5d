"""A tiny base model, for where no pretrained one is at hand: tokenizer and random weights in the form of a known one.

The tokenizer is a byte-level byte-pair encoding trained on the user's own text, with the special tokens of the
architecture. The directory loads wherever one of that architecture does. It has learnt nothing: use a pretrained model
for real work.

| architecture | form of | what sets it apart |
|---|---|---|
| qwen2 | Qwen2.5 | biases of queries, keys and values |
| qwen3 | Qwen3 | norms of queries and keys, heads of any width |
| llama | Llama 3.2 | rotary positions scaled for long texts, `<|begin_of_text|>` |
| smollm3 | SmolLM3 | every fourth layer without rotary positions |

Invariant: equal texts, architecture, sizes and seed give equal files.

Example:
    init_base(["the text of a corpus", ...], "tiny-base", hidden_size=256, num_layers=6, vocab_size=4096, seed=0)
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedTokenizerFast, Qwen2Tokenizer

from slmkit.errors import UserError
from slmkit.files import new_directory
from slmkit.model.backbone import DEFAULT_TYPE
from slmkit.model.pretrained import seeded

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # of Qwen; the first ends a text
LLAMA_TOKENS = ("<|end_of_text|>", "<|begin_of_text|>")  # of Llama, and of SmolLM3 with those of a chat
SPECIAL_TOKENS_OF = {"llama": LLAMA_TOKENS, "smollm3": (*LLAMA_TOKENS, *SPECIAL_TOKENS[1:])}
NUM_BYTES = 256
FEATURES_PER_HEAD = 64  # as in Qwen2.5-0.5B
MLP_RATIO = 4
CONTEXT_POSITIONS = 32768
ROTARY: dict[str, dict[str, Any]] = {  # as in the models themselves
    "qwen2": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "qwen3": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "llama": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "smollm3": {"rope_type": "default", "rope_theta": 5_000_000.0},
}


def init_base(
    texts: Iterable[str],
    out_dir: str | Path,
    *,
    arch: str = DEFAULT_TYPE,
    hidden_size: int = 256,
    num_layers: int = 6,
    num_heads: int | None = None,
    num_key_value_heads: int | None = None,
    vocab_size: int = 4096,
    seed: int = 0,
) -> None:
    """Write config, tokenizer and float32 weights to `out_dir`, which must not exist.

    `arch`: one of `ROTARY`, as transformers calls its `model_type`. `vocab_size` is the most tokens the tokenizer may
    have; little text gives fewer. Without `num_heads` there are as many as fit and are 64 wide or wider; of key-value
    heads at most half as many, as divide them. Raises UserError when the sizes do not fit.
    """
    heads = num_heads
    if heads is None:
        heads = next((n for n in range(hidden_size // FEATURES_PER_HEAD, 1, -1) if hidden_size % (2 * n) == 0), 1)
    shared = num_key_value_heads
    if shared is None:
        shared = next((n for n in range(heads // 2, 1, -1) if heads % n == 0), 1)
    if min(hidden_size, num_layers, heads, shared) < 1 or hidden_size % (2 * heads) or heads % shared:
        raise UserError(
            "the sizes of the base model do not fit",
            got=f"hidden_size {hidden_size}, {num_layers} layers, {heads} heads, {shared} key-value heads",
            expected="an even number of features per head, heads a multiple of key-value heads",
        )
    if arch not in ROTARY:
        raise UserError("unknown architecture of a base model", got=arch, expected=", ".join(ROTARY))
    special = SPECIAL_TOKENS_OF.get(arch, SPECIAL_TOKENS)
    if vocab_size < NUM_BYTES + len(special):
        raise UserError("the vocabulary is too small", got=vocab_size, expected=f"{NUM_BYTES + len(special)} or more")
    tokenizer = train_tokenizer(texts, vocab_size, special)
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": MLP_RATIO * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "max_position_embeddings": CONTEXT_POSITIONS,
        "rope_parameters": ROTARY[arch],
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.convert_tokens_to_ids(special[1]),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    if arch == "qwen3":
        values["head_dim"] = hidden_size // heads  # the others' default; its own is 128
    config = AutoConfig.for_model(arch, **values)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with new_directory(Path(out_dir)) as temporary:
        with seeded(seed):
            model_class(config).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def train_tokenizer(texts: Iterable[str], vocab_size: int, special: Sequence[str] = SPECIAL_TOKENS) -> Any:
    """A tokenizer of at most `vocab_size` tokens, learnt from `texts`; the first of `special` ends a text.

    With Qwen's special tokens it is of Qwen2's class, else a plain one as Llama 3 and SmolLM3 have it.
    """
    backend = Qwen2Tokenizer(vocab={}, merges=[]).backend_tokenizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - len(special),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.normalizer, learner.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    merges: list[Any] = [tuple(pair) for pair in model["merges"]]  # the class takes pairs, its hints say otherwise
    if special == SPECIAL_TOKENS:
        tokenizer: Any = Qwen2Tokenizer(vocab=model["vocab"], merges=merges)
    else:
        plain = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=model["vocab"], merges=merges))
        plain.normalizer, plain.pre_tokenizer, plain.decoder = (
            backend.normalizer,
            backend.pre_tokenizer,
            backend.decoder,
        )
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=special[0], bos_token=special[1])
    tokenizer.add_special_tokens({"additional_special_tokens": list(special[1:])})
    return tokenizer
