"""The x-vector of a tiny WavLM with random weights."""

import json

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

from slmkit.audio.io import resampled
from slmkit.errors import BadSample, UserError
from slmkit.voice.wavlm import PART_SEC, WavLMVoice

RATE = 16000


def noise(seconds=0.5, seed=0, rate=RATE):
    return np.random.default_rng(seed).normal(0, 0.2, round(seconds * rate)).astype(np.float32)


@pytest.fixture(scope="module")
def wavlm(tmp_path_factory):
    """A directory as a published one lies on disk."""
    path = tmp_path_factory.mktemp("wavlm") / "sv"
    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        tdnn_dim=(16, 16, 16, 16, 24),
        xvector_output_dim=20,
        num_labels=3,
        use_weighted_layer_sum=True,
        feat_extract_norm="layer",  # group norm would hide whether waves are normalized
        conv_bias=True,
    )
    model = WavLMForXVector(config)
    with torch.no_grad():
        for weight in model.parameters():  # larger than usual, so that mistakes show
            weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(path)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(path)
    return path


def test_wavlm_naive_twin(wavlm):
    """Normalised as its extractor says, then the model's own embedding; at any rate, alone or after others."""
    voice, model = WavLMVoice.load(wavlm), WavLMForXVector.from_pretrained(wavlm).eval()
    wave = noise() + 0.05
    normal = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    with torch.no_grad():
        expected = model(torch.from_numpy(normal)[None]).embeddings[0].numpy()
    assert voice.vector(wave, RATE) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    voice.vector(noise(seed=1), RATE)
    assert voice.vector(wave, RATE) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert voice.vector(wave, RATE).dtype == np.float32
    fast = noise(0.5, 2, 48000)
    assert np.array_equal(voice.vector(fast, 48000), voice.vector(resampled(fast, 48000, RATE), RATE))


def test_wavlm_as_published(wavlm, tmp_path):
    """Published files are pickled tensors with the older names of weight normalization."""
    old = tmp_path / "old"
    old.mkdir()
    model = WavLMForXVector.from_pretrained(wavlm)
    renamed = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): weight
        for name, weight in model.state_dict().items()
    }
    assert any(name.endswith("weight_g") for name in renamed)
    torch.save(renamed, old / "pytorch_model.bin")
    for name in ("config.json", "preprocessor_config.json"):
        (old / name).write_bytes((wavlm / name).read_bytes())
    assert np.array_equal(WavLMVoice.load(old).vector(noise(), RATE), WavLMVoice.load(wavlm).vector(noise(), RATE))


def test_the_shortest_wave(wavlm):
    """A frame spans 400 samples, the next begins 320 later; the x-vector sees 15 at once, and wants two such."""
    voice = WavLMVoice.load(wavlm)
    shortest = 400 + 15 * 320
    assert np.isfinite(voice.vector(noise(shortest / RATE), RATE)).all()
    with pytest.raises(BadSample, match=r"(?s)too short for a speaker vector.*0\.325 s"):
        voice.vector(noise(shortest / RATE)[:-1], RATE)


def test_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    with pytest.raises(UserError, match=r"(?s)is not a WavLM model with an x-vector head.*model_type whisper"):
        WavLMVoice.load(tmp_path)


def test_a_model_without_the_head_is_refused(wavlm, tmp_path):
    from transformers import WavLMModel

    WavLMModel.from_pretrained(wavlm).save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="not those of a WavLM model with an x-vector head"):
        WavLMVoice.load(tmp_path / "bare")


def test_a_long_wave_is_heard_in_parts(wavlm, monkeypatch):
    """Of equal length, none above the limit: the vector is the mean of theirs."""
    monkeypatch.setattr("slmkit.voice.wavlm.PART_SEC", 1)
    voice, wave = WavLMVoice.load(wavlm), noise(2.5)
    parts = [voice.vector(part, RATE) for part in np.array_split(wave, 3)]
    assert voice.vector(wave, RATE) == pytest.approx(np.mean(parts, axis=0), rel=1e-5, abs=1e-6)
    assert PART_SEC == 30


def test_saved_and_opened_it_is_the_same(wavlm, tmp_path):
    from slmkit.voice.open import open_voice

    voice = open_voice(wavlm)
    (tmp_path / "copy").mkdir()
    voice.save(tmp_path / "copy")
    again = open_voice(tmp_path / "copy")
    assert (again.sha256, again.dim, again.min_samples) == (voice.sha256, 20, 5200)
    assert np.array_equal(again.vector(noise(), RATE), voice.vector(noise(), RATE))
