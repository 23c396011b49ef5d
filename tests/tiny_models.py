"""Small speech language models and micro-batches of random utterances, without files."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from synthetic import codec_spec
from transformers import AutoModelForCausalLM

from slmkit.data.batch import Batch
from slmkit.data.loader import ExampleFormat, collate
from slmkit.data.sequence import Piece, build, head_classes
from slmkit.data.shards import Sample
from slmkit.data.vocab import VocabLayout
from slmkit.model.config import SpeechLMConfig
from slmkit.model.slm import SpeechLM
from slmkit.train.parity import BACKBONE, BASE_SIZE

SPARE_ROWS = 5  # rows of the embedding beyond the layout, as in Qwen2.5
# What sets each architecture apart: head widths and norms, scaled rotary positions and biases, layers without them.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"model_type": "qwen3", "head_dim": 12, "pad_token_id": None},
    "llama": {
        "model_type": "llama",
        "tie_word_embeddings": False,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "smollm3": {"model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layers": [1, 0, 1], "pad_token_id": None},
}


def tiny_layout(group: int, sizes: tuple[int, ...] = (16, 16, 16)) -> VocabLayout:
    kind = "mtp" if group else "ntp"
    return VocabLayout.published(kind, base_size=BASE_SIZE, bos_id=38, eos_id=39, codebook_sizes=sizes)


def tiny_config(
    group: int = 0,
    *,
    arch: str = "qwen2",
    sizes: tuple[int, ...] = (16, 16, 16),
    backbone: dict[str, Any] | None = None,
    **options: Any,
) -> SpeechLMConfig:
    layout = tiny_layout(group, sizes)
    values = {**BACKBONE, "vocab_size": layout.size + SPARE_ROWS, **ARCHITECTURES[arch], **(backbone or {})}
    return SpeechLMConfig(
        backbone=values, layout=layout.to_dict(), codec=codec_spec(sizes).to_dict(), group=group, **options
    )


def tiny_model(group: int = 0, *, seed: int = 0, **options: Any) -> SpeechLM:
    """A model whose weights are larger than usual, so that mistakes show in its losses."""
    torch.manual_seed(seed)
    model = SpeechLM(tiny_config(group, **options))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.15 * torch.randn_like(weight))
    return model


def untied(base: Path, out: Path) -> Path:
    """A base model like `base`, with an output layer of its own."""
    shutil.copytree(base, out)
    plain = AutoModelForCausalLM.from_pretrained(base, tie_word_embeddings=False)
    plain.lm_head.weight = torch.nn.Parameter(plain.model.embed_tokens.weight.detach() * 1.5 + 0.01)
    plain.save_pretrained(out)
    return out


def talkative_model(group: int, *, backbone: dict[str, Any] | None = None, **options: Any) -> SpeechLM:
    """A random model that begins to speak often, and does not stop at once."""
    model = tiny_model(group, seed=3, backbone={"tie_word_embeddings": False, **(backbone or {})}, **options).eval()
    with torch.no_grad():
        model.lm_model.lm_head.weight[model.layout.id_of("<sosp>")] *= 3
        model.lm_model.lm_head.weight[model.layout.eos_id] *= 0.3
        if not group:
            model.lm_model.lm_head.weight[model.layout.id_of("<eosp>")] *= 0.5
        for head, classes in zip(model.heads, head_classes(group, model.layout.codebook_sizes), strict=True):
            head.output.weight[classes.num_codes :] *= 0.3
    return model


def pieces_of(layout: VocabLayout, rng: np.random.Generator, *, speaker: bool, speech: bool) -> list[Piece]:
    """Unlabelled text with a speaker slot perhaps, then labelled text, speech perhaps, and labelled text."""

    def words(count: int, labelled: bool) -> Piece:
        return Piece(tuple(int(i) for i in rng.integers(0, BASE_SIZE, count)), "text", labelled)

    pieces = [words(int(rng.integers(3, 9)), False)]
    if speaker:
        pieces += [Piece((layout.id_of("<|placeholder|>"),), "speaker", False), words(2, False)]
    pieces.append(words(3, True))
    if speech:
        pieces += [Piece((layout.id_of("<sosp>"),), "text", True), Piece((), "speech", True)]
    return [*pieces, words(2, True)]


def tiny_batch(
    config: SpeechLMConfig, frames: Sequence[int], *, seed: int = 0, counts: torch.Tensor | None = None
) -> Batch:
    """A micro-batch with one utterance per entry of `frames`, text alone where it is 0; a global batch by itself
    unless `counts` tells the targets of a larger one. Utterance i depends on (seed, i) and its frames only."""
    layout, speaker_dim = config.vocab_layout, config.speaker_dim
    examples = []
    for i, num_frames in enumerate(frames):
        rng = np.random.default_rng((seed, i))
        sizes = np.array(layout.codebook_sizes)[:, None]
        codes = rng.integers(0, sizes, (layout.num_streams, num_frames))
        vector = rng.standard_normal(speaker_dim).astype(np.float32)
        pieces = pieces_of(layout, rng, speaker=speaker_dim > 0, speech=num_frames > 0)
        example = build(pieces, codes, layout, config.group)
        examples.append((example, Sample(f"u{i}", codes.astype(np.uint16), vector, {})))
    form = ExampleFormat(task="tts", group=config.group, speaker=speaker_dim > 0)
    batch = collate(
        examples, layout, form, speaker_dim=speaker_dim, global_counts=np.zeros(config.num_terms), num_frames=0
    )
    object.__setattr__(batch, "global_counts", count_targets(batch, config) if counts is None else counts)
    return batch


def count_targets(batch: Batch, config: SpeechLMConfig) -> torch.Tensor:
    """Targets per term of one micro-batch, float64 [1 + T]."""
    counts = batch.lm_groups.bincount(minlength=config.num_terms).double()
    if config.group:
        counts[1:] = len(batch.head_positions)
    return counts
