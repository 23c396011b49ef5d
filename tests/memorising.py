"""Speech language models small enough to learn a few sentences by heart inside a test."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config

from slmkit.codec.base import CodecSpec
from slmkit.data.batch import Batch
from slmkit.data.loader import ExampleFormat, collate
from slmkit.data.prompt import example
from slmkit.data.sequence import build, measure, speech_size, term_counts, text_size, tokenize
from slmkit.data.shards import Sample
from slmkit.data.text import TextTokenizer
from slmkit.model.config import SpeechLMConfig
from slmkit.model.pretrained import backbone_values, base_layout
from slmkit.model.slm import SpeechLM

BASE = Path(__file__).resolve().parent / "golden" / "slm" / "tiny_base"


def small_model(
    tokenizer: TextTokenizer,
    spec: CodecSpec,
    group: int,
    *,
    hidden_size: int = 64,
    num_layers: int = 2,
    like: Path | None = None,
    **options: Any,
) -> SpeechLM:
    """A seeded model with random weights over the tiny base's tokenizer; `like` names a base with the shape to take."""
    layout = base_layout(tokenizer, spec, group)
    shape = Qwen2Config(
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=layout.size,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    if like is not None:
        shape = Qwen2Config.from_pretrained(like)
    torch.manual_seed(0)
    backbone = backbone_values(shape.to_dict(), layout, layout.size)
    config = SpeechLMConfig(backbone=backbone, layout=layout.to_dict(), codec=spec.to_dict(), group=group, **options)
    return SpeechLM(config)


def one_batch(
    model: SpeechLM, tokenizer: TextTokenizer, samples: Sequence[Sample], tasks: Sequence[str] | None = None
) -> Batch:
    """All samples as one global batch of examples, text-to-speech where `tasks` does not say otherwise."""
    layout, group, speaker = model.layout, model.group, model.config.speaker_dim > 0
    examples, sizes = [], []
    for sample, task in zip(samples, tasks or ["tts"] * len(samples), strict=True):
        pieces = tokenize(example(task, sample.meta, speaker=speaker), tokenizer.encode, layout)
        examples.append((build(pieces, sample.codes, layout, group), sample))
        sizes.append(
            measure(
                *text_size(pieces),
                *speech_size(pieces),
                sample.codes.shape[1],
                num_streams=layout.num_streams,
                group=group,
            )
        )
    return collate(
        examples,
        layout,
        ExampleFormat(task="tts", group=group, speaker=speaker),
        speaker_dim=model.config.speaker_dim,
        global_counts=term_counts(np.array(sizes), layout.num_streams, group),
    )


def memorise(model: SpeechLM, batch: Batch, max_steps: int = 150, lr: float = 3e-3) -> int:
    """Train on one batch until every target has the largest logit; returns the steps that took."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    model.train()
    for step in range(max_steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 10) * (0.525 + 0.475 * math.cos(math.pi * step / max_steps))
        output = model(batch)
        if torch.equal(output.correct.double(), batch.global_counts):
            model.eval()
            return step
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    raise AssertionError(f"not memorised in {max_steps} steps: {output.correct} of {batch.global_counts}")
