"""The plain loop (twins/generate.py): it speaks what a model has learnt by heart, with and without a cache."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from memorising import BASE, memorise, one_batch, small_model
from synthetic import codec_spec
from transformers import DynamicCache
from twins import generate as module
from twins.generate import Limits, PlainDecoder, generate, prompt_example

from slmkit.data.shards import Sample
from slmkit.data.text import TextTokenizer
from slmkit.infer.sampling import Sampling
from slmkit.model.slm import SpeechLM

KINDS = [
    (0, {}),
    (0, {"softmax": "stream", "speaker_dim": 8}),
    (3, {"head": "linear", "speaker_dim": 8}),
    (6, {"head": "mlp", "fusion": "mlp"}),
    (6, {"head": "transformer"}),
    (3, {"head": "transformer", "fusion": "mlp"}),
    (12, {"head": "linear", "speaker_dim": 8}),
]
ALL_KINDS = [kind if kind in (0, 2) else pytest.param(kind, marks=pytest.mark.full) for kind in range(len(KINDS))]
TEXTS = ("The river froze.", "She counted eleven lanterns.", "Nobody had told him.")


@functools.cache
def tokenizer() -> TextTokenizer:
    return TextTokenizer.load(BASE)


def samples() -> list[Sample]:
    rng = np.random.default_rng(7)
    return [
        Sample(
            text,
            rng.integers(0, 16, (3, length)).astype(np.uint16),
            rng.standard_normal(8).astype(np.float32),
            {"text": text},
        )
        for text, length in zip(TEXTS, (7, 12, 9), strict=True)
    ]


@functools.cache
def trained(kind: int) -> SpeechLM:
    group, options = KINDS[kind]
    model = small_model(tokenizer(), codec_spec(), group, hidden_size=48, **options)
    memorise(model, one_batch(model, tokenizer(), samples()))
    return model


def start_of(model: SpeechLM, sample: Sample) -> dict:
    aware = model.config.speaker_dim > 0
    example = prompt_example(tokenizer(), model.layout, sample.meta["text"], group=model.group, speaker=aware)
    return {"start": example, "speaker": torch.from_numpy(sample.speaker) if aware else None}


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_memorised_codes_come_out(kind: int) -> None:
    model = trained(kind)
    for sample in samples():
        out = generate(model, **start_of(model, sample))
        assert out.stop == "end"
        assert np.array_equal(out.codes, sample.codes)
        assert out.codes.dtype == np.uint16
        assert tokenizer().decode(out.text_ids) == " The speech is: .\n\n"


class WithoutCache(PlainDecoder):
    """Every step reads all positions again."""

    def append(self, embedded: torch.Tensor) -> None:
        self.seen = torch.cat([self.seen, embedded], dim=1) if self.length else embedded
        self.length, self.cache = 0, DynamicCache()
        super().append(self.seen)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_cache_changes_nothing(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(kind)
    settings = {"speech_sampling": Sampling(temperature=1.0), "limits": Limits(max_frames=20), "seed": 3}
    start = start_of(model, samples()[0])
    cached = generate(model, **start, **settings)
    monkeypatch.setattr(module, "PlainDecoder", WithoutCache)
    plain = generate(model, **start, **settings)
    assert cached.codes.shape[1] > 0
    assert np.array_equal(cached.codes, plain.codes)
    assert (cached.stop, cached.num_steps, cached.text_ids) == (plain.stop, plain.num_steps, plain.text_ids)


@pytest.mark.parametrize("kind", [0, 2, pytest.param(4, marks=pytest.mark.full)])
def test_limits_stop_and_say_so(kind: int) -> None:
    model = trained(kind)
    start = start_of(model, samples()[1])
    cut = generate(model, **start, limits=Limits(max_frames=5))
    assert (cut.stop, cut.codes.shape) == ("speech_limit", (3, 5))
    assert np.array_equal(cut.codes, samples()[1].codes[:, :5])
    assert generate(model, **start, limits=Limits(max_text_tokens=2)).stop == "text_limit"


def test_a_seed_repeats_and_another_differs() -> None:
    model = trained(0)
    start = start_of(model, samples()[0])
    settings = {"speech_sampling": Sampling(temperature=3.0), "limits": Limits(max_frames=8)}
    first, again, other = (generate(model, **start, **settings, seed=seed).codes.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_voice_follows_the_vector() -> None:
    one, two, _ = samples()
    two = dataclasses.replace(two, meta=one.meta)  # the same sentence, in two voices
    model = small_model(tokenizer(), codec_spec(), 3, hidden_size=48, speaker_dim=8)
    memorise(model, one_batch(model, tokenizer(), [one, two]))
    for sample in (one, two):
        assert np.array_equal(generate(model, **start_of(model, sample)).codes, sample.codes)
