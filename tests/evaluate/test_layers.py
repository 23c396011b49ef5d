"""Where the states come from: the words of the prompt, the codes of the speech, the layers of the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from memorising import BASE, one_batch, small_model
from synthetic import codec_spec

from slmkit.data.prompt import tts
from slmkit.data.sequence import build, tokenize
from slmkit.data.shards import Sample
from slmkit.data.text import TextTokenizer
from slmkit.errors import BadSample
from slmkit.evaluate.layers import hidden_pairs, layer_states
from slmkit.model.backbone import Packing

TEXT = "  THE cat, it sat on Read this sentence. "


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.load(BASE)


def sample_of(frames=7, text=TEXT, streams=3):
    rng = np.random.default_rng(frames)
    codes = rng.integers(0, 16, (streams, frames)).astype(np.int16)
    return Sample("a", codes, rng.standard_normal(8).astype(np.float32), {"text": text})


@pytest.mark.parametrize("speaker_dim", [0, 8])
@pytest.mark.parametrize(("group", "num_speech"), [(0, 21), (3, 7), (6, 4)])
def test_pairs(tokenizer, group, num_speech, speaker_dim):
    """States of the words and codes alone, found again in the batch that training would make of the sample."""
    model = small_model(tokenizer, codec_spec(), group, speaker_dim=speaker_dim).eval()
    sample = sample_of()
    pairs = hidden_pairs(model, tokenizer, sample)
    assert len(pairs) == model.config.backbone_config.num_hidden_layers + 1
    batch = one_batch(model, tokenizer, [sample])
    with torch.no_grad():
        embedded = model.embed(batch.tokens, batch.speech_mask, batch.speaker, batch.speaker_positions)[None]
        packing = Packing(batch.cu_seqlens, batch.num_tokens)
        last = model.hidden(embedded, batch.position_ids[None], packing=packing)[0].numpy()
    ids = batch.tokens[:, 0].tolist()
    eosp = ids.index(model.layout.id_of("<eosp>"))
    words = "The cat, it sat on read this sentence."
    assert [pair[1].shape for pair in pairs] == [(num_speech, 64)] * len(pairs)
    assert pairs[-1][1] == pytest.approx(last[eosp - num_speech : eosp], abs=1e-5)
    assert pairs[0][1] == pytest.approx(embedded[0, eosp - num_speech : eosp].numpy(), abs=1e-6)
    start = next(i for i in range(len(ids)) if pairs[-1][0][0] == pytest.approx(last[i], abs=1e-5))
    inside = slice(start, start + len(pairs[-1][0]))
    assert pairs[-1][0] == pytest.approx(last[inside], abs=1e-5)
    assert tokenizer.decode(ids[inside]).strip(" .\n") == words.lower().capitalize().strip(".")


def test_layers_one_by_one(tokenizer):
    """Each state is the one before it, put through its layer; the last is normalised."""
    model = small_model(tokenizer, codec_spec(), 3).eval()
    pieces = tokenize(tts("hello there"), tokenizer.encode, model.layout)
    example = build(pieces, sample_of().codes, model.layout, 3)
    states = layer_states(model, example)
    qwen2 = model.lm_model.model
    positions = torch.arange(len(example.tokens))[None]
    with torch.no_grad():
        for i, layer in enumerate(qwen2.layers):
            inputs = torch.from_numpy(states[i])[None]
            out = layer(inputs, position_ids=positions, position_embeddings=qwen2.rotary_emb(inputs, positions))
            out = qwen2.norm(out) if i == len(qwen2.layers) - 1 else out
            assert states[i + 1] == pytest.approx(out[0].numpy(), abs=1e-5)


def test_detail_streams_are_left_out(tokenizer):
    model = small_model(tokenizer, codec_spec(), 3).eval()
    more = sample_of(streams=5)
    fewer = replace(more, codes=more.codes[:3])
    for a, b in zip(hidden_pairs(model, tokenizer, more), hidden_pairs(model, tokenizer, fewer), strict=True):
        assert np.array_equal(a[1], b[1])


def test_samples_that_do_not_do(tokenizer):
    model = small_model(tokenizer, codec_spec(), 3, speaker_dim=8).eval()
    with pytest.raises(BadSample, match="a has no frames"):
        hidden_pairs(model, tokenizer, sample_of(frames=0))
    with pytest.raises(BadSample, match="a has no speaker vector, and the model wants one"):
        hidden_pairs(model, tokenizer, replace(sample_of(), speaker=None))
    with pytest.raises(BadSample, match="the sample has no text"):
        hidden_pairs(model, tokenizer, sample_of(text=" "))
