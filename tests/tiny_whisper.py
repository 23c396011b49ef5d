"""A Whisper model so small that it is trained in seconds: it hears tones and writes "low", "high" or both."""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

RATE, WINDOW_SEC = 16000, 2
HERTZ = {"low": 300.0, "high": 2400.0}
SPECIALS = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|fr|>", "<|translate|>", "<|transcribe|>")
SPECIALS += ("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
SENTENCES = ("low", "high", "low high", "high low")


def tones(words: str, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """0.5 s of tone per word with 0.2 s of near silence around, float32."""
    rng = np.random.default_rng(seed)
    time = np.arange(rate // 2) / rate
    gap = np.zeros(rate // 5)
    parts = [gap]
    for word in words.split():
        parts += [0.5 * np.sin(2 * np.pi * HERTZ[word] * rng.uniform(0.95, 1.05) * time), gap]
    wave = np.concatenate(parts)
    return (wave + 0.001 * rng.standard_normal(len(wave))).astype(np.float32)


def save_tiny_whisper(path: Path, *, steps: int, multilingual: bool = True) -> None:
    """Write a model directory like a published one; random weights for 0 `steps` of training."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*letters, *SPECIALS])}
    tokenizer = WhisperTokenizer(vocab=vocab, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIALS[1:])})
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW_SEC)
    end, start = vocab["<|endoftext|>"], vocab["<|startoftranscript|>"]
    width = {"d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    inner = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_layers": 1, "decoder_layers": 1}
    config = WhisperConfig(
        vocab_size=len(vocab),
        num_mel_bins=16,
        max_source_positions=50 * WINDOW_SEC,
        max_target_positions=24,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **width,
        **inner,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    asked = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
    prompt = [vocab[token] for token in (asked if multilingual else (asked[0], asked[3]))]
    train(model, tokenizer, extractor, prompt, steps)
    speaks = {
        "lang_to_id": {token: vocab[token] for token in ("<|en|>", "<|fr|>")},
        "task_to_id": {task: vocab[f"<|{task}|>"] for task in ("translate", "transcribe")},
    }
    model.generation_config = GenerationConfig(
        max_length=24,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        no_timestamps_token_id=vocab["<|notimestamps|>"],
        is_multilingual=multilingual,
        num_beams=2,
        **(speaks if multilingual else {}),
    )
    for part in (model, tokenizer, extractor):
        part.save_pretrained(path)
    (path / "normalizer.json").write_text(json.dumps({"colour": "color"}))


def train(model, tokenizer, extractor, prompt: list[int], steps: int) -> None:
    """Fit `model` to the tones. Targets are the letters of the words."""
    end = model.config.eos_token_id
    waves = [tones(words, seed) for seed in range(6) for words in SENTENCES]
    features = extractor(waves, sampling_rate=RATE, return_tensors="pt").input_features
    texts = [[*tokenizer.encode(words, add_special_tokens=False), end] for _ in range(6) for words in SENTENCES]
    longest = max(map(len, texts))
    inputs = torch.tensor([prompt + text + [end] * (longest - len(text)) for text in texts])
    labels = inputs.clone()
    for row, text in zip(labels, texts, strict=True):
        row[: len(prompt)] = -100
        row[len(prompt) + len(text) :] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        logits = model(input_features=features, decoder_input_ids=inputs[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
